"""Softmax over all pairs of one set of vectors, a tile at a time: what NT-Xent and uniformity have in common.

For unit vectors u (V, d) and scores x_ij = u_i . u_j / tau, symmetric in i and j:

    lse_i = log sum_j exp(x_ij)                                              logsumexp()
    sum_j (exp(x_ij - m_i) + exp(x_ij - m_j)) u_j                            weighted_sum(m)

over all j but i, and but i's positive where those are left out. Only square tiles on and above the diagonal are
computed; a tile of rows a and columns b serves rows b as well, transposed. A tile of exponentials is made, used and
forgotten, or kept for the backward where all of them are small.
"""

import math

from ..backend import array_module, column_sums, fused, parallel_sum, row_sums, tile_size

KEEP_BYTES = 16 * 2**20        # a matrix of exponentials up to this size is kept from the forward to the backward


class SymmetricPairs:
    """All pairs of unit vectors u (V, d) at temperature tau.

    keep       whether a backward will follow
    left_out   offsets k of the pairs (i, i + k) and (i + k, i) that are no candidates: 0, each with itself; for two
               views of N images stacked, N as well, the positives
    """

    def __init__(self, u, tau, *, keep, left_out=(0,)):
        self.xp, self.u, self.u_tau, V = array_module(u), u, u / tau, len(u)
        size = tile_size(self.xp, V)
        self.blocks = [slice(lo, min(lo + size, V)) for lo in range(0, V, size)]
        self.tiles = [(a, b) for k, a in enumerate(self.blocks) for b in self.blocks[k:]]
        self.left_out = {sign * k for k in left_out for sign in (1, -1)}
        self.safe = exp_is_safe(self.xp, tau, u.dtype, V)
        self.kept = {} if keep and self.safe and V * V * u.itemsize <= KEEP_BYTES else None

    def scores(self, a, b):
        """x_ij for the rows a and the columns b, with -inf for what is left out."""
        x = self.u_tau[a] @ self.u[b].T
        for offset in self.left_out:
            lo, hi = max(a.start, b.start - offset), min(a.stop, b.stop - offset)        # rows i whose i + offset is in b
            if lo < hi:
                first, step = (lo - a.start) * x.shape[1] + lo + offset - b.start, x.shape[1] + 1
                x.reshape(-1)[first:first + (hi - lo - 1) * step + 1:step] = -math.inf   # a diagonal of the tile
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
        """lse (V,)."""
        if not self.safe:
            return self.xp.concatenate([self._guarded_logsumexp(a) for a in self.blocks])

        def both_sums(a, b, total):
            e = self.exp_tile(a, b)
            total[a] += row_sums(e)
            if a != b:
                total[b] += column_sums(e)

        return self.xp.log(self._over_tiles(both_sums, self.u[:, 0]))

    def _guarded_logsumexp(self, a):
        """lse of the rows a, with each row's running maximum subtracted before exp."""
        xp, top, total = self.xp, _lowest(self.xp, self.u[a, 0]), 0
        for b in self.blocks:
            x = self.scores(a, b) if a.start <= b.start else self.scores(b, a).T
            new = xp.maximum(x.max(axis=1), top)
            total = total * xp.exp(top - new) + xp.exp(x - new[:, None]).sum(axis=1)
            top = new
        return top + xp.log(total)

    def weighted_sum(self, m):
        """sum_j (exp(x_ij - m_i) + exp(x_ij - m_j)) u_j for m (V,): (V, d)."""
        xp, u = self.xp, self.u
        inverse = xp.exp(-m) if self.safe else None

        def pull(a, b, total):
            if self.safe:
                p = _twice(self.exp_tile(a, b), inverse[a][:, None], inverse[b])
            else:
                p = _exp_twice(self.scores(a, b), m[a][:, None], m[b])
            total[a] += p @ u[b]
            if a != b:
                total[b] += p.T @ u[a]

        return self._over_tiles(pull, u)

    def _over_tiles(self, add_tile, like):
        """The sum of what add_tile(a, b, total) adds to zeros like an array, over all tiles."""
        def add(lo, hi, total):
            for a, b in self.tiles[lo:hi]:
                add_tile(a, b, total)

        return parallel_sum(self.xp, len(self.tiles), add, like, size=1)[0]


@fused
def _twice(xp, e, of_row, of_column):
    p = of_row + of_column
    p *= e
    return p


@fused
def _exp_twice(xp, x, m_row, m_column):
    return xp.exp(x - m_row) + xp.exp(x - m_column)


def _lowest(xp, like):
    """The lowest finite number, in the shape of an array: below every score, yet not -inf, whose differences are NaN."""
    return xp.full_like(like, -float(xp.finfo(like.dtype).max) / 4)


def exp_is_safe(xp, tau, dtype, count):
    """Whether sums of `count` terms exp(s / tau), |s| <= 1, neither overflow nor vanish. The 2 leaves room for cosines
    rounded above 1, and because the smallest normal number is nearer to 1 than the largest. A tau that is an array is
    not read, which on a GPU would mean waiting for it: it takes the guarded way."""
    return isinstance(tau, (int, float)) and 1 / tau + math.log(count) < math.log(float(xp.finfo(dtype).max)) - 2
