"""Hostile uses of modules, optimizers and methods: each is right, or an error that says why."""

import copy
import functools
import pickle
import threading
import types
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, nn, ops
from minicl.backend import to_device, to_host
from minicl.methods import BYOL, CLIP, CPC, EMA, MoCo, Queue, WindowEncoder, frozen_copy
from minicl.nn import BatchNorm, Buffer, Dropout, Linear, Module, Parameter, Sequential, Stream
from minicl.optim import LARS, SGD, Adam, AdamW

OPTIMIZERS = {
    "SGD": lambda model: SGD(model, 0.01, weight_decay=0.1), "plain SGD": lambda model: SGD(model, 0.01, momentum=0.0),
    "Nesterov": lambda model: SGD(model, 0.01, nesterov=True, weight_decay=0.1),
    "Adam": lambda model: Adam(model, 0.1, weight_decay=0.1), "AdamW": lambda model: AdamW(model, 0.1, weight_decay=0.1),
    "LARS": lambda model: LARS(model, 0.1, weight_decay=0.1, eta=0.1),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def rng(seed=0):
    return np.random.default_rng(seed)


def ones(*shape):
    return np.ones(shape, "float32")


# ---------------------------------------------------------------- parts that the walk does not find

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
    "partial": lambda part: functools.partial(closure(part)), "partial of method": lambda part: functools.partial(part.forward),
    "object": Holder, "object with slots": Slotted, "namespace": lambda part: types.SimpleNamespace(part=part),
    "object array": lambda part: np.array([part, None], dtype=object), "key of a dict": lambda part: {part: 1},
    "object in a list": lambda part: [1, Holder(part)], "step of a Sequential": lambda part: Sequential(closure(part), ops.relu),
    "elsewhere": lambda part: ELSEWHERE.append(part), "iterator": lambda part: iter([part]),
}
KINDS = {"Linear": linear, "Parameter": lambda: Parameter(ones(2, 2)), "Buffer": lambda: Buffer(ones(2)),
         "Dropout": lambda: Dropout(rng=rng()), "frozen copy": lambda: frozen_copy(linear())}


