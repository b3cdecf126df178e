"""A logit scale used without exp: the loss falls a little and then crawls.

    python examples/bugs/logit_scale.py                  # about 6 s

CLIP learns s = log(1/tau), starting at s = log(1/0.07) = 2.66, and scores pairs with exp(s) cos, at first 14.3 cos.
Without the exponential that is 2.66 cos, a temperature of 0.38 instead of 0.07. An optimizer that moves s by steps of
0.003 needs thousands of them to reach the correct starting point.
"""

import math

import numpy as np
from compare import BATCH, compare, start, train

from minicl.backend import threads
from minicl.contrastive import cosine_similarity, log_softmax
from minicl.nn import Parameter
from minicl.ops import exp
from minicl.optim import AdamW

own = np.arange(BATCH), np.arange(BATCH)


def both_directions(scores):
    return -(log_softmax(scores)[own] + log_softmax(scores.T)[own]).mean() / 2


def correct(z1, z2, s):
    return both_directions(exp(s) * cosine_similarity(z1, z2))


def wrong(z1, z2, s):
    return both_directions(s * cosine_similarity(z1, z2))


@threads(1)
def main(steps=200):
    def run(loss):
        s = Parameter(np.asarray(math.log(1 / 0.07), dtype="float32"))
        losses = train(lambda z1, z2: loss(z1, z2, s), steps,
                       make_optimizer=lambda model: AdamW([*model.named_parameters(), ("logit_scale", s)], lr=3e-3))[1]
        scale = math.exp(s.item()) if loss is correct else s.item()
        return {"loss": losses, "the learned s": s.item(), "scale of the cosines": scale}

    return compare("logit_scale", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={f"chance, log {BATCH}": math.log(BATCH)})


if __name__ == "__main__":
    start(main)
