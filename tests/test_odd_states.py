"""States that fit only by name and shape, and invalid learning rates, are refused without any change."""

import numpy as np
import pytest

from minicl import nn, optim

OPTIMIZERS = {"SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW, "LARS": optim.LARS}


def made(kind):
    model = nn.Linear(2, 3, rng=np.random.default_rng(0))
    optimizer = OPTIMIZERS[kind](model, lr=0.1)
    optimizer.grads[...] = 1
    optimizer.step()
    return model, optimizer


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


DAMAGE = {"masked": lambda x: np.ma.masked_array(x, mask=np.ones_like(x)),
          "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")), "list": lambda x: x.tolist(), "NaN": lambda x: x * np.nan, "shape": lambda x: x[..., None]}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_in_a_state_is_refused(kind, damage):
    for owner in made(kind):
        before = owner.state_dict()
        for name in before:
            with pytest.raises(ValueError, match=name):
                owner.load_state_dict({**owner.state_dict(), name: DAMAGE[damage](before[name])})
            assert same(owner.state_dict(), before)


@pytest.mark.parametrize("kind, other", [(kind, other) for kind in OPTIMIZERS for other in OPTIMIZERS if other != kind])
def test_the_state_of_another_class_is_refused(kind, other):
    """The moments of SGD and LARS have the same names, as have those of Adam and AdamW."""
    (_, optimizer), (_, giver) = made(kind), made(other)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=f"{other}.steps: unknown to this {kind}"):
        optimizer.load_state_dict(giver.state_dict())
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_negative_mean_of_squares_is_refused(kind):
    _, optimizer = made(kind)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="v.bias: a mean of squares below 0"):
        optimizer.load_state_dict({**before, "m.bias": -before["m.bias"], "v.bias": -before["v.bias"]})
    assert same(optimizer.state_dict(), before)
    optimizer.load_state_dict({**before, "m.bias": -before["m.bias"]})


def test_a_negative_running_variance_is_refused():
    model = nn.Sequential(nn.Linear(2, 3, rng=np.random.default_rng(0)), nn.BatchNorm(3))
    state = model.state_dict()
    with pytest.raises(ValueError, match="running_var: a mean of squares below 0"):
        model.load_state_dict({name: -array if name.endswith("running_var") else array for name, array in state.items()})
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("lr", ["a", "0.1", True, [0.1], np.array([0.1]), np.ones(2), -0.1, np.nan, np.inf, 1j])
def test_a_step_with_an_invalid_learning_rate_is_refused(kind, lr):
    model, optimizer = made(kind)
    before = model.state_dict(), optimizer.state_dict()
    with pytest.raises((TypeError, ValueError), match=rf"{kind}: lr must be a number in \[0, inf\)"):
        optimizer.step(lr)
    assert same(model.state_dict(), before[0]) and same(optimizer.state_dict(), before[1])


@pytest.mark.parametrize("lr", [None, 0, 1, 0.5, np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_a_step_accepts_any_real_learning_rate(lr):
    model, optimizer = made("SGD")
    optimizer.step(lr)
    assert model.weight.data.dtype == "float32"
