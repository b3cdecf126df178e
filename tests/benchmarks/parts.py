"""Cases of the rest of a run: augmentation, the optimizer's update, the tape, the linear probe, start-up."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

import minicl
from minicl import Tensor
from minicl.backend import to_device
from minicl.data import mnist_views, simclr_views, two_views
from minicl.data.augment.geometric import RandomAffine, RandomResizedCrop
from minicl.evaluate import linear_probe
from minicl.optim import Adam

from .case import Case, Target, Work, normal
from .steps import CLIPStep, SimCLRStep, images

# ---------------------------------------------------------------- augmentation

@dataclasses.dataclass(frozen=True)
class Resample(Case):
    """A transform with its random parameters drawn beforehand. PyTorch: the same coordinates through F.grid_sample."""

    transform: object
    title: str
    batch: int = 512
    side: int = 28
    target: Target = Target()

    family = "augmentation"
    tolerance = 1e-3
    name = property(lambda self: f"{self.title}, {self.batch} of {self.side}x{self.side}")

    def arrays(self):
        x = images(self.batch, self.side, 1)
        return x, self.transform.draw(x.shape, np.random.default_rng(1))

    def minicl(self, xp):
        x, drawn = self.arrays()
        x = to_device(x, xp)
        rng = np.random.default_rng(1)
        transform = copy.copy(self.transform)
        object.__setattr__(transform, "draw", lambda shape, rng: drawn)  # bypasses the transform's check of attributes

        return lambda: (transform(x, rng),)

    def torch(self, peer):
        x, drawn = self.arrays()
        x = peer.images(x)
        grid = self.grid(peer, *drawn)

        def step():
            y = peer.torch.nn.functional.grid_sample(x, grid(), align_corners=True)
            return (y.permute(0, 2, 3, 1),)

        return step

    def work(self):
        return Work(bytes=2 * 4 * self.batch * self.side**2)

    def tiny(self):
        return dataclasses.replace(self, batch=5)


@dataclasses.dataclass(frozen=True)
class Affine(Resample):
    transform: object = RandomAffine(degrees=20, translate=0.1, scale=(0.75, 1.25), shear=15)
    title: str = "affine warp"

    def grid(self, peer, matrix):
        """affine_grid's form of the matrices: (x, y) in [-1, 1], where minicl's take (row, column) in pixels."""
        half = (self.side - 1) / 2
        theta = matrix.copy()
        theta[:, :, 2] = matrix[:, :, :2].sum(axis=2) + matrix[:, :, 2] / half - 1
        theta = peer.tensor(theta[:, ::-1][:, :, [1, 0, 2]].astype("float32"))
        size = (self.batch, 1, self.side, self.side)
        return lambda: peer.torch.nn.functional.affine_grid(theta, size, align_corners=True)


@dataclasses.dataclass(frozen=True)
class CropResize(Resample):
    transform: object = RandomResizedCrop(28, scale=(0.2, 1.0))
    title: str = "crop and resize"

    def grid(self, peer, row_centres, column_centres):
        y, x = (peer.tensor(c.astype("float32")) for c in (row_centres, column_centres))         # (B, side) each

        def grid():
            u, v = (c * (2 / (self.side - 1)) - 1 for c in (x, y))
            shape = (self.batch, self.side, self.side)
            return peer.torch.stack([u[:, None, :].expand(shape), v[:, :, None].expand(shape)], dim=3)

        return grid


@dataclasses.dataclass(frozen=True)
class Views(Case):
    """An example's whole augmentation, including random draws: two views of each of `batch` images. No peer."""

    recipe: str
    batch: int = 256
    target: Target = Target()

    family = "augmentation"
    name = property(lambda self: f"{self.recipe}, two views of {self.batch}")

    def minicl(self, xp):
        recipes = {"mnist_views": (mnist_views(), 28, 1), "simclr_views": (simclr_views(), 32, 3)}
        augment, *shape = recipes[self.recipe]
        x = to_device(images(self.batch, *shape), xp)
        rng = np.random.default_rng(0)
        return lambda: two_views(augment, x, rng)

    def tiny(self):
        return dataclasses.replace(self, batch=4)


# ---------------------------------------------------------------- engine

