"""The standard evaluation of a trained model: nearest neighbours and a linear probe, on h and on z."""

from typing import Any

from ..backend import mean_over
from ..checks import require_bool, require_integers
from ..distributed import ALONE, World
from ..nn import Module
from ..signature import accepts_other_names
from ..typing import Array, ArrayModule
from .features import encode, state_hash, to_float
from .geometry import effective_rank
from .knn import knn_accuracy
from .probe import linear_probe

PROBE_C = 0.1     # SimCLR on MNIST, 10,000 held-out training images: 0.01 to 0.1 differ by noise, 1 is 0.1 points lower


@accepts_other_names
def frozen_accuracies(model: Module, data: Any, xp: ArrayModule, *, k: int = 20,
                      probe: bool = True, world: World = ALONE) -> tuple[dict[str, float], Array, Array]:
    """Test accuracies of a model images -> (h, z), trained without labels, on the classes of an ImageData.

    Returns ({"knn_h", "knn_z", "probe_h", "probe_z": fractions}, test_h, test_z). h is the representation, z the input of
    the loss. k: number of neighbours, at most the number of training images; probe=False skips the probes, for use during
    training. world: processes that divide the work; each gets all results.

    Raises RuntimeError if the evaluation has changed the model.
    """
    require_integers("frozen_accuracies", 1, k=k)
    require_bool("frozen_accuracies", probe=probe)
    before = state_hash(model)
    outputs = [encode(model, images, xp, world=world) for images in (data.train_images, data.test_images)]
    if not all(isinstance(output, tuple) and len(output) == 2 for output in outputs):
        raise TypeError(f"frozen_accuracies: model must return two outputs, (h, z), got {type(outputs[0]).__name__}; wrap "
                        "an encoder and a head in minicl.methods.SimCLR")
    train, test = (dict(zip("hz", output)) for output in outputs)
    k = min(k, len(data.train_images))
    metrics = {f"knn_{space}": knn_accuracy(train[space], data.train_labels, test[space], data.test_labels, k=k,
                                            world=world) for space in "hz"}
    if probe:
        metrics |= {f"probe_{space}": linear_probe(train[space], data.train_labels, test[space], data.test_labels,
                                                    C=PROBE_C, world=world) for space in "hz"}
    if state_hash(model) != before:
        raise RuntimeError("the evaluation changed the model, so its metrics are not those of frozen features")
    return metrics, test["h"], test["z"]


def ranks(h: Array, z: Array) -> dict[str, float | None]:
    """{"rank_h", "rank_z"}: the effective ranks of h and z; None for a single row, whose directions can't be counted."""
    return {"rank_h": effective_rank(h), "rank_z": effective_rank(z)} if len(h) > 1 else {"rank_h": None, "rank_z": None}


def training_metrics(model: Module, data: Any, xp: ArrayModule, *, k: int = 20, world: World = ALONE
                     ) -> dict[str, float | None]:
    """Metrics to follow while a model images -> (h, z) trains: {"knn_h", "knn_z", "rank_h", "rank_z"}.

    rank: the effective rank of the test images' h and z, which falls when they collapse. kNN as in frozen_accuracies, if
    the data has labels. No random numbers are drawn and the model does not change, so evaluations do not affect training.
    """
    require_integers("training_metrics", 1, k=k)
    if data.is_labelled:
        metrics, h, z = frozen_accuracies(model, data, xp, k=k, probe=False, world=world)
    else:
        metrics = {}
        h, z = encode(model, data.test_images, xp, world=world)
    return {**metrics, **ranks(h, z)}


@accepts_other_names
def pixel_accuracy(data: Any, xp: ArrayModule, *, k: int = 20, world: World = ALONE) -> float:
    """Test accuracy of the k nearest neighbours by raw pixels minus the mean image, a baseline.

    k: number of neighbours, at most the number of training images; world: processes that divide the work.
    """
    require_integers("pixel_accuracy", 1, k=k)
    train, test = (to_float(x, xp).reshape(len(x), -1) for x in (data.train_images, data.test_images))
    mean = mean_over(train, (0,))
    train -= mean
    test -= mean
    return knn_accuracy(train, data.train_labels, test, data.test_labels, k=min(k, len(train)), world=world)
