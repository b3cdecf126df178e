"""A softmax whose backward omits 1/tau: the loss falls, only slowly, and no error is raised.

    python examples/bugs/missing_tau.py                  # about 4 s

The gradient points the right way but is too short by a factor tau. Adam would hide even that. Finite differences do not:
the ratio that gradcheck reports is tau itself.
"""

import re

import numpy as np
from compare import BATCH, TAU, compare, start, train

from minicl import gradcheck, op
from minicl.backend import threads
from minicl.contrastive import cosine_similarity
from minicl.optim import SGD


def value(x):
    z = (x - x.max(axis=-1, keepdims=True)) / TAU
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


@op
def correct(x):
    y = value(x)
    return y, lambda g: ((g - np.exp(y) * g.sum(axis=-1, keepdims=True)) / TAU,)


@op
def wrong(x):
    y = value(x)
    return y, lambda g: (g - np.exp(y) * g.sum(axis=-1, keepdims=True),)


def ratio(log_softmax):
    """Analytic over numeric gradient, as gradcheck reports it; 1 if it reports nothing."""
    try:
        gradcheck(log_softmax, [np.random.default_rng(0).standard_normal((3, 4))])
    except AssertionError as error:
        print(f"{error}\n")
        return float(re.search(r"ratio +(\S+)", str(error))[1])
    return 1.0


@threads(1)
def main(steps=120):
    def run(log_softmax):
        own = np.arange(BATCH), np.arange(BATCH)

        def loss(z1, z2):
            return -log_softmax(cosine_similarity(z1, z2))[own].mean()

        losses = train(loss, steps, make_optimizer=lambda model: SGD(model, lr=0.03, momentum=0.9))[1]
        return {"loss": losses, "gradcheck: analytic / numeric": ratio(log_softmax)}

    return compare("missing_tau", correct=run(correct), wrong=run(wrong), curve="loss")


if __name__ == "__main__":
    start(main)
