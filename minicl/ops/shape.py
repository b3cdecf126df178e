"""Shape ops: they only move entries, so their gradients move them back."""

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autograd import op
from ..backend import HostArgument, array_module, parallel_for, scatter_add
from ..checks import require_integers, require_ordered
from ..signature import is_plain_array
from ..typing import Array
from .checks import axis_of


@op
def reshape(x: Array, *, shape: int | tuple[int, ...]):
    """The same entries in row-major order under another shape; one length may be -1.    dx: g in x's shape"""
    if shape is None:
        raise TypeError("reshape: shape must be an int or a tuple of ints, got None")
    before = x.shape
    return x.reshape(shape), lambda g: (g.reshape(before),)


@op
def transpose(x: Array, *, axes: tuple[int, ...] | None = None):
    """Axis k of the result is axis axes[k] of x; default: reversed.    dx: g under the inverse permutation"""
    require_ordered("transpose", axes=axes)
    if axes is not None and not hasattr(axes, "__iter__"):
        raise TypeError(f"transpose: axes must be a tuple of {x.ndim} ints, got {axes!r}")
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(axis_of("transpose", x, axis) for axis in axes)
    if len(order) != x.ndim or len(set(order)) != x.ndim:
        raise ValueError(f"transpose: axes must name each axis of x {x.shape} once, got {axes}")
    inverse = tuple(sorted(range(x.ndim), key=order.__getitem__))
    return x.transpose(order), lambda g: (g.transpose(inverse),)


@op
def to_pixel_major(x: Array):
    """Images (B, H, W, C) -> pixels (H, W, B, C), contiguous, as conv2d takes them.    dx: g transposed back"""
    if x.ndim != 4:
        raise ValueError(f"to_pixel_major: expected images (B, H, W, C), got shape {x.shape}; one image is x[None]")
    xp = array_module(x)
    transposed = x.transpose(1, 2, 0, 3)
    y = xp.empty(transposed.shape, dtype=x.dtype)
    parallel_for(xp, len(y), lambda lo, hi: _copy_pixels(transposed[lo:hi], y[lo:hi]))
    return y, lambda g: (g.transpose(2, 0, 1, 3),)


def _copy_pixels(x, y):
    """y[...] = x for arrays (..., C). NumPy copies the few channels of a pixel one by one; a pixel as one item takes a third
    of the time."""
    if isinstance(x, np.ndarray) and x.shape[-1] > 1 and x.strides[-1] == x.itemsize:
        pixel = np.dtype((np.void, x.shape[-1] * x.itemsize))
        x, y = x.view(pixel), y.view(pixel)
    y[...] = x


@op(broadcasts=True)
def broadcast_to(x: Array, *, shape: int | tuple[int, ...]):
    """x repeated along new axes and axes of length 1.    dx: g summed over the repeats"""
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    for length in shape:
        require_integers("broadcast_to", 0, **{"each of shape": length})
    return array_module(x).broadcast_to(x, shape), lambda g: (g,)


@op
def getitem(x: Array, *, key: Any):
    """x[key]: ints, slices, None, ... and integer arrays.    dx: zeros, with g added at [key]

    The gradients of an entry picked several times add up. Ids out of bounds raise IndexError on NumPy and wrap silently on
    CuPy. Raises TypeError for other kinds of keys: a list, a tuple within the key, a bool.
    """
    key = key.moved() if type(key) is HostArgument else key                  # in a step that is captured
    has_arrays = _require_key(key)

    def backward(g):
        dx = array_module(x).zeros_like(x)
        if has_arrays:
            scatter_add(dx, key, g)
        else:
            dx[key] = g
        return (dx,)

    return x[key], backward


def _require_key(key):
    """Whether a key contains arrays. Raises TypeError for a part of a kind that getitem does not take."""
    has_arrays = False
    for part in key if isinstance(key, tuple) else (key,):
        if is_plain_array(part) and part.dtype.kind in "iu":
            has_arrays = True
        elif not isinstance(part, (int, slice, np.integer, type(None), type(...))) or isinstance(part, bool):
            hint = ("for a bool mask use ops.where" if getattr(part, "dtype", type(part)) in (bool, np.bool_) else
                    "convert ids with numpy.array(ids)")
            raise TypeError(f"getitem: expected ints, slices, None, ... or integer arrays, got {part!r}; {hint}")
    return has_arrays


@op
def concat(*xs: Array, axis: int = 0):
    """concat(x, y, ..., axis=0): join arrays along an existing axis.    d(part): that part of g"""
    xp = array_module(xs[0])
    axis = axis_of("concat", xs[0], axis)
    bounds = itertools.pairwise([0, *itertools.accumulate(x.shape[axis] for x in xs)])
    parts = [(slice(None),) * axis + (slice(lo, hi),) for lo, hi in bounds]
    return xp.concatenate(xs, axis=axis), lambda g: tuple(g[part] for part in parts)


@op
def stack(*xs: Array, axis: int = 0):
    """stack(x, y, ..., axis=0): join arrays of one shape along a new axis.    d(k-th): the k-th slice of g"""
    xp = array_module(xs[0])
    axis = axis_of("stack", xs[0][None], axis)
    return xp.stack(xs, axis=axis), lambda g: tuple(xp.moveaxis(g, axis, 0)[k] for k in range(len(xs)))


@op
def pad(x: Array, *, widths: Sequence[tuple[int, int]]):
    """x surrounded by zeros: widths ((before, after), ...) for each axis.    dx: the middle of g"""
    if not hasattr(widths, "__len__") or len(widths) != x.ndim or builtins.any(
            not hasattr(w, "__len__") or len(w) != 2 for w in widths):
        raise ValueError(f"pad: widths must be {x.ndim} pairs (before, after) of counts >= 0, got {widths}")
    for pair in widths:
        for count in pair:
            require_integers("pad", 0, widths=count)
    middle = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))
    y = array_module(x).zeros([before + n + after for (before, after), n in zip(widths, x.shape)], dtype=x.dtype)
    y[middle] = x
    return y, lambda g: (g[middle],)
