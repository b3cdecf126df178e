"""Claim 5: one encoder by alignment alone, by uniformity alone, by both, and without negatives.

With batch norm everywhere, in the heads only, and nowhere: does it prevent collapse, and does h stay useful?
"""

import numpy as np

from circle import LOSSES
from minicl import ops
from minicl.contrastive import l2_normalize
from minicl.evaluate import effective_rank, embedding_std, encode, frozen_accuracies, linear_probe
from minicl.methods import BYOL, SimCLR, SimSiam
from minicl.nn import Sequential, projection_head
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, REPRODUCED, Claim, exceeds_std, mean_std
from .slides import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, heading, note, slide
from .training import contrastive, digits, encoder_and_head, train

DIM = 64
NOISE = 0.1                                              # relative to the std of evenly spread unit vectors
CHANCE = 0.1

CLAIM = Claim(
    number=5, name="collapse", seeds=(3, 4, 5),
    title="Alignment alone collapses; negatives prevent it, and so does a stop-gradient",
    statement="Trained only to make two views of an image agree, an encoder gives all images the same z. Trained only "
              "to make all images differ, it spreads them regardless of similarity. Both together teach. BYOL and "
              "SimSiam have no negatives; a target without gradient keeps them from collapse.",
    mathematics="""\
```text
positives only     |u1 - u2|^2                           least at one point for all: spread 0
uniformity only    log mean exp(-2 |u - u'|^2)           least where spread evenly: std 1/sqrt(d)
both, NT-Xent      their sum; with one softmax for each anchor
BYOL, SimSiam      -cos(predictor(z1), stop_gradient(z2))
```

`spread` is the standard deviation (std) of the unit vectors per dimension, times sqrt(d). It is a length: a probe that
standardises every feature can still read the order that is left in a z one hundredth as wide. z is therefore also
probed after noise of a tenth of the full std. The effective rank is at most 64, or 256, the width of h, where there is
no head. The picture shows the spread in training, of augmented views normalised by their batch; the table that of
unchanged test images.""",
    source="Wang & Isola 2020; Chen & He 2021, section 4.1 and figure 2 (ImageNet, 1000 classes)",
    published={"positives only, batch norm": "spread 0 where z collapses; probe of h then at chance",
               "uniformity only, batch norm": "spread about 1 where it does not",
               "SimSiam, batch norm": "probe of h 67.7 % on ImageNet; without its stop-gradient 0.1 %, chance"},
    next="Which batch norm do BYOL and SimSiam need: that of the head, or that of the predictor? And take the "
         "predictor out of SimSiam: is its stop-gradient alone enough?")


def without_negatives(model, view1, view2, xp):
    views = xp.concatenate([view1, view2])
    _, z = model(views)
    return (model.loss(z, model.targets(views)) if isinstance(model, BYOL) else model.loss(z)), z.data


OBJECTIVES = {
    "positives only": contrastive(loss=LOSSES["alignment only"]),
    **{name: contrastive(tau=0.2, loss=LOSSES[name]) for name in ("uniformity only", "both", "NT-Xent")},
    "BYOL": without_negatives,
    "SimSiam": without_negatives,
}
NORMED = {"batch norm": ("encoder", "heads"), "in heads only": ("heads",), "no batch norm": ()}
METRICS = ("spread", "rank", "probe_z", "noisy", "probe_h")


