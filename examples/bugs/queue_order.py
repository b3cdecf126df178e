"""Keys that enter the queue before the loss is computed: the loss stops at log 2.

    python examples/bugs/queue_order.py                  # about 8 s

The positive of a query is then also among its negatives, as the same vector, and no encoder can tell one from the
other.
"""

import math

import numpy as np
from compare import BATCH, compare, digits, small_model, start

from minicl.backend import threads
from minicl.data import Batches, two_views
from minicl.data.augment import RandomAffine
from minicl.methods import MoCo
from minicl.optim import AdamW

TAU = 0.03                                               # small, so that the loss can come near its least


def correct(model, queries, keys, learn):
    loss = learn(model.loss(queries, keys, TAU))         # against the queue as it is, then the keys enter
    model.update()
    return loss


def wrong(model, queries, keys, learn):
    model.queue.enqueue(keys)                            # the keys enter first
    loss = learn(model.loss(queries, keys, TAU))
    model.served.clear()
    model.ema.update(model.m)
    return loss


@threads(1)
def main(steps=400):
    def run(step_of):
        rng = np.random.default_rng(0)
        simclr = small_model(rng)
        batches = Batches(1500, BATCH)
        model = MoCo(simclr.encoder, simclr.head, dim=64, queue=2 * BATCH, m=0.5, splits=1)
        optimizer = AdamW(model, lr=3e-3)
        losses = []

        def learn(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        for step in range(steps):
            view1, view2 = two_views(RandomAffine(degrees=0.3), digits()[0][batches[step]], rng)
            keys = model.encode_keys(view2, rng)
            losses.append(step_of(model, model(view1)[1], keys, learn))
        return {"loss": losses, "mean of the last tenth": float(np.mean(losses[-len(losses) // 10:]))}

    return compare("queue_order", correct=run(correct), wrong=run(wrong), curve="loss", lines={"log 2": math.log(2)})


if __name__ == "__main__":
    start(main)
