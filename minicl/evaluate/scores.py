"""Scores of candidates, and how often the right one is chosen, where ties count as what chance would give."""

from ..backend import array_module
from ..contrastive.cosine import l2_normalize
from ..typing import Array


def rounded_cosines(x: Array, y: Array) -> Array:
    """Cosines (N, M) of x (N, d) and y (M, d), rounded to multiples of 2^-20 (float32) or 2^-40 (float64).

    What is equal but for rounding becomes equal, so that collapsed embeddings give ties and not an order that the
    rounding errors of a matrix product chose. A row of zeros has cosine 0 with every other.
    """
    xp, grid = array_module(x), 2.0**20 if x.dtype == "float32" else 2.0**40
    s = (l2_normalize.forward(x)[0] * grid) @ l2_normalize.forward(y)[0].T
    xp.rint(s, out=s)
    s *= 1 / grid
    return s


def chosen(scores: Array, ids: Array) -> Array:
    """For each row of scores (N, C) the chance () that its own id (N,) is chosen: 1/n if it shares the highest score with
    n - 1 others, 0 if it is lower, or if the id is C: none of the candidates."""
    xp, C = array_module(scores), scores.shape[1]
    best = scores >= scores.max(axis=1, keepdims=True)
    mine = best[xp.arange(len(ids)), xp.minimum(ids, C - 1)] & (ids < C)
    return mine / best.sum(axis=1)
