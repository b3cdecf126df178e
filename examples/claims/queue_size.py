"""Claim 13: a queue gives any number of negatives, whatever the batch; their benefit and their cost."""

import numpy as np

from minicl.autograd import Tensor
from minicl.backend import to_device
from minicl.contrastive import info_nce, l2_normalize
from minicl.evaluate import frozen_accuracies, to_float, uniformity
from .cost import cost, exponent
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std, mean_stds
from .momentum import DIM, TAU, build
from .slides import BLUE, GREEN, GREY, ORANGE, heading, line, note, slide
from .training import digits, train

CLAIM = Claim(
    number=13, name="queue_size",
    title="The queue decouples the negatives from the batch",
    statement="The keys of earlier batches are negatives that need no encoding and no tape, so 65,536 of them need no "
              "larger batch than 256 do. More negatives are better, each doubling by less than the one before, and "
              "their cost grows in proportion.",
    mathematics="""\
A batch of N queries and a queue of K keys of d numbers:

```text
negatives    K, whatever N                     SimCLR: 2 (N - 1)
time         N K d products, twice             SimCLR: (2N)^2 d, and the encoder for N = K / 2 images, with its tape
memory       4 K d bytes for the keys          K = 65,536, d = 128: 32 MiB
age          a key stays K / N steps           K = 65,536, N = 256: 256 steps
```

Fewer keys than a batch are drawn at each step from a queue of one batch.""",
    source="He et al. 2020 (MoCo), sections 3.2 and 4.1, figure 3",
    next="A longer queue is also an older one. Train examples/moco_mnist.py with --momentum 0.9: which --queue is "
         "best now? Claim 12 explains why.",
    published={"knn": "rises, then flattens (figure 3)"},
    doubt="a queue as long as the paper's is a large part of so short a run: its keys are old")

LENGTHS = (256, 1024, 4096, 16_384, 65_536)


def measure(setting):
    batch = setting.pick(64, 256, 256)
    drawn = []
    lengths = setting.pick((1024, 4096, 16_384), LENGTHS, LENGTHS)
    sizes = setting.pick((1, 64, 1024), (4, 32, 256, 2048, 16_384, 65_536), (256, 4096, 65_536))
    data = digits(setting, train=(600, 20_000, 60_000), test=(600, 5000, 10_000))
    for K, capacity in [*((K, max(K, batch)) for K in sizes), (batch, sizes[-1])]:
        model = build(data, setting, queue=capacity, splits=setting.pick(4, 8, 8))
        curve = train(model, draw_negatives(K, np.random.default_rng([setting.seed, 2])), data.train_images, setting,
                      steps=setting.pick(80, 400, 20_000), batch=batch)
        accuracies, _, z = frozen_accuracies(model, data, setting.xp)
        drawn.append({**accuracies, "loss": np.mean(curve["loss"][-4:]), "uniformity": uniformity(z)})
    *rows, aged = drawn
    costs = np.array([cost_of_loss(K, batch, setting) for K in lengths]).T                           # (2, lengths)
    milliseconds, _ = cost_of_encoders(model, to_float(data.train_images[:batch], setting.xp))
    return {"K": sizes, **{name: [row[name] for row in rows] for name in aged},
            **{f"{name}, one batch of the longest": value for name, value in aged.items()},
            "length": lengths, "loss, ms": costs[0], "loss, MiB": costs[1], "encoders, ms": milliseconds,
            "exponent": exponent(costs[0], lengths),
            "bytes": model.queue.keys.data.nbytes / model.queue.capacity / DIM}


def draw_negatives(K, rng):
    """MoCo's objective for train(), with K negatives drawn from the queue, or all where there are no more."""
    def objective(model, view1, view2, xp):
        _, q = model(view1)
        k = model.encode_keys(view2, rng)
        queue = model.queue.filled()
        if K >= len(queue):
            return model.loss(q, k, TAU), q.data
        model.served.append((k, None))                                               # to be enqueued, as loss() does
        return info_nce(q, k, queue[to_device(rng.choice(len(queue), K, replace=False), xp)], TAU), q.data

    return objective


def cost_of_loss(K, batch, setting):
    """(milliseconds, MiB) of the loss of a batch over a queue of K keys, and its gradient."""
    rng = np.random.default_rng(setting.seed)
    q, k, queue = (to_device(rng.standard_normal((rows, DIM), dtype="float32"), setting.xp)
                   for rows in (batch, batch, K))
    q = Tensor(q, requires_grad=True)
    queue = l2_normalize.forward(queue)[0]
    return cost(lambda: info_nce(q, k, queue, TAU), [q])


def cost_of_encoders(model, images):
    """The same of the rest of a step, without optimizer and views: queries with their gradient, and keys."""
    rng = np.random.default_rng(0)
    return cost(lambda: (model(images)[1] * model.encode_keys(images, rng)).mean(), model.parameters())


