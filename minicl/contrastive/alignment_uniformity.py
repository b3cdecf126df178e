"""Alignment and uniformity: the two aims of a contrastive loss, as two losses (Wang & Isola 2020).

Alignment brings views of one image together; alone it is minimal when all embeddings collapse to one point. Uniformity
spreads the embeddings over the sphere; alone it ignores which images are similar. With many negatives InfoNCE tends to a
sum of two such terms (theorem 1). With unit rows u = z1^, v = z2^ of N items,

    L = (1/N) sum_i |u_i - v_i|^alpha                                        (1)
    du_i = -dv_i = (alpha/N) |u_i - v_i|^(alpha - 2) (u_i - v_i)             (2)

    L = log mean_{i != j} e_ij,   e_ij = exp(-t |u_i - u_j|^2)               (3)
    du_i = 2t sum_j (q_ij + q_ji) (u_j - u_i),   q_ij = e_ij / sum_kl e_kl   (4)

evaluate.alignment and evaluate.uniformity are the same formulas as metrics.
Derivations: docs/gradients/alignment_uniformity.md
"""

import math

from ..autograd import Tensor, op
from ..backend import array_module, on_host, require_finite, row_dots
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import logsumexp, where
from ..typing import Array
from .checks import checked_by, require_batch, require_pairs
from .cosine import l2_normalize
from .pairs import SymmetricPairs, log_ahead
from .softmax import EXCLUDED


@checked_by("alignment_loss")
def composed_alignment(z1: Tensor, z2: Tensor, *, alpha: float = 2) -> Tensor:
    """alignment_loss from small ops: normalise, subtract, square, a power."""
    squared = ((l2_normalize(z1) - l2_normalize(z2))**2).sum(axis=1)         # (N,)
    apart = squared.data > 0                                                 # a power < 1 has no derivative at 0
    return (where(apart, squared, 1.0)**(alpha / 2) * apart.astype(squared.dtype)).mean()


@checked_by("uniformity_loss")
def composed_uniformity(z: Tensor, *, t: float = 2) -> Tensor:
    """uniformity_loss from small ops: all squared distances, and one log-sum-exp."""
    xp = array_module(z.data)
    N = len(z)
    u = l2_normalize(z)
    length = (u * u).sum(axis=1, keepdims=True)                              # 1, or 0 for a row of zeros
    squared = length + length.T - 2 * (u @ u.T)                              # (N, N)
    potentials = where(xp.eye(N, dtype=bool), EXCLUDED, -t * squared)        # without pairs of a point with itself
    return logsumexp(potentials.reshape(N * N), axis=0) - math.log(N * (N - 1))


@op
def alignment_loss(z1: Array, z2: Array, *, alpha: float = 2, world: World = ALONE):
    """Mean distance between the two views of an item, to the power alpha > 0: z1, z2 (N, d) -> L () >= 0.

    With alpha = 2, L = 2 - 2 cos, and the pull is proportional to the distance. Views that coincide get zero gradient,
    also for alpha < 2, where (2) has no limit. world: as in nt_xent.    Source: Wang & Isola 2020, section 4.1.1

    >>> import numpy as np
    >>> alignment_loss(np.array([[3.0, 0]]), np.array([[0, 1.0]])).item()
    2.0
    """
    require_pairs("alignment_loss", z1, z2, world=world)
    require_within("alignment_loss", "(0, inf)", alpha=alpha)
    xp = array_module(z1)
    N = len(z1) * world.size
    u, to_z1 = l2_normalize.forward(z1)
    v, to_z2 = l2_normalize.forward(z2)
    apart = u - v                                                            # (N, d)
    squared = (apart * apart).sum(axis=1, keepdims=True)                     # (N, 1)
    loss = world.mean((squared**(alpha / 2)).mean())                         # (1)
    require_finite(loss, "alignment_loss: the loss")

    def backward(g):
        nonzero = xp.maximum(squared, xp.finfo(u.dtype).tiny)                # 0 to a negative power is infinite
        du = (g * alpha / N) * nonzero**(alpha / 2 - 1) * apart              # (2)
        return to_z1(du)[0], to_z2(-du)[0]

    return loss, backward


@op
def uniformity_loss(z: Array, *, t: float = 2, world: World = ALONE, needs_grad=(True,)):
    """Log of the mean Gaussian potential between different items: z (N, d), N >= 2, t > 0 -> L () <= 0.

    It is 0 for a collapse. The tiles are NT-Xent's, with tau = 1/(2t) and scores -|u_i - u_j|^2 / 2, which are products of
    centred rows v = u - mean: v_i . v_j - |v_i|^2 / 2 - |v_j|^2 / 2 keeps the small distances of nearby points. A row of
    zeros stays at the origin, at distance 1 from the sphere and 0 from another such row. For large N, L is at least
    evaluate.uniformity_floor(d, t), the value of evenly spread points; a few points can be lower. world: as in nt_xent.
    Source: Wang & Isola 2020, section 4.1.2

    >>> import numpy as np
    >>> round(uniformity_loss(np.array([[1.0, 0], [0, 2.0]])).item(), 4)     # squared distance 2
    -4.0
    """
    require_batch("uniformity_loss", z, at_least=2, world=world)
    require_within("uniformity_loss", "(0, inf)", t=t)
    xp = array_module(z)
    N = len(z) * world.size
    mine, to_z = l2_normalize.forward(z)
    u = world.all_gather(mine)                                               # (N, d)
    if on_host(u):
        u = u.astype("float64")                                              # nearby points' products differ in few digits
    v = u - u.mean(axis=0)
    half = row_dots(v, v) / 2                                                # (N, 1)
    ones = xp.ones_like(half)
    zeros = xp.zeros_like(half[:, 0])
    v = xp.concatenate([v, ones, half], axis=1)                              # (N, d + 2)
    other = xp.concatenate([v[:, :-2], -half, -ones], axis=1)                # v_i . other_j = -|u_i - u_j|^2 / 2
    tau = 1 / (2 * t)
    pairs = SymmetricPairs(other, tau, cache=needs_grad[0], world=world, anchors=v)
    pairs.logsumexp(zeros)
    means = log_ahead(pairs.total / (N - 1), pairs.shift, zeros, tau)        # (N,): log of the mean over j
    top = means.max()
    excess = xp.expm1(means - top).mean()
    loss = top + xp.log1p(excess)                                            # (3), without the rounding of numbers near 1
    require_finite(loss, "uniformity_loss: the loss")

    def backward(g):
        shares = xp.exp(means - top) / (N * (1 + excess))                    # of the rows in the sum over all pairs
        sums = world.reduce_scatter(pairs.weighted_sum(shares, v[:, :-1]))
        du = 2 * t * g * (sums[:, :-1] - sums[:, -1:] * world.rows(v)[:, :-2])           # (4)
        return (to_z(du.astype(z.dtype, copy=False))[0],)

    return loss.astype(z.dtype, copy=False), backward
