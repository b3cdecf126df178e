"""Claim 6: what more negatives buy, and what they cost.

A larger batch brings more negatives, but also fewer steps a pass, less noise and better batch statistics. Here only
the negatives change: every run sees the same batches, in as many steps, and cuts them into groups of N images; an
anchor chooses among the views of its own group. What a step costs is measured at true batches of N.
"""

import numpy as np

from minicl.autograd import Tensor
from minicl.backend import array_module
from minicl.contrastive import info_nce_from_scores, l2_normalize, nt_xent
from minicl.contrastive.composed import EXCLUDED
from minicl.evaluate import alignment, effective_rank, frozen_accuracies, to_float, uniformity
from minicl.methods import SimCLR
from minicl.ops import concat, where
from minicl.viz import write_figure
from .cost import cost, exponent
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std, mean_stds
from .slides import BLUE, GREEN, GREY, ORANGE, heading, line, note, slide
from .training import contrastive, digits, embed_views, encoder_and_head, train

TAU = 0.2
DIM = 64

CLAIM = Claim(
    number=6, name="batch_size", seeds=(3, 4, 5),
    title="With few negatives z is spread less evenly; more give diminishing returns, at a cost of N²",
    statement="With more negatives z is spread more evenly and its classes are easier to find, but each doubling "
              "gains less than the one before. With very few negatives z is expected to use fewer directions. The "
              "loss compares every view with every other, so its time grows with the square of the batch.",
    mathematics="""\
```text
N images -> 2(N-1) negatives an anchor; (2N)^2 scores of d products, forward and backward
```

The negatives of a batch estimate E exp(s/tau), the normaliser of the softmax. An estimate of M draws is off by about
1/sqrt(M), and its logarithm too low by about 1/M: so each doubling of M gains about half as much as the one before.

Only the negatives change here: every run sees the same batches (of 2048 images, at the default size), cut into
groups of N. What a step costs is measured at true batches of N.""",
    source="Chen et al. 2020 (SimCLR), section 5.2 and figure 9; Wang & Isola 2020, theorem 1",
    columns={"uniformity": "uniformity of z (0: collapsed)", "alignment": "alignment of z (0: views coincide)",
             "rank": f"effective rank of z, of {DIM}", "knn": "kNN on z (%)", "knn_h": "kNN on h (%)"},
    published={"exponent": "2, for large N", "knn": "rises, then flattens", "uniformity": "falls, then flattens"},
    next="Vary the batch itself, at a fixed number of images seen: python examples/simclr_mnist.py with --batch 32, "
         "then 128, then 512. What besides the negatives changes, and which effect is the larger?")


