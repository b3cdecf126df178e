"""States that fit only by name and shape, and invalid learning rates, are refused without any change."""

import copy
import pickle

import numpy as np
import pytest

from minicl import methods, nn, optim

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
    with pytest.raises(ValueError, match="v.bias: a value below 0"):
        optimizer.load_state_dict({**before, "m.bias": -before["m.bias"], "v.bias": -before["v.bias"]})
    assert same(optimizer.state_dict(), before)
    optimizer.load_state_dict({**before, "m.bias": -before["m.bias"]})


class Named(nn.Module):
    """Parts with the names of an optimizer's or batch norm's state, and counts that may be negative."""

    def __init__(self):
        self.v = nn.Linear(2, 3, rng=np.random.default_rng(0))
        self.running_var = nn.Parameter(-np.ones(2, "float32"))
        self.labels = nn.Buffer(np.array([-1, 2]))


def test_names_alone_do_not_limit_values():
    model = Named()
    model.load_state_dict(model.state_dict())
    optimizer = optim.Adam(model, lr=0.1)
    optimizer.grads[...] = -1
    optimizer.step()
    for owner in (model, optimizer):
        owner.load_state_dict(owner.state_dict())


@pytest.mark.parametrize("use", [bool, np.asarray, lambda b: b == 0, lambda b: b != 0, lambda b: np.equal(b, 0), np.sum,
                                 lambda b: b < 1, lambda b: np.ones(2) + b])
@pytest.mark.parametrize("part", [nn.Buffer(np.array(0.0)), nn.HostBuffer(3), nn.Counter()], ids=lambda part: type(part).__name__)
def test_a_buffer_is_not_mistaken_for_its_array(part, use):
    with pytest.raises(TypeError):
        use(part)


@pytest.mark.parametrize("part", [nn.HostBuffer(3), nn.Counter()], ids=lambda part: type(part).__name__)
def test_the_array_of_a_host_buffer_is_written_into_not_replaced(part):
    with pytest.raises(AttributeError, match="data cannot be replaced; write into it"):
        part.data = np.array(5)
    part.data[...] = 5
    assert part.data == 5


def test_a_negative_running_variance_is_refused():
    first = nn.Sequential(nn.Linear(2, 3, rng=np.random.default_rng(0)), nn.BatchNorm(3))
    for model in (first, copy.deepcopy(first), pickle.loads(pickle.dumps(first)), methods.frozen_copy(first)):
        state = model.state_dict()
        with pytest.raises(ValueError, match="running_var: a value below 0"):
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
