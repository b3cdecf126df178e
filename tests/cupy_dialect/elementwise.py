"""NumPy equivalents of minicl's CUDA kernels, by name, which the stand-in runs. On a real or emulated GPU the kernels
themselves are compared with the ops in NumPy."""

import numpy as np

from .device_array import ndarray, wrap
from .stream import launch, while_fusing


class ElementwiseKernel:
    """cupy.ElementwiseKernel, which runs the NumPy equivalent of its CUDA source."""

    def __init__(self, in_params, out_params, operation, name="kernel", preamble=""):
        if name not in EQUIVALENTS:
            raise NotImplementedError("the stand-in for CuPy cannot run CUDA source: write the kernel in NumPy too, in "
                                      "elementwise.py, and test the kernel with --backend cupy-host")
        self.run = EQUIVALENTS[name]
        self.count = len((in_params + "," + out_params).split(","))

    def __call__(self, *args, size=None):
        while_fusing("a kernel")
        if len(args) != self.count:
            raise TypeError(f"expected {self.count} arguments, got {len(args)}")
        launch()
        self.run(*(x._array if type(x) is ndarray else x for x in args))


class ReductionKernel(ElementwiseKernel):
    """cupy.ReductionKernel: the sum of an expression over the entries."""

    def __init__(self, in_params, out_params, map_expr, reduce_expr, post_map_expr, identity, name="reduction"):
        super().__init__(in_params, "", map_expr, name)

    def __call__(self, *args, axis, keepdims=False):
        while_fusing("a kernel")
        launch()
        return wrap(self.run(*(x._array for x in args)).sum(axis, keepdims=keepdims))


def gather_taps(x, H, W, B, C, kh, kw, s, p, width, first, cols):
    padded = np.pad(x, ((p, p), (p, p), (0, 0), (0, 0)))
    for i in range(kh):
        for j in range(kw):
            cols[:, :, :, i, j] = _tap(padded, i, j, s, len(cols), width, first)


def add_taps(dcols, H, W, B, C, kh, kw, s, p, width, first, rows, more, dx):
    padded = np.zeros((H + 2 * p, W + 2 * p, B, C), dx.dtype)
    for i in range(kh):
        for j in range(kw):
            _tap(padded, i, j, s, rows, width, first)[...] += dcols[:, :, :, i, j]
    dx[...] = padded[p:p + H, p:p + W] + (dx if more else 0)


def _tap(padded, i, j, s, rows, width, first):
    """The pixels under tap (i, j) of the output rows first ... first + rows - 1."""
    return padded[s * first + i:s * (first + rows - 1) + i + 1:s, j:s * (width - 1) + j + 1:s]


def deviation_sums(x, o):
    return (x - o) + 1j * (x - o)**2


def product_sums(g, x, o):
    return g + 1j * g * (x - o)


def row_dots(x, y):
    return x * y


def square_sums(x):
    return x.astype("float64")**2


def fill_diagonals(k0, k1, k2, width, value, x):
    for k in (k0, k1, k2):
        rows = np.arange(max(0, -k), min(len(x), width - k))
        x[rows, rows + k] = value


def add_each(*arrays):
    half = len(arrays) // 2
    for y, x in zip(arrays[:half], arrays[half:]):
        x += y


def bilinear(images, at, height, width, channels, points, out):
    (v, u) = at.swapaxes(0, 1) + at.dtype.type(1)
    shape = out.shape
    v, u = np.clip(v, 0, height + 1)[..., None], np.clip(u, 0, width + 1)[..., None]
    i, j = v.astype(int), u.astype(int)
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    n = np.arange(len(images))[:, None, None]
    a, b, c, d = (padded[n, i[..., 0] + k, j[..., 0] + l].reshape(shape) for k in (0, 1) for l in (0, 1))
    v, u = v - i.astype(v.dtype), u - j.astype(u.dtype)
    top, bottom = a + u * (b - a), c + u * (d - c)
    out[...] = top + v * (bottom - top)


EQUIVALENTS = {run.__name__: run for run in (gather_taps, add_taps, deviation_sums, product_sums, row_dots, square_sums,
                                             fill_diagonals, add_each, bilinear)}
