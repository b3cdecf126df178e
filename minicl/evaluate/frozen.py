"""The standard evaluation of a trained model: nearest neighbours and a linear probe, on h and on z."""

import functools

from .features import encode, state_hash, to_float
from .knn import knn_accuracy
from .probe import linear_probe


def frozen_accuracies(model, data, xp, *, k=20, probe=True):
    """Test accuracies of a model images -> (h, z), trained without labels, on the classes of an ImageData.

    Returns ({"knn_h", "knn_z", "probe_h", "probe_z": fractions}, test_h, test_z). h is the representation,
    z is what the loss saw. k: neighbours that vote, at most all training images; probe=False leaves out the probes, for use during training.
    Raises RuntimeError if the evaluation has changed the model.
    """
    before = state_hash(model)
    train_h, train_z = encode(model, data.train_images, xp)
    test_h, test_z = encode(model, data.test_images, xp)
    metrics = {}
    for name, evaluate in (("knn", functools.partial(knn_accuracy, k=min(k, len(train_h)))), ("probe", linear_probe))[:2 if probe else 1]:
        for space, train, test in (("h", train_h, test_h), ("z", train_z, test_z)):
            metrics[f"{name}_{space}"] = evaluate(train, data.train_labels, test, data.test_labels)
    if state_hash(model) != before:
        raise RuntimeError("the evaluation changed the model: its metrics are not those of frozen features")
    return metrics, test_h, test_z


def pixel_accuracy(data, xp, *, k=20):
    """Test accuracy of the k nearest neighbours by raw pixels about the mean image: what learning must improve on."""
    train, test = (to_float(x, xp).reshape(len(x), -1) for x in (data.train_images, data.test_images))
    mean = train.mean(axis=0)
    train -= mean
    test -= mean
    return knn_accuracy(train, data.train_labels, test, data.test_labels, k=k)
