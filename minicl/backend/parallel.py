"""Python threads: threads(), and the parallel loops that use them."""

import collections
import contextlib
import contextvars
import functools
import math
import os
import queue
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ..checks import require_bool
from ..locks import open_in_child
from ..typing import Array, ArrayModule, HostArray
from .device import BackendError
from .kernels import square_sums
from .memory import keep_freed_memory

Result = TypeVar("Result")


_sharing = 1                                             # processes that train together and may use the same cores


def share_cores(processes: int) -> None:
    """Divide the cores that this process may use among so many processes, by default."""
    global _sharing
    _sharing = processes


def available_cores() -> int:
    """Cores this process may use: those of its CPU affinity, or fewer by a container's quota, divided among the processes
    that share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:     # "max 100000", or "quota period" in microseconds
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores // _sharing)


class _ThreadPool:
    """`size` threads (the caller is one of them) that process the items of a list.

    A caller waits for its items, not for the other threads: if none is free, it processes all items itself. So calls may be
    nested, come from several threads, or be interrupted by Ctrl-C, and none gets another's results.
    The threads end with close(), or with the pool itself if Ctrl-C prevents that: they refer only to its inbox.
    """

    def __init__(self, size: int) -> None:
        self.size = 1
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.close = weakref.finalize(self, _end, self.inbox, size - 1)
        try:
            for _ in range(size - 1):
                threading.Thread(target=_serve, args=(self.inbox,), daemon=True).start()
                self.size += 1
        except RuntimeError as error:
            self.close()
            if isinstance(error.__context__, KeyboardInterrupt):             # of a lock that Ctrl-C has left open
                raise error.__context__ from None
            raise BackendError(f"threads: the system could start only {self.size} of {size} threads ({error}); "
                               "use fewer") from error

    def map(self, function: Callable, items: Sequence[tuple]) -> list:
        results: list[Any] = [None] * len(items)
        todo = collections.deque(enumerate(items))
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def taken():
            while True:
                try:
                    yield todo.popleft()                 # atomic, as next() on a shared iterator is only with the GIL
                except IndexError:
                    return

        def work():
            for index, item in taken():
                try:
                    results[index] = function(*item)
                    done.put(None)
                except BaseException as error:           # handed to the caller, who raises it; the rest is given up
                    done.put(error)
                    for _ in taken():
                        done.put(None)

        for _ in range(min(self.size, len(items)) - 1):
            self.inbox.put(functools.partial(contextvars.copy_context().run, work))      # with NumPy's errstate
        work()
        for error in filter(None, [done.get() for _ in items]):
            raise error
        return results


def _serve(inbox):
    while (work := inbox.get()) is not None:
        work()
        del work                                         # else an idle thread would keep the caller's arrays


def _end(inbox, threads):
    for _ in range(threads):
        inbox.put(None)


# ---------------------------------------------------------------- the pools of the open threads() blocks

MOST_THREADS = 1024

_pools: list[_ThreadPool] = []                           # the newest last: that one is used
_blas: list[Any] = []                                    # what restores BLAS's threads, while any block is open
_entering = open_in_child(threading.Lock())


def _after_fork():
    """A forked child has the pools but not their threads, so a pool's caller does all the work."""
    for pool in _pools:
        pool.size = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def threads(count: int | None = None, *, keep_memory: bool = True) -> Iterator[None]:
    """A block in which parallel_for uses `count` Python threads, and BLAS one thread in each of them.

    count        default MINICL_THREADS, else all available cores. Wrap the whole training loop: alternating between Python
                 and BLAS threads within a step is slow, since idle BLAS threads spin
    keep_memory  keep freed memory for the next step until the last such block ends: much faster (on Linux), but the
                 process does not shrink; False returns it to the system

    Blocks may be nested and used in several threads: all loops use the newest, and BLAS gets its threads back when the last
    one ends. Raises BackendError for a count that is not an integer from 1 to 1024, or that the system does not provide.
    """
    from threadpoolctl import threadpool_limits

    require_bool("threads", keep_memory=keep_memory)
    pool = _ThreadPool(_thread_count(count))
    try:
        with _entering:
            if not _pools:
                _blas.append(threadpool_limits(limits=1, user_api="blas"))
            _pools.append(pool)
        with keep_freed_memory() if keep_memory else contextlib.nullcontext():
            yield
    finally:
        try:
            _leave(pool)
        except KeyboardInterrupt:                        # once more, whatever is left to do
            _leave(pool)
            raise


