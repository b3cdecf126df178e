"""For float32 embeddings in a narrow cone, kNN, retrieval and zero-shot accuracies agree with extended precision."""

import numpy as np
import pytest

from minicl.evaluate import alignment, embedding_std, knn_accuracy, nearest_neighbours, retrieval_recall, zero_shot_accuracy

WIDTHS = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]                         # the centre has a length of about 12
CLASSES = 4


def in_a_cone(rng, width, n, d=16):
    """n float32 points (n, d) of CLASSES overlapping classes around one direction, and their labels (n,)."""
    centre = rng.standard_normal(d) * 3
    labels = rng.integers(0, CLASSES, n)
    means = np.eye(CLASSES, d)[labels]
    return (centre + width * (means + 0.7 * rng.standard_normal((n, d)))).astype("float32"), labels


def cosines(x, y):
    """The cosines of all pairs of rows, (len(x), len(y)), in extended precision."""
    x, y = (z.astype(np.longdouble) / np.sqrt((z.astype(np.longdouble)**2).sum(axis=1, keepdims=True)) for z in (x, y))
    return (x[:, None] * y[None]).sum(axis=2)


@pytest.fixture(params=WIDTHS)
def cone(request):
    x, labels = in_a_cone(np.random.default_rng(3), request.param, 160)
    return x[:100], labels[:100], x[100:], labels[100:]


def test_knn_and_neighbours_are_exact(cone):
    bank, labels, queries, truth = cone
    s = cosines(queries, bank)
    order = np.argsort(-s, axis=1)
    for k in (1, 7):
        right = 0
        for near, row, own in zip(order[:, :k], s, truth):
            votes = np.bincount(labels[near], np.exp((row[near] - row.max()) / 0.1).astype(float), CLASSES)
            right += votes.argmax() == own
        assert 0.4 < right / len(queries) < 1
        assert knn_accuracy(bank, labels, queries, truth, k=k) == pytest.approx(right / len(queries), abs=1e-12)
    assert np.array_equal(nearest_neighbours(bank, queries, k=5), order[:, :5])


def test_zero_shot_accuracy_is_exact(cone):
    images, labels, classes, _ = cone
    classes = np.stack([images[labels == c].mean(axis=0) for c in range(CLASSES)])
    right = (cosines(images, classes).argmax(axis=1) == labels).mean()
    assert 0.5 < right < 1
    assert zero_shot_accuracy(images, classes, labels) == right


def test_retrieval_recall_is_exact(cone):
    images, _, captions, _ = cone
    images = images[:len(captions)]
    captions = (images + captions) / 2
    s = cosines(images, captions)
    n = len(images)
    rank = [(s > s.diagonal()[:, None]).sum(axis=1), (s > s.diagonal()).sum(axis=0)]
    found = retrieval_recall(images, captions, np.arange(n), ks=[1, 5])
    for name, before in zip(("text", "image"), rank):
        assert found == found | {f"{name}_r{k}": (before < k).mean() for k in (1, 5)}
        assert found[f"{name}_r1"] < 1


def test_alignment_and_standard_deviation_are_accurate(cone):
    x, _, y, _ = cone
    u, v = (z.astype(np.longdouble) / np.sqrt((z.astype(np.longdouble)**2).sum(axis=1, keepdims=True)) for z in (x[:60], y))
    assert alignment(x[:60], y) == pytest.approx(float(((u - v)**2).sum(axis=1).mean()), rel=1e-9)
    assert embedding_std(x[:60]) == pytest.approx(float(u.std(axis=0).mean() * 4), rel=1e-9)
