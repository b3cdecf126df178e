"""Fused formulas, sums and scatter-add: one name for what NumPy and CuPy each do fastest in their own way."""

import functools

import numpy as np

from .device import array_module


def scatter_add(target, ids, values):
    """target[ids] += values in place, where an index that occurs twice adds twice. target: float32 or float64."""
    array_module(target).add.at(target, ids, values)


def fused(function):
    """Decorator of a formula, entry by entry, function(xp, *arguments): a kernel on CuPy, on NumPy what is written.

    A launch costs the host 10 to 20 us whatever its size, so a GPU waits for a small network's launches. cupy.fuse
    reads the function once for each combination of dtypes and axes. So it may hold only operators, ufuncs with out=,
    astype, x[...] = y, xp.where and xp.clip: no shapes, no sums, no branches but on None. Arguments are arrays
    (always the first), Python numbers and None; numbers are computed with outside, since CuPy makes float64 of two of
    them. Arrays that are written to or returned have the shape that all arguments broadcast to: there is a thread for
    each entry.
    """
    kernels = {}

    @functools.wraps(function)
    def call(*arguments):
        xp = array_module(arguments[0])
        if xp is np:
            return function(np, *arguments)
        if xp not in kernels:
            kernels[xp] = xp.fuse(kernel_name=function.__name__)(functools.partial(function, xp))
        return kernels[xp](*arguments)

    call.is_fused = True
    return call


def column_sums(x):
    """x.sum(axis=0) of x (N, K). On NumPy a product with ones, 8 times as quick; on CuPy TF32 would round it."""
    return np.ones(len(x), dtype=x.dtype) @ x if isinstance(x, np.ndarray) else x.sum(axis=0)


def row_sums(x):
    """x.sum(axis=1) of x (N, K), in the same way."""
    return x @ np.ones(x.shape[1], dtype=x.dtype) if isinstance(x, np.ndarray) else x.sum(axis=1)


def tile_size(xp, n, rows=None):
    """Side of the tiles in which an n x n matrix is computed and forgotten: small enough for a CPU's cache,
    large enough to be worth a launch on a GPU (256 MiB of float32). Of a rows x n matrix: the width of tiles with
    all of the rows."""
    if xp is not np:
        return 8192 if rows is None else max(1, 8192**2 // rows)
    return 256 if n <= 2048 else 512