@pytest.mark.parametrize("place", HIDING_PLACES.values(), ids=HIDING_PLACES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_part_made_where_the_walk_does_not_find_it_is_an_error(place, kind):
    class Net(Module):
        def __init__(self):
            self.found, part = linear(), kind()
            try:
                self.hidden = place(part)
            except (AttributeError, TypeError):              # a Parameter has no forward and is not in object arrays
                self.hidden = {part}
    try:
        with pytest.raises(TypeError, match="Net: it has parts that would be neither trained nor saved.*: (Linear|Para"
                                            "meter|Buffer|Dropout|Frozen)"):
            Net()
        Sequential(linear())                                 # and the next module is none the worse
    finally:
        ELSEWHERE.clear()


@given(st.recursive(st.just("part"), lambda inner: st.one_of(
    st.tuples(st.sampled_from(["list", "tuple", "dict", "Sequential"]), st.lists(inner, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["set", "closure", "object"]), st.lists(inner, min_size=1, max_size=1))), max_leaves=8))
@settings(max_examples=60, deadline=None)
def test_a_part_is_found_or_refused_however_containers_are_nested(shape):
    """Found if all containers on its way are lists, tuples, dicts and Modules; otherwise making the module raises."""
    def hides(shape):
        return shape != "part" and (shape[0] in ("set", "closure", "object") or any(map(hides, shape[1])))

    def build(shape):
        if shape == "part":
            return linear()
        items = [build(item) for item in shape[1]]
        return {"list": list, "tuple": tuple, "dict": lambda items: dict(enumerate(items)),
                "Sequential": lambda items: Sequential(*[item for item in items if callable(item)] or [ops.relu], ops.relu)
                if all(map(callable, items)) else items,
                "set": lambda items: Holder(items), "closure": lambda items: lambda: items, "object": Holder}[shape[0]](items)

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
def test_a_part_made_outside_is_refused_in_such_a_place_too_and_when_it_comes_there_later(place):
    class Net(Module):
        def __init__(self, part):
            self.found, self.hidden = linear(), place(part)
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
    assert len(Sequential(HEAD, lambda x: HEAD(x)).parameters()) == 2        # found by its own place


class Discards(Module):
    """Makes parts that it does not keep: replaced, in a failed attempt, in a cycle that only the collector frees."""

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
    """Another object leads to parts that are found anyway."""

    def __init__(self):
        self.online = Sequential(linear(), Dropout(rng=rng()))
        self.target = frozen_copy(self.online)
        self.ema, self.call, self.by_name = EMA(self.online, self.target), self.online.forward, {self.online}


@pytest.mark.parametrize("make", [Discards, Follows])
def test_a_part_that_is_not_kept_or_is_found_otherwise_is_no_false_alarm(make):
    assert len(make().parameters()) == 2


def test_a_module_made_in_another_thread_meanwhile_is_not_ours():
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
    with pytest.raises(TypeError, match="Net.layer is a part that belongs to the class"):
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


# ---------------------------------------------------------------- freezing

class Net(Module):
    def __init__(self, seed=0):
        self.encoder = Sequential(Linear(3, 4, rng=rng(seed)), BatchNorm(4), Dropout(0.5, rng=rng(seed)))
        self.head = Linear(4, 2, rng=rng(seed))

    def forward(self, x):
        return self.head(self.encoder(x))


def take_step(model, optimizer, x):
    optimizer.zero_grad()
    (model(Tensor(x)) * model(Tensor(x))).sum().backward()
    optimizer.step()


@each_optimizer
def test_frozen_weights_do_not_move_whenever_they_were_frozen(xp, make):
    model, data = Net().to(xp), rng()
    optimizer = make(model)
    for frozen in (False, True, True, False, True):          # after the optimizer was made, half-way, and once more
        model.encoder.unfreeze()
        if frozen:
            model.encoder.freeze()
            model.train()
        before = {**model.state_dict(), **optimizer.state_dict()}
        for _ in "12":
            take_step(model, optimizer, to_device(data.standard_normal((8, 3), dtype="float32"), xp))
        after = {**model.state_dict(), **optimizer.state_dict()}
        still = {name for name in before if np.array_equal(before[name], after[name])}
        assert {name for name in before if "encoder" in name} <= still if frozen else not any(
            "0.weight" in name for name in still if not (name.startswith("momentum") and make is OPTIMIZERS["plain SGD"]))
        assert "head.weight" not in still and "steps.head.weight" not in still


@each_optimizer
@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_each_parameter_moves_as_if_its_own_optimizer_had_taken_the_steps_in_which_it_was_not_frozen(make, frozen_at):
    """One optimizer over three parameters, frozen in any pattern, against one for each."""
    def parameters():
        data = rng(1)
        return {"a": Parameter(data.standard_normal((3, 2))), "b": Parameter(data.standard_normal((2, 2))),
                "c": Parameter(data.standard_normal(3))}

    together, alone = parameters(), parameters()
    optimizer, optimizers = make(list(together.items())), {name: make([(name, p)]) for name, p in alone.items()}
    data = rng(2)
    for frozen in frozen_at:
        optimizer.zero_grad()
        for name, p in together.items():
            p.requires_grad = name not in frozen
            g = data.standard_normal(p.shape)
            p.grad[...] = alone[name].grad[...] = g
        if len(frozen) == 3:
            with pytest.raises(RuntimeError, match="all its parameters are frozen"):
                optimizer.step()
            continue
        optimizer.step()
        for name in set("abc") - frozen:
            optimizers[name].step()
    for name in "abc":
        np.testing.assert_allclose(together[name].data, alone[name].data, rtol=1e-12)


def test_what_is_frozen_stays_in_evaluation_mode_until_it_is_unfrozen():
    model = Net()
    assert model.encoder.freeze() is model.encoder and model.train().training
    assert not any(module.training or module._frozen is False for module in model.encoder.modules())
    x, before = Tensor(rng().standard_normal((8, 3), dtype="float32"), requires_grad=True), model.state_dict()
    model(x).sum().backward()
    assert x.grad.any() and model.head.weight.grad.any() and model.encoder[0].weight.grad is None
    np.testing.assert_array_equal(before["encoder.steps.1.running_mean"], model.state_dict()["encoder.steps.1.running_mean"])
    assert all(module.training for module in model.encoder.unfreeze().modules())
    assert all(p.requires_grad for p in model.parameters())


@each_optimizer
def test_a_checkpoint_made_while_frozen_goes_on_identically(make):
    def run(save_at):
        model, data = Net(), rng()
        optimizer = make(model)
        for step in range(6):
            (model.encoder.freeze if 1 <= step < 4 else model.encoder.unfreeze)()
            if step == save_at:
                state, other = (model.state_dict(), optimizer.state_dict()), Net(seed=5)
                other_optimizer = make(other)
                other.load_state_dict(state[0]), other_optimizer.load_state_dict(state[1])
                (other.encoder.freeze if 1 <= step < 4 else other.encoder.unfreeze)()
                model, optimizer = other, other_optimizer
            take_step(model, optimizer, data.standard_normal((8, 3), dtype="float32"))
        return model.state_dict()
    whole = run(None)
    for save_at in (2, 4):
        resumed = run(save_at)
        for name, array in whole.items():
            np.testing.assert_array_equal(array, resumed[name], err_msg=name)


# ---------------------------------------------------------------- gradients that are no numbers, or too large

@each_optimizer
@pytest.mark.parametrize("value", [2e19, -2e19, 3e38, np.inf, -np.inf, np.nan])
def test_a_gradient_that_cannot_be_used_is_an_error_and_changes_nothing(make, value):
    model, x = Net(), rng().standard_normal((8, 3), dtype="float32")
    optimizer = make(model)
    take_step(model, optimizer, x)
    before = {**model.state_dict(), **optimizer.state_dict()}
    optimizer.zero_grad()
    model.encoder[0].weight.grad[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"the gradient \(encoder.steps.0.weight\) is not finite, or too long"):
        optimizer.step()
    for name, array in {**model.state_dict(), **optimizer.state_dict()}.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    take_step(model, optimizer, x)                           # and training goes on
    assert all(np.isfinite(array).all() for array in {**model.state_dict(), **optimizer.state_dict()}.values())


@each_optimizer
@pytest.mark.parametrize("value", [1e18, 1e-30, 1e-45])
def test_a_large_or_tiny_gradient_is_survived(xp, make, value):
    """LARS's norms too: their squares would overflow or vanish in float32."""
    p = Parameter(to_device(ones(3, 4), xp))
    optimizer = make([("p", p)])
    for scale in (value, 1.0, 1.0):
        optimizer.zero_grad()
        p.grad[...] = scale
        optimizer.step()
        assert np.isfinite(to_host(p.data)).all()
    assert all(np.isfinite(array).all() for array in optimizer.state_dict().values())


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-10, 1.0, 1e10, 1e17])
def test_lars_step_is_that_of_its_formula_at_every_scale(xp, scale):
    w = Parameter(to_device(ones(4, 4), xp))
    optimizer = LARS([("w", w)], 1.0, momentum=0.0, weight_decay=0.0, eta=0.1)
    w.grad[...] = scale
    optimizer.step()                                         # lr eta |w| g / |g| = 0.1
    np.testing.assert_allclose(to_host(w.data), 0.9, rtol=1e-5)


