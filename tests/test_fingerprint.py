"""The fingerprint of a value changes with anything that it holds, and with nothing else; and a run tells what has changed."""

import argparse
import collections
import concurrent.futures
import contextvars
import copy
import ctypes
import dataclasses
import functools
import io
import itertools
import logging
import pathlib
import queue
import re
import sys
import threading
import types
import warnings
import weakref

import numpy as np
import pytest
from small_runs import Net, X, assert_resumes, run_of

from minicl import Tensor, nn, ops, optim
from minicl.data import Batches, augment
from minicl.fingerprint import fingerprint, kept_by, read_by
from minicl.methods import frozen_copy


class Counts:
    """Counts its calls, which its text does not show."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls

    def __repr__(self):
        return "Counts()"


class Slots:
    __slots__ = ("calls", "other")

    def __init__(self):
        self.calls = 0


@dataclasses.dataclass
class Meter:
    value: float = dataclasses.field(default=0.0, repr=False)


class Rows(list):
    """A list with an attribute."""

    scale = 1.0


def closure():
    count = 0

    def call():
        nonlocal count
        count += 1
        return count

    return call


def decorated(function):
    return lambda: function()


def with_default(kept=[0]):  # noqa: B006
    kept[0] += 1


def reads_a_global():
    return SCALES["a"] * 2


KEY, SCALES = Counts(), {"a": 1.0}
VARIABLE = contextvars.ContextVar("variable")
NESTED = {"a": [types.SimpleNamespace(b=({"c": collections.deque([Meter()])},))]}

# {what: (make it, change it)}
HOLD = {
    "an object with a text of its own": (Counts, lambda x: x()), "slots": (Slots, lambda x: setattr(x, "calls", 1)),
    "a slot that is set": (Slots, lambda x: setattr(x, "other", None)),
    "a field that is not shown": (Meter, lambda x: setattr(x, "value", 1.0)),
    "a deep object": (lambda: copy.deepcopy(NESTED), lambda x: setattr(x["a"][0].b[0]["c"][0], "value", 1e-300)),
    "a long array in a deque": (lambda: collections.deque([np.zeros(2000)]), lambda x: x[0].__setitem__(1000, 1e-300)),
    "a long array in a namespace": (lambda: argparse.Namespace(x=np.zeros(2000)), lambda x: x.x.__setitem__(1000, 1)),
    "an array of objects": (lambda: np.array([Counts(), None]), lambda x: x[0]()),
    "a Tensor": (lambda: Tensor(np.zeros(3)), lambda x: x.data.__setitem__(1, 1)),
    "an array's dtype": (lambda: [np.zeros(2, "int32")], lambda x: x.__setitem__(0, np.zeros(2, "uint32"))),
    "an array's shape": (lambda: [np.zeros(2)], lambda x: x.__setitem__(0, np.zeros((2, 1)))),
    "a float's last bit": (lambda: [0.1], lambda x: x.__setitem__(0, np.nextafter(0.1, 1).item())),
    "the kind of a number": (lambda: [1], lambda x: x.__setitem__(0, True)),
    "minus zero": (lambda: [0.0], lambda x: x.__setitem__(0, -0.0)),
    "a bytearray": (lambda: bytearray(200), lambda x: x.__setitem__(150, 1)),
    "a dict's order": (lambda: {"a": 1, "b": 2}, lambda x: x.update(a=x.pop("a"))),
    "a defaultdict": (lambda: collections.defaultdict(list), lambda x: x["a"].append(1)),
    "an OrderedDict": (lambda: collections.OrderedDict(a=Counts()), lambda x: x["a"]()),
    "a UserDict": (lambda: collections.UserDict(a=1), lambda x: x.update(a=2)),
    "a ChainMap": (lambda: collections.ChainMap({}), lambda x: x.update(a=2)),
    "a set": (lambda: {(1, 2)}, lambda x: x.add((2, 1))), "a list's attribute": (Rows, lambda x: setattr(x, "scale", 2.0)),
    "a list's end": (lambda: Rows([1]), lambda x: x.append(1)), "shared entries": (lambda: [y := [1], y], lambda x: x.__setitem__(1, [1])),
    "an entry that moves": (lambda: [[1], 2], lambda x: x.__setitem__(slice(None), [[1, 2]])),
    "a closure": (closure, lambda x: x()), "a default": (lambda: with_default, lambda x: x()),
    "a global that a function reads": (lambda: reads_a_global, lambda x: SCALES.update(a=SCALES["a"] + 1)),
    "a bound method": (lambda: Counts().__call__, lambda x: x()), "a partial": (lambda: functools.partial(print, Counts()), lambda x: x.args[0]()),
    "what a property reads": (lambda: property(closure()), lambda x: x.fget()),
    "a WeakKeyDictionary": (lambda: weakref.WeakKeyDictionary({KEY: 1}), lambda x: x.update({KEY: 2})),
    "a weak reference": (lambda: weakref.ref(KEY), lambda x: x()()),
    "a ContextVar": (lambda: VARIABLE, lambda x: x.set(x.get(0) + 1)),
    "a threading.local": (threading.local, lambda x: setattr(x, "n", 1)), "a count": (lambda: itertools.count(3), next),
    "a Queue": (queue.Queue, lambda x: x.put(1)), "a Semaphore": (threading.Semaphore, lambda x: x.acquire()),
    "a BytesIO": (io.BytesIO, lambda x: x.write(b"a")), "a memoryview": (lambda: memoryview(bytearray(3)), lambda x: x.__setitem__(1, 1)),
    "an array of ctypes": (ctypes.c_int * 3, lambda x: x.__setitem__(1, 1)), "an iterator": (lambda: iter([1, 2]), next),
    "another function": (lambda: [ops.relu], lambda x: x.__setitem__(0, ops.sigmoid)),
    "another lambda": (lambda: [lambda x: x * 2], lambda x: x.__setitem__(0, lambda x: x * 3)),
    "another ufunc": (lambda: {"a": np.tanh}, lambda x: x.update(a=np.exp)), "another builtin": (lambda: [len], lambda x: x.__setitem__(0, sum)),
    "another class": (lambda: [Counts], lambda x: x.__setitem__(0, Slots)), "another method": (lambda: [[].append], lambda x: x.__setitem__(0, [].extend)),
    "another layer": (lambda: [nn.BatchNorm(2)], lambda x: x.__setitem__(0, nn.BatchNorm(3))),
    "another augmentation": (lambda: [augment.RandomErasing(0.5)], lambda x: x.__setitem__(0, augment.RandomErasing(0.6))),
    "other batches": (lambda: [Batches(64, 8, seed=0)], lambda x: x.__setitem__(0, Batches(64, 8, seed=5))),
    "another module": (lambda: [np], lambda x: x.__setitem__(0, re)), "a method of another": (lambda: [Counts().__call__], lambda x: x.__setitem__(0, Meter().__eq__)),
    "a decorated function": (lambda: decorated(closure()), lambda x: x()),
    "a function's attribute": (closure, lambda x: setattr(x, "n", 1)),
    "a circle": (lambda: (x := [1], x.append(x))[0], lambda x: x.__setitem__(0, 2)),
}


@pytest.mark.parametrize("what", HOLD)
def test_a_fingerprint_changes_with_what_a_value_holds(what):
    make, change = HOLD[what]
    value = make()
    marks = [fingerprint(value), fingerprint(value)]
    change(value)
    assert marks[0] == marks[1] != fingerprint(value)


@functools.lru_cache
def squared(n):
    return n * n


STAY = {
    "another object with the same": (lambda: [Counts(), np.ones(3)], lambda x: x.__setitem__(slice(None), [Counts(), np.ones(3)])),
    "a set's order": (lambda: {0, 8}, lambda x: (x.clear(), x.update([8, 0]))),
    "what lru_cache keeps": (lambda: squared, lambda x: x(len(str(x(3))))),
    "a path": (lambda: [pathlib.Path("a") / "b"], lambda x: (str(x[0]), hash(x[0]), x[0].parts)),
    "a logger": (lambda: logging.getLogger("minicl.test"), lambda x: x.isEnabledFor(10)), "a file": (lambda: open(__file__), lambda x: x.close()),
    "an executor": (lambda: concurrent.futures.ThreadPoolExecutor(1), lambda x: x.submit(int).result()),
    "a pattern": (lambda: re.compile("a"), lambda x: x.match("a")),
    "a lock": (threading.Lock, lambda x: x.acquire()), "a generator": (lambda: np.random.default_rng(0), lambda x: x.random()),
    "weights": (lambda: [nn.Linear(2, 2, rng=np.random.default_rng(0))], lambda x: x[0].bias.data.__setitem__(..., 1)),
    "a proxy of what is gone": (lambda: [weakref.proxy(Counts())], lambda x: None),
    "an object without a text": (lambda: type("Fails", (), {"__repr__": lambda x: 1 / 0})(), lambda x: None),
}


@pytest.mark.parametrize("what", STAY)
def test_a_fingerprint_stays_if_nothing_changes_that_counts(what):
    make, change = STAY[what]
    value = make()
    before = fingerprint(value)
    change(value)
    assert fingerprint(value) == before


def test_a_deep_value_takes_no_recursion_and_a_large_one_ends(monkeypatch):
    deep: list = []
    for _ in range(20_000):
        deep = [deep]
    assert fingerprint(deep) != fingerprint([deep])
    many, last = [Counts() for _ in range(100)], []
    monkeypatch.setattr("minicl.fingerprint.MANY", 101)
    before = fingerprint([*many, last])
    last.append(1)
    assert fingerprint([*many, last]) == before
    monkeypatch.setattr("minicl.fingerprint.MANY", 1000)
    assert fingerprint([*many, last]) != fingerprint([*many, []])


class Scaled(nn.Module):
    """A layer whose output is divided by a count that is kept in `kept`."""

    calls = 0

    def __init__(self, kept, *, rng):
        self.layer, self.kept = nn.Linear(3, 2, rng=rng), kept

    @functools.cached_property
    def first(self):
        return float(abs(self.layer.weight.data).mean())

    def forward(self, x):
        return self.layer(x)

    def count(self, step):
        type(self).calls += 1


KEPT = {"a deque": lambda: collections.deque([np.zeros(2000)]), "an object": Counts, "an array": lambda: np.zeros(3), "a function": closure,
        "a tuple": lambda: (Counts(),), "an attribute of the class": lambda: 0, "a cached property": lambda: 0, "nothing": lambda: 0}
CHANGE = {"a deque": lambda module: module.kept[0].__setitem__(1500, 1.0), "an object": lambda module: module.kept(),
          "an array": lambda module: np.add(module.kept, 1, out=module.kept), "a function": lambda module: module.kept(),
          "a tuple": lambda module: module.kept[0](), "an attribute of the class": lambda module: module.count(0),
          "a cached property": lambda module: module.first, "nothing": lambda module: None}


@pytest.mark.parametrize("is_a_part", [True, False])
@pytest.mark.parametrize("where", KEPT)
def test_what_a_module_keeps_and_changes_is_told(tmp_path, where, is_a_part, capsys):
    """Of one among the parts, also where minicl.load could not build it; and of one beside them."""
    module = Scaled(KEPT[where](), rng=np.random.default_rng(0))
    beside = {} if is_a_part else {"leave": ["scaled"]}
    with warnings.catch_warnings():                          # state_dict() warns of an array itself
        warnings.filterwarnings("ignore", ".*is not saved, as it is not a Parameter or Buffer")
        run_of(tmp_path / "run", make=lambda model, rng: {"scaled": module}, each=lambda step, parts, rng: CHANGE[where](module), **beside)
    name = {"an attribute of the class": "test_fingerprint.Scaled.calls", "a cached property": "first"}.get(where, "kept")
    told = f"what no part saves changed in the loop: {name} of a Scaled"
    if is_a_part:
        told = f"settings changed in the loop: scaled.{name}".replace("scaled.test", "test")
    out = capsys.readouterr().out
    assert ("warning" in out, told in out) == (where != "nothing",) * 2


def test_what_a_class_inside_a_function_reads_is_looked_at(tmp_path, capsys):
    seen = {"n": 0}

    class Local(nn.Module):
        def __init__(self, rng):
            self.layer = nn.Linear(3, 2, rng=rng)

        def forward(self, x, least=[0]):  # noqa: B006
            seen["n"] += 1
            least[0] += 1
            return self.layer(x)

    local = Local(np.random.default_rng(0))
    assert read_by([local]) == {"test_fingerprint.Local.forward.seen": seen, "test_fingerprint.Local.forward.least": [0],
                                **{f"test_fingerprint.Local.{name}.__dict__": {} for name in ("__init__", "forward")}}
    assert "layer" in kept_by(local.named_modules())
    run_of(tmp_path / "run", make=lambda model, rng: {"local": local}, each=lambda step, parts, rng: local(np.ones((2, 3), "float32")))
    out = capsys.readouterr().out
    assert " test_fingerprint.Local.forward.seen was" in out and "test_fingerprint.Local.forward.least was" in out


class Warm:
    warm = 0
    best: float | None = None


class Helper:
    rows = [0.0]  # noqa: RUF012


class Settings:
    rate = 1.0


class Aliases(Warm, nn.Module):
    """Refers to its parts by several names."""

    tau = 0.5

    def __init__(self, *, rng):
        self.nets = [nn.Linear(3, 2, rng=rng), nn.Linear(3, 2, rng=rng)]
        self.active, self.path, self.scale = self.nets[0], [*self.nets], self.nets[0].weight
        self.use, self.helper = self.nets[0].forward, Helper()
        self.chain = nn.Sequential(self.nets[0], nn.BatchNorm(2))

    def forward(self, x):
        return self.active(x) * Settings.rate


ALIASES = {                              # {name that is told: change}
    "model.active": lambda m: setattr(m, "active", m.nets[1]), "model.path": lambda m: setattr(m, "path", m.path[::-1]),
    "model.scale": lambda m: setattr(m, "scale", m.nets[1].weight), "model.use": lambda m: setattr(m, "use", m.nets[1].forward),
    "model.nets": lambda m: setattr(m.chain, "steps", (m.nets[1], *m.chain.steps[1:])),
    "model.tau": lambda m: setattr(m, "tau", 0.25), "model.warm": lambda m: setattr(m, "warm", m.warm + 1),
    "model.best": lambda m: setattr(m, "best", 0.5), "model.helper": lambda m: m.helper.rows.append(1.0),
    "test_fingerprint.Settings": lambda m: setattr(Settings, "rate", Settings.rate * 2),
    "": lambda m: (setattr(m, "tau", 0.5), setattr(m, "active", m.nets[0]), setattr(m, "path", [*m.nets]))}


@pytest.mark.parametrize("name", ALIASES)
def test_another_name_of_a_part_and_a_default_of_a_class_that_change_are_told(tmp_path, name, capsys):
    run_of(tmp_path / "run", make=lambda model, rng: {"model": Aliases(rng=rng), "other": model},
           each=lambda step, parts, rng: step == 3 and ALIASES[name](parts["model"]), kind=lambda model, lr: optim.SGD(model, lr))
    out = capsys.readouterr().out
    assert bool(re.search(rf"settings changed in the loop: .*{re.escape(name)}\S* (was|has)", out)) == ("warning" in out) == bool(name)


def test_two_parts_that_change_places_are_no_change(tmp_path, capsys):
    """A checkpoint names them by their places."""
    class Two(nn.Module):
        def __init__(self, *, rng):
            self.a, self.b = nn.Linear(3, 2, rng=rng), nn.Linear(3, 2, rng=rng)

    assert_resumes(tmp_path, make=lambda model, rng: {"two": Two(rng=rng)},
                   each=lambda step, parts, rng: step == 3 and parts["two"].__dict__.update(a=parts["two"].b, b=parts["two"].a))
    assert "warning" not in capsys.readouterr().out


class Decays(optim.SGD):
    gamma = 1.0


def test_a_default_of_the_class_of_an_optimizer_that_changes_is_told(tmp_path, capsys):
    run_of(tmp_path / "run", kind=Decays, each=lambda step, parts, rng: setattr(parts["optimizer"], "gamma", 0.9 * parts["optimizer"].gamma))
    assert "settings changed in the loop: optimizer.gamma was 'the value of its class', now 0.9" in capsys.readouterr().out


class Own(optim.SGD):
    def __init__(self, *given, held):
        super().__init__(*given)
        self.held = held


def test_what_an_optimizer_of_a_script_keeps_and_changes_is_told(tmp_path, capsys):
    run_of(tmp_path / "run", kind=lambda model, lr: Own(model, lr, held=Counts()), each=lambda step, parts, rng: parts["optimizer"].held())
    assert "settings changed in the loop: optimizer.held has other content than before" in capsys.readouterr().out


# ---------------------------------------------------------------- the random streams of a network that is replaced

class Pair(nn.Module):
    def __init__(self, student, teacher):
        self.student, self.teacher = student, teacher


def constant(copied):
    return copied.requires_grad_(False)


REPLACE = {"a frozen copy": lambda pair, rng: setattr(pair, "teacher", frozen_copy(pair.student)),
           "a deep copy": lambda pair, rng: setattr(pair, "teacher", constant(copy.deepcopy(pair.student))),
           "a copied layer": lambda pair, rng: setattr(pair.teacher, "dropout", copy.deepcopy(pair.student.dropout)),
           "a new layer": lambda pair, rng: setattr(pair.teacher, "dropout", nn.Dropout(0.3, rng=np.random.default_rng(1))),
           "a copy of the copy": lambda pair, rng: setattr(pair, "teacher", copy.deepcopy(pair.teacher))}


@pytest.mark.parametrize("save_every", [1, 2, 4])
@pytest.mark.parametrize("how", REPLACE)
def test_a_network_with_dropout_may_be_replaced_in_the_loop(tmp_path, how, save_every, capsys):
    """The copy has a stream of its own, whose key the checkpoint has."""
    draws: dict = {}

    def make(model, rng):
        student = Net(rng=rng)
        return {"pair": Pair(student, constant(copy.deepcopy(student)) if how == "a deep copy" else frozen_copy(student))}

    def each(step, parts, rng):
        pair = parts["pair"]
        if step in (2, 5):
            REPLACE[how](pair, rng)
        x = 100 * X[step]
        drawn = [net(x).data.tolist() for net in (pair.student, pair.teacher)]
        assert draws.setdefault(step, drawn) == drawn and drawn[0] != drawn[1]

    assert_resumes(tmp_path, make=make, each=each, save_every=save_every)
    assert "copied in the loop" not in capsys.readouterr().out


def test_an_attribute_of_the_class_of_an_optimizer_that_changes_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Decays, "gamma", 1.0)
    run_of(tmp_path / "run", kind=Decays, each=lambda step, parts, rng: setattr(Decays, "gamma", 0.5))
    assert "settings changed in the loop: test_fingerprint.Decays.gamma was 1.0, now 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("value", [nn.BatchNorm, 2.0])
def test_an_attribute_of_the_class_of_an_installed_module_that_changes_is_told(tmp_path, capsys, monkeypatch, value, installed):
    """Also one that is a class."""
    if installed:
        monkeypatch.setattr(sys.modules[__name__], "__file__", "/usr/lib/site-packages/networks.py")
    monkeypatch.setattr(Aliases, "tau", nn.Linear)
    run_of(tmp_path / "run", make=lambda model, rng: {"model": Aliases(rng=rng), "other": model}, kind=lambda model, lr: optim.SGD(model, lr),
           each=lambda step, parts, rng: step == 3 and setattr(Aliases, "tau", value))
    assert "settings changed in the loop: test_fingerprint.Aliases.tau was" in capsys.readouterr().out
