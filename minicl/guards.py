"""What a step has read on the host besides its arguments, and whether that is still the same.

A launch repeats the path that Python took through the step's code, with the numbers that it found on the way. Both follow
from the arguments and from what the step read, so no more than that has to be compared before a launch. watch.py sees what
it reads; this file says what of it is compared:

    numbers, text                          by value
    objects, arrays of the device          by identity, and each attribute that was read
    lists, dicts, sets, small arrays       entry by entry
    Tensors                                by identity of the arrays of values and of gradients

What can be neither watched nor compared is a reason not to capture the step: an iterator, a clock, a large array.
"""

import collections
import functools
import gc
import itertools
import operator
import re
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .autograd import Tensor
from .backend import Step
from .nn import Buffer
from .nn.parts import HostBuffer

MANY, LARGEST = 256, 4096                                    # entries of a list, bytes of an array, that are compared
TRUSTED = {__package__, "numpy", "cupy", "cupyx", "cupy_backends", "cuda", "fastrlock"}        # their code is not looked at
SAFE = {"abc", "builtins", "cmath", "collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math",
        "numbers", "operator", "re", "sre", "types", "typing", "weakref"}    # their compiled code only computes
BUILTINS = set("""abs all any ascii bin callable chr dir divmod format getattr hasattr hash hex id isinstance issubclass iter
    len max min next oct ord pow repr round sorted sum vars __build_class__""".split())
FILES = {"load", "loadtxt", "genfromtxt", "fromfile", "memmap"}              # of NumPy
WHOLE = {"__dict__", "__getstate__", "__reduce__", "__reduce_ex__"}          # attributes by which all others are read
HOOKS = {"__getattribute__", "__setattr__", "__delattr__"}
NUMBERS = (int, bool, str, bytes, range, np.dtype)
PLAIN = (*NUMBERS, float, complex, slice, np.generic, np.ufunc, type(None), type(...), type(NotImplemented), types.CodeType,
         types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType,
         types.ClassMethodDescriptorType, types.MemberDescriptorType, types.DynamicClassAttribute, types.GenericAlias,
         types.UnionType, operator.itemgetter, re.Pattern, type(np.concatenate),
         type(vars(collections.namedtuple("_", "x"))["x"]))
HOLDERS = (type, types.FunctionType, types.SimpleNamespace)  # have attributes, and cannot be watched
NAMERS = (operator.attrgetter, operator.methodcaller)        # read attributes that no instruction names
CONTAINERS = (list, tuple, set, frozenset, collections.deque)
MISSING = object()
Read = Callable[[], Sequence[Any]]


