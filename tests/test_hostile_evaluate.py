"""Invalid and extreme inputs to every evaluation function: each gives the right number or an error that names the
argument."""

import inspect
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from known_information import (draw_gaussians, gaussian_correlation, gaussian_information, log_density_ratio,
                               optimal_bound, pairs_bound, symbol_estimates)
from minicl import evaluate
from minicl.autograd import Tensor
from minicl.backend import BackendError, to_device
from minicl.data import ImageData
from minicl.distributed import ALONE
from minicl.evaluate import (alignment, class_embeddings, effective_rank, embedding_std, encode, final_loss,
                             frozen_accuracies, infonce_bound, knn_accuracy, linear_probe, nearest_neighbours,
                             pixel_accuracy, retrieval_recall, to_float, training_metrics, tsne,
                             uniformity, uniformity_floor, zero_shot_accuracy)
from minicl.methods import SimCLR
from minicl.nn import MLP, projection_head

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 4))
LABELS = np.arange(12) % 3
SCORES = RNG.standard_normal((4, 4))
IMAGES = RNG.integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
ENCODER = MLP((4, 4, 1), (5,), rng=RNG)
DATA = ImageData("noise", IMAGES, LABELS, IMAGES, LABELS, ("a", "b", "c"))
MODEL = SimCLR(ENCODER, projection_head("mlp", 5, dim=3, rng=RNG))

# ---------------------------------------------------------------- a valid call of each function

CALLS = {
    knn_accuracy: dict(train_features=X, train_labels=LABELS, test_features=X, test_labels=LABELS, k=3, tau=0.1),
    linear_probe: dict(train_features=X, train_labels=LABELS, test_features=X, test_labels=LABELS, C=1.0, steps=200),
    nearest_neighbours: dict(bank=X, queries=X, k=3),
    zero_shot_accuracy: dict(images=X, classes=X[:3], labels=LABELS),
    retrieval_recall: dict(images=X, captions=X[:3], caption_ids=LABELS, ks=(1, 2)),
    class_embeddings: dict(embed=lambda captions: RNG.standard_normal((len(captions), 4)), names=["a", "b"],
                           templates=["a {}"]),
    alignment: dict(z1=X, z2=X + 1, alpha=2),
    uniformity: dict(z=X, t=2),
    uniformity_floor: dict(d=3, t=2),
    embedding_std: dict(z=X),
    effective_rank: dict(z=X),
    infonce_bound: dict(loss=1.0, candidates=8),
    gaussian_information: dict(rho=0.5, d=3),
    gaussian_correlation: dict(nats=1.0, d=3),
    draw_gaussians: dict(rng=RNG, n=5, d=3, rho=0.5, dtype="float64"),
    log_density_ratio: dict(x=X, y=X, rho=0.5),
    pairs_bound: dict(scores=SCORES),
    optimal_bound: dict(nats=1.0, d=3, candidates=4, pairs=40, rng=RNG),
    symbol_estimates: dict(symbols=2, batch=4),
    tsne: dict(features=X, perplexity=3, steps=5, seed=0),
    encode: dict(model=ENCODER, items=IMAGES, xp=np, batch=5),
    to_float: dict(images=IMAGES, xp=np),
    frozen_accuracies: dict(model=MODEL, data=DATA, xp=np, k=3, probe=False),
    training_metrics: dict(model=MODEL, data=DATA, xp=np, k=3),
    pixel_accuracy: dict(data=DATA, xp=np, k=3),
}


def with_value(value, at=(3, 2)):
    x = X.copy()
    x[at] = value
    return x


