"""Reductions: one number from the many along some axes.

axis: an int, a tuple of ints, or None for all axes; with keepdims the reduced axes stay, with length 1.
The gradient of a reduction comes back smaller than its input: `_restore_axes` gives it length-1 axes, and
broadcasting repeats it along what was reduced.
"""

from typing import TypeAlias

from ..autograd import op
from ..backend import array_module
from ..typing import Array

Axis: TypeAlias = int | tuple[int, ...] | None


@op
def sum(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = sum_i x_i.    dx_i = g"""
    xp = array_module(x)
    return x.sum(axis=axis, keepdims=keepdims), lambda g: (xp.broadcast_to(_restore_axes(g, x, axis), x.shape),)


@op
def mean(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = (1/n) sum_i x_i.    dx_i = g / n"""
    xp = array_module(x)
    n = _count(x, axis)
    return x.mean(axis=axis, keepdims=keepdims), lambda g: (xp.broadcast_to(_restore_axes(g / n, x, axis), x.shape),)


@op
def max(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = max_i x_i.    dx_i = g / (how many are tied) where x_i = y, else 0"""
    y = x.max(axis=axis, keepdims=True)

    def backward(g):
        at_max = x == y
        share = _restore_axes(g, x, axis) / at_max.sum(axis=axis, keepdims=True, dtype=x.dtype)
        return (at_max * share,)

    return _drop_axes(y, axis, keepdims), backward


@op
def logsumexp(x: Array, *, axis: Axis = None, keepdims: bool = False):
    """y = log sum_i exp(x_i), computed as m + log sum_i exp(x_i - m) with m = max_i x_i.    dx_i = g exp(x_i - y)"""
    xp = array_module(x)
    m = x.max(axis=axis, keepdims=True)
    y = m + xp.log(xp.exp(x - m).sum(axis=axis, keepdims=True))
    return _drop_axes(y, axis, keepdims), lambda g: (_restore_axes(g, x, axis) * xp.exp(x - y),)


@op
def var(x: Array, *, axis: Axis = None, keepdims: bool = False, correction: float = 0):
    """y = sum_i (x_i - mean)^2 / (n - correction).    dx_i = 2 g (x_i - mean) / (n - correction)

    correction: 0 divides by n (as batch norm does), 1 gives the unbiased estimate.
    The mean's own dependence on x_i adds nothing: the deviations from it sum to zero.
    """
    n = _count(x, axis) - correction
    if n <= 0:
        raise ValueError(f"var: needs more than correction={correction} values along axis {axis}, got shape {x.shape}")
    deviation = x - x.mean(axis=axis, keepdims=True)
    y = (deviation * deviation).sum(axis=axis, keepdims=True) / n
    return _drop_axes(y, axis, keepdims), lambda g: (_restore_axes(g, x, axis) * (2 / n) * deviation,)


def _axes(x, axis):
    """axis as a tuple of non-negative ints."""
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(a % x.ndim for a in axes)


def _count(x, axis):
    n = 1
    for a in _axes(x, axis):
        n *= x.shape[a]
    return n


def _restore_axes(g, x, axis):
    """g with the reduced axes back as axes of length 1, ready to broadcast against x."""
    return g.reshape([1 if a in _axes(x, axis) else n for a, n in enumerate(x.shape)])


def _drop_axes(y, axis, keepdims):
    """y, whose reduced axes have length 1, without them unless keepdims."""
    return y if keepdims else y.reshape([n for a, n in enumerate(y.shape) if a not in _axes(y, axis)])
