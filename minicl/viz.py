"""Pictures of a run. They need matplotlib, the `viz` extra; without it nothing is drawn and the run goes on."""

import textwrap

import numpy as np

try:
    from matplotlib.figure import Figure  # no pyplot: no window, no global state
except ImportError:
    Figure = None

from .backend import to_host
from .contrastive import l2_normalize
from .evaluate import nearest_neighbours, tsne, uniformity_floor

BLUE, RED, GREY = "#3465a4", "#cc3333", "#888888"


def draw_run(run, log, data, views, test_h, test_z, candidates):
    """All pictures of a run on images, into its folder: views, curves, a map of h, nearest neighbours.

    log         run.read_log(), with loss, alignment and uniformity in its lines
    data        ImageData; views: two views of its first test images, each (n, H, W, C)
    test_h, test_z  features of the test images, on either backend; candidates: K of the loss, chance is log K
    """
    if Figure is None:
        run.print("no pictures: they need matplotlib, pip install 'minicl[viz]'")
        return
    folder, n = run.folder, len(views[0])
    images, h, z = data.test_images / np.float32(255), to_host(test_h), to_host(test_z)
    image_grid(folder / "views.png", [images[:n], *views], row_labels=("image", "view 1", "view 2"))
    training_curves(folder / "curves.png", log, candidates=candidates, dim=z.shape[1])
    some = slice(0, 1200)
    directions = l2_normalize.forward(h[some])[0]
    positions = tsne(directions, perplexity=min(30, len(directions) / 4))
    embedding_map(folder / "map.png", positions, data.test_labels[some], data.class_names,
                  title="h of test images (t-SNE), coloured by class")
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
    save_figure(figure, path)


def training_curves(path, log, *, candidates, dim):
    """Loss against chance (log K, or the "chance" of each line), and the alignment and uniformity of z, from a run's log."""
    steps = [line["step"] for line in log]
    figure = Figure(figsize=(9, 3.2), dpi=150)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [line["loss"] for line in log], color=BLUE, label="NT-Xent")
    chance = [line.get("chance", np.log(candidates)) for line in log]         # it rises where the candidates do
    left.plot(steps, chance, color=GREY, linestyle="--", linewidth=1)
    left.text(steps[-1], chance[-1], f"chance, log {candidates}", ha="right", va="bottom", fontsize=8, color=GREY)
    left.set(xlabel="step", ylabel="loss (nats)", title="loss", ylim=(0, 1.12 * max(chance + [line["loss"] for line in log])))
    right.plot(steps, [line["alignment"] for line in log], color=BLUE, label="alignment (0: views coincide)")
    right.plot(steps, [line["uniformity"] for line in log], color=RED, label="uniformity (0: collapsed)")
    floor = uniformity_floor(dim)
    right.axhline(floor, color=GREY, linestyle="--", linewidth=1)
    right.text(steps[0], floor, f"floor of uniformity in {dim} dimensions", va="bottom", fontsize=8, color=GREY)
    right.set(xlabel="step", title="geometry of z")
    right.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def embedding_map(path, positions, labels, class_names, *, title):
    """Points at positions (N, 2), coloured by class."""
    figure = Figure(figsize=(5.2, 4.6), dpi=150)
    plot = figure.subplots()
    for label, name in enumerate(class_names):
        plot.scatter(*positions[labels == label].T, label=name, color=f"C{label}", s=5, linewidths=0)
    plot.legend(fontsize=8, markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plot.set(xticks=[], yticks=[], title=title)
    save_figure(figure, path)


def line_plots(run, name, *plots):
    """Line plots side by side, as the picture `name` in the run's folder.

    A plot is a dict: "lines" is a list of (label, xs, ys, matplotlib's keywords for the line), the rest are settings of
    its axes, such as title, xlabel, ylabel, ylim.
    """
    if Figure is None:
        run.print("no pictures: they need matplotlib, pip install 'minicl[viz]'")
        return
    figure = Figure(figsize=(4.8 * len(plots), 3.6), dpi=150)
    for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots):
        for label, xs, ys, look in plot["lines"]:
            axes.plot(xs, ys, label=label, **look)
        axes.set(**{key: value for key, value in plot.items() if key != "lines"})
        axes.legend(fontsize=8, frameon=False)
    save_figure(figure, run.folder / name)


