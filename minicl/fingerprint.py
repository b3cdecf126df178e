"""What Python objects hold, as a number, to tell whether the loop of a Run has changed what no checkpoint has.

    fingerprint(value, names)  the same as long as the value holds the same; names of Modules and arrays, by id
    kept_by(named_modules)     {name: value} of what Modules keep besides their state
    read_by(things)            the same of what their classes keep, and of what their methods read from around them
    marks(values, names)       {name: (fingerprint, text)}
    differences(before, now)   [(name, text), ...] of what differs in two marks

Followed are entries of containers, attributes of objects, whatever their __repr__ shows, and what functions have around
them: default arguments, closures, and the global values that their code names. Not followed are Modules, optimizers and
their arrays, which a checkpoint has; random generators, which are refused elsewhere; objects of minicl other than data;
functions that a function calls; and the results that functools.lru_cache keeps, which should depend on the arguments only.
"""

import collections
import contextlib
import contextvars
import functools
import hashlib
import inspect
import pathlib
import re
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .autograd import Tensor
from .backend import is_array
from .checks import attributes_of, is_of_minicl
from .nn import Buffer, Module, Parameter
from .nn.module import RANDOM
from .nn.spec import (as_text, code_of, comparable, defaults, functions_of, globals_of, own_classes,
                      settings_held)
from .optim import Optimizer
from .run_parts import checksum

MANY = 100_000                         # objects that are followed from one value
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, pathlib.PurePath, np.generic, np.dtype)
ACTIVE = {"asyncio", "concurrent", "logging"}                # whose objects keep what they were used for
CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type(functools.lru_cache(len)))
AS_CLASS = "the value of its class"
LIBRARIES = {*sys.stdlib_module_names, "numpy", "cupy", "minicl"} - {"__main__"}
CLOSED = (type, types.ModuleType, Module, Parameter, Buffer, Optimizer, *RANDOM, *weakref.ProxyTypes)
INSIDE: dict[type, Any] = {                                  # by kind: what is followed of what Python itself provides
    dict: lambda x: [*dict.keys(x), *dict.values(x)], types.MappingProxyType: lambda x: [*x.keys(), *x.values()],
    **dict.fromkeys((list, tuple, collections.deque), list),
    **dict.fromkeys((set, frozenset), lambda x: sorted(map(fingerprint, x))),
    functools.partial: lambda x: [x.func, x.args, x.keywords], types.MethodType: lambda x: [x.__func__, x.__self__],
    **dict.fromkeys((staticmethod, classmethod), lambda x: [x.__func__]), property: lambda x: [x.fget, x.fset, x.fdel],
    types.FunctionType: lambda x: [x.__module__, x.__qualname__, repr(code_of(x.__code__)), vars(x), *(
        value for held in (defaults(x), closure_of(x), globals_read(x)) for value in held.values())],
    memoryview: lambda x: [x.tobytes()],
    type(functools.lru_cache(len)): lambda x: [x.__wrapped__], weakref.ref: lambda x: [x()],
    contextvars.ContextVar: lambda x: [x.get(None)], np.ndarray: np.ndarray.tolist}      # of objects


def fingerprint(value: Any, names: Mapping[int, str] = types.MappingProxyType({})) -> str:
    """32 hexadecimal digits, which depend on all that a value holds; of a Module or array in names, {id: name}, on its name.

    >>> meter = types.SimpleNamespace(rows=[np.zeros(2)])
    >>> before = fingerprint(meter)
    >>> meter.rows[0][1] = 1e-300
    >>> before == fingerprint(meter)
    False
    """
    total, seen, left = hashlib.sha256(), dict[int, tuple[int, Any]](), [value]          # seen: by id; keeps them alive
    while left:
        x = left.pop()
        plain: Any = next((kind for kind in PLAIN if issubclass(type(x), kind)), None)
        found: Any = str(type(x).__module__), type(x).__qualname__
        if plain:
            found = *found, plain.__repr__(x)
        elif id(x) in seen:
            found = *found, seen[id(x)][0]
        elif type(x) not in weakref.ProxyTypes and is_array(x) and x.dtype.kind != "O":
            found = *found, x.dtype.str, x.shape, checksum(x)
        elif len(seen) < MANY:
            inside: list = []
            with contextlib.suppress(Exception):             # of a class whose objects cannot be looked into
                inside = [names[id(x)]] if id(x) in names else _inside(x)
            seen[id(x)] = len(seen), x
            left += reversed(inside)
            found = *found, len(inside)
        total.update(repr(found).encode(errors="backslashreplace"))
    return total.hexdigest()[:32]


