"""What a step can read on the host besides its arguments, and whether that is still the same.

    around = Surroundings(step, modules)
    around.reason                             # why the step cannot be captured, or None
    step()
    around.changed()                          # the name of the first thing that is not what it was, or None

All code that the step can call is looked at, in whatever file, except that of minicl, NumPy, CuPy and the modules in SAFE.
Its variables, the attributes that it names and the entries of lists and dicts are compared: numbers, text and small arrays
by value, all else by identity. Whatever can be read and not compared is a reason, and so is code that changes something
outside, or may read what it does not name. What the functions of minicl, NumPy and CuPy return is taken to follow from their
arguments and from what is compared.
"""

import argparse
import dis
import functools
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .autograd import Tensor
from .backend import is_array
from .nn import Buffer, Module
from .nn.parts import HostBuffer, Stream

MANY, LARGEST = 256, 4096                                    # entries of a list, bytes of an array, that are compared
TRUSTED = {__package__, "numpy", "cupy", "cupyx", "cupy_backends"}
SAFE = {"abc", "builtins", "cmath", "collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math",
        "numbers", "operator", "types", "typing", "warnings"}
BUILTINS = set("""abs all any bool bytes callable chr complex dict divmod enumerate filter float frozenset int isinstance
    issubclass iter len list map max min next object ord pow range repr reversed round set slice sorted staticmethod str sum
    super tuple type zip __build_class__ NotImplemented Ellipsis""".split())
DUNDERS = {f"__{name}__" for name in "init name class call len enter exit getitem qualname post_init new".split()}
FILES = {"load", "loadtxt", "genfromtxt", "fromfile", "memmap"}              # of NumPy
SEEDED = {"bit_generator", "spawn", "jumped"}                # attributes that make one random generator from another
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
NOT_CALLED = {f"__{name}__" for name in """repr str format del dir reduce reduce_ex getstate setstate deepcopy copy sizeof
    init_subclass class_getitem subclasshook set_name setattr delattr getnewargs""".split()}
NUMBERS = (int, bool, str, bytes, range, np.dtype)
PLAIN = (*NUMBERS, float, complex, slice, np.generic, np.ufunc, type(None), type(...), type(NotImplemented), types.CodeType,
         types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
         types.DynamicClassAttribute, types.GenericAlias, types.UnionType, type(np.concatenate))
Read = Callable[[], Sequence[Any]]


