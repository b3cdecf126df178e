"""Methods: what each system of contrastive learning trains. The losses are in contrastive/, the loops in examples/.

What a method must offer, so that encode(), the probes and a training loop can use it:

    forward(images)   -> (h, z), Tensors: h (B, features) is evaluated, z (B, d) is what the loss compares. Methods of
                      two inputs (CLIP, CPC) give one embedding of each instead
    encoder           the Module that gives h, which minicl.load hands out
    loss(z, ...)      -> a scalar Tensor, where a predictor, a target or a queue takes part in it
    update()          after optimizer.step(), where something follows without a gradient: a target, a queue, a clamp.
                      It raises in evaluation mode

Its parameters() are what an optimizer trains: a target's weights are Frozen, saved but not among them.
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
