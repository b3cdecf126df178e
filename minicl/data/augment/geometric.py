"""Augmentations that move pixels: crop, flip, affine map, perspective, elastic deformation.

Coordinates are pixels in the order (row, column); pixel (0, 0) has its centre at (0, 0).
"""

import functools
import math

import numpy as np

from ...backend import array_module, bilinear, each_step, fused, is_captured, on_host
from ...typing import Array, HostArray
from ..checks import interval, number, whole
from .base import Range, Transform, draw_boxes

# ---------------------------------------------------------------- separable filters

def resample(images: Array, rows: Array, columns: Array, out: Array) -> None:
    """out = rows^T @ images @ columns, for each image and channel: a separable linear filter.

    images (B, H, W, C), rows (B, H, S), columns (B, W, T), out (B, S, T, C)
    """
    n, height, width, channels = images.shape
    y = rows.swapaxes(1, 2) @ images.reshape(n, height, width * channels)        # (B, S, W C)
    y = y.reshape(n, -1, width, channels)
    for channel in range(channels):
        array_module(out).matmul(y[..., channel], columns, out=out[..., channel])


# ---------------------------------------------------------------- crop

class RandomResizedCrop(Transform):
    """Crop a random box of each image and resize it to `size`, bilinearly.

    size: pixels, one number or (height, width); scale: the box's area as a fraction of the image's; ratio: its width /
    height, drawn log-uniformly by torchvision's rule: whole pixels, ten tries for a box that fits, else the largest
    central one. antialias: if the box is larger than `size`, average over all of its pixels, as Pillow does.

    Source: Szegedy et al. 2015, Going deeper with convolutions, section 6; SimCLR's first augmentation. The default
    scale is MoCo's; SimCLR's, and torchvision's default, is (0.08, 1).

    >>> images = np.random.default_rng(0).random((8, 32, 32, 3), dtype="float32")
    >>> RandomResizedCrop(24, scale=(0.08, 1))(images, np.random.default_rng(1)).shape
    (8, 24, 24, 3)
    """

    def __init__(self, size: int | tuple[int, int], scale: Range = (0.2, 1.0), ratio: Range = (3 / 4, 4 / 3),
                 antialias: bool = True):
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2:
            raise ValueError(f"RandomResizedCrop: size: expected pixels, an int or a pair (height, width), got {size!r}")
        self.size = tuple(whole(self, "size", side, 1) for side in sides)
        self.scale = interval(self, "scale", scale, 1e-6, 1)
        self.ratio = interval(self, "ratio", ratio, 1e-3, 1e3)
        if not isinstance(antialias, bool):
            raise ValueError(f"RandomResizedCrop: antialias: expected True or False, got {antialias!r}")
        self.antialias = antialias

    def output_shape(self, shape):
        return (shape[0], *self.size, shape[3])

    def draw(self, shape, rng):
        boxes = draw_boxes(shape, self.scale, self.ratio, rng)
        boxes = np.where(boxes[2] > 0, boxes, np.array(central_box(shape, self.ratio))[:, None])
        rows = boxes[0], boxes[2], self.size[0], shape[1]                # start, length, target, full length
        columns = boxes[1], boxes[3], self.size[1], shape[2]
        parameters = [hat_centres(*rows[:3]), hat_centres(*columns[:3])]
        if self.antialias and any((length > size).any() for _, length, size, _ in (rows, columns)):
            parameters += [*wide_hats(*rows), *wide_hats(*columns)]
        return parameters

    def apply(self, images, out, row_centres, column_centres, *wide):
        rows = hat_weights(row_centres, images.shape[1], *wide[:2])
        columns = hat_weights(column_centres, images.shape[2], *wide[2:])
        resample(images, rows, columns, out)


def central_box(shape, ratio):
    """The largest box (top, left, height, width) in the middle of an image whose width / height lies in ratio."""
    height, width = shape[1:3]
    if width / height < ratio[0]:
        height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        width = max(1, round(height * ratio[1]))
    return (shape[1] - height) // 2, (shape[2] - width) // 2, height, width


def hat_centres(start, length, size):
    """c_i (B, size): the centre of output pixel i in source pixels, limited to the box."""
    centres = start[:, None] + (np.arange(size) + 0.5) * (length / size)[:, None] - 0.5
    return np.clip(centres, start[:, None], (start + length - 1)[:, None])


def wide_hats(start, length, size, full):
    """For antialiasing: the half-width r of each hat, (B, size) in pixels, and a mask of the box's pixels, (B, full)."""
    k = np.arange(full)
    inside = (k >= start[:, None]) & (k < (start + length)[:, None])
    return np.maximum(1, length / size)[:, None].repeat(size, axis=1), inside


def hat_weights(centres, length, reach=None, inside=None):
    """The weights with which points at centres (B, S) sample `length` pixels, linearly -> (B, length, S)

        w_ki = max(0, 1 - |c_i - k|),   or with a reach   w_ki = max(0, r - |c_i - k|) / sum of the column
    """
    xp = array_module(centres)
    k = xp.arange(length, dtype=centres.dtype)[:, None, None]            # first, so that NumPy's loops are B S long
    if reach is None:
        return _hats(centres, k, 1.0, float(length), None).swapaxes(0, 1)
    w = _hats(centres, k, reach, float(length), inside.T[:, :, None])
    w /= w.sum(axis=0)
    return w.swapaxes(0, 1)


