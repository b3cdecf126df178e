"""Claim 15: language gives CLIP a classifier, and how the classes are put into words matters."""

import math

import numpy as np

from captioned_digits import LENGTH, NAMES, OPENERS, CaptionedDigits
from clip_captions import caption_batch, caption_number, embed_captions, zero_shot
from minicl.contrastive import clip_loss
from minicl.evaluate import encode, retrieval_recall
from minicl.methods import CLIP
from minicl.nn import ConvNet, Transformer
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std
from .slides import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, bar, chance, heading, slide
from .training import descend

CLAIM = Claim(
    number=15, name="zero_shot",
    title="CLIP classifies by words it was never taught as labels, better in a sentence than by the bare name",
    statement="Images and captions that were trained to match give a classifier for any classes with names: embed a "
              "prompt for each class and take the nearest. A template, such as a photo of a {}, is better than the "
              "bare name, and the mean of many templates is better still.",
    mathematics="""\
With unit vectors u of an image, t(c, p) of the name of class c in template p:

```text
class c        w_c = the mean of t(c, p) over the templates, at length 1 again
prediction     argmax_c u . w_c
logit scale    exp(s), s = log(1/0.07) = 2.659 at first, learned, never above 100
```

A bare name is not a caption; a template makes it one. Its other words shift all classes in one direction, and the
mean over different templates reduces this shift. The default size trains for 1000 steps;
examples/clip_captions.py trains longer and gets further.""",
    source="Radford et al. 2021 (CLIP), sections 2.3, 2.5 and 3.1.4; [docs/methods/clip.md](methods/clip.md)",
    next="Take a template that is false of most images, a photo of a small red {}. How much does it cost alone, how "
         "much as one of eighty? Then weigh templates by how often captions have their words.",
    published={"template over bare name": "+1.3 (ImageNet)", "ensemble over template": "+3.5 (ImageNet)",
               "logit scale at first": "2.659", "exp(logit scale), at most": "100"},
    doubt="in so small a language an ensemble has little to average out")

KINDS = ("bare name", "one template", "ensemble", "whole captions")
NOUNS = {"digit": ("{}", "digit {}", "number {}"), "colour": ("{} digit", "{} number")}
WHOLE = {"digit": "a photo of a {other} {size} {{}} {place}", "colour": "a photo of a {{}} {size} {other} {place}"}


def prompts(attribute):
    """{kind: templates} for the names of an attribute. The ensemble says the same in other words; beside it, 80 or
    100 whole captions, which name a value of every other attribute."""
    nouns = NOUNS[attribute]
    others = NAMES["digit" if attribute == "colour" else "colour"]
    return {"bare name": ["{}"],
            "one template": [f"a photo of a {nouns[0]}"],
            "ensemble": [f"{opener} a {noun}" for opener in OPENERS for noun in nouns],              # 18 or 12
            "whole captions": [WHOLE[attribute].format(size=size, other=other, place=place)
                               for size in NAMES["size"] for other in others for place in NAMES["place"]]}


def measure(setting):
    data = setting.images(setting.pick(1000, 20_000, 60_000), setting.pick(1000, 5000, 10_000))
    dataset = CaptionedDigits()
    model, scale = learn(dataset, data, setting)
    metrics = {"scale": scale, **evaluate(model, dataset, data, setting), "logit scale at first": math.log(scale[0])}
    model.logit_scale.data[...] = 10
    model.clamp_logit_scale()
    return metrics | {"exp(logit scale), at most": math.exp(model.logit_scale.item())}


