"""Cases of whole training steps, as in the examples: model, loss, backward, optimizer, through the real engine.

The views are drawn beforehand (augmentation has its own cases). Both models begin with the same weights.
"""

import dataclasses
import math

import numpy as np

from minicl.backend import to_device
from minicl.contrastive import clip_loss, nt_xent
from minicl.methods import CLIP, SimCLR
from minicl.methods import MoCo as MoCoModel
from minicl.nn import MLP, ConvNet, ResNet18, Transformer, projection_head
from minicl.optim import AdamW

from .case import Case, Target, normal

LR, WEIGHT_DECAY = 1e-3, 1e-4


def images(n, side, channels, seed=0):
    return np.random.default_rng(seed).random((n, side, side, channels), dtype="float32")


def encoder_and_head(kind, side, dim, width=64):
    """(encoder, head) as in examples/simclr_mnist.py, or for "resnet18" (of this width) simclr_cifar10.py."""
    rng = np.random.default_rng(0)
    hidden = 256
    if kind == "resnet18":
        encoder = ResNet18((side, side, 3), width, rng=rng)
        hidden = None
    else:
        encoder = {"convnet": ConvNet, "mlp": MLP}[kind]((side, side, 1), rng=rng)
    return encoder, projection_head("mlp", encoder.features, hidden=hidden, dim=dim, rng=rng)


def gradients(parameters):
    return [p.grad for p in parameters]


@dataclasses.dataclass(frozen=True)
class Step(Case):
    batch: int = 256
    dim: int = 128
    tau: float = 0.2
    target: Target = Target()
    backends: tuple = ("numpy", "cupy")

    family = "training steps"
    compiles = True
    layouts = True

    def optimizer(self, model):
        return AdamW(model, LR, weight_decay=WEIGHT_DECAY)


