"""A part that a Module gains, loses or replaces after its optimizer or EMA was made gives an error or a warning."""

import collections
import contextlib
import copy
import functools
import types

import numpy as np
import pytest

from minicl import Tensor, contrastive, nn, ops, optim
from minicl.methods.ema import EMA, frozen_copy


def linear():
    return nn.Linear(3, 3, rng=np.random.default_rng(1))


class Net(nn.Module):
    def __init__(self):
        self.first = linear()
        self.spare = None
        self.last = None
        self.blocks = [nn.Sequential(linear()), linear()]
        self.named = {"a": linear()}
        self.later = []


def replace_weight(net):
    net.first.weight = nn.Parameter(net.first.weight.data.copy())


def replace_in_list(net):
    del net.blocks[1]
    net.blocks.append(linear())


CHANGES = {
    "replaced": (lambda net: setattr(net, "first", linear()), "first.weight"),
    "set": (lambda net: setattr(net, "spare", linear()), "spare.weight"),
    "set below": (lambda net: setattr(net.blocks[1], "bias", nn.Parameter(np.ones(3, "float32"))), "blocks.1.bias"),
    "weight": (replace_weight, "first.weight"),
    "appended": (lambda net: net.blocks.append(linear()), "blocks.2.weight"),
    "in a list": (replace_in_list, "blocks.1.weight"),
    "into an empty list": (lambda net: net.later.append(linear()), "later.0.weight"),
    "into a dict": (lambda net: net.named.update(b=linear()), "named.b.weight"),
    "replaced in a dict": (lambda net: net.named.update(a=linear()), "named.a.weight"),
    "set to None": (lambda net: setattr(net, "first", None), "first.weight"),
    "deleted": (lambda net: delattr(net, "first"), "first.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_late_change_of_parts_is_an_error(change):
    alter, name = CHANGES[change]
    net = Net()
    target = None
    target = frozen_copy(net)
    optimizer = optim.SGD(net, lr=0.1)
    ema = EMA(net, target)
    optimizer.grads[...] = 1
    optimizer.step()
    ema.update(0.5)
    before = net.blocks[0].state_dict()
    alter(net)
    for act, owner in ((optimizer.step, "SGD"), (optimizer.state_dict, "SGD"), (lambda: ema.update(0.5), "EMA")):
        with pytest.raises(RuntimeError, match=rf"^{owner}: .*{name}.* the Net after the {owner} was made"):
            act()
    assert all((before[key] == x).all() for key, x in net.blocks[0].state_dict().items())
    optim.SGD(net, lr=0.1)


def test_a_change_of_the_target_is_an_error():
    net = Net()
    ema = EMA(net, frozen_copy(net))
    ema.target.first = linear()
    with pytest.raises(RuntimeError, match="EMA: first.weight"):
        ema.update(0.5)


LAYERS: list = []


class Hiding(nn.Module):
    """Also applies layers from places that are not searched for parts."""

    def __init__(self):
        self.first = linear()
        self.queue = collections.deque()
        self.many = [0] * 1000
        self.box = types.SimpleNamespace(layer=None)
        self.f = lambda x: LAYERS[0](x) if LAYERS else x

    def forward(self, x):
        x = self.f(self.first(x))
        for layer in [*self.queue, *self.many, self.box.layer]:
            x = layer(x) if layer else x
        return x


HIDE = {
    "a deque": lambda net, layer: net.queue.append(layer),
    "a long list": lambda net, layer: net.many.append(layer),
    "an object": lambda net, layer: setattr(net.box, "layer", layer),
    "a module-level list": lambda net, layer: LAYERS.append(layer),
    "a lambda": lambda net, layer: setattr(net, "f", lambda x: layer(x)),
    "a bound method": lambda net, layer: setattr(net, "f", layer.forward),
    "a partial": lambda net, layer: setattr(net, "f", functools.partial(layer.forward)),
}


@pytest.fixture
def emptied():
    yield
    LAYERS.clear()


def train(net, optimizer):
    optimizer.zero_grad()
    net(np.ones((2, 3), "float32")).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.LARS])
@pytest.mark.parametrize("place", HIDE)
def test_a_late_hidden_part_gives_a_warning_once_it_is_used(place, make, emptied):
    net = Hiding()
    optimizer = make(net, lr=0.1)
    train(net, optimizer)
    late = linear()
    HIDE[place](net, late)
    with pytest.warns(UserWarning, match=r"parameters of shape \(3, 3\), \(3,\) received gradients, but no optimizer moves them"):
        train(net, optimizer)