@each_optimizer
@pytest.mark.parametrize("lr", [-0.1, np.nan, np.inf])
def test_a_step_with_a_bad_rate_is_an_error_and_changes_nothing(make, lr):
    model = Net()
    optimizer = make(model)
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"step\(lr\) expected a finite lr >= 0"):
        optimizer.step(lr)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


# ---------------------------------------------------------------- streams: dropout in copies

def masks(module, count=3):
    x = Tensor(ones(4, 8))
    return np.stack([module(x).data != 0 for _ in range(count)])


@pytest.mark.parametrize("copied", [frozen_copy, copy.deepcopy])
def test_a_copy_draws_other_masks_than_its_original_and_than_other_copies(copied):
    layer = Sequential(Dropout(0.5, rng=rng()))
    layers = [layer, copied(layer), copied(layer)]
    layers.append(copied(layers[1]))
    drawn = [masks(each) for each in layers]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert 0.3 < (first != second).mean() < 0.7


def test_a_target_that_loads_its_originals_state_still_draws_its_own_masks():
    layer = Sequential(Dropout(0.5, rng=rng()))
    target = frozen_copy(layer)
    target.load_state_dict(layer.state_dict())
    assert (masks(layer) != masks(target)).any()


@pytest.mark.parametrize("make", ["BYOL", "MoCo"])
def test_streams_resume_bit_for_bit_in_methods(make):
    """Of the online network and of its target, into a model that was made with other seeds."""
    def model(seed):
        encoder = nn.MLP((2, 2, 1), (6,), rng=rng(seed))
        head = Sequential(Dropout(0.5, rng=rng(seed + 1)), Linear(6, 4, rng=rng(seed + 2)))
        return BYOL(encoder, head, linear_head(seed)) if make == "BYOL" else MoCo(encoder, head, dim=4, queue=16, splits=1)

    def linear_head(seed):
        return Linear(4, 4, rng=rng(seed + 3))

    def step(model, data):
        x = data.standard_normal((4, 2, 2, 1), dtype="float32")
        z = model(x)[1]
        target = model.targets(x) if make == "BYOL" else model.encode_keys(x, data)
        loss = model.loss(z, target) if make == "BYOL" else model.loss(z, target, 0.2)
        model.update()
        return loss.item()

    whole, data = model(0), rng(3)
    losses = [step(whole, data) for _ in range(4)]
    first, other, data = model(0), model(9), rng(3)
    assert [step(first, data) for _ in range(2)] == losses[:2]
    other.load_state_dict(first.state_dict())
    assert [step(other, data) for _ in range(2)] == losses[2:]


