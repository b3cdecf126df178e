"""Layers: an op together with its parameters. `rng` is a host numpy Generator that draws the initial weights."""

import math

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..backend import array_module, fused
from .module import Buffer, Counter, Module, Parameter

RELU_GAIN = math.sqrt(2)      # keeps the variance through a relu, which halves it (He et al. 2015, eq. 10)


def _initial(rng, shape, fan_in, gain):
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy Generator, np.random.default_rng(seed), got {type(rng).__name__}")
    if min(shape) < 1:
        raise ValueError(f"expected sizes >= 1, got weights of shape {shape}")
    return Parameter(rng.standard_normal(shape, dtype="float32") * (gain / math.sqrt(fan_in)))


def _filled(shape, value):
    return np.full(shape, value, dtype="float32")    # parameters begin on the host; Module.to moves them


class Linear(Module):
    """y = x W + b: (..., inputs) -> (..., outputs). gain scales the initial weights, of deviation gain / sqrt(inputs)."""

    def __init__(self, inputs, outputs, *, rng, bias=True, gain=1.0):
        self.weight = _initial(rng, (inputs, outputs), inputs, gain)
        self.bias = Parameter(_filled(outputs, 0)) if bias else None

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """Convolution of pixel-major activations: (H, W, B, inputs) -> (H', W', B, outputs).

    No bias by default: a batch norm behind it has one.
    """

    def __init__(self, inputs, outputs, *, rng, kernel=3, stride=1, padding=None, bias=False, gain=RELU_GAIN):
        self.weight = _initial(rng, (kernel, kernel, inputs, outputs), kernel * kernel * inputs, gain)
        self.bias = Parameter(_filled(outputs, 0)) if bias else None
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding

    def forward(self, x):
        y = ops.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + self.bias


class BatchNorm(Module):
    """Batch norm over all axes but the last, then max(y, 0) if relu: (..., B, C) -> (..., B, C).

    In training the batch's own mean and variance are used, and averaged with weight `momentum` into running_mean and
    running_var (unbiased), which are used in evaluation.

    splits  groups of the batch that are normalised each by its own statistics, as if each were on another GPU; item i
            is in group i mod splits. The running averages take the mean over the groups.
    """

    def __init__(self, channels, *, momentum=0.1, eps=1e-5, relu=False, splits=1):
        self.weight, self.bias = Parameter(_filled(channels, 1)), Parameter(_filled(channels, 0))
        self.running_mean, self.running_var = Buffer(_filled(channels, 0)), Buffer(_filled(channels, 1))
        self.momentum, self.eps, self.relu, self.splits = momentum, eps, relu, splits

    def forward(self, x):
        if self.training:
            return self._by_group(x) if self.splits > 1 else self._by_batch(x, self.weight, self.bias)
        a = self.weight * (1 / array_module(x.data).sqrt(self.running_var.data + self.eps))
        y = x * a + (self.bias - self.running_mean.data * a)
        return ops.relu(y) if self.relu else y

    def _by_batch(self, x, weight, bias):
        return ops.batch_norm(x, weight, bias, eps=self.eps, relu=self.relu, on_statistics=self._average)

    def _by_group(self, x):
        """Items i, i + 1, ..., i + splits - 1 side by side are splits * C channels: batch norm as it is, no copy."""
        n, (*pixels, B, C) = self.splits, x.shape
        if B % n or B < 2 * n:
            raise ValueError(f"BatchNorm: splits={n} needs a batch that is a multiple of {n} and at least {2 * n}, "
                             f"got {B}")
        weight, bias = (ops.broadcast_to(p, shape=(n, C)).reshape(n * C) for p in (self.weight, self.bias))
        return self._by_batch(x.reshape(*pixels, B // n, n * C), weight, bias).reshape(x.shape)

    def _average(self, mean, var, n):
        if self.splits > 1:
            mean, var = (groups.reshape(self.splits, -1).mean(axis=0) for groups in (mean, var))
        _average(self.running_mean.data, self.running_var.data, mean, var, self.momentum, n / (n - 1))


@fused
def _average(xp, running_mean, running_var, mean, var, momentum, unbiased):
    """Both running averages in place."""
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * unbiased - running_var)


class LayerNorm(Module):
    """Layer norm over the last axis: (..., C) -> (..., C)."""

    def __init__(self, channels, *, eps=1e-5):
        self.weight, self.bias = Parameter(_filled(channels, 1)), Parameter(_filled(channels, 0))
        self.eps = eps

    def forward(self, x):
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Zero entries with probability p in training, nothing in evaluation.

    A mask follows from a seed, drawn once from rng, and from how many came before it; both are in the state_dict's reach
    (the count is saved, the seed is drawn again), so a resumed run draws the masks that an uninterrupted one would.
    """

    def __init__(self, p=0.5, *, rng):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p, self.seed, self.drawn = p, int(rng.integers(2**32)), Counter()

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        self.drawn.add(1)
        return ops.dropout(x, p=self.p, rng=np.random.default_rng([self.seed, int(self.drawn)]))


class Embedding(Module):
    """A table of `count` learned vectors: ids (...) integer -> (..., width)."""

    def __init__(self, count, width, *, rng):
        self.table = _initial(rng, (count, width), width, 1.0)

    def forward(self, ids):
        return ops.embedding(ids, self.table)


class Sequential(Module):
    """Steps one after the other: Modules, or plain functions such as ops.relu."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def as_tensor(x):
    """x as a Tensor (an array becomes a constant one)."""
    return x if isinstance(x, Tensor) else Tensor(x)
