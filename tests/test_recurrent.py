"""The GRU: agreement with a cell made of small ops, the effect of its gates, and learning a task that needs memory."""

import decimal
from decimal import Decimal

import numpy as np
import pytest
from test_elementwise_accuracy import CONTEXT, sigmoid, tanh

from minicl import Tensor, ops
from minicl.backend import to_device, to_host
from minicl.contrastive import info_nce_from_scores
from minicl.nn import GRU, Linear, Sequential
from minicl.optim import Adam

T, B, C, H = 5, 3, 4, 2


@pytest.fixture
def arrays(rng):
    """x, w, v, b, h0"""
    return [rng.standard_normal(shape) for shape in ((T, B, C), (C, 3 * H), (H, 3 * H), (3 * H,), (B, H))]


def composed_gru(x, w, v, b, h0):
    """The states of the GRU in small ops, with gradients by autograd."""
    h = h0
    states = []
    for t in range(len(x)):
        a, p = x[t] @ w + b, h @ v
        r, u = (ops.sigmoid(a[:, k * H:(k + 1) * H] + p[:, k * H:(k + 1) * H]) for k in range(2))
        n = ops.tanh(a[:, 2 * H:] + r * p[:, 2 * H:])
        h = u * h + (1 - u) * n
        states.append(h)
    return ops.stack(*states)


def value_and_gradients(function, arrays, xp):
    tensors = [Tensor(to_device(x, xp), requires_grad=True) for x in arrays]
    h = function(*tensors)
    h.backward(to_device(np.random.default_rng(1).standard_normal(h.shape), xp))
    return [to_host(h.data)] + [to_host(x.grad) for x in tensors]


def test_the_op_agrees_with_a_cell_of_small_ops(arrays, xp):
    for one, many in zip(value_and_gradients(ops.gru, arrays, xp), value_and_gradients(composed_gru, arrays, xp)):
        np.testing.assert_allclose(one, many, rtol=1e-12, atol=1e-14)


def test_the_default_state_is_zeros(arrays, xp):
    given = value_and_gradients(ops.gru, [*arrays[:4], np.zeros((B, H))], xp)
    for one, other in zip(value_and_gradients(ops.gru, arrays[:4], xp), given):
        np.testing.assert_array_equal(one, other)


def test_a_sequence_in_two_parts_gives_the_states_of_the_whole(arrays):
    """The last state of the first part is the initial state of the second part."""
    x, *weights = (Tensor(array) for array in arrays[:4])
    whole = ops.gru(x, *weights).data
    first = ops.gru(x[:2], *weights)
    np.testing.assert_array_equal(np.concatenate([first.data, ops.gru(x[2:], *weights, first[-1]).data]), whole)


def test_the_past_does_not_see_the_future(arrays):
    x, w, v, b, _ = arrays
    later = x.copy()
    later[3] += 1
    before, after = ops.gru.forward(x, w, v, b)[0], ops.gru.forward(later, w, v, b)[0]
    np.testing.assert_array_equal(before[:3], after[:3])
    assert (before[3:] != after[3:]).all()


def test_sequences_of_a_batch_do_not_mix(arrays):
    x, w, v, b, h0 = arrays
    alone = ops.gru.forward(x[:, 1:2], w, v, b, h0[1:2])[0]
    np.testing.assert_allclose(ops.gru.forward(x, w, v, b, h0)[0][:, 1:2], alone, rtol=1e-12)


