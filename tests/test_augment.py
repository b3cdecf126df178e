"""Augmentations: against references written as loops, at the identity, and in what they draw."""

import math

import numpy as np
import pytest

from minicl.backend import array_module, threads, to_device, to_host
from minicl.data import colour as colour_module
from minicl.data import transform as transform_module
from minicl.data import warp as warp_module
from minicl.data.augment import (BrightnessContrast, ColorJitter, Compose, GaussianBlur, GaussianNoise, RandomAffine,
                                 RandomElastic, RandomErasing, RandomGrayscale, RandomHorizontalFlip,
                                 RandomPerspective, RandomResizedCrop, mnist_views, simclr_views, two_views, warp)
from minicl.data.colour import LUMA, hue_rotation
from minicl.data.transform import draw_boxes
from minicl.data.warp import CORNERS, affine_matrix, central_box, square_to_quad

GREY_OR_COLOUR = [
    RandomResizedCrop(9), RandomResizedCrop((5, 14)), RandomAffine(shear=10), RandomHorizontalFlip(),
    RandomElastic(), RandomPerspective(0.6), RandomErasing(p=0.9), RandomErasing(p=0.9, value=0.5), GaussianNoise(),
    GaussianNoise((0.1, 0.3)), GaussianBlur(p=0.9), BrightnessContrast(), mnist_views(),
]
COLOUR = [ColorJitter(), RandomGrayscale(p=0.5), simclr_views(9)]
EVERY = [(t, channels) for t in GREY_OR_COLOUR for channels in (1, 3)] + [(t, 3) for t in COLOUR]
IDENTITIES = [
    RandomResizedCrop((10, 12), scale=(1, 1), ratio=(1.2, 1.2)), RandomAffine(0, 0, (1, 1), 0),
    RandomHorizontalFlip(0), RandomElastic(alpha=0), RandomPerspective(0), RandomErasing(p=0), GaussianNoise(0),
    GaussianBlur(p=0), BrightnessContrast(0, 0), ColorJitter(p=0), ColorJitter(0, 0, 0, 0, p=1), RandomGrayscale(p=0),
    Compose([]),
]


def name(value):
    return type(value).__name__ if hasattr(value, "transform") else None


def images_of(xp, n=6, height=10, width=12, channels=1, dtype="float32", seed=1):
    return to_device(np.random.default_rng(seed).random((n, height, width, channels)).astype(dtype), xp)


def seeded(transform, images, seed=0):
    return to_host(transform(images, np.random.default_rng(seed)))


# ---------------------------------------------------------------- what holds for every transform

