"""The items of each training step, and equal captions among them."""

import contextlib
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..checks import Sealed
from ..typing import HostArray
from .checks import DataError, check_seed, host_array, whole


class Batches(Sealed):
    """Ids of the items of each step: every epoch is a new permutation of range(n), cut into batches.

    The order of an epoch depends only on (seed, epoch), so a resumed run needs only its step. All batches have the same
    size: the last n mod batch_size items of a permutation are left out of that epoch.

    >>> batches = Batches(10, 5)
    >>> batches.per_epoch, sorted(np.concatenate([batches[0], batches[1]]).tolist())
    (2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(self, n: int, batch_size: int, *, seed: int = 0):
        self.n = whole(self, "n", n, 0)
        self.batch_size = whole(self, "batch_size", batch_size, 1)
        self.seed = check_seed(self, seed)
        if batch_size > n:
            raise DataError(f"Batches: expected a batch of 1 to {n}, the number of items, got {batch_size}; "
                            f"use a smaller one (--batch), such as {max(1, n // 2)}, or more data")
        self.per_epoch = n // batch_size
        self._order = -1, np.arange(0)                   # an epoch and its permutation

    __iter__ = None                                      # iteration would not end: write batches[step]

    def __getitem__(self, step: int) -> HostArray:
        """Item ids (batch_size,) of training step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(whole(self, "step", step, 0), self.per_epoch)
        last, order = self._order
        if epoch != last:
            order = np.random.default_rng([self.seed, epoch, 1]).permutation(self.n)
            self._order = epoch, order                   # one assignment, since threads may share this object
        return order[position * self.batch_size:(position + 1) * self.batch_size].copy()


AHEAD = 4                                                # batches that Prefetch reads at the same time


class Prefetch(Sealed):
    """images[batches[step][part]] of each step, read by threads while earlier steps are computed.

    images    (N, ...), such as ImageData's; if they are memory-mapped, all rows of a batch are requested at once, since
              pages are otherwise read one by one on access
    batches   see Batches
    part      this process's rows of each batch: world.part
    waiting   share of the time since the first image that was spent waiting for images; None before it

    >>> images = Prefetch(np.arange(10), Batches(10, 5))
    >>> images[0].shape, bool((images[1] == Batches(10, 5)[1]).all())
    ((5,), True)
    """

    def __init__(self, images: HostArray, batches: Batches, part: slice = slice(None)):
        self._waited = 0.0
        self._since = 0.0
        self._images = images
        self._batches = batches
        self._part = part
        self._threads = ThreadPoolExecutor(AHEAD)
        self._ahead: dict[int, Future] = {}

    __iter__ = None                                      # as in Batches: write images[step]

    def __getitem__(self, step: int) -> HostArray:
        started = time.perf_counter()
        self._since = self._since or started
        step = whole(self, "step", step, 0)
        self._ahead = {k: self._ahead.get(k) or self._read(k) for k in range(step, step + AHEAD)}
        images = self._ahead.pop(step).result()              # the caller's own, so the next call reads them again
        self._waited += time.perf_counter() - started
        return images

    @property
    def waiting(self) -> float | None:
        return self._waited / (time.perf_counter() - self._since) if self._since else None

    def _read(self, step):
        return self._threads.submit(self._rows, self._batches[step][self._part])

    def _rows(self, ids):
        with contextlib.suppress(OSError, ValueError, AttributeError):       # advice; Windows has none
            for lo, length in mapped_ranges(self._images, ids):
                self._images._mmap.madvise(mmap.MADV_WILLNEED, lo, length)
        return self._images[ids]


def mapped_ranges(images: HostArray, ids: HostArray) -> Iterator[tuple[int, int]]:
    """(start, length) of each of these rows in a memmap's mapping, from the start of a page; nothing for other arrays."""
    mapping = getattr(images, "_mmap", None)
    if mapping is not None and images.flags.c_contiguous and images.size:
        first = images.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
        for start in (first + images.strides[0] * ids).tolist():
            lo = start // mmap.PAGESIZE * mmap.PAGESIZE
            yield lo, start + images.strides[0] - lo


def same_caption_ids(ids: HostArray) -> HostArray:
    """For each row of token ids (N, T) the first row equal to it: the caption_ids (N,) of clip_loss.

    >>> same_caption_ids(np.array([[5, 1], [4, 2], [5, 1]])).tolist()
    [0, 1, 0]
    """
    host_array("same_caption_ids", "ids", ids, ("N", "T"), "integers")
    if ids.shape[1] == 0:                                    # no tokens: all rows are equal
        return np.zeros(len(ids), dtype=np.int64)
    _, first, group = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    return first[group.reshape(-1)]
