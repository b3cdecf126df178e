"""LARS without its exception: weights that start at zero never move, and the loss stays at log 10.

    python examples/bugs/lars.py                         # about 2 s

The trust ratio eta |w| / |g| scales a layer's step by the norm of its weights. A linear classifier is often initialised
to zero, and its step is then zero. So is that of every bias. No error is raised, and in a deep model the other layers
still train.
"""

import math

import numpy as np
from compare import BATCH, compare, digits, start

from minicl import Tensor
from minicl.backend import threads
from minicl.contrastive import log_softmax
from minicl.data import Batches
from minicl.nn import Linear
from minicl.optim import LARS

correct = LARS


class wrong(LARS):
    def _step(self, lr):
        for _, w, g in self.views:                       # all layers, zero or not
            g *= self.eta * np.sqrt((w * w).sum()) / max(np.sqrt((g * g).sum()), 1e-12)
        self._update(slice(None), *self._numbers(self._rate(lr), 0.0, self.steps))


@threads(1)
def main(steps=150):
    images, labels, *_ = digits()
    x = images.reshape(len(images), -1)

    def run(optimizer_class):
        classifier = Linear(784, 10, rng=np.random.default_rng(0))
        batches = Batches(len(x), BATCH)
        classifier.weight.data[...] = 0                  # all classes alike at first
        optimizer = optimizer_class(classifier, lr=0.3, eta=0.02)
        losses = []
        for step in range(steps):
            ids = batches[step]
            loss = -log_softmax(classifier(Tensor(x[ids])))[np.arange(BATCH), labels[ids]].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return {"loss": losses, "norm of the weights": float(np.sqrt((classifier.weight.data**2).sum()))}

    return compare("lars", correct=run(correct), wrong=run(wrong), curve="loss",
                   lines={"chance, log 10": math.log(10)})


if __name__ == "__main__":
    start(main)
