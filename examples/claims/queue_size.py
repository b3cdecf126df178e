"""Claim 13: a queue gives any number of negatives, whatever the batch; their benefit and their cost."""

import numpy as np

from minicl.autograd import Tensor
from minicl.backend import to_device
from minicl.contrastive import info_nce, l2_normalize
from minicl.evaluate import frozen_accuracies, to_float, uniformity
from minicl.viz import write_figure
from .cost import cost, exponent
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std, mean_stds
from .momentum import DIM, build
from .slides import BLUE, GREEN, GREY, ORANGE, PURPLE, heading, line, note, slide
from .training import digits, train

CLAIM = Claim(
    number=13, name="queue_size", seeds=(3, 4, 5),
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

Where the accuracy rises depends on the number of classes C: K negatives hold K / C of each. The paper's K of 256 to
65,536 is 0.26 to 66 for each of ImageNet's 1000 classes; for ten digits, 0.26 to 66 for each class is K = 3 to 660. The
temperature is the paper's, 0.07: the lower it is, the more the few hardest negatives count, and the more draws it takes
to find them.

A queue counts as young while it spans at most 2 % of the run: the keys of an older one come from weights that the run
has long left. (In the paper 65,536 keys span 0.03 % of the run.) Fewer keys than a batch are drawn at each step from a
queue of one batch.""",
    source="He et al. 2020 (MoCo), sections 3.2 and 4.1, figure 3",
    next="Double the steps and halve the learning rate: keys of the same age are then from more similar weights. Does the "
         "longest queue still lose? Then train examples/moco_mnist.py with --momentum 0.9: which --queue is best now?",
    published={"rise": "rises, then flattens (figure 3)"},
    doubt="80 steps are too few for a rise")

TAU = 0.07
YOUNG = 0.02                                 # of the run, at most
LENGTHS = (256, 1024, 4096, 16_384, 65_536)


def measure(setting):
    batch = setting.pick(64, 128, 256)
    steps = setting.pick(80, 1000, 20_000)
    lengths = setting.pick((1024, 4096, 16_384), LENGTHS, LENGTHS)
    sizes = setting.pick((1, 64, 1024), (4, 16, 64, 256, 1024, 4096, 16_384), (16, 256, 4096, 65_536))
    data = digits(setting, train=(600, 10_000, 60_000), test=(600, 5000, 10_000))
    drawn = []
    for K, capacity in [*((K, max(K, batch)) for K in sizes), (batch, sizes[-1])]:
        model = build(data, setting, queue=capacity, splits=setting.pick(4, 8, 8))
        curve = train(model, draw_negatives(K, np.random.default_rng([setting.seed, 2])), data.train_images, setting,
                      steps=steps, batch=batch)
        accuracies, _, z = frozen_accuracies(model, data, setting.xp)
        drawn.append({**accuracies, "loss": np.mean(curve["loss"][-4:]), "uniformity": uniformity(z)})
        setting.print(f"    {K} of {capacity} keys: " + ", ".join(f"{name} {accuracies[name]:.1%}" for name in ACCURACIES))
    *rows, aged = drawn
    costs = np.array([cost_of_loss(K, batch, setting) for K in lengths]).T                           # (2, lengths)
    milliseconds, _ = cost_of_encoders(model, to_float(data.train_images[:batch], setting.xp))
    return {"K": sizes, **{name: [row[name] for row in rows] for name in aged},
            **{f"{name}, one batch of the longest": value for name, value in aged.items()},
            "age": [max(K, batch) / batch / steps for K in sizes], "batch": batch, "steps": steps,
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
        model.served.append((k, None, 0))                                            # to be enqueued, as loss() does
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


ACCURACIES = {"knn_h": "kNN on h", "knn_z": "kNN on z", "probe_h": "the probe of h"}


def young(metrics):
    """How many of the sizes, from the fewest, are young queues."""
    return int((metrics["age"][0] <= YOUNG).sum())


def verdict(metrics):
    """Over the young queues, from the fewest negatives to the most: all three accuracies gain, in the mean by more than
    the standard deviation, and the first half of the doublings gains more than the second. The keys' memory grows in
    proportion exactly, the loss's time nearly (a busy machine disturbs it; squared would be 2)."""
    missing = []
    last = young(metrics) - 1
    for name, words in ACCURACIES.items():
        accuracy = metrics[name]
        if not exceeds_std(accuracy[:, last] - accuracy[:, 0]):
            missing.append(f"{words} does not gain from more negatives")
        elif (accuracy[:, last] - accuracy[:, last // 2]).mean() > (accuracy[:, last // 2] - accuracy[:, 0]).mean():
            missing.append(f"{words} does not flatten")
    power = metrics["exponent"].mean()
    if not 0.5 <= power <= 1.6:
        missing.append(f"the time of the loss grows as K^{power:.2f}")
    if (metrics["bytes"] != 4).any():
        missing.append("a key has not 4 bytes a number")
    return NOT_REPRODUCED if missing else QUALITATIVE, "; ".join([*missing, found(metrics)])


def found(metrics):
    K = metrics["K"][0]
    age = metrics["age"][0]
    last = young(metrics) - 1

    def at(name, column):
        return mean_std(metrics[name][:, column], ".1f", " %")

    rises = ", ".join(f"{words} from {at(name, 0)} to {at(name, last)}" for name, words in ACCURACIES.items())
    text = (f"from {K[0]:.0f} to {K[last]:.0f} negatives, whose keys span at most {age[last]:.1%} of the run, the "
            f"accuracies change: {rises}, most of it by {K[last // 2]:.0f} negatives, {K[last // 2] / 10:.0f} of each class")
    if last + 1 < len(K):
        few = metrics["knn_z, one batch of the longest"]
        longest, youngest = metrics["knn_z"][:, -1], metrics["knn_z"][:, last]
        number = 100 * (longest - few)
        text += (f". A longer queue is mostly an older one here: with {K[-1]:.0f} keys, {age[-1]:.0%} of the run, kNN on z "
                 f"is at {at('knn_z', -1)}")
        if exceeds_std(number) and exceeds_std(youngest - longest):
            text += (f". One batch of its keys, which are as old, gives {mean_std(few, '.1f', ' %')}: the number of "
                     f"keys adds {mean_std(number, '+.1f')} points, and their age costs more than that")
    loss, encoders = (metrics[name].min(axis=0) for name in ("loss, ms", "encoders, ms"))
    return text + (f". A loss over {metrics['length'][0][-1]:.0f} keys adds {loss[-1]:.0f} ms to the {encoders:.0f} ms of "
                   "both encoders")


def table(metrics):
    def accuracies(pick):
        return mean_stds(np.stack([pick(name) for name in ACCURACIES], axis=1), ".1f", " %")

    rows = [("batch; steps of the run", "", f"{metrics['batch'][0]:.0f}; {metrics['steps'][0]:.0f}")]
    rows += [(f"K = {K:.0f}, {age:.1%} of the run: kNN on h, on z, probe of h", CLAIM.published["rise"] if k == 0 else "",
              accuracies(lambda name: metrics[name][:, k]))
             for k, (K, age) in enumerate(zip(metrics["K"][0], metrics["age"][0]))]
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
    K = metrics["K"][0]
    length = metrics["length"][0]
    last = young(metrics) - 1
    knn = 100 * metrics["knn_z"].mean(axis=0)
    figure, (left, right) = slide(f"More negatives help while their keys are young: kNN on z\n{knn[0]:.1f} → "
                                  f"{knn[last]:.1f} % with {K[last]:.0f}. A longer queue is also older",
                                  panels=2, widths=(3, 2), wspace=0.25, bottom=0.16)
    heading(left, "accuracy (%)")
    for name, colour in (("probe_h", PURPLE), ("knn_h", BLUE), ("knn_z", ORANGE)):
        values = 100 * metrics[name]
        line(left, K, values, colour)
        middle = len(K) // 2
        below = name == "knn_z"
        y = values[:, middle - 1:middle + 2].min() - 0.1 if below else values[:, middle - 1:middle + 2].max() + 0.1
        note(left, K[middle], y, ACCURACIES[name].removeprefix("the "), colour, ha="center", va="top" if below else "bottom")
        aged = 100 * metrics[f"{name}, one batch of the longest"]
        left.plot(np.full(len(aged), K[-1]), aged, linestyle="none", marker="x", markersize=11, markeredgewidth=2.5,
                  color=colour)
    if last + 1 < len(K):
        left.axvspan((K[last] * K[last + 1])**0.5, K[-1] * 2, color=GREY, alpha=0.15, linewidth=0)
        left.text((K[last] * K[last + 1])**0.5 * 1.15, 0.6, f"older than\n{YOUNG:.0%} of the run", fontsize=14,
                  color=GREY, transform=left.get_xaxis_transform())
    left.margins(y=0.15)
    left.set(xscale="log", xlabel="K, negatives (×: as old, but few)", xlim=(K[0] / 2, K[-1] * 2))
    left.set_xticks(K, [short(n) for n in K])
    heading(right, "time of a step (ms)")
    least = metrics["loss, ms"].min(axis=0)
    right.plot(length, least, color=BLUE, linewidth=3.5, marker="o", markersize=9)
    right.plot(length, least[-1] * length / length[-1], color=GREY, linestyle="--", linewidth=1.5)
    note(right, length[-1], least[0] * 1.2, "loss over\nthe queue", BLUE, ha="right", va="bottom")
    right.text(length[-1], least[0], "dashed: proportional to K", fontsize=14, color=GREY, ha="right", va="top")
    right.axhline(metrics["encoders, ms"].min(), color=GREEN, linewidth=3.5)
    note(right, length[0], metrics["encoders, ms"].min() * 1.15, "both encoders", GREEN, va="bottom")
    right.set(xscale="log", yscale="log", xlabel="K, keys in the queue", ylim=(least[0] / 2, None))
    right.set_xticks(length, [short(n) for n in length])
    right.yaxis.set_major_formatter("{x:g}")
    for plot in (left, right):
        plot.minorticks_off()
    write_figure(figure, path)
