"""3x3 convolution of stride 1 with fewer products: Winograd's F(2x2, 3x3), for many channels on a CPU.

Two neighbouring outputs of three taps, y0 = w0 d0 + w1 d1 + w2 d2 and y1 = w0 d1 + w1 d2 + w2 d3, cost six products.
Winograd's form needs four, of transformed inputs and taps; the transforms B, G and A only add, subtract and halve:

    y = A^T [(G w) * (B^T d)]

    B^T d = (d0 - d2,  d1 + d2,  d2 - d1,  d1 - d3)
    G w   = (w0,  (w0 + w1 + w2)/2,  (w0 - w1 + w2)/2,  w2)
    A^T p = (p0 + p1 + p2,  p1 - p2 - p3)

In two dimensions, along rows and along columns, a tile d of 4x4 inputs and 2x2 outputs takes 16 products instead of 36.
Each of the 16 is a matrix product over the channels of many tiles:

    y = A^T [(B^T d B) * (G w G^T)] A                                        (1)
    dw = G^T [(B^T d B)^T * (A g A^T), summed over tiles] G                  (2)
    dx = (1) of g, with the kernel turned around and transposed              (3)

(1) is linear in w, and (2) is its transpose: A and G change sides. Derivation: docs/gradients/winograd.md
"""

from ..backend import array_module, parallel_map, parallel_sum

ENTRIES = 2**17       # tiles times channels of a part of the work: few large products, whose operands stay in the cache
CHANNELS = 128        # most that one product sums over: more would make the rounding errors too large
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))                                      # A^T
INPUT = (("subtract", 0, 2), ("add", 1, 2), ("subtract", 2, 1), ("subtract", 1, 3))                  # the rows of B^T
SMALLEST_SIDE = ((128, 4), (64, 16))                     # channels, and from which size of image on they are enough
LARGE_TAP = 2**26     # multiplications of a tap: with fewer the 16 products are too small, and the transforms take longer


def winograd_pays(x, w, stride, padding):
    """Whether conv_by_winograd can compute this convolution, and in less time than a product a tap.

    Time beside that of conv.py's products, forward and backward, with two threads of an AMD EPYC: 0.8 to 0.95 for 64
    channels (up to 1.2 on images of 12 x 12 and less), 0.6 to 0.85 for 128 and more (0.87 to 0.95 on images of 4 x 4).
    With a quarter of LARGE_TAP it is 1.1 to 1.5.
    """
    H, W, _, _ = x.shape
    possible = w.shape[:2] == (3, 3) and stride == padding == 1 and H % 2 == W % 2 == 0
    channels = min(w.shape[2:])
    many = any(channels >= least and min(H, W) >= side for least, side in SMALLEST_SIDE)
    return possible and many and x.size * w.shape[3] >= LARGE_TAP


def conv_by_winograd(x, w, needs_grad):
    """conv2d of x (H, W, B, C), H and W even, and w (3, 3, C, K) with stride 1, padding 1: y (H, W, B, K), backward."""
    def backward(g):
        dx = _convolve(g, _transposed_taps(w)) if needs_grad[0] else None    # (3)
        dw = _kernel_gradient(x, g) if needs_grad[1] else None
        return dx, dw

    return _convolve(x, _taps(w)), backward


def _convolve(x, U):
    """y (H, W, B, K) for x (H, W, B, C) and the transformed kernel U (4, 4, C, K)."""
    xp = array_module(x)
    H, W, B, C = x.shape
    K = U.shape[3]
    y = xp.empty((H, W, B, K), dtype=x.dtype)

    def part(strip):
        row, images = strip
        p, more = xp.empty((2, 4, *y[0, ::2, images].shape), dtype=y.dtype)
        for i, v in enumerate(_input_transform(x, row, images)):             # row i of B^T d B
            _multiply(v.reshape(4, -1, C), U[i], p.reshape(4, -1, K), more.reshape(4, -1, K))
            p[0] += p[1]                                                     # p A along columns, in p[0] and p[1]
            p[0] += p[2]
            p[1] -= p[2]
            p[1] -= p[3]
            for j in (0, 1):                                                 # (1), along rows
                for side, signs in enumerate(OUTPUT):
                    _add(xp, y[row + side, j::2, images], p[j], signs[i], first=not any(signs[:i]))

    parallel_map(xp, _strips(H, W, B, max(C, K)), part)
    return y


