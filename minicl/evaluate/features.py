"""Frozen features: a trained encoder applied to a whole data set."""

import hashlib

import numpy as np

from ..autograd import no_grad
from ..backend import require_finite, to_device, to_host


def encode(model, items, xp, batch=500, *, prepare=None):
    """model's output for uint8 images (N, H, W, C): an array of module xp, or a tuple of them if model gives several.

    prepare  what makes model's input of a batch and xp: to_float, or to_device for token ids (N, T)
    Runs in evaluation mode without a tape (BatchNorm's running averages are used, not changed), then restores each module's mode.
    """
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


def to_float(images, xp):
    """uint8 images as float32 in [0, 1] on xp: they travel as bytes and are converted there."""
    if images.dtype != "uint8":
        raise TypeError(f"expected uint8 images, got {images.dtype}")
    return to_device(images, xp).astype("float32") * (1 / 255)


def state_hash(module):
    """SHA-256 of all parameters and buffers: equal before and after a probe, or the probe was not frozen."""
    digest = hashlib.sha256()
    for name, array in module.state_dict().items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def require_features(name, *features_and_labels):
    """Check (features (N, d), labels (N,)) pairs; raise ValueError or FloatingPointError naming what is wrong."""
    d = features_and_labels[0][0].shape[-1]
    for features, labels in features_and_labels:
        if features.ndim != 2 or len(features) != len(labels) or len(features) == 0:
            raise ValueError(f"{name}: expected features (N, d) with one label each, got {features.shape} and "
                             f"{len(labels)} labels")
        if features.shape[1] != d:
            raise ValueError(f"{name}: training features have {d} dimensions but test features {features.shape[1]}; both "
                             "must come from the same encoder")
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(f"{name}: expected labels to be a host array of integers >= 0")
        require_finite(to_host(features.sum()), f"{name}: the sum of the features")
