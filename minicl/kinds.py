"""How each kind of value is compared that a captured step reads on the host; guards.py says when.

    numbers, text                          by value
    lists, dicts, sets, small arrays       entry by entry, in their order
    functions                              by their code and default arguments
    Tensors, Buffers                       by identity of their arrays
    other objects, arrays of the device    by identity and class

look_at(guards, name, value) has the guards compare the value and follow what it refers to. Attributes are compared too where
they are read: guards.py sees to that for every kind.
"""

import collections
import functools
import gc
import operator
import re
import sys
import types
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .autograd import Tensor
from .nn import Buffer
from .nn.parts import HostBuffer

MANY, LARGEST = 256, 4096                                    # entries of a list, bytes of an array, that are compared
TRUSTED = {__package__, "numpy", "cupy", "cupyx", "cupy_backends", "cuda", "fastrlock"}        # their code is not looked at
SAFE = {"abc", "builtins", "cmath", "collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math",
        "numbers", "operator", "re", "sre", "types", "typing", "weakref"}    # their compiled code only computes
BUILTINS = set("""abs all any ascii bin callable chr dir divmod format getattr hasattr hash hex id isinstance issubclass iter
    len max min next oct ord pow repr round sorted sum vars __build_class__""".split())
FILES = {"load", "loadtxt", "genfromtxt", "fromfile", "memmap"}              # of NumPy
NUMBERS = (int, bool, str, bytes, range, np.dtype)
PLAIN = (*NUMBERS, float, complex, np.generic, np.ufunc, type(None), type(...), type(NotImplemented), types.CodeType,
         types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType,
         types.ClassMethodDescriptorType, types.MemberDescriptorType, types.DynamicClassAttribute, types.GenericAlias,
         types.UnionType, operator.itemgetter, re.Pattern, type(np.concatenate),
         type(vars(collections.namedtuple("_", "x"))["x"]))
NAMERS = (operator.attrgetter, operator.methodcaller)        # read attributes that no instruction names
COMPARES = {"contains", "count", "countOf", "eq", "index", "indexOf", "ne", "remove", "__contains__", "__eq__", "__format__",
            "__ne__", "__repr__", "__str__"}                 # methods and functions in C that read all of a SimpleNamespace
FORMATS = {"format", "format_map"}                           # of text, whose fields name attributes: "{0.tau}"
DEFAULT = vars(collections.defaultdict)["default_factory"]
ENTRIES: dict[Any, Any] = {                                  # by kind: what a container holds, in the order of its loops
    collections.OrderedDict: lambda d: [*collections.OrderedDict.keys(d), *dict.keys(d), *dict.values(d)],
    collections.defaultdict: lambda d: [DEFAULT.__get__(d), *dict.keys(d), *dict.values(d)],
    dict: lambda d: [*dict.keys(d), *dict.values(d)],
    types.MappingProxyType: lambda d: [*d.keys(), *d.values()],
    **{kind: lambda x, kind=kind: [*kind.__iter__(x)] for kind in (list, tuple, set, frozenset, collections.deque)}}


def look_at(guards: Any, name: str, value: Any) -> bool:
    """Have the guards compare the value. False if it is of none of these kinds."""
    look = next((look for kinds, look in LOOKS if issubclass(type(value), kinds)), None)
    if look is not None:
        look(guards, name, value)
    return look is not None


# ---------------------------------------------------------------- data

def _array(guards, name, x):
    if x.nbytes > LARGEST or x.dtype.hasobject:
        guards.refuse(f"it reads {name}, an array on the host of {x.size} entries, which are not compared; make it an "
                      "argument")
    guards.read(name, lambda: [x.shape, x.dtype, x.tobytes()])


def _tensor(guards, name, x):
    guards.tensors.append(x)
    guards.read(f"the array or gradient of {name}, or requires_grad,", lambda: [x._data, x._grad, x._requires_grad])
    _require_device(guards, name, x._data)


def _buffer(guards, name, buffer):
    guards.read(f"{name}.data", lambda: [buffer.data])
    _require_device(guards, name, buffer.data)


