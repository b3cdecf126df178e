"""Elementwise ops: each output entry depends on one entry of each input (after broadcasting).

For y = f(x) the gradient is dx = g f'(x); every op has f' beside f. At a kink, such as that of relu, maximum
or abs, the docstring states which derivative is used.
"""

import math
from collections.abc import Callable

import numpy as np

from ..autograd import op
from ..backend import array_module, each_step, fused, parallel_for
from ..checks import require_integers, require_rng, require_within
from ..distributed import ALONE, World
from ..signature import Mask
from ..typing import Array, Rng

SLICE = 2**18          # entries of a slice for the threads
CACHED = 2**17         # the same for a formula with many temporaries, which stay in the cache


@op(broadcasts=True)
def add(x: Array, y: Array):
    """x + y.    dx = g,  dy = g"""
    return x + y, lambda g: (g, g)


@op(broadcasts=True)
def sub(x: Array, y: Array):
    """x - y.    dx = g,  dy = -g"""
    return x - y, lambda g: (g, -g)


@op(broadcasts=True)
def mul(x: Array, y: Array):
    """x y.    dx = g y,  dy = g x"""
    return x * y, lambda g: (g * y, g * x)


@op(broadcasts=True)
def div(x: Array, y: Array):
    """q = x / y.    dx = g / y,  dy = -g q / y"""
    q = x / y

    def backward(g):
        dx = g / y
        return dx, -dx * q

    return q, backward


@op
def neg(x: Array):
    """-x.    dx = -g"""
    return -x, lambda g: (-g,)


@op
def pow(x: Array, *, exponent: float):
    """y = x^p for a number p.    dx = g p x^(p-1), and 0 for p = 0"""
    require_within("pow", "(-inf, inf)", "with a gradient: exp(p * log(x))", exponent=exponent)
    return x ** exponent, lambda g: (g * (exponent * x ** (exponent - 1)) if exponent else 0 * g,)


@op
def exp(x: Array):
    """y = e^x.    dx = g y"""
    y = array_module(x).exp(x)
    return y, lambda g: (g * y,)


@op
def log(x: Array):
    """Natural logarithm.    dx = g / x"""
    return array_module(x).log(x), lambda g: (g / x,)


@op
def sqrt(x: Array):
    """y = x^(1/2).    dx = g / (2 y)"""
    y = array_module(x).sqrt(x)
    return y, lambda g: (g / (2 * y),)


@op
def abs(x: Array):
    """|x|.    dx = g sign(x), so 0 at 0"""
    xp = array_module(x)
    return xp.abs(x), lambda g: (g * xp.sign(x),)


@op
def tanh(x: Array):
    """y = tanh x.    dx = g (1 - y^2), computed as 4 e / (1 + e)^2 with e = exp(-2|x|), accurate in the tails."""
    return array_module(x).tanh(x), lambda g: (_tanh_back(g, x),)


@fused
def _tanh_back(xp, g, x):
    e = xp.exp(-xp.abs(x))
    e = e * e
    return g * (4 * e / ((1 + e) * (1 + e)))


@op
def sigmoid(x: Array):
    """y = 1 / (1 + e^-x).    dx = g y (1 - y)

    Computed from e = exp(-|x|), which cannot overflow, without a difference of numbers near 1: y = 1 / (1 + e), or
    e / (1 + e) for x < 0, and y (1 - y) = e / (1 + e)^2.

    >>> minicl.ops.sigmoid(np.array([0.0, -40.0])).data
    array([5.00000000e-01, 4.24835426e-18])
    """
    y, e = _sigmoid(x)
    return y, lambda g: (_sigmoid_back(g, e),)


@fused
def _sigmoid(xp, x):
    e = xp.exp(-xp.abs(x))
    return xp.maximum(e, x >= 0) / (1 + e), e                # the numerator: 1 where x >= 0, else e


