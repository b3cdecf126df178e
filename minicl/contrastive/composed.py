"""The losses to read: three small ops each, cosine similarity, log-softmax, pick the positive.

Their gradients come from the tape. `infonce.py` holds the same losses as one op each, derived by hand as a
whole, which never hold the matrix of all pairs; tests hold the two together to 1e-12. Train with those,
understand with these.
"""

import math

from ..backend import array_module
from ..ops import concat, exp, getitem, logsumexp, where
from .checks import require_batch, require_pairs
from .cosine import cosine_similarity, l2_normalize
from .softmax import log_softmax

EXCLUDED = -1e30      # the score of what is no candidate: exp gives 0, yet 0 * EXCLUDED is 0 where 0 * inf is NaN


def info_nce(query, positive, negatives, tau):
    """InfoNCE: pick the positive (N, d) of each query (N, d) from among it and the negatives (M, d).

        L = -(1/N) sum_i log softmax([q_i . k_i, q_i . n_1, ..., q_i . n_M] / tau)_0
    """
    require_pairs("info_nce", query, positive)
    positive_score = (l2_normalize(query) * l2_normalize(positive)).sum(axis=1, keepdims=True)   # (N, 1)
    scores = concat(positive_score, cosine_similarity(query, negatives), axis=1)                 # (N, 1 + M)
    return -log_softmax(scores, tau)[:, 0].mean()


def nt_xent(z1, z2, tau):
    """NT-Xent: z1 (N, d) and z2 (N, d) are two views of N images; each of the 2N is an anchor once, and picks
    its other view from among the 2N - 1 that are not itself.

        L = -(1/2N) sum_i log softmax_{k != i}(s_ik / tau)_p(i),   p(i) = i + N mod 2N
    """
    require_pairs("nt_xent", z1, z2, at_least=2)
    xp, n = array_module(z1.data), len(z1)
    z = concat(z1, z2)                                                       # (2N, d)
    scores = cosine_similarity(z, z)                                         # (2N, 2N)
    scores = where(xp.eye(2 * n, dtype=bool), EXCLUDED, scores)              # no anchor is its own candidate
    positive_ids = (xp.arange(2 * n) + n) % (2 * n)
    return -getitem(log_softmax(scores, tau), key=(xp.arange(2 * n), positive_ids)).mean()


def clip_loss(image, text, logit_scale, caption_ids=None):
    """CLIP: image i (N, d) picks text i (N, d) from among all texts, and text i picks image i from among all images.

        L = -(1/2N) sum_i (log softmax_j(x_ij)_i + log softmax_j(x_ji)_i),   x = exp(logit_scale) cosines

    Other rows with the same caption (equal caption_ids) are no candidates.
    """
    require_pairs("clip_loss", image, text, at_least=2)
    xp, n = array_module(image.data), len(image)
    scale = math.exp(logit_scale) if isinstance(logit_scale, (int, float)) else exp(logit_scale)
    scores = cosine_similarity(image, text) * scale                          # (N, N)
    if caption_ids is not None:
        same = caption_ids[:, None] == caption_ids
        scores = where(same & ~xp.eye(n, dtype=bool), EXCLUDED, scores)
    pick = (xp.arange(n), xp.arange(n))
    return -(log_softmax(scores)[pick] + log_softmax(scores.T)[pick]).mean() / 2


def uniformity_loss(z, t=2):
    """Uniformity: the log of the mean of exp(-t |u_i - u_j|^2) over all i != j, u = z^ (N, d).

        |u_i - u_j|^2 = 2 - 2 s_ij
    """
    require_batch("uniformity_loss", z, at_least=2)
    xp, n = array_module(z.data), len(z)
    potentials = 2 * t * (cosine_similarity(z, z) - 1)                       # (N, N), their logarithms
    potentials = where(xp.eye(n, dtype=bool), EXCLUDED, potentials)          # no point keeps its distance to itself
    return logsumexp(potentials.reshape(n * n), axis=0) - math.log(n * (n - 1))
