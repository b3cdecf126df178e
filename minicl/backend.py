"""NumPy on the CPU, CuPy on the GPU: the only file that knows there are two.

Everything above asks the data where it lives, `xp = array_module(x)`, and then writes `xp.exp(x)`.
What the two libraries do differently is a function here, with one name:

    get_backend("cupy")      the module, or an error that says what is missing; its precision
    to_device, to_host       the only doors between host memory and the device
    scatter_add              x[ids] += values, with repeated ids adding up
    fused                    an elementwise formula as one kernel (CuPy), or as it is written (NumPy)
    row_sums, column_sums    sums of matrices, each library's quickest
    run_slices, accumulate   the same work slice by slice, on a few threads() (NumPy) or at once (CuPy)

Importing minicl never imports cupy.
"""

import contextlib
import ctypes
import functools
import math
import os
import queue
import sys
import threading

import numpy as np


class BackendError(RuntimeError):
    """The array backend asked for cannot be used; the message says why and what to do."""


# ---------------------------------------------------------------- which library

def get_backend(name="numpy", precision=None):
    """The array module called `name`: "numpy", or "cupy" once it has computed something on a GPU.

    precision  of products of float32 matrices on a GPU: "float32", or "tf32", which rounds their entries to 10 bits of
               mantissa (relative errors of 5e-4) for the tensor cores of Ampere and later; their sums, and all else,
               stay in float32. CuPy settles it with its first product, for the whole process. None leaves it to CuPy:
               float32, unless the environment has CUPY_TF32=1

    Raises BackendError, with a different message each, when the name is unknown, when CuPy is not
    installed, when it is installed but broken, when it works but no GPU can be used, and when it cannot be had in that
    precision.
    """
    if precision not in (None, "float32", "tf32"):
        raise BackendError(f"precision: expected 'float32' or 'tf32', got {precision!r}")
    if name == "numpy":
        if precision == "tf32":
            raise BackendError("precision 'tf32': NumPy has no TF32, which is a format of NVIDIA's tensor cores; "
                               "leave it out, or use --backend cupy")
        return np
    if name != "cupy":
        raise BackendError(f"backend: expected 'numpy' or 'cupy', got {name!r}")
    try:
        import cupy
    except ImportError as error:
        if error.name != "cupy":                        # something below it is missing, or its core does not load
            raise BackendError(f"backend 'cupy': CuPy is installed but does not import: {error}") from error
        raise BackendError("backend 'cupy': CuPy is not installed; for CUDA 12 run\n    pip install 'minicl[cupy]'\n"
                           "(for CUDA 13: 'minicl[cuda13]'), or use --backend numpy") from error
    if not cupy.cuda.is_available():
        try:
            reason = f"{cupy.cuda.runtime.getDeviceCount()} CUDA devices found"
        except Exception as error:                      # CuPy raises its own CUDARuntimeError here
            reason = str(error)
        raise BackendError(f"backend 'cupy': CuPy {cupy.__version__} is installed but no GPU is usable ({reason}); "
                           "check the driver with nvidia-smi, or use --backend numpy")
    _settle_precision(cupy, precision)
    try:
        float((cupy.ones((2, 2), dtype="float32") @ cupy.ones((2, 2), dtype="float32") + 1).sum())
    except Exception as error:
        raise BackendError("backend 'cupy': a GPU was found but CuPy cannot run on it, most often because the CUDA "
                           f"toolkit's libraries are missing (pip install 'cupy-cuda12x[ctk]'): {error}") from error
    return cupy


_precision = None                                        # of this process's products on the GPU, once asked for


def _settle_precision(cupy, precision):
    """Set what CuPy reads before its first product (docs.cupy.dev, environment variables), or raise BackendError."""
    global _precision
    if precision is None:
        precision = _precision or ("tf32" if os.environ.get("CUPY_TF32", "0") not in ("", "0") else "float32")
    if precision == _precision:
        return
    if _precision is not None:
        raise BackendError(f"precision {precision!r}: this process already computes in {_precision}, which CuPy "
                           "settles with its first product; use another process")
    if precision == "tf32" and int(cupy.cuda.Device().compute_capability) < 80:
        raise BackendError("precision 'tf32': this GPU has no TF32 (it came with compute capability 8.0, Ampere), it "
                           f"has {cupy.cuda.Device().compute_capability}; use --precision float32")
    os.environ["CUPY_TF32"] = str(int(precision == "tf32"))
    _precision = precision


def is_array(x):
    """Whether x is an array of either backend."""
    return isinstance(x, np.ndarray) or ("cupy" in sys.modules and isinstance(x, sys.modules["cupy"].ndarray))


