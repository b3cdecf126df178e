"""A setting that is changed after construction is checked as in the constructor, or refused."""

import copy
import inspect
import pickle

import numpy as np
import pytest

from minicl import nn
from minicl.data import Batches, Prefetch, augment
from minicl.methods import BYOL, MoCo, WindowEncoder
from minicl.optim import LARS, SGD, Adam, AdamW

BAD_SHARE = (-0.1, 1.5, float("nan"), "0.5", None)
SETTINGS = [  # (constructor, attribute, invalid values, a valid value)
    (lambda rng: nn.BatchNorm(3), "momentum", BAD_SHARE, 0.5),
    (lambda rng: nn.BatchNorm(3), "eps", (0, -0.1, float("inf"), "x"), 1e-3),
    (lambda rng: nn.BatchNorm(3), "splits", (0, -2, 2.5, True), 2),
    (lambda rng: nn.Conv2d(1, 1, 3, rng=rng), "stride", (0, 1.5, None), 2),
    (lambda rng: nn.Conv2d(1, 1, 3, rng=rng), "padding", (-1, 1.5, True), 2),
    (lambda rng: nn.BatchNorm(3), "relu", ("no", 2, None), True),
    (lambda rng: nn.LayerNorm(3), "eps", (0, -0.1, float("inf")), 1e-3),
    (lambda rng: nn.Dropout(0.5, rng=rng), "p", (1, *BAD_SHARE), 0.1),
    (lambda rng: nn.Dropout(0.5, rng=rng), "batch_axis", ("no", True, 1.0, (0,)), -1),
    (lambda rng: SGD(nn.Linear(2, 2, rng=rng), 0.1, momentum=0.9), "nesterov", ("no", 2, None), True),
    (lambda rng: SGD(nn.Linear(2, 2, rng=rng), 0.1), "momentum", (1, *BAD_SHARE), 0.5),
    (lambda rng: LARS(nn.Linear(2, 2, rng=rng), 0.1), "eta", (0, -1), 1e-2),
    (lambda rng: BYOL(*(nn.Linear(2, 2, rng=rng) for _ in range(3))), "m", (1.0, *BAD_SHARE), 0.9),
    (lambda rng: MoCo(*(nn.Linear(2, 2, rng=rng) for _ in range(2)), dim=2, queue=4), "m", (1.0, *BAD_SHARE), 0.9),
    *((lambda rng, kind=kind: kind(nn.Linear(2, 2, rng=rng), 0.1), "lr", (-1, float("nan"), "x"), 0.5)
      for kind in (SGD, Adam, AdamW, LARS)),
]


@pytest.mark.parametrize("make, name, bad, good", SETTINGS)
def test_a_setting_out_of_range_is_refused(make, name, bad, good):
    thing = make(np.random.default_rng(0))
    before = getattr(thing, name)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(thing, name, value)
        assert getattr(thing, name) is before
    setattr(thing, name, good)
    assert getattr(thing, name) == good


MADE = {  # of classes that keep options: all that the constructor needs
    SGD: lambda rng: {"model": nn.Linear(2, 2, rng=rng), "lr": 0.1, "momentum": 0.9},
    **{kind: lambda rng: {"model": nn.Linear(2, 2, rng=rng), "lr": 0.1} for kind in (Adam, AdamW, LARS)},
    nn.Linear: lambda rng: {"in_features": 2, "out_features": 3, "rng": rng},
    nn.Conv2d: lambda rng: {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "rng": rng},
    nn.BatchNorm: lambda rng: {"num_features": 3},
    nn.LayerNorm: lambda rng: {"normalized_shape": 3},
    nn.Dropout: lambda rng: {"rng": rng},
    nn.Embedding: lambda rng: {"num_embeddings": 3, "embedding_dim": 2, "rng": rng},
    nn.GRU: lambda rng: {"input_size": 3, "hidden_size": 2, "rng": rng},
    nn.ConvNet: lambda rng: {"image_shape": (16, 16, 1), "rng": rng},
    nn.Transformer: lambda rng: {"vocabulary": 5, "length": 3, "width": 8, "rng": rng},
    nn.WordTokenizer: lambda rng: {"words": ["a", "b"], "length": 3},
    WindowEncoder: lambda rng: {"channels": 1, "window": 2, "rng": rng},
    BYOL: lambda rng: dict(zip(("encoder", "head", "predictor"), (nn.Linear(2, 2, rng=rng) for _ in range(3)))),
    MoCo: lambda rng: {"encoder": nn.Linear(2, 2, rng=rng), "head": nn.Linear(2, 2, rng=rng), "dim": 2, "queue": 4},
    Batches: lambda rng: {"n": 10, "batch_size": 5},
}
HOSTILE = (None, "no", "", -1, 0, 1.5, 10**400, float("nan"), float("inf"), (), (0.9,), (1.0, 0.5), [], True, 7, 1e-3,
           np.array([1, 2]), np.float64(-2))


