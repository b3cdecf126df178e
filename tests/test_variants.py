"""SupCon, DCL, SigLIP, triplet, VICReg and Barlow Twins agree with their definitions and have the properties
claimed."""

import math

import numpy as np
import pytest
from device_counts import counted, waits

from minicl import Tensor, get_backend
from minicl.backend import to_device, to_host
from minicl.contrastive import (SIGLIP_BIAS, SIGLIP_LOGIT_SCALE, alignment_loss, barlow_twins, dcl, nt_xent,
                                semi_hard_negatives, siglip, sup_con, triplet, uniformity_loss, vicreg)


def views(n=6, d=4, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    return z, z + 0.5 * rng.standard_normal((n, d))


def gradients(loss, *arrays, xp=np):
    """The gradients of loss(*arrays) with respect to each array, on the host."""
    leaves = [Tensor(to_device(x, xp), requires_grad=True) for x in arrays]
    loss(*leaves).backward()
    return [to_host(x.grad) for x in leaves]


def cos(x, y):
    return sum(a * b for a, b in zip(x, y)) / math.hypot(*x) / math.hypot(*y)


# ---------------------------------------------------------------- definitions, as loops

def naive_sup_con(z, tau, labels):
    losses = []
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        total = sum(math.exp(cos(z[i], z[k]) / tau) for k in range(len(z)) if k != i)
        if positives:
            losses.append(-sum(math.log(math.exp(cos(z[i], z[p]) / tau) / total) for p in positives) / len(positives))
    return sum(losses) / len(losses)


def naive_dcl(z1, z2, tau):
    z = [*z1, *z2]
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        other = (i + n) % (2 * n)
        total -= cos(z[i], z[other]) / tau
        total += math.log(sum(math.exp(cos(z[i], z[k]) / tau) for k in range(2 * n) if k not in (i, other)))
    return total / (2 * n)


def naive_siglip(x, y, logit_scale, bias):
    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            label = 1 if i == j else -1
            total += math.log(1 + math.exp(label * (-math.exp(logit_scale) * cos(x[i], y[j]) - bias)))
    return total / len(x)


def naive_triplet(anchor, positive, negative, margin):
    triplets = list(zip(anchor, positive, negative))
    return sum(max(0, 2 * cos(a, n) - 2 * cos(a, p) + margin) for a, p, n in triplets) / len(triplets)


def naive_vicreg(z1, z2):
    n, d = z1.shape
    total = 25 * sum((z1[i, a] - z2[i, a])**2 for i in range(n) for a in range(d)) / (n * d)
    for z in (z1, z2):
        mean = [sum(z[:, a]) / n for a in range(d)]
        for a in range(d):
            for b in range(d):
                c = sum((z[i, a] - mean[a]) * (z[i, b] - mean[b]) for i in range(n)) / (n - 1)
                total += 25 * max(0, 1 - math.sqrt(c + 1e-4)) / d if a == b else c**2 / d
    return total


def naive_barlow_twins(z1, z2, off_diagonal):
    (n, d) = z1.shape
    total = 0.0
    for a in range(d):
        for b in range(d):
            x, y = z1[:, a] - sum(z1[:, a]) / n, z2[:, b] - sum(z2[:, b]) / n
            c = sum(x * y) / n / math.sqrt(sum(x * x) / n + 1e-5) / math.sqrt(sum(y * y) / n + 1e-5)
            total += (1 - c)**2 if a == b else off_diagonal * c**2
    return total


LABELS = np.array([3, 1, 3, 0, 1, 3])


@pytest.mark.parametrize("loss, naive", [
    (lambda x, y: sup_con(x, 0.2, labels=LABELS), lambda x, y: naive_sup_con(x, 0.2, LABELS)),
    (lambda x, y: dcl(x, y, 0.2), lambda x, y: naive_dcl(x, y, 0.2)),
    (lambda x, y: siglip(x, y, 1.2, -2.0), lambda x, y: naive_siglip(x, y, 1.2, -2.0)),
    (lambda x, y: triplet(x, y, y[::-1], margin=1.0), lambda x, y: naive_triplet(x, y, y[::-1], 1.0)),
    (vicreg, naive_vicreg),
    (lambda x, y: barlow_twins(x, y, off_diagonal=0.1), lambda x, y: naive_barlow_twins(x, y, 0.1)),
], ids=["sup_con", "dcl", "siglip", "triplet", "vicreg", "barlow_twins"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_loss_is_its_definition(xp, loss, naive, seed):
    x, y = views(seed=seed)
    assert loss(to_device(x, xp), to_device(y, xp)).item() == pytest.approx(naive(x, y), rel=1e-12)


# ---------------------------------------------------------------- SupCon

@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_sup_con_with_a_class_for_each_image_is_nt_xent(xp, tau):
    x, y = (to_device(z, xp) for z in views())
    ids = np.arange(6)
    whole, = gradients(lambda z: sup_con(z, tau, labels=np.concatenate([ids, ids])), np.concatenate(views()), xp=xp)
    halves = gradients(lambda a, b: nt_xent(a, b, tau), *views(), xp=xp)
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-12)
    assert sup_con(xp.concatenate([x, y]), tau, labels=np.concatenate([ids, ids])).item() == \
        pytest.approx(nt_xent(x, y, tau).item(), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sup_con_of_image_ids_is_nt_xent_of_many_views(xp, count):
    """Each other view of the anchor's image is the positive in turn, and all other rows are candidates."""
    rng = np.random.default_rng(count)
    z = rng.standard_normal((count * 4, 3))
    ids = np.array([7, 2, 9, 4])
    total = 0.0
    for a in range(len(z)):
        candidates = [cos(z[a], z[j]) / 0.3 for j in range(len(z)) if j != a]
        for p in range(a % 4, len(z), 4):
            if p != a:
                total -= cos(z[a], z[p]) / 0.3 - math.log(sum(map(math.exp, candidates)))
    loss = sup_con(to_device(z, xp), 0.3, labels=np.tile(ids, count)).item()
    assert loss == pytest.approx(total / (len(z) * (count - 1)), rel=1e-12)
    same = sup_con(xp.ones((count * 4, 3)), 0.3, labels=np.tile(ids, count)).item()
    assert same == pytest.approx(math.log(count * 4 - 1), rel=1e-12)


def test_an_anchor_without_positives_is_left_out_of_the_mean_but_is_a_negative():
    z = views()[0]
    alone = np.array([0, 0, 1, 1, 2, 3])                     # rows 4 and 5 have no positive
    assert sup_con(z, 0.2, labels=alone).item() == pytest.approx(naive_sup_con(z, 0.2, alone), rel=1e-12)
    g, = gradients(lambda x: sup_con(x, 0.2, labels=alone), z)
    assert np.isfinite(g).all() and (np.abs(g[4:]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("z", [np.zeros((4, 2)), np.eye(4), np.ones((4, 2))], ids=["zeros", "orthogonal", "collapsed"])
@pytest.mark.parametrize("tau", [0.0035, 0.01, 0.1])
def test_equal_cosines_give_the_temperature_of_sup_con_no_gradient_in_float32(z, tau, xp):
    t = Tensor(xp.asarray(tau, dtype="float32"), requires_grad=True)
    sup_con(to_device(z.astype("float32"), xp), t, labels=np.array([0, 0, 1, 1])).backward()
    assert abs(float(t.grad)) < 1e-9


def test_sup_con_without_any_positive_is_an_error_not_nan_and_not_0(xp):
    with pytest.raises(ValueError, match="sup_con: no anchor has a positive, all 6 labels differ; give two views"):
        sup_con(to_device(views()[0], xp), 0.2, labels=np.arange(6))


def test_sup_con_is_least_when_the_positives_of_an_anchor_share_it_evenly():
    """The minimum is log |P(i)|, reached here by two classes of three items each at opposite points."""
    z = np.array([[1.0, 0]] * 3 + [[-1.0, 0]] * 3)
    assert sup_con(z, 0.05, labels=np.array([0, 0, 0, 1, 1, 1])).item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("labels", [np.arange(5), np.zeros((6, 1), dtype=int), np.zeros(6), [0, 0, 1, 1, 2, 2]],
                         ids=["too few", "a column", "floats", "a list"])
def test_sup_con_names_the_labels_it_expects(labels):
    with pytest.raises(ValueError, match=r"sup_con: expected labels, a host \(numpy\) array of 6 integers"):
        sup_con(views()[0], 0.2, labels=labels)


# ---------------------------------------------------------------- DCL

def test_dcl_is_nt_xent_without_the_positive_in_the_denominator():
    """L_DCL = L + mean log(1 - p_i+). Each anchor has a cosine of 1 with its positive and of 0 with two negatives."""
    z = np.eye(2)
    L = nt_xent(z, z, 0.5).item()
    p = math.exp(2) / (math.exp(2) + 2)
    assert dcl(z, z, 0.5).item() == pytest.approx(L + math.log(1 - p), rel=1e-12)


def test_the_gradient_of_dcl_does_not_vanish_once_the_negatives_are_easy():
    easy = np.array([[1.0, 0.3], [-1.0, 0.3]]), np.array([[1.0, -0.3], [-1.0, -0.3]])
    faded = np.abs(gradients(lambda a, b: nt_xent(a, b, 0.1), *easy)[0]).max()
    steady = np.abs(gradients(lambda a, b: dcl(a, b, 0.1), *easy)[0]).max()
    assert steady > 1000 * faded


# ---------------------------------------------------------------- SigLIP

def test_siglip_starts_by_classifying_all_pairs_as_negatives():
    x = np.eye(4)
    start = siglip(x, x, SIGLIP_LOGIT_SCALE, SIGLIP_BIAS).item()
    assert start == pytest.approx(math.log(2), abs=2e-4)     # logits: positives 10 - 10, negatives -10
    assert siglip(x, x, SIGLIP_LOGIT_SCALE, 0.0).item() > 2.9 * start     # three negatives per image, log 2 each


def test_siglip_stays_finite_at_extreme_scores_in_float32(xp):
    x, y = (to_device(z.astype("float32"), xp) for z in views())
    for bias in (-200.0, 200.0):
        for g in gradients(lambda a, b: siglip(a, b, math.log(100), bias), x, y, xp=xp):
            assert np.isfinite(g).all()


def test_siglip_of_a_batch_is_the_sum_over_shards_of_its_texts():
    """No pair depends on the score of another pair, so each column of pairs can be computed on its own machine."""
    x, y = views()
    cosines = np.array([[cos(a, b) for b in y] for a in x])
    margins = np.where(np.eye(6, dtype=bool), 1, -1) * (10 * cosines - 10)
    shards = [np.log1p(np.exp(-margins[:, k:k + 2])).sum() / 6 for k in (0, 2, 4)]
    assert siglip(x, y, math.log(10), -10.0).item() == pytest.approx(sum(shards), rel=1e-12)


# ---------------------------------------------------------------- triplet

def test_a_triplet_that_is_right_by_the_margin_gives_no_gradient():
    right, up = np.array([[1.0, 0]]), np.array([[0.0, 1]])
    assert triplet(right, right, up, margin=1.9).item() == 0
    assert not any(g.any() for g in gradients(lambda *xs: triplet(*xs, margin=1.9), right, right, up))
    assert triplet(right, right, up, margin=2.5).item() == pytest.approx(0.5)


def test_semi_hard_negatives_are_the_nearest_beyond_the_positive(xp):
    degrees = np.array([20.0, 10, 40, 90])                   # angles of the positives; all anchors are at 0
    positive = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    anchor = np.array([[1.0, 0]] * 4)
    ids = semi_hard_negatives(to_device(anchor, xp), to_device(positive, xp))
    assert to_host(ids).tolist() == [2, 0, 3, 2]             # the last has none beyond: the least similar row
    ids = semi_hard_negatives(to_device(anchor, xp), to_device(positive, xp), ids=np.array([0, 1, 0, 1]))
    assert to_host(ids).tolist() == [3, 0, 3, 2]             # rows 0 and 2 have one label, 1 and 3 the other


def test_gradients_reach_mined_negatives(xp):
    a, p = (Tensor(to_device(z, xp), requires_grad=True) for z in views())
    triplet(a, p, p[semi_hard_negatives(a.data, p.data)], margin=2.0).backward()
    assert np.isfinite(to_host(a.grad)).all() and np.abs(to_host(p.grad)).max() > 0


# ---------------------------------------------------------------- VICReg and Barlow Twins

def test_collapse_is_penalised_without_negatives():
    point = np.ones((6, 3))
    assert vicreg(point, point).item() == pytest.approx(2 * 25 * 0.99)
    assert barlow_twins(point, point).item() == pytest.approx(3)


def test_uncorrelated_dimensions_cost_nothing():
    """Uncorrelated columns that vary enough, in two equal views, give the minimum of both losses."""
    z = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert vicreg(z, z).item() == 0
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-9)


def test_a_dimension_that_repeats_another_is_penalised():
    z = np.array([[1.0, 1], [-1, -1], [1, 1], [-1, -1]])
    assert vicreg(z, z).item() == pytest.approx(2 * (4 / 3)**2)          # C_01 = 4/3, twice in each view, over d = 2
    assert barlow_twins(z, z, off_diagonal=0.1).item() == pytest.approx(0.2, abs=1e-4)


def test_barlow_twins_does_not_depend_on_the_scale_of_a_view():
    x, y = views()
    assert barlow_twins(x, y).item() == pytest.approx(barlow_twins(1000 * x, y).item(), rel=1e-4)


# ---------------------------------------------------------------- on a GPU

@counted
@pytest.mark.parametrize("loss", [
    lambda x, y: sup_con(x, 0.2, labels=LABELS), lambda x, y: dcl(x, y, 0.2), lambda x, y: siglip(x, y, 1.0, 0.0),
    lambda x, y: triplet(x, y, y[semi_hard_negatives(x.data, y.data)]), vicreg, barlow_twins,
    alignment_loss, uniformity_loss,
], ids="sup_con dcl siglip triplet vicreg barlow_twins alignment uniformity".split())
def test_no_loss_makes_a_training_step_wait_for_the_device(loss):
    xp = get_backend("cupy")
    x, y = (Tensor(to_device(z, xp), requires_grad=True) for z in views())
    assert waits(lambda: (loss(x) if loss is uniformity_loss else loss(x, y)).backward()) == 0


# ---------------------------------------------------------------- invalid arguments

@pytest.mark.parametrize("call, message", [
    (lambda x, y: dcl(x, y[:3], 0.2), r"dcl: expected two arrays \(N, d\)"),
    (lambda x, y: dcl(x[:1], y[:1], 0.2), r"dcl: expected \(N, d\) with N >= 2 and d >= 1, got \(1, 4\): the negatives"),
    (lambda x, y: dcl(x, y, 0), "dcl: tau must be a number in .1e-30, 1e20., got 0"),
    (lambda x, y: sup_con(x, -1, labels=LABELS), "sup_con: tau must be a number in .1e-30, 1e20."),
    (lambda x, y: sup_con(x[0], 0.2, labels=LABELS), r"sup_con: expected \(N, d\) with N >= 2"),
    (lambda x, y: siglip(x, y[:, :2], 1.0, 0.0), "siglip: expected two arrays"),
    (lambda x, y: siglip(x, y, 100.0, 0.0), "siglip: logit_scale must be a number in .-inf, 4.60518., got 100.0; it is the logarithm"),
    (lambda x, y: siglip(x, y, 1.0, math.nan), "siglip: bias must be a number in .-inf, inf., got nan"),
    (lambda x, y: siglip(x, y, 1.0, np.zeros(6)), r"siglip: bias must be one number, got shape \(6,\)"),
    (lambda x, y: triplet(x, y, y[:2]), "triplet: expected two arrays"),
    (lambda x, y: triplet(x, y, y, margin=0), "triplet: margin must be a number in .0, inf., got 0"),
    (lambda x, y: semi_hard_negatives(x[:1], y[:1]), r"semi_hard_negatives: expected \(N, d\) with N >= 2"),
    (lambda x, y: vicreg(x, y[:2]), "vicreg: expected two arrays"),
    (lambda x, y: vicreg(x[:1], y[:1]), r"vicreg: expected \(N, d\) with N >= 2"),
    (lambda x, y: vicreg(x, y, variance="25"), "vicreg: variance must be a number in .0, inf., got '25'"),
    (lambda x, y: barlow_twins(x[:1], y[:1]), r"barlow_twins: expected \(N, d\) with N >= 2"),
    (lambda x, y: barlow_twins(x, y, off_diagonal=math.inf), "barlow_twins: off_diagonal must be a number in .0, inf."),
])
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(*views())


def test_nan_in_the_input_raises():
    x, y = views()
    x[2, 1] = np.nan
    for name, loss in {"sup_con": lambda: sup_con(x, 0.2, labels=LABELS), "dcl": lambda: dcl(x, y, 0.2),
                       "siglip": lambda: siglip(x, y, 1.0, 0.0), "triplet": lambda: triplet(x, y, y),
                       "vicreg": lambda: vicreg(x, y), "barlow_twins": lambda: barlow_twins(x, y)}.items():
        with pytest.raises(FloatingPointError, match=f"({name}: the loss|l2_normalize: the length of a row) is not finite"):
            loss()


@pytest.mark.parametrize("anchor, positive", [(Tensor, np.array), (np.array, Tensor), (Tensor, Tensor), (list, np.array)])
def test_mining_refuses_tensors_and_lists(anchor, positive):
    rows = np.eye(3)
    with pytest.raises(TypeError, match="semi_hard_negatives: (anchor|positive) must be a floating-point array"):
        semi_hard_negatives(anchor(rows), positive(rows))
