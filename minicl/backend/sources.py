"""Kernels in CUDA source, for what takes many launches in CuPy's functions. NumPy gets the same by slices.

    row_dots          sums of products along the last axis, which are never written
    fill_diagonals    some diagonals of a matrix
    Additions         x += y for many pairs of small arrays
    bilinear          four neighbours of each point, blended
"""

import functools
from collections.abc import Iterable

import numpy as np

from ..typing import Array
from .device import array_module

PAIRS = 16                # additions in a kernel, whose arguments may take 4 KB


def row_dots(x: Array, y: Array) -> Array:
    """(x * y).sum(axis=-1, keepdims=True)."""
    if isinstance(x, np.ndarray):
        x, y = (a if a.strides[-1:] == (a.itemsize,) else np.ascontiguousarray(a) for a in (x, y))       # else less accurate
        return np.vecdot(x, y)[..., None]
    return _row_dots(array_module(x))(x, y, axis=-1, keepdims=True)


@functools.lru_cache
def _row_dots(xp):
    return xp.ReductionKernel("T x, T y", "T z", "x * y", "a + b", "z = a", "0", "row_dots")


# ---------------------------------------------------------------- diagonals

def fill_diagonals(x: Array, offsets: Iterable[int], value: float) -> None:
    """x[i, i + k] = value for the offsets k, three at most, and all rows i of a contiguous matrix x where that exists."""
    height, width = x.shape
    found = [k for k in offsets if -height < k < width]
    if isinstance(x, np.ndarray):
        for k in found:
            lo, hi = max(0, -k), min(height, width - k)
            x.reshape(-1)[lo * width + lo + k:(hi - 1) * width + hi + k:width + 1] = value
    elif found:
        _fill_diagonals(array_module(x))(*(found * 3)[:3], width, value, x, size=height)


@functools.lru_cache
def _fill_diagonals(xp):
    return xp.ElementwiseKernel("int64 k0, int64 k1, int64 k2, int64 width, float64 value", "raw T x", """
        const long long columns[3] = {i + k0, i + k1, i + k2};
        for (int k = 0; k < 3; ++k)
            if (0 <= columns[k] && columns[k] < width) x[i * width + columns[k]] = T(value);
    """, "fill_diagonals")


# ---------------------------------------------------------------- sums of gradients

class Additions:
    """x += y for many pairs of contiguous arrays x and arrays y of their shape: at once on NumPy, later on CuPy, a kernel
    for every PAIRS of them. flush() does what is left."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Array, Array]] = []

    def add(self, x: Array, y: Array) -> None:
        if isinstance(x, np.ndarray):
            x += y
            return
        if len(self.waiting) == PAIRS or any(x is other for other, _ in self.waiting):       # in a kernel each x once
            self.flush()
        self.waiting.append((x, y))

    def flush(self) -> None:
        if self.waiting:
            xs, ys = ([each.reshape(-1) for each in arrays] for arrays in zip(*self.waiting))
            _add_each(array_module(xs[0]), len(xs))(*ys, *xs, size=sum(x.size for x in xs))
            self.waiting.clear()


@functools.lru_cache
def _add_each(xp, count):
    def all_of(text):
        return [text.format(k) for k in range(count)]

    steps = all_of("if (t < x{0}.size()) {{ x{0}[t] += y{0}[t]; continue; }} t -= x{0}.size();")
    return xp.ElementwiseKernel(", ".join(all_of("raw T y{}")), ", ".join(all_of("raw T x{}")),
                                "ptrdiff_t t = i;\n" + "\n".join(steps), "add_each")


# ---------------------------------------------------------------- pixels between pixels

def bilinear(images: Array, coordinates: Array, out: Array) -> None:
    """Bilinear samples of images at any coordinates; outside the image all values are 0.

    images (B, H, W, C); coordinates (B, 2, S, T), source rows and columns in pixels; out (B, S, T, C)

    With a the pixel above and left of the point, b right of a, c and d below them, and (v, u) the offset from a:

        top = a + u (b - a),   bottom = c + u (d - c),   out = top + v (bottom - top)
    """
    if isinstance(images, np.ndarray):
        _sample(images, coordinates, out)
    else:
        _bilinear(array_module(out))(images, coordinates, *images.shape[1:], out.shape[1] * out.shape[2], out)


def _sample(images, coordinates, out):
    """bilinear() on NumPy."""
    n, height, width, channels = images.shape
    v, u, index = _corners(coordinates.reshape(n, 2, -1), height, width)                 # (B, S T) each
    # A border of zeros, one pixel before and two after, so that each clipped point has its four neighbours.
    padded = np.zeros((n, height + 3, width + 3), dtype=images.dtype)
    pixels = padded.reshape(-1)
    row = width + 3
    a, b, c, d = neighbours = np.empty((4, *v.shape), dtype=images.dtype)
    for channel in range(channels):
        padded[:, 1:-2, 1:-2] = images[..., channel]
        for further, values in zip((0, 1, row, row + 1), neighbours):
            pixels[further:].take(index, out=values, mode="wrap")        # the fastest mode; none is outside
        _blend(a, b, c, d, v, u)
        out[..., channel] = d.reshape(out.shape[:3])


def _corners(points, height, width):
    """v, u, and where a is among the padded pixels of all images, for points (B, 2, P): (B, P) each."""
    row = width + 3
    v, u = np.clip(points[:, 0], -1, height), np.clip(points[:, 1], -1, width)
    top, left = np.floor(v), np.floor(u)
    v -= top
    u -= left
    origin = np.arange(len(points), dtype="int32") * (row * (height + 3)) + row + 1     # of each image, past its border
    index = top.astype("int32")
    index *= row
    index += left.astype("int32")
    index += origin[:, None]
    return v, u, index.astype("int64")                                   # once, since take would convert it each time


def _blend(a, b, c, d, v, u):
    """b becomes top, d bottom, then out."""
    b -= a
    b *= u
    b += a                                                               # top
    d -= c
    d *= u
    d += c                                                               # bottom
    d -= b
    d *= v
    d += b


# entry i of out (B, S, T, C), at the point (y, x) of an image
BILINEAR = """
    const ptrdiff_t point = i / channels % points;
    const ptrdiff_t image = i / channels / points;
    T v = at[2 * image * points + point] + 1;
    T u = at[(2 * image + 1) * points + point] + 1;
    v = v < 0 ? T(0) : v > height + 1 ? T(height + 1) : v;
    u = u < 0 ? T(0) : u > width + 1 ? T(width + 1) : u;
    const int row = int(v) - 1, column = int(u) - 1;
    v -= row + 1;
    u -= column + 1;
    T corners[4];
    for (int k = 0; k < 4; ++k) {
        const int m = row + k / 2, n = column + k % 2;
        corners[k] = 0 <= m && m < height && 0 <= n && n < width
            ? images[((image * height + m) * width + n) * channels + i % channels] : T(0);
    }
    const T top = corners[0] + u * (corners[1] - corners[0]);
    const T bottom = corners[2] + u * (corners[3] - corners[2]);
    out = top + v * (bottom - top);
"""


@functools.lru_cache
def _bilinear(xp):
    return xp.ElementwiseKernel("raw T images, raw T at, int32 height, int32 width, int32 channels, int32 points", "T out",
                                BILINEAR, "bilinear")
