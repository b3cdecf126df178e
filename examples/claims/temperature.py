"""Claim 7: the temperature decides which negatives push, and one is best; with l2 normalisation and without."""

import numpy as np

from minicl.autograd import Tensor
from minicl.backend import array_module, to_host
from minicl.contrastive import choice_accuracy, info_nce_from_scores, l2_normalize, nt_xent
from minicl.contrastive.composed import EXCLUDED
from minicl.evaluate import alignment, frozen_accuracies, uniformity
from minicl.methods import SimCLR
from minicl.ops import concat, where
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std, mean_stds
from .slides import BLUE, GREEN, GREY, ORANGE, chance, heading, line, note, slide
from .training import contrastive, digits, embed_views, encoder_and_head, train

TAUS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
DOTS = (1.0, 10.0, 100.0)
WEIGHED_AT = 0.2

CLAIM = Claim(
    number=7, name="temperature", seeds=(3, 4, 5),
    title="The temperature weighs the negatives, and neither extreme teaches best",
    statement="A low temperature gives nearly all of the push to the few most similar negatives; a high one "
              "distributes it evenly. The best representation lies between. This holds for cosines: without l2 "
              "normalisation the encoder can change the temperature itself, by the length of z.",
    mathematics="""\
```text
push of negative j on anchor i      p_ij / tau            p the softmax of s_i / tau over all candidates
its share of the push               exp(s_ij / tau) / sum over negatives k of exp(s_ik / tau)

tau -> 0      all to the most similar negative
tau -> inf    1/M each, of M negatives: the gradient of -s_i+ + mean_j s_ij
without l2    s = z . z': twice as long a z is a quarter of the temperature
```""",
    source="Chen et al. 2020 (SimCLR), table 5 (ImageNet, linear evaluation); Wang & Liu 2021",
    next="Learn the temperature, as CLIP does: exp of a parameter instead of 1/tau. Where does it end, and is it "
         "the best of this table? (nt_xent takes a Tensor as tau.)",
    published={"cosines, tau 0.05": "59.7 %", "cosines, tau 0.1": "64.4 %", "cosines, tau 0.5": "60.7 %",
               "cosines, tau 1": "58.0 %", "dots, tau 10": "57.2 %", "dots, tau 100": "57.0 %"})

METRICS = ("probe_h", "knn_h", "probe_z", "picked", "uniformity", "alignment")


def nt_xent_of_dots(z1, z2, tau):
    """NT-Xent with dot products for cosines."""
    z = concat(z1, z2)
    return info_nce_from_scores(*candidates(array_module(z.data), z @ z.T), tau)


