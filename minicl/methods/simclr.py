"""SimCLR (Chen et al. 2020): one encoder, one projection head, NT-Xent between two views."""

from ..nn import Module


class SimCLR(Module):
    """images -> (h, z): h = encoder(images) is the representation that is kept, z = head(h) what the loss compares.

    Give it both views in one batch, [view1; view2]: batch norm then sees the statistics of both together.
    """

    def __init__(self, encoder, head):
        self.encoder, self.head = encoder, head

    def forward(self, images):
        h = self.encoder(images)                                             # (B, features)
        return h, self.head(h)                                               # (B, d)
