"""Claim 10: with colour left to both views the encoder learns colour; with hue jitter it learns the digit."""

from dataclasses import replace
from functools import partial

import numpy as np

from minicl.data import draw_digits, mnist_views, two_views
from minicl.data.augment import ColorJitter, Compose
from minicl.data.augment.photometric import hue_rotation
from minicl.evaluate import linear_probe
from minicl.methods import SimCLR
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std
from .slides import BLUE, INK, ORANGE, chance, heading, line, note, percent, picture, slide
from .training import contrastive, digits, encoder_and_head, frozen_features, train

CLAIM = Claim(
    number=10, name="colour",
    title="Augmentation decides which information survives",
    statement="Digits are given a random colour. If both views of an image keep it, colour helps to tell images "
              "apart, and the encoder learns less about the digit. If the hue of each view is rotated at random, "
              "colour is useless to the loss, and the encoder drops it in favour of the digit.",
    mathematics="""\
What the loss can use is what both views share, I(view 1; view 2). Each image shows a digit y in a colour c, which are
independent:

```text
hue left alone            both views show y and c      I counts c in full
hue turned by U(-a, a)    view 2's hue tells less      a = 0.5 turns: nothing; c is left out of I,
                          of view 1's as a grows       and an encoder gains nothing by keeping it
```

All colours have the same brightness (luma), which turning the hue does not change, so it does not give them away.""",
    source="Chen et al. 2020 (SimCLR), section 3.1 and figure 5; Chen et al. 2021, section 4",
    next="Turn it round: give each class its own colour in training, and a random one in the test. What does jitter "
         "do for the digit probe then?",
    published={"colour": "falls towards chance, 10 %", "digit": "rises"})

COLOURS = 10                                  # as many as digits, so that both have the same chance


def measure(setting):
    grey = digits(setting)
    rng = np.random.default_rng([setting.seed, 2])
    data, (train_hues, test_hues) = coloured(grey, rng)
    turns = setting.pick((0.0, 0.5), (0.0, 0.05, 0.1, 0.2, 0.5), (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5))
    metrics = {"turns": list(turns), "digit": [], "colour": [], "loss": []}
    for a in turns:
        model = SimCLR(*encoder_and_head(data, setting)).to(setting.xp)
        curve = train(model, contrastive(), data.train_images, setting, steps=setting.pick(100, 400, 5000),
                      batch=setting.pick(128, 256, 256), views=partial(two_views, hue_views(a)))
        h_train, h_test = frozen_features(model.encoder, data, setting)
        metrics["digit"].append(linear_probe(h_train, data.train_labels, h_test, data.test_labels))
        metrics["colour"].append(linear_probe(h_train, train_hues, h_test, test_hues))
        metrics["loss"].append(float(np.mean(curve["loss"][-4:])))
        setting.print(f"    hue jitter {a} turns: digit {metrics['digit'][-1]:.1%}, colour {metrics['colour'][-1]:.1%}")
    return metrics


def hue_views(turns):
    """Views of coloured digits: those of digits, then the hue turned by up to so many turns either way."""
    return Compose([mnist_views(), ColorJitter(brightness=0, contrast=0, saturation=0, hue=turns, p=1)])


def coloured(data, rng):
    """ImageData of grey digits (N, H, W, 1) in colour, (N, H, W, 3), and the colours' ids of both splits."""
    hues = [rng.integers(0, COLOURS, len(labels)) for labels in (data.train_labels, data.test_labels)]
    return replace(data, train_images=tint(data.train_images, hues[0]),
                   test_images=tint(data.test_images, hues[1])), hues


def tint(images, hues):
    """uint8 images (N, H, W, 1) in the colours of these ids: one colour, turned about the axis of greys."""
    palette = hue_rotation(2 * np.pi * np.arange(COLOURS) / COLOURS) @ [0.76, 0.38, 0.38]      # (COLOURS, 3)
    return (images * palette[hues][:, None, None, :]).clip(0, 255).round().astype(np.uint8)


def verdict(metrics):
    digit, colour = metrics["digit"], metrics["colour"]
    gain = digit[:, -1] - digit[:, 0]
    fall = (colour[:, 0] - colour[:, -1]) / (colour[:, 0] - 1 / COLOURS)
    rest = colour[:, -1]
    reason = (f"with full jitter the colour probe goes {mean_std(np.minimum(fall, 1), '.1f', ' %')} of the way to "
              f"chance, the digit probe changes by {mean_std(100 * gain, '+.1f')} points")
    if rest.mean() > 1.5 / COLOURS:
        reason += (f"; colour is still read at {mean_std(rest, '.1f', ' %')}, above chance, {1 / COLOURS:.0%}: "
                   "the loss neither rewards nor penalises h for containing it, as long as the head can remove it")
    return (QUALITATIVE if (gain > 0).all() and (fall > 0.5).all() else NOT_REPRODUCED), reason


def table(metrics):
    rows = [(f"{what} probe, hue jitter {turns:g} turns", "", mean_std(metrics[what][:, k], ".1f", " %"))
            for what in ("colour", "digit") for k, turns in enumerate(metrics["turns"][0])]
    return rows + [(f"{what}, full jitter against none, points", CLAIM.published[what],
                    mean_std(100 * (metrics[what][:, -1] - metrics[what][:, 0]), "+.1f"))
                   for what in ("colour", "digit")]


def draw(metrics, path):
    digit, colour = 100 * metrics["digit"], 100 * metrics["colour"]
    (c0, c1), (d0, d1) = ((values[:, 0].mean(), values[:, -1].mean()) for values in (colour, digit))
    figure, [plot] = slide(f"Jitter the hue, and the encoder forgets colour ({c0:.0f} → {c1:.0f} %)\n"
                           f"and learns the digit ({d0:.0f} → {d1:.0f} %)", right=0.62)
    places = range(len(metrics["turns"][0]))
    line(plot, places, digit, BLUE)
    line(plot, places, colour, ORANGE)
    note(plot, places[-1], d1 + 2, "which digit", BLUE, ha="right", va="bottom")
    note(plot, places[-1] - 0.15, c1, "which colour", ORANGE, ha="right", va="center")
    chance(plot, 100 / COLOURS)
    percent(plot, 0, 105)
    plot.set(xlabel="hue jitter of the views (turns of the colour circle)", xticks=places)
    heading(plot, "linear probe of h")
    plot.set_xticklabels([f"{turns:g}" for turns in metrics["turns"][0]])
    examples(figure)
    write_figure(figure, path)


def examples(figure):
    """A generated digit and two views of it, without hue jitter and with."""
    rng = np.random.default_rng(7)
    image = tint(draw_digits(np.array([3]), rng), np.array([0])).astype("float32") / 255
    for title, turns, bottom in (("hue left alone", 0.0, 0.49), ("hue turned", 0.5, 0.16)):
        figure.text(0.825, bottom + 0.19, title, fontsize=17, fontweight="bold", ha="center", color=INK)
        shown = (image, *two_views(hue_views(turns), image, rng))
        for k, name in enumerate(("image", "view 1", "view 2")):
            picture(figure, shown[k][0], 0.67 + 0.108 * k, bottom, 0.095).set_xlabel(name, fontsize=15)