def candidates(xp, scores):
    """Scores (2N, 2N) of all views, a Tensor, less each with itself; and which column is the other view (2N,)."""
    n = len(scores)
    return where(xp.eye(n, dtype=bool), EXCLUDED, scores), (xp.arange(n) + n // 2) % n


def measure(setting):
    data = digits(setting, train=(1000, 10_000, 60_000), test=(500, 10_000, 10_000))
    taus = setting.pick((0.02, 0.2, 5.0), TAUS, TAUS)
    metrics = {"tau": taus, "tau of dots": setting.pick((10.0,), DOTS, DOTS)}
    runs = [*(("cosines", nt_xent, tau) for tau in taus),
            *(("dots", nt_xent_of_dots, tau) for tau in metrics["tau of dots"])]
    for kind, loss, tau in runs:
        model = SimCLR(*encoder_and_head(data, setting)).to(setting.xp)
        train(model, contrastive(tau, loss=loss), data.train_images, setting, batch=setting.pick(128, 256, 512),
              steps=setting.pick(60, 300, 3000))
        found, z = evaluate(model, data, setting, kind)
        for name, value in found.items():
            metrics.setdefault(f"{kind}: {name}", []).append(value)
        if kind == "cosines" and tau == WEIGHED_AT:
            metrics["share of push"] = shares(z, taus)
        setting.print(f"    {kind}, tau {tau:g}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return metrics


def evaluate(model, data, setting, kind):
    """The METRICS of a model, and z of 256 pairs of views; picked: how often a view of them picks its other view."""
    xp = setting.xp
    accuracies, _, _ = frozen_accuracies(model, data, xp)
    z1, z2 = embed_views(model, data, setting)
    some = xp.concatenate([z1[:256], z2[:256]])
    u = some if kind == "dots" else l2_normalize.forward(some)[0]
    scores, ids = candidates(xp, Tensor(u @ u.T))
    return {**{name: accuracies[name] for name in METRICS[:3]}, "picked": float(choice_accuracy(scores.data, ids)),
            "uniformity": uniformity(z1[:2000]), "alignment": alignment(z1, z2)}, some


def shares(z, taus):
    """Mean share of an anchor's push that its most similar negative gives, its second, ...: (taus, 2N - 2)."""
    u = l2_normalize.forward(to_host(z).astype("float64"))[0]
    n = len(u)
    s = u @ u.T
    s[np.arange(n), np.arange(n)] = s[np.arange(n), (np.arange(n) + n // 2) % n] = -np.inf
    s = -np.sort(-s, axis=1)[:, :n - 2]                                      # (2N, 2N - 2), most similar first
    e = np.exp((s - s[:, :1]) / np.array(taus)[:, None, None])
    return (e / e.sum(axis=2, keepdims=True)).mean(axis=1)


def verdict(metrics):
    """The temperature that is best in the mean is neither end of the range, and beats both ends in every seed."""
    probe = metrics["cosines: probe_h"]
    taus = metrics["tau"][0]
    best = probe.mean(axis=0).argmax()
    z = metrics["cosines: probe_z"]
    ends, ends_z = ([mean_std(100 * (values[:, best] - values[:, end]), "+.1f") for end in (0, -1)]
                    for values in (probe, z))
    dots = probe[:, best] - metrics["dots: probe_h"].max(axis=1)
    spread = metrics["cosines: uniformity"].mean(axis=0)
    by_seed = ", ".join(f"{tau:g}" for tau in taus[probe.argmax(axis=1)])
    reason = (f"the probe of h is best in the mean at tau {taus[best]:g} (by seed {by_seed}), {ends[0]} "
              f"points above tau {taus[0]:g} and {ends[1]} above {taus[-1]:g} (of z {ends_z[0]} and {ends_z[1]}); "
              "dot products at their best tau do "
              + ("worse" if (dots > 0).all() else "no worse") + f" than cosines ({mean_std(-100 * dots, '+.1f')} points; on "
              f"ImageNet 7.2 worse); uniformity of z is best at tau "
              f"{taus[spread.argmin()]:g} ({spread.min():.2f}), and {spread[0]:.2f} at {taus[0]:g}")
    def peaks(values):
        best = values.mean(axis=0).argmax()
        return 0 < best < len(taus) - 1 and all((values[:, best] > values[:, end]).all() for end in (0, -1))

    if peaks(probe):
        return QUALITATIVE, reason
    others = [words for name, words in (("knn_h", "kNN on h"), ("probe_z", "the probe of z"))
              if peaks(metrics[f"cosines: {name}"])]
    return NOT_REPRODUCED, (f"by the probe of h, an end of the range is as good in some seed; in every seed the best lies "
                            f"between by {' and by '.join(others) or 'none of the others'}; {reason}")


def hardest(metrics):
    """Share of the push from the hardest hundredth of the negatives: (seeds, taus)."""
    share = metrics["share of push"]
    return share[:, :, :max(1, share.shape[2] // 100)].sum(axis=2)


MEASURES = {"probe_h": ("probe of h (%)", 100, ".1f"), "probe_z": ("probe of z (%)", 100, ".1f"),
            "knn_h": ("kNN on h (%)", 100, ".1f"), "uniformity": ("uniformity of z", 1, ".2f")}


def table(metrics):
    """One row a measure, by the temperatures of the row above them."""
    rows = []
    for kind, taus in (("cosines", metrics["tau"][0]), ("dots", metrics["tau of dots"][0])):
        rows.append((f"{kind}: tau", "", ", ".join(f"{tau:g}" for tau in taus)))
        there = ", ".join(CLAIM.published.get(f"{kind}, tau {tau:g}", "-").removesuffix(" %") for tau in taus)
        rows += [(f"{kind}: {what}", there if name == "probe_h" else "",
                  mean_stds(scale * metrics[f"{kind}: {name}"], form))
                 for name, (what, scale, form) in MEASURES.items()]
        if kind == "cosines":
            rows.append(("share of the push from the hardest 1 % (%)", "", mean_stds(100 * hardest(metrics), ".0f")))
    return rows


def draw(metrics, path):
    taus = metrics["tau"][0]
    probe = 100 * metrics["cosines: probe_h"]
    share = metrics["share of push"].mean(axis=0)
    best = taus[probe.mean(axis=0).argmax()]
    figure, (left, right) = slide("A low temperature weighs few negatives, a high one all;\n" + (
        f"the best lies between, here at τ = {best:g} in the mean" if verdict(metrics)[0] != NOT_REPRODUCED else
        "the best does not lie between for every seed here"), panels=2)
    styles = {taus[0]: (ORANGE, "bottom"), best: (GREEN, "bottom"), taus[-1]: (BLUE, "top")}
    for tau, curve in zip(taus, share):
        colour, place = styles.get(tau, (GREY, None))
        left.plot(np.arange(1, len(curve) + 1), curve, color=colour, linewidth=3.5 if place else 1.2)
        if place:
            at = len(curve) // 16 if tau == best else 0
            note(left, at + 1, curve[at] * (1.25 if place == "bottom" else 0.7), f"τ = {tau:g}", colour, va=place)
    heading(left, "share of the push")
    left.set(xscale="log", yscale="log", ylim=(1e-4, 1.5), xlabel="negatives, the most similar first")
    z = 100 * metrics["cosines: probe_z"]
    line(right, taus, probe, BLUE)
    line(right, taus, z, ORANGE)
    for values, words, colour in ((probe, "h", BLUE), (z, "z", ORANGE)):
        note(right, taus[-1] * 1.15, values[:, -1].mean(), words, colour, va="center")
    dots = 100 * metrics["dots: probe_h"]
    level, tau = max(zip(dots.mean(axis=0), metrics["tau of dots"][0]))
    chance(right, level, f"dot products, τ = {tau:g}", x=1, ha="right", va="bottom")
    heading(right, "linear probe (%)")
    right.set(xscale="log", xlabel="temperature τ")
    right.set_xticks(taus, [f"{tau:g}" for tau in taus])
    right.minorticks_off()
    write_figure(figure, path)
