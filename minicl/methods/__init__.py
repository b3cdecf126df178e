"""Methods: the models of contrastive learning systems. The losses are in contrastive/, the training loops in examples/.

A method offers the following to encode(), the probes and a training loop:

    forward(images)   -> (h, z), Tensors: h (B, features) is evaluated, z (B, d) is compared by the loss. Methods of two
                      inputs (CLIP, CPC) return one embedding of each instead
    encoder           the Module that computes h, for minicl.load
    loss(z, ...)      -> a scalar Tensor, if a predictor, a target or a queue takes part in the loss
    update()          called after optimizer.step(), if a target, a queue or a clamp changes without a gradient. It
                      raises in evaluation mode

Its parameters() are those that an optimizer trains. A target's weights are Frozen: saved, but not parameters.
"""

from .byol import BYOL
from .clip import CLIP
from .cpc import CPC, LastContext, WindowEncoder
from .ema import EMA, frozen_copy
from .grad_cache import grad_cache
from .moco import MoCo
from .queue import Queue
from .simclr import SimCLR
from .simsiam import SimSiam

__all__ = ["BYOL", "CLIP", "CPC", "EMA", "LastContext", "MoCo", "Queue", "SimCLR", "SimSiam", "WindowEncoder",
           "frozen_copy", "grad_cache"]
