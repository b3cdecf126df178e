"""Augmentations for contrastive learning: everything in one import, and two recipes.

What makes two views of one image alike, and all else different, is chosen here: an encoder learns to ignore
exactly what the views disagree on (Chen et al. 2020, section 3). So digits are tilted, shifted and sheared but
never mirrored, and photographs lose their colours but keep their shapes.

    augment = mnist_views()
    view1, view2 = two_views(augment, images, rng)          # images (B, 28, 28, 1) in [0, 1]
"""

from .colour import BrightnessContrast, ColorJitter, GaussianBlur, GaussianNoise, RandomErasing, RandomGrayscale
from .transform import Compose, Transform, two_views
from .warp import RandomAffine, RandomElastic, RandomHorizontalFlip, RandomPerspective, RandomResizedCrop, warp

__all__ = ["BrightnessContrast", "ColorJitter", "Compose", "GaussianBlur", "GaussianNoise", "RandomAffine",
           "RandomElastic", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomPerspective",
           "RandomResizedCrop", "Transform", "mnist_views", "simclr_views", "two_views", "warp"]


def mnist_views():
    """Views of handwritten digits (B, H, W, 1), the same size: what another hand or a poor scan would do."""
    return Compose([
        RandomAffine(degrees=20, translate=0.1, scale=(0.75, 1.25), shear=15),
        RandomErasing(p=0.5, scale=(0.02, 0.15)),
    ])


def simclr_views(size=32):
    """SimCLR's views of colour images (B, H, W, 3) -> (B, size, size, 3), in the form used for CIFAR-10.

    Source: Chen et al. 2020, appendix B.9: colour distortion of strength 0.5 and no blur for small images.
    """
    return Compose([
        RandomResizedCrop(size, scale=(0.08, 1.0)),
        RandomHorizontalFlip(),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        RandomGrayscale(p=0.2),
    ])
