"""A copy of a module draws its own random numbers, shares no array with the original, and follows its own model."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import Net, each_optimizer, ones, rng, take_step

from minicl import Tensor, nn
from minicl.methods import BYOL, MoCo, frozen_copy
from minicl.nn import Dropout, Linear, Module, Sequential, Stream


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


@pytest.mark.parametrize("copied", [frozen_copy, copy.deepcopy])
@given(copies=st.lists(st.integers(0, 3), min_size=1, max_size=8), at=st.integers(0, 7))
@settings(max_examples=20, deadline=None)
def test_copies_made_in_a_resumed_run_draw_the_masks_of_an_uninterrupted_one(copied, copies, at):
    """At each step some copies are made and draw, then the model does; the run is resumed before step `at`."""
    def run(resumed_at):
        layer = Sequential(Dropout(0.5, rng=rng()))
        drawn = []
        for step, count in enumerate(copies):
            if step == resumed_at:
                state, layer = layer.state_dict(), Sequential(Dropout(0.5, rng=rng()))
                layer.load_state_dict(state)
            drawn += [masks(each, 1) for each in [*(copied(layer) for _ in range(count)), layer]]
        return np.array(drawn)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                      # the original of the resumed one lives
        whole, resumed = run(None), run(at)
    np.testing.assert_array_equal(whole, resumed)
    assert len({each.tobytes() for each in whole}) == len(whole)


def test_a_target_that_loads_its_originals_state_still_draws_its_own_masks():
    layer = Sequential(Dropout(0.5, rng=rng()))
    target = frozen_copy(layer)
    target.load_state_dict(layer.state_dict())
    assert (masks(layer) != masks(target)).any()


def loaded(layer):
    twin = Sequential(Dropout(0.5, rng=rng(9)))
    twin.load_state_dict(layer.state_dict())
    return twin


TWINS = {"load_state_dict": loaded, "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
         "one seed": lambda layer: Sequential(Dropout(0.5, rng=rng()))}


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0), (0, 0, 1, 1) * 2, (0, 0, 0, 1, 1) * 2, (0, 0, 1) * 3])
def test_twins_that_draw_in_turns_give_a_warning(twin, order):
    layer = Sequential(Dropout(0.5, rng=rng()))
    layers = layer, TWINS[twin](layer)
    with pytest.warns(UserWarning, match="two models draw the same random numbers, such as dropout masks"):
        for k in order + order:
            masks(layers[k], 1)


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_that_replaces_its_original_gives_no_warning(twin):
    """Examples are a resumed run, a second run with the same seed, and a single comparison."""
    layer = Sequential(Dropout(0.5, rng=rng()))
    other = TWINS[twin](layer)
    first, second = masks(layer, 5), masks(other, 7)
    assert (first == second[:5]).all()
    masks(layer, 2)


@pytest.mark.parametrize("make", ["BYOL", "MoCo"])
def test_streams_resume_bit_for_bit_in_methods(make):
    """The streams of the online and target networks are restored in a model that was made with other seeds."""
    def model(seed):
        encoder = nn.MLP((2, 2, 1), (6,), rng=rng(seed))
        head = Sequential(Dropout(0.5, rng=rng(seed + 1)), Linear(6, 4, rng=rng(seed + 2)))
        return BYOL(encoder, head, linear_head(seed)) if make == "BYOL" else MoCo(encoder, head, dim=4, queue=16,
                                                                                  splits=1)

    def linear_head(seed):
        return Linear(4, 4, rng=rng(seed + 3))

    def step(model, data):
        x = data.standard_normal((4, 2, 2, 1), dtype="float32")
        z = model(x)[1]
        target = model.targets(x) if make == "BYOL" else model.encode_keys(x, data)
        loss = model.loss(z, target) if make == "BYOL" else model.loss(z, target, 0.2)
        model.update()
        return loss.item()

    whole = model(0)
    data = rng(3)
    losses = [step(whole, data) for _ in range(4)]
    first = model(0)
    other = model(9)
    data = rng(3)
    assert [step(first, data) for _ in range(2)] == losses[:2]
    other.load_state_dict(first.state_dict())
    assert [step(other, data) for _ in range(2)] == losses[2:]


def test_dropout_does_not_leak_the_positive_in_a_momentum_encoder():
    """With unrelated views, query i can recognise its positive only if both drop the same features."""
    data = rng()
    d = 64
    encoder = Sequential(Dropout(0.9, rng=rng(1)))
    target = frozen_copy(encoder)
    agree = []
    for _ in range(50):
        online, key = (module(Tensor(1 + 0.01 * data.random((32, d)).astype("float32"))).data > 0
                       for module in (encoder, target))
        agree.append((online & key).sum(axis=1).mean())
    assert np.mean(agree) < 1.5 * d * 0.1**2                 # chance is 0.64 shared features; leaked masks share 6.4


@pytest.mark.parametrize("bad", [0, None, np.random.RandomState(0), "seed"])
def test_a_stream_requires_a_generator(bad):
    for make in (Stream, lambda rng: Dropout(rng=rng), lambda rng: Linear(2, 2, rng=rng)):
        with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
            make(bad)


def test_a_module_with_a_generator_that_would_not_be_saved_is_refused():
    class Noise(Module):
        def __init__(self):
            self.rng = rng()
    for make in (Noise, lambda: Sequential(Noise())):
        with pytest.raises(TypeError, match="Noise: rng is a numpy Generator, whose state would not be saved.*nn.Stream"):
            make()


# ---------------------------------------------------------------- copies and pickles

@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
@each_optimizer
def test_an_optimizer_cannot_be_copied(make, duplicate):
    model = Net()
    optimizer = make(model)
    for thing in (optimizer, (model, optimizer)):
        if duplicate is not copy.copy or thing is optimizer:
            with pytest.raises(TypeError, match="cannot be copied or pickled.*load_state_dict"):
                duplicate(thing)


@each_optimizer
def test_a_copy_of_a_model_that_is_trained_shares_no_array_with_it(make):
    model = Net()
    x = rng().standard_normal((8, 3), dtype="float32")
    optimizer = make(model)
    take_step(model, optimizer, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = other.state_dict()
        take_step(model, optimizer, x)
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        trained = make(other)
        start = model.state_dict()
        take_step(other, trained, x)
        assert (other.head.weight.data != before["head.weight"]).any()
        assert all(np.array_equal(array, start[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])
def test_the_target_of_a_copied_method_follows_the_copied_model(duplicate):
    encoder = nn.MLP((2, 2, 1), (6,), rng=rng())
    model = BYOL(encoder, Linear(6, 4, rng=rng()), Linear(4, 4, rng=rng()), m=0.5)
    model.update()                                           # the target is now views of one array
    other = duplicate(model)
    for p in other.online.parameters():
        p.data += 1
    start, before = model.target.state_dict(), other.target.state_dict()
    other.update()
    for name, array in other.target.state_dict().items():
        np.testing.assert_allclose(array, before[name] + 0.5, rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(array, start[name]) for name, array in model.target.state_dict().items())
