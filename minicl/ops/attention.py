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

from ..autograd import op
from ..backend import array_module, row_dots, row_max, row_sums
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
    if q.ndim < 2 or k.shape != q.shape[:-2] + (k.shape[-2], q.shape[-1]) or v.shape[:-1] != k.shape[:-1]:
        raise ValueError("attention: expected q (..., T, d), k (..., S, d), v (..., S, e) with equal leading axes, "
                         f"got q {q.shape}, k {k.shape}, v {v.shape}")
    if q.shape[-1] < 1 or k.shape[-2] < 1:
        raise ValueError(f"attention: expected at least one key and d >= 1, got q {q.shape}, k {k.shape}")
    if mask is not None:
        _require_mask(mask, q.shape[:-1] + k.shape[-2:-1])
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1])
    s = (q * scale) @ k.swapaxes(-1, -2)                                     # (..., T, S)
    if mask is not None:
        s = xp.where(mask, s, float(xp.finfo(s.dtype).min))                  # not -inf: inf - inf is NaN
    s -= row_max(s)
    p = xp.exp(s, out=s)
    if mask is not None:
        p *= mask                                                            # for rows without a key
    p /= xp.maximum(row_sums(p), TINY)[..., None]
    y = p @ v                                                                # (..., T, e)

    def backward(g):
        dv = p.swapaxes(-1, -2) @ g                                          # (1)
        ds = g @ v.swapaxes(-1, -2)                                          # g_i . v_j
        ds -= row_dots(p, ds)                                                # g_i . y_i, by the same products: less rounding
        ds *= p                                                              # (2)
        ds *= scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, dv                           # (3), (4)

    return y, backward


def _require_mask(mask, shape):
    if not is_plain_array(mask) or mask.dtype.kind != "b":
        raise TypeError("attention: mask must be an array of bools, True where a query may attend, got "
                        f"{describe(mask)}; for token ids it is ids != 0")
    if mask.ndim > len(shape) or any(m not in (1, n) for m, n in zip(mask.shape[::-1], shape[::-1])):
        raise ValueError(f"attention: mask must broadcast to (..., T, S) = {shape}, got shape {mask.shape}; for the "
                         "padding of a batch, (B, S), it is mask[:, None, :]")
