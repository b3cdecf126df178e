"""Augmentations, named and parametrised as in torchvision, and recipes that make two views of each image.

    geometric      what moves pixels: RandomResizedCrop, RandomHorizontalFlip, RandomAffine, RandomPerspective, ...
    photometric    what changes values: ColorJitter, RandomGrayscale, GaussianBlur, GaussianNoise, RandomErasing
    recipes        mnist_views, simclr_views, two_views, many_views
    base           Transform, the class to write your own, and Compose

They work on whole batches (B, H, W, C) and draw parameters for each image from the generator that they are given.
Where torchvision's defaults or conventions differ, the docstring of the class names the difference.
"""

from .base import Compose, Transform
from .geometric import ElasticTransform, RandomAffine, RandomHorizontalFlip, RandomPerspective, RandomResizedCrop
from .photometric import ColorJitter, GaussianBlur, GaussianNoise, RandomErasing, RandomGrayscale
from .recipes import many_views, mnist_views, simclr_views, two_views

__all__ = ["ColorJitter", "Compose", "ElasticTransform", "GaussianBlur", "GaussianNoise", "RandomAffine",
           "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomPerspective", "RandomResizedCrop",
           "Transform", "many_views", "mnist_views", "simclr_views", "two_views"]