@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_keeps_dtype_and_range_and_leaves_its_input_alone(xp, transform, channels):
    for dtype in ("float32", "float64"):
        images = images_of(xp, channels=channels, dtype=dtype)
        before = to_host(images).copy()
        views = transform(images, np.random.default_rng(0))
        assert views.dtype == dtype and views.ndim == 4 and (len(views), views.shape[3]) == (6, channels)
        assert array_module(views) is xp
        assert -1e-6 <= to_host(views).min() and to_host(views).max() <= 1 + 1e-6
        np.testing.assert_array_equal(to_host(images), before)
        views += 1                                       # a fresh array: the input must not feel this
        np.testing.assert_array_equal(to_host(images), before)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_one_seed_gives_the_same_views_on_both_backends_and_in_both_dtypes(xp, transform, channels):
    expected = seeded(transform, images_of(np, channels=channels, dtype="float64"))
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-12)):
        views = seeded(transform, images_of(xp, channels=channels, dtype="float64").astype(dtype))
        np.testing.assert_allclose(views, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_each_image_and_each_call_draws_anew(transform, channels):
    one = images_of(np, n=1, channels=channels)
    images = np.repeat(one, 32, axis=0)
    rng = np.random.default_rng(0)
    first, second = two_views(transform, images, rng)
    assert (first != second).any()
    assert len({view.tobytes() for view in first}) > (1 if two_outcomes(transform) else 8)
    np.testing.assert_array_equal(seeded(transform, images), first)


def two_outcomes(transform):
    return isinstance(transform, (RandomHorizontalFlip, RandomGrayscale))


@pytest.mark.parametrize("transform", IDENTITIES, ids=name)
def test_identity_options_give_the_image_back(xp, transform):
    images = images_of(xp, channels=3)
    same = transform(images, np.random.default_rng(0))
    np.testing.assert_allclose(to_host(same), to_host(images), rtol=0, atol=1e-6)
    same += 1                                            # and a fresh one, even so
    assert to_host(images).max() <= 1


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_nothing_on_the_way_is_float64_when_the_images_are_float32(monkeypatch, transform, channels):
    found = []
    for kind in {type(t) for t in getattr(transform, "transforms", [transform])} - {RandomHorizontalFlip}:
        def spy(self, *arrays, apply=kind.apply):
            found.extend(a.dtype for a in arrays)
            return apply(self, *arrays)
        monkeypatch.setattr(kind, "apply", spy)
    for machine in ("warp", "resample"):
        def watched(*arrays, run=getattr(warp_module, machine)):
            found.extend(a.dtype for a in arrays)
            return run(*arrays)
        for module in (warp_module, colour_module):
            monkeypatch.setattr(module, machine, watched, raising=False)
    seeded(transform, images_of(np, channels=channels))
    assert set(found) <= {np.dtype("float32")} and (found or isinstance(transform, RandomHorizontalFlip))


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_neither_slices_nor_threads_change_a_view(monkeypatch, transform, channels):
    images = images_of(np, n=13, channels=channels)
    whole = seeded(transform, images)
    monkeypatch.setattr(transform_module, "SLICE_PIXELS", 500)
    np.testing.assert_array_equal(seeded(transform, images), whole)
    with threads(2):
        np.testing.assert_array_equal(seeded(transform, images), whole)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_an_empty_batch_stays_empty(xp, transform, channels):
    views = transform(images_of(xp, n=0, channels=channels), np.random.default_rng(0))
    assert views.shape[0] == 0 and views.shape[3] == channels


@pytest.mark.parametrize("transform", GREY_OR_COLOUR + COLOUR, ids=name)
def test_repr_builds_the_transform_again(transform):
    again = eval(repr(transform))
    assert repr(again) == repr(transform)
    images = images_of(np, channels=3)
    np.testing.assert_array_equal(seeded(again, images), seeded(transform, images))


def test_a_view_into_a_larger_array_is_as_good_as_a_copy(xp):
    images = images_of(xp, channels=3)
    flipped = images[::2, ::-1, :, ::-1]
    for transform in GREY_OR_COLOUR + COLOUR:
        np.testing.assert_array_equal(seeded(transform, flipped), seeded(transform, flipped.copy()))


def test_compose_runs_in_order_from_one_rng(xp):
    images = images_of(xp)
    rng = np.random.default_rng(0)
    expected = RandomErasing(p=1)(RandomAffine()(images, rng), rng)
    np.testing.assert_array_equal(seeded(Compose([RandomAffine(), RandomErasing(p=1)]), images), to_host(expected))


# ---------------------------------------------------------------- warp and its maps

def bilinear(image, row, column):
    """Zero outside: the four neighbours weighed one by one."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return total


@pytest.mark.parametrize("channels", (1, 3))
def test_warp_is_bilinear_and_zero_outside(xp, rng, channels):
    images = images_of(xp, n=3, channels=channels, dtype="float64")
    coordinates = rng.uniform(-4, 15, (3, 2, 7, 5))
    coordinates[0, :, 0] = [[-1, 0, 9, 10, 11]] * 2                      # on pixels, edges and beyond
    coordinates[1, :, 0] = [[-1e9, 1e9, np.inf, -np.inf, 3.5]] * 2
    out = warp(images, to_device(coordinates, xp))
    assert out.shape == (3, 7, 5, channels)
    for b, i, j in np.ndindex(3, 7, 5):
        row, column = np.clip(coordinates[b, :, i, j], -99, 99)
        np.testing.assert_allclose(to_host(out)[b, i, j], bilinear(to_host(images)[b], row, column), atol=1e-12)


@pytest.mark.parametrize("channels", (1, 3))
def test_affine_matches_a_loop_that_moves_each_pixel_forward(xp, channels):
    """The loop inverts the formula of the docstring pixel by pixel; the library draws the inverse at once."""
    transform = RandomAffine(degrees=(20, 60), translate=(0.3, 0.1), scale=(0.7, 1.3), shear=(5, 25))
    images = images_of(xp, n=3, channels=channels, dtype="float64")
    out = seeded(transform, images)
    rng = np.random.default_rng(0)
    theta, phi = np.radians(rng.uniform(20, 60, 3)), np.radians(rng.uniform(5, 25, 3))
    s, t = rng.uniform(0.7, 1.3, 3), rng.uniform(-1, 1, (3, 2)) * [0.1 * 10, 0.3 * 12]
    centre = np.array([4.5, 5.5])
    for b in range(3):
        R = np.array([[np.cos(theta[b]), -np.sin(theta[b])], [np.sin(theta[b]), np.cos(theta[b])]])
        K = np.array([[1, 0], [-np.tan(phi[b]), 1]])
        for i, j in np.ndindex(10, 12):
            source = np.linalg.solve(s[b] * R @ K, np.array([i, j]) - centre - t[b]) + centre
            np.testing.assert_allclose(out[b, i, j], bilinear(to_host(images)[b], *source), atol=1e-9)


@pytest.mark.parametrize("side", (8, 9))
@pytest.mark.parametrize("quarters", (1, 2, -1))
def test_quarter_turns_are_counter_clockwise(xp, side, quarters):
    images = images_of(xp, height=side, width=side, channels=3)
    turned = seeded(RandomAffine((90 * quarters, 90 * quarters), 0, (1, 1)), images)
    np.testing.assert_allclose(turned, np.rot90(to_host(images), quarters, axes=(1, 2)), atol=1e-5)


def moved(t=(0, 0), phi=0.0, s=1.0):
    """Where one bright pixel goes, up and right of the centre of a 9 x 9 image: at (2, 5)."""
    image = np.zeros((1, 9, 9, 1))
    image[0, 2, 5] = 1
    matrix = affine_matrix(np.zeros(1), np.array([t], dtype=float), np.array([s]), np.array([phi]), 9, 9)
    out = np.empty_like(image)
    RandomAffine().apply(image, out, matrix)
    return tuple(int(k) for k in np.unravel_index(out.argmax(), (9, 9)))


def test_direction_of_shift_shear_and_scale():
    assert moved() == (2, 5)
    assert moved(t=(1, 2)) == (3, 7), "a shift of (y, x) moves down and right"
    assert moved(phi=np.arctan(0.5)) == (2, 6), "a positive shear leans to the right, as italics do"
    assert moved(s=2.0) == (0, 6), "a scale above 1 magnifies"


def test_translate_takes_one_share_or_x_and_y():
    assert RandomAffine(translate=0.2).translate == (0.2, 0.2)
    image = np.zeros((64, 9, 9, 1))
    image[:, 4, 4] = 1
    out = seeded(RandomAffine(0, (0.3, 0), (1, 1)), image)               # along x only
    assert out[:, [0, 1, 2, 3, 5, 6, 7, 8]].max() == 0 and (out[:, 4, :4] > 0.5).any() and (out[:, 4, 5:] > 0.5).any()


def test_a_perspective_takes_corners_to_corners(rng):
    corners = CORNERS + rng.uniform(-0.2, 0.2, (5, 4, 2))
    H = square_to_quad(corners)
    mapped = H @ np.concatenate([CORNERS, np.ones((4, 1))], axis=1).T    # (5, 3, 4)
    np.testing.assert_allclose((mapped[:, :2] / mapped[:, 2:]).swapaxes(1, 2), corners, atol=1e-12)


def test_perspective_shrinks_the_image_into_a_quadrilateral():
    white = np.ones((200, 20, 20, 1), dtype="float32")
    areas = seeded(RandomPerspective(0.5), white).mean(axis=(1, 2, 3))
    assert 0.25 < areas.min() and areas.max() < 1
    assert abs(areas.mean() - 0.75**2) < 0.03            # each corner comes in by 1/8 of a side on average


def test_elastic_displaces_by_alpha_and_smoothly(rng):
    transform = RandomElastic(alpha=2.0, sigma=4.0)
    knots = transform.knots(28)
    assert (np.diff(knots) == 4).all() and knots[0] < -4 and knots[-1] > 27 + 4
    G = transform.smoother(28)
    z = transform.draw((300, 28, 28, 1), rng)[0]
    field = G @ z @ G.T
    np.testing.assert_allclose(field.std(axis=(0, 1)), 2.0, rtol=0.15)   # at every pixel, the corners included
    step = field[..., 1:] - field[..., :-1]
    assert step.std() < 0.25 * field.std()
    near = (field[..., 10] * field[..., 18]).mean() / 4
    assert abs(near - math.exp(-1)) < 0.1, "two sigma apart: exp(-distance^2 / (4 sigma^2))"
    far = (field[..., 0] * field[..., 16]).mean() / 4
    assert abs(far) < 0.1, "displacements four sigma apart are independent"


def test_elastic_keeps_the_mass_of_a_digit_in_frame():
    image = np.zeros((50, 28, 28, 1), dtype="float32")
    image[:, 8:20, 10:18] = 1
    mass = seeded(RandomElastic(), image).sum(axis=(1, 2, 3)) / 96
    assert 0.6 < mass.min() and mass.max() < 1.5 and abs(mass.mean() - 1) < 0.05


def test_a_flip_mirrors_columns(xp):
    images = images_of(xp, channels=3)
    np.testing.assert_array_equal(seeded(RandomHorizontalFlip(1), images), to_host(images)[:, :, ::-1])
    half = seeded(RandomHorizontalFlip(0.5), images_of(xp, n=400))
    flipped = (half != to_host(images_of(xp, n=400))).any(axis=(1, 2, 3))
    assert 0.4 < flipped.mean() < 0.6


# ---------------------------------------------------------------- crop

def triangle_resize(image, box, size):
    """Pillow's antialiased bilinear resize of image[box], as loops over one axis and then the other."""
    top, left, height, width = (int(v) for v in box)
    image = image[top:top + height, left:left + width]
    for axis in (0, 1):
        length, rows = image.shape[axis], []
        for i in range(size[axis]):
            centre, reach = (i + 0.5) * length / size[axis] - 0.5, max(1.0, length / size[axis])
            weights = np.array([max(0.0, reach - abs(k - centre)) for k in range(length)])
            rows.append(np.tensordot(weights / weights.sum(), image, (0, axis)))
        image = np.stack(rows, axis)
    return image


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("size", (20, 10, (4, 7), (3, 16)))
def test_crop_matches_a_loop(xp, channels, size):
    transform = RandomResizedCrop(size)
    images = images_of(xp, channels=channels, dtype="float64")
    boxes = draw_boxes(images.shape, transform.scale, transform.ratio, np.random.default_rng(0))
    assert (boxes[2:] > 0).all()
    for view, image, box in zip(seeded(transform, images), to_host(images), boxes.T):
        np.testing.assert_allclose(view, triangle_resize(image, box, transform.size), atol=1e-12)


def test_the_loop_matches_pillow():
    Image = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).random((20, 17)).astype("float32")
    for size in ((28, 28), (9, 6), (5, 40)):
        resized = np.asarray(Image.fromarray(image[3:18, 2:12]).resize(size[::-1], Image.Resampling.BILINEAR))
        ours = triangle_resize(image[:, :, None], (3, 2, 15, 10), size)[:, :, 0]
        np.testing.assert_allclose(ours, resized, atol=1e-5)


