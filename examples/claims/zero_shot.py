"""Claim 15: language gives CLIP a classifier, and how the classes are put into words matters.

The captions come from a grammar of 149 openers, 400 remarks and two words for everything, so that hardly one occurs
twice, and every one names a second number, which says nothing of the image.
"""

import math

import numpy as np

from captioned_digits import RGB, WORDS
from minicl.backend import to_device
from minicl.contrastive import clip_loss
from minicl.data import same_caption_ids
from minicl.evaluate import class_embeddings, encode, retrieval_recall, to_float, zero_shot_accuracy
from minicl.methods import CLIP
from minicl.nn import ConvNet, Transformer, WordTokenizer
from minicl.viz import write_figure
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, exceeds_std, mean_std
from .slides import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, bar, chance, heading, line, note, slide
from .training import descend, digits

CLAIM = Claim(
    number=15, name="zero_shot", seeds=(3, 4, 5, 6, 7),
    title="CLIP classifies by words it was never taught as labels, better in a sentence than by the bare name",
    statement="Images and captions that were trained to match give a classifier for any classes with names: embed a "
              "prompt for each class and take the nearest. A template, such as a photo of a {}, is better than the "
              "bare name, and the mean of many templates is better still.",
    mathematics="""\
With unit vectors u of an image, t(c, p) of the name of class c in template p:

```text
class c        w_c = the mean of t(c, p) over the templates p, at length 1 again
prediction     argmax_c u . w_c
logit scale    exp(s), s = log(1/0.07) = 2.659 at first, learned, never above 100
```

The classes are digits, or digits in a colour. A fifth of the combinations never occurs in training, and all test images
are of these. A digit's name is thus never seen with one or two of the eight colours, and comes to mean their absence too.
That is why 80 digits in a colour are told apart better than 10 digits alone.

Captions are like "a blurry photo of the red seven on page three": only from the context can the encoder tell
which of two numbers is the digit. A bare name has no context. A template gives one, but its own words leave a trace that
differs between classes: page three pulls every class towards three. So t(c, p) is a noisy estimate of the class,
and the mean over templates has less of the noise. One template: the mean accuracy of 48 templates, each used alone.""",
    source="Radford et al. 2021 (CLIP), sections 2.3, 2.5 and 3.1.4; [docs/methods/clip.md](methods/clip.md)",
    next="Use only the 48 templates without their remarks: how much of the ensemble's gain is left? Then weigh each "
         "template by its accuracy on training images.",
    published={"template over bare name": "+1.3 (ImageNet)", "ensemble over template": "+3.5 (ImageNet)",
               "logit scale at first": "2.659", "exp(logit scale), at most": "100"})

NAMES = {attribute: [words[0] for words in WORDS[attribute]] for attribute in ("digit", "colour")}
CLASSES = {"digit": NAMES["digit"],
           "digit and colour": [f"{colour} {digit}" for digit in NAMES["digit"] for colour in NAMES["colour"]]}
HELD_OUT = np.add.outer(np.arange(10), np.arange(8)) % 5 == 0                # (digit, colour) that training never shows

KINDS = "photo picture image drawing sketch painting print scan copy view snapshot sign poster stamp".split()
LOOKS = ("", "good ", "bad ", "blurry ", "clean ", "dark ", "close ", "old ", "new ", "nice ")
OPENERS = ["this is", "there is", "we see", "here is", "look at", "i like", "she drew", "he wrote", "it shows",
           *(f"a {look}{kind} of" for look in LOOKS for kind in KINDS)]
REMARKS = ["on page {}", "in box {}", "from shelf {}", "taken at {}", "for room {}", "seen by {} of us",
           "kept in {} copies", "sent {} times", "made {} days ago", "worth {} coins"]
LENGTH = 16                                                                  # tokens of the longest caption
TEMPLATES = 48
ENSEMBLES = (1, 2, 4, 8, 16, TEMPLATES)


class Grammar:
    """Captions of coloured digits, and the tokenizer of their words."""

    def __init__(self, rng):
        self.rng = rng
        words = [word for attribute in NAMES for same in WORDS[attribute] for word in same[:2]]
        phrases = [*words, *OPENERS, *REMARKS, "the digit number"]
        self.tokenize = WordTokenizer(sorted(set(" ".join(phrases).replace("{}", "").split())), LENGTH)

    def caption(self, digit, colour):
        """For instance "one of 4 copies a nice sketch of the crimson number seven"."""
        noun = self.choose(("{}", "{}", "digit {}", "number {}")).format(self.choose(WORDS["digit"][digit][:2]))
        return self.template().format(f"{self.choose(WORDS['colour'][colour][:2])} {noun}")

    def template(self):
        """Such as "a dark scan of the {} in box 5"."""
        thing = f"{self.choose(OPENERS)} the {{}}"
        remark = self.choose(REMARKS).format(self.choose(self.choose(WORDS["digit"])[:2]))
        return self.choose((f"{thing} {remark}", f"{remark} {thing}"))

    def choose(self, options):
        return options[self.rng.integers(len(options))]


