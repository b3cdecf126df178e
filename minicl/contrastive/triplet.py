"""Triplet loss (Schroff et al. 2015, FaceNet, eq. 3) with one negative and a margin, and mining of negatives.

Unit rows a (anchors), p (positives) and n (negatives), N of each:

    L = (1/N) sum_i max(0, |a_i - p_i|^2 - |a_i - n_i|^2 + margin)           (1)
    da_i = 2 (n_i - p_i)/N,   dp_i = 2 (p_i - a_i)/N,   dn_i = 2 (a_i - n_i)/N   (2)

(2) applies where the maximum is not 0. A triplet that satisfies the margin has no gradient, and most soon do: hence mining.
Derivation: docs/gradients/triplet.md
"""

import math

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, require_finite, to_device
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import maximum
from ..signature import require_float_array
from ..typing import Array, HostArray
from .checks import checked_by, gather_ids, require_pairs
from .cosine import cosine_similarity, l2_normalize


@checked_by("triplet")
def composed(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 0.2) -> Tensor:
    """triplet from small ops: normalise, compare squared distances, clip at 0."""
    a, p, n = l2_normalize(anchor), l2_normalize(positive), l2_normalize(negative)
    short = ((a - p)**2).sum(axis=1) - ((a - n)**2).sum(axis=1) + margin     # (N,)
    return maximum(short, 0.0).mean()


@op
def triplet(anchor: Array, positive: Array, negative: Array, *, margin: float = 0.2, world: World = ALONE):
    """Triplet loss of unit vectors: anchor, positive, negative (N, d), margin > 0 -> L () >= 0.

    For data of comparisons, "i is more like p than like n", or as a baseline for InfoNCE.
    Mined negatives: negative = positive[semi_hard_negatives(anchor.data, positive.data)].

    >>> import numpy as np
    >>> right, up = np.array([[1.0, 0]]), np.array([[0, 1.0]])
    >>> round(triplet(right, right, up, margin=2.5).item(), 4)   # squared distances 0 and 2
    0.5
    """
    require_pairs("triplet", anchor, positive, world=world)
    require_pairs("triplet", anchor, negative)
    require_within("triplet", "(0, inf)", margin=margin)
    N = len(anchor) * world.size
    a, to_anchor = l2_normalize.forward(anchor)
    p, to_positive = l2_normalize.forward(positive)
    n, to_negative = l2_normalize.forward(negative)
    short = ((a - p)**2 - (a - n)**2).sum(axis=1, keepdims=True) + margin    # (N, 1): by how much the margin is missed
    wrong = short > 0
    loss = world.mean((short * wrong).mean())                                            # (1)
    require_finite(loss, "triplet: the loss")

    def backward(g):
        c = wrong * (2 * g / N)
        return to_anchor(c * (n - p))[0], to_positive(c * (p - a))[0], to_negative(c * (a - n))[0]       # (2)

    return loss, backward


def semi_hard_negatives(anchor: Array, positive: Array, *, ids: HostArray | None = None,
                        world: World = ALONE) -> Array:
    """For each row of the array anchor (N, d), the id (N,) of another row of positive to use as its negative.

    Semi-hard: the most similar row that is less similar than the anchor's own positive, by more than rounding, or if there
    is none, the least similar. The very hardest collapse the embedding (Schroff et al. 2015, section 3.2).
    ids (N,) integers on the host, such as labels, not all equal: a negative is a row with another id.
    world: all of these are this process's part of the batch, and the result names rows of all_gather(positive).
    """
    require_float_array("semi_hard_negatives: anchor", anchor)
    require_float_array("semi_hard_negatives: positive", positive)
    require_pairs("semi_hard_negatives", anchor, positive, at_least=2, world=world)
    xp = array_module(anchor)
    n = len(anchor)
    N = len(anchor) * world.size
    ids = np.arange(N)[world.part] if ids is None else ids
    rows = xp.arange(N)
    ids = to_device(gather_ids("semi_hard_negatives", ids, n, world), xp)
    s = cosine_similarity.forward(anchor, world.all_gather(positive))[0]     # (n, N)
    s_own = s[rows[:n], world.rows(rows)][:, None] - 8 * np.finfo(s.dtype).eps           # less the rounding of both cosines
    rank = xp.where(s < s_own, s, -4 - s)                                    # semi-hard by cosine, then the rest reversed
    return xp.where(world.rows(ids)[:, None] == ids, -math.inf, rank).argmax(axis=1)
