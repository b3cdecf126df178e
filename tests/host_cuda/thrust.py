"""Sorting instead of cupy.cuda.thrust: device memory is host memory, so NumPy sorts it.

Like Thrust, it waits for the stream. So a CUDA graph cannot contain a sort, and a capture that sorts fails.
"""

import ctypes

import numpy as np

available = True


def get_build_version():
    return 200800


def _array(pointer, shape, dtype):
    import cupy
    cupy.cuda.get_current_stream().synchronize()
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(pointer), dtype).reshape(shape)


def sort(dtype, data, keys, shape):
    _array(data, tuple(shape), dtype).sort(axis=-1)


def argsort(dtype, index, data, keys, shape):
    _array(index, tuple(shape), np.intp)[...] = np.argsort(_array(data, tuple(shape), dtype), axis=-1, kind="stable")


def lexsort(dtype, index, keys, k, n):
    _array(index, (n,), np.intp)[...] = np.lexsort(_array(keys, (k, n), dtype))
