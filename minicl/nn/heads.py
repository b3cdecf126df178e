"""Projection heads: h (B, features) -> z (B, d), the input of the loss. Discarded after training."""

from ..typing import Rng
from .layers import RELU_GAIN, BatchNorm, Linear, Sequential
from .module import Module

HEADS = ("none", "linear", "mlp")


def projection_head(kind: str, features: int, *, hidden: int | None = None, dim: int = 128, rng: Rng) -> Module:
    """One of the three heads of SimCLR's section 4.2, a Module.

    "none"    z = h
    "linear"  z = W h
    "mlp"     z = W2 relu(BN(W1 h)), hidden units wide (default: features)

    >>> rng = np.random.default_rng(0)
    >>> head = projection_head("mlp", 512, dim=64, rng=rng)
    >>> head(np.ones((8, 512), "float32")).shape
    (8, 64)
    """
    if kind == "none":
        return Sequential()
    if kind == "linear":
        return Linear(features, dim, rng=rng, bias=False)
    if kind == "mlp":
        hidden = features if hidden is None else hidden
        return Sequential(Linear(features, hidden, rng=rng, bias=False, gain=RELU_GAIN), BatchNorm(hidden, relu=True),
                          Linear(hidden, dim, rng=rng, bias=False))
    raise ValueError(f"projection head: expected one of {', '.join(HEADS)}, got {kind!r}")
