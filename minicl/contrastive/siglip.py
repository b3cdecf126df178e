"""SigLIP's loss (Zhai et al. 2023, algorithm 1): a binary classification of each pair of image and text.

Unit rows u (images) and v (texts) of N pairs, scores s_ij = u_i . v_j, l_ij = t s_ij + bias with t = exp(logit_scale),
and c_ij = 1 where i = j, else -1:

    L = (1/N) sum_ij log(1 + exp(-m_ij)),   m_ij = c_ij l_ij                 (1)
    G_ij = dL/dl_ij = -c_ij sigmoid(-m_ij) / N                               (2)
    du_i = t sum_j G_ij v_j,   dv_j = t sum_i G_ij u_i                       (3)
    dlogit_scale = t sum_ij G_ij s_ij,   dbias = sum_ij G_ij                 (4)

Both scalars are learned, starting at SIGLIP_LOGIT_SCALE and SIGLIP_BIAS, a bias that fits N positives among N^2 pairs.
Different rows with the same caption are left out of the sums, as in clip_loss: they are not negatives. The matrix of all
pairs is stored, so use it for batches up to some thousands.    Derivation: docs/gradients/siglip.md
"""

import math

from ..autograd import Tensor, op
from ..backend import array_module, require_finite
from ..checks import is_number
from ..distributed import ALONE, World
from ..ops import abs as absolute
from ..ops import exp, log, maximum
from ..signature import Scalar
from ..typing import Array
from .checks import checked_by, require_caption_ids, require_logit_scale, require_pairs, require_scalar
from .cosine import cosine_similarity, l2_normalize
from .softmax import softplus

SIGLIP_LOGIT_SCALE = math.log(10)          # initial values: all pairs are classified as negatives
SIGLIP_BIAS = -10.0


@checked_by("siglip")
def composed(x: Tensor, y: Tensor, logit_scale, bias, *, caption_ids: Array | None = None) -> Tensor:
    """siglip from small ops: cosines, scores, and a logistic loss of each."""
    scale = math.exp(logit_scale) if is_number(logit_scale) else exp(logit_scale)
    c = _signs(array_module(x.data), len(x), x.dtype, caption_ids)
    m = (cosine_similarity(x, y) * scale + bias) * c                         # (N, N)
    losses = maximum(-m, 0.0) + log(exp(-absolute(m)) + 1)                   # log(1 + exp(-m)) without overflow
    return (losses * abs(c)).sum() / len(x)


@op
def siglip(x: Array, y: Array, logit_scale: Scalar, bias: Scalar, *, caption_ids: Array | None = None,
           world: World = ALONE):
    """Sigmoid loss of all pairs: x, y (N, d), logit_scale (), bias () -> L ().

    It suits batches spread over machines, since no pair needs another pair's score. Row i of x belongs to row i of y; rows
    need not be normalised. caption_ids as in clip_loss. world: the rows are this process's part of the batch; it scores
    its x against the y of all.

    >>> import numpy as np
    >>> z = np.eye(4)
    >>> round(siglip(z, z, SIGLIP_LOGIT_SCALE, SIGLIP_BIAS).item(), 4)       # each positive costs log 2
    0.6933
    """
    require_pairs("siglip", x, y, world=world)
    require_logit_scale("siglip", logit_scale)
    require_scalar("siglip", "bias", bias)
    require_caption_ids("siglip", caption_ids, len(x), world)
    xp = array_module(x)
    N = len(x) * world.size
    u, to_x = l2_normalize.forward(x)
    v, to_y = l2_normalize.forward(y)
    v = world.all_gather(v)                                                  # (N, d)
    t = xp.exp(xp.asarray(logit_scale, dtype=x.dtype))
    s = u @ v.T
    c = _signs(xp, len(x), x.dtype, caption_ids, world)
    losses, sigmoid = softplus(c * (-t * s - bias))
    if caption_ids is not None:
        losses *= xp.abs(c)
    loss = world.sum(losses.sum() / N)                                                  # (1)
    require_finite(loss, "siglip: the loss")

    def backward(g):
        G = c * sigmoid * (-g / N)                                           # (2)
        dx, dy = to_x(t * (G @ v))[0], to_y(world.reduce_scatter(t * (G.T @ u)))[0]      # (3)
        return dx, dy, t * (G * s).sum(), G.sum()                            # (4)

    return loss, backward


def _signs(xp, n, dtype, caption_ids, world=ALONE):
    """c (n, N): 1 for a row's own pair, 0 where another row has the same caption, else -1."""
    itself = world.rows(xp.eye(n * world.size, dtype=dtype))
    if caption_ids is None:
        return 2 * itself - 1
    return 2 * itself - 1 + ((caption_ids[:, None] == world.all_gather(caption_ids)) - itself)
