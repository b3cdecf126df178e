"""Fused formulas, sums and scatter-add, each in the fastest form for NumPy and for CuPy."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..typing import Array, ArrayModule
from .device import array_module


def scatter_add(target: Array, ids: Any, values: Array) -> None:
    """target[ids] += values in place; repeated indices add repeatedly. target: float32 or float64."""
    on_host = isinstance(target, np.ndarray) and isinstance(ids, np.ndarray)
    if on_host and target.ndim == 2 and ids.size > 4 * len(target) and target.size:      # by sorted rows: 0.4 of the time
        ids = ids.reshape(-1).astype(np.intp) % len(target)
        order = ids.argsort(kind="stable")
        ids = ids[order]
        firsts = np.flatnonzero(np.diff(ids, prepend=-1))                    # where a run of equal ids begins
        target[ids[firsts]] += np.add.reduceat(values.reshape(-1, target.shape[1])[order], firsts, axis=0)
    else:
        array_module(target).add.at(target, ids, values)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of an elementwise formula, function(xp, *arguments): one kernel on CuPy, plain code on NumPy.

    A launch costs the host 10 to 20 us whatever its size, so a GPU waits for a small network's launches. cupy.fuse traces
    the function once for each combination of dtypes and axes. So it may contain only operators, ufuncs with out=, astype,
    x[...] = y, xp.where and xp.clip: no shapes, no sums, no branches except on None. Arguments are arrays (always the
    first), Python numbers and None. Combine numbers outside, since CuPy computes two of them in float64, and pass counts
    used with floats as floats. Arrays that are written to or returned have the shape to which all arguments broadcast,
    with a thread for each entry.
    """
    kernels: dict[ArrayModule, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(*arguments):
        xp = array_module(arguments[0])
        if xp is np:
            return function(np, *arguments)
        if xp not in kernels:
            kernels[xp] = xp.fuse(kernel_name=function.__name__)(functools.partial(function, xp))
        return kernels[xp](*arguments)

    call.is_fused = True  # type: ignore[attr-defined]
    return call


def weights(old: float) -> tuple[float | None, float | None]:
    """Arguments of follow() for x = old x + (1 - old) y: (1 - old, None), or (None, old) for old below a half."""
    if not 0 <= old <= 1:
        raise ValueError(f"moving average: expected a weight of the old value in [0, 1], got {old:g}; was a momentum or "
                         "beta set out of range?")
    return (1 - old, None) if old >= 0.5 else (None, old)


def follow(xp: ArrayModule, x: Array, y: Array, new: float | None, old: float | None, out: Array | None = None) -> Array:
    """x = old x + (1 - old) y in place, in a fused formula; returns scratch memory, `out` if given.

    Written as a difference, the average is exact if y equals x, however small its weight 1 - old. But x + 1 (y - x) loses
    a y that is small beside x, so the difference is added to the one with more weight.
    """
    if old is None:                                                          # x += new (y - x)
        t = xp.subtract(y, x, out=out)
        t *= new
        x += t
    else:                                                                    # x = y + old (x - y)
        t = xp.subtract(x, y)
        t *= old
        xp.add(t, y, out=x)
    return t


# NumPy adds pairwise along the last axis but term by term along the others: slowly, and with an error that grows with
# the number of terms. A product with ones for each BLOCK of terms, followed by the sum of these partial sums, is 8 times
# as fast and as accurate as a pairwise sum. CuPy adds in a tree, and TF32 would round the product. But CuPy uses one block
# of threads for each 32 columns, however many rows they have, so most of a GPU is idle. There the terms are divided into
# parts, enough for GRID blocks, whose sums are added up.
#
# BLAS adds the terms of a column in several partial sums, but in the last columns, fewer than UNROLLED, term by term.
BLOCK = 256
UNROLLED = 4
FEW = 32                  # terms, and
SMALL = 4096              # entries, up to which NumPy's sum loses no more and takes less time
GRID = 512                # some for each of a large GPU's multiprocessors


def column_sums(x: Array) -> Array:
    """x.sum(axis=-2) of x (..., N, K)."""
    n, K = x.shape[-2:]
    on_host = isinstance(x, np.ndarray)
    if on_host and n > UNROLLED and (left := K % UNROLLED):
        last = np.ascontiguousarray(x[..., K - left:].swapaxes(-1, -2)).sum(axis=-1)
        return np.concatenate([column_sums(x[..., :K - left]), last], axis=-1) if left < K else last
    count = -(-n // BLOCK) if on_host else _parts(x.size // max(1, n), n)
    if count <= 1:
        return np.ones(n, dtype=x.dtype) @ x if on_host else x.sum(axis=-2)
    size = n // count
    blocks = x[..., :count * size, :].reshape(*x.shape[:-2], count, size, x.shape[-1])
    total = column_sums(np.ones(size, dtype=x.dtype) @ blocks if on_host else blocks.sum(axis=-2))
    return total if count * size == n else total + column_sums(x[..., count * size:, :])


def row_max(x: Array) -> Array:
    """x.max(axis=-1, keepdims=True); for short rows the maximum of the columns, one after the other, as NumPy takes up to
    13 times as long to reduce rows of 16."""
    K = x.shape[-1]
    if isinstance(x, np.ndarray) and 0 < K <= FEW:
        return functools.reduce(np.maximum, (x[..., k:k + 1] for k in range(K)))
    return x.max(axis=-1, keepdims=True)


def _column_dots(x, y):
    """(x y).sum(axis=0) of x and y (N, K) on NumPy."""
    whole = len(x) // BLOCK * BLOCK                                          # einsum adds term by term
    total = np.einsum("nk,nk->k", x[whole:], y[whole:])
    if not whole:
        return total
    blocks = (a[:whole].reshape(-1, BLOCK, a.shape[1]) for a in (x, y))
    return total + column_sums(np.einsum("bnk,bnk->bk", *blocks))


def products_of_columns(x: Array, y: Array) -> Array:
    """x.T @ y of x (N, K) and y (N, M) -> (K, M). BLAS adds the N terms one by one, and many equal ones, as of rectified
    columns, all round in the same direction. On NumPy blocks of them are added, and x's own squares as in column_sums()."""
    if not isinstance(x, np.ndarray):
        return x.T @ y
    size = BLOCK // 4
    total = functools.reduce(operator.iadd, (x[lo:lo + size].T @ y[lo:lo + size] for lo in range(0, len(x), size)))
    if y is x:
        np.fill_diagonal(total, column_sums(x * x))
    return total


def deviation_sums(x: Array, origin: Array) -> tuple[Array, Array]:
    """The column sums of d and of d^2 for d = x - origin: x (N, K), origin (K,) -> (K,), (K,)."""
    if isinstance(x, np.ndarray):
        d = x - origin
        return column_sums(d), _column_dots(d, d)
    return _two_sums("deviation_sums", "T(x - o), T((x - o) * (x - o))", "T x, T o", (x,), origin)


def product_sums(g: Array, x: Array, origin: Array) -> tuple[Array, Array]:
    """The column sums of g and of g (x - origin): g and x (N, K), origin (K,) -> (K,), (K,)."""
    if isinstance(x, np.ndarray):
        return column_sums(g), _column_dots(g, x - origin)
    return _two_sums("product_sums", "T(g), T(g * (x - o))", "T g, T x, T o", (g, x), origin)


def _two_sums(name, pair, inputs, arrays, origin):
    """Both sums of a pair of terms at once on a GPU, as one sum of complex numbers: the terms are never written."""
    x = arrays[0]
    kernel = _complex_sum(array_module(x), name, pair, inputs, x.dtype.char)
    n, K = x.shape
    count = max(1, _parts(K, n))
    whole = n // count * count
    sums = kernel(*(a[:whole].reshape(count, -1, K) for a in arrays), origin, axis=1).view(x.dtype)      # (count, 2 K)
    total = sums.sum(axis=0) if count > 1 else sums[0]
    if whole < n:
        total = total + kernel(*(a[whole:] for a in arrays), origin, axis=0).view(x.dtype)
    return total[0::2], total[1::2]


@functools.lru_cache
def _complex_sum(xp, name, pair, inputs, dtype):
    result = {"f": "complex64 y", "d": "complex128 y"}[dtype]
    return xp.ReductionKernel(inputs, result, f"complex<T>({pair})", "a + b", "y = a", "0", name)


@functools.lru_cache(1024)
def _parts(columns, n):
    """The number of parts for CuPy's sums over n terms for each of `columns` columns: enough for GRID blocks, of 128 terms
    or more, and a divisor of n if there is one near. Few terms are not worth a second launch."""
    most = min(32 * GRID // max(32, columns), n // 128) if n >= 1024 else 1
    return next((count for count in range(most, most // 2, -1) if n % count == 0), most)


def square_sums(x: Array) -> Array:
    """|x|^2 of x (n,) on a GPU, in float64: an array (). CuPy's x @ x would use one block of threads without CUB."""
    kernel = _square_sums(array_module(x))
    count = max(1, _parts(1, len(x)))
    if count == 1:
        return kernel(x, axis=0)
    whole = len(x) // count * count
    total = kernel(x[:whole].reshape(count, -1), axis=1).sum()
    return total if whole == len(x) else total + kernel(x[whole:], axis=0)


@functools.lru_cache
def _square_sums(xp):
    return xp.ReductionKernel("T x", "float64 y", "double(x) * double(x)", "a + b", "y = a", "0", "square_sums")


def row_sums(x: Array) -> Array:
    """x.sum(axis=-1) of x (..., K), as a product with ones; for K up to some thousands."""
    return x @ np.ones(x.shape[-1], dtype=x.dtype) if isinstance(x, np.ndarray) else x.sum(axis=-1)


def pairwise_dots(x: Array, y: Array) -> Array:
    """x @ y.T of x (N, d) and y (M, d) -> (N, M). On NumPy the shorter of both is on the right: BLAS copies that side."""
    return (y @ x.T).T if isinstance(x, np.ndarray) and len(x) < len(y) else x @ y.T


def row_means(x: Array) -> Array:
    """x.mean(axis=1, keepdims=True) of x (N, K), as row_sums."""
    on_host = isinstance(x, np.ndarray)
    return (x @ np.full(x.shape[1], 1 / x.shape[1], dtype=x.dtype))[:, None] if on_host else x.mean(axis=1, keepdims=True)


def sum_over(x: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    """x.sum(axis=axes, keepdims=keepdims) for a tuple of axes, with column_sums where NumPy would add term by term, or
    CuPy on few multiprocessors."""
    if not isinstance(x, np.ndarray) and not _in_parts(x, axes):
        return _sum_on_gpu(x, tuple(axes), keepdims)
    few = x.size <= SMALL and math.prod([x.shape[axis] for axis in axes]) <= FEW
    if few or not x.size:
        return x.sum(axis=tuple(axes), keepdims=keepdims)
    axes = sorted(axis % x.ndim for axis in axes)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))    # as in memory, where the last is contiguous
    if order != list(range(x.ndim)):
        y = sum_over(x.transpose(order), [order.index(axis) for axis in axes], keepdims=True).transpose(np.argsort(order))
        return y if keepdims else _without(y, axes)
    if axes == list(range(x.ndim - len(axes), x.ndim)):                      # trailing axes: pairwise, if they are one run
        return (x if len(axes) == 1 else np.ascontiguousarray(x)).sum(axis=tuple(axes), keepdims=keepdims)
    first = last = axes[-1]
    while first - 1 in axes:
        first -= 1                                                           # the run first ... last of axes: N terms
    n = math.prod(x.shape[first:last + 1])
    after = x.shape[last + 1:]
    y = x.reshape(-1, n, math.prod(after))
    y = column_sums(y) if n > 16 else y.sum(axis=1)
    y = y.reshape(x.shape[:first] + (1,) * (last + 1 - first) + after)
    rest = [axis for axis in axes if axis < first]
    if rest:
        y = sum_over(y, rest, keepdims=True)
    return y if keepdims else _without(y, axes)


def _without(y, axes):
    """y without these axes, whose length is 1."""
    return y.reshape([n for axis, n in enumerate(y.shape) if axis not in axes])


def _sum_on_gpu(x, axes, keepdims):
    cut = _few_long_rows(x, axes)
    if cut is None:
        return x.sum(axis=axes, keepdims=keepdims)
    kept = x.shape[:x.ndim - len(axes)]
    return _row_sums_in_parts(x.reshape(cut), cut[1]).reshape(kept + (1,) * len(axes) * keepdims)


def _few_long_rows(x, axes):
    """(rows, n) if the axes are the last ones of x, and CuPy would add each of few long rows with one block of threads."""
    if sorted(axis % x.ndim for axis in axes) != list(range(x.ndim - len(axes), x.ndim)) or not x.flags.c_contiguous:
        return None
    n = math.prod(x.shape[x.ndim - len(axes):])
    return (x.size // n, n) if n > 2**15 and 0 < x.size // n < 64 else None


def _row_sums_in_parts(x, n):
    """x.sum(axis=1) of x (rows, n) on a GPU, by partial sums of each row."""
    count = _parts(32 * len(x), n)
    whole = n // count * count
    total = x[:, :whole].reshape(len(x), count, -1).sum(axis=2).sum(axis=1)
    return total if whole == n else total + x[:, whole:].sum(axis=1)


def _in_parts(x, axes):
    """Whether CuPy's sum over the axes is better cut into parts: they are neighbours, not the last, and long."""
    axes = sorted(axis % x.ndim for axis in axes)
    if not axes or axes[-1] == x.ndim - 1 or axes[-1] - axes[0] >= len(axes) or not x.flags.c_contiguous:
        return False
    n = math.prod(x.shape[axes[0]:axes[-1] + 1])
    return n > 0 and _parts(x.size // n, n) > 1


def mean_over(x: Array, axes: Sequence[int], keepdims: bool = False) -> Array:
    """x.mean(axis=axes, keepdims=keepdims) for a tuple of axes, by sum_over."""
    if not isinstance(x, np.ndarray) and not _in_parts(x, axes) and not _few_long_rows(x, axes):
        return x.mean(axis=tuple(axes), keepdims=keepdims)                   # one launch
    return sum_over(x, axes, keepdims) / math.prod(x.shape[axis] for axis in axes)


def tile_size(xp: ArrayModule, n: int, rows: int | None = None) -> int:
    """Side of the tiles in which an n x n matrix is computed and discarded: small enough for a CPU's cache, large enough
    for a launch on a GPU (256 MiB of float32). For a rows x n matrix: the width of tiles with all of the rows."""
    if xp is not np:
        return 8192 if rows is None else max(1, 8192**2 // rows)
    side = 256 if n <= 2048 else 512
    return side if rows is None else max(side, min(2**18 // rows, n // 8))   # few rows take wide tiles, but 8 for threads
