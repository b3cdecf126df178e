"""Memory: the most that was used, and how to reuse what is freed."""

import contextlib
import ctypes
import sys

import numpy as np


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
def keep_freed_memory():
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