def paint(digits, labels, rng, held_out):
    """Digits (N, H, W, 1) in drawn colours: images (N, H, W, 3) uint8 and the colours (N,).

    held_out  True: only combinations that training never shows; False: only the others; None: all
    """
    allowed = np.ones_like(HELD_OUT) if held_out is None else HELD_OUT == held_out
    colours = (rng.random((len(labels), 8)) * allowed[labels]).argmax(axis=1)
    shade = RGB[colours] * rng.uniform(0.85, 1.0, (len(labels), 1))
    paper = rng.uniform(0, 50, (len(labels), 1, 1, 3))
    images = paper + digits / 255 * (shade[:, None, None] - paper)
    return images.round().astype(np.uint8), colours


def measure(setting):
    data = digits(setting, train=(2000, 20_000, 60_000))
    model, grammar, scale = learn(data, setting)
    metrics = {"scale": scale, **evaluate(model, grammar, data, setting), "logit scale at first": math.log(scale[0])}
    model.logit_scale.data[...] = 10
    model.clamp_logit_scale()
    return metrics | {"exp(logit scale), at most": math.exp(model.logit_scale.item())}


def learn(data, setting):
    """A CLIP that has seen no held-out combination, its grammar, and exp(logit scale) before each of 50 steps."""
    steps = setting.pick(150, 500, 4000)
    rng = np.random.default_rng(setting.seed)
    grammar = Grammar(rng)
    encoder = ConvNet((14, 14, 3), setting.pick((16, 32, 64), (16, 32, 64), (32, 64, 128)), rng=rng)
    text = Transformer(grammar.tokenize.size, LENGTH, width=32, depth=1, rng=rng)
    model = CLIP(encoder, text, rng=rng).to(setting.xp)
    scales = []

    def objective(chosen):
        scales.append(math.exp(model.logit_scale.item()))
        images, colours = paint(data.train_images[chosen], data.train_labels[chosen], rng, held_out=False)
        ids = grammar.tokenize([grammar.caption(*pair) for pair in zip(data.train_labels[chosen], colours)])
        image, text = model(to_float(images, setting.xp), to_device(ids, setting.xp))
        same = to_device(same_caption_ids(ids), setting.xp)
        return clip_loss(image, text, model.logit_scale, caption_ids=same), image

    for _ in descend(model, objective, len(data.train_images), setting, steps=steps, batch=128, lr=3e-3,
                     weight_decay=0.05):
        model.clamp_logit_scale()
    return model, grammar, scales[::steps // 50]


def evaluate(model, grammar, data, setting):
    """Zero-shot accuracies on combinations that training did not have, and retrieval among all 80."""
    xp = setting.xp
    grammar.rng = rng = np.random.default_rng([setting.seed, 1])

    def embed(captions):
        return encode(model.text, grammar.tokenize(captions), xp, prepare=to_device)

    images, colours = paint(data.test_images, data.test_labels, rng, held_out=True)
    unseen = encode(model.image, images, xp)
    templates = [grammar.template() for _ in range(TEMPLATES)]
    metrics = {"templates": ENSEMBLES}
    for what, labels in (("digit", data.test_labels), ("digit and colour", data.test_labels * 8 + colours)):
        def accuracy(some):
            return zero_shot_accuracy(unseen, class_embeddings(embed, CLASSES[what], some), labels)

        metrics[f"{what}, bare name"] = accuracy(["{}"])
        alone = [accuracy([template]) for template in templates]
        metrics[f"{what}, each template"] = alone
        metrics[f"{what}, ensembles"] = [np.mean(alone), *(
            np.mean([accuracy(templates[first:first + n]) for first in range(0, TEMPLATES, n)]) for n in ENSEMBLES[1:])]

    images, colours = paint(data.test_images[:1000], data.test_labels[:1000], rng, held_out=None)
    _, first, caption_ids = np.unique(data.test_labels[:1000] * 8 + colours, return_index=True, return_inverse=True)
    captions = [grammar.caption(data.test_labels[k], colours[k]) for k in first]
    return metrics | retrieval_recall(encode(model.image, images, xp), embed(captions), caption_ids, ks=(1, 5))


def gains(metrics):
    """Points that one template adds to the bare name, and the ensemble to one template, for both sorts of classes:
    {name: (seeds,)}."""
    means = {"bare": [], "one": [], "all": []}
    for what in CLASSES:
        means["bare"].append(metrics[f"{what}, bare name"])
        means["one"].append(metrics[f"{what}, ensembles"][:, 0])
        means["all"].append(metrics[f"{what}, ensembles"][:, -1])
    bare, one, together = (100 * np.mean(values, axis=0) for values in means.values())
    return {"template over bare name": one - bare, "ensemble over template": together - one}


def verdict(metrics):
    """The scale is exact; bare name < template < ensemble, each step in every seed and by more than the standard
    deviation."""
    if abs(metrics["logit scale at first"] - 2.659).max() > 5e-4 or \
            abs(metrics["exp(logit scale), at most"] - 100).max() > 1e-3:
        return NOT_REPRODUCED, "the logit scale does not start at log(1/0.07), or is not held at 100"
    steps = gains(metrics)
    missing = [name for name, points in steps.items() if not (exceeds_std(points) and (points > 0).all())]
    template, ensemble = (mean_std(points, "+.1f") for points in steps.values())
    each = 100 * np.mean([metrics[f"{what}, each template"].std(axis=1) for what in CLASSES])
    found = (f"averaged over both kinds of classes, a template adds {template} points to the bare name, and the ensemble of "
             f"{TEMPLATES} adds {ensemble} to one template; the templates differ by {each:.1f} points among themselves "
             "(standard deviation)")
    if missing:
        found = f"not in every seed by more than the standard deviation: {', '.join(missing)}; {found}"
    return NOT_REPRODUCED if missing else QUALITATIVE, found


def table(metrics):
    rows = [(name, CLAIM.published[name], mean_std(metrics[name], form))
            for name, form in (("logit scale at first", ".3f"), ("exp(logit scale), at most", ".0f"))]
    rows.append(("exp(logit scale) at the end", "", mean_std(metrics["scale"][:, -1], ".1f")))
    for what, names in CLASSES.items():
        ensembles = metrics[f"{what}, ensembles"]
        rows.append((f"{what} by bare name", f"chance {100 / len(names):g} %",
                     mean_std(metrics[f"{what}, bare name"], ".1f", " %")))
        rows += [(f"{what} by {'one template' if n == 1 else f'an ensemble of {n:.0f}'}", "",
                  mean_std(ensembles[:, k], ".1f", " %")) for k, n in enumerate(metrics["templates"][0])]
    rows += [(f"{name}, points", CLAIM.published[name], mean_std(points, "+.1f")) for name, points in gains(metrics).items()]
    return rows + [(f"{what} among {among}: R@1, R@5", "", ", ".join(
        mean_std(metrics[f"{side}_r{k}"], ".1f", " %") for k in (1, 5))) for side, what, among in (
            ("text", "the caption for an image,", "80"), ("image", "an image for a caption,", "1000"))]


def draw(metrics, path):
    points = gains(metrics)
    figure, (left, middle, right) = slide(
        "Over both kinds of classes a sentence beats the bare\n"
        f"name by {points['template over bare name'].mean():.1f} points, and {TEMPLATES} sentences beat one by "
        f"{points['ensemble over template'].mean():.1f}"
        if verdict(metrics)[0] == QUALITATIVE else
        f"{TEMPLATES} sentences against one: {mean_std(points['ensemble over template'], '+.1f')} points;\n"
        f"one against the bare name: {mean_std(points['template over bare name'], '+.1f')}",
        panels=3, widths=(4, 4, 2), wspace=0.3, bottom=0.16)
    heading(left, "which digit? (%)")
    ensembles = 100 * metrics["digit, ensembles"]
    for x, (values, colour) in enumerate(((100 * metrics["digit, bare name"], GREY), (ensembles[:, 0], BLUE),
                                          (ensembles[:, -1], GREEN))):
        bar(left, x, values, colour, width=0.7)
    left.set_xticks(range(3), ("bare\nname", "one\ntemplate", f"ensemble\nof {TEMPLATES}"))
    left.set(ylim=(0, 100))
    chance(left, 10, x=1.01, va="center")
    heading(middle, "gain over one (points)")
    for what, colour in zip(CLASSES, (ORANGE, PURPLE)):
        gain = 100 * (metrics[f"{what}, ensembles"] - metrics[f"{what}, ensembles"][:, :1])
        line(middle, metrics["templates"][0], gain, colour)
        note(middle, 0.03, 0.93 if what == "digit" else 0.83, what, colour, transform=middle.transAxes)
    middle.set(xscale="log", xlabel="templates in the ensemble")
    middle.set_xticks(ENSEMBLES, [str(n) for n in ENSEMBLES])
    middle.set_ylim(top=1.35 * middle.dataLim.ymax)
    middle.minorticks_off()
    heading(right, "exp(logit scale)")
    right.plot(np.linspace(0, 100, metrics["scale"].shape[1]), metrics["scale"].T, color=INK, linewidth=2)
    chance(right, 1 / 0.07, "start, 1/0.07", va="top")
    right.set(xlabel="% of training", ylim=(0, 1.1 * metrics["scale"].max()))
    write_figure(figure, path)
