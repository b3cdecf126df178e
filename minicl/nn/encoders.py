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
        self.cell = min(H, W) // grid
        if self.cell < 1:
            raise ValueError(f"ConvNet: {image_shape[0]} x {image_shape[1]} images are {H} x {W} pixels after strides "
                             f"{tuple(strides)}: too few for a grid of {grid} x {grid}; use smaller strides or grid=1")
        self.features = (H // self.cell) * (W // self.cell) * channels[-1]

    def forward(self, images):
        x = as_tensor(images)
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"ConvNet: expected images (B, {', '.join(map(str, self.image_shape))}), got {x.shape}")
        x = ops.to_pixel_major(x)                                            # (H, W, B, C)
        for block in self.blocks:
            x = block(x)
        x = ops.avg_pool2d(x, size=self.cell)                                # (grid, grid, B, C)
        return x.transpose(2, 0, 1, 3).reshape(x.shape[2], self.features)    # (B, grid grid C)
