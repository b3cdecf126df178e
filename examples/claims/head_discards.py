"""Claim 9: which transformation was applied to an image can be read from h, and less well from z = g(h)."""

import re

import numpy as np

from minicl import Tensor, no_grad
from minicl.backend import array_module, to_device, to_host
from minicl.contrastive import info_nce_from_scores
from minicl.data import draw_digits
from minicl.data.augment.photometric import LUMA
from minicl.evaluate import encode
from minicl.evaluate.probe import standardizer
from minicl.methods import SimCLR
from minicl.nn import Linear, Sequential
from minicl.nn.layers import RELU_GAIN
from minicl.ops import relu
from minicl.optim import AdamW, warmup_cosine
from minicl.viz import write_figure
from .colour import coloured, hue_views, tint
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std
from .slides import BLUE, INK, ORANGE, bar, heading, percent, picture, slide
from .training import contrastive, digits, encoder_and_head, train

CLAIM = Claim(
    number=9, name="head_discards", seeds=(3, 4, 5),
    title="The head discards what the augmentation varies",
    statement="If views differ by a transformation, the loss asks for the same z for all versions, so the head "
              "discards the transformation; h, before the head, still contains it. This is why a head helps although "
              "it is removed: it forgets instead of h.",
    mathematics="""\
A transformation t is drawn for each view; a small MLP is trained to tell t from the frozen features of one view:

```text
the loss wants     z(t(x)) = z(t'(x))          for all t, t': z should not depend on t
and never sees h   h is what is good for z     t may stay in h, and I(h; t) >= I(g(h); t) always holds
```""",
    source="Chen et al. 2020 (SimCLR), section 4.2 and table 3 (ImageNet, an MLP on h and on g(h), both 2048 wide)",
    next="h itself contains little about colour: compare it with h before training. Why is colour so much easier to "
         "forget than rotation? Then give the head one more layer. Does z lose more, and does h lose less?",
    published={"colour or grey": "99.3 / 97.4 %, chance 80 %", "rotation": "67.6 / 25.6 %, chance 25 %",
               "noise or none": "99.5 / 59.6 %, chance 50 %", "edges or image": "96.6 / 56.3 %, chance 50 %"})


# ---------------------------------------------------------------- the versions of images (B, H, W, 3)

def greys(images, rng):
    luma = images @ to_device(LUMA.astype("float32"), array_module(images))
    return [images, array_module(images).stack([luma] * 3, axis=3)]


def noises(images, rng):
    noise = to_device(rng.standard_normal(images.shape, dtype="float32"), array_module(images))
    return [images, (images + 0.2 * noise).clip(0, 1)]


def edges(images, rng):
    """Sobel's filter: the length of the gradient, each colour apart."""
    xp = array_module(images)
    p = xp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    down = p[:, 2:] - p[:, :-2]
    across = p[:, :, 2:] - p[:, :, :-2]
    down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    across = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    return [images, (xp.sqrt(down * down + across * across) / 4).clip(0, 1)]


def rotations(images, rng):
    return [array_module(images).rot90(images, turn, axes=(1, 2)) for turn in range(4)]


TASKS = {"colour or grey": greys, "edges or image": edges, "noise or none": noises, "rotation": rotations}


def transform(versions, images, rng):
    """Each image in one of its versions -> images and the ids (B,) of the versions, on the host."""
    xp = array_module(images)
    images = versions(images, rng)
    ids = rng.integers(0, len(images), len(images[0]))
    return xp.stack(images)[to_device(ids, xp), xp.arange(len(ids))], ids


LONGER = "edges or image"                                    # of which g(h) loses least in the default run


# ---------------------------------------------------------------- the experiment