OUTSIDE = {
    "before the optimizer": lambda make: (nn.Parameter(np.ones(7, "float32")), make())[::-1],
    "after it": lambda make: (make(), nn.Parameter(np.ones(7, "float32"))),
    "in a model of its own": lambda make: (nn.BatchNorm(7).bias, make())[::-1],
}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.LARS])
@pytest.mark.parametrize("when", OUTSIDE)
def test_a_parameter_outside_the_model_that_gets_a_gradient_gives_a_warning_whenever_it_was_made(when, make, steps):
    net = linear()
    optimizer, outside = OUTSIDE[when](lambda: make(net, lr=0.1))
    for step in range(steps):
        optimizer.zero_grad()
        loss = net(np.ones((2, 3), "float32")).sum()
        (loss + outside.sum() if step == steps - 1 else loss).backward()
        with pytest.warns(match=r"parameters of shape \(7,\) received gradients, but no optimizer moves them") \
                if step == steps - 1 else contextlib.nullcontext():
            optimizer.step()


def test_parameters_of_other_models_that_got_gradients_before_or_have_an_optimizer_give_no_warning():
    explored, other, net = linear(), linear(), linear()
    explored(np.ones((2, 3), "float32")).sum().backward()
    frozen = linear().freeze()
    optimizer, others = optim.SGD(net, lr=0.1), optim.SGD(other, lr=0.1)
    for _ in range(2):
        for each in (optimizer, others):
            each.zero_grad()
        frozen(other(net(np.ones((2, 3), "float32")))).sum().backward()
        for each in (optimizer, others):
            each.step()


def test_late_parameters_that_are_frozen_or_optimized_give_no_warning(emptied):
    net = Hiding()
    optimizer = optim.SGD(net, lr=0.1)
    late = linear()
    net.queue.append(late)
    net.many.append(linear().freeze())
    others = optim.SGD(late, lr=0.1)
    for _ in range(2):
        train(net, optimizer)
        others.step()
    x = Tensor(np.ones((2, 3), "float32"), requires_grad=True)           # not a Parameter
    net(x).sum().backward()
    optimizer.step()


def swap_in_list(net):
    net.blocks.reverse()


def swap_attributes(net):
    net.blocks[0], net.first = net.first, net.blocks[0]


class Scale(nn.Module):
    def __init__(self):
        self.act = ops.relu

    def forward(self, x):
        return 3.0 * self.act(x)


def test_a_function_in_an_attribute_that_is_replaced_is_an_error_of_its_average():
    net = nn.Sequential(linear(), Scale())
    average = EMA(net, frozen_copy(net))
    average.update(0.5)
    net.steps[1].act = ops.tanh
    with pytest.raises(RuntimeError, match="EMA: a function or layer joined or left the Sequential after the EMA was made"):
        average.update(0.5)


@pytest.mark.parametrize("change", [swap_in_list, swap_attributes])
@pytest.mark.parametrize("owner", ["Adam", "EMA"])
def test_parts_that_change_places_are_an_error(owner, change):
    """Their moments would be saved under the name of another, and an average would follow another."""
    net = Net()
    made = optim.Adam(net, 0.1) if owner == "Adam" else EMA(net, frozen_copy(net))
    change(net)
    net.first(np.ones((1, 3), "float32")).sum().backward()
    with pytest.raises(RuntimeError, match=f"{owner}: .* changed places in the Net after the {owner} was made"):
        made.step() if owner == "Adam" else made.update(0.5)
    with pytest.raises(RuntimeError, match="changed places"):
        made.state_dict() if owner == "Adam" else made.update(0.5)


@pytest.mark.parametrize("change", [lambda steps: steps.insert(1, ops.relu), lambda steps: steps.pop(1),
                                    lambda steps: steps.__setitem__(1, ops.relu), lambda steps: steps.append(Scale()),
                                    lambda steps: steps.__setitem__(1, nn.Dropout(0.5, rng=np.random.default_rng(0)))])
def test_functions_that_a_model_gains_loses_or_replaces_are_an_error_of_its_average(change):
    net = nn.Sequential(linear(), ops.tanh, linear())
    average, optimizer = EMA(net, frozen_copy(net)), optim.SGD(net, 0.1)
    last = net.steps[2]
    change(net.steps)
    net(np.ones((1, 3), "float32")).sum().backward()
    shifted = net.steps[2:3] != [last]                           # and so are the names of the parameters after it
    with pytest.raises(RuntimeError, match="EMA: (a function or layer joined or left|steps.2.* changed places in) the Sequential after"):
        average.update(0.5)
    with pytest.raises(RuntimeError, match="SGD: steps.2.* changed places in") if shifted else contextlib.nullcontext():
        optimizer.step()


