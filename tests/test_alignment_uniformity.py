"""Alignment and uniformity as losses: their definitions, their extremes and their gradients."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, evaluate, gradcheck
from minicl.backend import to_device, to_host
from minicl.contrastive import alignment_loss, composed, negative_cosine, nt_xent, pairs, uniformity_loss


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def gradient(loss, z, xp=np):
    leaf = Tensor(to_device(z, xp), requires_grad=True)
    loss(leaf).backward()
    return to_host(leaf.grad)


def circle(n):
    angles = 2 * math.pi * np.arange(n) / n
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# ---------------------------------------------------------------- values

@pytest.mark.parametrize("alpha", [1, 2, 3.5])
def test_alignment_equals_its_definition(xp, rng, alpha):
    z1, z2 = rng.standard_normal((2, 5, 3))
    expected = sum(math.dist(a, b)**alpha for a, b in zip(unit(z1), unit(z2))) / 5
    loss = alignment_loss(to_device(z1, xp), to_device(z2, xp), alpha=alpha)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 2, 100])
def test_uniformity_equals_its_definition(xp, rng, t):
    z = rng.standard_normal((6, 3))
    pairs = [math.exp(-t * math.dist(a, b)**2) for a, b in itertools.combinations(unit(z), 2)]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity_loss(to_device(z, xp), t=t).item() == pytest.approx(expected, rel=1e-12)


def test_the_losses_equal_the_metrics_of_evaluate(xp, rng):
    z1, z2 = (to_device(z, xp) for z in rng.standard_normal((2, 7, 4)))
    assert alignment_loss(z1, z2, alpha=1).item() == evaluate.alignment(z1, z2, alpha=1)
    assert uniformity_loss(z1, t=3).item() == evaluate.uniformity(z1, t=3)


def test_collapse_is_perfectly_aligned_and_not_at_all_uniform():
    point = np.ones((8, 3))
    assert alignment_loss(point, point).item() == 0
    assert uniformity_loss(point).item() == pytest.approx(0, abs=1e-12)


def test_two_opposite_points_lie_below_the_floor_for_many_points():
    assert uniformity_loss(np.array([[1.0, 0], [-1, 0]])).item() == pytest.approx(-8)
    assert uniformity_loss(circle(2000)).item() == pytest.approx(evaluate.uniformity_floor(2), abs=2e-3)


@pytest.mark.parametrize("t", [0.5, 2, 60])
@pytest.mark.parametrize("n", [2, 5, 600])                   # 600 gives several tiles, the last one smaller
def test_uniformity_in_tiles_equals_its_composed_form(xp, rng, n, t):
    z = rng.standard_normal((n, 5))
    losses = (uniformity_loss, composed.uniformity_loss)
    fused, read = (loss(Tensor(to_device(z, xp)), t=t).item() for loss in losses)
    assert fused == pytest.approx(read, rel=1e-12)
    fused, read = (gradient(lambda leaf: loss(leaf, t=t), z, xp) for loss in losses)
    np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(2, 30), spread=st.floats(-3, 0.5), t=st.floats(0.5, 100),
       kind=st.sampled_from(["one cone", "opposite cones", "with rows of zeros"]))
def test_uniformity_in_float32_is_right_for_any_distances_and_t(seed, n, spread, t, kind):
    """Its relative error is a few times 2^-24 / spread, which the rounding of unit rows causes, as long as e and the largest
    exponent have digits for it. tests/accuracy.py compares larger batches with PyTorch."""
    rng = np.random.default_rng(seed)
    rows = np.eye(8)[0] + 10**spread * rng.standard_normal((n, 8)) / 8**0.5
    if kind == "opposite cones":
        rows[::2] *= -1
    elif kind == "with rows of zeros":
        rows[::2] = 0
    rows = rows.astype("float32")
    u = rows.astype("float64") / np.maximum(np.linalg.norm(rows.astype("float64"), axis=1, keepdims=True), 1e-300)
    squares = ((u[:, None] - u[None])**2).sum(axis=2)[~np.eye(n, dtype=bool)]
    exact = math.log(np.exp(-t * (squares - squares.min())).mean()) - t * squares.min()
    most = 1e-6 / min(1, 10**spread) * abs(exact) + 3e-7 * t * squares.max() + 2e-7
    assert abs(uniformity_loss(rows, t=t).item() - exact) <= most


# ---------------------------------------------------------------- gradients

def test_evenly_spaced_points_on_the_circle_have_zero_gradient(xp):
    np.testing.assert_allclose(gradient(uniformity_loss, circle(12), xp), 0, atol=1e-14)


def test_collapsed_points_have_zero_gradient_too():
    assert not gradient(uniformity_loss, np.eye(3)[[0, 0, 0]]).any()


def test_uniformity_pushes_neighbours_apart():
    near = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]])
    step = -gradient(uniformity_loss, near)
    assert step[0, 1] > 0 > step[1, 1]


def test_nt_xent_is_alignment_plus_uniformity_where_all_anchors_are_alike():
    """On a regular polygon every anchor has the same sum of exponentials, so one softmax over all pairs equals one
    softmax per anchor: nt_xent with tau = 1/(2t) is alignment / (2 tau) + uniformity + a constant."""
    z = circle(10)
    z1 = z[:5]
    z2 = z[5:]
    t = 2.0                            # positives are opposite points; any pairing would do
    tau = 1 / (2 * t)
    parts = alignment_loss(z1, z2).item() / (2 * tau) + uniformity_loss(z, t=t).item() + math.log(9)
    assert nt_xent(z1, z2, tau).item() == pytest.approx(parts, rel=1e-12)


def test_gradients_are_correct_through_several_tiles(monkeypatch, rng):
    monkeypatch.setattr(pairs, "tile_size", lambda xp, n: 3)
    assert len(pairs.SymmetricPairs(np.eye(7), 0.2, cache=False).tiles) == 6  # 3 x 3 each, on and above the diagonal
    assert gradcheck(uniformity_loss, [rng.standard_normal((7, 3))])


# ---------------------------------------------------------------- the stop-gradient

def test_negative_cosine_is_minus_the_mean_cosine(xp, rng):
    p, z = rng.standard_normal((2, 5, 3))
    expected = -(unit(p) * unit(z)).sum(axis=1).mean()
    assert negative_cosine(*(Tensor(to_device(x, xp)) for x in (p, z))).item() == pytest.approx(expected, rel=1e-12)


def test_negative_cosine_sends_no_gradient_into_its_target(rng):
    p, z = (Tensor(x, requires_grad=True) for x in rng.standard_normal((2, 5, 3)))
    negative_cosine(p, z * 2).backward()
    assert p.grad is not None and z.grad is None


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("call, message", [
    (lambda z: alignment_loss(z, z[:3]), r"alignment_loss: expected two arrays \(N, d\) of the same N items"),
    (lambda z: alignment_loss(z, z, alpha=0), "alignment_loss: alpha must be a number in .0, inf., got 0"),
    (lambda z: uniformity_loss(z[:1]), r"uniformity_loss: expected \(N, d\) with N >= 2 and d >= 1, got \(1, 3\)"),
    (lambda z: uniformity_loss(z[0]), r"uniformity_loss: expected \(N, d\)"),
    (lambda z: uniformity_loss(z, t=-1), "uniformity_loss: t must be a number in .0, inf., got -1"),
])
def test_invalid_arguments_raise(rng, call, message):
    with pytest.raises(ValueError, match=message):
        call(rng.standard_normal((4, 3)))


def test_nan_in_the_input_raises():
    for loss in (uniformity_loss, lambda z: alignment_loss(z, z)):
        with pytest.raises(FloatingPointError, match="the length of a row is not finite"):
            loss(np.full((4, 3), np.nan))
