"""What CuPy does not do while a stream is captured, though CUDA could: multiply matrices, and join many arrays.

cuBLAS can be captured in a CUDA graph, but CuPy 14 refuses all of its calls meanwhile, since it has not tested them. Steps
make three: a product of two matrices, of many pairs, and of many pairs that share one of the two. They are called with the
arguments that CuPy would give, so that they compute the same, bit for bit; and so is gemmEx(), for bf16 (products.py).
CuPy joins more than eight small arrays by way of a list of addresses from the host, which is not there for a capture; eight
it copies one by one.

Sources: cupy/_core/_routines_linalg.pyx, _routines_manipulation.pyx; cuBLAS's documentation, section "CUDA Graphs Support".
"""

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..typing import Array
from .device import BackendError
from .products import by_columns
from .steps import HostArgument

TYPES = {"f": (ctypes.c_float, 0, 68), "d": (ctypes.c_double, 1, 70)}      # C's, cudaDataType's, cublasComputeType_t's
MOST_JOINED = 8
FAST_TF32 = 77                                                            # the cublasComputeType_t of --precision tf32


@contextlib.contextmanager
def capturable(xp: Any) -> Iterator[None]:
    """Within this block CuPy's `@`, matmul, concatenate, stack and cublas.gemmEx can be captured. Raises BackendError where
    cuBLAS cannot be called."""
    cublas = _Cublas(xp)
    ndarray, matmul, join, stack, gemm_ex = xp.ndarray, xp.matmul, xp.concatenate, xp.stack, xp.cuda.cublas.gemmEx

    def product(x, y, out=None):
        if not isinstance(y, ndarray):
            return NotImplemented
        if min(x.ndim, y.ndim) < 2 or max(x.ndim, y.ndim) == 2 and len(x) == y.shape[1] == 1 or not x.size * y.size \
                or x.dtype != y.dtype or x.dtype.char not in TYPES or x.shape[-1] != y.shape[-2]:
            return matmul(x, y, out=out)                                 # no call of cuBLAS, or an error
        target = out if out is not None and out.flags.c_contiguous and out.dtype == x.dtype else None
        y = (cublas.product if max(x.ndim, y.ndim) == 2 else cublas.products)(x, y, target)
        if out is not None and target is None:
            out[...] = y
        return y if out is None else out

    def concatenate(arrays, axis=0, out=None):
        arrays = list(arrays)
        while len(arrays) > MOST_JOINED:
            arrays = [join(arrays[k:k + MOST_JOINED], axis) for k in range(0, len(arrays), MOST_JOINED)]
        return join(arrays, axis, out=out)

    def moving(function):
        return lambda x, *options, **named: function(x.moved() if type(x) is HostArgument else x, *options, **named)

    ndarray.__matmul__ = xp.matmul = product
    xp.cuda.cublas.gemmEx = cublas.gemm_ex
    xp.concatenate = concatenate
    xp.stack = lambda arrays, axis=0: concatenate([xp.expand_dims(x, axis) for x in arrays], axis)
    movers = {name: getattr(xp, name) for name in ("array", "asarray", "asanyarray", "ascontiguousarray")}
    vars(xp).update({name: moving(function) for name, function in movers.items()})
    try:
        yield
    finally:
        del ndarray.__matmul__
        vars(xp).update(movers)
        xp.matmul, xp.concatenate, xp.stack, xp.cuda.cublas.gemmEx = matmul, join, stack, gemm_ex


class _Cublas:
    """The library that CuPy has loaded. Matrices lie by columns there: x y is computed as y^T x^T."""

    def __init__(self, xp):
        self.xp = xp
        try:
            library = ctypes.CDLL(xp.cuda.cublas.__file__)                   # the functions of what it links to are found
            self.set_stream, self.gemm, self.strided, *self.batched = (
                getattr(library, f"cublas{name}") for name in ("SetStream_v2", "GemmEx", "GemmStridedBatchedEx",
                                                               "SgemmBatched", "DgemmBatched"))
        except (OSError, AttributeError) as error:
            raise BackendError(f"cuBLAS cannot be called from here: {error}") from error

    def _call(self, function, *arguments):
        handle = ctypes.c_void_p(self.xp.cuda.device.get_cublas_handle())
        stream = ctypes.c_void_p(self.xp.cuda.get_current_stream().ptr)
        if status := self.set_stream(handle, stream) or function(handle, *arguments):
            raise BackendError(f"cuBLAS: {function.__name__} returned the status {status}")

    def gemm_ex(self, handle, turn_x, turn_y, n, m, k, alpha, x, kind_x, ldx, y, kind_y, ldy, beta, out, kind, ld, compute,
                algorithm):
        """As cupy.cuda.cublas.gemmEx, whose pointers are integers."""
        alpha, x, y, beta, out = map(ctypes.c_void_p, (alpha, x, y, beta, out))
        self._call(self.gemm, turn_x, turn_y, n, m, k, alpha, x, kind_x, ldx, y, kind_y, ldy, beta, out, kind, ld, compute,
                   algorithm)

    def product(self, x, y, out):
        """x (n, k) y (k, m), in one call."""
        (n, k), m = x.shape, y.shape[1]
        number, kind, compute = TYPES[x.dtype.char]
        if kind == 0 and int(os.environ.get("CUPY_TF32", "0")) > 0:
            compute = FAST_TF32
        x, x_turned, ldx = by_columns(x.T, 0)
        y, y_turned, ldy = by_columns(y, 1)
        out = self.xp.empty((n, m), x.dtype) if out is None else out
        algorithm = 99 if int(self.xp.cuda.Device().compute_capability) >= 80 else -1           # CUBLAS_GEMM_DEFAULT
        self._call(self.gemm, y_turned, x_turned, m, n, k, ctypes.byref(number(1)), _at(y), kind, ldy, _at(x), kind, ldx,
                   ctypes.byref(number(0)), _at(out), kind, m, compute, algorithm)
        return out

    def products(self, x, y, out):
        """x (..., n, k) y (..., k, m) for each of the leading indices, which broadcast."""
        xp = self.xp
        many = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shares = x.shape[:-2] != y.shape[:-2]
        (n, k), m = x.shape[-2:], y.shape[-1]
        number, kind, compute = TYPES[x.dtype.char]
        x, y = (xp.broadcast_to(xp.ascontiguousarray(z), (*many, *z.shape[-2:])) for z in (x, y))
        out = xp.empty((*many, n, m), x.dtype) if out is None else out
        one, zero = ctypes.byref(number(1)), ctypes.byref(number(0))
        count = math.prod(many)
        if shares:
            ys, xs, outs = map(xp._core._routines_linalg._mat_ptrs, (y, x, out))         # arrays of addresses
            self._call(self.batched[kind], 0, 0, m, n, k, one, _at(ys), m, _at(xs), k, zero, _at(outs), m, count)
        else:
            self._call(self.strided, 0, 0, m, n, k, one, _at(y), kind, m, ctypes.c_longlong(k * m), _at(x), kind, k,
                       ctypes.c_longlong(n * k), zero, _at(out), kind, m, ctypes.c_longlong(n * m), count, compute, -1)
        return out


def _at(x: Array):
    return ctypes.c_void_p(x.data.ptr)
