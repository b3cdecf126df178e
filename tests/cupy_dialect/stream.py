"""Counts of launches and waits, and the blocks that cupy.fuse turns into one launch.

CuPy hands kernels to the device without waiting. A training step is slow if the host waits (synchronisations), or if it
launches so many small kernels that the device waits for the host. Both are counted here.
"""

import contextlib

import numpy as np

_waits = _launched = 0
_fusing = None                                             # within fusing(): the arrays written to so far


def synchronisations():
    """How often the host has waited for the device since the process started."""
    return _waits


def synchronise(*_):
    """Count one wait. This also serves as CuPy's methods that only wait."""
    global _waits
    _waits += 1


def launches():
    """How many kernels, library calls and copies the host has handed to the device since the process started.

    A view counts 0. A ufunc, reduction, product, assignment, new copy or fused function counts 1. A product counts 1
    more for each operand that cuBLAS cannot read in place. CuPy may need more (a scan, a sort), so this is a lower
    bound.
    """
    return _launched


def launch(count=1):
    """Count launches. Within fusing() they are part of one launch, which is counted at the end."""
    global _launched
    _launched += count if _fusing is None else 0


def launch_for(result, inputs):
    """Count one launch for each device array of `result` that is not a view of an input."""
    inputs = [x._array for x in inputs if hasattr(x, "_array")]
    for x in result if isinstance(result, (list, tuple)) else (result,):
        if hasattr(x, "_array") and not any(np.may_share_memory(x._array, y) for y in inputs):
            launch()


def launch_product(a, b):
    """Count a @ b of NumPy arrays. cuBLAS reads matrices that are contiguous in C or Fortran order, and batches only
    in C order. For batches that broadcast it needs three arrays of pointers."""
    while_fusing("a matrix product")
    if max(a.ndim, b.ndim) <= 2:
        launch(1 + (not a.flags.forc) + (not b.flags.forc))
    else:
        launch(1 + (not a.flags.c_contiguous) + (not b.flags.c_contiguous) + 3 * (a.shape[:-2] != b.shape[:-2]))


# ---------------------------------------------------------------- cupy.fuse

@contextlib.contextmanager
def fusing():
    """A block in which a function is fused, counted as one launch. Yields the list of arrays that are written to."""
    global _fusing
    _fusing = []
    try:
        yield _fusing
    finally:
        _fusing = None
    launch()


def written(x):
    """Note that an array is written to, which a fused kernel does once for each entry of the broadcast shape."""
    if _fusing is not None:
        _fusing.append(x)


def while_fusing(name):
    """Raise TypeError within fusing(), because cupy.fuse cannot put `name` into an elementwise kernel."""
    if _fusing is not None:
        raise TypeError(f"cupy.fuse cannot trace {name}: a fused function has operators, ufuncs, out=, x[...] = y, "
                        "xp.where, xp.clip and astype")


class FusedNumber:
    """A number given to a fused function. It combines only with arrays: CuPy would turn an expression of numbers alone
    into a float64 variable, and it cannot branch on a number."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __bool__(self, _=None):
        raise TypeError("cupy.fuse cannot branch on a number: give None instead, on which a function may branch")

    __eq__ = __bool__