def test_without_antialias_a_crop_interpolates_between_two_pixels():
    image = np.zeros((1, 1, 8, 1))
    image[0, 0, [1, 5]] = 1                              # 8 pixels to 2: the centres are at 1.5 and 5.5
    transform = RandomResizedCrop((1, 2), scale=(1, 1), ratio=(8, 8), antialias=False)
    np.testing.assert_allclose(seeded(transform, image)[0, 0, :, 0], [0.5, 0.5])
    assert (seeded(RandomResizedCrop((1, 2), (1, 1), (8, 8)), image) < 0.5).all()


def test_boxes_have_the_areas_and_ratios_asked_for(rng):
    top, left, height, width = draw_boxes((4000, 100, 120, 1), (0.2, 1.0), (3 / 4, 4 / 3), rng)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 100).all() and (left + width <= 120).all()
    area, ratio = height * width / 12000, width / height
    assert area.min() > 0.19 and area.max() <= 1 and 0.73 < ratio.min() and ratio.max() < 1.37
    assert (top == 0).any() and (top + height == 100).any() and (left == 0).any() and (left + width == 120).any()
    small = draw_boxes((4000, 100, 100, 1), (0.1, 0.3), (0.5, 2.0), rng)               # nothing here is too large
    assert abs((small[2] * small[3]).mean() / 1e4 - 0.2) < 0.005                       # uniform area
    assert abs(np.log(small[3] / small[2]).mean()) < 0.03                              # log-uniform ratio
    wide = draw_boxes((100, 100, 100, 1), (0.1, 0.3), (2.0, 3.0), rng)
    assert (wide[3] > wide[2]).all(), "the ratio is width / height"


