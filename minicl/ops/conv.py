"""Convolution as shifted matrix products, on pixel-major activations.

Activations are stored (H, W, B, C): every pixel is a contiguous (batch, channel) matrix, so one tap of the
kernel, applied to the whole image, is one matrix product of shifted pixels:

    y[m, n] = sum_ij x[s m + i - p, s n + j - p] @ w[i, j]                   (1)

Its gradients are the same products, sent back along the same shifts:

    dw[i, j] = sum_mn x[s m + i - p, s n + j - p]^T @ g[m, n]                (2)
    dx[s m + i - p, s n + j - p] += g[m, n] @ w[i, j]^T                      (3)

There is no column matrix to build and no padding to copy: a tap that would fall outside the image is left
out. Only when C is so small that x @ w[i, j] is hardly a product (a first layer on grey or RGB images) are
the taps gathered first, which makes it a convolution with one tap of kh kw C channels. On a GPU that is done
always: columns.py.
Derivation: docs/gradients/conv.md
"""

from ..autograd import op
from ..backend import array_module, is_gpu, parallel_for, parallel_sum
from .columns import conv_by_columns

FEW_CHANNELS = 4
ITEMS = 256           # of the batch multiplied at a time: enough shares for threads to end together


@op
def conv2d(x, w, *, stride=1, padding=0, needs_grad=(True, True)):
    """2-D convolution (cross-correlation): x (H, W, B, C), w (kh, kw, C, K) -> (H', W', B, K).

    H' = (H + 2 padding - kh) // stride + 1, and W' likewise. Pixels outside the image count as zero.
    """
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: expected x (H, W, B, C) and w (kh, kw, C, K), got {x.shape} and {w.shape}; "
                         "images (B, H, W, C) are turned once, by ops.to_pixel_major")
    if stride < 1 or padding < 0:
        raise ValueError(f"conv2d: expected stride >= 1 and padding >= 0, got stride={stride}, padding={padding}")
    shift = _Shifts(x.shape[:2], w.shape[:2], stride, padding)
    if is_gpu(array_module(x)):
        return conv_by_columns(x, w, shift, needs_grad)
    if w.shape[0] * w.shape[1] > 1 and x.shape[3] <= FEW_CHANNELS:
        return _conv_few_channels(x, w, shift, needs_grad)
    xp, B, pieces = array_module(x), x.shape[2], max(1, -(-x.shape[2] // ITEMS))
    y = xp.zeros((*shift.out, B, w.shape[3]), dtype=x.dtype)

    def share(k):
        """The k-th share of the work: which row of pixels, and which items of the batch."""
        row, piece = divmod(k, pieces)
        return (row, row + 1), (..., slice(piece * ITEMS, (piece + 1) * ITEMS), slice(None))

    def forward(k, _):                                                       # an output row
        row, items = share(k)
        for i, j, to, at in shift.taps(out_rows=row):
            y[to][items] += x[at][items] @ w[i, j]                           # (1)

    parallel_for(xp, shift.out[0] * pieces, forward, size=1)

    def backward(g):
        def kernel_gradient(k, _, dw):                                       # an output row
            row, items = share(k)
            for i, j, to, at in shift.taps(out_rows=row):
                dw[i, j] += (x[at][items].swapaxes(2, 3) @ g[to][items]).sum(axis=(0, 1))    # (2)

        def input_gradient(k, _):                                            # an input row
            row, items = share(k)
            for i, j, to, at in shift.taps(in_rows=row):
                dx[at][items] += g[to][items] @ w_t[i, j]                    # (3)

        dx = dw = None
        if needs_grad[1]:
            dw, = parallel_sum(xp, shift.out[0] * pieces, kernel_gradient, w, size=1)
        if needs_grad[0]:
            dx, w_t = xp.zeros_like(x), xp.ascontiguousarray(w.swapaxes(2, 3))
            parallel_for(xp, x.shape[0] * pieces, input_gradient, size=1)
        return dx, dw

    return y, backward


def _conv_few_channels(x, w, shift, needs_grad):
    """conv2d with the taps of all channels gathered one above the other: cols^T (H' W' B, kh kw C) @ w (kh kw C, K)."""
    xp = array_module(x)
    (kh, kw, C, K), B = w.shape, x.shape[2]
    cols, planes = xp.zeros((kh, kw, C, *shift.out, B), dtype=x.dtype), x.transpose(3, 0, 1, 2)      # (C, H, W, B)

    def gather(lo, hi):
        for i, j, to, at in shift.taps(out_rows=(lo, hi)):
            cols[(i, j, slice(None), *to)] = planes[(slice(None), *at)]      # in runs of B numbers, not of C

    parallel_for(xp, shift.out[0], gather)
    rows, kernel = cols.reshape(kh * kw * C, -1).T, w.reshape(-1, K)         # (H' W' B, kh kw C), (kh kw C, K)
    y = xp.empty((len(rows), K), dtype=x.dtype)
    parallel_for(xp, len(rows), lambda lo, hi: xp.matmul(rows[lo:hi], kernel, out=y[lo:hi]))               # (1)

    def backward(g):
        g = g.reshape(len(rows), K)                                          # not y.shape, which would keep y
        dw = dx = None
        if needs_grad[1]:
            parts = parallel_for(xp, len(rows), lambda lo, hi: rows[lo:hi].T @ g[lo:hi])
            dw = sum(parts[1:], parts[0]).reshape(w.shape)                   # (2)
        if needs_grad[0]:
            dx, dcols = xp.zeros_like(x), (kernel @ g.T).reshape(cols.shape)
            for i, j, to, at in shift.taps():
                dx[at] += dcols[(i, j, slice(None), *to)].transpose(1, 2, 3, 0)      # (3)
        return dx, dw

    return y.reshape(*shift.out, B, K), backward


class _Shifts:
    """Which output pixels meet which input pixels under each tap (i, j) of a kernel."""

    def __init__(self, size, kernel, stride, padding):
        self.size, self.kernel, self.stride, self.padding = size, kernel, stride, padding
        self.out = tuple((n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel))
        if min(self.out) < 1:
            raise ValueError(f"conv2d: a {kernel[0]} x {kernel[1]} kernel does not fit images of {size[0]} x {size[1]} "
                             f"with padding {padding}; pad more or use a smaller kernel")

    def taps(self, out_rows=None, in_rows=None):
        """(i, j, to, at) for each tap: y[to] += x[at] @ w[i, j]; only given output rows or given input rows."""
        for i in range(self.kernel[0]):
            to_h, at_h = self._span(0, i, out_rows, in_rows)
            for j in range(self.kernel[1]):
                to_w, at_w = self._span(1, j)
                if to_h and to_w:
                    yield i, j, (slice(*to_h), slice(*to_w)), (slice(*at_h), slice(*at_w))

    def _span(self, axis, tap, outputs=None, inputs=None):
        """The outputs lo:hi along an axis whose input, stride h + tap - padding, exists; and those inputs."""
        s, offset = self.stride, tap - self.padding
        (first_out, end_out), (first_in, end_in) = outputs or (0, self.out[axis]), inputs or (0, self.size[axis])
        lo = max(first_out, _ceil_div(first_in - offset, s))
        hi = min(end_out, _ceil_div(end_in - offset, s))
        return ((lo, hi), (s * lo + offset, s * (hi - 1) + offset + 1, s)) if lo < hi else (None, None)


def _ceil_div(a, b):
    return -(-a // b)
