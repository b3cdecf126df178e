"""How a training run on images ends: the examination of the frozen model, its pictures and result.json."""

import numpy as np

from . import viz
from .backend import peak_memory_mib
from .data import two_views
from .evaluate import frozen_accuracies, infonce_bound, to_float

LEGEND = """\
  loss is the mean of those logged in the last tenth of training; bound = cap - loss, cap = log of the candidates;
  knn and probe are fractions of the test images, from h, which is kept, and z, which the loss saw""".splitlines()


def report(run, model, data, augment, rng, xp, *, candidates, k=20, **metrics):
    """Examine `model`, images -> (h, z), on an ImageData, draw the run's pictures and finish it.

    candidates  K of the loss, 1 positive and K - 1 negatives; its chance is log K
    k           nearest neighbours that vote
    figures     more to go into result.json: {name: a number, or None}
    The loss reported is the mean of those logged in the last tenth of the steps. rng draws the views in the picture.
    """
    run.print("evaluating h and z: nearest neighbours and linear probe")
    accuracies, test_h, test_z = frozen_accuracies(model, data, xp, k=k)
    log, config = run.read_log(), run.config
    loss = float(np.mean([line["loss"] for line in log if line["step"] >= 0.9 * (run.total - 1)]))
    bound = infonce_bound(loss, candidates)
    views = two_views(augment, to_float(data.test_images[:12], np), rng)
    run.finish({"data": data.name, "backend": config["backend"], "seed": config["seed"],
                "loss": loss, "bound_nats": bound.nats, "cap_nats": bound.cap, **metrics, **accuracies,
                "seconds": run.elapsed(), "seconds_per_epoch": run.seconds / config["epochs"],
                "peak_mib": peak_memory_mib(xp)}, notes=LEGEND)
    viz.draw_run(run, log, data, views, test_h, test_z, candidates)