def _inside(x):
    """What is followed of an object."""
    kind = type(x)
    if issubclass(kind, Tensor) and not issubclass(kind, (Parameter, Buffer)):
        return [x.data]
    if issubclass(kind, CLOSED) or is_of_minicl(kind) and not kind.__module__.startswith("minicl.data."):
        return [] if kind in weakref.ProxyTypes else [_text(x), x.__name__ if issubclass(kind, types.ModuleType) else ""]
    kinds = [known for known in INSIDE if issubclass(kind, known)]
    inside = INSIDE[kinds[0]](x) if kinds else []
    if str(kind.__module__).split(".")[0] in ACTIVE:
        return []
    data = [value for cls in kind.__mro__ if not _is_installed(cls) for value in data_of(cls).items()]
    attributes = [item for pair in sorted(attributes_of(x).items(), key=lambda pair: str(pair[0])) for item in pair]
    if kinds or attributes:
        return [*inside, *attributes, *data]
    with contextlib.suppress(Exception):                     # of a class in C its text, or what a copy would have
        text = repr(x)
        return [*data, text] if " at 0x" not in text else [*data, *x.__reduce_ex__(4)[1:3]]
    return data


def globals_read(function: types.FunctionType) -> dict[str, Any]:
    """{name: value} of the globals that a function of a script names, other than code; of a class its data_of()."""
    if str(function.__module__).split(".")[0] in LIBRARIES:
        return {}
    named = {key: function.__globals__[key] for key in sorted(globals_of(function.__code__)) if key in function.__globals__}
    named = {key: data_of(x) if isinstance(x, type) else x for key, x in named.items()
             if not (isinstance(x, type) and _is_installed(x))}
    return {name: x for name, x in named.items() if not issubclass(type(x), (types.ModuleType, *CODE))}


def data_of(cls: type) -> dict[str, Any]:
    """{name: value} of the attributes of a class, other than a library's, besides methods and properties."""
    if str(cls.__module__).split(".")[0] in LIBRARIES:
        return {}
    return {key: x for key, x in vars(cls).items() if not (
        key.startswith(("__", "_abc_")) or [*functions_of(x)] or inspect.isdatadescriptor(x))}


def _is_installed(cls):
    """Whether a class is of an installed package, such as tqdm, whose classes count what they are used for."""
    return "site-packages" in str(getattr(sys.modules.get(str(cls.__module__)), "__file__", ""))


def of_class(thing: Any) -> dict[str, str]:
    """{name: AS_CLASS} of the attributes that an object has only from its class, or with the same value."""
    data = {key: x for cls in reversed(type(thing).__mro__) for key, x in data_of(cls).items()}
    own = vars(thing)
    return {key: AS_CLASS for key, x in data.items() if key not in own or fingerprint(own[key]) == fingerprint(x)}


def closure_of(function: types.FunctionType) -> dict[str, Any]:
    """{name: value} of the variables of enclosing functions that a function names."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):                # no value yet
            found[name] = cell.cell_contents
    return found


def kept_by(modules: Iterable[tuple[str, Module]]) -> dict[str, Any]:
    """{name: value} of what Modules, with their names, keep besides their state and what modes() has: their settings.

    >>> from minicl import nn
    >>> kept_by(nn.Sequential(nn.Dropout(0.5, rng=np.random.default_rng(0))).named_modules())["steps.0.p"]
    0.5
    """
    return {f"{name}.{key}".lstrip("."): x for name, module in modules
            for key, x in (not_cached(module) | settings_held(module) | of_class(module)).items()
            if key not in getattr(type(module), "_scheduled", ())}


def read_by(things: Iterable[Any]) -> dict[str, Any]:
    """{name: value} of the attributes of the classes of Modules and optimizers, other than minicl's, and of what their
    methods have around them."""
    found = dict[str, Any]()
    for name, cls in own_classes(things):
        for key, value in vars(cls).items():
            functions = [*functions_of(value)]
            for function in functions:
                found |= {f"{function.__module__}.{other}": x for other, x in globals_read(function).items()}
                found |= {f"{name}.{key}.{other}": x for other, x in (
                    closure_of(function) | defaults(function) | {"__dict__": vars(function)}).items()}
        found |= {f"{name}.{key}": x for key, x in data_of(cls).items()}
    return found


def not_cached(thing: Any) -> dict[str, None]:
    """{name: None} of what functools.cached_property gives an object of a script, once it is asked for."""
    return {key: None for kind in type(thing).__mro__ for key, x in vars(kind).items()
            if isinstance(x, functools.cached_property)}


def marks(values: Mapping[str, Any], names: Mapping[int, str] = types.MappingProxyType({})) -> dict[str, tuple[str, str]]:
    """{name: (fingerprint, text)} of values, for differences()."""
    return {name: (fingerprint(value, names), names.get(id(value)) or _text(value)) for name, value in values.items()}


def _text(value):
    """The settings that a value shows, or of a long one its SHA-256."""
    try:
        return as_text(comparable(value))
    except Exception:                                        # in the __repr__ of a script's class
        return f"a {type(value).__name__}"


def differences(before: Mapping[str, tuple[str, str]], now: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """[(name, text), ...] of the values that are others now than before, the shortest text first."""
    changed = {name: (before[name][1], mark[1]) for name, mark in now.items() if before.get(name, mark) != mark}
    texts = {name: f"{name} has other content than before" if old == new or re.search("[0-9a-f]{16}", old + new)
             else f"{name} was {old}, now {new}" for name, (old, new) in changed.items()}
    return sorted(texts.items(), key=lambda pair: len(pair[1]))