def test_where_no_box_fits_the_crop_is_central():
    assert central_box((1, 30, 10, 1), (0.75, 4 / 3)) == (8, 0, 13, 10)
    assert central_box((1, 10, 30, 1), (0.75, 4 / 3)) == (0, 8, 10, 13)
    assert central_box((1, 10, 12, 1), (0.75, 4 / 3)) == (0, 0, 10, 12)
    image = np.zeros((2, 30, 10, 1))
    image[:, 8:21] = 1
    np.testing.assert_allclose(seeded(RandomResizedCrop(6, scale=(1, 1)), image), 1)


# ---------------------------------------------------------------- values

def test_erasing_erases_a_box_of_the_area_asked_for(xp):
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


def test_noise_has_its_std(xp):
    grey = to_device(np.full((20, 20, 20, 1), 0.5, dtype="float32"), xp)
    noise = seeded(GaussianNoise(0.1), grey) - 0.5
    assert abs(noise.std() - 0.1) < 0.003 and abs(noise.mean()) < 0.003
    spread = (seeded(GaussianNoise((0.01, 0.1)), grey) - 0.5).std(axis=(1, 2, 3))
    assert spread.min() < 0.04 and spread.max() > 0.07


def test_blur_matches_a_loop_and_keeps_a_flat_image(xp):
    images = images_of(xp, n=2, height=7, width=9, channels=3, dtype="float64")
    out = seeded(GaussianBlur(sigma=1.3, p=1), images)
    for i, j in ((0, 0), (3, 4), (6, 8), (2, 0)):
        weights = np.array([[math.exp(-((i - k)**2 + (j - m)**2) / 3.38) for m in range(9)] for k in range(7)])
        expected = (to_host(images) * (weights / weights.sum())[:, :, None]).sum(axis=(1, 2))
        np.testing.assert_allclose(out[:, i, j], expected, atol=1e-12)
    flat = to_device(np.full((2, 7, 9, 1), 0.7, dtype="float32"), xp)
    np.testing.assert_allclose(seeded(GaussianBlur(2.0, p=1), flat), 0.7, rtol=1e-6)


