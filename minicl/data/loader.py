"""The order in which a training run sees its items."""

import numpy as np

from .images import DataError


class Batches:
    """Ids of the items of each step: every epoch a new permutation of range(n), cut into batches.

    The order of an epoch follows from (seed, epoch) alone, so a resumed run needs only its step to find its place.
    The last n mod batch items of a permutation are left out of that epoch: all batches have one size.
    """

    def __init__(self, n, batch, *, seed=0):
        if not 1 <= batch <= n:
            raise DataError(f"Batches: expected a batch between 1 and the {n} items there are, got {batch}")
        self.n, self.batch, self.seed = n, batch, seed
        self.per_epoch = n // batch
        self._epoch = None

    def __getitem__(self, step):
        """Item ids (batch,) of training step `step`, counted from 0 through all epochs."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch, 1]).permutation(self.n)
        return self._order[position * self.batch:(position + 1) * self.batch]
