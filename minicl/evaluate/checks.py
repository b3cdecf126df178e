"""Checks of features and labels for evaluation."""

import warnings

import numpy as np

from ..autograd import Tensor
from ..backend import array_module, is_array
from ..checks import require_unmasked
from ..typing import Array, HostArray


def require_features(name: str, **features: Array) -> None:
    """Raise unless all are finite arrays (N, d) of float32 or float64, N and d >= 1, with equal d, dtype and backend."""
    first = None
    for argument, x in features.items():
        require_unmasked(f"{name}: {argument}", x)
        if not is_array(x) or isinstance(x, np.matrix):
            hint = "; take its .data" if isinstance(x, Tensor) else "; np.asarray makes one" if not is_array(x) else ""
            raise TypeError(f"{name}: {argument} must be a plain numpy or cupy array, got {type(x).__name__}{hint}")
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name}: {argument} must have shape (N, d) with N >= 1 and d >= 1, got {x.shape}")
        if x.dtype not in ("float32", "float64") or not x.dtype.isnative:
            raise TypeError(f"{name}: {argument} must be float32 or float64, got {x.dtype}; convert it with "
                            ".astype('float32')")
        if first is None:
            first = argument, x
        _require_alike(name, argument, x, *first)
        if not bool(array_module(x).isfinite(x).all()):
            raise FloatingPointError(f"{name}: {argument} is not finite (it holds NaN or infinity): did training diverge?")


def _require_alike(name, argument, x, other, y):
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name}: {other} has {y.shape[1]} dimensions but {argument} has {x.shape[1]}; both must come "
                         "from the same encoder")
    if x.dtype != y.dtype or array_module(x) is not array_module(y):
        raise TypeError(f"{name}: {other} is {y.dtype} on {array_module(y).__name__} but {argument} is {x.dtype} on "
                        f"{array_module(x).__name__}; convert one with .astype or minicl.backend.to_device")


def require_labels(name: str, argument: str, labels: HostArray, n: int, *, below: int | None = None) -> HostArray:
    """labels as int64. Raises unless they are an integer array (n,) on the host with 0 <= entries (< below)."""
    require_unmasked(f"{name}: {argument}", labels)
    if not isinstance(labels, np.ndarray):
        on_gpu = is_array(labels) and not isinstance(labels, np.ndarray)
        hint = "; minicl.backend.to_host moves it" if on_gpu else "; np.asarray makes one"
        raise TypeError(f"{name}: {argument} must be a numpy array of integers, got {type(labels).__name__}{hint}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: {argument} must be integers, got {labels.dtype}; convert them with .astype(int)")
    if labels.shape != (n,):
        hint = "; flatten it with .reshape(-1)" if labels.size == n else ""
        raise ValueError(f"{name}: {argument} must have shape ({n},), one for each item, got {labels.shape}{hint}")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {argument} must be integers >= 0, got {labels.min()} to {labels.max()}; leave out "
                         "items without a label")
    if below is not None and labels.max() >= below:
        raise ValueError(f"{name}: {argument} must be below {below}, got {labels.max()}")
    return labels.astype(np.int64)


def class_ids(name: str, train_labels: HostArray, test_labels: HostArray, n: int,
              m: int) -> tuple[HostArray, HostArray, int]:
    """Labels (n,) and (m,), checked, as ids: 0 ... C - 1 for the C training classes, C for others; and C."""
    train_labels = require_labels(name, "train_labels", train_labels, n)
    test_labels = require_labels(name, "test_labels", test_labels, m)
    classes, train_ids = np.unique(train_labels, return_inverse=True)
    if len(classes) < 2 and (test_labels == classes[0]).all():
        raise ValueError(f"{name}: train_labels and test_labels must hold at least 2 classes, got only class {classes[0]}, "
                         "for which an accuracy is meaningless")
    test_ids = np.searchsorted(classes, test_labels)
    known = classes[np.minimum(test_ids, len(classes) - 1)] == test_labels
    if not known.all():
        unknown = np.unique(test_labels[~known])
        warnings.warn(f"{name}: {(~known).sum()} of {len(test_labels)} items in test_labels count as errors: their classes, "
                      f"such as {unknown[0]}, do not occur in train_labels", stacklevel=4)
    return train_ids, np.where(known, test_ids, len(classes)), len(classes)
