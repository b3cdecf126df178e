"""Ways in which a step can read a number on the host, each with a change of it; and steps that cannot be captured.

    read, change = FOLLOWED[name]()       # read() gives another number after change(3.0)
    read, happen = HARMLESS[name]()       # read() gives the same number, whatever happen() does
    make, owner, reason = REFUSED[name]   # make(owner)() reads or does something that no comparison can follow
"""

import abc
import argparse
import builtins
import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import itertools
import logging
import math
import operator
import pathlib
import random
import selectors
import time
import types
import typing
import weakref

import numpy as np

from minicl import nn, no_grad

TAU = 1.0


def reset(monkeypatch):
    """Undo at the end of a test what the changes do to this module and to classes."""
    for owner, name in [(Tau, "shared"), (OfArgs, "shared"), (Settings, "tau"), (Measured, "_tau")]:
        monkeypatch.setattr(owner, name, 1.0)
    monkeypatch.setitem(globals(), "TAU", 1.0)
    monkeypatch.setattr(builtins, "minicl_tau", 1.0, raising=False)
    with_default.__defaults__[0].tau = 2.0
    SCALE[0] = 1.0




class Tau:
    """Read in many ways."""

    shared = 1.0

    def __init__(self, tau=1.0):
        self.tau = tau

    def __call__(self):
        return self.tau

    def read(self):
        return self.tau * TAU

    @property
    def double(self):
        return self.tau * 2

    def count(self):
        type(self).shared += 1
        return self.shared


class Sub(Tau):
    def read(self):
        return super().read()


@dataclasses.dataclass(slots=True)
class Slots:
    tau: float = 1.0


class AttrDict(dict):
    def __getattr__(self, key):
        return self[key]


class OfArgs(nn.Module):
    """Reads what an object in an attribute has, as scripts' models do."""

    shared = 1.0

    def __init__(self, *, args):
        self.args = args

    def forward(self, x):
        return x * self.args.tau * self.shared


class SubOfArgs(OfArgs):
    """Inherits forward()."""


def of_args(args, scale=1.0):
    return args.tau * scale


def with_default(args=Slots(2.0)):
    return args.tau


def set_tau(value):
    global TAU
    TAU = value


def attribute(owner, name="tau"):
    return lambda value: setattr(owner, name, value)


def entry(owner, key):
    return lambda value: owner.__setitem__(key, value)


def function_attribute():
    def read():
        return read.tau

    read.tau = 1.0
    return read, attribute(read)


# ---------------------------------------------------------------- read by code that does not name it

class Plain:
    def __init__(self, tau=1.0):
        self.tau = tau

    def get_tau(self):
        return self.tau

    def __str__(self):
        return f"{self.tau}"

    def __format__(self, spec):
        return str(self.tau)


@dataclasses.dataclass(eq=False)
class Unequal:
    tau: float = 1.0
    out: pathlib.Path = pathlib.Path("runs")


@dataclasses.dataclass
class Config:
    tau: float = 1.0
    out: pathlib.Path = pathlib.Path("runs")
    names: list = dataclasses.field(default_factory=lambda: [str(k) for k in range(1000)])
    epoch: int = 0
    inner: Unequal = dataclasses.field(default_factory=Unequal, compare=False)


@dataclasses.dataclass(frozen=True)
class Frozen:
    tau: float


class Pair(typing.NamedTuple):
    tau: float
    other: typing.Any = None


class Settings:
    """Never made: its attributes are read from the class."""

    tau = 1.0
    ids = itertools.count()


class Mangled:
    __slots__ = ("__tau",)

    def __init__(self):
        self.__tau = 1.0

    def set(self, tau):
        self.__tau = tau

    def read(self):
        return self.__tau


class Meta(type):
    tau = property(lambda cls: cls._tau)


class Measured(metaclass=Meta):
    _tau = 1.0


class Base:
    def read(self):
        print("never called")
        self.calls += 1
        return 0.0

    def step(self):
        print("never called")


