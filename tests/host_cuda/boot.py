"""Put CuPy on the emulated GPU where `import cupy` finds it."""

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import sys
from unittest import mock

from . import kernels
from .build import HERE, Unavailable, build

__all__ = ["Unavailable", "load"]


def load():
    """Return cupy on the emulated GPU, for this process. Raises Unavailable if this machine cannot provide it."""
    if "cupy" in sys.modules:
        raise RuntimeError("host_cuda: cupy has been imported already; load() must come first")
    paths = build()
    os.environ.update(CUPY_CACHE_DIR=str(paths.kernels / "compiled"), CUPY_ACCELERATORS="", CUDA_PATH="")
    library = _open(paths.device / "libhostcuda.so")
    for path in [*paths.device.glob("lib*.so.*"), *sorted(paths.site.glob("nvidia/cu13/lib/libnvrtc*.so.*"), reverse=True)]:
        _open(path)
    sys.path.insert(0, str(paths.site))
    sys.meta_path.insert(0, _Replaced({"cupy_backends.cuda.api.runtime": next(paths.runtime.glob("runtime.*.so")),
                                       "cupy.cuda.thrust": HERE / "thrust.py"}))
    real = ctypes.CDLL
    with mock.patch.object(ctypes, "CDLL", lambda name, *args, **options:
                           library if name == "libcuda.so.1" else real(name, *args, **options)):
        flags = sys.getdlopenflags()
        sys.setdlopenflags(os.RTLD_LAZY)                    # functions that are never called may be missing
        try:
            import cupy
            from cupy.random import _generator_api
            from cupy_backends.cuda.api import driver
            from cupy_backends.cuda.libs import cublas  # noqa: F401

            driver.ctxGetCurrent()                          # opens libcuda.so.1
        finally:
            sys.setdlopenflags(flags)
    kernels.install(paths)
    for name, method in list(vars(_generator_api.Generator).items()):
        if not name.startswith("_") and callable(method):
            setattr(_generator_api.Generator, name, _refusing(method))
    cupy.cuda.set_allocator(None)                           # no pool: each array has its own memory, see runtime.cpp
    from minicl.kinds import TRUSTED
    TRUSTED.add("host_cuda")                                # as CuPy's own code, its compiler here is not a step's
    return cupy


def _refusing(method):
    """A method of cupy.random.Generator that checks its arguments as CuPy does, and then raises. Its cuRAND kernel is
    machine code in CuPy's wheel, which would write nothing and report no error."""
    @functools.wraps(method)
    def draw(*args, **options):
        method(*args, **options)
        raise NotImplementedError(f"Generator.{method.__name__}: the emulated GPU does not run CuPy's kernels that use cuRAND; "
                                  "draw with numpy.random.default_rng, then xp.asarray")
    return draw


def _open(path):
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL | os.RTLD_LAZY)


class _Replaced(importlib.machinery.PathFinder):
    """Finds a few modules outside of their packages."""

    def __init__(self, paths):
        self.paths = paths

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.paths[name]) if name in self.paths else None
