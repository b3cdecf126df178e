"""The time and memory of a step, on either backend."""

import time
import tracemalloc

import numpy as np

from minicl.backend import array_module, to_host


def cost(loss, leaves, repeats=5):
    """(milliseconds, MiB) of loss().backward(), where loss() is a Tensor () and leaves are the Tensors it depends on.

    milliseconds  the least of `repeats`, which other processes disturb least
    MiB           the peak beyond what was allocated before: NumPy's arrays, or the device memory of CuPy's pool
    """
    def step():
        for leaf in leaves:
            leaf.grad = None
        loss().backward()
        return leaves[0].grad

    to_host(step())                                      # warm caches; reading the result waits for a GPU
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        to_host(step())
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds), _peak(step, array_module(leaves[0].data)) / 2**20


def exponent(costs, sizes):
    """p of cost ~ size^p, between the third last and the last."""
    return np.log(costs[-1] / costs[-3]) / np.log(sizes[-1] / sizes[-3])


def _peak(step, xp):
    """Bytes."""
    if xp is not np:
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        to_host(step())
        return pool.total_bytes() - before
    tracemalloc.start()                                  # it traces NumPy's arrays, and slows only small steps
    try:
        before = tracemalloc.get_traced_memory()[0]
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
