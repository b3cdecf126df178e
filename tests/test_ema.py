"""The momentum encoder: no gradient and no optimizer changes the target, which follows weights and averages."""

import copy
import functools

import numpy as np
import pytest

from minicl import Tensor
from minicl.backend import to_device, to_host
from minicl.methods import BYOL, EMA, MoCo, frozen_copy
from minicl.nn import BatchNorm, Buffer, Linear, Module, Parameter, Sequential
from minicl.optim import AdamW


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32")


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def online_and_target(xp=np):
    rng = np.random.default_rng(0)
    online = Sequential(Linear(3, 4, rng=rng), BatchNorm(4), Linear(4, 2, rng=rng)).to(xp)
    return online, frozen_copy(online)


def test_a_target_begins_as_a_copy_without_parameters(xp):
    online, target = online_and_target(xp)
    assert_same(online.state_dict(), target.state_dict())
    assert target.named_parameters() == [] and len(target.named_buffers()) == 8
    for part in online.parameters():
        part.data += 1                                       # no array is shared
    assert not any((array == online.state_dict()[name]).any() for name, array in target.state_dict().items()
                   if "running" not in name)


def test_no_gradient_enters_a_target_even_on_the_tape(xp):
    _, target = online_and_target(xp)
    x = Tensor(to_device(normal(4, 3), xp), requires_grad=True)
    target(x).sum().backward()
    assert x.grad is not None and all(getattr(buffer, "grad", None) is None for _, buffer in target.named_buffers())


@pytest.mark.parametrize("m", [0.0, 0.9, 1.0])
def test_weights_and_running_averages_follow_by_the_same_average(xp, m):
    online, target = online_and_target(xp)
    ema = EMA(online, target)
    for part in online.parameters():
        part.data += 1
    for _ in "12":
        online(Tensor(to_device(5 + normal(6, 3), xp)))      # moves running_mean and running_var
        before = target.state_dict()
        ema.update(m)
        after, leader = target.state_dict(), online.state_dict()
        assert any("running_var" in name for name in after)
        for name in after:
            np.testing.assert_allclose(after[name], m * before[name] + (1 - m) * leader[name], rtol=1e-5, atol=1e-6)


def test_a_targets_running_averages_change_only_by_the_update(xp):
    _, target = online_and_target(xp)
    before = target.state_dict()
    target(Tensor(to_device(5 + normal(6, 3), xp)))          # in training mode, so normalised by its batch
    assert_same(before, target.state_dict())


