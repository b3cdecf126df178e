"""Augmentations that move pixels: against loops, at known maps, and in what they draw."""

import math

import numpy as np
import pytest
from image_batches import images_of, seeded

from minicl.backend import bilinear, to_device, to_host
from minicl.data.augment import (ElasticTransform, RandomAffine, RandomHorizontalFlip, RandomPerspective,
                                 RandomResizedCrop)
from minicl.data.augment.base import draw_boxes
from minicl.data.augment.geometric import CORNERS, affine_matrix, central_box, square_to_quad

# ---------------------------------------------------------------- bilinear samples, and maps of the plane

def blended(image, row, column):
    """Zero outside: the four neighbours weighed one by one."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return total


@pytest.mark.parametrize("channels", (1, 3))
def test_samples_are_bilinear_and_zero_outside(xp, rng, channels):
    images = images_of(xp, n=3, channels=channels, dtype="float64")
    coordinates = rng.uniform(-4, 15, (3, 2, 7, 5))
    coordinates[0, :, 0] = [[-1, 0, 9, 10, 11]] * 2                      # on pixels, edges and beyond
    coordinates[1, :, 0] = [[-1e9, 1e9, np.inf, -np.inf, 3.5]] * 2
    out = xp.empty((*coordinates.shape[:1], *coordinates.shape[2:], images.shape[3]), dtype=images.dtype)
    bilinear(images, to_device(coordinates, xp), out)
    assert out.shape == (3, 7, 5, channels)
    for b, i, j in np.ndindex(3, 7, 5):
        row, column = np.clip(coordinates[b, :, i, j], -99, 99)
        np.testing.assert_allclose(to_host(out)[b, i, j], blended(to_host(images)[b], row, column), atol=1e-12)


@pytest.mark.parametrize("channels", (1, 3))
def test_affine_matches_a_loop_that_moves_each_pixel_forward(xp, channels):
    """The loop inverts the formula of the docstring pixel by pixel; the library draws the inverse at once."""
    transform = RandomAffine(degrees=(20, 60), translate=(0.3, 0.1), scale=(0.7, 1.3), shear=(5, 25))
    images = images_of(xp, n=3, channels=channels, dtype="float64")
    out = seeded(transform, images)
    rng = np.random.default_rng(0)
    theta, phi = np.radians(rng.uniform(20, 60, 3)), np.radians(rng.uniform(5, 25, 3))
    s = rng.uniform(0.7, 1.3, 3)
    t = rng.uniform(-1, 1, (3, 2)) * [0.1 * 10, 0.3 * 12]
    centre = np.array([4.5, 5.5])
    for b in range(3):
        R = np.array([[np.cos(theta[b]), -np.sin(theta[b])], [np.sin(theta[b]), np.cos(theta[b])]])
        K = np.array([[1, 0], [-np.tan(phi[b]), 1]])
        for i, j in np.ndindex(10, 12):
            source = np.linalg.solve(s[b] * R @ K, np.array([i, j]) - centre - t[b]) + centre
            np.testing.assert_allclose(out[b, i, j], blended(to_host(images)[b], *source), atol=1e-9)


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
    transform = ElasticTransform(alpha=2.0, sigma=4.0)
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
    mass = seeded(ElasticTransform(), image).sum(axis=(1, 2, 3)) / 96
    assert 0.6 < mass.min() and mass.max() < 1.5 and abs(mass.mean() - 1) < 0.05


def test_a_flip_mirrors_columns(xp):
    images = images_of(xp, channels=3)
    for batch in (images, xp.swapaxes(images, 1, 3).copy().swapaxes(1, 3)):            # of any order in memory
        np.testing.assert_array_equal(seeded(RandomHorizontalFlip(1), batch), to_host(batch)[:, :, ::-1])
    half = seeded(RandomHorizontalFlip(0.5), images_of(xp, n=400))
    flipped = (half != to_host(images_of(xp, n=400))).any(axis=(1, 2, 3))
    assert 0.4 < flipped.mean() < 0.6


# ---------------------------------------------------------------- crop

def triangle_resize(image, box, size):
    """Pillow's antialiased bilinear resize of image[box], as loops over one axis and then the other."""
    top, left, height, width = (int(v) for v in box)
    image = image[top:top + height, left:left + width]
    for axis in (0, 1):
        length = image.shape[axis]
        rows = []
        for i in range(size[axis]):
            centre = (i + 0.5) * length / size[axis] - 0.5
            reach = max(1.0, length / size[axis])
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
