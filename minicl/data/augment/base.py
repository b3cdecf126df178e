"""The base of augmentations: parameters drawn on the host for each image, then arithmetic on the device.

A batch is (B, H, W, C), C = 1 or 3, float32 (float64 stays float64), values in [0, 1]. All random numbers come from a
numpy.random.Generator on the host, so a seed gives the same views on NumPy and on CuPy.
"""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import numpy as np

from ...backend import array_module, each_step, on_host, parallel_for
from ...checks import Sealed, require_rng
from ...distributed import ALONE, World
from ...signature import is_plain_array
from ...typing import Array, HostArray, Rng

Range = float | tuple[float, float]      # of an option: a pair (low, high), or a number, see checks.interval

SLACK = 1e-3            # that values may lie outside [0, 1], by rounding
MOST = {size: np.full((), 1 + SLACK, f"f{size}").view(f"u{size}") for size in (4, 8)}
SLICE_PIXELS = 2**16    # in a slice on NumPy: its temporaries stay in cache and need no fresh pages (CuPy: no slices)


class Transform(Sealed):
    """An augmentation `transform(images, rng) -> images`; the output is a new array of the input's dtype.

    A subclass has only its options as attributes, and defines two methods:

        draw(shape, rng)            host arrays of parameters, a row for each image, for a batch of this shape
        apply(images, out, *rows)   fill out from contiguous images and those arrays, slices of both on the device, one dtype

    Images that should not change get the parameters of the identity, so there are no branches.
    The options of minicl's transforms are checked when one is made, and cannot be set later.
    """

    def __call__(self, images: Array, rng: Rng, world: World = ALONE) -> Array:
        """images (B, H, W, C) -> (B, H', W', C); rng a host numpy.random.Generator, which is advanced.

        world: images are this process's part of a batch. The parameters of the whole batch are drawn, so views equal those
        of one process and rng stays the same on all processes.

        Raises TypeError if images is not a float array or rng not a Generator, ValueError for a wrong shape and, on
        NumPy (where the test is cheap), for values outside [0, 1].
        """
        check_images(self, images)
        require_rng(self, rng)
        world.require_part(f"{type(self).__name__}: images", images)
        return self.transform(images, rng, world)

    def transform(self, images: Array, rng: Rng, world: World = ALONE) -> Array:
        xp = array_module(images)
        whole = (len(images) * world.size, *images.shape[1:])
        parameters = each_step(images, lambda: [rows[world.part].astype(images.dtype, copy=False)
                                                for rows in self.draw(whole, rng)])
        out = xp.empty(self.output_shape(images.shape), dtype=images.dtype)
        own = not type(self).__module__.startswith(__package__)
        if own:
            out[...] = math.nan                              # reveals entries that a user's class does not fill

        def work(lo, hi):
            items = xp.ascontiguousarray(images[lo:hi])      # products round differently in other layouts
            if self.apply(items, out[lo:hi], *(rows[lo:hi] for rows in parameters)) is not None:
                raise TypeError(f"{type(self).__name__}.apply: it must return None and write its result into out: "
                                "out[...] = images")

        if images.size:
            pixels = max(images.shape[1] * images.shape[2], out.shape[1] * out.shape[2])
            parallel_for(xp, len(images), work, max(1, SLICE_PIXELS // pixels))
        if own and on_host(out) and np.isnan(out).any():
            raise ValueError(f"{type(self).__name__}.apply: it left part of out unset, or wrote NaN; write out[...] = ...")
        return out

    def draw(self, shape: tuple[int, ...], rng: Rng) -> Sequence[HostArray]:
        raise NotImplementedError(f"{type(self).__name__}: a Transform needs draw(shape, rng) and apply(images, out, *rows)")

    def apply(self, images: Array, out: Array, *rows: Array) -> None:
        raise NotImplementedError(f"{type(self).__name__}: a Transform needs draw(shape, rng) and apply(images, out, *rows)")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def __repr__(self) -> str:
        """The call that builds this transform, for a run's config."""
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "_is_sealed")
        return f"{type(self).__name__}({options})"


class Compose(Transform):
    """A chain of transforms (or any functions of images and rng) that draw from one rng.

    If several processes share a batch, functions also get world, as a Transform does.

    >>> from minicl.data.augment import RandomGrayscale, RandomHorizontalFlip
    >>> augment = Compose([RandomHorizontalFlip(), RandomGrayscale(p=0.2)])
    >>> augment(np.ones((4, 8, 8, 3), dtype="float32"), np.random.default_rng(0)).shape
    (4, 8, 8, 3)
    """

    def __init__(self, transforms: Sequence[Callable[[Array, Rng], Array]]):
        if not isinstance(transforms, (list, tuple)) or not all(callable(t) for t in transforms):
            raise TypeError(f"Compose: transforms: expected a list of transforms, got {transforms!r}; "
                            "write Compose([first, second])")
        self.transforms = list(transforms)

    def transform(self, images: Array, rng: Rng, world: World = ALONE) -> Array:
        if not self.transforms:
            return images.copy()
        checked = True                                       # images need no second look after minicl's own transforms
        for transform in self.transforms:
            own = type(transform).__module__.startswith(__package__)
            images = (transform.transform if own and checked else transform)(images, rng, *shared_by(world))
            checked = own and not isinstance(transform, Compose)
        return images

    def __repr__(self) -> str:
        return "Compose([" + "".join(f"\n    {t!r}," for t in self.transforms) + "\n])"


def shared_by(world: World) -> tuple[World, ...]:
    """The third argument of an augmentation, which it must accept if several processes share a batch."""
    return (world,) if world.size > 1 else ()


# ---------------------------------------------------------------- what more than one transform draws

def draw_boxes(shape, scale, ratio, rng, tries=10):
    """A random box for each image, (top, left, height, width) in whole pixels: an array (4, B).

    The area is uniform in `scale` (fractions of the image), width / height log-uniform in `ratio`. The first of `tries`
    boxes that fits is placed uniformly; if none fits, height = width = 0.
    """
    n, full_height, full_width, _ = shape
    area = rng.uniform(*scale, (tries, n)) * (full_height * full_width)
    aspect = np.exp(rng.uniform(*np.log(ratio), (tries, n)))
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height > 0) & (height <= full_height) & (width > 0) & (width <= full_width)
    first = fits.argmax(axis=0), np.arange(n)
    height, width = (height * fits)[first].astype(int), (width * fits)[first].astype(int)
    top, left = rng.integers(0, full_height - height + 1), rng.integers(0, full_width - width + 1)
    return np.stack([top, left, height, width])


