"""Pooling on pixel-major activations (H, W, B, C), with adjacent, overlapping or separate windows, without padding.

With windows x[s h + i, s w + j] over taps (i, j) in K x K, K = size, s = stride:

    max:   y[h, w] = max_ij x[s h + i, s w + j]
           dx[s h + i, s w + j] += g[h, w] at the first tap that has the maximum     (1)
    mean:  y[h, w] = (1/K^2) sum_ij x[s h + i, s w + j]
           dx[s h + i, s w + j] += g[h, w] / K^2 at every tap                        (2)

A tap over the whole image is a strided view of x, so pooling is a running maximum or sum of such views. Rows and columns
that do not fill a window are dropped, as in PyTorch.    Derivation: docs/gradients/pool.md
"""

from ..autograd import op
from ..backend import array_module, fused, parallel_for
from ..checks import require_integers
from ..typing import Array

SLICE = 2**16         # entries of the output that a thread computes at a time


@op
def max_pool2d(x: Array, *, size: int = 2, stride: int | None = None):
    """y = max over each size x size window.    dx: g at the window's first maximum, in row-major order

    A window with a NaN has the maximum NaN, which equals no entry: then g goes to its last entry. A g that is not finite
    makes the gradient of its window NaN.

    x (H, W, B, C) -> ((H - size) // stride + 1, ..., B, C); stride defaults to size.

    >>> x = np.arange(16.0).reshape(4, 4, 1, 1)
    >>> minicl.ops.max_pool2d(x).data[:, :, 0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    xp = array_module(x)
    views = _windows(x, size, stride, "max_pool2d")
    y = xp.empty(views(x)[0].shape, dtype=x.dtype)
    rows = max(1, SLICE // max(1, y[0].size))

    def forward(lo, hi):
        first, *others = (view[lo:hi] for view in views(x))
        for view in others or [first]:
            xp.maximum(first, view, out=y[lo:hi])
            first = y[lo:hi]

    parallel_for(xp, len(y), forward, rows)

    def backward(g):
        if stride is not None and stride < size:
            return (_to_overlapping(views, x, y, g),)
        dx = xp.empty_like(x) if y.size * size**2 == x.size else xp.zeros_like(x)

        def part(lo, hi):
            left = g[lo:hi].copy()                                           # of windows whose maximum is still to come
            *taps, (_, last) = zip(views(x), views(dx))
            for view, dview in taps:
                _take(left, view[lo:hi], y[lo:hi], dview[lo:hi])             # (1)
            last[lo:hi] = left

        parallel_for(xp, len(y), part, rows)
        return (dx,)

    return y, backward


@fused
def _take(xp, left, x, y, dx):
    """dx = left where x = y, else 0; what is taken is no longer left."""
    dx[...] = x == y
    dx *= left
    left -= dx


def _to_overlapping(views, x, y, g):
    """dx where windows overlap, so that an entry may be the maximum of several."""
    xp = array_module(x)
    dx = xp.zeros_like(x)
    taken = xp.zeros(y.shape, dtype=bool)
    *taps, (_, last) = zip(views(x), views(dx))
    for view, dview in taps:
        here = (view == y) & ~taken
        taken |= here
        dview += g * here                                                    # (1)
    last += g * ~taken
    return dx


@op
def avg_pool2d(x: Array, *, size: int = 2, stride: int | None = None):
    """y = mean over each size x size window.    dx: g / size^2 to every entry of the window

    x (H, W, B, C) -> ((H - size) // stride + 1, ..., B, C); stride defaults to size.
    """
    views = _windows(x, size, stride, "avg_pool2d")
    y = sum(views(x)) * (1 / size**2)

    def backward(g):
        dx = array_module(x).zeros_like(x)
        g = g * (1 / size**2)
        for dview in views(dx):
            dview += g                                                       # (2)
        return (dx,)

    return y, backward


def _windows(x, size, stride, name):
    """A function that returns the size^2 strided views, one a tap, of an array like x."""
    stride = size if stride is None else stride
    require_integers(name, 1, size=size, stride=stride)
    if x.ndim != 4 or min(x.shape[:2]) < size:
        raise ValueError(f"{name}: expected x (H, W, B, C) with H, W >= size, got shape {x.shape}, size={size}")
    rows, columns = (range(0, n - size + 1, stride) for n in x.shape[:2])
    taps = [(slice(i, rows[-1] + i + 1, stride), slice(j, columns[-1] + j + 1, stride))
            for i in range(size) for j in range(size)]
    return lambda array: [array[tap] for tap in taps]
