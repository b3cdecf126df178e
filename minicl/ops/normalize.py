"""Batch norm and layer norm: shift and scale to mean 0 and variance 1, then to a learned mean and scale.

Both compute x^ = (x - m) r with r = 1 / sqrt(v + eps), and y = w x^ + b; they differ in the set of n entries over which m
and v are computed. With gy = g w, the gradient also passes through m and v:

    db = sum g                                                               (1)
    dw = sum g x^                                                            (2)
    dx = r (gy - mean(gy) - x^ mean(gy x^))                                  (3)

(3) is gy with two directions removed: y does not change if all n entries are shifted (m follows) or scaled (r follows).
The means are over the same n entries. Derivation: docs/gradients/normalize.md
"""

from collections.abc import Callable

from ..autograd import op
from ..backend import array_module, column_sums, deviation_sums, fused, is_gpu, parallel_for, product_sums, row_means
from ..checks import require_within
from ..distributed import ALONE, World
from ..typing import Array
from .pixel_rows import PixelRows

FEW = 256             # values up to which batch norm's lines are of x - m, which rounds less, at the cost of a pass on NumPy
ENTRIES = 2**17       # of layer norm's rows in a slice, whose temporaries stay in the cache


@op
def batch_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5, relu: bool = False,
               on_statistics: Callable[[Array, Array, int], None] | None = None, world: World = ALONE):
    """Normalise each channel over all other axes (Ioffe & Szegedy 2015); relu=True adds max(y, 0) in the same pass.

    x (..., C), weight and bias (C,) -> (..., C). on_statistics(mean (C,), var (C,), n): called with the batch's biased
    variance, for a layer's running averages. world: x is this process's part of the batch; mean, variance and the means
    of (3) are those of the whole batch.

    Per channel everything is linear: y = a x + c forward, dx = a g + k x + l backward, so each direction is one pass for
    the two sums and one for the line. With a = w r:

        c = b - a m,    k = -a r dw / n,    l = -a db / n - k m
    """
    _require_shapes("batch_norm", x, weight, bias, eps, 2 / world.size)
    pixels = PixelRows(x)                                                    # pixels.each, pixels.sums: one pass each
    xp, X = pixels.xp, pixels.rows(x)
    n = pixels.pixels * world.size
    origin = pixels.sample_mean(x)                                           # sums of squares about nearly the mean
    wide_origin = pixels.repeat(origin)
    first, second = pixels.sums(lambda s: deviation_sums(X[s], wide_origin))
    if world.size > 1:
        first, second, origin = _sums_of_all(world, first, second, origin, float(pixels.pixels))
    m, rest, v, r, a, c, c_few = _fold(first, second, origin, weight, bias, float(n), eps)
    if on_statistics is not None:
        on_statistics(m, v, n)
    few = n <= FEW or is_gpu(xp)
    wide_m, wide_a, wide_c = map(pixels.repeat, (m, a, c_few if few else c))
    y = xp.empty_like(X)
    least = pixels.zeros() if relu else None
    pixels.each(lambda s: _line(X[s], wide_m if few else None, wide_a, wide_c, least, y[s]))
    y_saved = y if relu else None                                            # only its sign is needed

    def backward(g):
        G = pixels.rows(g)
        dx = xp.empty_like(X)
        wide_m = pixels.repeat(m)
        past = G if y_saved is None else dx                                  # g past the relu

        def sums(s):
            if y_saved is not None:
                _past_relu(G[s], y_saved[s], dx[s])
            return product_sums(past[s], X[s], wide_m)

        db, dr = pixels.sums(sums)                                           # (1)
        total = (dr, db) if world.size == 1 else world.sum(xp.stack([dr, db]))
        dw, k, l, l_few = _fold_back(*total, m, rest, r, a, float(n))        # (2)
        if world.size > 1:
            dw = (dr - rest * db) * r                                        # the share of this process, like db
        wide_a, wide_k, wide_l = map(pixels.repeat, (a, k, l_few if few else l))
        pixels.each(lambda s: _line_back(past[s], X[s], wide_m if few else None, wide_a, wide_k, wide_l, dx[s]))     # (3)
        return dx.reshape(x.shape), dw, db

    return y.reshape(x.shape), backward


def _sums_of_all(world, first, second, origin, n):
    """The sums of x - o and (x - o)^2 over all processes, and o, from the sums of each about its own origin over n values.

    With d the distance of a process's mean from o, its values add n (variance + d^2) to the second (Chan et al. 1979).
    """
    shift = first / n
    mine = array_module(first).stack([origin, shift, second / n - shift * shift])            # (3, C)
    origins, shifts, variances = world.all_gather(mine[None]).swapaxes(0, 1)                 # (size, C) each
    origin = origins.mean(axis=0)
    d = origins - origin + shifts
    return n * d.sum(axis=0), n * (variances + d * d).sum(axis=0), origin


