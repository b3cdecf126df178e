"""Scores of candidates, and how often the correct one is chosen; ties count as chance."""

from ..backend import array_module, parallel_for
from ..contrastive import l2_normalize
from ..typing import Array


ROUNDING_UNIT = 2.0**-46               # of rounded_cosines: 64 roundings of float64
TIE = 1                                # rounded cosines that differ by it may be those of equal ones, rounded up and down


def normalized(x: Array) -> Array:
    """Rows of x (N, d) scaled to length 1, in float64; rows of zeros stay."""
    xp = array_module(x)
    u = xp.empty(x.shape, dtype="float64")

    def work(lo, hi):
        u[lo:hi] = l2_normalize.forward(x[lo:hi].astype("float64", copy=False))[0]

    parallel_for(xp, len(x), work, 1024)
    return u


def rounded_cosines(u: Array, v: Array) -> Array:
    """cos / ROUNDING_UNIT, rounded (N, M), for the cosines of unit vectors u (N, d) and v (M, d): numbers up to +-2^46.

    They are computed in float64: in a narrow cone, as early in training, cosines differ by the square of a small angle,
    which float32 loses. Cosines that differ only by rounding become equal, or differ by TIE, so collapsed embeddings give
    ties and not an order from rounding errors of a matrix product. A row of zeros has cosine 0 with every other.
    """
    s = (u * (1 / ROUNDING_UNIT)) @ v.T
    return array_module(s).rint(s, out=s)


def chosen(scores: Array, ids: Array) -> Array:
    """For each row of scores (N, C) the probability () that its own id (N,) is chosen: 1/n if it shares the highest score
    with n - 1 others; 0 if it is lower, or if the id is C, not a candidate."""
    xp = array_module(scores)
    C = scores.shape[1]
    best = scores >= scores.max(axis=1, keepdims=True)
    mine = best[xp.arange(len(ids)), xp.minimum(ids, C - 1)] & (ids < C)
    return mine / best.sum(axis=1)
