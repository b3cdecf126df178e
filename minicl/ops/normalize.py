"""Batch norm and layer norm: shift and scale to mean 0 and variance 1, then let the network choose both again.

Both compute x^ = (x - m) r with r = 1 / sqrt(v + eps), and y = w x^ + b; they differ in the set of n entries
that m and v are taken over. With gy = g w, the gradient has to pass through m and v as well:

    db = sum g                                                               (1)
    dw = sum g x^                                                            (2)
    dx = r (gy - mean(gy) - x^ mean(gy x^))                                  (3)

(3) is gy with two directions taken out: moving all n entries together changes nothing (m follows), and neither
does stretching them (r follows). The means are over the same n entries. Derivation: docs/gradients/normalize.md
"""

import math

from ..autograd import op
from ..backend import array_module, column_sums, fused, is_gpu, parallel_for, parallel_sum

WIDTH = 1024      # NumPy loops along a row, and narrow rows of C channels cost it twice: pixels are laid abreast


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
    abreast = 1 if is_gpu(xp) else math.gcd(n, max(1, WIDTH // C))
    X = x.reshape(n // abreast, abreast * C)                                 # several pixels a row: see WIDTH
    rows, size = len(X), max(1, 2**18 // X.shape[1])                         # calls long enough for threads

    def widen(v):                                                            # (C,) -> (abreast C,)
        return xp.tile(v, abreast) if abreast > 1 else v

    def sums(pair):                                                          # of all rows, (C,) each
        both = _sum_rows(xp, rows, pair, X[0], size)
        return both if abreast == 1 else [wide.reshape(abreast, C).sum(axis=0) for wide in both]

    origin = X.reshape(n, C)[::-(-n // 64)].mean(axis=0)                     # sums of squares about nearly the mean
    about = widen(origin)
    first, second = sums(lambda lo, hi: _moments(X[lo:hi], about))
    m, v, r, a, c = _fold(first, second, origin, weight, bias, n, eps)
    if on_statistics is not None:
        on_statistics(m, v, n)
    wide_a, wide_c, y = widen(a), widen(c), xp.empty_like(X)
    least = xp.zeros_like(X[0]) if relu else None                            # twice as quick as the number 0
    parallel_for(xp, rows, lambda lo, hi: _line(X[lo:hi], wide_a, wide_c, least, y[lo:hi]), size)
    kept = y if relu else None                                               # only its sign is needed

    def backward(g):
        G, wide_m, dx = g.reshape(X.shape), widen(m), xp.empty_like(X)

        def past_relu(lo, hi):
            gs = dx[lo:hi]                                                   # g past the relu, kept for the next pass
            return gs, _past_relu(G[lo:hi], kept[lo:hi] if relu else None, X[lo:hi], wide_m, gs)

        db, dw = sums(past_relu)                                             # (1)
        dw, k, l = _fold_back(dw, db, m, r, a, n)                            # (2)
        wide_a, wide_k, wide_l = map(widen, (a, k, l))
        parallel_for(xp, rows, lambda lo, hi: _line_back(dx[lo:hi], X[lo:hi], wide_a, wide_k, wide_l), size)     # (3)
        return dx.reshape(x.shape), dw, db

    return y.reshape(x.shape), backward


@fused
def _moments(xp, x, origin):
    d = x - origin
    return d, d * d


@fused
def _fold(xp, first, second, origin, weight, bias, n, eps):
    """m, v, r, and the line's a and c, from the sums of x - origin and of its square over n values; all are (C,)."""
    m = first / n
    v = xp.maximum(second / n - m * m, 0)
    m = m + origin
    r = 1 / xp.sqrt(v + eps)
    a = weight * r
    return m, v, r, a, bias - m * a


@fused
def _line(xp, x, a, c, least, out):
    """out = a x + c, and at least `least` unless that is None."""
    xp.multiply(x, a, out=out)
    out += c
    if least is not None:
        xp.maximum(out, least, out=out)


@fused
def _past_relu(xp, g, kept, x, m, out):
    """out = g where kept > 0 (everywhere if it is None), else 0; returns out (x - m)."""
    if kept is None:
        out[...] = g
    else:
        xp.multiply(g, kept > 0, out=out)
    d = x - m
    d *= out
    return d


@fused
def _fold_back(xp, pull, db, m, r, a, n):
    """dw, k and l from pull = sum g (x - m)."""
    dw = pull * r
    k = -a * r * dw / n
    return dw, k, -a * db / n - k * m


@fused
def _line_back(xp, dx, x, a, k, l):
    """dx = a g + k x + l in place, dx being g."""
    dx *= a
    dx += k * x
    dx += l


def _sum_rows(xp, n, rows, like, size):
    """The sums over all rows of the two (rows, C) arrays that rows(lo, hi) gives, as arrays like `like` (C,)."""
    if is_gpu(xp):
        return [column_sums(part) for part in rows(0, n)]

    def add(lo, hi, *totals):
        for total, part in zip(totals, rows(lo, hi)):
            total += column_sums(part)

    return parallel_sum(xp, n, add, like, like, size=size)


@op
def layer_norm(x, weight, bias, *, eps=1e-5):
    """Normalise each row over its last axis (Ba et al. 2016): x (..., C), weight and bias (C,) -> (..., C)."""
    if x.ndim < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"layer_norm: expected x (..., C), weight (C,), bias (C,), got {x.shape}, {weight.shape}, "
                         f"{bias.shape}")
    rows = tuple(range(x.ndim - 1))
    d, squares = _moments(x, x.mean(axis=-1, keepdims=True))
    r = _inverse_root(squares.mean(axis=-1, keepdims=True), eps)
    y, x_hat = _standardised(d, r, weight, bias)

    def backward(g):
        gy, gyx, gx = _pulls(g, weight, x_hat)
        dx = _pull_back(gy, gy.mean(axis=-1, keepdims=True), x_hat, gyx.mean(axis=-1, keepdims=True), r)     # (3)
        return dx, gx.sum(axis=rows), g.sum(axis=rows)                       # (2), (1)

    return y, backward


@fused
def _inverse_root(xp, v, eps):
    return 1 / xp.sqrt(v + eps)


@fused
def _standardised(xp, d, r, weight, bias):
    x_hat = d * r
    return x_hat * weight + bias, x_hat


@fused
def _pulls(xp, g, weight, x_hat):
    gy = g * weight
    return gy, gy * x_hat, g * x_hat


@fused
def _pull_back(xp, gy, mean_gy, x_hat, mean_gyx, r):
    return r * (gy - mean_gy - x_hat * mean_gyx)
