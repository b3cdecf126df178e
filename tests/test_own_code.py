"""Mistakes in user-defined classes and functions that would silently give wrong numbers are errors or warnings."""

import collections
import dataclasses
import functools
import inspect
import itertools
import json
import logging
import types

import numpy as np
import pytest

import minicl
from minicl import Tensor, nn, ops, optim
from minicl.checkpoint import CheckpointError
from minicl.data import two_views
from minicl.data.augment import RandomHorizontalFlip, Transform, many_views
from minicl.evaluate import encode
from minicl.options import options
from minicl.run import Run

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 8, 8, 3), dtype="float32")


# ---------------------------------------------------------------- augmentations

def transform(apply):
    return type("Own", (Transform,), {"draw": lambda self, shape, rng: [rng.random(shape[0])], "apply": apply})()


def fill(self, images, out, k):
    out[...] = images * k[:, None, None, None]


@pytest.mark.parametrize("apply, message", [
    (lambda self, images, out, k: images * k[:, None, None, None], "write its result into out"),
    (lambda self, images, out, k: None, "left part of out unset"),
    (lambda self, images, out, k: out[:, 1:].fill(0.5), "left part of out unset"),
    (lambda self, images, out, k: out.fill(np.nan), "left part of out unset, or wrote NaN"),
], ids=["returned", "not filled", "partly filled", "NaN"])
def test_a_user_defined_transform_must_fill_out(apply, message):
    with pytest.raises((TypeError, ValueError), match=f"Own.apply: .*{message}"):
        transform(apply)(IMAGES, np.random.default_rng(0))
    assert np.isfinite(transform(fill)(IMAGES, np.random.default_rng(0))).all()


def scale(images, rng):
    images *= rng.random((len(images), 1, 1, 1), dtype="float32")
    return images


@pytest.mark.parametrize("views", [two_views, lambda augment, *args: many_views([RandomHorizontalFlip(), augment], *args)])
@pytest.mark.parametrize("augment, message", [
    (scale, "read-only"),
    (lambda x, rng: RandomHorizontalFlip()(x, rng)[:4], "one view of each of the 6 images"),
    (lambda x, rng: np.concatenate([x, RandomHorizontalFlip()(x, rng)]), "one view of each of the 6 images"),
    (lambda x, rng: ops.relu(RandomHorizontalFlip()(x, rng)), "must return an array"),
    (lambda x, rng: list(RandomHorizontalFlip()(x, rng)), "must return an array"),
], ids=["writes", "drops rows", "adds rows", "Tensor", "list"])
def test_a_user_defined_augment_must_return_one_view_of_each_image(views, augment, message):
    images = IMAGES.copy()
    with pytest.raises(ValueError, match=message):
        views(augment, images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, IMAGES)
    assert images.flags.writeable


def test_views_may_share_memory_with_the_images():
    images = IMAGES.copy()
    views = two_views(lambda x, rng: x[:, :, ::-1] if rng.random() < 0.5 else x, images, np.random.default_rng(0))
    assert [view.shape for view in views] == [IMAGES.shape] * 2 and images.flags.writeable


# ---------------------------------------------------------------- models

class Model(nn.Module):
    def __init__(self, change):
        self.layer = nn.Linear(192, 4, rng=RNG)
        self.change = change

    def forward(self, x):
        return self.change(self.layer(x.reshape(len(x), -1)))


@pytest.mark.parametrize("change", {
    "a mean": lambda y: y.mean(axis=0), "fewer rows": lambda y: y[1:], "more rows": lambda y: ops.concat(y, y),
    "one of two": lambda y: (y, y[:1]), "a list": lambda y: [y, y], "an array": lambda y: y.data, "a scalar": lambda y: y.sum(),
}.values())
def test_encode_expects_one_row_per_item(change):
    images = RNG.integers(0, 256, (10, 8, 8, 3)).astype("uint8")
    with pytest.raises(ValueError, match="encode: Model must return a Tensor, or a tuple of them, with a row for each of the"):
        encode(Model(change), images, np, batch=4)
    assert encode(Model(lambda y: (y, y * 2.0)), images, np, batch=4)[1].shape == (10, 4)


@pytest.mark.parametrize("change", [lambda m: setattr(m[1], "eps", 0.1), lambda m: setattr(m[0], "bias", None),
                                    lambda m: m.steps.pop(), lambda m: setattr(m[1], "splits", 2)])
