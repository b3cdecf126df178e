"""Python threads that share out a loop: threads(), and the parallel loops that use them."""

import contextlib
import math
import os
import queue
import threading

import numpy as np

from .memory import keep_freed_memory


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


class _ThreadPool:
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


_pool = None


def _forget_pool():
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)     # a forked child has the pool's name but not its threads


@contextlib.contextmanager
def threads(count=None, *, keep_memory=True):
    """Within this block parallel_for uses `count` Python threads, and BLAS one thread in each of them.

    count        default MINICL_THREADS, else all available cores. The two kinds of threads must not alternate within a
                 training step (the idle BLAS threads spin and cost more than they give), so wrap the whole loop
    keep_memory  keep freed memory for the next step until the outermost such block ends: much quicker (on Linux), and
                 the process stays as large as it once was; False leaves it to the system
    """
    global _pool
    from threadpoolctl import threadpool_limits

    if count is None:
        count = os.environ.get("MINICL_THREADS") or available_cores()
    if not str(count).isdecimal() or int(count) < 1:
        raise ValueError(f"threads: expected a count >= 1, got {count!r} (from the argument or MINICL_THREADS)")
    outer, _pool = _pool, _ThreadPool(int(count))
    try:
        with threadpool_limits(limits=1, user_api="blas"), keep_freed_memory() if keep_memory else contextlib.nullcontext():
            yield
    finally:
        _pool.close()
        _pool = outer


def parallel_for(xp, n, function, size=None):
    """[function(lo, hi), ...] over slices of range(n), in order.

    On NumPy slices of at most `size`, which keeps what a slice touches in cache, shared out over the
    threads of `threads()` if any; on CuPy one slice, because there a launch costs more than a cache miss.
    Slices of a given size do not depend on how many threads there are, so neither do their results.
    With size None there is one slice a thread, for work that gains nothing from being cut finer.
    """
    if size is None:
        size = n if _pool is None else -(-n // _pool.size)
    if xp is not np or n <= size:
        return [function(0, n)]
    starts = range(0, n, size)
    slices = [(lo, min(lo + size, n)) for lo in starts]
    if _pool is None:
        return [function(lo, hi) for lo, hi in slices]
    return _pool.map(function, slices)


def parallel_map(xp, items, function):
    """[function(item), ...] for the items of a list, in order, shared out over the threads of `threads()` if any."""
    if xp is np and _pool:
        return _pool.map(function, [(item,) for item in items])
    return [function(item) for item in items]


def workers(xp, n):
    """How many threads share out n slices: those of threads(), if there are so many slices; on CuPy 1."""
    return max(1, min(n, _pool.size)) if xp is np and _pool else 1


def parallel_sum(xp, n, add, *like, size):
    """Zero arrays like the given ones, to which add(lo, hi, *arrays) has added the share of every slice of range(n).

    Slices of `size` are dealt to the threads, each of which adds to arrays of its own, and these are added up in order: no
    two threads write to the same memory, which does not grow with n, and the result depends on how many threads there are
    only by rounding, on which of them was quicker not at all.
    """
    slices = [(lo, min(lo + size, n)) for lo in range(0, n, size)] if xp is np else [(0, n)]
    count = workers(xp, len(slices))

    def worker(k, _):
        totals = [xp.zeros_like(array) for array in like]
        for lo, hi in slices[k::count]:
            add(lo, hi, *totals)
        return totals

    parts = parallel_for(xp, count, worker, 1)
    for part in parts[1:]:
        for total, more in zip(parts[0], part):
            total += more
    return parts[0]
