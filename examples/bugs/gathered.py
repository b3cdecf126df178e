"""Embeddings gathered from other processes without their gradient: the loss is right, its direction only nearly.

    python examples/bugs/gathered.py                     # about 6 s

Eight processes have 16 images each and gather all embeddings as negatives. The all_gather of most libraries returns
arrays without a gradient, so each process puts its own rows back and takes the mean of its anchors' losses. The value
of the loss is right to the last digit. What is missing is the gradient of an embedding as a candidate for the anchors of
the other seven processes. Here one process plays all eight.
"""

import numpy as np
from compare import BATCH, TAU, compare, finds_other_view, fresh_views, small_model, start

from minicl.backend import threads
from minicl.contrastive import cosine_similarity, log_softmax, nt_xent
from minicl.ops import where
from minicl.optim import AdamW

PROCESSES = 8


def correct(z):
    return nt_xent(z[:BATCH], z[BATCH:], TAU)


def wrong(z):
    """The mean over processes of their anchors' losses, with the rows of others as constants."""
    everyone = np.arange(2 * BATCH)
    losses = []
    for process in range(PROCESSES):
        mine = everyone % PROCESSES == process
        rows = np.flatnonzero(mine)
        gathered = where(mine[:, None], z, z.detach())   # their own rows have a gradient, the others have none
        scores = where(rows[:, None] == everyone, -1e30, cosine_similarity(z[rows], gathered))
        losses.append(-log_softmax(scores, TAU)[np.arange(len(rows)), (rows + BATCH) % (2 * BATCH)].mean())
    return sum(losses) / PROCESSES


def gradient(model, optimizer, views, loss):
    optimizer.zero_grad()
    value = loss(model(views)[1])
    value.backward()
    return value.item(), optimizer.grads.copy()


@threads(1)
def main(steps=100):
    def run(loss):
        rng = np.random.default_rng(0)
        data = np.random.default_rng(1)
        model = small_model(rng)
        optimizer = AdamW(model, lr=3e-3)
        losses = []
        cosines = []
        for _ in range(steps):
            views = np.concatenate(fresh_views(data.choice(1500, BATCH, replace=False), rng))
            _, exact = gradient(model, optimizer, views, correct)
            value, used = gradient(model, optimizer, views, loss)
            losses.append(value)
            cosines.append(float(used @ exact / np.sqrt((used @ used) * (exact @ exact))))
            optimizer.step()
        return {"loss": losses, "cosine with the exact gradient": cosines, "finds the other view": finds_other_view(model)}

    return compare("gathered", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={f"chance, log {2 * BATCH - 1}": float(np.log(2 * BATCH - 1))})


if __name__ == "__main__":
    start(main)
