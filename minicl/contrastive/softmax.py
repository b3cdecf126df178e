"""Softmax with a temperature: from scores to a choice.

With z = x / tau, p = softmax(z) and y = log p:  d y_j / d z_k = [j = k] - p_k. Raising one score raises its
log-probability and, through the shared normaliser, lowers all others in proportion to p. Small tau sharpens
the choice and, since dx carries 1/tau, strengthens the gradient.

A row needs at least one finite score, and none may be NaN or infinity (FloatingPointError). A score of -infinity excludes
a candidate: p = 0.    Derivation: docs/gradients/softmax.md
"""

from ..autograd import op
from ..backend import array_module, fused, require_finite, sum_over
from ..signature import Scalar
from ..typing import Array
from .checks import require_temperature

EXCLUDED = -1e30      # the score of an excluded candidate: exp gives 0, and 0 * EXCLUDED is 0, while 0 * inf is NaN


@op
def log_softmax(x: Array, tau: Scalar = 1.0, *, needs_grad=(True, True)):
    """Temperature log-softmax over the last axis: scores x (..., K), tau () > 0 -> y (..., K).

        y_j  = x_j/tau - log sum_k exp(x_k/tau),   p = exp(y)
        dx   = (g - p sum_k g_k) / tau                                       (1)
        dtau = -sum x dx / tau                                               (2)

    The largest score is subtracted first: a shift leaves y unchanged, and exp cannot overflow. (2) uses the shifted x
    instead of x, since dx sums to zero.

    >>> import numpy as np
    >>> log_softmax(np.array([2.0, 0.0])).data.round(4).tolist()
    [-0.1269, -2.1269]
    """
    z, shifted = _shifted("log_softmax", x, tau)
    xp = array_module(x)
    y = z - xp.log(sum_over(xp.exp(z), (-1,), keepdims=True))

    def backward(g):
        dx = (g - xp.exp(y) * sum_over(g, (-1,), keepdims=True)) / tau       # (1)
        dtau = -(shifted() * dx).sum() / tau if needs_grad[1] else None      # (2)
        return dx, dtau

    return y, backward


@op
def softmax(x: Array, tau: Scalar = 1.0, *, needs_grad=(True, True)):
    """Temperature softmax over the last axis: scores x (..., K), tau () > 0 -> p (..., K), rows summing to 1.

        p_j  = exp(x_j/tau) / sum_k exp(x_k/tau)
        dx   = p (g - sum_k g_k p_k) / tau                                   (3)
        dtau = -sum x dx / tau                                               (4)

    >>> import numpy as np
    >>> softmax(np.array([0.9, 0.7, 0.0]), 0.1).data.round(3).tolist()
    [0.881, 0.119, 0.0]
    """
    z, shifted = _shifted("softmax", x, tau)
    p = array_module(x).exp(z)
    p = p / sum_over(p, (-1,), keepdims=True)

    def backward(g):
        dx = p * (g - sum_over(g * p, (-1,), keepdims=True)) / tau           # (3)
        dtau = -(shifted() * dx).sum() / tau if needs_grad[1] else None      # (4)
        return dx, dtau

    return p, backward


def _shifted(name, x, tau):
    """(x - top) / tau, with top each row's largest score; and a function for the backward: x - top, EXCLUDED for -inf."""
    require_temperature(name, tau)
    top = x.max(axis=-1, keepdims=True)
    require_finite(top, f"{name}: the largest score of a row")
    return (x - top) / tau, lambda: array_module(x).maximum(x - top, EXCLUDED)


@fused
def softplus(xp, x):
    """log(1 + exp(x)) and its derivative sigmoid(x) of an array, without overflow."""
    e = xp.exp(-xp.abs(x))                                                   # at most 1
    return xp.maximum(x, 0) + xp.log1p(e), xp.where(x > 0, 1, e) / (1 + e)
