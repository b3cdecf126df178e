"""CLIP's loss as one op: images pick their captions, captions pick their images, from one pass over the pairs.

Unit rows u (images) and t (texts) of N pairs, x_ij = exp(logit_scale) u_i . t_j, and two softmaxes of these scores:

    p_ij = exp(x_ij - row_i),   row_i = log sum_l exp(x_il)      image i picks text j
    q_ij = exp(x_ij - col_j),   col_j = log sum_k exp(x_kj)      text j picks image i

    L = (1/2N) sum_i (row_i + col_i - 2 x_ii)                                            (1)
    dL/dx_ij = (p_ij + q_ij - 2 [i = j]) / 2N                                            (2)

Captions repeat. If rows i and j have the same caption, text j is as right for image i as its own: it is no negative,
and neither is image j for text i. Such pairs are left out of both sums (p_ij = q_ij = 0). Each image is drawn to the
caption by its own pair; none is pushed from it by another's.

The negatives are summed apart from the pairs, row_i = log(exp(x_ii) + exp(neg_i)): then what a nearly solved batch
still lacks, 1 - p_ii, is no difference of two numbers near 1.

exp(x) at a scale of 100 overflows float32, and the maxima of rows and columns differ, so subtracting them would take
two exponentials a pair. One is enough: f_ij = exp(x_ij / 2) stays within exp(+-50), and with a_i of its row's size

    neg_i = 2 log a_i + log sum_j (f_ij / a_i)^2,   a_i = sum_j f_ij                     (3)

does not overflow, and rows and columns share f.    Derivation: docs/gradients/clip.md. Readable form: composed.py
"""

import functools
import math

from ..autograd import op
from ..backend import array_module, parallel_for, require_finite, row_sums, tile_size, workers
from ..signature import Scalar
from .checks import require_logit_scale, require_pairs
from .cosine import l2_normalize
from .pairs import KEEP_BYTES

TINY = 1e-30