@pytest.mark.parametrize("place", ["an attribute", "a list", "a dict"])
@pytest.mark.parametrize("make", [lambda net: optim.SGD(net, 0.1), lambda net: EMA(net, frozen_copy(net))], ids=["SGD", "EMA"])
def test_a_tensor_of_the_model_that_is_to_be_trained_later_is_an_error(place, make):
    net, scale = Net(), Tensor(np.ones(3, dtype="float32"))
    if place == "an attribute":
        net.spare = scale
    elif place == "a list":
        net.later.append(scale)
    else:
        net.named["scale"] = scale
    owner = make(net)
    check = (owner.structures[0] if isinstance(owner, EMA) else owner.structure).check
    check()
    scale.requires_grad = True
    with pytest.raises(RuntimeError, match=r"a Tensor of shape \(3,\) in the Net requires a gradient, but an optimizer moves only"):
        check()


def test_other_changes_are_not_errors():
    net = Net()
    optimizer = optim.SGD(net, lr=0.1)
    ema = EMA(net, frozen_copy(net))
    for change in (lambda: net.eval(), lambda: net.train(), lambda: setattr(net, "last", net.first.weight * 1.0),
                   lambda: setattr(net, "spare", net.first), lambda: setattr(net, "later", [1] * 1000),
                   lambda: net.first.freeze()):
        change()
        optimizer.grads[...] = 1
        optimizer.step()
        optimizer.state_dict()
    net.last, net.spare = None, None
    net.train()
    ema.update(0.5)
    copy.deepcopy(ema).update(0.5)


@pytest.mark.parametrize("data, dtype", [
    ([np.array([0.1])], "float64"), ((1.0, np.float64(0.1)), "float64"), ([[np.array([0.1])], [[0.2]]], "float64"),
    ([np.array([0.1], "float32")], "float32"), ([0.1, 2.0], "float32"), (0.1, "float32"), (np.float64(0.1), "float64"),
    ([0.1, np.float32(1)], "float32"), (float("inf"), "float32"), (np.array([1e300]), "float64")])
def test_only_python_floats_become_float32(data, dtype):
    x = Tensor(data)
    assert x.dtype == dtype and (x.data == np.asarray(data).astype(dtype)).all()


@pytest.mark.parametrize("data", [1e300, [0.0, -1e39], [[1e300], [np.inf]]])
def test_a_number_too_large_for_float32_is_refused(data):
    with pytest.raises(ValueError, match="Tensor: data holds .* too large for float32"):
        Tensor(data)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("size", [1e30, 3e38, np.nan])
def test_a_decay_too_large_to_square_changes_nothing(make, size):
    model = linear()
    model.weight.data[0, 0] = size
    optimizer = make(model, lr=0.1, weight_decay=1e-4)
    optimizer.grads[...] = 1
    before = model.state_dict()
    with pytest.raises(FloatingPointError, match=r"gradient \(weight\) with its weight decay .* nothing was changed"):
        optimizer.step()
    assert optimizer.steps == 0 and all(np.array_equal(x, before[key], equal_nan=True)
                                        for key, x in model.state_dict().items())
    assert not any(x.any() for x in optimizer.state.values())


@pytest.mark.parametrize("make, decay", [(optim.SGD, 1e-4), (optim.Adam, 1e-4), (optim.AdamW, 1e-4), (optim.LARS, 1e-4),
                                         (optim.Adam, 0.0)])
def test_large_weights_are_trained_if_the_square_of_their_decay_is_finite(make, decay):
    model = linear()
    model.weight.data[0, 0] = 1e20
    optimizer = make(model, lr=0.1, weight_decay=decay)
    optimizer.grads[...] = 1
    optimizer.step()
    assert all(np.isfinite(x).all() for x in (*optimizer.state.values(), optimizer.values))


@pytest.mark.parametrize("call, message", [
    (lambda x: ops.sum(x, axis=[x]), "sum: axis cannot hold a Tensor"),
    (lambda x: ops.attention(x, x, x, mask=[[x]]), "attention: mask cannot hold a Tensor"),
    (lambda x: ops.attention(x, x, x, mask=nn.Sequential()), "attention: mask cannot hold a Tensor"),
    (lambda x: ops.sum(x, axis=[nn.BatchNorm(2)]), "sum: axis cannot hold a Tensor"),
    (lambda x: contrastive.nt_xent(x, x, True), "nt_xent: tau must be a number, a Tensor or an array, got True"),
])
def test_tensors_and_bools_as_options_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call(Tensor(np.ones((3, 3), "float32")))