@pytest.mark.parametrize("kind, option", [(kind, option) for kind in MADE for option in [*inspect.signature(kind.__init__).parameters][1:]],
                         ids=lambda item: getattr(item, "__name__", item))
def test_what_the_constructor_refuses_cannot_be_set(kind, option):
    """Of every option that is an attribute, and every hostile value: set later it is refused too, and nothing changes."""
    made = kind(**MADE[kind](np.random.default_rng(0)))
    if option not in vars(made) or isinstance(vars(made)[option], (nn.Parameter, nn.Module)):        # not kept, or a part
        return
    for value in HOSTILE:
        if option == "lr" and type(value) is int:            # a schedule may end at 0
            continue
        before = vars(made)[option]
        try:
            setattr(made, option, value)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            assert option in str(error) and vars(made)[option] is before
        else:
            kind(**{**MADE[kind](np.random.default_rng(0)), option: value})  # raises nothing


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, LARS])
def test_nothing_but_settings_of_an_optimizer_can_be_set_or_deleted(kind, rng):
    optimizer = kind(**MADE[kind](rng))
    settings = {*inspect.signature(kind).parameters, "nesterov"} - {"model"}
    for name in [*vars(optimizer), "steps"]:
        with pytest.raises(AttributeError, match=f"{name} cannot be deleted"):
            delattr(optimizer, name)
        if not name.startswith("_") and name not in settings:
            with pytest.raises(AttributeError, match=f"{name} cannot be set after construction"):
                setattr(optimizer, name, 1)
    assert optimizer.steps == 0
    with pytest.raises(AttributeError, match=r"values cannot be set after construction; make a new .*, or write into it: .values\[...\] = values"):
        optimizer.values += 1.0


@pytest.mark.parametrize("kind", [SGD, LARS])
def test_nesterov_needs_a_momentum_whenever_one_of_them_is_set(kind, rng):
    """After any order of assignments the two fit, or the assignment was refused and changed nothing."""
    optimizer = kind(nn.Linear(2, 2, rng=rng), 0.1, momentum=0.9)
    for k in rng.integers(0, 4, 60):
        name, value = [("momentum", 0.0), ("momentum", 0.9), ("nesterov", True), ("nesterov", False)][k]
        before = optimizer.momentum, optimizer.nesterov
        wanted = {"momentum": before[0], "nesterov": before[1], name: value}
        if wanted["nesterov"] and not wanted["momentum"]:
            with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\) with nesterov, got 0; usual is 0.9"):
                setattr(optimizer, name, value)
            wanted = dict(zip(wanted, before))
        else:
            setattr(optimizer, name, value)
        assert {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov} == wanted
    with pytest.raises(ValueError, match="with nesterov"):
        SGD(nn.Linear(2, 2, rng=rng), 0.1, nesterov=True)


NAN = float("nan")
WRONG = {  # invalid values of each option of the optimizers
    "lr": (-1.0, NAN, float("inf"), 10**400, "0.1", True),
    "momentum": (-0.1, 1.0, NAN, "0.9", None, np.array(0.5)),
    "nesterov": ("no", 1, None),
    "betas": ((-0.5, 0.9), (0.9, 1.5), (0.9, NAN), (0.9, None), ("0.9", 0.99), (0.9,), [0.9, 0.999], 0.9, None, np.ones(2) / 2),
    "eps": (0.0, -1e-8, NAN, float("inf"), 1e-50, "small"),          # 1e-50 vanishes in float32
    "weight_decay": (-1e-4, NAN, float("inf"), "none", None),
    "eta": (0.0, -1.0, NAN, "x"),
}
OPTIMIZERS = [(kind, name) for kind in (SGD, Adam, AdamW, LARS) for name in inspect.signature(kind).parameters if name != "model"]


def everything(optimizer):
    """Copies of the settings and of everything that a step changes."""
    return copy.deepcopy([optimizer.state_dict(), optimizer.steps, optimizer.values, optimizer.grads, optimizer._used,
                          [getattr(optimizer, name) for name in inspect.signature(type(optimizer)).parameters
                           if name != "model"], [p.changed for p in optimizer.parameters]])


