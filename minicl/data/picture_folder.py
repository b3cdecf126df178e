"""A folder of pictures or arrays as a data set: its contents, its classes, and its split into train and test.

    photos/a.jpg, b.png, ...                     no labels
    photos/cats/a.jpg, photos/dogs/b.png, ...    a class for each subfolder; deeper folders belong to it
    photos/train/..., photos/test/...            either of these within the two folders of a split (test or val)

read_folder returns the fields of ImageData.from_folder.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks import require_bool
from ..typing import HostArray
from .arrays import OF_LABELS, Arrays, find_arrays
from .checks import DataError, check_seed, number, whole
from .contents import Content, contents_of, hash_of, warn_of_alike, warn_of_copies, warn_of_few
from .decoded import decode_once
from .download import require_different, user_path
from .pictures import FORMATS, SUFFIXES, decode, pillow, require_size, shown

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
NO_LABELS = ("unlabelled",)                              # class_names of data without labels


@dataclass
class Items:
    """A folder's items before decoding. labels (N,) index classes; is_test (N,) bool, or None if not split."""

    names: list[str]
    contents: Callable[[HostArray], list[Content]]       # of the items in an order
    read: Callable[[int], HostArray]
    labels: HostArray
    classes: tuple[str, ...]
    is_test: HostArray | None


def read_folder(path: str | os.PathLike, size: int, channels: int, labels: bool, test_share: float, seed: int,
                limit: int | None, log: Callable[[str], None]) -> tuple:
    """name, train_images, train_labels, test_images, test_labels, class_names; see ImageData.from_folder."""
    where = "ImageData.from_folder"
    size, channels = require_size(where, size, channels)
    require_bool(where, labels=labels)
    test_share = number(where, "test_share", test_share, 0.001, 0.9)
    check_seed(where, seed)
    if limit is not None:
        whole(where, "limit", limit, 1)
    path = Path(os.path.abspath(user_path(path, "path")))
    if not os.path.exists(path):
        raise DataError(f"{shown(path)}: there is no such folder")
    arrays = find_arrays(path, labels, log)
    if arrays and path.is_dir() and (pictures := find_pictures(path, lambda line: None)):
        raise DataError(f"{shown(path)} holds {os.path.basename(arrays.files[0])} and {len(pictures)} pictures, such "
                        f"as {shown(pictures[0][0])}; move one of them to another folder")
    items = _of_arrays(arrays, size, channels) if arrays else _of_pictures(path, size, channels, labels, log)
    train, test = _split(items, test_share, np.random.default_rng(seed))
    train, test = train[:limit], test[:limit]
    order = np.concatenate([train, test])
    names = [items.names[i] for i in order]
    contents = items.contents(order)
    pixels, good = decode_once(contents, names, lambda k: items.read(order[k]), (size, size, channels), log=log)
    n = int(good[:len(train)].sum())
    if not 0 < n < len(pixels):
        raise DataError(f"{shown(path)}: all pictures to {'test' if n else 'train'} on are broken")
    warn_of_copies(contents, good, len(train), log)
    warn_of_alike(items.classes if labels else (), log)
    if lost := sorted(set(items.labels[order]) - set(items.labels[order[good]])) if labels else []:
        log(f"warning: all pictures of a class are broken: {', '.join(items.classes[k] for k in lost[:5])}")
    label = items.labels[order[good]] * labels           # labels=False: all 0, and the split is the same
    warn_of_few(len(label) - n, log, len(set(label[n:])) if labels and len(items.classes) > 1 else None)
    return shown(path.name), pixels[:n], label[:n], pixels[n:], label[n:], items.classes if labels else NO_LABELS


# ---------------------------------------------------------------- the split

