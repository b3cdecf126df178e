"""Methods: what each system of contrastive learning trains. The losses are in contrastive/, the loops in examples/."""

from .simclr import SimCLR

__all__ = ["SimCLR"]
