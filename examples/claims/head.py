"""Claim 8: a projection head makes a better representation, and the representation is what stands before it."""

from dataclasses import replace

import numpy as np

from minicl.evaluate import linear_probe
from minicl.methods import SimCLR
from minicl.nn import HEADS
from minicl.viz import write_figure
from .colour import coloured, hue_views
from .head_discards import rotations, transform
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std
from .slides import BLUE, GREY, ORANGE, bar, heading, slide
from .training import contrastive, digits, encoder_and_head, frozen_features, train

CLAIM = Claim(
    number=8, name="head", seeds=(3, 4, 5, 6, 7, 8, 9),             # three do not settle MLP against linear
    title="The projection head is critical, and it is not the representation",
    statement="An encoder trained through a projection head has a better representation h than one trained without. h "
              "is also better than z, the output of the head that the loss compares, so the head is removed after "
              "training. On ImageNet an MLP is the better head.",
    mathematics="""\
```text
h = f(x)                     kept: probed, fine-tuned, deployed
z = g(h)                     what the loss compares; thrown away

none     z = h               the loss makes h itself invariant to all that the augmentation does
linear   z = W h             h may keep what W maps to 0
MLP      z = W2 relu(W1 h)   h may keep more, in forms that only g unlearns
```

The harder data are the same digits in ten colours, rotated by quarter turns; views rotate the image and its hue at
random.""",
    source="Chen et al. 2020 (SimCLR), section 4.2 and figure 8 (ImageNet, linear evaluation)",
    next="CIFAR-10 (minicl.data.load_cifar10) is harder again. Is an MLP the better head there after 300 steps, and after "
         "3000? Begin with encoder_and_head(channels=(32, 64, 128)).",
    published={"MLP head over none, at h": "> +10", "h over z, MLP head": "> +10",
               "MLP head over linear, at h": "+3"})

ROWS = {"MLP head over none, at h": ("mlp head, h", "none head, h"),
        "h over z, MLP head": ("mlp head, h", "mlp head, z"),
        "MLP head over linear, at h": ("mlp head, h", "linear head, h"),
        "linear head over none, at h": ("linear head, h", "none head, h"),
        "h over z, linear head": ("linear head, h", "linear head, z")}
OVER_NONE, _, OVER_LINEAR, *_ = ROWS
TURNED = "turned: "                           # of the rows of the harder data
ROWS |= {f"{TURNED}{row}": tuple(f"{TURNED}{name}" for name in pair) for row, pair in list(ROWS.items())[:3]}

TAU = 0.5                                     # as SimCLR has it for small images
T_AT_5_PERCENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}   # by seeds


def measure(setting):
    data = digits(setting, test=(2000, 5000, 10_000))
    metrics = {"untrained, h": probes(SimCLR(*encoder_and_head(data, setting)).to(setting.xp), data, setting)["h"]}

    def learn(head, data, row, **options):
        model = SimCLR(*encoder_and_head(data, setting, head=head, hidden=256)).to(setting.xp)      # as wide as h
        train(model, contrastive(TAU), data.train_images, setting, steps=setting.pick(150, 400, 5000),
              batch=setting.pick(128, 256, 256), **options)
        found = probes(model, data, setting)
        metrics.update({f"{row}{head} head, {space}": accuracy for space, accuracy in found.items()})
        setting.print(f"    {row}{head} head: linear probe of h {found['h']:.1%}, of z {found['z']:.1%}")

    for head in setting.pick(("none", "mlp"), HEADS, HEADS):
        learn(head, data, "")
    harder, views = turned(data, np.random.default_rng([setting.seed, 2]))
    for head in setting.pick((), HEADS, HEADS):
        learn(head, harder, TURNED, views=views)
    return metrics


def turned(data, rng):
    """Digits in colours, rotated by quarter turns, and views that rotate their hue and the image at random."""
    data, _ = coloured(data, rng)
    train_images, test_images = (transform(rotations, images, rng)[0] for images in (data.train_images, data.test_images))
    augment = hue_views(0.5)

    def views(images, rng):
        return [transform(rotations, augment(images, rng), rng)[0] for _ in range(2)]

    return replace(data, train_images=train_images, test_images=test_images), views


def probes(model, data, setting):
    """Test accuracies of the linear probe: {"h", "z"}."""
    return {space: linear_probe(trained, data.train_labels, tested, data.test_labels)
            for space, trained, tested in zip("hz", *frozen_features(model, data, setting))}


def differences(metrics):
    """{row: points (seeds,)}: each seed against itself, for the seed moves all of them alike."""
    return {row: 100 * (metrics[more] - metrics[less]) for row, (more, less) in ROWS.items()
            if {more, less} <= metrics.keys()}


