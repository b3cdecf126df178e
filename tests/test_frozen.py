"""Frozen parameters never move, whenever they were frozen; unusable gradients are an error."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import Net, each_optimizer, ones, rng, take_step

from minicl import Tensor, no_grad
from minicl.backend import to_device, to_host
from minicl.distributed import World
from minicl.nn import Parameter
from minicl.optim import LARS, SGD


# ---------------------------------------------------------------- freezing

@each_optimizer
def test_frozen_weights_do_not_move_whenever_they_were_frozen(xp, make):
    model = Net().to(xp)
    data = rng()
    optimizer = make(model)
    for frozen in (False, True, True, False, True):  # frozen after the optimizer was made, during training, and again
        model.encoder.unfreeze()
        if frozen:
            model.encoder.freeze()
            model.train()
        before = {**model.state_dict(), **optimizer.state_dict()}
        for _ in "12":
            take_step(model, optimizer, to_device(data.standard_normal((8, 3), dtype="float32"), xp))
        after = {**model.state_dict(), **optimizer.state_dict()}
        still = {name for name in before if np.array_equal(before[name], after[name])}
        if frozen:
            assert {name for name in before if "encoder" in name} <= still
        else:
            assert not any("0.weight" in name for name in still)
        assert "head.weight" not in still and "steps.head.weight" not in still


@each_optimizer
@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_each_parameter_moves_as_if_its_own_optimizer_had_taken_only_its_unfrozen_steps(make, frozen_at):
    """Compares one optimizer over three parameters, frozen in any pattern, with one optimizer for each."""
    def parameters():
        data = rng(1)
        return {"a": Parameter(data.standard_normal((3, 2))), "b": Parameter(data.standard_normal((2, 2))),
                "c": Parameter(data.standard_normal(3))}

    together, alone = parameters(), parameters()
    optimizer = make(list(together.items()))
    optimizers = {name: make([(name, p)]) for name, p in alone.items()}
    data = rng(2)
    for frozen in frozen_at:
        optimizer.zero_grad()
        for name, p in together.items():
            p.requires_grad = name not in frozen
            optimizers[name].zero_grad()
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


@each_optimizer
@given(st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=8), st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_parameter_moves_in_the_steps_whose_backward_reaches_it(make, reached_at, detaches):
    """As in PyTorch: without a gradient it is not decayed, no momentum moves it, and its steps are not counted."""
    together, alone = ({name: Parameter(rng(k).standard_normal((3, 2))) for k, name in enumerate("abc")}
                       for _ in "12")
    optimizer = make(list(together.items()))
    optimizers = {name: make([(name, p)]) for name, p in alone.items()}
    for k, reached in enumerate(reached_at):
        for each in (optimizer, *optimizers.values()):
            each.zero_grad()
        for parameters in (together, alone):
            used = {name: p.detach() if detaches and name not in reached else p for name, p in parameters.items()}
            for name in sorted(used if detaches else reached):
                if used[name].requires_grad:
                    (used[name] * used[name] * float(k % 3)).sum().backward()            # by 0: reached as well
        with contextlib.nullcontext() if reached else pytest.warns(match="moves nothing"):
            optimizer.step()
        for name in reached:
            optimizers[name].step()
    assert optimizer.steps == len(reached_at)
    for name in "abc":
        np.testing.assert_allclose(together[name].data, alone[name].data, rtol=1e-12)
        assert optimizer.state_dict()[f"steps.{name}"] == optimizers[name].steps


@each_optimizer
@pytest.mark.parametrize("unused", ["detach", "no_grad"])
def test_an_encoder_below_a_detached_output_keeps_its_weights(make, unused):
    model = Net()
    optimizer = make(model)
    before = model.encoder[0].state_dict()
    for x in rng().standard_normal((20, 8, 3), dtype="float32"):
        optimizer.zero_grad()
        with no_grad() if unused == "no_grad" else contextlib.nullcontext():
            h = model.encoder(x).detach()
        (model.head(h) * model.head(h)).sum().backward()
        optimizer.step()
    assert all(np.array_equal(before[name], x) for name, x in model.encoder[0].state_dict().items())


def test_gradients_that_the_caller_writes_count():
    p, q = Parameter(np.ones((2, 2))), Parameter(np.ones((2, 2)))
    optimizer = SGD([("p", p), ("q", q)], 0.1, weight_decay=0.5)
    for _ in "12":
        optimizer.zero_grad()
        (q * q).sum().backward()
        p.grad[0, 1] = 1
        optimizer.step()
    assert (p.data < 1).all() and (q.data < 1).all()


def test_a_parameter_that_another_process_has_reached_moves_here_too():
    class Two(World):
        size = 2

        def any(self, flag):
            return [True, False, *flag[2:]] if isinstance(flag, list) else flag

    model = Net().across(Two())
    optimizer = SGD(model, 0.1, weight_decay=0.1)
    before = model.state_dict()
    (model.head.weight * 1.0).sum().backward()
    optimizer.step()
    moved = {name for name, x in model.state_dict().items() if not np.array_equal(x, before[name])}
    assert moved == set(optimizer.names[:1]), (moved, optimizer.names)


def test_frozen_modules_stay_in_evaluation_mode_until_they_are_unfrozen():
    model = Net()
    assert model.encoder.freeze() is model.encoder and model.train().training
    assert not any(module.training or module._frozen is False for module in model.encoder.modules())
    x = Tensor(rng().standard_normal((8, 3), dtype="float32"), requires_grad=True)
    before = model.state_dict()
    model(x).sum().backward()
    assert x.grad.any() and model.head.weight.grad.any() and model.encoder[0].weight.grad is None
    np.testing.assert_array_equal(before["encoder.steps.1.running_mean"],
                                  model.state_dict()["encoder.steps.1.running_mean"])
    assert all(module.training for module in model.encoder.unfreeze().modules())
    assert all(p.requires_grad for p in model.parameters())


@each_optimizer
@pytest.mark.parametrize("left", [0.0, 1e6, 1e30, np.inf, np.nan])
def test_a_gradient_left_in_a_frozen_parameter_changes_nothing_and_stays(xp, make, left):
    """Clipping ignores it as well: the norm is that of the trained parameters."""
    def step(value):
        model = Net().to(xp)
        optimizer = make(model)
        model.encoder.freeze()
        optimizer.grads[...] = 3
        for p in model.encoder.parameters():
            p.grad[...] = value
        return optimizer.step(clip_grad_norm=1.0), to_host(optimizer.values), to_host(model.encoder[0].weight.grad)

    norm, values, grad = step(left)
    assert np.isclose(float(norm), np.sqrt(9 * 10)) and np.array_equal(values, step(0.0)[1])
    assert np.array_equal(grad, np.full((3, 4), left, "float32"), equal_nan=True)


def test_processes_sum_only_the_gradients_of_trained_parameters():
    """A frozen parameter's gradient may wait for the step after unfreeze(), and must not be summed twice."""
    class Twice(World):
        size = 2

        def all_reduce(self, x):
            x *= 2
            return x

    model = Net().across(Twice())
    optimizer = SGD(model, 0.01)
    optimizer.grads[...] = 1
    model.encoder.freeze()
    optimizer.step()
    assert model.head.weight.grad.min() == 2 and model.encoder[0].weight.grad.max() == 1


