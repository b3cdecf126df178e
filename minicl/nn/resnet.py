"""Residual networks for 32 x 32 images: ResNet-18 as contrastive papers use it on CIFAR-10, and a smaller ResNet-9.

A residual block adds its output to its input, x + f(x), so a gradient can bypass its layers unchanged (He et al. 2016).
Activations are pixel-major, (H, W, B, C).
"""

from .. import ops
from ..autograd import Tensor
from ..checks import require_integers
from ..typing import Array, Rng
from .encoders import Encoder, as_images, image_shape_of
from .layers import BatchNorm, Conv2d, Sequential
from .module import Module


def conv_norm(in_channels, out_channels, *, rng, stride=1, kernel_size=3, relu=True):
    """Convolution, batch norm and, if `relu`, max(y, 0) in the same pass as the norm."""
    return Sequential(Conv2d(in_channels, out_channels, kernel_size, rng=rng, stride=stride, padding=kernel_size // 2,
                             bias=False), BatchNorm(out_channels, relu=relu))


class BasicBlock(Module):
    """y = relu(s(x) + f(x)), f two 3x3 convolutions with batch norm.

    x (H, W, B, in_channels) -> (H/stride, W/stride, B, out_channels)

    s(x) = x where shapes allow, else a 1x1 convolution with batch norm (He et al. 2016, option B).
    """

    def __init__(self, in_channels: int, out_channels: int, *, rng: Rng, stride: int = 1):
        self.first = conv_norm(in_channels, out_channels, rng=rng, stride=stride)
        self.second = conv_norm(out_channels, out_channels, rng=rng, relu=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else conv_norm(in_channels, out_channels, rng=rng, stride=stride, kernel_size=1,
                                                    relu=False)

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.shortcut is None else self.shortcut(x)
        return ops.add_relu(past, self.second(self.first(x)))


class ResNet18(Encoder):
    """Images (B, H, W, C) -> h (B, 8 width): ResNet-18 with a 3x3 stem of stride 1 and no max-pool.

    Four stages of two blocks, with width, 2 width, 4 width and 8 width channels; all but the first halve the image.
    Then the mean over all pixels. With width=64 and RGB images 11,168,832 parameters.

    Source: He et al. 2016, table 1; Chen et al. 2020, appendix B.9, for the stem.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int = 64, *, rng: Rng):
        require_integers("ResNet18", 1, width=width)
        self.image_shape = image_shape_of("ResNet18", image_shape)
        self.features = 8 * width
        self.stem = conv_norm(image_shape[2], width, rng=rng)
        self.blocks = []
        inputs = width
        for stage in range(4):
            outputs = width << stage
            self.blocks += [BasicBlock(inputs, outputs, rng=rng, stride=1 if stage == 0 else 2),
                            BasicBlock(outputs, outputs, rng=rng)]
            inputs = outputs

    def forward(self, images: Array) -> Tensor:
        x = self.stem(ops.to_pixel_major(as_images(self, images)))           # (H, W, B, width)
        for block in self.blocks:
            x = block(x)                                                     # at last (H/8, W/8, B, 8 width)
        return x.mean(axis=(0, 1))


class ResNet9(Encoder):
    """Images (B, H, W, C) -> h (B, 8 width): eight convolutions, three max-pools that halve the image, two residues.

    It takes about a third of ResNet-18's time: most layers work at a quarter of the pixels. The original's ninth layer, a
    classifier, is left out. With width=64 and RGB images 6,568,000 parameters.

    Source: Page 2018, How to train your ResNet, part 5 (DAWNBench); the last pooling here is a mean, as in ResNet-18.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int = 64, *, rng: Rng):
        require_integers("ResNet9", 1, width=width)
        self.image_shape = image_shape_of("ResNet9", image_shape)
        self.features = 8 * width
        self.stem = conv_norm(image_shape[2], width, rng=rng)
        self.down = [conv_norm(width << k, width << k + 1, rng=rng) for k in range(3)]
        self.residues = {k: Residue(width << k + 1, rng=rng) for k in (0, 2)}

    def forward(self, images: Array) -> Tensor:
        x = self.stem(ops.to_pixel_major(as_images(self, images)))           # (H, W, B, width)
        for k, layer in enumerate(self.down):
            x = ops.max_pool2d(layer(x), size=2)
            if k in self.residues:
                x = self.residues[k](x)                                      # at last (H/8, W/8, B, 8 width)
        return x.mean(axis=(0, 1))


class Residue(Module):
    """y = x + f(x), f two 3x3 convolutions with batch norm and relu: (H, W, B, C) -> (H, W, B, C)."""

    def __init__(self, channels: int, *, rng: Rng):
        self.first, self.second = (conv_norm(channels, channels, rng=rng) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))