@fused
def _hats(xp, centres, k, reach, most, inside):
    w = centres - k
    xp.abs(w, out=w)
    xp.subtract(reach, w, out=w)
    xp.clip(w, 0, most, out=w)                                           # no w is above `most`; NumPy's maximum is slow
    if inside is not None:
        w *= inside
    return w


# ---------------------------------------------------------------- flip

class RandomHorizontalFlip(Transform):
    """Mirror each image left to right with probability p. (Not for digits or letters.)"""

    def __init__(self, p: float = 0.5):
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        return [rng.random(shape[0]) < self.p]

    def apply(self, images, out, flips):
        if on_host(flips):
            whole = f"V{images.itemsize * images.shape[3]}"              # NumPy copies one item faster than three numbers
            source, target = (pixels.view(whole)[..., 0] for pixels in (images, out))
            chosen = np.flatnonzero(flips)
            target[...] = source
            target[chosen] = source[chosen, :, ::-1]
        else:
            _choose(images, images[:, :, ::-1], flips[:, None, None, None], out)


@fused
def _choose(xp, x, other, chosen, out):
    """out = other where chosen is 1, x where it is 0."""
    out[...] = xp.where(chosen > 0, other, x)


# ---------------------------------------------------------------- straight lines stay straight

class PlaneMap(Transform):
    """A warp by one matrix for each image, which maps an output pixel (row, column, 1) to its source.

    A (2, 3) matrix is an affine map, a (3, 3) matrix a perspective, whose third coordinate divides the others.
    """

    def apply(self, images, out, matrix):
        bilinear(images, plane_coordinates(matrix, *images.shape[1:3]), out)


def plane_coordinates(matrix, height, width):
    """matrix (B, 2 or 3, 3) -> source coordinates (B, 2, height, width) of every output pixel."""
    xp = array_module(matrix)
    if on_host(matrix):                                                  # where loops over short rows take longer
        coordinates = (matrix @ _pixels(height, width, matrix.dtype)).reshape(*matrix.shape[:2], height, width)
    else:
        y, x = (_numbers(xp, n, matrix.dtype) for n in (height, width))
        coordinates = _plane(*(matrix[:, :, k, None, None] for k in range(3)), y[:, None], x)
    if matrix.shape[1] == 3:
        coordinates = coordinates[:, :2] / coordinates[:, 2:]
    return coordinates


@fused
def _plane(xp, per_row, per_column, origin, y, x):
    return (per_row * y + origin) + per_column * x


def _numbers(xp, n, dtype):
    """0, 1, ..., n - 1, cached to save a launch in every batch on a GPU. Do not write to it."""
    return (_arange.__wrapped__ if is_captured() else _arange)(xp, n, dtype)


@functools.lru_cache(64)
def _arange(xp, n, dtype):
    return xp.arange(n, dtype=dtype)


@functools.lru_cache(4)
def _pixels(height, width, dtype):
    """(row, column, 1) of every pixel on NumPy, as the columns of a matrix (3, H W). Do not write to it."""
    return np.concatenate([np.indices((height, width)), np.ones((1, height, width))]).reshape(3, -1).astype(dtype)


class RandomAffine(PlaneMap):
    """Rotate, shift, scale and shear each image about its centre; outside the image values are 0.

    degrees: rotation, counter-clockwise (torchvision's is clockwise); translate: the largest shift as a fraction of
    (width, height), or of both; scale: magnification, 1 for the same size; shear: degrees by which verticals lean right.
    A number v for degrees or shear means -v to v.

    With y down and x right from the centre, t the shift, s the scale, theta the rotation and phi the shear,

        [y']       [cos theta  -sin theta] [    1     0] [y]
        [x'] = s * [sin theta   cos theta] [-tan phi  1] [x] + t

    maps source to output; the matrix drawn is its inverse.
    """

    def __init__(self, degrees: Range = 15, translate: float | tuple[float, float] = 0.1, scale: Range = (0.8, 1.2),
                 shear: Range = 0):
        self.degrees = interval(self, "degrees", degrees, -360, 360, around=0)
        pair = translate if isinstance(translate, (tuple, list)) and len(translate) == 2 else (translate, translate)
        self.translate = tuple(number(self, "translate", share, 0, 1) for share in pair)
        self.scale = interval(self, "scale", scale, 1e-3, 1e3)
        self.shear = interval(self, "shear", shear, -80, 80, around=0)

    def draw(self, shape, rng):
        n, height, width, _ = shape
        theta, phi = (np.radians(rng.uniform(*angles, n)) for angles in (self.degrees, self.shear))
        s = rng.uniform(*self.scale, n)
        most = np.array([self.translate[1] * height, self.translate[0] * width])
        t = rng.uniform(-1, 1, (n, 2)) * most
        return [affine_matrix(theta, t, s, phi, height, width)]