def learn(dataset, data, setting):
    """A CLIP that has seen no held-out combination, and exp(logit scale) before each of 50 steps."""
    steps = setting.pick(100, 1000, 4000)
    rng = np.random.default_rng(setting.seed)
    encoder = ConvNet((32, 32, 3), setting.pick((16, 32, 32), (16, 32, 64, 64), (32, 64, 128, 128)),
                      strides=setting.pick((2, 2, 2), (2, 2, 2, 1), (2, 2, 2, 1)), rng=rng)
    text = Transformer(dataset.tokenize.size, LENGTH, depth=1, rng=rng)
    model = CLIP(encoder, text, rng=rng).to(setting.xp)
    scales = []

    def objective(chosen):
        scales.append(math.exp(model.logit_scale.item()))
        pictures, ids, same = caption_batch(dataset, data.train_images[chosen], data.train_labels[chosen], rng, setting.xp)
        image, text = model(pictures, ids)
        return clip_loss(image, text, model.logit_scale, caption_ids=same), image

    for _ in descend(model, objective, len(data.train_images), setting, steps=steps, batch=setting.pick(128, 256, 256),
                     lr=3e-3, weight_decay=0.05):
        model.clamp_logit_scale()
    return model, scales[::steps // 50]


def evaluate(model, dataset, data, setting):
    """Zero-shot accuracies on combinations that training did not have, and retrieval among 1000 images of any."""
    xp = setting.xp
    rng = np.random.default_rng([setting.seed, 1])
    images, attributes = dataset.render(data.test_images, data.test_labels, rng, held_out=True)
    accuracies = zero_shot(model, dataset, encode(model.image, images, xp), attributes,
                           {attribute: prompts(attribute) for attribute in NOUNS}, xp)
    images, attributes = dataset.render(data.test_images[:1000], data.test_labels[:1000], rng, held_out=None)
    _, first, caption_ids = np.unique(caption_number(attributes), return_index=True, return_inverse=True)
    captions = dataset.caption(attributes[first], rng, named=dict.fromkeys(NAMES, 1.0))
    recalls = retrieval_recall(encode(model.image, images, xp), embed_captions(model, dataset, captions, xp),
                               caption_ids, ks=(1, 5))
    return {", ".join(key): value for key, value in accuracies.items()} | recalls


def accuracy(metrics, kind):
    """The mean of the accuracies for digit and colour, (seeds,)."""
    return np.mean([metrics[f"{attribute}, {kind}"] for attribute in NOUNS], axis=0)


def gains(metrics):
    """Points that the template adds to the bare name, and the ensemble to the template: (2, seeds)."""
    return 100 * np.diff([accuracy(metrics, kind) for kind in KINDS[:3]], axis=0)


def verdict(metrics):
    """The scale is exact; bare name < template < ensemble, each step by more than its standard deviation."""
    if abs(metrics["logit scale at first"] - 2.659).max() > 5e-4 or \
            abs(metrics["exp(logit scale), at most"] - 100).max() > 1e-3:
        return NOT_REPRODUCED, "the logit scale does not start at log(1/0.07), or is not held at 100"
    template, ensemble = (mean_std(gain, "+.1f") for gain in gains(metrics))
    whole = mean_std(100 * (accuracy(metrics, "whole captions") - accuracy(metrics, "one template")), "+.1f")
    found = (f"digits and colours together, {template} points by the template, {ensemble} more by the ensemble that "
             f"says the same in other words; an ensemble of whole captions is {whole} from the template")
    holds = exceeds_std(gains(metrics).T)
    if holds[0] and not holds[1]:
        found += ". The grammar knows few words for the same thing, so there is little for an ensemble to average out"
    elif all(holds) and (last := gains(metrics)[1]).mean() < 2 * last.std():
        found += (". What the ensemble adds is hardly more than its spread: the grammar knows few words for the same "
                  "thing")
    return (QUALITATIVE if all(holds) else NOT_REPRODUCED), found


def table(metrics):
    rows = [(name, CLAIM.published[name], mean_std(metrics[name], form))
            for name, form in (("logit scale at first", ".3f"), ("exp(logit scale), at most", ".0f"))]
    rows.append(("exp(logit scale) at the end", "", mean_std(metrics["scale"][:, -1], ".1f")))
    rows += [(f"{attribute} by {kind}", f"chance {guess} %",
              mean_std(metrics[f"{attribute}, {kind}"], ".1f", " %"))
             for attribute, guess in (("digit", 10), ("colour", 12.5)) for kind in KINDS]
    rows += [(f"{what}, points", CLAIM.published[what], mean_std(gain, "+.1f"))
             for what, gain in zip(("template over bare name", "ensemble over template"), gains(metrics))]
    return rows + [(f"{what}: R@1, R@5", "", ", ".join(
                    mean_std(metrics[f"{side}_r{k}"], ".1f", " %") for k in (1, 5)))
                   for side, what in (("text", "the caption for an image, among those of 1000 images"),
                                      ("image", "the image for a caption, among 1000"))]


def draw(metrics, path):
    template, ensemble = exceeds_std(gains(metrics).T)
    figure, (left, middle, right) = slide(
        "A sentence classifies better than the bare name,\nan ensemble of sentences better still"
        if template and ensemble else
        "Not reproduced: a sentence classifies better than the\nbare name, but an ensemble no better than a sentence"
        if template else "Not reproduced: a sentence classifies no better\nthan the bare name",
        panels=3, widths=(4, 3, 2), wspace=0.3, bottom=0.15)
    heading(left, "which digit? (%)")
    for x, (kind, colour) in enumerate(zip(KINDS, (GREY, BLUE, GREEN, ORANGE))):
        bar(left, x, 100 * metrics[f"digit, {kind}"], colour, width=0.7)
    left.set(xticks=range(4), xticklabels=[kind.replace(" ", "\n") for kind in KINDS], ylim=(0, 100))
    left.tick_params(axis="x", labelsize=13)
    chance(left, 10, x=1.01, ha="left", va="center")
    heading(middle, "retrieval (%)")
    for x, name in enumerate(("text_r1", "text_r5", "image_r1", "image_r5")):
        bar(middle, x, 100 * metrics[name], PURPLE, width=0.7, form="{:.0f}")
    middle.set(xticks=range(4), xticklabels=("text\nR@1", "text\nR@5", "image\nR@1", "image\nR@5"), ylim=(0, 110))
    middle.tick_params(axis="x", labelsize=13)
    heading(right, "exp(logit scale)")
    right.plot(np.linspace(0, 100, metrics["scale"].shape[1]), metrics["scale"].T, color=INK, linewidth=2)
    chance(right, 1 / 0.07, "start, 1/0.07", va="top")
    right.set(xlabel="training (%)", ylim=(0, 1.1 * metrics["scale"].max()))
    figure.savefig(path)