class Overridden(Base):
    verbose = False

    def __init__(self):
        self.tau, self.step_number, self.table = 1.0, 0, None

    def read(self):
        if self.verbose:
            print(self.tau)
        logging.getLogger(__name__).debug("tau")
        return self.tau

    def lazy(self):
        if self.table is None:
            self.table = 2.0
        return self.table * self.tau


class Cached(Plain):
    @functools.cached_property
    def first(self):
        return self

    @functools.singledispatchmethod
    def of(self, x):
        return self.tau


class Mode(enum.Enum):
    ONE, THREE = 1.0, 3.0


class Owner:
    def __init__(self, value):
        self.value = value


class Setting(abc.ABC):
    @abc.abstractmethod
    def __enter__(self): ...

    def __exit__(self, *error):
        SCALE[0] = 1.0


class Scaled(Setting):
    def __init__(self):
        self.tau = 1.0

    def __enter__(self):
        SCALE[0] = self.tau


class Decorating(contextlib.ContextDecorator, Scaled):
    """A block of which `with` and a decorator can be made."""


class OwnLookup(Plain):
    def __getattribute__(self, name):
        return object.__getattribute__(self, "tau" if name == "double" else name)


class Array(np.ndarray):
    """May have attributes."""


class Described:
    def __get__(self, owner, kind=None):
        return owner.__dict__["hidden"]


class Describing:
    tau = Described()

    def __init__(self):
        self.hidden = 1.0


SCALE, HELD = [1.0], Plain()
logging.getLogger(__name__).setLevel(logging.WARNING)


def of_plain(read, make=Plain):
    """read(object) of an object whose tau changes."""
    def scene():
        owner = make()
        return functools.partial(read, owner), attribute(owner)
    return scene


def matched(owner):
    match owner:
        case Plain(tau=tau):
            return tau


def dispatched():
    owner = Plain()

    @functools.singledispatch
    def read(x):
        raise TypeError

    @read.register
    def _(x: float):
        return owner.tau

    return lambda: read(1.0), attribute(owner)


def block_as_decorator():
    owner = Plain()

    @contextlib.contextmanager
    def block():
        SCALE[0] = owner.tau
        yield
        SCALE[0] = 1.0

    return block()(lambda: SCALE[0]), attribute(owner)


def object_as_decorator():
    block = Decorating()
    return block(lambda: SCALE[0]), attribute(block)


def as_block(make):
    block = make()

    def read():
        with block:
            return SCALE[0]

    return read, attribute(block)


def in_list(make):
    owner = make([1.0])
    return (lambda: owner[0]), entry(owner, 0)


def cached_object():
    owner = Plain()

    @functools.lru_cache
    def config():
        return owner

    return lambda: config().tau, attribute(owner)


def cached_value():
    owner = Plain()

    @functools.cache
    def config():
        return owner.tau

    def change(value):
        owner.tau = value
        config.cache_clear()

    return config, change


def mode():
    owner = Owner(Mode.ONE)
    return lambda: owner.value.value, lambda value: setattr(owner, "value", Mode.THREE)


class Namespace(types.SimpleNamespace):
    pass


def namespaces(kind=types.SimpleNamespace):
    one, other = kind(tau=1.0), kind(tau=1.0)
    return lambda: 1.0 if one == other else 3.0, attribute(one)


def free_in_an_inner_function():
    tau = 1.0

    def change(value):
        nonlocal tau
        tau = value

    return lambda: (lambda: [tau for _ in range(2)][0])(), change


def method_of_a_list():
    values = [1.0]
    get = values.__getitem__
    return lambda: get(0), entry(values, 0)


def replaced_method():
    owner = Plain()
    return lambda: owner.get_tau(), lambda value: setattr(owner, "get_tau", lambda: value)


def module():
    config = types.ModuleType("config")
    config.tau = 1.0
    return lambda: config.tau, attribute(config)


def undecorated():
    owner = Plain()

    @no_grad()
    def read():
        return owner.tau

    return read, attribute(owner)


