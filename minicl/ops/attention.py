"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1): each query gets a weighted mean of the values.

The weights are a softmax of s_ij = q_i . k_j / sqrt(d) over the keys:

    p_ij = exp(s_ij) / sum_l exp(s_il),   y_i = sum_j p_ij v_j

    dv_j  = sum_i p_ij g_i                               (1)
    ds_ij = p_ij (g_i . v_j - g_i . y_i)                 (2)
    dq_i  = sum_j ds_ij k_j / sqrt(d)                    (3)
    dk_j  = sum_i ds_ij q_i / sqrt(d)                    (4)

(2): a key gains weight if its value agrees with g better than y_i does.    Derivation: docs/gradients/attention.md
"""

import math

import numpy as np

from ..autograd import op
from ..backend import array_module, parallel_for, row_dots, row_max, row_sums
from ..signature import describe, is_plain_array
from ..typing import Array

TINY = 1e-30


@op
def attention(q: Array, k: Array, v: Array, *, mask: Array | None = None):
    """q (..., T, d), k (..., S, d), v (..., S, e) -> y (..., T, e); leading axes (heads, batch) are equal.

    mask: bools that broadcast to (..., T, S), True where query i attends to key j; default: everywhere. A query that
    attends to no key gets zeros as output and gradient. For a padding mask (B, S) pass mask[:, None, :].

    >>> q, k, v = np.zeros((1, 2)), np.zeros((3, 2)), np.array([[1.0], [2.0], [30.0]])
    >>> minicl.ops.attention(q, k, v, mask=np.array([[True, True, False]])).data
    array([[1.5]])
    """
    _require_shapes(q, k, v)
    if mask is not None:
        _require_mask(mask, q.shape[:-1] + k.shape[-2:-1])
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1])
    y = xp.empty(q.shape[:-1] + v.shape[-1:], dtype=q.dtype)                 # (..., T, e)
    p = xp.empty(q.shape[:-1] + k.shape[-2:-1], dtype=q.dtype)               # (..., T, S)
    allowed = None if mask is None else xp.broadcast_to(mask, p.shape)

    def forward(part):
        s = (q[part] * scale) @ k[part].swapaxes(-1, -2)
        if allowed is not None:
            s = xp.where(allowed[part], s, float(xp.finfo(s.dtype).min))     # not -inf: inf - inf is NaN
        s -= row_max(s)
        xp.exp(s, out=s)
        if allowed is not None:
            s *= allowed[part]                                               # for rows without a key
        xp.divide(s, xp.maximum(row_sums(s), TINY)[..., None], out=p[part])
        xp.matmul(p[part], v[part], out=y[part])

    _over_batch(q, forward)

    def backward(g):
        dq, dk, dv = (xp.empty(x.shape, dtype=x.dtype) for x in (q, k, v))

        def backward_of(part):
            xp.matmul(p[part].swapaxes(-1, -2), g[part], out=dv[part])       # (1)
            ds = g[part] @ v[part].swapaxes(-1, -2)                          # g_i . v_j
            ds -= row_dots(p[part], ds)                                      # g_i . y_i, by the same products: less rounding
            ds *= p[part]                                                    # (2)
            ds *= scale
            xp.matmul(ds, k[part], out=dq[part])                             # (3)
            xp.matmul(ds.swapaxes(-1, -2), q[part], out=dk[part])            # (4)

        _over_batch(q, backward_of)
        return dq, dk, dv

    return y, backward


def _over_batch(q, function):
    """function(part) for parts of the last leading axis, one for each thread; for all if there is none."""
    if q.ndim == 2:
        function(...)
    else:
        parallel_for(array_module(q), q.shape[-3], lambda lo, hi: function(np.s_[..., lo:hi, :, :]))


def _require_shapes(q, k, v):
    if q.ndim < 2 or k.shape != q.shape[:-2] + (k.shape[-2], q.shape[-1]) or v.shape[:-1] != k.shape[:-1]:
        raise ValueError("attention: expected q (..., T, d), k (..., S, d), v (..., S, e) with equal leading axes, "
                         f"got q {q.shape}, k {k.shape}, v {v.shape}")
    if q.shape[-1] < 1 or k.shape[-2] < 1:
        raise ValueError(f"attention: expected at least one key and d >= 1, got q {q.shape}, k {k.shape}")


def _require_mask(mask, shape):
    if not is_plain_array(mask) or mask.dtype.kind != "b":
        raise TypeError("attention: mask must be an array of bools, True where a query may attend, got "
                        f"{describe(mask)}; for token ids it is ids != 0")
    if mask.ndim > len(shape) or any(m not in (1, n) for m, n in zip(mask.shape[::-1], shape[::-1])):
        raise ValueError(f"attention: mask must broadcast to (..., T, S) = {shape}, got shape {mask.shape}; for the "
                         "padding of a batch, (B, S), it is mask[:, None, :]")
