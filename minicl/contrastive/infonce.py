"""InfoNCE and NT-Xent, each as one op: the loss and its gradient, tile by tile, in closed form.

Both are a cross-entropy: the softmax of an anchor's similarities s_ij to its candidates should pick its positive.
With x_ij = s_ij / tau, p_ij = exp(x_ij) / sum_k exp(x_ik) over all candidates k, and lse_i the log-sum-exp over the
negatives alone, the loss asks how far the negatives together are ahead of the positive:

    L = (1/N) sum_i log(1 + exp(lse_i - x_i+))                               (1)
    dL/ds_ij = p_ij / (N tau),   dL/ds_i+ = -l_i / (N tau)                   (2)

for N anchors (2N in NT-Xent, where both views are). Each negative pushes with its probability; the positive pulls with
what the anchor lacks, l_i = 1 - p_i+ = sum_j p_ij, so push and pull of an anchor balance. (As a sum over the negatives
l_i keeps its digits where p_i+ is nearly 1.) Since s_ij = u_i . u_j for unit vectors u, the gradient of an anchor is
that weighted sum of its candidates; l2_normalize carries it on to z. The temperature needs no pass of its own:

    dL/dtau = -(1/tau) sum_ij s_ij dL/ds_ij = -(1/tau) sum_i u_i . du_i      (3)

where du_i is the gradient that u_i receives as an anchor.

The matrix of all pairs need never be held: exp(x_ij) is made a tile at a time, summed, and forgotten (pairs.py keeps
the tiles for the backward where they are small). And because a cosine is at most 1, exp(x_ij) <= exp(1/tau) cannot
overflow for any ordinary tau: the pass that finds each row's maximum is needed only for tiny ones.
Derivations: docs/gradients/infonce.md. Readable, composed forms of both: composed.py
"""

from ..autograd import op
from ..backend import array_module, fused, parallel_map, parallel_sum, require_finite, row_sums, tile_size
from ..signature import Scalar
from .checks import require_pairs, require_temperature
from .cosine import l2_normalize
from .pairs import SymmetricPairs, exp_is_safe


@op
def info_nce(query, positive, negatives, tau: Scalar, *, needs_grad=(True, True, True, True)):
    """InfoNCE with explicit positives and negatives (van den Oord et al. 2018, eq. 4; MoCo's eq. 1) -> L ().

    query (N, d), positive (N, d): row i belongs to row i; negatives (M, d), shared by all queries; tau () > 0.
    Rows need not be normalised: similarities are cosines. An anchor chooses among 1 + M candidates. With q, k, n the rows
    at length 1 and j running over the negatives, before l2_normalize's own gradient:

        dq_i =  (sum_j p_ij n_j - l_i k_i) / (N tau)                         (4)
        dk_i = -l_i q_i / (N tau)                                            (5)
        dn_j =  sum_i p_ij q_i / (N tau)                                     (6)
    """
    require_temperature("info_nce", tau)
    require_pairs("info_nce", query, positive)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) < 1:
        raise ValueError(f"info_nce: expected negatives (M, d) with M >= 1 and d = {query.shape[1]}, "
                         f"got {negatives.shape}")
    xp, N, M = array_module(query), len(query), len(negatives)
    (q, to_query), (k, to_positive) = l2_normalize.forward(query), l2_normalize.forward(positive)
    x_pos, q_tau, size = (q * k).sum(axis=1) / tau, q / tau, tile_size(xp, M, rows=N)    # (N,), (N, d)
    tiles = [slice(lo, min(lo + size, M)) for lo in range(0, M, size)]

    def unit(tile):                                                          # a queue is long: never all at once
        return l2_normalize.forward(negatives[tile])

    guarded = not exp_is_safe(xp, tau, q.dtype, M)
    top = xp.stack(parallel_map(xp, tiles, lambda tile: (q_tau @ unit(tile)[0].T).max(axis=1))).max(axis=0) if guarded else 0

    def exp_tile(n):
        e = q_tau @ n.T                                                      # (N, tile)
        if guarded:
            e -= top[:, None]
        return xp.exp(e, out=e)

    def add(lo, hi, total, pull):
        for tile in tiles[lo:hi]:
            n, _ = unit(tile)
            e = exp_tile(n)
            total += row_sums(e)
            if needs_grad[0] or needs_grad[3]:
                pull += e @ n

    e_neg, pull = parallel_sum(xp, len(tiles), add, x_pos, q, size=1)          # sum_j e_ij, sum_j e_ij n_j
    lack, loss_i = _lack(xp.log(e_neg) + top - x_pos)                        # (1)
    loss = loss_i.mean()
    require_finite(loss, "info_nce: the loss")
    p_per_e = lack / e_neg                                                   # p_ij = e_ij l_i / sum_j e_ij

    def backward(g):
        c = g / (N * tau)
        dquery = dnegatives = dtau = None
        if needs_grad[0] or needs_grad[3]:
            dq = c * (pull * p_per_e[:, None] - lack[:, None] * k)           # (4), (2)
            dquery = to_query(dq)[0]
            dtau = -(q * dq).sum() / tau                                     # (3)
        dpositive = to_positive(-c * lack[:, None] * q)[0] if needs_grad[1] else None        # (5)
        if needs_grad[2]:
            weighted = q * (c * p_per_e)[:, None]

            def gradient(tile):
                n, to_negatives = unit(tile)
                return to_negatives(exp_tile(n).T @ weighted)[0]             # (6)

            dnegatives = xp.concatenate(parallel_map(xp, tiles, gradient))
        return dquery, dpositive, dnegatives, dtau

    return loss, backward


