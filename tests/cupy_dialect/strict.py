"""A stand-in for CuPy that runs on NumPy and refuses everything that CuPy refuses.

    cupy = strict.install()             sys.modules["cupy"], as if it had been imported
    cupy = strict.cupy_or_stand_in()    the same, except that on a GPU it is CuPy itself
    strict.synchronisations()           how often the host has waited for the device so far
    strict.launches()                   how many kernels, products and copies it has handed to the device

What CuPy refuses raises TypeError or AttributeError here too, with CuPy's message if it has one. What CuPy
computes silently and wrongly (ids out of bounds, duplicate ids in an assignment, overlapping copies)
raises AssertionError. Names and parameters come from cupy_listing.json.
"""

import sys
import time
import types

import numpy as np

from .device_array import call, device, host, in_bounds, ndarray, operand, read_key, unsupported, wrap
from .elementwise import ElementwiseKernel, ReductionKernel
from .fusion import fuse
from .listing import LISTING, listed, signature
from .stream import launch, launch_for, launch_product, launches, synchronisations, synchronise, while_fusing, written

__all__ = ["cupy_or_stand_in", "install", "launches", "stand_in", "synchronisations"]


# ---------------------------------------------------------------- functions of the module

class _Ufunc:
    """A cupy.ufunc of scalars and device arrays, with only the keywords out, dtype and casting."""

    def __init__(self, name):
        nin, _, scatter = LISTING["ufuncs"][name].split()
        self.__name__ = name
        self.nin = int(nin)
        self.numpy = getattr(np, name)
        self.atomic = None if scatter == "-" else LISTING["atomic dtypes"][scatter].split()

    def __call__(self, *args, **options):
        if not options.keys() <= {"out", "dtype", "casting"}:
            raise TypeError(f"Wrong arguments {options}")
        out = args[self.nin] if len(args) > self.nin else options.get("out")
        if out is not None:
            options["out"] = tuple(map(operand, out)) if isinstance(out, tuple) else operand(out)
        result = self.numpy(*map(operand, args[:self.nin]), **options)
        launch()
        for x in out if isinstance(out, tuple) else (out,):
            written(x)
        return device(result) if out is None else out

    def at(self, a, indices, b=None):
        if self.atomic is None:
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        while_fusing(f"{self.__name__}.at")
        launch()
        key, kinds = read_key(indices)
        if "i" in kinds and a.dtype.name not in self.atomic:
            raise TypeError(f"cupy.{self.__name__}.at only supports {', '.join(self.atomic)} as data type, "
                            f"not {a.dtype}")
        in_bounds(self.numpy.at, a._array, key, operand(b))

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.__name__}.reduce` is not supported yet")
        return (array.sum if self.__name__ == "add" else array.prod)(axis, dtype, out=out, keepdims=keepdims)


_ARRAY_FIRST = frozenset("a x m ar arr array ary condition prototype".split())
_AS_ARRAYS = ("allclose", "array_equal", "array_equiv", "count_nonzero")   # 0-d arrays where NumPy has bool, int


def _function(section, name, numpy_function):
    """A function that NumPy has under the same name."""
    accepts = signature(section, name)
    waits = name in LISTING["synchronises"]
    first, second = (listed(section, name).split(", ") + [""])[:2]
    arrays = 0 if first not in _ARRAY_FIRST else 2 if second == "b" and name not in ("allclose", "isclose") else 1

    def function(*args, **kwargs):
        if name not in ("where", "clip"):
            while_fusing(name)
        accepts(*args, **kwargs)
        for x in args[:arrays]:
            if type(x) is not ndarray:                     # CuPy calls x.sum() and the like
                raise unsupported(x)
        if first == "tup" and args and not all(type(x) is ndarray for x in args[0]):
            raise TypeError("Only cupy arrays can be concatenated")
        if waits or name == "where" and len(args) + len(kwargs) == 1:
            synchronise()
        result = in_bounds(call, numpy_function, args, kwargs)
        _count(name, result, args, kwargs)
        return wrap(result) if name in _AS_ARRAYS and type(result) is not ndarray else result

    function.__name__ = function.__qualname__ = name
    return function


def _count(name, result, args, kwargs):
    """Count the launches of the function called `name`."""
    if name in ("empty", "empty_like"):
        return
    if name in ("matmul", "dot"):
        launch_product(*map(host, args[:2]))
    elif name in ("concatenate", "stack"):
        launch(min(len(args[0]), 4))                       # a copy each; of more than 8 three copies and a kernel
    elif kwargs.get("out") is not None:
        launch()
        written(kwargs["out"])
    else:
        launch_for(result, args)


def _empty(name):
    """empty or empty_like, filled with NaN, because CuPy's pool reuses memory."""
    function = _function("functions", name, getattr(np, name))

    def empty(*args, **kwargs):
        x = function(*args, **kwargs)
        if x.dtype.kind in "fc":
            x._array.fill(np.nan)
        return x

    empty.__name__ = empty.__qualname__ = name
    return empty


def _door(name):
    """array, asarray, ...: the functions that also accept host data, which they always copy."""
    accepts = signature("functions", name)
    numpy_function = getattr(np, name)

    def door(obj, *args, blocking=False, **kwargs):
        accepts(obj, *args, **kwargs)
        if type(obj) is ndarray:
            array = numpy_function(obj._array, *args, **kwargs)
            launch(not np.may_share_memory(array, obj._array))
            return obj if array is obj._array else wrap(array)
        if isinstance(obj, (list, tuple)) and obj and all(type(x) is ndarray for x in obj):
            obj = [x._array for x in obj]
        launch()
        return wrap(numpy_function(np.array(obj), *args, **kwargs))

    door.__name__ = door.__qualname__ = name
    return door


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """The array on the host."""
    return a.get(stream, order, out) if type(a) is ndarray else np.asarray(a, order=order)


def get_array_module(*args):
    """cupy if one of the arguments is a device array, else numpy."""
    return stand_in() if any(type(x) is ndarray for x in args) else np


class _Kernel:
    """RawKernel and RawModule, whose CUDA source only a GPU can run."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("the stand-in for CuPy cannot run CUDA source: keep the xp.* version beside the "
                                  "kernel, and test the kernel on a GPU")


# ---------------------------------------------------------------- random numbers and the device

class _Generator:
    """cupy.random.Generator, with the numbers of NumPy's generator."""

    def __init__(self, bit_generator):
        self._generator = np.random.Generator(bit_generator)


def _draw(name):
    accepts = signature("generator", name)

    def draw(self, *args, **kwargs):
        given = {key: x for key, x in accepts(self, *args, **kwargs).items() if x is not None and x is not self}
        dtype = given.pop("dtype", None) if name in ("beta", "uniform") else None  # NumPy draws these in float64 only
        while_fusing(name)
        launch()
        numbers = call(getattr(self._generator, name), (), given)
        return numbers if type(numbers) is ndarray and dtype is None else wrap(np.asarray(host(numbers), dtype))

    draw.__name__ = name
    return draw


def _bit_generator(seed=None, *, size=-1):
    return np.random.PCG64(seed)


def default_rng(seed=None):
    """A generator whose stream differs from CuPy's."""
    return _Generator(_bit_generator(seed))


class _Device:
    """cupy.cuda.Device, of which there is one."""

    def __init__(self, device=None):
        self.id = device or 0
        self.compute_capability = "90"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    use = __enter__
    synchronize = synchronise


class _Stream(_Device):
    """cupy.cuda.Stream, where each operation is complete when its call returns."""

    def __init__(self, null=False, non_blocking=False):
        self.done = True

    def record(self, event=None):
        event = event or _Event()
        event.record()
        return event


class _Event:
    """cupy.cuda.Event, a point in time."""

    def record(self, stream=None):
        self._time = time.perf_counter()

    synchronize = synchronise


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size, total, limit=0):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class _MemoryPool:
    """cupy.cuda.MemoryPool, always empty because the arrays are in host memory."""

    def used_bytes(self):
        return 0

    total_bytes = free_bytes = n_free_blocks = get_limit = used_bytes

    def set_limit(self, size=None, fraction=None):
        pass

    def free_all_blocks(self, stream=None):
        pass


# ---------------------------------------------------------------- the module

class _Module(types.ModuleType):
    def __getattr__(self, name):
        known = {"cupy": LISTING["functions"], "cupy.random": LISTING["random"], "cupy.linalg": LISTING["linalg"]}
        known = known.get(self.__name__) or LISTING["members"].get(self.__name__.removeprefix("cupy."), ())
        hint = " (CuPy has it, the stand-in does not)" if name in known else ""
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{hint}")


def _module(name, contents):
    module = _Module(name, "Strict stand-in for CuPy.")
    module.__path__ = []                                   # so that `import cupy.cuda` finds sys.modules
    vars(module).update(contents)
    return module


def _functions(section, module):
    return {name: _function(section, name, getattr(module, name)) for name, text in LISTING[section].items()
            if text is not None and hasattr(module, name) and not isinstance(getattr(module, name), type)}


def _build():
    """{name in sys.modules: module} of all modules."""
    for name in LISTING["generator"]:
        setattr(_Generator, name, _draw(name))
    stream = _Stream()
    pool = _MemoryPool()
    _Stream.null = stream
    cuda = _module("cupy.cuda", dict(
        is_available=lambda: True, Device=_Device, Stream=_Stream, Event=_Event, MemoryPool=_MemoryPool,
        memory=_module("cupy.cuda.memory", dict(OutOfMemoryError=OutOfMemoryError)),
        get_current_stream=lambda: stream, get_elapsed_time=lambda start, end: 1e3 * (end._time - start._time),
        runtime=_module("cupy.cuda.runtime", dict(
            getDeviceCount=lambda: 1, getDevice=lambda: 0, deviceSynchronize=synchronise,
            memGetInfo=lambda: (2**30, 2**30),             # as the pool, always empty
            getDeviceProperties=lambda device: {"name": b"stand-in on NumPy"}))))
    random = _module("cupy.random", dict(Generator=_Generator, default_rng=default_rng, **dict.fromkeys(
        ("XORWOW", "MRG32k3a", "Philox4x3210"), _bit_generator)))
    linalg = _module("cupy.linalg", dict(_functions("linalg", np.linalg), LinAlgError=np.linalg.LinAlgError))
    stride_tricks = _module("cupy.lib.stride_tricks", _functions("stride_tricks", np.lib.stride_tricks))
    lib = _module("cupy.lib", dict(stride_tricks=stride_tricks))
    by_hand = dict(asnumpy=asnumpy, get_array_module=get_array_module, fuse=fuse, ndarray=ndarray,
                   get_default_memory_pool=lambda: pool, is_available=lambda: True, repeat=ndarray.repeat,
                   **{name: _empty(name) for name in ("empty", "empty_like")},
                   **{name: _door(name) for name in ("array", "asarray", "asanyarray", "ascontiguousarray",
                                                     "asfortranarray")},
                   ElementwiseKernel=ElementwiseKernel, ReductionKernel=ReductionKernel,
                   **dict.fromkeys(("RawKernel", "RawModule"), _Kernel))
    for name in by_hand:
        listed("functions", name)
    cupy = _module("cupy", {
        **{name: getattr(np, name) for name in LISTING["same as numpy"]},
        **{name: _Ufunc(name) for name in LISTING["ufuncs"] if hasattr(np, name)},
        **_functions("functions", np), **by_hand,
        "__version__": LISTING["version"], "ufunc": _Ufunc,
        "cuda": cuda, "random": random, "linalg": linalg, "lib": lib})
    return {module.__name__: module for module in (cupy, cuda, cuda.runtime, random, linalg, lib, stride_tricks)}


_modules = {}
PACKAGES = ("cupy", "cupyx", "cupy_backends")              # a real CuPy's packages in sys.modules


def stand_in():
    """The stand-in, without installing it: minicl does not find it."""
    if not _modules:
        _modules.update(_build())
    return _modules["cupy"]


def cupy_or_stand_in():
    """CuPy itself if it can use a GPU, else the installed stand-in."""
    try:
        import cupy
    except ImportError:
        return install()
    if not cupy.cuda.is_available():
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        return install()
    return cupy


def install():
    """Put the stand-in into sys.modules as "cupy" and return it. Repeated calls return the same module."""
    if "cupy" in sys.modules and sys.modules["cupy"] is not _modules.get("cupy"):
        raise RuntimeError("CuPy itself has been imported already: install the stand-in first, or do without it")
    cupy = stand_in()
    sys.modules.update(_modules)
    return cupy
