"""k nearest neighbours: how well a representation's geometry separates the classes, without training."""

import math

import numpy as np

from ..backend import array_module, on_host, parallel_for, scatter_add, to_device, to_host
from ..checks import require_integers, require_within
from ..distributed import ALONE, World
from ..signature import accepts_other_names
from ..typing import Array, HostArray
from .checks import class_ids, require_features
from .scores import ROUNDING_UNIT, TIE, chosen, normalized, rounded_cosines


@accepts_other_names
def knn_accuracy(train_features: Array, train_labels: HostArray, test_features: Array, test_labels: HostArray, *,
                 k: int = 20, tau: float = 0.1, world: World = ALONE) -> float:
    """Fraction of the test items (M, d) classified correctly by a vote of the k most similar training items (N, d).

    Similarity s is the cosine; a neighbour's vote has weight exp(s / tau) (Wu et al. 2018, section 3.4). Labels are
    integers >= 0 on the host, (N,) and (M,). Ties count as chance: training items as similar as the k-th share the remaining
    votes, and n classes with equally many votes, up to rounding, count 1/n each. So equal features, also zeros, score like
    the most frequent class. Test items whose class does not occur in training count as errors, with a warning. The
    processes of `world`, which all have all features, divide the test items.

    >>> import numpy as np
    >>> bank, labels = np.eye(2), np.array([4, 7])
    >>> knn_accuracy(bank, labels, np.array([[2.0, 0.1], [0.1, 3.0], [1.0, 1.0]]), np.array([4, 7, 7]), k=1)
    0.8333333333333334
    """
    require_features("knn_accuracy", train_features=train_features, test_features=test_features)
    N = len(train_features)
    train_ids, test_ids, C = class_ids("knn_accuracy", train_labels, test_labels, N, len(test_features))
    require_integers("knn_accuracy", 1, N, "there are so many training items", k=k)
    require_within("knn_accuracy", "(0, inf)", tau=tau)
    xp = array_module(train_features)
    ids, truth = to_device(train_ids, xp), to_device(test_ids, xp)
    bank, queries = normalized(train_features), normalized(test_features)
    rows = max(1, min(200, 2**23 // N))                                      # s is 64 MB at most
    searches = on_host(bank) and N >= SEARCHED * k and len(queries) >= bank.shape[1]         # it reads all it computes
    p_bank, p_queries = _bounding_vectors(bank, queries) if searches else (None, None)

    def found(lo, hi):
        return _found(queries[lo:hi], bank, p_queries[lo:hi], p_bank, k)

    searches = searches and found(0, rows) is not None       # where many remain, all cosines are faster

    def right(lo, hi):
        s, near = (searches and found(lo, hi)) or (rounded_cosines(queries[lo:hi], bank), xp.arange(N)[None])
        votes = _votes(s, ids[near], C, k, tau)
        most = votes.max(axis=1, keepdims=True) * (1 - (k + 8) * 2.0**-52)   # sums of equal votes in any order tie
        return float(chosen(xp.minimum(votes, most), truth[lo:hi]).sum())

    starts = range(0, len(queries), rows)[world.part]
    counts = parallel_for(xp, len(starts), lambda lo, hi: sum(right(i, i + rows) for i in starts[lo:hi]), size=1)
    return float(world.all_reduce(np.array([sum(counts)], dtype="float64"))[0]) / len(queries)


def _votes(s, ids, C, k, tau):
    """Votes (rows, C) of the k most similar by s (rows, W), rounded cosines, for the classes ids (rows or 1, W):
    exp((s - s_max) / tau) each."""
    xp = array_module(s)
    rows = len(s)
    ids = xp.broadcast_to(ids, s.shape)
    near = _nearest(s, min(k + 1, s.shape[1]))                               # (rows, k + 1): does the next one tie?
    similarity = xp.take_along_axis(s, near, axis=1)
    order = (-similarity).argsort(axis=1)                                    # the most similar first
    near, similarity = (xp.take_along_axis(x, order, axis=1) for x in (near, similarity))
    top, kth = similarity[:, :1], similarity[:, k - 1:k]
    alike = similarity.copy()                                                # cosines that may be equal have equal votes
    for j in range(1, similarity.shape[1]):
        alike[:, j] = xp.where(similarity[:, j - 1] <= similarity[:, j] + TIE, alike[:, j - 1], similarity[:, j])
    weight = _weight(alike, top, tau)
    more = similarity > kth + TIE
    tied = (similarity >= kth - TIE).sum(axis=1) > k
    weight *= more | (similarity >= kth - TIE) & ~tied[:, None]
    votes = xp.zeros(rows * C)
    of = xp.arange(rows)[:, None] * C + xp.take_along_axis(ids, near, axis=1)
    scatter_add(votes, of.reshape(-1), weight.reshape(-1))
    votes = votes.reshape(rows, C)
    for i in to_host(xp.nonzero(tied)[0]).tolist():          # more items as similar as the k-th than votes left
        counts = xp.bincount(ids[i][xp.nonzero(xp.abs(s[i] - kth[i]) <= TIE)[0]], minlength=C)
        votes[i] += _weight(kth[i], top[i], tau) * (k - more[i].sum()) * counts / counts.sum()
    return votes


def _weight(similarity, top, tau):
    """exp((s - top) / tau): 1 for the most similar, so not all underflow."""
    xp = array_module(similarity)
    return xp.exp(xp.maximum((similarity - top) * ROUNDING_UNIT, -700 * tau) / tau)


# ---------------------------------------------------------------- the same neighbours without most of the cosines

SEARCHED = 64              # training items for each neighbour from which on a search pays


def _bounding_vectors(bank, queries):
    """Vectors p (N, a + 1) and (M, a + 1), float32, whose products bound the cosines of unit vectors: u.v <= p_u . p_v.

    p_u = (V^T u, |u - V V^T u|) for any orthonormal V (d, a), by Cauchy-Schwarz for what V leaves of u and of v. Principal
    directions that leave 5 % of the bank's variance make a small and the bound tight.
    """
    xp = array_module(bank)
    sample = bank[::max(1, len(bank) // 4096)]
    squares, V = xp.linalg.eigh(sample.T @ sample)                           # ascending
    left = int((xp.cumsum(squares) <= 0.05 * len(sample) * sample.var(axis=0).sum()).sum())

    V = V[:, left:]

    def bounding(u):
        p = xp.empty((len(u), V.shape[1] + 1), dtype="float32")

        def work(lo, hi):
            head = u[lo:hi] @ V
            squares = (u[lo:hi]**2).sum(axis=1)
            p[lo:hi, :-1] = head
            p[lo:hi, -1] = xp.sqrt(xp.maximum(squares - (head * head).sum(axis=1), 0))

        parallel_for(xp, len(u), work, 1024)
        return p

    return bounding(bank), bounding(queries)


def _found(queries, bank, p_queries, p_bank, k):
    """(rounded cosines, ids), both (rows, W), of all items at least as similar to a query as its k-th; None if many are.

    The smallest cosine of any k items is at most the k-th, so an item with a smaller bound is not among the k nearest.
    Rows with fewer than W such items are filled up with cosines of -inf.
    """
    rows = len(queries)
    bounds = p_queries @ p_bank.T                                            # (rows, N)
    rounding = 2.0**-23 * (p_bank.shape[1] + 8)                              # of such a product, twice
    size = len(bank) // SEARCHED // k                                        # k items: the best of the k best groups
    groups = bounds[:, :len(bank) // size * size].reshape(rows, size, -1)
    best = _nearest(groups.max(axis=1), k)                                   # (rows, k)
    best += groups.shape[2] * groups[np.arange(rows)[:, None], :, best].argmax(axis=2)

    def cosines(i, items):                                                   # rounded; copies get the same one
        return np.rint(np.einsum("jd,d->j", bank[items], queries[i] / ROUNDING_UNIT))

    lowest = [float(cosines(i, best[i]).min()) * ROUNDING_UNIT for i in range(rows)]
    found = [np.flatnonzero(bound >= low - rounding) for bound, low in zip(bounds, lowest)]
    if sum(map(len, found)) > bounds.size // SEARCHED:
        return None
    shape = rows, max(map(len, found))
    s, ids = np.full(shape, -math.inf), np.zeros(shape, dtype=int)
    for i, items in enumerate(found):
        s[i, :len(items)], ids[i, :len(items)] = cosines(i, items), items
    return s, ids


@accepts_other_names
def nearest_neighbours(bank: Array, queries: Array, *, k: int) -> HostArray:
    """Ids (M, k) of the k items of bank (N, d) most similar to each query (M, d), nearest first; a host array.

    >>> import numpy as np
    >>> nearest_neighbours(np.array([[1.0, 0], [0, 1], [1, 1]]), np.array([[3.0, 1]]), k=2)
    array([[0, 2]])
    """
    require_features("nearest_neighbours", bank=bank, queries=queries)
    require_integers("nearest_neighbours", 1, len(bank), "the bank holds so many items", k=k)
    xp = array_module(bank)
    s = normalized(queries) @ normalized(bank).T
    near = _nearest(s, k)
    order = to_host((-xp.take_along_axis(s, near, axis=1)).argsort(axis=1))
    return np.take_along_axis(to_host(near), order, axis=1)


def _nearest(s, k):
    """Ids (rows, k) of the k highest scores of each row, in no order."""
    return array_module(s).argpartition(s, s.shape[1] - k, axis=1)[:, s.shape[1] - k:]
