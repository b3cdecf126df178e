"""Claim 4: a contrastive loss trades alignment against uniformity; on a circle it can be watched."""

import numpy as np

from circle import LOSSES
from minicl.backend import to_device, to_host
from minicl.contrastive import l2_normalize, nt_xent
from minicl.data import mnist_views, two_views
from minicl.evaluate import alignment, encode, to_float, uniformity, uniformity_floor
from minicl.methods import SimCLR
from minicl.viz import write_figure
from .laboratory import NOT_REPRODUCED, REPRODUCED, Claim, mean_std
from .slides import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, slide
from .training import contrastive, digits, encoder_and_head, train

CLAIM = Claim(
    number=4, name="alignment_uniformity",
    title="The loss trades alignment against uniformity",
    statement="A contrastive loss has two conflicting aims: the views of one image at one place (alignment), and all "
              "images spread over the sphere (uniformity). Each alone has a useless optimum, one point for all images "
              "or a sphere without meaning. With many negatives NT-Xent tends to a sum of the two.",
    mathematics="""\
For unit vectors, x and y of one image, x and x' of two:

```text
alignment    E |x - y|^2                     0 when the views coincide, 2 when they have nothing to do with each other
uniformity   log E exp(-2 |x - x'|^2)        0 when collapsed; at least log 0F1(; d/2; 4) - 4, by points spread evenly
NT-Xent      -> alignment / (2 tau) + E_x log E_x' exp(x . x' / tau) + constant    as N grows: its own two halves
```

0F1 is a hypergeometric function; 0F1(; 1; 4), for d = 2, is the Bessel function I_0(4).

In the picture's circles a colour is a digit, and the points are blurred so as to lie beside each other.""",
    source="Wang & Isola 2020, sections 4.1 and 4.2, figure 3",
    next="Weigh the two: alignment + w uniformity, for w from 0.1 to 10. Where does NT-Xent lie on that curve, and "
         "how does it move with tau?",
    published={"floor, d = 2": "-1.575", "floor, d = 3": "-2.080", "floor, d = 128": "-3.9375", "collapsed": "0"})

RUNS = [(name, loss, 2) for name, loss in LOSSES.items()] + [("NT-Xent in 128 dimensions", nt_xent, 128)]
COLOURS = dict(zip([name for name, *_ in RUNS], (GREY, ORANGE, GREEN, BLUE, PURPLE)))


def measure(setting):
    rng = np.random.default_rng(setting.seed)
    xp = setting.xp
    metrics = {"collapsed": uniformity(xp.ones((1000, 3)))}
    for d in (2, 3, 128):
        points = rng.standard_normal((setting.pick(2000, 8000, 30_000), d))
        metrics |= {f"floor, d = {d}": uniformity_floor(d), f"drawn, d = {d}": uniformity(to_device(points, xp))}

    data = digits(setting, train=(1000, 10_000, 60_000))
    test = data.test_images[:1000]
    view1, view2 = two_views(mnist_views(), to_float(test, np), rng)         # the same for all
    for name, loss, dim in RUNS:
        model = SimCLR(*encoder_and_head(data, setting, dim=dim)).to(xp)
        curve = train(model, contrastive(tau=0.25, loss=loss), data.train_images, setting,
                      steps=setting.pick(200, 400, 4000), batch=setting.pick(64, 256, 256), lr=1e-2, watch=halves)
        z1, z2 = (encode(model, view, xp, prepare=to_device)[1] for view in (view1, view2))
        metrics.update({f"alignment, {name}": alignment(z1, z2), f"uniformity, {name}": uniformity(z1),
                        f"alignment in training, {name}": curve["alignment"],
                        f"uniformity in training, {name}": curve["uniformity"]})
        if dim == 2:
            metrics[f"points, {name}"] = np.round(to_host(l2_normalize.forward(z1[:400])[0]), 3)
    metrics["classes of the points"] = data.test_labels[:400]
    return metrics


def halves(z):
    """Of the two views of a batch, z (2N, d)."""
    N = len(z) // 2
    return {"alignment": alignment(z[:N], z[N:]), "uniformity": uniformity(z[:N])}


