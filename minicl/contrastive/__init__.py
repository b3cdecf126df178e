"""The contrastive heart: similarities, the temperature softmax, and the losses, each gradient derived by hand."""

from . import composed
from .clip import clip_loss
from .cosine import cosine_similarity, l2_normalize
from .infonce import info_nce, nt_xent
from .redundancy import barlow_twins, vicreg
from .scores import choice_accuracy, info_nce_from_scores
from .softmax import log_softmax, softmax
from .sphere import alignment_loss, negative_cosine, uniformity_loss
from .variants import SIGLIP_BIAS, SIGLIP_LOGIT_SCALE, dcl, semi_hard_negatives, siglip, sup_con, triplet

__all__ = ["SIGLIP_BIAS", "SIGLIP_LOGIT_SCALE", "alignment_loss", "barlow_twins", "choice_accuracy", "clip_loss",
           "composed", "cosine_similarity", "dcl", "info_nce", "info_nce_from_scores", "l2_normalize", "log_softmax",
           "negative_cosine", "nt_xent", "semi_hard_negatives", "siglip", "softmax", "sup_con", "triplet",
           "uniformity_loss", "vicreg"]