def verdict(metrics):
    """The head must gain at h, and h must be above z, in every seed. Whether an MLP gains more than a linear head is
    part of the reason but not of the verdict: the claim is about having a head."""
    gains = differences(metrics)
    missing = [row for row in (OVER_NONE, "h over z, MLP head") if not (gains[row] > 0).all()]
    points = {row: mean_std(gain, "+.1f") for row, gain in gains.items()}
    more = OVER_LINEAR in gains and (gains[TURNED + OVER_NONE] > gains[OVER_NONE]).all()         # not in the fast form
    reason = (f"an MLP head gains {points[OVER_NONE]} points of the linear probe at h over no head"
              + (" (less than on ImageNet, because plain digits are easy)" if more else "")
              + f", and h is {points['h over z, MLP head']} above z")
    if OVER_LINEAR in gains:
        reason += (f". On coloured digits in quarter turns it gains {points[TURNED + OVER_NONE]} over no head. "
                   f"Over a linear head it gains {points[OVER_LINEAR]}, on the turned digits "
                   f"{points[TURNED + OVER_LINEAR]}, above 0 in {(gains[TURNED + OVER_LINEAR] > 0).sum()} of "
                   f"{len(gains[OVER_LINEAR])} seeds: {significance(gains[TURNED + OVER_LINEAR])}")
    return (NOT_REPRODUCED, f"{reason}; not in every seed: {', '.join(missing)}") if missing else (QUALITATIVE, reason)


def significance(gain):
    """Whether the mean of gain (seeds,) differs from 0, by Student's t-test at 5 %, in words."""
    n = len(gain)
    if n not in T_AT_5_PERCENT or not np.ptp(gain):
        return "too few seeds for a test"
    t = gain.mean() / (gain.std(ddof=1) / n**0.5)
    need = T_AT_5_PERCENT[n]
    return (f"that an MLP is the better head there is {'significant' if t > need else 'not settled'} (t = {t:.1f}, and "
            f"{need:g} is significant at 5 %)")


def table(metrics):
    names = {"untrained, h": "h, before training"}
    for row, data in (("", ""), (TURNED, "turned digits: ")):
        names |= {f"{row}{head} head, {space}": f"{data}{space}, {words} head"
                  for head, words in (("none", "no"), ("linear", "linear"), ("mlp", "MLP"))
                  for space in "hz" if head != "none" or space == "h"}
    rows = [(f"linear probe of {text}", "", mean_std(metrics[name], ".1f", " %"))
            for name, text in names.items() if name in metrics]
    return rows + [(f"{row}, points", CLAIM.published.get(row, ""), mean_std(gain, "+.1f"))
                   for row, gain in differences(metrics).items()]


def draw(metrics, path):
    """Errors, not accuracies: bars may then begin at 0."""
    errors = {name: 100 * (1 - values) for name, values in metrics.items()}
    both = f"{TURNED}mlp head, h" in errors                                  # not in the fast form
    figure, panels = slide(f"Train through a head, then throw it away: {errors['mlp head, h'].mean():.1f} % errors\n"
                           f"before it, {errors['mlp head, z'].mean():.1f} % after it, "
                           f"{errors['none head, h'].mean():.1f} % without a head", panels=1 + both, wspace=0.2, bottom=0.2)
    for plot, row in zip(panels, ("", TURNED)):
        bar(plot, 0, errors[f"{row}none head, h"], BLUE)
        for x, head in ((1, "linear"), (2, "mlp")):
            if f"{row}{head} head, h" in errors:
                bar(plot, x - 0.2, errors[f"{row}{head} head, h"], BLUE, label="at h, kept" if x == 2 else None)
                bar(plot, x + 0.2, errors[f"{row}{head} head, z"], ORANGE, label="at z, thrown away" if x == 2 else None)
        plot.set(xlim=(-0.6, 2.6), ylim=(0, 1.2 * max(values.mean() for name, values in errors.items()
                                                      if name.startswith(TURNED) == (row == TURNED))))
        plot.set_xticks(range(3), ["no head\nz = h", "linear head\nz = W h", "MLP head\nz = g(h)"], fontsize=15)
        heading(plot, "errors, digits in colour, turned (%)" if row else
                "errors of the linear probe, digits (%)" if both else "errors of the linear probe (%)")
    untrained = errors["untrained, h"].mean()
    panels[0].axhline(untrained, color=GREY, linestyle="--", linewidth=1.5)
    panels[0].text(-0.55, untrained, "h before training", fontsize=14, color=GREY, va="bottom")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", fontsize=15, frameon=False, ncols=2,
                  bbox_to_anchor=(0.97, -0.01))
    write_figure(figure, path)
