"""A first-in first-out queue of keys: the negatives of many batches, at the cost of encoding one."""

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import each_step
from ..checks import require_integers
from ..contrastive import l2_normalize
from ..contrastive.checks import require_ids
from ..nn import Buffer, Counter, HostBuffer, Module
from ..signature import describe, is_plain_array
from ..tensor import mark_changed
from ..typing import Array, HostArray


class Queue(Module):
    """The last `capacity` keys, normalised, on the model's device; a new key replaces the oldest.

    keys      Buffer (capacity, d), a ring: key number t = 0, 1, ... is in row t mod capacity, until key t + capacity
              replaces it. The capacity need not be a multiple of the batch.
    ids       HostBuffer (capacity,): 1 + the id of each key, 0 without an id
    enqueued  the number of keys enqueued so far, an integer on the host; it determines the next row

    All are part of the state_dict. The queue is empty at first; its length is the number of filled rows.
    """

    def __init__(self, capacity: int, dim: int):
        require_integers("Queue", 1, capacity=capacity, dim=dim)
        self.keys = Buffer(np.zeros((capacity, dim), dtype="float32"))
        self.ids = HostBuffer(np.zeros(capacity, dtype="int64"))
        self.ids.least = 0
        self.count = Counter()

    enqueued = property(lambda self: int(self.count))
    capacity = property(lambda self: len(self.keys.data))

    def __len__(self) -> int:
        count, = each_step(self.keys.data, lambda: [min(self.enqueued, self.capacity)])      # for a captured step
        return count

    def filled(self) -> Array:
        """The keys (len(self), d), as a view: use it before the next enqueue."""
        return self.keys.data[:len(self)]

    def negatives(self) -> Tensor:
        """filled() as a Tensor for a loss, whose backward() raises if it comes after the next enqueue."""
        return Tensor(self.filled())

    def enqueue(self, keys: Array, ids: HostArray | None = None) -> None:
        """Add keys (B, d), normalised here, in order; ids (B,) >= 0 on the host, such as labels.

        Raises RuntimeError in evaluation mode.
        """
        if not self.training:
            raise RuntimeError("Queue: enqueue() was called in evaluation mode, but keys of images that are not trained on "
                               "must not become negatives; call model.train() first")
        ring = self.keys.data
        capacity = self.capacity
        if not is_plain_array(keys) or keys.ndim != 2 or keys.shape[1] != ring.shape[1] or keys.dtype != ring.dtype:
            raise ValueError(f"Queue: expected keys to be a {ring.dtype} array (B, {ring.shape[1]}), got "
                             f"{describe(keys)}")
        if len(keys) > capacity:
            raise ValueError(f"Queue: {len(keys)} keys at once do not fit a queue of {capacity}; some would be "
                             "dropped before they are used: use a larger queue or a smaller batch")
        numbers = noted("Queue", ids, len(keys))
        unit_keys = l2_normalize.forward(keys)[0]                            # raises before anything has changed

        def place():
            rows = (self.enqueued + np.arange(len(keys))) % capacity         # behind the last row comes the first
            mark_changed([("the queue's keys", self.keys), ("the queue's ids", self.ids)], "Queue.enqueue()")
            self.ids.data[rows] = numbers
            self.count.add(len(keys))
            return [rows]

        rows, = each_step(keys, place)
        ring[rows] = unit_keys


def noted(name: str, ids: HostArray | None, count: int) -> Any:
    """ids as a Queue stores them: 1 + ids, int64, or 0 for None. Raises ValueError unless they are integers (count,) from 0
    to 2^63 - 2."""
    if ids is None:
        return 0
    require_ids(name, ids, count)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= 2**63 - 1:
        raise ValueError(f"{name}: ids must be from 0 to 2^63 - 2, got {ids.min()} to {ids.max()}")
    return ids.astype("int64") + 1                                           # in uint8, 255 + 1 would be 0, no id
