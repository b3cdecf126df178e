"""A part of a Module that would be neither trained nor saved is an error, wherever it is hidden."""

import functools
import random
import threading
import types
import weakref
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, ops
from minicl.methods import EMA, frozen_copy
from minicl.nn import Buffer, Dropout, Linear, Module, Parameter, Sequential
from minicl.optim import SGD


def rng(seed=0):
    return np.random.default_rng(seed)


def ones(*shape):
    return np.ones(shape, "float32")


def linear():
    return Linear(2, 2, rng=rng())


class Holder:
    def __init__(self, part):
        self.part = part


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part):
        self.part = part


def closure(part):
    return lambda x: part(x)


def default(part):
    def call(x, part=part):
        return part(x)
    return call


ELSEWHERE = []
HIDING_PLACES = {
    "set": lambda part: {part}, "frozenset": lambda part: frozenset([part]), "deque": lambda part: deque([part]),
    "bound method": lambda part: part.forward, "lambda": closure, "default argument": default,
    "partial": lambda part: functools.partial(closure(part)),
    "partial of method": lambda part: functools.partial(part.forward),
    "object": Holder, "object with slots": Slotted, "namespace": lambda part: types.SimpleNamespace(part=part),
    "object array": lambda part: np.array([part, None], dtype=object), "key of a dict": lambda part: {part: 1},
    "object in a list": lambda part: [1, Holder(part)],
    "step of a Sequential": lambda part: Sequential(closure(part), ops.relu),
    "elsewhere": lambda part: ELSEWHERE.append(part),
}
KINDS = {"Linear": linear, "Parameter": lambda: Parameter(ones(2, 2)), "Buffer": lambda: Buffer(ones(2)),
         "Dropout": lambda: Dropout(rng=rng()), "frozen copy": lambda: frozen_copy(linear())}


@pytest.mark.parametrize("place, kind", [
    *((place, linear) for place in HIDING_PLACES.values()), *((HIDING_PLACES["deque"], kind) for kind in KINDS.values()),
], ids=[*HIDING_PLACES, *KINDS])
def test_a_part_made_where_the_walk_does_not_find_it_is_an_error(place, kind):
    class Net(Module):
        def __init__(self):
            self.found = linear()
            part = kind()
            try:
                self.hidden = place(part)
            except (AttributeError, TypeError):              # a Parameter has no forward and is not in object arrays
                self.hidden = {part}
    try:
        with pytest.raises(TypeError, match="Net: it has parts that would be neither trained nor saved.*: (Linear|Para"
                                            "meter|Buffer|Dropout|Frozen)"):
            Net()
        Sequential(linear())                                 # the next module is not affected
    finally:
        ELSEWHERE.clear()


@given(st.recursive(st.just("part"), lambda inner: st.one_of(
    st.tuples(st.sampled_from(["list", "tuple", "dict", "Sequential"]), st.lists(inner, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["set", "closure", "object"]), st.lists(inner, min_size=1, max_size=1))), max_leaves=8))
@settings(max_examples=30, deadline=None)
def test_a_part_is_found_or_refused_however_containers_are_nested(shape):
    """A part is found if all containers around it are lists, tuples, dicts or Modules; otherwise the Module raises."""
    def hides(shape):
        return shape != "part" and (shape[0] in ("set", "closure", "object") or any(map(hides, shape[1])))

    def build(shape):
        if shape == "part":
            return linear()
        items = [build(item) for item in shape[1]]
        return {"list": list, "tuple": tuple, "dict": lambda items: dict(enumerate(items)),
                "Sequential": lambda items: Sequential(*[item for item in items if callable(item)] or [ops.relu],
                                                       ops.relu)
                if all(map(callable, items)) else items,
                "set": lambda items: Holder(items), "closure": lambda items: lambda: items,
                "object": Holder}[shape[0]](items)

    class Net(Module):
        def __init__(self):
            self.part = build(shape)

    if hides(shape):
        with pytest.raises(TypeError, match="neither trained nor saved"):
            Net()
    else:
        def count(shape):
            return 1 if shape == "part" else sum(map(count, shape[1]))
        assert len(Net().parameters()) == 2 * count(shape)


ATTRIBUTES = {name: place for name, place in HIDING_PLACES.items() if name not in ("elsewhere", "step of a Sequential")}


