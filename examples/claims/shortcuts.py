"""Claim 11: a few random bits that both views share lower the loss, and drive the digits out of h."""

from dataclasses import replace

import numpy as np

from minicl.backend import array_module
from minicl.data import mnist_views, two_views
from minicl.evaluate import linear_probe
from minicl.methods import SimCLR
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim
from .slides import BLUE, GREEN, GREY, ORANGE, PURPLE, chance, heading, line, percent, slide
from .training import contrastive, digits, encoder_and_head, frozen_features, train

CLAIM = Claim(
    number=11, name="shortcuts",
    title="The bound counts information, it does not choose which (shortcuts)",
    statement="Random bits, the same in both views, are appended to each image as channels. They tell images apart as "
              "well as the digits do and are easier to read, so the loss falls with every bit while the digits are "
              "forgotten.",
    mathematics="""\
b random bits, drawn for each image, stand in b more channels of both views, constant over the image, like a barcode:

```text
I(view 1; view 2) = I(digits alone) + b log 2
log K - L           may rise with b until it reaches log K: b = 9 tell K = 2N - 1 = 511 candidates apart
```

The augmentation cannot remove the bits; nothing in the loss prefers the digit.""",
    source="Chen et al. 2021 (Intriguing Properties of Contrastive Losses), section 4; figures: its RandBits "
           "notebook on MNIST",
    next="Let the augmentation flip each bit with probability 0.1, 0.3, 0.5. At which rate do the digits come back?",
    published={"digit probe, tau 0.1; 0, 5, 10, 15, 20 bits": "89.2, 61.2, 18.7, 9.8, 10.3 %"})


def measure(setting):
    grey = digits(setting)
    counts = setting.pick((0, 10), (0, 5, 10, 15, 20), (0, 2, 5, 10, 15, 20))
    temperatures = setting.pick((0.1,), (0.05, 0.1, 0.5), (0.05, 0.1, 0.2, 0.5, 1.0))
    metrics = {"bits": list(counts), "tau": list(temperatures), "digit": [], "loss": []}       # [tau][bits]
    for tau in temperatures:
        accuracies = []
        losses = []
        for bits in counts:
            data = with_bits(grey, bits, np.random.default_rng([setting.seed, 2]))
            model = SimCLR(*encoder_and_head(data, setting)).to(setting.xp)
            curve = train(model, contrastive(tau), data.train_images, setting, steps=setting.pick(100, 300, 5000),
                          batch=setting.pick(128, 256, 256), views=views_of_digits)
            h_train, h_test = frozen_features(model.encoder, data, setting)
            accuracies.append(linear_probe(h_train, data.train_labels, h_test, data.test_labels))
            losses.append(float(np.mean(curve["loss"][-4:])))
            setting.print(f"    tau {tau}, {bits:2} bits: digit {accuracies[-1]:.1%}, loss {losses[-1]:.3f}")
        metrics["digit"].append(accuracies)
        metrics["loss"].append(losses)
    return metrics


def with_bits(data, bits, rng):
    """ImageData whose images (N, H, W, 1) have so many channels more, 0 or 255 all over, drawn for each image."""
    def append(images):
        drawn = 255 * rng.integers(0, 2, (len(images), 1, 1, bits), dtype=np.uint8)
        return np.concatenate([images, np.broadcast_to(drawn, (*images.shape[:3], bits))], axis=3)

    return replace(data, train_images=append(data.train_images), test_images=append(data.test_images))


def views_of_digits(images, rng, augment=mnist_views()):
    """Two views of the digit, the first channel; the bits, all others, are the same in both."""
    digit = images[..., :1]
    bits = images[..., 1:]
    return [array_module(images).concatenate([view, bits], axis=3) for view in two_views(augment, digit, rng)]


def verdict(metrics):
    digit = metrics["digit"]                                                 # (seeds, tau, bits)
    loss = metrics["loss"]
    lost = (digit[:, :, 0] - digit[:, :, -1]) / (digit[:, :, 0] - 0.1)       # share of what was above chance
    falls = loss[:, :, 0] - loss[:, :, -1]
    reason = (f"with {metrics['bits'][0, -1]:.0f} bits the digit probe goes at least {min(lost.min(), 1):.0%} of "
              f"the way to chance at every temperature, while the loss falls by {falls.min():.2f} nats or more")
    return (QUALITATIVE if (lost > 0.5).all() and (falls > 0).all() else NOT_REPRODUCED), reason


def table(metrics):
    bits, temperatures = (metrics[name][0] for name in ("bits", "tau"))
    rows = []
    for what, values, form, unit in (("digit probe", 100 * metrics["digit"], ".1f", "%"),
                                     ("loss", metrics["loss"], ".2f", "nats")):
        for tau, curves in zip(temperatures, values.swapaxes(0, 1)):         # (seeds, bits)
            name = f"{what}, tau {tau:g}; {', '.join(f'{count:g}' for count in bits)} bits"
            means = ", ".join(f"{mean:{form}}" for mean in curves.mean(axis=0))
            spread = f", each ± {curves.std(axis=0, ddof=1).max():{form}} or less" if len(curves) > 1 else ""
            rows.append((name, CLAIM.published.get(name, ""), f"{means} {unit}{spread}"))
    return rows


def draw(metrics, path):
    bits, temperatures = (metrics[name][0] for name in ("bits", "tau"))
    digit = 100 * metrics["digit"]
    loss = metrics["loss"]
    ten = int(np.argmin(abs(bits - 10)))
    at = len(temperatures) // 2
    before = digit[:, at, 0].mean()
    after = digit[:, at, ten].mean()
    figure, (left, right) = slide(
        f"{bits[ten]:.0f} random bits that both views share: the loss improves,\n"
        f"the digit probe falls from {before:.0f} % to {after:.0f} % (τ = {temperatures[at]:g})", panels=2)
    for k, (tau, colour) in enumerate(zip(temperatures, (GREEN, BLUE, ORANGE, PURPLE, GREY))):
        line(left, bits, loss[:, k], colour, clip_on=False)
        line(right, bits, digit[:, k], colour, label=f"τ = {tau:g}")
    chance(right, 10)
    percent(right, 0, 105)
    right.legend(fontsize=15, frameon=False, loc="upper right")
    heading(left, "loss (nats)")
    heading(right, "linear probe of the digit")
    left.set_ylim(0, None)
    for plot in (left, right):
        plot.set(xlabel="random bits shared by both views", xticks=bits)
    write_figure(figure, path)
