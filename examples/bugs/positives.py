"""Views in one order, positives in another: the loss stays at chance.

    python examples/bugs/positives.py                    # about 7 s

A batch of views can be laid out as [view 1 of all; view 2 of all], or pair by pair, as a data loader or a gather over
machines may return it. Both are fine. Here it comes pair by pair, and the loss looks N rows further on.
"""

import math

import numpy as np
from compare import BATCH, compare, finds_other_view, start, train, usual_loss

from minicl.backend import threads
from minicl.ops import concat


def correct(z1, z2):
    pairs = pair_by_pair(z1, z2)                         # row 2i and row 2i + 1 are views of image i
    return usual_loss(pairs[0::2], pairs[1::2])


def wrong(z1, z2):
    pairs = pair_by_pair(z1, z2)
    return usual_loss(pairs[:BATCH], pairs[BATCH:])      # row i and row i + N: views of two images


def pair_by_pair(z1, z2):
    return concat(z1, z2)[np.arange(2 * BATCH).reshape(2, BATCH).T.reshape(-1)]          # 0, N, 1, N + 1, ...


@threads(1)
def main(steps=200):
    def run(loss):
        model, losses = train(loss, steps)
        return {"loss": losses, "finds the other view": finds_other_view(model)}

    return compare("positives", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={f"chance, log {2 * BATCH - 1}": math.log(2 * BATCH - 1)})


if __name__ == "__main__":
    start(main)
