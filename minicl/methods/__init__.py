"""Methods: what each system of contrastive learning trains. The losses are in contrastive/, the loops in examples/."""

from .byol import BYOL
from .clip import CLIP
from .cpc import CPC, NoMemory, WindowEncoder
from .moco import MoCo
from .momentum import Momentum, frozen_copy
from .queue import Queue
from .simclr import SimCLR
from .simsiam import SimSiam

__all__ = ["BYOL", "CLIP", "CPC", "MoCo", "Momentum", "NoMemory", "Queue", "SimCLR", "SimSiam", "WindowEncoder",
           "frozen_copy"]