def save_figure(figure, path):
    figure.tight_layout()
    figure.savefig(path)


def draw_captions(run, log, chance, images, captions, right, *, title, columns=3):
    """Pictures of a CLIP, into the run's folder: curves.png and captions.png.

    log     run.read_log(), with loss and scale in its lines; chance: the loss of who knows nothing
    images  (n, H, W, 3), each shown beside its caption, in red where right (n,) is False
    """
    steps = [line["step"] for line in log]
    line_plots(run, "curves.png",
               {"lines": [("loss", steps, [line["loss"] for line in log], {"color": BLUE}),
                          ("chance", steps, [chance] * len(steps), {"color": GREY, "linestyle": "--"})],
                "title": "loss", "xlabel": "step", "ylabel": "nats", "ylim": (0, None)},
               {"lines": [("1/tau", steps, [line["scale"] for line in log], {"color": RED})],
                "title": "scale of the logits, learned", "xlabel": "step", "ylim": (0, None)})
    if Figure is None:
        return
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(3.3 * columns, 1.05 * rows + 0.4), dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for plot in axes:
        plot.axis("off")
    for plot, image, caption, is_right in zip(axes, images, captions, right):
        plot.imshow(image, interpolation="nearest")
        plot.set_anchor("W")
        plot.text(1.08, 0.5, textwrap.fill(caption, 28), transform=plot.transAxes, va="center", fontsize=8,
                  color="black" if is_right else RED)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, run.folder / "captions.png")


def draw_circles(run, circles, labels, class_names, floor):
    """Embeddings on the unit circle, one a panel, and their figures in a last one: circle.png in the run's folder.

    circles  (name, unit vectors (N, 2), {"alignment", "uniformity", "knn"}), ...
    floor    the least uniformity that many points can have
    """
    if Figure is None:
        run.print("no pictures: they need matplotlib, pip install 'minicl[viz]'")
        return
    figure = Figure(figsize=(11, 7.4), dpi=150)
    *panels, plane = figure.subplots(2, -(-(len(circles) + 1) // 2)).reshape(-1)
    angles = np.linspace(0, 2 * np.pi, 361)
    around = np.stack([np.cos(angles), np.sin(angles)])
    blur = 1 + 0.09 * np.random.default_rng(0).standard_normal((len(labels), 1))         # points beside each other
    for plot, (name, points, metrics) in zip(panels, circles):
        density = np.exp(60 * (points @ around - 1)).mean(axis=0)
        plot.fill(*(1.35 + 0.15 * np.sqrt(density / density.mean())) * around, color="#d5deea", linewidth=0)
        plot.fill(*1.35 * around, color="white", linewidth=0)
        plot.plot(*around, color=GREY, linewidth=0.6)
        drawn = plot.scatter(*(points * blur).T, c=labels, cmap="tab10", s=5, vmin=-0.5, vmax=9.5, linewidths=0,
                             zorder=3)
        plot.text(0, 0, f"kNN {metrics['knn']:.0%}", ha="center", va="center", fontsize=10)
        plot.set(xlim=(-1.85, 1.85), ylim=(-1.85, 1.85), aspect="equal",
                 title=f"{name}\nalignment {metrics['alignment']:.2f}, uniformity {metrics['uniformity']:.2f}")
        plot.axis("off")
    for name, _, metrics in circles:
        plane.plot(metrics["alignment"], metrics["uniformity"], "o", color=BLUE)
        left = metrics["alignment"] > 1
        plane.annotate(name, (metrics["alignment"], metrics["uniformity"]), xytext=(0, 14) if left else (7, 0),
                       textcoords="offset points", ha="center" if left else "left", va="center", fontsize=9)
    plane.axhline(floor, color=RED, linestyle="--", linewidth=1)
    plane.text(2, floor - 0.02, f"floor of uniformity, {floor:.3f}", ha="right", va="top", fontsize=9, color=RED)
    plane.set(xlabel="alignment (0: views coincide)", ylabel="uniformity (0: collapsed)", xlim=(-0.1, 2.05),
              ylim=(floor - 0.2, 0.1))
    figure.legend(drawn.legend_elements(num=range(len(class_names)))[0], class_names, loc="lower center",
                  ncols=len(class_names), fontsize=9, frameon=False, handletextpad=0)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(run.folder / "circle.png")