FEATURES = {
    "a list": X.tolist(), "a Tensor": Tensor(X), "None": None, "a number": 1.0, "a matrix": X.view(np.matrix),
    "masked": np.ma.masked_array(X, X > 1), "one axis": X[0], "three axes": X[:, :, None], "no rows": X[:0],
    "no columns": X[:, :0], "integers": LABELS[:, None], "float16": X.astype("float16"),
    "long double": X.astype("longdouble"), "big-endian": X.astype(">f8"), "complex": X.astype(complex),
    "objects": X.astype(object), "NaN": with_value(math.nan), "inf": with_value(math.inf), "-inf": with_value(-math.inf),
}
WRONG_LABELS = {
    "a column": LABELS[:, None], "a row": LABELS[None], "floats": LABELS.astype(float), "bools": LABELS > 0,
    "a list": LABELS.tolist(), "None": None, "negative": LABELS - 1, "one too few": LABELS[1:], "none": LABELS[:0],
    "one number": np.array(1), "one-hot": np.eye(3, dtype=int)[LABELS], "strings": LABELS.astype(str),
    "objects": LABELS.astype(object), "masked": np.ma.masked_array(LABELS, LABELS > 1),
    "too large": np.full(12, 2**64 - 1, dtype=np.uint64),
}
POSITIVE = [0, -1, -0.5, math.nan, math.inf, -math.inf, "1", None, True, np.array([1.0]), 1j]
COUNT = [0, -1, 2.5, 3.0, math.nan, math.inf, "3", None, True, np.array([3]), [3]]
INSIDE = [1, -1, 1.5, math.nan, math.inf, "0.5", None, True]

OPTIONS = {                # invalid values of the arguments that are not features or labels
    (knn_accuracy, "k"): COUNT + [13], (knn_accuracy, "tau"): POSITIVE,
    (linear_probe, "C"): POSITIVE + [1e-7], (linear_probe, "steps"): COUNT,
    (nearest_neighbours, "k"): COUNT + [13],
    (retrieval_recall, "ks"): [{1, 5}, b"1", "1", (), (0,), (1, -1), (1.5,), (None,), ("1",), (True,)],
    (class_embeddings, "names"): ["ab", [], ["a"], ["a", "a"]],
    (class_embeddings, "templates"): ["a {}", [], ["a"], ["a {}", "b"], [None], [3]],
    (alignment, "alpha"): POSITIVE, (uniformity, "t"): POSITIVE,
    (uniformity_floor, "d"): COUNT + [10**400], (uniformity_floor, "t"): POSITIVE + [1e6],
    (infonce_bound, "loss"): [-1.0, math.nan, math.inf, "1", None, True],
    (infonce_bound, "candidates"): COUNT + [1, 10**400],
    (gaussian_information, "rho"): INSIDE, (gaussian_information, "d"): COUNT + [10**400],
    (gaussian_correlation, "nats"): [-1, math.nan, math.inf, "1", None, True], (gaussian_correlation, "d"): COUNT + [10**400],
    (draw_gaussians, "n"): COUNT + [10**400], (draw_gaussians, "d"): COUNT + [10**400],
    (draw_gaussians, "rho"): [1.5, -1.5, math.nan, math.inf, "0", None],
    (draw_gaussians, "dtype"): ["float16", "int32", int, None, "x"],
    (log_density_ratio, "rho"): INSIDE,
    (optimal_bound, "nats"): [-1, math.nan, math.inf, "1", None], (optimal_bound, "d"): COUNT + [10**400],
    (optimal_bound, "candidates"): COUNT + [1, 10**400], (optimal_bound, "pairs"): COUNT + [7],
    (symbol_estimates, "symbols"): COUNT + [10**400],
    (symbol_estimates, "batch"): COUNT + [1, 10**400],
    (tsne, "perplexity"): POSITIVE + [1, 11, 30], (tsne, "steps"): COUNT, (tsne, "seed"): COUNT[1:],
    (encode, "batch"): COUNT, (frozen_accuracies, "k"): COUNT, (training_metrics, "k"): COUNT, (pixel_accuracy, "k"): COUNT,
}
FEATURE_ARGUMENTS = [(function, argument) for function, call in CALLS.items() for argument, value in call.items()
                     if isinstance(value, np.ndarray) and value.dtype == "float64"]
LABEL_ARGUMENTS = [(function, argument) for function, call in CALLS.items() for argument in call
                   if argument in ("labels", "train_labels", "test_labels", "caption_ids")]
