"""InfoNCE and NT-Xent, each as one op: the loss and its gradient, tile by tile, in closed form.

Both are a cross-entropy: the softmax of an anchor's similarities s_ij to its candidates should pick its positive.
With x_ij = s_ij / tau and p_ij = exp(x_ij - lse_i), lse_i = log sum_k exp(x_ik):

    L = (1/N) sum_i (lse_i - x_i+)                                           (1)
    dL/ds_ij = (p_ij - [j = +]) / (N tau)                                    (2)

for N anchors (2N in NT-Xent, where both views are), so each negative pushes with its probability, and the positive
pulls with what the anchor still lacks: the push and the pull of an anchor always balance. Since s_ij = u_i . u_j for
unit vectors u, the gradient of an anchor is that weighted sum of its candidates; l2_normalize carries it on to z. The
temperature needs no pass of its own:

    dL/dtau = -(1/tau) sum_ij s_ij dL/ds_ij = -(1/tau) sum_i u_i . du_i      (3)

where du_i is the gradient that u_i receives as an anchor.

No matrix of all pairs is ever held: exp(x_ij) is made a tile at a time, summed, and forgotten (or kept till the
backward where it is small). And because a cosine is at most 1, exp(x_ij) <= exp(1/tau) cannot overflow for any
ordinary tau: the pass that finds each row's maximum is needed only for tiny ones.
Derivations: docs/gradients/infonce.md. Readable, composed forms of both: composed.py
"""

import math

from ..autograd import op
from ..backend import array_module, require_finite, run_slices, tile_size
from .checks import require_pairs, require_temperature
from .cosine import l2_normalize

KEEP_BYTES = 64 * 2**20        # a matrix of exponentials up to this size is kept from the forward to the backward
LANES = 4                      # partial sums of the tiles' gradients; fixed, so that threads don't change the result


@op
def info_nce(query, positive, negatives, tau, *, wanted=(True, True, True, True)):
    """InfoNCE with explicit positives and negatives (van den Oord et al. 2018, eq. 4; MoCo's eq. 1) -> L ().

    query (N, d), positive (N, d): row i belongs to row i; negatives (M, d), shared by all queries; tau () > 0.
    Rows need not be normalised: similarities are cosines. An anchor chooses among 1 + M candidates. With q, k, n the rows
    at length 1 and j running over the negatives, before l2_normalize's own gradient:

        dq_i =  (sum_j p_ij n_j - (1 - p_i+) k_i) / (N tau)                  (4)
        dk_i = -(1 - p_i+) q_i / (N tau)                                     (5)
        dn_j =  sum_i p_ij q_i / (N tau)                                     (6)
    """
    require_temperature("info_nce", tau)
    require_pairs("info_nce", query, positive)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) < 1:
        raise ValueError(f"info_nce: expected negatives (M, d) with M >= 1 and d = {query.shape[1]}, "
                         f"got {negatives.shape}")
    xp, N, M = array_module(query), len(query), len(negatives)
    (q, to_query), (k, to_positive), (n, to_negatives) = map(l2_normalize.raw, (query, positive, negatives))
    x_pos = (q * k).sum(axis=1) / tau                                        # (N,)
    size, q_tau = tile_size(xp, M), q / tau
    top = xp.zeros_like(x_pos) if _exp_is_safe(xp, tau, q.dtype, 1 + M) else xp.stack(   # subtracted before exp
        [x_pos, *run_slices(xp, M, lambda lo, hi: (q_tau @ n[lo:hi].T).max(axis=1), size)]).max(axis=0)

    def exp_tile(lo, hi):
        e = q_tau @ n[lo:hi].T                                               # (N, tile)
        e -= top[:, None]
        return xp.exp(e, out=e)

    def sums(lo, hi):
        e = exp_tile(lo, hi)
        return e.sum(axis=1), e @ n[lo:hi] if wanted[0] or wanted[3] else 0

    e_neg, pulls = map(sum, zip(*run_slices(xp, M, sums, size)))             # sum_j e_ij, sum_j e_ij n_j
    e_all = xp.exp(x_pos - top) + e_neg
    loss = (xp.log(e_all) + top - x_pos).mean()                              # (1)
    require_finite(loss, "info_nce: the loss")

    def backward(g):
        c = g / (N * tau)
        lack = (c * e_neg / e_all)[:, None]                                  # (2) at +: c (1 - p_i+), without 1 - p
        dquery = dnegatives = dtau = None
        if wanted[0] or wanted[3]:
            dq = pulls * (c / e_all)[:, None] - lack * k                     # (4)
            dquery = to_query(dq)[0]
            dtau = -(q * dq).sum() / tau                                     # (3)
        dpositive = to_positive(-lack * q)[0] if wanted[1] else None         # (5)
        if wanted[2]:
            weighted = q * (c / e_all)[:, None]
            dn = run_slices(xp, M, lambda lo, hi: exp_tile(lo, hi).T @ weighted, size)
            dnegatives = to_negatives(xp.concatenate(dn))[0]                 # (6)
        return dquery, dpositive, dnegatives, dtau

    return loss, backward