def measure(setting):
    grey = digits(setting)
    metrics = {}
    steps = setting.pick(100, 300, 5000)
    for task in setting.pick(("noise or none", "rotation"), tuple(TASKS), tuple(TASKS)):
        metrics |= {f"{task}: {name}": value for name, value in learn(task, grey, setting, steps).items()}
        setting.print("    " + ", ".join(f"{name} {value:.1%}" for name, value in metrics.items() if name.startswith(task)))
    longer = {} if setting.size == "fast" else learn(LONGER, grey, setting, 3 * steps, digit=False)
    return metrics | {f"{LONGER}, longer: {name}": value for name, value in longer.items()}


def learn(task, grey, setting, steps, digit=True):
    """Accuracies of the probes before and after `steps` of training on views in drawn versions."""
    rng = np.random.default_rng([setting.seed, 2])
    data, _ = coloured(grey, rng)
    model = SimCLR(*encoder_and_head(data, setting, hidden=256, dim=256)).to(setting.xp)         # z as wide as h
    seen = [transform(TASKS[task], images.astype("float32") / 255, rng)
            for images in (data.train_images, data.test_images)]
    metrics = {f"{name}, untrained": value for name, value in probe_versions(model, seen, setting).items()}
    augment = hue_views(0.5)

    def views(images, rng):
        return [transform(TASKS[task], augment(images, rng), rng)[0] for _ in range(2)]

    train(model, contrastive(), data.train_images, setting, steps=steps, batch=setting.pick(128, 256, 256), views=views)
    return metrics | probe_versions(model, seen, setting, data if digit else None)