def build(name, data, setting, normed=NORMED["batch norm"], head="mlp"):
    """The model of an objective, of the same weights for all. normed: where batch norm stays in."""
    channels = setting.pick((8, 16, 32), (16, 32, 64), (32, 64, 128))
    encoder, head = encoder_and_head(data, setting, head=head, dim=DIM, channels=channels)
    predictor = projection_head("mlp", DIM, hidden=DIM // 2, dim=DIM, rng=np.random.default_rng([setting.seed, 2]))
    if "encoder" not in normed:
        encoder.blocks = [Sequential(block.steps[0], ops.relu) for block in encoder.blocks]
    if "heads" not in normed:
        head.steps[1] = predictor.steps[1] = ops.relu
    model = (BYOL(encoder, head, predictor, m=0.9) if name == "BYOL" else
             SimSiam(encoder, head, predictor) if name == "SimSiam" else SimCLR(encoder, head))
    return model.to(setting.xp)


def measure(setting):
    data = digits(setting, train=(1000, 5000, 60_000), test=(300, 2000, 10_000))
    steps = setting.pick(40, 200, 5000)
    batch = setting.pick(48, 128, 256)
    metrics = {}

    def learn(row, name, times=1, **network):
        model = build(name, data, setting, **network)
        curve = train(model, OBJECTIVES[name], data.train_images, setting, steps=times * steps, batch=batch,
                      lr=setting.pick(1e-2, 5e-3, 5e-3), watch=lambda z: {"spread": embedding_std(z)})
        metrics[row] = evaluate(model, data, setting)
        metrics[f"{row}: spread in training"] = curve["spread"]
        setting.print(f"    {row}: " + ", ".join(f"{what} {value:.3f}" for what, value in zip(METRICS, metrics[row])))

    metrics["untrained"] = evaluate(build("untrained", data, setting), data, setting)
    for network, normed in NORMED.items():
        for name in OBJECTIVES if network != "in heads only" else ("positives only", "BYOL", "SimSiam"):
            learn(f"{name}, {network}", name, normed=normed)
    learn("positives only, 4 times as long", "positives only", times=4)
    learn("positives only, no head: z = h", "positives only", head="none")
    learn("positives only, no head, 4 times as long", "positives only", times=4, head="none")
    return metrics


def evaluate(model, data, setting):
    """The METRICS of a trained model, on test images."""
    xp = setting.xp
    rng = np.random.default_rng([setting.seed, 3])
    accuracies, _, test_z = frozen_accuracies(model, data, xp)
    noisy = []
    for z in (encode(model, data.train_images, xp)[1], test_z):
        u = l2_normalize.forward(z)[0]
        noisy.append(u + xp.asarray(rng.standard_normal(u.shape, dtype="float32")) * (NOISE / u.shape[1]**0.5))
    return [embedding_std(test_z), effective_rank(test_z), accuracies["probe_z"],
            linear_probe(noisy[0], data.train_labels, noisy[1], data.test_labels), accuracies["probe_h"]]


def verdict(metrics):
    """Positives alone end with less than a tenth of the full spread, all others with more than half of it; uniformity
    alone teaches z less than both. BYOL and SimSiam are exempt without batch norm: they were published with it."""
    def of(row, metric="spread"):
        return metrics[row][:, METRICS.index(metric)]

    for row in (row for row in metrics if row.endswith(tuple(NORMED))):
        least, most = of(row).min(), of(row).max()
        exempt = row in ("BYOL, no batch norm", "SimSiam, no batch norm")
        if most > 0.1 if row.startswith("positives") else least < 0.5 and not exempt:
            return NOT_REPRODUCED, f"{row}: the spread of z is {least:.2f} to {most:.2f}"
    alone = of("uniformity only, batch norm", "probe_z")
    if (alone >= np.minimum(of("both, batch norm", "probe_z"), of("NT-Xent, batch norm", "probe_z"))).any():
        return NOT_REPRODUCED, "uniformity alone teaches z as much as both together"
    first_two = ("positives only, batch norm", "uniformity only, batch norm")
    if max(of(row, "probe_h").mean() for row in first_two) < 2 * CHANCE:
        return REPRODUCED, "z collapses with positives alone and nowhere else, and the probe of h is near chance"
    bare = [name for name in ("BYOL", "SimSiam") if of(f"{name}, no batch norm").max() < 0.1]

    def probe(row, metric="probe_h"):
        return mean_std(of(row, metric), ".1f", " %")

    untrained = of("untrained", "probe_h")
    longer = "positives only, 4 times as long"
    no_head, no_head_longer = "positives only, no head: z = h", "positives only, no head, 4 times as long"
    gains = [of(f"{name}, batch norm", "probe_h") - untrained for name in ("BYOL", "SimSiam")]
    unmoved = not any(map(exceeds_std, gains))
    falls = (of(no_head_longer, "noisy") < of(no_head, "noisy")).all()
    return QUALITATIVE, (
        "z collapses with positives alone and not with the others"
        + (f", except that {' and '.join(bare)} collapse too without any batch norm" if bare else "")
        + (f". With it BYOL and SimSiam do not collapse, but in so few steps they do not improve h "
           f"({probe('BYOL, batch norm')}, {probe('SimSiam, batch norm')})" if unmoved else "")
        + f". But the probe of h is not at chance: {probe('positives only, batch norm')} with positives alone "
        f"({probe('positives only, no batch norm')} with no batch norm, so batch norm is not the cause) and "
        f"{probe('uniformity only, batch norm')} with uniformity alone, where untrained weights give "
        f"{probe('untrained')}: random features of digits are good, and the head absorbs the collapse. "
        f"After 4 times as many steps h is at {probe(longer)}, and z under noise at {probe(longer, 'noisy')}, from "
        f"{probe('positives only, batch norm', 'noisy')}. "
        + ("So the claim holds, but the scale and the head hide it: without" if falls else "Without")
        + f" a head, where h itself is compared, the probe of h under noise reads {probe(no_head, 'noisy')}, and after 4 "
        f"times as many steps {probe(no_head_longer, 'noisy')}; chance is {CHANCE:.0%}. Without noise it still reads "
        f"{probe(no_head_longer)}, because it standardises every feature and so reads differences of any size")


def table(metrics):
    rows = []
    for row, values in metrics.items():
        if values.ndim == 2 and "training" not in row:
            s, rank, z, noisy, h = values.T
            rows.append((row, CLAIM.published.get(row, ""),
                         f"spread {mean_std(s, '.3f')}; effective rank {mean_std(rank, '.0f')}; probe of z "
                         f"{mean_std(z, '.0f', ' %')}, under noise {mean_std(noisy, '.0f', ' %')}; of h "
                         f"{mean_std(h, '.1f', ' %')}"))
    return rows


COLOURS = {"positives only": ORANGE, "uniformity only": GREY, "both": GREEN, "NT-Xent": INK, "BYOL": BLUE,
           "SimSiam": PURPLE}


def draw(metrics, path):
    held = all(metrics[f"{name}, no batch norm"][:, 0].min() > 0.5 for name in ("BYOL", "SimSiam"))
    figure, (*panels, probes) = slide(
        "Positives alone: all images get one z. Negatives prevent it;\nso does a stop-gradient, with batch norm "
        + ("and without" if held else "but not without"),
        panels=3, widths=(1, 1, 1.15), left=0.06, wspace=0.22, bottom=0.27)
    for plot, network in zip(panels, ("batch norm", "no batch norm")):
        for name, colour in COLOURS.items():
            curves = metrics[f"{name}, {network}: spread in training"]
            x = np.linspace(0, 100, curves.shape[1])
            plot.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.25, linewidth=0)
            hides = name in ("both", "SimSiam")                              # what lies below it
            plot.plot(x, curves.mean(axis=0), "--" if hides else "-", color=colour, linewidth=3.5, label=name)
        plot.set(xlim=(0, 100), ylim=(0, 1.05), xlabel="% of training")
        heading(plot, f"spread, {network}")
    for y, name in enumerate(reversed(COLOURS)):
        for shift, column, colour in ((0.2, "probe_h", "0.35"), (-0.2, "noisy", "0.7")):
            values = 100 * metrics[f"{name}, batch norm"][:, METRICS.index(column)]
            probes.barh(y + shift, values.mean(), 0.36, color=colour)
            probes.plot(values, np.full(len(values), y + shift), "o", color=INK, markersize=4, alpha=0.7)
        probes.text(100 * CHANCE + 2, y + 0.18, name, fontsize=13, va="center", color="white", fontweight="bold")
    probes.axvline(100 * CHANCE, color=INK, linestyle="--", linewidth=1.5, zorder=0)
    probes.set(xlim=(0, 100), ylim=(-0.5, len(COLOURS) - 0.5), yticks=())
    probes.set_xticks((100 * CHANCE, 50, 100), (f"{CHANCE:.0%}\nchance", "50%", "100%"))
    heading(probes, "linear probe, batch norm")
    for y, words, colour in ((0.09, "h", "0.35"), (0.03, "z under noise", "0.6")):
        note(probes, 0.7, y, words, colour, transform=figure.transFigure)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.06, 0.01), ncols=3,
                  fontsize=14, frameon=False)
    write_figure(figure, path)
