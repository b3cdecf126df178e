"""Negative cosine: the loss of SimSiam and, as 2 - 2 cos, of BYOL. It has no negatives, and nothing to fuse.

    L = -(1/N) sum_i p^_i . t^_i
"""

from ..autograd import Tensor
from ..backend import require_finite
from ..distributed import ALONE, World, mean_of
from .checks import require_arrays, require_pairs
from .cosine import l2_normalize


def negative_cosine(prediction: Tensor, target: Tensor, *, world: World = ALONE) -> Tensor:
    """Mean negative cosine of prediction and target (N, d), Tensors or arrays: a Tensor () in [-1, 1].

    The target is detached. This is the stop-gradient, without which both methods collapse (Chen & He 2021, section 4.1).
    world: the rows are this process's part of the batch.

    >>> import numpy as np
    >>> from minicl import Tensor
    >>> round(negative_cosine(Tensor(np.array([[3.0, 4.0]])), Tensor(np.array([[1.0, 0.0]]))).item(), 4)
    -0.6
    """
    require_arrays("negative_cosine", prediction=prediction, target=target)
    require_pairs("negative_cosine", prediction, target, world=world)
    target = target.detach() if isinstance(target, Tensor) else target
    loss = -(l2_normalize(prediction) * l2_normalize(target)).sum(axis=1).mean()
    loss = loss if world.size == 1 else mean_of(loss, world=world)
    require_finite(loss.data, "negative_cosine: the loss")
    return loss