def _require_device(guards, name, x):
    if isinstance(x, np.ndarray):
        guards.refuse(f"{name} is on the host; move it to the device")


def _container(guards, name, x):
    if len(x) > guards.most:
        guards.refuse(f"it reads {name}, which has {len(x)} entries; at most {MANY} are compared, so make what changes an "
                      "argument")
        return
    entries = next(entries for kind, entries in ENTRIES.items() if isinstance(x, kind))
    guards.follow(name, lambda: entries(x))


def _through(*names):
    """How to look at a value that is read through these of its attributes."""
    return lambda guards, name, value: guards.follow(name, lambda: [getattr(value, attribute) for attribute in names])


def _weak(guards, name, reference):
    guards.follow(name, lambda: [reference()])
    if reference() is not None and not isinstance(reference(), (type, types.FunctionType, types.ModuleType)):
        guards.refuse_object(name, reference)                # the guards would keep what it refers to alive


def _error(guards, name, error):
    if any(base.__basicsize__ > BaseException.__basicsize__ for base in type(error).__mro__ if is_library(base.__module__)):
        guards.refuse_object(name, error)                    # it has more than args, as StopIteration.value
    guards.follow(name, lambda: [error.args, error.__cause__])


def _cached(cache):
    """The keys and results of an lru_cache; one of no maximal size has them in a dict."""
    has_links = cache.cache_parameters()["maxsize"] is not None
    return sorted((x for x in gc.get_referents(cache) if not (has_links and type(x) is dict)), key=id)


# ---------------------------------------------------------------- code

def _class(guards, name, kind):
    is_hooked = guards.hook(kind)                            # for objects that the step makes
    if not (is_hooked or kind.__module__ == "builtins" or issubclass(kind, BaseException)):
        of_library(guards, name, kind.__module__, kind.__name__)
    if kind in NAMERS:
        guards.open(object)
    elif kind is str:
        guards.open(types.SimpleNamespace)
    guards.hook(type(kind))


def _function(guards, name, function):
    module = str(function.__globals__.get("__name__"))
    if root(module) in TRUSTED:                              # its own code is not looked at, what it wraps is
        of_library(guards, name, module, function.__name__)
        for value in (value for cell in function.__closure__ or () for value in contents(cell)):
            if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
                guards.reach(name, value)
        return
    guards.functions.setdefault(function.__code__, []).append(function)
    guards.follow(f"the code, name or a default argument of {function.__name__}", lambda: [
        function.__code__, function.__name__, *(function.__defaults__ or ()), *(function.__kwdefaults__ or ()),
        *(function.__kwdefaults__ or {}).values()])


def _builtin(guards, name, function):
    owner = getattr(function, "__self__", None)
    if function.__name__ in COMPARES:
        guards.open(types.SimpleNamespace)
    if owner is not None and not issubclass(type(owner), (types.ModuleType, type)):
        guards.reach(name, owner)                            # a method, as in add = losses.append
        return
    module = function.__module__ or (owner.__module__ if issubclass(type(owner), type) else "builtins")
    if not (issubclass(type(owner), type) and module == "builtins"):           # such as dict.fromkeys
        of_library(guards, name, module, function.__name__)
    if function in (getattr, hasattr, vars, dir):
        guards.open(object)
    elif function in (repr, ascii, format):
        guards.open(types.SimpleNamespace)


def _module(guards, name, module):
    if draws(module.__name__):
        of_library(guards, name, module.__name__, "")
    else:
        guards.hook_module(module)


def of_library(guards: Any, name: str, module: str, what: str) -> None:
    """Something of a module whose code is not looked at is called."""
    if module == "builtins" and what not in BUILTINS or module == "_io" or root(module) == "numpy" and what in FILES:
        guards.refuse(f"it calls {what}(), whose effect or result is not seen, or happens once only")
    elif draws(module):
        guards.refuse(f"it takes random numbers, or a generator, from {module}; make the generator outside, or pass the "
                      "numbers as arguments")
    elif root(module).removeprefix("_") not in TRUSTED | SAFE:
        guards.refuse(f"it calls {name}, of the module {module}, which may give something else in each step")


