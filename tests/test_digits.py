"""Generated digits: reproducible, balanced, placed like MNIST's, and neither trivial nor impossible to classify."""

import numpy as np
import pytest

from minicl.data.digits import BOX, SEGMENTS, SIDE, TEMPLATES, _compile, _ink, _spline, draw_digits, generate_digits
from minicl.data.load import load_images


@pytest.fixture(scope="module")
def digits():
    return generate_digits(4000, 1000, seed=1)


def test_digits_have_ten_balanced_classes(digits):
    assert digits.name == "digits" and digits.class_names == tuple("0123456789")
    assert digits.train_images.shape == (4000, 28, 28, 1) and digits.test_images.shape == (1000, 28, 28, 1)
    assert (np.bincount(digits.train_labels) == 400).all() and (np.bincount(digits.test_labels) == 100).all()
    assert (np.diff(digits.train_labels) < 0).mean() > 0.3                      # the classes are shuffled
    assert sorted(np.bincount(generate_digits(13, 1).train_labels)) == [1] * 7 + [2] * 3


def test_the_seed_determines_the_digits():
    one, same, other = (generate_digits(150, 150, seed) for seed in (5, 5, 6))
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
        assert (getattr(one, field) != getattr(other, field)).any()
    assert (one.train_images != one.test_images).any() and (one.train_labels != one.test_labels).any()
    np.testing.assert_array_equal(generate_digits(150, 10, 5).train_images, one.train_images)


def test_no_image_occurs_twice(digits):
    everything = np.concatenate([digits.train_images, digits.test_images])
    assert len({image.tobytes() for image in everything}) == len(everything)


def test_digits_are_sized_and_centred_like_mnist(digits):
    images = digits.train_images[..., 0].astype(float)
    rows, columns = (images > 128).any(axis=2), (images > 128).any(axis=1)
    longest = np.maximum(rows.sum(axis=1), columns.sum(axis=1))
    assert longest.min() >= BOX - 2 and longest.max() <= BOX + 1
    assert not images[:, [0, -1]].any() and not images[:, :, [0, -1]].any()      # no stroke is cut off at an edge
    for axis in (1, 2):                      # centred, except for crossing strokes and digits moved off the edge
        middle = images.sum(axis=axis) @ np.arange(SIDE) / images.sum(axis=(1, 2))
        off = abs(middle - (SIDE - 1) / 2)
        assert np.quantile(off, 0.9) < 0.7 and off.max() < 3
    assert (images.max(axis=(1, 2)) == 255).mean() > 0.95
    assert 0.11 < images.mean() / 255 < 0.16                                     # MNIST has 0.131


def test_nearest_pixels_find_the_class_often_but_not_always(digits):
    train = digits.train_images.reshape(4000, -1).astype(np.float32)
    test = digits.test_images.reshape(1000, -1).astype(np.float32)
    nearest = ((train * train).sum(axis=1) - 2 * test @ train.T).argmin(axis=1)
    accuracy = (digits.train_labels[nearest] == digits.test_labels).mean()
    assert 0.93 < accuracy < 0.99


def test_a_spline_passes_through_its_points():
    for n in (2, 3, 7):
        np.testing.assert_allclose(_spline(n, np.arange(n, dtype=float)), np.eye(n), atol=1e-12)
        np.testing.assert_allclose(_spline(n, np.linspace(0, n - 1, 31)).sum(axis=1), 1)


def test_templates_compile_to_connected_strokes():
    for variants in TEMPLATES.values():
        for _, path in variants:
            points, (start, end) = _compile(path)
            assert start.shape == end.shape == (SEGMENTS, len(points))
            start, end = start @ points, end @ points
            lifted = (abs(end[:-1] - start[1:]) > 1e-9).any(axis=1)
            assert lifted.sum() == path.count("|")
            assert np.linalg.norm(end - start, axis=1).max() < 0.2


def test_ink_depends_on_the_distance_to_the_segment():
    start, end, radius = np.array([[[6.0, 8.0]]]), np.array([[[18.0, 13.0]]]), np.array([[2.0]])
    t = np.linspace(0, 1, 4001)[:, None]
    line = (1 - t) * start[0] + t * end[0]
    y, x = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(x[..., None] - line[:, 0], y[..., None] - line[:, 1]).min(axis=-1)
    expected = 255 * np.clip(2.5 - distance, 0, 1)
    assert abs(_ink(start, end, radius)[0].astype(float) - expected).max() <= 1
    dot = _ink(start, start, radius)[0]                                          # a segment of length 0
    assert dot[8, 6] == 255 and dot[8, 9] == 0 and (dot > 0).sum() == 21


def test_draw_digits_takes_any_labels():
    images = draw_digits([7, 7, 3], np.random.default_rng(0))
    assert images.shape == (3, 28, 28, 1) and images.dtype == np.uint8 and (images[0] != images[1]).any()
    assert draw_digits(np.zeros(0, int), np.random.default_rng(0)).shape == (0, 28, 28, 1)
    with pytest.raises(ValueError, match="labels must be 0..9, got 3..10"):
        draw_digits([3, 10], np.random.default_rng(0))


@pytest.mark.parametrize("sizes, argument", [((0, 1, 0), "n_train"), ((1, 0, 0), "n_test"), ((1, 1, -1), "seed")])
def test_invalid_sizes_are_refused(sizes, argument):
    with pytest.raises(ValueError, match=argument):
        generate_digits(*sizes)


def test_load_images_loads_digits_by_name():
    data = load_images("digits", seed=2)
    assert data.name == "digits" and len(data.train_images) == 10000 and len(data.test_images) == 2000
