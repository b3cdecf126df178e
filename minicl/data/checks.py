"""What data functions accept: each check returns the value or names the caller, the argument and what was expected.

`where` is the caller: a function's name, or the object whose class is named.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..signature import describe
from ..typing import HostArray

MOST = 1e4                                  # of every number without a natural limit: nothing in float32 overflows


class DataError(ValueError):
    """The data asked for cannot be used; the message says why and what to do."""


def number(where: Any, option: str, value: float, low: float, high: float = MOST, unit: str = "") -> float:
    """value as a float in [low, high]."""
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{_name(where)}: {option}: expected a number{unit} in [{low:g}, {high:g}], got {_short(value)}")
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
                         f"{low:g} <= a <= b <= {high:g}, got {_short(value)}")
    return float(pair[0]), float(pair[1])


def whole(where: Any, option: str, value: int, least: int, most: int = 10**12) -> int:
    """value as an int in least..most; bools and floats are refused."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = least - 1
    if not least <= integer <= most or isinstance(value, (bool, np.bool_)):
        limits = f"at least {least}" if integer <= most else f"at most {most}"
        raise DataError(f"{_name(where)}: {option} must be an integer and {limits}, got {_short(value)}")
    return integer


def check_seed(where: Any, seed: int) -> int:
    return whole(where, "seed", seed, 0, 2**128)


def check_rng(where: Any, rng: np.random.Generator) -> None:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{_name(where)}: rng: expected a host numpy.random.Generator, got {type(rng).__name__}; make "
                        "one generator a run with numpy.random.default_rng(seed)")


def host_array(where: Any, argument: str, x: Any, shape: tuple[int | str, ...], kinds: str) -> HostArray:
    """x as a plain NumPy array of this shape, in which a letter stands for any size, and of the dtypes named in kinds."""
    dtypes = {"integers": "iu", "floats": "f"}
    fits = type(x) in (np.ndarray, np.memmap) and x.dtype.isnative and x.ndim == len(shape) and (
        x.dtype.kind in dtypes[kinds] if kinds in dtypes else x.dtype.name in kinds.split(" or "))
    if not fits or any(isinstance(size, int) and size != found for size, found in zip(shape, x.shape)):
        raise ValueError(f"{_name(where)}: {argument} must be a NumPy array ({', '.join(map(str, shape))}"
                         f"{',' * (len(shape) == 1)}) of {kinds}, got {describe(x):.200}")
    return x


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


def _short(value):
    return " ".join(repr(value).split())[:100]


def _name(where):
    return where if isinstance(where, str) else type(where).__name__
