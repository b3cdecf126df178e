"""Evaluation: each metric equals a slow form of its definition, and the model is left unchanged."""

import dataclasses
import json
import math
import sys
import warnings
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from minicl import viz
from minicl.autograd import Tensor
from minicl.backend import threads, to_device, to_host
from minicl.data import ImageData, generate_digits
from minicl.distributed import ALONE
from minicl.evaluate.report import draw_pictures
from minicl.evaluate.knn import _bounding_vectors, _found
from minicl.evaluate.scores import ROUNDING_UNIT, normalized, rounded_cosines
from minicl.evaluate.zero_shot import retrieval_recall, zero_shot_accuracy
from minicl.evaluate import (alignment, effective_rank, embedding_std, encode, frozen_accuracies, infonce_bound, knn_accuracy,
                             linear_probe, nearest_neighbours, report, state_hash, to_float, training_metrics, uniformity,
                             uniformity_floor)
from minicl.methods import SimCLR
from minicl.nn import MLP, Buffer, ConvNet, Module, projection_head


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clusters(rng, n, classes=3, d=5, spread=0.1):
    """(points (n, d), labels (n,)): one centre per class, far apart, with noise of standard deviation `spread`."""
    labels = rng.integers(0, classes, n)
    return 10 * np.eye(d)[labels] + spread * rng.standard_normal((n, d)), labels


# ---------------------------------------------------------------- features

@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def model(xp, rng):
    encoder = ConvNet((8, 8, 1), (4, 6), rng=rng)
    model = SimCLR(encoder, projection_head("mlp", encoder.features, dim=3, rng=rng)).to(xp)
    # so that batch norm's running averages are not 0 and 1
    model(to_float(rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), xp))
    return model


@pytest.mark.parametrize("mapped", [False, True])
def test_bytes_become_floats_from_0_to_1(mapped, tmp_path, xp):
    """The pictures of a folder are a memmap, which losses and augmentations would refuse."""
    images = np.uint8([[0, 51, 255]])
    images.tofile(tmp_path / "pixels")
    x = to_float(np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(1, 3)) if mapped else images, xp)
    assert type(x) is xp.ndarray and x.dtype == "float32"
    np.testing.assert_allclose(to_host(x), [[0, 0.2, 1]], rtol=1e-6)


def test_only_bytes_are_converted(model, xp):
    with pytest.raises(TypeError, match="expected uint8 images, got float32"):
        encode(model, np.zeros((2, 8, 8, 1), "float32"), xp)


def test_a_masked_array_is_not_taken_for_its_data():
    with pytest.raises(TypeError, match="to_float: images: expected an array without a mask, got a masked array; select"):
        to_float(np.ma.array(np.zeros(3, "uint8"), mask=[1, 0, 0]), np)


def test_encode_equals_the_model_in_evaluation_mode(model, images, xp):
    h, z = encode(model, images, xp)
    expected_h, expected_z = model.eval()(to_float(images, xp))
    assert isinstance(h, xp.ndarray) and h.shape == (7, model.encoder.features) and z.shape == (7, 3)
    np.testing.assert_array_equal(to_host(h), to_host(expected_h.data))
    np.testing.assert_array_equal(to_host(z), to_host(expected_z.data))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_encode_gives_the_model_floats_of_its_own_kind(images, xp, kind, rng):
    model = MLP(images.shape[1:], (4,), rng=rng).to(xp).astype(kind)
    assert encode(model, images, xp).dtype == kind


def test_encode_does_not_depend_on_the_batch_size(model, images, xp):
    for whole, parts in zip(encode(model, images, xp), encode(model, images, xp, batch=3)):
        np.testing.assert_allclose(to_host(whole), to_host(parts), rtol=1e-5, atol=1e-6)


def test_encode_of_a_model_with_one_output_is_one_array(rng, images, xp):
    h = encode(MLP((8, 8, 1), (5,), rng=rng).to(xp), images, xp, batch=3)
    assert isinstance(h, xp.ndarray) and h.shape == (7, 5)


