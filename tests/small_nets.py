"""For tests: a small model with every kind of state, its training step, and every optimizer."""

import numpy as np
import pytest

from minicl.autograd import Tensor
from minicl.nn import BatchNorm, Dropout, Linear, Module, Sequential
from minicl.optim import LARS, SGD, Adam, AdamW

OPTIMIZERS = {
    "SGD": lambda model: SGD(model, 0.01, momentum=0.9, weight_decay=0.1), "plain SGD": lambda model: SGD(model, 0.01),
    "Nesterov": lambda model: SGD(model, 0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda model: Adam(model, 0.1, weight_decay=0.1),
    "AdamW": lambda model: AdamW(model, 0.1, weight_decay=0.1),
    "LARS": lambda model: LARS(model, 0.1, weight_decay=0.1, eta=0.1),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def rng(seed=0):
    return np.random.default_rng(seed)


def ones(*shape):
    return np.ones(shape, "float32")


class Net(Module):
    def __init__(self, seed=0):
        self.encoder = Sequential(Linear(3, 4, rng=rng(seed)), BatchNorm(4), Dropout(0.5, rng=rng(seed)))
        self.head = Linear(4, 2, rng=rng(seed))

    def forward(self, x):
        return self.head(self.encoder(x))


def take_step(model, optimizer, x):
    optimizer.zero_grad()
    (model(Tensor(x)) * model(Tensor(x))).sum().backward()
    optimizer.step()