@each_optimizer
def test_a_checkpoint_made_while_frozen_continues_identically(make):
    def run(save_at):
        model = Net()
        data = rng()
        optimizer = make(model)
        for step in range(6):
            (model.encoder.freeze if 1 <= step < 4 else model.encoder.unfreeze)()
            if step == save_at:
                state = (model.state_dict(), optimizer.state_dict())
                other = Net(seed=5)
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


# ---------------------------------------------------------------- unusable gradients

@each_optimizer
@pytest.mark.parametrize("value", [2e19, -2e19, 3e38, np.inf, -np.inf, np.nan])
def test_an_unusable_gradient_is_an_error_and_changes_nothing(make, value):
    model = Net()
    x = rng().standard_normal((8, 3), dtype="float32")
    optimizer = make(model)
    take_step(model, optimizer, x)
    before = {**model.state_dict(), **optimizer.state_dict()}
    optimizer.zero_grad()
    model.encoder[0].weight.grad[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"the gradient \(encoder.steps.0.weight\) is not finite, or too large to square"):
        optimizer.step()
    for name, array in {**model.state_dict(), **optimizer.state_dict()}.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    take_step(model, optimizer, x)                           # training continues after the error
    assert all(np.isfinite(array).all() for array in {**model.state_dict(), **optimizer.state_dict()}.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@each_optimizer
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 2e19])
def test_on_a_gpu_an_unusable_gradient_reaches_the_weights(xp, make, value):
    """The step does not wait for the GPU, so the loss shows it. SGD and LARS take a step of 2e19 as it is."""
    if xp is np:
        return                                               # an error on NumPy, tested above
    p = Parameter(xp.ones((3, 4), dtype="float32"))
    optimizer = make([("p", p)])
    for _ in "12":
        optimizer.zero_grad()
        p.grad[...] = value
        optimizer.step()
    assert not np.isfinite(to_host(p.data)).any() or value == 2e19 and isinstance(optimizer, SGD)


@each_optimizer
@pytest.mark.parametrize("value", [1e18, 1e-30, 1e-45])
def test_large_and_tiny_gradients_leave_all_values_finite(xp, make, value):
    """This includes LARS, whose squared norms would overflow or vanish in float32."""
    p = Parameter(to_device(ones(3, 4), xp))
    optimizer = make([("p", p)])
    for scale in (value, 1.0, 1.0):
        optimizer.zero_grad()
        p.grad[...] = scale
        optimizer.step()
        assert np.isfinite(to_host(p.data)).all()
    assert all(np.isfinite(array).all() for array in optimizer.state_dict().values())


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-10, 1.0, 1e10, 1e17])
def test_lars_takes_the_step_of_its_formula_at_every_scale(xp, scale):
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
    with pytest.raises(ValueError, match=r"lr must be a number in \[0, inf\), got"):
        optimizer.step(lr)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