class Guards:
    """reason: why the step cannot be captured, or None. tensors: those that it reached. path: see watch.py."""

    def __init__(self, host: Step):
        self.host = host
        self.reason: str | None = None
        self.path = 0
        self.tensors: list[Tensor] = []
        self.functions: dict[Any, list[types.FunctionType]] = {}             # by code
        self._places: list[tuple[int, Any, Read, Sequence[Any]]] = []        # when, name(s), how to read it, what it was
        self._reached: dict[int, tuple[Any, str]] = {}                       # by id: what was there before, and its name
        self._attributes: dict[int, dict[str, tuple[int, Any]]] = {}         # by id: the attributes that were read, and when
        self._classes: dict[type, dict[str, tuple[int, list]]] = {}          # the same, in each base
        self._holders: list[tuple[Any, str]] = []                            # what has attributes that cannot be watched
        self._open: tuple[type, ...] = ()                                    # kinds of holders all of which may be read
        self._most = MANY
        self._by_time: dict[int, list] = {}
        self._computed: set[tuple[int, str]] = set()                         # attributes that functions of the host have set

    def changed(self, when: int | None = None) -> str | None:
        """The name of the first thing that was read and is no longer the same, or None. when: only of what was read after so
        many functions of the host, which may have changed it."""
        for _, name, read, before in self._places if when is None else self._by_time.get(when, ()):
            now = read()
            if len(now) != len(before):
                return name if isinstance(name, str) else name[0]
            if not all(map(operator.is_, now, before)):
                for k, (x, y) in enumerate(zip(now, before)):
                    if not _equal(x, y):
                        return name if isinstance(name, str) else name[k]
        return None

    def refuse(self, reason: str | None) -> None:
        self.reason = self.reason or reason

    def read(self, name: Any, read: Read) -> Sequence[Any]:
        """What read() gives, to be compared with what it will give."""
        values = read()
        self._places.append((len(self.host.functions), name, read, values))
        return values

    def follow(self, name: str, read: Read) -> None:
        for value in self.read(name, read):
            self.reach(name, value)

    def is_new(self, owner: Any) -> bool:
        """Whether the step has made the object."""
        return id(owner) not in self._reached

    # ------------------------------------------------------------ attributes

    def attribute(self, owner: Any, name: str) -> None:
        """The attribute is about to be read: of the object, if it was there before the step, and of its class."""
        if (id(owner), name) in self._computed or issubclass(type(owner), HostBuffer) and name == "_value":
            label = self._reached.get(id(owner), (None, type(owner).__name__))[1]
            self.refuse(f"it reads {label}.{name}, which changes on the host in each step")
        if issubclass(type(owner), type) and name in WHOLE:
            self._read_all(owner, "")
        entry = self.class_entry(owner if issubclass(type(owner), type) else type(owner), name)
        if issubclass(type(owner), type) or self.is_new(owner) or name in self._attributes.setdefault(id(owner), {}):
            return
        label, entries, read = self._reached[id(owner)][1], attributes_of(owner), self._attributes[id(owner)]
        value = _slot(entry, owner) if isinstance(entry, types.MemberDescriptorType) else entries.get(name, MISSING)
        if not (issubclass(type(owner), types.ModuleType) and root(owner.__name__) in TRUSTED):
            read[name] = len(self.host.functions), value
        if value is not MISSING:
            is_ours = any(root(base.__module__) == __package__ for base in type(owner).__mro__)
            self._most = sys.maxsize if is_ours else MANY
            self.reach(f"{label}.{name}", value)
            self._most = MANY
        if name in WHOLE or self.reads_by_itself(type(owner)):
            self.reach(f"{label}.__dict__", entries)

    def class_entry(self, kind: type, name: str) -> Any:
        """What a class has under this name, which is compared in those of its bases that are not a library's."""
        names = self._classes.setdefault(kind, {})
        if name not in names and name not in HOOKS:
            names[name] = len(self.host.functions), [vars(base).get(name, MISSING) for base in _own_bases(kind)]
            for value in names[name][1]:
                self.reach(f"{kind.__name__}.{name}", value)
        base = next((base for base in kind.__mro__ if name in vars(base)), None)
        if base is not None and is_library(base.__module__) and isinstance(vars(base)[name], types.FunctionType):
            self.reach(name, vars(base)[name])
        return None if base is None else vars(base)[name]

    def named(self, name: str) -> None:
        """An instruction names an attribute, perhaps of one of the holders."""
        for holder, _ in self._holders:
            self.attribute(holder, name)

    def open(self, *kinds: type, later: bool = True) -> None:
        """Attributes of such holders may be read that no instruction names."""
        self._open += kinds * later
        for holder, label in list(self._holders):
            if isinstance(holder, kinds):
                self._read_all(holder, label)

    def hold(self, name: str, holder: Any) -> None:
        self._holders.append((holder, name))
        if isinstance(holder, self._open):
            self._read_all(holder, name)

    def _read_all(self, holder, label):
        if isinstance(holder, type):
            for name in {name for base in _own_bases(holder) for name in vars(base) if not name.startswith("__")}:
                self.class_entry(holder, name)
        else:
            self.reach(f"{label}.__dict__", vars(holder))

    def settle(self) -> None:
        """After the run: compare the attributes from now on."""
        for key, found in self._attributes.items():
            owner, label = self._reached[key]
            slots = {name: slot for name in found for base in type(owner).__mro__
                     if isinstance(slot := vars(base).get(name), types.MemberDescriptorType)}
            for when in {when for when, _ in found.values()}:
                names = [name for name in found if found[name][0] == when and name not in WHOLE]
                of_dict, of_slots = [name for name in names if name not in slots], [name for name in names if name in slots]
                self._places.append((when, [f"the class of {label}", *(f"{label}.{name}" for name in of_dict + of_slots)],
                                     functools.partial(_values, owner, of_dict, [slots[name] for name in of_slots]),
                                     [type(owner), *(found[name][1] for name in of_dict + of_slots)]))
        for kind, entries in self._classes.items():
            for when in {when for when, _ in entries.values()} if _own_bases(kind) else ():
                names = [name for name in entries if entries[name][0] == when]
                places = [(vars(base), name) for name in names for base in _own_bases(kind)]
                self._places.append((when, [f"{kind.__name__}.{name}" for _, name in places],
                                     functools.partial(_entries, places), [x for name in names for x in entries[name][1]]))
        for place in self._places:
            self._by_time.setdefault(place[0], []).append(place)
        for no_longer_needed in (self._reached, self._attributes, self._classes, self._holders, self.functions):
            no_longer_needed.clear()                         # they keep objects alive

    def hook(self, kind: type) -> bool:
        """Watch the attributes of a class's objects, if that is possible."""
        raise NotImplementedError

    def hook_module(self, module: types.ModuleType) -> None:
        raise NotImplementedError

    def reads_by_itself(self, kind: type) -> bool:
        """Whether a class has a __getattribute__ of its own, which may read what it does not name."""
        raise NotImplementedError

    # ------------------------------------------------------------ values

    def reach(self, name: str, value: Any) -> None:
        """A value has come out of a variable, an attribute or a list; the value itself is compared there."""
        kind = type(value)
        if kind is object or issubclass(kind, PLAIN) and not _is_own(kind) or not self.is_new(value) or self.reason:
            return
        self._reached[id(value)] = value, name
        look = next((look for kinds, look in LOOKS if issubclass(kind, kinds)), None)
        if look is not None:
            look(self, name, value)
        elif root(kind.__module__) not in TRUSTED - {__package__, "numpy"} or _draws(kind.__module__):
            self._object(name, value)

    def _object(self, name, value):
        kind = type(value)
        if not self.hook(kind):
            self.refuse(f"it reads {name}, a {kind.__module__}.{kind.__qualname__}, whose state cannot be compared; use it "
                        "outside, and make what it gives an argument")

    def _array(self, name, x):
        if x.nbytes > LARGEST or x.dtype.hasobject:
            self.refuse(f"it reads {name}, an array on the host of {x.size} entries, which are not compared; make it an "
                        "argument")
        self.read(name, lambda: [x.shape, x.dtype, x.tobytes()])
        self.hook(type(x))

    def _tensor(self, name, x):
        self.tensors.append(x)
        self.read(f"the array or gradient of {name}, or requires_grad,", lambda: [x._data, x._grad, x._requires_grad])
        self._require_device(name, x._data)

    def _buffer(self, name, buffer):
        self.read(f"{name}.data", lambda: [buffer.data])
        self._require_device(name, buffer.data)

    def _require_device(self, name, x):
        if isinstance(x, np.ndarray):
            self.refuse(f"{name} is on the host; move it to the device")

    def _container(self, name, entries):
        if len(entries) > self._most:
            self.refuse(f"it reads {name}, which has {len(entries)} entries; at most {MANY} are compared, so make what "
                        "changes an argument")
            return
        kind = next(kind for kind in (dict, types.MappingProxyType, *CONTAINERS) if isinstance(entries, kind))
        self.follow(name, (lambda: list(kind.__iter__(entries))) if kind in CONTAINERS else
                    lambda: [*kind.keys(entries), *kind.values(entries)])
        self.hook(type(entries))

    def _class(self, name, kind):
        is_hooked = self.hook(kind)                          # for objects that the step makes
        if not (is_hooked or kind.__module__ == "builtins" or issubclass(kind, BaseException)):
            self._of_library(name, kind.__module__, kind.__name__)
        if kind in NAMERS:
            self.open(*HOLDERS)
        elif kind is str:
            self.open(types.SimpleNamespace)
        self.hook(type(kind))

    def _function(self, name, function):
        module = str(function.__globals__.get("__name__"))
        if root(module) in TRUSTED:                          # its own code is not looked at, what it wraps is
            self._of_library(name, module, function.__name__)
            for value in (value for cell in function.__closure__ or () for value in contents(cell)):
                if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
                    self.reach(name, value)
            return
        self.functions.setdefault(function.__code__, []).append(function)
        self.follow(f"a default argument of {function.__name__}",
                    lambda: [function.__code__, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        if vars(function):
            self.hold(name, function)

    def _builtin(self, name, function):
        owner = getattr(function, "__self__", None)
        if owner is not None and not issubclass(type(owner), (types.ModuleType, type)):
            self.reach(name, owner)                          # a method, as in add = losses.append
            return
        module = function.__module__ or (owner.__module__ if issubclass(type(owner), type) else "builtins")
        if not (issubclass(type(owner), type) and module == "builtins"):           # such as dict.fromkeys
            self._of_library(name, module, function.__name__)
        if function in (getattr, hasattr, vars, dir):
            self.open(*HOLDERS)
        elif function in (repr, ascii, format):
            self.open(types.SimpleNamespace)

    def _of_library(self, name, module, what):
        """Something of a module whose code is not looked at is called."""
        if module == "builtins" and what not in BUILTINS or module == "_io" or root(module) == "numpy" and what in FILES:
            self.refuse(f"it calls {what}(), whose effect or result is not seen, or happens once only")
        elif _draws(module):
            self.refuse(f"it takes random numbers, or a generator, from {module}; make the generator outside, or pass the "
                        "numbers as arguments")
        elif root(module).removeprefix("_") not in TRUSTED | SAFE:
            self.refuse(f"it calls {name}, of the module {module}, which may give something else in each step")

    def _method(self, name, method):
        self.reach(name, method.__self__)
        self.reach(name, method.__func__)

    def _module(self, name, module):
        if _draws(module.__name__):
            self._of_library(name, module.__name__, "")
        else:
            self.hook_module(module)


def _through(*names):
    """How to look at a value that is read through these of its attributes."""
    return lambda self, name, value: self.follow(name, lambda: [getattr(value, attribute) for attribute in names])


LOOKS: list[tuple[Any, Callable]] = [
    (types.ModuleType, Guards._module), (type, Guards._class), (types.FunctionType, Guards._function),
    (types.MethodType, Guards._method), ((staticmethod, classmethod), _through("__func__")),
    (types.MethodWrapperType, _through("__self__")), (property, _through("fget", "fset", "fdel")),
    (functools.partial, lambda self, name, part: self.follow(
        name, lambda: [part.func, *part.args, *part.keywords, *part.keywords.values()])),
    (type(functools.lru_cache(len)), lambda self, name, cache: self.follow(name, functools.partial(_cached, cache))),
    (weakref.ReferenceType, lambda self, name, reference: self.follow(name, lambda: [reference()])),
    ((types.BuiltinFunctionType, type(np.random.Generator.random)), Guards._builtin),
    (NAMERS, lambda self, *_: self.open(*HOLDERS)),
    (types.SimpleNamespace, Guards.hold), (Tensor, Guards._tensor), (HostBuffer, Guards._object), (Buffer, Guards._buffer),
    (np.ndarray, Guards._array), (np.random.Generator, lambda self, name, rng: self.host.watch(rng)),
    ((dict, types.MappingProxyType, *CONTAINERS), Guards._container)]


def _cached(cache):
    """The keys and results of an lru_cache; one of no maximal size has them in a dict."""
    has_links = cache.cache_parameters()["maxsize"] is not None
    return sorted((x for x in gc.get_referents(cache) if not (has_links and type(x) is dict)), key=id)


def root(module: Any) -> str:
    return str(module).partition(".")[0]


def _draws(module):
    return ".random" in module and root(module) in TRUSTED


def is_library(module: Any) -> bool:
    return root(module) in sys.stdlib_module_names and module != "__main__"


def _is_own(kind):
    """Whether a class is neither of Python's library nor of those trusted."""
    return not is_library(kind.__module__) and root(kind.__module__) not in TRUSTED


@functools.lru_cache(1000)
def _own_bases(kind):
    return [base for base in kind.__mro__ if _is_own(base)]


def attributes_of(owner: Any) -> dict[str, Any]:
    try:
        return object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}


def _slot(slot, owner):
    try:
        return slot.__get__(owner)
    except AttributeError:                                   # not assigned yet
        return MISSING


def _values(owner, names, slots):
    return [type(owner), *map(attributes_of(owner).get, names, itertools.repeat(MISSING)),
            *(_slot(slot, owner) for slot in slots)]


def _entries(places):
    return [names.get(name, MISSING) for names, name in places]


def contents(cell: Any) -> Sequence[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:                                       # not assigned yet
        return []


def _equal(x, y):
    """Whether two values are the same, or equal and of one type, bit for bit."""
    if x is y:
        return True
    if type(x) is not type(y):
        return False
    if type(x) in (float, complex) or isinstance(x, np.generic):
        return np.asarray(x).tobytes() == np.asarray(y).tobytes()
    return (type(x) in NUMBERS or isinstance(x, np.dtype)) and x == y or type(x) is tuple and len(x) == len(y) \
        and all(map(_equal, x, y))
