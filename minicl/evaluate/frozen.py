"""The standard examination of a trained model: nearest neighbours and a linear probe, on h and on z."""

from .features import encode, state_hash
from .knn import knn_accuracy
from .probe import linear_probe


def frozen_accuracies(model, data, xp):
    """Test accuracies of a model images -> (h, z), trained without labels, on the classes of an ImageData.

    Returns ({"knn_h", "knn_z", "probe_h", "probe_z": fractions}, test_h, test_z). h is what is kept after training,
    z what the loss saw. Raises RuntimeError if examining the model has changed it.
    """
    before = state_hash(model)
    train_h, train_z = encode(model, data.train_images, xp)
    test_h, test_z = encode(model, data.test_images, xp)
    figures = {}
    for name, judge in (("knn", knn_accuracy), ("probe", linear_probe)):
        for space, train, test in (("h", train_h, test_h), ("z", train_z, test_z)):
            figures[f"{name}_{space}"] = judge(train, data.train_labels, test, data.test_labels)
    if state_hash(model) != before:
        raise RuntimeError("the evaluation changed the model: its figures are not those of frozen features")
    return figures, test_h, test_z
