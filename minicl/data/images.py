"""ImageData, a labelled set of images in host memory."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ..checks import require_rng
from ..typing import HostArray, Rng
from .checks import check_seed, indices, whole
from .picture_folder import read_folder


@dataclass(frozen=True)
class ImageData:
    """Images and class labels, split into train and test; host NumPy arrays.

    train_images (N, H, W, C), test_images (M, H, W, C)  uint8
    train_labels (N,), test_labels (M,)                  int64, indices into class_names

    Raises TypeError or ValueError, naming the field, for another type, dtype, shape or range.
    """

    name: str = field(compare=False)                     # of a folder, which may be renamed before --resume
    train_images: HostArray
    train_labels: HostArray
    test_images: HostArray
    test_labels: HostArray
    class_names: tuple[str, ...]

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"ImageData: name must be a str, got {self.name!r}")
        if not isinstance(self.class_names, tuple) or not all(isinstance(name, str) for name in self.class_names):
            raise TypeError(f"ImageData: class_names must be a tuple of str, got {self.class_names!r:.100}")
        repeated = [name for name, count in Counter(self.class_names).items() if count > 1]
        if repeated:
            raise ValueError(f"ImageData: class_names must differ, got {', '.join(map(repr, repeated[:5]))} more than once")
        for split in ("train", "test"):
            images = self._array(f"{split}_images", np.uint8, "(N, H, W, C)", 4)
            labels = self._array(f"{split}_labels", np.int64, "(N,)", 1)
            if len(images) != len(labels):
                raise ValueError(f"ImageData: {split}_images holds {len(images)} images but {split}_labels "
                                 f"{len(labels)} labels; they must be of the same files")
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise ValueError(f"ImageData: {split}_labels must lie in 0..{len(self.class_names) - 1}, one of the "
                                 f"{len(self.class_names)} class_names, got {labels.min()}..{labels.max()}")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError("ImageData: train_images and test_images must agree in (H, W, C), got "
                             f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]}")

    def __str__(self):
        """A line for a log: "photos, 180 training and 20 test images of 4 classes: cars, horses, planes, ships"."""
        names = [*self.class_names] if len(self.class_names) <= 10 else [*self.class_names[:9], "..."]
        classes = f"of {len(self.class_names)} classes: {', '.join(names)}" if self.is_labelled else "without labels"
        return f"{self.name}, {len(self.train_images)} training and {len(self.test_images)} test images {classes}"

    def __repr__(self):
        classes = f"{len(self.class_names)} classes" if self.is_labelled else "no labels"
        return (f"ImageData({self.name!r}: {len(self.train_images)} training and {len(self.test_images)} test images "
                f"{self.train_images.shape[1:]}, {classes})")

    @classmethod
    def from_folder(cls, path: str | os.PathLike, size: int = 64, *, channels: int = 3, labels: bool = True,
                    test_share: float = 0.1, seed: int = 0, limit: int | None = None,
                    log: Callable[[str], None] = print) -> "ImageData":
        """The pictures in a folder, each as open_image reads it, (size, size, channels); or arrays, see data/arrays.py.

        path        a folder, with a subfolder for each class or without labels (see is_labelled). The folders train/ and
                    test/ (or val/) make a split; without them test_share of all is drawn by `seed`, of each
                    class as near to its share as whole pictures allow, and at most all but one
        labels      False: subfolders are not classes
        limit       maximal number of pictures of each split; default: all
        log         gets lines of text: what was skipped or left out, and why

        All are decoded once, on all cores, into a file in the user's cache ($MINICL_CACHE, else ~/.cache/minicl on Linux),
        which is memory-mapped and may be larger than memory. If a process is killed, the next one continues. Pictures are
        identified by their content, wherever they are: only new or changed ones are decoded.

        Raises DataError for fewer than two pictures, or if a tenth of them or more are broken; fewer are skipped.
        """
        return cls(*read_folder(path, size, channels, labels, test_share, seed, limit, log))

    @property
    def is_labelled(self) -> bool:
        """Whether there are labels of two or more classes."""
        return len(self.class_names) > 1

    def first(self, n: int | None) -> "ImageData":
        """The first n >= 1 training and the first n test images, or all if there are fewer, or if n is None."""
        if n is not None:
            n = whole("ImageData.first", "n", n, 1)
        return replace(self, train_images=self.train_images[:n], train_labels=self.train_labels[:n],
                       test_images=self.test_images[:n], test_labels=self.test_labels[:n])

    def _array(self, field, dtype, shape, ndim):
        array = getattr(self, field)
        if type(array) not in (np.ndarray, np.memmap):
            raise TypeError(f"ImageData: {field} must be a numpy array, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"ImageData: {field} must be {np.dtype(dtype)}, got {array.dtype}")
        if array.ndim != ndim or array.size == 0:
            raise ValueError(f"ImageData: {field} must be {shape} and not empty, got shape {array.shape}")
        return array


def draw_chunks(function: str, labels: HostArray, rng: Rng, draw: Callable[[HostArray, Rng], HostArray], chunk: int,
                shape: tuple[int, int, int]) -> HostArray:
    """Images (N, *shape) uint8 of labels (N,) of 0..9, drawn `chunk` at a time."""
    labels = indices(function, "labels", labels, 10)
    require_rng(function, rng)
    images = np.empty((len(labels), *shape), dtype=np.uint8)
    for lo in range(0, len(labels), chunk):
        images[lo:lo + chunk] = draw(labels[lo:lo + chunk], rng)
    return images


def generate_splits(function: str, name: str, draw: Callable[[HostArray, Rng], HostArray], class_names: tuple[str, ...],
                    n_train: int, n_test: int, seed: int) -> ImageData:
    """ImageData of draw(labels, rng) for both splits, each from its own random stream; `function` is for errors."""
    whole(function, "n_train", n_train, 1)
    whole(function, "n_test", n_test, 1)
    check_seed(function, seed)

    def split(n, stream):
        rng = np.random.default_rng(stream)
        labels = rng.permutation(np.arange(n, dtype=np.int64) % len(class_names))
        return draw(labels, rng), labels

    streams = np.random.SeedSequence(seed).spawn(2)
    train_images, train_labels = split(n_train, streams[0])
    test_images, test_labels = split(n_test, streams[1])
    return ImageData(name, train_images, train_labels, test_images, test_labels, class_names)
