"""Reductions along axes.

axis: an int, a tuple of ints, or None for all axes; with keepdims the reduced axes stay, with length 1.
The gradient of the output is smaller than the input: `_restore_axes` gives it length-1 axes, and broadcasting repeats
it along the reduced ones. The sum of no values is 0; the other reductions raise ValueError.
"""

import math

from ..autograd import op
from ..backend import array_module, fused, mean_over, sum_over
from ..checks import require_within
from ..typing import Array
from .checks import Axis, axes_of


@op
def sum(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = sum_i x_i.    dx_i = g

    >>> minicl.ops.sum(np.ones((2, 3)), axis=0).data
    array([2., 2., 2.])
    """
    axes = axes_of("sum", x, axis)
    xp = array_module(x)
    return sum_over(x, axes, keepdims), lambda g: (xp.broadcast_to(_restore_axes(g, x, axes), x.shape),)


@op
def mean(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = (1/n) sum_i x_i.    dx_i = g / n"""
    axes = axes_of("mean", x, axis)
    n = _count("mean", x, axes)
    xp = array_module(x)
    return mean_over(x, axes, keepdims), lambda g: (xp.broadcast_to(_restore_axes(g / n, x, axes), x.shape),)


@op
def max(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = max_i x_i.    dx_i = g / (number of ties) where x_i = y, else 0"""
    axes = axes_of("max", x, axis)
    _count("max", x, axes)
    y = x.max(axis=axes, keepdims=True)

    def backward(g):
        at_max = x == y
        share = _restore_axes(g, x, axes) / at_max.sum(axis=axes, keepdims=True, dtype=x.dtype)
        return (at_max * share,)

    return _drop_axes(y, axes, keepdims), backward


@op
def logsumexp(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = log sum_i exp(x_i), computed as m + log sum_i exp(x_i - m) with m = max_i x_i.    dx_i = g exp(x_i - y)

    If all x_i are -inf, y is -inf and dx is 0. If one is inf, y is inf and dx is NaN.

    >>> minicl.ops.logsumexp(np.array([1000.0, 1000.0])).item()
    1000.6931471805599
    """
    axes = axes_of("logsumexp", x, axis)
    _count("logsumexp", x, axes)
    xp = array_module(x)
    m = x.max(axis=axes, keepdims=True)
    finite = float(xp.finfo(x.dtype).max)
    y = _add_log(m, sum_over(_exp_below(x, m, -finite, finite), axes, keepdims=True))

    def backward(g):
        return (_times_softmax(_restore_axes(g, x, axes), x, y, -finite),)

    return _drop_axes(y, axes, keepdims), backward


@fused
def _exp_below(xp, x, m, low, high):
    return xp.exp(x - xp.maximum(xp.minimum(m, high), low))  # exp(x - m), and 0 in a row of -inf


@fused
def _add_log(xp, m, total):
    return m + xp.log(xp.maximum(total, 1))                  # m + log(total); total < 1 only in a row of -inf


@fused
def _times_softmax(xp, g, x, y, low):
    return g * xp.exp(x - xp.maximum(y, low))                # g exp(x - y), and 0 in a row of -inf


@op
def var(x: Array, *, axis: Axis = None, keepdims: bool = False, correction: float = 0):
    """y = sum_i (x_i - mean)^2 / (n - correction).    dx_i = 2 g (x_i - mean) / (n - correction)

    correction: 0 divides by n (as batch norm does), 1 gives the unbiased estimate.
    The mean's dependence on x_i adds nothing to the gradient, since the deviations sum to zero.
    """
    axes = axes_of("var", x, axis)
    require_within("var", "(-inf, inf)", correction=correction)
    n = _count("var", x, axes) - correction
    if n <= 0:
        raise ValueError(f"var: needs more than correction={correction} values along axis {axis}, got shape {x.shape}")
    deviation = x
    for _ in range(2):               # the first mean is rounded to its own size, the second to that of the deviations
        deviation = deviation - mean_over(deviation, axes, keepdims=True)
    y = sum_over(deviation * deviation, axes, keepdims=True) / n
    return _drop_axes(y, axes, keepdims), lambda g: (_restore_axes(g, x, axes) * (2 / n) * deviation,)


def _count(name, x, axes):
    """The number of values that are reduced to one, at least 1."""
    n = math.prod(x.shape[axis] for axis in axes)
    if n == 0:
        raise ValueError(f"{name}: axis {axes} of an input of shape {x.shape} has no values, whose {name} is undefined")
    return n


def _restore_axes(g, x, axes):
    """g with the reduced axes back as axes of length 1, ready to broadcast against x."""
    return g.reshape([1 if a in axes else n for a, n in enumerate(x.shape)])


def _drop_axes(y, axes, keepdims):
    """y, whose reduced axes have length 1, without them unless keepdims."""
    return y if keepdims else y.reshape([n for a, n in enumerate(y.shape) if a not in axes])
