"""Collapse prevented without negatives: by what the d dimensions do over the batch (Barlow Twins, VICReg).

InfoNCE compares rows of Z (N, d), images; these compare its columns, features. If each column varies and no two say
the same, the embeddings cannot all be one point. The matrix is d x d, not N x N: batches may be small and d large.
Neither normalises rows; z may have any length.    Derivations: docs/gradients/variants.md
"""

from ..autograd import op
from ..backend import array_module, require_finite
from ..ops.normalize import batch_norm
from .checks import require_batch, require_number, require_pairs


@op
def vicreg(z1, z2, *, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4):
    """VICReg (Bardes et al. 2022, algorithm 1): z1, z2 (N, d), two views of N items, N >= 2 -> L () >= 0.

    Use it where the two branches differ in kind or size: each is kept from collapse on its own.

        L = invariance mean_ia (z1_ia - z2_ia)^2 + R(z1) + R(z2)             (13)
        R(z) = (variance/d) sum_a max(0, 1 - sd_a) + (covariance/d) sum_{a != b} C_ab^2      (14)
        dR/dz_ia = (4 covariance sum_{b != a} C_ab m_ib - variance [sd_a < 1] m_ia / sd_a) / (d (N - 1))      (15)

    m = z less its column means, C = m^T m / (N - 1), sd_a = sqrt(C_aa + eps). The first term averages over d too, as
    the paper's algorithm and code do: the weights 25, 25, 1 belong to that form (its equation 5 sums).
    """
    _require_views("vicreg", z1, z2)
    for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        require_number("vicreg", name, weight)
    apart = z1 - z2
    (R1, to_z1), (R2, to_z2) = (_spread(z, variance, covariance, eps) for z in (z1, z2))
    loss = invariance * (apart * apart).mean() + R1 + R2                     # (13)
    require_finite(loss, "vicreg: the loss")

    def backward(g):
        pull = (2 * invariance * g / apart.size) * apart
        return to_z1(g) + pull, to_z2(g) - pull

    return loss, backward


def _spread(z, variance, covariance, eps):
    """R of (14) and its backward."""
    xp, (N, d) = array_module(z), z.shape
    m = z - z.mean(axis=0)
    C = m.T @ m / (N - 1)                                                    # (d, d)
    sd = xp.sqrt(C.diagonal() + eps)
    C = C * (1 - xp.eye(d, dtype=z.dtype))                                   # off the diagonal
    R = (variance * xp.maximum(1 - sd, 0).sum() + covariance * (C * C).sum()) / d                            # (14)

    def backward(g):
        return (4 * covariance * (m @ C) - variance * (m * ((sd < 1) / sd))) * (g / (d * (N - 1)))           # (15)

    return R, backward


@op
def barlow_twins(z1, z2, *, off_diagonal=5e-3, eps=1e-5):
    """Barlow Twins (Zbontar et al. 2021, eq. 1): z1, z2 (N, d), two views of N items, N >= 2 -> L () >= 0.

    Use it for the plainest loss without negatives: the views' correlation matrix should be the identity.

        L = sum_a (1 - C_aa)^2 + off_diagonal sum_{a != b} C_ab^2            (16)
        D_ab = dL/dC_ab = 2 (C_aa - 1) for a = b, else 2 off_diagonal C_ab   (17)
        dx_ia = (1/N) sum_b D_ab y_ib,   dy_ib = (1/N) sum_a D_ab x_ia       (18)

    x, y = z1, z2 with each column at mean 0 and variance 1 over the batch (batch_norm's formula, which carries the
    gradients on), C = x^T y / N.
    """
    _require_views("barlow_twins", z1, z2)
    require_number("barlow_twins", "off_diagonal", off_diagonal)
    xp, (N, d) = array_module(z1), z1.shape
    one, zero = xp.ones(d, dtype=z1.dtype), xp.zeros(d, dtype=z1.dtype)
    (x, to_z1), (y, to_z2) = (batch_norm.forward(z, one, zero, eps=eps) for z in (z1, z2))
    eye = xp.eye(d, dtype=z1.dtype)
    weight = off_diagonal + (1 - off_diagonal) * eye                         # (d, d): 1 on the diagonal
    lack = x.T @ y / N - eye
    loss = (weight * lack * lack).sum()                                      # (16)
    require_finite(loss, "barlow_twins: the loss")

    def backward(g):
        D = weight * lack * (2 * g)                                          # (17)
        return to_z1(y @ D.T / N)[0], to_z2(x @ D / N)[0]                    # (18)

    return loss, backward


def _require_views(name, z1, z2):
    """Two views of at least 2 items: one has no variance."""
    require_pairs(name, z1, z2)
    require_batch(name, z1, at_least=2)