class Surroundings:
    """See above. modules: also these objects, with all attributes. tensors, generators: those that were found."""

    def __init__(self, function: Callable, modules: Iterable[Any] = ()):
        self.names: set[str] = set()                         # all attributes that the code names
        self.reason: str | None = None
        modules, known = list(modules), -1
        self.called = {id(module) for module in modules}
        while known < len(self.names) and self.reason is None:               # until no further code is found
            known = len(self.names)
            self.places: list[tuple[str, Read, Sequence[Any]]] = []          # name, how to read it, what was read
            self.tensors: list[Tensor] = []
            self.generators: list[np.random.Generator] = []
            self.seen: dict[int, Any] = {}
            self.classes: set[tuple[type, bool]] = set()
            self._value("", function)
            for module in modules:
                self._value(type(module).__name__, module)

    def changed(self) -> str | None:
        for name, read, before in self.places:
            now = read()
            if len(now) != len(before) or not all(map(operator.is_, now, before)) and not all(map(_equal, now, before)):
                return name
        return None

    def _read(self, name: str, read: Read) -> Sequence[Any]:
        values = read()
        self.places.append((name, read, values))
        return values

    def _follow(self, name, read):
        for value in self._read(name, read):
            self._value(name, value)

    def _refuse(self, reason):
        self.reason = self.reason or reason

    # ------------------------------------------------------------ values

    def _value(self, name, value):
        """Whatever can be read from a value; the value itself is compared where it was read."""
        kind = type(value)
        if isinstance(value, PLAIN) and not _is_own(kind) or self.reason or id(value) in self.seen:
            return
        self.seen[id(value)] = value
        look = next((look for kinds, look in LOOKS if isinstance(value, kinds)), None)
        if look is not None:
            look(self, name, value)
        elif _is_compiled(value):
            self._builtin(name, value)
        elif not (is_array(value) or _root(kind.__module__) == "typing" or _is_of_cupy(kind)):
            self._object(name, value)

    def _array(self, name, x):
        if x.nbytes > LARGEST or x.dtype.hasobject:
            self._refuse(f"it can read {name}, an array on the host of {x.size} entries, which are not compared; "
                         "make it an argument")
        self._read(name, lambda: [x.shape, x.dtype, x.tobytes()])

    def _tensor(self, name, x):
        self.tensors.append(x)
        self._read(f"the array or gradient of {name}, or requires_grad,", lambda: [x._data, x._grad, x._requires_grad])
        self._on_device(name, x._data)

    def _buffer(self, name, buffer):
        self._read(f"{name}.data", lambda: [buffer.data])
        if not isinstance(buffer, HostBuffer):
            self._on_device(name, buffer.data)

    def _on_device(self, name, x):
        if isinstance(x, np.ndarray):
            self._refuse(f"{name} is on the host; move it to the device")

    def _entries(self, name, entries):
        if len(entries) > MANY:
            self._refuse(f"it can read {name}, which has {len(entries)} entries; at most {MANY} are compared, so make what "
                         "changes an argument")
            return
        self._follow(name, (lambda: [*dict.keys(entries), *dict.values(entries)]) if isinstance(entries, dict) else
                     lambda: list(entries))
        if _is_own(type(entries)):
            self._object(name, entries)

    def _object(self, name, value):
        """Attributes of an object: of a Module, or of what minicl calls, all; of another, those that the code names."""
        kind = type(value)
        attributes = getattr(value, "__dict__", None)
        is_plain = isinstance(value, (argparse.Namespace, types.SimpleNamespace))
        is_ours = any(_root(base.__module__) == __package__ for base in kind.__mro__)
        if not (is_plain or is_ours or _is_own(kind)) or any(not _is_known(base) for base in kind.__mro__):
            self._refuse(f"it can read {name}, a {kind.__module__}.{kind.__qualname__}, whose state cannot be compared; use "
                         "it outside, and make what it gives an argument")
        elif "__wrapped__" in (attributes or ()):            # another captured step
            self._value(name, attributes["__wrapped__"])
        elif attributes is not None and (isinstance(value, Module) or id(value) in self.called):
            self._read(f"an attribute of the {kind.__name__}", lambda: list(attributes.values()))
            for key, part in list(attributes.items()):
                self._part(kind.__name__, key, part, _is_own(kind))
        elif attributes is not None:
            self._read(f"what attributes {name} has", lambda: [type(value), *attributes])
            for key, part in list(attributes.items()):
                if key in self.names or is_ours and _is_of_arrays(part):
                    self._read(f"{name}.{key}", functools.partial(_entry, attributes, key))
                    self._part(name, key, part)
        for key in {key for base in kind.__mro__ for key, part in vars(base).items() if is_ours and type(part) is property
                    and _root(base.__module__) == __package__} & self.names:
            if isinstance(getattr(value, key, None), NUMBERS):               # such as queue.enqueued
                self._read(f"{name}.{key}", lambda key=key: [getattr(value, key)])
        for key in {key for base in kind.__mro__ for key in _slots(base)} & self.names:
            self._follow(f"{name}.{key}", lambda key=key: [getattr(value, key)] if hasattr(value, key) else [])
        if not is_plain:
            self._class(kind.__name__, kind, is_called=False)

    def _part(self, owner, key, value, is_own=True):
        if isinstance(value, HostBuffer) and key in self.names and (is_own or isinstance(value, Stream)):
            self._refuse(f"it reads {key}, a {type(value).__name__}, which changes on the host")
        self._value(f"{owner}.{key}", value)

    # ------------------------------------------------------------ code

    def _class(self, name, kind, is_called=True):
        """What the code names of a class, what is called without being named, and what minicl calls."""
        if (kind, is_called) in self.classes:
            return
        self.classes.add((kind, is_called))
        bases = [base for base in kind.__mro__ if _is_own(base)]
        ours = [base for base in kind.__mro__ if _root(base.__module__) == __package__]
        if not bases and not ours and _root(kind.__module__) not in TRUSTED | SAFE:
            self._refuse(f"it can call {name}, of the module {kind.__module__}, which may give something else in each step")
        for base in bases:
            entries = vars(base)
            self._read(f"what attributes {base.__name__} has", lambda entries=entries: list(entries))
            for key, value in list(entries.items()):
                if key.startswith("__"):                     # such as __call__
                    is_used = isinstance(value, types.FunctionType) and key not in NOT_CALLED \
                        and (is_called or key not in CONSTRUCTORS)
                else:                                        # such as forward
                    is_used = key in self.names or any(hasattr(parent, key) for parent in ours)
                if is_used:
                    self._follow(f"{base.__name__}.{key}", functools.partial(_entry, entries, key))

    def _method(self, name, method):
        self._value("self" if name == "" else name, method.__self__)
        self._value(name, method.__func__)

    def _builtin(self, name, function):
        owner = getattr(function, "__self__", None)
        if owner is None or isinstance(owner, (types.ModuleType, type)):
            module = function.__module__ or (owner.__module__ if isinstance(owner, type) else "builtins")
            if _root(module).removeprefix("_") not in TRUSTED | SAFE:
                self._refuse(f"it can call {name}, of the module {module}, which may give something else in each step")
        else:
            self._value(name, owner)                         # a method, as in add = losses.append

    def _partial(self, name, part):
        self._follow(name, lambda: [part.func, *part.args, *part.keywords, *part.keywords.values()])

    def _property(self, name, value):
        for function in (value.fget, value.fset):
            self._value(name, function)

    def _wrapper(self, name, value):
        self._value(name, value.__func__)

    def _module(self, name, module):
        """A module as a value, not followed by an attribute."""
        if _root(module.__name__) not in TRUSTED | SAFE or ".random" in module.__name__:
            self._refuse(f"it can read the module {module.__name__}; import what it takes from there by name")

    def _function(self, name, function):
        cells = list(zip(function.__code__.co_freevars, function.__closure__ or ()))
        root = _root(function.__globals__.get("__name__", ""))
        self._value(name, vars(function).get("__wrapped__"))
        if root in TRUSTED | SAFE:                           # its own code is not looked at; what it wraps is
            for _, cell in cells:
                for value in _cell(cell):
                    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
                        self._value(name, value)
            return
        if root in sys.stdlib_module_names and root != "__main__":
            self._refuse(f"it can call {name}, of the module {root}, which may give something else in each step")
            return
        names, variables, problems = _scan(function.__code__)
        self.names |= names
        for line, problem in problems:
            self._refuse(f"{function.__qualname__.rpartition('<locals>.')[2]}(), line {line}: it {problem}")
        self._follow(f"a default argument of {function.__name__}",
                     lambda: [function.__code__, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        for key in self.names & vars(function).keys():
            self._follow(f"{function.__name__}.{key}", functools.partial(_entry, vars(function), key))
        for name, cell in cells:
            if name == "__class__":
                self._class(name, cell.cell_contents, is_called=False)
            else:
                self._follow(name, functools.partial(_cell, cell))
        for name, attributes in variables:
            self._variable(function, name, attributes)

    def _variable(self, function, name, attributes):
        """A global variable; of a module, the attribute that the code takes from it."""
        holder, values = function.__globals__, []
        if name in holder:
            values = self._read(name, functools.partial(_entry, holder, name))
        elif name not in BUILTINS and not _is_error(name):
            self._refuse(f"{function.__name__}() calls {name}(), which may read what it does not name, or happens once only")
        for value in values:
            for attribute in attributes:
                if not isinstance(value, types.ModuleType):
                    break
                if value.__name__ == "numpy" and attribute in FILES:
                    self._refuse(f"{function.__name__}() reads a file with {attribute}()")
                self._check_random(function, value, attribute)
                module, value = value, getattr(value, attribute, None)
                name = f"{name}.{attribute}"
                if _root(module.__name__) not in TRUSTED | SAFE:
                    self._read(name, lambda module=module, key=attribute: [getattr(module, key, None)])
            self._value(name, value)

    def _check_random(self, function, module, attribute):
        if ".random" in f"{module.__name__}.{attribute}" and _root(module.__name__) in TRUSTED:
            self._refuse(f"{function.__name__}() takes random numbers, or a generator, from {module.__name__}; make the "
                         "generator outside, or pass the numbers as arguments")


LOOKS: list[tuple[Any, Callable]] = [
    (types.ModuleType, Surroundings._module), (type, Surroundings._class), (types.FunctionType, Surroundings._function),
    (types.MethodType, Surroundings._method), ((staticmethod, classmethod), Surroundings._wrapper),
    (property, Surroundings._property), (functools.partial, Surroundings._partial),
    (functools.cached_property, lambda self, name, value: self._value(name, value.func)),
    (Tensor, Surroundings._tensor), (Buffer, Surroundings._buffer), (np.ndarray, Surroundings._array),
    (np.random.Generator, lambda self, name, rng: self.generators.append(rng)),
    ((list, tuple, dict, set, frozenset, deque), Surroundings._entries)]


@functools.lru_cache(1000)
def _scan(code):
    """Of a function's code and those within it: the attributes that it names; its global variables, each with the
    attributes that follow it, as in np.random.rand; and what it does that a launch would not do again, with its line."""
    names, variables, problems = set(), set(), []
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PUSH_NULL")]
    lines, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for k, step in enumerate(steps):
        line, name = lines.get(step.offset) or line, step.argval
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            end = k + 1
            while end < len(steps) and steps[end].opname in ("LOAD_ATTR", "LOAD_METHOD"):
                end += 1
            variables.add((name, tuple(attribute.argval for attribute in steps[k + 1:end])))
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            names.add(name)
            after = steps[k + 1].opname if k + 1 < len(steps) else ""
            if name in SEEDED or name == "random" and after.startswith(("LOAD_ATTR", "LOAD_METHOD", "STORE")):
                problems.append((line, f"takes random numbers, or a generator, from .{name}; make the generator outside, or "
                                       "pass the numbers as arguments"))
            elif name.startswith("__") and name.endswith("__") and name not in DUNDERS:
                problems.append((line, f"reads .{name}, by which it may read what it does not name"))
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR") and code.co_name not in ("__init__", "__post_init__"):
            owner = steps[k - 1].argval if steps[k - 1].opname.startswith("LOAD") else ""
            problems.append((line, f"sets {owner if isinstance(owner, str) else ''}.{name}, which would happen once only"))
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or step.opname == "STORE_DEREF" and name in code.co_freevars:
            problems.append((line, f"sets the variable {name}, which would happen once only"))
        elif step.opname == "IMPORT_NAME":
            problems.append((line, f"imports {name}; import it at the top of the file"))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more, those, others = _scan(inner)
            names, variables, problems = names | more, variables | those, [*problems, *others]
    return names, variables, problems


def _root(name):
    return str(name).partition(".")[0]


def _is_compiled(value):
    return isinstance(value, types.BuiltinFunctionType) or _root(type(value).__module__).startswith("_cython")


def _is_of_cupy(kind):
    return _root(kind.__module__) in TRUSTED - {__package__, "numpy"} and ".random" not in kind.__module__


def _is_own(kind):
    """Whether a class is one whose code is looked at."""
    root = _root(kind.__module__)
    return root == "__main__" or root not in TRUSTED | SAFE and root not in sys.stdlib_module_names


def _is_known(kind):
    """Whether the instances of a class hold nothing that cannot be seen: a class written in Python, or one of a few."""
    if _root(kind.__module__) in {__package__, "abc", "argparse", "builtins", "collections", "enum", "types", "typing"}:
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ".py"
    return bool(kind.__flags__ & 1 << 9) and _is_own(kind) and file.endswith(".py")          # made by a class statement


def _is_error(name):
    kind = getattr(__builtins__, name, None) if isinstance(__builtins__, types.ModuleType) else __builtins__.get(name)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _is_of_arrays(value):
    parts = value.values() if type(value) is dict else [value]
    return all(is_array(part) and not isinstance(part, np.ndarray) for part in parts)


def _slots(kind):
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else slots


def _cell(cell):
    try:
        return [cell.cell_contents]
    except ValueError:                                       # not assigned yet
        return []


def _entry(names, name):
    return [names[name]] if name in names else []


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
