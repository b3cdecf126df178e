"""Claim 12: how slowly the key encoder must follow, for a queue of its keys to be of use.

m is a half-life: after log(1/2) / log(m) steps half of a weight of the key encoder is new. There are two clocks to
compare it with, the steps that a key spends in the queue and the steps of the whole run.
"""

import math

import numpy as np

from minicl.backend import to_device
from minicl.contrastive import l2_normalize
from minicl.evaluate import frozen_accuracies
from minicl.methods import MoCo
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std, mean_stds
from .slides import BLUE, GREEN, GREY, ORANGE, heading, line, note, slide
from .training import digits, encoder_and_head, train

TAU = 0.2
DIM = 64
MOMENTA = (0, 0.9, 0.99, 0.999, 0.9999)

CLAIM = Claim(
    number=12, name="momentum",
    title="The momentum encoder needs m near 1",
    statement="MoCo compares a query with keys that were computed many steps ago. If the key encoder follows the "
              "query encoder quickly, old and new keys come from different encoders and can be told apart by age. If "
              "it follows slowly, they are comparable.",
    mathematics="""\
The weights of t steps ago make up (1 - m) m^t of the key encoder; half of it is younger than the half-life:

```text
key <- m key + (1 - m) query        half-life = log(1/2) / log(m)
m = 0.9, 0.99, 0.999, 0.9999: 6.6, 69, 693, 6931 steps
K / N steps in the queue   <<   half-life   <<   steps of the run
```

The first inequality is why m must be near 1, the second why not too near. The paper's
comparison has room between: K / N = 16 steps (4096 keys) and a million steps of training. The run here has little: 32
steps (8192 keys) and 400.""",
    source="He et al. 2020 (MoCo), section 4.1, the table of m at K = 4096; linear classification on ImageNet",
    next="Halve the learning rate: the query encoder moves half as far. Which m is then enough? Then give m = 0.9 "
         "a queue of one batch: python examples/moco_mnist.py --momentum 0.9 --queue 256.",
    published={"0": "fails", "0.9": "55.2", "0.99": "57.8", "0.999": "59.0", "0.9999": "58.9"})


def half_life(m):
    """Steps after which half of the key encoder is new."""
    return math.log(0.5) / math.log(m) if m else 0.0


def build(data, setting, *, queue, m=0.99, splits=8):
    """MoCo with an encoder and head from setting.seed, on the setting's backend."""
    return MoCo(*encoder_and_head(data, setting, dim=DIM), dim=DIM, queue=queue, m=m, splits=splits).to(setting.xp)


def queries_and_keys(rng, tau=TAU):
    """MoCo's objective for train(). rng shuffles the batch of keys."""
    def objective(model, view1, view2, xp):
        _, q = model(view1)                                                  # (N, d)
        return model.loss(q, model.encode_keys(view2, rng), tau), q.data

    return objective


def ages(model, xp):
    """A watch for train(): log of the candidates, and how many times as much one of the queue's newest keys counts,
    in the softmax's denominator, as one of its oldest. The very newest batch is left out: the queries' own keys."""
    def watch(q):
        queue = model.queue
        u = l2_normalize.forward(q)[0]
        eighth = (len(queue) - len(q)) // 8
        if eighth < 1:
            return {"chance": math.log(1 + len(queue)), "stale": 1.0}

        def weight(first):                                                   # of keys numbered from the first ever
            rows = to_device((first + np.arange(eighth)) % queue.capacity, xp)
            return float(xp.exp(u @ queue.filled()[rows].T / TAU).mean())

        newest = queue.enqueued - len(q) - eighth
        oldest = queue.enqueued - len(queue)
        return {"chance": math.log(1 + len(queue)), "stale": weight(newest) / weight(oldest)}

    return watch