def test_fresh_refuses_a_model_changed_after_construction(change):
    model = nn.Sequential(nn.Linear(3, 4, rng=RNG), nn.BatchNorm(4))
    nn.fresh(model, rng=RNG)
    change(model)
    with pytest.raises(ValueError, match="fresh: .*changed after construction"):
        nn.fresh(model, rng=RNG)


@pytest.mark.parametrize("strict", ["no", 0, None])
def test_strict_must_be_true_or_false(strict):
    model = nn.Linear(3, 2, rng=RNG)
    with pytest.raises(TypeError, match="strict must be True or False"):
        model.load_state_dict(model.state_dict(), strict=strict)


class Tied(nn.Module):
    def __init__(self, tie):
        self.layer = nn.Linear(3, 3, rng=RNG)
        self.other = tie(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("tie", {
    "array": lambda w: w.data, "Tensor": lambda w: w.detach(), "in a list": lambda w: [1, {"a": w.data[:2]}]}.values())
def test_parts_that_share_memory_are_refused(tie):
    model = Tied(tie)
    with pytest.raises(ValueError, match="SGD: layer.weight and other.* share memory"):
        optim.SGD(model, lr=0.1)
    with pytest.raises(ValueError, match="p and q share memory"):
        rows = np.zeros((4, 2))
        optim.SGD([("p", Tensor(rows[:3], requires_grad=True)), ("q", Tensor(rows[2:], requires_grad=True))], lr=0.1)


@pytest.mark.parametrize("tie", {
    "Parameter": lambda w: nn.Parameter(w.data), "a row": lambda w: nn.Parameter(w.data[1]),
    "transposed": lambda w: nn.Parameter(w.data.T), "Buffer": lambda w: nn.Buffer(w.data)}.values())
def test_a_part_made_from_another_has_memory_of_its_own(tie):
    model = Tied(tie)
    assert not np.shares_memory(model.layer.weight.data, model.other.data)
    optim.SGD(model, lr=0.1)


@pytest.mark.parametrize("tie", [lambda w: w, lambda w: w.data.copy(), lambda w: nn.Buffer(w.data.copy()), lambda w: None])
def test_parts_with_their_own_memory_are_accepted(tie):
    model = Tied(tie)
    optim.SGD(model, lr=0.1)
    optim.AdamW(model, lr=0.1)                               # views of one buffer that do not overlap


@pytest.mark.parametrize("members, message", [
    ({"__slots__": ("layer",)}, "parts in __slots__"), ({"train": lambda self, mode=True: self}, "Net.train would replace"),
    ({"parameters": lambda self: []}, "Net.parameters"), ({"to": lambda self, xp: self}, "Net.to "),
    ({"state_dict": lambda self: {}}, "Net.state_dict"), ({"training": False}, "Net.training"),
    ({"named_state": lambda self: []}, "Net.named_state"), ({"world": None}, "Net.world")])
def test_members_that_would_break_a_module_are_refused(members, message):
    with pytest.raises(TypeError, match=message):
        type("Net", (nn.Module,), members)


ITERATORS = {"map": lambda: map(str, "ab"), "generator": lambda: (k for k in "ab"), "zip": lambda: zip("a", "b"),
             "filter": lambda: filter(None, "ab"), "reversed": lambda: reversed([1, 2]), "enumerate": lambda: enumerate("ab"),
             "iter": lambda: iter("ab"), "chain": lambda: itertools.chain("a", "b"), "cycle": lambda: itertools.cycle("ab"),
             "islice": lambda: itertools.islice("ab", 1), "iter of a dict": lambda: iter({1: 2})}
Order = dataclasses.make_dataclass("Order", ["steps"])
HOLDERS = {"is": lambda x: x, "namespace": lambda x: types.SimpleNamespace(order=x), "dataclass": Order,
           "object array": lambda x: np.array([x, 1], object), "proxy": lambda x: types.MappingProxyType({"order": x}), "list": lambda x: [x], "tuple in a dict": lambda x: {"a": (1, x)},
           "deque": lambda x: collections.deque([x]), "partial": lambda x: functools.partial(next, x),
           "closure": lambda x: lambda: next(x), "default": lambda x: lambda steps=x: next(steps)}


class Holding(nn.Module):
    def __init__(self, steps):
        self.steps = steps


@pytest.mark.parametrize("hold", HOLDERS)
@pytest.mark.parametrize("iterator", ITERATORS)
def test_an_iterator_in_a_module_is_refused(iterator, hold):
    verb = "is" if hold == "is" else "holds"
    with pytest.raises(TypeError, match=f"Holding: steps {verb} a .*, which forward.. uses up, and which no checkpoint saves; use a list"):
        Holding(HOLDERS[hold](ITERATORS[iterator]()))


class Restarts:
    """An iterator that begins again, as a loader of one's own."""

    def __iter__(self):
        self.items = [1, 2]
        return self

    def __next__(self):
        if not self.items:
            raise StopIteration
        return self.items.pop()


class OfTheClass(nn.Module):
    ids = itertools.count()                                  # numbers the objects, and does not end

    def __init__(self):
        self.layers = [nn.Linear(3, 3, rng=RNG)]


@pytest.mark.parametrize("late", [
    lambda net: setattr(net, "layers", reversed(net.layers)), lambda net: setattr(net, "layers", [enumerate(net.layers)]),
    lambda net: (net.layers.append(iter([1])), optim.SGD(net, 0.1))])
def test_an_iterator_that_comes_late_is_refused(late):
    with pytest.raises(TypeError, match="OfTheClass: layers (is|holds) a .*, which forward.. uses up, and which no checkpoint saves; use a list"):
        late(OfTheClass())


@pytest.mark.parametrize("members", [{"order": reversed([1, 2])}, {"order": [zip("a", "b")]},
                                     {"forward": lambda self, x, order=iter([1, 2]): x}])
def test_an_iterator_of_the_class_is_refused(members):
    with pytest.raises(TypeError, match="Own: (order|forward) (is|holds) a .*, which forward.. uses up, and which no checkpoint saves; use a list"):
        type("Own", (nn.Module,), members)()


def test_containers_that_last_are_no_iterators(tmp_path):
    with open(tmp_path / "notes.txt", "w") as file:
        for steps in (range(3), {1: 2}.items(), "ab", [(1, 2)], np.arange(3), file, itertools, Restarts(), itertools.count(), lambda: iter("ab"),
                      logging.getLogger("own")):
            Holding(steps)


@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_made_in_forward_gives_a_warning(kept):
    made = []

    class Net(nn.Module):
        def __init__(self):
            self.first = nn.Linear(3, 3, rng=RNG)

        def forward(self, x):
            layer = nn.Linear(3, 2, rng=RNG)
            if kept:
                made.append(layer)
            return layer(self.first(x))

    net = Net()
    optimizer = optim.SGD(net, lr=0.1)
    net(np.ones((4, 3), "float32")).sum().backward()
    with pytest.warns(UserWarning, match=r"parameters of shape \(2,\), \(3, 2\)|parameters of shape \(3, 2\), \(2,\)"):
        optimizer.step()


# ---------------------------------------------------------------- optimizers, blocks

@pytest.mark.parametrize("make", [lambda m: optim.SGD(m, lr=0.1, momentum=0.9), lambda m: optim.AdamW(m, lr=0.1),
                                  lambda m: optim.LARS(m, lr=0.1)])
@pytest.mark.parametrize("name, value, error", [
    ("learning_rate", 0.1, AttributeError), ("weightdecay", 0.1, AttributeError), ("param_groups", [], AttributeError),
    ("lr", -1.0, ValueError), ("lr", "0.1", TypeError), ("weight_decay", -1.0, ValueError), ("weight_decay", float("nan"), ValueError)])
def test_unknown_and_invalid_settings_of_an_optimizer_are_refused(make, name, value, error):
    optimizer = make(nn.Linear(3, 2, rng=RNG))
    optimizer.lr, optimizer.weight_decay = 0.5, 0.0
    with pytest.raises(error, match=f"{type(optimizer).__name__}.*{name}"):
        setattr(optimizer, name, value)
    assert "lr" in inspect.signature(type(optimizer)).parameters


def test_momentum_must_stay_below_1():
    with pytest.raises(ValueError, match="SGD: momentum must be"):
        optim.SGD(nn.Linear(3, 2, rng=RNG), lr=0.1).momentum = 3.0


def test_gradients_scaled_by_a_step_cannot_be_used_again():
    model = nn.Linear(3, 2, rng=RNG)
    optimizer = optim.LARS(model, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(np.ones((4, 3), "float32")).sum().backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match="LARS: .* cannot be used again; call zero_grad"):
        optimizer.step()


async def later():
    pass


def generator():
    yield


@pytest.mark.parametrize("block", [minicl.no_grad, minicl.check_inputs])
@pytest.mark.parametrize("wrong", [later, generator, dict, 3, type("Own", (), {})])
def test_blocks_decorate_only_functions(block, wrong):
    with pytest.raises(TypeError, match=f"{block.__name__}: expected a function to decorate"):
        block()(wrong)
    assert block()(lambda: 5)() == 5


# ---------------------------------------------------------------- runs

@pytest.fixture
def run(tmp_path):
    args = options("", epochs=1, batch=4, lr=0.1, tau=1.0, data=None).parse_args(["--out", str(tmp_path / "run")])
    run = Run(args, "own")
    yield run
    run.close()


def train(run, *, given=("model", "optimizer"), log=lambda run, step: run.log(step, loss=1.0), **arguments):
    rng = np.random.default_rng(0)
    model = nn.Linear(3, 2, rng=rng)
    optimizer = optim.AdamW(model, lr=0.1)
    available = {"model": model, "optimizer": optimizer, "other": nn.Linear(2, 2, rng=rng)}
    for step in run.steps(**{"total": 3, "rng": rng, "save_every": 2} | arguments, **{name: available[name] for name in given}):
        optimizer.zero_grad()
        model(np.ones((4, 3), "float32")).sum().backward()
        optimizer.step()
        log(run, step)


@pytest.mark.parametrize("given, missing", [(("model",), "optimizer"), (("optimizer",), "model"),
                                            (("model", "other"), "optimizer"), (("optimizer", "other"), "model")])
def test_a_run_saves_a_model_and_its_optimizer_together(run, given, missing):
    with pytest.raises(CheckpointError, match=f"the {missing} is not among its parts.*pass {missing}={missing}"):
        train(run, given=given)


def test_an_optimizer_that_another_one_has_replaced_is_not_saved(run):
    rng = np.random.default_rng(0)
    model = nn.Linear(3, 2, rng=rng)
    optimizer = optim.Adam(model, lr=0.1)
    with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated model.weight"):
        for step in run.steps(6, rng, save_every=2, model=model, optimizer=optimizer):
            if step == 3:
                optimizer = optim.SGD(model, lr=0.01)
            optimizer.zero_grad()
            model(np.ones((4, 3), "float32")).sum().backward()
            optimizer.step()
    assert minicl.checkpoint.load_checkpoint(run.checkpoint)[1]["step"] == 2


@pytest.mark.parametrize("given", [("model", "optimizer"), ("model", "optimizer", "other")])
def test_a_run_saves_what_it_is_given(run, given):
    train(run, given=given)
    assert minicl.checkpoint.load_checkpoint(run.checkpoint)[1]["step"] == 3


@pytest.mark.parametrize("given", [("other",), ()])
def test_a_run_that_saves_nothing_of_what_it_trains_is_an_error(run, given):
    with pytest.raises(CheckpointError, match="the model is not among its parts, but AdamW.step.. has changed weight"):
        train(run, given=given)


@pytest.mark.parametrize("log", [
    lambda run, step: (run.log(step, loss=1.0), run.log(step, accuracy=0.5)), lambda run, step: run.log(step + 1, loss=1.0),
    lambda run, step: run.log(0, loss=1.0), lambda run, step: run.log(1, loss=1.0), lambda run, step: run.log(-1, loss=1.0),
    lambda run, step: run.log(float(step) + 0.5, loss=1.0)])
def test_a_step_has_one_line_in_the_log(run, log):
    with pytest.raises(ValueError, match="Run.log: expected one line for the current step, "):
        train(run, log=log)


@pytest.mark.parametrize("argument, value", [("total", 2.5), ("total", 0), ("save_every", 0), ("save_every", -1),
                                             ("rng", np.random.RandomState(0)), ("rng", 0)])
def test_arguments_of_steps_are_checked(run, argument, value):
    with pytest.raises((TypeError, ValueError), match=f"Run.steps: {argument} must be"):
        train(run, **{argument: value})


@pytest.mark.parametrize("result, written", [({}, {}), ({"a": np.arange(2.0), "b": np.float32(2), "c": float("nan")},
                                                        {"a": [0.0, 1.0], "b": 2.0, "c": None})])
def test_a_result_may_be_empty_and_hold_arrays(run, result, written):
    train(run)
    run.finish(result)
    assert json.loads((run.folder / "result.json").read_text()) == written


def test_fresh_refuses_a_layer_in_two_places():
    layer = nn.Linear(3, 3, rng=RNG)
    with pytest.raises(ValueError, match="its parts share parameters, or attributes refer to parts, as its constructor"):
        nn.fresh(nn.Sequential(layer, layer), rng=RNG)
