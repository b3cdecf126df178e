"""Pictures that several examples draw, like minicl.viz: from a path and arrays to one PNG file."""

import math
import textwrap
from collections.abc import Sequence

from minicl import viz
from minicl.typing import HostArray


@viz.needs_matplotlib
def line_plots(path, *plots: dict) -> None:
    """Line plots side by side.

    A plot is a dict: "lines" is a list of (label, xs, ys, matplotlib's keywords for the line); the rest are settings of
    its axes, such as title, xlabel, ylabel, ylim.
    """
    figure = viz.Figure(figsize=(4.8 * len(plots), 3.6), dpi=150)
    for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots):
        for label, xs, ys, look in plot["lines"]:
            axes.plot(xs, ys, label=label, **look)
        axes.set(**{key: value for key, value in plot.items() if key != "lines"})
        low, high = plot.get("ylim", (0, 1))
        if high is None and low < axes.dataLim.y1 < math.inf:            # matplotlib's margin is a share of the data's range
            axes.set_ylim(low, low + 1.05 * (axes.dataLim.y1 - low))
        axes.legend(fontsize=8, frameon=False)
    viz.save_figure(figure, path)


@viz.needs_matplotlib
def caption_grid(path, images: HostArray, captions: Sequence[str], right: HostArray, *, title: str,
                 columns: int = 3) -> None:
    """Images (n, H, W, 3), each beside its caption, which is red where right (n,) is False."""
    rows = -(-len(images) // columns)
    figure = viz.Figure(figsize=(3.3 * columns, 1.05 * rows + 0.4), dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for plot in axes:
        plot.axis("off")
    for plot, image, caption, is_right in zip(axes, images, captions, right):
        plot.imshow(image, interpolation="nearest")
        plot.set_anchor("W")
        plot.text(1.08, 0.5, textwrap.fill(caption, 28), transform=plot.transAxes, va="center", fontsize=8, parse_math=False,
                  color="black" if is_right else viz.RED)
    figure.suptitle(title, fontsize=10)
    viz.save_figure(figure, path)
