"""Cases of layers, forward and backward: convolutions at the encoders' sizes, batch norm, relu, pooling.

They time the op itself (`op.forward`, off the tape) on activations as minicl stores them, (H, W, B, C). A first
convolution computes no gradient for the images.
"""

import dataclasses

from minicl import ops
from minicl.backend import to_device
from minicl.nn import BatchNorm

from .case import Case, Target, Work, normal


def pixel_major(y):
    """A view of a PyTorch (B, C, H, W) as (H, W, B, C)."""
    return y.permute(2, 3, 0, 1)


@dataclasses.dataclass(frozen=True)
class Conv(Case):
    """3x3 convolution with padding 1: inputs -> outputs channels on square images of `side` pixels."""

    batch: int
    inputs: int
    outputs: int
    side: int
    stride: int = 1
    target: Target = Target()

    family = "layers"
    layouts = True
    name = property(lambda self: f"conv {self.inputs}->{self.outputs}, {self.batch} of {self.side}x{self.side}, "
                                 f"stride {self.stride}")
    out = property(lambda self: -(-self.side // self.stride))

    def arrays(self):
        x = normal(self.side, self.side, self.batch, self.inputs)
        w = normal(3, 3, self.inputs, self.outputs, seed=1, scale=(4.5 * self.inputs)**-0.5)
        return x, w, normal(self.out, self.out, self.batch, self.outputs, seed=2)

    def minicl(self, xp):
        x, w, g = (to_device(array, xp) for array in self.arrays())
        needs_grad = (self.inputs > 1, True)

        def step():
            y, backward = ops.conv2d.forward(x, w, stride=self.stride, padding=1, needs_grad=needs_grad)
            dx, dw = backward(g)
            return (y, dw, dx) if needs_grad[0] else (y, dw)

        return step

    def torch(self, peer):
        x, w, g = self.arrays()
        x = peer.activations(x, requires_grad=self.inputs > 1)
        w = peer.kernel(w)
        g = peer.activations(g)
        leaves = (w, x) if self.inputs > 1 else (w,)

        def step():
            y = peer.torch.nn.functional.conv2d(x, w, stride=self.stride, padding=1)
            dw, *dx = peer.torch.autograd.grad(y, leaves, g)
            return pixel_major(y), dw.permute(2, 3, 1, 0), *map(pixel_major, dx)

        return step

    def work(self):
        x, y = self.side**2 * self.batch * self.inputs, self.out**2 * self.batch * self.outputs
        products = 3 if self.inputs > 1 else 2
        return Work(flops=products * 2 * 9 * self.inputs * y, bytes=4 * (products * x + 2 * y))

    def tiny(self):
        return dataclasses.replace(self, batch=3, outputs=5, side=6)


@dataclasses.dataclass(frozen=True)
class Pointwise(Case):
    """A layer on activations (side, side, batch, channels); a subclass adds the op."""

    batch: int
    channels: int
    side: int
    target: Target = Target()

    family = "layers"
    layouts = True
    title = ""
    shrinks = 1
    moved = 5                # moved: arrays of x's size that must be read or written
    name = property(lambda self: f"{self.title}, {self.batch} of {self.side}x{self.side}x{self.channels}")

    def arrays(self):
        out = self.side // self.shrinks
        each = (self.batch, self.channels)
        return normal(self.side, self.side, *each), normal(out, out, *each, seed=1)

    def minicl(self, xp):
        x, g = (to_device(array, xp) for array in self.arrays())
        layer = self.layer(xp)

        def step():
            y, backward = layer(x)
            return y, *backward(g)

        return step

    def torch(self, peer):
        x, g = self.arrays()
        x, g = peer.activations(x, requires_grad=True), peer.activations(g)
        layer, parameters = self.torch_layer(peer)

        def step():
            y = layer(x)
            dx, *gradients = peer.torch.autograd.grad(y, (x, *parameters), g)
            return pixel_major(y), pixel_major(dx), *gradients

        return step

    def work(self):
        return Work(bytes=4 * self.moved * self.side**2 * self.batch * self.channels)

    def tiny(self):
        return dataclasses.replace(self, batch=4, channels=3, side=6)


@dataclasses.dataclass(frozen=True)
class BatchNormReLU(Pointwise):
    title = "batch norm + relu"
    compiles = True

    def layer(self, xp):
        norm = BatchNorm(self.channels, relu=True).to(xp)
        options = {"relu": True, "on_statistics": norm._average}
        return lambda x: ops.batch_norm.forward(x, norm.weight.data, norm.bias.data, **options)

    def torch_layer(self, peer):
        norm = peer.torch.nn.BatchNorm2d(self.channels).to(peer.device)
        relu = peer.torch.nn.functional.relu
        return peer.compile(lambda x: relu(norm(x), inplace=True)), (norm.weight, norm.bias)


@dataclasses.dataclass(frozen=True)
class ReLU(Pointwise):
    title = "relu"

    def layer(self, xp):
        return ops.relu.forward

    def torch_layer(self, peer):
        return peer.torch.relu, ()


@dataclasses.dataclass(frozen=True)
class MaxPool(Pointwise):
    title = "max-pool 2x2"
    shrinks = 2
    moved = 3.5

    def layer(self, xp):
        return ops.max_pool2d.forward

    def torch_layer(self, peer):
        return lambda x: peer.torch.nn.functional.max_pool2d(x, 2), ()


CASES = [
    Conv(256, 1, 32, 28, 1, Target(default=0.9, best=1.5, memory=1.0)),
    Conv(256, 1, 32, 28, 2, Target(default=0.5, best=1.3, memory=1.0)),
    Conv(256, 32, 64, 14, 1, Target(default=0.9, best=1.3, memory=1.0)),
    Conv(256, 32, 64, 14, 2, Target(default=0.5, best=1.3, memory=1.0)),
    Conv(256, 64, 128, 14, 2, Target(default=0.5, best=1.3, memory=1.0)),
    Conv(256, 64, 128, 7, 1, Target(default=0.9, best=1.3, memory=1.0)),
    Conv(64, 64, 64, 32, 1, Target(default=0.8, best=0.95, memory=1.0)),
    BatchNormReLU(512, 32, 14, Target(default=1.1, best=1.3, memory=1.0)),
    ReLU(512, 32, 14, Target(best=1.3, memory=1.0)),
    MaxPool(64, 64, 32, Target(best=1.4, memory=1.0)),
]
