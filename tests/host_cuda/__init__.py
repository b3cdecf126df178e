"""CuPy itself on a machine without a GPU: its own wheel, with a CUDA driver that runs kernels on the CPU.

    boot.load()        `import cupy` finds CuPy on the emulated GPU from then on; raises Unavailable with a reason
    device             the operations of the emulated GPU: launches, products, copies, synchronisations, grids

CuPy's Python and Cython code, its kernels, its dtype rules and its warnings are the real ones. NVIDIA's own compiler
(NVRTC) must accept each kernel for sm_90 before g++ compiles it for the CPU. The layers below are replaced:

    runtime.cpp        the CUDA runtime: memory, copies, streams, events, graphs
    driver.cpp         the driver: modules, and launches, thread by thread (as fibers where a kernel synchronises)
    cublas.cpp         the products that CuPy computes by cuBLAS
    thrust.py          sorting, by NumPy
    kernel.h, kernels.py    the translation of a kernel's source to C++
    complex.cuh, cub.cuh    what kernels include, in place of headers that g++ does not take
    build.py           fetches CuPy and NVRTC with pip and compiles the above, once, into a cache

Each array that CuPy allocates ends at a protected page and starts as NaN (0xFF bytes). A kernel that reads or writes
out of bounds, or in a freed array, raises an error. One that reads uninitialised memory gives NaN. A real GPU reports
none of this.

Not covered: the time that a GPU takes, asynchrony and races between threads, the order of atomic additions, cuBLAS's
rounding, TF32, cuSOLVER, and cuRAND, whose generators raise an error. CUB, which CuPy uses for some sums on a GPU by
default, is off here, as NVRTC takes seconds for each of its kernels. A test turns on those that CuPy compiles itself:
cupy._core.set_reduction_accelerators(["cub"]). cupy.cuda.cub is machine code for GPUs in CuPy's wheel, which cannot run here.
"""