@fused
def _sigmoid_back(xp, g, e):
    return g * (e / ((1 + e) * (1 + e)))


@op
def relu(x: Array):
    """y = max(x, 0).    dx = g [x > 0], so 0 at 0.  Only y is saved: y > 0 where x > 0."""
    y = array_module(x).empty(x.shape, dtype=x.dtype)
    _in_slices(_relu, x, y)

    def backward(g):
        dx = array_module(x).empty_like(y)
        _in_slices(_relu_back, g, y, dx)
        return (dx,)

    return y, backward


def _relu(x, y):
    array_module(x).clip(x, 0, math.inf, out=y)          # three times as fast as NumPy's maximum(x, 0)


@fused
def _relu_back(xp, g, y, dx):
    dx[...] = y > 0                                      # 1 or 0: bools are slow to multiply by; infinite g times 0 is NaN
    dx *= g


@op
def add_relu(x: Array, y: Array):
    """s = max(x + y, 0) of arrays of one shape, as in a residual block; x + y is not kept.    dx = dy = g [s > 0]"""
    if x.shape != y.shape:
        raise ValueError(f"add_relu: expected two arrays of one shape, got {x.shape} and {y.shape}; for others write "
                         "ops.relu(x + y)")
    s = array_module(x).empty(x.shape, dtype=x.dtype)
    _in_slices(_add_relu, x, y, s)

    def backward(g):
        dx = array_module(x).empty_like(s)
        _in_slices(_relu_back, g, s, dx)
        return dx, dx

    return s, backward


@fused
def _add_relu(xp, x, y, s):
    xp.add(x, y, out=s)
    xp.clip(s, 0, math.inf, out=s)


@op
def leaky_relu(x: Array, *, slope: float = 0.01):
    """x where x > 0, else slope x.    dx = g where x > 0, else slope g; slope in [0, 1)"""
    require_within("leaky_relu", "[0, 1)", slope=slope)
    y = array_module(x).maximum(x, slope * x if slope else 0)                # 0 x is NaN for infinity

    def backward(g):
        positive = x > 0
        return (g * positive + (slope * g) * ~positive,)

    return y, backward


@op
def gelu(x: Array):
    """y = x s,  s = sigmoid(2u) = (1 + tanh u) / 2,  u = c (x + a x^3),  c = sqrt(2/pi), a = 0.044715.

    dx = g (s + x s (1 - s) 2u'),  u' = c (1 + 3 a x^2)

    The tanh form of x Phi(x), within 5e-4 of it (Hendrycks & Gimpel 2016, section 2). Computed from e = exp(-2u) and
    1 - s = e s, without differences of numbers near 1. In float32 y and dx are constant below x = -10, about -1e-37 and
    -3e-36 g; in float64 below -21.
    """
    far = 10.0 if x.dtype.itemsize == 4 else 21.0        # beyond, y is x or below 1e-36 (float32): e does not overflow
    y, e = (array_module(x).empty(x.shape, dtype=x.dtype) for _ in range(2))
    _in_slices(lambda x, y, e: _gelu(x, -far, far, y, e), x, y, e, size=CACHED)

    def backward(g):
        dx = array_module(x).empty_like(y)
        _in_slices(lambda g, x, e, dx: _gelu_back(g, x, e, -far, far, dx), g, x, e, dx, size=CACHED)
        return (dx,)

    return y, backward


GELU_2C = 2 * math.sqrt(2 / math.pi)
GELU_2CA = GELU_2C * 0.044715


@fused
def _gelu(xp, x, low, high, y, e):
    z = xp.clip(x, low, high)
    xp.exp(z * (-GELU_2C - GELU_2CA * (z * z)), out=e)       # exp(-2u)
    xp.divide(xp.maximum(x, z), 1 + e, out=y)                # x s; not below -far s(-far), about -1e-37


