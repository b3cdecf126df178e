"""Matrix products.

For Y = X W, y_nk = sum_c x_nc w_ck. The loss sees w_ck through every row n, and x_nc through every column k:

    dX = G W^T        dx_nc = sum_k g_nk w_ck          (1)
    dW = X^T G        dw_ck = sum_n x_nc g_nk          (2)

A check without thinking: there is only one way to multiply the shapes (N, K), (C, K) into (N, C).
Derivation: docs/gradients/matmul.md
"""

from ..autograd import op
from ..backend import array_module, column_sums, parallel_for


@op(broadcasts=True)
def matmul(x, w, *, needs_grad=(True, True)):
    """x (..., N, C) @ w (..., C, K) -> (..., N, K); leading axes broadcast."""
    if x.ndim < 2 or w.ndim < 2 or x.shape[-1] != w.shape[-2]:
        raise ValueError(f"matmul: expected shapes (..., N, C) @ (..., C, K), got {x.shape} @ {w.shape}; "
                         "give a vector a second axis with reshape")

    def backward(g):
        dx = g @ w.swapaxes(-1, -2) if needs_grad[0] else None                   # (1)
        dw = x.swapaxes(-1, -2) @ g if needs_grad[1] else None                   # (2)
        return dx, dw

    return x @ w, backward


@op
def linear(x, w, b=None, *, needs_grad=(True, True, True)):
    """y = x w + b: x (..., C), w (C, K), b (K,) or None -> (..., K).    dx, dw as above,  db_k = sum_n g_nk  (3)"""
    if w.ndim != 2 or x.shape[-1:] != w.shape[:1] or b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"linear: expected x (..., C), w (C, K), b (K,), got x {x.shape}, w {w.shape}"
                         + ("" if b is None else f", b {b.shape}"))
    xp = array_module(x)
    rows = x.reshape(-1, w.shape[0])                                         # (N, C)
    y = xp.empty((len(rows), w.shape[1]), dtype=x.dtype)

    def forward(lo, hi):
        xp.matmul(rows[lo:hi], w, out=y[lo:hi])
        if b is not None:
            y[lo:hi] += b

    parallel_for(xp, len(rows), forward)

    def backward(g):
        g = g.reshape(len(rows), w.shape[1])                                 # not y.shape, which would keep y
        dx = xp.empty_like(rows) if needs_grad[0] else None

        def slice_gradients(lo, hi):
            if needs_grad[0]:
                xp.matmul(g[lo:hi], w.T, out=dx[lo:hi])                      # (1)
            dw = rows[lo:hi].T @ g[lo:hi] if needs_grad[1] else 0                # (2)
            db = column_sums(g[lo:hi]) if needs_grad[2] else 0                   # (3)
            return dw, db

        dw, db = (sum(parts[1:], parts[0]) for parts in zip(*parallel_for(xp, len(rows), slice_gradients)))
        return (dx.reshape(x.shape) if needs_grad[0] else None,
                dw if needs_grad[1] else None, db if needs_grad[2] else None)

    return y.reshape(*x.shape[:-1], w.shape[1]), backward
