"""Relatives of InfoNCE: more positives, no coupling, no softmax, no batch.

`sup_con` and `dcl` are cross-entropies like InfoNCE. Anchor i has candidates C(i) among the unit vectors u, and
weights w_ij on its positives. With s_ij = u_i . u_j, x_ij = s_ij / tau, lse_i = log sum_{j in C(i)} exp(x_ij),
p_ij = exp(x_ij - lse_i) for j in C(i), else 0, and w_i = sum_j w_ij:

    L = sum_i w_i lse_i - sum_ij w_ij x_ij                                   (1)
    G_ij = dL/ds_ij = (w_i p_ij - w_ij) / tau                                (2)
    du_i = sum_j (G_ij + G_ji) u_j                                           (3)
    dtau = -(1/tau) sum_ij s_ij G_ij                                         (4)

NT-Xent is w_ij = [j = p(i)] / 2N with C(i) = all but i. `siglip` asks of each pair by itself whether it belongs
together; `triplet` compares one positive with one negative. All but the last hold the matrix of all pairs: they are
written to be read, and good for batches of some thousands.    Derivations: docs/gradients/variants.md
"""

import math

import numpy as np

from ..autograd import op
from ..backend import array_module, require_finite, to_device
from ..signature import Scalar
from .checks import require_batch, require_logit_scale, require_number, require_pairs, require_temperature
from .cosine import cosine_similarity, l2_normalize

SIGLIP_LOGIT_SCALE, SIGLIP_BIAS = math.log(10), -10.0      # where they start: all pairs are taken for negatives


