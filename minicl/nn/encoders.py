"""Encoders: images (B, H, W, C) -> representations h (B, features). What is kept and evaluated after training."""

from .. import ops
from .layers import RELU_GAIN, BatchNorm, Conv2d, Linear, Sequential, as_tensor
from .module import Module


def as_images(encoder, images):
    """images (B, H, W, C) as a Tensor. Raises ValueError unless (H, W, C) is the encoder's image_shape."""
    x = as_tensor(images)
    if x.shape[1:] != encoder.image_shape:
        raise ValueError(f"{type(encoder).__name__}: expected images (B, {', '.join(map(str, encoder.image_shape))}), "
                         f"got {x.shape}")
    return x


class MLP(Module):
    """Images flattened, then Linear + relu layers of the given widths; h is the last of them."""

    def __init__(self, image_shape, widths=(512, 256), *, rng):
        H, W, C = image_shape
        self.image_shape, self.features = tuple(image_shape), widths[-1]
        sizes = [H * W * C, *widths]
        self.layers = [Linear(n, m, rng=rng, gain=RELU_GAIN) for n, m in zip(sizes, sizes[1:])]

    def forward(self, images):
        x = as_images(self, images)
        x = x.reshape(len(x), -1)                                            # (B, H W C)
        for layer in self.layers:
            x = ops.relu(layer(x))
        return x


class ConvNet(Module):
    """3x3 convolutions, each followed by batch norm and relu, then the mean over each cell of a grid of pixels.

    channels  width of each convolution
    strides   one per convolution; default 2 everywhere, which halves the image each time
    grid      cells a side; h holds the last convolution's channels for each cell. 1 averages over the whole image and
              forgets where things are; 2 keeps left from right and top from bottom
    """

    def __init__(self, image_shape, channels=(32, 64, 128), *, rng, strides=None, grid=2):
        strides = (2,) * len(channels) if strides is None else strides
        if len(strides) != len(channels):
            raise ValueError(f"ConvNet: expected one stride a convolution, got {len(strides)} for {len(channels)}")
        H, W, C = self.image_shape = tuple(image_shape)
        sizes = [C, *channels]
        self.blocks = [Sequential(Conv2d(n, m, rng=rng, stride=s), BatchNorm(m, relu=True))
                       for n, m, s in zip(sizes, sizes[1:], strides)]
        for s in strides:
            H, W = -(-H // s), -(-W // s)
        if H % grid or W % grid:
            raise ValueError(f"ConvNet: {image_shape[0]} x {image_shape[1]} images are {H} x {W} pixels after strides "
                             f"{tuple(strides)}, which a grid of {grid} x {grid} does not divide; use other strides, "
                             "other images, or grid=1")
        self.grid, self.features = grid, grid * grid * channels[-1]

    def forward(self, images):
        x = ops.to_pixel_major(as_images(self, images))                      # (H, W, B, C)
        for block in self.blocks:
            x = block(x)
        (H, W, B, C), g = x.shape, self.grid
        cells = x.reshape(g, H // g, g, W // g, B, C).mean(axis=(1, 3))      # (grid, grid, B, C)
        return cells.transpose(2, 0, 1, 3).reshape(B, self.features)         # (B, grid grid C)
