"""One picture file -> pixels. Pillow decodes it, and is imported only when a file is read."""

import os
import warnings
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from ..typing import HostArray
from .checks import DataError, whole

RESIZE = "centre square, bilinear with antialiasing"     # what open_image does; a run's config.json has it
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff .ppm .pgm".split())
LARGEST = 4096                                           # pixels a side of what comes out


def open_image(path: str | os.PathLike | BinaryIO, size: int, *, channels: int = 3) -> HostArray:
    """The picture in a file, upright, (size, size, channels) uint8.

    size       pixels a side. The largest centred square is resized, bilinearly with antialiasing: torchvision's
               Resize(size) followed by CenterCrop(size), up to shifts of less than a pixel
    channels   3 for RGB, 1 for grey

    The EXIF orientation is applied; colour profiles and gamma values are not. Transparent pixels become white, animations
    give their first frame, and CMYK and palettes become RGB. 16-bit values are scaled to 8 bits. Pictures above Pillow's
    limit of pixels are refused, and so are files that it would misread: some TIFF files, and PNG files of 16 bits with one
    transparent colour.

    Raises DataError, naming the file, if it cannot be read, is not JPEG, PNG, GIF, BMP, WebP, TIFF or PPM, is damaged or
    too large; and if Pillow, the extra `images`, is not installed.

    >>> import io
    >>> open_image(io.BytesIO(b"P6 1 1 255 abc"), 2)[0, 0].tolist()             # a PPM file; a path is the usual thing
    [97, 98, 99]
    """
    size, channels = require_size("open_image", size, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                  # Pillow's, of odd metadata and of sizes that are checked below
        return decode(path, size, channels)


def require_size(function: str, size: int, channels: int) -> tuple[int, int]:
    """(size, channels) as ints. Raises unless they fit."""
    if channels not in (1, 3) or isinstance(channels, (bool, float)):
        raise ValueError(f"{function}: channels must be 3 (RGB) or 1 (grey), got {channels!r}")
    return whole(function, "size", size, 1, LARGEST), int(channels)


def pillow() -> ModuleType:
    """PIL.Image. Raises DataError without it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"pictures need Pillow: pip install 'minicl[images]' ({error})") from error
    return Image


def decode(path: str | os.PathLike | BinaryIO, size: int, channels: int) -> HostArray:
    """open_image for threads: without checks of arguments, and with Pillow's warnings."""
    Image = pillow()
    try:
        with Image.open(path, formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels, Pillow's limit is "
                                                   f"{Image.MAX_IMAGE_PIXELS} in all")
            _require_readable(image)
            _correct_transparency(image)
            image.draft(None, (2 * size, 2 * size))      # of a JPEG file: decode at 1/2, 1/4 or 1/8 where that suffices
            return resize(upright(image), size, channels)
    except MemoryError:
        raise
    except Exception as error:                           # a damaged file can raise anything
        raise DataError(f"{shown(path) if isinstance(path, (str, os.PathLike)) else 'picture'}: {_reason(error)}") from error


def shown(path: str | os.PathLike) -> str:
    """A path for a message: one printable line, with ? for newlines and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def _reason(error: Exception) -> str:
    """The reason why a file was not read, in one line."""
    if type(error).__name__ == "UnidentifiedImageError":
        return f"not a picture, or not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, IsADirectoryError):
        return "is a folder; give the files in it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    kind = "too large" if type(error).__name__ == "DecompressionBombError" else "damaged or unusual"
    return f"{kind} ({' '.join(str(error).split())[:200] or type(error).__name__})"


BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANES, EXTRA, SAMPLE_FORMAT = 258, 259, 262, 266, 277, 284, 338, 339
                                                         # entries of a TIFF file
READ_IN_PLANES = {("L", 1), ("P", 3), ("RGB", 2), ("RGBA", 2), ("CMYK", 5)}          # mode, photometric


def _require_readable(image: Any) -> None:
    """Raise ValueError for a TIFF file that Pillow opens, but misreads, or whose values have no fixed range."""
    entries = getattr(image, "tag_v2", {})
    bits = max(np.atleast_1d(entries.get(BITS, 1)))
    kinds = set(np.atleast_1d(entries.get(SAMPLE_FORMAT, 1)).tolist())
    if not entries or kinds == {3}:                      # upright() has its own error for floating-point
        return
    photometric = entries.get(PHOTOMETRIC, 0)
    has_planes = entries.get(PLANES) == 2 and (entries.get(SAMPLES, 1) > 1 or entries.get(COMPRESSION, 1) == 1)
    is_read = (bits == 8 and entries.get(FILL_ORDER, 1) == 1 and (image.mode, photometric) in READ_IN_PLANES
               and (image.mode != "RGBA" or EXTRA in entries))
    reasons = {"not of 8 or 16 bits": bits > 8 and bits != 16, "signed": kinds != {1},
               "with white as 0": bits > 8 and photometric == 0,
               "with each colour in a plane of its own": has_planes and not is_read}
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"its {bits}-bit values are stored in a form that is not supported: {', '.join(found)}; save it "
                         "as PNG of 8 or 16 bits")


def _correct_transparency(image: Any) -> None:
    """Scale the transparent grey of a PNG file of 2 or 4 bits as Pillow scales its pixels. Raise ValueError for a
    transparent colour of 16 bits, of which Pillow's pixels keep 8."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or not image.tile:
        return
    stored = image.tile[0][3]                            # "L;4": grey of 4 bits
    if stored == "RGB;16B":
        raise ValueError("one of its colours of 16 bits is transparent, which is not supported; save it with 8 bits, or "
                         "with an alpha channel")
    image.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}.get(stored, 1)


def upright(image: Any) -> Any:
    """A Pillow image as RGB or grey (L), rotated by its EXIF entry, over white where it is transparent."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):                       # 16 bits, in Pillow also as 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values are not 8 or 16 bits")
        values[values == image.info.get("transparency", -1)] = 65535
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its values are floating-point, which have no fixed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def resize(image: Any, size: int, channels: int) -> HostArray:
    """The centred square of a Pillow image as (size, size, channels) uint8."""
    side = min(image.size)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    square = image.resize((size, size), pillow().Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.array(square.convert("RGB" if channels == 3 else "L")).reshape(size, size, channels)
