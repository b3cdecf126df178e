"""Convolution as one product: the taps are gathered first, then multiplied all at once.

On a GPU conv.py's product for each tap would take three launches: a copy of the shifted pixels (cuBLAS does not read strided
views), the product, with an inner size of only C, and the sum. For a 3x3 kernel these are 27 launches that move 27 X + 36 Y
bytes, with X the pixels that a tap reads and Y the output. Here the taps are first gathered,

    cols[m, n, b] = (x[s m + i - p, s n + j - p, b] for all taps (i, j))     (H' W' B, kh kw C)

in one kernel. Then y = cols @ w has an inner size of 9 C: 2 launches, and at most 27 X + Y bytes, less by the cache. The
gradients are

    dw = cols^T @ g
    dx = the convolution of g with the rotated w, at stride 1;
         else g @ w^T, added back by one kernel: each entry of dx collects its own terms, so threads do not collide

(two forms, because a stride spreads g out: at stride 2 three quarters of the convolution would be zeros). Columns are
gathered for as many output rows at a time as fit COLUMN_BYTES, and gathered again for dw: saved, they would be nine times
the activations. A 1x1 convolution of stride 1 is a plain product, since reshape then copies nothing.

On a CPU the same is faster for C of at most 4. There the columns are small and saved for the backward.
"""

import functools
import math
import operator

from ..backend import (add_taps, array_module, column_sums, gather_taps, operand, operand_dtype, parallel_for, parallel_sum,
                       product)

COLUMN_BYTES = 2**28
SMALL_PRODUCT = 10**6     # multiplications: OpenBLAS does so many without copying its operands first, in half the time
CACHE = 2**19             # entries of columns that are gathered and then multiplied while a CPU's cache has them
PIXELS = 256              # in a product that sums over pixels: few terms, so that rounding does not pile up


def conv_by_columns(x, w, shift, needs_grad):
    """conv2d of x (H, W, B, C) and w (kh, kw, C, K), with the pairs of pixels in `shift`: y (H', W', B, K), backward."""
    def backward(g):
        dx = dw = None
        factor = operand(g)
        if needs_grad[1]:
            rows_of_g = factor.reshape(-1, g.shape[-1])                      # (H' W' B, K)
            parts = (product(cols.T, rows_of_g[rows])
                     for rows, cols in _columns(x, w.shape[:2], shift.stride, shift.padding, shift.out))
            dw = functools.reduce(operator.iadd, parts).reshape(w.shape)
        if needs_grad[0]:
            kh, kw = w.shape[:2]
            if shift.stride == 1 and kh == kw > shift.padding:
                turned = w[::-1, ::-1].swapaxes(2, 3)                        # (kh, kw, K, C)
                dx = _convolve(g, turned, 1, kh - 1 - shift.padding, x.shape[:2])
            else:
                dx = _add_back(factor, w, shift, x)
        return dx, dw

    return _convolve(x, w, shift.stride, shift.padding, shift.out), backward


def _convolve(x, w, stride, padding, out):
    """y (H', W', B, K), for out = (H', W')."""
    xp = array_module(x)
    B, K = x.shape[2], w.shape[3]
    y = xp.empty((out[0] * out[1] * B, K), dtype=x.dtype)
    kernel = operand(w).reshape(-1, K)
    for rows, cols in _columns(x, w.shape[:2], stride, padding, out):
        product(cols, kernel, out=y[rows])
    return y.reshape(*out, B, K)


def _columns(x, kernel, stride, padding, out):
    """(rows, cols) for chunks of output rows: cols (n, kh kw C), and their slice of all H' W' B rows."""
    B, C = x.shape[2:]
    if tuple(kernel) == (1, 1) and stride == 1 and not padding:
        yield slice(None), operand(x).reshape(-1, C)                         # the pixels as they are
        return
    dtype = operand_dtype(x)
    for lo, hi in _chunks(out, B * kernel[0] * kernel[1] * C * dtype.itemsize):
        cols = array_module(x).empty((hi - lo, out[1], B, *kernel, C), dtype=dtype)
        gather_taps(x, cols, stride, padding, lo)
        yield slice(lo * out[1] * B, hi * out[1] * B), cols.reshape(-1, kernel[0] * kernel[1] * C)


