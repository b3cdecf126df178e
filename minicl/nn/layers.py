"""Layers: ops with parameters. `rng` is a numpy Generator that draws the initial weights."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..backend import array_module, follow, fused, require_finite, weights
from ..checks import require_bool, require_integers, require_rng, require_within
from ..distributed import ALONE
from ..tensor import mark_changed
from ..typing import Array, Rng
from .module import Module
from .parts import Buffer, Parameter, Stream

RELU_GAIN = math.sqrt(2)      # compensates the relu, which halves the variance (He et al. 2015, eq. 10)


def initial(rng, shape, *, fan_in, gain=1.0):
    """A Parameter of this shape, normal with standard deviation gain / sqrt(fan_in)."""
    require_rng("nn", rng)
    require_within("nn", "[0, 1e6]", gain=gain)
    return Parameter(rng.standard_normal(shape, dtype="float32") * np.float32(gain / math.sqrt(fan_in)))


def filled(shape, value):
    return np.full(shape, value, dtype="float32")    # on the host; Module.to moves parameters


class Linear(Module):
    """y = x W + b: (..., in_features) -> (..., out_features).

    W is (in_features, out_features), the transpose of PyTorch's; its initial standard deviation is
    gain / sqrt(in_features). b is initialised to 0.

    >>> layer = Linear(3, 5, rng=np.random.default_rng(0))
    >>> layer(Tensor(np.ones((2, 3), "float32"))).shape
    (2, 5)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, *, rng: Rng, bias: bool = True, gain: float = 1.0):
        require_bool("Linear", bias=bias)
        require_integers("Linear", 1, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = initial(rng, (in_features, out_features), fan_in=in_features, gain=gain)
        self.bias = Parameter(filled(out_features, 0)) if bias else None

    def forward(self, x: Tensor | Array) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """Convolution of pixel-major activations: (H, W, B, in_channels) -> (H', W', B, out_channels).

    kernel_size, stride and padding are integers; padding=kernel_size // 2 preserves the image size at stride 1. Use
    bias=False before a batch norm, which has a bias. The weight is (kernel_size, kernel_size, in_channels, out_channels).

    >>> layer = Conv2d(3, 8, kernel_size=3, stride=2, padding=1, rng=np.random.default_rng(0))
    >>> layer(Tensor(np.ones((32, 32, 4, 3), "float32"))).shape
    (16, 16, 4, 8)
    """

    _setting_ranges = {"stride": "int >= 1", "padding": "int >= 0"}
    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, rng: Rng, stride: int = 1,
                 padding: int = 0, bias: bool = True, gain: float = RELU_GAIN):
        require_bool("Conv2d", bias=bias)
        require_integers("Conv2d", 1, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.weight = initial(rng, (kernel_size, kernel_size, in_channels, out_channels),
                              fan_in=kernel_size * kernel_size * in_channels, gain=gain)
        self.bias = Parameter(filled(out_channels, 0)) if bias else None

    def forward(self, x: Tensor | Array) -> Tensor:
        y = ops.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + self.bias


class BatchNorm(Module):
    """Batch norm over all axes but the last, then max(y, 0) if relu: (..., B, C) -> (..., B, C).

        y = weight (x - mean) / sqrt(var + eps) + bias

    In training, mean and var are the batch's, which needs at least two values a channel. They are averaged with weight
    `momentum` into running_mean and running_var (unbiased), which evaluation uses. Before the first training step these
    are 0 and 1, so evaluation changes x little.

    splits  groups of the batch, each normalised by its own statistics, as if each were on its own GPU; item i is in
            group i mod splits. The running averages use the mean over the groups.

    Several processes (Module.across) normalise by the whole batch, or divide the groups.
    """

    _setting_ranges = {"momentum": "[0, 1]", "eps": "[1e-30, inf)", "splits": "int >= 1", "relu": "bool"}
    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer

    def __init__(self, num_features: int, *, momentum: float = 0.1, eps: float = 1e-5, relu: bool = False,
                 splits: int = 1):
        require_integers("BatchNorm", 1, num_features=num_features)
        self.weight, self.bias = Parameter(filled(num_features, 1)), Parameter(filled(num_features, 0))
        self.running_mean, self.running_var = Buffer(filled(num_features, 0)), Buffer(filled(num_features, 1))
        self.running_var.least = 0
        self.num_features = num_features
        self.momentum = momentum
        self.eps = eps
        self.relu = relu
        self.splits = splits

    def forward(self, x: Tensor | Array) -> Tensor:
        x = as_tensor(x)
        if x.ndim < 2 or x.shape[-1] != self.weight.size:
            raise ValueError(f"BatchNorm: expected x (..., B, {self.weight.size}), channels last, got {x.shape}")
        if self.training:
            return self._by_group(x) if self.splits > 1 else self._by_batch(x, self.weight, self.bias, self.world)
        a = self.weight * (1 / array_module(x.data).sqrt(self.running_var.data + self.eps))
        y = (x - self.running_mean.data.copy()) * a + self.bias              # a copy: a later step may change it
        return ops.relu(y) if self.relu else y

    def _by_batch(self, x, weight, bias, world=ALONE):
        return ops.batch_norm(x, weight, bias, eps=self.eps, relu=self.relu, on_statistics=self._average, world=world)

    def _by_group(self, x):
        """Batch norm of x viewed with splits * C channels, `splits` items side by side; no copy."""
        *pixels, B, C = x.shape
        size = self.world.size
        n = self.splits // size                                              # this process's groups: rank, rank + size, ...
        if self.splits % size:
            raise ValueError(f"BatchNorm: splits={self.splits} groups cannot be divided among {size} processes; use a "
                             f"multiple of {size}")
        if B % n or B < 2 * n:
            raise ValueError(f"BatchNorm: splits={self.splits} needs a batch that is a multiple of {self.splits} and at "
                             f"least {2 * self.splits}, got {B * size}")
        weight, bias = (ops.broadcast_to(p, shape=(n, C)).reshape(n * C) for p in (self.weight, self.bias))
        return self._by_batch(x.reshape(*pixels, B // n, n * C), weight, bias).reshape(x.shape)

    def _average(self, mean, var, n):
        if self.splits > 1:
            mean, var = (groups.reshape(-1, self.weight.size).mean(axis=0) for groups in (mean, var))
            if self.world.size > 1 and self.momentum:
                mean, var = self.world.mean(array_module(mean).stack([mean, var]))
        if self.momentum:                                                    # else they would never be finite again
            require_finite(var, "BatchNorm: the variance of its input")
        _average(self.running_mean.data, self.running_var.data, mean, var, *weights(1 - self.momentum), n / (n - 1))
        mark_changed([("running_mean", self.running_mean), ("running_var", self.running_var)], AVERAGED)


AVERAGED = "a BatchNorm in training"                         # what changes its running averages


@fused
def _average(xp, running_mean, running_var, mean, var, new, old, unbiased):
    """Both running averages in place: running = (1 - momentum) running + momentum batch."""
    follow(xp, running_mean, mean, new, old)
    follow(xp, running_var, var * unbiased, new, old)


class LayerNorm(Module):
    """Layer norm over the last axis, of length normalized_shape: (..., C) -> (..., C)."""

    _setting_ranges = {"eps": "[1e-30, inf)"}
    weight: Parameter
    bias: Parameter

    def __init__(self, normalized_shape: int, *, eps: float = 1e-5):
        require_integers("LayerNorm", 1, normalized_shape=normalized_shape)
        self.weight, self.bias = Parameter(filled(normalized_shape, 1)), Parameter(filled(normalized_shape, 0))
        self.normalized_shape = normalized_shape
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Zero entries with probability p in training; the identity in evaluation.

    The masks come from a Stream seeded by rng and saved with the model: a resumed run draws the same masks as an
    uninterrupted one, and a deep copy or a momentum encoder draws its own. load_state_dict and pickle copy the Stream too;
    if such a twin runs beside the original, so that positives share their masks, a warning is raised.
    batch_axis: an axis of x, required if several processes share a batch and x has more than two axes.
    """

    _setting_ranges = {"p": "[0, 1)", "batch_axis": "int >= -32 or None"}

    def __init__(self, p: float = 0.5, *, rng: Rng, batch_axis: int | None = None):
        self.p = p
        self.stream = Stream(rng)
        self.batch_axis = batch_axis

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.world.size > 1 and self.batch_axis is None and x.ndim != 2:
            raise ValueError(f"Dropout: expected batch_axis, the axis of x {x.shape} that {self.world.size} processes "
                             "share; pass Dropout(p, rng=rng, batch_axis=...)")
        return ops.dropout(x, p=self.p, rng=self.stream.next, world=self.world,
                           batch_axis=self.batch_axis or 0)


class Embedding(Module):
    """A table of num_embeddings learned vectors: ids (...) integer -> (..., embedding_dim).

    >>> layer = Embedding(10, 4, rng=np.random.default_rng(0))
    >>> layer(np.array([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng: Rng):
        require_integers("Embedding", 1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = initial(rng, (num_embeddings, embedding_dim), fan_in=embedding_dim)

    def forward(self, ids: Array) -> Tensor:
        return ops.embedding(ids, self.weight)


class Sequential(Module):
    """A chain of Modules or plain functions such as ops.relu. It can be indexed and iterated like a list.

    >>> rng = np.random.default_rng(0)
    >>> model = Sequential(Linear(3, 8, rng=rng), ops.relu, Linear(8, 2, rng=rng))
    >>> len(model), model[0].weight.shape, len(model[:-1])
    (3, (3, 8), 2)
    """

    steps: list[Callable]

    def __init__(self, *steps: Callable):
        self.steps = [_require_callable(step) for step in steps]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Callable]:
        return iter(self.steps)

    def __getitem__(self, index):
        """The step at an integer; for a slice, a Sequential of those steps, which shares their parameters."""
        return Sequential(*self.steps[index]) if isinstance(index, slice) else self.steps[index]

    def __setitem__(self, index: int, step: Callable):
        self.steps[index] = _require_callable(step)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


def _require_callable(step):
    if not callable(step):
        raise TypeError(f"Sequential: expected Modules and functions, each its own argument, got {step!r}")
    return step


def as_tensor(x: Tensor | Array) -> Tensor:
    """x as a Tensor (an array becomes a constant one)."""
    return x if isinstance(x, Tensor) else Tensor(x)