def measure(setting):
    data = digits(setting, train=(1000, 20_000, 60_000), test=(1000, 5000, 10_000))
    batch = setting.pick(64, 256, 256)
    steps = setting.pick(150, 400, 20_000)
    queue = setting.pick(32, 32, 256) * batch
    rows = []
    for m in MOMENTA:
        model = build(data, setting, queue=queue, m=m, splits=setting.pick(4, 8, 8))
        curve = train(model, queries_and_keys(np.random.default_rng([setting.seed, 2])), data.train_images, setting,
                      steps=steps, batch=batch, watch=ages(model, setting.xp))
        accuracies, _, _ = frozen_accuracies(model, data, setting.xp)
        rows.append({**accuracies, "loss": np.mean(curve["loss"][-4:]), "stale": np.mean(curve["stale"])})
    return {**{name: [row[name] for row in rows] for name in rows[0]}, "chance": curve["chance"][-1],
            "steps in the queue": queue // batch, "steps of the run": steps}


def verdict(metrics):
    """As in the paper's table, 0 and 0.9 are worse than the best m nearer to 1, by more than the standard deviation."""
    knn = metrics["knn_h"]
    gains = knn[:, 2:].max(axis=1, keepdims=True) - knn[:, :2]                                       # (seeds, 2)
    best = knn.mean(axis=0).argmax()
    at_zero, at_fast, at_best = (mean_std(knn[:, k], ".1f", " %") for k in (0, 1, best))
    found = f"kNN on h is {at_zero} with m = 0, {at_fast} with 0.9, and at best {at_best}, with {MOMENTA[best]}"
    if not exceeds_std(gains).all():
        return NOT_REPRODUCED, found
    runs = half_life(0.9999) / metrics["steps of the run"][0]
    cost = 100 * (knn[:, best] - knn[:, -1])
    return QUALITATIVE, (f"{found}. Unlike in the paper, m = 0 still learns something: digits are easy. And 0.9999, "
                      f"whose half-life is {runs:.0f} times the run, costs only {mean_std(cost, '.1f')} points: "
                      "keys of weights that are still almost random teach too")


def table(metrics):
    rows = [(f"m = {m}, half-life {half_life(m):.0f} steps: probe of h, kNN on h, kNN on z",
             f"{CLAIM.published[str(m)]} (ImageNet)",
             mean_stds(np.stack([metrics[name][:, k] for name in ("probe_h", "knn_h", "knn_z")], axis=1), ".1f", " %"))
            for k, m in enumerate(MOMENTA)]
    for name, what, form in (("loss", "loss at the end", ".2f"),
                             ("stale", "weight of the newest keys in the softmax, over that of the oldest", ".1f")):
        rows.append((f"{what}, by m", "", mean_stds(metrics[name], form)))
    return rows + [("chance, log of the candidates", "", mean_std(metrics["chance"], ".2f")),
                   ("steps that a key spends in the queue", "", mean_std(metrics["steps in the queue"], ".0f")),
                   ("steps of the run", "", mean_std(metrics["steps of the run"], ".0f"))]


def draw(metrics, path):
    queue = metrics["steps in the queue"][0]
    run = metrics["steps of the run"][0]
    x = np.array([2.0, *map(half_life, MOMENTA[1:])])                        # 0 has no place on a logarithmic axis
    figure, (left, right) = slide("The momentum encoder must be slower than its queue,\nor new keys outweigh old ones",
                                  panels=2, widths=(3, 2), bottom=0.2, wspace=0.2)
    heading(left, "accuracy (%)")
    line(left, x, 100 * metrics["probe_h"], BLUE)
    line(left, x, 100 * metrics["knn_h"], GREEN)
    line(left, x, 100 * metrics["knn_z"], ORANGE)
    note(left, x[2], 100 * metrics["probe_h"][:, 2].max() + 1, "linear probe of h", BLUE, ha="center", va="bottom")
    note(left, x[3], 100 * metrics["knn_z"][:, 2].min() - 3, "kNN on h", GREEN, va="top")
    note(left, x[2], 100 * metrics["knn_z"][:, 2].min() - 3, "kNN on z", ORANGE, va="top")
    for at, words in ((queue, "a key's time\nin the queue"), (run, "length\nof the run")):
        left.axvline(at, ymax=0.5, color=GREY, linestyle="--", linewidth=1.5)
        left.text(at * 1.1, 0.02, words, color=GREY, fontsize=14, va="bottom", transform=left.get_xaxis_transform())
    left.set(xscale="log", xlabel="half-life of the key encoder (steps), and m", ylim=(None, 102))
    left.set_xticks(x, [f"{steps:.0f}\n{m}" for steps, m in zip((0, *x[1:]), MOMENTA)])
    heading(right, "weight of new / old keys")
    line(right, np.arange(len(MOMENTA)), metrics["stale"], BLUE)
    right.axhline(1, color=GREY, linestyle="--", linewidth=1.5)
    right.set(yscale="log", xlabel="m", yticks=(1, 3, 10, 30), yticklabels=(1, 3, 10, 30),
              xticks=np.arange(len(MOMENTA)), xticklabels=["0", *(f"{m}".lstrip("0") for m in MOMENTA[1:])])
    for plot in (left, right):
        plot.minorticks_off()
    write_figure(figure, path)
