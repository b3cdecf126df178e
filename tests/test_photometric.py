"""Photometric augmentations agree with loops and their formulas, and draw their parameters from the given ranges."""

import math

import numpy as np
import pytest
from image_batches import images_of, seeded

from minicl.backend import to_device, to_host
from minicl.data.augment import ColorJitter, Compose, GaussianBlur, GaussianNoise, RandomErasing, RandomGrayscale
from minicl.data.augment.photometric import LUMA, SHARP, gaussian_weights, hue_rotation

def test_erasing_erases_a_box_of_the_requested_area(xp):
    images = images_of(xp, n=300, height=20, width=24, channels=3) * 0.5 + 0.25         # no pixel is 0 or 1
    for value in (0.0, 1.0):
        out = seeded(RandomErasing(p=1, scale=(0.1, 0.3), value=value), images)
        hole = (out == value).all(axis=3)
        np.testing.assert_array_equal(out[~hole], to_host(images)[~hole])
        area = hole.mean(axis=(1, 2))
        assert 0.08 < area.min() and area.max() < 0.32 and abs(area.mean() - 0.2) < 0.02
        spans = hole.any(axis=2).sum(axis=1) * hole.any(axis=1).sum(axis=1)
        np.testing.assert_array_equal(spans, hole.sum(axis=(1, 2)))                     # one full rectangle each
        assert len({tuple(rows) for rows in hole.any(axis=2)}) > 50
    some = (seeded(RandomErasing(p=0.3), images) == 0).any(axis=(1, 2, 3))
    assert 0.2 < some.mean() < 0.4


def test_noise_has_the_requested_std(xp):
    grey = to_device(np.full((20, 20, 20, 1), 0.5, dtype="float32"), xp)
    noise = seeded(GaussianNoise(0.1), grey) - 0.5
    assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.003
    spread = (seeded(GaussianNoise((0.01, 0.1)), grey) - 0.5).std(axis=(1, 2, 3))
    assert spread.min() < 0.04 and spread.max() > 0.07


def test_blur_matches_a_loop_and_preserves_a_flat_image(xp):
    images = images_of(xp, n=2, height=7, width=9, channels=3, dtype="float64")
    out = seeded(GaussianBlur(sigma=1.3, p=1), images)
    for i, j in ((0, 0), (3, 4), (6, 8), (2, 0)):
        weights = np.array([[math.exp(-((i - k)**2 + (j - m)**2) / 3.38) for m in range(9)] for k in range(7)])
        expected = (to_host(images) * (weights / weights.sum())[:, :, None]).sum(axis=(1, 2))
        np.testing.assert_allclose(out[:, i, j], expected, atol=1e-12)
    flat = to_device(np.full((2, 7, 9, 1), 0.7, dtype="float32"), xp)
    np.testing.assert_allclose(seeded(GaussianBlur(sigma=2.0, p=1), flat), 0.7, rtol=1e-6)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_no_product_of_blur_weights_underflows_and_a_sharp_image_stays_as_it_is(xp, dtype):
    precision = np.append(0.5 / np.geomspace(0.05, 40, 30)**2, SHARP).astype(dtype)
    weights = to_host(gaussian_weights(to_device(precision, xp), 64))
    assert weights[weights > 0].min()**2 > np.finfo("float32").tiny                     # the largest weight is 1/64 or more
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[-1], np.eye(64))


def test_on_grey_images_brightness_scales_and_contrast_stretches_about_the_mean(xp):
    images = images_of(xp) * 0.4 + 0.2
    host = to_host(images)
    np.testing.assert_allclose(seeded(ColorJitter((0.5, 0.5), 0, p=1), images), 0.5 * host, rtol=1e-6)
    mean = host.mean(axis=(1, 2, 3), keepdims=True)
    for c in (1.5, 0.0):
        stretched = seeded(ColorJitter(0, (c, c), p=1), images)
        np.testing.assert_allclose(stretched, mean + c * (host - mean), atol=1e-6)


@pytest.mark.parametrize("option, loop", [
    ("brightness", lambda x, f: f * x),
    ("contrast", lambda x, f: f * x + (1 - f) * (x @ LUMA).mean()),
    ("saturation", lambda x, f: f * x + (1 - f) * (x @ LUMA)[..., None]),
])
def test_each_colour_factor_follows_its_formula(xp, option, loop):
    images = images_of(xp, channels=3, dtype="float64") * 0.4 + 0.2      # so that nothing is clipped
    none = dict(brightness=0, contrast=0, saturation=0, hue=0, p=1)
    out = seeded(ColorJitter(**{**none, option: (0.6, 0.6)}), images)
    for view, image in zip(out, to_host(images)):
        np.testing.assert_allclose(view, loop(image, 0.6), atol=1e-12)


def test_the_colour_operations_commute(xp):
    images = images_of(xp, channels=3, dtype="float64") * 0.2 + 0.4
    b, c, s, h = ColorJitter((0.9, 0.9), 0, 0, 0, p=1), ColorJitter(0, (0.8, 0.8), 0, 0, p=1), \
        ColorJitter(0, 0, (0.7, 0.7), 0, p=1), ColorJitter(0, 0, 0, (0.1, 0.1), p=1)
    at_once = seeded(ColorJitter((0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.1, 0.1), p=1), images)
    for order in ([b, c, s, h], [h, s, c, b], [s, b, h, c]):
        np.testing.assert_allclose(seeded(Compose(order), images), at_once, atol=1e-10)


def test_hue_preserves_luma_and_grey_and_rotates_the_colours(xp):
    images = images_of(xp, channels=3, dtype="float64") * 0.2 + 0.4
    turned = seeded(ColorJitter(0, 0, 0, (0.25, 0.25), p=1), images)
    np.testing.assert_allclose(turned @ LUMA, to_host(images) @ LUMA, atol=1e-12)
    assert np.abs(turned - to_host(images)).max() > 0.1
    grey = images[..., :1] * to_device(np.ones(3), xp)
    np.testing.assert_allclose(seeded(ColorJitter(0, 0, 0, 0.5, p=1), grey), to_host(grey), atol=1e-12)
    H = hue_rotation(np.array([2 * np.pi / 3]))[0]
    np.testing.assert_allclose(H @ H @ H, np.eye(3), atol=1e-12)         # three thirds of a turn


@pytest.mark.parametrize("transform", [RandomGrayscale(p=1), ColorJitter(0, 0, (0.2, 0.3), 0.5, p=1)])
def test_greyscale_saturation_and_hue_do_not_change_grey_images(xp, transform):
    np.testing.assert_array_equal(seeded(transform, images_of(xp)), to_host(images_of(xp)))


def test_grey_images_are_jittered_as_their_colour_copies(xp):
    grey = images_of(xp, dtype="float64")
    colour = seeded(ColorJitter(), xp.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(seeded(ColorJitter(), grey), colour[..., :1], atol=1e-12)


def test_greyscale_is_luma_in_all_channels(xp):
    images = images_of(xp, n=400, height=2, width=2, channels=3, dtype="float64")
    out = seeded(RandomGrayscale(p=1), images)
    np.testing.assert_allclose(out, (to_host(images) @ LUMA)[..., None] * np.ones(3), atol=1e-12)
    some = (seeded(RandomGrayscale(0.2), images) != to_host(images)).any(axis=(1, 2, 3))
    assert 0.13 < some.mean() < 0.27
