"""Sequences with a predictable future: a hidden rotation observed through noise, and images row by row."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import numpy as np

from minicl.backend import to_device
from minicl.checks import require_rng, require_within
from minicl.data import DataError, ImageData, load_images
from minicl.data.checks import check_seed, host_array, number, whole
from minicl.signature import describe
from minicl.typing import Array, ArrayModule, HostArray, Rng

SEQUENCES = {
    "rotation": "a hidden rotation seen through noise, generated", "mnist-rows": "MNIST images, row by row",
    "digit-rows": "generated digits, row by row",
}


@dataclass(frozen=True)
class SequenceData:
    """Sequences in host memory: train (N, T, C) and test (M, T, C), float32, or uint8 for values from 0 to 1.

    train_labels, test_labels  classes (N,) and (M,), or None
    test_states                the hidden states (M, T, S) behind the test sequences, or None
    """

    name: str
    train: HostArray
    test: HostArray
    train_labels: HostArray | None = None
    test_labels: HostArray | None = None
    test_states: HostArray | None = None

    def __post_init__(self):
        train = host_array(self, "train", self.train, ("N", "T", "C"), "float32 or uint8")
        test = host_array(self, "test", self.test, ("M", *train.shape[1:]), train.dtype.name)
        for field, x in (("train", train), ("test", test)):
            if x.size == 0 or not np.isfinite(x).all():
                raise ValueError(f"SequenceData: {field} must be finite and not empty, got {describe(x)}")
        if self.train_labels is not None:
            host_array(self, "train_labels", self.train_labels, (len(train),), "integers")
        if self.test_labels is not None:
            host_array(self, "test_labels", self.test_labels, (len(test),), "integers")
        if self.test_states is not None:
            host_array(self, "test_states", self.test_states, (*test.shape[:2], "S"), "floats")


@dataclass(frozen=True)
class Rotation:
    """`planes` planes, each with a point that turns by a fixed angle in each step and decays:

        s_t = decay R s_{t-1} + sqrt(1 - decay^2) e_t,   s_0, e_t ~ N(0, I)       in R^S, S = 2 planes
        x_t = M s_t's first coordinates + noise n_t,   n_t ~ N(0, I)              in R^C

    It is stationary with s_t ~ N(0, I), and each coordinate of s_{t+g} correlates by decay^g with the same one of R^g s_t:
    present and future share the information of correlated Gaussians, -planes log(1 - decay^2g) nats. An observation shows a
    point's position along one axis; its direction takes several, so a context needs memory.
    """

    planes: int = 4
    decay: float = 0.98
    noise: float = 1.0
    channels: int = 16
    length: int = 64

    def __post_init__(self):
        for size in ("planes", "channels", "length"):
            whole(self, size, getattr(self, size), 1)
        number(self, "noise", self.noise, 0)
        require_within(self, "(0, 1)", decay=self.decay)

    @property
    def angles(self) -> HostArray:
        """The angle of each plane's point per step, in radians, evenly from 0.1 to 0.8."""
        return np.linspace(0.1, 0.8, self.planes)

    def turned(self, states: HostArray, steps: int) -> HostArray:
        """R^steps states: (..., S) -> (..., S), the most likely states `steps` steps later, without the decay."""
        s = _complex(states) * np.exp(1j * steps * self.angles)
        return np.concatenate([s.real, s.imag], axis=-1).astype(states.dtype)

    def draw(self, n: int, rng: Rng) -> tuple[HostArray, HostArray]:
        """n sequences x (n, T, C) and their states (n, T, S), float32, drawn from the numpy Generator rng."""
        whole("Rotation.draw", "n", n, 1)
        require_rng("Rotation.draw", rng)
        s = np.empty((n, self.length, 2 * self.planes))
        noise = rng.standard_normal(s.shape)
        for t in range(self.length):
            s[:, t] = noise[:, 0] if t == 0 else (self.decay * self.turned(s[:, t - 1], 1)
                                                  + math.sqrt(1 - self.decay**2) * noise[:, t])
        mixing = np.random.default_rng(0).standard_normal((self.planes, self.channels)) / math.sqrt(self.planes)
        x = s[..., :self.planes] @ mixing + self.noise * rng.standard_normal((n, self.length, self.channels))
        return x.astype(np.float32), s.astype(np.float32)


def _complex(states):
    """(..., 2 planes) -> (..., planes): a plane's coordinates as a complex number, so a rotation is a product."""
    planes = states.shape[-1] // 2
    return states[..., :planes] + 1j * states[..., planes:]


def generate_rotations(rotation: Rotation = Rotation(), n_train: int = 16_000, n_test: int = 2000, *,
                       seed: int = 0) -> SequenceData:
    """SequenceData of a Rotation, with the test sequences' hidden states; the same seed gives the same data.

    >>> generate_rotations(n_train=10, n_test=5).train.shape
    (10, 64, 16)
    """
    rng = np.random.default_rng(check_seed("generate_rotations", seed))
    x, _ = rotation.draw(n_train, rng)
    x_test, states = rotation.draw(n_test, rng)
    return SequenceData("rotation", x, x_test, test_states=states)


def image_rows(images: ImageData) -> SequenceData:
    """ImageData of grey images (N, H, W, 1) as sequences of rows, top to bottom: (N, H, W) uint8, with classes."""
    if images.train_images.shape[3] != 1:
        raise DataError(f"image_rows: expected grey images (N, H, W, 1), got {images.train_images.shape}")
    return SequenceData(f"{images.name} rows", images.train_images[..., 0], images.test_images[..., 0],
                        images.train_labels, images.test_labels)


def load_sequences(name: str = "rotation", data_dir: str | PathLike | None = None, *, rotation: Rotation = Rotation(),
                   seed: int = 0, log: Callable[[str], None] = print) -> SequenceData:
    """The SequenceData called `name`, one of SEQUENCES. data_dir, log: as in load_images; rotation: of that task."""
    if name not in SEQUENCES:
        raise DataError(f"load_sequences: name must be one of {', '.join(SEQUENCES)}, got {name!r}")
    if name != "rotation":
        images = {"mnist-rows": "mnist", "digit-rows": "digits"}[name]
        return image_rows(load_images(images, data_dir, seed=seed, log=log))
    if data_dir is not None:
        raise DataError(f"load_sequences: 'rotation' reads no files, got data_dir {str(data_dir)!r}; leave it out")
    return generate_rotations(rotation, seed=seed)


def time_first(sequences: HostArray, xp: ArrayModule) -> Array:
    """A batch (B, T, C) of float32 or uint8 on the host -> (T, B, C) float32 on xp; bytes become 0 to 1 there."""
    host_array("time_first", "sequences", sequences, ("B", "T", "C"), "float32 or uint8")
    x = to_device(np.ascontiguousarray(sequences.transpose(1, 0, 2)), xp)
    return x.astype("float32") * (1 / 255) if sequences.dtype == np.uint8 else x
