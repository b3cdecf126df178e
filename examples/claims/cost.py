"""What a step costs: seconds and memory, the same on both backends."""

import time
import tracemalloc

import numpy as np

from minicl.backend import to_host


def cost(step, xp, repeats=5):
    """(seconds, MiB) of step(), which returns an array of xp.

    seconds  the least of `repeats`: what the machine can do when nothing else is in the way
    MiB      the most that was held at once during a step, beyond what was held before it: arrays that NumPy
             allocates, or what CuPy's pool had to take from the device
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
