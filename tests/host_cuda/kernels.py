"""From a kernel's CUDA source to machine code for the CPU, in place of CuPy's call of NVRTC, which must accept it first."""

import re
import subprocess
import tempfile
from pathlib import Path

from .build import kernel_command

ONE_THREAD, EACH_THREAD, FIBERS = range(3)        # how driver.cpp runs a kernel; device.h has the same

KERNEL = r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\("


def translate(source, names=None):
    """C++ of a kernel's CUDA source: kernel.h gives its keywords a meaning, and each kernel a function to call it by.

    names: template instances to call by number, else all kernels, which are extern "C", are called by name.
    """
    if "partition_kernel" in source:                     # it relies on a warp's threads to keep step, which fibers do not
        source = re.sub(r"((?:bitonic_sort_step|merge)< \w+ >\([^;{]*;)", r"__syncwarp(); \1 __syncwarp();", source)
    if re.search("__sync|__shfl|__any_|__all_", source):
        mode = FIBERS
    else:
        mode = ONE_THREAD if "CUPY_FOR" in source else EACH_THREAD       # a loop over all entries, in strides of the grid
    text = re.sub(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;",
                  r"static \1 \2[65536];", source)
    calls = [f"HOST_KERNEL(number_{k}, ({name}))" for k, name in enumerate(names or ())] or \
        [f"HOST_KERNEL({name}, {name})" for name in re.findall(KERNEL, source)]
    return "\n".join(['#include "kernel.h"', text, f'extern "C" int host_mode = {mode};', *calls, ""])


def compile_for_host(source, names, options, paths):
    """The bytes of a shared library, and {template instance: name} for CuPy."""
    given = [option for option in options if re.match("-I(?!.*_cccl)|-D(?!.*CUDA)", option)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cpp")
        path.write_text(translate(source, names))
        command = [*kernel_command(paths, paths.kernels), *given, "-shared", "-Wl,-Bsymbolic", path, "-o", Path(folder, "kernel.so")]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ could not compile a kernel for the host:\n{done.stderr[:3000]}\n{source[-3000:]}")
        library = Path(folder, "kernel.so").read_bytes()
    return library, {name: f"number_{k}" for k, name in enumerate(names)} if names else None


def install(paths):
    """Let CuPy compile by NVRTC and then for the host. Its own cache keeps what was compiled."""
    from cupy.cuda import compiler

    by_nvrtc = compiler._NVRTCProgram.compile

    def compile(self, options=(), log_stream=None):
        result = by_nvrtc(self, options, log_stream)
        if "__global__" not in self.src or "_cupy_preprocess_dummy_kernel_" in self.src:       # only NVRTC's version
            return result
        return compile_for_host(self.src, self.name_expressions, options, paths)

    compiler._NVRTCProgram.compile = compile
