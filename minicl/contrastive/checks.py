"""What every contrastive loss asks of its arguments, said once."""

import math

from ..autograd import Tensor
from ..backend import is_array


def require_temperature(name, tau):
    """Raise ValueError unless tau is a number > 0, or a 0-d array (not read: its value may be on a GPU)."""
    if is_array(tau) or isinstance(tau, Tensor):
        if tau.ndim != 0:
            raise ValueError(f"{name}: tau must be one number, got shape {tau.shape}")
    elif not (isinstance(tau, (int, float)) and 0 < tau < math.inf):
        raise ValueError(f"{name}: tau must be a finite number > 0, got {tau!r}; usual temperatures are 0.05 to 1")


def require_pairs(name, first, second, at_least=1):
    """Raise ValueError unless the two views are (N, d) arrays of one shape, with N >= at_least."""
    if len(first.shape) != 2 or first.shape != second.shape:
        raise ValueError(f"{name}: expected two views (N, d) of the same N items, got {first.shape} and {second.shape}; "
                         "row i of one must belong to row i of the other")
    if len(first) < at_least:
        raise ValueError(f"{name}: expected a batch of at least {at_least}, got {len(first)}: "
                         "the negatives are the other items of the batch")