@dataclasses.dataclass(frozen=True)
class SimCLRStep(Step):
    """A step on 2 x `batch` views: encoder, head, NT-Xent, AdamW."""

    encoder: str = "convnet"
    side: int = 28
    width: int = 64

    layouts = property(lambda self: self.encoder != "mlp")
    name = property(lambda self: f"SimCLR step, {self.encoder}, batch {self.batch}")

    def views(self):
        return images(2 * self.batch, self.side, 3 if self.encoder == "resnet18" else 1)

    def model(self):
        return SimCLR(*encoder_and_head(self.encoder, self.side, self.dim, self.width))

    def minicl(self, xp):
        views = to_device(self.views(), xp)
        model = self.model().to(xp)
        optimizer = self.optimizer(model)
        parameters = model.parameters()

        def step():
            h, z = model(views)
            loss = nt_xent(z[:self.batch], z[self.batch:], self.tau)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.data, *gradients(parameters)

        return step

    def torch(self, peer):
        from . import torch_models

        views = peer.images(self.views())
        net = torch_models.like(self.model(), peer)
        optimizer = torch_models.adamw(net, LR, WEIGHT_DECAY, peer)
        loss_of = peer.compile(lambda views: torch_models.nt_xent(net(views), self.tau))

        def step():
            loss = loss_of(views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss, *torch_models.in_our_layout(net)

        return step

    def tiny(self):
        return dataclasses.replace(self, batch=6, side=16 if self.encoder == "resnet18" else 12, dim=8, width=4)


@dataclasses.dataclass(frozen=True)
class MoCoStep(Step):
    """A step of examples/moco_mnist.py with a full queue: queries, shuffled keys, InfoNCE, AdamW, momentum, queue."""

    queue: int = 65536
    side: int = 28

    name = property(lambda self: f"MoCo step, convnet, batch {self.batch}, K={self.queue}")

    def model(self):
        model = MoCoModel(*encoder_and_head("convnet", self.side, self.dim), dim=self.dim, queue=self.queue, m=0.99)
        model.queue.enqueue(normal(self.queue, self.dim))
        return model

    def views(self):
        return images(self.batch, self.side, 1), images(self.batch, self.side, 1, seed=1)

    def minicl(self, xp):
        model = self.model().to(xp)
        rng = np.random.default_rng(0)
        view1, view2 = (to_device(view, xp) for view in self.views())
        optimizer = self.optimizer(model)
        parameters = model.parameters()

        def step():
            h, q = model(view1)
            k = model.encode_keys(view2, rng)
            loss = model.loss(q, k, self.tau)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update()
            return loss.data, *gradients(parameters)

        return step

    def torch(self, peer):
        from . import torch_models

        net = torch_models.like(self.model(), peer)
        rng = np.random.default_rng(0)
        view1, view2 = map(peer.images, self.views())
        optimizer = torch_models.adamw(net.query, LR, WEIGHT_DECAY, peer)
        loss_of = peer.compile(lambda view, *keys: torch_models.moco_loss(net.query(view), *keys, self.tau))

        def step():
            keys = net.encode_keys(view2, peer.tensor(rng.permutation(self.batch)))
            loss = loss_of(view1, keys, net.queue)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            net.update(keys)
            return loss, *torch_models.in_our_layout(net)

        return step

    def tiny(self):
        return dataclasses.replace(self, batch=64, queue=192, side=12, dim=8)


@dataclasses.dataclass(frozen=True)
class CLIPStep(Step):
    """A step of examples/clip_captions.py: colour images, captions of up to 16 tokens, AdamW, a learned temperature."""

    dim: int = 64
    length: int = 16
    words: int = 64

    name = property(lambda self: f"CLIP step, convnet and Transformer, batch {self.batch}")

    def model(self):
        rng = np.random.default_rng(0)
        image = ConvNet((32, 32, 3), (32, 64, 128, 128), strides=(2, 2, 2, 1), rng=rng)
        return CLIP(image, Transformer(self.words, self.length, depth=1, rng=rng), self.dim, rng=rng)

    def pairs(self):
        """(images, token ids padded with zeros, caption_ids); some captions occur twice."""
        rng = np.random.default_rng(1)
        ids = rng.integers(1, self.words, (self.batch, self.length))
        ids *= np.arange(self.length) < rng.integers(4, self.length, (self.batch, 1))
        caption_ids = np.arange(self.batch)
        caption_ids[1:self.batch // 4:2] -= 1
        return images(self.batch, 32, 3), ids[caption_ids], caption_ids

    def minicl(self, xp):
        model = self.model().to(xp)
        pictures, ids, caption_ids = (to_device(array, xp) for array in self.pairs())
        optimizer = self.optimizer(model)
        parameters = model.parameters()

        def step():
            image, text = model(pictures, ids)
            loss = clip_loss(image, text, model.logit_scale, caption_ids=caption_ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.clamp_logit_scale()
            return loss.data, *gradients(parameters)

        return step

    def torch(self, peer):
        from . import torch_models

        net = torch_models.like(self.model(), peer)
        pictures, ids, caption_ids = self.pairs()
        pictures = peer.images(pictures)
        ids = peer.tensor(ids)
        caption_ids = peer.tensor(caption_ids)
        optimizer = torch_models.adamw(net, LR, WEIGHT_DECAY, peer)
        scale, = net.scale
        loss_of = peer.compile(lambda pictures, ids: torch_models.clip_loss(*net(pictures, ids), scale, caption_ids))

        def step():
            loss = loss_of(pictures, ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scale.data.clamp_(max=math.log(100))
            return loss, *torch_models.in_our_layout(net)

        return step

    def tiny(self):
        return dataclasses.replace(self, batch=8, length=6, dim=8)


CASES = [
    SimCLRStep(encoder="convnet", target=Target(default=0.85, best=1.05, memory=1.0)),
    SimCLRStep(encoder="mlp", target=Target(default=0.8, best=1.0, memory=1.0)),
    MoCoStep(target=Target(default=0.25, best=0.75, memory=1.0)),
    CLIPStep(target=Target(default=0.85, best=1.15, memory=1.0)),
    SimCLRStep(batch=64, encoder="resnet18", side=32, target=Target(default=0.8, best=1.0, memory=1.0)),
    SimCLRStep(batch=1024, encoder="convnet", backends=("cupy",), target=Target(default=1.0)),
    SimCLRStep(batch=512, encoder="resnet18", side=32, backends=("cupy",), target=Target(default=2.0)),
]
