"""Data: MNIST, generated digits, the order of batches, and augmentations that make two views of an image."""

from .augment import mnist_views, simclr_views, two_views
from .digits import draw_digits, generate_digits
from .images import DataError, ImageData, load_images
from .loader import Batches
from .mnist import CorruptFile, MnistUnavailable, load_mnist

__all__ = ["Batches", "CorruptFile", "DataError", "ImageData", "MnistUnavailable", "draw_digits", "generate_digits",
           "load_images", "load_mnist", "mnist_views", "simclr_views", "two_views"]
