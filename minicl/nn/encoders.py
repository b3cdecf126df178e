"""Encoders: images (B, H, W, C) -> representations h (B, features). What is kept and evaluated after training."""

from .. import ops
from .layers import RELU_GAIN, BatchNorm, Conv2d, Linear, Sequential, as_tensor
from .module import Module


class MLP(Module):
    """Images flattened, then Linear + relu layers of the given widths; h is the last of them."""

    def __init__(self, image_shape, widths=(512, 256), *, rng):
        H, W, C = image_shape
        self.image_shape, self.features = tuple(image_shape), widths[-1]
        sizes = [H * W * C, *widths]
        self.layers = [Linear(n, m, rng=rng, gain=RELU_GAIN) for n, m in zip(sizes, sizes[1:])]

    def forward(self, images):
        x = as_tensor(images)
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"MLP: expected images (B, {', '.join(map(str, self.image_shape))}), got {x.shape}")
        x = x.reshape(len(x), -1)                                            # (B, H W C)
        for layer in self.layers:
            x = ops.relu(layer(x))
        return x


class ConvNet(Module):
    """3x3 convolutions, each followed by batch norm and relu, then the mean over all pixels.

    channels  width of each convolution; h has the last one's
    strides   one per convolution; default 2 everywhere, which halves the image each time
    """

    def __init__(self, image_shape, channels=(32, 64, 128), *, rng, strides=None):
        strides = (2,) * len(channels) if strides is None else strides
        if len(strides) != len(channels):
            raise ValueError(f"ConvNet: expected one stride a convolution, got {len(strides)} for {len(channels)}")
        self.image_shape, self.features = tuple(image_shape), channels[-1]
        sizes = [image_shape[2], *channels]
        self.blocks = [Sequential(Conv2d(n, m, rng=rng, stride=s), BatchNorm(m, relu=True))
                       for n, m, s in zip(sizes, sizes[1:], strides)]

    def forward(self, images):
        x = as_tensor(images)
        if x.ndim != 4 or x.shape[3] != self.image_shape[2]:
            raise ValueError(f"ConvNet: expected images (B, H, W, {self.image_shape[2]}), got {x.shape}")
        x = ops.to_pixel_major(x)                                            # (H, W, B, C)
        for block in self.blocks:
            x = block(x)
        return x.mean(axis=(0, 1))                                           # (B, features)