@pytest.mark.parametrize("kind, name", OPTIMIZERS, ids=lambda item: getattr(item, "__name__", item))
def test_a_refused_setting_of_an_optimizer_changes_nothing(kind, name, rng):
    """Invalid values are refused when set, by step() and by the constructor. No setting can be changed in place."""
    model = nn.Linear(3, 2, rng=rng)
    optimizer = kind(model, 0.1)
    for wrong in (None, *WRONG[name]):
        optimizer.zero_grad()
        model(np.ones((4, 3), "float32")).sum().backward()
        before = everything(optimizer)
        if wrong is not None:
            with pytest.raises((TypeError, ValueError), match=name):
                setattr(optimizer, name, wrong)
            if name == "lr":
                with pytest.raises((TypeError, ValueError), match="lr"):
                    optimizer.step(wrong)
            if not (name == "betas" and isinstance(wrong, list)):            # a constructor makes it a tuple
                with pytest.raises((TypeError, ValueError), match=name):
                    kind(nn.Linear(3, 2, rng=rng), **{"lr": 0.1, name: wrong})
        for norm in (0, -1.0, NAN, "1", True):
            with pytest.raises((TypeError, ValueError), match="clip_grad_norm"):
                optimizer.step(clip_grad_norm=norm)
        np.testing.assert_equal(everything(optimizer), before)
        optimizer.step()                                                     # with the old settings
        assert optimizer.steps == before[1] + 1 and not np.array_equal(optimizer.values, before[2])
    assert isinstance(getattr(optimizer, name), (float, bool, tuple))        # immutable


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, LARS])
def test_a_refused_gradient_changes_nothing(kind, rng):
    model = nn.Linear(3, 2, rng=rng)
    optimizer = kind(model, 0.1, weight_decay=0.1)
    for wrong in (NAN, float("inf"), -1e30):
        optimizer.zero_grad()
        model(np.ones((4, 3), "float32")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.weight.grad[1, 1] = wrong
        before = everything(optimizer)
        for norm in (None, 1.0):
            with pytest.raises(FloatingPointError, match="nothing was changed"):
                optimizer.step(clip_grad_norm=norm)
        np.testing.assert_equal(everything(optimizer), before)


TRANSFORMS = [augment.RandomAffine(), augment.RandomResizedCrop(4), augment.ColorJitter(), augment.RandomHorizontalFlip(),
              augment.GaussianNoise(), augment.GaussianBlur(), augment.RandomGrayscale(), augment.RandomErasing(),
              augment.RandomPerspective(), augment.ElasticTransform(), augment.Compose([augment.GaussianNoise()])]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_the_options_of_a_transform_cannot_be_changed(transform):
    options = [name for name in vars(transform) if not name.startswith("_")]
    for name in options:
        with pytest.raises(AttributeError, match=f"{name} cannot be set.*make a new"):
            setattr(transform, name, 7)
    for name in (options[0] + "s", "probability"):                           # misspelt ones
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            setattr(transform, name, 7)
    images = np.random.default_rng(0).random((3, 8, 8, 3), dtype="float32")
    expected = transform(images, np.random.default_rng(1))
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert np.array_equal(other(images, np.random.default_rng(1)), expected)
        assert repr(other) == repr(transform) and "sealed" not in repr(other)
        with pytest.raises(AttributeError):
            setattr(other, options[0], 7)


def test_a_user_defined_transform_may_keep_state():
    class Counting(augment.Transform):
        def __init__(self):
            self.calls = 0

        def draw(self, shape, rng):
            self.calls += 1
            return [rng.random(shape[0])]

        def apply(self, images, out, share):
            out[...] = images

    counting = Counting()
    counting(np.zeros((2, 4, 4, 1), "float32"), np.random.default_rng(0))
    assert counting.calls == 1


@pytest.mark.parametrize("name", ["seed", "batch_size", "n", "per_epoch"])
def test_the_arguments_of_batches_cannot_be_changed(name):
    for batches in (Batches(10, 5), copy.deepcopy(Batches(10, 5)), pickle.loads(pickle.dumps(Batches(10, 5)))):
        batches[0]
        with pytest.raises(AttributeError, match=f"Batches.{name} cannot be set after construction; make a new"):
            setattr(batches, name, 3)
        with pytest.raises(AttributeError, match=f"Batches.{name} cannot be deleted"):
            delattr(batches, name)
        assert np.array_equal(batches[3], Batches(10, 5)[3])
    with pytest.raises(AttributeError, match="no attribute 'sed'; did you mean 'seed'"):
        Batches(10, 5).sed = 3
    with pytest.raises(AttributeError, match="no attribute 'part'"):
        Prefetch(np.arange(10), Batches(10, 5)).part = slice(2)