FOLLOWED = {
    "parameter of a helper": lambda: (lambda args: (lambda: of_args(args), attribute(args)))(types.SimpleNamespace(tau=1.0)),
    "callable object": lambda: (lambda tau: (tau, attribute(tau)))(Tau()),
    "called attribute": lambda: (lambda tau: (lambda: tau(), attribute(tau)))(Tau()),
    "property": lambda: (lambda tau: (lambda: tau.double, attribute(tau)))(Tau()),
    "super": lambda: (lambda tau: (lambda: tau.read(), attribute(tau)))(Sub()),
    "class attribute": lambda: (lambda: Tau.shared, attribute(Tau, "shared")),
    "class attribute of an object": lambda: (lambda tau: (lambda: tau.shared, attribute(Tau, "shared")))(Sub()),
    "object made in the step": lambda: (lambda: Tau(2.0).read(), set_tau),
    "slots": lambda: (lambda tau: (lambda: tau.tau, attribute(tau)))(Slots()),
    "dict with attributes": lambda: (lambda d: (lambda: d.tau, entry(d, "tau")))(AttrDict(tau=1.0)),
    "ordered dict": lambda: (lambda d: (lambda: d["tau"], entry(d, "tau")))(collections.OrderedDict(tau=1.0)),
    "keys of a dict": lambda: (lambda d: (lambda: sum(d), lambda value: d.update({value: 0})))({1.0: 0}),
    "long list": lambda: (lambda d: (lambda: d[7], entry(d, 7)))([1.0] * 200),
    "array": lambda: (lambda d: (lambda: d[7].item(), entry(d, 7)))(np.ones(200)),
    "default argument": lambda: (with_default, attribute(with_default.__defaults__[0])),
    "partial": lambda: (lambda args: (functools.partial(of_args, args), attribute(args)))(Slots()),
    "function": function_attribute,
    "sign of zero": lambda: (lambda d: (lambda: math.copysign(1.0, d[0]), lambda value: entry(d, 0)(-0.0)))([0.0]),
    "module": lambda: (lambda args: (lambda model: (lambda: model(1.0), attribute(args)))(SubOfArgs(args=args)))(Slots()),
    "class of a module": lambda: (lambda model: (lambda: model(1.0), attribute(OfArgs, "shared")))(SubOfArgs(args=Slots())),
    "function in a dict": lambda: (lambda d: (lambda: d["f"](), entry(d, "f")))({"f": lambda: 1.0}),
    "asdict": of_plain(lambda owner: dataclasses.asdict(owner)["tau"], Unequal),
    "astuple": of_plain(lambda owner: dataclasses.astuple(owner)[0], Unequal),
    "replace": of_plain(lambda owner: dataclasses.replace(owner, out=None).tau, Unequal),
    "asdict of a part": lambda: (lambda owner: (lambda: dataclasses.asdict(owner)["inner"]["tau"], attribute(owner.inner)))(
        dataclasses.make_dataclass("Outer", [("inner", Unequal)], eq=False)(Unequal())),
    "match": of_plain(matched),
    "attrgetter": of_plain(lambda owner: operator.attrgetter("tau")(owner)),
    "attrgetter of a class": lambda: (lambda: operator.attrgetter("shared")(Tau), attribute(Tau, "shared")),
    "methodcaller": of_plain(lambda owner: operator.methodcaller("get_tau")(owner)),
    "str": of_plain(lambda owner: float(str(owner))),
    "f-string": of_plain(lambda owner: float(f"{owner!s}")),
    "format": of_plain(lambda owner: float(f"{owner}")),
    "str.format": of_plain(lambda owner: float("{owner.tau}".format(owner=owner))),                 # noqa: UP032
    "getattr": of_plain(lambda owner: getattr(owner, "tau")),                                                # noqa: B009
    "getattr of a class": lambda: (lambda: getattr(Tau, "shared"), attribute(Tau, "shared")),                   # noqa: B009
    "vars": of_plain(lambda owner: vars(owner)["tau"], functools.partial(types.SimpleNamespace, tau=1.0)),
    "vars of an object": of_plain(lambda owner: vars(owner)["tau"]),
    "__dict__": of_plain(lambda owner: owner.__dict__["tau"]),
    "copy": of_plain(lambda owner: copy.copy(owner).tau),
    "deepcopy": of_plain(lambda owner: copy.deepcopy(owner).tau),
    "Namespace": of_plain(lambda owner: owner.tau, functools.partial(argparse.Namespace, tau=1.0)),
    "== of SimpleNamespaces": namespaces, "== of a subclass's": functools.partial(namespaces, Namespace),
    **{f"{read.__name__} of a subclass of SimpleNamespace": of_plain(
        lambda owner, read=read: float(read(owner)[len("Namespace(tau="):-1]), functools.partial(Namespace, tau=1.0))
       for read in (str, repr, format)},
    "class that make_dataclass() has made": lambda: (lambda kind: (lambda: kind.tau, attribute(kind)))(
        dataclasses.make_dataclass("Made", [("tau", float, 1.0)])),
    "str of a SimpleNamespace": of_plain(lambda owner: float(str(owner)[14:-1]), functools.partial(types.SimpleNamespace, tau=1.0)),
    "UserDict": lambda: (lambda owner: (lambda: owner["tau"], entry(owner, "tau")))(collections.UserDict(tau=1.0)),
    "UserList": lambda: in_list(collections.UserList),
    "deque": lambda: in_list(collections.deque),
    "ChainMap": lambda: (lambda owner: (lambda: owner["tau"], entry(owner, "tau")))(collections.ChainMap({}, {"tau": 1.0})),
    "mapping proxy": lambda: (lambda d, view: (lambda: view["tau"], entry(d, "tau")))(*(
        lambda d: (d, types.MappingProxyType(d)))({"tau": 1.0})),
    "singledispatch": dispatched,
    "singledispatchmethod": of_plain(lambda owner: owner.of(1.0), Cached),
    "cached_property": of_plain(lambda owner: owner.first.tau, Cached),
    "context manager as a decorator": block_as_decorator,
    "ContextDecorator as a decorator": object_as_decorator,
    "ContextDecorator as a block": lambda: as_block(Decorating),
    "abstract block": lambda: as_block(Scaled),
    "mangled slot": lambda: (lambda owner: (owner.read, owner.set))(Mangled()),
    "property of a metaclass": lambda: (lambda: Measured.tau, attribute(Measured, "_tau")),
    "class as a namespace": lambda: (lambda: Settings.tau, attribute(Settings)),
    "own __getattribute__": lambda: (lambda owner: (lambda: owner.double, attribute(owner)))(OwnLookup()),
    "attribute of an array": lambda: (lambda x: (x.__setattr__("tau", 1.0), (lambda: x.tau, attribute(x)))[1])(
        np.ones(2).view(Array)),
    "descriptor": lambda: (lambda owner: (lambda: owner.tau, attribute(owner, "hidden")))(Describing()),
    "field of a NamedTuple": lambda: (lambda owner: (lambda: owner[0].tau, lambda value: entry(owner, 0)(Pair(value))))([Pair(1.0)]),
    "frozen dataclass made in the step": of_plain(lambda owner: Frozen(owner.tau).tau),
    "NamedTuple made in the step": of_plain(lambda owner: Pair(owner.tau).tau),
    "lru_cache of an object": cached_object, "cache of a value": cached_value,
    "enum": mode, "free in an inner function": free_in_an_inner_function, "method of a list": method_of_a_list,
    "replaced method": replaced_method, "config module": module, "decorated by no_grad": undecorated,
    "default dict": lambda: (lambda d: (lambda: d["tau"], entry(d, "tau")))(collections.defaultdict(float, tau=1.0)),
    "sum over objects": lambda: (lambda owners: (lambda: sum(owner.tau for owner in owners), attribute(owners[1])))(
        [Plain(), Plain(2.0)]),
    "sorted by a key": lambda: (lambda owners: (lambda: max(owners, key=lambda owner: owner.tau).tau, attribute(owners[0])))(
        [Plain(), Plain(2.0)]),
    "getter of a partial method": lambda: (lambda owner: (functools.partial(Plain.get_tau, owner), attribute(owner)))(Plain()),
}


