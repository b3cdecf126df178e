"""SimCLR (Chen et al. 2020): one encoder, one projection head, NT-Xent between two views.

    for x in batches:
        h, z = model([augment(x); augment(x)])            # both views in one batch: (2N, features), (2N, d)
        L = nt_xent(z[:N], z[N:], tau)                    # each view's positive is the other view of its image
        optimizer.step()                                  # the negatives are the 2N - 2 other views
"""

from ..autograd import Tensor
from ..nn import Module
from ..typing import Array


class SimCLR(Module):
    """images -> (h, z): h = encoder(images) is the representation, z = head(h) the embedding for the loss.

    Pass both views in one batch, [view1; view2], so that batch norm uses the statistics of both.

    >>> from minicl import nn
    >>> rng = np.random.default_rng(0)
    >>> encoder = nn.MLP((28, 28, 1), rng=rng)
    >>> model = SimCLR(encoder, nn.projection_head("mlp", encoder.features, dim=64, rng=rng))
    >>> h, z = model(rng.random((8, 28, 28, 1), dtype="float32"))
    >>> h.shape, z.shape
    ((8, 256), (8, 64))
    """

    def __init__(self, encoder: Module, head: Module):
        self.encoder = encoder
        self.head = head

    def forward(self, images: Array) -> tuple[Tensor, Tensor]:
        h = self.encoder(images)                                             # (B, features)
        return h, self.head(h)                                               # (B, d)