def test_brightness_scales_and_contrast_stretches_about_the_mean(xp):
    images = images_of(xp) * 0.4 + 0.2
    host = to_host(images)
    np.testing.assert_allclose(seeded(BrightnessContrast((0.5, 0.5), 0), images), 0.5 * host, rtol=1e-6)
    mean = host.mean(axis=(1, 2, 3), keepdims=True)
    for c in (1.5, 0.0):
        stretched = seeded(BrightnessContrast(0, (c, c)), images)
        np.testing.assert_allclose(stretched, mean + c * (host - mean), atol=1e-6)


@pytest.mark.parametrize("option, loop", [
    ("brightness", lambda x, f: f * x),
    ("contrast", lambda x, f: f * x + (1 - f) * (x @ LUMA).mean()),
    ("saturation", lambda x, f: f * x + (1 - f) * (x @ LUMA)[..., None]),
])
def test_each_colour_factor_follows_its_formula(xp, option, loop):
    images = images_of(xp, channels=3, dtype="float64") * 0.4 + 0.2      # so that nothing is cut off
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


def test_hue_keeps_luma_and_grey_and_turns_the_colours(xp):
    images = images_of(xp, channels=3, dtype="float64") * 0.2 + 0.4
    turned = seeded(ColorJitter(0, 0, 0, (0.25, 0.25), p=1), images)
    np.testing.assert_allclose(turned @ LUMA, to_host(images) @ LUMA, atol=1e-12)
    assert np.abs(turned - to_host(images)).max() > 0.1
    grey = images[..., :1] * to_device(np.ones(3), xp)
    np.testing.assert_allclose(seeded(ColorJitter(0, 0, 0, 0.5, p=1), grey), to_host(grey), atol=1e-12)
    H = hue_rotation(np.array([2 * np.pi / 3]))[0]
    np.testing.assert_allclose(H @ H @ H, np.eye(3), atol=1e-12)         # three thirds of a turn