# ---------------------------------------------------------------- what changes beside a value

class Text(str):
    """As the classes below: Python makes them, on a class that it does not make."""


class Part(functools.partial):
    pass


class Property(property):
    pass


class Reference(weakref.ref):
    pass


class Ordered(collections.OrderedDict):
    pass


class Defaults(collections.defaultdict):
    pass


class Drawing(np.random.Generator):
    pass


class Fault(Exception):
    pass


def instance(owner, read=lambda owner: owner.tau, name="tau"):
    """An attribute of the object itself, of whatever kind."""
    setattr(owner, name, 1.0)
    return lambda: read(owner), attribute(owner, name)


def added(owner):
    """An attribute that the object does not have at first."""
    return lambda: getattr(owner, "tau", 1.0), attribute(owner)


def cached(x):
    return x


def ordered(read, make=collections.OrderedDict):
    def scene():
        owner = make(a=1.0, b=3.0)
        return lambda: read(owner), lambda value: owner.move_to_end("a")
    return scene


def reinserted():
    owner = collections.Counter(a=1, b=3)
    return lambda: float(owner[next(iter(owner))]), lambda value: owner.update(a=owner.pop("a"))


def records(make=lambda x: x):
    rows = make(np.zeros(2, dtype=[("tau", "f8"), ("other", "i4")]))
    rows["tau"] = 1.0
    return rows[0]