def measure(setting):
    batch = setting.pick(128, 2048, 4096)
    sizes = setting.pick((2, 8, 128), (2, 8, 32, 128, 512, 2048), (2, 8, 32, 128, 512, 2048, 4096))
    data = digits(setting, train=(1000, 10_000, 60_000), test=(2000, 2000, 10_000))
    rows = []
    for N in sizes:
        model = SimCLR(*encoder_and_head(data, setting, dim=DIM)).to(setting.xp)
        train(model, contrastive(TAU, loss=in_groups(N)), data.train_images, setting, batch=batch,
              steps=setting.pick(60, 60, 1000))
        rows.append(evaluate(model, data, setting))
        setting.print(f"    N = {N}: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()))
    few, many, steps = setting.pick((2, 64, 60), (2, 512, 480), (2, 4096, 10_000))
    ranks = []
    for N in (few, many):                                # in more steps, of fewer images
        model = SimCLR(*encoder_and_head(data, setting, dim=DIM)).to(setting.xp)
        train(model, contrastive(TAU, loss=in_groups(N)), data.train_images, setting, batch=many, steps=steps)
        ranks.append(effective_rank(embed_views(model, data, setting)[0]))
    batches = setting.pick((128, 512, 2048), (2, 8, 32, 128, 512, 2048), (128, 512, 2048, 8192))
    costs = np.array([[*cost_of_loss(N, setting), *cost_of_step(N, data, setting)] for N in batches]).T
    return {"N": sizes, **{name: [row[name] for row in rows] for name in rows[0]}, "batch": batches,
            **dict(zip(("loss, ms", "loss, MiB", "step, ms", "step, MiB"), costs)),
            "exponent": exponent(costs[0], batches),
            "longer: N": (few, many), "longer: steps": steps, "longer: rank": ranks,
            "test images": len(data.test_images)}


def in_groups(N):
    """NT-Xent of z1, z2 (B, d) in which an anchor chooses among the 2N - 1 other views of its group of N images."""
    def loss(z1, z2, tau):
        B, d = z1.shape
        if N == B:
            return nt_xent(z1, z2, tau)
        xp = array_module(z1.data)
        u = l2_normalize(concat(z1.reshape(-1, N, d), z2.reshape(-1, N, d), axis=1))     # (B/N, 2N, d)
        scores = where(xp.eye(2 * N, dtype=bool), EXCLUDED, u @ u.transpose(0, 2, 1))    # (B/N, 2N, 2N)
        positive_ids = (xp.arange(2 * B) + N) % (2 * N)                                  # the other view, N rows on
        return info_nce_from_scores(scores.reshape(2 * B, 2 * N), positive_ids, tau)

    return loss


def evaluate(model, data, setting):
    """Metrics of z of views of test images, and kNN of the unchanged test images."""
    accuracies, _, _ = frozen_accuracies(model, data, setting.xp, probe=False)
    z1, z2 = embed_views(model, data, setting)
    return {"uniformity": uniformity(z1), "alignment": alignment(z1, z2), "rank": effective_rank(z1),
            "knn": accuracies["knn_z"], "knn_h": accuracies["knn_h"]}


def cost_of_loss(N, setting):
    """(milliseconds, MiB) of the loss of a batch of N and its gradient."""
    rng = np.random.default_rng(N)
    z = [Tensor(setting.xp.asarray(rng.standard_normal((N, DIM), dtype="float32")), requires_grad=True)
         for _ in range(2)]
    return cost(lambda: nt_xent(*z, TAU), z)


def cost_of_step(N, data, setting):
    """The same of a training step, without augmentation and optimizer."""
    model = SimCLR(*encoder_and_head(data, setting, dim=DIM)).to(setting.xp)
    images = to_float(data.train_images[np.arange(N) % len(data.train_images)], setting.xp)
    views = setting.xp.concatenate([images, images])

    def loss():
        _, z = model(views)
        return nt_xent(z[:N], z[N:], TAU)

    return cost(loss, model.parameters(), repeats=3)


def verdict(metrics):
    """From fewest to most negatives, uniformity falls and kNN on z rises, in every seed and by more than the standard
    deviation. Neither turns back by more than that plus the sampling error of the test images. The first half of the
    steps brings more than the second, and the time of the loss at the largest batches grows as N^1.5 to N^2.5. The
    rank is not part of the verdict, but of the reason."""
    missing = []
    few = metrics["test images"].mean()**-0.5            # sampling errors are about few / 4 and few / 2
    for name, sign, error in (("uniformity", -1, few / 4), ("knn", 1, few / 2)):
        gains = sign * np.diff(metrics[name], axis=1)                        # (seeds, steps of N)
        total = gains.sum(axis=1)
        half = gains.shape[1] // 2
        if not ((total > 0).all() and exceeds_std(total)):
            missing.append(f"{name} does not gain from more negatives in every seed")
        elif (gains.mean(axis=0) < -gains.std(axis=0, ddof=len(gains) > 1) - error).any():
            missing.append(f"{name} is not monotone")
        elif gains[:, :half].sum() <= gains[:, -half:].sum():
            missing.append(f"{name} gains as much from the last doublings as from the first")
    power = metrics["exponent"].mean()
    if not 1.5 <= power <= 2.5:
        missing.append(f"the loss's time grows as N^{power:.1f}")
    first, last = ({name: mean_std(metrics[name][:, end], form, unit) for name, form, unit in
                    (("uniformity", ".2f", ""), ("knn", ".1f", " %"), ("rank", ".1f", ""))} for end in (0, -1))
    lost = metrics["rank"][:, -1] - metrics["rank"][:, 0]
    found = (f"from {metrics['N'][0, 0]:.0f} to {metrics['N'][0, -1]:.0f} images the uniformity of z goes from "
             f"{first['uniformity']} to {last['uniformity']} and kNN on z from {first['knn']} to {last['knn']}, most of it "
             f"in the first doublings of N; the time of the loss at the largest batches grows as N^{power:.1f}. Few "
             "negatives " + ("collapse z in part" if (lost > 0.1 * metrics["rank"][:, -1]).all() else
                "collapse no direction of z in so few steps")
             + f": its effective rank goes from {first['rank']} to {last['rank']}. ")
    longer = metrics["longer: rank"]
    few, many = metrics["longer: N"][0]
    lower = (longer[:, 0] < longer[:, 1]).all()
    found += ("Longer runs with few negatives do lower the rank: after" if lower else "After") + (
        f" {metrics['longer: steps'][0]:.0f} steps of {many:.0f} images it is {mean_std(longer[:, 0], '.1f')} in groups of "
        f"{few:.0f} and {mean_std(longer[:, 1], '.1f')} in one group of {many:.0f}")
    return (NOT_REPRODUCED, f"{'; '.join(missing)}; {found}") if missing else (QUALITATIVE, found)


def table(metrics):
    rows = [("N, images an anchor chooses among", "", mean_stds(metrics["N"][:1], ".0f"))]
    rows += [(CLAIM.columns[name], CLAIM.published.get(name, ""), mean_stds(scale * metrics[name], form))
             for name, scale, form in (("uniformity", 1, ".2f"), ("alignment", 1, ".3f"), ("rank", 1, ".1f"),
                                       ("knn", 100, ".1f"), ("knn_h", 100, ".1f"))]
    few, many = metrics["longer: N"][0]
    rows.append((f"effective rank of z after {metrics['longer: steps'][0]:.0f} steps of {many:.0f} images, in groups of "
                 f"{few:.0f} and {many:.0f}", "", mean_stds(metrics["longer: rank"], ".1f")))
    rows.append(("N, true batch", "", mean_stds(metrics["batch"][:1], ".0f")))
    rows += [(name, "", mean_stds(metrics[name].min(axis=0, keepdims=True), ".3g"))
             for name in ("loss, ms", "loss, MiB", "step, ms", "step, MiB")]
    return rows + [("exponent of the loss's time, last three batches", CLAIM.published["exponent"],
                    mean_std(metrics["exponent"], ".2f"))]


def draw(metrics, path):
    N = metrics["N"][0]
    batch = metrics["batch"][0]
    knn = 100 * metrics["knn"]
    power = metrics["exponent"].mean()
    figure, (left, middle, right) = slide(f"More negatives spread z: kNN on z {knn[:, 0].mean():.1f} → "
                                          f"{knn[:, -1].mean():.1f} %.\n"
                                          f"First doublings gain most; the loss takes time as $N^{{{power:.1f}}}$",
                                          panels=3, wspace=0.42, left=0.08, bottom=0.2)
    line(left, N, -metrics["uniformity"], BLUE)
    heading(left, "-uniformity of z")
    left.text(0.97, 0.05, "higher: more even", transform=left.transAxes, ha="right", fontsize=15, color=BLUE)
    line(middle, N, knn, ORANGE)
    heading(middle, "kNN on z (%)")
    for name, colour, words, above in (("loss, ms", BLUE, "loss alone", 0.05), ("step, ms", GREEN, "whole step", 0.7)):
        least = metrics[name].min(axis=0)
        right.plot(batch, least, color=colour, linewidth=3.5, marker="o", markersize=10)
        note(right, 0.04, above, words, colour, transform=right.transAxes)
    large = batch[-3:]
    at = metrics["loss, ms"].min(axis=0)[-1]
    right.plot(large, at * (large / large[-1])**2, color=GREY, linestyle="--", linewidth=1.5)
    right.text(large[-2] * 1.4, at * (large[-2] / large[-1])**2, "N²", fontsize=16, color=GREY, va="top")
    heading(right, "time (ms)")
    right.set(yscale="log", xlabel="N, batch size", ylim=(metrics["loss, ms"].min() / 4, None))
    for axes, ticks in ((left, N), (middle, N), (right, batch)):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{n:g}" for n in ticks])
        axes.tick_params(axis="x", labelsize=12)
        axes.minorticks_off()
    for axes in (left, middle):
        axes.set(xlabel="N, images an anchor\nchooses among")
    write_figure(figure, path)
