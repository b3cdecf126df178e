"""Frozen features: a trained encoder applied to a whole data set."""

import hashlib
from collections.abc import Callable
from typing import Any

from ..backend import is_array, to_device
from ..checks import require_integers
from ..nn import Module
from ..no_grad import no_grad
from ..typing import Array, ArrayModule, HostArray


def encode(model: Module, items: HostArray, xp: ArrayModule, batch: int = 500, *,
           prepare: Callable[[Any, ArrayModule], Any] | None = None) -> Any:
    """model's output for uint8 images (N, H, W, C): an array of module xp, or a tuple of them if model gives several.

    batch    items at a time; the result does not depend on it but for rounding
    prepare  what makes model's input of a batch and xp: to_float, or to_device for token ids (N, T)
    Runs in evaluation mode without a tape (BatchNorm's running averages are used, not changed), then restores each
    module's mode, also after an exception.
    """
    require_integers("encode", 1, batch=batch)
    if not len(items):
        raise ValueError("encode: expected at least one item, got none")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            parts = [model((prepare or to_float)(items[lo:lo + batch], xp)) for lo in range(0, len(items), batch)]
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(parts[0], tuple):
        return tuple(xp.concatenate([y.data for y in column]) for column in zip(*parts))
    return xp.concatenate([y.data for y in parts])


def to_float(images: HostArray, xp: ArrayModule) -> Array:
    """uint8 images as float32 in [0, 1] on xp: they travel as bytes and are converted there.

    >>> import numpy as np
    >>> to_float(np.array([0, 255], dtype=np.uint8), np)
    array([0., 1.], dtype=float32)
    """
    if not is_array(images) or images.dtype != "uint8":
        raise TypeError(f"to_float: expected uint8 images, got {getattr(images, 'dtype', type(images).__name__)}")
    return to_device(images, xp).astype("float32") * (1 / 255)


def state_hash(module: Module) -> str:
    """SHA-256 of all parameters and buffers: equal before and after a probe, or the probe was not frozen."""
    digest = hashlib.sha256()
    for name, array in module.state_dict().items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
