"""The end of a training run on images: metrics of the frozen model, pictures of its embeddings, and the result."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import peak_memory_mib, to_host
from ..contrastive import l2_normalize
from ..data import two_views
from ..typing import Array, ArrayModule, HostArray, Rng
from .features import encode, to_float
from .frozen import frozen_accuracies, ranks
from .geometry import uniformity_floor
from .knn import nearest_neighbours
from .tsne import tsne

LEGEND = [
    "  loss: mean of those logged in the last tenth of training; bound = cap - loss, cap = mean log of the candidates",
    "  knn and probe: test accuracies from h, the representation, and z, the input of the loss",
    "  rank: effective rank of h and z, the number of directions in use"]


def final_loss(log: Sequence[dict], total: int) -> float | None:
    """Mean of the losses in a run's log from the last tenth of its `total` steps; None if one of them is unknown.

    >>> final_loss([{"step": 0, "loss": 3.0}, {"step": 9, "loss": 1.5}], total=10)
    1.5
    """
    losses = [line.get("loss") for line in _last_tenth(log, total)]
    return float(np.mean(losses)) if losses and None not in losses else None


def _last_tenth(log, total):
    return [line for line in log if line["step"] >= 0.9 * (total - 1)]


def report(run: Any, model: Any, data: Any, augment: Any, rng: Rng, xp: ArrayModule, *, candidates: int, k: int = 20,
           **metrics: float | None) -> None:
    """Evaluate `model`, images -> (h, z), on an ImageData, draw the run's pictures, and finish it with the metrics.

    Without labels there are no accuracies.
    candidates  K of the loss, 1 positive and K - 1 negatives; chance is log K. Where K varies, as it does until MoCo's
                queue is full, the log's lines have "chance", whose mean over the lines of the loss is the cap
    k           nearest neighbours that vote
    metrics     more entries of result.json: numbers or None
    rng         draws the views in the picture
    """
    if data.is_labelled:
        if absent := sorted({*data.test_labels.tolist()} - {*data.train_labels.tolist()}):
            run.print("warning: no training image is of class " + ", ".join(data.class_names[label] for label in absent)
                      + "; test images of that class count as errors")
        run.print("evaluating h and z: nearest neighbours and linear probe")
        accuracies, test_h, test_z = frozen_accuracies(model, data, xp, k=k, world=run.world)
    else:
        run.print("evaluating h without labels: pictures, and no accuracies")
        accuracies = {}
        test_h, test_z = encode(model, data.test_images, xp, world=run.world)
    log = run.read_log()
    config = run.config
    loss = final_loss(log, run.step)                         # fewer than run.total after run.stop()
    cap = bound = None
    if loss is None:
        run.print("warning: the log has no loss for the last tenth of training, so loss and bound are unknown")
    else:
        chances = [line.get("chance", math.log(candidates)) for line in _last_tenth(log, run.step)]
        if None not in chances:
            cap = float(np.mean(chances))
            bound = cap - loss
    if run.world.rank == 0:
        views = two_views(augment, to_float(data.test_images[:12], np), rng)
        draw_pictures(run, log, data, views, to_host(test_h), test_z.shape[1], candidates)
    run.finish({"data": data.name, "backend": config["backend"], "seed": config["seed"], "loss": loss,
                "bound_nats": bound, "cap_nats": cap, **metrics, **accuracies,
                **ranks(test_h, test_z), "test_images": len(data.test_images),
                "seconds": run.elapsed(), "seconds_per_epoch": run.seconds * run.total / config["epochs"] / run.step,
                "peak_mib": peak_memory_mib(xp)}, notes=LEGEND)


def _map_of(directions, log):
    """t-SNE; its steps are shorter for fewer points, so these need more of them."""
    n = len(directions)
    with warnings.catch_warnings(record=True) as caught:     # that they lie on a line or one spot, as few may
        warnings.simplefilter("always")
        places = tsne(directions, perplexity=min(30, n / 4), steps=300 if n >= 200 else 3000)
    if caught:
        log(f"map.png: t-SNE has placed the {n} test images on a line or one spot; with more of them it shows more")
    return places


def draw_pictures(run: Any, log: Sequence[dict], data: Any, views: Sequence[Array], h: HostArray, dim: int,
                  candidates: int) -> None:
    """views.png, curves.png, map.png and neighbours.png in the run's folder; h (N, d): features of the test images.

    views: two views of the first test images, each (n, H, W, C); dim: of z.
    """
    from .. import viz  # here: matplotlib is slow to import

    if viz.Figure is None:
        run.print(viz.MISSING)
        return

    def images(ids):
        return to_float(data.test_images[ids], np)

    viz.image_grid(run.folder / "views.png", [images(slice(len(views[0]))), *views],
                   row_labels=("image", "view 1", "view 2"))
    lines = [line for line in log if None not in (line.get("loss"), line.get("chance", 0))]
    if lines:
        viz.training_curves(run.folder / "curves.png", lines, candidates=candidates, floor=uniformity_floor(dim))
    directions = l2_normalize.forward(h[:1200])[0]
    if len(directions) > 4:                                  # t-SNE needs a few neighbours
        viz.embedding_map(run.folder / "map.png", _map_of(directions, run.print),
                          data.test_labels[:1200], data.class_names,
                          title="h of test images (t-SNE)" + ", coloured by class" * data.is_labelled)
    else:
        run.print(f"no map.png: {len(directions)} test images are too few for a map, which needs 5")
    near = nearest_neighbours(h, h[:10], k=min(9, len(h)))
    rows = [[query, *(other for other in ids if other != query)][:len(ids)] for query, ids in enumerate(near)]     # of ties
    viz.image_grid(run.folder / "neighbours.png", [images(ids) for ids in rows],
                   title=f"test images (left) and their nearest neighbours in h, of {len(h):,} test images")
