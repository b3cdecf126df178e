"""InfoNCE with explicit negatives (van den Oord et al. 2018, eq. 4; MoCo's eq. 1).

Each query picks its positive out of 1 + M candidates, the positive and M negatives. With unit rows q (queries),
k (positives), n (negatives):

    x_i+ = q_i . k_i / tau,   x_ij = q_i . n_j / tau,   lse_i = log sum_j exp(x_ij)

    L = (1/N) sum_i log(1 + exp(lse_i - x_i+))                               (1)

which is the mean of -log p_i+, p_i+ = exp(x_i+) / (exp(x_i+) + sum_j exp(x_ij)). The gradients compare the positive
with m_i, the mean of the negatives weighted by their own softmax r_ij = exp(x_ij - lse_i), m_i = sum_j r_ij n_j:

    dq_i = (1 - p_i+) (m_i - k_i) / (N tau)                                  (2)
    dk_i = -(1 - p_i+) q_i / (N tau)                                         (3)
    dn_j = sum_i r_ij (1 - p_i+) q_i / (N tau)                               (4)
    dtau = -(1/tau) sum_i q_i . dq_i                                         (5)

l2_normalize propagates them to the rows as given. 1 - p_i+ = sigmoid(lse_i - x_i+) is accurate also where p_i+ is near 1.
The tiles are in pairs.py.    Derivation: docs/gradients/info_nce.md
"""

from ..autograd import Tensor, op
from ..backend import array_module, require_finite, row_dots, to_device
from ..distributed import ALONE, World
from ..ops import concat, where
from ..signature import Scalar, accepts_other_names
from ..typing import Array, HostArray
from .checks import checked_by, require_pairs, require_query_ids, require_temperature
from .cosine import cosine_similarity, l2_normalize
from .pairs import QueryPairs
from .softmax import EXCLUDED, log_softmax, softplus


@accepts_other_names
@checked_by("info_nce")
def composed(query: Tensor, positive: Tensor, negatives: Tensor, tau, *, ids: HostArray | None = None,
             negative_ids: HostArray | None = None) -> Tensor:
    """info_nce from small ops: cosines, log-softmax, pick column 0. It holds all N (1 + M) scores."""
    positive_score = (l2_normalize(query) * l2_normalize(positive)).sum(axis=1, keepdims=True)   # (N, 1)
    negative_scores = cosine_similarity(query, negatives)                                        # (N, M)
    if ids is not None:
        same = to_device(ids[:, None] == negative_ids, array_module(query.data))
        negative_scores = where(same, EXCLUDED, negative_scores)
    scores = concat(positive_score, negative_scores, axis=1)                                     # (N, 1 + M)
    return -log_softmax(scores, tau)[:, 0].mean()


@op
def info_nce(query: Array, positive: Array, negatives: Array, tau: Scalar, *, ids: HostArray | None = None,
             negative_ids: HostArray | None = None, world: World = ALONE, needs_grad=(True, True, True, True)):
    """InfoNCE: query (N, d), positive (N, d), negatives (M, d), tau () > 0 -> L ().

    Row i of positive belongs to row i of query; the negatives are shared by all queries. Rows need not be normalised:
    similarities are cosines. Chance is log(1 + M).
    ids (N,) of the items and negative_ids (M,), integers on the host, both or neither: negatives with a query's id are
    left out for that query. A query without negatives has loss and gradients 0; if all of several have none, this raises.
    world: queries, positives and ids are this process's part of the batch; all processes have the same negatives.

    >>> import numpy as np
    >>> z = np.eye(3)
    >>> round(info_nce(z[:1], z[:1], z[1:], 0.5).item(), 4)      # cosine 1 to the positive, 0 to two negatives
    0.2395
    """
    require_temperature("info_nce", tau)
    require_pairs("info_nce", query, positive, world=world)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) < 1:
        raise ValueError(f"info_nce: expected negatives (M, d) with M >= 1 and d = {query.shape[1]}, "
                         f"got {negatives.shape}")
    N = len(query) * world.size
    both_ids = require_query_ids("info_nce", ids, negative_ids, len(query), len(negatives), world)
    q, to_query = l2_normalize.forward(query)
    k, to_positive = l2_normalize.forward(positive)
    pairs = QueryPairs(q, negatives, tau, both_ids)
    ahead, m = pairs.softmax(row_dots(q, k)[:, 0], need_mean=needs_grad[0] or needs_grad[3])      # lse_i - x_i+
    loss_i, one_minus_p = softplus(ahead)
    loss = world.mean(loss_i.mean())                                                     # (1)
    require_finite(loss, "info_nce: the loss")

    def backward(g):
        weight = (one_minus_p * (g / (N * tau)))[:, None]
        dquery = dpositive = dnegatives = dtau = None
        if m is not None:
            dq = weight * (m - k)                                            # (2)
            dquery = to_query(dq)[0]
        if needs_grad[3]:
            dtau = -(q * dq).sum() / tau                                     # (5)
        if needs_grad[1]:
            dpositive = to_positive(-weight * q)[0]                          # (3)
        if needs_grad[2]:
            dnegatives = pairs.to_negatives(weight * q)                      # (4)
        return dquery, dpositive, dnegatives, dtau

    return loss, backward
