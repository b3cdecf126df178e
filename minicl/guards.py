"""What a step has read on the host besides its arguments, and whether that is still the same.

A launch repeats the path that Python took through the step's code, with the numbers that it found on the way. Both follow
from the arguments and from what the step read, so no more than that has to be compared before a launch. watch.py sees what
it reads; this file keeps it. Each value is compared as its kind asks, see kinds.py. Besides, there are

    variables            by their values
    attributes           those that were read: of objects, of their classes, and of the classes that those are made of
    functions of minicl  whose code is not watched: those that the step went through are still in their places

What can be neither watched nor compared is a reason not to capture the step: an iterator, a clock, a large array.
"""

import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .autograd import Tensor
from .backend import Step, is_array
from .kinds import (COMPARES, FORMATS, MANY, attributes_of, draws, equal, is_library, is_of_device, is_ours, is_plain,
                    look_at, own_bases, root)
from .nn import Buffer
from .nn.parts import HostBuffer
from .tensor import BaseTensor

WHOLE = {"__dict__", "__getstate__", "__reduce__", "__reduce_ex__"}          # attributes by which all others are read
HOOKS = {"__getattribute__", "__setattr__", "__delattr__"}
LATE = {"__annotations__", "__annotations_cache__", "__slotnames__"}         # that Python itself adds to a class
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
        self.most = MANY                                                     # entries of a container that are compared
        self._places: list[tuple[int, Any, Read, Sequence[Any]]] = []        # when, name(s), how to read it, what it was
        self._reached: dict[int, tuple[Any, str]] = {}                       # by id: what was there before, and its name
        self._variables: dict[tuple[int, int], tuple[dict, dict, dict[str, Any]]] = {}       # by when and the id of a file's
        self._attributes: dict[int, dict[str, tuple[int, Any]]] = {}         # by id: the attributes that were read, and when
        self._classes: dict[type, dict[str, tuple[int, list]]] = {}          # the same, in each base
        self._objects: list[Any] = []                                        # whose class is compared
        self._ours: dict[Any, tuple[Mapping, dict[str, None]]] = {}          # names in files and classes of minicl
        self._holders: list[tuple[Any, str]] = []                            # what has attributes that cannot be watched
        self._held: list[dict[str, Any]] = []                                # their attributes
        self._open: tuple[type, ...] = ()                                    # kinds of holders all of which may be read
        self._whole: dict[type, None] = {}                                   # classes all names of which are compared
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
                    if not equal(x, y):
                        return name if isinstance(name, str) else name[k]
        return None

    def arrays(self) -> dict[int, Any]:
        """The arrays of the device that the step has read, into which it may write, by where their memory is."""
        return {value.data.mem.ptr: value for *_, values in self._places for value in values
                if is_array(value) and not isinstance(value, np.ndarray)}

    def refuse(self, reason: str | None) -> None:
        self.reason = self.reason or reason

    def refuse_object(self, name: str, value: Any) -> None:
        kind = type(value)
        self.refuse(f"it reads {name}, a {kind.__module__}.{kind.__qualname__}, whose state cannot be compared; use it "
                    "outside, and make what it gives an argument")

    def read(self, name: Any, read: Read) -> Sequence[Any]:
        """What read() gives, to be compared with what it will give."""
        values = read()
        self._places.append((len(self.host.functions), name, read, values))
        return values

    def follow(self, name: str, read: Read) -> None:
        for value in self.read(name, read):
            self.reach(name, value)

    def reach(self, name: str, value: Any) -> None:
        """A value has come out of a variable, an attribute or a list; the value itself is compared there."""
        kind = type(value)
        if is_plain(kind) or not self.is_new(value) or self.reason:
            return
        self._reached[id(value)] = value, name
        is_known = look_at(self, name, value)
        if issubclass(kind, type):
            self._classes.setdefault(value, {})
        if issubclass(kind, (type, types.ModuleType)) or issubclass(kind, Tensor) and is_ours(kind):
            return                                           # which have no attributes besides, or were hooked there
        if not is_known and draws(kind.__module__):
            self.refuse_object(name, value)
        elif self.hook(kind):
            self._objects.append(value)
            if issubclass(kind, types.SimpleNamespace):      # whose == and repr() read all of it in C
                self.hold(name, value)
        elif is_known:
            self.hold(name, value)
        elif not is_of_device(kind.__module__):
            self.refuse_object(name, value)

    def is_new(self, owner: Any) -> bool:
        """Whether the step has made the object."""
        return id(owner) not in self._reached

    def hook(self, kind: type) -> bool:
        """Watch the attributes of a class's objects, if that is possible."""
        raise NotImplementedError

    def hook_module(self, module: types.ModuleType) -> None:
        raise NotImplementedError

    def reads_by_itself(self, kind: type) -> bool:
        """Whether a class has a __getattribute__ of its own, which may read what it does not name."""
        raise NotImplementedError

    # ------------------------------------------------------------ what is read

    def variable(self, names: dict[str, Any], builtins: dict[str, Any], name: str) -> None:
        """A file's variable of this name, or Python's own."""
        found = self._variables.setdefault((len(self.host.functions), id(names)), (names, builtins, {}))[2]
        found[name] = names[name] if name in names else builtins.get(name, MISSING)
        self.reach(name, found[name])

    def attribute(self, owner: Any, name: str) -> None:
        """The attribute is about to be read: of the object, if it was there before the step, and of its class."""
        kind = type(owner)
        if issubclass(kind, Buffer) and name == "changed" or issubclass(kind, Tensor) and name == "reached":     # our notes
            return
        if (id(owner), name) in self._computed or issubclass(kind, HostBuffer) and name == "_value":
            label = self._reached.get(id(owner), (None, kind.__name__))[1]
            self.refuse(f"it reads {label}.{name}, which changes on the host in each step")
        if issubclass(kind, type) and name in WHOLE:
            self._read_all(owner, "")
        entry = self.class_entry(owner if issubclass(kind, type) else kind, name)
        is_slot = isinstance(entry, types.MemberDescriptorType)
        if issubclass(kind, type) or self.is_new(owner) or name in self._attributes.setdefault(id(owner), {}) \
                or issubclass(kind, Tensor) and is_slot and is_ours(entry.__objclass__) \
                or issubclass(kind, Buffer) and name == "data":              # which kinds.py compares
            return
        label, entries, read = self._reached[id(owner)][1], attributes_of(owner), self._attributes[id(owner)]
        value = _slot(entry, owner) if is_slot else entries.get(name, MISSING)
        if not (issubclass(kind, types.ModuleType) and is_of_device(owner.__name__) and callable(value)):
            read[name] = len(self.host.functions), value     # else perhaps replaced during a capture
        if value is not MISSING:
            self.most = sys.maxsize if any(map(is_ours, kind.__mro__)) else MANY
            self.reach(f"{label}.{name}", value)
            self.most = MANY
        if name in WHOLE or self.reads_by_itself(kind):
            self.reach(f"{label}.__dict__", entries)

    def class_entry(self, kind: type, name: str) -> Any:
        """What a class has under this name, which is compared in those of its bases that are not a library's."""
        names = self._classes.setdefault(kind, {})
        base = next((base for base in kind.__mro__ if name in vars(base)), None)
        if name not in names and name not in HOOKS:
            names[name] = len(self.host.functions), [vars(base).get(name, MISSING) for base in own_bases(kind)]
            for value in names[name][1]:
                self.reach(f"{kind.__name__}.{name}", value)
            for each in kind.__mro__ if base is None else kind.__mro__[:kind.__mro__.index(base) + 1]:
                if is_ours(each):
                    self._compare_ours(each, vars(each), [name])
        entry = None if base is None else vars(base)[name]
        if isinstance(entry, types.FunctionType) and base is not None and (is_ours(base) or is_library(base.__module__)):
            self.reach(name, entry)
        return entry

    def passes(self, code: types.CodeType, names: dict[str, Any], kind: type) -> None:
        """The step goes through a function of minicl. kind: the class of its first argument, of which it may be a method."""
        self._compare_ours(names["__name__"], names, code.co_names)
        for part in [names[name] for name in code.co_names if name in names]:            # such as ops, of ops.relu
            if issubclass(type(part), types.ModuleType) and root(part.__name__) == __package__:
                self._compare_ours(part.__name__, vars(part), code.co_names)
        if any(map(is_ours, kind.__mro__)):
            self.class_entry(kind, code.co_name)

    def _compare_ours(self, owner, entries, names):
        self._ours.setdefault(owner, (entries, {}))[1].update((name, None) for name in names if name in entries)

    # ------------------------------------------------------------ attributes that cannot be watched

    def hold(self, name: str, holder: Any) -> None:
        """Its class cannot be changed to say which attributes are read, so that those are compared that are named."""
        entries = attributes_of(holder)
        if entries:
            self._holders.append((holder, name))
            if issubclass(type(holder), self._open):
                self._read_all(holder, name)
        if not issubclass(type(holder), type) and type(holder).__dictoffset__:
            self._held.append(entries)

    def named(self, name: str) -> None:
        """An instruction names an attribute, perhaps of one of the holders."""
        if name in COMPARES:
            self.open(types.SimpleNamespace)
        elif name in FORMATS:
            self.open(object)
        for holder, _ in self._holders:
            if issubclass(type(holder), type) or name in WHOLE or name in attributes_of(holder):
                self.attribute(holder, name)

    def open(self, *kinds: type, later: bool = True) -> None:
        """Attributes of such holders may be read that no instruction names."""
        self._open += kinds * later
        for holder, label in list(self._holders):
            if issubclass(type(holder), kinds):
                self._read_all(holder, label)

    def _read_all(self, holder, label):
        if issubclass(type(holder), type):
            self._whole |= dict.fromkeys(own_bases(holder))
            for name in {name for base in own_bases(holder) for name, value in vars(base).items()
                         if not name.startswith("__") or is_plain(type(value))}:
                self.class_entry(holder, name)
        else:
            self.reach(f"{label}.__dict__", attributes_of(holder))

    # ------------------------------------------------------------ after the run

    def settle(self) -> None:
        """Compare from now on what was read by name, all of one time at once."""
        for kind in (Tensor, BaseTensor):
            self._compare_ours(kind, vars(kind), vars(kind))
        kinds = [kind for kind in self._classes if own_bases(kind)]
        for when in range(len(self.host.functions) + 1):
            self._compare_variables(when)
            self._compare_attributes(when)
            entries = [(vars(base), name, kind, value) for kind in kinds
                       for name, (then, values) in self._classes[kind].items() if then == when
                       for base, value in zip(own_bases(kind), values)]
            self._add(when, [f"{kind.__name__}.{name}" for _, name, kind, _ in entries],
                      functools.partial(_entries, [each[:2] for each in entries]), [value for *_, value in entries])
        state = functools.partial(_state, self._objects, kinds, self._whole, self._held, [
            *(entries for kind, (entries, _) in self._ours.items() if isinstance(kind, type)),
            *map(vars, {base for kind in [*kinds, *map(type, self._objects)] for base in own_bases(kind)})])
        ours = [(entries, get, get(entries)) for entries, names in self._ours.values() if names
                for get in [operator.itemgetter("__doc__", *names)]]
        self._add(0, "the class of an object, the bases of a class, or a function of minicl",
                  functools.partial(_is_same, state, state(), ours), [True])
        for place in self._places:
            self._by_time.setdefault(place[0], []).append(place)
        compared: list[Any] = [self._places, self._by_time, self._objects, self.tensors] * bool(self.reason)        # no more
        for no_longer_needed in (self._reached, self._variables, self._attributes, self._classes, self._holders,
                                 self.functions, *compared):             # they keep objects alive
            no_longer_needed.clear()

    def _compare_variables(self, when):
        for (then, _), (names, builtins, found) in self._variables.items():
            if then == when:
                pythons = [name for name in found if name not in names]
                self._add(when, [*found, *pythons], functools.partial(_variables, names, [*found], builtins, pythons),
                          [*(MISSING if name in pythons else found[name] for name in found), *map(found.get, pythons)])

    def _compare_attributes(self, when):
        owners, of_dict, of_slots = [], [], []               # the latter are (where, owner, label, value)
        for key, read in self._attributes.items():
            owner, label = self._reached[key]
            found = {name: value for name, (then, value) in read.items() if then == when and name not in WHOLE}
            slots = {name: slot for name in found for base in type(owner).__mro__
                     if isinstance(slot := vars(base).get(name), types.MemberDescriptorType)}
            names = [name for name in found if name not in slots]
            owners += [(owner, names)] * bool(names)
            of_dict += [(name, owner, f"{label}.{name}", found[name]) for name in names]
            of_slots += [(slot, owner, f"{label}.{name}", found[name]) for name, slot in slots.items()]
        for places, read in ((of_dict, functools.partial(_attributes, owners)),
                             (of_slots, functools.partial(_slots, [each[:2] for each in of_slots]))):
            self._add(when, [label for *_, label, _ in places], read, [value for *_, value in places])

    def _add(self, when, names, read, values):
        if values:
            self._places.append((when, names, read, values))


def _variables(names, found, builtins, pythons):
    return [*map(names.get, found, itertools.repeat(MISSING)), *map(builtins.get, pythons, itertools.repeat(MISSING))]


def _attributes(owners):
    return [value for owner, names in owners for value in map(attributes_of(owner).get, names, itertools.repeat(MISSING))]


def _slots(places):
    return [_slot(slot, owner) for slot, owner in places]


def _slot(slot, owner):
    try:
        return slot.__get__(owner)
    except AttributeError:                                   # not assigned yet
        return MISSING


def _entries(places):
    return [entries.get(name, MISSING) for entries, name in places]


def _state(objects, kinds, whole, held, grown):
    """The classes of objects, the bases and names of classes, what has which attributes, the sizes of all classes: one may
    get a special method, which nothing names."""
    return [*map(type, objects), *(kind.__mro__ for kind in kinds), *(kind.__name__ for kind in kinds),
            *(vars(kind).keys() - LATE for kind in whole), *map(tuple, held), *map(len, grown)]


def _is_same(state, before, ours):
    try:
        return [state() == before and all(get(entries) == values for entries, get, values in ours)]
    except Exception:                                        # deleted, or arrays that cannot be compared as a whole
        return [False]