def test_dropout_does_not_give_the_positive_away_in_a_momentum_encoder():
    """With unrelated views nothing tells query i that key i is its positive, unless both drop the same features."""
    data, d = rng(), 64
    encoder = Sequential(Dropout(0.9, rng=rng(1)))
    target = frozen_copy(encoder)
    agree = []
    for _ in range(50):
        online, key = (module(Tensor(1 + 0.01 * data.random((32, d)).astype("float32"))).data > 0
                       for module in (encoder, target))
        agree.append((online & key).sum(axis=1).mean())
    assert np.mean(agree) < 1.5 * d * 0.1**2                 # chance is 0.64 shared features; leaked masks share 6.4


@pytest.mark.parametrize("bad", [0, None, np.random.RandomState(0), "seed"])
def test_a_stream_wants_a_generator(bad):
    for make in (Stream, lambda rng: Dropout(rng=rng), lambda rng: Linear(2, 2, rng=rng)):
        with pytest.raises(TypeError, match="rng: expected a numpy Generator"):
            make(bad)


# ---------------------------------------------------------------- copies and pickles

@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
@each_optimizer
def test_an_optimizer_is_not_copied(make, duplicate):
    model = Net()
    optimizer = make(model)
    for thing in (optimizer, (model, optimizer)):
        if duplicate is not copy.copy or thing is optimizer:
            with pytest.raises(TypeError, match="cannot be copied or pickled.*load_state_dict"):
                duplicate(thing)


