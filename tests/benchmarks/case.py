"""The base class of benchmark cases: the same computation set up twice, with minicl and with PyTorch.

    @dataclass(frozen=True)
    class Something(Case):
        size: int
        def minicl(self, xp): ...       set up on backend xp, return step()
        def torch(self, peer): ...      set up with PyTorch and the Peer's settings, return step()

step() does the work and returns its results, the loss first, then gradients: a tuple of arrays in minicl's layout
(views, so that the conversion costs nothing). Both sides start from the same numbers. tests/test_benchmarks.py tests
that their results agree, since a comparison means something only if both compute the same function.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Target:
    """The largest values that a case aims for; None for no aim.

    default, best  time over PyTorch's with its defaults, and over its fastest (see candidates.py)
    memory         peak memory over that of PyTorch with its defaults
    floor          time over the minimum that the machine's measured rates allow
    seconds        time
    """
    default: float = None
    best: float = None
    memory: float = None
    floor: float = None
    seconds: float = None


@dataclasses.dataclass(frozen=True)
class Work:
    """What the direct form has to do: multiplications and additions of matrix products, bytes read and written, exponentials.
    A convolution can do less, by Winograd's form or where taps lie outside the image."""
    flops: float = 0
    bytes: float = 0
    exps: float = 0

    def floor(self, rates):
        """(seconds, the kind of work that bounds them), at rates per second {"flops", "bytes", "exps"}."""
        return max((getattr(self, kind) / rate, kind) for kind, rate in rates.items())


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table. Subclasses are frozen dataclasses whose fields are the sizes."""

    family = "other"
    target = Target()
    layouts = False             # whether PyTorch could store images of this case channels last
    compiles = False            # whether torch.compile may help
    backends = ("numpy", "cupy")
    tolerance = 1e-4            # for results against PyTorch's in float32, relative to the largest entry of each

    @property
    def name(self):
        raise NotImplementedError

    def minicl(self, xp):
        raise NotImplementedError

    torch = None                # or a method; a case without it has no peer

    def work(self):
        return Work()

    def tiny(self):
        """This case at a negligible size, for tests and for loading libraries before memory is measured."""
        raise NotImplementedError


def normal(*shape, seed=0, scale=1.0):
    """float32 numbers (*shape) from N(0, scale^2), the same for both sides."""
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32") * np.float32(scale)


@dataclasses.dataclass(frozen=True)
class Peer:
    """The settings that PyTorch runs with, and the conversion of minicl's arrays to its tensors."""

    torch: object
    device: str = "cpu"
    channels_last: bool = False
    compiled: bool = False
    fused: bool = None          # a fused optimizer; None is PyTorch's default

    def tensor(self, x, requires_grad=False):
        return self.torch.tensor(x, device=self.device).requires_grad_(requires_grad)

    def activations(self, x, requires_grad=False):
        """Pixel-major (H, W, B, C) -> (B, C, H, W)."""
        return self._images(x.transpose(2, 3, 0, 1), requires_grad)

    def images(self, x):
        """(B, H, W, C) -> (B, C, H, W)."""
        return self._images(x.transpose(0, 3, 1, 2), False)

    def kernel(self, w, requires_grad=True):
        """(kh, kw, C, K) -> (K, C, kh, kw)."""
        return self._images(w.transpose(3, 2, 0, 1), requires_grad)

    def _images(self, x, requires_grad):
        layout = self.torch.channels_last if self.channels_last else self.torch.contiguous_format
        return self.torch.tensor(x, device=self.device).contiguous(memory_format=layout).requires_grad_(requires_grad)

    def compile(self, function):
        return self.torch.compile(function, dynamic=False) if self.compiled else function
