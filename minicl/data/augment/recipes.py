"""Recipes: the augmentations for views of digits and photographs, and how views are drawn.

An encoder learns to ignore what differs between two views (Chen et al. 2020, section 3). So digits are tilted, shifted
and sheared but never mirrored, and photographs lose their colours but keep their shapes.
"""

import contextlib
import pickle
from collections.abc import Callable, Sequence

import numpy as np

from ...backend import is_array, is_supplied
from ...checks import require_ordered, require_rng
from ...distributed import ALONE, World
from ...signature import describe
from ...typing import Array, Rng
from .base import Compose, looked_at, shared_by
from .geometric import RandomAffine, RandomHorizontalFlip, RandomResizedCrop
from .photometric import ColorJitter, RandomErasing, RandomGrayscale


def two_views(augment: Callable[..., Array], images: Array, rng: Rng, world: World = ALONE) -> tuple[Array, Array]:
    """Two views of each image, (view1, view2): the same transform drawn twice, independently.

    view1[i] and view2[i] are a positive pair. Pass the run's one generator in every step: a new one from the same seed
    would repeat its views.
    world: the processes that share the batch; images and views are this process's part.

    Raises ValueError if augment draws nothing from rng or returns the same new array twice, since both views would be equal,
    if it writes into images, or if it does not return a view of each.

    >>> images = np.random.default_rng(0).random((8, 28, 28, 1), dtype="float32")
    >>> view1, view2 = two_views(mnist_views(), images, np.random.default_rng(1))
    >>> view1.shape, bool((view1 == view2).all())
    ((8, 28, 28, 1), False)
    """
    view1, view2 = _views("two_views", [augment, augment], images, rng, world)
    return view1, view2


def many_views(augments: Sequence[Callable[..., Array]], images: Array, rng: Rng, world: World = ALONE) -> list[Array]:
    """A view of each image by each augment, for sup_con with the images' ids as labels; otherwise as two_views.

    Multi-crop: two augments that show most of an image, and several that show little of it, all of one output size.

    >>> images = np.random.default_rng(0).random((8, 28, 28, 1), dtype="float32")
    >>> [view.shape for view in many_views([mnist_views()] * 3, images, np.random.default_rng(1))]
    [(8, 28, 28, 1), (8, 28, 28, 1), (8, 28, 28, 1)]
    """
    require_ordered("many_views", augments=augments)
    return _views("many_views", augments, images, rng, world)


def _views(name, augments, images, rng, world):
    require_rng(name, rng)
    views: list[Array] = []
    with _read_only(images):
        for augment in augments:
            before = None if views or is_supplied() else pickle.dumps(rng.bit_generator.state)
            views.append(augment(images, rng, *shared_by(world)))
            if not is_array(views[-1]) or len(views[-1]) != len(images):
                raise ValueError(f"{name}: augment must return an array with one view of each of the {len(images)} images, "
                                 f"in order, got {describe(views[-1]):.200}")
            if any(_overlap(views[-1], view) for view in views[:-1]) and not _overlap(views[-1], images):
                raise ValueError(f"{name}: augment returned an array that it has returned before, so the earlier view was "
                                 "overwritten; return a new array each time")
            if before and before == pickle.dumps(rng.bit_generator.state):
                if len(images) == 0:
                    raise ValueError(f"{name}: images must hold at least one image, got shape {images.shape}; is the batch "
                                     "empty?")
                raise ValueError(f"{name}: augment drew no random numbers from rng, so all views would be alike; draw them "
                                 "from the rng that it is passed")
    return views


def _overlap(x, y):
    return isinstance(x, np.ndarray) and isinstance(y, np.ndarray) and np.shares_memory(x, y)


@contextlib.contextmanager
def _read_only(images):
    """Within this block a NumPy array cannot be written into: an augment that does would change the data and both views.

    So the values are looked at once, unless they are in the memory of another array, which can still be written into.
    Nothing tells whether images were viewed before: a write through such a view, after the first look, is not found.
    """
    is_writeable = isinstance(images, np.ndarray) and images.flags.writeable
    if is_writeable:
        images.flags.writeable = False
    before = looked_at.set((images if isinstance(images, np.ndarray) and images.flags.owndata else None, False))
    try:
        yield
    finally:
        looked_at.reset(before)
        if is_writeable:
            images.flags.writeable = True


def mnist_views() -> Compose:
    """Views of handwritten digits (B, H, W, 1), of the same size: as by another hand, or a poor scan."""
    return Compose([
        RandomAffine(degrees=20, translate=0.1, scale=(0.75, 1.25), shear=15),
        RandomErasing(p=0.5, scale=(0.02, 0.15)),
    ])


def simclr_views(size: int = 32) -> Compose:
    """SimCLR's views of colour images (B, H, W, 3) -> (B, size, size, 3), in the form used for CIFAR-10.

    Source: Chen et al. 2020, appendix B.9: colour distortion of strength 0.5 and no blur for small images.
    """
    return Compose([
        RandomResizedCrop(size, scale=(0.08, 1.0)),
        RandomHorizontalFlip(),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        RandomGrayscale(p=0.2),
    ])
