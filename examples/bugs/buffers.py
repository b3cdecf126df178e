"""A momentum encoder without BatchNorm's running averages: training looks right, evaluation does not.

    python examples/bugs/buffers.py                      # about 6 s

The target's weights follow the online model's. BatchNorm's running mean and variance are not weights, and an update that
loops over the parameters omits them: they stay at their initial 0 and 1. Training does not show it, because BatchNorm
then uses the statistics of the batch. In evaluation the target is normalised with statistics of no network.
"""

import numpy as np
from compare import BATCH, compare, digits, fresh_views, small_model, start, usual_loss

from minicl.backend import threads
from minicl.data import Batches
from minicl.evaluate import alignment, knn_accuracy
from minicl.methods import EMA, frozen_copy
from minicl.optim import AdamW

M = 0.9


def correct(online, target, ema):
    ema.update(M)                                   # parameters and running averages


def wrong(online, target, ema):
    following = dict(target.named_buffers())
    for name, p in online.named_parameters():            # running averages are not parameters
        following[name].data += (1 - M) * (p.data - following[name].data)


def evaluated(model, images):
    model.eval()
    z = model(images)[1].data
    model.train()
    return z


@threads(1)
def main(steps=150, every=25):
    images, labels, test_images, test_labels = digits()

    def run(update):
        rng = np.random.default_rng(0)
        batches = Batches(1500, BATCH)
        online = small_model(rng)
        target = frozen_copy(online)
        ema = EMA(online, target)
        optimizer = AdamW(online, lr=3e-3)
        losses = []
        at = []
        cosines = []
        for step in range(1, steps + 1):
            z = online(np.concatenate(fresh_views(batches[step], rng)))[1]
            loss = usual_loss(z[:BATCH], z[BATCH:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update(online, target, ema)
            losses.append(loss.item())
            if step % every == 0:                        # mean cosine of what both make of the same images
                at.append(step)
                cosines.append(1 - alignment(evaluated(online, test_images), evaluated(target, test_images)) / 2)
        bank = evaluated(target, images)
        online_knn, target_knn = (knn_accuracy(bank, labels, evaluated(model, test_images), test_labels)
                                  for model in (online, target))
        return {"loss": losses, "step": at, "target's cosine with online": cosines,
                "kNN of online's z, in target's": online_knn, "kNN of target's z, in target's": target_knn}

    return compare("buffers", correct=run(correct), wrong=run(wrong), curve="target's cosine with online")


if __name__ == "__main__":
    start(main)
