"""Convolution as shifted matrix products, on pixel-major activations.

Activations are stored (H, W, B, C), so every pixel is a contiguous (batch, channel) matrix. One tap of the kernel,
applied to the whole image, is then one matrix product of shifted pixels:

    y[m, n] = sum_ij x[s m + i - p, s n + j - p] @ w[i, j]                   (1)

The gradients are products with the same shifts:

    dw[i, j] = sum_mn x[s m + i - p, s n + j - p]^T @ g[m, n]                (2)
    dx[s m + i - p, s n + j - p] += g[m, n] @ w[i, j]^T                      (3)

This needs neither a column matrix nor a padded copy: taps outside the image are left out. In two cases columns.py gathers
the taps first: on a GPU, and for C so small that x @ w[i, j] is too small a product (a first layer on grey or RGB
images). Kernels of 3x3 with many channels take fewer products, in winograd.py.    Derivation: docs/gradients/conv.md
"""

import functools
import math

from ..autograd import op
from ..backend import array_module, is_gpu, parallel_map, parallel_sum
from ..checks import require_integers
from ..typing import Array
from .columns import SMALL_PRODUCT, conv_by_columns, conv_of_few_channels
from .winograd import conv_by_winograd, winograd_pays

FEW_CHANNELS = 4
ITEMS = 512           # images of a part: enough parts for all threads; 256 make twice the calls, which wait for the GIL
PARTS = 8             # at least, if the batch has so many pieces: enough to divide the work evenly
PIECE = 64            # most images multiplied at a time, where that makes a SMALL_PRODUCT


