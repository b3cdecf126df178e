"""MoCo (He et al. 2020; Chen et al. 2020b for the MLP head, "v2"): a queue of keys from a momentum encoder.

SimCLR's negatives come from the batch, so many negatives need a large batch. MoCo stores the keys of earlier batches in a
queue: 65,536 negatives at a batch of 256. A copy that follows the query encoder slowly computes the keys, so that old and
new keys are comparable.

    for x in batches:
        q = query(augment(x))                             # (N, dim)
        k = key(augment(x))                               # (N, dim), not recorded
        L = info_nce(q, positives k, negatives queue)     # the batch's own keys are not in the queue yet
        optimizer.step()                                  # the query encoder
        key = m key + (1 - m) query                       # weights and batch norm's running averages
        queue: k in, the oldest out                       # after the loss has used k, never before

docs/methods/moco.md explains each part, and why the loss rises at first.
"""

from collections import deque

import numpy as np

from ..autograd import Tensor
from ..backend import Number, array_module, each_step, is_array, on_host, undo_if_not_captured
from ..checks import require_integers, require_rng
from ..contrastive import info_nce
from ..contrastive.checks import require_temperature
from ..nn import BatchNorm, Module
from ..no_grad import in_no_grad, no_grad
from ..signature import accepts_other_names, describe
from ..tensor import alike, clock
from ..typing import Array, HostArray, Rng
from .ema import EMA, frozen_copy
from .queue import Queue, noted
from .simclr import SimCLR


class MoCo(Module):
    """Query encoder, key encoder and queue. Its forward, images -> (h, z), is the query encoder.

    encoder, head  images -> h -> z (B, dim)
    dim            of z
    queue          capacity of the queue, in keys
    m              momentum of the key encoder, eq. (2) of He et al.
    splits         groups of a batch that BatchNorm normalises separately, as on as many GPUs; 1 is the whole batch

    Several processes (Module.across) divide the groups, shuffle among all their images, and have equal queues.
    """

    _setting_ranges = {"m": "[0, 1)"}                                        # at 1 the keys would never learn
    _scheduled = ("m",)                                                      # perhaps set in each step: a checkpoint has it
    _waiting = ("served",)                                                   # no setting, see nn/spec.py

    def __init__(self, encoder: Module, head: Module, *, dim: int, queue: int = 65536, m: float = 0.999,
                 splits: int = 8):
        self.m = m
        require_integers("MoCo", 1, dim=dim, queue=queue, splits=splits)
        self.query = SimCLR(encoder, head)
        for layer in self.query.modules():
            if isinstance(layer, BatchNorm):
                layer.splits = splits
        self.key = frozen_copy(self.query)
        self.queue = Queue(queue, dim)
        self.ema = EMA(self.query, self.key)
        self.served: deque[tuple[Array, HostArray | None, int]] = deque()    # keys and ids of loss(), for update(), and when

    def __getstate__(self):                                                  # for pickle; times are those of this process
        return {**vars(self), "served": deque((keys, ids, -1) for keys, ids, _ in self.served)}

    encoder = property(lambda self: self.query.encoder)

    @property
    def is_pending(self) -> bool:
        """Whether keys wait for update(). Those of a loss before load_state_dict() do not belong to the loaded queue."""
        change = self.queue.keys.changed
        if self.served and change and change[2] == "load_state_dict()" and change[0] > self.served[-1][2]:
            self.served.clear()
        return bool(self.served)

    def forward(self, images: Array) -> tuple[Tensor, Tensor]:
        return self.query(images)                                            # (B, features), (B, dim)

    def encode_keys(self, images: Array, rng: Rng, *, chunk: int | None = None) -> Array:
        """z of the key encoder: images (B, H, W, C) -> array (B, dim), not recorded; at most `chunk` at a time, if given.

        The batch is shuffled by a permutation drawn from rng, and the keys are put back in order: group statistics then do
        not reveal that query i and key i belong together (He et al. 2020, section 3.3). Evaluation does not shuffle.
        BatchNorm normalises each chunk separately.
        """
        if chunk is not None:
            require_integers("MoCo.encode_keys", 1, chunk=chunk)
            chunk = int(chunk)                               # a NumPy number may wrap round
        self.ema.match()
        with no_grad():
            if not self.training:
                return self._keys(images, chunk)
            require_rng("MoCo.encode_keys", rng)
            self.world.require_rows("MoCo.encode_keys", len(images))

            def permutations():
                order = rng.permutation(len(images) * self.world.size)
                return [self.world.rows(order), self.world.rows(np.argsort(order))]

            order, back = each_step(images, permutations)
            return self.world.all_gather(self._keys(self.world.all_gather(images)[order], chunk))[back]

    def _keys(self, images, chunk):
        if not chunk:
            return self.key(images)[1].data
        parts = [self.key(images[lo:lo + chunk])[1].data for lo in range(0, len(images), chunk)]
        return array_module(images).concatenate(parts)

    @accepts_other_names
    def loss(self, queries: Tensor, keys: Array, tau: float, *, ids: HostArray | None = None) -> Tensor:
        """InfoNCE of queries (N, dim), a Tensor, their positives keys (N, dim), an array, and the queue's negatives.

        With an empty queue the positive is the only candidate: loss and gradient are 0. In training the keys are stored
        for update() to enqueue, but not under no_grad(), as for images that are not trained on. On a GPU they are not
        copied: do not write into them before update().
        ids (N,) integers >= 0 on the host: labels, or the images' ids in the data. Keys in the queue with the id of a query
        are not negatives of it.
        """
        require_temperature("MoCo.loss", tau)
        if not (isinstance(queries, Tensor) and is_array(keys) and alike(keys, queries.data)
                and keys.shape[1:] == self.queue.keys.data.shape[1:]):
            raise ValueError(f"MoCo.loss: expected queries, a Tensor (N, {self.queue.keys.data.shape[1]}), and keys, an "
                             f"array of that shape and dtype as encode_keys() returns it, got {describe(queries)} and "
                             f"{describe(keys)}")
        numbers = noted("MoCo.loss", ids, len(keys))
        filled, = each_step(keys, lambda: [len(self.queue)])
        if filled == 0:
            loss = (queries * 0.0).sum()
        else:
            both = {} if ids is None else {"ids": numbers, "negative_ids": self.queue.ids.data[:filled]}
            loss = info_nce(queries, keys, self.queue.negatives(), tau, world=self.world, **both)
        if self.training and not in_no_grad():
            self.ema.used()
            ids = None if ids is None else ids.copy()
            self.served.append((keys.copy() if on_host(keys) else keys, ids, next(clock)))
            undo_if_not_captured(self.served.clear)
        return loss

    def update(self) -> None:
        """Update the key encoder and enqueue the keys of loss(), after the optimizer's step.

        Raises RuntimeError in evaluation mode, or if loss() was not called since the last update.
        """
        if not self.training:
            raise RuntimeError("MoCo: update() was called in evaluation mode, but the queue and the key encoder change only "
                               "in training; call model.train() first")
        self.ema.require("MoCo", self.query, self.key)
        if not self.is_pending:
            raise RuntimeError("MoCo: update() was called without keys to enqueue; keys enter the queue once, after "
                               "loss() has used them as positives, and not under no_grad()")
        while self.served:
            keys, ids, _ = self.served.popleft()
            self.queue.enqueue(self.world.all_gather(keys), None if ids is None else self.world.all_gather(ids))
        self.ema.update(Number(lambda: self.m))
