"""Mutual information and its bounds: exact values, the published saturation, why NT-Xent is not a bound, the
example."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from known_information import (draw_gaussians, gaussian_correlation, gaussian_information, log_density_ratio,
                               optimal_bound, pairs_bound, symbol_estimates)
from example_runs import read_run, run_example
from minicl import Tensor, gradcheck
from minicl.backend import threads, to_device, to_host
from minicl.contrastive import choice_accuracy, info_nce_from_scores, nt_xent
from minicl.evaluate import infonce_bound

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- the loss and the choice, from scores

def test_the_loss_from_scores_is_the_mean_of_minus_log_probability(xp, rng):
    scores = rng.standard_normal((5, 4))
    ids = np.array([0, 3, 1, 1, 2])
    p = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum(axis=1, keepdims=True)
    loss = info_nce_from_scores(Tensor(to_device(scores, xp)), to_device(ids, xp), 0.5)
    assert loss.item() == pytest.approx(-np.log(p[np.arange(5), ids]).mean(), rel=1e-12)


def test_the_loss_from_scores_has_the_gradient_of_finite_differences(rng):
    ids = np.array([0, 3, 1, 1, 2])
    assert gradcheck(lambda scores, tau: info_nce_from_scores(scores, ids, tau),
                     [rng.standard_normal((5, 4)), np.array(0.5)])


def test_equal_scores_cost_log_of_the_candidates_and_are_right_by_chance(xp):
    scores = xp.zeros((6, 6))
    ids = xp.arange(6)
    assert info_nce_from_scores(Tensor(scores), ids).item() == pytest.approx(math.log(6), rel=1e-12)
    assert float(choice_accuracy(scores, ids)) == pytest.approx(1 / 6, rel=1e-12)


def test_a_choice_counts_as_right_wrong_or_shared(xp):
    scores = xp.asarray([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 2.0, 0.0]])
    assert float(choice_accuracy(scores, xp.asarray([0, 1, 1]))) == pytest.approx((1 + 0 + 0.5) / 3)


@pytest.mark.parametrize("function", [info_nce_from_scores, choice_accuracy])
@pytest.mark.parametrize("scores, ids, error, message", [
    (np.ones((3, 1)), np.zeros(3, int), ValueError, r"expected scores \(N, K\) over K >= 2 candidates, got \(3, 1\)"),
    (np.ones(3), np.zeros(3, int), ValueError, r"expected scores \(N, K\)"),
    (np.ones((3, 2)), np.zeros(3), TypeError, "positive_ids must be an array of integers"),
    (np.ones((3, 2)), [0, 1, 0], TypeError, "positive_ids must be an array of integers.* got list"),
    (np.ones((3, 2)), np.zeros(2, int), ValueError, r"expected one positive per row, positive_ids \(3,\), got \(2,\)"),
], ids=["one candidate", "no matrix", "floats", "list", "too few"])
def test_scores_and_ids_that_do_not_fit_are_refused(function, scores, ids, error, message):
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(scores, ids)


# ---------------------------------------------------------------- correlated Gaussians

@pytest.mark.parametrize("d, nats", [(1, 0.0), (1, 1e-9), (1, 10.0), (20, 2.0), (20, 10.0), (20, 100.0)])
def test_correlation_and_information_are_inverse(d, nats):
    assert gaussian_information(gaussian_correlation(nats, d), d) == pytest.approx(nats, rel=1e-6)


def test_the_information_has_known_values():
    assert gaussian_information(0.0, 20) == 0
    assert gaussian_information(0.5, 20) == pytest.approx(10 * math.log(4 / 3))
    assert gaussian_information(-0.5, 20) == gaussian_information(0.5, 20)


def test_the_draws_have_unit_variance_and_the_correlation(rng):
    x, y = draw_gaussians(rng, 40_000, 2, 0.6)
    assert x.dtype == y.dtype == "float32"
    np.testing.assert_allclose(np.cov(x.T, y.T), np.kron([[1, 0.6], [0.6, 1]], np.eye(2)), atol=0.03)


def test_the_log_density_ratio_is_that_of_the_densities(xp, rng):
    def log_normal(v, mean, variance):
        return (-0.5 * (v - mean)**2 / variance - 0.5 * math.log(2 * math.pi * variance)).sum()
    x = rng.standard_normal((3, 5))
    y = rng.standard_normal((4, 5))
    rho = 0.7
    scores = to_host(log_density_ratio(to_device(x, xp), to_device(y, xp), rho))
    for i, j in itertools.product(range(3), range(4)):
        expected = log_normal(y[j], rho * x[i], 1 - rho**2) - log_normal(y[j], 0, 1)
        assert scores[i, j] == pytest.approx(expected, rel=1e-9)


def test_the_mean_log_density_ratio_is_the_information(rng):
    rho = gaussian_correlation(3.0, 20)
    x, y = draw_gaussians(rng, 2000, 20, rho)
    assert np.diagonal(log_density_ratio(x, y, rho)).mean() == pytest.approx(3.0, abs=0.2)


# CLAIMS row 1. The values were computed independently of minicl, with errors up to 0.01 (0.03 for 256 candidates).
@pytest.mark.parametrize("candidates, expected, tolerance", [
    (16, (1.52, 2.30, 2.62, 2.73, 2.76), 0.02),
    (64, (1.82, 3.07, 3.74, 4.03, 4.12), 0.02),
    (256, (1.93, 3.53, 4.59, 5.18, 5.44), 0.04),
])
def test_the_optimal_critic_saturates_as_published(candidates, expected, tolerance, rng):
    with threads(1):                                         # with more, BLAS's threads would wait for each other
        bounds = [optimal_bound(nats, 20, candidates, pairs=60_000, rng=rng) for nats in (2, 4, 6, 8, 10)]
    for nats, value, (mean, error) in zip((2, 4, 6, 8, 10), expected, bounds):
        assert mean == pytest.approx(value, abs=tolerance + 2 * error)
        assert error < 0.015 and mean < nats and mean < math.log(candidates)


def test_the_optimal_critic_beats_others(rng):
    """Other scores give a lower bound: here the optimal ones at another temperature, or for another correlation."""
    rho = gaussian_correlation(4.0, 20)
    best = 0
    other = np.zeros(3)
    for _ in range(50):
        x, y = draw_gaussians(rng, 64, 20, rho)
        scores = log_density_ratio(x, y, rho)
        best += pairs_bound(scores)
        other += [pairs_bound(scores / 2), pairs_bound(scores * 2), pairs_bound(log_density_ratio(x, y, rho / 2))]
    assert (other < best).all()


def test_the_bound_of_pairs_is_that_of_the_loss(xp, rng):
    scores = to_device(rng.standard_normal((6, 6)), xp)
    loss = info_nce_from_scores(Tensor(scores), xp.arange(6)).item()
    assert float(pairs_bound(scores)) == pytest.approx(infonce_bound(loss, 6).nats, rel=1e-12)


def test_negatives_and_cap_of_nt_xent():
    """CLAIMS row 3: N = 256 and 4096 images."""
    for n, negatives, nats, bits in ((256, 510, 6.24, 9.00), (4096, 8190, 9.01, 13.00)):
        bound = infonce_bound(0.0, negatives + 1)
        assert negatives == 2 * (n - 1)
        assert bound.cap == pytest.approx(nats, abs=0.005) and bound.cap_bits == pytest.approx(bits, abs=0.005)
        assert bound.bits == pytest.approx(bound.cap_bits)


# ---------------------------------------------------------------- NT-Xent is not a bound

def enumerate_symbols(m, n):
    """(InfoNCE, NT-Xent) estimates averaged over all m^n ways in which n images can show m symbols."""
    infonce = nt = 0.0
    for symbols in itertools.product(range(m), repeat=n):
        same = symbols.count(symbols[0])                     # the anchor is image 0, and its own view counts
        infonce += math.log(n) - math.log(same)
        nt += math.log(2 * n - 1) - math.log(2 * same - 1)
    return infonce / m**n, nt / m**n


@pytest.mark.parametrize("m, n", [(2, 2), (2, 8), (3, 5)])
def test_symbol_estimates_match_an_enumeration_of_all_cases(m, n):
    estimates = symbol_estimates(m, n)
    assert estimates.information == pytest.approx(math.log(m))
    assert (estimates.infonce, estimates.nt_xent) == pytest.approx(enumerate_symbols(m, n), rel=1e-12)


def test_symbol_estimates_match_nt_xent_itself(rng):
    """The views are one-hot and the temperature is tiny, so an equal symbol scores almost infinitely higher."""
    losses = []
    for _ in range(400):
        z = np.eye(2)[rng.integers(0, 2, 8)]
        losses.append(nt_xent(Tensor(z), Tensor(z), 0.01).item())
    estimate = infonce_bound(np.mean(losses), 15).nats
    assert estimate == pytest.approx(symbol_estimates(2, 8).nt_xent, abs=4 * np.std(losses) / 20)


def test_nt_xent_exceeds_the_information_and_infonce_never():
    """CLAIMS row 2, to the digit."""
    assert symbol_estimates(2, 8).nt_xent == pytest.approx(0.6962, abs=5e-5)
    excess = {(m, n): symbol_estimates(m, n).nt_xent - math.log(m) for m in range(2, 12) for n in range(2, 60)}
    assert max(excess, key=excess.get) == (2, 6) and max(excess.values()) == pytest.approx(0.0038, abs=5e-5)
    assert all(symbol_estimates(m, n).infonce < math.log(m) for m, n in excess)


def test_a_correlation_beyond_float64_is_refused():
    with pytest.raises(ValueError, match="gaussian_correlation: .* no more than about 18 nats a dimension"):
        gaussian_correlation(100.0, 1)


# ---------------------------------------------------------------- the page, the example

def test_the_code_of_the_page_computes_its_numbers():
    page = (ROOT / "docs/methods/information.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks), {})


def test_the_example_ends_with_a_result_on_either_backend(xp, tmp_path):
    assert run_example("mutual_information", "--epochs", 1, "--batch", 16, "--pairs", 2000,
                       "--backend", "numpy" if xp is np else "cupy", "--out", tmp_path / "out") == 0
    result, log = read_run(tmp_path / "out")
    assert [line["nats"] for line in log] == [nats for nats in (2, 4, 6, 8, 10) for _ in range(3)]
    assert result["cap_nats"] == pytest.approx(math.log(16))
    assert 0.9 < result["optimal_16_2"] < result["optimal_16_10"] < math.log(16)
    assert math.log(16) < result["optimal_64_10"] < math.log(64)
    assert all(math.isfinite(result[f"learned_{nats}"]) for nats in (2, 4, 6, 8, 10))
    assert result["learned_10"] > 1 > result["learned_2"]
    assert result["symbol_infonce"] < result["symbol_information"] < result["symbol_nt_xent"]


def test_a_resumed_run_keeps_its_schedule(tmp_path, capsys):
    """More --epochs are refused, because the log would mix two schedules of the information."""
    small = ("mutual_information", "--batch", 16, "--pairs", 512, "--out", tmp_path / "out")
    assert run_example(*small, "--epochs", 1) == 0
    result = read_run(tmp_path / "out")[0]
    assert run_example(*small, "--epochs", 2, "--resume") == 2
    assert "is of a run with other options: --epochs was 1, now 2" in capsys.readouterr().err
    assert run_example(*small, "--epochs", 1, "--resume") == 0
    assert {key for key, value in read_run(tmp_path / "out")[0].items() if value != result[key]} <= {"seconds", "peak_mib"}


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("nats", [1.0, 4.4, 4.6, 8.0, 12.0, 14.0])           # per dimension: float32 ends at 4.5
def test_the_optimal_bound_is_right_for_any_accepted_information(nats, d):
    K, batches = 64, 40
    rho = gaussian_correlation(nats * d, d)
    noise_var = math.exp(-2 * nats)
    rng = np.random.default_rng(5)
    bounds = []
    for _ in range(batches):                                 # the same draws; the scores use the residuals y - rho x
        x, noise = rng.standard_normal((2, K, d), dtype="float32").astype("float64")
        y = rho * x + math.sqrt(noise_var) * noise
        s = (y * y).sum(axis=1) / 2 - ((y - rho * x[:, None])**2).sum(axis=2) / (2 * noise_var)
        bounds.append(pairs_bound(s))
    mean, error = optimal_bound(nats * d, d, K, pairs=K * batches, rng=np.random.default_rng(5))
    assert mean == pytest.approx(np.mean(bounds), abs=1e-4)
    assert error == pytest.approx(np.std(bounds, ddof=1) / math.sqrt(batches), abs=1e-4)


@pytest.mark.parametrize("dtype, nats", [("float32", 5.0), ("float32", 8.0), ("float64", 15.0), ("float64", 17.0)])
def test_information_beyond_the_rounding_of_a_dtype_is_refused(dtype, nats):
    rho = gaussian_correlation(nats, 1)
    x, y = draw_gaussians(np.random.default_rng(0), 4, 1, rho, dtype)
    assert x.dtype == y.dtype == dtype
    with pytest.raises(ValueError, match=f"1000 roundings of {dtype}"):
        log_density_ratio(x, y, rho)
    if dtype == "float64":
        with pytest.raises(ValueError, match="less information a dimension"):
            optimal_bound(nats, 1, 16, pairs=64, rng=np.random.default_rng(0))


@pytest.mark.parametrize("rng", [None, 0, np.random.RandomState(0), np.random])
def test_an_rng_that_is_not_a_generator_is_refused(rng):
    for call in (lambda: draw_gaussians(rng, 3, 2, 0.5), lambda: optimal_bound(1, 2, 4, pairs=8, rng=rng)):
        with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
            call()