@op
def conv2d(x: Array, w: Array, *, stride: int = 1, padding: int = 0, needs_grad=(True, True)):
    """2-D convolution (cross-correlation): x (H, W, B, C), w (kh, kw, C, K) -> (H', W', B, K).

    H' = (H + 2 padding - kh) // stride + 1, and W' likewise. Pixels outside the image count as zero.

    >>> x, w = np.ones((3, 3, 1, 1)), np.ones((2, 2, 1, 1))
    >>> minicl.ops.conv2d(x, w).data[:, :, 0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2] or not (w.shape[0] and w.shape[1]):
        raise ValueError("conv2d: expected x (H, W, B, C) and w (kh, kw, C, K) with kh, kw >= 1, got "
                         f"{x.shape} and {w.shape}; C is a Conv2d's in_channels, and "
                         "ops.to_pixel_major converts images (B, H, W, C)")
    require_integers("conv2d", 1, stride=stride)
    require_integers("conv2d", 0, padding=padding)
    shift = _shifts(x.shape[:2], w.shape[:2], stride, padding)
    if is_gpu(array_module(x)):
        return conv_by_columns(x, w, shift, needs_grad)
    if w.shape[0] * w.shape[1] > 1 and x.shape[3] <= FEW_CHANNELS and w.size:
        return conv_of_few_channels(x, w, shift, needs_grad)
    if winograd_pays(x, w, stride, padding):
        return conv_by_winograd(x, w, needs_grad)
    return _conv_by_taps(x, w, shift, needs_grad)


def _conv_by_taps(x, w, shift, needs_grad):
    """conv2d on a CPU, a product a tap: y (H', W', B, K), backward."""
    xp = array_module(x)
    shape = x.shape
    K = w.shape[3]
    pieces = _pieces(shape[2], w[0, 0].size)                                 # of the batch: (count, images)
    x = x.reshape(*shape[:2], *pieces, shape[3])
    y = (xp.empty if shift.first_outputs else xp.zeros)((*shift.out, *pieces, K), dtype=x.dtype)
    output_parts = _parts(shift.out[0], pieces, lambda part: shift.taps(outputs=part))

    def forward(part):
        for i, j, to, at, first in shift.taps(outputs=part):
            _add_product(y, to, x[at], w[i, j], first)                       # (1)

    parallel_map(xp, output_parts, forward)

    def backward(g):
        g = g.reshape(*shift.out, *pieces, K)

        def kernel_gradient(k, _, dw):
            for i, j, to, at, _ in shift.taps(outputs=output_parts[k]):
                dw[i, j] += (x[at].swapaxes(3, 4) @ g[to]).sum(axis=(0, 1, 2))    # (2)

        def input_gradient(part):
            for i, j, to, at, first in shift.taps(inputs=part):
                _add_product(dx, at, g[to], w_t[i, j], first)                # (3)

        dx = dw = None
        if needs_grad[1]:
            dw, = parallel_sum(xp, len(output_parts), kernel_gradient, w, size=1)
        if needs_grad[0]:
            dx = (xp.empty_like if shift.first_inputs else xp.zeros_like)(x)
            w_t = xp.ascontiguousarray(w.swapaxes(2, 3))
            parallel_map(xp, _parts(x.shape[0], pieces, lambda part: shift.taps(inputs=part)), input_gradient)
            dx = dx.reshape(shape)
        return dx, dw

    return y.reshape(*shift.out, shape[2], K), backward


def _add_product(y, to, a, b, first):
    """y[to] += a @ b, or = if it is the first of the sum: then y is neither cleared nor read."""
    if first:
        array_module(y).matmul(a, b, out=y[to])
    else:
        y[to] += a @ b


# ---------------------------------------------------------------- which pixels meet, and who computes them

def _pieces(batch, size):
    """The batch as (count, images): so many images of a pixel are multiplied by a matrix of this size at a time, the largest
    divisor of the batch that is at most PIECE or ITEMS and above half of it; or all, without such a divisor."""
    most = PIECE if PIECE * size <= SMALL_PRODUCT else ITEMS
    images = next((images for images in range(most, most // 2, -1) if batch % images == 0), batch)
    return batch // images, images


def _parts(rows, pieces, taps):
    """The work as parts for threads: one row of pixels, lo:hi, and some of the batch's pieces each. Those with most taps
    come first, so that the threads end at about the same time."""
    parts_of_a_row = max(_ceil_div(math.prod(pieces), ITEMS), _ceil_div(PARTS, max(1, rows)))
    count = max(1, _ceil_div(pieces[0], parts_of_a_row))                     # without images there are 0 pieces
    parts = [(row, row + 1, lo, lo + count) for row in range(rows) for lo in range(0, pieces[0], count)]
    return sorted(parts, key=lambda part: -len(taps(part)))


@functools.lru_cache(256)
def _shifts(*sizes):
    return _Shifts(*sizes)


class _Shifts:
    """Which output pixels meet which input pixels under each tap (i, j) of a kernel."""

    def __init__(self, size, kernel, stride, padding):
        self.size, self.kernel, self.stride, self.padding = size, kernel, stride, padding
        self.out = tuple((n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel))
        if min(self.out) < 1:
            raise ValueError(f"conv2d: a {kernel[0]} x {kernel[1]} kernel does not fit images of {size[0]} x {size[1]} "
                             f"with padding {padding}; pad more or use a smaller kernel")
        columns = [(j, *span) for j in range(kernel[1]) if (span := self._span(1, j))]
        self.columns = sorted(columns, key=lambda column: column[1].start - column[1].stop)      # the widest first
        self.first_outputs, self.first_inputs = self._first(0), self._first(1)
        self.cache = {}                                                      # taps() of each part

    def taps(self, outputs=None, inputs=None):
        """[(i, j, to, at, first)] of all taps: y[to] += x[at] @ w[i, j]; `outputs` or `inputs` limits the pixels to a part,
        and first says that no tap before this one has reached any of its pixels in this part."""
        if (outputs, inputs) not in self.cache:
            self.cache[outputs, inputs] = [*self._taps(outputs, inputs)]
        return self.cache[outputs, inputs]

    def _taps(self, outputs, inputs):
        images = slice(*(outputs or inputs or (0, 0, None, None))[2:])
        first = self.first_inputs if inputs else self.first_outputs
        for i in range(self.kernel[0]):
            if rows := self._span(0, i, outputs, inputs):
                for j, *columns in self.columns:
                    yield i, j, *((row, column, images) for row, column in zip(rows, columns)), j in first
                first = ()

    def _first(self, side):
        """The columns j of the kernel that are the first to reach their outputs (side 0) or inputs (side 1), if every row is
        reached, and in it every pixel; else none."""
        length = (self.out, self.size)[side]
        rows = [self._span(0, i) for i in range(self.kernel[0])]
        if len({h for row in rows if row for h in range(length[0])[row[side]]}) < length[0]:
            return set()
        left = set(range(length[1]))
        first = set()
        for j, *columns in self.columns:
            reached = range(length[1])[columns[side]]
            if left.issuperset(reached):
                first.add(j)
                left.difference_update(reached)
            elif not left.isdisjoint(reached):                               # a sum would begin in unwritten memory
                return set()
        return set() if left else first

    def _span(self, axis, tap, outputs=None, inputs=None):
        """The outputs lo:hi along an axis whose input, stride h + tap - padding, exists; and those inputs; None without."""
        s = self.stride
        offset = tap - self.padding
        first_out, end_out = outputs[:2] if outputs else (0, self.out[axis])
        first_in, end_in = inputs[:2] if inputs else (0, self.size[axis])
        lo = max(first_out, _ceil_div(first_in - offset, s))
        hi = min(end_out, _ceil_div(end_in - offset, s))
        return (slice(lo, hi), slice(s * lo + offset, s * (hi - 1) + offset + 1, s)) if lo < hi else None


def _ceil_div(a, b):
    return -(-a // b)