def affine_matrix(theta, t, s, phi, height, width):
    """The inverse of RandomAffine's formula in pixels: angles (B,) in radians, t (B, 2) as (y, x) -> (B, 2, 3)

        A = 1/s [1        0] [ cos theta  sin theta]     source = A (output - centre - t) + centre
                [tan phi  1] [-sin theta  cos theta]
    """
    cos, sin = np.cos(theta), np.sin(theta)
    lean = np.tan(phi)
    A = np.stack([cos, sin, lean * cos - sin, lean * sin + cos], axis=1).reshape(-1, 2, 2) / s[:, None, None]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    shift = centre - (A @ (centre + t)[:, :, None])[:, :, 0]
    return np.concatenate([A, shift[:, :, None]], axis=2)


class RandomPerspective(PlaneMap):
    """View each image at an angle: its corners move inwards by up to distortion_scale/2 of its height and width.

    distortion_scale is below 2/3, so that the corners bound a convex shape. Every image is changed; torchvision's has a
    probability p, by default 0.5, and a distortion_scale of 0.5.
    """

    def __init__(self, distortion_scale: float = 0.3):
        self.distortion_scale = number(self, "distortion_scale", distortion_scale, 0, 0.66)

    def draw(self, shape, rng):
        n, height, width, _ = shape
        inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        corners = CORNERS + inwards * rng.uniform(0, self.distortion_scale / 2, (n, 4, 2))
        unit = np.array([[1 / height, 0, 0.5 / height], [0, 1 / width, 0.5 / width], [0, 0, 1]])   # pixels to [0, 1]
        return [np.linalg.inv(unit) @ np.linalg.inv(square_to_quad(corners)) @ unit]


CORNERS = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])                   # of the unit square, (row, column)


def square_to_quad(corners):
    """The perspective (B, 3, 3) that maps CORNERS to corners (B, 4, 2), in the same order.

    Source: Heckbert 1989, Fundamentals of texture mapping and image warping, section 2.2.3.
    """
    p0, p1, p2, p3 = corners.swapaxes(0, 1)
    e1, e3 = p1 - p2, p3 - p2
    s = p0 - p1 + p2 - p3

    def cross(p, q):
        return p[:, :1] * q[:, 1:] - p[:, 1:] * q[:, :1]

    g, h = cross(s, e3) / cross(e1, e3), cross(e1, s) / cross(e1, e3)
    top = np.stack([p1 - p0 + g * p1, p3 - p0 + h * p3, p0], axis=2)     # (B, 2, 3)
    return np.concatenate([top, np.stack([g, h, np.ones_like(g)], axis=2)], axis=1)


# ---------------------------------------------------------------- straight lines bend

class ElasticTransform(Transform):
    """Displace every pixel by a smooth random field; outside the image values are 0.

    alpha: root mean square displacement along each axis, sigma: the field's smoothness, both in pixels.

        field = alpha G_h z G_w^T,   z ~ N(0, 1) on knots sigma apart,   G_yk = exp(-(y - k)^2 / (2 sigma^2)) / norm

    where each row of G has norm 1, so that field ~ N(0, alpha^2) at every pixel.

    Source: Simard, Steinkraus and Platt 2003, Best practices for convolutional neural networks. They, and torchvision,
    smooth uniform noise at every pixel; their alpha is 6.1 sigma times this one, torchvision's, in halves of a pixel, 12.3.
    """

    def __init__(self, alpha: float = 1.0, sigma: float = 4.0):
        self.alpha = number(self, "alpha", alpha, 0, unit="in pixels")
        self.sigma = number(self, "sigma", sigma, 0.5, unit="in pixels")

    def draw(self, shape, rng):
        knots = [len(self.knots(side)) for side in shape[1:3]]
        return [rng.standard_normal((shape[0], 2, *knots), dtype=np.float32) * np.float32(self.alpha)]

    def apply(self, images, out, z):
        xp = array_module(images)
        height, width = images.shape[1:3]
        rows, columns = each_step(images, lambda: [self.smoother(side).astype(images.dtype) for side in (height, width)])
        coordinates = rows @ z @ columns.T                               # (B, 2, H, W)
        coordinates[:, 0] += xp.arange(height, dtype=images.dtype)[:, None]
        coordinates[:, 1] += xp.arange(width, dtype=images.dtype)
        bilinear(images, coordinates, out)

    def knots(self, side: int) -> HostArray:
        """Knots sigma apart over `side` pixels and two beyond each end, in pixels."""
        inner = math.ceil(side / self.sigma)
        return (side - 1) / 2 + self.sigma * (np.arange(inner + 4) - (inner + 3) / 2)

    def smoother(self, side: int) -> HostArray:
        """G (side, knots): Gaussian bumps on the knots, each row of norm 1."""
        distance = (np.arange(side)[:, None] - self.knots(side)) / self.sigma
        G = np.exp(-0.5 * distance * distance)
        return G / np.sqrt((G * G).sum(axis=1, keepdims=True))
