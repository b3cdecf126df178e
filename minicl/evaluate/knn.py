"""k nearest neighbours: what a representation's geometry knows about the classes, with nothing trained."""

import numpy as np

from ..backend import array_module, parallel_for, to_device, to_host
from ..contrastive.cosine import l2_normalize
from .features import require_features


def knn_accuracy(train_features, train_labels, test_features, test_labels, *, k=20, tau=0.1):
    """Fraction of the test items (M, d) whose class the k most similar training items (N, d) vote for.

    Similarity s is the cosine; a neighbour's vote counts exp(s / tau) (Wu et al. 2018, section 3.4).
    labels: integer arrays (N,) and (M,), on the host. Ties go to the smaller class.
    """
    require_features("knn_accuracy", (train_features, train_labels), (test_features, test_labels))
    if not 1 <= k <= len(train_features):
        raise ValueError(f"knn_accuracy: k must be between 1 and the {len(train_features)} training items, got {k}")
    xp = array_module(train_features)
    bank, queries = l2_normalize.forward(train_features)[0], l2_normalize.forward(test_features)[0]
    one_hot = to_device(np.eye(train_labels.max() + 1)[train_labels], xp).astype(bank.dtype)     # (N, classes)
    truth = to_device(test_labels, xp)

    def right(lo, hi):
        similarity, near = _nearest(bank, queries[lo:hi], k)                 # (rows, k) both
        weight = xp.exp((similarity - 1) / tau)
        votes = (weight[:, :, None] * one_hot[near]).sum(axis=1)             # (rows, classes)
        return (votes.argmax(axis=1) == truth[lo:hi]).sum()

    rows = 200                                                               # s is 48 MB for 60,000 training items
    counts = parallel_for(xp, -(-len(queries) // rows),
                        lambda lo, hi: sum(right(k * rows, (k + 1) * rows) for k in range(lo, hi)), size=1)
    return float(sum(counts)) / len(queries)


def nearest_neighbours(bank, queries, *, k):
    """Ids (M, k) into bank (N, d) of the k most similar items of each query (M, d), nearest first; a host array."""
    similarity, near = _nearest(l2_normalize.forward(bank)[0], l2_normalize.forward(queries)[0], k)
    order = to_host((-similarity).argsort(axis=1))
    return np.take_along_axis(to_host(near), order, axis=1)


def _nearest(bank, queries, k):
    """Similarities (M, k) and ids (M, k) of the k nearest of unit vectors, in no order."""
    xp, s = array_module(bank), queries @ bank.T                             # (M, N)
    near = xp.argpartition(s, s.shape[1] - k, axis=1)[:, s.shape[1] - k:]
    return xp.take_along_axis(s, near, axis=1), near