def _split(items: Items, test_share: float, rng: np.random.Generator) -> tuple[HostArray, HostArray]:
    """Shuffled ids of the training and test items: by the folder's split, else a random share, spread over the classes."""
    N = len(items.names)
    order = rng.permutation(N)
    if items.is_test is not None:
        return order[~items.is_test[order]], order[items.is_test[order]]
    if N < 2:
        raise DataError(f"{shown(items.names[0])} is the only picture; 2 are needed, to train on and to test on")
    rank = np.empty(N, dtype=np.int64)                   # of each picture within its class, in the drawn order
    sizes = np.bincount(items.labels, minlength=len(items.classes))
    by_class = order[np.argsort(items.labels[order], kind="stable")]
    rank[by_class] = np.arange(N) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = rank < _counts(sizes, test_share, rng)[items.labels]
    if not is_test.any():                                # a picture for each class
        is_test[order[0]] = True
    return order[~is_test[order]], order[is_test[order]]


def _counts(sizes: HostArray, share: float, rng: np.random.Generator) -> HostArray:
    """Test items of each class, of its size: share * size, rounded down or up, so that their sum is share of all.

    Those with the largest remainders are rounded up, equal ones by rng. A class of one or more keeps one to train on.
    """
    total = max(1, round(share * int(sizes.sum())))
    exact = np.round(share * sizes, 6)                   # 0.1 * 30 is not 3
    counts = np.minimum(exact.astype(np.int64), np.maximum(sizes - 1, 0))
    rest = np.where(counts < sizes - 1, exact - counts, 0.0)
    largest = np.lexsort((rng.permutation(len(sizes)), -np.round(rest, 6)))[:max(0, total - int(counts.sum()))]
    counts[largest] += rest[largest] > 0
    return counts


# ---------------------------------------------------------------- pictures

