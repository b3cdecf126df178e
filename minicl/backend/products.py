"""Products of convolutions and linear layers. On a GPU `--precision bf16` rounds their operands to bfloat16.

    operand(x)             x as product() takes it: x itself, or its entries rounded
    operand_dtype(x)       the dtype of operand(x)
    product(x, y)          x @ y of two operands, with float32 sums

A bfloat16 is the upper half of a float32: its sign, its 8 bits of exponent, and 7 of its 23 bits of mantissa. So it has the
same range, with relative rounding errors of up to 2^-9. CuPy has no such dtype by itself, and its setting COMPUTE_TYPE_BF16
has no effect on float32 products; the 16 bits are in a uint16 here. cuBLAS's tensor cores take them as they are, and a
convolution writes and reads its columns in half the bytes.
"""

import ctypes
import functools

import numpy as np

from ..typing import Array
from .device import array_module, product_precision

# To the nearest, ties to even: 0x7fff, and 1 if the last bit that stays is odd, carry into the upper half for more than half
# a step. NaN stays NaN, which a carry could make an infinity.
BF16 = """
__device__ inline unsigned short bf16(float x) {
    const unsigned int bits = __float_as_uint(x);
    return (x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16;
}
"""
BITS_OF_BF16 = np.dtype("uint16")

# cuBLAS's numbers for what gemmEx() takes: types of matrices, of sums, and the choice of the algorithm, which is its own
CUDA_R_16BF = 14
CUDA_R_32F = 0
COMPUTE_32F = 68
DEFAULT = -1
ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)


def operand_dtype(x: Array) -> np.dtype:
    """The dtype of operand(x)."""
    rounds = x.dtype.char == "f" and not isinstance(x, np.ndarray) and product_precision() == "bf16"
    return BITS_OF_BF16 if rounds else x.dtype


def operand(x: Array) -> Array:
    """x (...), or with bf16 a float32 array on the GPU rounded to bfloat16: its bits, (...) uint16, contiguous."""
    if operand_dtype(x) == x.dtype:
        return x
    xp = array_module(x)
    bits = xp.empty(x.shape, dtype=BITS_OF_BF16)
    _round(xp)(x, bits)
    return bits


@functools.lru_cache
def _round(xp):
    return xp.ElementwiseKernel("float32 x", "uint16 y", "y = bf16(x)", "round_to_bf16", preamble=BF16)


def product(x: Array, y: Array, out: Array | None = None) -> Array:
    """x @ y of two operands: x (n, k), y (k, m) -> (n, m), written to the contiguous `out` if given."""
    xp = array_module(x)
    if x.dtype != BITS_OF_BF16:
        return xp.matmul(x, y, out=out)
    (n, k), m = x.shape, y.shape[1]
    if out is None:
        out = xp.empty((n, m), dtype="float32")
    if not n * k * m:
        out.fill(0)
        return out
    (x, turn_x, leading_x), (y, turn_y, leading_y) = by_columns(x.T, 0), by_columns(y, 1)
    xp.cuda.cublas.gemmEx(xp.cuda.device.get_cublas_handle(), turn_y, turn_x, m, n, k,                        # y^T x^T
                          ctypes.addressof(ONE), y.data.ptr, CUDA_R_16BF, leading_y, x.data.ptr, CUDA_R_16BF, leading_x,
                          ctypes.addressof(ZERO), out.data.ptr, CUDA_R_32F, m, COMPUTE_32F, DEFAULT)
    return out


def by_columns(x: Array, turned: int) -> tuple[Array, int, int]:
    """x (rows, columns) for cuBLAS, whose matrices lie by columns, as CuPy passes it: (x, or a copy; turned if x lies by
    columns, else 1 - turned; the distance of what lies together)."""
    if x.flags.f_contiguous:
        return x, turned, max(x.strides[1] // x.itemsize, x.shape[0])
    if not x.flags.c_contiguous:
        x = x.copy()
    return x, 1 - turned, x.strides[0] // x.itemsize
