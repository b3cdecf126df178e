"""Claim 4: a contrastive loss trades alignment against uniformity; on a circle it can be watched."""

import numpy as np

from .. import viz
from ..backend import to_device, to_host
from ..contrastive import alignment_loss, l2_normalize, nt_xent, uniformity_loss
from ..data import mnist_views, two_views
from ..evaluate import alignment, encode, to_float, uniformity, uniformity_floor
from ..methods import SimCLR
from .laboratory import NOT_REPRODUCED, REPRODUCED, Claim, mean_spread
from .training import contrastive, digits, encoder_and_head, train

CLAIM = Claim(
    number=4, name="alignment_uniformity",
    title="The loss trades alignment against uniformity",
    says="A contrastive loss wants two things that are in each other's way: views of one image at one place "
         "(alignment), and all images spread over the sphere (uniformity). Either alone has a useless best, one "
         "point for everything or a sphere without meaning; with many negatives NT-Xent tends to a sum of the two.",
    mathematics="""\
For unit vectors, x and y of one image, x and x' of two:

```text
alignment    E |x - y|^2                     0 when the views coincide, 2 when they have nothing to do with each other
uniformity   log E exp(-2 |x - x'|^2)        0 when collapsed; at least log 0F1(; d/2; 4) - 4, by points spread evenly
NT-Xent      -> alignment / (2 tau) + log E exp(x . x' / tau) + constant       as N grows: its own two halves
```""",
    source="Wang & Isola 2020, sections 4.1 and 4.2, figure 3",
    next="Weigh the two: alignment + w uniformity, for w from 0.1 to 10. Where does NT-Xent lie on that curve, and "
         "how does it move with tau?",
    published={"floor, d = 2": "-1.575", "floor, d = 3": "-2.080", "floor, d = 128": "-3.9375", "collapsed": "0"})

LOSSES = {
    "alignment only": lambda z1, z2, tau: alignment_loss(z1, z2),
    "uniformity only": lambda z1, z2, tau: (uniformity_loss(z1) + uniformity_loss(z2)) / 2,
    "both": lambda z1, z2, tau: alignment_loss(z1, z2) + (uniformity_loss(z1) + uniformity_loss(z2)) / 2,
    "NT-Xent": nt_xent,
}
RUNS = [(name, loss, 2) for name, loss in LOSSES.items()] + [("NT-Xent in 128 dimensions", nt_xent, 128)]
COLOURS = dict(zip([name for name, *_ in RUNS], (viz.GREY, "#e08000", "#4e9a06", viz.BLUE, viz.RED)))


def measure(setting):
    rng, xp = np.random.default_rng(setting.seed), setting.xp
    figures = {"collapsed": uniformity(xp.ones((1000, 3)))}
    for d in (2, 3, 128):
        points = rng.standard_normal((setting.pick(2000, 8000, 30_000), d))
        figures |= {f"floor, d = {d}": uniformity_floor(d), f"drawn, d = {d}": uniformity(to_device(points, xp))}

    data = digits(setting, train=(1000, 10_000, 60_000))
    test = data.test_images[:1000]
    view1, view2 = two_views(mnist_views(), to_float(test, np), rng)         # the same for all
    for name, loss, dim in RUNS:
        model = SimCLR(*encoder_and_head(data, setting, dim=dim)).to(xp)
        curve = train(model, contrastive(tau=0.25, loss=loss), data.train_images, setting,
                      steps=setting.pick(200, 400, 4000), batch=setting.pick(64, 256, 256), lr=1e-2, watch=halves)
        z1, z2 = (encode(model, view, xp, prepare=to_device)[1] for view in (view1, view2))
        figures.update({f"alignment, {name}": alignment(z1, z2), f"uniformity, {name}": uniformity(z1),
                        f"alignment in training, {name}": curve["alignment"],
                        f"uniformity in training, {name}": curve["uniformity"]})
        if dim == 2:
            figures[f"points, {name}"] = np.round(to_host(l2_normalize.raw(z1[:400])[0]), 3)
    figures["classes of the points"] = data.test_labels[:400]
    return figures


def halves(z):
    """Of the two views of a batch, z (2N, d)."""
    N = len(z) // 2
    return {"alignment": alignment(z[:N], z[N:]), "uniformity": uniformity(z[:N])}


