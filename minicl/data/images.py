"""ImageData, a labelled set of images in host memory; load_images and load_colour_images find one by name."""

from dataclasses import dataclass, replace

import numpy as np

from .download import DataError, Unavailable


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

    def first(self, n):
        """The first n training and the first n test images, or all where there are no more."""
        return replace(self, train_images=self.train_images[:n], train_labels=self.train_labels[:n],
                       test_images=self.test_images[:n], test_labels=self.test_labels[:n])

    def _array(self, field, dtype, shape, ndim):
        array = getattr(self, field)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"ImageData: {field} must be a numpy array, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"ImageData: {field} must be {np.dtype(dtype)}, got {array.dtype}")
        if array.ndim != ndim or array.size == 0:
            raise ValueError(f"ImageData: {field} must be {shape} and not empty, got shape {array.shape}")
        return array


def load_images(name="auto", data_dir=None, *, seed=0, log=print):
    """Handwritten digits: the ImageData called `name`, grey images (28, 28, 1).

    name       "mnist", "digits" (generated from `seed`), or "auto": MNIST from data_dir, else from the
               user's cache, else downloaded, else, on a machine with no network, generated digits
    data_dir   the folder that holds MNIST's files; if given, they must be there
    log        gets the line of text that tells of a fallback

    Raises DataError (a ValueError) for an unknown name or a data_dir that would not be read, and what load_mnist
    raises: a file that is damaged or not MNIST's (CorruptFile) is never passed over for generated digits.
    """
    from . import digits, mnist  # here, for both build on ImageData

    return _load("load_images", name, data_dir, seed, log, mnist=("MNIST", mnist.load_mnist),
                 digits=("generated digits", digits.generate_digits))


def load_colour_images(name="auto", data_dir=None, *, seed=0, log=print):
    """Colour images (32, 32, 3), found as load_images finds digits: "cifar10", "shapes" (generated), or "auto"."""
    from . import cifar10, shapes

    return _load("load_colour_images", name, data_dir, seed, log, cifar10=("CIFAR-10", cifar10.load_cifar10),
                 shapes=("generated shapes", shapes.generate_shapes))


def _load(function, name, data_dir, seed, log, **kinds):
    """The data set `name`; kinds: first the real one and its loader, then the generated one and its generator."""
    (real, (real_title, load)), (generated, (generated_title, generate)) = kinds.items()
    if name not in ("auto", real, generated):
        raise DataError(f"{function}: name must be 'auto', {real!r} or {generated!r}, got {name!r}")
    if name == generated:
        if data_dir is not None:
            raise DataError(f"{function}: {generated_title} read no files, got data_dir {str(data_dir)!r}; leave it "
                            f"out, or ask for {real!r}")
        return generate(seed=seed)
    try:
        return load(data_dir, log=log)
    except Unavailable as error:
        if name == real:
            raise
        log(f"{error.reason}: going on with {generated_title}; --data-dir FOLDER reads {real_title} from its files")
        return generate(seed=seed)


def generate_splits(function, name, draw, class_names, n_train, n_test, seed):
    """ImageData of draw(labels, rng) for both splits, each from its own stream; `function` is named in errors."""
    for argument, value, least in (("n_train", n_train, 1), ("n_test", n_test, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{function}: {argument} must be at least {least}, got {value}")
    arrays = []
    for n, stream in zip((n_train, n_test), np.random.SeedSequence(seed).spawn(2)):
        rng = np.random.default_rng(stream)
        labels = rng.permutation(np.arange(n, dtype=np.int64) % len(class_names))
        arrays += [draw(labels, rng), labels]
    return ImageData(name, *arrays, class_names=class_names)
