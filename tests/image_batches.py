"""Batches of random images, and a transform's output for a given seed."""

import numpy as np

from minicl.backend import to_device, to_host


def images_of(xp, n=6, height=10, width=12, channels=1, dtype="float32", seed=1):
    return to_device(np.random.default_rng(seed).random((n, height, width, channels)).astype(dtype), xp)


def seeded(transform, images, seed=0):
    return to_host(transform(images, np.random.default_rng(seed)))