@op
def nt_xent(z1, z2, tau, *, wanted=(True, True, True)):
    """NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1): z1, z2 (N, d), two views of N items, tau () > 0 -> L ().

    All 2N views are anchors, u = [z1^; z2^]; view i picks its other view p(i) = i + N mod 2N among the 2N - 1 that
    are not itself. Every pair is scored twice, once from either side, so the gradient is symmetric:

        du_i = (sum_j (p_ij + p_ji) u_j - 2 u_p(i)) / (2N tau)               (7)
        dtau = -sum_i u_i . du_i / (2 tau)                                   (8)

    (8) is (3): u_i . du_i counts each pair from both sides. Only tiles on and above the diagonal are computed.
    """
    require_temperature("nt_xent", tau)
    require_pairs("nt_xent", z1, z2, at_least=2)
    xp, N = array_module(z1), len(z1)
    u, to_z = l2_normalize.raw(xp.concatenate([z1, z2]))                     # (2N, d)
    other = xp.concatenate([u[N:], u[:N]])                                   # u_p(i)
    pairs = _SymmetricPairs(u, tau, keep=any(wanted))
    lse = pairs.logsumexp()                                                  # (2N,)
    loss = lse.mean() - (u * other).sum(axis=1).mean() / tau                 # (1)
    require_finite(loss, "nt_xent: the loss")

    def backward(g):
        du = (pairs.weighted_sum(lse) - 2 * other) * (g / (2 * N * tau))     # (7)
        dz = to_z(du)[0]
        dtau = -(u * du).sum() / (2 * tau) if wanted[2] else None            # (8)
        return dz[:N], dz[N:], dtau

    return loss, backward


class _SymmetricPairs:
    """exp(u_i . u_j / tau) for all i != j, as square tiles on and above the diagonal.

    A tile of rows a and columns b serves rows b as well, transposed. Work on tiles is dealt to LANES.
    """

    def __init__(self, u, tau, keep):
        self.xp, self.u, self.u_tau, n = array_module(u), u, u / tau, len(u)
        size = tile_size(self.xp, n)
        self.blocks = [slice(lo, min(lo + size, n)) for lo in range(0, n, size)]
        self.tiles = [(a, b) for i, a in enumerate(self.blocks) for b in self.blocks[i:]]
        self.safe = _exp_is_safe(self.xp, tau, u.dtype, n)
        self.kept = {} if keep and self.safe and n * n * u.itemsize <= KEEP_BYTES else None

    def scores(self, a, b):
        """x_ij = u_i . u_j / tau, with -inf for i = j."""
        x = self.u_tau[a] @ self.u[b].T
        if a == b:
            x.reshape(-1)[::len(x) + 1] = -math.inf
        return x

    def exp_tile(self, a, b):
        if self.kept and (a.start, b.start) in self.kept:
            return self.kept[a.start, b.start]
        e = self.scores(a, b)
        self.xp.exp(e, out=e)
        if self.kept is not None:
            self.kept[a.start, b.start] = e
        return e

    def logsumexp(self):
        """lse_i = log sum_{j != i} exp(x_ij): (2N,)."""
        if not self.safe:
            return self.xp.concatenate([self._guarded_logsumexp(a) for a in self.blocks])

        def row_sums(a, b, total):
            e = self.exp_tile(a, b)
            total[a] += e @ self.xp.ones(e.shape[1], dtype=e.dtype)          # quicker than sum(axis=1)
            if a != b:
                total[b] += self.xp.ones(e.shape[0], dtype=e.dtype) @ e

        return self.xp.log(self._over_tiles(row_sums, self.u.shape[:1]))

    def _guarded_logsumexp(self, a):
        """The same for the rows a, with each row's running maximum subtracted."""
        xp, top, total = self.xp, -math.inf, 0
        for b in self.blocks:
            x = self._scores_anywhere(a, b)
            new = xp.maximum(x.max(axis=1), top)
            total = total * xp.exp(top - new) + xp.exp(x - new[:, None]).sum(axis=1)
            top = new
        return top + xp.log(total)

    def _scores_anywhere(self, a, b):
        return self.scores(a, b) if a.start <= b.start else self.scores(b, a).T

    def weighted_sum(self, lse):
        """sum_j (p_ij + p_ji) u_j: (2N, d)."""
        xp, u = self.xp, self.u
        inverse = xp.exp(-lse) if self.safe else None

        def pull(a, b, total):
            if self.safe:
                p = inverse[a][:, None] + inverse[b]
                p *= self.exp_tile(a, b)
            else:
                x = self.scores(a, b)
                p = xp.exp(x - lse[a][:, None]) + xp.exp(x - lse[b])
            total[a] += p @ u[b]
            if a != b:
                total[b] += p.T @ u[a]

        return self._over_tiles(pull, u.shape)

    def _over_tiles(self, add_tile, shape):
        """The sum of what add_tile(a, b, total) adds to a zero array of this shape, over all tiles."""
        lanes = min(LANES, len(self.tiles))

        def lane(lo, hi):
            total = self.xp.zeros(shape, dtype=self.u.dtype)
            for k in range(lo, hi):
                for a, b in self.tiles[k::lanes]:
                    add_tile(a, b, total)
            return total

        return sum(run_slices(self.xp, lanes, lane, size=1))


def _exp_is_safe(xp, tau, dtype, count):
    """Whether sums of `count` terms exp(s / tau), |s| <= 1, neither overflow nor vanish. The 2 leaves room for cosines
    rounded above 1, and because the smallest normal number is nearer to 1 than the largest. A tau that is an array is
    not read, which on a GPU would mean waiting for it: it takes the guarded way."""
    return isinstance(tau, (int, float)) and 1 / tau + math.log(count) < math.log(float(xp.finfo(dtype).max)) - 2
