"""The linear probe finds the minimum of its loss and is within a percentage point of scikit-learn."""

import warnings

import numpy as np
import pytest

from minicl.backend import threads
from minicl.evaluate import linear_probe
from minicl.evaluate.probe import _Loss, lbfgs


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small gain nothing from more threads, which wait for each other where tests run side by side."""
    with threads(1):
        yield


def sklearn_accuracy(x, labels, test, test_labels, C=1.0):
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn to compare with")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    exact = linear.LogisticRegression(C=C, tol=1e-8, max_iter=20000)         # with its default tol, 1 to 2 points off at C = 1e4
    return make_pipeline(StandardScaler(), exact).fit(x, labels).score(test, test_labels)


def gaussians(n, centres, rng):
    labels = np.concatenate([np.arange(len(centres)), rng.integers(0, len(centres), n)])[:n]
    return centres[labels] + rng.standard_normal((n, centres.shape[1])), labels


SCALES = {"as they are": lambda x: x,
          "unscaled": lambda x: x * np.logspace(-6, 6, x.shape[1]) + np.logspace(6, -6, x.shape[1]),
          "constant columns": lambda x: np.concatenate([x, np.full((len(x), 3), [0.0, 3.0, 0.1])], axis=1),
          "near-constant columns": lambda x: np.concatenate([x[:, 6:], 1e-7 * x[:, :3], 5 + 1e-4 * x[:, 3:6]], axis=1)}


@pytest.mark.parametrize("scale, dtype", [(scale, "float64") for scale in SCALES]
                         + [(scale, "float32") for scale in SCALES if scale != "unscaled"])  # it cannot hold 1e6 + 1e-6 x
@pytest.mark.parametrize("classes, n", [(10, 50), (10, 500), (10, 5000), (2, 50), (2, 500), (100, 500), (100, 5000)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_probe_is_within_a_point_of_scikit_learn(classes, n, scale, dtype, rng):
    centres = (0.3 if classes == 2 else 0.6) * rng.standard_normal((classes, 64))
    (x, labels), (test, test_labels) = gaussians(n, centres, rng), gaussians(4000, centres, rng)
    x, test = (SCALES[scale](one).astype(dtype) for one in (x, test))
    found = linear_probe(x, labels, test, test_labels)
    expected = sklearn_accuracy(x, labels, test, test_labels)
    assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_probe_is_near_the_best_classifier_of_gaussian_classes(rng):
    centres = 0.5 * rng.standard_normal((10, 64))
    (x, labels), (test, test_labels) = gaussians(500, centres, rng), gaussians(4000, centres, rng)
    nearest = ((test[:, None] - centres)**2).sum(axis=2).argmin(axis=1)                      # the best classifier
    assert linear_probe(x, labels, test, test_labels) > (nearest == test_labels).mean() - 0.04


def test_the_probe_is_the_minimum_of_its_loss(rng):
    """The loss and its gradient agree with a plain formula, and the gradient at the solution is within tolerance."""
    x = rng.standard_normal((80, 4))
    labels = rng.integers(0, 3, 80)
    loss = _Loss(x, labels, 3, decay=1 / 80)
    w, slope = lbfgs(loss, np.zeros(15), 200, 3e-4)

    def plain(w):
        W = w[:12].reshape(3, 4)
        b = w[12:]
        scores = x @ W.T + b
        return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(80), labels]) + (W * W).sum() / 160
    value, gradient = loss(w)
    assert value == pytest.approx(plain(w), rel=1e-12) and slope == abs(gradient).max() <= 3e-4
    for k in range(15):
        step = 1e-6 * np.eye(15)[k]
        assert gradient[k] == pytest.approx((plain(w + step) - plain(w - step)) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decades, C", [(0, 1e-2), (0, 1e4), (2, 1.0), (2, 1e2), (2, 1e4), (4, 1e-2), (4, 1.0), (4, 1e2)])
def test_a_fit_that_has_not_converged_warns_and_any_other_is_right(decades, C, dtype):
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((32, 32)) * np.logspace(0, -decades, 32) @ rng.standard_normal((32, 32))
    centres = 0.6 * rng.standard_normal((6, 32))
    (x, labels), (test, test_labels) = gaussians(800, centres, rng), gaussians(1500, centres, rng)
    data = (x @ mix).astype(dtype), labels, (test @ mix).astype(dtype), test_labels
    few_steps_warned = []
    for steps in (3, 30, 5000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = linear_probe(*data, C=C, steps=steps)
        few_steps_warned.append(bool(caught))
        if caught:
            assert f"raise steps ({steps}), lower C ({C:g})" in str(caught[0].message) and len(caught) == 1
        else:
            assert found == pytest.approx(sklearn_accuracy(*data, C=C), abs=0.01)
    assert few_steps_warned[0] and not few_steps_warned[2]


@pytest.mark.parametrize("C", [10.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_weak_penalty_is_minimised_as_well(C, seed):
    """Its loss is flatter: with the tolerance of C = 1 the accuracy was up to 2 points lower."""
    rng = np.random.default_rng(seed)
    centres = 0.35 * rng.standard_normal((10, 64))
    data = *gaussians(500, centres, rng), *gaussians(4000, centres, rng)
    assert linear_probe(*data, C=C) > sklearn_accuracy(*data, C=C) - 0.005


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.filterwarnings("error")
def test_few_labels_are_fitted_as_well(seed):
    """With the limit for many labels the accuracy was up to 13 points off."""
    rng = np.random.default_rng(seed)
    classes, N, d, C, gap, common, dtype = (rng.choice(values).item() for values in (
        [2, 10], [50, 100, 200, 500], [128, 512, 1024], [1e-2, 1.0, 100.0], [3, 8], [0, 3], ["float32", "float64"]))
    centres = gap / np.sqrt(2 * d) * rng.standard_normal((classes, d))       # gap: the distance of two, about
    (x, labels), (test, test_labels) = gaussians(N, centres, rng), gaussians(2000, centres, rng)
    towards = common * (1 + 0.3 * rng.standard_normal(d))                    # one strong direction, as features of images have
    data = [(features + rng.standard_normal((len(features), 1)) * towards).astype(dtype) for features in (x, test)]
    found = linear_probe(data[0], labels, data[1], test_labels, C=C)
    expected = sklearn_accuracy(data[0].astype(float), labels, data[1].astype(float), test_labels, C=C)
    assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("C", [1.0, 100.0])
def test_float32_reaches_the_limit(C):
    """Near the minimum the loss changes by less than a rounding. Its slope tells whether a step goes down."""
    rng = np.random.default_rng(0)
    x, labels = gaussians(100, rng.standard_normal((10, 128)) / 3, rng)
    loss = _Loss(x.astype("float32"), labels, 10, decay=1 / (C * 100))
    calls = []
    _, slope = lbfgs(lambda w: calls.append(w) or loss(w), np.zeros(1290, "float32"), 1000, 1e-7)
    assert slope <= 1e-7 and len(calls) < 200


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_column_that_varies_only_by_rounding_in_training_is_ignored(rng, dtype):
    """Otherwise its drift in the test items, in units of a rounding error, would decide their classes."""
    labels = np.arange(60) % 3
    x = (np.eye(3)[labels] * 4 + rng.standard_normal((60, 3))).astype(dtype)
    still = np.full((60, 1), 7.3, dtype)
    rounded, drifted = np.nextafter(still, 8, dtype=dtype) * (labels[:, None] == 1) + still * (labels[:, None] != 1), still + 1
    alone = linear_probe(x, labels, x, labels)
    with pytest.warns(UserWarning, match="linear_probe: 1 of 4 columns of train_features vary by less than 16 roundings"):
        found = linear_probe(np.concatenate([x, rounded.astype(dtype)], 1), labels,
                             np.concatenate([x, drifted.astype(dtype)], 1), labels)
    assert found == alone > 0.9


@pytest.mark.parametrize("dtype, large", [("float32", 1e30), ("float64", 1e300)])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e-30])
@pytest.mark.filterwarnings("error")
def test_columns_constant_in_training_are_ignored_however_large_in_the_test(dtype, large, constant):
    x = np.array([[0, 1], [1, 1], [3, 1], [4, 1]], dtype) * np.array([1, constant], dtype)
    x_test = np.array([[-1, large], [5, -large]], dtype)
    assert linear_probe(x, np.array([0, 0, 1, 1]), x_test, np.array([0, 1])) == 1


@pytest.mark.parametrize("dtype, small, large", [("float32", 1e-30, 1e20), ("float64", 1e-200, 1e200)])
@pytest.mark.filterwarnings("error")
def test_test_features_whose_scores_overflow_are_refused(dtype, small, large):
    x = np.array([[0], [1], [3], [4]], dtype) * np.dtype(dtype).type(small)
    with pytest.raises(FloatingPointError, match="scaled alike"):
        linear_probe(x, np.array([0, 0, 1, 1]), np.array([[-large], [large]], dtype), np.array([0, 1]))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("C", [1e-3, 0.01, 0.1, 1.0])
def test_the_penalty_is_that_of_scikit_learn_also_for_two_classes(classes, C):
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(classes)
    centres = 1.5 * rng.standard_normal((classes, 4))
    share = rng.dirichlet(np.full(classes, 3.0))  # classes of different sizes: the penalty matters
    labels, test_labels = (rng.choice(classes, n, p=share) for n in (60, 2000))
    x, x_test = (centres[y] + rng.standard_normal((len(y), 4)) for y in (labels, test_labels))
    scaler = preprocessing.StandardScaler().fit(x)
    peer = linear_model.LogisticRegression(C=C, max_iter=5000, tol=1e-8).fit(scaler.transform(x), labels)
    expected = peer.score(scaler.transform(x_test), test_labels)
    assert abs(linear_probe(x, labels, x_test, test_labels, C=C) - expected) <= 0.01