def array_module(x):
    """The module that x belongs to: numpy or cupy."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    if is_array(x):
        return sys.modules["cupy"]
    raise TypeError(f"expected a numpy or cupy array, got {type(x).__name__}")


# ---------------------------------------------------------------- moving arrays

def to_host(x):
    """x as a NumPy array. On CuPy this waits for the device (a synchronisation)."""
    return x if isinstance(x, np.ndarray) else np.asarray(x) if not is_array(x) else x.get()


def to_device(x, xp):
    """The host or device array x as an array of module xp, with no copy if it is one already."""
    return to_host(x) if xp is np else xp.asarray(x)


def require_finite(x, what):
    """Raise FloatingPointError if the array x holds NaN or infinity. Only on NumPy: on a GPU reading
    the answer would make every step wait, so there the training loop looks at the losses it logs."""
    if isinstance(x, (np.ndarray, np.generic)) and not np.isfinite(x).all():
        raise FloatingPointError(f"{what} is not finite (NaN or infinity): look for NaN in the input, a learning "
                                 "rate that diverged, or a temperature that fell to 0")


def require_positive(x, what):
    """Raise ValueError if the 0-d array x is not above 0. As with require_finite, only NumPy's is looked at."""
    if isinstance(x, (np.ndarray, np.generic)) and not x > 0:
        raise ValueError(f"{what} must be > 0, got {float(x):.6g}; learn its logarithm and take exp, which stays above 0")


def scatter_add(target, ids, values):
    """target[ids] += values in place, where an index that occurs twice adds twice. target: float32 or float64."""
    array_module(target).add.at(target, ids, values)


def peak_memory_mib(xp):
    """The most memory used so far, in MiB: of the GPU by CuPy's pool, which keeps what it once took; else of the
    process, resident (None if the system does not tell)."""
    if xp is not np:
        return xp.get_default_memory_pool().total_bytes() / 2**20
    try:
        import resource
    except ImportError:                                  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


_keeping = False


@contextlib.contextmanager
def _memory_kept():
    """Within this block the process keeps the memory it frees, instead of handing it back to the system.

    A training step makes and drops the same large arrays again and again, and a page that the system hands out anew
    costs more than the arithmetic on it. What is kept is at most what was once in use. (Linux with glibc; elsewhere
    the block does nothing.)
    """
    global _keeping
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        libc = None
    if libc is None or _keeping:                                             # of two blocks, the outer one ends it
        yield
        return
    trim_threshold, mmap_threshold = -1, -3                                  # <malloc.h>
    mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)         # all that glibc before 2.35 accepts
    mallopt(trim_threshold, 2**31 - 1)
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        mallopt(mmap_threshold, 2**25)                                       # as far as glibc goes of its own accord
        mallopt(trim_threshold, 2**26)
        trim(0)


# ---------------------------------------------------------------- formulas and sums

def fused(function):
    """Decorator of a formula, entry by entry, function(xp, *arguments): a kernel on CuPy, on NumPy what is written.

    A launch costs the host 10 to 20 us whatever its size, so a GPU waits for a small network's launches. cupy.fuse
    reads the function once for each combination of dtypes and axes. So it may hold only operators, ufuncs with out=,
    astype, x[...] = y, xp.where and xp.clip: no shapes, no sums, no branches but on None. Arguments are arrays
    (always the first), Python numbers and None; numbers are computed with outside, since CuPy makes float64 of two of
    them. Arrays that are written to or returned have the shape that all arguments broadcast to: there is a thread for
    each entry.
    """
    kernels = {}

    @functools.wraps(function)
    def call(*arguments):
        xp = array_module(arguments[0])
        if xp is np:
            return function(np, *arguments)
        if xp not in kernels:
            kernels[xp] = xp.fuse(kernel_name=function.__name__)(functools.partial(function, xp))
        return kernels[xp](*arguments)

    call.is_fused = True
    return call


def column_sums(x):
    """x.sum(axis=0) of x (N, K). On NumPy a product with ones, 8 times as quick; on CuPy TF32 would round it."""
    return np.ones(len(x), dtype=x.dtype) @ x if isinstance(x, np.ndarray) else x.sum(axis=0)


def row_sums(x):
    """x.sum(axis=1) of x (N, K), in the same way."""
    return x @ np.ones(x.shape[1], dtype=x.dtype) if isinstance(x, np.ndarray) else x.sum(axis=1)


def launches_are_dear(xp):
    """Whether a few large calls are worth a copy of their operands: on a GPU."""
    return xp is not np


