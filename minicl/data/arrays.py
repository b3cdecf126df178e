"""Images in arrays: .npz and .npy files, and the binary files of CIFAR-10, CIFAR-100 and STL-10.

    digits.npz                                    train_images, train_labels, test_images, test_labels, class_names
    folder/train_images.npy, train_labels.npy, test_images.npy, test_labels.npy
    folder/images.npy, labels.npy                 not split; the same names in an .npz file. labels.npy is optional
    folder/data_batch_1.bin, ..., test_batch.bin  CIFAR-10; without .bin the pickled files
    folder/train.bin, test.bin                    CIFAR-100, its 100 fine classes
    folder/train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin       STL-10

Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3; labels are integers or text (N,).
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..typing import HostArray
from .checks import DataError
from .cifar_files import CLASSES, PIXELS, parse_binary, parse_pickle, to_images
from .download import one_line
from .pictures import pillow, resize

UNPACKED = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "stl10_binary")   # folders of archives
KEYS = {                                                 # names in use for each array
    "train": ("train_images", "x_train", "X_train", "train_x", "images", "x", "X", "arr_0"),
    "train_labels": ("train_labels", "y_train", "train_y", "labels", "y"),
    "test": ("test_images", "x_test", "X_test", "test_x"), "test_labels": ("test_labels", "y_test", "test_y"),
}
OF_LABELS = {*KEYS["train_labels"], *KEYS["test_labels"], "class_names"}            # files that may be equal


@dataclass
class Arrays:
    """train (N, H, W, C) and test (M, H, W, C) uint8, M may be 0; labels (N + M,) index classes, or are None."""

    where: str
    files: list[str]
    train: HostArray
    test: HostArray
    labels: HostArray | None
    classes: tuple[str, ...] | None

    def read(self, i: int, size: int, channels: int) -> HostArray:
        """Image i of train and test as (size, size, channels), resized as picture files are."""
        image = self.train[i] if i < len(self.train) else self.test[i - len(self.train)]
        if image.shape == (size, size, channels):
            return np.ascontiguousarray(image)
        pixels = np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
        return resize(pillow().fromarray(pixels), size, channels)


def find_arrays(path: Path, use_labels: bool, log: Callable[[str], None]) -> Arrays | None:
    """The arrays in a file, or in a folder with files of the names above; None if there are none."""
    if path.suffix.lower() in (".npz", ".npy") and path.is_file():
        files = [path]
        found = _load(path)
        return _arrays(path, files, found if isinstance(found, dict) else {"images": found}, use_labels, log)
    layouts = []
    for folder in (path / name for name in UNPACKED):
        for read in (_npy, _cifar10, _cifar100, _stl10):
            files = []
            if found := read(folder, files, use_labels, log):
                layouts.append((folder, files, found))
    if len(layouts) > 1:
        raise DataError(f"{path} holds several data sets, with {' and '.join(str(files[0]) for _, files, _ in layouts)}; "
                        "put each in its own folder")
    return _arrays(*layouts[0], use_labels, log) if layouts else None


def _arrays(where: Path, files: list[Path], found: Mapping[Any, Any], use_labels: bool,
            log: Callable[[str], None]) -> Arrays:
    """Arrays of {name: array}, checked."""
    keys = {what: next((name for name in names if name in found), None) for what, names in KEYS.items()}
    if keys["test"] is None:
        keys["test_labels"] = None                           # of no images: left out, with a line
    if keys["train"] is None:
        raise DataError(f"{where} has {', '.join(map(repr, found))}; expected one array of images named "
                        f"{' or '.join(KEYS['train'][:5])}")
    train = _images(f"{where}: {keys['train']}", found[keys["train"]])
    test = _images(f"{where}: {keys['test']}", found[keys["test"]]) if keys["test"] else train[:0]
    splits = [(train, keys["train_labels"]), *([(test, keys["test_labels"])] if len(test) else [])]
    labels = classes = None
    if all(key for _, key in splits) and (use_labels or not len(test)):                  # without: for the split alone
        with contextlib.nullcontext() if use_labels else contextlib.suppress(DataError):
            values = [_labels(f"{where}: {key}", found[key], len(images)) for images, key in splits]
            labels, classes = _classes(where, values, found.get("class_names"), log if use_labels else lambda line: None)
    if left_out := [name for name in found if name not in keys.values() and name != "class_names"]:
        log(f"left out of {where}: {', '.join(map(one_line, left_out))}; read: {', '.join(filter(None, keys.values()))}")
    if use_labels and labels is None:
        without = [what for (_, key), what in zip(splits, ("training", "test")) if not key]
        reason = f"has none of its {' and '.join(without)} images" if without else "has only one class"
        log(f"no labels: {where} {reason}; accuracies, which need them, are left out")
    return Arrays(str(where), [os.path.abspath(file) for file in files], train, test, labels, classes)


def _images(where, array):
    if array.dtype != np.uint8:
        in_ones = array.dtype.kind == "f" and array.size and array.max() <= 1
        raise DataError(f"{where} must be uint8, got {array.dtype}; convert values in "
                        f"{'[0, 1] with (255 * x).round()' if in_ones else '0 ... 255 with x'}.astype('uint8')")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise DataError(f"{where} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3 and not empty, got shape "
                        f"{array.shape}")
    return array


def _labels(where, array, N):
    """Labels of N images, of shape (N,), (N, 1) or (1, N), as int64 or text (N,)."""
    array = np.asarray(array)
    if array.shape not in ((N,), (N, 1), (1, N)):
        one_hot = "; of one row for each image give the column of its 1: labels.argmax(axis=1)" * (array.shape[:1] == (N,))
        raise DataError(f"{where} must be (N,), a label for each of the {N} images, got shape {array.shape}{one_hot}")
    array = _text(where, array.reshape(N))
    if array.dtype.kind not in "iuU":
        raise DataError(f"{where} must be integers or text, got {array.dtype}")
    if array.dtype.kind == "u" and array.max() > 2**63 - 1:
        raise DataError(f"{where} must be less than 2^63, got {array.max()}")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _text(where, array):
    """Byte strings as text; other arrays unchanged."""
    try:
        return np.char.decode(array, "utf-8") if np.asarray(array).dtype.kind == "S" else array
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {error.object!r} is not text in UTF-8; save text, such as "
                        "np.char.decode(names, 'latin-1')") from error


def _classes(where, splits, names, log):
    """labels (N,) int64 of all splits and their class names; (None, None) for a single class."""
    if len({values.dtype.kind for values in splits}) > 1:
        raise DataError(f"{where}: labels are text in one split and integers in the other")
    distinct, labels = np.unique(values := np.concatenate(splits), return_inverse=True)
    if len(distinct) < 2:
        return None, None
    if names is None and (distinct[0] == "" if values.dtype.kind == "U" else distinct[0] < 0):
        raise DataError(f"{where}: labels must be text, or integers from 0, got {str(distinct[0])!r} for "
                        f"{(values == distinct[0]).sum()} images; leave these images out if they have no label")
    if names is not None and values.dtype.kind == "U":
        log(f"left out of {where}: class_names, because the labels are text")
        names = None
    if missing := sorted({*splits[-1].tolist()} - {*splits[0].tolist()}):
        message = f"{where}: test labels that no training image has: {', '.join(map(one_line, missing[:5]))}"
        if names is None:
            raise DataError(message)
        log(f"warning: {message}")
    if names is None:
        return labels.reshape(-1).astype(np.int64), tuple(map(str, distinct))
    if np.ndim(names) != 1 or not 0 <= distinct[0] <= distinct[-1] < len(names):
        raise DataError(f"{where}: labels must be indices into class_names, from 0, got {distinct[0]}..{distinct[-1]} "
                        f"and class_names of shape {np.shape(names)}")
    if len(names) > distinct[-1] + 1:
        log(f"{where}: class_names has {len(names)} names, but the labels are {distinct[0]} to {distinct[-1]}; check that "
            "each label has its own name")
    return values, tuple(map(str, _text(f"{where}: class_names", names)))


# ---------------------------------------------------------------- files in a folder: {name: array}, or None

def _npy(folder, files, use_labels, log):
    found = dict.fromkeys(sorted(file.stem for file in folder.glob("[!.]*.npy") if file.is_file()))
    if not found.keys() & set(KEYS["train"]):
        return None
    for name in sorted(found.keys() & {*sum(KEYS.values(), ()), "class_names"}):
        files.append(folder / f"{name}.npy")
        found[name] = _load(files[-1])
    return found


def _cifar10(folder, files, use_labels, log):
    for suffix, parse in ((".bin", parse_binary), ("", parse_pickle)):
        batches = [file for k in range(1, 10) if (file := folder / f"data_batch_{k}{suffix}").is_file()]
        if batches:
            test = folder / f"test_batch{suffix}"
            files += [*batches, *([test] if test.is_file() else [])]
            expected = [f"data_batch_{k}{suffix}" for k in range(1, max(5, int(batches[-1].stem[-1])) + 1)] + [test.name]
            if missing := [name for name in expected if folder / name not in files]:
                log(f"{folder} has no {', '.join(missing)}: only the others are read")
            parts = [parse(file.read_bytes(), file) for file in files]
            images, labels = zip(*parts[:len(batches)])
            found = {"images": np.concatenate(images), "labels": np.concatenate(labels), "class_names": CLASSES}
            return found | ({"test_images": parts[-1][0], "test_labels": parts[-1][1]} if test in files else {})
    return None


def _cifar100(folder, files, use_labels, log):
    found: dict[str, Any] = {"class_names": _lines(folder / "fine_label_names.txt")}
    for split in ("train", "test"):
        if not (folder / f"{split}.bin").is_file():
            return None
        files.append(folder / f"{split}.bin")
        records = _records(files[-1], 2 + PIXELS)
        found[f"{split}_labels"] = records[:, 1]
        found[f"{split}_images"] = to_images(records[:, 2:])
    return found


def _stl10(folder, files, use_labels, log):
    def images(file):
        files.append(folder / file)
        return _records(files[-1], 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)         # stored by columns

    if not (folder / "train_X.bin").is_file():
        return None
    found = {"class_names": _lines(folder / "class_names.txt")}
    if not (folder / "test_X.bin").is_file():
        log(f"{folder} has no test_X.bin: a part of train_X.bin is used to test on")
    for split in ("train", "test"):
        if (folder / f"{split}_X.bin").is_file():
            found[f"{split}_images"] = images(f"{split}_X.bin")
        if (folder / f"{split}_y.bin").is_file():
            labels = np.fromfile(folder / f"{split}_y.bin", np.uint8)
            if ((labels < 1) | (labels > 10)).any():
                raise DataError(f"{folder / f'{split}_y.bin'}: expected STL-10's labels, 1..10, got {labels.min()}.."
                                f"{labels.max()}; copy it again")
            found[f"{split}_labels"] = labels - np.uint8(1)
    if (folder / "unlabeled_X.bin").is_file():
        if use_labels:
            log("left out: STL-10's unlabeled_X.bin, which has no labels; labels=False (--no-labels) trains on it")
        else:
            found["train_images"] = images("unlabeled_X.bin")
    return found


def _records(file, length):
    """A file's bytes as (N, length), mapped into memory."""
    size = os.stat(file).st_size
    if not size or size % length:
        raise DataError(f"{file}: expected a whole number of {length}-byte records, got {size} bytes; copy it again")
    return np.memmap(file, np.uint8, "r", shape=(size // length, length))


def _lines(file):
    """The lines of a text file that are not empty; None without one."""
    try:
        text = file.read_text("utf-8-sig") if file.is_file() else None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not text in UTF-8 ({one_line(error)}); save it as UTF-8") from error
    return text and [name for line in text.splitlines() if (name := line.strip())]


def _load(file):
    """The array of a .npy file, mapped into memory, or {name: array} of an .npz file. Raises DataError if it is damaged."""
    try:
        with open(file, "rb") as opened:
            if opened.read(2) == b"PK":
                opened.seek(0)
                return _members(np.load(opened))
        found = np.load(file, mmap_mode="r")
        if (expected := found.offset + found.nbytes) != (size := os.stat(file).st_size):
            raise ValueError(f"its header declares {found.dtype} of shape {found.shape}, {expected} bytes in all, but it "
                             f"has {size}; write it again with np.save(file, array), one array in each file")
        return found
    except Exception as error:
        raise DataError(f"{file}: not a readable array file ({one_line(error)})") from error


def _members(found):
    """{name: array} of an .npz file. Raises if it is damaged: NumPy does not verify the checksum of an array whose header
    declares fewer values than there are."""
    damaged = found.zip.testzip() or next((member.filename for member in found.zip.infolist() if member.comment), None)
    if damaged:
        raise ValueError(f"{damaged} is damaged; copy it again")
    return {key: found[key] for key in found.files}
