"""What passes between host and device: launches, waits, and what cupy.fuse makes one launch of.

CuPy hands kernels to the device without waiting. A training step is slow where the host waits (synchronisations), or
where it launches so many small kernels that the device waits for the host; both are counted here.
"""

import contextlib

import numpy as np

_waits = _launched = 0
_fusing = None                                             # within fusing(): the arrays written to so far


def synchronisations():
    """How often the host has waited for the device since the process started."""
    return _waits


def synchronise(*_):
    """Count one wait; also stands where CuPy has a method whose only work is to wait."""
    global _waits
    _waits += 1


def launches():
    """How many kernels, library calls and copies the host has handed to the device since the process started.

    A view costs none; a ufunc, reduction, product, assignment or fresh copy one; a fused function one; a product one
    more for each operand that cuBLAS cannot read where it lies. CuPy may need more (a scan, a sort): a lower bound.
    """
    return _launched


def launch(count=1):
    """Count launches. Within fusing() they are part of the one."""
    global _launched
    _launched += count if _fusing is None else 0


def launch_for(result, inputs):
    """Count one launch for each device array of `result` that is no view of one of the inputs."""
    inputs = [x._array for x in inputs if hasattr(x, "_array")]
    for x in result if isinstance(result, (list, tuple)) else (result,):
        if hasattr(x, "_array") and not any(np.may_share_memory(x._array, y) for y in inputs):
            launch()


def launch_product(a, b):
    """Count a @ b of NumPy arrays: cuBLAS reads what is contiguous in C's or Fortran's order, a batch only in C's;
    of batches that broadcast it is given pointers, three arrays of them."""
    while_fusing("a matrix product")
    if max(a.ndim, b.ndim) <= 2:
        launch(1 + (not a.flags.forc) + (not b.flags.forc))
    else:
        launch(1 + (not a.flags.c_contiguous) + (not b.flags.c_contiguous) + 3 * (a.shape[:-2] != b.shape[:-2]))


# ---------------------------------------------------------------- cupy.fuse

@contextlib.contextmanager
def fusing():
    """Within this block a function is fused: one launch. Gives the list of the arrays that the function writes to."""
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
    """Raise TypeError within fusing(): `name` is nothing that cupy.fuse can put into an elementwise kernel."""
    if _fusing is not None:
        raise TypeError(f"cupy.fuse cannot trace {name}: a fused function has operators, ufuncs, out=, x[...] = y, "
                        "xp.where, xp.clip and astype")


class FusedNumber:
    """A number given to a fused function. Arrays combine with it; alone it may be neither computed with nor asked:
    CuPy would make a float64 variable of what comes of that, and takes no branch."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __bool__(self, _=None):
        raise TypeError("cupy.fuse cannot branch on a number: give None instead, on which a function may branch")

    __eq__ = __bool__