REFUSED = ([(function, argument, value, what) for function, argument in FEATURE_ARGUMENTS
            for what, value in FEATURES.items()]
           + [(function, argument, value, what) for function, argument in LABEL_ARGUMENTS
              for what, value in WRONG_LABELS.items()]
           + [(function, argument, value, repr(value)) for (function, argument), values in OPTIONS.items()
              for value in values])
NOT_TRIED = {"embed", "xp", "rng", "model", "data", "items", "images", "prepare", "probe", "world"}  # no numbers or arrays


def test_every_function_and_every_argument_is_in_the_table():
    functions = {f for f in map(evaluate.__dict__.get, evaluate.__all__) if inspect.isfunction(f)}
    assert functions - set(CALLS) == {evaluate.report, evaluate.state_hash, final_loss}
    tried = {(function, argument) for function, argument, _, _ in REFUSED}
    for function in CALLS:
        missing = {name for name in inspect.signature(function).parameters if (function, name) not in tried}
        assert missing <= NOT_TRIED, (function.__name__, missing)


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_the_valid_calls_succeed(function):
    function(**CALLS[function])


@pytest.mark.parametrize("function, argument, value, what", REFUSED,
                         ids=[f"{f.__name__}-{argument}-{what}" for f, argument, _, what in REFUSED])
def test_each_invalid_value_is_refused_by_name(function, argument, value, what):
    with pytest.raises((ValueError, TypeError, FloatingPointError)) as caught:
        function(**CALLS[function] | {argument: value})
    message = str(caught.value)
    assert message.startswith(f"{function.__name__}: ") and argument in message, message


@pytest.mark.parametrize("change, message", [
    (dict(test_features=X[:, :3]), "train_features has 4 dimensions but test_features has 3; both must come from the same"),
    (dict(test_features=X.astype("float32")), "train_features is float64 on numpy but test_features is float32"),
    (dict(train_labels=LABELS * 0, test_labels=LABELS * 0), "train_labels and test_labels must hold at least 2 classes"),
], ids=["dimensions", "dtypes", "one class"])
@pytest.mark.parametrize("function", [knn_accuracy, linear_probe])
def test_sets_that_do_not_fit_each_other_are_refused(function, change, message):
    with pytest.raises((ValueError, TypeError), match=f"{function.__name__}: {message}"):
        function(**CALLS[function] | change)


@pytest.mark.parametrize("call, message", [
    (lambda: alignment(X, X[1:]), "alignment: expected two views"),
    (lambda: uniformity(X[:1]), r"uniformity: expected z \(N, d\) with N >= 2"),
    (lambda: pairs_bound(SCORES[:, :3]), r"pairs_bound: expected scores \(K, K\)"),
    (lambda: zero_shot_accuracy(X, X[:1], 0 * LABELS), "expected class embeddings .* of C >= 2 classes"),
    (lambda: zero_shot_accuracy(X, X[:2], LABELS), "labels must be below 2, got 2"),
    (lambda: retrieval_recall(X, X[:2], LABELS), "caption_ids must be below 2"),
    (lambda: retrieval_recall(X, X[:4], LABELS), "3 different ids for 4 captions"),
    (lambda: class_embeddings(lambda captions: X, ["a", "b"], ["{}"]), "embed must return one embedding per caption, 2"),
    (lambda: class_embeddings(lambda captions: X[:2] * math.nan, ["a", "b"], ["{}"]), "prompts is not finite"),
    (lambda: encode(ENCODER, IMAGES[:0], np), "encode: expected at least one item"),
    (lambda: frozen_accuracies(ENCODER, DATA, np), r"frozen_accuracies: model must return two outputs, \(h, z\), got ndarray"),
    (lambda: to_float(IMAGES.tolist(), np), "to_float: expected uint8 images, got list"),
    (lambda: to_float(IMAGES / 255, np), "to_float: expected uint8 images, got float64"),
], ids=lambda x: x if isinstance(x, str) else "call")
def test_arguments_that_do_not_fit_each_other_are_refused(call, message):
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=message):
        call()