def class_of(read):
    """Another class of the object, with the same attributes."""
    def scene():
        class First:
            factor = 1.0

            def __call__(self):
                return 1.0

        class Second(First):
            def __call__(self):
                return 3.0

            def __len__(self):
                return 3

        First.__len__ = lambda self: 1
        owner = First()
        return lambda: float(read(owner, Second)), lambda value: setattr(owner, "__class__", Second)
    return scene


def bases_of(read):
    def scene():
        class First:
            tau = 1.0

        class Second:
            tau = 3.0

        class Derived(First):
            pass

        return lambda: read(Derived, Second), lambda value: setattr(Derived, "__bases__", (Second,))
    return scene


def name_of(owner):
    before = owner.__name__
    return lambda: 1.0 if owner.__name__ == before else 3.0, lambda value: setattr(owner, "__name__", "other")


def later_in_a_class(read, base=()):
    """The class gets the name warm."""
    def scene():
        owner = type("Config", (type("Base", base, {"one": 1.0}),), {"__scale__": 0.0})
        return lambda: read(owner), attribute(owner if "Base" not in read.__name__ else owner.__mro__[1], "warm")
    return scene


def getattr_of_Base(owner):
    return getattr(owner, "warm", 1.0)


def tried(owner):
    try:
        return owner.warm
    except AttributeError:
        return 1.0


def renamed(owner):
    """An attribute takes the place of another."""
    owner.old = 1.0

    def change(value):
        del owner.old
        owner.warm = value

    return functools.partial(tried, owner), change


def special_method(read, *, gets, before=None):
    """A class gets a special method, or another in the place of `before`, whose name is another."""
    def scene():
        kind = type("Special", (), {} if before is None else {gets: before})
        owner = kind()
        return lambda: read(owner), lambda value: setattr(kind, gets, lambda owner, *inputs: False if gets == "__bool__" else 0)
    return scene


def special_of_a_class(read):
    owner = type("Config", (), {"__scale__": 1.0})
    return lambda: read(owner), attribute(owner, "__scale__")


def among_namespaces(read):
    """Two namespaces that are equal after the change, in code that Python does not show."""
    def scene():
        one, other = types.SimpleNamespace(tau=1.0), types.SimpleNamespace(tau=3.0)
        return lambda: 3.0 if read(one, [other]) else 1.0, attribute(one)
    return scene


def counts_in_others():
    one, other = types.SimpleNamespace(tau=1.0), types.SimpleNamespace(tau=3.0)
    count, equals = [other].count, one.__eq__
    return lambda: 1.0 + count(one) + equals(other), attribute(one)


def default_factory(make=collections.defaultdict):
    def scene():
        owner = make(lambda: 1.0)
        return lambda: owner.default_factory(), lambda value: setattr(owner, "default_factory", lambda: value)
    return scene


