"""Encoders: images (B, H, W, C) -> representations h (B, features). The representation is used after training.

An encoder is a Module with

    features        int: the width of h, from which the head, the probe and CLIP's projection are built
    forward(x)      a batch of inputs -> h (B, features), a Tensor

An encoder of images also has image_shape (H, W, C), which as_images checks. Every method in minicl.methods takes an
encoder of your own:

    class Flat(nn.Encoder):
        def __init__(self, image_shape, *, rng):
            self.image_shape, self.features = image_shape, 64
            self.layer = nn.Linear(math.prod(image_shape), 64, rng=rng)

        def forward(self, images):
            x = nn.as_images(self, images)
            return self.layer(x.reshape(len(x), -1))
"""

import math
from collections.abc import Sequence

from .. import ops
from ..autograd import Tensor
from ..checks import require_integers, require_ordered
from ..typing import Array, Rng
from .layers import RELU_GAIN, BatchNorm, Conv2d, Linear, Sequential, as_tensor
from .module import Module


class Encoder(Module):
    """A Module that returns h (B, features). See this file's docstring."""

    image_shape: tuple[int, ...]
    features: int


def as_images(encoder: Encoder, images: Tensor | Array) -> Tensor:
    """images (B, H, W, C) as a Tensor. Raises ValueError unless (H, W, C) is the encoder's image_shape."""
    if getattr(images, "dtype", None) == "uint8":
        raise TypeError(f"{type(encoder).__name__}: images must be a floating-point array, float32 or float64, got uint8; "
                        "scale them to [0, 1] with evaluate.to_float(images, xp)")
    x = as_tensor(images)
    if x.shape[1:] != encoder.image_shape:
        raise ValueError(f"{type(encoder).__name__}: expected images (B, {', '.join(map(str, encoder.image_shape))}), "
                         f"got {x.shape}")
    return x


def image_shape_of(name, shape):
    """(H, W, C) as a tuple. Raises ValueError unless it is three sizes."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"{name}: expected image_shape (H, W, C), got {shape!r}; for grey images C is 1")
    require_integers(name, 1, **dict(zip(("H", "W", "C"), shape)))
    return tuple(shape)


class MLP(Encoder):
    """Flattened images through Linear + relu layers of the given widths; h is the last layer's output.

    >>> encoder = MLP((28, 28, 1), (512, 256), rng=np.random.default_rng(0))
    >>> encoder(np.ones((4, 28, 28, 1), "float32")).shape, encoder.features
    ((4, 256), 256)
    """

    def __init__(self, image_shape: tuple[int, int, int], widths: Sequence[int] = (512, 256), *, rng: Rng):
        self.image_shape = image_shape_of("MLP", image_shape)
        require_ordered("MLP", widths=widths)
        sizes = [math.prod(self.image_shape), *widths]
        self.features = sizes[-1]
        self.layers = [Linear(n, m, rng=rng, gain=RELU_GAIN) for n, m in zip(sizes, sizes[1:])]

    def forward(self, images: Tensor | Array) -> Tensor:
        x = as_images(self, images)
        x = x.reshape(len(x), -1)                                            # (B, H W C)
        for layer in self.layers:
            x = ops.relu(layer(x))
        return x


class ConvNet(Encoder):
    """3x3 convolutions, each followed by batch norm and relu, then the mean over each cell of a grid.

    channels  output channels of each convolution
    strides   one per convolution; default 2 everywhere, which halves the image each time
    grid      cells a side; h holds the last convolution's channels for each cell. 1 averages over the whole image and
              discards positions; 2 distinguishes left from right and top from bottom
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: Sequence[int] = (32, 64, 128), *, rng: Rng,
                 strides: Sequence[int] | None = None, grid: int = 2):
        require_ordered("ConvNet", channels=channels, strides=strides)
        strides = (2,) * len(channels) if strides is None else strides
        if len(strides) != len(channels) or not channels:
            raise ValueError(f"ConvNet: expected one stride a convolution, got {len(strides)} for {len(channels)}")
        require_integers("ConvNet", 1, grid=grid)
        H, W, C = self.image_shape = image_shape_of("ConvNet", image_shape)
        sizes = [C, *channels]
        self.blocks = [Sequential(Conv2d(n, m, 3, rng=rng, stride=s, padding=1, bias=False), BatchNorm(m, relu=True))
                       for n, m, s in zip(sizes, sizes[1:], strides)]
        for s in strides:
            H, W = -(-H // s), -(-W // s)
        if H % grid or W % grid:
            raise ValueError(f"ConvNet: {image_shape[0]} x {image_shape[1]} images are {H} x {W} pixels after strides "
                             f"{tuple(strides)}, which a grid of {grid} x {grid} does not divide; use other strides, "
                             "other images, or grid=1")
        self.grid = grid
        self.features = grid * grid * channels[-1]

    def forward(self, images: Tensor | Array) -> Tensor:
        x = ops.to_pixel_major(as_images(self, images))                      # (H, W, B, C)
        for block in self.blocks:
            x = block(x)
        H, W, B, C = x.shape
        g = self.grid
        cells = x.reshape(g, H // g, g, W // g, B, C).mean(axis=(1, 3))      # (grid, grid, B, C)
        return cells.transpose(2, 0, 1, 3).reshape(B, self.features)         # (B, grid grid C)