def test_a_target_follows_across_moves_optimizers_and_loading(xp):
    online, target = online_and_target()
    ema = EMA(online, target)
    ema.update(0.5)
    online.to(xp), target.to(xp)                             # gives the models new arrays
    AdamW(online, 0.1)                                       # the online arrays become views of the optimizer's buffer
    online.load_state_dict({name: array + 2 for name, array in online.state_dict().items()})
    target.load_state_dict({name: array * 0 for name, array in target.state_dict().items()})
    ema.update(0.75)
    for name, array in target.state_dict().items():
        np.testing.assert_allclose(array, 0.25 * online.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_the_launches_of_an_update_do_not_grow_with_the_layers():
    """All parts of a target are views of one array."""
    online, target = online_and_target()
    EMA(online, target).update(0.9)
    assert len({id(buffer.data.base) for _, buffer in target.named_buffers()}) == 1


def test_wrong_uses_of_an_ema_raise():
    online, target = online_and_target()
    ema = EMA(online, target)
    with pytest.raises(ValueError, match=r"m must be a number in \[0, 1\], got 1.5"):
        ema.update(1.5)
    before = target.state_dict()
    for module in (online, target):
        module.eval()
        with pytest.raises(RuntimeError, match="update.. was called in evaluation mode"):
            ema.update(0.5)
        module.train()
    assert_same(before, target.state_dict())
    for wrong in (copy.deepcopy(online), frozen_copy(Sequential(Linear(3, 4, rng=np.random.default_rng(0))))):
        with pytest.raises(ValueError, match=r"expected target to be frozen_copy\(online\)"):
            EMA(online, wrong)
    online.steps[0].weight.data = online.steps[0].weight.data.astype("float64")
    with pytest.raises(ValueError, match="one dtype, got float32 and float64"):
        EMA(online, target).update(0.5)


class Counting(Module):
    """A Linear that counts its training steps, in buffers of a dtype."""

    def __init__(self, dtype, rng):
        super().__init__()
        self.linear = Linear(3, 4, rng=rng)
        self.steps, self.rows = Buffer(np.zeros((), dtype=dtype)), Buffer(np.zeros(2, dtype=dtype))

    def forward(self, x):
        self.steps.data[...] = self.steps.data + 1 < 100
        self.rows.data[...] += np.array([1, 0], dtype=self.rows.data.dtype)
        return self.linear(x)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_what_is_not_a_float_is_copied(dtype, rng):
    online = Counting(dtype, rng)
    target = frozen_copy(online)
    ema = EMA(online, target)
    for _ in range(3):
        online(normal(2, 3))
        online.linear.weight.data[...] += 1.0
        before = target.linear.weight.data.copy()
        ema.update(0.75)
        np.testing.assert_allclose(target.linear.weight.data, 0.75 * before + 0.25 * online.linear.weight.data, rtol=1e-6)
        for name in ("steps", "rows"):
            copied, original = getattr(target, name), getattr(online, name)
            assert copied.data.dtype == dtype and np.array_equal(copied.data, original.data)
            assert not np.shares_memory(copied.data, original.data) and copied.changed[2] == "EMA.update()"
    assert online.rows.data.tolist() == [{"bool": True}.get(dtype, 3), 0]


@pytest.mark.parametrize("kind, online, target", [("MoCo", "query", "key"), ("BYOL", "online", "target")])
@pytest.mark.parametrize("replaced", ["online", "target", "both"])
def test_a_network_that_is_replaced_is_an_error_and_loading_into_it_is_not(kind, online, target, replaced, rng):
    encoder, head = Sequential(Linear(3, 4, rng=rng), BatchNorm(4)), Linear(4, 2, rng=rng)
    model = MoCo(encoder, head, dim=2, queue=8, splits=1) if kind == "MoCo" else BYOL(encoder, head, Linear(2, 2, rng=rng))
    x = normal(6, 3)

    def loss_of(model):
        z = model(x)[1]
        return model.loss(z, model.encode_keys(x, rng), 0.5) if kind == "MoCo" else model.loss(z, model.targets(x))

    getattr(model, target).load_state_dict(getattr(model, online).state_dict())
    loss_of(model)
    model.update()
    if replaced in ("online", "both"):
        setattr(model, online, copy.deepcopy(getattr(model, online)))
    if replaced in ("target", "both"):
        setattr(model, target, frozen_copy(getattr(model, online)))
    loss_of(model)
    with pytest.raises(RuntimeError, match=f"{kind}: a network was replaced, but the EMA of the {kind} still moves the target"):
        model.update()


def test_a_loop_over_the_parameters_of_a_frozen_copy_gives_a_warning():
    online, target = online_and_target()
    with pytest.warns(UserWarning, match=r"Sequential.parameters\(\) is empty, since the weights of a frozen_copy are no Param"):
        assert list(zip(target.parameters(), online.parameters())) == []
    target.freeze(), target.requires_grad_(False)
    assert Sequential(BatchNorm(2).freeze()).parameters() and Module().parameters() == []


def test_an_update_of_a_frozen_network_says_that_it_is_frozen():
    online, target = online_and_target()
    ema = EMA(online, target)
    online.freeze()
    with pytest.raises(RuntimeError, match="leave it out while online is frozen, or unfreeze"):
        ema.update(0.5)
    online.unfreeze()
    ema.update(0.5)


class Scaled(Parameter):
    def __matmul__(self, other):
        return super().__matmul__(other) * 2.0


class Average(Buffer):
    weight = 0.1


class Own(Module):
    def __init__(self, part):
        self.part = part


def test_a_frozen_copy_keeps_the_classes_of_buffers_and_refuses_those_of_parameters():
    average = Average(np.ones(2))
    average.weight = 0.2
    copied = frozen_copy(Own(average)).part
    assert type(copied) is Average and copied.weight == 0.2 and copied.data is not average.data
    with pytest.raises(TypeError, match="frozen_copy: part is a Scaled, whose methods and attributes"):
        frozen_copy(Own(Scaled(np.ones((2, 2)))))


@pytest.mark.parametrize("kind", ["MoCo", "BYOL"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_layer_that_is_frozen_normalises_alike_in_both_networks(kind, when, xp, rng):
    """Whether it is frozen before the target is made or after; and again once it is not."""
    encoder = Sequential(Linear(3, 4, rng=rng), BatchNorm(4))
    if when == "before":
        encoder.freeze()
    head = Linear(4, 2, rng=rng)
    if kind == "MoCo":
        model = MoCo(encoder, head, dim=2, queue=8, m=0.9, splits=1).to(xp)
    else:
        model = BYOL(encoder, head, Linear(2, 2, rng=rng), m=0.9).to(xp)
    x = to_device(normal(6, 3), xp)

    def is_alike():
        z = model(x)[1].data
        target = model.encode_keys(x, np.random.default_rng(0)) if kind == "MoCo" else model.targets(x).data
        return np.allclose(to_host(z), to_host(target), rtol=1e-5, atol=1e-6)

    for _ in range(2):
        model.encoder.freeze()
        model.train()
        by_averages = to_host(model(x)[0].data)
        assert is_alike()
        model.encoder.unfreeze()
        assert is_alike() and not np.allclose(to_host(model(x)[0].data), by_averages)
        model.ema.update(0.0)                                # equal averages again


def test_a_target_of_ones_own_follows_the_mode_at_each_update():
    online, target = online_and_target()
    online[1].freeze()
    EMA(online, target).update(0.5)
    assert not target[1].training and target[0].training
    target.train()
    assert not target[1].training


class Gated(Module):
    """A layer whose gate is used through what hold(self) returns."""

    def __init__(self, hold, rng):
        self.layer, self.gate = Linear(3, 3, rng=rng), Linear(3, 3, rng=rng)
        self.features = 3
        self.held = hold(self)

    def through_gate(self, x):
        return self.gate(x)

    def forward(self, x):
        return self.layer(x) * self.held(x)


def closure(module):
    gate = module.gate

    def through(x):
        return gate(x)
    return through


SHARED = {"lambda": lambda module: lambda x: module.gate(x), "closure": closure,
          "nested": lambda module: Sequential(Linear(3, 3, rng=np.random.default_rng(1)), lambda x: x + module.gate(x)),
          "lru_cache": lambda module: functools.lru_cache(lambda x: module.gate(x)),
          "default": lambda module: lambda x, gate=module.gate: gate(x)}
COPIED = {"method": lambda module: module.through_gate, "partial": lambda module: functools.partial(module.gate.forward),
          "layer": lambda module: module.gate}


@pytest.mark.parametrize("copy_of", [copy.deepcopy, frozen_copy, lambda module: MoCo(
    module, Linear(3, 2, rng=np.random.default_rng(0)), dim=2, queue=8, splits=1)], ids=["deepcopy", "frozen_copy", "MoCo"])
@pytest.mark.parametrize("hold", SHARED)
def test_a_copy_whose_functions_would_use_the_original_is_refused(hold, copy_of, rng):
    with pytest.raises(TypeError, match="would go on using the original's part. Make it a method, or a Module"):
        copy_of(Gated(SHARED[hold], rng))


@pytest.mark.parametrize("hold", COPIED)
def test_a_copy_computes_with_its_own_parts_alone(hold, rng):
    module = Gated(COPIED[hold], rng)
    copies = [copy.deepcopy(module), frozen_copy(module)]
    x = normal(4, 3)
    before = module(x).data
    module.gate.weight.data += 1
    assert all((each(x).data == before).all() for each in copies)
    for each in copies:
        each.gate.weight.data[...] = 0
        each.gate.bias.data[...] = 0
        assert not each(x).data.any()


def by_hand(online, target, what):
    """Change modes of the target's batch norm, and whether update() is refused then."""
    if what == "eval":
        target[1].eval()
    elif what == "freeze":
        target[1].freeze()
    elif what == "online eval":
        online[1].eval()
    elif what == "whole eval and train":
        online.eval(), target.eval(), online.train(), target.train()
    elif what == "only online comes back":
        online.eval(), target.eval(), online.train()
    return what in ("eval", "only online comes back")


@pytest.mark.parametrize("what", ["eval", "freeze", "online eval", "whole eval and train", "only online comes back"])
@pytest.mark.parametrize("updates", [0, 1])
def test_a_mode_of_the_target_is_never_undone_silently(what, updates):
    online, target = online_and_target()
    ema = EMA(online, target)
    for _ in range(updates):
        ema.update(0.9)
    if by_hand(online, target, what):
        with pytest.raises(RuntimeError, match="mode, but the target's is not|in evaluation mode"):
            ema.update(0.9)
        online.train(), target.train(), ema.update(0.9)
        return
    for _ in range(2):
        ema.update(0.9)
    assert [layer.training for layer in target.modules()] == [True, True, what not in ("freeze", "online eval"), True]
    online[1].unfreeze()
    ema.update(0.9)
    assert target[1].training == (what != "freeze")          # which lasts until unfreeze()
    target[1].unfreeze()
    ema.update(0.9)
    assert target[1].training


@pytest.mark.parametrize("order", [("target", "online"), ("online", "target")])
@pytest.mark.parametrize("update_between", [False, True])
def test_the_freeze_of_a_target_outlasts_that_of_online(order, update_between):
    online, target = online_and_target()
    ema = EMA(online, target)
    for which in order:
        {"online": online, "target": target}[which][1].freeze()
        if update_between:
            ema.update(0.9)
    ema.update(0.9)
    online[1].unfreeze()
    ema.update(0.9)
    assert online[1].training and not target[1].training
    target[1].unfreeze()
    ema.update(0.9)
    assert target[1].training


def test_a_target_that_is_frozen_as_a_whole_follows():
    online, target = online_and_target()
    ema, before = EMA(online, target), target[0].weight.data.copy()
    target.freeze()
    online[0].weight.data[...] = 3.0
    ema.update(0.5)
    np.testing.assert_allclose(target[0].weight.data, (before + 3) / 2, rtol=1e-6)
    assert not any(layer.training for layer in target.modules())


@pytest.mark.parametrize("modules", [lambda online, target: online.modules(), lambda online, target: [*online.modules(), *target.modules()]])
def test_batch_norms_in_evaluation_mode_stay_so_in_both_from_epoch_to_epoch(modules):
    online, target = online_and_target()
    ema = EMA(online, target)
    for _ in range(3):
        online.train(), target.train()
        for layer in modules(online, target):
            if isinstance(layer, BatchNorm):
                layer.eval()
        ema.update(0.9)
        assert [layer.training for layer in target.modules()] == [True, True, False, True]
