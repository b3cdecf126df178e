"""Pictures of a run. They need matplotlib, the `viz` extra; without it nothing is drawn and the run goes on."""

import numpy as np

try:
    from matplotlib.figure import Figure          # no pyplot: no window, no global state
except ImportError:
    Figure = None

from .backend import to_host
from .evaluate import nearest_neighbours, uniformity_floor

BLUE, RED, GREY = "#3465a4", "#cc3333", "#888888"


def draw_run(run, log, data, views, test_h, test_z, candidates):
    """All pictures of a run on images, into its folder: views, curves, maps of h and z, nearest neighbours.

    log         run.read_log(), with loss, alignment and uniformity in its lines
    data        ImageData; views: two views of its first test images, each (n, H, W, C)
    test_h, test_z  features of the test images, on either backend; candidates: K of the loss, chance is log K
    """
    if Figure is None:
        run.say("no pictures: they need matplotlib, pip install 'minicl[viz]'")
        return
    folder, n = run.folder, len(views[0])
    images, h, z = data.test_images / np.float32(255), to_host(test_h), to_host(test_z)
    image_grid(folder / "views.png", [images[:n], *views], row_labels=("image", "view 1", "view 2"))
    training_curves(folder / "curves.png", log, candidates=candidates, dim=z.shape[1])
    for name, features in (("h", h), ("z", z)):
        embedding_map(folder / f"map_{name}.png", features[:3000], data.test_labels[:3000], data.class_names,
                      title=f"{name} of test images, by class")
    near = nearest_neighbours(h, h[:10], k=9)                # the first of them is the image itself
    image_grid(folder / "neighbours.png", [images[ids] for ids in near],
               title="test images (left) and their nearest neighbours in h")


def image_grid(path, rows, *, title=None, row_labels=()):
    """Rows of images, each (n, H, W, 1 or 3) with values in [0, 1], one picture."""
    H, W = rows[0].shape[1:3]
    n = max(map(len, rows))
    figure = Figure(figsize=(0.55 * n + 1.2, 0.58 * len(rows) + 0.6), dpi=150)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for r, row in enumerate(rows):
        for c in range(n):
            axes[r, c].axis("off")
            if c < len(row):
                axes[r, c].imshow(row[c].squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if r < len(row_labels):
            axes[r, 0].text(-0.25, 0.5, row_labels[r], transform=axes[r, 0].transAxes, ha="right", va="center", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def training_curves(path, log, *, candidates, dim):
    """Loss against chance log K, and the alignment and uniformity of z, from the lines of a run's log."""
    steps = [line["step"] for line in log]
    figure = Figure(figsize=(9, 3.2), dpi=150)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [line["loss"] for line in log], color=BLUE, label="NT-Xent")
    chance = np.log(candidates)
    left.axhline(chance, color=GREY, linestyle="--", linewidth=1)
    left.text(steps[-1], chance, f"chance, log {candidates}", ha="right", va="bottom", fontsize=8, color=GREY)
    left.set(xlabel="step", ylabel="loss (nats)", title="loss", ylim=(0, 1.12 * max(chance, max(l["loss"] for l in log))))
    right.plot(steps, [line["alignment"] for line in log], color=BLUE, label="alignment (0: views coincide)")
    right.plot(steps, [line["uniformity"] for line in log], color=RED, label="uniformity (0: collapsed)")
    floor = uniformity_floor(dim)
    right.axhline(floor, color=GREY, linestyle="--", linewidth=1)
    right.text(steps[0], floor, f"floor of uniformity in {dim} dimensions", va="bottom", fontsize=8, color=GREY)
    right.set(xlabel="step", title="geometry of z")
    right.legend(fontsize=8, frameon=False)
    _save(figure, path)


def embedding_map(path, features, labels, class_names, *, title):
    """Features (N, d) on their first two principal axes, coloured by class."""
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    xy = centred @ axes[:2].T
    figure = Figure(figsize=(5.2, 4.6), dpi=150)
    plot = figure.subplots()
    points = plot.scatter(*xy.T, c=labels, cmap="tab10", s=4, vmin=-0.5, vmax=9.5, linewidths=0)
    handles, _ = points.legend_elements(num=range(len(class_names)))
    plot.legend(handles, class_names, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plot.set(xticks=[], yticks=[], title=title)
    _save(figure, path)


def _save(figure, path):
    figure.tight_layout()
    figure.savefig(path)
