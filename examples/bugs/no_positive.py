"""Anchors without a positive that count as solved: a supervised loss that falls as classes become rare.

    python examples/bugs/no_positive.py                  # about 1 s

SupCon averages over an anchor's positives. A class that occurs once in the batch has none: 0/0, which code that guards
against NaN turns into a loss of 0, the loss of a perfect anchor. The more classes, the better it looks.
"""

import numpy as np
from compare import TAU, compare, start

from minicl import Tensor
from minicl.backend import threads
from minicl.contrastive import cosine_similarity, log_softmax, sup_con
from minicl.ops import where


def correct(z, labels):
    return sup_con(z, TAU, labels=labels)                # the mean over the anchors that have a positive


def wrong(z, labels):
    itself = np.eye(len(z), dtype=bool)
    log_p = log_softmax(where(itself, -1e30, cosine_similarity(z, z)), TAU)
    positive = ((labels[:, None] == labels) & ~itself).astype("float32")
    count = np.maximum(positive.sum(axis=1), 1)          # no NaN: rows without a positive give 0
    return -((log_p * positive).sum(axis=1) / count).mean()


@threads(1)
def main(batch=64, draws=20):
    classes = [2, 4, 8, 16, 32, 64, 128, 256]

    def run(loss):
        rng = np.random.default_rng(0)
        z = [Tensor(rng.standard_normal((batch, 32), dtype="float32")) for _ in range(draws)]       # nothing is learned
        means = [float(np.mean([loss(v, rng.integers(0, n, batch)).item() for v in z])) for n in classes]
        return {"classes": classes, "loss": means}

    return compare("no_positive", correct=run(correct), wrong=run(wrong), curve="loss", x="classes")


if __name__ == "__main__":
    start(main)
