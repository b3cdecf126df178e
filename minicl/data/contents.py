"""What is in files, as hashes, so that a copy is known to be one wherever it is. Hashes are remembered:

    CACHE/hashes/FOLDER.json         {file: [hash of its content, the size, times and inode that it had, a checksum]}
"""

import contextlib
import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

from tqdm import tqdm

from ..backend.parallel import available_cores
from ..files import write_json
from ..typing import HostArray
from .download import cache_dir

BLOCK = 512                                              # items that threads are given at a time,
GROUP = 8                                                # and one thread of them


class Content(NamedTuple):
    """A hash of an item's content, "" if it cannot be read; and of a file its stamp, from before it was read."""

    hash: str
    stamp: str | None = None


def hash_of(*parts: bytes) -> str:
    """32 hexadecimal digits of the parts, one after another."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def stamp(file: str) -> str:
    """Size, times (also ctime, which no program can set) and inode of a file, "" if there is none."""
    try:
        s = os.stat(file)
    except (OSError, ValueError):                        # ValueError: a NUL in the name
        return ""
    return f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}"


def contents_of(folder: str | os.PathLike, files: Sequence[str]) -> list[Content]:
    """Contents of files in a folder. A file is read if it is new there, or its stamp has changed."""
    memory = cache_dir() / "hashes" / f"{hash_of(os.fsencode(folder))}.json"
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(Exception):                 # a missing file, and whatever a damaged one raises
        known = dict(json.loads(memory.read_text()))

    def content(file):
        now = stamp(file)
        before = known.get(file)
        if isinstance(before, list) and before and before == _entry(file, before[0], now):
            return before
        try:
            with open(file, "rb") as opened:
                return _entry(file, hash_of(*iter(lambda: opened.read(2**20), b"")), now)
        except (OSError, ValueError):
            return _entry(file, "", now)

    found: list[list[Any]] = []
    try:
        with tqdm(total=len(files), desc="reading", unit="file", leave=False, disable=None) as bar:
            for block, contents in in_blocks(content, files, BLOCK):
                found += contents
                bar.update(len(block))
    finally:
        now = known | {file: content for file, content in zip(files, found) if content[0]}
        if now != known:
            with contextlib.suppress(OSError):           # all are then read again the next time
                write_json(memory, now)
    return [Content(hash, stamp) for hash, stamp, _ in found]


def _entry(file: str, hash: str, stamp: str) -> list[Any]:
    """What is remembered of a file. The checksum includes its name, so that an entry is of no other file."""
    return [hash, stamp, zlib.crc32(f"{file}\n{hash}\n{stamp}".encode("utf-8", "surrogatepass"))]


def warn_of_copies(contents: Sequence[Content], good: HostArray, n_train: int, log: Callable[[str], None]) -> None:
    """Log how many of the good items after the first n_train, those to test on, have the content of one to train on."""
    known = {content.hash for content in contents[:n_train]}
    if copies := sum(content.hash in known for content, ok in zip(contents[n_train:], good[n_train:]) if ok):
        those = f"{copies} of the {int(good[n_train:].sum())} test pictures {'are copies' if copies > 1 else 'is a copy'}"
        log(f"warning: {those} of training pictures, so results are too good; remove one of each")


def warn_of_few(n_test: int, log: Callable[[str], None], classes: int | None = None) -> None:
    """Log if there are fewer than 10 test pictures, or if they are of fewer than 2 classes; None: without labels."""
    few = [f"only {n_test} test picture{'s' * (n_test > 1)}"] * (n_test < 10)
    few += [f"only {classes} of the classes"] * (classes is not None and classes < 2)
    if few:
        log(f"warning: the test set has {' of '.join(few)}: results on it say little; take more pictures")


def warn_of_alike(classes: Sequence[str], log: Callable[[str], None]) -> None:
    """Log if names of classes differ only in case, in spaces around them, or in how accents are written (NFC, NFD)."""
    known: dict[str, str] = {}
    for name in classes:
        same = known.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), name)
        if same != name:
            log(f"warning: {ascii(same)} and {ascii(name)} are two classes; if they are one, give them the same name")


def in_blocks(function: Callable[..., Any], items: Sequence[Any], size: int) -> Iterator[tuple[Any, Iterator[Any]]]:
    """(block, function of each of its items) for blocks of `size` items, by threads, which are a block ahead."""
    pool = ThreadPoolExecutor(min(32, available_cores()))
    started: list[Any] = []
    try:
        for lo in range(0, len(items), size):
            block = items[lo:lo + size]
            groups = [block[k:k + GROUP] for k in range(0, len(block), GROUP)]
            started.append((block, chain.from_iterable(pool.map(lambda group: [function(item) for item in group], groups))))
            if lo:
                yield started.pop(0)
        yield from started
    finally:
        pool.shutdown(cancel_futures=True)