def test_encode_leaves_the_model_unchanged(model, images, xp):
    before = state_hash(model)
    encode(model, images, xp)
    assert state_hash(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_encode_leaves_each_module_in_its_mode(model, images, xp):
    model.train()
    model.head.eval()                                        # a frozen part stays in evaluation mode
    encode(model, images, xp)
    assert model.training and model.encoder.blocks[0].training and not model.head.training


def test_encode_restores_the_mode_even_when_it_fails(model, xp):
    with pytest.raises(ValueError, match="ConvNet: expected images"):
        encode(model, np.zeros((2, 8, 8, 3), np.uint8), xp)
    assert all(module.training for module in model.modules())


def test_state_hash_depends_on_every_parameter_and_buffer(model):
    hashes = {state_hash(model)}
    parts = model.parameters() + [buffer for _, buffer in model.named_buffers()]
    for part in parts:
        part.data.reshape(-1)[:1] += 1e-3
        hashes.add(state_hash(model))
    assert len(hashes) == len(parts) + 1


# ---------------------------------------------------------------- nearest neighbours

def slow_knn(bank, bank_labels, queries, labels, k, tau):
    right = 0
    for query, label in zip(unit(queries), labels):
        similarity = unit(bank) @ query
        votes = np.zeros(bank_labels.max() + 1)
        for i in np.argsort(-similarity)[:k]:
            votes[bank_labels[i]] += np.exp(similarity[i] / tau)
        right += np.argmax(votes) == label
    return right / len(labels)


@pytest.mark.parametrize("k, tau", [(1, 0.1), (5, 0.1), (5, 10.0), (20, 0.07), (60, 0.5)])
def test_knn_counts_the_votes_of_the_nearest(xp, rng, k, tau):
    bank, queries = rng.standard_normal((60, 4)), rng.standard_normal((450, 4))
    bank_labels, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 450)
    accuracy = knn_accuracy(to_device(bank, xp), bank_labels, to_device(queries, xp), labels, k=k, tau=tau)
    assert accuracy == slow_knn(bank, bank_labels, queries, labels, k, tau)
    assert 0.1 < accuracy < 0.4                              # noise, so that a shortcut to 0 or 1 is detected


def test_knn_on_threads_gives_the_same(rng):
    bank, queries = rng.standard_normal((60, 4)), rng.standard_normal((450, 4))
    bank_labels, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 450)
    with threads(2):
        accuracy = knn_accuracy(bank, bank_labels, queries, labels, k=5, tau=0.1)
    assert accuracy == slow_knn(bank, bank_labels, queries, labels, 5, 0.1)


def test_knn_classifies_separate_clusters(xp, rng):
    (bank, bank_labels), (queries, labels) = clusters(rng, 90), clusters(rng, 40)
    assert knn_accuracy(to_device(bank.astype("float32"), xp), bank_labels,
                        to_device(queries.astype("float32"), xp), labels) == 1


def test_nearest_neighbours_come_nearest_first(xp, rng):
    bank, queries = rng.standard_normal((30, 4)), rng.standard_normal((6, 4))
    near = nearest_neighbours(to_device(bank, xp), to_device(queries, xp), k=5)
    assert type(near) is np.ndarray
    np.testing.assert_array_equal(near, np.argsort(-(unit(queries) @ unit(bank).T), axis=1)[:, :5])


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("count", [1, 2])
def test_knn_of_many_items_counts_the_votes_of_the_nearest(rng, k, count):
    make, _ = BANKS["low rank"]
    x = make(rng, 3500, 12)
    labels = rng.integers(0, 4, 3500)
    labels[:2000] = x[:2000, 0] > 0
    with threads(count):
        accuracy = knn_accuracy(x[:3000], labels[:3000], x[3000:], labels[3000:], k=k)
    assert accuracy == slow_knn(x[:3000], labels[:3000], x[3000:], labels[3000:], k, 0.1)


def low_rank(rng, n, d):
    return rng.standard_normal((n, 3)) @ rng.standard_normal((3, d)) + 0.02 * rng.standard_normal((n, d))


