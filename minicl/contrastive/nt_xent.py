"""NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1).

Two views of N items give 2N unit rows u = [z1^; z2^], all of them anchors: view i picks its other view
p(i) = i + N mod 2N among the 2N - 1 other rows. With x_ij = u_i . u_j / tau, x_i+ = x_ip(i), and j over the negatives
of i, all rows except i and p(i):

    lse_i = log sum_j exp(x_ij)

    L = (1/2N) sum_i log(1 + exp(lse_i - x_i+))                              (1)

which is the mean of -log p_i+, p_i+ = exp(x_i+) / (exp(x_i+) + sum_j exp(x_ij)). Negatives push with their probability
p_ij = (1 - p_i+) exp(x_ij - lse_i), in sum as strongly as the positive pulls. Each pair is scored from both sides:

    du_i = (sum_j (p_ij + p_ji) u_j - (2 - p_i+ - p_p(i)+) u_p(i)) / (2N tau)    (2)
    dtau = -(1/2tau) sum_i u_i . du_i                                        (3)

Items with equal ids (label, caption) are left out of each other's negatives: they would be false negatives.

l2_normalize propagates du to z. 1 - p_i+ = sigmoid(lse_i - x_i+) is accurate also where p_i+ is near 1. The tiles are in
pairs.py.    Derivation: docs/gradients/nt_xent.md
"""

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, fused, require_finite, row_dots, to_device
from ..distributed import ALONE, World
from ..ops import concat, getitem, where
from ..signature import Scalar, accepts_other_names
from ..typing import Array, HostArray
from .checks import checked_by, gather_ids, require_pairs, require_temperature
from .cosine import cosine_similarity, l2_normalize
from .pairs import SymmetricPairs
from .softmax import EXCLUDED, log_softmax, softplus


@accepts_other_names
@checked_by("nt_xent")
def composed(z1: Tensor, z2: Tensor, tau, *, ids: HostArray | None = None) -> Tensor:
    """nt_xent from small ops: cosines, log-softmax, pick the other view. It holds all (2N)^2 scores."""
    xp = array_module(z1.data)
    N = len(z1)
    z = concat(z1, z2)                                                       # (2N, d)
    scores = cosine_similarity(z, z)                                         # (2N, 2N)
    scores = where(xp.eye(2 * N, dtype=bool), EXCLUDED, scores)              # not the anchor itself
    positive_ids = (xp.arange(2 * N) + N) % (2 * N)
    if ids is not None:                                                      # nor items with its id, except its positive
        both = to_device(np.concatenate([ids, ids]), xp)
        false = (both[:, None] == both) & (xp.arange(2 * N) != positive_ids[:, None])
        scores = where(false, EXCLUDED, scores)
    return -getitem(log_softmax(scores, tau), key=(xp.arange(2 * N), positive_ids)).mean()


@op
def nt_xent(z1: Array, z2: Array, tau: Scalar, *, ids: HostArray | None = None, world: World = ALONE,
            needs_grad=(True, True, True)):
    """NT-Xent: two views z1 (N, d) and z2 (N, d) of N items, tau () > 0 -> L ().

    Row i of z1 belongs to row i of z2. Rows need not be normalised: similarities are cosines. Chance is log(2N - 1).
    A batch of one has no negatives: its loss and gradients are 0.
    ids (N,) integers on the host, such as labels, not all equal for N > 1: items with equal ids are not negatives of each
    other. Default: all differ.
    world: z1, z2 and ids are this process's part of the batch; the loss is that of the whole batch. Processes gather the
    rows, divide the tiles of pairs, and add up the sums of (2).

    >>> import numpy as np
    >>> z = np.eye(4)
    >>> round(nt_xent(z, z, 0.5).item(), 4)                      # cosine 1 to the positive, 0 to six negatives
    0.5944
    >>> round(nt_xent(z, z, 0.5, ids=np.array([0, 1, 0, 1])).item(), 4)      # four negatives
    0.4327
    """
    require_temperature("nt_xent", tau)
    require_pairs("nt_xent", z1, z2, world=world)
    xp = array_module(z1)
    n = len(z1)
    N = len(z1) * world.size
    if ids is not None:
        ids = np.concatenate(2 * [gather_ids("nt_xent", ids, n, world)])

    def views(v):
        return v.reshape(2, len(v) // 2, *v.shape[1:])                       # [::-1] of them is v_p(i)

    mine, to_z = l2_normalize.forward(xp.concatenate([z1, z2]))              # (2n, d)
    u = world.all_gather(mine)                                               # (2N, d)
    pairs = SymmetricPairs(u, tau, cache=any(needs_grad), left_out=(0, N), ids=ids, world=world)
    positive = row_dots(views(u), views(u)[::-1]).reshape(-1)                # (2N,)
    loss_i, one_minus_p = softplus(pairs.logsumexp(positive))                # of lse_i - x_i+
    loss = loss_i.mean()                                                     # (1)
    require_finite(loss, "nt_xent: the loss")

    def backward(g):
        weight = world.rows((views(one_minus_p) + views(one_minus_p)[::-1]).reshape(-1))
        du = world.reduce_scatter(pairs.weighted_sum(one_minus_p))
        _pull(views(du), views(weight[:, None]), views(mine)[::-1], g, 2.0 * N, tau)             # (2)
        dz = to_z(du)[0]
        dtau = -(mine * du).sum() / (2 * tau) if needs_grad[2] else None      # (3)
        return dz[:n], dz[n:], dtau

    return loss, backward


@fused
def _pull(xp, du, weight, other, g, count, tau):
    """du = (du - weight other) g / (count tau) in place."""
    du -= weight * other
    du *= g / count / tau
