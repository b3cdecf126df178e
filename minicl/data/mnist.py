"""MNIST (LeCun, Cortes, Burges 1998): read from a folder, from the user's cache, or downloaded once.

Four files in IDX format, gzipped or plain: a big-endian header (magic, sizes), then unsigned bytes. The decompressed
content is verified by SHA-256.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..checks import require_bool
from ..typing import HostArray
from .download import AGAIN, CorruptFile, Gunzip, Source, read_file, require_different, user_path
from .images import ImageData

SHA256 = {                                               # of the decompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LIMITS = dict(zip(SHA256, (47_100_000, 61_000, 7_900_000, 11_000)))      # bytes, packed or not: just above their sizes
LIMIT = 2**30                                            # for other data of the same form
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
INSTEAD = "give a folder that holds its four files (--data-dir) or use generated digits (--data digits)"


def load_mnist(data_dir: str | os.PathLike | None = None, *, download: bool = True, check: bool = True,
               log: Callable[[str], None] = print) -> ImageData:
    """MNIST as ImageData: 60000 train and 10000 test images (28, 28, 1) uint8, white on black.

    data_dir   a folder with the four files (or its mnist/ or MNIST/raw/); default: the user's cache, to which missing
               files are downloaded from public mirrors
    download   whether the network may be used
    check      False accepts other data of the same form from data_dir, such as Fashion-MNIST
    log        gets a line of text if the cache cannot be written

    Raises FileNotFoundError if a file is missing in data_dir, CorruptFile if one is damaged or is not MNIST's, Unavailable
    if there is no data_dir and MNIST cannot be downloaded.
    """
    require_bool("load_mnist", download=download, check=check)
    if data_dir is None:
        source = Source("MNIST", "mnist", LIMITS, _decode, INSTEAD)
        wanted = {stem: _find(source.folder, stem) or source.folder / f"{stem}.gz" for stem in SHA256}
        arrays = source.read(wanted, lambda stem: [f"{mirror}{stem}.gz" for mirror in MIRRORS], download=download, log=log)
    else:
        arrays = [_decode(read_file(path, LIMITS[stem] if check else LIMIT), path, stem, check)
                  for stem, path in _find_all(user_path(data_dir, "data_dir")).items()]
    for split, images, labels in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        if len(images) != len(labels):
            raise CorruptFile(f"{data_dir}: {len(images)} images in {split}-images-idx3-ubyte but {len(labels)} "
                              f"labels in {split}-labels-idx1-ubyte; both must be of the same data set")
    train_images, train_labels, test_images, test_labels = arrays
    if not check:
        require_different({"train-images-idx3-ubyte": train_images.tobytes(),
                           "t10k-images-idx3-ubyte": test_images.tobytes()}, str(data_dir))
    classes = max(10, 1 + int(max(train_labels.max(), test_labels.max())))
    return ImageData("mnist" if check or data_dir is None else Path(data_dir).resolve().name,
                     train_images[..., None], train_labels.astype(np.int64),
                     test_images[..., None], test_labels.astype(np.int64),
                     class_names=tuple(str(c) for c in range(classes)))


# ---------------------------------------------------------------- reading

def parse_idx(content: bytes, source: str | os.PathLike, kind: str) -> HostArray:
    """The array in an IDX file of kind "image", (N, H, W), or "label", (N,); uint8, read-only.

    content   the file's decompressed bytes
    source    its path or address, for messages

    Raises CorruptFile for another magic number, too few bytes, too many, or nothing inside.
    """
    expected = {"image": 2051, "label": 2049}[kind]
    ndim = expected & 0xff                               # the magic's last byte; 0x08 before it: unsigned bytes
    start = 4 * (1 + ndim)
    magic = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and magic != expected:
        what = {2051: "an image file", 2049: "a label file"}
        raise CorruptFile(f"{source}: expected {what[expected]} (magic {expected}), got "
                          f"{what.get(magic, f'something that begins with {content[:4]!r}')} (magic {magic}); was it "
                          "renamed, or saved from a web page?")
    if len(content) < start:
        raise CorruptFile(f"{source}: truncated: expected at least {start} bytes, the header, got {len(content)}; {AGAIN}")
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    size = start + math.prod(shape)
    if len(content) < size:
        raise CorruptFile(f"{source}: truncated: expected {size} bytes for {kind}s {shape}, got {len(content)}; {AGAIN}")
    if len(content) > size:
        raise CorruptFile(f"{source}: expected {size} bytes for {kind}s {shape}, got {len(content) - size} more; {AGAIN}")
    if 0 in shape:
        raise CorruptFile(f"{source}: its header gives the shape {shape}, which has no {kind}s; {AGAIN}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _decode(packed, source, stem, check=True):
    """The array in a file's bytes, gzipped or plain, refused if `check` and not MNIST's file `stem`."""
    content = packed
    if packed.startswith(b"\x1f\x8b"):                   # by content: browsers unpack a file and keep its .gz
        try:
            content = Gunzip(packed, LIMITS[stem] if check else LIMIT).read()
        except (EOFError, gzip.BadGzipFile, zlib.error, CorruptFile) as error:
            raise CorruptFile(f"{source}: damaged gzip data ({error}); {AGAIN}") from error
    array = parse_idx(content, source, "image" if "images" in stem else "label")
    digest = hashlib.sha256(content).hexdigest()
    if check and digest != SHA256[stem]:
        raise CorruptFile(f"{source}: not MNIST's {stem}: expected a SHA-256 that begins {SHA256[stem][:12]}, got "
                          f"{digest[:12]}; replace it, or for other data of this form use "
                          "load_mnist(data_dir, check=False)")
    return array


def _find(folder, stem):
    """The path of file `stem` in folder, in any of its usual spellings, or None."""
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if os.path.isfile(path):
                return path
    return None


def _find_all(data_dir):
    """The paths of the four files, by stem, from the usual folder that has most of them."""
    folders = (data_dir, data_dir / "mnist", data_dir / "MNIST" / "raw")
    found = max(({stem: path for stem in SHA256 if (path := _find(folder, stem))} for folder in folders), key=len)
    if len(found) < len(SHA256):
        missing = "has no " + ", ".join(stem for stem in SHA256 if stem not in found)
        if not found:
            missing = "has none of MNIST's files" if os.path.isdir(data_dir) else "is not a folder"
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} {missing}; expected {', '.join(SHA256)}, each plain or "
                                ".gz, there or in its mnist/ or MNIST/raw/; leave data_dir out to download them")
    return found