def tile_size(xp, n, rows=None):
    """Side of the tiles in which an n x n matrix is computed and forgotten: small enough for a CPU's cache,
    large enough to be worth a launch on a GPU (256 MiB of float32). Of a rows x n matrix: the width of tiles with
    all of the rows."""
    if xp is not np:
        return 8192 if rows is None else max(1, 8192**2 // rows)
    return 256 if n <= 2048 else 512


# ---------------------------------------------------------------- slices on threads

def available_cores():
    """Cores this process may use: its CPU affinity, cut down to a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:     # "max 100000", or "quota period" in microseconds
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


class _Team:
    """`size` threads (the caller is one of them) that share out the items of a list.

    A caller waits for its items, not for helpers: whoever finds no free helper does all of them itself. So calls may be
    nested, come from several threads, or be cut short by Ctrl-C, and none takes another's answer for its own.
    """

    def __init__(self, size):
        self.size = size
        self.inbox = queue.SimpleQueue()
        for _ in range(size - 1):
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while (work := self.inbox.get()) is not None:
            work()
            del work                                     # else an idle thread would hold on to the caller's arrays

    def map(self, function, items):
        results, todo, done = [None] * len(items), iter(enumerate(items)), queue.SimpleQueue()

        def work():
            for index, item in todo:                     # next() on a shared iterator is atomic
                try:
                    results[index] = function(*item)
                    done.put(None)
                except BaseException as error:           # handed to the caller, who raises it; the rest is given up
                    done.put(error)
                    for _ in todo:
                        done.put(None)

        for _ in range(min(self.size, len(items)) - 1):
            self.inbox.put(work)
        work()
        for error in filter(None, [done.get() for _ in items]):
            raise error
        return results

    def close(self):
        for _ in range(self.size - 1):
            self.inbox.put(None)


_team = None


def _forget_team():
    global _team
    _team = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)     # a forked child has the team's name but not its threads


@contextlib.contextmanager
def threads(count=None, *, keep_memory=True):
    """Within this block run_slices uses `count` Python threads, and BLAS one thread in each of them.

    count        default MINICL_THREADS, else all available cores. The two kinds of threads must not alternate within a
                 training step (the idle BLAS threads spin and cost more than they give), so wrap the whole loop
    keep_memory  keep freed memory for the next step until the outermost such block ends: much quicker (on Linux), and
                 the process stays as large as it once was; False leaves it to the system
    """
    global _team
    from threadpoolctl import threadpool_limits

    if count is None:
        count = os.environ.get("MINICL_THREADS") or available_cores()
    if not str(count).isdecimal() or int(count) < 1:
        raise ValueError(f"threads: expected a count >= 1, got {count!r} (from the argument or MINICL_THREADS)")
    outer, _team = _team, _Team(int(count))
    try:
        with threadpool_limits(limits=1, user_api="blas"), _memory_kept() if keep_memory else contextlib.nullcontext():
            yield
    finally:
        _team.close()
        _team = outer


def run_slices(xp, n, function, size=None):
    """[function(lo, hi), ...] over slices of range(n), in order.

    On NumPy slices of at most `size`, which keeps what a slice touches in cache, shared out over the
    threads of `threads()` if any; on CuPy one slice, because there a launch costs more than a cache miss.
    Slices of a given size do not depend on how many threads there are, so neither do their results.
    With size None there is one slice a thread, for work that gains nothing from being cut finer.
    """
    if size is None:
        size = n if _team is None else -(-n // _team.size)
    if xp is not np or n <= size:
        return [function(0, n)]
    starts = range(0, n, size)
    slices = [(lo, min(lo + size, n)) for lo in starts]
    if _team is None:
        return [function(lo, hi) for lo, hi in slices]
    return _team.map(function, slices)


def map_items(xp, items, function):
    """[function(item), ...] for the items of a list, in order, shared out over the threads of `threads()` if any."""
    if xp is np and _team:
        return _team.map(function, [(item,) for item in items])
    return [function(item) for item in items]


def lanes(xp, n):
    """How many threads share out n slices: those of threads(), if there are so many slices; on CuPy 1."""
    return max(1, min(n, _team.size)) if xp is np and _team else 1


def accumulate(xp, n, add, *like, size):
    """Zero arrays like the given ones, to which add(lo, hi, *arrays) has added the share of every slice of range(n).

    Slices of `size` are dealt to the threads, each of which adds to arrays of its own, and these are added up in order: no
    two threads write to the same memory, which does not grow with n, and the result depends on how many threads there are
    only by rounding, on which of them was quicker not at all.
    """
    slices = [(lo, min(lo + size, n)) for lo in range(0, n, size)] if xp is np else [(0, n)]
    count = lanes(xp, len(slices))

    def lane(k, _):
        totals = [xp.zeros_like(array) for array in like]
        for lo, hi in slices[k::count]:
            add(lo, hi, *totals)
        return totals

    parts = run_slices(xp, count, lane, 1)
    for part in parts[1:]:
        for total, more in zip(parts[0], part):
            total += more
    return parts[0]
