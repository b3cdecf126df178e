"""Claim 14: how batch norm reveals a query's key, and what a network that uses it loses."""

import numpy as np

from minicl import no_grad
from minicl.contrastive import info_nce, l2_normalize
from minicl.data import mnist_views, two_views
from minicl.evaluate import frozen_accuracies, to_float
from minicl.methods import MoCo
from minicl.nn import ConvNet, projection_head
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std
from .momentum import DIM, queries_and_keys
from .slides import BLUE, GREEN, ORANGE, PURPLE, bar, heading, line, note, slide
from .training import digits, train

TAU = 0.07                                               # MoCo's

CLAIM = Claim(
    number=14, name="leak",
    title="Batch norm can leak the positive, and shuffling the keys stops it",
    statement="If a query and its key are normalised within the same few images, they share statistics that no other "
              "key has, and can be matched by these without using the image. The loss falls and the representation "
              "gets worse. MoCo shuffles the batch of keys first, so that query and key are normalised with different "
              "images.",
    mathematics="""\
For a group G of n images, one of the 8 GPUs of the paper, in every layer:

```text
y_i = (x_i - m_G) / s_G        m_G is off the mean of all images by about s / sqrt(n), the same for all i in G
```

Both views of G have nearly the same m_G and s_G. With n = 32, as in the paper, that is 1/32 of a layer's variance,
with n = 8 it is 1/8; but each layer adds its own, and can learn to make it larger. Shuffled, key i was in another
group. Learning to use the leak takes time: after 600 steps the loss was already 1.3 nats lower, and nothing had got
worse yet.""",
    source="He et al. 2020 (MoCo), section 3.3 and figure A.1: without the shuffle the accuracy of choosing the key "
           "soon exceeds 99.9 % while nearest neighbours get worse; [docs/methods/moco.md](methods/moco.md)",
    next="Stop after 600 steps: the loss is lower already, but is anything worse? Then take one group for the whole "
         "batch: the queue's keys still come from other batches, so is there still a leak?",
    published={"loss": "lower", "knn_h": "lower", "picked": "> 99.9 %, of training images"},
    doubt="using the leak is learnt, in a thousand steps: the fast size shows only the fall of the loss")

CHANNELS, STRIDES = (16, 16, 16, 32, 32, 32, 64, 64), (2, 1, 1, 2, 1, 1, 2, 1)       # each layer adds to the leak
GROUP = 8                                                # images normalised together
ORDERS = ("shuffled", "in order")


class InOrder(np.random.Generator):
    """Replaces the generator of MoCo.encode_keys: it does not shuffle."""

    def permutation(self, n):
        return np.arange(n)


