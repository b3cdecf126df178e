"""cupy.fuse of the stand-in: an elementwise function of arrays and numbers becomes one launch.

CuPy calls the function once with variables for its arguments, records each ufunc, and compiles them to one kernel,
with a thread for each entry of the broadcast shape. Here the function runs on the arrays themselves. What CuPy cannot
record raises TypeError. What gives another result in CuPy raises AssertionError: an array smaller than the broadcast
shape that is written to (by many threads at once) or returned (CuPy returns the broadcast shape).
"""

import numpy as np

from .device_array import ndarray
from .stream import FusedNumber, fusing


def fuse(*args, **kwargs):
    """The decorator @fuse or @fuse(kernel_name=...)."""
    if len(args) == 1 and not kwargs and callable(args[0]):
        return Fused(args[0])
    return lambda function: Fused(function, *args, **kwargs)


class Fused:
    """A function decorated with cupy.fuse."""

    def __init__(self, function, kernel_name=None):
        self.function = function
        self.name = kernel_name or function.__name__

    def __call__(self, *args):
        arrays = [x for x in args if type(x) is ndarray]
        if not arrays:
            return self.function(*args)
        if any(type(x) is int for x in args) and all(x.dtype.kind == "f" for x in arrays):
            raise AssertionError(f"{self.name}: an integer meets arrays of floats; pass float(n), which every version of "
                                 "CuPy takes as a number of the arrays' dtype")
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        with fusing() as written:
            result = self.function(*map(_traced, args))
        results = [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]
        for x in results + [x for x in arrays if any(x is y for y in written)]:
            if x.shape != shape:
                raise AssertionError(f"{self.name}: an array {x.shape} is written to or returned, but the arguments "
                                     f"broadcast to {shape}: on a GPU all of that would be written or returned")
        return result


def _traced(x):
    """The value that the function gets for an argument."""
    if type(x) is ndarray or x is None:
        return x
    if type(x) in (bool, int, float):
        return FusedNumber(x)
    raise TypeError(f"Invalid argument type for a fused function: {type(x)}; expected device arrays, numbers or None")