# ---------------------------------------------------------------- labels of any value

@pytest.mark.parametrize("function", [knn_accuracy, linear_probe])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, ">i4"])
def test_large_sparse_labels_change_nothing(function, dtype):
    labels = np.array([3, 100, 11])[LABELS].astype(dtype)
    if np.dtype(dtype).itemsize == 8:
        labels = labels + dtype(2**62)
    renamed = CALLS[function] | dict(train_labels=labels, test_labels=labels)
    assert function(**renamed) == function(**CALLS[function] | dict(train_labels=np.array([0, 2, 1])[LABELS],
                                                                   test_labels=np.array([0, 2, 1])[LABELS]))


@pytest.mark.parametrize("function", [knn_accuracy, linear_probe])
def test_classes_missing_in_training_count_as_errors_with_a_warning(function):
    known = LABELS < 2

    call = CALLS[function] | dict(train_features=X[known], train_labels=LABELS[known])
    with pytest.warns(UserWarning, match=f"{function.__name__}: 4 of 12 items in test_labels count as errors: their "
                                         "classes, such as 2, do not occur in train_labels"):
        accuracy = function(**call)
    seen = function(**call | dict(test_features=X[known], test_labels=LABELS[known]))
    assert accuracy == pytest.approx(seen * 8 / 12)
    with pytest.warns(UserWarning, match="12 of 12 items in test_labels count as errors"):
        assert function(**CALLS[function] | dict(test_labels=LABELS + 3)) == 0


@pytest.mark.parametrize("function", [knn_accuracy, linear_probe])
def test_with_one_class_in_training_only_that_class_is_predicted(function):
    with pytest.warns(UserWarning, match="8 of 12 items"):
        assert function(**CALLS[function] | dict(train_labels=LABELS * 0)) == pytest.approx(4 / 12)


# ---------------------------------------------------------------- no underflow or overflow; a tie counts as chance

def slow_knn(bank, bank_labels, queries, labels, k, tau):
    """The accuracy of the weighted vote. Cosines are rounded as in knn_accuracy; those of zero rows are 0."""
    length = np.sqrt((bank * bank).sum(axis=1))
    total = 0.0
    for query, label in zip(queries, labels):
        lengths = length * math.sqrt((query * query).sum())
        s = np.round((bank * query).sum(axis=1) / np.where(lengths > 0, lengths, 1) * 2**40) / 2**40
        kth = np.sort(s)[-k]
        share = np.where(s > kth, 1, (s == kth) * (k - (s > kth).sum()) / (s == kth).sum())
        votes = np.bincount(bank_labels, share * np.exp((s - s.max()) / tau))
        best = np.flatnonzero(votes >= votes.max() * (1 - (k + 8) * 2**-52))
        total += (label in best) / len(best)
    return total / len(labels)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, 9]), st.sampled_from([0.05, 0.5, 10.0]))
def test_knn_is_its_definition_with_ties_and_zero_rows(seed, k, tau):
    rng = np.random.default_rng(seed)
    bank, queries = (rng.integers(-1, 2, (n, 2)).astype(float) for n in (9, 6))              # many ties, many zeros
    bank_labels = np.concatenate([[0, 1], rng.integers(0, 3, 7)])
    labels = rng.integers(0, 2, 6)
    assert knn_accuracy(bank, bank_labels, queries, labels, k=k, tau=tau) == pytest.approx(
        slow_knn(bank, bank_labels, queries, labels, k, tau), abs=1e-9)


@pytest.mark.parametrize("tau, nearer", [(0.01, 0.3), (0.03, 0.8), (1e5, 0.3), (1e9, 0.9)])
def test_knn_counts_one_more_vote_at_any_temperature(tau, nearer):
    """Class 1 wins the vote by a small margin.

    At tau < 1 one item of each class lies at the query, and another of class 1 adds a vote of exp(-nearer / tau). At
    tau > 1 each class has two items, and one of class 0 is farther from the query."""
    angle = math.acos(1 - nearer)
    same, far = [1.0, 0.0], [math.cos(angle), math.sin(angle)]
    bank, labels = ([same, same, far], [0, 1, 1]) if tau < 1 else ([same, same, same, far], [0, 1, 1, 0])
    query = np.array([same])
    k = len(labels)
    for truth in (0, 1):
        assert knn_accuracy(np.array(bank), np.array(labels), query, np.array([truth]), k=k, tau=tau) == truth