@pytest.mark.parametrize("place", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_a_hidden_part_made_outside_is_refused_at_first_and_later(place):
    class Net(Module):
        def __init__(self, part):
            self.found = linear()
            self.hidden = place(part)
    part = linear()
    with pytest.raises(TypeError, match="Net: it has parts that would be neither trained nor saved.*: Linear"):
        Net(part)
    net = Sequential(linear())
    net.steps.append(place(part))
    with pytest.raises(TypeError, match="Sequential: it has parts that would be neither trained nor saved.*: Linear"):
        SGD(net, 0.1)


HEAD = Linear(2, 2, rng=np.random.default_rng(0))


def test_a_function_that_uses_a_layer_of_its_script_is_refused():
    with pytest.raises(TypeError, match="neither trained nor saved.*: Linear"):
        Sequential(linear(), lambda x: HEAD(x))
    assert len(Sequential(HEAD, lambda x: HEAD(x)).parameters()) == 2        # it is also a step


class Draws(Module):
    def __init__(self, source):
        self.layer, self.source = linear(), source


@pytest.mark.parametrize("source", [
    np.random.default_rng(0), np.random.RandomState(0), np.random.PCG64(0), np.random.SeedSequence(0), random.Random(0),
    [random.Random(0)], {"a": random.Random(0)}, lambda source=random.Random(0): source.random()], ids=lambda source: type(source).__name__)
def test_a_source_of_random_numbers_is_refused(source):
    """A copy of the Module would draw the same numbers, or share the source, which is not saved."""
    with pytest.raises(TypeError, match="Draws: source (is|holds) a .*whose state would not be saved.*nn.Stream"):
        Draws(source)


@pytest.mark.parametrize("hold", [
    lambda x: {x}, lambda x: types.SimpleNamespace(a=x), lambda x: functools.partial(ops.mul, x), lambda x: lambda y: y * x,
    lambda x: deque([x])], ids=["set", "object", "partial", "closure", "deque"])
def test_a_tensor_to_be_trained_that_no_attribute_leads_to_is_refused(hold):
    trained, constant = (Tensor(np.ones((2, 2), dtype="float32"), requires_grad=value) for value in (True, False))
    Holds(hold(constant))
    with pytest.raises(TypeError, match=r"Holds: it has parts that would be neither trained nor saved.*: Tensor \(2, 2\)"):
        Holds(hold(trained))


class Holds(Module):
    def __init__(self, value):
        self.layer, self.value = linear(), value


class Discards(Module):
    """Makes parts that it does not keep: one is replaced, one fails, one is in a reference cycle."""

    def __init__(self):
        self.layer = linear()
        self.layer = linear()
        linear()
        cycle = Holder(linear())
        cycle.itself = cycle
        try:
            Sequential(linear(), None)
        except TypeError:
            pass
        self.again = self.layer


class Follows(Module):
    """Other objects also refer to parts that are found."""

    def __init__(self):
        self.online = Sequential(linear(), Dropout(rng=rng()))
        self.target = frozen_copy(self.online)
        self.ema = EMA(self.online, self.target)
        self.call = self.online.forward
        self.by_name = {self.online}


@pytest.mark.parametrize("make", [Discards, Follows])
def test_a_part_that_is_discarded_or_found_elsewhere_is_not_an_error(make):
    assert len(make().parameters()) == 2


def test_a_module_made_in_another_thread_is_not_counted():
    made = []

    class Net(Module):
        def __init__(self):
            thread = threading.Thread(target=lambda: made.append(Sequential(linear())))
            thread.start()
            thread.join()
            self.layer = linear()
    assert len(Net().parameters()) == len(made[0].parameters()) == 2


def test_a_module_whose_init_fails_leaves_nothing_behind():
    class Fails(Module):
        def __init__(self):
            ELSEWHERE.append(linear())
            raise KeyError("no")
    with pytest.raises(KeyError):
        Fails()
    Sequential(linear())
    ELSEWHERE.clear()


@pytest.mark.parametrize("value", [linear(), Parameter(ones(2)), [Buffer(ones(2))], {"a": (linear(),)}])
def test_a_part_of_the_class_is_refused(value):
    Net = type("Net", (Module,), {"layer": value})
    with pytest.raises(TypeError, match="Net.layer is, holds or uses a part that belongs to the class"):
        Net()


@pytest.mark.parametrize("parts", [
    lambda: {"a": {"b": linear()}, "a.b": linear()}, lambda: {1: linear(), "1": linear()},
    lambda: {"0": [linear()], "0.0": linear()}, lambda: {"b.c": Buffer(ones(1)), "b": {"c": Parameter(ones(2))}},
])
def test_two_parts_of_one_name_are_refused(parts):
    class Net(Module):
        def __init__(self):
            self.parts = parts()
    with pytest.raises(ValueError, match="Net: two parts are named 'parts"):
        Net()


def test_names_that_collide_later_are_refused_where_they_are_used():
    net = Sequential(linear())
    net.steps = {"a": {"b": linear()}, "a.b": linear()}
    for use in (net.state_dict, net.named_parameters, lambda: SGD(net, 0.1), lambda: net.load_state_dict({})):
        with pytest.raises(ValueError, match="two parts are named 'steps.a.b.weight'"):
            use()


def test_a_module_that_contains_itself_is_refused():
    class Net(Module):
        def __init__(self):
            self.layers = [linear()]
            self.layers.append(self)
    with pytest.raises(ValueError, match="Net: a part of it contains itself"):
        Net()


# ---------------------------------------------------------------- arrays that are not parts

class Centred(Module):
    def __init__(self, held=None):
        self.layer = linear()
        self.held = held
        self.fixed = np.arange(3)


CHANGES = {                                                  # (the first value, how a training loop changes it)
    "replaced": (lambda: np.zeros(2), lambda net: setattr(net, "held", np.ones(2))),
    "in place": (lambda: np.zeros(2), lambda net: net.held.__iadd__(1)),
    "Tensor": (lambda: Tensor(np.zeros(2)), lambda net: setattr(net, "held", Tensor(np.ones(2)))),
    "in a Tensor": (lambda: Tensor(np.zeros(2)), lambda net: net.held.data.__iadd__(1)),
    "None at first": (lambda: None, lambda net: setattr(net, "held", np.zeros(2))),
    "list": (lambda: [np.zeros(2)], lambda net: net.held[0].__iadd__(1)),
    "appended": (list, lambda net: net.held.append(np.zeros(2))),
    "dict": (lambda: {"a": (1, np.zeros(2))}, lambda net: net.held["a"][1].__iadd__(1)),
    "dtype": (lambda: np.zeros(2), lambda net: setattr(net, "held", np.zeros(2, "float32"))),
    "integers": (lambda: np.zeros(2, "int64"), lambda net: net.held.__iadd__(1)),
}


@pytest.mark.parametrize("make, change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("below", [False, True])
def test_an_array_that_changes_and_is_not_saved_is_warned_of(make, change, below):
    net = Centred(make())
    whole = Sequential(net, ops.relu) if below else net
    whole.state_dict(), frozen_copy(whole).state_dict()                      # a constant gives no warning
    change(net)
    with pytest.warns(UserWarning, match=f"state_dict: {'steps.0.' * below}held changed since the Centred was made.*keep it in a Buffer"):
        whole.state_dict()


def test_parts_and_values_that_are_not_arrays_change_without_a_warning():
    net = Centred([Buffer(np.zeros(2)), Parameter(np.zeros(2)), 0.5])
    net.held[0].data += 1
    net.held[1].data += 1
    net.held[2] = "text"
    net.eval().train().freeze().state_dict()


# ---------------------------------------------------------------- parts in the class, in the file, behind a weak reference

G = Linear(2, 2, rng=rng())


class UsesGlobal(Module):
    def forward(self, x):
        return G(x)


class UsesGlobalWithin(Module):
    def forward(self, x):
        return [f(x) for f in (lambda y: G(y),)][0]


class UsesGlobalElsewhere(Module):
    def forward(self, x):
        return self.other(x)

    @property
    def parts(self):
        return G

    def other(self, x):
        return self.parts(x)


class CopiesGlobal(Module):
    """An attribute has the name of the global, which __init__ uses."""

    def __init__(self):
        self.G = linear()
        self.copy = frozen_copy(G)

    def forward(self, x):
        return self.G(x)


class HasGlobal(Module):
    def __init__(self):
        self.layer = G

    def forward(self, x):
        return G(x)


CLASS_ATTRIBUTES = {"set": lambda: {linear()}, "object": lambda: Holder(linear()), "namespace": lambda: types.SimpleNamespace(part=linear()),
                    "list": lambda: [linear()], "deque": lambda: deque([linear()]), "lambda": lambda: closure(linear()),
                    "static method": lambda: staticmethod(closure(linear())), "Parameter": lambda: Parameter(ones(2)),
                    "tuple of objects": lambda: (Holder(linear()),)}


@pytest.mark.parametrize("make", CLASS_ATTRIBUTES.values(), ids=CLASS_ATTRIBUTES)
def test_a_part_of_the_class_is_an_error(make):
    Net = type("Net", (Module,), {"extra": make()})
    with pytest.raises(TypeError, match="Net: Net.extra .* neither trained nor saved. Set it in __init__"):
        Net()


@pytest.mark.parametrize("cls", [UsesGlobal, UsesGlobalWithin, UsesGlobalElsewhere])
def test_a_part_of_the_file_that_a_method_uses_is_an_error_unless_frozen(cls):
    for make in (cls, lambda: Sequential(Linear(2, 2, rng=rng()), cls())):
        with pytest.raises(TypeError, match=f"{cls.__name__}.* neither trained nor saved. Set it in __init__, or freeze"):
            make()
    G.freeze()
    try:
        cls()
    finally:
        G.unfreeze()


def test_a_global_that_is_an_attribute_or_shares_its_name_is_not_an_error():
    assert len(HasGlobal().parameters()) == 2 == len(CopiesGlobal().parameters())


def test_a_part_behind_a_weak_reference_is_an_error():
    part = linear()
    net = Centred()
    net.held = weakref.ref(part)
    with pytest.raises(TypeError, match="parts that would be neither trained nor saved.*Linear"):
        SGD(net, 0.1)
