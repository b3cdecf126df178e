"""An anchor among its own candidates: the loss stops at log 2.

    python examples/bugs/mask.py                         # about 7 s

An anchor's cosine with itself is 1, and no candidate can have more. A perfect positive has 1 too. At best the anchor
cannot decide between the two, p = 1/2, whatever the encoder does.
"""

import math

import numpy as np
from compare import BATCH, TAU, compare, digits, start, train

from minicl.backend import threads
from minicl.contrastive import cosine_similarity, log_softmax
from minicl.data import two_views
from minicl.data.augment import RandomAffine
from minicl.ops import concat, where


def correct(z1, z2):
    N = len(z1)
    z = concat(z1, z2)
    scores = where(np.eye(2 * N, dtype=bool), -1e30, cosine_similarity(z, z))            # (2N, 2N)
    rows = np.arange(2 * N)
    return -log_softmax(scores, TAU)[rows, (rows + N) % (2 * N)].mean()


def wrong(z1, z2):
    N = len(z1)
    z = concat(z1, z2)
    scores = cosine_similarity(z, z)                     # the diagonal, each anchor with itself, is left in
    rows = np.arange(2 * N)
    return -log_softmax(scores, TAU)[rows, (rows + N) % (2 * N)].mean()


def easy_views(ids, rng):
    return two_views(RandomAffine(degrees=1), digits()[0][ids], rng)     # easy and few, so the loss nears its least


@threads(1)
def main(steps=300):
    def run(loss):
        losses = train(loss, steps, views=easy_views, images=BATCH)[1]
        return {"loss": losses, "p of the positive, exp(-loss)": math.exp(-losses[-1])}

    return compare("mask", correct=run(correct), wrong=run(wrong), curve="loss", lines={"log 2": math.log(2)})


if __name__ == "__main__":
    start(main)