@given(st.permutations(range(9)), st.floats(1e-3, 1e9))
def test_equal_votes_tie_in_any_order(order, tau):
    """Three classes have items at the same three angles, so the vote ties and the accuracy is 1/3."""
    angles, labels = np.repeat([0.1, 0.5, 0.7], 3)[order], np.tile([0, 1, 2], 3)[order]
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert knn_accuracy(bank, labels, np.array([[1.0, 0.0]]), np.array([1]), k=9, tau=tau) == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_votes_of_equal_cosines_tie_however_they_are_rounded(seed, tau):
    """Rows of the same numbers in another order, with the same product with the query."""
    rng = np.random.default_rng(seed)
    found = 0
    while found < 10:
        a, q = rng.integers(0, 4, (2, 4))
        b = rng.permutation(a)
        if a @ q == b @ q > 0 and (a != b).any():
            found += 1
            bank, query = np.stack([a, b]).astype("float32"), q[None].astype("float32")
            for truth in (0, 1):
                assert knn_accuracy(bank, np.array([0, 1]), query, np.array([truth]), k=2, tau=tau) == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tau", [5e-324, 1e-300, 1e-20, 1e-3, 1e10, 1e308])
def test_knn_separates_easy_classes_at_any_temperature(xp, rng, tau, dtype):
    labels = np.arange(40) % 2
    x = (np.eye(2)[labels] * 3 + rng.standard_normal((40, 2)) * 0.1 - [0, 1]).astype(dtype)
    x = to_device(x, xp)
    assert knn_accuracy(x, labels, x, labels, k=5, tau=tau) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("C", [1e-6, 1e-3, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("n", [8, 400])
def test_the_probe_separates_easy_classes_at_any_penalty(rng, n, C, dtype):
    labels = np.arange(n) % 4
    x = (3 * np.eye(4)[labels] + 0.3 * rng.standard_normal((n, 4))).astype(dtype)
    with warnings.catch_warnings():
        if dtype == "float32" and C >= 1e5:                  # may not reach the limit, and reports it
            warnings.filterwarnings("ignore", "linear_probe: not converged")
        assert linear_probe(x, labels, x, labels, C=C) == 1


@pytest.mark.parametrize("K, n, d", [(10, 1000, 100), (100, 3000, 128)])
def test_rare_classes_do_not_end_the_probe_early(K, n, d):
    """They count little in the loss. The limit of balanced classes gave 1.2 points too much for the first."""
    sklearn = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    rng = np.random.default_rng(1)
    p = 1 / np.arange(1, K + 1)**2
    labels = np.concatenate([np.arange(K), rng.choice(K, n - K, p=p / p.sum())])
    mean, test_labels = rng.standard_normal((K, d)) / 2, rng.integers(0, K, 2000)
    x, test = (mean[c] + rng.standard_normal((len(c), d)) for c in (labels, test_labels))
    centre, scale = x.mean(axis=0), x.std(axis=0)
    exact = sklearn.LogisticRegression(tol=1e-8, max_iter=5000).fit((x - centre) / scale, labels)
    found = linear_probe(x, labels, test, test_labels)
    assert abs(found - (exact.predict((test - centre) / scale) == test_labels).mean()) < 0.006


@pytest.mark.parametrize("C", [1e-7, 1e7, np.inf])
def test_a_penalty_beyond_its_range_is_refused(C):
    with pytest.raises(ValueError, match="linear_probe: C must "):
        linear_probe(X, LABELS, X, LABELS, C=C)


DEAD = {"zeros": lambda n: np.zeros((n, 7)), "constant": lambda n: np.full((n, 7), 0.1),
        "tiny": lambda n: np.full((n, 7), 1e-30), "one row": lambda n: np.tile(RNG.standard_normal(7), (n, 1)),
        "huge": lambda n: np.full((n, 7), 1e18)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", DEAD)
def test_a_constant_network_scores_no_better_than_chance(xp, what, dtype):
    train, test = (to_device(DEAD[what](n).astype(dtype), xp) for n in (301, 101))
    train_labels, test_labels = np.arange(301) % 4, np.arange(101) % 4       # class 0 has 76 of 301, 26 of 101
    for k in (1, 20, 301):
        assert knn_accuracy(train, train_labels, test, test_labels, k=k) == pytest.approx(26 / 101)
    assert linear_probe(train, train_labels, test, test_labels) == pytest.approx(26 / 101)
    assert knn_accuracy(train[1:], train_labels[1:], test, test_labels) == pytest.approx(1 / 4)  # classes of equal size
    assert linear_probe(train[1:], train_labels[1:], test, test_labels) == pytest.approx(1 / 4)
    assert zero_shot_accuracy(test, train[:4], test_labels) == pytest.approx(1 / 4)
    assert set(retrieval_recall(test, train[:4], test_labels, ks=(1, 2)).values()) == {0.0}
    assert uniformity(train) == pytest.approx(0, abs=1e-5)
    assert embedding_std(train) == pytest.approx(0, abs=1e-5)
    assert effective_rank(train) == 1
    assert alignment(test, test) == 0


def test_geometry_is_its_definition_with_zero_rows(xp, rng):
    z1, z2 = rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
    z1[[1, 2, 4]] = 0
    z2[[2, 3]] = 0
    u, v = ([row / np.linalg.norm(row) if row.any() else row for row in z] for z in (z1, z2))
    apart = np.mean([np.linalg.norm(a - b)**3 for a, b in zip(u, v)])
    potential = np.mean([math.exp(-1.5 * ((u[i] - u[j])**2).sum()) for i in range(6) for j in range(6) if i != j])
    assert alignment(to_device(z1, xp), to_device(z2, xp), alpha=3) == pytest.approx(apart, rel=1e-12)
    assert uniformity(to_device(z1, xp), t=1.5) == pytest.approx(math.log(potential), rel=1e-12)
    assert embedding_std(to_device(z1, xp)) == pytest.approx(np.std(u, axis=0).mean() * 3**0.5, rel=1e-12)


@pytest.mark.parametrize("dtype, scale", [("float32", 1e-15), ("float32", 1e15), ("float64", 1e-150), ("float64", 1e150)])
def test_scaling_the_features_changes_no_metric(xp, rng, dtype, scale):
    x, labels = rng.standard_normal((60, 5)) + 2 * np.eye(5)[np.arange(60) % 3], np.arange(60) % 3
    small, large = (to_device(one.astype(dtype), xp) for one in (x, scale * x))
    tolerance = dict(rel=1e-4 if dtype == "float32" else 1e-9)
    assert effective_rank(large) == pytest.approx(effective_rank(small), **tolerance)
    assert linear_probe(large, labels, large, labels) == pytest.approx(linear_probe(small, labels, small, labels), abs=0.04)
    if scale > 1 or dtype == "float32":                      # a row shorter than 1e-12 has no direction
        return
    assert abs(uniformity(large)) <= (0 if xp is np else 1e-14)                      # CuPy sums in another order


def test_rounding_errors_add_no_rank(rng):
    """Embeddings at one or two points, up to float32 rounding, have an effective rank of 1."""
    z = (0.1 + 1e-9 * rng.standard_normal((500, 16))).astype("float32")
    assert effective_rank(z) == 1 and effective_rank(np.concatenate([z, z + np.float32(0.1)])) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("t", [1e-6, 0.01, 2.0, 100.0, 1e4, 1e5])
def test_the_uniformity_floor_is_exact_for_any_t(t):
    """On the sphere in R^3 the lowest uniformity is log((1 - e^-4t) / 4t)."""
    assert uniformity_floor(3, t) == pytest.approx(math.log(-math.expm1(-4 * t) / (4 * t)), rel=1e-6, abs=1e-9)


def test_a_collapsed_map_and_huge_features_stay_finite(rng):
    for x in (np.zeros((20, 3)), np.full((20, 3), 1e30, "float32"), 1e300 * rng.standard_normal((20, 3)),
              1e-300 * rng.standard_normal((20, 3)), rng.standard_normal((20, 1)), 1e4 + rng.standard_normal((20, 3))):
        y = tsne(x, perplexity=4, steps=20)
        assert y.shape == (20, 2) and np.isfinite(y).all()


@pytest.mark.parametrize("n", [33, 40, 60])
def test_a_perplexity_too_large_for_the_points_is_reported(n):
    """Rounding decides how far such a map collapses, so no case may lie near the limit of 0.01."""
    x = np.random.default_rng(1).standard_normal((n, 16))
    with pytest.warns(UserWarning, match=rf"tsne: all {n} points lie within 0.01 of one spot.* N / 4 = .*, got {n - 2}, "):
        y = tsne(x, perplexity=n - 2, seed=1)
    assert np.abs(y).max() < 1e-3
    assert np.abs(tsne(x, perplexity=n / 4, seed=1)).max() > 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("far", [0, 1e3, 1e6])
def test_an_outlier_leaves_the_map_of_the_others_right(rng, far, dtype):
    labels = np.arange(100) % 4
    x = 5 * rng.standard_normal((4, 10))[labels] + rng.standard_normal((100, 10))
    x[0] += far
    y = tsne(x.astype(dtype), perplexity=10, steps=200)[1:]
    distances = ((y[:, None] - y) ** 2).sum(axis=2) + np.diag(np.full(99, np.inf))
    assert (labels[1:][distances.argmin(axis=1)] == labels[1:]).mean() > 0.9


@pytest.mark.parametrize("labels, fix", [(np.ma.masked_array(LABELS, LABELS > 1), "select its valid items"),
                                         (LABELS.tolist(), "np.asarray makes one")], ids=["masked", "a list"])
def test_masked_or_listed_labels_are_refused_with_the_fix(labels, fix):
    with pytest.raises(TypeError, match=fix):
        knn_accuracy(X, labels, X, LABELS, k=3)


def test_symbol_estimates_hold_for_large_batches():
    """1500 choose 750 exceeds float64. With two symbols about half of the other images show the anchor's symbol."""
    estimates = symbol_estimates(2, 1501)
    assert estimates.infonce == pytest.approx(math.log(1501 / 751), abs=1e-3)
    assert symbol_estimates(1, 5000) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_loss_rounded_below_0_gives_the_cap():
    assert infonce_bound(-1e-7, 8).nats == math.log(8)


def test_evaluation_of_tiny_data_uses_all_available_neighbours():
    metrics, _, _ = frozen_accuracies(MODEL, DATA, np)       # 12 images, k = 20
    assert all(0 <= value <= 1 for value in metrics.values()) and 0 <= pixel_accuracy(DATA, np) <= 1


def test_an_unknown_loss_is_none_and_not_nan():
    assert final_loss([], 10) is None and final_loss([{"step": 0, "loss": 1.0}], 10) is None
    assert final_loss([{"step": 9, "loss": None}], 10) is None and final_loss([{"step": 9, "acc": 1.0}], 10) is None


# ---------------------------------------------------------------- defaults, compared with values computed independently

def test_the_defaults_of_knn_are_20_neighbours_at_a_temperature_of_0_1(rng):
    bank, queries = rng.standard_normal((200, 3)), rng.standard_normal((1000, 3))
    bank_labels, labels = rng.integers(0, 4, 200), rng.integers(0, 4, 1000)
    found = knn_accuracy(bank, bank_labels, queries, labels)
    assert found == pytest.approx(slow_knn(bank, bank_labels, queries, labels, 20, 0.1))
    others = [slow_knn(bank, bank_labels, queries, labels, k, tau)
              for k, tau in ((19, 0.1), (21, 0.1), (20, 0.05), (20, 0.2))]
    assert all(abs(found - other) > 1e-6 for other in others)


def test_the_defaults_of_geometry_are_squares_and_t_2(rng):
    z1, z2 = rng.standard_normal((2, 5, 3))
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    squared = ((u[:, None] - u)**2).sum(axis=2)[~np.eye(5, dtype=bool)]
    assert alignment(z1, z2) == pytest.approx(((u - v)**2).sum(axis=1).mean(), rel=1e-12)
    assert uniformity(z1) == pytest.approx(math.log(np.exp(-2 * squared).mean()), rel=1e-12)
    assert uniformity_floor(3) == pytest.approx(math.log(-math.expm1(-8) / 8), rel=1e-12)


def test_the_default_of_recall_is_at_1_5_and_10():
    assert list(retrieval_recall(X, X, np.arange(12))) == [f"{side}_r{k}" for side in ("text", "image") for k in (1, 5, 10)]


def test_the_standard_error_is_that_of_the_mean_of_independent_batches():
    mean, error = optimal_bound(2.0, 3, 8, pairs=100, rng=np.random.default_rng(5))
    rng = np.random.default_rng(5)
    rho = math.sqrt(1 - math.exp(-4 / 3))
    bounds = []
    for _ in range(12):                                      # 100 // 8 batches
        x, noise = rng.standard_normal((2, 8, 3), dtype="float32")
        y = rho * x + math.sqrt(1 - rho * rho) * noise
        s = np.array([[-((b - rho * a)**2).sum() / (2 * (1 - rho**2)) + (b * b).sum() / 2 for b in y.astype(float)]
                      for a in x.astype(float)])             # log p(y|x) / p(y), up to a constant
        bounds.append(np.mean(np.diagonal(s) - np.log(np.exp(s).sum(axis=1))) + math.log(8))
    assert mean == pytest.approx(np.mean(bounds), rel=1e-4)
    assert error == pytest.approx(np.std(bounds, ddof=1) / math.sqrt(12), rel=1e-4)


@pytest.mark.parametrize("call", [lambda: knn_accuracy(X, LABELS, X, LABELS + 1, k=1),
                                  lambda: linear_probe(X, LABELS, X, LABELS, C=1e6, steps=1)])
def test_a_warning_points_at_the_calling_line(call):
    with pytest.warns(UserWarning) as caught:
        call()
    assert {warning.filename for warning in caught} == {__file__}


def test_no_default_changes_unnoticed():
    defaults = {(function, name): p.default for function in CALLS
                for name, p in inspect.signature(function).parameters.items() if p.default not in (p.empty, ALONE)}
    assert defaults == {
        (knn_accuracy, "k"): 20, (knn_accuracy, "tau"): 0.1, (linear_probe, "C"): 1.0, (linear_probe, "steps"): 1000,
        (retrieval_recall, "ks"): (1, 5, 10), (alignment, "alpha"): 2, (uniformity, "t"): 2, (uniformity_floor, "t"): 2,
        (optimal_bound, "pairs"): 200_000, (tsne, "perplexity"): 30, (tsne, "steps"): 300, (tsne, "seed"): 0,
        (encode, "batch"): 500, (encode, "prepare"): None, (frozen_accuracies, "k"): 20, (frozen_accuracies, "probe"): True,
        (pixel_accuracy, "k"): 20, (training_metrics, "k"): 20, (draw_gaussians, "dtype"): "float32"}


def test_encode_takes_a_backend_by_its_name():
    model = MLP((4, 4, 1), (3,), rng=np.random.default_rng(0))
    assert encode(model, np.zeros((2, 4, 4, 1), "uint8"), "numpy").shape == (2, 3)
    with pytest.raises(BackendError, match="nonsense"):
        encode(model, np.zeros((2, 4, 4, 1), "uint8"), "nonsense")