def find_pictures(root: Path, log: Callable[[str], None]) -> list[tuple[str, os.stat_result | None]]:
    """(path below root with /, its stat or None for a broken link) of each picture file, sorted.

    Links are followed. Each folder is read once, however many links lead to it, under its real path if possible. Files are
    recognised by their endings; others are counted in the log. Raises DataError for folders that cannot be read.
    """
    found = []
    unreadable = []
    again = []
    hidden = []
    seen = set()
    others: Counter[str] = Counter()
    folders: list[tuple[Path, str]] = [(root, "")]
    links: list[tuple[Path, str]] = []
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop()
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                again.append(folder)
                continue
            seen.add((here.st_dev, here.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            unreadable.append(f"{shown(folder)}: {error.strerror}")
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                suffix = os.path.splitext(entry.name)[1].lower()
                if not entry.name.startswith(("._", "__")) and (suffix in SUFFIXES or entry.is_dir()):
                    hidden.append(prefix + entry.name)
                continue
            try:
                status = entry.stat()
            except OSError:                              # a broken link, or one to itself
                status = None
            if status and stat.S_ISDIR(status.st_mode):
                (links if entry.is_symlink() else folders).append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif status is None or stat.S_ISREG(status.st_mode):
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in SUFFIXES:
                    found.append((prefix + entry.name, status))
                else:
                    others[suffix or "no ending"] += 1
    if others:
        kinds = ", ".join(f"{count} {shown(suffix)}" for suffix, count in others.most_common(5))
        log(f"left out: {sum(others.values())} of other kinds ({kinds}); convert pictures among them to JPEG or PNG")
    if hidden:
        log(f"left out: {shown(hidden[0])}{f' and {len(hidden) - 1} more' * (len(hidden) > 1)}: names that begin with a dot")
    if again:
        log(f"skipped: {shown(again[0])}{f' and {len(again) - 1} more' * (len(again) > 1)}: links to folders already read")
    if unreadable:
        raise DataError(f"cannot read {'; '.join(unreadable[:3])}"
                        + (f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else "")
                        + "; change its permissions, or remove it")
    return sorted(found, key=lambda item: item[0].split("/"))


def _of_pictures(root, size, channels, use_labels, log):
    if not os.path.isdir(root):
        raise DataError(f"{shown(root)} is a file; expected a folder of pictures, or an .npz or .npy file")
    pillow().init()                                      # before threads use it
    found = find_pictures(root, log)
    if not found:
        raise DataError(f"{shown(root)} has no pictures: expected files ending in {', '.join(FORMATS[:-1])} or "
                        f"{FORMATS[-1]}, images.npy, or CIFAR's or STL-10's files; for an .npz file give its own path")
    parts = [name.split("/") for name, _ in found]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):           # all in one folder: look inside
        parts = [part[1:] for part in parts]
    folders = {part[0].lower(): part[0] for part in parts if len(part) > 1}
    train, test = (next((folders[name] for name in names if name in folders), None) for names in (TRAIN, TEST))
    is_test = None
    if train and test:
        inside = [k for k, part in enumerate(parts) if len(part) > 1 and part[0] in (train, test)]
        if len(inside) < len(parts):
            log(f"left out: {len(parts) - len(inside)} pictures that are neither in {train}/ nor in {test}/")
        found = [found[k] for k in inside]
        parts = [parts[k] for k in inside]
        is_test = np.array([part[0] == test for part in parts])
        parts = [part[1:] for part in parts]
    elif use_labels and (split := train or test):
        log(f"{split}/ is read as a class: there is no {'test/ or val/' if train else 'train/'} beside it to make a split")
    if use_labels:
        classes, labels = _classes(root, parts, is_test, train, test, log)
    else:                                                # for the split alone
        classes, labels = _classes(root, parts, None, train, test, lambda line: None)
    paths = [os.path.join(root, name) for name, _ in found]
    return Items(names=paths, contents=lambda order: contents_of(root, [paths[i] for i in order]),
                 read=lambda i: decode(paths[i], size, channels),
                 labels=np.zeros(len(paths), np.int64) if labels is None else labels, classes=classes, is_test=is_test)


def _classes(root, parts, is_test, train, test, log):
    """Names of the classes and labels (N,), from the first folder of each path; (NO_LABELS, None), and why, without."""
    outside = sum(len(part) == 1 for part in parts)
    classes = tuple(sorted({part[0] for part in parts if len(part) > 1}))
    if outside or len(classes) < 2:
        reason = (f"{outside} of {len(parts)} pictures are not in the folder of a class" if outside and classes else
                  "all pictures are of one class" if classes else "there is no folder for each class")
        log(f"no labels: {reason}; accuracies, which need them, are left out")
        return NO_LABELS, None
    if is_test is not None:
        known = {part[0] for part, test_ in zip(parts, is_test) if not test_}
        if unknown := sorted(set(classes) - known):
            raise DataError(f"{shown(root)}: {test}/ has classes that {train}/ does not have: "
                            f"{', '.join(map(shown, unknown[:5]))}; give both the same folders, or name only {train}/, "
                            "a part of which is then used to test on")
    index = {name: k for k, name in enumerate(classes)}
    names = tuple(map(shown, classes))
    names = names if len({*names}) == len(names) else tuple(map(ascii, classes))         # with escapes, not ?
    return names, np.array([index[part[0]] for part in parts], dtype=np.int64)


# ---------------------------------------------------------------- arrays

def _of_arrays(arrays: Arrays, size: int, channels: int) -> Items:
    n_train, n_test = len(arrays.train), len(arrays.test)
    names = [f"{arrays.where}[{k}]" for k in range(n_train + n_test)]

    def contents(order):
        files = {file: content.hash for file, content in zip(arrays.files, contents_of(arrays.where, arrays.files))}
        require_different({shown(file): hash for file, hash in files.items() if Path(file).stem not in OF_LABELS},
                          shown(arrays.where))
        whole = hash_of(*(f"{os.path.basename(file)}/{hash}/".encode() for file, hash in files.items()))
        return [Content(f"{whole}/{i}") for i in order]

    return Items(names, contents, lambda i: arrays.read(i, size, channels),
                 np.zeros(len(names), np.int64) if arrays.labels is None else arrays.labels,
                 arrays.classes or NO_LABELS, np.arange(len(names)) >= n_train if n_test else None)
