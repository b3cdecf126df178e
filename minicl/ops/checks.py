"""What ops require of their options, and what they say otherwise: the op, the argument, what came."""

import math
import operator
import reprlib
from typing import TypeAlias

Axis: TypeAlias = int | tuple[int, ...] | list[int] | None


def require_number(op, argument, value, expected="a finite Python number", *, low=-math.inf, below=math.inf):
    """Raise TypeError or ValueError unless value is a finite number with low <= value < below."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {argument} must be {expected}, got {type(value).__name__} {reprlib.repr(value)}")
    if not (math.isfinite(value) and low <= value < below):
        raise ValueError(f"{op}: {argument} must be {expected}, got {value!r}")


def require_count(op, argument, value, at_least):
    """Raise TypeError or ValueError unless value is an int >= at_least."""
    if type(value) is not int:
        value = _index(op, argument, value, f"an int >= {at_least}")
    if value < at_least:
        raise ValueError(f"{op}: {argument} must be an int >= {at_least}, got {value!r}")


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
    index = _index(op, "axis", axis, "None, an int or a tuple of ints")
    if not -x.ndim <= index < x.ndim:
        raise ValueError(f"{op}: axis {index} is out of range for an input of shape {x.shape}")
    index %= x.ndim
    if sum(a in (index, index - x.ndim) for a in axes) > 1:
        raise ValueError(f"{op}: axis {axes} names an axis twice, for an input of shape {x.shape}")
    return index


def _index(op, argument, value, expected):
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {argument} must be {expected}, got {type(value).__name__} {reprlib.repr(value)}") from None