def judge(figures):
    exact = {"floor, d = 2": -1.575, "floor, d = 3": -2.080, "floor, d = 128": -3.9375, "collapsed": 0.0}
    wrong = [name for name, value in exact.items() if np.abs(figures[name] - value).max() > 5e-4]
    if wrong:
        return NOT_REPRODUCED, f"{', '.join(wrong)} differs from the exact figure"
    apart = {name: figures[f"alignment, {name}"] for name in COLOURS}
    even = {name: figures[f"uniformity, {name}"] for name in COLOURS}
    floor, noise = uniformity_floor(2), 0.02             # of the uniformity of a thousand points
    if (even["alignment only"] < 0.1 * floor).any() or (even["uniformity only"] > 0.9 * floor).any():
        return NOT_REPRODUCED, "a loss that wants one half only has not got it"
    for name in ("both", "NT-Xent"):
        if (apart[name] < apart["alignment only"]).any() or (even[name] < even["uniformity only"] - noise).any():
            return NOT_REPRODUCED, f"{name} does better than the loss that wants one half only"
        if (apart[name] > 0.5 * apart["uniformity only"]).any() or (even[name] > 0.5 * floor).any():
            return NOT_REPRODUCED, f"{name} does not get more than half of each"
    return REPRODUCED, (f"floors exact; on the circle NT-Xent has alignment {apart['NT-Xent'].mean():.2f} and "
                        f"uniformity {even['NT-Xent'].mean():.2f}, for every seed between the losses that want one "
                        "half only")


def table(figures):
    rows = [(f"uniformity of even points, d = {d}", CLAIM.published[f"floor, d = {d}"],
             f"{figures[f'floor, d = {d}'][0]:.4f}; drawn {mean_spread(figures[f'drawn, d = {d}'], '.4f')}")
            for d in (2, 3, 128)]
    rows.append(("uniformity of one point", CLAIM.published["collapsed"], mean_spread(figures["collapsed"], ".4f")))
    return rows + [(f"{name}: alignment, uniformity", "", f"{mean_spread(figures[f'alignment, {name}'], '.2f')}, "
                    + mean_spread(figures[f"uniformity, {name}"], ".2f")) for name in COLOURS]


def draw(figures, path):
    figure = viz.Figure(figsize=(11, 6.6), dpi=150)
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 1.15))
    labels = figures["classes of the points"][0]
    blur = 1 + 0.09 * np.random.default_rng(0).standard_normal((len(labels), 1))         # points beside each other
    angles = np.linspace(0, 2 * np.pi, 361)
    for k, name in enumerate(LOSSES):
        axes = figure.add_subplot(grid[0, k])
        axes.plot(np.cos(angles), np.sin(angles), color=viz.GREY, linewidth=0.6)
        axes.scatter(*(figures[f"points, {name}"][0] * blur).T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=5,
                     linewidths=0, zorder=3)
        axes.text(0, 0, "\n".join(f"{half} {figures[f'{half}, {name}'][0]:.2f}"
                                  for half in ("alignment", "uniformity")), ha="center", va="center", fontsize=9)
        axes.set(title=name, aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
        axes.axis("off")
    for k, (quantity, title) in enumerate((("alignment", "alignment in training, E|x - y|^2"),
                                           ("uniformity", "uniformity in training, log E exp(-2|x - x'|^2)"))):
        axes = figure.add_subplot(grid[1, 2 * k:2 * k + 2])
        for name, color in COLOURS.items():
            curves = figures[f"{quantity} in training, {name}"]
            for seed, curve in enumerate(curves):
                axes.plot(np.linspace(0, 1, len(curve)), curve, color=color, linewidth=1,
                          label=None if seed else name)
        axes.set(title=title, xlabel="part of the training done")
        if quantity == "uniformity":
            for d in (2, 128):
                axes.axhline(uniformity_floor(d), color="black", linestyle="--", linewidth=1)
                axes.text(0.5, uniformity_floor(d) - 0.03, f"floor, d = {d}", va="top", ha="center", fontsize=9)
            axes.set(ylim=(-4.4, 0.1))
        else:
            axes.set(ylim=(-0.1, 3.1))
            axes.legend(fontsize=9, frameon=False, ncols=2, loc="upper center")
    figure.suptitle("where each loss puts views of test digits on the circle (colour: the digit; radius: jitter)",
                    fontsize=11)
    viz.save_figure(figure, path)
