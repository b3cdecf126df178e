"""Array libraries and transfers between them: the only file that imports CuPy."""

import math
import os
import sys
from typing import Any

import numpy as np

from ..checks import require_unmasked
from ..typing import Array, ArrayModule, HostArray
from .memory import lift_memory_limit, note_memory_in_use


OLDEST_CUPY = 14          # 13 reads numbers in fused functions by NumPy 1's rules
PRECISIONS = ("float32", "tf32", "bf16")


class BackendError(RuntimeError):
    """The requested array backend cannot be used; the message gives the reason and the fix."""


def get_backend(name: str = "numpy", precision: str | None = None) -> ArrayModule:
    """The array module called `name`: "numpy", or "cupy" once it has computed something on a GPU.

    precision  of products of float32 matrices on a GPU, one for the whole process; their sums, and all else, are float32:
        "float32"  the default
        "tf32"     entries are rounded to 10 bits of mantissa, with relative errors of 5e-4, for the tensor cores of Ampere
                   and later. It reaches all products of two matrices: convolutions, linear layers, losses. CuPy leaves
                   batches of them, as in attention and in crops, to float32
        "bf16"     entries are rounded to 7 bits of mantissa, with relative errors of 2e-3, in half the memory. It reaches
                   convolutions and linear layers, forward and backward, and nothing else: not losses or recurrent layers
        None       as before; at first "float32", or "tf32" if the environment has CUPY_TF32=1

    Raises BackendError, with a different message each, when the name is unknown, when CuPy is not installed, when it is
    installed but broken or older than 14, when it works but no GPU can be used, and when it cannot be had in that
    precision.
    """
    if precision not in (None, *PRECISIONS):
        raise BackendError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if name == "numpy":
        if precision not in (None, "float32"):
            raise BackendError(f"precision {precision!r}: NumPy does not have this format of NVIDIA's tensor cores; "
                               "leave it out, or use --backend cupy")
        return np
    if name != "cupy":
        raise BackendError(f"backend: expected 'numpy' or 'cupy', got {name!r}")
    lift_memory_limit()
    try:
        import cupy
    except ImportError as error:
        if error.name != "cupy":                        # something below it is missing, or its core does not load
            raise BackendError(f"backend 'cupy': CuPy is installed but does not import: {error}") from error
        raise BackendError("backend 'cupy': CuPy is not installed; for CUDA 12 run\n    pip install 'minicl[cupy]'\n"
                           "(for CUDA 13: 'minicl[cuda13]'), or use --backend numpy") from error
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        raise BackendError(f"backend 'cupy': expected CuPy {OLDEST_CUPY} or newer, got {cupy.__version__}, which makes "
                           "float64 of float32 in fused functions; for CUDA 12 run\n    pip install 'minicl[cupy]'\n"
                           "(for CUDA 13: 'minicl[cuda13]')")
    if not cupy.cuda.is_available():
        try:
            reason = f"{cupy.cuda.runtime.getDeviceCount()} CUDA devices found"
        except Exception as error:                      # CuPy raises its own CUDARuntimeError here
            reason = str(error)
        raise BackendError(f"backend 'cupy': CuPy {cupy.__version__} is installed but no GPU is usable ({reason}); "
                           "check the driver with nvidia-smi, or use --backend numpy")
    _settle_precision(cupy, precision)
    try:
        note_memory_in_use(cupy)
        float((cupy.ones((2, 2), dtype="float32") @ cupy.ones((2, 2), dtype="float32") + 1).sum())
    except Exception as error:
        raise BackendError("backend 'cupy': a GPU was found but CuPy cannot run on it, most often because the CUDA "
                           f"toolkit's libraries are missing (pip install 'minicl[cupy]'): {error}") from error
    return cupy


_precision: str | None = None                                  # of this process's products on the GPU, once asked for


def _settle_precision(cupy, precision):
    """Note the precision, and set what CuPy reads before its first product (docs.cupy.dev, environment variables); or raise
    BackendError."""
    global _precision
    if precision is None:
        precision = _precision or ("tf32" if os.environ.get("CUPY_TF32", "0") not in ("", "0") else "float32")
    if precision == _precision:
        return
    if _precision is not None:
        raise BackendError(f"precision {precision!r}: this process already computes in {_precision}, which the first "
                           "product settles; use another process")
    if precision != "float32" and int(cupy.cuda.Device().compute_capability) < 80:
        raise BackendError(f"precision {precision!r}: this GPU does not have it (it came with compute capability 8.0, "
                           f"Ampere), it has {cupy.cuda.Device().compute_capability}; use --precision float32")
    os.environ["CUPY_TF32"] = str(int(precision == "tf32"))
    _precision = precision


def product_precision() -> str | None:
    """The precision of this process's products on the GPU; None before get_backend("cupy")."""
    return _precision


def is_array(x: Any) -> bool:
    """Whether x is an array of either backend."""
    return isinstance(x, np.ndarray) or ("cupy" in sys.modules and isinstance(x, sys.modules["cupy"].ndarray))


def memory_bounds(x: Array) -> tuple[int, int]:
    """The addresses from the first byte of x to behind the last; (start, start) if x has no entries."""
    start = x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data.ptr
    if not x.size:
        return start, start
    far = [(n - 1) * stride for n, stride in zip(x.shape, x.strides)]
    return start + sum(min(d, 0) for d in far), start + sum(max(d, 0) for d in far) + x.itemsize


_module_of: dict[type, ArrayModule] = {np.ndarray: np}


def array_module(x: Any) -> ArrayModule:
    """The module that x belongs to: numpy or cupy."""
    known = _module_of.get(type(x))                          # a step asks 100 times
    if known is not None:
        return known
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    if is_array(x):
        return _module_of.setdefault(type(x), sys.modules["cupy"])
    raise TypeError(f"expected a numpy or cupy array, got {type(x).__name__}")


def is_gpu(xp: ArrayModule) -> bool:
    """Whether xp runs on a GPU, where a few large calls are worth a copy of their operands."""
    return xp is not np


def on_host(x: Any) -> bool:
    """Whether x is a number or a NumPy array, whose values can be read at once. Reading an array on a GPU waits for it."""
    return isinstance(x, (np.ndarray, float, int, np.generic))


# ---------------------------------------------------------------- moving arrays

def to_host(x: Any) -> HostArray:
    """x as a NumPy array. On CuPy this waits for the device (a synchronisation)."""
    require_unmasked("to_host", x)
    return x if isinstance(x, np.ndarray) else np.asarray(x) if not is_array(x) else x.get()


def to_device(x: Any, xp: ArrayModule) -> Array:
    """The host or device array x as an array of module xp, without a copy if it is one already."""
    require_unmasked("to_device", x)
    return to_host(x) if xp is np else xp.asarray(x)


def require_finite(x: Array, what: str) -> None:
    """Raise FloatingPointError if the array x holds NaN or infinity. Only on NumPy: on a GPU this would make every step
    wait, so the training loop checks the losses that it logs instead."""
    if isinstance(x, (np.ndarray, np.generic)) and not (np.isfinite(x).all() if x.ndim else math.isfinite(x)):
        raise FloatingPointError(f"{what} is not finite (NaN or infinity): look for NaN in the input, a learning "
                                 "rate that diverged, or a temperature that fell to 0")
