"""ImageData, a labelled set of images in host memory, and load_images, which finds one by name."""

from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """The data asked for cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ImageData:
    """Images and class labels, split into train and test; host NumPy arrays.

    train_images (N, H, W, C), test_images (M, H, W, C)  uint8
    train_labels (N,), test_labels (M,)                  int64, indices into class_names

    Raises TypeError or ValueError naming the field that has another type, dtype, shape or range.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple

    def __post_init__(self):
        if not isinstance(self.class_names, tuple) or not all(isinstance(name, str) for name in self.class_names):
            raise TypeError(f"ImageData: class_names must be a tuple of str, got {self.class_names!r}")
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

    def _array(self, field, dtype, shape, ndim):
        array = getattr(self, field)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"ImageData: {field} must be a numpy array, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"ImageData: {field} must be {np.dtype(dtype)}, got {array.dtype}")
        if array.ndim != ndim or array.size == 0:
            raise ValueError(f"ImageData: {field} must be {shape} and not empty, got shape {array.shape}")
        return array


def load_images(name="auto", data_dir=None, *, seed=0, say=print):
    """The ImageData called `name`.

    name       "mnist", "digits" (generated from `seed`), or "auto": MNIST from data_dir, else from the
               user's cache, else downloaded, else, on a machine with no network, generated digits
    data_dir   the folder that holds MNIST's files; if given, they must be there
    say        gets the line of text that tells of a fallback

    Raises DataError (a ValueError) for an unknown name or a data_dir that would not be read, and what load_mnist raises: a file that is damaged or not
    MNIST's (CorruptFile) is never passed over for generated digits.
    """
    from .digits import generate_digits       # here, for both build on ImageData
    from .mnist import MnistUnavailable, load_mnist

    if name not in ("auto", "mnist", "digits"):
        raise DataError(f"load_images: name must be 'auto', 'mnist' or 'digits', got {name!r}")
    if name == "digits":
        if data_dir is not None:
            raise DataError(f"load_images: generated digits read no files, got data_dir {str(data_dir)!r}; leave it "
                             "out, or ask for 'mnist'")
        return generate_digits(seed=seed)
    try:
        return load_mnist(data_dir, say=say)
    except MnistUnavailable as error:
        if name == "mnist":
            raise
        say(f"{error.reason}: going on with generated digits; --data-dir FOLDER reads MNIST from its four files")
        return generate_digits(seed=seed)
