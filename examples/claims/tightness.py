"""Claim 2: the best critic leaves a gap, and NT-Xent's log(2N-1) - L is not a bound: exact sums, no training."""

import math

import numpy as np

from minicl import Tensor
from minicl.backend import to_device
from minicl.contrastive import nt_xent
from minicl.viz import write_figure
from known_information import symbol_estimates
from .laboratory import NOT_REPRODUCED, REPRODUCED, Claim, mean_std
from .slides import BLUE, INK, ORANGE, heading, note, slide

CLAIM = Claim(
    number=2, name="tightness",
    title="The best critic does not make the bound tight, and NT-Xent's estimate is not a bound",
    statement="Even the optimal critic leaves a gap between log K - L and the information, so a low estimate may be "
              "due to the bound and not to the encoder. NT-Xent's log(2N-1) - L is worse: its negatives come in "
              "pairs, the two views of one image, which the proof does not allow, and the estimate can exceed the "
              "information.",
    mathematics="""\
Let every image show one of m equally likely symbols, the same in both views: I = log m. The best critic scores an
equal symbol infinitely above another, and chooses evenly among the candidates that have the anchor's symbol. B of the
N - 1 other images have it, binomial with p = 1/m:

```text
InfoNCE across views   N candidates        log N      - E log(1 + B)     <= log m
NT-Xent                2N - 1 candidates   log(2N-1)  - E log(1 + 2B)    can be > log m
```""",
    source="exact sums, examples/known_information.py; "
           "[docs/methods/information.md](methods/information.md)",
    columns={f"largest excess of {loss}": f"largest excess of {loss}, N up to 60" for loss in ("NT-Xent", "InfoNCE")},
    next="Make the symbols unequally likely (symbol_estimates supports equal ones only: write the sum yourself). "
         "Does the excess grow? And what happens when NT-Xent keeps only one view of every other image?",
    published={"information, m = 2": "0.6931", "NT-Xent, m = 2, N = 8": "0.6962",
               "largest excess of NT-Xent": "+0.0038", "at m": "2", "at N": "6",
               "largest excess of InfoNCE": "never above 0"})

SYMBOLS = range(2, 12)
BATCHES = range(2, 61)


def measure(setting):
    excess = {(m, N): symbol_estimates(m, N).nt_xent - math.log(m) for m in SYMBOLS for N in BATCHES}
    m, N = max(excess, key=excess.get)
    return {"information, m = 2": symbol_estimates(2, 8).information,
            "InfoNCE, m = 2, N = 8": symbol_estimates(2, 8).infonce,
            "NT-Xent, m = 2, N = 8": symbol_estimates(2, 8).nt_xent,
            "the same by the loss itself": drawn_nt_xent(2, 8, setting),
            "largest excess of NT-Xent": excess[m, N], "at m": m, "at N": N,
            "largest excess of InfoNCE": max(symbol_estimates(m, N).infonce - math.log(m) for m, N in excess),
            "excess of NT-Xent over N": [excess[2, N] for N in BATCHES],
            "excess of InfoNCE over N": [symbol_estimates(2, N).infonce - math.log(2) for N in BATCHES],
            "largest excess over m": [max(excess[m, N] for N in BATCHES) for m in SYMBOLS]}


def drawn_nt_xent(m, N, setting):
    """log(2N-1) - L by minicl's own loss: one-hot views at a very low temperature."""
    ids = np.random.default_rng(setting.seed).integers(0, m, (setting.pick(400, 20_000, 200_000), N))
    drawn = (Tensor(z) for z in to_device(np.eye(m)[ids], setting.xp))
    losses = [nt_xent(z, z, 0.01).item() for z in drawn]
    return math.log(2 * N - 1) - float(np.mean(losses))


def verdict(metrics):
    exact = {"information, m = 2": 0.6931, "NT-Xent, m = 2, N = 8": 0.6962, "largest excess of NT-Xent": 0.0038,
             "at m": 2, "at N": 6}
    wrong = [name for name, value in exact.items() if abs(metrics[name] - value).max() > 5e-5]
    if wrong or metrics["largest excess of InfoNCE"].max() > 0:
        return NOT_REPRODUCED, f"{', '.join(wrong) or 'largest excess of InfoNCE'} differs from the exact value"
    return REPRODUCED, ("NT-Xent's estimate exceeds the information, and InfoNCE's never does, even with the best "
                        "critic; all values agree to the digits given")


def table(metrics):
    digits = {"at m": ".0f", "at N": ".0f", "largest excess of NT-Xent": "+.4f", "largest excess of InfoNCE": "+.4f"}
    return [(CLAIM.columns.get(name, name), CLAIM.published.get(name, ""),
             mean_std(values, digits.get(name, ".4f")))
            for name, values in metrics.items() if values.ndim == 1]


def draw(metrics, path):
    most, above, below = (metrics[name][0] for name in (
        "largest excess of NT-Xent", "excess of NT-Xent over N", "excess of InfoNCE over N"))
    figure, (left, right) = slide(f"NT-Xent's estimate exceeds the information, by {most:.4f} nats;\n"
                                  "InfoNCE's stays below it, even with the best critic",
                                  panels=2, left=0.11, wspace=0.35, bottom=0.15)
    heading(left, "excess over I = log 2 (nats)")
    left.axhline(0, color=INK, linewidth=1.5)
    for values, words, colour, y in ((above, "NT-Xent, log(2N-1) - L", ORANGE, 0.0025),
                                     (below, "InfoNCE, log N - L", BLUE, -0.026)):
        left.plot(BATCHES, values, color=colour, marker="o", markersize=5, linewidth=2)
        note(left, BATCHES[-1], y, words, colour, ha="right")
    left.set(xlabel="N, images in the batch", ylim=(-0.03, 0.006))
    heading(right, "largest excess of NT-Xent (nats)")
    right.bar(SYMBOLS, metrics["largest excess over m"][0], color=ORANGE)
    right.set(xlabel="m, symbols", xticks=SYMBOLS)
    write_figure(figure, path)
