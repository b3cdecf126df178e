"""Generated shapes: 32x32 colour images of ten shapes, drawn from a seed, without a network.

A stand-in for photographs: only the shape determines the class. Its position, size and rotation, and the colours and
textures of shape and ground are drawn for each image, so neither pixels nor colours reveal the class.
"""

import numpy as np

from ..typing import HostArray, Rng
from .images import ImageData, draw_chunks, generate_splits

SIDE = 32
CHUNK = 500                                              # images drawn at once


def box(x, y, half_width, half_height):
    """The depth of (x, y) inside a rectangle about the origin."""
    return np.minimum(half_width - abs(x), half_height - abs(y))


# The depth of a point inside each shape, in units of the shape's radius: x right, y down, 0 on the outline.
SHAPES = {
    "disc": lambda x, y: 0.85 - np.hypot(x, y),
    "ring": lambda x, y: 0.24 - abs(np.hypot(x, y) - 0.72),
    "crescent": lambda x, y: np.minimum(0.95 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.75),
    "triangle": lambda x, y: np.minimum(0.5 - y, 0.5 + 0.5 * y - 0.866 * abs(x)),
    "square": lambda x, y: box(x, y, 0.75, 0.75),
    "star": lambda x, y: 0.39 + 0.17 * np.cos(5 * np.arctan2(x, -y)) - 0.5 * np.hypot(x, y),
    "cross": lambda x, y: np.maximum(box(x, y, 0.28, 0.95), box(x, y, 0.95, 0.28)),
    "heart": lambda x, y: 0.85 - np.hypot(x, 1.2 * y + 0.9 * np.sqrt(abs(x)) - 0.35),
    "arrow": lambda x, y: np.maximum(box(x, y - 0.4, 0.2, 0.55), np.minimum(-y + 0.05, y + 0.95 - 1.2 * abs(x))),
    "bars": lambda x, y: np.minimum(box(x, y, 0.9, 0.85), abs(abs(y) - 0.28) - 0.1),
}


def generate_shapes(n_train: int = 10000, n_test: int = 2000, seed: int = 0) -> ImageData:
    """ImageData "shapes": n_train and n_test generated shapes, from separate random streams.

    Classes are balanced (to within one) and shuffled; the same seed and sizes give the same images.
    Raises ValueError for a size below 1 or a negative seed.
    """
    return generate_splits("generate_shapes", "shapes", draw_shapes, tuple(SHAPES), n_train, n_test, seed)


def draw_shapes(labels: HostArray, rng: Rng) -> HostArray:
    """One new image of each label: labels (N,) of 0..9, rng a NumPy Generator -> (N, 32, 32, 3) uint8.

    >>> draw_shapes(np.array([3, 1, 4]), np.random.default_rng(0)).shape
    (3, 32, 32, 3)
    """
    return draw_chunks("draw_shapes", labels, rng, _draw, CHUNK, (SIDE, SIDE, 3))


def _draw(labels, rng):
    n = len(labels)

    def draw(low, high, *shape):
        return rng.uniform(low, high, (n, *(shape or (1, 1)))).astype(np.float32)

    radius = draw(8, 13)
    turn, lean = draw(-0.6, 0.6), draw(-0.2, 0.2)
    row, column = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2           # pixels from the middle
    u, v = column - draw(-4, 4), row - draw(-4, 4)                                     # (n, 32, 32)
    x = (np.cos(turn) * u + np.sin(turn) * v) / radius
    y = (np.cos(turn) * v - np.sin(turn) * u) / radius
    x = x + lean * y
    depth = np.empty_like(x)
    for label, inside in enumerate(SHAPES.values()):
        rows = labels == label
        depth[rows] = inside(x[rows], y[rows])
    cover = np.clip(0.5 + radius * depth, 0, 1)[..., None]                             # of each pixel by the shape

    def surface(colour):
        """colour (n, 1, 1, 3), with waves of light and dark across it."""
        k = draw(0.3, 1.6)
        angle = draw(0, np.pi)
        phase = draw(0, 2 * np.pi)
        wave = np.sin(k * (np.cos(angle) * column + np.sin(angle) * row) + phase)
        return colour + (draw(0, 0.16) * wave)[..., None]

    ground = draw(0.1, 0.9, 1, 1, 3)
    away = rng.standard_normal((n, 1, 1, 3)).astype(np.float32)                        # a colour some way off
    away *= draw(0.35, 0.7, 1, 1, 1) / np.linalg.norm(away, axis=-1, keepdims=True)
    ink = np.where(abs(ground + away - 0.5) > 0.5, ground - away, ground + away)       # back into the cube of colours
    images = surface(ground) + cover * (surface(ink) - surface(ground))
    images += 0.03 * rng.standard_normal(images.shape, dtype=np.float32)
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
