"""Data: MNIST, CIFAR-10, generated digits and shapes, batches, and augmentations for two views."""

from . import augment
from .augment import many_views, mnist_views, simclr_views, two_views
from .checks import DataError
from .cifar10 import load_cifar10
from .digits import draw_digits, generate_digits
from .download import CorruptFile, Unavailable
from .images import ImageData
from .load import load_colour_images, load_images
from .loader import Batches, Prefetch, same_caption_ids
from .mnist import load_mnist
from .pictures import RESIZE, open_image
from .shapes import generate_shapes

__all__ = ["Batches", "CorruptFile", "DataError", "ImageData", "Prefetch", "RESIZE", "Unavailable", "augment", "draw_digits",
           "generate_digits", "generate_shapes", "load_cifar10", "load_colour_images", "load_images", "load_mnist",
           "many_views", "mnist_views", "open_image", "same_caption_ids", "simclr_views", "two_views"]