def test_an_update_gate_at_1_keeps_the_state_and_one_at_0_replaces_it(arrays):
    x, w, v, _, h0 = arrays
    gate = np.repeat([0.0, 1000.0, 0.0], H)                  # reset, update, new; exp would overflow
    np.testing.assert_allclose(ops.gru.forward(x, w, v, gate, h0)[0], np.broadcast_to(h0, (T, B, H)))
    new = np.tanh(x @ w[:, 2 * H:])
    np.testing.assert_allclose(ops.gru.forward(x, w, 0 * v, -gate, h0)[0], new, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_tail_of_a_gate_or_of_the_tanh_is_lost(dtype, xp):
    """A step of one unit, whose gates get -40 to 40: each result has a few roundings of its largest term, in 50 digits."""
    rng = np.random.default_rng(0)
    gates = np.stack(np.meshgrid(np.linspace(-40, 40, 21), np.linspace(-40, 40, 21)), axis=-1).reshape(-1, 2)
    gates += rng.uniform(-2, 2, gates.shape)
    new = rng.uniform(-12, 12, len(gates))
    rows = np.column_stack([gates, new]).astype(dtype)
    states = np.where(rng.integers(4, size=len(gates)), rng.uniform(-1, 1, len(gates)), 0).astype(dtype)
    arrays = rows[None], np.eye(3, dtype=dtype), np.array([[0, 0, 0.5]], dtype), np.zeros(3, dtype), states[:, None]
    x, w, v, b, h0 = (Tensor(to_device(array, xp), requires_grad=True) for array in arrays)
    after = ops.gru(x, w, v, b, h0)
    after.backward(xp.ones((1, len(rows), 1), dtype))
    results = np.column_stack([to_host(each).reshape(len(rows), -1) for each in (after.data, x.grad, h0.grad)])
    worst, smallest = 0, Decimal(float(np.finfo(dtype).tiny))
    with decimal.localcontext(CONTEXT):
        for row, h, got in zip(rows.tolist(), states.tolist(), results.tolist()):
            terms = step_terms(*map(Decimal, row), Decimal(h), Decimal("0.5"))
            for value, each in zip(got, terms):
                size = max(sum(map(abs, each)), smallest)
                error = abs(Decimal(value) - sum(each)) / size / (1 + abs(Decimal(row[2])))      # in e^a, a roundings of a
                worst = max(worst, float(error))
    assert worst < 6 * np.finfo(dtype).eps / 2


def step_terms(a_r, a_u, a_n, h, v):
    """The terms whose sums are h_1, da_r, da_u, da_n and dh_0 of a step with g = 1 and q = v h."""
    q = v * h
    r, rest_r, u, rest_u = (sigmoid(sign * a) for a in (a_r, a_u) for sign in (1, -1))
    a = a_n + r * q
    n = tanh(a)
    da_n = rest_u * 4 * sigmoid(2 * a) * sigmoid(-2 * a)
    slope = u * rest_u
    return [u * h, rest_u * n], [da_n * q * r * rest_r], [h * slope, -n * slope], [da_n], [u, r * da_n * v]


def test_states_stay_between_minus_1_and_1(rng):
    h = GRU(3, 4, rng=rng)(Tensor(100 * rng.standard_normal((50, 2, 3), dtype="float32"))).data
    assert h.shape == (50, 2, 4) and h.dtype == "float32" and np.abs(h).max() <= 1


def test_the_layer_has_three_parameters_and_an_update_bias_of_1(rng):
    layer = GRU(3, 4, rng=rng)
    assert [(name, p.shape) for name, p in layer.named_parameters()] == [("weight_ih", (3, 12)), ("weight_hh", (4, 12)),
                                                                   ("bias", (12,))]
    np.testing.assert_array_equal(layer.bias.data, np.repeat([0, 1, 0], 4))
    assert layer.features == 4


def test_it_learns_to_recall_the_first_symbol_of_a_sequence(xp, rng):
    """Only the first of ten steps shows the class, so without gradients through time the loss would stay at chance."""
    layer, read = GRU(4, 16, rng=rng).to(xp), Linear(16, 4, rng=rng).to(xp)
    optimizer = Adam(Sequential(layer, read), 0.02)
    for _ in range(60):
        symbols = rng.integers(0, 4, 32)
        x = np.zeros((10, 32, 4), "float32")
        x[0] = np.eye(4)[symbols]
        scores = read(layer(to_device(x, xp))[-1])
        loss = info_nce_from_scores(scores, to_device(symbols, xp))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("change, message", [
    (dict(x=np.ones((3, 4))), r"gru: expected x \(T, B, C\), T steps of B sequences, got \(3, 4\)"),
    (dict(w=np.ones((3, 6))), r"gru: expected w \(4, 6\) for x \(5, 3, 4\) and 2 units, got \(3, 6\)"),
    (dict(w=np.ones((4, 2))), "the three gates stand side by side"),
    (dict(v=np.ones((2, 2))), r"gru: expected v \(2, 6\)"),
    (dict(b=np.ones(2)), r"gru: expected b \(6,\)"),
    (dict(h0=np.ones((5, 2))), r"gru: expected h0 \(3, 2\) .* time-major: \(T, B, C\)"),
    (dict(x=np.ones((0, 3, 4))), r"gru: expected x"),
], ids=["two axes", "other channels", "one gate", "square", "short bias", "batch and time swapped", "no steps"])
def test_bad_shapes_are_named(arrays, change, message):
    given = dict(zip("x w v b h0".split(), arrays)) | change
    with pytest.raises(ValueError, match=message):
        ops.gru(**given)