def _leave(pool):
    with _entering:
        if pool in _pools:
            _pools.remove(pool)
        if not _pools and _blas:
            _blas[-1].restore_original_limits()
            _blas.clear()
    pool.close()


def _thread_count(count):
    source = "count"
    if count is None and (count := os.environ.get("MINICL_THREADS", "").strip() or None):
        source = "the environment variable MINICL_THREADS"
    if count is None:
        return available_cores()
    if isinstance(count, bool) or not re.fullmatch("[0-9]{1,9}", str(count)) or not 1 <= int(count) <= MOST_THREADS:
        raise BackendError(f"threads: {source} must be a whole number from 1 to {MOST_THREADS}, got {count!r}")
    return int(count)


def _pool() -> _ThreadPool | None:
    return _pools[-1] if _pools else None


def parallel_for(xp: ArrayModule, n: int, function: Callable[[int, int], Result], size: int | None = None) -> list[Result]:
    """[function(lo, hi), ...] over slices of range(n), in order.

    On NumPy slices of at most `size`, so that a slice's data fits into the cache, divided among the threads of
    `threads()`, if any; on CuPy one slice, because a launch costs more than a cache miss. Slices of a given size, and so
    their results, do not depend on the number of threads. With size None there is one slice for each thread.
    """
    pool = _pool()
    if size is None:
        size = n if pool is None else -(-n // pool.size)
    if xp is not np or n <= size:
        return [function(0, n)]
    slices = [(lo, min(lo + size, n)) for lo in range(0, n, size)]
    return pool.map(function, slices) if pool else [function(lo, hi) for lo, hi in slices]


def parallel_map(xp: ArrayModule, items: Iterable, function: Callable[..., Result]) -> list[Result]:
    """[function(item), ...] for the items of a list, in order, divided among the threads of `threads()`, if any."""
    pool = _pool() if xp is np else None
    return pool.map(function, [(item,) for item in items]) if pool else [function(item) for item in items]


def workers(xp: ArrayModule, n: int) -> int:
    """The number of threads for n slices: that of threads(), at most n; on CuPy 1."""
    pool = _pool() if xp is np else None
    return max(1, min(n, pool.size)) if pool else 1


def parallel_sum(xp: ArrayModule, n: int, add: Callable[..., None], *like: Array, size: int) -> list[Array]:
    """Zero arrays like the given ones, to which add(lo, hi, *arrays) has added the share of every slice of range(n).

    Slices of `size` are divided among the threads. Each adds to its own arrays, which are then added up in order, so no two
    threads write to the same memory, memory does not grow with n, and the result depends on the number of threads only by
    rounding, and not on their speed.
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


def sum_of_squares(x: Array, size: int) -> Array:
    """|x|^2 of x (n,) in float64, since float32 overflows at |x| = 1.8e19 and vanishes below 1e-23: an array ()."""
    if not isinstance(x, np.ndarray):
        return square_sums(x)

    def squares(lo, hi):
        x64 = x[lo:hi].astype("float64")
        return x64 @ x64

    first, *rest = parallel_for(np, len(x), squares, size)
    return sum(rest, first)


def square(x: HostArray, size: int) -> float:
    """|x|^2 of a NumPy array x (n,) in its own dtype, infinite where it overflows."""
    return _dot(x) if len(x) <= size else sum(parallel_for(np, len(x), lambda lo, hi: _dot(x[lo:hi]), size))


@np.errstate(over="ignore", invalid="ignore")
def _dot(x):
    return float(np.dot(x, x))
