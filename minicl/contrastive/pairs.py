"""Softmaxes over all pairs of unit vectors, a tile at a time: the only file with tiles.

A score is x_ij = s_ij / tau, s_ij = u_i . v_j. The matrix of all scores is never stored: a tile of it is computed, its
exponentials are summed, and it is discarded. The losses need only, with r_ij = exp(x_ij - lse_i):

    lse_i = log sum_j exp(x_ij)                                              over the negatives j of i
    sum_j r_ij v_j                                                           means of the negatives under their softmax

    SymmetricPairs   one set of vectors against itself (nt_xent, uniformity_loss): a tile above the diagonal is used for
                     its rows and, transposed, for its columns
    QueryPairs       queries against many negatives (info_nce), which are normalised a tile at a time
    CrossPairs       rows against columns and columns against rows (clip_loss): both softmaxes share one exponential

Each saves the numbers by which its exponentials were divided, and divides by the same numbers again in the backward:
r_ij then sums to 1 as computed, and rounding makes no exponent positive. Where exp(x_ij) could overflow, the largest
cosine of each row is subtracted before the division by a small tau, which would magnify its rounding.
"""

import functools
import math

from ..backend import (array_module, column_sums, fill_diagonals, fused, on_host, pairwise_dots, parallel_for, parallel_map,
                       parallel_sum, row_sums, tile_size, to_device, workers)
from ..distributed import ALONE
from .cosine import l2_normalize

CACHE_BYTES = 16 * 2**20       # a matrix of exponentials up to this size is saved from the forward for the backward
TINY = 1e-30


def slices(n, size):
    return [slice(lo, min(lo + size, n)) for lo in range(0, n, size)]


