"""The check of an optimizer on the CPU: no gradient, with its decay, is NaN or overflows when squared."""

import math
from typing import Any

import numpy as np

from .backend import square


def require_finite_gradients(optimizer: Any, size: int) -> None:
    """Raise FloatingPointError unless the sum of squares of the trained gradients is finite; `size` entries at a time."""
    name = type(optimizer).__name__
    total = 0.0
    for g in optimizer._live_gradients():
        total += square(g, size)
        if not math.isfinite(total):
            part = next((part for part, (at, _, _), live in zip(optimizer.names, optimizer.views, optimizer._trained)
                         if live and not np.abs(optimizer.grads[at]).max(initial=0) < 1e19), "all of them together")
            raise FloatingPointError(f"{name}: the gradient ({part}) is not finite, or too large to square; nothing was "
                                     "changed. Lower the learning rate, raise the temperature, or look for NaN or huge "
                                     "values in the input")
    if optimizer.weight_decay and optimizer.decay_in_gradient:
        _require_finite_decay(optimizer, total, size)


def _require_finite_decay(optimizer, total, size):
    """Raise FloatingPointError unless the squares of g + decay w are finite, total being the sum of g^2."""
    decay = optimizer.weight_decay
    for part, decays, _ in optimizer._runs:
        total += decay * decay * square(optimizer.values[part], size) if decays else 0.0
    if total < 1e37:                                         # (g + decay w)^2 <= 2 g^2 + 2 (decay w)^2 < 3e38
        return
    longest = math.sqrt(float(np.finfo(optimizer.values.dtype).max))
    for name, p, live in zip(optimizer.names, optimizer.parameters, optimizer._trained):
        if live and p.ndim >= 2:
            with np.errstate(over="ignore", invalid="ignore"):
                most = float(np.abs(p._grad + decay * p._data).max(initial=0))
            if not most < longest:
                raise FloatingPointError(f"{type(optimizer).__name__}: the gradient ({name}) with its weight decay is not "
                                         "finite, or too large to square; nothing was changed. Find out why a weight is "
                                         f"as large as {float(np.abs(p._data).max()):.3g}")
