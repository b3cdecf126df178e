"""Convolution as one product: the taps are gathered first, then multiplied all at once.

On a GPU conv.py's product for each tap would be three launches: a copy of the shifted pixels (cuBLAS reads no strided
view), the product, with an inner size of only C, and the sum. For a 3x3 kernel these are 27, and they move 27 X + 36 Y
bytes: X those of the pixels that a tap reads, Y those of the output. Here the taps are first laid side by side,

    cols[m, n, b] = (x[s m + i - p, s n + j - p, b] for all taps (i, j))     (H' W' B, kh kw C)

in one copy of a view that overlaps itself. What is left is y = cols @ w, with an inner size of 9 C: 4 launches with
the two that surround x with zeros, and at most 30 X + Y bytes, of which the cache spares some. The gradients are

    dw = cols^T @ g
    dx = the convolution of g with w turned around, where the stride is 1;
         else g @ w^T added back tap by tap, so that no two threads add to the same entry

(two forms, because a stride spreads g out: at stride 2 three quarters of the convolution would be of zeros). Columns
are gathered for as many output rows at a time as fit COLUMN_BYTES, and gathered again for dw: saved, they would be
nine times the activations. A 1x1 convolution of stride 1 is a product as it stands, for reshape then copies nothing.

On a CPU the same pays where C is at most 4. There the columns are small and saved for the backward.
"""

import functools
import operator

from ..backend import array_module, parallel_for

COLUMN_BYTES = 2**28


def conv_by_columns(x, w, shift, needs_grad):
    """conv2d of x (H, W, B, C) and w (kh, kw, C, K), shift saying which pixels meet: y (H', W', B, K), backward."""
    def backward(g):
        dx = dw = None
        if needs_grad[1]:
            rows_of_g = g.reshape(-1, g.shape[-1])                           # (H' W' B, K)
            parts = (cols.T @ rows_of_g[rows] for rows, cols in _columns(x, w.shape[:2], shift.stride, shift.padding,
                                                                         shift.out))
            dw = functools.reduce(operator.iadd, parts).reshape(w.shape)
        if needs_grad[0]:
            kh, kw = w.shape[:2]
            if shift.stride == 1 and kh == kw > shift.padding:
                turned = w[::-1, ::-1].swapaxes(2, 3)                        # (kh, kw, K, C)
                dx = _convolve(g, turned, 1, kh - 1 - shift.padding, x.shape[:2])
            else:
                dx = _add_back(g, w, shift, x)
        return dx, dw

    return _convolve(x, w, shift.stride, shift.padding, shift.out), backward


def _convolve(x, w, stride, padding, out):
    """y (H', W', B, K), for out = (H', W')."""
    xp = array_module(x)
    B, K = x.shape[2], w.shape[3]
    y = xp.empty((out[0] * out[1] * B, K), dtype=x.dtype)
    kernel = w.reshape(-1, K)
    for rows, cols in _columns(x, w.shape[:2], stride, padding, out):
        xp.matmul(cols, kernel, out=y[rows])
    return y.reshape(*out, B, K)


def _columns(x, kernel, stride, padding, out):
    """(rows, cols) for chunks of output rows: cols (n, kh kw C) and the slice of all H' W' B rows that they are."""
    xp = array_module(x)
    H, W, B, C = x.shape
    kh, kw = kernel
    p = padding
    if p:
        padded = xp.zeros((H + 2 * p, W + 2 * p, B, C), dtype=x.dtype)
        padded[p:-p, p:-p] = x
        x = padded
    down, right, image, channel = x.strides
    taps = xp.lib.stride_tricks.as_strided(x, (*out, B, kh, kw, C),
                                           (stride * down, stride * right, image, down, right, channel))
    count = max(1, COLUMN_BYTES // max(1, out[1] * B * kh * kw * C * x.itemsize))        # B may be 0
    for lo in range(0, out[0], count):
        hi = min(lo + count, out[0])
        yield slice(lo * out[1] * B, hi * out[1] * B), taps[lo:hi].reshape(-1, kh * kw * C)


def _add_back(g, w, shift, x):
    """dx: to each pixel of x what comes back to it through every tap."""
    _, width, B, K = g.shape
    kh, kw, C, _ = w.shape
    kernel = w.reshape(-1, K)
    dx = array_module(x).zeros_like(x)
    count = max(1, COLUMN_BYTES // max(1, width * B * kernel.shape[0] * x.itemsize))
    for lo in range(0, len(g), count):
        part = g[lo:lo + count]
        dcols = (part.reshape(-1, K) @ kernel.T).reshape(len(part), width, B, kh, kw, C)
        for i, j, (to_h, to_w, _), at in shift.taps(outputs=(lo, lo + len(part), slice(None))):
            dx[at] += dcols[to_h.start - lo:to_h.stop - lo, to_w, :, i, j]
    return dx


def conv_of_few_channels(x, w, shift, needs_grad):
    """conv2d on a CPU with the taps of all channels one above the other: cols^T (H' W' B, kh kw C) @ w (kh kw C, K)."""
    xp = array_module(x)
    B = x.shape[2]
    kh, kw, C, K = w.shape
    cols = xp.zeros((kh, kw, C, *shift.out, B), dtype=x.dtype)
    planes = x.transpose(3, 0, 1, 2)                                         # (C, H, W, B)

    def gather(lo, hi):
        for i, j, to, at in shift.taps(outputs=(lo, hi, slice(None))):
            cols[(i, j, slice(None)) + to] = planes[(slice(None),) + at]      # in runs of B numbers, not of C

    parallel_for(xp, shift.out[0], gather)
    rows = cols.reshape(kh * kw * C, shift.out[0] * shift.out[1] * B).T      # (H' W' B, kh kw C)
    kernel = w.reshape(kh * kw * C, K)
    y = xp.empty((len(rows), K), dtype=x.dtype)
    parallel_for(xp, len(rows), lambda lo, hi: xp.matmul(rows[lo:hi], kernel, out=y[lo:hi]))

    def backward(g):
        g = g.reshape(len(rows), K)                                          # not y.shape: the closure would hold y
        dw = dx = None
        if needs_grad[1]:
            parts = parallel_for(xp, len(rows), lambda lo, hi: rows[lo:hi].T @ g[lo:hi])
            dw = sum(parts[1:], parts[0]).reshape(w.shape)
        if needs_grad[0]:
            dx = xp.zeros_like(x)
            dcols = (kernel @ g.T).reshape(cols.shape)
            for i, j, to, at in shift.taps():
                dx[at] += dcols[(i, j, slice(None)) + to].transpose(1, 2, 3, 0)
        return dx, dw

    return y.reshape(*shift.out, B, K), backward
