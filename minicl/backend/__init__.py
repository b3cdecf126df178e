"""NumPy on the CPU, CuPy on the GPU: the only package that distinguishes them.

All other code takes `xp = array_module(x)` from the data and then writes `xp.exp(x)`. Where the two libraries differ, a
function here has one name for both:

    device    get_backend("cupy"), array_module, is_gpu, on_host; to_device and to_host, the only transfers
    kernels   fused: a formula as one kernel; sums (sum_over, column_sums, deviation_sums, ...); scatter_add; tile_size
    sources   row_dots, fill_diagonals, Additions, bilinear: kernels in CUDA source, and the same on NumPy
    products  operand, product: products of convolutions and linear layers, with bf16 of rounded operands
    taps      gather_taps, add_taps: the copies of a convolution on a GPU
    parallel  threads() and loops divided among them: parallel_for, parallel_map, parallel_sum, sum_of_squares
    steps     each_step: what a step computes on the host each time
    capturable    makes CuPy's products and concatenations such that a CUDA graph can hold them
    memory    peak_memory_mib, available_memory_only, and the reuse of freed memory

Importing minicl never imports cupy.
"""

from .capturable import capturable
from .device import (PRECISIONS, BackendError, array_module, get_backend, is_array, is_gpu, memory_bounds,
                     on_host, require_finite, to_device, to_host)
from .kernels import (column_sums, deviation_sums, follow, fused, mean_over, pairwise_dots, product_sums,
                      products_of_columns, row_max, row_means, row_sums, scatter_add, sum_over, tile_size, weights)
from .memory import available_memory_only, peak_memory_mib
from .parallel import (available_cores, parallel_for, parallel_map, parallel_sum, share_cores, square, sum_of_squares,
                       threads, workers)
from .products import operand, operand_dtype, product
from .sources import Additions, bilinear, fill_diagonals, row_dots
from .steps import (ELSEWHERE, HostArgument, KindError, Number, Places, Step, each_step, for_arrays, is_captured,
                    is_in_step, is_supplied, kind_of, read_on_host, refuse_capture, undo_if_not_captured)
from .taps import add_taps, gather_taps

__all__ = ["ELSEWHERE", "PRECISIONS", "Additions", "BackendError", "HostArgument", "KindError", "Number", "Places", "Step",
           "add_taps", "array_module", "available_cores", "available_memory_only", "bilinear", "capturable", "column_sums",
           "deviation_sums", "each_step", "fill_diagonals", "follow", "for_arrays", "fused", "gather_taps", "get_backend",
           "is_array", "is_captured", "is_gpu", "is_in_step", "is_supplied", "kind_of", "mean_over", "memory_bounds",
           "on_host", "operand", "operand_dtype", "pairwise_dots", "parallel_for", "parallel_map", "parallel_sum",
           "peak_memory_mib", "product", "product_sums", "products_of_columns", "read_on_host", "refuse_capture",
           "require_finite", "row_dots", "row_max", "row_means", "row_sums", "scatter_add", "share_cores", "square",
           "sum_of_squares", "sum_over", "threads", "tile_size", "to_device", "to_host", "undo_if_not_captured", "weights",
           "workers"]
