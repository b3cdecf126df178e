"""Checks of the argument `axis`."""

import operator
from typing import TypeAlias

from ..checks import shortened

Axis: TypeAlias = int | tuple[int, ...] | list[int] | None


def axes_of(op, x, axis):
    """The axes of x that `axis` names, as ints >= 0 in increasing order; None for all."""
    if axis is None:
        return tuple(range(x.ndim))
    if type(axis) is int and -x.ndim <= axis < x.ndim:
        return (axis % x.ndim,)
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(sorted(_axis(op, x, axes, a) for a in axes))


def axis_of(op, x, axis):
    """One axis of x, as an int >= 0."""
    return _axis(op, x, (axis,), axis)


def _axis(op, x, axes, axis):
    try:
        index = operator.index(None if isinstance(axis, bool) else axis)
    except TypeError:
        raise TypeError(f"{op}: axis must be None, an int or a tuple of ints, got {shortened(axis)}") from None
    if not -x.ndim <= index < x.ndim:
        raise ValueError(f"{op}: axis {index} is out of range for an input of shape {x.shape}")
    index %= x.ndim
    if sum(a in (index, index - x.ndim) for a in axes) > 1:
        raise ValueError(f"{op}: axis {axes} names an axis twice, for an input of shape {x.shape}")
    return index