def maps_of_a_chain():
    owner = collections.ChainMap({"tau": 1.0})
    return lambda: owner["tau"], lambda value: owner.maps.insert(0, {"tau": value})


def of_all_files():
    return lambda: minicl_tau, attribute(builtins, "minicl_tau")                    # noqa: F821


def argument_of_an_error():
    owner = Fault(1.0)
    return lambda: owner.args[0], lambda value: setattr(owner, "args", (value,))


def cause_of_an_error():
    owner = Fault()
    owner.__cause__ = Fault(1.0)
    return lambda: owner.__cause__.args[0], lambda value: setattr(owner, "__cause__", Fault(value))


def order_of_defaults():
    def of(*, one=1.0, other=3.0):
        return one
    return of, lambda value: setattr(of, "__kwdefaults__", {"other": 1.0, "one": 3.0})


FOLLOWED |= {
    "attribute of a partial": lambda: instance(functools.partial(of_args)),
    "attribute of a partial by getattr": lambda: instance(functools.partial(of_args), lambda owner: getattr(owner, "tau", 2.0)),
    "attribute of a subclass of partial": lambda: instance(Part(of_args)),
    "attribute of an lru_cache": lambda: instance(functools.lru_cache(cached)),
    "attribute of a staticmethod": lambda: instance(staticmethod(of_args)),
    "attribute of a classmethod": lambda: instance(classmethod(of_args)),
    "attribute of a subclass of property": lambda: instance(Property(of_args)),
    "attribute of a subclass of ref": lambda: instance(Reference(Plain)),
    "attribute of a subclass of Generator": lambda: instance(Drawing(np.random.PCG64(0))),
    "attribute of a subclass of str": lambda: instance(Text("a")),
    "cause of an error": cause_of_an_error, "entry of a slice": lambda: (
        lambda owner: (lambda: owner.stop[0], lambda value: entry(owner.stop, 0)(value)))(slice(None, [1.0])),
    "order of defaults": order_of_defaults,
    "attribute of an error": lambda: instance(Fault()), "argument of an error": argument_of_an_error,
    "attribute that a function gets": lambda: added(lambda: 1.0),
    "attribute that a partial gets": lambda: added(functools.partial(of_args)),
    "attribute that a namespace gets": lambda: added(types.SimpleNamespace()),
    "first of an OrderedDict": ordered(lambda owner: owner[next(iter(owner))]),
    "last of an OrderedDict": ordered(lambda owner: 4 - owner[next(reversed(owner))]),
    "items of an OrderedDict": ordered(lambda owner: [value for _, value in owner.items()][0]),
    "list of a subclass of OrderedDict": ordered(lambda owner: owner[list(owner)[0]], Ordered),
    "proxy of an OrderedDict": ordered(lambda owner: list(types.MappingProxyType(owner).values())[0]),
    "order of a Counter": reinserted,
    "record": lambda: (lambda owner: (lambda: float(owner["tau"]), entry(owner, "tau")))(records()),
    "attribute of a record": lambda: (lambda owner: (lambda: float(owner.tau), attribute(owner)))(
        records(lambda x: x.view(np.recarray))),
    "isinstance": class_of(isinstance), "class": class_of(lambda owner, kind: type(owner) is kind),
    "call": class_of(lambda owner, kind: owner()), "len": class_of(lambda owner, kind: len(owner)),
    "attribute of a base": bases_of(lambda kind, other: kind.tau),
    "attribute of an object's base": bases_of(lambda kind, other: kind().tau),
    "issubclass": bases_of(lambda kind, other: 3.0 if issubclass(kind, other) else 1.0),
    "name of a function": lambda: name_of(lambda: 1.0), "name of a class": lambda: name_of(type("Named", (), {})),
    "namespace in a list": among_namespaces(lambda one, others: one in others),
    "namespace counted": among_namespaces(lambda one, others: others.count(one)),
    "namespace in a tuple": among_namespaces(lambda one, others: (*others, one).index(one) == 0),
    "namespaces by operator": among_namespaces(lambda one, others: operator.eq(one, others[0])),
    "namespace counted by operator": among_namespaces(lambda one, others: operator.countOf(others, one)),
    "namespaces by __eq__": among_namespaces(lambda one, others: one.__eq__(others[0])),
    "methods that compare": counts_in_others,
    "namespace in a text": of_plain(lambda owner: float("{.tau}".format(owner)),                     # noqa: UP032
                                    functools.partial(types.SimpleNamespace, tau=1.0)),
    "namespace by format_map": of_plain(lambda owner: float("{x.tau}".format_map({"x": owner})),
                                        functools.partial(types.SimpleNamespace, tau=1.0)),
    "class in a text": lambda: (lambda: float("{.shared}".format(Tau)), attribute(Tau, "shared")),    # noqa: UP032
    "default_factory": default_factory(), "default_factory of a subclass": default_factory(Defaults),
    **{f"name that a class gets, {name}": later_in_a_class(read) for name, read in {
        "getattr": lambda owner: getattr(owner, "warm", 1.0), "of its base": getattr_of_Base, "tried": tried,
        "hasattr": lambda owner: 3.0 if hasattr(owner, "warm") else 1.0,
        "vars": lambda owner: vars(owner).get("warm", 1.0), "in": lambda owner: 3.0 if "warm" in owner.__dict__ else 1.0,
        "dir": lambda owner: sum(getattr(owner, name) for name in dir(owner) if not name.startswith("_")),
        "dir of an object": lambda owner: float(len(dir(owner()))),
        "partial": lambda owner: functools.partial(getattr, owner)("warm", 1.0)}.items()},
    "name that an error gets": later_in_a_class(lambda owner: getattr(owner, "warm", 1.0), (ValueError,)),
    "name that a namespace has instead": lambda: renamed(types.SimpleNamespace()),
    "name that a function has instead": lambda: renamed(lambda: 1.0),
    **{f"{gets} that a class gets": special_method(read, gets=gets) for gets, read in {
        "__bool__": lambda owner: 1.0 if owner else 3.0, "__len__": lambda owner: 1.0 if owner else 3.0,
        "__getattr__": lambda owner: getattr(owner, "warm", 1.0)}.items()},
    "__call__ by another name": special_method(lambda owner: owner(), gets="__call__", before=lambda owner: 1.0),
    "__len__ by another name": special_method(lambda owner: float(len(owner)), gets="__len__", before=lambda owner: 1),
    "special name by getattr": lambda: special_of_a_class(lambda owner: getattr(owner, "__scale__")),       # noqa: B009
    "special name by vars": lambda: special_of_a_class(lambda owner: vars(owner)["__scale__"]),
    "maps of a ChainMap": maps_of_a_chain, "variable of all files": of_all_files,
}