def mlp_probe(train, train_ids, test, test_ids, *, hidden=128, epochs=15, batch=500, lr=1e-2):
    """Test accuracy of an MLP on fixed features, as in the paper: what can be read off at all."""
    xp = array_module(train)
    rng = np.random.default_rng(0)
    standardize = standardizer(train)
    x, x_test = standardize(train), standardize(test)
    labels = to_device(train_ids, xp)
    batch = min(batch, len(x))
    mlp = Sequential(Linear(x.shape[1], hidden, rng=rng, gain=RELU_GAIN), relu,
                     Linear(hidden, int(train_ids.max()) + 1, rng=rng)).to(xp).astype(x.dtype)
    optimizer = AdamW(mlp, lr, weight_decay=0.3)
    total = epochs * (len(x) // batch)
    for _ in range(epochs):
        order = to_device(rng.permutation(len(x)), xp)
        for k in range(len(x) // batch):
            ids = order[k * batch:(k + 1) * batch]
            loss = info_nce_from_scores(mlp(Tensor(x[ids])), labels[ids])    # cross-entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(warmup_cosine(optimizer.steps, total=total, peak=lr))
    with no_grad():
        return float((to_host(mlp(Tensor(x_test)).data.argmax(axis=1)) == test_ids).mean())


def probe_versions(model, seen, setting, data=None):
    """Test accuracies of MLPs that tell from h and from z = g(h) the version shown, and of `data` the digit."""
    (train_images, train_ids), (test_images, test_ids) = seen
    features = zip(*(encode(model, (255 * images).round().astype(np.uint8), setting.xp)
                     for images in (train_images, test_images)))
    metrics = {}
    for space, (trained, tested) in zip(("h", "g(h)"), features):
        metrics[space] = mlp_probe(trained, train_ids, tested, test_ids)
        if data:
            metrics[f"digit, {space}"] = mlp_probe(trained, data.train_labels, tested, data.test_labels)
    return metrics


def tasks_of(metrics):
    return [task for task in TASKS if f"{task}: h" in metrics]


def lost(metrics, task, when=""):
    """The share of h's accuracy above chance that g(h) has lost: (seeds,)."""
    chance = 1 / (4 if task == "rotation" else 2)
    h, z = metrics[f"{task}: h{when}"], metrics[f"{task}: g(h){when}"]
    return (h - z) / (h - chance)


def lost_in_paper(task):
    """The same share in the paper."""
    h, z, chance = map(float, re.findall(r"[\d.]+", CLAIM.published[task]))
    return (h - z) / (h - chance)


def verdict(metrics):
    """In every seed g(h) must lose some of every transformation, and more than an untrained head loses."""
    kept = [task for task in tasks_of(metrics)
            if not (lost(metrics, task) > abs(lost(metrics, task, ", untrained"))).all()]
    reason = "g(h) loses this share of what h reads above chance (in parentheses: before training): " + ", ".join(
        f"{task} {lost(metrics, task).mean():.0%} ({lost(metrics, task, ', untrained').mean():.0%})"
        for task in tasks_of(metrics))
    here = sorted(tasks_of(metrics), key=lambda task: lost(metrics, task).mean())
    if here != (there := sorted(here, key=lost_in_paper)):
        reason += "; in another order than in the paper, where g(h) lost " + ", ".join(
            f"{lost_in_paper(task):.0%} of {task}" for task in there)
    if f"{LONGER}, longer: h" in metrics:                                    # not in the fast form
        short, long = (lost(metrics, task) for task in (LONGER, f"{LONGER}, longer"))
        cause = "The scale is part of the cause: after" if (long > short).all() else "After"
        reason += (f". {cause} 3 times as many steps g(h) loses "
                   f"{long.mean():.0%} of {LONGER}, where it lost {short.mean():.0%}")
    return (NOT_REPRODUCED, f"{reason}; not lost: {', '.join(kept)}") if kept else (QUALITATIVE, reason)


def table(metrics):
    def pair(name, suffix=""):
        return " / ".join(mean_std(metrics[f"{name}{space}{suffix}"], ".1f", " %") for space in ("h", "g(h)"))

    tasks = tasks_of(metrics)
    return [*((f"{task}, from h / from g(h), chance {25 if task == 'rotation' else 50} %", CLAIM.published[task],
               pair(f"{task}: ")) for task in tasks),
            *((f"{task}, 3 times as long", "", pair(f"{task}, longer: ")) for task in tasks
              if f"{task}, longer: h" in metrics),
            *((f"{task}, before training", "", pair(f"{task}: ", ", untrained")) for task in tasks),
            *((f"digit, of the encoder trained with {task}", "", pair(f"{task}: digit, ")) for task in tasks)]


def draw(metrics, path):
    tasks = tasks_of(metrics)
    h, z = (100 * metrics[f"rotation: {space}"].mean() for space in ("h", "g(h)"))
    figure, [plot] = slide(f"The head discards what the augmentation varies:\nrotation is read from h at {h:.0f} %, "
                           f"after the head at {z:.0f} %", bottom=0.27)
    for x, task in enumerate(tasks):
        for side, space, colour in ((-0.2, "h", BLUE), (0.2, "g(h)", ORANGE)):
            bar(plot, x + side, 100 * metrics[f"{task}: {space}"], colour, form="{:.0f}",
                label=f"from {space}" if x == 0 else None)
        guess = 25 if task == "rotation" else 50
        plot.plot([x - 0.45, x + 0.45], [guess, guess], color=INK, linestyle="--", linewidth=2)
    plot.text(len(tasks) - 0.52, guess, "chance", fontsize=14, color=INK, va="center")
    percent(plot, 0, 105)
    plot.set(xticks=range(len(tasks)), xlim=(-0.6, len(tasks) - 0.1))
    plot.set_xticklabels(tasks, fontsize=17)
    heading(plot, "transformation recognised")
    plot.legend(fontsize=16, frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.22))
    examples(figure, plot, tasks)
    write_figure(figure, path)


def examples(figure, plot, tasks):
    """Under each transformation a generated digit without it and with it."""
    rng = np.random.default_rng(0)
    image = tint(draw_digits(np.array([4]), rng), np.array([7])).astype("float32") / 255
    for x, task in enumerate(tasks):
        middle = figure.transFigure.inverted().transform(plot.transData.transform((x, 0)))[0]
        for side, version in zip((-0.075, 0.005), TASKS[task](image, rng)):
            picture(figure, version[0], middle + side, 0.04, 0.07)
