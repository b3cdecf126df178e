"""Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): every item of an anchor's class is a positive.

Unit rows u (V, d) with labels. P(i) is the set of the j != i of i's class, A the number of anchors that have one. With
s_ij = u_i . u_j, x_ij = s_ij / tau, lse_i = log sum_{j != i} exp(x_ij), p_ij = exp(x_ij - lse_i), w_i = sum_j w_ij:

    w_ij = [j in P(i)] / (A |P(i)|)                                          (1)
    L = sum_i w_i lse_i - sum_ij w_ij x_ij                                   (2)
    G_ij = dL/ds_ij = (w_i p_ij - w_ij) / tau                                (3)
    du_i = sum_j (G_ij + G_ji) u_j                                           (4)
    dtau = -(1/tau) sum_ij s_ij G_ij                                         (5)

With base_temperature b the loss is (tau/b) L, as in the authors' code. With a different label for each image it is nt_xent
for any number of views: z = [view1; view2; view3], labels the image ids, tiled. In float32 a loss below 1e-5 has lost digits
here that nt_xent keeps. The matrix of all pairs is stored, so use it for batches up to some thousands.
Derivation: docs/gradients/sup_con.md
"""

import math

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, require_finite, refuse_capture, to_device
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import where
from ..signature import Scalar, accepts_other_names, is_plain_array
from ..typing import Array, HostArray
from .checks import checked_by, require_batch, require_temperature
from .cosine import cosine_similarity, l2_normalize
from .softmax import EXCLUDED, log_softmax


@accepts_other_names
@checked_by("sup_con")
def composed(z: Tensor, tau, *, labels: HostArray, base_temperature: float | None = None) -> Tensor:
    """sup_con from small ops: cosines, log-softmax over the others, the mean over each anchor's positives."""
    xp = array_module(z.data)
    w, itself = _weights(xp, labels, z.dtype)
    scores = where(itself, EXCLUDED, cosine_similarity(z, z))
    loss = -(log_softmax(scores, tau) * w).sum()
    return loss if base_temperature is None else loss * tau / base_temperature


@op
def sup_con(z: Array, tau: Scalar, *, labels: HostArray, base_temperature: float | None = None,
            world: World = ALONE):
    """Supervised contrastive loss: z (V, d), tau () > 0, labels (V,) -> L ().

    For data with labels: a host array of integers, one a row of z (both views of an image have its label). Equal ones are a
    class, also -1: leave out items without a label, or give each a number of its own. The mean is
    over the anchors with a positive; the others are negatives only. Raises ValueError if no anchor has one; labels are on
    the host so that this check does not wait for a GPU.
    base_temperature > 0: multiply the loss by tau / base_temperature; None: do not.
    world: z and labels are this process's part of the batch; its rows are the anchors that it scores against all.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    >>> round(sup_con(z, 1.0, labels=np.array([0, 0, 1, 1])).item(), 4)      # log(1 + 2 exp(-2))
    0.2395
    """
    require_temperature("sup_con", tau)
    require_batch("sup_con", z, at_least=2, world=world)
    if base_temperature is not None:
        require_within("sup_con", "[1e-30, inf)", base_temperature=base_temperature)
    _require_labels(labels, len(z), world)
    xp = array_module(z)
    b = base_temperature
    w, itself = _weights(xp, labels, z.dtype, world)                         # (1)
    w_i = w.sum(axis=1, keepdims=True)
    u, to_z = l2_normalize.forward(z)
    all_u = world.all_gather(u)                                              # the candidates
    s = u @ all_u.T
    s -= xp.where(itself, -math.inf, s).max(axis=1, keepdims=True)           # a shift of a row's cosines changes nothing
    p = xp.exp(xp.where(itself, -math.inf, s / tau))
    total = p.sum(axis=1, keepdims=True)
    p /= total
    L = (w_i * xp.log(total)).sum() - (w * s).sum() / tau                    # (2)
    factor = 1 if b is None else tau / b
    loss = world.sum(factor * L)
    require_finite(loss, "sup_con: the loss")

    def backward(g):
        G = (w_i * p - w) * (g * factor / tau)                               # (3)
        du = (G + G.T) @ u if world.size == 1 else G @ all_u + world.reduce_scatter(G.T @ u)     # (4)
        mean = (p * s).sum(axis=1, keepdims=True)                            # a shift again, for less rounding
        dtau = -((s - mean) * G).sum() / tau                                 # (5)
        return to_z(du)[0], dtau if b is None else dtau + g * L / b

    return loss, backward


def _weights(xp, labels, dtype, world=ALONE):
    """w of (1), and a mask of the pairs of a row with itself; for this process's rows."""
    all_labels = world.all_gather(labels)
    ids = to_device(all_labels, xp)
    itself = world.rows(xp.eye(len(all_labels), dtype=bool))
    positive = ((world.rows(ids)[:, None] == ids) & ~itself).astype(dtype)
    count = np.unique(all_labels, return_counts=True)[1]
    A = int(count[count > 1].sum())
    return positive / xp.maximum(A * positive.sum(axis=1, keepdims=True), 1), itself


def _require_labels(labels, V, world):
    refuse_capture("sup_con takes labels from the host")
    if not (isinstance(labels, np.ndarray) and is_plain_array(labels)
            and labels.dtype.kind in "iu" and labels.shape == (V,)):
        got = f"{type(labels).__module__} {type(labels).__name__} of shape {getattr(labels, 'shape', 'unknown')}"
        raise ValueError(f"sup_con: expected labels, a host (numpy) array of {V} integers, one per row of z, got "
                         f"{got}; for two views of a batch pass np.concatenate([labels, labels])")
    if len(np.unique(world.all_gather(labels))) == V * world.size:
        raise ValueError(f"sup_con: no anchor has a positive, all {V * world.size} labels differ; give two views of each "
                         "item, or batches in which classes repeat")