LOOKS: list[tuple[Any, Any]] = [
    (types.ModuleType, _module), (type, _class), (types.FunctionType, _function), (types.MethodType, _through(
        "__self__", "__func__")),
    ((staticmethod, classmethod), _through("__func__")), (property, _through("fget", "fset", "fdel")),
    (types.MethodWrapperType, lambda guards, name, method: guards.open(types.SimpleNamespace) or guards.reach(
        name, method.__self__)),
    (functools.partial, lambda guards, name, part: guards.follow(
        name, lambda: [part.func, *part.args, *part.keywords, *part.keywords.values()])),
    (type(functools.lru_cache(len)), lambda guards, name, cache: guards.follow(name, functools.partial(_cached, cache))),
    (weakref.ReferenceType, _weak),
    ((types.BuiltinFunctionType, type(np.random.Generator.random)), _builtin),
    (slice, _through("start", "stop", "step")), (NAMERS, lambda guards, *_: guards.open(object)),
    (types.SimpleNamespace, lambda *_: None),
    (Tensor, _tensor), (HostBuffer, lambda *_: None), (Buffer, _buffer), (BaseException, _error), (np.ndarray, _array),
    (np.void, lambda guards, name, x: guards.read(name, lambda: [x.dtype, x.tobytes()])),
    (np.random.Generator, lambda guards, name, rng: guards.host.watch(rng)), (tuple(ENTRIES), _container)]
LOOKED = tuple(kind for kinds, _ in LOOKS for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


# ---------------------------------------------------------------- questions

def root(module: Any) -> str:
    return str(module).partition(".")[0]


def draws(module: str) -> bool:
    """Whether a module draws random numbers."""
    return ".random" in module and root(module) in TRUSTED


def is_of_device(module: str) -> bool:
    return root(module) in TRUSTED - {__package__, "numpy"}


def is_library(module: Any) -> bool:
    """Whether it is a module of Python's library, or what a namedtuple's __new__, which that writes, has as its module."""
    return root(module) in sys.stdlib_module_names and module != "__main__" or str(module).startswith("namedtuple_")


def is_ours(kind: type) -> bool:
    """Whether a class is minicl's."""
    return root(kind.__module__) == __package__


def is_own(kind: type) -> bool:
    """Whether a class is neither of Python's library nor of those trusted."""
    if is_library(kind.__module__):                          # or says so, as one made by make_dataclass() on Python 3.11
        return kind.__module__ == "types" and vars(types).get(kind.__name__) is not kind and not kind.__flags__ & 1 << 8
    return root(kind.__module__) not in TRUSTED


def is_plain(kind: type) -> bool:
    """Whether such values cannot change, and have no attributes of the user's."""
    return kind is object or issubclass(kind, PLAIN) and not issubclass(kind, np.void) and not is_own(kind)


@functools.lru_cache(1000)
def is_of_python(kind: type) -> bool:
    """Whether a class was made by a class statement, so that it can be changed, and no state of its objects is hidden."""
    heap, immutable = 1 << 9, 1 << 8
    compiled = [base for base in kind.__mro__ if not base.__flags__ & heap or base.__flags__ & immutable
                or base.__module__ in sys.builtin_module_names
                or str(getattr(sys.modules.get(base.__module__), "__file__", "")).endswith((".so", ".pyd"))]
    return kind not in compiled and all(base.__basicsize__ == object.__basicsize__ or issubclass(base, (*PLAIN, *LOOKED))
                                        for base in compiled)


@functools.lru_cache(1000)
def own_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if is_own(base)]


def attributes_of(owner: Any) -> dict[str, Any]:
    try:
        return object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}


def contents(cell: Any) -> Sequence[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:                                       # not assigned yet
        return []


def equal(x: Any, y: Any) -> bool:
    """Whether two values are the same, or equal and of one type, bit for bit."""
    if x is y:
        return True
    if type(x) is not type(y):
        return False
    if type(x) in (float, complex) or isinstance(x, np.generic):
        return np.asarray(x).tobytes() == np.asarray(y).tobytes()
    return (type(x) in NUMBERS or isinstance(x, np.dtype)) and x == y or type(x) is tuple and len(x) == len(y) \
        and all(map(equal, x, y))
