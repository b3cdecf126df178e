"""The losses of contrastive learning, a file each, and their parts: cosines and the temperature softmax."""

from . import composed
from .alignment_uniformity import alignment_loss, uniformity_loss
from .barlow_twins import barlow_twins
from .clip import clip_loss
from .cosine import cosine_similarity, l2_normalize
from .dcl import dcl, mises_fisher_weights
from .info_nce import info_nce
from .negative_cosine import negative_cosine
from .nt_xent import nt_xent
from .scores import choice_accuracy, info_nce_from_scores
from .siglip import SIGLIP_BIAS, SIGLIP_LOGIT_SCALE, siglip
from .softmax import log_softmax, softmax
from .sup_con import sup_con
from .triplet import semi_hard_negatives, triplet
from .vicreg import vicreg

__all__ = ["SIGLIP_BIAS", "SIGLIP_LOGIT_SCALE", "alignment_loss", "barlow_twins", "choice_accuracy", "clip_loss",
           "composed", "cosine_similarity", "dcl", "info_nce", "info_nce_from_scores", "l2_normalize", "log_softmax",
           "mises_fisher_weights", "negative_cosine", "nt_xent", "semi_hard_negatives", "siglip", "softmax", "sup_con",
           "triplet", "uniformity_loss", "vicreg"]
