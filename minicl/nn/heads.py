"""Projection heads: h (B, features) -> z (B, d), the space the loss sees. Thrown away after training."""

from .layers import RELU_GAIN, BatchNorm, Linear, Sequential

HEADS = ("none", "linear", "mlp")


def projection_head(kind, features, *, hidden=None, dim=128, rng):
    """The three heads of SimCLR's section 4.2, a Module each.

    "none"    z = h
    "linear"  z = W h
    "mlp"     z = W2 relu(BN(W1 h)), hidden units wide (default: features)
    """
    if kind == "none":
        return Sequential()
    if kind == "linear":
        return Linear(features, dim, rng=rng, bias=False)
    if kind == "mlp":
        hidden = hidden or features
        return Sequential(Linear(features, hidden, rng=rng, bias=False, gain=RELU_GAIN), BatchNorm(hidden, relu=True),
                          Linear(hidden, dim, rng=rng, bias=False))
    raise ValueError(f"projection head: expected one of {', '.join(HEADS)}, got {kind!r}")
