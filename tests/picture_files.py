"""Folders of small picture files for tests."""

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
Image.init()  # import the plugins while they can be read: a test changes its user


def write_pictures(folder, names, seed=0, sides=(20, 60)):
    """Write a random picture of random size to each name, with its folders. PNG and BMP files differ in pixels."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(rng.integers(*sides, 2).tolist()).save(path)


def numbered(folder, count, suffix=".png"):
    """The names folder/0.png, folder/1.png, ..., folder/{count - 1}.png."""
    return [f"{folder}/{k}{suffix}".lstrip("/") for k in range(count)]
