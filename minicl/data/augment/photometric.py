"""Augmentations that change values: noise, blur, erasing, colour. Results are clipped to [0, 1]."""

import numpy as np

from ...backend import array_module, column_sums, fused
from ..checks import interval, number
from .base import Range, Transform, draw_boxes
from .geometric import resample

LUMA = np.array([0.299, 0.587, 0.114])      # perceived brightness Y = LUMA . rgb (ITU-R BT.601)
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])    # rgb to luma and two chroma axes


# ---------------------------------------------------------------- erasing, noise, blur

class RandomErasing(Transform):
    """Overwrite a random box of each image with `value`, with probability p.

    scale: the box's area as a fraction of the image's; ratio: its width / height, drawn log-uniformly; the first of ten
    tries that fits is used.    Source: Zhong et al. 2017, Random erasing data augmentation.
    """

    def __init__(self, p: float = 0.5, scale: Range = (0.02, 0.33), ratio: Range = (0.3, 3.3), value: float = 0.0):
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
    """Add normal noise to every value. sigma: its standard deviation, or a range from which it is drawn for each image."""

    def __init__(self, sigma: Range = 0.05):
        self.sigma = interval(self, "sigma", sigma, 0)

    def draw(self, shape, rng):
        sigma = rng.uniform(*self.sigma, (shape[0], 1, 1, 1)).astype(np.float32)
        return [rng.standard_normal(shape, dtype=np.float32) * sigma]

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

    so that a flat image stays flat at its edges. The kernel is as wide as the image, so there is no kernel_size.

    Source: Chen et al. 2020 (SimCLR), appendix A, with p = 0.5 and sigma in (0.1, 2) for 224 pixels.
    """

    def __init__(self, *, sigma: Range = (0.1, 2.0), p: float = 0.5):
        self.sigma = interval(self, "sigma", sigma, 0.05, unit="in pixels")
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        blurred = rng.random(shape[0]) < self.p
        sigma = rng.uniform(*self.sigma, shape[0])
        return [np.where(blurred, 0.5 / sigma**2, SHARP)]

    def apply(self, images, out, precision):
        height, width = images.shape[1:3]
        rows = gaussian_weights(precision, height)
        resample(images, rows, rows if width == height else gaussian_weights(precision, width), out)


SHARP = 200.0                               # a precision 1 / (2 sigma^2) at which a pixel's neighbours have no weight
LEAST = 1e-18                               # smaller weights are 0: a CPU takes 100 times as long where products underflow


def gaussian_weights(precision, length):
    """G^T (B, length, length) from precision = 1 / (2 sigma^2), shape (B,)."""
    k = array_module(precision).arange(length, dtype=precision.dtype)
    G = _bells(precision[:, None, None], k[:, None], k)
    G /= column_sums(G)[:, None, :]
    return G


@fused
def _bells(xp, precision, i, k):
    distance = i - k
    w = -precision * (distance * distance)
    xp.exp(w, out=w)
    w *= w > LEAST
    return w


# ---------------------------------------------------------------- colour

class Recolour(Transform):
    """A linear map of colours for each image: out = x M + m N with the pixels as rows, x (H W, C), m their mean.

    draw gives M (B, C, C), and N (B, C, C) if it is not 0.
    """

    def apply(self, images, out, M, N=None):
        xp = array_module(images)
        n, height, width, channels = images.shape
        x = images.reshape(n, -1, channels)
        y = (x @ M).reshape(n, height, width * channels)
        if N is None:
            xp.clip(y.reshape(images.shape), 0, 1, out=out)
        else:
            mean = xp.ones((1, height * width), dtype=x.dtype) @ x / (height * width)       # (B, 1, C)
            shift = xp.tile(mean @ N, (1, 1, width))                     # as long rows: adding 3 at a time is slow
            _shift_within(y, shift, out.reshape(y.shape))


@fused
def _shift_within(xp, y, shift, out):
    """out = y + shift, clipped to [0, 1]; y is overwritten."""
    y += shift
    xp.clip(y, 0, 1, out=out)


class ColorJitter(Recolour):
    """Change brightness, contrast, saturation and hue of each image, with probability p.

    brightness, contrast, saturation: ranges of the factors b, c, s, as (low, high) or v for 1 - v to 1 + v;
    hue: a range of turns of the colour circle, within [-0.5, 0.5], or v for -v to v. With w the luma weights, m
    the image's mean colour and H the rotation by 2 pi hue in the chroma plane of YIQ,

        saturation  x -> s x + (1 - s) (w.x) 1       contrast    x -> c x + (1 - c) (w.m) 1
        hue         x -> H x                         brightness  x -> b x

    In YIQ, unlike HSV, a rotation of the hue is linear and preserves luma and greys. So all four commute and form one map:

        out = b c H S x + b (1 - c) (w.m) 1,    S = s I + (1 - s) 1 w^T

    clipped to [0, 1] at the end. Grey images have no hue and no saturation: out = b c x + b (1 - c) m.

    Source: Chen et al. 2020 (SimCLR), appendix A.
    """

    def __init__(self, brightness: Range = 0.4, contrast: Range = 0.4, saturation: Range = 0.4, hue: Range = 0.1,
                 p: float = 0.8):
        self.brightness = interval(self, "brightness", brightness, 0, around=1)
        self.contrast = interval(self, "contrast", contrast, 0, around=1)
        self.saturation = interval(self, "saturation", saturation, 0, around=1)
        self.hue = interval(self, "hue", hue, -0.5, 0.5, around=0, unit="in turns")
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        n, _, _, channels = shape
        jittered = (rng.random(n) < self.p)[:, None, None]
        b, c, s = (rng.uniform(*factors, (n, 1, 1)) for factors in (self.brightness, self.contrast, self.saturation))
        angle = 2 * np.pi * rng.uniform(*self.hue, n)
        if channels == 1:
            M, N = b * c, b * (1 - c)
        else:
            S = s * np.eye(3) + (1 - s) * LUMA
            M = b * c * (hue_rotation(angle) @ S)
            N = b * (1 - c) * LUMA[:, None] * np.ones(3)                 # m N = b (1 - c) (w.m) 1
        return [np.where(jittered, M, np.eye(channels)).swapaxes(1, 2), np.where(jittered, N, 0)]


class RandomGrayscale(Recolour):
    """Replace each image by its luma, in all three channels, with probability p. Grey images do not change."""

    def __init__(self, p: float = 0.2):
        self.p = number(self, "p", p, 0, 1)

    def draw(self, shape, rng):
        grey = (rng.random(shape[0]) < self.p)[:, None, None]
        return [np.where(grey, LUMA[:, None] * np.ones(3), np.eye(3)) if shape[3] == 3 else np.ones((shape[0], 1, 1))]


def hue_rotation(angle):
    """H (B, 3, 3): rotate RGB colours by angle (B,), in radians, about the axis of greys: H = YIQ^-1 R YIQ."""
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    cos, sin = np.cos(angle), np.sin(angle)
    R = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1).reshape(-1, 3, 3)
    return np.linalg.inv(YIQ) @ R @ YIQ
