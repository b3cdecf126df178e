"""What a function reads on the host besides its arguments, and whether that is still the same.

    around = Surroundings(step, modules)
    step()
    around.changed()                          # the name of the first thing that is not what it was, or None

That is: its variables, those of the functions in its file that it calls, the attributes of objects that their code names,
as in args.tau, and the entries of lists and dicts; of a Module all attributes, and the arrays and gradients of its parts.
What functions of other files read is not seen, unless it is in a Module.
"""

import functools
import inspect
import operator
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .autograd import Tensor
from .nn import Buffer, Module
from .nn.module import globals_of

MANY = 100                                                   # a longer list is data: only its length is compared
Read = Callable[[], Sequence[Any]]


class Surroundings:
    """See above. modules: also all attributes of these objects. tensors, generators: those that were found."""

    def __init__(self, function: Callable, modules: Iterable[Any] = ()):
        self.places: list[tuple[str, Read, Sequence[Any]]] = []              # name, how to read it, what was read
        self.tensors: list[Tensor] = []
        self.generators: list[np.random.Generator] = []
        self.seen: set[Any] = set()
        self.file = inspect.unwrap(function).__globals__
        self._value("", function)
        for module in modules:
            self._attributes(module)

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

    def _function(self, function):
        owner, code = getattr(function, "__self__", None), getattr(function, "__code__", None)
        if code is None or function.__globals__ is not self.file or not self._is_new(code, id(owner)):
            return
        cells = zip(code.co_freevars, function.__closure__ or ())
        variables = {name: functools.partial(_cell, cell) for name, cell in cells}
        variables |= {name: functools.partial(_entry, self.file, name) for name in globals_of(code) & self.file.keys()}
        for name, read in variables.items():
            for value in self._read(name, read):
                self._value(name, value, _names(code))
        if owner is not None:
            self._value("self", owner, _names(code))

    def _value(self, name, value, names=frozenset()):
        """What is in a value; of an object the attributes in `names`, and what its methods of these names read."""
        if isinstance(value, functools.partial):
            self._value(name, value.func)
        elif isinstance(value, (types.FunctionType, types.MethodType)):
            self._function(value)
            self._function(inspect.unwrap(value))
        elif isinstance(value, Module):
            self._attributes(value)
        elif hasattr(value, "__dict__") and not isinstance(value, (type, Buffer)):
            for key in names & vars(value).keys():
                if self._is_new(id(value), key):
                    for part in self._read(f"{name}.{key}", functools.partial(_entry, vars(value), key)):
                        self._value(f"{name}.{key}", part, names)
            self._methods(value, names & set(dir(type(value))))
            if callable(value):
                self._function(inspect.unwrap(value))        # that of another captured step
        elif self._is_new(id(value)):
            self._contents(name, value)

    def _methods(self, owner, names):
        for name in names:
            method = getattr(type(owner), name)
            method = method.fget if isinstance(method, property) else method
            if isinstance(method, types.FunctionType):
                self._function(types.MethodType(method, owner))

    def _is_new(self, *key):
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new

    def _contents(self, name, value):
        if isinstance(value, np.random.Generator):
            self.generators.append(value)
        elif isinstance(value, np.ndarray) and value.size <= MANY:
            self._read(name, lambda: [value.tobytes()])
        elif isinstance(value, Tensor):
            self.tensors.append(value)
            self._read(f"the array or gradient of {name}, or requires_grad,",
                       lambda: [value._data, value._grad, value._requires_grad])
        elif isinstance(value, Buffer):
            self._read(f"{name}.data", lambda: [value.data])
        elif isinstance(value, (list, tuple, dict, set, deque)):
            inside = value.values() if isinstance(value, dict) else value
            if len(value) > MANY:
                self._read(name, lambda: [len(value)])
                return
            for part in self._read(name, lambda: list(inside)):
                self._value(name, part)

    def _attributes(self, module):
        """All attributes of an object, and what is in them."""
        if self._is_new(id(module)):
            kind, attributes = type(module).__name__, vars(module)
            self._read(f"an attribute of the {kind}", lambda: list(attributes.values()))
            for key, value in attributes.items():
                self._value(f"{kind}.{key}", value)
            self._methods(module, [name for name in vars(type(module)) if not name.startswith("__")])


def _cell(cell):
    try:
        return [cell.cell_contents]
    except ValueError:                                       # not assigned yet
        return []


def _entry(names, name):
    return [names[name]] if name in names else []


def _names(code):
    """The names of variables and attributes in a function's code and in that of the functions within it."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


def _equal(x, y):
    return x is y or type(x) is type(y) and isinstance(x, (int, float, str, bytes)) and x == y