# ---------------------------------------------------------------- what a caller may pass in

looked_at: ContextVar[tuple[HostArray | None, bool]] = ContextVar(
    "read-only images that are looked at once, and whether they were", default=(None, False))


def check_images(owner, images):
    name = type(owner).__name__
    if not is_plain_array(images):
        raise TypeError(f"{name}: images: expected a numpy or cupy array (B, H, W, C), got {type(images).__name__}")
    if images.dtype not in (np.float32, np.float64):             # of this machine's byte order too
        hint = ("scale bytes first: images.astype('float32') / 255" if images.dtype.kind in "iu"
                else "convert first: images.astype('float32')")
        raise TypeError(f"{name}: images: expected float32 (or float64) values in [0, 1], got {images.dtype}; {hint}")
    if images.ndim != 4:
        hint = "; for one channel write images[..., None]" if images.ndim == 3 else ""
        raise ValueError(f"{name}: images: expected shape (B, H, W, C), got {images.shape}{hint}")
    if images.shape[3] not in (1, 3):
        hint = ("; channels come last here: images.transpose(0, 2, 3, 1)" if images.shape[1] in (1, 3) else "")
        raise ValueError(f"{name}: images: expected 1 or 3 channels in the last axis, got shape {images.shape}{hint}")
    if len(images) and not images.size:
        raise ValueError(f"{name}: images: expected at least 1 x 1 pixels, got shape {images.shape}")
    if isinstance(images, np.ndarray):
        once, is_done = looked_at.get()
        is_fixed = images is once and not images.flags.writeable
        if not (is_fixed and is_done):
            require_in_range(name, images)
        if is_fixed:
            looked_at.set((images, True))


def require_in_range(name, images):
    # In one pass: the bits of floats >= 0 are ordered as the floats are, and those of others and of NaN lie above.
    if images.size and images.view(f"u{images.itemsize}").max() > MOST[images.itemsize]:
        low, high = float(images.min()), float(images.max())
        if not (low >= -SLACK and high <= 1 + SLACK):            # so written that NaN fails too
            raise ValueError(f"{name}: images: expected values in [0, 1], got [{low:.4g}, {high:.4g}]; divide bytes "
                             "by 255, and normalise after augmenting, not before")
