"""Frozen features, kNN and the linear probe, divided among the processes of mpirun, agree with one process."""

import json

import numpy as np

from minicl.data import ImageData
from minicl.distributed import get_world
from minicl.evaluate import encode, frozen_accuracies, knn_accuracy, linear_probe, pixel_accuracy
from minicl.methods import SimCLR
from minicl.nn import ConvNet, projection_head

world = get_world()
rng = np.random.default_rng(0)


def images(n):
    """n images of 5 classes, and their labels."""
    labels = np.arange(n) % 5
    centres = np.random.default_rng(1).random((5, 8, 8, 1))
    return (255 * (0.6 * centres[labels] + 0.4 * rng.random((n, 8, 8, 1)))).astype("uint8"), labels


encoder = ConvNet((8, 8, 1), (8,), rng=rng)
model = SimCLR(encoder, projection_head("mlp", encoder.features, hidden=16, dim=8, rng=rng))
errors = {}
for n in (1, 6, 7, 500, 1501):                              # also fewer batches than processes, and a short last batch
    items = images(n)[0]
    for batch in (1 if n < 8 else 100, 500):
        for mine, whole in zip(encode(model, items, np, batch, world=world), encode(model, items, np, batch)):
            assert np.array_equal(mine, whole), (n, batch)

for n, m in ((2100, 701), (5, 1), (7, 4)):
    data = ImageData("test", *images(n), *images(m), tuple("abcde"))
    (mine, *features), (whole, *others) = (frozen_accuracies(model, data, np, k=3, world=w)
                                           for w in (world, type(world).__mro__[1]()))
    errors[n] = max(abs(mine[key] - whole[key]) for key in whole)
    assert all(np.array_equal(a, b) for a, b in zip(features, others)) and mine.keys() == whole.keys()
    assert pixel_accuracy(data, np, k=3, world=world) == pixel_accuracy(data, np, k=3)
    assert world.alike(*mine.values())

x = rng.standard_normal((300, 12))
y = rng.integers(0, 3, 300)
x[:60] = x[0]                                               # ties, which count as chance
errors["knn"] = abs(knn_accuracy(x, y, x[:201], y[:201], k=20, world=world) - knn_accuracy(x, y, x[:201], y[:201], k=20))
errors["probe"] = abs(linear_probe(x, y, x, y, C=10, world=world) - linear_probe(x, y, x, y, C=10))
if world.rank == 0:
    print(json.dumps({"size": world.size, "errors": errors}))