# {name: (a function that draws items, whether the search must succeed without computing all cosines)}
BANKS = {"low rank": (low_rank, True),
         "a cone": (lambda rng, n, d: 3 + 0.2 * low_rank(rng, n, d), True),
         "a narrow cone": (lambda rng, n, d: 1 + 1e-5 * low_rank(rng, n, d), False),
         "all directions": (lambda rng, n, d: rng.standard_normal((n, d)), False),
         "with copies": (lambda rng, n, d: low_rank(rng, n // 3 + 1, d)[rng.integers(0, n // 3 + 1, n)], True),
         "with zeros": (lambda rng, n, d: low_rank(rng, n, d) * (rng.random((n, 1)) < 0.9), False),
         "few values": (lambda rng, n, d: rng.integers(-1, 2, (n, d)).astype(float), False),
         "zeros": (lambda rng, n, d: np.zeros((n, d)), False)}


@pytest.mark.parametrize("what", BANKS)
@pytest.mark.parametrize("k, n, d", [(1, 64, 5), (1, 700, 3), (3, 640, 40), (20, 3001, 24)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_search_finds_all_items_as_similar_as_the_k_th(what, k, n, d, dtype, rng):
    make, must = BANKS[what]
    items = normalized(make(rng, n + 50, d).astype(dtype))
    bank, queries = items[:n], items[n:]
    p_bank, p_queries = _bounding_vectors(bank, queries)
    s = rounded_cosines(queries, bank)
    assert (p_queries.astype(float) @ p_bank.T >= s * ROUNDING_UNIT - 1e-5).all()
    found = _found(queries, bank, p_queries, p_bank, k)
    assert found or not must or n < 3000                     # with few items, a search may not pay
    for row, near, ids in zip(s, *found) if found else ():
        near, ids = near[near > -np.inf], ids[near > -np.inf]
        assert set(np.flatnonzero(row >= np.sort(row)[-k])) <= set(ids) and len(set(ids)) == len(ids)
        np.testing.assert_allclose(near, row[ids], rtol=0, atol=1)           # equal up to rounding
        assert len(set(near)) <= len(np.unique(bank[ids], axis=0))           # copies tie


# ---------------------------------------------------------------- linear probe

def test_the_probe_classifies_separable_classes(xp, rng):
    (train, train_labels), (test, labels) = clusters(rng, 300), clusters(rng, 100)
    accuracy = linear_probe(to_device(train.astype("float32"), xp), train_labels,
                            to_device(test.astype("float32"), xp), labels)
    assert accuracy == 1


def test_the_probe_finds_nothing_in_random_labels(xp, rng):
    train, test = (to_device(rng.standard_normal((1000, 5), dtype="float32"), xp) for _ in range(2))
    accuracy = linear_probe(train, rng.integers(0, 4, 1000), test, rng.integers(0, 4, 1000))
    assert accuracy == pytest.approx(0.25, abs=0.05)


def test_the_probe_does_not_depend_on_the_scale_of_features_or_on_a_constant(rng):
    train, train_labels = clusters(rng, 300)
    train = train * [1e4, 1e-3, 1, 1, 0] + [0, 100, 0, 0, 3]
    assert linear_probe(train, train_labels, train, train_labels) == 1


def test_the_probe_is_repeatable_and_leaves_the_features(rng):
    train = rng.standard_normal((100, 5))
    train_labels = rng.integers(0, 3, 100)
    before = train.copy()
    results = {linear_probe(train, train_labels, train, train_labels) for _ in range(2)}
    assert len(results) == 1
    np.testing.assert_array_equal(train, before)


# ---------------------------------------------------------------- the standard evaluation

@pytest.fixture
def data(rng):
    """Images whose brightness gives their class."""
    labels = rng.integers(0, 2, 50)
    images = (100 * labels[:, None, None, None] + rng.integers(0, 100, (50, 8, 8, 1))).astype(np.uint8)
    return ImageData("brightness", images[:30], labels[:30], images[30:], labels[30:], ("dark", "bright"))


def test_frozen_accuracies_are_computed_of_h_and_z(model, data, xp):
    metrics, test_h, test_z = frozen_accuracies(model, data, xp)
    (train_h, train_z), (h, z) = encode(model, data.train_images, xp), encode(model, data.test_images, xp)
    np.testing.assert_array_equal(to_host(test_h), to_host(h))
    np.testing.assert_array_equal(to_host(test_z), to_host(z))
    assert metrics == {
        "knn_h": knn_accuracy(train_h, data.train_labels, h, data.test_labels),
        "knn_z": knn_accuracy(train_z, data.train_labels, z, data.test_labels),
        "probe_h": linear_probe(train_h, data.train_labels, h, data.test_labels, C=0.1),
        "probe_z": linear_probe(train_z, data.train_labels, z, data.test_labels, C=0.1)}


def test_training_metrics_leave_the_model_unchanged(model, data, xp):
    state = model.state_dict()
    modes = [module.training for module in model.modules()]
    metrics = training_metrics(model, data, xp)
    accuracies, h, z = frozen_accuracies(model, data, xp, probe=False)
    assert metrics == {**accuracies, "rank_h": effective_rank(h), "rank_z": effective_rank(z)}
    assert [module.training for module in model.modules()] == modes
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    unlabelled = dataclasses.replace(data, train_labels=0 * data.train_labels, test_labels=0 * data.test_labels,
                                     class_names=("all",))
    assert training_metrics(model, unlabelled, xp) == {name: metrics[name] for name in ("rank_h", "rank_z")}


class NoRun:
    """A stand-in for a run whose log was lost, with the attributes that report() reads and writes."""
    step = total = 10
    seconds = 1.0
    config = {"backend": "numpy", "seed": 0, "epochs": 1}
    world = ALONE

    def __init__(self, folder):
        self.folder = folder

    def print(self, text):
        pass

    def read_log(self):
        return []

    def elapsed(self):
        return 1.0

    def finish(self, result, notes):
        self.result = result


def test_a_report_without_a_log_has_accuracies_but_no_loss(model, data, xp, tmp_path, rng):
    run = NoRun(tmp_path)
    report(run, model, data, lambda images, rng: images + rng.random(dtype="float32"), rng, xp, candidates=8)
    json.dumps(run.result, allow_nan=False)
    assert [run.result[key] for key in ("loss", "bound_nats", "cap_nats")] == [None] * 3
    assert run.result["probe_h"] == frozen_accuracies(model, data, xp)[0]["probe_h"]


def test_a_single_test_image_has_no_rank(model, data, xp, tmp_path, rng):
    one = dataclasses.replace(data, test_images=data.test_images[:1], test_labels=data.test_labels[:1])
    run = NoRun(tmp_path)
    report(run, model, one, lambda images, rng: images + rng.random(dtype="float32"), rng, xp, candidates=8)
    assert run.result["test_images"] == 1 and run.result["rank_h"] is run.result["rank_z"] is None
    assert training_metrics(model, one, xp)["rank_h"] is None


@pytest.mark.filterwarnings("ignore:.*count as errors")
def test_a_report_names_classes_without_training_images(model, data, xp, tmp_path, rng, monkeypatch):
    other = dataclasses.replace(data, test_labels=np.full(20, 2), class_names=("dark", "bright", "striped"))
    run = NoRun(tmp_path)
    printed = []
    monkeypatch.setattr(run, "print", printed.append)
    report(run, model, other, lambda images, rng: images + rng.random(dtype="float32"), rng, xp, candidates=8)
    assert run.result["knn_h"] == 0 and any("no training image is of class striped" in line for line in printed)


def test_the_cap_is_of_the_same_steps_as_the_loss(model, data, xp, tmp_path, rng):
    run = NoRun(tmp_path)  # MoCo's queue fills up during the run, and is empty in the first step
    log = [{"step": step, "loss": 0.5 * chance, "chance": chance, "alignment": 1.0, "uniformity": -1.0}
           for step, chance in enumerate(np.log(1 + 8 * np.arange(20)).tolist())]

    def ended(steps, total=None):
        run.step, run.total, run.seconds, run.config = steps, total or steps, 6.0, {**run.config, "epochs": 2}
        run.read_log = lambda: log[:steps]
        report(run, model, data, lambda images, rng: images + rng.random(dtype="float32"), rng, xp, candidates=1 + 8 * steps)
        return run.result["cap_nats"], run.result["bound_nats"]

    assert ended(1) == (0, 0)                                # the loss is 0 and bounds nothing
    cap = np.mean([line["chance"] for line in log[18:]])
    assert ended(20) == (pytest.approx(cap), pytest.approx(cap / 2)) and run.result["seconds_per_epoch"] == 3
    assert ended(20, total=40) == ended(20)                  # by run.stop(), after the first of 2 epochs
    ended(20, total=40)
    assert run.result["seconds_per_epoch"] == 6


class Drifting(Module):
    """A model that changes a little with each use."""

    def __init__(self):
        self.count = Buffer(np.zeros(1, "float32"))

    def forward(self, images):
        self.count.data += 1
        h = images.reshape(len(images), -1)
        return Tensor(h), Tensor(h)


def test_a_model_that_the_evaluation_changes_is_refused(data):
    with pytest.raises(RuntimeError, match="the evaluation changed the model"):
        frozen_accuracies(Drifting(), data, np)


# ---------------------------------------------------------------- geometry

@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_alignment_is_the_mean_distance_of_pairs(xp, rng, alpha):
    z1, z2 = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    expected = np.mean([np.linalg.norm(a - b) ** alpha for a, b in zip(unit(z1), unit(z2))])
    assert alignment(to_device(z1, xp), to_device(z2, xp), alpha=alpha) == pytest.approx(expected, rel=1e-12)


def test_alignment_of_views_that_coincide_is_0(xp, rng):
    z = to_device(rng.standard_normal((9, 4)), xp)
    assert alignment(z, 3 * z) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [2, 13, 300])                  # 300 gives more than one tile
@pytest.mark.parametrize("t", [0.5, 2])
def test_uniformity_is_the_log_mean_potential_of_pairs(xp, rng, n, t):
    z = rng.standard_normal((n, 3))
    u = unit(z)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += math.exp(-t * ((u[i] - u[j]) ** 2).sum())
    expected = math.log(total / (n * (n - 1)))
    assert uniformity(to_device(z, xp), t=t) == pytest.approx(expected, rel=1e-9)


def test_uniformity_in_float32_agrees(xp, rng):
    z = rng.standard_normal((400, 16))
    assert uniformity(to_device(z.astype("float32"), xp)) == pytest.approx(uniformity(z), abs=1e-4)


def test_uniformity_of_a_collapse_is_0(xp):
    assert uniformity(xp.ones((10, 3))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d, floor", [(2, "-1.575"), (3, "-2.080"), (128, "-3.9375")])
def test_the_floor_of_uniformity_has_the_published_digits(d, floor):
    assert f"{uniformity_floor(d):.{len(floor) - 3}f}" == floor


@pytest.mark.parametrize("t", [0.5, 2, 5])
def test_the_floor_of_uniformity_equals_its_closed_forms(t):
    assert uniformity_floor(1, t) == pytest.approx(math.log(math.cosh(2 * t)) - 2 * t, rel=1e-12)
    assert uniformity_floor(2, t) == pytest.approx(math.log(np.i0(2 * t)) - 2 * t, rel=1e-9)
    assert uniformity_floor(3, t) == pytest.approx(math.log(math.sinh(2 * t) / (2 * t)) - 2 * t, rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 128])
def test_uniform_points_reach_the_floor(rng, d):
    assert uniformity(rng.standard_normal((3000, d))) == pytest.approx(uniformity_floor(d), abs=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [3, 128])
def test_the_effective_rank_of_a_line_is_1(xp, rng, d, dtype):
    z = (rng.standard_normal((500, 1)) * rng.standard_normal((1, d))).astype(dtype)
    assert effective_rank(to_device(z, xp)) == pytest.approx(1, abs=1e-3)


def test_the_effective_rank_of_equally_used_directions_is_d(xp):
    z = np.concatenate([np.eye(7), -np.eye(7)]).astype("float32")
    assert effective_rank(to_device(z, xp)) == pytest.approx(7, rel=1e-6)


def test_the_effective_rank_is_the_entropy_of_the_singular_values(xp):
    axes = np.concatenate([np.eye(3), -np.eye(3)]) * [5, 3, 2]  # centred; the singular values have the ratio 5 : 3 : 2
    expected = math.exp(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)))
    assert effective_rank(to_device(axes, xp)) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(to_device(100 * axes + 7, xp)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale, offset", [(0, 1e6), (0, 1e7), (1, 1e5), (1, -1e6), (1e-6, 0), (1e-6, 1e7)])
def test_the_effective_rank_counts_all_directions_whatever_the_scale_of_one_column(xp, scale, offset, dtype):
    rng = np.random.default_rng(0)                           # not the fixture: each case draws the same columns
    z = np.concatenate([offset + scale * rng.standard_normal((500, 1)), rng.standard_normal((500, 8))], axis=1).astype(dtype)
    s = np.linalg.svd((z - z.mean(axis=0, dtype="float64")).astype("float64"), compute_uv=False)
    p = s / s.sum()
    p = p[p > 1e-9]
    expected = np.exp(-(p * np.log(p)).sum())
    is_lost = 0 < scale < abs(offset) * np.finfo(dtype).eps  # rounding makes the column constant, or a few steps
    assert effective_rank(to_device(z, xp)) == pytest.approx(expected, rel=0.15 if is_lost else 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_effective_rank_of_equal_rows_up_to_rounding_is_1_whatever_the_scales_of_the_columns(xp, dtype):
    rng = np.random.default_rng(0)
    row = 10.0**rng.uniform(-6, 6, 12)
    z = (row * (1 + np.finfo(dtype).eps * rng.uniform(-1, 1, (400, 12)))).astype(dtype)
    assert effective_rank(to_device(z, xp)) == 1
    line = rng.standard_normal((400, 1)) * row                               # rank 1, with columns of all scales
    assert effective_rank(to_device(line.astype(dtype), xp)) == pytest.approx(1, abs=1e-6)


def test_the_effective_rank_of_a_collapse_is_1(xp):
    assert effective_rank(xp.ones((5, 3))) == effective_rank(xp.zeros((5, 3))) == 1


@pytest.mark.parametrize("scale", [1e-200, 1e200])           # whose squares vanish or overflow
def test_the_effective_rank_does_not_depend_on_the_scale(xp, rng, scale):
    z = rng.standard_normal((50, 6))
    assert effective_rank(to_device(scale * z, xp)) == pytest.approx(effective_rank(to_device(z, xp)), rel=1e-9)


# ---------------------------------------------------------------- information

def test_the_bound_is_log_k_minus_the_loss():
    bound = infonce_bound(1.5, 511)
    assert bound.nats == pytest.approx(math.log(511) - 1.5) and bound.cap == pytest.approx(math.log(511))
    assert bound.bits == pytest.approx(bound.nats / math.log(2))


def test_the_bound_is_0_at_chance_and_the_cap_at_zero_loss():
    assert infonce_bound(math.log(511), 511).nats == pytest.approx(0, abs=1e-12)
    assert infonce_bound(0.0, 511).nats == math.log(511)


@pytest.mark.parametrize("part_of_cap, saturated", [(0.0, False), (0.94, False), (0.96, True), (1.0, True)])
def test_the_bound_is_saturated_near_its_cap(part_of_cap, saturated):
    cap = math.log(255)
    assert infonce_bound(cap * (1 - part_of_cap), 255).saturated is saturated


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n, d", [(2, 1), (200, 16), (1000, 3), (33, 7)])
@pytest.mark.parametrize("row", [0.0, 1.0, 1e-30, 0.1])
def test_a_collapsed_encoder_has_uniformity_0_and_never_more(n, d, dtype, row):
    z = np.full((n, d), row, dtype)
    assert -1e-12 < uniformity(z) <= 0


def test_the_left_column_of_neighbours_is_the_query_even_if_all_features_are_equal(monkeypatch, tmp_path):
    """argpartition picks arbitrarily among equally near images."""
    drawn = {}
    # patched where it is read
    monkeypatch.setattr(viz, "image_grid", lambda path, rows, **_: drawn.update({path.name: rows}))
    data = generate_digits(20, 30, seed=0)
    for h in (np.ones((30, 4)), np.zeros((30, 4)), np.random.default_rng(0).standard_normal((30, 4))):
        draw_pictures(SimpleNamespace(folder=tmp_path, print=print), [], data, [to_float(data.test_images[:3], np)] * 2, h, 4, 9)
        rows = drawn.pop("neighbours.png")
        assert len(rows) == 10 and all(len(row) == 9 for row in rows)
        assert all(np.array_equal(row[0], image) for row, image in zip(rows, to_float(data.test_images, np)))
        assert all(len({image.tobytes() for image in row}) == 9 for row in rows)


@pytest.mark.filterwarnings("error")
def test_a_map_of_few_points_on_a_line_is_a_line_of_the_run_and_no_warning(monkeypatch, tmp_path):
    data, said = generate_digits(20, 6, seed=0), []

    def on_a_line(directions, **options):
        warnings.warn("tsne: all 6 points lie on a line", stacklevel=2)
        return np.linspace(-1, 1, 12).reshape(6, 2)

    monkeypatch.setattr(sys.modules["minicl.evaluate.report"], "tsne", on_a_line)        # not the function report
    run = SimpleNamespace(folder=tmp_path, print=said.append)
    draw_pictures(run, [], data, [to_float(data.test_images[:3], np)] * 2, np.random.default_rng(0).random((6, 4)), 4, 9)
    assert said == ["map.png: t-SNE has placed the 6 test images on a line or one spot; with more of them it shows more"]
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize("measure", [effective_rank, embedding_std, uniformity], ids=["rank", "std", "uniformity"])
def test_a_single_row_is_refused(measure):
    with pytest.raises(ValueError, match=f"{measure.__name__}: expected z .* with N >= 2, got"):
        measure(np.ones((1, 3)))


# ---------------------------------------------------------------- exact ties

def exact_cosines(query, bank):
    """cos |cos| |query|^2 of whole numbers as fractions, whose order is that of the cosines."""
    dots = [int(query @ row) for row in bank]
    return [Fraction(dot * abs(dot), max(1, int(row @ row))) for dot, row in zip(dots, bank)]


@pytest.mark.filterwarnings("ignore:retrieval_recall")                      # of few dimensions, in which images are repeated
@pytest.mark.parametrize("seed", range(30))
def test_equal_cosines_of_different_vectors_tie_however_they_are_rounded(seed):
    """As of features that are 0 or 1: rounded to a grid, some of them fall on both sides of a rounding."""
    rng = np.random.default_rng(seed)
    d, N, M = int(rng.integers(2, 41)), 40, 60
    bank, queries = (rng.integers(0, 2 + seed % 2, (n, d)) for n in (N, M))
    scale = 10.0**rng.uniform(-3, 3)
    labels, truth = rng.integers(0, 3, N), rng.integers(0, 3, M)
    shares = []
    for query, label in zip(queries, truth):
        cosines = exact_cosines(query, bank)
        votes = np.bincount(labels[[cosine == max(cosines) for cosine in cosines]], minlength=3)
        shares.append((votes[label] == votes.max()) / (votes == votes.max()).sum())
    x, y = bank * scale, queries / 3
    assert knn_accuracy(x, labels, y, truth, k=1) == pytest.approx(np.mean(shares), abs=1e-12)
    classes = bank[:5]
    hits = [[cosine == max(row) for cosine in row] for row in (exact_cosines(query, classes) for query in queries)]
    own = rng.integers(0, 5, M)
    assert zero_shot_accuracy(y, classes * scale, own) == pytest.approx(np.mean([hit[c] / sum(hit) for hit, c in zip(hits, own)]))
    ids = np.concatenate([np.arange(N), rng.integers(0, N, M - N)])
    rows = [exact_cosines(query, bank) for query in queries]
    first = [all(other < row[i] for j, other in enumerate(row) if j != i) for row, i in zip(rows, ids)]
    assert retrieval_recall(y, x, ids, ks=(1,))["text_r1"] == pytest.approx(np.mean(first))


@pytest.mark.parametrize("seed", [*range(10), 1162])
def test_a_class_is_not_preferred_to_its_equal_by_the_grid_of_rounded_cosines(seed):
    """With seed 1162 two equal cosines lie at a half of the grid's step, and are rounded apart (by OpenBLAS for Haswell)."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 41))
    classes, queries = (rng.integers(0, 2, (n, d)) for n in (6, 200))
    own = rng.integers(0, 6, 200)
    scale = 10.0**rng.uniform(-3, 3)
    cosines = [exact_cosines(query, classes) for query in queries]
    shares = [(row[k] == max(row)) / row.count(max(row)) for row, k in zip(cosines, own)]
    assert zero_shot_accuracy(queries / 3, classes * scale, own) == pytest.approx(np.mean(shares), abs=1e-12)
