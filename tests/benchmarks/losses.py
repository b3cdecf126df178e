"""Cases of losses: the value and the gradient with respect to the embeddings, including normalisation."""

import dataclasses
import math

import numpy as np

from minicl import Tensor, contrastive
from minicl.backend import to_device
from minicl.contrastive.pairs import CACHE_BYTES

from .case import Case, Target, Work, normal


def leaf(x, xp):
    return Tensor(to_device(x, xp), requires_grad=True)


@dataclasses.dataclass(frozen=True)
class NTXent(Case):
    """SimCLR's loss over 2N = `views` embeddings. PyTorch: cross-entropy on z z^T / tau with a masked diagonal."""

    views: int
    d: int = 128
    tau: float = 0.5
    target: Target = Target()
    backends: tuple = ("numpy", "cupy")

    family = "losses"
    compiles = True
    name = property(lambda self: f"NT-Xent 2N={self.views}")

    def embeddings(self):
        z1 = normal(self.views // 2, self.d)
        return z1, z1 + normal(self.views // 2, self.d, seed=1, scale=0.3)

    def minicl(self, xp):
        z1, z2 = (leaf(z, xp) for z in self.embeddings())

        def step():
            z1.grad = z2.grad = None
            loss = contrastive.nt_xent(z1, z2, self.tau)
            loss.backward()
            return loss.data, z1.grad, z2.grad

        return step

    def torch(self, peer):
        from . import torch_models

        n = self.views
        z = peer.tensor(np.concatenate(self.embeddings()), requires_grad=True)
        nt_xent = peer.compile(torch_models.nt_xent)

        def step():
            z.grad = None
            loss = nt_xent(z, self.tau)
            loss.backward()
            return loss, z.grad[:n // 2], z.grad[n // 2:]

        return step

    def work(self):
        """S and its exponentials are symmetric: half of S is n^2 d flops, twice if not cached; dS z is 2 n^2 d."""
        cached = 4 * self.views**2 <= CACHE_BYTES
        return Work(flops=(3 if cached else 4) * self.views**2 * self.d, exps=(0.5 if cached else 1) * self.views**2)

    def tiny(self):
        return dataclasses.replace(self, views=24, d=8)


@dataclasses.dataclass(frozen=True)
class MoCoLoss(Case):
    """InfoNCE of a batch of queries against a queue. PyTorch: one matrix of all logits, as in MoCo's own code."""

    queue: int
    batch: int = 256
    d: int = 128
    tau: float = 0.07
    target: Target = Target()

    family = "losses"
    compiles = True
    name = property(lambda self: f"MoCo's loss, batch {self.batch}, K={self.queue}")

    def embeddings(self):
        queue = normal(self.queue, self.d, seed=2)
        queue /= np.linalg.norm(queue, axis=1, keepdims=True)
        return normal(self.batch, self.d), normal(self.batch, self.d, seed=1), queue

    def minicl(self, xp):
        query, key, queue = (to_device(z, xp) for z in self.embeddings())
        query = Tensor(query, requires_grad=True)

        def step():
            query.grad = None
            loss = contrastive.info_nce(query, key, queue, self.tau)
            loss.backward()
            return loss.data, query.grad

        return step

    def torch(self, peer):
        from . import torch_models

        query, keys, queue = (peer.tensor(z) for z in self.embeddings())
        query = query.requires_grad_()
        queue = queue.T.contiguous()                      # MoCo stores (d, K)
        moco_loss = peer.compile(torch_models.moco_loss)

        def step():
            query.grad = None
            loss = moco_loss(query, peer.torch.nn.functional.normalize(keys), queue, self.tau)
            loss.backward()
            return loss, query.grad

        return step

    def work(self):
        pairs = self.batch * self.queue
        return Work(flops=4 * pairs * self.d, exps=pairs, bytes=4 * self.queue * self.d)

    def tiny(self):
        return dataclasses.replace(self, queue=40, batch=8, d=8)


@dataclasses.dataclass(frozen=True)
class CLIPLoss(Case):
    """CLIP's symmetric loss of `pairs` images and texts with a learned logit scale. PyTorch: as in CLIP's figure 3."""

    pairs: int
    d: int = 128
    target: Target = Target()

    family = "losses"
    compiles = True
    name = property(lambda self: f"CLIP's loss, {self.pairs} pairs")

    def embeddings(self):
        image = normal(self.pairs, self.d)
        return image, image + normal(self.pairs, self.d, seed=1), np.float32(math.log(1 / 0.07))

    def minicl(self, xp):
        image, text, logit_scale = (leaf(np.asarray(z), xp) for z in self.embeddings())

        def step():
            image.grad = text.grad = logit_scale.grad = None
            loss = contrastive.clip_loss(image, text, logit_scale)
            loss.backward()
            return loss.data, image.grad, text.grad, logit_scale.grad

        return step

    def torch(self, peer):
        from . import torch_models

        image, text, logit_scale = (peer.tensor(z, requires_grad=True) for z in self.embeddings())
        clip_loss = peer.compile(torch_models.clip_loss)

        def step():
            image.grad = text.grad = logit_scale.grad = None
            loss = clip_loss(image, text, logit_scale)
            loss.backward()
            return loss, image.grad, text.grad, logit_scale.grad

        return step

    def work(self):
        return Work(flops=6 * self.pairs**2 * self.d, exps=self.pairs**2)

    def tiny(self):
        return dataclasses.replace(self, pairs=12, d=8)


CASES = [
    NTXent(512, target=Target(default=0.7, best=1.0, memory=1.0)),
    NTXent(2048, target=Target(default=0.4, best=0.8, memory=1.0)),
    NTXent(8192, target=Target(default=0.19, best=0.5, memory=0.05, floor=1.2)),
    NTXent(16384, target=Target(default=0.15, best=0.3, memory=0.05, floor=1.2)),
    NTXent(4096, backends=("cupy",), target=Target(default=1.0, memory=1.0)),
    NTXent(65536, backends=("cupy",), target=Target(default=1.0, memory=1.0)),
    MoCoLoss(65536, target=Target(default=0.3, best=0.6, memory=0.05)),
    CLIPLoss(4096, target=Target(default=0.6, memory=0.05)),
]