def count_epochs(owner, name="epoch"):
    return lambda: setattr(owner, name, getattr(owner, name) + 1)


def in_a_library(call):
    """A function of a library that makes a namedtuple in one call only, as subprocess does when a kernel is compiled."""
    names = {"__name__": "cupy.late", "calls": itertools.count(1), "Key": selectors.SelectorKey}
    exec(f"def late():\n    if next(calls) == {call}:\n        Key(0, 1, 2, 3)\n    return 1.0", names)
    return lambda: (names["late"], lambda: None)


HARMLESS = {                                                 # what the step does not read may change, and need not be compared
    "field of a dataclass": lambda: (lambda owner: (lambda: owner.tau, count_epochs(owner)))(Config()),
    "attribute of the name of a method": lambda: (lambda owner: (
        owner.read, count_epochs(owner, "step_number")))(Overridden()),
    "entry of another dict": lambda: (lambda d: (lambda: 1.0, lambda: entry(d, "tau")(2.0)))({}),
    "class attribute": lambda: (lambda owner: (lambda: owner.tau, lambda: setattr(Tau, "shared", Tau.shared + 1)))(Plain()),
    "counter of a class": lambda: (lambda: Settings.tau, lambda: next(Settings.ids)),
    "table that is made when it is needed": lambda: (Overridden().lazy, lambda: None),
    **{f"namedtuple in call {call} of a library": in_a_library(call) for call in range(1, 7)},
    "local object that counts": lambda: (counted, lambda: None),
    "local class": lambda: (local_class, lambda: None),
    "log that is off": lambda: (lambda: (logging.getLogger(__name__).debug("%s", 1), 1.0)[1], lambda: None),
}