def _multiply(v, u, p, more):
    """p = v @ u, as a sum of products over at most CHANNELS channels each; `more` is an array like p for the next one.

    The rounding error of a sum of n terms that are added one by one grows like n^(1/2) beside the sum. The transform A
    enlarges it, as it adds nine p with both signs, of which much cancels: shorter sums make up for that.
    """
    C = v.shape[2]
    xp = array_module(v)
    size = -(-C // -(-C // CHANNELS))
    xp.matmul(v[:, :, :size], u[:, :size], out=p)
    for c in range(size, C, size):
        p += xp.matmul(v[:, :, c:c + size], u[:, c:c + size], out=more)


def _kernel_gradient(x, g):
    """dw (3, 3, C, K) for x (H, W, B, C) and g (H, W, B, K)."""
    xp = array_module(x)
    H, W, B, C = x.shape
    K = g.shape[3]
    strips = _strips(H, W, B, max(C, K))
    G = _taps_transform(x)
    dw = xp.zeros((3, 3, C * K), dtype=x.dtype)

    for i in range(4):                                                       # a row of products at a time saves memory
        def add(k, _, products):
            row, images = strips[k]
            v, = _input_transform(x, row, images, [i])                       # row i of B^T d B, (4, W / 2, images, C)
            g_row = _spread(g[row, :, images], g[row + 1, :, images], i)     # row i of A g, (W, images, K)
            for j in range(4):
                s = _spread(g_row[0::2], g_row[1::2], j)                     # (i, j) of A g A^T, (W / 2, images, K)
                products[j] += v[j].reshape(-1, C).T @ s.reshape(-1, K)

        products, = parallel_sum(xp, len(strips), add, xp.empty((4, C, K), dtype=x.dtype), size=1)
        columns = G.T @ products.reshape(4, C * K)                           # (2), along columns, then along rows
        for a in range(3):
            dw[a] += G[i, a] * columns
    return dw.reshape(3, 3, C, K)


def _add(xp, y, p, sign, first):
    """y += sign p, or y = p if it is the first."""
    if first and sign:
        y[...] = p
    elif sign:
        (xp.add if sign > 0 else xp.subtract)(y, p, out=y)


def _spread(a, b, k):
    """Entry k of A (a, b), the gradients of two outputs: that of one of the four products."""
    return a if k == 0 else a + b if k == 1 else a - b if k == 2 else -b


def _strips(H, W, B, channels):
    """The work as parts for threads: two output rows, from an even one on, and some images."""
    images = max(1, 2 * ENTRIES // channels // W)
    return [(row, slice(lo, lo + images)) for row in range(0, H, 2) for lo in range(0, B, images)]


def _taps(w):
    """G w G^T (4, 4, C, K) of w (3, 3, C, K)."""
    return _both_ways(_taps_transform(w), w)


def _transposed_taps(w):
    """G w' G^T (4, 4, K, C) of the kernel w' turned around and transposed. Turned taps exchange the outer rows of G."""
    return _both_ways(_taps_transform(w)[[3, 1, 2, 0]], w).swapaxes(2, 3)


def _both_ways(G, w):
    """G w G^T of w (3, 3, ...): along rows and columns."""
    return (array_module(w).kron(G, G) @ w.reshape(9, -1)).reshape(4, 4, *w.shape[2:])


def _taps_transform(like):
    """G (4, 3)."""
    return array_module(like).array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=like.dtype)


def _input_transform(x, row, images, rows=range(4)):
    """These rows of B^T d B, one at a time in one array (4, W / 2, images, C), for the tiles of two output rows."""
    xp = array_module(x)
    H, W = x.shape[:2]
    padding = xp.zeros((1, 1, 1), dtype=x.dtype)
    d = [x[h, :, images] if 0 <= h < H else padding for h in range(row - 1, row + 3)]
    padded = xp.empty((W + 2, *d[1].shape[1:]), dtype=x.dtype)               # row i of B^T d
    padded[0] = padded[-1] = 0
    pixels = [padded[k:W - 1 + k:2] for k in range(4)]                       # k, k + 2, ... of it
    V = xp.empty((4, *pixels[0].shape), dtype=x.dtype)
    for i in rows:
        combine, a, b = INPUT[i]
        getattr(xp, combine)(d[a], d[b], out=padded[1:-1])
        for v, (combine, a, b) in zip(V, INPUT):
            getattr(xp, combine)(pixels[a], pixels[b], out=v)
        yield V
