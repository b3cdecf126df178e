"""CIFAR-10 (Krizhevsky 2009): read from a folder, from the user's cache, or downloaded once.

It is published as two archives of the same 60000 images, in five training files and one test file:

    cifar-10-binary.tar.gz    records of 3073 bytes: the label, then 32 x 32 reds, greens, blues, row by row
    cifar-10-python.tar.gz    pickled dicts of "data" (10000, 3072) and "labels"

An archive is verified by its SHA-256. Unpacked files have no published SHA-256 and are verified by their content: 10000
images each, labels 0 to 9, and 5000 (test: 1000) images of every class.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable

import numpy as np

from ..checks import require_bool
from .cifar_files import CLASSES, parse_binary, parse_pickle
from .download import AGAIN, CorruptFile, Gunzip, Source, one_line, read_file, require_different, user_path
from .images import ImageData

SHA256 = {                                               # the official page gives MD5s, c32a1d4a... and c58f3010...
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
UNPACKED = {                                             # {folder in the archive: its six files, the last to test}
    "cifar-10-batches-bin": [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"],
    "cifar-10-batches-py": [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"],
}
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
LIMIT = 250_000_000                                      # bytes of an archive, which has 170 MB, or of one file
OTHERWISE = "or for other data of this form use load_cifar10(data_dir, check=False)"
INSTEAD = "give a folder that holds its archive or its six files (--data-dir) or use generated shapes (--data shapes)"


def load_cifar10(data_dir: str | os.PathLike | None = None, *, download: bool = True, check: bool = True,
                 log: Callable[[str], None] = print) -> ImageData:
    """CIFAR-10 as ImageData: 50000 train and 10000 test images (32, 32, 3) uint8, ten classes.

    data_dir   a folder with either archive or its six files (or its cifar10/, cifar-10-batches-bin/ or
               cifar-10-batches-py/); default: the user's cache, else the binary archive (170 MB) is downloaded
    download   whether the network may be used
    check      False accepts other data of the same form from data_dir: any number of images, any class sizes
    log        gets a line of text if the cache cannot be written

    Raises FileNotFoundError if a file is missing in data_dir, CorruptFile if a file is damaged or is not CIFAR-10's,
    Unavailable if there is no data_dir and CIFAR-10 cannot be downloaded.
    """
    require_bool("load_cifar10", download=download, check=check)
    if data_dir is None:
        archive = next(iter(SHA256))
        source = Source("CIFAR-10", "cifar10", {archive: LIMIT}, _unpack, INSTEAD)
        (parts,) = source.read({archive: source.folder / archive}, lambda file: [ADDRESS + file], download=download, log=log)
    else:
        path = _find(user_path(data_dir, "data_dir"))
        parts = _unpack(read_file(path, LIMIT), path, path.name, check) if path.is_file() else _read_folder(path, check)
    images, labels = zip(*parts)                         # of the five training files and the test file
    return ImageData("cifar10", np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5],
                     class_names=CLASSES)


def _find(data_dir):
    """The path in data_dir of an archive, or of a folder with some of the six files."""
    for folder in (data_dir, data_dir / "cifar10", *(data_dir / name for name in UNPACKED)):
        for archive in SHA256:
            if os.path.isfile(folder / archive):
                return folder / archive
        if any(os.path.isfile(folder / file) for files in UNPACKED.values() for file in files):
            return folder
    missing = "has none of CIFAR-10's files" if os.path.isdir(data_dir) else "is not a folder"
    files = ", ".join(UNPACKED["cifar-10-batches-bin"])
    raise FileNotFoundError(f"data_dir {str(data_dir)!r} {missing}; expected {' or '.join(SHA256)}, or the files of "
                            f"one ({files}); leave data_dir out to download them")


def _read_folder(folder, check):
    """[(images, labels), ...] of the six unpacked files in `folder`."""
    files = max(UNPACKED.values(), key=lambda files: sum(os.path.isfile(folder / file) for file in files))
    if missing := [file for file in files if not os.path.isfile(folder / file)]:
        raise FileNotFoundError(f"data_dir {str(folder)!r} has no {', '.join(missing)}; unpack the archive again")
    return _parse_all({file: read_file(folder / file, LIMIT) for file in files}, folder, check)


def _unpack(packed, source, archive, check=True):
    """[(images, labels), ...] of the six files in an archive's bytes, refused if `check` and not CIFAR-10's."""
    digest = hashlib.sha256(packed).hexdigest()
    if check and digest != SHA256[archive]:
        raise CorruptFile(f"{source}: not CIFAR-10's {archive}: expected a SHA-256 that begins {SHA256[archive][:12]}, got "
                          f"{digest[:12]} ({len(packed)} bytes); {AGAIN}, {OTHERWISE}")
    folder, files = list(UNPACKED.items())[list(SHA256).index(archive)]
    contents = {}
    try:
        # Read as a stream, without extracting. A sparse member may claim any size.
        unpacked = Gunzip(packed, 2 * LIMIT)
        with tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if member.isfile() and not member.issparse() and name in files:
                    contents[name] = tar.extractfile(member).read()
        unpacked.read()                                  # to the end, where the checksum is
    except Exception as error:                           # a damaged archive can raise anything
        raise CorruptFile(f"{source}: damaged archive ({one_line(error)}); {AGAIN}") from error
    if missing := [file for file in files if file not in contents]:
        raise CorruptFile(f"{source}: the archive has no {', '.join(f'{folder}/{file}' for file in missing)}; {AGAIN}")
    return _parse_all({file: contents[file] for file in files}, source, check)


# ---------------------------------------------------------------- one file

def _parse_all(contents, source, check):
    """[(images, labels), ...] of {file: its bytes}, the last being the test file."""
    require_different(contents, source)
    parts = []
    for file, content in contents.items():
        where = f"{source}{os.sep}{file}"
        images, labels = (parse_binary if file.endswith(".bin") else parse_pickle)(content, where)
        if labels.max() > 9:
            raise CorruptFile(f"{where}: expected labels 0 to 9, got {labels.max()}: not a CIFAR-10 file; {AGAIN}")
        if check and len(images) != 10000:
            raise CorruptFile(f"{where}: expected 10000 images, got {len(images)}; {AGAIN}, {OTHERWISE}")
        parts.append((images, labels))
    for name, some in (("training", parts[:5]), ("test", parts[5:])):
        counts = np.bincount(np.concatenate([labels for _, labels in some]), minlength=10)
        if check and (counts != 1000 * len(some)).any():
            raise CorruptFile(f"{source}: expected {1000 * len(some)} {name} images of each of the ten classes, got "
                              f"{counts.tolist()}; is one file there twice?")
    return parts