def measure(setting):
    data = digits(setting, train=(600, 10_000, 60_000), test=(512, 5000, 10_000))
    metrics = {}
    batch = setting.pick(128, 256, 256)
    for order in ORDERS:
        rng = np.random.default_rng(setting.seed)
        encoder = ConvNet(data.train_images.shape[1:], CHANNELS, strides=STRIDES, rng=rng)
        head = projection_head("mlp", encoder.features, hidden=128, dim=DIM, rng=rng)
        model = MoCo(encoder, head, dim=DIM, queue=16 * batch, m=0.99, splits=batch // GROUP).to(setting.xp)
        shuffle = {"shuffled": np.random.default_rng([setting.seed, 2]), "in order": InOrder(np.random.PCG64(0))}
        train(model, queries_and_keys(shuffle[order], TAU), data.train_images, setting, batch=batch,
              steps=setting.pick(40, 1400, 10_000))
        accuracies, _, _ = frozen_accuracies(model, data, setting.xp)
        for keys in ORDERS:                              # last: it changes running averages
            accuracies[f"loss, keys {keys}"], accuracies[f"picked, keys {keys}"] = evaluate_keys(
                model, data.test_images, shuffle[keys], setting, batch)
        metrics |= {f"{order}: {name}": value for name, value in accuracies.items()}
    return metrics


def evaluate_keys(model, images, shuffle, setting, batch):
    """The loss of test images, in training mode, and the fraction whose own key is nearer than all of the queue."""
    rng = np.random.default_rng([setting.seed, 3])
    losses = []
    hits = []
    for start in range(0, 4 * batch, batch):
        views = two_views(mnist_views(), to_float(images[start:start + batch], setting.xp), rng)
        with no_grad():
            q = model(views[0])[1].data
            k = model.encode_keys(views[1], shuffle)
            queue = model.queue.filled()
            losses.append(info_nce(q, k, queue, TAU).item())
        q, k = l2_normalize.forward(q)[0], l2_normalize.forward(k)[0]
        hits.append(float(((q * k).sum(axis=1) > (q @ queue.T).max(axis=1)).mean()))
    return np.mean(losses), np.mean(hits)


def lost(metrics):
    """How much lower in order than shuffled: the loss (nats), kNN on h and its probe (points), (seeds,) each. The
    loss is that of test images, with keys as in training."""
    return (metrics["shuffled: loss, keys shuffled"] - metrics["in order: loss, keys in order"],
            *(100 * (metrics[f"shuffled: {name}"] - metrics[f"in order: {name}"]) for name in ("knn_h", "probe_h")))


def verdict(metrics):
    """The loss, kNN and the probe all fall by more than their standard deviation."""
    falls = lost(metrics)
    holds = all(map(exceeds_std, falls))
    loss, knn, probe = (mean_std(fall, ".2f") for fall in falls)
    passive = metrics["shuffled: loss, keys shuffled"] - metrics["shuffled: loss, keys in order"]
    return QUALITATIVE if holds else NOT_REPRODUCED, (
        f"without the shuffle the loss falls by {loss} nats, kNN on h by {knn} points and its probe by {probe}. Even "
        f"after training with the shuffle, keys in order lower the loss, by {mean_std(passive, '.2f')}: the leak is "
        "there although training did not use it")


def table(metrics):
    rows = []
    for what, published, names, form, unit in (
            ("loss, keys shuffled and in order", "loss", [f"loss, keys {keys}" for keys in ORDERS], ".2f", ""),
            ("key found, in the same order", "picked", [f"picked, keys {keys}" for keys in ORDERS], ".1f", " %"),
            ("kNN on h, kNN on z, probe of h", "knn_h", ("knn_h", "knn_z", "probe_h"), ".1f", " %")):
        rows += [(f"trained {order}: {what}", CLAIM.published[published] if order == "in order" else "",
                  ", ".join(mean_std(metrics[f"{order}: {name}"], form, unit) for name in names))
                 for order in ORDERS]
    return rows


def draw(metrics, path):
    loss, knn, _ = (fall.mean() for fall in lost(metrics))
    figure, (left, right) = slide(f"Without the shuffle the loss falls by {loss:.1f} nats,\n"
                                  f"but kNN accuracy falls too, by {knn:.1f} points", panels=2, bottom=0.16, wspace=0.25)
    heading(left, "loss (nats)")
    bars = [("shuffled", "shuffled", BLUE), ("in order", "in order", ORANGE), ("in order", "shuffled", ORANGE)]
    for x, (trained, keys, colour) in enumerate(bars):
        bar(left, x, metrics[f"{trained}: loss, keys {keys}"], colour, width=0.6, form="{:.2f}")
    left.set(xticks=range(3), ylim=(0, 1.15 * left.dataLim.ymax),
             xticklabels=("trained\nshuffled", "trained\nin order", "the same,\nkeys shuffled"))
    heading(right, "accuracy (%)")
    for name, words, colour in (("probe_h", "linear probe of h", PURPLE), ("knn_h", "kNN on h", GREEN)):
        values = 100 * np.array([metrics[f"{order}: {name}"] for order in ORDERS]).T         # (seeds, 2)
        line(right, range(2), values, colour)
        beside = max(values.mean(axis=0) @ (0.58, 0.42), values[:, 1].max())                   # where the words begin
        note(right, 1.25, beside + 0.05, words, colour, ha="right", va="bottom")
    right.set(xticks=range(2), xticklabels=("trained\nshuffled", "trained\nin order"), xlim=(-0.3, 1.3))
    right.margins(y=0.3)
    write_figure(figure, path)
