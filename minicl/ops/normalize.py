"""Batch norm and layer norm: shift and scale to mean 0 and variance 1, then let the network choose both again.

Both compute x^ = (x - m) r with r = 1 / sqrt(v + eps), and y = w x^ + b; they differ in the set of n entries
that m and v are taken over. With gy = g w, the gradient has to pass through m and v as well:

    db = sum g                                                               (1)
    dw = sum g x^                                                            (2)
    dx = r (gy - mean(gy) - x^ mean(gy x^))                                  (3)

(3) is gy with two directions taken out: moving all n entries together changes nothing (m follows), and neither
does stretching them (r follows). The means are over the same n entries. Derivation: docs/gradients/normalize.md
"""

from ..autograd import op
from ..backend import accumulate, array_module, run_slices


@op
def batch_norm(x, weight, bias, *, eps=1e-5, relu=False, on_statistics=None):
    """Normalise each channel over all other axes (Ioffe & Szegedy 2015); relu=True adds max(y, 0) in the same pass.

    x (..., C), weight and bias (C,) -> (..., C). on_statistics(mean (C,), var (C,), n): called with the batch's
    own, biased, variance, for a layer's running averages.

    Per channel everything folds into a line: y = a x + c forward, dx = a g + k x + l backward, so each
    direction is one pass for the two sums and one for the line. With a = w r:

        c = b - a m,    k = -a r dw / n,    l = -a db / n - k m
    """
    if x.ndim < 2 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"batch_norm: expected x (..., C), weight (C,), bias (C,), got {x.shape}, {weight.shape}, "
                         f"{bias.shape}")
    xp, C = array_module(x), x.shape[-1]
    n = x.size // C
    if n < 2:
        raise ValueError(f"batch_norm: needs at least 2 values a channel to take a variance, got shape {x.shape}; "
                         "use a larger batch, or evaluation mode (.eval())")
    X, size = x.reshape(n, C), max(1, 2**16 // C)                            # rows that fit in cache
    origin = X[::-(-n // 64)].mean(axis=0)                                   # sums of squares about nearly the mean

    def moments(lo, hi):
        d = X[lo:hi] - origin
        return d, d * d

    first, second = _sum_rows(xp, n, moments, origin, size)
    m = first / n
    v = xp.maximum(second / n - m * m, 0)
    m = m + origin
    r = 1 / xp.sqrt(v + eps)
    if on_statistics is not None:
        on_statistics(m, v, n)
    a, y = weight * r, xp.empty_like(X)
    c = bias - m * a

    def forward(lo, hi):
        out = y[lo:hi]
        xp.multiply(X[lo:hi], a, out=out)
        out += c
        if relu:
            xp.maximum(out, 0, out=out)

    run_slices(xp, n, forward, size)
    kept = y if relu else None                                               # only its sign is needed

    def backward(g):
        G = g.reshape(n, C)
        dx = xp.empty_like(X)

        def sums(lo, hi):
            gs = dx[lo:hi]                                                   # g past the relu, kept for the next pass
            gs[...] = G[lo:hi]
            if relu:
                gs *= kept[lo:hi] > 0
            return gs, gs * (X[lo:hi] - m)

        db, dw = _sum_rows(xp, n, sums, m, size)                             # (1)
        dw = dw * r                                                          # (2)
        k = -a * r * dw / n
        l = -a * db / n - k * m

        def line(lo, hi):
            out = dx[lo:hi]
            out *= a
            out += k * X[lo:hi]
            out += l                                                         # (3)

        run_slices(xp, n, line, size)
        return dx.reshape(x.shape), dw, db

    return y.reshape(x.shape), backward


def _sum_rows(xp, n, rows, like, size):
    """The sums over all rows of the two (rows, C) arrays that rows(lo, hi) gives, as arrays like `like` (C,)."""
    def add(lo, hi, *totals):
        ones = xp.ones(hi - lo, dtype=like.dtype)
        for total, part in zip(totals, rows(lo, hi)):
            total += ones @ part                                             # quicker than part.sum(axis=0)

    return accumulate(xp, n, add, like, like, size=size)


@op
def layer_norm(x, weight, bias, *, eps=1e-5):
    """Normalise each row over its last axis (Ba et al. 2016): x (..., C), weight and bias (C,) -> (..., C)."""
    if x.ndim < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"layer_norm: expected x (..., C), weight (C,), bias (C,), got {x.shape}, {weight.shape}, "
                         f"{bias.shape}")
    xp, rows = array_module(x), tuple(range(x.ndim - 1))
    d = x - x.mean(axis=-1, keepdims=True)
    r = 1 / xp.sqrt((d * d).mean(axis=-1, keepdims=True) + eps)
    x_hat = d * r

    def backward(g):
        gy = g * weight
        dx = r * (gy - gy.mean(axis=-1, keepdims=True) - x_hat * (gy * x_hat).mean(axis=-1, keepdims=True))  # (3)
        return dx, (g * x_hat).sum(axis=rows), g.sum(axis=rows)              # (2), (1)

    return x_hat * weight + bias, backward
