"""The losses in readable form, by name: small ops, differentiated by the tape.

The code is at the top of each loss's file. Tests compare these with the fused losses: loss and gradients agree to
1e-12. Read these, and train with the fused ones. Each first calls the fused loss, which refuses wrong arguments.
"""

from .alignment_uniformity import composed_alignment as alignment_loss
from .alignment_uniformity import composed_uniformity as uniformity_loss
from .barlow_twins import composed as barlow_twins
from .clip import composed as clip_loss
from .dcl import composed as dcl
from .info_nce import composed as info_nce
from .negative_cosine import negative_cosine
from .nt_xent import composed as nt_xent
from .siglip import composed as siglip
from .softmax import EXCLUDED
from .sup_con import composed as sup_con
from .triplet import composed as triplet
from .vicreg import composed as vicreg

__all__ = ["EXCLUDED", "alignment_loss", "barlow_twins", "clip_loss", "dcl", "info_nce", "negative_cosine", "nt_xent",
           "siglip", "sup_con", "triplet", "uniformity_loss", "vicreg"]
