"""t-SNE keeps clusters together, has the requested perplexity, and gives the same map for the same seed."""

import numpy as np

from minicl.evaluate import tsne
from minicl.evaluate.tsne import _neighbour_probabilities


def blobs(rng):
    centres = 6 * rng.standard_normal((3, 10))
    return np.concatenate([c + rng.standard_normal((40, 10)) for c in centres]), np.repeat(range(3), 40)


def test_clusters_stay_clusters(rng):
    x, labels = blobs(rng)
    y = tsne(x, perplexity=10)
    nearest = ((y[:, None] - y) ** 2).sum(axis=2) + np.diag([np.inf] * len(y))
    assert (labels[nearest.argmin(axis=1)] == labels).all() and np.isfinite(y).all()


def test_a_row_has_the_requested_perplexity(rng):
    p = _neighbour_probabilities(rng.standard_normal((200, 5)), 20)
    np.testing.assert_allclose(p, p.T)
    assert abs(p.sum() - 1) < 1e-4
    rows = p / p.sum(axis=1, keepdims=True)
    perplexity = np.exp(-(rows * np.log(np.maximum(rows, 1e-30))).sum(axis=1))
    assert 18 < np.median(perplexity) < 40                   # symmetrising adds neighbours


def test_the_same_seed_gives_the_same_map(rng):
    x, _ = blobs(rng)
    np.testing.assert_array_equal(tsne(x, perplexity=10, steps=20), tsne(x, perplexity=10, steps=20))