def verdict(metrics):
    exact = {"floor, d = 2": -1.575, "floor, d = 3": -2.080, "floor, d = 128": -3.9375, "collapsed": 0.0}
    wrong = [name for name, value in exact.items() if np.abs(metrics[name] - value).max() > 5e-4]
    if wrong:
        return NOT_REPRODUCED, f"{', '.join(wrong)} differs from the exact value"
    apart = {name: metrics[f"alignment, {name}"] for name in COLOURS}
    even = {name: metrics[f"uniformity, {name}"] for name in COLOURS}
    floor = uniformity_floor(2)
    noise = 0.02                                         # of the uniformity of a thousand points
    if (even["alignment only"] < 0.1 * floor).any() or (even["uniformity only"] > 0.9 * floor).any():
        return NOT_REPRODUCED, "a loss of one half only does not reach it"
    for name in ("both", "NT-Xent"):
        if (apart[name] < apart["alignment only"]).any() or (even[name] < even["uniformity only"] - noise).any():
            return NOT_REPRODUCED, f"{name} is better in one half than the loss of that half alone"
        if (apart[name] > 0.5 * apart["uniformity only"]).any() or (even[name] > 0.5 * floor).any():
            return NOT_REPRODUCED, f"{name} does not get more than half of each"
    return REPRODUCED, (f"on the circle NT-Xent has alignment {apart['NT-Xent'].mean():.2f} and uniformity "
                        f"{even['NT-Xent'].mean():.2f}, for every seed between the losses of one half only; the "
                        "floors are exact")


def table(metrics):
    rows = [(f"uniformity of even points, d = {d}", CLAIM.published[f"floor, d = {d}"],
             f"{metrics[f'floor, d = {d}'][0]:.4f}; drawn {mean_std(metrics[f'drawn, d = {d}'], '.4f')}")
            for d in (2, 3, 128)]
    rows.append(("uniformity of one point", CLAIM.published["collapsed"], mean_std(metrics["collapsed"], ".4f")))
    return rows + [(f"{name}: alignment, uniformity", "", f"{mean_std(metrics[f'alignment, {name}'], '.2f')}, "
                    + mean_std(metrics[f"uniformity, {name}"], ".2f")) for name in COLOURS]


def draw(metrics, path):
    """Above, where each loss puts views of test digits on the circle; below, both halves in training."""
    apart, even = (metrics[f"{half}, NT-Xent"].mean() for half in ("alignment", "uniformity"))
    figure, halves_drawn = slide("Alignment alone: one point. Uniformity alone: views apart.\n"
                                 f"NT-Xent trades: alignment {apart:.2f}, uniformity {even:.2f}",
                                 panels=2, top=0.41, bottom=0.2, left=0.06, right=0.965, wspace=0.17)
    labels = metrics["classes of the points"][0]
    blur = 1 + 0.09 * np.random.default_rng(0).standard_normal((len(labels), 1))         # points beside each other
    angles = np.linspace(0, 2 * np.pi, 361)
    for k, name in enumerate(LOSSES):
        axes = figure.add_axes((0.03 + 0.24 * k, 0.48, 0.22, 0.31))
        axes.plot(np.cos(angles), np.sin(angles), color=GREY, linewidth=0.8)
        axes.scatter(*(metrics[f"points, {name}"][0] * blur).T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=7,
                     linewidths=0, zorder=3)
        axes.text(0, 0, name.replace(" ", "\n"), ha="center", va="center", fontsize=10, fontweight="bold",
                  color=COLOURS[name])
        axes.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        axes.axis("off")
    for axes, quantity, words in zip(halves_drawn, ("alignment", "uniformity"),
                                     ("alignment (0: views coincide)", "uniformity (0: collapsed)")):
        axes.set_title(words, fontsize=15, loc="left", pad=6, color=INK)
        for name, colour in COLOURS.items():
            for seed, curve in enumerate(metrics[f"{quantity} in training, {name}"]):
                axes.plot(np.linspace(0, 100, len(curve)), curve, color=colour, linewidth=2,
                          label=None if seed else name)
        axes.set(xlabel="% of training", xlim=(0, 100))
    for d in (2, 128):
        halves_drawn[1].axhline(uniformity_floor(d), color=INK, linestyle="--", linewidth=1.5)
        halves_drawn[1].text(99, uniformity_floor(d) - 0.1, f"floor, d = {d}", va="top", ha="right", fontsize=13)
    halves_drawn[1].set(ylim=(-4.9, 0.2))
    figure.legend(*halves_drawn[0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=13,
                  frameon=False)
    write_figure(figure, path)
