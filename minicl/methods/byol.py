"""BYOL (Grill et al. 2020): a network predicts the embedding of the other view by a slow copy of itself.

    for x in batches:
        views = [augment(x); augment(x)]
        p = predictor(online(views))                      # (2N, d)
        t = target(views)                                 # (2N, d), not recorded
        L = mean 2 - 2 cos(p, t of the other view)
        optimizer.step()                                  # online network and predictor
        target = m target + (1 - m) online

No negatives. The target is a moving average of past weights and gets no gradient. See docs/methods/without-negatives.md
"""

from ..autograd import Tensor
from ..backend import Number
from ..contrastive import negative_cosine
from ..nn import Module
from ..no_grad import in_no_grad, no_grad
from ..typing import Array
from .ema import EMA, frozen_copy
from .simclr import SimCLR
from .simsiam import other_view


class BYOL(Module):
    """Online encoder and head, predictor, and target. Its forward, images -> (h, z), is the online network.

    m: momentum of the target, 0.996 in the paper's long runs, 0.99 and less in short ones.

    One step, with both views in one batch:

        views = xp.concatenate([view1, view2])
        h, z = model(views)
        loss = model.loss(z, model.targets(views))
        ...
        optimizer.step()
        model.update()
    """

    _setting_ranges = {"m": "[0, 1)"}                                        # at 1 the target would never learn
    _scheduled = ("m",)                                                      # perhaps set in each step: a checkpoint has it

    def __init__(self, encoder: Module, head: Module, predictor: Module, *, m: float = 0.99):
        self.m = m
        self.online = SimCLR(encoder, head)
        self.predictor = predictor
        self.target = frozen_copy(self.online)
        self.ema = EMA(self.online, self.target)

    encoder = property(lambda self: self.online.encoder)

    def forward(self, images: Array) -> tuple[Tensor, Tensor]:
        return self.online(images)                                           # (B, features), (B, d)

    def targets(self, images: Array) -> Tensor:
        """z of the target network, not recorded: (B, d), a constant Tensor."""
        self.ema.match()
        with no_grad():
            return self.target(images)[1]

    def loss(self, z: Tensor, targets: Tensor) -> Tensor:
        """Eq. 2 for z and targets (2N, d) of [view1; view2], in [0, 4]: the mean of both directions (the paper sums).
        A call for each view alone would compare different images."""
        if self.training and not in_no_grad():
            self.ema.used()
            if targets.requires_grad or not z.requires_grad and any(p.requires_grad for p in self.online.parameters()):
                raise ValueError("BYOL.loss: expected z of the online network, with a gradient, and targets without one: "
                                 "h, z = model(views); model.loss(z, model.targets(views))")
        return 2 + 2 * negative_cosine(self.predictor(z), other_view(targets), world=self.world)

    def update(self) -> None:
        """Update the target, after the optimizer's step. Raises RuntimeError in evaluation mode."""
        self.ema.require("BYOL", self.online, self.target)
        self.ema.update(Number(lambda: self.m))
