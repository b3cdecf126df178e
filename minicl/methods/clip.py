"""CLIP (Radford et al. 2021): an image encoder and a text encoder with a common embedding space.

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

TAU = 0.07                    # CLIP's initial temperature
MAX_SCALE = 100               # of exp(logit_scale)


class CLIP(Module):
    """images (B, H, W, C) and token ids (B, T) -> embeddings (B, dim) of each, not normalised; the loss normalises them.

    image, text  encoders, each with a linear projection without bias (section 2.3)
    logit_scale  Parameter (), log(1/tau), initially log(1/0.07). Call clamp_logit_scale() after each step
    tau          initial temperature (or temperature=), at least 1/100, the clamp's limit
    """

    def __init__(self, image_encoder: Module, text_encoder: Module, dim: int = 64, *, tau: float = TAU, rng: Rng):
        require_within("CLIP", f"[{1 / MAX_SCALE}, inf)", tau=tau)           # below, the scale starts above its cap
        self.image, self.text = (Sequential(encoder, Linear(encoder.features, dim, bias=False, rng=rng))
                                 for encoder in (image_encoder, text_encoder))
        self.logit_scale = Parameter(np.asarray(math.log(1 / tau), dtype="float32"))

    encoder = property(lambda self: self.image)

    def forward(self, images: Array, ids: Array) -> tuple[Tensor, Tensor]:
        return self.image(images), self.text(ids)

    def clamp_logit_scale(self) -> None:
        """Limit exp(logit_scale) to 100 (section 2.5: without this, training was unstable)."""
        data = self.logit_scale.data
        array_module(data).minimum(data, math.log(MAX_SCALE), out=data)
        mark_changed([("logit_scale", self.logit_scale)], "clamp_logit_scale()")
