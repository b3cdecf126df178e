"""The spec of a Module, as JSON: its class and its constructor's arguments.

    {"class": "minicl.nn.ConvNet", "arguments": {"image_shape": [28, 28, 1], "rng": {"class": "numpy.random.Generator"}}}

Every Module records its spec. A checkpoint stores it beside the weights, so minicl.load can rebuild the model without
the script that trained it. Nothing is unpickled: build() calls only Module classes of minicl and of files that the
program has imported.
"""

import collections
import contextlib
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import math
import re
import sys
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..backend import is_array, to_host
from ..checks import attributes_of, is_of_minicl
from ..typing import Rng
from .parts import Buffer, Parameter

WRAPPERS = (types.FunctionType, property, staticmethod, classmethod, functools.partial, functools.partialmethod,
            functools.cached_property)
SHARED = "its shared parameters"
IN_PYTHON = f" in Python {sys.version_info[0]}.{sys.version_info[1]}" + " -O" * (not __debug__)
RNG = {"class": "numpy.random.Generator"}                    # build() draws initial weights, which loading replaces


def note(cls: type, args: tuple, options: dict[str, Any]) -> str:
    """The JSON of cls(*args, **options), or of {"unknown": reason}."""
    try:
        given = _signature(cls).bind(None, *args, **options)
        arguments = {key: encode(value) for key, value in [*given.arguments.items()][1:]}
        given.apply_defaults()                               # the defaults may change later
        for key, value in [*given.arguments.items()][1:]:
            with contextlib.suppress(ValueError):
                arguments.setdefault(key, encode(value))
        arguments = {key: arguments[key] for key in given.arguments if key in arguments}     # in one order
        return json.dumps({"class": _public_name(cls), "arguments": arguments})
    except (TypeError, ValueError) as error:
        return json.dumps({"unknown": f"{cls.__name__}: {error}"})


