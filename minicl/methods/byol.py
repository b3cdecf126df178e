"""BYOL (Grill et al. 2020): a network predicts what a slow copy of itself says of the other view.

    p = predictor(online(view1)),   L = 2 - 2 cos(p, target(view2)),   target <- m target + (1 - m) online

No negatives. The target is a moving average of past weights and gets no gradient; what SimSiam's stop-gradient does
within a step, it does across steps too. See docs/methods/without-negatives.md
"""

from ..autograd import no_grad
from ..contrastive import negative_cosine
from ..nn import Module
from .momentum import Momentum, frozen_copy
from .simclr import SimCLR
from .simsiam import other_view


class BYOL(Module):
    """Online encoder and head, predictor, and a target that follows. Called as a model, images -> (h, z), it is the
    online network: that is what is kept and evaluated.

    m  momentum of the target: 0.996 in the paper's long runs, 0.99 and less in short ones

    One step, with both views in one batch:

        views = xp.concatenate([view1, view2])
        h, z = model(views)
        loss = model.loss(z, model.targets(views))
        ...
        optimizer.step()
        model.update()
    """

    def __init__(self, encoder, head, predictor, *, m=0.99):
        if not 0 <= m < 1:
            raise ValueError(f"BYOL: m must be in [0, 1), got {m}; at 1 the target would never learn anything")
        self.online, self.predictor = SimCLR(encoder, head), predictor
        self.target = frozen_copy(self.online)
        self.m, self.momentum = m, Momentum(self.online, self.target)

    def forward(self, images):
        return self.online(images)                                           # (B, features), (B, d)

    def targets(self, images):
        """z of the target network, on no tape: (B, d), a constant Tensor."""
        with no_grad():
            return self.target(images)[1]

    def loss(self, z, targets):
        """Eq. 2 for z and targets (2N, d) of [view1; view2], in [0, 4]: each view predicts the target of the other.

        The mean of both directions, where the paper has their sum.
        """
        return 2 + 2 * negative_cosine(self.predictor(z), other_view(targets))

    def update(self):
        """After the optimizer's step: the target follows. Raises RuntimeError in evaluation mode."""
        self.momentum.update(self.m)
