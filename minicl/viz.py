"""Pictures from arrays: each function takes a path and arrays, and writes one PNG file.

Pictures need matplotlib, the `viz` extra. Without it each function prints MISSING and draws nothing, so a run continues.
"""

import colorsys
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checks import require_ordered
from .files import write_atomically
from .typing import HostArray

BLUE, RED, GREY = "#3465a4", "#cc3333", "#888888"
ABSENT = "no pictures: they need matplotlib, pip install 'minicl[viz]'"


def _import_figure() -> tuple[Any, str]:
    """matplotlib's Figure, or None, and the reason why there are no pictures. A Figure works without pyplot's global state.

    matplotlib cannot be imported if MPLBACKEND names a backend that it can't load, as in a Jupyter terminal. A Figure needs
    none, so the variable is hidden during the import and then applied as matplotlib would, if possible.
    """
    first = "matplotlib" not in sys.modules
    backend = os.environ.pop("MPLBACKEND", None) if first else None
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except Exception as error:                               # compiled for another NumPy: several kinds, by version
        absent = isinstance(error, ModuleNotFoundError) and error.name == "matplotlib"
        return None, ABSENT if absent else _broken(error)
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return Figure, ABSENT


def _broken(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (f"no pictures: matplotlib is installed but its import fails ({reason}); it may be too old for NumPy "
            f"{np.__version__}: pip install --upgrade 'minicl[viz]'")


Figure, MISSING = _import_figure()


def needs_matplotlib(draw: Callable) -> Callable:
    """Decorator of draw(path, ...): without matplotlib it prints MISSING instead."""
    @functools.wraps(draw)
    def call(path, *args, **options):
        if Figure is None:
            print(MISSING, flush=True)
        else:
            draw(path, *args, **options)
    return call


@needs_matplotlib
def image_grid(path, rows: Sequence[HostArray], *, title: str | None = None, row_labels: Sequence[str] = ()) -> None:
    """Rows of images, each (n, H, W, 1 or 3) with values in [0, 1]."""
    require_ordered("image_grid", rows=rows, row_labels=row_labels)
    n = max(map(len, rows))
    figure = Figure(figsize=(0.55 * n + 1.2, 0.58 * len(rows) + 0.6), dpi=150)
    plot = figure.subplots()                                 # one for all images, since each takes 20 ms
    plot.set_axis_off()
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            height, width = (0.45 * side / max(image.shape[:2]) for side in image.shape[:2])
            image = image[..., 0] if image.shape[-1] == 1 else image
            plot.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest",
                        extent=(c - width, c + width, r + height, r - height))
        if r < len(row_labels):
            plot.text(-0.7, r, row_labels[r], ha="right", va="center", fontsize=8)
    plot.set(xlim=(-0.5, n - 0.5), ylim=(len(rows) - 0.5, -0.5))
    if title:
        figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


EVALUATED = {"kNN accuracy": ("knn_h", "knn_z"), "effective rank": ("rank_h", "rank_z")}


@needs_matplotlib
def training_curves(path, log: Sequence[dict], *, candidates: int, floor: float) -> None:
    """Loss against chance, the alignment and uniformity of z, and kNN and effective rank where the log has them, by step.

    log    lines with step and loss, and some with alignment and uniformity; chance: each line's, else log(candidates)
    floor  the lowest uniformity of many points
    """
    steps = [line["step"] for line in log]
    losses = [line["loss"] for line in log]
    chance = [line["chance"] if "chance" in line else np.log(candidates) for line in log]    # rises with the candidates
    logged = {name for line in log for name in line}
    evaluated = [(title, names) for title, names in EVALUATED.items() if logged.issuperset(names)]
    figure = Figure(figsize=(9 + 4 * len(evaluated), 3.2), dpi=150)
    left, right, *others = figure.subplots(1, 2 + len(evaluated))
    left.plot(steps, losses, color=BLUE)
    left.plot(steps, chance, color=GREY, linestyle="--", linewidth=1)
    beside = {"textcoords": "offset points", "fontsize": 8, "color": GREY}
    left.annotate(f"chance, log {np.exp(chance[-1]):.0f}", (steps[-1], chance[-1]), (0, 2), ha="right", va="bottom",
                  **beside)
    left.set(xlabel="step", ylabel="loss (nats)", title="loss", ylim=(0, 1.12 * max(chance + losses) or 1))
    for name, colour, label in (("alignment", BLUE, "0: views coincide"), ("uniformity", RED, "0: collapsed")):
        known = [(line["step"], line[name]) for line in log if line.get(name) is not None]
        right.plot(*zip(*known or [(steps[0], np.nan)]), color=colour, label=f"{name} ({label})")
    right.axhline(floor, color=GREY, linestyle="--", linewidth=1)
    right.annotate("floor of uniformity", (steps[0], floor), (0, -2), va="top", **beside)
    low, high = right.get_ylim()
    room = (high - low) / 4                                              # for the legend; half of it for the floor's label
    right.set(xlabel="step", title="geometry of z", ylim=(min(low, floor - room / 2), high + room))
    right.legend(fontsize=8, frameon=False, loc="upper right")
    for plot, (title, names) in zip(others, evaluated):
        for name, colour in zip(names, (BLUE, RED)):
            plot.plot(*zip(*[(line["step"], line[name]) for line in log if name in line]), "o-", color=colour, markersize=3,
                      label=f"of {name[-1]}")
        plot.set(xlabel="step", title=title, xlim=left.get_xlim())
        plot.legend(fontsize=8, frameon=False)
    for plot in (left, right, *others):
        plot.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


@needs_matplotlib
def embedding_map(path, positions: HostArray, labels: HostArray, class_names: Sequence[str], *, title: str) -> None:
    """Points at positions (N, 2), coloured by class; labels (N,) are indices into class_names. A legend names 2 to 30."""
    require_ordered("embedding_map", class_names=class_names)
    figure = Figure(figsize=(5.2, 4.6), dpi=150)
    plot = figure.subplots()
    n = len(class_names)
    for label, name in enumerate(class_names):
        colour = f"C{label}" if n <= 10 else colorsys.hsv_to_rgb(label / n, 0.9, 0.6 + 0.35 * (label % 2))
        shown = " " * name.startswith("_") + name.replace("$", r"\$")        # a legend leaves labels with a first _ out
        plot.scatter(*positions[labels == label].T, label=shown, color=colour, s=5, linewidths=0)
    if 1 < len(class_names) <= 30:
        plot.legend(fontsize=8, markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plot.set(xticks=[], yticks=[], title=title)
    save_figure(figure, path)


def save_figure(figure: Any, path, *, rect: tuple | None = None) -> None:
    """Write a Figure; rect: the part of it for the axes."""
    figure.tight_layout(rect=rect)
    write_figure(figure, path)


def write_figure(figure: Any, path) -> None:
    """Write a Figure as it is. If that fails or is killed, a file at the path stays as it was."""
    write_atomically(path, lambda file: figure.savefig(file, format=Path(path).suffix[1:] or "png"))