@dataclasses.dataclass(frozen=True)
class AdamStep(Case):
    """One update of all parameters of an example's model with given gradients."""

    step: Case
    target: Target = Target()

    family = "engine"
    name = property(lambda self: f"Adam, model of the {self.step.name.split(', batch')[0]}")

    def minicl(self, xp):
        model = self.step.model().to(xp)
        optimizer = Adam(model, 1e-3)
        for p in model.parameters():
            p.grad[...] = to_device(normal(*p.shape), xp)

        def step():
            optimizer.step()
            return [p.data for p in model.parameters()]

        return step

    def torch(self, peer):
        from . import torch_models

        model = self.step.model()
        net = torch_models.like(model, peer)
        optimizer = peer.torch.optim.Adam(net.parameters(), 1e-3, fused=peer.fused)
        for p in net.parameters():
            p.grad = peer.torch.zeros_like(p)
        for ours, theirs in zip(model.parameters(), torch_models.in_our_layout(net)):
            theirs.copy_(peer.tensor(normal(*ours.shape)))

        def step():
            optimizer.step()
            return torch_models.in_our_layout(net, lambda p: p.detach())

        return step

    def work(self):
        return Work(bytes=7 * 4 * sum(p.size for p in self.step.model().parameters()))    # reads g m v w, writes m v w

    def tiny(self):
        return dataclasses.replace(self, step=self.step.tiny())


@dataclasses.dataclass(frozen=True)
class Tape(Case):
    """`ops` multiplications and additions of 16 numbers in sequence, and the backward walk: the overhead of an op."""

    ops: int = 1000
    target: Target = Target()

    family = "engine"
    tolerance = 1e-3
    name = property(lambda self: f"tape, {self.ops} tiny ops")

    def minicl(self, xp):
        x = Tensor(to_device(normal(16, scale=0.1), xp), requires_grad=True)

        def step():
            x.grad = None
            y = x
            for _ in range(self.ops // 2):
                y = y * x + x
            loss = y.sum()
            loss.backward()
            return loss.data, x.grad

        return step

    def torch(self, peer):
        x = peer.tensor(normal(16, scale=0.1), requires_grad=True)

        def step():
            x.grad = None
            y = x
            for _ in range(self.ops // 2):
                y = y * x + x
            loss = y.sum()
            loss.backward()
            return loss, x.grad

        return step

    def tiny(self):
        return dataclasses.replace(self, ops=8)


@dataclasses.dataclass(frozen=True)
class LinearProbe(Case):
    """evaluate.linear_probe: a classifier trained on frozen features; the step's result is its accuracy."""

    rows: int = 10000
    features: int = 512
    steps: int = 30
    target: Target = Target()

    family = "engine"
    tolerance = 0.02
    name = property(lambda self: f"linear probe, {self.rows} x {self.features}, {self.steps} steps")

    def data(self):
        labels = np.random.default_rng(0).integers(0, 10, self.rows)
        x = normal(self.rows, self.features) + 2 * normal(10, self.features, seed=1)[labels]
        return x, labels

    def minicl(self, xp):
        x, labels = self.data()
        x = to_device(x, xp)
        return lambda: (np.float32(linear_probe(x, labels, x, labels, steps=self.steps)),)

    def torch(self, peer):
        torch = peer.torch
        F = peer.torch.nn.functional
        x, labels = map(peer.tensor, self.data())

        def step():
            z = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
            classifier = torch.nn.Linear(self.features, 10, device=x.device)
            for parameter in classifier.parameters():
                torch.nn.init.zeros_(parameter)
            optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=self.steps, tolerance_grad=1e-4, history_size=10,
                                          line_search_fn="strong_wolfe")

            def loss():
                optimizer.zero_grad()
                penalty = (classifier.weight**2).sum() / (2 * self.rows)
                loss = F.cross_entropy(classifier(z), labels) + penalty
                loss.backward()
                return loss

            optimizer.step(loss)
            return ((classifier(z).argmax(dim=1) == labels).to(torch.float32).mean(),)

        return step

    def tiny(self):
        return dataclasses.replace(self, rows=200, features=32)


@dataclasses.dataclass(frozen=True)
class StartUp(Case):
    """python -c "import minicl" in a fresh process."""

    target: Target = Target()

    family = "engine"
    name = "import minicl"
    backends = ("numpy",)

    def minicl(self, xp):
        command = [sys.executable, "-c", "import minicl"]
        root = Path(minicl.__file__).parents[1]

        def step():
            subprocess.run(command, cwd=root, check=True)
            return ()

        return step

    def tiny(self):
        return self


CASES = [
    CropResize(target=Target(default=0.5, memory=1.0)),
    Affine(target=Target(default=0.8, memory=1.0)),
    Views("mnist_views"),
    Views("simclr_views"),
    AdamStep(SimCLRStep(encoder="convnet"), Target(default=0.5, memory=1.0)),
    AdamStep(SimCLRStep(encoder="mlp"), Target(default=0.5, memory=1.0)),
    AdamStep(CLIPStep(), Target(default=0.5, memory=1.0)),
    Tape(target=Target(default=0.5, memory=1.0)),
    LinearProbe(target=Target(memory=1.0)),
    StartUp(target=Target(seconds=0.25)),
]