def _add_back(g, w, shift, x):
    """dx from the operand g: for each pixel of x the sum of its gradients through all taps."""
    B, K = g.shape[2:]
    kernel = operand(w).reshape(-1, K)                                       # (kh kw C, K)
    dx = array_module(x).empty_like(x)
    for lo, hi in _chunks(g.shape[:2], B * len(kernel) * x.itemsize):
        dcols = product(g[lo:hi].reshape(-1, K), kernel.T)
        add_taps(dcols.reshape(hi - lo, g.shape[1], B, *w.shape[:3]), dx, shift.stride, shift.padding, lo)
    return dx


def _chunks(out, pixel_bytes):
    """(lo, hi) of as many output rows at a time as fit COLUMN_BYTES."""
    count = max(1, COLUMN_BYTES // max(1, out[1] * pixel_bytes))             # B may be 0
    return [(lo, min(lo + count, out[0])) for lo in range(0, out[0], count)]


def conv_of_few_channels(x, w, shift, needs_grad):
    """conv2d on a CPU with the taps of all channels one above the other: cols^T (H' W' B, kh kw C) @ w (kh kw C, K)."""
    xp = array_module(x)
    B = x.shape[2]
    kh, kw, C, K = w.shape
    cols = xp.empty((kh, kw, C, *shift.out, B), dtype=x.dtype)
    planes = x.transpose(3, 0, 1, 2)                                         # (C, H, W, B)
    pixels = shift.out[1] * B                                                # in an output row
    rows = cols.reshape(kh * kw * C, shift.out[0] * pixels).T                # (H' W' B, kh kw C)
    kernel = w.reshape(kh * kw * C, K)
    y = xp.empty((len(rows), K), dtype=x.dtype)
    size = max(PIXELS, SMALL_PRODUCT // kernel.size)

    def forward(row, end):                                                   # some rows, while they are in the cache
        cols[:, :, :, row:end] = 0
        for i, j, to, at, _ in shift.taps(outputs=(row, end, None, None)):
            cols[(i, j, slice(None)) + to] = planes[(slice(None),) + at]      # in runs of B numbers, not of C
        for lo in range(row * pixels, end * pixels, size):
            hi = min(lo + size, end * pixels)
            xp.matmul(rows[lo:hi], kernel, out=y[lo:hi])

    most = max(1, CACHE // max(1, pixels * len(kernel)))                     # rows at a time
    parts = 2 * math.ceil(shift.out[0] / (2 * most))                         # mostly an even number, for 2 threads
    parallel_for(xp, shift.out[0], forward, math.ceil(shift.out[0] / parts))

    def backward(g):
        g = g.reshape(len(rows), K)                                          # not y.shape: the closure would hold y
        dw = dx = None
        if needs_grad[1]:
            dw, = parallel_sum(xp, len(rows), lambda lo, hi, dw: _add_products(dw, rows[lo:hi], g[lo:hi]), kernel,
                               size=64 * PIXELS)
            dw = dw.reshape(w.shape)
        if needs_grad[0]:
            dx = xp.zeros_like(x)
            dcols = (kernel @ g.T).reshape(cols.shape)
            for i, j, to, at, _ in shift.taps():
                dx[at] += dcols[(i, j, slice(None)) + to].transpose(1, 2, 3, 0)
        return dx, dw

    return y.reshape(*shift.out, B, K), backward


def _add_products(dw, rows, g):
    """dw (T, K) += rows^T @ g for rows (N, T) and g (N, K), as the sum of small products."""
    T, K = dw.shape
    whole = len(g) // PIXELS * PIXELS
    blocks = rows[:whole].T.reshape(T, -1, PIXELS).swapaxes(0, 1)            # (whole / PIXELS, T, PIXELS), a view
    parts = blocks @ g[:whole].reshape(-1, PIXELS, K)
    dw += column_sums(parts.reshape(-1, T * K)).reshape(T, K)
    dw += rows[whole:].T @ g[whole:]
