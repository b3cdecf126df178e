"""CLIP (Radford et al. 2021): an image encoder and a text encoder that meet in one space.

    for images, texts in batches:                         # N pairs
        u = W_i image_encoder(images)                     # (N, dim)
        v = W_t text_encoder(texts)                       # (N, dim)
        s = exp(logit_scale) cos(u_i, v_j)                # (N, N)
        L = (cross_entropy(s, diagonal) + cross_entropy(s^T, diagonal)) / 2
        optimizer.step(); logit_scale = min(logit_scale, log 100)
"""

import math

import numpy as np

from ..autograd import Tensor
from ..backend import array_module
from ..checks import require_within
from ..nn import Linear, Module, Parameter, Sequential
from ..tensor import mark_changed
from ..typing import Array, Rng

TAU = 0.07                    # CLIP's temperature at the start
MAX_SCALE = 100               # of exp(logit_scale)


class CLIP(Module):
    """images (B, H, W, C) and token ids (B, T) -> their embeddings (B, dim), not yet normalised: the loss does that.

    image, text  an encoder each, and a linear projection without bias (section 2.3)
    logit_scale  Parameter (), the logarithm of 1/tau; log(1/0.07) at first. Call clamp_logit_scale() after each step
    tau          the temperature at the start (or temperature), at least 1/100, where the clamp holds it
    """

    def __init__(self, image_encoder: Module, text_encoder: Module, dim: int = 64, *, tau: float = TAU, rng: Rng):
        require_within("CLIP", f"[{1 / MAX_SCALE}, inf)", tau=tau)           # below it would start above its own cap
        self.image, self.text = (Sequential(encoder, Linear(encoder.features, dim, bias=False, rng=rng))
                                 for encoder in (image_encoder, text_encoder))
        self.logit_scale = Parameter(np.asarray(math.log(1 / tau), dtype="float32"))

    encoder = property(lambda self: self.image)

    def forward(self, images: Array, ids: Array) -> tuple[Tensor, Tensor]:
        return self.image(images), self.text(ids)

    def clamp_logit_scale(self) -> None:
        """Hold exp(logit_scale) at 100 or below (section 2.5: without that, training was unstable)."""
        data = self.logit_scale.data
        array_module(data).minimum(data, math.log(MAX_SCALE), out=data)
        mark_changed([("logit_scale", self.logit_scale)], "clamp_logit_scale()")