def test_greyscale_is_luma_in_all_channels(xp):
    images = images_of(xp, n=400, height=2, width=2, channels=3, dtype="float64")
    out = seeded(RandomGrayscale(p=1), images)
    np.testing.assert_allclose(out, (to_host(images) @ LUMA)[..., None] * np.ones(3), atol=1e-12)
    some = (seeded(RandomGrayscale(0.2), images) != to_host(images)).any(axis=(1, 2, 3))
    assert 0.13 < some.mean() < 0.27


# ---------------------------------------------------------------- recipes

@pytest.mark.parametrize("augment, channels, shape", [
    (mnist_views(), 1, images_of(np, channels=1).shape), (simclr_views(size=16), 3, (6, 16, 16, 3))])
def test_recipes_give_two_different_views(xp, augment, channels, shape):
    first, second = two_views(augment, images_of(xp, channels=channels), np.random.default_rng(0))
    assert first.shape == second.shape == shape and (to_host(first) != to_host(second)).any()


def test_digits_stay_in_frame():
    """MNIST centres a digit in 20 x 20 of 28 x 28 pixels; a disc of that size must keep nearly all its ink."""
    y, x = np.mgrid[:28, :28] - 13.5
    disc = ((y * y + x * x < 100) * 1.0).astype("float32")
    views = seeded(Compose(mnist_views().transforms[:1]), np.repeat(disc[None, :, :, None], 200, axis=0))
    at_the_edge = np.concatenate([views[:, 0], views[:, -1], views[:, :, 0], views[:, :, -1]], axis=1)
    assert at_the_edge.mean() < 0.1


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize("make, words", [
    (lambda: RandomResizedCrop(0), "size: expected pixels"),
    (lambda: RandomResizedCrop(28.0), "size: expected pixels"),
    (lambda: RandomResizedCrop((28, 28, 1)), "size: expected pixels"),
    (lambda: RandomResizedCrop(28, scale=(0.5, 0.2)), r"scale: .* got \(0.5, 0.2\)"),
    (lambda: RandomResizedCrop(28, scale=(0.5, 2)), r"scale: .* <= 1, got"),
    (lambda: RandomResizedCrop(28, ratio=(0, 1)), "ratio: "),
    (lambda: RandomAffine(degrees=-5), "degrees: expected a number v .*got -5"),
    (lambda: RandomAffine(degrees="15"), "degrees: .*got '15'"),
    (lambda: RandomAffine(degrees=400), "degrees: "),
    (lambda: RandomAffine(translate=2), r"translate: expected a number in \[0, 1\], got 2"),
    (lambda: RandomAffine(scale=(0, 1)), "scale: "),
    (lambda: RandomAffine(shear=90), "shear: "),
    (lambda: RandomHorizontalFlip(1.5), "p: "),
    (lambda: RandomElastic(alpha=-1), "alpha: "),
    (lambda: RandomElastic(sigma=0), "sigma: "),
    (lambda: RandomPerspective(0.7), "distortion: "),
    (lambda: RandomErasing(value=255), "value: "),
    (lambda: RandomErasing(p=True), "p: .*got True"),
    (lambda: GaussianNoise(float("nan")), "std: "),
    (lambda: GaussianBlur(sigma=(0, 2)), "sigma: "),
    (lambda: BrightnessContrast(contrast=(-0.1, 1)), "contrast: "),
    (lambda: ColorJitter(hue=0.6), "hue: "),
    (lambda: ColorJitter(saturation=(1, 2, 3)), "saturation: "),
])
def test_bad_options_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_compose_wants_a_list_of_functions():
    with pytest.raises(TypeError, match=r"Compose\(\[first, second\]\)"):
        Compose(RandomAffine())
    with pytest.raises(TypeError, match="transforms"):
        Compose([RandomAffine(), 3])


