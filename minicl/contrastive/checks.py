"""What every contrastive loss asks of its arguments, said once."""

import math

from ..autograd import Tensor
from ..backend import is_array, require_positive


def require_temperature(name, tau):
    """Raise ValueError unless tau is a number > 0, or a 0-d array (not read: its value may be on a GPU)."""
    if is_array(tau) or isinstance(tau, Tensor):
        if tau.ndim != 0:
            raise ValueError(f"{name}: tau must be one number, got shape {tau.shape}")
        require_positive(getattr(tau, "data", tau) if isinstance(tau, Tensor) else tau, f"{name}: tau")
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


def require_batch(name, z, at_least):
    """Raise ValueError unless z is an (N, d) array with N >= at_least."""
    if len(z.shape) != 2 or len(z) < at_least:
        raise ValueError(f"{name}: expected (N, d) with N >= {at_least}, got {z.shape}")


def require_number(name, argument, value, above=-math.inf):
    """Raise ValueError unless value is a finite number > above, or a 0-d array (not read: it may be on a GPU)."""
    if is_array(value):
        if value.ndim != 0:
            raise ValueError(f"{name}: {argument} must be one number, got shape {value.shape}")
    elif not (isinstance(value, (int, float)) and above < value < math.inf):
        bound = f" > {above}" if above > -math.inf else ""
        raise ValueError(f"{name}: {argument} must be a finite number{bound}, got {value!r}")


def require_logit_scale(name, logit_scale):
    """Raise ValueError unless logit_scale is a number <= log 100, or a 0-d array (not read)."""
    if is_array(logit_scale) or isinstance(logit_scale, Tensor):
        if logit_scale.ndim != 0:
            raise ValueError(f"{name}: logit_scale must be one number, got shape {logit_scale.shape}")
    elif not (isinstance(logit_scale, (int, float)) and -math.inf < logit_scale <= math.log(100) + 1e-6):
        raise ValueError(f"{name}: logit_scale must be a number <= log 100 = 4.605, got {logit_scale!r}; it is the "
                         "logarithm of 1/tau: math.log(1 / 0.07) for a temperature of 0.07")
