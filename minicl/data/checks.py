"""Checks of arguments: each returns the value or raises an error with the caller, the argument and what was expected."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import is_number, name_of, require_integers, require_unmasked, require_within, shortened
from ..signature import describe
from ..typing import HostArray

MOST = 1e4                                  # limit of numbers without a natural one: nothing in float32 overflows


class DataError(ValueError):
    """The requested data cannot be used; the message gives the reason and the fix."""


def number(where: Any, option: str, value: float, low: float, high: float = MOST, unit: str = "") -> float:
    """value as a float in [low, high]."""
    require_within(where, f"[{low:g}, {high:g}]", unit, **{option: value})
    return float(value) + 0.0                                # 0 for -0, which is in [0, 1] but no upper bound


def interval(where: Any, option: str, value: float | Sequence[float], low: float, high: float = MOST,
             around: float | None = None, unit: str = "") -> tuple[float, float]:
    """A pair (a, b) with low <= a <= b <= high, from a pair, or from a number v: (v, v), or with `around`
    (around - v, around + v), limited below by low."""
    pair: Any = value
    if is_number(value):
        pair = (value, value) if around is None else (max(low, around - value), around + value)     # type: ignore
    if (not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(is_number, pair))
            or not low <= pair[0] <= pair[1] <= high):
        number_means = "" if around is None else f" (for {around:g} - v to {around:g} + v)"
        raise ValueError(f"{type(where).__name__}: {option} must be a number v{number_means} or a pair (a, b), {low:g} <= a "
                         f"<= b <= {high:g}, got {shortened(value)}{unit and '; '}{unit}")
    return float(pair[0]), float(pair[1])


def whole(where: Any, option: str, value: int, least: int, most: int = 10**12) -> int:
    """value as an int in least..most."""
    require_integers(where, least, most, **{option: value})
    return int(value)


def check_seed(where: Any, seed: int) -> int:
    return whole(where, "seed", seed, 0, 2**128)


def host_array(where: Any, argument: str, x: Any, shape: tuple[int | str, ...], kinds: str) -> HostArray:
    """x as a plain NumPy array of this shape, where a letter stands for any size, and of the dtypes in `kinds`."""
    dtypes = {"integers": "iu", "floats": "f"}
    fits = type(x) in (np.ndarray, np.memmap) and x.dtype.isnative and x.ndim == len(shape) and (
        x.dtype.kind in dtypes[kinds] if kinds in dtypes else x.dtype.name in kinds.split(" or "))
    if not fits or any(isinstance(size, int) and size != found for size, found in zip(shape, x.shape)):
        raise ValueError(f"{name_of(where)}: {argument} must be a NumPy array ({', '.join(map(str, shape))}"
                         f"{',' * (len(shape) == 1)}) of {kinds}, got {describe(x):.200}")
    return x


def indices(where: Any, argument: str, values: Any, count: int, ndim: int = 1) -> HostArray:
    """values as an int64 array of integers in 0..count-1 with ndim axes."""
    require_unmasked(f"{name_of(where)}: {argument}", values)
    array = np.asarray(values)
    if array.size == 0 and array.ndim == ndim:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != ndim:
        raise ValueError(f"{name_of(where)}: {argument} must be {ndim}-dimensional integers, got {array.dtype} of shape "
                         f"{array.shape}")
    if array.min() < 0 or array.max() >= count:
        raise ValueError(f"{name_of(where)}: {argument} must be 0..{count - 1}, got {array.min()}..{array.max()}")
    return array.astype(np.int64)
