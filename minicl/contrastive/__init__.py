"""The contrastive heart: similarities, the temperature softmax, and the losses, each gradient derived by hand."""

from . import composed
from .cosine import cosine_similarity, l2_normalize
from .infonce import info_nce, nt_xent
from .softmax import log_softmax, softmax

__all__ = ["composed", "cosine_similarity", "info_nce", "l2_normalize", "log_softmax", "nt_xent", "softmax"]