def encode(value: Any) -> Any:
    """A constructor's argument for JSON. Raises ValueError if build() could not restore it, as of a subclass: a member of a
    StrEnum equals its text, but `is` no longer finds it."""
    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, int, str) or kind is float and math.isfinite(value):
        return value
    if kind is tuple:
        return [encode(item) for item in value]
    if kind is list:
        return {"list": [encode(item) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    if isinstance(value, np.random.Generator):
        return RNG
    if isinstance(getattr(value, "_made", None), str):
        made = json.loads(value._made)
        if "unknown" in made:
            raise ValueError(made["unknown"])
        return made
    name = getattr(value, "__name__", "")
    if name in ops.__all__ and getattr(ops, name) is value:
        return {"op": name}
    what = f"the function {name!r}" if inspect.isfunction(value) else f"a {type(value).__name__}"
    hint = "; pass its .value" if isinstance(value, enum.Enum) else ""
    raise ValueError(f"{what} is not a number, a text, a list, a tuple, a dict, an op of minicl or a Module{hint}")


def build(spec: Any, rng: Rng | None = None) -> Any:
    """The inverse of encode(), with initial weights drawn from rng. Raises ValueError if a class is not known, or its
    constructor refuses the arguments."""
    if isinstance(spec, list):
        return tuple(build(item, rng) for item in spec)
    if not isinstance(spec, dict):
        return spec
    if spec == RNG:
        return np.random.default_rng(0) if rng is None else rng
    if "list" in spec:
        return [build(item, rng) for item in spec["list"]]
    if "dict" in spec:
        return {key: build(item, rng) for key, item in spec["dict"].items()}
    if "op" in spec:
        return getattr(ops, spec["op"])
    try:
        cls = _find(spec["class"])
        arguments = {key: build(item, rng) for key, item in spec["arguments"].items()}
        if unknown := arguments.keys() - _signature(cls).parameters:
            raise TypeError(f"it has no argument {', '.join(unknown)}")
        call = inspect.BoundArguments(_signature(cls), {"self": None, **arguments})      # type: ignore[arg-type]
        return cls(*call.args[1:], **call.kwargs)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{spec.get('class')} cannot be built ({error})") from error


def fresh(module: Any, *, rng: Rng) -> Any:
    """A new, untrained Module of the same architecture, on the host: initial weights are drawn from rng.

    Raises ValueError if its constructor's arguments are not known, as with a function of your own, or if a setting or part
    was changed since.

    >>> from minicl import nn
    >>> layer = nn.Linear(3, 2, rng=np.random.default_rng(0))
    >>> bool((fresh(layer, rng=np.random.default_rng(1)).weight.data == layer.weight.data).any())
    False
    """
    try:
        return build(spec_of(module), rng)
    except ValueError as error:
        raise ValueError(f"fresh: {error}") from error


def spec_of(module: Any) -> dict[str, Any]:
    """The spec of a Module, tested: build(spec) has the same parts and settings.

    Raises ValueError, with the reason, if there is none: an argument that JSON cannot hold, a class inside a function,
    or a change of the module after it was made.

    >>> from minicl import nn
    >>> spec = spec_of(nn.Sequential(nn.BatchNorm(4), ops.relu))
    >>> build(spec)[0].weight.shape
    (4,)
    """
    spec = json.loads(module._made)
    if "unknown" in spec:
        raise ValueError(spec["unknown"])
    here, there = _outline(module), _outline(build(spec))
    if different := [name for name in {**here, **there} if here.get(name) != there.get(name)]:
        kinds = [(here.get(name, [int])[0], there.get(name, [int])[0]) for name in different]
        if any(issubclass(kind, Buffer) and other is Parameter for kind, other in kinds):
            raise ValueError("it is a frozen_copy; load the model, and load_state_dict() these into frozen_copy(model)")
        if different == [SHARED]:
            raise ValueError(f"{type(module).__name__}: its parts share parameters, or attributes refer to parts, as its "
                             "constructor's arguments do not say; do that in the __init__ of a class of your own")
        raise ValueError(f"{type(module).__name__}: {different[0] or 'it'} was changed after construction, or drawn at "
                         "random in __init__, so its arguments do not describe it; keep what is drawn in a Buffer")
    return spec | {key: of for key, of in (("texts", class_texts(module)), ("reads", class_reads(module))) if of}


def settings_of(module: Any) -> dict[str, str]:
    """{"steps.1.eps": "1e-05", ...}: the settings of a Module and of all below it, as text, also of one without a spec.

    Long texts end in their SHA-256. Weights and buffers are not settings.

    >>> from minicl import nn
    >>> settings_of(nn.Sequential(nn.Dropout(0.5, rng=np.random.default_rng(0))))["steps.0.p"]
    '0.5'
    """
    settings = {}
    for name, (kind, held, *_) in _outline(module).items():
        if isinstance(held, dict):
            settings[name or "class"] = f"{kind.__module__}.{kind.__qualname__}"
            settings |= {f"{name}.{key}".lstrip("."): as_text(value) for key, value in held.items()}
    return settings


def as_text(value: Any) -> str:
    """repr(value); of a long one the beginning and the SHA-256."""
    whole = repr(value)
    return whole if len(whole) < 80 else f"{whole[:40]}... {hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def class_texts(module: Any) -> dict[str, str]:
    """{name: SHA-256 of its text} of the classes of a Module and of all below it that are not minicl's.

    A class's text includes its methods that stand elsewhere, as those of a notebook's class, which is in no file. What runs
    may be older than the text, in a file that was edited after its import, and a class typed into a prompt has no text. So
    the methods' bytecode is hashed too, for this version of Python: "name in Python 3.12".
    """
    texts = {}
    for name, cls in own_classes(module.modules()):
        functions = [(key, function) for key, value in vars(cls).items() for function in functions_of(value)]
        text = _source(cls)
        text += "".join(source for _, function in functions if (source := _source(function)) not in text)
        bytecode = repr([(key, code_of(function.__code__)) for key, function in functions])
        if text:
            texts[name] = hashlib.sha256(text.encode()).hexdigest()[:32]
        texts[f"{name}{IN_PYTHON}"] = hashlib.sha256(bytecode.encode()).hexdigest()[:32]
    return texts


def changed_texts(before: Any, now: Mapping[str, str]) -> list[str]:
    """The names of the classes whose class_texts() are not those of a checkpoint, which may hold anything."""
    before = before if isinstance(before, dict) else {}
    changed = [name for name, text in now.items() if before.get(name, text if IN_PYTHON in name else None) != text]
    return list(dict.fromkeys(name.removesuffix(IN_PYTHON) for name in changed))


def _source(thing):
    """The text of a class or a function, or "" if it is in no file."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(thing)
    return ""


def functions_of(value):
    """The Python functions of a class's attribute: a method, also decorated, a property, a partial method, ..."""
    if inspect.isfunction(value):
        yield value
    if not isinstance(value, type) and (callable(value) or hasattr(value, "__get__")):
        held = {name: getattr(value, name, None) for name in ("fget", "fset", "func", "__func__", "__wrapped__")}
        for inner in {**getattr(value, "__dict__", {}), **held}.values():        # __dict__: a decorator may be an object
            if inner is not value and (inspect.isfunction(inner) or isinstance(inner, (*WRAPPERS, types.MethodType))):
                yield from functions_of(inner)


def code_of(code):
    return code.co_code, code.co_names, [_constant(x) for x in code.co_consts]


def _constant(x):
    """A constant of a function's code, in a form whose repr() is the same in another process."""
    if inspect.iscode(x):
        return code_of(x)
    if isinstance(x, frozenset):
        return sorted(map(repr, x))
    return [_constant(item) for item in x] if isinstance(x, tuple) else x


def class_reads(module: Any) -> dict[str, str]:
    """{name: value, as text}: numbers, texts, lists and small arrays of them that are attributes of these classes, or that
    their methods read from around them. A script may have set them."""
    found: dict[str, str] = {}
    for name, cls in own_classes(module.modules()):
        for key, value in vars(cls).items():
            for function in functions_of(value):
                found |= {f"{function.__module__}.{other}": repr(x) if _is_plain(x) else as_text(x)
                          for other, x in _read_by(function)[1].items()}
                given = defaults(function) if key != "__init__" else {}                 # whose arguments are in the spec
                found |= {f"{name}.{key}.{other}": _text(x) for other, x in given.items() if _is_constant(x)}
            if isinstance(value, functools.partialmethod):
                found |= {f"{name}.{key}.{other}": _text(x) for other, x in value.keywords.items() if _is_constant(x)}
            elif not key.startswith("__") and all(map(_is_plain, value if isinstance(value, (tuple, list)) else [value])):
                found[f"{name}.{key}"] = repr(value)
            elif not key.startswith("__") and _is_constant(value):
                found[f"{name}.{key}"] = _text(value)
    return dict(sorted(found.items()))


def defaults(function):
    """{name: default} of the arguments of a function."""
    named = function.__code__.co_varnames[:function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    return dict(zip(named[len(named) - len(defaults):], defaults)) | (function.__kwdefaults__ or {})


def own_classes(modules):
    """(name, class), in order, of the classes of Modules, also those that are mixed in, other than minicl's and Python's."""
    known = {"minicl", *sys.stdlib_module_names}
    own = {cls for part in modules for cls in type(part).__mro__ if cls.__module__.split(".")[0] not in known}
    return sorted((f"{cls.__module__}.{cls.__name__}", cls) for cls in own)


def _outline(module):
    """{name: class, and settings or shape} of every part, which names share a parameter, and what attributes refer to."""
    held = {name: settings_held(part) for name, part in module.named_parts() if hasattr(part, "named_parts")}
    outline = {name: (type(part), {key: comparable(value) for key, value in held[name].items()}
                      if name in held else part.data.shape) for name, part in module.named_parts()}
    names = {id(part): name for name, part in module.named_parts()}
    values = [x for each in held.values() for value in each.values() for x in (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value])]
    refers = [names.get(id(x.__self__ if isinstance(x, types.MethodType) else x)) for x in values]
    return {**outline, SHARED: (list, [name for name, _ in module.named_state()], refers)}


def settings_held(module):
    """The attributes of a Module, other than switches such as training, and what waits for MoCo's update()."""
    switches = next(vars(cls) for cls in type(module).__mro__ if "_made" in vars(cls))   # Module's
    left_out = {*switches, *getattr(type(module), "_waiting", ())} - {"forward"}
    return {key: value for key, value in vars(module).items() if key not in left_out}


def comparable(value: Any) -> Any:
    """An attribute in a form that == compares: JSON, an array with its content, otherwise its text."""
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    with contextlib.suppress(ValueError):
        return encode(value)
    if isinstance(value, dict):
        keys = ((k, key.shape) if isinstance(key, Tensor) else key for k, key in enumerate(value))
        return dict(zip(keys, map(comparable, value.values())))
    if isinstance(value, (set, frozenset)):
        return sorted(repr(comparable(item)) for item in value)
    if isinstance(value, (Parameter, Buffer)) or inspect.ismodule(value):    # with entries of their own; numpy or cupy
        return type(value)
    if isinstance(value, functools.partial):
        return [comparable(part) for part in (value.func, value.args, value.keywords)]
    if inspect.isfunction(value):
        return [value.__qualname__, *map(comparable, (value.__defaults__, value.__kwdefaults__)), *_read_by(value)]
    value = value.data if isinstance(value, Tensor) else value
    if is_array(value) and value.dtype.kind != "O":
        return value.dtype.str, value.shape, hashlib.sha256(to_host(value).tobytes()).hexdigest()[:32]
    text = re.sub(" at 0x[0-9a-f]+", "", repr(value))
    return [text, _contents(attributes_of(value))] if is_opaque(value) else text


def is_opaque(value: Any) -> bool:
    """Whether an object's text does not tell what it holds, as that of a class of a script without __repr__."""
    return type(value).__repr__ is object.__repr__ and not is_of_minicl(type(value)) and bool(attributes_of(value))


def _contents(value, depth=3):
    """The plain values and the hashes of arrays in an object, a few levels deep, in a form that == compares."""
    if _is_plain(value) or isinstance(value, itertools.count) or is_array(value) and value.dtype.kind != "O":
        return comparable(value)
    if depth and isinstance(value, dict):
        return {repr(key): _contents(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return [_contents(item, depth - 1) for item in (sorted(value, key=repr) if isinstance(value, Set) else value)]
    return _contents(attributes_of(value), depth - 1) if depth and is_opaque(value) else type(value).__name__


def _read_by(function):
    """The names and plain constants in a function's code, and plain values that it reads from around it."""
    around = {key: function.__globals__[key] for key in globals_of(function.__code__) if key in function.__globals__}
    with contextlib.suppress(ValueError):                    # a name that has no value yet
        around |= inspect.getclosurevars(function).nonlocals
    return _words(function.__code__), {key: x if _is_plain(x) else comparable(x) for key, x in sorted(around.items())
                                       if _is_constant(x)}


def _words(code):
    """The names and plain constants in a function's code and in that of the functions within it."""
    inner = [word for x in code.co_consts if inspect.iscode(x) for word in _words(x)]
    return (*code.co_names, *filter(_is_plain, code.co_consts), *inner)


@functools.lru_cache(1000)
def globals_of(code):
    """The global names that a function's code loads, also in functions within it; not those of attributes."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(globals_of(inner) for inner in code.co_consts if inspect.iscode(inner)))


def _is_constant(value):
    """Whether a value is a number, a text, a small array, or a tuple, list, dict or dataclass of these, such as a config."""
    if isinstance(value, types.SimpleNamespace) or hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        value = getattr(value, "__dict__", value)
    if isinstance(value, dict) and all(map(_is_plain, value)):
        value = [*value.values()]
    if isinstance(value, (tuple, list)):
        return len(value) <= 1000 and all(map(_is_constant, value))
    return _is_plain(value) or is_array(value) and value.size <= 10**5 and value.dtype.kind in "biuf"


def _text(constant):
    return repr(constant) if _is_plain(constant) else as_text(comparable(constant))


def _is_plain(value):
    return value is None or isinstance(value, (bool, int, float, str, np.number, np.bool_))


@functools.cache
def _signature(cls):
    return inspect.signature(cls.__init__)


@functools.cache
def _public_name(cls):
    """minicl.nn.ConvNet, not minicl.nn.encoders.ConvNet: files may move."""
    package = ".".join(cls.__module__.split(".")[:2])
    module = package if getattr(sys.modules.get(package), cls.__name__, None) is cls else cls.__module__
    if "." in cls.__qualname__:
        raise ValueError("its class is defined inside a function or a class")
    return f"{module}.{cls.__name__}"


def _find(name):
    """The class of Modules with this name."""
    module, _, attribute = name.rpartition(".")
    if module.split(".")[0] == "minicl":
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found = [getattr(sys.modules.get(module), attribute, None)]
    if found == [None] and module == "__main__":             # of a script, which may be an imported file now
        found = [vars(each).get(attribute) for each in list(sys.modules.values()) if isinstance(each, types.ModuleType)]
    classes = {cls for cls in found if isinstance(cls, type) and isinstance(getattr(cls, "_made", None), str)}
    if len(classes) != 1:
        raise ValueError(f"the class {name} is not known here; import the file that defines it first" if not classes else
                         f"several imported files have a class {attribute}; import only the script of the training")
    return classes.pop()
