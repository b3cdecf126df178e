"""VICReg (Bardes et al. 2022, algorithm 1): each dimension varies, and no two of them together. It has no negatives.

InfoNCE compares the rows of Z (N, d), images; VICReg its columns, features. If every column varies and no two are
correlated, the embeddings cannot collapse. Rows are not normalised.

    L = invariance mean_ia (z1_ia - z2_ia)^2 + R(z1) + R(z2)                 (1)
    R(z) = (variance/d) sum_a max(0, 1 - std_a) + (covariance/d) sum_{a != b} C_ab^2     (2)
    dR/dz_ia = (4 covariance sum_{b != a} C_ab m_ib - variance [std_a < 1] m_ia / std_a) / (d (N - 1))     (3)

m = z minus its column means, C = m^T m / (N - 1), std_a = sqrt(C_aa + eps). The first term averages over d too, as in the
paper's algorithm, for which the weights 25, 25, 1 are meant (its equation 5 sums). The authors' published code also
halves the variance term: variance=12.5 gives its loss.    Derivation: docs/gradients/vicreg.md
"""

from ..autograd import Tensor, op
from ..backend import array_module, products_of_columns, require_finite
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import maximum, sqrt
from ..typing import Array
from .checks import checked_by, require_pairs


@checked_by("vicreg")
def composed(z1: Tensor, z2: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0,
             eps: float = 1e-4) -> Tensor:
    """vicreg from small ops: distances, standard deviations and covariances."""
    xp = array_module(z1.data)
    N, d = z1.shape
    eye = xp.eye(d, dtype=z1.dtype)
    loss = invariance * ((z1 - z2)**2).mean()
    for z in (z1, z2):
        m = z - z.mean(axis=0)
        C = m.T @ m / (N - 1)                                                # (d, d)
        std = sqrt((C * eye).sum(axis=0) + eps)
        loss = loss + variance * maximum(1 - std, 0.0).mean() + covariance / d * ((C * (1 - eye))**2).sum()
    return loss


@op
def vicreg(z1: Array, z2: Array, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0,
           eps: float = 1e-4, world: World = ALONE):
    """VICReg: two views z1, z2 (N, d) of N >= 2 items, the weights of the three terms >= 0, eps >= 1e-30 -> L () >= 0.

    It suits branches of different kind or size, since each is regularised separately. world: z1 and z2 are this process's
    part of the batch; C is that of the whole batch.

    >>> import numpy as np
    >>> round(vicreg(np.ones((4, 3)), np.ones((4, 3))).item(), 4)            # collapse: 2 * 25 * (1 - sqrt(eps))
    49.5
    """
    require_pairs("vicreg", z1, z2, at_least=2, because="one item has no variance", world=world)
    require_within("vicreg", "[0, inf)", invariance=invariance, variance=variance, covariance=covariance)
    require_within("vicreg", "[1e-30, inf)", eps=eps)
    apart = z1 - z2
    R1, to_z1 = _regularise(z1, variance, covariance, eps, world)
    R2, to_z2 = _regularise(z2, variance, covariance, eps, world)
    loss = invariance * world.mean((apart * apart).mean()) + R1 + R2         # (1)
    require_finite(loss, "vicreg: the loss")

    def backward(g):
        dapart = (2 * invariance * g / (apart.size * world.size)) * apart
        return to_z1(g) + dapart, to_z2(g) - dapart

    return loss, backward


def _regularise(z, variance, covariance, eps, world):
    """R of (2) and its backward."""
    xp = array_module(z)
    N = len(z) * world.size
    d = z.shape[1]
    m = z - world.mean(z.mean(axis=0))
    m -= world.mean(m.mean(axis=0))                                          # the rounding error of the first mean
    C = world.sum(products_of_columns(m, m)) / (N - 1)                       # (d, d)
    std = xp.sqrt(C.diagonal() + eps)
    C = C * (1 - xp.eye(d, dtype=z.dtype))                                   # off the diagonal
    R = (variance * xp.maximum(1 - std, 0).sum() + covariance * (C * C).sum()) / d       # (2)

    def backward(g):
        return (4 * covariance * (m @ C) - variance * (m * ((std < 1) / std))) * (g / (d * (N - 1)))     # (3)

    return R, backward
