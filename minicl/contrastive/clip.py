"""CLIP's loss (Radford et al. 2021, figure 3): images pick their captions, captions pick their images.

Unit rows u (images) and t (texts) of N pairs, x_ij = exp(logit_scale) u_i . t_j, and two softmaxes of these scores:
p_ij, the probability that image i picks text j, and q_ij, that text j picks image i. Over the negatives,

    row_i = log sum_{j != i} exp(x_ij),   col_j = log sum_{i != j} exp(x_ij)

    L = (1/2N) sum_i (log(1 + exp(row_i - x_ii)) + log(1 + exp(col_i - x_ii)))             (1)

the mean of -log p_ii and -log q_ii. With p_ij = (1 - p_ii) exp(x_ij - row_i), q_ij = (1 - q_jj) exp(x_ij - col_j):

    du_i = exp(logit_scale) (sum_{j != i} (p_ij + q_ij) t_j - (2 - p_ii - q_ii) t_i) / 2N    (2)
    dt_j = exp(logit_scale) (sum_{i != j} (p_ij + q_ij) u_i - (2 - p_jj - q_jj) u_j) / 2N    (3)
    dlogit_scale = sum_i u_i . du_i                                                          (4)

Captions repeat. If rows i and j have the same caption, text j is correct for image i, and image j for text i. Such pairs
are not negatives and are left out of both sums. The tiles are in pairs.py.    Derivation: docs/gradients/clip.md
"""

import math

from ..autograd import Tensor, op
from ..backend import array_module, require_finite
from ..checks import is_number
from ..distributed import ALONE, World
from ..ops import exp, where
from ..signature import Scalar
from ..typing import Array
from .checks import checked_by, require_caption_ids, require_logit_scale, require_pairs
from .cosine import cosine_similarity, l2_normalize
from .pairs import CrossPairs
from .softmax import EXCLUDED, log_softmax, softplus


@checked_by("clip_loss")
def composed(image: Tensor, text: Tensor, logit_scale, *, caption_ids: Array | None = None) -> Tensor:
    """clip_loss from small ops: cosines, log-softmax of rows and of columns, pick the diagonal. It holds N^2 scores."""
    xp = array_module(image.data)
    N = len(image)
    scale = math.exp(logit_scale) if is_number(logit_scale) else exp(logit_scale)
    scores = cosine_similarity(image, text) * scale                          # (N, N)
    if caption_ids is not None:
        same = caption_ids[:, None] == caption_ids
        scores = where(same & ~xp.eye(N, dtype=bool), EXCLUDED, scores)
    pick = (xp.arange(N), xp.arange(N))
    return -(log_softmax(scores)[pick] + log_softmax(scores.T)[pick]).mean() / 2


@op
def clip_loss(image: Array, text: Array, logit_scale: Scalar, *, caption_ids: Array | None = None,
              world: World = ALONE, needs_grad=(True, True, True)):
    """CLIP's loss: image, text (N, d), logit_scale () -> L ().

    Row i of image belongs to row i of text; rows need not be normalised. logit_scale is log(1/tau): a Parameter that starts
    at log(1/0.07), limited to log 100 by CLIP.clamp_logit_scale() after each step.
    caption_ids (N,) integers, equal for equal captions, from data.same_caption_ids; default: all captions differ.
    Chance is log N. A batch of one has no negatives: its loss and gradients are 0. So are those of several pairs of one
    caption, which raise an error where caption_ids are on the host.
    world: the rows are this process's part of the batch. It gathers the texts, scores its own images, adds up the columns
    with the other processes, and scatters the sums of (3) to the processes of the texts.

    >>> import math, numpy as np
    >>> z = np.eye(4)
    >>> round(clip_loss(z, z, math.log(2)).item(), 4)            # scores 2 for the pairs, 0 for all others
    0.3408
    """
    require_pairs("clip_loss", image, text, world=world)
    require_logit_scale("clip_loss", logit_scale)
    require_caption_ids("clip_loss", caption_ids, len(image), world)
    xp = array_module(image)
    N = len(image) * world.size
    scale = math.exp(logit_scale) if is_number(logit_scale) else xp.exp(logit_scale)
    u, to_image = l2_normalize.forward(image)
    t, to_text = l2_normalize.forward(text)
    pairs = CrossPairs(u, t, scale, caption_ids, cache=any(needs_grad), world=world)
    x_pos = scale * (u * t).sum(axis=1)
    row, col = pairs.logsumexps()
    loss_row, one_minus_p = softplus(row - x_pos)
    loss_col, one_minus_q = softplus(world.rows(col) - x_pos)
    loss = world.mean((loss_row + loss_col).mean() / 2)                      # (1)
    require_finite(loss, "clip_loss: the loss")

    def backward(g):
        sum_t, sum_u = pairs.weighted_sums(one_minus_p, world.all_gather(one_minus_q))
        weight = (one_minus_p + one_minus_q)[:, None]
        c = g * scale / (2 * N)
        du = (sum_t - weight * t) * c                                        # (2)
        dt = (world.reduce_scatter(sum_u) - weight * u) * c                                        # (3)
        return to_image(du)[0], to_text(dt)[0], (u * du).sum()               # (4)

    return loss, backward
