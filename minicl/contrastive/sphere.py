"""Alignment and uniformity: what a contrastive loss wants, as two losses (Wang & Isola 2020).

On the unit sphere, where |u - v|^2 = 2 - 2 u . v, views of one image should meet (alignment) and all images should
keep their distance (uniformity). Alignment alone is best served by one point for everything: collapse. Uniformity
alone spreads the images without regard to what is alike. With many negatives InfoNCE tends to a sum of two such terms
(theorem 1).

The two are also the halves of one gradient. Alignment is the pull of the positive; uniformity is the push of the
negatives, with one softmax over all pairs where NT-Xent has one for each anchor. evaluate.alignment and
evaluate.uniformity are the same formulas as figures.    Derivations: docs/gradients/sphere.md
"""

import math

from ..autograd import op
from ..backend import array_module, require_finite
from .checks import require_batch, require_number, require_pairs
from .cosine import l2_normalize
from .pairs import SymmetricPairs


@op
def alignment_loss(z1, z2, *, alpha=2):
    """Mean distance between the two views of an item, to the power alpha > 0: z1, z2 (N, d) -> L () >= 0.

        L = (1/N) sum_i |u_i - v_i|^alpha,   u = z1^, v = z2^                (1)
        du_i = -dv_i = (alpha/N) |u_i - v_i|^(alpha - 2) (u_i - v_i)         (2)

    With alpha = 2, L = 2 - 2 cos: the pull is the distance still to go. Views that coincide get no gradient, also
    for alpha < 2, where (2) has no limit of its own.    Source: Wang & Isola 2020, section 4.1.1
    """
    require_pairs("alignment_loss", z1, z2)
    require_number("alignment_loss", "alpha", alpha, above=0)
    xp, N = array_module(z1), len(z1)
    u, to_z1 = l2_normalize.forward(z1)
    v, to_z2 = l2_normalize.forward(z2)
    apart = u - v                                                            # (N, d)
    squared = (apart * apart).sum(axis=1, keepdims=True)                     # (N, 1)
    loss = (squared**(alpha / 2)).mean()                                     # (1)
    require_finite(loss, "alignment_loss: the loss")

    def backward(g):
        nonzero = xp.maximum(squared, xp.finfo(u.dtype).tiny)                # 0 to a negative power is infinite
        du = (g * alpha / N) * nonzero**(alpha / 2 - 1) * apart              # (2)
        return to_z1(du)[0], to_z2(-du)[0]

    return loss, backward


@op
def uniformity_loss(z, *, t=2, needs_grad=(True,)):
    """Log of the mean Gaussian potential between different items: z (N, d), t > 0 -> L () <= 0, 0 when collapsed.

        L = log mean_{i != j} e_ij,   e_ij = exp(-t |u_i - u_j|^2)           (3)
        du_i = 2t sum_j (q_ij + q_ji) u_j,   q_ij = e_ij / sum_kl e_kl       (4)

    Since |u_i - u_j|^2 = 2 - 2 s_ij, e_ij = exp((s_ij - 1) / tau) with tau = 1/(2t): the exponentials are NT-Xent's,
    and so is the code (the readable form: composed.py). As N grows L cannot fall below uniformity_floor(d, t) of
    evaluate/, the value of points spread evenly; a few points can.    Source: Wang & Isola 2020, section 4.1.2
    """
    require_batch("uniformity_loss", z, at_least=2)
    require_number("uniformity_loss", "t", t, above=0)
    xp, N = array_module(z), len(z)
    u, to_z = l2_normalize.forward(z)
    pairs = SymmetricPairs(u, tau=1 / (2 * t), keep=needs_grad[0])
    lse = pairs.logsumexp()                                                  # (N,): of 2t s_ij over j
    top = lse.max()
    total = top + xp.log(xp.exp(lse - top).sum())                            # over all pairs
    loss = total - 2 * t - math.log(N * (N - 1))                             # (3)
    require_finite(loss, "uniformity_loss: the loss")

    def backward(g):
        du = 2 * t * g * pairs.weighted_sum(xp.broadcast_to(total, (N,)))           # (4)
        return (to_z(du)[0],)

    return loss, backward


def negative_cosine(prediction, target):
    """-(1/N) sum_i p^_i . t^_i for two Tensors (N, d): the loss of BYOL (but for 2 - 2 cos) and SimSiam, in [-1, 1].

    Half the alignment loss, less 1. The target is a constant, whatever it was computed from: this detach is the
    stop-gradient, without which both methods collapse (Chen & He 2021, section 4.1).
    """
    return 0.5 * alignment_loss(prediction, target.detach()) - 1