class SymmetricPairs:
    """All pairs of unit vectors u (V, d) at temperature tau.

    cache      whether to save the exponentials for a backward, if they are few
    left_out   offsets k of the pairs (i, i + k) and (i + k, i) that are not negatives: 0, each with itself; for two
               stacked views of N images also N, the positives
    ids        None, or integers (V,) on the host: vectors with equal ids are not negatives of each other
    world      the processes that divide the tiles: each has all of u and adds its exponentials to those of the others
    anchors    None, or other vectors (V, d) of the rows, whose products with u are symmetric and in [-2, 0]
    """

    def __init__(self, u, tau, *, cache, left_out=(0,), ids=None, world=ALONE, anchors=None):
        self.xp = array_module(u)
        self.u = u
        self.tau = tau
        self.world = world
        V = len(u)
        self.blocks = slices(V, min(tile_size(self.xp, V), -(-V // world.size)))
        self.tiles = [(a, b) for k, a in enumerate(self.blocks) for b in self.blocks[k:]][world.part]
        self.left_out = {sign * k for k in left_out for sign in (1, -1)}
        self.ids = None if ids is None else to_device(ids, self.xp)
        self.safe = exp_is_safe(self.xp, tau if anchors is None else tau / 2, u.dtype, V)
        anchors = u if anchors is None else anchors
        self.anchors = anchors / tau if self.safe else anchors
        self.cache = {} if cache and self.safe and V * V * u.itemsize // world.size <= CACHE_BYTES else None

    def scores(self, a, b):
        """x_ij, or s_ij if not safe, for the rows a and the columns b, with -inf for pairs left out."""
        x = self.anchors[a] @ self.u[b].T
        fill_diagonals(x, [offset + a.start - b.start for offset in self.left_out], -math.inf)
        return x if self.ids is None else _without(x, self.ids[a], self.ids[b])

    def exp_tile(self, a, b):
        if self.cache and (a.start, b.start) in self.cache:
            return self.cache[a.start, b.start]
        e = self.scores(a, b)
        self.xp.exp(e, out=e)
        if self.cache is not None:
            self.cache[a.start, b.start] = e
        return e

    def logsumexp(self, s):
        """lse_i - s_i / tau (V,) for a cosine s; -1e30 without negatives."""
        self.shift = None                                                    # or the largest cosine of each row
        if self.safe:
            self.total = self.world.all_reduce(self._over_tiles(self._sums, self.u[:, 0]))
        elif self.world.size == 1:
            parts = [self._shifted_sums(a) for a in self.blocks]
            self.shift, self.total = (self.xp.concatenate(part) for part in zip(*parts))
        else:
            both = self.xp.zeros((2, len(self.u)), dtype=self.u.dtype)
            for a in self.blocks[self.world.part]:
                both[0, a], both[1, a] = self._shifted_sums(a)
            self.shift, self.total = self.world.all_reduce(both)
        return log_ahead(self.total, self.shift, s, self.tau)

    def _sums(self, a, b):
        e = self.exp_tile(a, b)
        yield a, row_sums(e)
        if a != b:
            yield b, column_sums(e)

    def _shifted_sums(self, a):
        """The largest cosine of each of the rows a, and the sum of the exponentials with it subtracted."""
        xp = self.xp
        shift, total = xp.full_like(self.u[a, 0], -2), xp.zeros_like(self.u[a, 0])       # below all cosines, yet finite
        for b in self.blocks:
            s = self.scores(a, b) if a.start <= b.start else self.scores(b, a).T
            larger = xp.maximum(s.max(axis=1), shift)
            total = _exp_of(shift, larger, self.tau) * total + _exp_of(s, larger[:, None], self.tau).sum(axis=1)
            shift = larger
        return shift, total

    def weighted_sum(self, w, v=None):
        """sum_j (w_i r_ij + w_j r_ji) v_j for weights w (V,) and vectors v, default u: (V, d). After logsumexp().

        With several processes each gets the share of its tiles, which reduce_scatter adds up."""
        v = self.u if v is None else v
        shift = self.shift
        w = _divide(w, self.total)

        def shares(a, b):
            if self.safe:
                p = _both_ways(self.exp_tile(a, b), w[a][:, None], w[b])
            else:
                p = _shifted_both_ways(self.scores(a, b), shift[a][:, None], shift[b], w[a][:, None], w[b], self.tau)
            yield a, p @ v[b]
            if a != b:
                yield b, p.T @ v[a]

        return self._over_tiles(shares, v)

    def _over_tiles(self, shares, like):
        """The sum over all tiles, in an array like `like`: shares(a, b) gives pairs (rows, what is added to them)."""
        if len(self.blocks) == len(self.tiles) == 1:
            [(_, total)] = shares(*self.tiles[0])
            return total

        def add(lo, hi, total):
            for a, b in self.tiles[lo:hi]:
                for rows, share in shares(a, b):
                    total[rows] += share

        return parallel_sum(self.xp, len(self.tiles), add, like, size=1)[0]


class QueryPairs:
    """Unit queries q (N, d) against negatives (M, d) of any length, at temperature tau.

    Negatives are normalised a tile at a time, here and again in the backward, so a queue is never copied as a whole.
    ids: None, or integers (N,) and (M,) on the host; a negative with a query's id is left out for that query.
    """

    def __init__(self, q, negatives, tau, ids=None):
        self.xp = array_module(q)
        self.q = q
        self.tau = tau
        self.negatives = negatives
        M = len(negatives)
        self.ids = None if ids is None else [to_device(each, self.xp) for each in ids]
        self.tiles = slices(M, tile_size(self.xp, M, rows=len(q)))
        self.shift = None
        self.anchors = q / tau                             # or the largest cosine of each row, and q
        if not exp_is_safe(self.xp, tau, q.dtype, M):
            self.anchors = q
            tops = parallel_map(self.xp, self.tiles, lambda tile: self.scores(self.unit(tile)[0], tile).max(axis=1))
            self.shift = self.xp.maximum(self.xp.stack(tops).max(axis=0), -2)            # finite if all are left out

    def unit(self, tile):
        return l2_normalize.forward(self.negatives[tile])

    def scores(self, n, tile):
        """x_ij, or s_ij if shifted, of the unit negatives n of a tile, with -inf for pairs left out: (N, tile)."""
        x = pairwise_dots(self.anchors, n)
        return x if self.ids is None else _without(x, self.ids[0], self.ids[1][tile])

    def exp_tile(self, n, tile):
        e = self.scores(n, tile)
        return self.xp.exp(e, out=e) if self.shift is None else _exp_of(e, self.shift[:, None], self.tau)

    def softmax(self, s, *, need_mean):
        """lse_i - s_i / tau (N,) for a cosine s; and m_i = sum_j r_ij n_j (N, d) if needed, else None."""
        def share(tile):
            n, _ = self.unit(tile)
            e = self.exp_tile(n, tile)
            return row_sums(e), e @ n if need_mean else None

        def add(lo, hi, total, weighted):
            for tile in self.tiles[lo:hi]:
                sums, means = share(tile)
                total += sums
                if need_mean:
                    weighted += means

        self.total, weighted = share(self.tiles[0]) if len(self.tiles) == 1 else parallel_sum(
            self.xp, len(self.tiles), add, self.q[:, 0], self.q, size=1)
        ahead = log_ahead(self.total, self.shift, s, self.tau)
        return ahead, _divide(weighted, self.total[:, None]) if need_mean else None

    def to_negatives(self, weighted):
        """sum_i r_ij weighted_i for weighted (N, d), propagated through the normalisation of the negatives: (M, d)."""
        weighted = _divide(weighted, self.total[:, None])

        def gradient(tile):
            n, backward = self.unit(tile)
            return backward(self.exp_tile(n, tile).T @ weighted)[0]

        return self.xp.concatenate(parallel_map(self.xp, self.tiles, gradient))


class CrossPairs:
    """Unit rows u (N, d) and t (N, d) at scores x_ij = scale u_i . t_j, scale <= 100; rows i and j with the same
    caption id are not negatives of each other.

    exp(100) overflows float32, and subtracting the maxima of rows and columns, which differ, would need two
    exponentials a pair. One is enough: f_ij = exp(x_ij / 2) stays within exp(+-50), and with a_i of its row's size

        lse_i = 2 log a_i + log S_i,   S_i = sum_j (f_ij / a_i)^2

    does not overflow, and rows and columns share f. A row's a_i is the largest of its tiles' sums.

    With several processes each has its n rows u against the t of all, N = n size columns: each f_ij is computed once.
    """

    def __init__(self, u, t, scale, caption_ids, *, cache, world=ALONE):
        self.xp = array_module(u)
        self.u = u
        self.t = world.all_gather(t)
        self.u_half = u * (scale / 2)
        self.world = world
        n, N = len(u), len(self.t)
        self.ids = None if caption_ids is None else (caption_ids, world.all_gather(caption_ids))     # of rows, of columns
        self.blocks, self.column_blocks = (slices(count, tile_size(self.xp, N)) for count in (n, N))
        self.cache = {} if cache and n * N * u.itemsize <= CACHE_BYTES else None

    def tile(self, a, b):
        """f_ij for the rows a and the columns b, 0 for pairs left out."""
        if self.cache and (a.start, b.start) in self.cache:
            return self.cache[a.start, b.start]
        f = self.u_half[a] @ self.t[b].T
        self.xp.exp(f, out=f)
        size, rank = self.world.size, self.world.rank
        lo, hi = (max(a.start, min(a.stop, -(-(edge - rank) // size))) for edge in (b.start, b.stop))
        if self.ids is not None:
            f *= self.ids[0][a][:, None] != self.ids[1][b]
        elif lo < hi:                                                        # rows whose own pair is in b
            first = (lo - a.start) * f.shape[1] + lo * size + rank - b.start
            step = f.shape[1] + size
            f.reshape(-1)[first:first + (hi - lo - 1) * step + 1:step] = 0
        if self.cache is not None:
            self.cache[a.start, b.start] = f
        return f

    def logsumexps(self):
        """lse of the rows (n,), and of the columns (N,); far below all scores without a negative."""
        def share(a, b):
            f = self.tile(a, b)
            return _sums_of_squares(self.xp, f), _sums_of_squares(self.xp, f.T)

        self.rows, self.columns = self._over_tiles(share, _join)
        if self.world.size > 1:
            parts = self.world.all_gather(self.xp.stack(self.columns)[None])             # (size, 2, N)
            self.columns = functools.reduce(lambda one, other: _join(*one, *other), parts)
        return _log_of_squares(*self.rows), _log_of_squares(*self.columns)

    def weighted_sums(self, w_rows, w_columns):
        """sum_j (w_rows_i r_ij + w_columns_j c_ij) t_j, r the softmax of row i and c that of column j: (n, d); and
        the same with u for t, summed over this process's i: (N, d). After logsumexps()."""
        row, column = _root_of_weight(w_rows, *self.rows), _root_of_weight(w_columns, *self.columns)

        def share(a, b):
            f = self.tile(a, b)
            w, c = f * row[a][:, None], f * column[b]
            w *= w
            c *= c
            w += c
            return (w @ self.t[b],), (w.T @ self.u[a],)

        (for_u,), (for_t,) = self._over_tiles(share, lambda one, other: (one + other,))
        return for_u, for_t

    def _over_tiles(self, share, join):
        """A tuple of arrays for rows, and one for columns. share(a, b) returns both tuples for the tile of rows a and
        columns b; join(*one, *other) combines tiles of the same rows or columns.

        Rows of tiles are divided among threads, each with its own `columns`.
        """
        rows = {}
        count = workers(self.xp, len(self.blocks))

        def worker(k, _):
            columns = {}
            for a in self.blocks[k::count]:
                for b in self.column_blocks:
                    of_rows, of_columns = share(a, b)
                    rows[a.start] = join(*rows[a.start], *of_rows) if a.start in rows else of_rows
                    columns[b.start] = join(*columns[b.start], *of_columns) if b.start in columns else of_columns
            return columns

        parts = parallel_for(self.xp, count, worker, size=1)
        columns = {start: functools.reduce(lambda one, other: join(*one, *other), (part[start] for part in parts))
                   for start in parts[0]}
        return [joined[0] if len(blocks) == 1 else tuple(map(self.xp.concatenate, zip(*(joined[a.start] for a in blocks))))
                for joined, blocks in ((rows, self.blocks), (columns, self.column_blocks))]


def _without(x, row_ids, column_ids):
    """Scores x with -inf where the ids of the row and of the column are equal."""
    return array_module(x).where(row_ids[:, None] == column_ids, -math.inf, x)


def exp_is_safe(xp, tau, dtype, count):
    """Whether sums of `count` terms exp(s / tau), |s| <= 1, neither overflow nor vanish. The 2 allows for cosines rounded
    above 1, and for the smallest normal number, which is nearer to 1 than the largest. A tau on a GPU is not read, which
    would wait for it; then each row's largest score is subtracted."""
    return on_host(tau) and 1 / float(tau) + math.log(count) < math.log(float(xp.finfo(dtype).max)) - 2


@fused
def log_ahead(xp, total, shift, s, tau):
    """log total + (shift - s) / tau, with -1e30 for log 0."""
    log = xp.where(total == 0, -1e30, xp.log(xp.where(total == 0, 1, total)))
    return log - s / tau if shift is None else log + (shift - s) / tau


@fused
def _exp_of(xp, s, shift, tau):
    return xp.exp((s - shift) / tau)


@fused
def _divide(xp, w, total):
    return w / xp.where(total == 0, 1, total)


@fused
def _both_ways(xp, e, w_row, w_column):
    p = w_row + w_column
    p *= e
    return p


@fused
def _shifted_both_ways(xp, s, shift_row, shift_column, w_row, w_column, tau):
    """s_ij and s_ji may be rounded differently, so the second exponent is limited to 0."""
    of_column = xp.minimum(s - shift_column, 0)
    of_column /= tau
    xp.exp(of_column, out=of_column)
    of_column *= w_column
    s -= shift_row
    s /= tau
    xp.exp(s, out=s)
    s *= w_row
    s += of_column
    return s


def _sums_of_squares(xp, f):
    """a = sum_j f_ij and S = sum_j (f_ij / a)^2 of each row of f; TINY and 0 for a row of zeros. f > 1e-22, or 0."""
    a = xp.maximum(row_sums(f), TINY)                                        # faster than max(axis=1)
    r = f / a[:, None]
    r *= r
    return a, row_sums(r)


def _join(a, S, other_a, other_S):
    larger = array_module(a).maximum(a, other_a)
    return larger, S * (a / larger)**2 + other_S * (other_a / larger)**2


@fused
def _log_of_squares(xp, a, S):
    """2 log a + log S. Without negatives 3 log TINY = -207: negligible beside a score, which is >= -100."""
    return 2 * xp.log(a) + xp.log(xp.maximum(S, TINY))


@fused
def _root_of_weight(xp, w, a, S):
    """c such that w (f / a)^2 / S = (c f)^2."""
    return xp.sqrt(w / xp.maximum(S, TINY)) / a
