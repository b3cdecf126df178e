"""SimSiam (Chen & He 2021): two views, one network, no negatives, and a stop-gradient.

    for x in batches:
        h, z = model([augment(x); augment(x)])            # (2N, features), (2N, d)
        p = predictor(z)                                  # (2N, d)
        L = -mean cos(p, stop_gradient(z of the other view))
        optimizer.step()

Similarity alone is maximal when z is the same for every image. Only the detach in contrastive.negative_cosine and the
predictor prevent this collapse. See docs/methods/without-negatives.md
"""

from ..autograd import Tensor
from ..contrastive import negative_cosine
from ..nn import Module
from ..ops import concat
from .simclr import SimCLR


class SimSiam(SimCLR):
    """SimCLR's images -> (h, z), and a predictor of the other view's z: predictor(z) (B, d) -> p (B, d).

    One step, with both views in one batch:

        h, z = model(xp.concatenate([view1, view2]))
        loss = model.loss(z)
    """

    def __init__(self, encoder: Module, head: Module, predictor: Module):
        super().__init__(encoder, head)
        self.predictor = predictor

    def loss(self, z: Tensor) -> Tensor:
        """Algorithm 1 for z (2N, d) of [view1; view2]: each view predicts the other, the mean of both directions.
        A call for each view alone would compare different images."""
        return negative_cosine(self.predictor(z), other_view(z), world=self.world)


def other_view(z: Tensor) -> Tensor:
    """[z2; z1] for a Tensor [z1; z2] (2N, d): each row is the other view of its image."""
    if len(z) % 2:
        raise ValueError(f"expected two views of each image, [view1; view2] in one batch, got {len(z)} rows")
    N = len(z) // 2
    return concat(z[N:], z[:N])