@op
def sup_con(z, tau: Scalar, *, labels):
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): z (V, d), tau () > 0 -> L ().

    Use it when classes are known: every item of an anchor's class is a positive.

        w_ij = [j in P(i)] / (A |P(i)|),   P(i) = {j != i of i's class}      (5)

    labels: host array (V,) of integers, one a row of z (both views of an image have its label). The mean is over the
    A anchors that have a positive; the others serve as negatives only. Raises ValueError if none has: labels are on
    the host so that this can be seen without waiting for a GPU. With a label of its own for each image it is nt_xent.
    """
    require_temperature("sup_con", tau)
    require_batch("sup_con", z, at_least=2)
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape == (len(z),)):
        got = f"{type(labels).__module__} {type(labels).__name__} of shape {getattr(labels, 'shape', 'unknown')}"
        raise ValueError(f"sup_con: expected labels, a host (numpy) array of {len(z)} integers, one a row of z, got "
                         f"{got}; two views of a batch have np.concatenate([labels, labels])")
    count = np.unique(labels, return_counts=True)[1]
    A = int(count[count > 1].sum())
    if A == 0:
        raise ValueError(f"sup_con: no anchor has a positive, all {len(z)} labels differ; give two views of each "
                         "item, or batches in which classes repeat")
    xp, ids = array_module(z), to_device(labels, array_module(z))
    others = ~xp.eye(len(z), dtype=bool)
    positive = ((ids[:, None] == ids) & others).astype(z.dtype)              # (V, V)
    w = positive / xp.maximum(A * positive.sum(axis=1, keepdims=True), 1)    # (5)
    return _cross_entropy("sup_con", z, tau, w, candidates=others)


@op
def dcl(z1, z2, tau: Scalar):
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): z1, z2 (N, d), two views of N items, tau () > 0 -> L ().

    Use it with small batches: NT-Xent without the positive in the denominator.

        w_ij = [j = p(i)] / 2N,   C(i) = all but i and p(i),   p(i) = i + N  (6)

    In NT-Xent both push and pull of an anchor carry 1 - p_i+, little once the few negatives of a small batch are
    easily told apart. Here the positive is no candidate: pull and push keep their strength. L may fall below 0.
    """
    require_temperature("dcl", tau)
    require_pairs("dcl", z1, z2, at_least=2)
    xp, N = array_module(z1), len(z1)
    itself = xp.eye(2 * N, dtype=bool)
    positive = xp.concatenate([itself[N:], itself[:N]])                      # [j = i + N mod 2N]
    w = positive.astype(z1.dtype) / (2 * N)                                  # (6)
    loss, to_z = _cross_entropy("dcl", xp.concatenate([z1, z2]), tau, w, candidates=~(itself | positive))

    def backward(g):
        dz, dtau = to_z(g)
        return dz[:N], dz[N:], dtau

    return loss, backward


def _cross_entropy(name, z, tau, w, candidates):
    """(1) and its backward, to z (V, d) and tau, for weights w (V, V) and a mask of candidates (V, V)."""
    xp = array_module(z)
    u, to_z = l2_normalize.forward(z)
    s = u @ u.T
    x = xp.where(candidates, s / tau, -math.inf)
    top = x.max(axis=1, keepdims=True)
    p = xp.exp(x - top)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    w_i = w.sum(axis=1, keepdims=True)
    loss = (w_i * (top + xp.log(total))).sum() - (w * s).sum() / tau         # (1)
    require_finite(loss, f"{name}: the loss")

    def backward(g):
        G = (w_i * p - w) * (g / tau)                                        # (2)
        dz = to_z((G + G.T) @ u)[0]                                          # (3)
        return dz, -(s * G).sum() / tau                                      # (4)

    return loss, backward


@op
def siglip(x, y, logit_scale: Scalar, bias: Scalar):
    """Sigmoid loss of all pairs (Zhai et al. 2023, algorithm 1): x, y (N, d), logit_scale (), bias () -> L ().

    Use it for images and texts when batches are spread over machines: no pair needs another pair's score.

        L = (1/N) sum_ij log(1 + exp(-m_ij)),   m_ij = c_ij l_ij             (7)
        G_ij = dL/dl_ij = -c_ij sigmoid(-m_ij) / N                           (8)
        du_i = t sum_j G_ij v_j,   dv_j = t sum_i G_ij u_i                   (9)
        dlogit_scale = t sum_ij G_ij s_ij,   dbias = sum_ij G_ij               (10)

    u = x^, v = y^, s_ij = u_i . v_j; scores l_ij = t s_ij + b with t = exp(logit_scale), b = bias; c_ij = 1 where
    i = j, else -1. Both are learned, from SIGLIP_LOGIT_SCALE and SIGLIP_BIAS: of N^2 pairs N are positive, and b says
    so from the start.
    """
    require_pairs("siglip", x, y)
    require_logit_scale("siglip", logit_scale)
    require_number("siglip", "bias", bias)
    xp, N = array_module(x), len(x)
    (u, to_x), (v, to_y) = map(l2_normalize.forward, (x, y))
    t = xp.exp(xp.asarray(logit_scale, dtype=x.dtype))
    s = u @ v.T
    c = 2 * xp.eye(N, dtype=x.dtype) - 1
    m = c * (t * s + bias)
    e = xp.exp(-xp.abs(m))                                                   # at most 1
    loss = (xp.maximum(-m, 0) + xp.log1p(e)).sum() / N                       # (7)
    require_finite(loss, "siglip: the loss")

    def backward(g):
        G = c * xp.where(m < 0, 1, e) / (1 + e) * (-g / N)                   # (8)
        dx, dy = to_x(t * (G @ v))[0], to_y(t * (G.T @ u))[0]                # (9)
        return dx, dy, t * (G * s).sum(), G.sum()                            # (10)

    return loss, backward


@op
def triplet(anchor, positive, negative, *, margin=0.2):
    """Triplet loss (Schroff et al. 2015, FaceNet, eq. 3) of unit vectors: three (N, d), margin > 0 -> L () >= 0.

    Use it when similarity comes as comparisons, "i is more like p than like n", or to see what InfoNCE improved on.

        L = (1/N) sum_i max(0, |a_i - p_i|^2 - |a_i - n_i|^2 + margin)       (11)
        da_i = 2 (n_i - p_i)/N,   dp_i = 2 (p_i - a_i)/N,   dn_i = 2 (a_i - n_i)/N   (12)

    (12) where the maximum is not 0: a triplet that is right by the margin teaches nothing, and most soon are. Hence
    mining: negative = positive[semi_hard_negatives(anchor.data, positive.data)].
    """
    require_pairs("triplet", anchor, positive)
    require_pairs("triplet", anchor, negative)
    require_number("triplet", "margin", margin, above=0)
    N = len(anchor)
    (a, to_anchor), (p, to_positive), (n, to_negative) = map(l2_normalize.forward, (anchor, positive, negative))
    short = ((a - p)**2 - (a - n)**2).sum(axis=1, keepdims=True) + margin    # (N, 1): by how much it is not yet right
    wrong = short > 0
    loss = (short * wrong).mean()                                            # (11)
    require_finite(loss, "triplet: the loss")

    def backward(g):
        c = wrong * (2 * g / N)
        return to_anchor(c * (n - p))[0], to_positive(c * (p - a))[0], to_negative(c * (a - n))[0]       # (12)

    return loss, backward


def semi_hard_negatives(anchor, positive):
    """For each row of the array anchor (N, d), the id (N,) of another row of positive to serve as its negative.

    Semi-hard: the most similar of those that are less similar than the anchor's own positive; where there is none,
    the least similar. The very hardest collapse the embedding (Schroff et al. 2015, section 3.2).
    """
    require_pairs("semi_hard_negatives", anchor, positive, at_least=2)
    xp, own = array_module(anchor), array_module(anchor).arange(len(anchor))
    s = cosine_similarity.forward(anchor, positive)[0]
    rank = xp.where(s < s[own, own][:, None], s, -4 - s)                     # cosines first, then upside down
    rank[own, own] = -math.inf
    return rank.argmax(axis=1)
