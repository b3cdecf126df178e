"""Barlow Twins (Zbontar et al. 2021, eq. 1): the correlations of the two views should be the identity. No negatives.

x, y = z1, z2 (N, d), each column standardised to mean 0 and variance 1 over the batch (by batch_norm's formula, which
also propagates the gradients), and C = x^T y / N (d, d):

    L = sum_a (1 - C_aa)^2 + off_diagonal sum_{a != b} C_ab^2                (1)
    D_ab = dL/dC_ab = 2 (C_aa - 1) for a = b, else 2 off_diagonal C_ab       (2)
    dx_ia = (1/N) sum_b D_ab y_ib,   dy_ib = (1/N) sum_a D_ab x_ia           (3)

The matrix is d x d, not N x N, so batches may be small and d large.    Derivation: docs/gradients/barlow_twins.md
"""

from ..autograd import Tensor, op
from ..backend import array_module, products_of_columns, require_finite
from ..checks import require_within
from ..distributed import ALONE, World
from ..ops import sqrt
from ..ops.normalize import batch_norm
from ..typing import Array
from .checks import checked_by, require_pairs


@checked_by("barlow_twins")
def composed(z1: Tensor, z2: Tensor, *, off_diagonal: float = 5e-3, eps: float = 1e-5) -> Tensor:
    """barlow_twins from small ops: standardise the columns, correlate, compare with the identity."""
    xp = array_module(z1.data)
    N, d = z1.shape
    x, y = ((z - z.mean(axis=0)) / sqrt(z.var(axis=0) + eps) for z in (z1, z2))
    eye = xp.eye(d, dtype=z1.dtype)
    missing = x.T @ y / N - eye                                              # (d, d)
    return (missing**2 * (off_diagonal + (1 - off_diagonal) * eye)).sum()


@op
def barlow_twins(z1: Array, z2: Array, *, off_diagonal: float = 5e-3, eps: float = 1e-5, world: World = ALONE):
    """Barlow Twins: two views z1, z2 (N, d) of N >= 2 items, off_diagonal >= 0, eps >= 1e-30 -> L () >= 0.

    The simplest loss without negatives. eps is added to the variances, as the authors' batch norm does.
    world: z1 and z2 are this process's part of the batch; C is that of the whole batch.

    >>> import numpy as np
    >>> barlow_twins(np.ones((4, 3)), np.ones((4, 3))).item()                # collapse: no column varies
    3.0
    """
    require_pairs("barlow_twins", z1, z2, at_least=2, because="one item has no variance", world=world)
    require_within("barlow_twins", "[0, inf)", off_diagonal=off_diagonal)
    require_within("barlow_twins", "[1e-30, inf)", eps=eps)
    xp = array_module(z1)
    N = len(z1) * world.size
    d = z1.shape[1]
    one, zero = xp.ones(d, dtype=z1.dtype), xp.zeros(d, dtype=z1.dtype)
    centre1, centre2 = world.mean(z1.mean(axis=0)), world.mean(z2.mean(axis=0))          # subtracted: less rounding
    x, to_z1 = batch_norm.forward(z1 - centre1, one, zero, eps=eps, world=world)
    y, to_z2 = batch_norm.forward(z2 - centre2, one, zero, eps=eps, world=world)
    eye = xp.eye(d, dtype=z1.dtype)
    weight = off_diagonal + (1 - off_diagonal) * eye                         # (d, d): 1 on the diagonal
    missing = world.sum(products_of_columns(x, y)) / N - eye
    loss = (weight * missing * missing).sum()                                # (1)
    require_finite(loss, "barlow_twins: the loss")

    def backward(g):
        D = weight * missing * (2 * g)                                       # (2)
        return to_z1(y @ D.T / N)[0], to_z2(x @ D / N)[0]                    # (3)

    return loss, backward