@each_optimizer
def test_a_copy_of_a_model_that_is_trained_shares_no_array_with_it(make):
    model, x = Net(), rng().standard_normal((8, 3), dtype="float32")
    optimizer = make(model)
    take_step(model, optimizer, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = other.state_dict()
        take_step(model, optimizer, x)
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        trained, start = make(other), model.state_dict()
        take_step(other, trained, x)
        assert (other.head.weight.data != before["head.weight"]).any()
        assert all(np.array_equal(array, start[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])
def test_the_target_of_a_copied_method_follows_the_copied_model(duplicate):
    encoder = nn.MLP((2, 2, 1), (6,), rng=rng())
    model = BYOL(encoder, Linear(6, 4, rng=rng()), Linear(4, 4, rng=rng()), m=0.5)
    model.update()                                           # the target is views of one array now
    other = duplicate(model)
    for p in other.online.parameters():
        p.data += 1
    start, before = model.target.state_dict(), other.target.state_dict()
    other.update()
    for name, array in other.target.state_dict().items():
        np.testing.assert_allclose(array, before[name] + 0.5, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(array, start[name]) for name, array in model.target.state_dict().items())


# ---------------------------------------------------------------- states that do not fit

SPOILERS = {
    "missing": lambda x: None, "float64": lambda x: x.astype("float64"), "float16": lambda x: np.ones(x.shape, "float16"),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder()), "NaN": lambda x: np.full_like(x, np.nan),
    "infinity": lambda x: np.full_like(x, -np.inf), "objects": lambda x: x.astype(object), "strings": lambda x: x.astype(str),
    "0-d": lambda x: x.sum(), "an axis more": lambda x: x[None], "an axis less": lambda x: x[0], "longer": lambda x: np.r_[x, x],
    "a list": lambda x: x.tolist(), "bool": lambda x: x > 0, "complex": lambda x: x + 0j, "a Tensor": lambda x: Tensor(x * 1.0),
    "negative": lambda x: -1 - np.abs(x),
}


@pytest.mark.parametrize("spoil", SPOILERS, ids=SPOILERS)
@pytest.mark.parametrize("owner", ["model", "optimizer", "queue"])
def test_loading_changes_nothing_unless_all_of_it_fits(owner, spoil):
    """Each entry of a state in turn is spoilt, the last ones too, when all others might have been written."""
    model = Net()
    thing = {"model": model, "optimizer": Adam(model, 0.1), "queue": Queue(3, 2)}[owner]
    for name, array in thing.state_dict().items():
        if spoil in ("NaN", "infinity", "an axis less", "negative") and (array.dtype.kind == "i") != (spoil == "negative"):
            continue
        if spoil == "0-d" and array.ndim == 0 or spoil == "negative" and name.endswith("stream"):
            continue
        state = {key: np.ones_like(value) for key, value in thing.state_dict().items()}
        state[name] = SPOILERS[spoil](np.atleast_1d(array)) if array.ndim == 0 and spoil == "longer" else \
            SPOILERS[spoil](array)
        if state[name] is None:
            del state[name]
        before = thing.state_dict()
        with pytest.raises((ValueError, TypeError)):
            thing.load_state_dict(state)
        for key, value in thing.state_dict().items():
            np.testing.assert_array_equal(value, before[key], err_msg=f"{spoil} {name}: {key}")


@pytest.mark.parametrize("state", [None, [], "state", 3, [("a", 1)]])
def test_a_state_is_a_dict(state):
    for thing in (Net(), SGD(Net(), 0.1)):
        with pytest.raises(TypeError, match="expected a state_dict"):
            thing.load_state_dict(state)


def test_step_counts_that_contradict_each_other_are_refused():
    optimizer = SGD(Net(), 0.1)
    state = optimizer.state_dict()
    state["steps.head.weight"] = np.array(3)
    with pytest.raises(ValueError, match="step counts must lie in"):
        optimizer.load_state_dict(state)


# ---------------------------------------------------------------- options

def encoder():
    return nn.MLP((4, 4, 1), (6,), rng=rng())


SIZES = [0, -1, 2.0, 1.5, "3", None, True, float("nan")]
NUMBERS = [-0.1, float("nan"), float("inf"), "0.1", None, True, [0.1]]
OPTIONS = {                                                  # name: (make(value), values that are refused)
    "Linear.in_features": (lambda v: Linear(v, 3, rng=rng()), SIZES),
    "Linear.out_features": (lambda v: Linear(3, v, rng=rng()), SIZES),
    "Conv2d.in_channels": (lambda v: nn.Conv2d(v, 3, rng=rng()), SIZES),
    "Conv2d.out_channels": (lambda v: nn.Conv2d(3, v, rng=rng()), SIZES),
    "Conv2d.kernel_size": (lambda v: nn.Conv2d(3, 3, v, rng=rng()), [*SIZES, (3, 3)]),
    "Conv2d.stride": (lambda v: nn.Conv2d(3, 3, rng=rng(), stride=v), SIZES),
    "Conv2d.padding": (lambda v: nn.Conv2d(3, 3, rng=rng(), padding=v), [-1, 0.5, "same", True]),
    "BatchNorm.num_features": (BatchNorm, SIZES), "BatchNorm.splits": (lambda v: BatchNorm(3, splits=v), SIZES),
    "BatchNorm.momentum": (lambda v: BatchNorm(3, momentum=v), [*NUMBERS, 1.1]),
    "BatchNorm.eps": (lambda v: BatchNorm(3, eps=v), [*NUMBERS, 0]),
    "LayerNorm.normalized_shape": (nn.LayerNorm, [*SIZES, (3,)]), "LayerNorm.eps": (lambda v: nn.LayerNorm(3, eps=v), [*NUMBERS, 0]),
    "Dropout.p": (lambda v: Dropout(v, rng=rng()), [*NUMBERS, 1, 1.5]),
    "Embedding.num_embeddings": (lambda v: nn.Embedding(v, 3, rng=rng()), SIZES),
    "Embedding.embedding_dim": (lambda v: nn.Embedding(3, v, rng=rng()), SIZES),
    "GRU.input_size": (lambda v: nn.GRU(v, 3, rng=rng()), SIZES), "GRU.hidden_size": (lambda v: nn.GRU(3, v, rng=rng()), SIZES),
    "MLP.image_shape": (lambda v: nn.MLP(v, rng=rng()), [(4, 4), (4, 4, 0), (4, 4, 1.0), (1, 4, 4, 1), 16]),
    "MLP.widths": (lambda v: nn.MLP((4, 4, 1), (v,), rng=rng()), SIZES),
    "ConvNet.channels": (lambda v: nn.ConvNet((8, 8, 1), (v,), rng=rng()), SIZES),
    "ConvNet.strides": (lambda v: nn.ConvNet((8, 8, 1), (3,), strides=(v,), rng=rng()), SIZES),
    "ConvNet.grid": (lambda v: nn.ConvNet((8, 8, 1), (3,), grid=v, rng=rng()), SIZES),
    "ConvNet without layers": (lambda v: nn.ConvNet((8, 8, 1), v, rng=rng()), [()]),
    "ResNet9.width": (lambda v: nn.ResNet9((8, 8, 3), v, rng=rng()), SIZES),
    "ResNet18.width": (lambda v: nn.ResNet18((8, 8, 3), v, rng=rng()), SIZES),
    "Transformer.vocabulary": (lambda v: nn.Transformer(v, 5, 8, rng=rng()), SIZES),
    "Transformer.length": (lambda v: nn.Transformer(5, v, 8, rng=rng()), SIZES),
    "Transformer.width": (lambda v: nn.Transformer(5, 5, v, heads=1, rng=rng()), SIZES),
    "Transformer.depth": (lambda v: nn.Transformer(5, 5, 8, depth=v, rng=rng()), [-1, 1.0, "1", None, True]),
    "Transformer.heads": (lambda v: nn.Transformer(5, 5, 8, heads=v, rng=rng()), [*SIZES, 3, 16]),
    "BagOfTokens.vocabulary": (lambda v: nn.BagOfTokens(v, rng=rng()), SIZES),
    "head.hidden": (lambda v: nn.projection_head("mlp", 4, hidden=v, rng=rng()), [v for v in SIZES if v is not None]),
    "head.dim": (lambda v: nn.projection_head("mlp", 4, dim=v, rng=rng()), SIZES),
    "head.kind": (lambda v: nn.projection_head(v, 4, rng=rng()), ["MLP", None, ""]),
    "Sequential": (Sequential, [[ops.relu], None, 3, "relu"]),
    "SGD.lr": (lambda v: SGD(linear(), v), [*NUMBERS, 0]), "SGD.weight_decay": (lambda v: SGD(linear(), 0.1, weight_decay=v), NUMBERS),
    "SGD.momentum": (lambda v: SGD(linear(), 0.1, momentum=v), [*NUMBERS, 1]),
    "Adam.beta1": (lambda v: Adam(linear(), 0.1, betas=(v, 0.9)), [*NUMBERS, 1]),
    "Adam.beta2": (lambda v: Adam(linear(), 0.1, betas=(0.9, v)), [*NUMBERS, 1]),
    "Adam.betas": (lambda v: Adam(linear(), 0.1, betas=v), [0.9, (0.9,), (0.9, 0.9, 0.9), None]),
    "Adam.eps": (lambda v: Adam(linear(), 0.1, eps=v), [*NUMBERS, 0, 1e-50]),
    "LARS.eta": (lambda v: LARS(linear(), 0.1, eta=v), [*NUMBERS, 0]),
    "what is optimized": (lambda v: SGD(v, 0.1), [[], linear().parameters(), None, 3, "model", linear, Sequential(),
                                                 [("a", Parameter(ones(2))), ("a", Parameter(ones(2)))],
                                                 [("a", Tensor(ones(2), requires_grad=True) * 2)], [("a", ones(2))],
                                                 2 * [("a", Parameter(ones(2)))],
                                                 [("a", Parameter(ones(2))), ("b", Parameter(np.ones(2)))]]),
    "MoCo.m": (lambda v: MoCo(encoder(), linear(), dim=2, m=v), [*NUMBERS, 1]),
    "MoCo.dim": (lambda v: MoCo(encoder(), linear(), dim=v), SIZES),
    "MoCo.queue": (lambda v: MoCo(encoder(), linear(), dim=2, queue=v), SIZES),
    "MoCo.splits": (lambda v: MoCo(encoder(), linear(), dim=2, splits=v), SIZES),
    "BYOL.m": (lambda v: BYOL(encoder(), linear(), linear(), m=v), [*NUMBERS, 1]),
    "EMA.update": (lambda v: ema().update(v), [*NUMBERS, 1.1]),
    "Queue.capacity": (lambda v: Queue(v, 2), SIZES), "Queue.dim": (lambda v: Queue(2, v), SIZES),
    "CLIP.tau": (lambda v: CLIP(encoder(), encoder(), tau=v, rng=rng()), [0, *NUMBERS, 0.001, 1e-9, 0.0099]),
    "CLIP.dim": (lambda v: CLIP(encoder(), encoder(), v, rng=rng()), SIZES),
    "CPC.ahead": (lambda v: CPC(WindowEncoder(2, 2, rng=rng()), None, v, rng=rng()), SIZES),
    "WindowEncoder.channels": (lambda v: WindowEncoder(v, 2, rng=rng()), SIZES),
    "WindowEncoder.window": (lambda v: WindowEncoder(2, v, rng=rng()), SIZES),
    "WindowEncoder.hidden": (lambda v: WindowEncoder(2, 2, hidden=v, rng=rng()), SIZES),
    "WindowEncoder.features": (lambda v: WindowEncoder(2, 2, features=v, rng=rng()), SIZES),
}


def ema():
    online = linear()
    return EMA(online, frozen_copy(online))


@pytest.mark.parametrize("option", OPTIONS, ids=OPTIONS)
def test_an_option_outside_its_range_is_refused_and_named(option):
    make, values = OPTIONS[option]
    for value in values:
        with pytest.raises((ValueError, TypeError)) as error:
            make(value)
        assert any(word in str(error.value) for word in ("must be", "expected", "SGD: got no")), (value, str(error.value))
