"""Pictures for a lecture: 1600 x 900 pixels, large letters, and one message, the title.

The colours are Okabe & Ito's, which colour-blind readers can tell apart. A line or bar is the mean over seeds, and
each seed is a dot.
"""

import numpy as np

from minicl import viz

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#8c8c8c", "#222222"


def slide(title, *, panels=1, widths=None, bottom=0.14, top=0.72, left=0.09, right=0.97, wspace=0.3):
    """A figure with its message on top (two lines at most) and `panels` axes side by side -> figure, [axes]."""
    figure = viz.Figure(figsize=(10.67, 6), dpi=150)
    figure.text(0.03, 0.96, title, fontsize=21, fontweight="bold", va="top", color=INK, linespacing=1.25)
    axes = figure.subplots(1, panels, squeeze=False, width_ratios=widths)[0]
    figure.subplots_adjust(left, bottom, right, top, wspace=wspace)
    for plot in axes:
        plain(plot)
    return figure, list(axes)


def plain(plot):
    """Axes with large letters and no box."""
    plot.tick_params(labelsize=15, length=4, color=GREY)
    plot.spines[["top", "right"]].set_visible(False)
    plot.spines[["left", "bottom"]].set_color(GREY)
    plot.xaxis.label.set_size(16)
    plot.yaxis.label.set_size(16)


def heading(plot, text):
    """The meaning of the vertical axis, written above it."""
    plot.set_title(text, fontsize=17, loc="left", pad=14, color=INK)


def percent(plot, low=0, high=100, step=20):
    ticks = range(low, high + 1, step)
    plot.set(ylim=(low, high), yticks=ticks, yticklabels=[f"{y} %" for y in ticks])


def line(plot, xs, values, colour, **look):
    """Means of values (seeds, n) over xs, and every seed's as a dot."""
    plot.plot(xs, values.mean(axis=0), color=colour, linewidth=3.5, marker="o", markersize=10, **look)
    for one in values:
        plot.plot(xs, one, color=colour, linestyle="none", marker="o", markersize=4, alpha=0.6)


def bar(plot, x, values, colour, *, width=0.38, form="{:.1f}", label=None):
    """One bar at x, the mean of values (seeds,), with its number above it and every seed as a dot."""
    plot.bar(x, values.mean(), width, color=colour, label=label)
    plot.plot(np.full(len(values), x), values, linestyle="none", marker="o", markersize=4, color=INK, alpha=0.7)
    plot.annotate(form.format(values.mean()), (x, values.max()), xytext=(0, 6), textcoords="offset points",
                  ha="center", fontsize=16, fontweight="bold", color=colour)


def chance(plot, y, text="chance", *, x=0.02, ha="left", va="top"):
    plot.axhline(y, color=GREY, linestyle="--", linewidth=1.5)
    plot.annotate(text, (x, y), xycoords=plot.get_yaxis_transform(), xytext=(0, {"top": -3, "bottom": 3}.get(va, 0)),
                  textcoords="offset points", ha=ha, va=va, fontsize=14, color=GREY)


def note(plot, x, y, text, colour, **place):
    """A label beside a line, in its colour, instead of a legend."""
    plot.text(x, y, text, color=colour, fontsize=17, fontweight="bold", **place)


def picture(figure, image, left, bottom, size):
    """An image (H, W, 1 or 3) in [0, 1] at a place given in fractions of the figure's width and height."""
    plot = figure.add_axes((left, bottom, size, size * 16 / 9))
    plot.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    plot.set(xticks=[], yticks=[])
    return plot
