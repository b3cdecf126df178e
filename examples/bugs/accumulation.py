"""Gradients summed over k parts and never divided by k: a step k times too long.

    python examples/bugs/accumulation.py                 # about 6 s

The loss of each part is a mean, so the gradient of the whole batch is the mean of the parts' gradients; but backward()
adds. Adam divides by the gradient's size and hides the mistake; SGD takes steps of k times the learning rate. (Another
trap: a contrastive loss of one part has fewer candidates. Here every part sees all keys.)
"""

import numpy as np
from compare import BATCH, TAU, compare, fresh_views, small_model, start

from minicl.backend import threads
from minicl.contrastive import cosine_similarity, log_softmax
from minicl.data import Batches
from minicl.optim import SGD

PARTS = 8


def loss_of(z1, z2, rows):
    """Anchors `rows` of view 1 pick their other view from all N."""
    return -log_softmax(cosine_similarity(z1[rows], z2), TAU)[np.arange(len(rows)), rows].mean()


def correct(loss):
    (loss / PARTS).backward()


def wrong(loss):
    loss.backward()


@threads(1)
def main(steps=50):
    def run(backward):
        rng = np.random.default_rng(0)
        batches = Batches(1500, BATCH)
        model = small_model(rng)
        optimizer = SGD(model, lr=0.3, momentum=0.9)
        losses = []
        norms = []
        for step in range(steps):
            views = np.concatenate(fresh_views(batches[step], rng))
            optimizer.zero_grad()
            losses.append(0.0)
            for rows in np.arange(BATCH).reshape(PARTS, -1):
                z = model(views)[1]                      # again for each part: memory for one part's scores only
                loss = loss_of(z[:BATCH], z[BATCH:], rows)
                backward(loss)
                losses[-1] += loss.item() / PARTS
            norms.append(float(np.sqrt((optimizer.grads**2).sum())))
            optimizer.step()
        return {"loss": losses, "norm of the gradient, first step": norms[0]}

    return compare("accumulation", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={f"chance, log {BATCH}": float(np.log(BATCH))})


if __name__ == "__main__":
    start(main)
