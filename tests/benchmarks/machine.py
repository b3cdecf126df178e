"""The machine's best rates, from which every floor is computed, and the names printed above a table."""

import os
import platform
import time
from pathlib import Path

import numpy as np

from minicl.backend import operand, parallel_for, product, threads


def rates(xp, wait, tiny=False):
    """Rates per second: "flops" of a large float32 product, "bytes" read and written by a copy, "exps" in float32.

    The product has the process's precision (see get_backend()) and uses BLAS's threads; copy and exp use minicl's. Each
    rate is the best of three, since a floor is a limit that can be reached. tiny: at sizes that show only that it works.
    """
    n, size = (32, 2**10) if tiny else (2048, 2**24) if xp is np else (8192, 2**28)
    a = operand(xp.ones((n, n), dtype="float32"))
    x = xp.zeros(size, dtype="float32")
    y = xp.zeros(size, dtype="float32")
    b = xp.empty((n, n), dtype="float32")
    part = 2**14 if xp is np else size           # exp's operands stay in cache

    def copy(lo, hi):
        y[lo:hi] = x[lo:hi]

    def exp(lo, hi):
        for _ in range(lo, hi, part):
            xp.exp(x[lo:lo + part], out=y[lo:lo + part])

    found = {"flops": 2 * n**3 / _fastest(lambda: product(a, a, out=b), wait)}
    with threads():
        found["bytes"] = 8 * size / _fastest(lambda: parallel_for(xp, size, copy), wait)
        found["exps"] = size / _fastest(lambda: parallel_for(xp, size, exp), wait)
    return found


def _fastest(work, wait, times=3):
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def describe(backend, threads, precision):
    """[(name, value), ...]: processor, device and libraries, as far as they are known."""
    from importlib.metadata import PackageNotFoundError, version

    from threadpoolctl import threadpool_info

    def installed(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    blas = ", ".join(dict.fromkeys(f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info()
                                   if lib["user_api"] == "blas"))
    lines = [("processor", _processor()), ("threads", f"{threads} of {os.cpu_count()} cores"),
             ("system", f"{platform.system()}, Python {platform.python_version()}"),
             ("NumPy", f"{np.__version__} with {blas}"), ("PyTorch", installed("torch"))]
    if backend == "cupy":
        import cupy
        runtime = cupy.cuda.runtime
        lines += [("device", runtime.getDeviceProperties(0)["name"].decode()), ("CuPy", cupy.__version__),
                  ("CUDA", str(runtime.runtimeGetVersion())), ("precision", precision)]
    return lines


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
