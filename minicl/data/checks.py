"""What data functions accept: each check returns the value or names the caller, the argument and what was expected.

`where` is the caller: a function's name, or the object whose class is named.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..typing import HostArray

MOST = 1e4                                  # of every number without a natural limit: nothing in float32 overflows


class DataError(ValueError):
    """The data asked for cannot be used; the message says why and what to do."""


def number(where: Any, option: str, value: float, low: float, high: float = MOST, unit: str = "") -> float:
    """value as a float in [low, high]."""
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{_name(where)}: {option}: expected a number{unit} in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def interval(where: Any, option: str, value: float | Sequence[float], low: float, high: float = MOST,
             around: float | None = None, unit: str = "") -> tuple[float, float]:
    """A pair (a, b) with low <= a <= b <= high, from a pair, or from a number v: (v, v), or with `around`
    (around - v, around + v), cut off at low."""
    pair: Any = value
    if _is_number(value):
        pair = (value, value) if around is None else (max(low, around - value), around + value)     # type: ignore
    if (not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(_is_number(v) for v in pair)
            or not low <= pair[0] <= pair[1] <= high):
        number_means = "" if around is None else f" (for {around:g} - v to {around:g} + v)"
        raise ValueError(f"{_name(where)}: {option}: expected a number v{number_means} or a pair (a, b){unit}, "
                         f"{low:g} <= a <= b <= {high:g}, got {value!r}")
    return float(pair[0]), float(pair[1])


def whole(where: Any, option: str, value: int, least: int) -> int:
    """value as an int >= least; bools and floats are refused."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = least - 1
    if integer < least or isinstance(value, (bool, np.bool_)):
        raise DataError(f"{_name(where)}: {option} must be an integer and at least {least}, got {value!r}")
    return integer


def check_rng(where: Any, rng: np.random.Generator) -> None:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{_name(where)}: rng: expected a host numpy.random.Generator, got {type(rng).__name__}; make "
                        "one generator a run with numpy.random.default_rng(seed)")


def indices(where: Any, argument: str, values: Any, count: int, ndim: int = 1) -> HostArray:
    """values as an array of integers in 0..count-1 with so many axes."""
    array = np.asarray(values)
    if array.size == 0 and array.ndim == ndim:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != ndim:
        raise ValueError(f"{_name(where)}: {argument} must be {ndim}-dimensional integers, got {array.dtype} of shape "
                         f"{array.shape}")
    if array.min() < 0 or array.max() >= count:
        raise ValueError(f"{_name(where)}: {argument} must be 0..{count - 1}, got {array.min()}..{array.max()}")
    return array


def _is_number(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _name(where):
    return where if isinstance(where, str) else type(where).__name__