@op
def clip_loss(image, text, logit_scale: Scalar, *, caption_ids=None, needs_grad=(True, True, True)):
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): image, text (N, d), logit_scale () -> L ().

    Row i of image belongs to row i of text; rows need not be normalised. logit_scale is the logarithm of 1/tau: a
    Parameter that starts at log(1/0.07) and that CLIP.clamp_logit_scale() holds below log 100 after each step.
    caption_ids (N,) integers, equal where captions are, as data.same_caption_ids gives them; default: all captions
    count as different.

        du_i = exp(logit_scale) (sum_j!=i (p_ij + q_ij) t_j - (2 - p_ii - q_ii) t_i) / 2N      (4)
        dt_j = exp(logit_scale) (sum_i!=j (p_ij + q_ij) u_i - (2 - p_jj - q_jj) u_j) / 2N      (5)
        dlogit_scale = sum_i u_i . du_i                                                        (6)
    """
    require_pairs("clip_loss", image, text, at_least=2)
    require_logit_scale("clip_loss", logit_scale)
    xp, N = array_module(image), len(image)
    if caption_ids is not None and (caption_ids.shape != (N,) or caption_ids.dtype.kind not in "iu"):
        raise ValueError(f"clip_loss: caption_ids must be {N} integers, one a pair, got {caption_ids.dtype} of shape "
                         f"{caption_ids.shape}; make them with data.same_caption_ids(token ids)")
    scale = math.exp(logit_scale) if isinstance(logit_scale, (int, float)) else xp.exp(logit_scale)
    (u, to_image), (t, to_text) = l2_normalize.forward(image), l2_normalize.forward(text)
    pairs = _Pairs(u, t, scale, caption_ids, keep=any(needs_grad))
    x_pos, (neg_row, neg_col) = scale * (u * t).sum(axis=1), pairs.logsumexps()            # (3)
    loss = (xp.logaddexp(neg_row - x_pos, 0) + xp.logaddexp(neg_col - x_pos, 0)).mean() / 2      # (1)
    row, col = xp.logaddexp(neg_row, x_pos), xp.logaddexp(neg_col, x_pos)
    lack = (xp.exp(neg_row - row) + xp.exp(neg_col - col))[:, None]          # 2 - p_ii - q_ii
    require_finite(loss, "clip_loss: the loss")

    def backward(g):
        pull_u, pull_t = pairs.weighted_sums(row, col)                       # (2)
        c = g * scale / (2 * N)
        du = (pull_u - lack * t) * c                                         # (4)
        dt = (pull_t - lack * u) * c                                         # (5)
        return to_image(du)[0], to_text(dt)[0], (u * du).sum()               # (6)

    return loss, backward


class _Pairs:
    """f_ij = exp(x_ij / 2) of all negatives, else 0, in square tiles; each serves its rows and its columns."""

    def __init__(self, u, t, scale, caption_ids, keep):
        self.xp, self.u, self.t, self.u_half, N = array_module(u), u, t, u * (scale / 2), len(u)
        self.caption_ids = caption_ids
        size = tile_size(self.xp, N)
        self.blocks = [slice(lo, min(lo + size, N)) for lo in range(0, N, size)]
        self.kept = {} if keep and N * N * u.itemsize <= KEEP_BYTES else None

    def tile(self, a, b):
        if self.kept and (a.start, b.start) in self.kept:
            return self.kept[a.start, b.start]
        f = self.u_half[a] @ self.t[b].T
        self.xp.exp(f, out=f)
        if self.caption_ids is not None:
            f *= self.caption_ids[a][:, None] != self.caption_ids[b]
        elif a == b:
            f.reshape(-1)[::len(f) + 1] = 0                                  # the diagonal: the pairs themselves
        if self.kept is not None:
            self.kept[a.start, b.start] = f
        return f

    def logsumexps(self):
        """The logarithms of the sums of exp(x_ij) over the negatives of each row, and of each column: (N,) both."""
        xp, u = self.xp, self.u

        def add(a, b, row, col):
            f = self.tile(a, b)
            row[a] = xp.logaddexp(row[a], _log_sum_of_squares(xp, f))
            col[b] = xp.logaddexp(col[b], _log_sum_of_squares(xp, f.T))

        nothing = functools.partial(xp.full, len(u), -math.inf, dtype=u.dtype)           # log 0
        return self._over_tiles(add, nothing, xp.logaddexp)

    def weighted_sums(self, row, col):
        """sum_j (p_ij + q_ij) t_j  and  sum_i (p_ij + q_ij) u_i over the negatives, both (N, d)."""
        xp, u, t = self.xp, self.u, self.t
        row, col = xp.exp(row / -2), xp.exp(col / -2)                        # p_ij = (f_ij row_i)^2, q_ij likewise

        def add(a, b, for_u, for_t):
            f = self.tile(a, b)
            w, q = f * row[a][:, None], f * col[b]
            w *= w
            q *= q
            w += q                                                           # p_ij + q_ij
            for_u[a] += w @ t[b]
            for_t[b] += w.T @ u[a]

        return self._over_tiles(add, functools.partial(xp.zeros_like, u), xp.add)

    def _over_tiles(self, add, nothing, join):
        """Two arrays that begin as nothing() and to which add(a, b, rows, columns) joins the share of each tile.

        The rows of tiles are dealt to threads: all write to one array `rows`, each to `columns` of its own.
        """
        rows, count = nothing(), workers(self.xp, len(self.blocks))

        def worker(k, _):
            columns = nothing()
            for a in self.blocks[k::count]:
                for b in self.blocks:
                    add(a, b, rows, columns)
            return columns

        return rows, functools.reduce(join, parallel_for(self.xp, count, worker, size=1))


def _log_sum_of_squares(xp, f):
    """log sum_j f_ij^2 of each row of f, where the squares themselves may overflow or vanish; f > 1e-22, or 0.

    A row of zeros, with no negative in this tile, gives 3 log TINY = -207: nothing beside a score, which is >= -100.
    """
    a = xp.maximum(row_sums(f), TINY)                                        # quicker than max(axis=1), and as good
    r = f / a[:, None]
    r *= r
    return 2 * xp.log(a) + xp.log(xp.maximum(row_sums(r), TINY))
