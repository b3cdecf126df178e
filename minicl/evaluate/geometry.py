"""The geometry of embeddings on the unit sphere: alignment, uniformity, effective rank.

Features are arrays (N, d) of either backend, normalised here; results are Python floats (so they synchronise).
"""

import math

from ..backend import array_module
from ..contrastive.checks import require_batch, require_pairs
from ..contrastive.cosine import l2_normalize
from ..contrastive import alignment_loss, uniformity_loss


def alignment(z1, z2, *, alpha=2):
    """mean_i |z1^_i - z2^_i|^alpha over positive pairs: 0 when both views coincide (Wang & Isola 2020, section 4.1.1)."""
    require_pairs("alignment", z1, z2)
    return float(alignment_loss.forward(z1, z2, alpha=alpha)[0])


def uniformity(z, *, t=2):
    """log mean_{i != j} exp(-t |z^_i - z^_j|^2): 0 when collapsed, uniformity_floor(d, t) when uniform on the sphere
    (Wang & Isola 2020, section 4.1.2)."""
    require_batch("uniformity", z, at_least=2)
    return float(uniformity_loss.forward(z, t=t, needs_grad=(False,))[0])


def uniformity_floor(d, t=2):
    """The smallest possible uniformity as N grows, reached by the uniform distribution on the sphere in R^d:

        log E exp(-t |x - y|^2) = log 0F1(; d/2; t^2) - 2t
    """
    term = total = 1.0
    for k in range(1, 200):
        term *= t * t / (k * (d / 2 + k - 1))        # 0F1(; b; x) = sum_k x^k / (k! b (b+1) ... (b+k-1))
        total += term
    return math.log(total) - 2 * t


def embedding_std(z):
    """Mean over the d dimensions of the standard deviation of z^, times sqrt(d): 0 when collapsed, near 1 when z^ is
    spread in all directions, and never above (Chen & He 2021, section 4.1, without the factor)."""
    require_batch("embedding_std", z, at_least=1)
    u = l2_normalize.forward(z)[0]
    return float(u.std(axis=0).mean()) * math.sqrt(z.shape[1])


def effective_rank(z):
    """exp of the entropy of the normalised singular values: how many directions are in use, from 1 to d
    (Roy & Vetterli 2007). z (N, d) is centred, not normalised."""
    xp = array_module(z)
    z = (z - z.mean(axis=0)).astype("float64")       # before the product, which squares the spectrum
    s2 = xp.linalg.eigvalsh(z.T @ z)
    s = xp.sqrt(xp.maximum(s2, 0))
    total = float(s.sum())
    if total == 0:
        return 1.0
    p = s / total
    return math.exp(-float((p * xp.log(xp.maximum(p, 1e-300))).sum()))
