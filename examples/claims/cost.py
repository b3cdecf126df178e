"""The time and memory of a step, on either backend."""

import time
import tracemalloc

import numpy as np

from minicl.backend import to_host


def cost(step, xp, repeats=5):
    """(seconds, MiB) of step(), which returns an array of xp.

    seconds  the least of `repeats`, which other processes disturb least
    MiB      the peak during a step, beyond what was allocated before it: NumPy's arrays, or the device memory of
             CuPy's pool
    """
    to_host(step())                                      # warm caches; reading the result waits for a GPU
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        to_host(step())
        seconds.append(time.perf_counter() - started)
    return min(seconds), _peak(step, xp) / 2**20


def _peak(step, xp):
    """Bytes."""
    if xp is not np:
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        to_host(step())
        return pool.total_bytes() - before
    tracemalloc.start()                                  # it sees every array of NumPy, and slows only what is small
    try:
        before = tracemalloc.get_traced_memory()[0]
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