@op
def nt_xent(z1, z2, tau: Scalar, *, needs_grad=(True, True, True)):
    """NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1): z1, z2 (N, d), two views of N items, tau () > 0 -> L ().

    All 2N views are anchors, u = [z1^; z2^]; view i picks its other view p(i) = i + N mod 2N among the 2N - 1 that
    are not itself. Every pair is scored twice, once from either side, so the gradient is symmetric. With j running
    over the negatives of i, all but i and p(i):

        du_i = (sum_j (p_ij + p_ji) u_j - (l_i + l_p(i)) u_p(i)) / (2N tau)  (7)
        dtau = -sum_i u_i . du_i / (2 tau)                                   (8)

    (8) is (3): u_i . du_i counts each pair from both sides.
    """
    require_temperature("nt_xent", tau)
    require_pairs("nt_xent", z1, z2, at_least=2)
    xp, N = array_module(z1), len(z1)

    def other(v):
        return xp.concatenate([v[N:], v[:N]])                                # v_p(i)

    u, to_z = l2_normalize.forward(xp.concatenate([z1, z2]))                     # (2N, d)
    x_pos = (u * other(u)).sum(axis=1) / tau                                 # (2N,)
    pairs = SymmetricPairs(u, tau, keep=any(needs_grad), left_out=(0, N))
    lack, loss_i = _lack(pairs.logsumexp() - x_pos)                          # (1)
    loss = loss_i.mean()
    require_finite(loss, "nt_xent: the loss")
    lse = x_pos + loss_i                                                     # (2N,), over all candidates

    def backward(g):
        du = pairs.weighted_sum(lse) - (lack + other(lack))[:, None] * other(u)
        du *= g / (2 * N * tau)                                              # (7)
        dz = to_z(du)[0]
        dtau = -(u * du).sum() / (2 * tau) if needs_grad[2] else None            # (8)
        return dz[:N], dz[N:], dtau

    return loss, backward


@fused
def _lack(xp, margin):
    """l = sigmoid(margin) and log(1 + exp(margin)), for what the negatives are ahead of the positive: lse- - x+."""
    e = xp.exp(-xp.abs(margin))                                              # at most 1
    return xp.where(margin > 0, 1, e) / (1 + e), xp.maximum(margin, 0) + xp.log1p(e)
