"""Softmax with a temperature: from scores to a choice.

With z = x / tau, p = softmax(z) and y = log p:  d y_j / d z_k = [j = k] - p_k. Raising one score raises its
log-probability and, through the shared normaliser, lowers all others in proportion to p. Small tau sharpens
the choice and, since dx carries 1/tau, strengthens the gradient.
"""

from ..autograd import op
from ..backend import array_module, fused
from ..signature import Scalar
from .checks import require_temperature

EXCLUDED = -1e30      # the score of what is no candidate: exp gives 0, yet 0 * EXCLUDED is 0 where 0 * inf is NaN


@op
def log_softmax(x, tau: Scalar = 1.0, *, needs_grad=(True, True)):
    """Temperature log-softmax over the last axis: scores x (..., K), tau () > 0 -> y (..., K).

        y_j  = x_j/tau - log sum_k exp(x_k/tau),   p = exp(y)
        dx   = (g - p sum_k g_k) / tau                                       (1)
        dtau = -sum x dx / tau                                               (2)

    The largest score is subtracted first: a shift leaves y unchanged, and exp cannot overflow. In (2)
    the shifted x may stand for x, since dx sums to zero.
    Derivation: docs/gradients/softmax.md
    """
    require_temperature("log_softmax", tau)
    xp = array_module(x)
    top = x.max(axis=-1, keepdims=True)
    z = (x - top) / tau
    y = z - xp.log(xp.exp(z).sum(axis=-1, keepdims=True))

    def backward(g):
        dx = (g - xp.exp(y) * g.sum(axis=-1, keepdims=True)) / tau           # (1)
        dtau = -((x - top) * dx).sum() / tau if needs_grad[1] else None          # (2)
        return dx, dtau

    return y, backward


@op
def softmax(x, tau: Scalar = 1.0, *, needs_grad=(True, True)):
    """Temperature softmax over the last axis: scores x (..., K), tau () > 0 -> p (..., K), rows summing to 1.

        p_j  = exp(x_j/tau) / sum_k exp(x_k/tau)
        dx   = p (g - sum_k g_k p_k) / tau                                   (3)
        dtau = -sum x dx / tau                                               (4)

    Derivation: docs/gradients/softmax.md
    """
    require_temperature("softmax", tau)
    xp = array_module(x)
    top = x.max(axis=-1, keepdims=True)
    p = xp.exp((x - top) / tau)
    p = p / p.sum(axis=-1, keepdims=True)

    def backward(g):
        dx = p * (g - (g * p).sum(axis=-1, keepdims=True)) / tau             # (3)
        dtau = -((x - top) * dx).sum() / tau if needs_grad[1] else None          # (4)
        return dx, dtau

    return p, backward


@fused
def softplus(xp, x):
    """log(1 + exp(x)) and its derivative sigmoid(x) of an array, without overflow."""
    e = xp.exp(-xp.abs(x))                                                   # at most 1
    return xp.maximum(x, 0) + xp.log1p(e), xp.where(x > 0, 1, e) / (1 + e)
