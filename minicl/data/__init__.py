"""Data: MNIST, CIFAR-10, generated digits and shapes, the order of batches, and augmentations that make two views."""

from . import augment
from .augment import mnist_views, simclr_views, two_views
from .captions import CaptionedDigits, same_caption_ids
from .checks import DataError
from .cifar10 import load_cifar10
from .digits import draw_digits, generate_digits
from .download import CorruptFile, Unavailable
from .images import ImageData
from .load import load_colour_images, load_images, load_sequences
from .loader import Batches
from .mnist import load_mnist
from .pictures import open_image
from .sequences import Rotation, SequenceData, generate_rotations, time_first
from .shapes import generate_shapes

__all__ = ["Batches", "CaptionedDigits", "CorruptFile", "DataError", "ImageData", "Rotation", "SequenceData",
           "Unavailable", "augment", "draw_digits", "generate_digits", "generate_rotations", "generate_shapes",
           "load_cifar10", "load_colour_images", "load_images", "load_mnist", "load_sequences", "mnist_views",
           "open_image", "same_caption_ids", "simclr_views", "time_first", "two_views"]