@pytest.mark.parametrize("transform", [RandomAffine(), RandomHorizontalFlip(), mnist_views()], ids=name)
def test_bad_images_are_refused_with_the_mend(xp, rng, transform):
    images = images_of(xp)
    with pytest.raises(TypeError, match=r"images: .* got uint8; scale bytes first: .*/ 255"):
        transform((images * 255).astype("uint8"), rng)
    with pytest.raises(TypeError, match=r"got float16; .*astype\('float32'\)"):
        transform(images.astype("float16"), rng)
    with pytest.raises(ValueError, match=r"expected shape \(B, H, W, C\), got \(6, 10, 12\); .*images\[..., None\]"):
        transform(images[..., 0], rng)
    with pytest.raises(ValueError, match=r"1 or 3 channels .* got shape \(6, 1, 10, 12\); channels come last"):
        transform(images.transpose(0, 3, 1, 2), rng)
    with pytest.raises(TypeError, match="images: expected a numpy or cupy array .* got list"):
        transform([1.0], rng)
    for wrong in (0, None, np.random.RandomState(0)):
        with pytest.raises(TypeError, match="rng: expected a host numpy.random.Generator"):
            transform(images, wrong)


def test_values_outside_0_1_are_refused_where_looking_is_cheap(rng):
    images = images_of(np)
    for wrong in (images * 255, images - 0.5, images * np.nan):
        with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got \[.*normalise after augmenting"):
            RandomAffine()(wrong, rng)


@pytest.mark.parametrize("transform", [ColorJitter(), RandomGrayscale()], ids=name)
def test_colour_transforms_want_colour(xp, rng, transform):
    with pytest.raises(ValueError, match=r"expected 3 channels \(RGB\), got shape .*12, 1\).*BrightnessContrast"):
        transform(images_of(xp), rng)