def verdict(metrics):
    """More keys than the fewest are better, more than one batch of them bring less, but do no harm; the keys' memory
    grows in proportion exactly, the loss's time nearly (a busy machine disturbs it; squared would be 2)."""
    knn = metrics["knn_h"]
    few = int(np.searchsorted(metrics["K"][0], 64))
    missing = []
    rise = knn[:, 1:].max(axis=1) - knn[:, 0]
    rest = knn[:, -1] - knn[:, few]

    if not exceeds_std(rise):
        missing.append("more negatives are not better")
    if exceeds_std(-rest):
        aged = metrics["knn_h, one batch of the longest"] - knn[:, -1]
        missing.append("the longest queue is worse than a short one" + (
            ", by the age of its keys, not by their number: one batch of them is as bad, and a run of some hundred "
            "steps is too short for it" if abs(aged.mean()) < abs(rest.mean()) / 2 else ""))
    elif rest.mean() >= rise.mean() / 2:
        missing.append("it does not flatten")
    harm = exceeds_std(-rest) or not exceeds_std(rise)
    power = metrics["exponent"].mean()
    decoupled = 0.5 <= power <= 1.6 and (metrics["bytes"] == 4).all()
    if harm and decoupled:
        missing[0] = ("the decoupling holds (time and memory grow with K alone); that more are better does not: "
                      + missing[0])
    if not 0.5 <= power <= 1.6:
        missing.append(f"the time of the loss grows as K^{power:.2f}")
    if (metrics["bytes"] != 4).any():
        missing.append("a key has not 4 bytes a number")
    return NOT_REPRODUCED if missing else QUALITATIVE, "; ".join([*missing, found(metrics)])


ACCURACIES = ("knn_h", "knn_z", "probe_h")


def found(metrics):
    K = metrics["K"][0]
    sentences = []
    for name in ("knn_h", "knn_z"):
        knn = metrics[name]
        top = metrics[name].mean(axis=0).argmax()
        few, best, most, aged = (mean_std(values, ".1f", " %") for values in (
            knn[:, 0], knn[:, top], knn[:, -1], metrics[f"{name}, one batch of the longest"]))
        sentences.append(f"kNN on {name[-1]}: {few} with {K[0]:.0f} negatives, {best} with {K[top]:.0f}, {most} with "
                    f"{K[-1]:.0f}, {aged} with one batch drawn from these, as old but few")
    loss, encoders = (metrics[name].min(axis=0) for name in ("loss, ms", "encoders, ms"))
    return (f"{'. '.join(sentences)}. A loss over {metrics['length'][0][-1]:.0f} keys adds {loss[-1]:.0f} ms to the "
            f"{encoders:.0f} ms of both encoders")


def table(metrics):
    def accuracies(pick):
        return mean_stds(np.stack([pick(name) for name in ACCURACIES], axis=1), ".1f", " %")

    rows = [(f"K = {K:.0f}: kNN on h, kNN on z, probe of h", CLAIM.published["knn"] if k == 0 else "",
             accuracies(lambda name: metrics[name][:, k])) for k, K in enumerate(metrics["K"][0])]
    rows.append((f"one batch of keys drawn from K = {metrics['K'][0][-1]:.0f}", "",
                 accuracies(lambda name: metrics[f"{name}, one batch of the longest"])))
    rows.append(("uniformity of z, by K", "", mean_stds(metrics["uniformity"], ".2f")))
    rows += [(f"loss and gradient over {K:.0f} keys", "", f"{metrics['loss, ms'][:, k].min():.3g} ms, "
              f"{metrics['loss, MiB'][:, k].max():.3g} MiB") for k, K in enumerate(metrics["length"][0])]
    return rows + [("both encoders, a batch", "the same for all K", f"{metrics['encoders, ms'].min():.3g} ms"),
                   ("exponent of the loss's time, last three", "1", mean_std(metrics["exponent"], ".2f")),
                   ("bytes for each number of a key", "4", mean_std(metrics["bytes"], ".0f"))]


def short(n):
    return f"{n:.0f}" if n < 10_000 else f"{n / 1024:.0f}k"


def draw(metrics, path):
    figure, (left, right) = slide("For digits a few hundred negatives are enough;\na longer queue is only older",
                                  panels=2, wspace=0.35, bottom=0.16)
    K, length = metrics["K"][0], metrics["length"][0]
    heading(left, "nearest neighbours (%)")
    for name, colour, words in (("knn_h", BLUE, "by h"), ("knn_z", ORANGE, "by z")):
        line(left, K, 100 * metrics[name], colour)
        note(left, K[1], 100 * metrics[name][:, 1].max() + 0.2, words, colour, ha="center", va="bottom")
        aged = 100 * metrics[f"{name}, one batch of the longest"]
        left.plot(np.full(len(aged), K[-1]), aged, linestyle="none", marker="x", markersize=11, markeredgewidth=2.5,
                  color=colour)
    left.margins(y=0.1)
    left.set(xscale="log", xlabel="K, negatives (×: as old, but few)")
    left.set_xticks(K, [short(n) for n in K])
    heading(right, "milliseconds a step")
    least = metrics["loss, ms"].min(axis=0)
    right.plot(length, least, color=BLUE, linewidth=3.5, marker="o", markersize=9)
    note(right, length[-1], least[-1] / 12, "loss over\nthe queue", BLUE, ha="right", va="top")
    right.plot(length, least[-1] * length / length[-1], color=GREY, linestyle="--", linewidth=1.5)
    right.text(length[1], least[-1] * length[1] / length[-1] / 1.2, "in proportion\nto K", fontsize=14, color=GREY,
               va="top")
    right.axhline(metrics["encoders, ms"].min(), color=GREEN, linewidth=3.5)
    note(right, length[0], metrics["encoders, ms"].min() * 1.15, "both encoders", GREEN, va="bottom")
    right.set(xscale="log", yscale="log", xlabel="K, keys in the queue")
    right.set_xticks(length, [short(n) for n in length])
    right.yaxis.set_major_formatter("{x:g}")
    for plot in (left, right):
        plot.minorticks_off()
    figure.savefig(path)
