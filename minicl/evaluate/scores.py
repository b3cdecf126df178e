"""Scores of candidates, and how often the right one is chosen, where ties count as what chance would give."""

from ..backend import array_module
from ..contrastive import l2_normalize
from ..typing import Array


ROUNDING_UNIT = 2.0**-46               # of rounded_cosines: 64 roundings of float64


def normalized(x: Array) -> Array:
    """Rows of x (N, d) scaled to length 1, in float64; rows of zeros stay."""
    return l2_normalize.forward(x.astype("float64", copy=False))[0]


def rounded_cosines(u: Array, v: Array) -> Array:
    """Cosines (N, M) of unit vectors u (N, d) and v (M, d), as whole multiples of ROUNDING_UNIT.

    They are computed in float64: in a narrow cone, as early in training, cosines differ by the square of a small angle,
    which float32 loses. What is equal but for rounding becomes equal, so that collapsed embeddings
    give ties and not an order that the rounding errors of a matrix product chose. A row of zeros has cosine 0 with
    every other.
    """
    s = (u * (1 / ROUNDING_UNIT)) @ v.T
    return array_module(s).rint(s, out=s)


def chosen(scores: Array, ids: Array) -> Array:
    """For each row of scores (N, C) the chance () that its own id (N,) is chosen: 1/n if it shares the highest score with
    n - 1 others, 0 if it is lower, or if the id is C: none of the candidates."""
    xp = array_module(scores)
    C = scores.shape[1]
    best = scores >= scores.max(axis=1, keepdims=True)
    mine = best[xp.arange(len(ids)), xp.minimum(ids, C - 1)] & (ids < C)
    return mine / best.sum(axis=1)
