"""Shared by the scripts in this folder: a small training run, and a table and a picture of two runs side by side.

Each script has one mistake that was really made in this field, beside the correct code. The wrong lines are in the script,
not in the library. docs/bugs.md lists the bugs, with hints. Their main() runs in one thread, `@threads(1)`: for products
this small, starting a second thread and waiting for it costs more than it saves.
"""

import argparse
import functools
import math
import sys
from pathlib import Path

import numpy as np

from minicl import no_grad, viz
from minicl.contrastive import nt_xent
from minicl.data import Batches, generate_digits, mnist_views, two_views
from minicl.evaluate import nearest_neighbours, to_float
from minicl.methods import SimCLR
from minicl.nn import MLP, projection_head
from minicl.optim import AdamW

TAU = 0.1
BATCH = 128
FOLDER = Path("runs/bugs")                              # where pictures go, below where the script is called


@functools.cache
def digits(n_train=1500, n_test=500):
    """Generated digits: training images (n, 28, 28, 1) in [0, 1] and their labels, test images and theirs."""
    data = generate_digits(n_train, n_test, seed=0)
    return to_float(data.train_images, np), data.train_labels, to_float(data.test_images, np), data.test_labels


def small_model(rng, dim=64):
    """An encoder and a head that learn something within a hundred steps: images -> h (B, 128), z (B, dim)."""
    encoder = MLP((28, 28, 1), (256, 128), rng=rng)
    return SimCLR(encoder, projection_head("mlp", encoder.features, hidden=128, dim=dim, rng=rng))


def train(loss_of, steps, *, views=None, images=1500, make_optimizer=None, dim=64, seed=0):
    """SimCLR's loop in small, on the first `images` digits: (the trained model, the loss of each step).

    loss_of(z1, z2) -> loss ();  views(ids of images, rng) -> view1, view2;  make_optimizer(model)
    dim: of z
    """
    rng = np.random.default_rng(seed)
    model = small_model(rng, dim)
    optimizer = (make_optimizer or functools.partial(AdamW, lr=3e-3))(model)
    views = views or fresh_views
    batches = Batches(images, BATCH, seed=seed)
    losses = []
    for step in range(steps):
        z = model(np.concatenate(views(batches[step], rng)))[1]                  # (2N, d)
        loss = loss_of(z[:BATCH], z[BATCH:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def fresh_views(ids, rng):
    return two_views(mnist_views(), digits()[0][ids], rng)


def usual_loss(z1, z2):
    return nt_xent(z1, z2, TAU)


def finds_other_view(model):
    """The share of 500 test images whose other view is the nearest of 500 in z: the loss's task, on unseen images."""
    view1, view2 = two_views(mnist_views(), digits()[2], np.random.default_rng(1))
    model.eval()
    with no_grad():
        z1, z2 = model(view1)[1].data, model(view2)[1].data
    model.train()
    near = nearest_neighbours(z2, z1, k=1)[:, 0]
    return float((near == np.arange(len(z1))).mean())


def compare(name, *, correct, wrong, curve, x="step", lines=None, log=False):
    """Print a table of two runs, draw their curves if matplotlib is installed, and return {"correct": ..., "wrong": ...}.

    correct, wrong  {name: number or list of numbers}; the table shows a list's first and last number, and where on x
    curve           which list to draw; x: its horizontal axis, the name of another list or of what is counted
    lines           {label: height} of dashed lines, such as chance
    """
    rows = [(name, "correct", "wrong")]
    at = correct.get(x, ())
    for what, value in correct.items():
        if not isinstance(value, list):
            rows.append((what, _figure(value), _figure(wrong[what])))
        elif what != x:
            ends = [f"{x} {at[k]:g}" for k in (0, -1)] if len(at) == len(value) else ["first step", "last"]
            rows += [(f"{what}, {end}", _figure(value[k]), _figure(wrong[what][k])) for end, k in zip(ends, (0, -1))]
    width = max(len(row[0]) for row in rows)
    for what, here, there in rows:
        print(f"{what:{width}}{here:>12}{there:>12}")
    if viz.Figure is None:
        print(viz.MISSING, file=sys.stderr)
    else:
        _draw(FOLDER / f"{name}.png", {"correct": correct, "wrong": wrong}, curve, x, lines, log)
        print(f"picture: {FOLDER / f'{name}.png'}")
    return {"correct": correct, "wrong": wrong}


def _figure(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(path, runs, curve, x, lines, log):
    figure = viz.Figure(figsize=(5, 2.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    for (label, run), colour, style in zip(runs.items(), (viz.BLUE, viz.RED), ("-", "--")):
        along = run.get(x, range(len(run[curve])))
        axes.plot(along, run[curve], color=colour, linestyle=style, label=label)
        gone = [k for k, value in enumerate(run[curve]) if not math.isfinite(value)]
        if gone:
            axes.axvline(along[gone[0]], color=colour, linewidth=1, linestyle=":", label=f"{label}: NaN from here on")
    for label, height in (lines or {}).items():
        axes.axhline(height, color=viz.GREY, linewidth=1, linestyle="-.", label=label)
    axes.set(xlabel=x, ylabel=curve, yscale="log" if log else "linear")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    viz.write_figure(figure, path)


def start(main):
    """Run a script of this folder, which has no option but --help."""
    argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").split("\n\n")[0]).parse_args()
    main()
