"""Augmentations that change values where they stand: noise, blur, erasing, brightness, contrast, colour.

Results are cut off at 0 and 1.
"""

import numpy as np

from ..backend import array_module, fused
from .transform import Transform, check_images, draw_boxes, interval, number
from .warp import resample

LUMA = np.array([0.299, 0.587, 0.114])      # how bright red, green and blue look: Y = LUMA . rgb (ITU-R BT.601)
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])    # rgb to luma and two chroma axes


# ---------------------------------------------------------------- any number of channels

class RandomErasing(Transform):
    """Overwrite a random box of each image with `value`, with probability p.

    scale: the box's area as a fraction of the image's; ratio: its width / height, drawn log-uniformly; boxes are
    whole pixels, and of ten tries the first that fits is taken.

    Source: Zhong et al. 2017, Random erasing data augmentation.
    """

    def __init__(self, p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0.0):
        self.p = number(self, "p", p, 0, 1)
        self.scale = interval(self, "scale", scale, 0, 1)
        self.ratio = interval(self, "ratio", ratio, 1e-3, 1e3)
        self.value = number(self, "value", value, 0, 1)

    def draw(self, shape, rng):
        erased = rng.random(shape[0]) < self.p
        top, left, height, width = draw_boxes(shape, self.scale, self.ratio, rng)[:, :, None]
        y, x = np.arange(shape[1]), np.arange(shape[2]).repeat(shape[3])
        return [(y >= top) & (y < top + height) & erased[:, None], (x >= left) & (x < left + width)]

    def apply(self, images, out, rows, columns):
        lines = *images.shape[:2], -1                                    # (B, H, W C)
        _erase(images.reshape(lines), rows[:, :, None], columns[:, None, :], self.value or None, out.reshape(lines))


@fused
def _erase(xp, images, rows, columns, value, out):
    keep = rows * columns                                                # 1 in the box
    xp.subtract(1, keep, out=keep)
    xp.multiply(images, keep, out=out)
    if value is not None:
        out += value * (1 - keep)


class GaussianNoise(Transform):
    """Add independent normal noise to every value.

    std: its standard deviation, a number, or a range (a, b) from which each image draws its own.
    """

    def __init__(self, std=0.05):
        self.std = interval(self, "std", std, 0)

    def draw(self, shape, rng):
        std = rng.uniform(*self.std, (shape[0], 1, 1, 1)).astype(np.float32)
        return [rng.standard_normal(shape, dtype=np.float32) * std]

    def apply(self, images, out, noise):
        _add_noise(images, noise, out)


@fused
def _add_noise(xp, x, noise, out):
    xp.add(x, noise, out=out)
    xp.clip(out, 0, 1, out=out)


class GaussianBlur(Transform):
    """Blur each image with a Gaussian, with probability p.

    sigma: the range of its standard deviation, in pixels. Separable, out = G_h image G_w^T, where

        G_ij = exp(-(i - j)^2 / (2 sigma^2)) / sum of the row

    so that at an edge the weights of the pixels that exist add up to 1, and a flat image stays flat.

    Source: Chen et al. 2020 (SimCLR), appendix A, with p = 0.5 and sigma in (0.1, 2) for 224 pixels.
    """

    def __init__(self, sigma=(0.1, 2.0), p=0.5):
        self.sigma = interval(self, "sigma", sigma, 0.05, unit=" of pixels")
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        blurred = rng.random(shape[0]) < self.p
        sigma = rng.uniform(*self.sigma, shape[0])
        return [np.where(blurred, 0.5 / sigma**2, SHARP)]

    def apply(self, images, out, precision):
        height, width = images.shape[1:3]
        rows = gaussian_weights(precision, height)
        resample(images, rows, rows if width == height else gaussian_weights(precision, width), out)


SHARP = 200.0                               # a precision 1 / (2 sigma^2) at which exp(-SHARP) is 0 in float32


def gaussian_weights(precision, length):
    """G (B, length, length) from precision = 1 / (2 sigma^2), shape (B,)."""
    xp = array_module(precision)
    k = xp.arange(length, dtype=precision.dtype)
    distance = k[:, None] - k
    G = -precision[:, None, None] * (distance * distance)
    xp.exp(G, out=G)
    G /= G.sum(axis=2, keepdims=True)
    return G


class BrightnessContrast(Transform):
    """Scale each image's values, and stretch them about their mean m.

        out = b (c x + (1 - c) m)

    brightness, contrast: the range of the factors b and c, as (low, high) or v for 1 - v to 1 + v. For grey
    images; on colour images m mixes the channels evenly, ColorJitter weighs them by luma.
    """

    def __init__(self, brightness=0.4, contrast=0.4):
        self.brightness = interval(self, "brightness", brightness, 0, around=1)
        self.contrast = interval(self, "contrast", contrast, 0, around=1)

    def draw(self, shape, rng):
        b, c = (rng.uniform(*factors, (shape[0], 1)) for factors in (self.brightness, self.contrast))
        return [b * c, b * (1 - c)]

    def apply(self, images, out, gain, pull):
        x, y = images.reshape(len(images), -1), out.reshape(len(out), -1)
        _stretch(x, gain, pull, x.mean(axis=1, keepdims=True), y)


