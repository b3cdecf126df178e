"""CuPy itself on a machine without a GPU: its own wheel, over a CUDA driver that runs kernels on the CPU.

    boot.load()        `import cupy` finds CuPy on the emulated GPU from then on; raises Unavailable with a reason
    device             what the emulated GPU has done: launches, products, copies, synchronisations, grids

CuPy's Python and Cython code, its kernels, its dtype rules and its warnings are the real ones. NVIDIA's own compiler
(NVRTC) must accept each kernel for sm_90 before g++ compiles it for the CPU. What lies below is replaced:

    runtime.cpp        the CUDA runtime: memory, copies, streams, events, graphs
    driver.cpp         the driver: modules, and launches, thread by thread (as fibers where a kernel synchronises)
    cublas.cpp         the products that CuPy asks of cuBLAS
    thrust.py          sorting, by NumPy
    kernel.h, kernels.py    what makes C++ of a kernel's source
    build.py           fetches CuPy and NVRTC with pip, compiles the above; once, into a cache

Each array that CuPy allocates ends at a page that may not be touched and begins as NaN (0xFF bytes). A kernel that
reads or writes out of bounds raises an error, one that reads what nobody has written gives NaN, and an array that was
freed is gone. A real GPU shows none of this.

Not covered: the time that a GPU takes, asynchrony and races between threads, the order of atomic additions, cuBLAS's
rounding, TF32, CUB, cuSOLVER, and cuRAND, whose generators raise an error. CUB, which CuPy uses for some sums on a GPU by
default, is off here: cupy.cuda.cub is compiled into the wheel as machine code for GPUs, and the headers that CuPy's other
kernels take from it contain PTX.
"""
