"""Checks of arguments of ops, layers, losses, optimizers and data: numbers, integers, generators.

Messages have the form "NAME: ARGUMENT must be WHAT, got VALUE; HINT". A wrong type raises TypeError, a wrong value
ValueError. `where` is the NAME, or an object whose class is the NAME.
"""

import copyreg
import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np


class _AfterInit(type):
    @property
    def __signature__(cls):                                  # for help(), that of __init__
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=[*signature.parameters.values()][1:])

    def __call__(cls, *args, **options):
        if is_of_minicl(cls):
            args, options = python_numbers(args, options)
        made = super().__call__(*args, **options)
        object.__setattr__(made, "_is_sealed", True)
        return made


class Sealed(metaclass=_AfterInit):
    """Settings are checked whenever they are set. After __init__ an object takes no new attributes, so that a misspelt one
    is an error, and of minicl's own classes nothing but settings can be set."""

    _is_sealed = False
    _setting_ranges: dict[str, str] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_sealed and not hasattr(self, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{did_you_mean(name, vars(self))}")
        if name in self._setting_ranges:
            self._require(name, value)
            value = python_number(value)
        elif self._is_sealed and not name.startswith("_"):
            require_settable(self, name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def _require(self, name: str, value: Any) -> None:
        require_setting(self, name, value)


def require_settable(thing: Any, name: str) -> None:
    """Raise AttributeError if thing is of a class of minicl, whose other attributes are made from `name`."""
    kind = type(thing)
    if is_of_minicl(kind) and not getattr(getattr(kind, name, None), "fset", None):
        hint = f", or write into it: .{name}[...] = values" if type(getattr(thing, name, None)).__name__ == "ndarray" else ""
        raise AttributeError(f"{kind.__name__}.{name} cannot be set after construction; make a new {kind.__name__}{hint}")


def require_setting(where: Any, name: str, value: Any) -> None:
    """Raise unless value fits where._setting_ranges[name], if there is one: an interval, "int >= 1", "bool", or "two in
    [0, 1)"; with " or None" also None."""
    kind = (vars(where).get("_setting_ranges") or getattr(type(where), "_setting_ranges", {})).get(name, "")
    if value is None and kind.endswith(" or None"):
        return
    kind = kind.removesuffix(" or None")
    if kind == "bool":
        require_bool(where, **{name: value})
    elif kind.startswith("int >= "):
        require_integers(where, int(kind.removeprefix("int >= ")), **{name: value})
    elif kind.startswith("two in "):
        if not isinstance(value, tuple) or len(value) != 2:
            _refuse(where, name, "two numbers, in a tuple", value, "", ValueError)
        require_within(where, kind.removeprefix("two in "), **{f"{name}[{k}]": x for k, x in enumerate(value)})
    elif kind:
        require_within(where, kind, **{name: value})


def require_within(where: Any, interval: str, hint: str = "", /, **options: Any) -> None:
    """Raise unless every option is a Python or NumPy number in `interval`, written as "[0, 1)" or "(0, inf)".

    >>> require_within("Dropout", "[0, 1)", p=1.0)
    Traceback (most recent call last):
    ValueError: Dropout: p must be a number in [0, 1), got 1.0
    """
    low, high = ends(interval)
    for option, x in options.items():
        number = type(x) is float or is_number(x)
        if not number or not low <= (x.item() if isinstance(x, np.generic) else x) <= high:
            _refuse(where, option, f"a number in {interval}", x, hint, ValueError if number else TypeError)


def require_integers(where: Any, at_least: int, at_most: int | None = None, hint: str = "", /, **options: Any) -> None:
    """Raise unless every option is an integer between the bounds, of Python or NumPy.

    >>> require_integers("MoCo", 1, queue=0)
    Traceback (most recent call last):
    ValueError: MoCo: queue must be an integer >= 1, got 0
    """
    for option, n in options.items():
        integer = type(n) is int or isinstance(n, numbers.Integral) and not isinstance(n, bool)
        if not integer or n < at_least or at_most is not None and n > at_most:
            bounds = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
            _refuse(where, option, f"an integer {bounds}", n, hint, ValueError if integer else TypeError)


def require_bool(where: Any, /, **options: Any) -> None:
    """Raise TypeError unless every option is True or False: the text "no" would count as true."""
    for option, value in options.items():
        if not isinstance(value, (bool, np.bool_)):
            _refuse(where, option, "True or False", value, "", TypeError)


def require_ordered(where: Any, /, **options: Any) -> None:
    """Raise TypeError if an option is a set: its order changes from one process to the next."""
    for option, values in options.items():
        if isinstance(values, (set, frozenset)):
            _refuse(where, option, "a list, or another sequence", values, "a set has no order", TypeError)


def require_rng(where: Any, rng: Any) -> None:
    """Raise TypeError unless rng is a NumPy generator, for either backend."""
    if not isinstance(rng, np.random.Generator):
        _refuse(where, "rng", "a numpy.random.Generator", rng, "write numpy.random.default_rng(seed)", TypeError)


def require_unmasked(what: str, x: Any) -> None:
    """Raise TypeError if x is a masked array, or a list of them: conversions would drop its mask."""
    for item in x if isinstance(x, (list, tuple)) else ():
        if isinstance(item, (list, tuple, np.ndarray)):
            require_unmasked(what, item)
    if type(x) is not np.ndarray and isinstance(x, np.ndarray) and isinstance(x, np.ma.MaskedArray):     # np.ma loads late
        raise TypeError(f"{what}: expected an array without a mask, got a masked array; select its valid items, or fill the "
                        "others, .filled(0)")


def python_number(x: Any) -> Any:
    """A NumPy number as Python's, also in a tuple or list; other values unchanged.

    NumPy's wrap round (np.uint8(200) + 100 is 44), lose digits (float16), or promote arrays (float64).

    >>> python_number(np.uint8(200)) + 100, python_number((np.float16(0.5), "x"))
    (300, (0.5, 'x'))
    """
    if isinstance(x, (np.bool_, np.integer, np.floating)):
        return float(x) if isinstance(x, np.floating) else x.item()
    if type(x) in (tuple, list) and any(isinstance(item, np.generic) for item in x):
        return type(x)(map(python_number, x))
    return x


def python_numbers(inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call, with Python's numbers."""
    return tuple(map(python_number, inputs)), {name: python_number(value) for name, value in options.items()}


def is_of_minicl(kind: type) -> bool:
    """Whether a class is one of minicl's."""
    return kind.__module__.startswith("minicl.")


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object holds, in its __dict__ and in slots."""
    given = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]              # a text is one name
    slots = [name for names in given for name in ([names] if isinstance(names, str) else names) if hasattr(value, name)]
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}


def own_attributes(x: Any) -> Any:
    """What a class outside of minicl has added to an object: the third item of __reduce__()."""
    of_minicl = next(kind for kind in type(x).__mro__ if is_of_minicl(kind))
    names = {*copyreg._slotnames(type(x))} - {*copyreg._slotnames(of_minicl)}            # type: ignore[attr-defined]
    attributes = getattr(x, "__dict__", {}).copy() if of_minicl is not type(x) else {}
    slots = {name: getattr(x, name) for name in names if hasattr(x, name)}
    return (attributes or None, slots) if slots else attributes or None


def is_number(x: Any) -> bool:
    """Whether x is a real number of Python or NumPy, and not a bool."""
    return isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)


# What an argument or attribute is called here, by the name that PyTorch, scikit-learn or a paper gives it.
GUESSES = {
    "n_neighbors": "k", "max_iter": "steps", "queue_size": "queue", "K": "queue", "momentum": "m",
    "trust_coefficient": "eta", "total_steps": "total", "T_max": "total", "warmup_steps": "warmup", "max_lr": "peak",
    "eta_min": "floor", "T": "tau",
    "view": "reshape", "flatten": "reshape", "unsqueeze": "reshape", "squeeze": "reshape", "permute": "transpose",
    "dim": "ndim", "numel": "size", "cuda": "to", "cpu": "to", "double": "astype",
}


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """"; did you mean 'x'?" for the known name x that the name translates to or resembles; "" if there is none."""
    known = list(known)
    near = [GUESSES[name]] if GUESSES.get(name) in known else difflib.get_close_matches(name, known, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


@functools.cache
def ends(interval: str) -> tuple[float, float]:
    """The least and the greatest float in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    return (low if interval[0] == "[" else math.nextafter(low, math.inf),
            high if interval[-1] == "]" else math.nextafter(high, -math.inf))


def _refuse(where, option, what, value, hint, error):
    raise error(f"{name_of(where)}: {option} must be {what}, got {shortened(value)}{hint and '; '}{hint}")


def name_of(where: Any) -> str:
    """where itself, or the name of its class."""
    return where if isinstance(where, str) else type(where).__name__


def shortened(value: Any) -> str:
    """repr(value) on one line, cut to 100 characters."""
    return " ".join(repr(value).split())[:100]
