"""Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator.

Two views of N items give 2N unit rows u = [z1^; z2^]; the other view of i is p(i) = i + N mod 2N. With
x_ij = u_i . u_j / tau, and over the negatives j, all but i and p(i), lse_i = log sum_j exp(x_ij) and
r_ij = exp(x_ij - lse_i):

    L = (1/2N) sum_i (lse_i - w_i x_ip(i))                                   (1)
    du_i = (sum_j (r_ij + r_ji) u_j - 2 w_i u_p(i)) / (2N tau)               (2)
    dtau = -(1/2tau) sum_i u_i . du_i                                        (3)

No multiple of u_i in (2) reaches z_i, since dz_i is orthogonal to it. In a narrow cone all terms are nearly such
multiples, and their rounding errors exceed what is left. So (2) is computed less m (t_i - 2 w_i) u_i / (2N tau), which is

    du_i = (sum_j (r_ij + r_ji) (u_j - c) + t_i (c - m u_i) - 2 w_i (u_p(i) - m u_i)) / (2N tau)

with t_i = sum_j (r_ij + r_ji), c = |a|^6 a for the mean a of all u_j, and m = |c|^2. In a cone m is nearly 1, and all three
differences are small. Where the vectors spread, |a| and so c and m are nearly 0. (3) adds what was left out.

w_i = 1, or for DCL-W the weight of i's item. In NT-Xent both push and pull of an anchor have the factor 1 - p_i+, which
is small once the few negatives of a small batch are easy. Here they have full strength. L may be below 0. Items of one
id are left out of each other's negatives. The tiles are in pairs.py.    Derivation: docs/gradients/dcl.md
"""

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, require_finite, to_device
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import concat, logsumexp, where
from ..signature import Scalar, accepts_other_names, is_plain_array, require_float_array
from ..typing import Array, HostArray
from .checks import checked_by, gather_ids, require_pairs, require_temperature
from .cosine import cosine_similarity, l2_normalize
from .pairs import SymmetricPairs
from .softmax import EXCLUDED, softmax


@accepts_other_names
@checked_by("dcl")
def composed(z1: Tensor, z2: Tensor, tau, *, weights: Array | None = None, ids: HostArray | None = None) -> Tensor:
    """dcl from small ops: cosines, log-sum-exp over the negatives, minus the positive's score."""
    xp = array_module(z1.data)
    N = len(z1)
    z = concat(z1, z2)
    ids = to_device(np.arange(N) if ids is None else ids, xp)
    ids = xp.concatenate([ids, ids])
    scores = cosine_similarity(z, z) / tau
    negatives = where(ids[:, None] == ids, EXCLUDED, scores)                 # not itself, not its other view
    positives = (l2_normalize(z1) * l2_normalize(z2)).sum(axis=1) / tau      # (N,): x_ip(i), the same for both views
    if weights is not None:
        positives = positives * weights
    return logsumexp(negatives, axis=1).mean() - positives.mean()


@op
def dcl(z1: Array, z2: Array, tau: Scalar, *, weights: Array | None = None, ids: HostArray | None = None,
        world: World = ALONE, needs_grad=(True, True, True)):
    """Decoupled contrastive loss: two views z1, z2 (N, d) of N >= 2 items, tau () > 0 -> L ().

    For small batches. weights (N,): constant weights of the items' positives, for DCL-W from mises_fisher_weights;
    default 1. ids (N,) integers on the host, such as labels, not all equal: items with equal ids are not negatives of
    each other. world: all of these are this process's part of the batch, as in nt_xent.

    >>> import numpy as np
    >>> z = np.eye(2)
    >>> round(dcl(z, z, 0.5).item(), 4)                          # two negatives at cosine 0: log 2 - 1 / 0.5
    -1.3069
    """
    require_temperature("dcl", tau)
    require_pairs("dcl", z1, z2, at_least=2, world=world)
    xp = array_module(z1)
    n = len(z1)
    N = len(z1) * world.size
    if weights is not None and not (is_plain_array(weights) and weights.shape == (n,) and weights.dtype == z1.dtype):
        raise ValueError(f"dcl: weights must be an array ({n},) of {z1.dtype}, one per item; compute them with "
                         "mises_fisher_weights(z1.data, z2.data)")
    if ids is not None:
        ids = np.concatenate(2 * [gather_ids("dcl", ids, n, world)])         # without a negative lse_i is log 0
    w = xp.ones(2 * n, dtype=z1.dtype) if weights is None else xp.concatenate([weights, weights])
    u, to_z = l2_normalize.forward(xp.concatenate([z1, z2]))                 # (2n, d)
    u_other = xp.concatenate([u[n:], u[:n]])                                 # u_p(i)
    pairs = SymmetricPairs(world.all_gather(u), tau, cache=any(needs_grad), left_out=(0, N), ids=ids, world=world)
    loss = pairs.logsumexp(world.all_gather(w * (u * u_other).sum(axis=1))).mean()          # (1)
    require_finite(loss, "dcl: the loss")

    def backward(g):
        c, m = _centre(pairs.u)
        v = xp.concatenate([pairs.u - c, xp.ones_like(pairs.u[:, :1])], axis=1)
        t = world.reduce_scatter(pairs.weighted_sum(xp.ones_like(pairs.total), v))           # t_i is in the last column
        k = g / (2 * N * tau)
        du = (t[:, :-1] + t[:, -1:] * (c - m * u) - 2 * w[:, None] * (u_other - m * u)) * k  # (2), but for a multiple of u_i
        dz = to_z(du)[0]
        zero_rows = ((u * u).sum(axis=1) < 0.5) * (t[:, -1] - 2 * w)
        along = 2 * len(u) - 2 * w.sum() - zero_rows.sum()                   # sum_i (t_i - 2 w_i) |u_i|^2
        dtau = -((u * du).sum() + m * along * k) / (2 * tau) if needs_grad[2] else None      # (3)
        return dz[:n], dz[n:], dtau

    return loss, backward


def _centre(u):
    """c = |a|^6 a for a = mean_j u_j, and m = |c|^2."""
    a = u.mean(axis=0)
    c = a * (a @ a)**3
    return c, c @ c


def mises_fisher_weights(z1: Array, z2: Array, *, sigma: float = 0.5, world: World = ALONE) -> Array:
    """The weights (N,) of DCL-W (Yeh et al. 2022, eq. 7) for arrays z1, z2 (N, d), two views of N items: mean 1.

        w_i = 2 - exp(s_i / sigma) / mean_k exp(s_k / sigma),   s_i the cosine of item i's views

    Items with less similar views count more. In the authors' code a gradient flows through the weights; here they are
    constants, as in lightly.
    """
    require_float_array("mises_fisher_weights: z1", z1)
    require_float_array("mises_fisher_weights: z2", z2)
    require_pairs("mises_fisher_weights", z1, z2, world=world)
    require_within("mises_fisher_weights", "[1e-30, inf)", sigma=sigma)
    s = world.all_gather((l2_normalize.forward(z1)[0] * l2_normalize.forward(z2)[0]).sum(axis=1))
    return world.rows(2 - len(s) * softmax.forward(s, float(sigma))[0])
