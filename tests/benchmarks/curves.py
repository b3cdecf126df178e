"""The cases of docs/scaling.md: losses and training steps at sizes that grow by a factor of four."""

import dataclasses
import math

import numpy as np

from minicl import contrastive

from .case import Case, normal
from .losses import CLIPLoss, MoCoLoss, NTXent, leaf
from .steps import CLIPStep, MoCoStep, SimCLRStep

SIZES = (256, 1024, 4096, 16384, 65536)


@dataclasses.dataclass(frozen=True)
class Curve:
    """cases {N: Case}; `unit` names what N counts."""

    title: str
    unit: str
    cases: dict


@dataclasses.dataclass(frozen=True)
class Loss(Case):
    """A loss of N pairs of vectors, one case per size, without a peer."""

    title: str
    rows: int
    d: int = 128

    name = property(lambda self: f"{self.title}, {self.rows} pairs")

    def minicl(self, xp):
        z1 = normal(self.rows, self.d)
        z1, z2 = leaf(z1, xp), leaf(z1 + normal(self.rows, self.d, seed=1), xp)

        def step():
            z1.grad = z2.grad = None
            loss = FUNCTIONS[self.title](z1, z2)
            loss.backward()
            return loss.data, *(z.grad for z in (z1, z2) if z.grad is not None)

        return step

    def tiny(self):
        return dataclasses.replace(self, rows=24, d=8)


FUNCTIONS = {
    "SigLIP": lambda z1, z2: contrastive.siglip(z1, z2, math.log(10), -10.0),
    "DCL": lambda z1, z2: contrastive.dcl(z1, z2, 0.1),
    "SupCon of 10 classes": lambda z1, z2: contrastive.sup_con(z1, 0.1, labels=np.arange(len(z1)) % 10),
    "uniformity": lambda z1, z2: contrastive.uniformity_loss(z1),
    "triplet": lambda z1, z2: contrastive.triplet(z1[1:], z2[1:], z2[:-1]),
    "VICReg": contrastive.vicreg,
    "Barlow Twins": contrastive.barlow_twins,
}


def curve(title, unit, case):
    return Curve(title, unit, {N: case(N) for N in SIZES})


LOSSES = [
    curve("NT-Xent", "views", NTXent),
    curve("CLIP's loss", "pairs", CLIPLoss),
    curve("MoCo's loss of 256 queries", "keys in the queue", MoCoLoss),
    *(curve(title, "pairs", lambda N, title=title: Loss(title, N)) for title in FUNCTIONS),
]
STEPS = [
    curve("SimCLR step, ConvNet", "views", lambda N: SimCLRStep(batch=N // 2)),
    curve("SimCLR step, MLP", "views", lambda N: SimCLRStep(batch=N // 2, encoder="mlp")),
    curve("MoCo step, ConvNet, 65,536 keys", "images", lambda N: MoCoStep(batch=N)),
    curve("CLIP step, ConvNet and Transformer", "pairs", lambda N: CLIPStep(batch=N)),
]
CURVES = LOSSES + STEPS
