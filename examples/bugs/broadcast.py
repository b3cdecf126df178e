"""(N, 1) minus (N,) is (N, N): the loss stops at the variance of the target.

    python examples/bugs/broadcast.py                    # about 2 s

A linear layer predicts one number for each image: how far its ink lies to the right. The predictions are a column, the
targets a row. Every prediction is compared with every target, and the best answer to that is the mean, for all images.
"""

import numpy as np
from compare import compare, digits, start

from minicl import Tensor
from minicl.backend import threads
from minicl.nn import Linear
from minicl.optim import Adam


def correct(predicted, target):
    return ((predicted[:, 0] - target) ** 2).mean()      # (N,) and (N,)


def wrong(predicted, target):
    return ((predicted - target) ** 2).mean()            # (N, 1) and (N,): broadcast to (N, N), without an error


@threads(1)
def main(steps=300):
    images = digits()[0][:500]
    slant = (images[:, :14].sum(axis=1) - images[:, 14:].sum(axis=1))[:, :, 0] @ np.arange(28, dtype="float32")
    target = (slant - slant.mean()) / slant.std()        # (N,): ink to the right above, to the left below
    x = images.reshape(len(images), -1)

    def run(loss_of):
        layer = Linear(x.shape[1], 1, rng=np.random.default_rng(0))
        optimizer = Adam(layer, lr=3e-3)
        losses = []
        for _ in range(steps):
            loss = loss_of(layer(Tensor(x)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        predicted = layer(Tensor(x)).data[:, 0]
        return {"loss": losses, "std of the predictions": float(predicted.std())}

    return compare("broadcast", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={"variance of the target": float(target.var())})


if __name__ == "__main__":
    start(main)