@fused
def _gelu_back(xp, g, x, e, low, high, dx):
    z = xp.clip(x, low, high)
    s = 1 / (1 + e)
    xp.multiply(g, s + z * (GELU_2C + 3 * GELU_2CA * (z * z)) * (e * s * s), out=dx)


@op(broadcasts=True)
def maximum(x: Array, y: Array):
    """max(x, y).    dx = g [x >= y],  dy = g [x < y]: a tie goes to x"""
    xp = _module_of(x, y)
    first = x >= y
    return xp.maximum(x, y), lambda g: (g * first, g * ~first)


@op(broadcasts=True)
def minimum(x: Array, y: Array):
    """min(x, y).    dx = g [x <= y],  dy = g [x > y]: a tie goes to x"""
    xp = _module_of(x, y)
    first = x <= y
    return xp.minimum(x, y), lambda g: (g * first, g * ~first)


@op(broadcasts=True)
def where(condition: Mask, x: Array, y: Array):
    """x where condition (bools) holds, else y.    dx = g [condition],  dy = g [not condition]

    >>> minicl.ops.where(np.array([True, False]), np.array([1.0, 2.0]), 0.0).data
    array([1., 0.])
    """
    xp = array_module(condition)
    return xp.where(condition, x, y), lambda g: (None, g * condition, g * xp.logical_not(condition))


@op
def clip(x: Array, *, low: float | None = None, high: float | None = None):
    """x limited to [low, high]; None for no limit.    dx = g [low <= x <= high]"""
    for name, limit in (("low", low), ("high", high)):
        if limit is not None:
            require_within("clip", "(-inf, inf)", **{name: limit})
    if low is None and high is None or low is not None and high is not None and low > high:
        raise ValueError(f"clip: expected low <= high, at least one of them given, got low={low}, high={high}")
    y = array_module(x).clip(x, low, high)
    return y, lambda g: (g * (x == y),)


@op
def dropout(x: Array, *, p: float, rng: Rng | Callable[[], Rng], world: World = ALONE, batch_axis: int = 0):
    """y = x m / (1 - p), where each entry of m is 0 with probability p, else 1.    dx = g m / (1 - p)

    The expectation of y is x (Srivastava et al. 2014, inverted form). rng: numpy Generator, also for CuPy arrays, so a
    seed gives the same mask on both backends; or a function that gives one for each mask. world: x is this process's part
    of a batch along batch_axis; the mask is drawn for the whole batch.

    >>> minicl.ops.dropout(np.ones(6), p=0.5, rng=np.random.default_rng(0)).data
    array([2., 2., 2., 0., 0., 0.])
    """
    require_within("dropout", "[0, 1)", p=p)
    require_integers("dropout", -max(1, x.ndim), max(1, x.ndim) - 1, batch_axis=batch_axis)
    shape = [length * (world.size if axis == batch_axis % x.ndim else 1) for axis, length in enumerate(x.shape)]

    def draw():
        generator = rng() if callable(rng) else rng
        require_rng("dropout", generator)
        drawn = generator.random(shape, dtype="float32")
        if world.size > 1:
            drawn = np.moveaxis(world.rows(np.moveaxis(drawn, batch_axis, 0)), 0, batch_axis)
        return [drawn >= p]

    mask, = each_step(x, draw)
    scale = mask.astype(x.dtype) * (1 / (1 - p))
    return x * scale, lambda g: (g * scale,)


def _in_slices(formula, *arrays, size=SLICE):
    """formula(*arrays) of arrays of one shape, in slices for the threads; those it writes to are contiguous."""
    if arrays[0].size <= size:
        formula(*arrays)
        return
    flat = [array.reshape(-1) for array in arrays]
    parallel_for(array_module(flat[0]), flat[0].size, lambda lo, hi: formula(*(array[lo:hi] for array in flat)), size)


def _module_of(*inputs):
    """The array module of the first input that is an array."""
    return array_module(next(x for x in inputs if not isinstance(x, (int, float))))
