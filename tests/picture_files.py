"""Folders of small picture files for tests."""

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
Image.init()                                             # its plugins, while they may be read: a test changes its user


def write_pictures(folder, names, seed=0, sides=(20, 60)):
    """Write a random picture of a random size to each of the names, with the folders above; the pixels of PNG and BMP
    files can be told apart."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(rng.integers(*sides, 2).tolist()).save(path)


def numbered(folder, count, suffix=".png"):
    """count names folder/0.png, folder/1.png, ..."""
    return [f"{folder}/{k}{suffix}".lstrip("/") for k in range(count)]
