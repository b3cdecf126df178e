"""Batch norm's view of its input: x (..., C) as wide rows, in slices for the threads.

NumPy loops along a row, and rows of few channels take twice the time. So a row holds several pixels, a divisor of their
number that fits WIDTH entries, and (C,) vectors are repeated accordingly. A sum over rows then has fewer terms, but
at least MIN_ROWS, and ends with a sum over the pixels of a row. On a GPU a row is one pixel.
"""

import functools

from ..backend import array_module, is_gpu, parallel_for, parallel_sum

WIDTH = 8192
MIN_ROWS = 16
SLICE = 2**18         # entries of a slice: with 2^17, twice the calls wait for the GIL (1.1 of the time); 2^19 gains no more


class PixelRows:
    """The wide rows of arrays like x (..., C): `rows(x)`, `repeat(v)` for v (C,), and loops over slices of rows."""

    def __init__(self, x):
        self.xp = array_module(x)
        self.dtype = x.dtype
        self.channels = x.shape[-1]
        self.pixels = x.size // self.channels
        self.pixels_per_row = 1 if is_gpu(self.xp) else _pixels_per_row(self.pixels, WIDTH // self.channels)
        self.shape = self.pixels // self.pixels_per_row, self.pixels_per_row * self.channels
        self.size = max(1, SLICE // self.shape[1])

    def rows(self, x):
        return x.reshape(self.shape)

    def repeat(self, v):
        return self.xp.tile(v, self.pixels_per_row) if self.pixels_per_row > 1 else v

    def zeros(self):
        """0, or on NumPy a row of zeros: a maximum with a row is twice as fast as with the number."""
        return 0.0 if is_gpu(self.xp) else self.xp.zeros(self.shape[1], dtype=self.dtype)

    def sample_mean(self, x):
        """The mean over 33 to 64 pixels, or all if there are fewer."""
        return x.reshape(self.pixels, self.channels)[::-(-self.pixels // 64)].mean(axis=0)

    def each(self, function):
        """function(s) for slices s of the rows, divided among the threads."""
        parallel_for(self.xp, self.shape[0], lambda lo, hi: function(slice(lo, hi)), self.size)

    def sums(self, pair):
        """Two sums a channel, (C,), from the two column sums that pair(s) gives for each slice s of the rows."""
        if is_gpu(self.xp):
            return pair(slice(None))

        def add(lo, hi, *totals):
            for total, part in zip(totals, pair(slice(lo, hi))):
                total += part

        like = self.xp.empty(self.shape[1], dtype=self.dtype)
        wide = parallel_sum(self.xp, self.shape[0], add, like, like, size=self.size)
        if self.pixels_per_row == 1:
            return wide
        by_channel = (total.reshape(self.pixels_per_row, self.channels).T for total in wide)
        return [self.xp.ascontiguousarray(totals).sum(axis=1) for totals in by_channel]      # pairwise along the last axis


@functools.lru_cache(1024)
def _pixels_per_row(pixels, most):
    """The pixels of a row: the largest divisor of their number up to `most` that leaves MIN_ROWS rows, or 1."""
    return next((count for count in range(min(most, pixels // MIN_ROWS), 1, -1) if pixels % count == 0), 1)
