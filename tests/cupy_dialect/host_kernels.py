"""Check on the CPU what CuPy would run on a GPU: python host_kernels.py CALLS

CALLS is a pickle of [(module, name, arguments, results), ...]: calls of functions that minicl fuses, as the stand-in
saw them, with what came of them: arrays that were returned, and all array arguments as they were afterwards. CuPy's
own fuse reads each function, for which it needs no GPU; the body of the kernel that it writes is compiled by the
host's compiler and run on the same arguments. Prints a line for each result that differs, and a count. Needs CuPy and
g++.
"""

import ctypes
import functools
import importlib
import pathlib
import pickle
import subprocess
import sys
import tempfile

import cupy
import numpy as np


def kernel_of(function, arguments):
    """The ElementwiseKernel that cupy.fuse makes of function(xp, *arguments)."""
    nowhere = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(0, 8, None, device_id=0), 0)
    fused = cupy.fuse(kernel_name=function.__name__)(functools.partial(function, cupy))
    try:
        fused(*[cupy.ndarray(x.shape, x.dtype, memptr=nowhere) if isinstance(x, np.ndarray) else x
                for x in arguments])
    except cupy.cuda.runtime.CUDARuntimeError:             # it has been read; running it would need the GPU
        pass
    if fused.new_fusion is not None:
        raise TypeError(f"{function.__name__}: no elementwise kernel can be made of it")
    (kernel, options), = fused._memo.values()
    return kernel


def source_of(kernel, number):
    """A C++ function k<number>(n, pointers) that does for each i < n what a thread of the kernel does."""
    parameters = [*kernel.in_params, *kernel.out_params]
    preamble = "\n".join(line for line in kernel.preamble.splitlines() if not line.startswith("#"))
    entry = "\n".join(f"{p.ctype}& {p.name} = p_{p.name}[i];" for p in parameters)
    arguments = ", ".join(f"{p.ctype}* p_{p.name}" for p in parameters)
    return f"""namespace n{number} {{ {preamble} }}
extern "C" void k{number}(long long n, {arguments}) {{
  using namespace n{number};
  for (long long i = 0; i < n; ++i) {{
    {entry}
    {kernel.operation};
  }}
}}
"""


def compiled(sources):
    """The functions of a shared library made of the sources."""
    with tempfile.TemporaryDirectory() as folder:
        code, library = pathlib.Path(folder) / "kernels.cpp", pathlib.Path(folder) / "kernels.so"
        code.write_text("#include <cmath>\n#include <algorithm>\n#define __device__\nusing namespace std;\n"
                        "#define CUDART_INF INFINITY\n#define CUDART_NAN NAN\n"
                        + "\n".join(sources))
        subprocess.run(["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", code, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
    return [getattr(loaded, f"k{number}") for number in range(len(sources))]


def run(function, kernel, arguments):
    """What the kernel returns, and all array arguments as they are afterwards."""
    shape = np.broadcast_shapes(*(x.shape for x in arguments if isinstance(x, np.ndarray)))
    given = [x for x in arguments if x is not None]
    inputs = [np.array(np.broadcast_to(np.asarray(x, p.dtype), shape), order="C")
              for x, p in zip(given, kernel.in_params)]
    outputs = [np.zeros(shape, p.dtype) for p in kernel.out_params]
    function(ctypes.c_longlong(int(np.prod(shape))), *(ctypes.c_void_p(x.ctypes.data) for x in inputs + outputs))
    return outputs + [after for x, after in zip(given, inputs) if isinstance(x, np.ndarray)]


def main(calls):
    functions = [getattr(importlib.import_module(module), name).__wrapped__ for module, name, _, _ in calls]
    kernels = [kernel_of(function, arguments) for function, (_, _, arguments, _) in zip(functions, calls)]
    wrong = 0
    for number, function in enumerate(compiled([source_of(kernel, k) for k, kernel in enumerate(kernels)])):
        module, name, arguments, expected = calls[number]
        found = run(function, kernels[number], arguments)
        for x, y in zip(found, expected, strict=True):
            y = np.broadcast_to(y, x.shape)
            if x.dtype != y.dtype or not np.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True):
                wrong += 1
                print(f"{module}.{name}: {x.dtype} {x.shape} differs from {y.dtype}, by up to {np.abs(x - y).max()}")
    print(f"{len(calls)} kernels, {wrong} differ")
    return wrong


if __name__ == "__main__":
    sys.exit(main(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())) != 0)
