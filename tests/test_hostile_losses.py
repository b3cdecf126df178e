"""Extreme and invalid inputs to every loss: valid inputs agree with a loop in float64, and the rest are refused by
name."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, contrastive, explain_pairs
from minicl.contrastive import (choice_accuracy, cosine_similarity, info_nce_from_scores, l2_normalize, log_softmax,
                                mises_fisher_weights, negative_cosine, nt_xent, semi_hard_negatives, softmax,
                                sup_con)
from minicl.evaluate import alignment, uniformity

# ---------------------------------------------------------------- every loss as a loop, zero rows included


def unit(row):
    """The row divided by its length. A row shorter than 1e-12 has no direction and becomes zeros."""
    length = math.hypot(*row)
    return [v / length if length >= 1e-12 else 0.0 for v in row]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y))


def log_sum(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def loop_info_nce(query, positive, negatives, tau):
    q, k, n = ([unit(row) for row in x] for x in (query, positive, negatives))
    return sum(log_sum([dot(a, b) / tau, *(dot(a, c) / tau for c in n)]) - dot(a, b) / tau for a, b in zip(q, k)) / len(q)


def loop_nt_xent(z1, z2, tau):
    u = [unit(row) for row in (*z1, *z2)]
    n = len(z1)
    return sum(log_sum([dot(u[i], u[j]) / tau for j in range(2 * n) if j != i]) - dot(u[i], u[(i + n) % (2 * n)]) / tau
               for i in range(2 * n)) / (2 * n)


def loop_dcl(z1, z2, tau, weights=None):
    u = [unit(row) for row in (*z1, *z2)]
    n = len(z1)
    w = [1] * n if weights is None else weights
    return sum(log_sum([dot(u[i], u[j]) / tau for j in range(2 * n) if j % n != i % n])
               - w[i % n] * dot(u[i], u[(i + n) % (2 * n)]) / tau for i in range(2 * n)) / (2 * n)


def loop_clip_loss(image, text, logit_scale, caption_ids=None):
    u = [unit(row) for row in image]
    t = [unit(row) for row in text]
    n = len(image)
    ids = range(n) if caption_ids is None else caption_ids
    scale = math.exp(logit_scale)
    total = 0.0
    for i in range(n):
        candidates = [j for j in range(n) if j == i or ids[j] != ids[i]]
        own = scale * dot(u[i], t[i])
        total += log_sum([scale * dot(u[i], t[j]) for j in candidates]) - own
        total += log_sum([scale * dot(u[j], t[i]) for j in candidates]) - own
    return total / (2 * n)


def loop_siglip(x, y, logit_scale, bias, caption_ids=None):
    u = [unit(row) for row in x]
    v = [unit(row) for row in y]
    n = len(x)
    ids = range(n) if caption_ids is None else caption_ids
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i == j or ids[i] != ids[j]:
                score = math.exp(logit_scale) * dot(u[i], v[j]) + bias
                total += log_sum([0.0, -score if i == j else score])
    return total / n


def loop_sup_con(z, tau, labels, base_temperature=None):
    u = [unit(row) for row in z]
    losses = []
    for i in range(len(u)):
        positives = [j for j in range(len(u)) if j != i and labels[j] == labels[i]]
        lse = log_sum([dot(u[i], u[j]) / tau for j in range(len(u)) if j != i])
        if positives:
            losses.append(sum(lse - dot(u[i], u[j]) / tau for j in positives) / len(positives))
    return sum(losses) / len(losses) * (1 if base_temperature is None else tau / base_temperature)


def loop_triplet(anchor, positive, negative, margin=0.2):
    rows = [[unit(row) for row in triple] for triple in zip(anchor, positive, negative)]
    return sum(max(0.0, math.dist(a, p)**2 - math.dist(a, n)**2 + margin) for a, p, n in rows) / len(rows)


def loop_alignment_loss(z1, z2, alpha=2):
    return sum(math.dist(unit(a), unit(b))**alpha for a, b in zip(z1, z2)) / len(z1)


def loop_uniformity_loss(z, t=2):
    u = [unit(row) for row in z]
    n = len(z)
    return log_sum([-t * math.dist(u[i], u[j])**2 for i in range(n) for j in range(n) if i != j]) - math.log(n * (n - 1))


def loop_negative_cosine(prediction, target):
    return -sum(dot(unit(p), unit(t)) for p, t in zip(prediction, target)) / len(prediction)


def loop_vicreg(z1, z2, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4):
    n, d = z1.shape
    total = invariance * sum((z1[i, a] - z2[i, a])**2 for i in range(n) for a in range(d)) / (n * d)
    for z in (z1, z2):
        m = [[z[i, a] - math.fsum(z[:, a]) / n for a in range(d)] for i in range(n)]
        for a in range(d):
            for b in range(d):
                c = math.fsum(row[a] * row[b] for row in m) / (n - 1)
                total += variance * max(0.0, 1 - math.sqrt(c + eps)) / d if a == b else covariance * c**2 / d
    return total


def loop_barlow_twins(z1, z2, off_diagonal=5e-3, eps=1e-5):
    (n, d) = z1.shape
    columns = []
    for z in (z1, z2):
        m = [[v - math.fsum(z[:, a]) / n for v in z[:, a]] for a in range(d)]
        columns.append([[v / math.sqrt(math.fsum(w * w for w in column) / n + eps) for v in column] for column in m])
    c = [[math.fsum(x * y for x, y in zip(columns[0][a], columns[1][b])) / n for b in range(d)] for a in range(d)]
    return sum((1 - c[a][b])**2 if a == b else off_diagonal * c[a][b]**2 for a in range(d) for b in range(d))


def labels(n):
    return np.arange(n) % 2 if n > 2 else np.zeros(n, dtype=int)


# name: (number of embedding arguments, further numeric arguments, options as a function of n, smallest n)
LOSSES = {
    "info_nce": (3, [0.3], lambda n: {}, 1), "nt_xent": (2, [0.3], lambda n: {}, 1),
    "nt_xent, sharp": (2, [0.004], lambda n: {}, 1), "info_nce, sharp": (3, [0.004], lambda n: {}, 1),
    "clip_loss": (2, [1.7], lambda n: {"caption_ids": (np.arange(n) + 1) // 2}, 1), "clip_loss, cap": (2, [4.6], lambda n: {}, 1),
    "siglip": (2, [1.5, -2.0], lambda n: {"caption_ids": (np.arange(n) + 1) // 2}, 1), "dcl": (2, [0.3], lambda n: {}, 2),
    "dcl, weights": (2, [0.3], lambda n: {"weights": np.linspace(0.5, 1.5, n)}, 2),
    "sup_con": (1, [0.3], lambda n: {"labels": labels(n)}, 2),
    "sup_con, base": (1, [0.3], lambda n: {"labels": labels(n), "base_temperature": 0.07}, 2),
    "triplet": (3, [], lambda n: {"margin": 0.9}, 1), "alignment_loss": (2, [], lambda n: {"alpha": 1}, 1),
    "uniformity_loss": (1, [], lambda n: {}, 2), "uniformity_loss, sharp": (1, [], lambda n: {"t": 50}, 2),
    "negative_cosine": (2, [], lambda n: {}, 1), "vicreg": (2, [], lambda n: {}, 2),
    "barlow_twins": (2, [], lambda n: {}, 2),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def call(name, arrays, numbers=None, options=None):
    """The loss, and its inputs as Tensors. What it refuses, the composed loss refuses by the same message."""
    _, given_numbers, of_n, _ = LOSSES[name]
    fused, composed = (getattr(module, name.partition(",")[0]) for module in (contrastive, contrastive.composed))
    tensors = [Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in arrays]
    numbers = given_numbers if numbers is None else numbers
    options = of_n(len(arrays[0])) if options is None else options
    try:
        return fused(*tensors, *numbers, **options), tensors
    except Exception as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            composed(*tensors, *numbers, **options)
        raise


ROWS = {"zeros": lambda row: 0 * row, "tiny": lambda row: 1e-13 * row, "small": lambda row: 1e-11 * row,
        "huge": lambda row: 1e150 * row, "first axis": lambda row: np.eye(1, len(row))[0],
        "opposite": lambda row: -np.eye(1, len(row))[0], "negative zeros": lambda row: -0.0 * row, "as drawn": lambda row: row}
MODEST = ("zeros", "tiny", "first axis", "opposite", "negative zeros", "as drawn")       # without normalised rows


@each_loss
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_legal_input_gives_what_a_loop_gives(name, data):
    """The cases include zero, equal and opposite rows, rows of any length, d = 1, and the smallest batch."""
    count, numbers, of_n, fewest = LOSSES[name]
    n, d = data.draw(st.integers(fewest, 5)), data.draw(st.integers(1, 4))
    kinds = MODEST if name in ("vicreg", "barlow_twins") else tuple(ROWS)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    arrays = [np.array([ROWS[data.draw(st.sampled_from(kinds))](row) for row in rng.standard_normal((n, d))])
              for _ in range(count)]
    value, tensors = call(name, arrays)
    expected = globals()["loop_" + name.partition(",")[0]](*arrays, *numbers, **of_n(n))
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    value.backward()
    for x in tensors:
        assert x.grad is None or np.isfinite(x.grad).all()


@each_loss
def test_a_dead_network_has_the_loss_of_a_collapse_and_no_gradient(name):
    """Outputs of 0 give the same loss as equal outputs, for every loss that does not distinguish cosines of 0 and 1."""
    count, _, _, fewest = LOSSES[name]
    dead, tensors = call(name, [np.zeros((5, 3)) for _ in range(count)])
    collapsed, _ = call(name, [np.ones((5, 3)) for _ in range(count)])
    if not name.startswith(("siglip", "dcl, w", "negative_cosine")):         # these distinguish cosines of 0 and 1
        assert dead.item() == pytest.approx(collapsed.item(), abs=1e-9)
    dead.backward()
    assert all(x.grad is None or not x.grad.any() for x in tensors)


def test_a_dead_network_has_the_best_value_of_no_loss_or_metric():
    dead = np.zeros((6, 4))
    assert negative_cosine(Tensor(dead), Tensor(dead)).item() == 0           # the best is -1
    assert contrastive.uniformity_loss(dead).item() == pytest.approx(0, abs=1e-12) == uniformity(dead)      # the worst
    assert alignment(dead, dead) == 0                                        # as for any collapse
    assert not cosine_similarity(dead, np.eye(4)).data.any()


# ---------------------------------------------------------------- values that are not finite

@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_infinity_and_overflow_raise_at_once(name, bad):
    for position in range(LOSSES[name][0]):
        arrays = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(LOSSES[name][0])]
        arrays[position][2, 1] = bad
        if name == "barlow_twins" and bad == 1e200:
            continue                                         # its columns are standardised, so this is valid
        with pytest.raises(FloatingPointError, match="is not finite"):
            call(name, arrays)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_float32_row_too_long_is_refused_not_normalised_to_zeros():
    assert np.abs(l2_normalize(np.full((1, 2), 1e19, dtype="float32")).data - 0.5**0.5).max() < 1e-6
    with pytest.raises(FloatingPointError, match="l2_normalize: the length of a row is not finite"):
        l2_normalize(np.full((1, 2), 2e19, dtype="float32"))


@pytest.mark.parametrize("function", [softmax, log_softmax])
@pytest.mark.parametrize("row", [[math.nan, 1], [math.inf, 1], [-math.inf, -math.inf]])
def test_scores_that_are_not_finite_are_refused(function, row):
    scores, ids = np.array([[0.5, 1.0], row]), np.array([0, 1])
    for call in (lambda: function(scores), lambda: info_nce_from_scores(Tensor(scores), ids),
                 lambda: choice_accuracy(scores, ids)):
        with pytest.raises(FloatingPointError, match="is not finite"):
            call()


def test_a_score_of_minus_infinity_excludes_a_candidate():
    without = np.array([[0.5, 1.0, 2.0]])
    scores = Tensor(np.append(without, [[-math.inf]], axis=1), requires_grad=True)
    for function in (softmax, log_softmax):
        tau, alone = (Tensor(np.array(0.5), requires_grad=True) for _ in range(2))
        y, expected = function(scores, tau), function(Tensor(without), alone)
        np.testing.assert_allclose(y.data[:, :3], expected.data, rtol=1e-14)
        (y[:, :3] * y[:, :3]).sum().backward(), (expected * expected).sum().backward()
        np.testing.assert_allclose(tau.grad, alone.grad, rtol=1e-12)
    with pytest.raises(FloatingPointError, match="info_nce_from_scores: the loss is not finite"):
        info_nce_from_scores(scores, np.array([3]))          # the positive is excluded


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_temperature_in_range_gives_a_number_and_any_below_is_refused(dtype):
    random = np.random.default_rng(0)
    z1, z2 = random.standard_normal((2, 4, 3)).astype(dtype)
    for tau in (1e-30, 1e-10, 1e20):
        for function in (softmax, log_softmax):
            x = Tensor(z1, requires_grad=True)
            y = function(x, tau)
            (y * z2).sum().backward()
            assert np.isfinite(y.data).all() and np.isfinite(x.grad).all()
        assert np.isfinite(mises_fisher_weights(z1, z2, sigma=tau)).all()
    for tau in (9e-31, 1e-40, 1e-300, 5e-324):
        for call in (lambda: softmax(z1, tau), lambda: log_softmax(z1, tau), lambda: nt_xent(z1, z2, tau),
                     lambda: mises_fisher_weights(z1, z2, sigma=tau),
                     lambda: sup_con(z1, 0.1, labels=np.array([0, 0, 1, 1]), base_temperature=tau)):
            with pytest.raises(ValueError, match=r"must be a number in \[1e-30, (1e20\]|inf\))"):
                call()


# ---------------------------------------------------------------- numbers

NO_NUMBERS = ["1", None, True, 1j, [1.0], np.array(1.0), np.ones(1), math.nan, math.inf, -math.inf, -1.0]
OPTIONS = [("triplet", "margin", True), ("alignment_loss", "alpha", True), ("uniformity_loss", "t", True),
           ("vicreg", "invariance", False), ("vicreg", "variance", False), ("vicreg", "covariance", False),
           ("vicreg", "eps", True), ("barlow_twins", "off_diagonal", False), ("barlow_twins", "eps", True),
           ("sup_con, base", "base_temperature", True)]


@pytest.mark.parametrize("name, option, above_zero", OPTIONS)
def test_every_option_that_is_a_number_is_checked(name, option, above_zero):
    arrays = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(LOSSES[name][0])]
    options = LOSSES[name][2](4)
    for bad in [*NO_NUMBERS, *[0.0] * above_zero]:
        if bad is None and option == "base_temperature":
            continue
        with pytest.raises((TypeError, ValueError), match=f"{name.partition(',')[0]}: {option} must be a number in"):
            call(name, arrays, options=options | {option: bad})
    for good in (1, np.float32(0.5), 0.7):
        assert math.isfinite(call(name, arrays, options=options | {option: good})[0].item())


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name][1]])
def test_temperature_scale_and_bias_are_checked_as_arrays_too(name):
    count, numbers, _, _ = LOSSES[name]
    arrays = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(count)]
    bads = [math.nan, math.inf, -math.inf, *([0.0, -1.0] if numbers[0] < 1 else [4.7, 100.0])]
    for position in range(len(numbers)):
        argument = getattr(contrastive, name.partition(",")[0]).names[count + position]
        for bad in bads if position == 0 else bads[:3]:
            for value in (bad, np.array(bad), Tensor(np.array(bad))):
                with pytest.raises(ValueError, match=rf"{argument} must be a number in"):
                    call(name, arrays, numbers[:position] + [value] + numbers[position + 1:])
        for value in (np.ones(1), np.ones(4), np.ones((4, 1))):
            with pytest.raises(ValueError, match=rf"{argument} must be one number, got shape"):
                call(name, arrays, numbers[:position] + [value] + numbers[position + 1:])
        for value in ("1", None, [1.0]):
            with pytest.raises((ValueError, TypeError), match=argument):
                call(name, arrays, numbers[:position] + [value] + numbers[position + 1:])


@pytest.mark.parametrize("name", ["info_nce", "nt_xent", "sup_con", "dcl"])
def test_temperature_is_another_name_for_tau(name):
    count, (tau,), of_n, _ = LOSSES[name]
    arrays = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(count)]
    loss = getattr(contrastive, name)
    assert loss(*arrays, temperature=tau, **of_n(4)).item() == loss(*arrays, tau, **of_n(4)).item()
    with pytest.raises(TypeError, match="tau"):
        loss(*arrays, tau, temperature=tau, **of_n(4))


def test_temperature_is_another_name_for_tau_in_losses_of_scores():
    scores = Tensor(np.eye(3))
    ids = np.arange(3)
    assert info_nce_from_scores(scores, ids, temperature=0.1).item() == info_nce_from_scores(scores, ids, 0.1).item()
    with pytest.raises(TypeError, match="two names of one argument"):
        info_nce_from_scores(scores, ids, 0.1, temperature=0.1)
    assert softmax(np.eye(3), temperature=0.1).data.tolist() == softmax(np.eye(3), 0.1).data.tolist()


# ---------------------------------------------------------------- shapes, dtypes, ids

@each_loss
@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 1), (0, 3), (4, 0)], ids=str)
def test_inputs_that_are_not_batches_of_rows_are_refused(name, shape):
    count, numbers, of_n, _ = LOSSES[name]
    arrays = [np.ones(shape) for _ in range(count)]
    with pytest.raises(ValueError, match=name.partition(",")[0]):
        call(name, arrays, options=of_n(len(arrays[0]) if shape else 1))


@each_loss
def test_views_of_other_shapes_and_dtypes_are_refused(name):
    count, _, of_n, fewest = LOSSES[name]
    good = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(count)]
    for position in range(1, count):
        others = [good[position][:, :2], good[position][:, :1], good[position].astype("float32")]
        if not (name.startswith("info_nce") and position == 2):              # there may be any number of negatives
            others.append(good[position][:1])
        for other in others:
            with pytest.raises((ValueError, TypeError), match=f"{name.partition(',')[0]}|mul"):
                call(name, good[:position] + [other] + good[position + 1:])
    for kind in ("int64", "bool", "complex128", "float16"):
        with pytest.raises((TypeError, ValueError), match="float"):
            call(name, [x.astype(kind) for x in good])
    if fewest == 2:
        with pytest.raises(ValueError, match="N >= 2"):
            call(name, [x[:1] for x in good], options=of_n(1) | ({"weights": np.ones(1)} if "weights" in name else {}))


IDS = [np.zeros((4, 1), dtype=int), np.zeros((1, 4), dtype=int), np.zeros(3, dtype=int), np.zeros(4), np.zeros(4, dtype=bool),
       [0, 1, 0, 1], "ids", 0]


@pytest.mark.parametrize("name, option", [("clip_loss", "caption_ids"), ("siglip", "caption_ids"), ("sup_con", "labels")])
@pytest.mark.parametrize("ids", IDS, ids=lambda ids: f"{type(ids).__name__}{getattr(ids, 'shape', '')}{getattr(ids, 'dtype', '')}")
def test_ids_that_are_not_one_integer_per_row_are_refused(name, option, ids):
    arrays = [np.random.default_rng(k).standard_normal((4, 3)) for k in range(LOSSES[name][0])]
    with pytest.raises(ValueError, match=f"{name}: .*{option}"):
        call(name, arrays, options={option: ids})


@pytest.mark.parametrize("ids", [*IDS, np.array([0, 1, 2, 3]), np.array([0, 1, -1, 0])], ids=str)
def test_positive_ids_that_are_not_columns_are_refused(ids):
    scores = np.random.default_rng(0).standard_normal((4, 3))
    for call in (lambda: info_nce_from_scores(Tensor(scores), ids), lambda: choice_accuracy(scores, ids)):
        with pytest.raises((ValueError, TypeError), match="positive_ids"):
            call()


@pytest.mark.parametrize("weights", [np.ones((4, 1)), np.ones(3), np.ones(4, dtype="float32"), [1.0] * 4, 1.0, "w"], ids=str)
def test_weights_that_are_not_one_per_item_are_refused(weights):
    z = np.random.default_rng(0).standard_normal((4, 3))
    for loss in (contrastive.dcl, contrastive.composed.dcl):
        with pytest.raises(ValueError, match="dcl: weights must be an array"):
            loss(Tensor(z), Tensor(z), 0.5, weights=weights)


@pytest.mark.parametrize("options", [{"ids": np.arange(4)}, {"negative_ids": np.arange(4)}, {"ids": np.arange(4), "negative_ids": np.arange(3)}])
def test_ids_of_queries_or_negatives_alone_are_refused(options):
    z = [Tensor(np.random.default_rng(k).standard_normal((4, 3))) for k in range(3)]
    for loss in (contrastive.info_nce, contrastive.composed.info_nce):
        with pytest.raises(ValueError, match="info_nce: .*ids"):
            loss(*z, 0.5, **options)


# ---------------------------------------------------------------- other functions of embeddings

def test_the_weights_of_dcl_w_follow_their_equation():
    rng = np.random.default_rng(0)
    z1, z2 = rng.standard_normal((2, 6, 3))
    z1[0] = 0
    s = [dot(unit(a), unit(b)) for a, b in zip(z1, z2)]
    for sigma in (0.5, 0.1):
        mean = sum(math.exp(x / sigma) for x in s) / 6
        expected = [2 - math.exp(x / sigma) / mean for x in s]
        assert mises_fisher_weights(z1, z2, sigma=sigma) == pytest.approx(expected, rel=1e-12)
    assert mises_fisher_weights(z1, z2) == pytest.approx(mises_fisher_weights(z1, z2, sigma=0.5))
    for bad in (0, -1, math.nan, "1", None):
        with pytest.raises((TypeError, ValueError), match="mises_fisher_weights: sigma must be a number in"):
            mises_fisher_weights(z1, z2, sigma=bad)


NOT_FLOATS = [*(lambda x, dtype=dtype: x.astype(dtype) for dtype in
                ("uint8", "int8", "int64", "bool", "float16", "longdouble", ">f4", "complex128", "object")),
              np.matrix, lambda x: np.ma.masked_array(x, mask=x > 9), np.ndarray.tolist, Tensor]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")           # of np.matrix
@pytest.mark.parametrize("convert", NOT_FLOATS)
@pytest.mark.parametrize("argument, function", [
    ("mises_fisher_weights: z1", lambda x, y: mises_fisher_weights(x, y)),
    ("mises_fisher_weights: z2", lambda x, y: mises_fisher_weights(y, x)),
    ("semi_hard_negatives: anchor", lambda x, y: semi_hard_negatives(x, y)),
    ("semi_hard_negatives: positive", lambda x, y: semi_hard_negatives(y, x)),
    ("choice_accuracy: scores", lambda x, y: choice_accuracy(x, np.arange(4)))])
def test_functions_of_arrays_refuse_what_ops_refuse(argument, function, convert):
    x, y = np.random.default_rng(0).integers(0, 256, (2, 4, 5)).astype("float64")
    function(x, y)
    with pytest.raises(TypeError, match=f"^{argument} must be a floating-point array, float32 or float64, got ") as refused:
        function(convert(x), y)
    assert ("pass the .data" in str(refused.value)) == (convert is Tensor)


@pytest.mark.parametrize("wrong", [np.eye(4).tolist(), ((1.0, 0.0), (0.0, 1.0)), None, 1.0, "z"], ids=str)
@pytest.mark.parametrize("argument, function", [
    ("negative_cosine: prediction", lambda x, z: negative_cosine(x, z)),
    ("negative_cosine: target", lambda x, z: negative_cosine(z, x)),
    ("info_nce_from_scores: scores", lambda x, z: info_nce_from_scores(x, np.arange(4))),
    ("explain_pairs: z1", lambda x, z: explain_pairs(x, z)),
    ("explain_pairs: z2", lambda x, z: explain_pairs(z, x))])
def test_functions_of_tensors_name_what_is_no_array(argument, function, wrong):
    z = np.random.default_rng(0).standard_normal((4, 4))
    function(z, z), function(Tensor(z), Tensor(z))
    with pytest.raises(TypeError, match=f"^{argument} must be an array or a Tensor, got {type(wrong).__name__}"):
        function(wrong, z)


def test_semi_hard_negatives_of_dead_rows_are_other_rows():
    ids = semi_hard_negatives(np.zeros((4, 3)), np.zeros((4, 3)))
    assert (ids != np.arange(4)).all() and ids.min() >= 0 and ids.max() < 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 3, 128])
def test_a_semi_hard_negative_is_not_the_positive_in_another_length(dtype, d, rng):
    """Their cosines with the anchor differ by rounding only."""
    z, lengths = rng.standard_normal((40, d)), rng.uniform(0.1, 9, (20, 1))
    z[20:] = z[:20] * (lengths if d > 1 else abs(lengths))
    z = z.astype(dtype)
    chosen = semi_hard_negatives(z, z)
    cosine = z @ z.T / np.sqrt(np.outer((z * z).sum(axis=1), (z * z).sum(axis=1)))
    assert (cosine[np.arange(40), chosen] < 1 - 1e-3).all()


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf, "1", None, True])
def test_l2_normalize_checks_its_eps(eps):
    with pytest.raises((TypeError, ValueError), match="l2_normalize: eps must be a number in"):
        l2_normalize(np.ones((2, 3)), eps=eps)
