"""Claim 8: a projection head makes a better representation, and the representation is what stands before it."""

from minicl.evaluate import linear_probe
from minicl.methods import SimCLR
from minicl.nn import HEADS
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std
from .slides import BLUE, GREY, ORANGE, bar, heading, slide
from .training import contrastive, digits, encoder_and_head, frozen_features, train

CLAIM = Claim(
    number=8, name="head",
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
```""",
    source="Chen et al. 2020 (SimCLR), section 4.2 and figure 8 (ImageNet, linear evaluation)",
    next="On these digits an MLP is no better than a linear head. Is it the data, the encoder of three layers, or "
         "the length of training? Begin with encoder_and_head(channels=(32, 64, 128)).",
    published={"MLP head over none, at h": "> +10", "h over z, MLP head": "> +10",
               "MLP head over linear, at h": "+3"})

ROWS = {"MLP head over none, at h": ("mlp head, h", "none head, h"),
        "h over z, MLP head": ("mlp head, h", "mlp head, z"),
        "MLP head over linear, at h": ("mlp head, h", "linear head, h"),
        "linear head over none, at h": ("linear head, h", "none head, h"),
        "h over z, linear head": ("linear head, h", "linear head, z")}

TAU = 0.5                                     # as SimCLR has it for small images


def measure(setting):
    data = digits(setting, test=(2000, 5000, 10_000))
    metrics = {"untrained, h": probes(SimCLR(*encoder_and_head(data, setting)).to(setting.xp), data, setting)["h"]}
    for head in setting.pick(("none", "mlp"), HEADS, HEADS):
        model = SimCLR(*encoder_and_head(data, setting, head=head, hidden=256)).to(setting.xp)      # as wide as h
        train(model, contrastive(TAU), data.train_images, setting, steps=setting.pick(150, 400, 5000),
              batch=setting.pick(128, 256, 256))
        found = probes(model, data, setting)
        metrics |= {f"{head} head, {space}": accuracy for space, accuracy in found.items()}
        setting.print(f"    {head} head: linear probe of h {found['h']:.1%}, of z {found['z']:.1%}")
    return metrics


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
    missing = [row for row in ("MLP head over none, at h", "h over z, MLP head") if not (gains[row] > 0).all()]
    head, above, *linear = (gains[row] for row in CLAIM.published if row in gains)   # fast: no linear one
    reason = (f"an MLP head gains {mean_std(head, '+.1f')} points of the linear probe at h over no head, and h is "
              f"{mean_std(above, '+.1f')} above z")
    for gain in linear:
        reason += f"; over a linear head it gains {mean_std(gain, '+.1f')}" + (
            "" if (gain > 0).all() else ": that an MLP is better does not show here")
    return (NOT_REPRODUCED, f"{reason}; not in every seed: {', '.join(missing)}") if missing else (QUALITATIVE, reason)


def table(metrics):
    names = {"untrained, h": "h, before training"} | {
        f"{head} head, {space}": f"{space}, {'no' if head == 'none' else head} head".replace("mlp", "MLP")
        for head in HEADS for space in "hz" if head != "none" or space == "h"}
    rows = [(f"linear probe of {text}", "", mean_std(metrics[name], ".1f", " %"))
            for name, text in names.items() if name in metrics]
    return rows + [(f"{row}, points", CLAIM.published.get(row, ""), mean_std(gain, "+.1f"))
                   for row, gain in differences(metrics).items()]


def draw(metrics, path):
    """Errors, not accuracies: bars may then begin at 0."""
    errors = {name: 100 * (1 - values) for name, values in metrics.items()}
    figure, [plot] = slide(f"Train through a head, then throw it away: {errors['mlp head, h'].mean():.1f} % errors\n"
                           f"before it, {errors['mlp head, z'].mean():.1f} % after it, "
                           f"{errors['none head, h'].mean():.1f} % without a head")
    bar(plot, 0, errors["none head, h"], BLUE)
    for x, head in ((1, "linear"), (2, "mlp")):
        if f"{head} head, h" not in errors:
            continue
        bar(plot, x - 0.2, errors[f"{head} head, h"], BLUE, label="at h, kept" if x == 2 else None)
        bar(plot, x + 0.2, errors[f"{head} head, z"], ORANGE, label="at z, thrown away" if x == 2 else None)
    untrained = errors["untrained, h"].mean()
    plot.axhline(untrained, color=GREY, linestyle="--", linewidth=1.5)
    plot.text(-0.55, untrained, "h before training", fontsize=14, color=GREY, va="bottom")
    heading(plot, "errors of the linear probe (%)")
    plot.set(xticks=range(3), xlim=(-0.6, 2.6), ylim=(0, 1.12 * untrained))
    plot.set_xticklabels(["no head\nz = h", "linear head\nz = W h", "MLP head\nz = g(h)"], fontsize=17)
    plot.legend(fontsize=15, frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.19))
    figure.savefig(path)
