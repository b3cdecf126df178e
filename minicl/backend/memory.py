"""Memory: peak use, reuse of freed memory, and limits."""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..locks import open_in_child
from ..typing import ArrayModule


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3                  # <malloc.h>


_before: dict[int, int] = {}                             # bytes in use on each GPU when get_backend() first found it


def note_memory_in_use(xp: ArrayModule) -> None:
    """Note what is in use on the GPU before this process has any array there."""
    free, total = xp.cuda.runtime.memGetInfo()
    _before.setdefault(xp.cuda.runtime.getDevice(), total - free)


def peak_memory_mib(xp: ArrayModule) -> float | None:
    """Peak memory so far, in MiB: on a GPU what is in use beyond what was in use at get_backend(), since no pool shrinks. It
    includes CUDA graphs and cuBLAS's workspace, and what other processes have taken since. On a CPU the process's resident
    memory (None if the system does not report it)."""
    if xp is not np:
        free, total = xp.cuda.runtime.memGetInfo()
        since = total - free - _before.get(xp.cuda.runtime.getDevice(), total)
        return max(since, xp.get_default_memory_pool().total_bytes()) / 2**20
    try:
        import resource
    except ImportError:                                  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


_blocks = 0                                              # of keep_freed_memory() that are open
_counting = open_in_child(threading.Lock())


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """A block in which the process keeps freed memory for reuse instead of returning it to the system.

    A training step allocates and frees the same large arrays again and again, and the system clears every page that it
    provides, which costs more than the arithmetic on it. The process does not shrink until the last of several blocks
    ends. (Linux with glibc; elsewhere the block does nothing.)
    """
    global _blocks
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
        trim = libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    with _counting:
        if _blocks == 0:
            mallopt(MMAP_THRESHOLD, 2**30) or mallopt(MMAP_THRESHOLD, 2**25)     # the most that glibc before 2.35 takes
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
        _blocks += 1
    try:
        yield
    finally:
        with _counting:
            _blocks -= 1
            if _blocks == 0:
                mallopt(MMAP_THRESHOLD, 2**25)                               # the most that glibc sets by itself
                mallopt(TRIM_THRESHOLD, 2**26)
                trim(0)


@contextlib.contextmanager
def available_memory_only() -> Iterator[None]:
    """A block in which NumPy raises MemoryError for an array that does not fit into the memory free at its start. Otherwise
    the system would provide it, and kill the process when it is used. get_backend("cupy") lifts the limit, because CUDA
    reserves far more than it uses. (Linux; elsewhere the block does nothing.)
    """
    try:
        import resource

        free = _bytes("/proc/meminfo")
        used = _bytes("/proc/self/status")["VmData"]
        limit = int(used + min(free["MemAvailable"] + free["SwapFree"], _free_in_container()))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, KeyError):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    _lifts.append(lambda: resource.setrlimit(resource.RLIMIT_DATA, (soft, hard)))
    try:
        yield
    finally:
        _lifts.pop()()


_lifts: list[Callable[[], None]] = []                        # what ends each block's limit, the outermost first


def lift_memory_limit() -> None:
    """End the limits of available_memory_only()."""
    for lift in reversed(_lifts):
        lift()


def _bytes(path):
    """{name: bytes} of the lines "Name:  number kB" of a file."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if len(line) == 3 and line[2] == "kB"}


def _free_in_container():
    """Bytes left below a container's limit; infinite without one."""
    try:
        most, now = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):                            # no file, or "max": no limit
        return float("inf")
    return most - now
