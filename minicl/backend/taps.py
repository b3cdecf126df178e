"""The taps of a convolution on a GPU, in one kernel each way: laid side by side, and added back.

With columns cols[m, n, b, i, j] = x[s m + i - p, s n + j - p, b], zero outside x (H, W, B, C):

    gather_taps     cols from x; rounded to bfloat16 on the way if they are operands in bf16 (products.py)
    add_taps        dx[h, w, b] = sum of dcols[m, n, b, i, j] over all m, n, i, j with h = s m + i - p, w = s n + j - p

Made of slices these would be 3 launches (zeros, a copy into them, a copy of an overlapping view) and 1 + kh kw. On a CPU,
where a call costs next to nothing, conv.py has slices.
"""

import functools

from ..typing import Array
from .device import array_module
from .products import BF16

SIZES = "int32 H, int32 W, int32 B, int32 C, int32 kh, int32 kw, int32 s, int32 p, int32 width, int32 first"

# entry i of cols (rows, width, B, kh, kw, C), which are output rows from `first` on
GATHER = """
    index t = i;
    const index c = t % C;   t /= C;
    const int kj = t % kw;   t /= kw;
    const int ki = t % kh;   t /= kh;
    const index b = t % B;   t /= B;
    const int w = int(t % width) * s + kj - p;
    const int h = (int(t / width) + first) * s + ki - p;
    cols = 0 <= h && h < H && 0 <= w && w < W ? entry(x[((ptrdiff_t(h) * W + w) * B + b) * C + c]) : 0;
"""

# entry i of dx (H, W, B, C); more: dx has what earlier rows have added
ADD = """
    index t = i;
    const index c = t % C;   t /= C;
    const index b = t % B;   t /= B;
    const int w = int(t % W) + p;
    const int h = int(t / W) + p;
    T sum = more ? dx : T(0);
    for (int ki = 0; ki < kh; ++ki) {
        const int m = (h - ki) / s - first;
        if (h < ki || (h - ki) % s || m < 0 || m >= rows) continue;
        for (int kj = 0; kj < kw; ++kj) {
            const int n = (w - kj) / s;
            if (w < kj || (w - kj) % s || n >= width) continue;
            sum += dcols[((((ptrdiff_t(m) * width + n) * B + b) * kh + ki) * kw + kj) * C + c];
        }
    }
    dx = sum;
"""


def gather_taps(x: Array, cols: Array, stride: int, padding: int, first: int) -> None:
    """Fill cols (rows, W', B, kh, kw, C), which are output rows from `first` on, from x (H, W, B, C). cols has x's dtype or
    is uint16, for bits of bfloat16."""
    entry, dtype = ("T", "T") if cols.dtype == x.dtype else ("bf16", "uint16")
    kernel = _kernel(array_module(x), "gather_taps", f"raw T x, {SIZES}", f"{dtype} cols", GATHER.replace("entry", entry),
                     cols.size < 2**31)
    kernel(x, *x.shape, *cols.shape[3:5], stride, padding, cols.shape[1], first, cols)


def add_taps(dcols: Array, dx: Array, stride: int, padding: int, first: int) -> None:
    """Add dcols (rows, W', B, kh, kw, C), which are output rows from `first` on, to dx (H, W, B, C): all of it is set if
    first is 0."""
    inputs = f"raw T dcols, {SIZES}, int32 rows, bool more"
    kernel = _kernel(array_module(dx), "add_taps", inputs, "T dx", ADD, dx.size < 2**31)
    kernel(dcols, *dx.shape, *dcols.shape[3:5], stride, padding, dcols.shape[1], first, len(dcols), first > 0, dx)


@functools.lru_cache
def _kernel(xp, name, inputs, outputs, operation, is_small):
    """A CuPy kernel; 64-bit indices, which take a GPU longer, only where they are needed."""
    return xp.ElementwiseKernel(inputs, outputs, operation.replace("index ", "int " if is_small else "long long "), name,
                                preamble=BF16)
