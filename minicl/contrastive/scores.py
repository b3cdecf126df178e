"""InfoNCE from scores, for critics other than the cosine: a bilinear form, a dot product of two networks.

The score s_ij (N, K) rates candidate j for anchor i; positive_ids (N,) is the column of each anchor's positive.
"""

from ..autograd import Tensor
from ..backend import array_module, on_host, require_finite
from ..distributed import ALONE, World, mean_of
from ..ops import getitem
from ..signature import accepts_other_names, is_plain_array, require_float_array
from ..typing import Array
from .checks import require_arrays
from .softmax import log_softmax


@accepts_other_names
def info_nce_from_scores(scores: Tensor, positive_ids: Array, tau: Tensor | float = 1.0, *,
                         world: World = ALONE) -> Tensor:
    """L = -(1/N) sum_i log softmax(s_i / tau)_positive_ids[i]: a Tensor ().

    Three small ops: log-softmax, pick the positive, mean (van den Oord et al. 2018, eq. 4). With K candidates chance
    is log K. world: the rows are this process's part.

    >>> import numpy as np
    >>> scores = Tensor(np.array([[2.0, 0.0], [0.0, 2.0]]))
    >>> round(info_nce_from_scores(scores, np.array([0, 1])).item(), 4)      # log(1 + exp(-2))
    0.1269
    """
    _require_scores("info_nce_from_scores", scores, positive_ids)
    world.require_rows("info_nce_from_scores", len(scores))
    rows = array_module(positive_ids).arange(len(positive_ids))
    loss = -getitem(log_softmax(scores, tau), key=(rows, positive_ids)).mean()
    loss = loss if world.size == 1 else mean_of(loss, world=world)
    require_finite(loss.data, "info_nce_from_scores: the loss")
    return loss


def choice_accuracy(scores: Array, positive_ids: Array) -> Array:
    """Fraction of the rows of an array (N, K) whose positive has the highest score: a 0-d array, not read.

    Chance is 1/K. A tie of n candidates counts 1/n, the expectation of a random choice among them, so equal scores count
    as chance.

    >>> import numpy as np
    >>> float(choice_accuracy(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([0, 1])))
    0.75
    """
    require_float_array("choice_accuracy: scores", scores)
    _require_scores("choice_accuracy", scores, positive_ids)
    top = scores.max(axis=1, keepdims=True)                                  # (N, 1), NaN in a row that holds one
    require_finite(top, "choice_accuracy: the highest score of a row")
    best = scores == top                                                     # (N, K)
    rows = array_module(scores).arange(len(scores))
    return (best[rows, positive_ids] / best.sum(axis=1)).mean()


def _require_scores(name, scores, positive_ids):
    require_arrays(name, scores=scores)
    if len(scores.shape) != 2 or len(scores) < 1 or scores.shape[1] < 2:
        raise ValueError(f"{name}: expected scores (N, K) over K >= 2 candidates, got {scores.shape}")
    if isinstance(positive_ids, Tensor) or not is_plain_array(positive_ids) or positive_ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: positive_ids must be an array of integers, the column of each row's positive, got "
                        f"{type(positive_ids).__name__}")
    if positive_ids.shape != scores.shape[:1]:
        raise ValueError(f"{name}: expected one positive per row, positive_ids ({scores.shape[0]},), got "
                         f"{positive_ids.shape}")
    if on_host(positive_ids) and not 0 <= positive_ids.min() <= positive_ids.max() < scores.shape[1]:
        raise ValueError(f"{name}: positive_ids must be columns from 0 to {scores.shape[1] - 1}, got "
                         f"{positive_ids.min()} to {positive_ids.max()}")
