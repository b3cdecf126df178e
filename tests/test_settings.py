"""A setting that is changed after construction is checked as by the constructor, or refused."""

import copy
import pickle

import numpy as np
import pytest

from minicl import nn
from minicl.data import augment
from minicl.optim import LARS, SGD, Adam, AdamW

BAD_SHARE = (-0.1, 1.5, float("nan"), "0.5", None)
SETTINGS = [  # how it is made, attribute, values out of range, a value within
    (lambda rng: nn.BatchNorm(3), "momentum", BAD_SHARE, 0.5),
    (lambda rng: nn.BatchNorm(3), "eps", (0, -0.1, float("inf"), "x"), 1e-3),
    (lambda rng: nn.BatchNorm(3), "splits", (0, -2), 2),
    (lambda rng: nn.BatchNorm(3), "relu", ("no", 2, None), True),
    (lambda rng: nn.LayerNorm(3), "eps", (0, -0.1, float("inf")), 1e-3),
    (lambda rng: nn.Dropout(0.5, rng=rng), "p", (1, *BAD_SHARE), 0.1),
    (lambda rng: SGD(nn.Linear(2, 2, rng=rng), 0.1, momentum=0.9), "nesterov", ("no", 2, None), True),
    (lambda rng: SGD(nn.Linear(2, 2, rng=rng), 0.1), "momentum", (1, *BAD_SHARE), 0.5),
    (lambda rng: LARS(nn.Linear(2, 2, rng=rng), 0.1), "eta", (0, -1), 1e-2),
    *((lambda rng, kind=kind: kind(nn.Linear(2, 2, rng=rng), 0.1), "lr", (-1, float("nan"), "x"), 0.5)
      for kind in (SGD, Adam, AdamW, LARS)),
]


@pytest.mark.parametrize("make, name, bad, good", SETTINGS)
def test_a_setting_out_of_range_is_refused(make, name, bad, good):
    thing = make(np.random.default_rng(0))
    before = getattr(thing, name)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(thing, name, value)
        assert getattr(thing, name) is before
    setattr(thing, name, good)
    assert getattr(thing, name) == good


TRANSFORMS = [augment.RandomAffine(), augment.RandomResizedCrop(4), augment.ColorJitter(), augment.RandomHorizontalFlip(),
              augment.GaussianNoise(), augment.GaussianBlur(), augment.RandomGrayscale(), augment.RandomErasing(),
              augment.RandomPerspective(), augment.ElasticTransform(), augment.Compose([augment.GaussianNoise()])]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_a_transform_keeps_the_options_it_was_made_with(transform):
    options = [name for name in vars(transform) if not name.startswith("_")]
    for name in [*options, options[0] + "s", "probability"]:                 # those it has, and misspelt ones
        with pytest.raises(AttributeError, match=f"{name} cannot be set.*make a new"):
            setattr(transform, name, 7)
    images = np.random.default_rng(0).random((3, 8, 8, 3), dtype="float32")
    expected = transform(images, np.random.default_rng(1))
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert np.array_equal(other(images, np.random.default_rng(1)), expected)
        assert repr(other) == repr(transform) and "sealed" not in repr(other)
        with pytest.raises(AttributeError):
            setattr(other, options[0], 7)


def test_a_transform_of_ones_own_may_keep_state():
    class Counting(augment.Transform):
        def __init__(self):
            self.calls = 0

        def draw(self, shape, rng):
            self.calls += 1
            return [rng.random(shape[0])]

        def apply(self, images, out, share):
            out[...] = images

    counting = Counting()
    counting(np.zeros((2, 4, 4, 1), "float32"), np.random.default_rng(0))
    assert counting.calls == 1