def counted():
    total = Plain(0.0)
    for k in range(3):
        total.tau += k
    return total.tau


def local_class():
    values = []
    values.append(1.0)
    return Pair(values[0], other=values).tau


class Bytes(bytearray):
    pass


class Stop(StopIteration):
    pass


class Zip(zip):
    tau = 1.0


REFUSED = {
    "subclass of bytearray": (lambda owner: lambda: float(owner[0]), Bytes(b"a"), "host_reads.Bytes"),
    "subclass of zip": (lambda owner: lambda: owner.tau, Zip([1.0]), "host_reads.Zip"),
    "value of a StopIteration": (lambda owner: lambda: owner.value, Stop(1.0), "host_reads.Stop"),
    "counter": (lambda it: lambda: next(it), itertools.count(1), "itertools.count"),
    "generator": (lambda it: lambda: next(it), (1.0 / k for k in itertools.count(1)), "builtins.generator"),
    "random": (lambda _: lambda: random.random(), None, "random.Random"),
    "numpy.random": (lambda _: lambda: np.random.rand(), None, "random numbers"),
    "numpy.random by another name": (lambda xp: lambda: aliased(xp), np, "random numbers"),
    "RandomState": (lambda rng: lambda: rng.rand(), np.random.RandomState(0), "RandomState"),
    "spawn": (lambda rng: lambda: rng.spawn(1)[0].random(), np.random.default_rng(0), "from .spawn"),
    "generator made in the step": (lambda _: lambda: np.random.default_rng(7).random(), None, "random numbers"),
    "copied generator": (lambda rng: lambda: copy.copy(rng).random(), np.random.default_rng(0), "random"),
    "deep copy of a generator": (lambda rng: lambda: copy.deepcopy(rng).random(), np.random.default_rng(0), "random"),
    "clock": (lambda _: lambda: time.time(), None, "of the module time"),
    "class counter": (lambda tau: lambda: tau.count(), Tau(), "Tau.count(), line "),
    "attribute set": (lambda args: lambda: set_and_read(args), Slots(), "sets args.tau"),
    "long array": (lambda d: lambda: d[7].item(), np.ones(1000), "array on the host of 1000 entries"),
    "longer list": (lambda d: lambda: d[7], [1.0] * 1000, "1000 entries"),
    "file": (lambda path: lambda: length_of(path), __file__, "calls open"),
    "setattr": (lambda owner: lambda: setattr(owner, "tau", 1.0) or owner.tau, Plain(), "calls setattr()"),
    "object.__setattr__": (lambda owner: lambda: object.__setattr__(owner, "tau", 1.0) or 1.0, Plain(), "__setattr__"),
    "subclasses": (lambda kind: lambda: kind.__subclasses__()[0].shared, Tau, "__subclasses__"),
    "import": (lambda _: lambda: imported(), None, "imports math"),
    "entry of a list that is set": (lambda d: lambda: counting(d), [0.0], "d changes"),
    "global variable that is set": (lambda _: lambda: set_tau(1.0) or TAU, None, "sets the variable TAU"),
    "counter of a model": (lambda stream: lambda: float(stream.data[1]), nn.Stream(np.random.default_rng(0)), "on the host in each step"),
    "weak reference": (lambda reference: lambda: reference().tau, weakref.ref(HELD), "a weakref.ReferenceType"),
    "set of weak references": (lambda live: lambda: float(len(live)), weakref.WeakSet([HELD]), "a weakref.ReferenceType"),
    "print": (lambda _: lambda: print("") or 1.0, None, "calls print()"),
}


def aliased(xp):
    draws = xp.random
    return draws.rand()


def set_and_read(args):
    args.tau = 2.0
    return args.tau


def imported():
    import math
    return math.pi


def counting(d):
    d[0] += 1
    return d[0]


def length_of(path):
    with open(path) as file:
        return float(len(file.read()))
