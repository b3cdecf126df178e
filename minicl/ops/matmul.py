"""Matrix products.

For Y = X W, y_nk = sum_c x_nc w_ck. The loss depends on w_ck through every row n, and on x_nc through every column k:

    dX = G W^T        dx_nc = sum_k g_nk w_ck          (1)
    dW = X^T G        dw_ck = sum_n x_nc g_nk          (2)

The shapes confirm it: (N, K) and (C, K) multiply to (N, C) in only one way.    Derivation: docs/gradients/matmul.md
"""

import math

from ..autograd import op
from ..backend import array_module, column_sums, is_array, operand, parallel_for, product
from ..signature import describe
from ..typing import Array


@op(broadcasts=True)
def matmul(x: Array, w: Array, *, needs_grad=(True, True)):
    """x (..., N, C) @ w (..., C, K) -> (..., N, K); leading axes broadcast.

    >>> minicl.ops.matmul(np.ones((5, 2, 3)), np.ones((3, 4))).shape
    (5, 2, 4)
    """
    if not (is_array(x) and is_array(w)):
        raise TypeError(f"matmul: expected two arrays or Tensors, got {describe(x)} and {describe(w)}; x * 2.0 scales")
    if x.ndim < 2 or w.ndim < 2 or x.shape[-1] != w.shape[-2]:
        raise ValueError(f"matmul: expected shapes (..., N, C) @ (..., C, K), got {x.shape} @ {w.shape}; "
                         "give a vector a second axis with reshape")

    def backward(g):
        dx = g @ w.swapaxes(-1, -2) if needs_grad[0] else None               # (1)
        dw = x.swapaxes(-1, -2) @ g if needs_grad[1] else None               # (2)
        return dx, dw

    return x @ w, backward


@op
def linear(x: Array, w: Array, b: Array | None = None, *, needs_grad=(True, True, True)):
    """y = x w + b: x (..., C), w (C, K), b (K,) or None -> (..., K).    dx, dw as above,  db_k = sum_n g_nk  (3)

    >>> minicl.ops.linear(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([0.5])).data
    array([[11.5]])
    """
    if w.ndim != 2 or x.shape[-1:] != w.shape[:1] or b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear: expected x (..., C), w (C, K), b (K,), got x {x.shape}, w {w.shape}"
                         + ("" if b is None else f", b {b.shape}"))
    C, K = w.shape
    rows = x.reshape(math.prod(x.shape[:-1]), C)                             # (N, C)
    y = _times(operand(rows), operand(w), b, dtype=x.dtype)

    def backward(g):
        g = g.reshape(len(rows), K)
        factor = operand(g)
        dx = _times(factor, operand(w).T, dtype=x.dtype).reshape(x.shape) if needs_grad[0] else None         # (1)
        dw = _transposed_times(operand(rows), factor, dtype=w.dtype) if needs_grad[1] else None              # (2)
        db = column_sums(g) if needs_grad[2] else None                       # (3)
        return dx, dw, db

    return y.reshape(*x.shape[:-1], K), backward


def _times(rows, w, b=None, *, dtype):
    """rows w + b, with rows divided among threads."""
    xp = array_module(rows)
    y = xp.empty((len(rows), w.shape[1]), dtype=dtype)

    def multiply(lo, hi):
        product(rows[lo:hi], w, out=y[lo:hi])
        if b is not None:
            y[lo:hi] += b

    parallel_for(xp, len(rows), multiply)
    return y


def _transposed_times(rows, g, *, dtype):
    """rows^T g: the sum over rows is divided among threads, or if it is short, the rows of the result."""
    xp = array_module(g)
    (n, C), K = rows.shape, g.shape[1]
    if C < n:
        first, *rest = parallel_for(xp, n, lambda lo, hi: product(rows[lo:hi].T, g[lo:hi]))
        return sum(rest, first)
    dw = xp.empty((C, K), dtype=dtype)                                       # whose parts need not be added up
    parallel_for(xp, C, lambda lo, hi: product(rows[:, lo:hi].T, g, out=dw[lo:hi]))
    return dw
