"""Cosine similarity: compare directions, not lengths.

For x^ = x / |x| the Jacobian is (I - x^ x^T) / |x|: it removes the component of the gradient along x, which would only
change its length, and divides the rest by the length.
"""

import math

from ..autograd import op
from ..backend import array_module, fused, require_finite, row_dots
from ..checks import require_within
from ..typing import Array

TINY = 1e-12


@op
def l2_normalize(x: Array, *, eps: float = TINY):
    """Rows of x scaled to length 1: x (..., d) -> x^ (..., d), x^ = x / |x|.

        dx = (g - x^ (x^ . g)) / |x|                                         (1)

    A row shorter than eps gives zeros and gets a zero gradient, never NaN and never a huge g / eps. Its cosine with every
    row is 0, its distance to a unit row 1, and each loss follows its formula at such rows. A row whose length is not
    finite (in float32 from 1.8e19) raises FloatingPointError; on a GPU it gives NaN. Derivation: docs/gradients/cosine.md

    >>> import numpy as np
    >>> l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]])).data.tolist()
    [[0.6000000000000001, 0.8], [0.0, 0.0]]
    """
    if eps is not TINY:
        least = math.sqrt(float(array_module(x).finfo(x.dtype).tiny) / float(array_module(x).finfo(x.dtype).eps))
        require_within("l2_normalize", f"[{least}, inf)", f"squares of less lose digits in {x.dtype}", eps=eps)
    squares = row_dots(x, x)                                                 # |x|^2 (..., 1)
    require_finite(squares, "l2_normalize: the length of a row")
    x_hat = _unit(x, squares, eps)

    def backward(g):
        return (_across(g, x_hat, row_dots(x_hat, g), squares, eps),)        # (1)

    return x_hat, backward


def _inverse(xp, squares, eps):
    """1 / |x|, 0, or NaN for infinity."""
    length = xp.sqrt(squares)
    return (length >= eps) / xp.maximum(length, eps) + (length - length)     # infinity - infinity is NaN


@fused
def _unit(xp, x, squares, eps):
    return x * _inverse(xp, squares, eps)


@fused
def _across(xp, g, x_hat, along, squares, eps):
    return (g - x_hat * along) * _inverse(xp, squares, eps)


@op
def cosine_similarity(x: Array, y: Array, *, needs_grad=(True, True)):
    """All pairs: x (N, d), y (M, d) -> s (N, M) in [-1, 1].

        s_ij = x^_i . y^_j
        dx_i = (sum_j g_ij y^_j - x^_i sum_j g_ij s_ij) / |x_i|              (2)
        dy_j = (sum_i g_ij x^_i - y^_j sum_i g_ij s_ij) / |y_j|              (3)

    (2) is (1) for the gradient of x^_i, sum_j g_ij y^_j.    Derivation: docs/gradients/cosine.md
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"cosine_similarity: expected x (N, d) and y (M, d), got {x.shape} and {y.shape}")
    x_hat, to_x = l2_normalize.forward(x)
    y_hat, to_y = l2_normalize.forward(y)

    def backward(g):
        dx = to_x(g @ y_hat)[0] if needs_grad[0] else None                       # (2)
        dy = to_y(g.T @ x_hat)[0] if needs_grad[1] else None                     # (3)
        return dx, dy

    return x_hat @ y_hat.T, backward
