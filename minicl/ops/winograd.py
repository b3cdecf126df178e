"""3x3 convolution of stride 1 with fewer products: Winograd's F(2x2, 3x3), for many channels on a CPU.

Two neighbouring outputs of three taps, y0 = w0 d0 + w1 d1 + w2 d2 and y1 = w0 d1 + w1 d2 + w2 d3, cost six products.
Winograd's form needs four, of transformed inputs and taps; the transforms B, G and A only add:

    y = A^T [(G w) * (B^T d)]

    B^T d = (d0 - d2,  d1 + d2,  d2 - d1,  d1 - d3)
    G w   = (w0,  (w0 + w1 + w2)/2,  (w0 - w1 + w2)/2,  w2)
    A^T p = (p0 + p1 + p2,  p1 - p2 - p3)

In two dimensions, along rows and along columns, a tile d of 4x4 inputs and 2x2 outputs takes 16 products instead of 36.
Each of the 16 is a matrix product over the channels of many tiles:

    y = A^T [(G w G^T) * (B^T d B)] A                                        (1)
    dw = G^T [(B^T d B)^T * (A g A^T), summed over tiles] G                  (2)
    dx = (1) of g, with the kernel turned around and transposed              (3)

(2) is (1) with each transform transposed. Derivation: docs/gradients/winograd.md
"""

from ..backend import array_module, parallel_map, parallel_sum

IMAGES = 32           # in a part of the work: what a part reads and writes stays in the cache
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))                                      # A^T
INPUT = (("subtract", 0, 2), ("add", 1, 2), ("subtract", 2, 1), ("subtract", 1, 3))                  # the rows of B^T
MANY_CHANNELS, MANY_PIXELS = 128, 8


def winograd_pays(x, w, stride, padding):
    """Whether conv_by_winograd can compute this convolution, and in less time than a product a tap.

    Time beside that of conv.py's products, forward and backward: 1.0 to 1.2 for 64 channels, 0.9 to 1.0 for 96, 0.6 to 0.8
    for 128 and 256; 1.1 for 512 on images of 4 x 4, which have too few tiles.
    """
    H, W = x.shape[:2]
    possible = w.shape[:2] == (3, 3) and stride == padding == 1 and H % 2 == W % 2 == 0
    return possible and min(H, W) >= MANY_PIXELS and min(w.shape[2:]) >= MANY_CHANNELS


def conv_by_winograd(x, w, needs_grad):
    """conv2d of x (H, W, B, C), H and W even, and w (3, 3, C, K) with stride 1, padding 1: y (H, W, B, K), backward."""
    def backward(g):
        dx = _convolve(g, w[::-1, ::-1].swapaxes(2, 3)) if needs_grad[0] else None       # (3)
        dw = _kernel_gradient(x, g) if needs_grad[1] else None
        return dx, dw

    return _convolve(x, w), backward


def _convolve(x, w):
    """y (H, W, B, K) for x (H, W, B, C) and w (3, 3, C, K)."""
    xp = array_module(x)
    H, W, B, C = x.shape
    K = w.shape[3]
    U = (_both_sides(w) @ w.reshape(9, C * K)).reshape(4, 4, C, K)           # G w G^T
    y = xp.empty((H, W, B, K), dtype=x.dtype)

    def part(strip):
        row, images = strip
        for j, v in enumerate(_input_transform(x, row, images)):             # column j of B^T d B
            p = xp.matmul(v.reshape(4, -1, C), U[:, j]).reshape(*v.shape[:3], K)
            p[0] += p[1]                                                     # A^T p along rows, in p[0] and p[1]
            p[0] += p[2]
            p[1] -= p[2]
            p[1] -= p[3]
            for side, signs in enumerate(OUTPUT):                            # (1), along columns
                for i in (0, 1):
                    _add(xp, y[row + i, side::2, images], p[i], signs[j], first=not any(signs[:j]))

    parallel_map(xp, _strips(H, B), part)
    return y


def _kernel_gradient(x, g):
    """dw (3, 3, C, K) for x (H, W, B, C) and g (H, W, B, K)."""
    xp = array_module(x)
    H, W, B, C = x.shape
    K = g.shape[3]
    strips = _strips(H, B)

    def add(k, _, total):
        row, images = strips[k]
        rows = xp.stack(list(_spread(g[row, :, images], g[row + 1, :, images])))         # A g
        for j, (v, s) in enumerate(zip(_input_transform(x, row, images), _spread(rows[:, 0::2], rows[:, 1::2]))):
            total[:, j] += v.reshape(4, -1, C).swapaxes(1, 2) @ s.reshape(4, -1, K)

    total, = parallel_sum(xp, len(strips), add, xp.empty((4, 4, C, K), dtype=x.dtype), size=1)
    return (_both_sides(x).T @ total.reshape(16, C * K)).reshape(3, 3, C, K)             # (2)


def _add(xp, y, p, sign, first):
    """y += sign p, or y = p if it is the first."""
    if first and sign:
        y[...] = p
    elif sign:
        (xp.add if sign > 0 else xp.subtract)(y, p, out=y)


def _spread(a, b):
    """A of the gradients a and b of two outputs: those of the four products, one at a time."""
    yield a
    yield a + b
    yield a - b
    yield -b


def _strips(H, B):
    """The work as parts for threads: two output rows, from an even one on, and some images."""
    return [(row, slice(lo, lo + IMAGES)) for row in range(0, H, 2) for lo in range(0, B, IMAGES)]


def _both_sides(like):
    """The matrix (16, 9) by which G acts on rows and columns of 3x3 taps."""
    G = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    xp = array_module(like)
    return xp.kron(xp.array(G, dtype=like.dtype), xp.array(G, dtype=like.dtype))


def _input_transform(x, row, images):
    """The four columns of B^T d B, one at a time in one array (4, W / 2, images, C), for the tiles of two output rows."""
    xp = array_module(x)
    H, W = x.shape[:2]
    zeros = xp.zeros_like(x[row, :, images])
    d = [x[h, :, images] if 0 <= h < H else zeros for h in range(row - 1, row + 3)]
    rows = xp.empty((4, W + 2, *zeros.shape[1:]), dtype=x.dtype)
    rows[:, 0] = rows[:, -1] = 0                                             # the padding
    for (combine, a, b), out in zip(INPUT, rows[:, 1:-1]):
        getattr(xp, combine)(d[a], d[b], out=out)
    d = [rows[:, k:W - 1 + k:2] for k in range(4)]                           # pixels k, k + 2, ... of the padded row
    column = xp.empty(d[0].shape, dtype=x.dtype)
    for combine, a, b in INPUT:
        yield getattr(xp, combine)(d[a], d[b], out=column)
