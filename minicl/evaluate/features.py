"""Frozen features: a trained encoder applied to a whole data set."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from ..autograd import Tensor
from ..backend import array_module, get_backend, is_array, to_device
from ..checks import require_integers, require_unmasked
from ..distributed import ALONE, World
from ..nn import Module
from ..no_grad import no_grad
from ..signature import describe
from ..typing import Array, ArrayModule, HostArray


def encode(model: Module, items: HostArray, xp: ArrayModule | str, batch: int = 500, *,
           prepare: Callable[[Any, ArrayModule], Any] | None = None, world: World = ALONE) -> Any:
    """model's output for uint8 images (N, H, W, C): an array of module xp, or a tuple if model returns several.

    xp       an array module or a backend's name
    batch    items at a time; the result does not depend on it, up to rounding
    prepare  makes model's input from a batch and xp: to_float, in the model's dtype, or to_device for token ids (N, T)
    world    processes that divide the batches, the same batches as with one process; each gets the whole result
    Runs in evaluation mode without recording (BatchNorm's running averages are used, not changed), then restores each
    module's mode, also after an exception.
    """
    require_integers("encode", 1, batch=batch)
    batch = int(batch)                                       # a NumPy number may wrap round
    xp = get_backend(xp) if isinstance(xp, str) else xp
    if not len(items):
        raise ValueError("encode: expected at least one item, got none")
    prepare = prepare or partial(_floats, dtype=next((p.dtype for _, p in model.named_parameters()), "float32"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            starts = range(0, len(items), batch)
            parts = [_rows(model, items[lo:lo + batch], prepare, xp) for lo in starts[world.part] or starts[:1]]
    finally:
        for module, training in modes:
            object.__setattr__(module, "training", training)
    if isinstance(parts[0], tuple):
        return tuple(_join(column, len(items), batch, world) for column in zip(*parts))
    return _join(parts, len(items), batch, world)


def _rows(model, items, prepare, xp):
    """The model's output for a batch. Raises ValueError unless it has a row for each item, so that rows stay with labels."""
    y = model(prepare(items, xp))
    for part in y if isinstance(y, tuple) else (y,):
        if not isinstance(part, Tensor) or part.shape[:1] != (len(items),):
            raise ValueError(f"encode: {type(model).__name__} must return a Tensor, or a tuple of them, with a row for each "
                             f"of the {len(items)} items, got {describe(getattr(part, 'data', part)):.200}")
    return y


def _join(parts, n, batch, world):
    """The rows (n, ...) of the batches of all processes, in order; `parts` are this process's."""
    xp = array_module(parts[0].data)
    y = xp.concatenate([part.data for part in parts])
    if world.size == 1:
        return y
    each = -(-n // (batch * world.size)) * batch                             # rows of a process, padded at the end
    rows = xp.zeros((each, *y.shape[1:]), dtype=y.dtype)
    rows[:len(y)] = y
    return world.all_gather(rows.reshape(-1, batch, *y.shape[1:])).reshape(-1, *y.shape[1:])[:n]


def _floats(images, xp, dtype):
    return to_float(images, xp).astype(dtype, copy=False)


def to_float(images: HostArray, xp: ArrayModule) -> Array:
    """uint8 images as float32 in [0, 1] on xp; they are transferred as bytes and converted there.

    >>> import numpy as np
    >>> to_float(np.array([0, 255], dtype=np.uint8), np)
    array([0., 1.], dtype=float32)
    """
    require_unmasked("to_float: images", images)
    if not is_array(images) or images.dtype != "uint8":
        raise TypeError(f"to_float: expected uint8 images, got {getattr(images, 'dtype', type(images).__name__)}")
    scaled = xp.empty(images.shape, dtype="float32")                         # not of a subclass, as images may be: memmap
    scaled[...] = to_device(images, xp)
    scaled *= 1 / 255                                                        # in place: a whole data set may be converted
    return scaled


def state_hash(module: Module) -> str:
    """SHA-256 of all parameters and buffers, to verify that an evaluation did not change the model."""
    digest = hashlib.sha256()
    for name, array in module.state_dict().items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