@fused
def _stretch(xp, x, gain, pull, mean, out):
    """out = gain x + pull mean, cut off at 0 and 1."""
    xp.multiply(x, gain, out=out)
    out += pull * mean
    xp.clip(out, 0, 1, out=out)


# ---------------------------------------------------------------- colour images only

class Recolour(Transform):
    """A linear map of RGB, one matrix an image: out = x M with the pixels as rows, x (H W, 3)."""

    def __call__(self, images, rng):
        check_images(self, images)
        if images.shape[3] != 3:
            raise ValueError(f"{type(self).__name__}: images: expected 3 channels (RGB), got shape {images.shape}; "
                             "for grey images use BrightnessContrast")
        return super().__call__(images, rng)

    def apply(self, images, out, M, N=None):
        xp = array_module(images)
        n, height, width, _ = images.shape
        x = images.reshape(n, -1, 3)
        y = (x @ M).reshape(n, height, width * 3)
        if N is None:
            xp.clip(y.reshape(images.shape), 0, 1, out=out)
        else:
            mean = xp.ones((1, height * width), dtype=x.dtype) @ x / (height * width)       # (B, 1, 3)
            shift = xp.tile(mean @ N, (1, 1, width))                     # as long rows: adding 3 at a time is slow
            _shift_within(y, shift, out.reshape(y.shape))


@fused
def _shift_within(xp, y, shift, out):
    """out = y + shift, cut off at 0 and 1; y is used up."""
    y += shift
    xp.clip(y, 0, 1, out=out)


class ColorJitter(Recolour):
    """Change brightness, contrast, saturation and hue of each image, with probability p.

    brightness, contrast, saturation: ranges of the factors b, c, s, as (low, high) or v for 1 - v to 1 + v;
    hue: a range of turns of the colour circle, within [-0.5, 0.5], or v for -v to v. With w the luma weights, m
    the image's mean colour and H the rotation by 2 pi hue in the chroma plane of YIQ,

        saturation  x -> s x + (1 - s) (w.x) 1       contrast    x -> c x + (1 - c) (w.m) 1
        hue         x -> H x                         brightness  x -> b x

    Hue turns in YIQ, not in HSV, because there it is linear, keeps the luma of every pixel and leaves grey grey.
    So all four commute (torchvision's random order has nothing left to shuffle) and make one matrix and one shift:

        out = b c H S x + b (1 - c) (w.m) 1,    S = s I + (1 - s) 1 w^T

    cut off at 0 and 1 once, at the end. Source: Chen et al. 2020 (SimCLR), appendix A.
    """

    def __init__(self, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8):
        self.brightness = interval(self, "brightness", brightness, 0, around=1)
        self.contrast = interval(self, "contrast", contrast, 0, around=1)
        self.saturation = interval(self, "saturation", saturation, 0, around=1)
        self.hue = interval(self, "hue", hue, -0.5, 0.5, around=0, unit=" of turns")
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        n = shape[0]
        jittered = (rng.random(n) < self.p)[:, None, None]
        b, c, s = (rng.uniform(*factors, (n, 1, 1)) for factors in (self.brightness, self.contrast, self.saturation))
        angle = 2 * np.pi * rng.uniform(*self.hue, n)
        S = s * np.eye(3) + (1 - s) * LUMA
        M = b * c * (hue_rotation(angle) @ S)
        N = b * (1 - c) * LUMA[:, None] * np.ones(3)                     # m N = b (1 - c) (w.m) 1
        return [np.where(jittered, M, np.eye(3)).swapaxes(1, 2), np.where(jittered, N, 0)]


class RandomGrayscale(Recolour):
    """Replace each image by its luma, in all three channels, with probability p."""

    def __init__(self, p=0.2):
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        grey = (rng.random(shape[0]) < self.p)[:, None, None]
        return [np.where(grey, LUMA[:, None] * np.ones(3), np.eye(3))]


def hue_rotation(angle):
    """H (B, 3, 3): turn RGB colours by angle (B,), radians, about the axis of greys: H = YIQ^-1 R YIQ."""
    zero, one, cos, sin = np.zeros_like(angle), np.ones_like(angle), np.cos(angle), np.sin(angle)
    R = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1).reshape(-1, 3, 3)
    return np.linalg.inv(YIQ) @ R @ YIQ