@fused
def _fold(xp, first, second, origin, weight, bias, n, eps):
    """m, v, r, the line's a and c, and c_few of its form a (x - m) + c_few, from the sums of x - origin and of its square
    over n values; all are (C,).

    rest: the rounding error of m; the mean is m + rest.
    """
    # m = mean x,  v = mean (x - m)^2,  r = 1 / sqrt(v + eps), NaN for v = inf;  y = w (x - m) r + b = a x + c
    shift = first / n
    m = origin + shift
    rest = shift - (m - origin)
    v = xp.maximum(second / n - shift * shift, 0)
    r = 1 / xp.sqrt(v + eps) + (v - v)
    a = weight * r
    return m, rest, v, r, a, bias - m * a, bias - rest * a


@fused
def _line(xp, x, m, a, c, least, out):
    """out = a (x - m) + c, and at least `least`; with None for m or `least` without it."""
    xp.multiply(x if m is None else x - m, a, out=out)
    out += c
    if least is not None:
        xp.maximum(out, least, out=out)


@fused
def _past_relu(xp, g, y, out):
    """out = g where y > 0, else 0."""
    out[...] = y > 0                                                         # NumPy is slow to multiply by bools
    out *= g


@fused
def _fold_back(xp, dr, db, m, rest, r, a, n):
    """dw, k, l, and l_few of the form a g + k (x - m) + l_few, from dr = sum g (x - m), where the mean is m + rest."""
    # dw = sum g (x - mean) r;  k and l as in batch_norm's docstring
    dw = (dr - rest * db) * r
    k = -a * r * dw / n
    return dw, k, -a * db / n - k * m, -a * db / n - k * rest


@fused
def _line_back(xp, g, x, m, a, k, l, dx):
    """dx = a g + k (x - m) + l, without m if it is None; g may be dx."""
    xp.multiply(g, a, out=dx)
    dx += k * (x if m is None else x - m)
    dx += l


@op
def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5):
    """Normalise each row over its last axis (Ba et al. 2016): x (..., C), weight and bias (C,) -> (..., C)."""
    _require_shapes("layer_norm", x, weight, bias, eps)
    xp = array_module(x)
    C = x.shape[-1]
    X = xp.ascontiguousarray(x).reshape(-1, C)                               # sums along other rows round more
    r = xp.empty((len(X), 1), dtype=x.dtype)
    x_hat, y = xp.empty_like(X), xp.empty_like(X)
    size = max(1, ENTRIES // C)                                              # rows of a slice

    def standardise(lo, hi):
        s = slice(lo, hi)
        d = X[s] - row_means(X[s])
        d, squares = _centred(d, row_means(d))                               # the first mean was rounded
        _inverse_root(row_means(squares), eps, r[s])
        _standardised(d, r[s], weight, bias, x_hat[s], y[s])

    def backward(g):
        G = xp.ascontiguousarray(g).reshape(-1, C)
        dx = xp.empty_like(x_hat)

        def project(lo, hi):
            s = slice(lo, hi)
            gy, gyx, gx = _products(G[s], weight, x_hat[s])
            _project(gy, row_means(gy), x_hat[s], row_means(gyx), r[s], dx[s])           # (3)
            return column_sums(gx), column_sums(G[s])                        # (2), (1)

        first, *rest = parallel_for(xp, len(G), project, size)
        dw, db = (sum(parts[1:], parts[0]) for parts in zip(first, *rest))
        return dx.reshape(g.shape), dw, db

    parallel_for(xp, len(X), standardise, size)
    return y.reshape(x.shape), backward


@fused
def _centred(xp, x, m):
    d = x - m
    return d, d * d


@fused
def _inverse_root(xp, v, eps, r):
    xp.add(1 / xp.sqrt(v + eps), v - v, out=r)                               # NaN where v has overflowed


@fused
def _standardised(xp, d, r, weight, bias, x_hat, y):
    xp.multiply(d, r, out=x_hat)
    xp.multiply(x_hat, weight, out=y)
    y += bias


@fused
def _products(xp, g, weight, x_hat):
    gy = g * weight
    return gy, gy * x_hat, g * x_hat


@fused
def _project(xp, gy, mean_gy, x_hat, mean_gyx, r, dx):
    xp.multiply(r, gy - mean_gy - x_hat * mean_gyx, out=dx)


def _require_shapes(name, x, weight, bias, eps, at_least=0):
    require_within(name, "[1e-30, inf)", eps=eps)                            # squares that are less lose digits
    if x.ndim < 1 or x.shape[-1] < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"{name}: expected x (..., C) with C >= 1, weight (C,), bias (C,), got {x.shape}, {weight.shape}, "
                         f"{bias.shape}")
    if x.size < at_least * x.shape[-1]:
        raise ValueError(f"{name}: needs at least 2 values a channel to take a variance, got shape {x.shape}; "
                         "use a larger batch, or evaluation mode (.eval())")
