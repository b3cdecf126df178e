"""Items decoded once into a file in the user's cache, which is then memory-mapped.

    CACHE/pictures/KEY/pixels        the rows of all items that could be read, one after another, uint8
    CACHE/pictures/KEY/items.json    hashes of the items' contents, in order; KEY is a hash of this list and the shape
    CACHE/pictures/KEY/state.json    [end, checksum, {item: [its name, why it is broken]}] of each block of items; the
                                     checksum is of the KEY, too

Items are identified by content: files may be copied, moved, renamed and touched. Rows of another KEY are copied.

state.json is written after each block. Every use verifies the blocks' checksums, up to the first block that is damaged or
missing, as after a killed process. `pixels` is truncated there, and the later items are decoded again. One process at a
time writes; others wait.
"""

import contextlib
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..backend.parallel import available_cores
from ..files import write_json
from ..folder import FolderLock, Locked
from ..typing import HostArray
from .checks import DataError
from .contents import BLOCK, Content, hash_of, in_blocks, stamp
from .download import cache_dir
from .pictures import shown

VERSION = 4                                              # of what is in the files; another one is decoded again
BLOCK_BYTES = 2**27                                      # of rows, or BLOCK of them, between two writes of state.json
ELSEWHERE = "set MINICL_CACHE to another folder, with room"


def decode_once(contents: Sequence[Content], names: Sequence[str], read: Callable[[int], HostArray],
                shape: tuple[int, ...], *, log: Callable[[str], None] = print) -> tuple[HostArray, HostArray]:
    """Rows (n, *shape) uint8 of the readable items, mapped from a file, and a mask (N,) of these items.

    contents  of the N items
    names     of the items; for files their paths
    read      read(i) returns the row of item i, a function of its content, or raises DataError; called by several threads

    Raises DataError if a tenth of the items or more are broken, if a file changes meanwhile, or if the cache cannot be
    written.
    """
    folder = cache_dir() / "pictures" / _key(shape, [content.hash for content in contents])
    try:
        blocks = _whole_blocks(folder, len(names), shape)
        if _end(blocks) < len(names):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, log):
                blocks = _decode(folder, contents, names, read, shape, _whole_blocks(folder, len(names), shape), log)
    except OSError as error:
        raise DataError(f"cannot keep the decoded pictures in {folder} ({error.strerror or error}); {ELSEWHERE}") from error
    broken = {int(index): f"{shown(names[int(index)])}: {why}" for _, _, some in blocks for index, (_, why) in some.items()}
    if broken:
        log(skipped([*broken.values()], len(names)) + f"; {folder / 'state.json'} names them" * (len(broken) > 3))
    good = np.ones(len(names), dtype=bool)
    good[list(broken)] = False
    return np.memmap(folder / "pixels", np.uint8, "r", shape=(int(good.sum()), *shape)), good


def skipped(reasons: Sequence[str], N: int) -> str:
    """A line about broken items, of N."""
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"skipped: {len(reasons)} of {N} pictures: {'; '.join(reasons[:3])}{more}"


def _key(shape, hashes):
    return hash_of(json.dumps([VERSION, shape, hashes]).encode())


def _end(blocks: Sequence[Any]) -> int:
    """How many items the blocks have."""
    return blocks[-1][0] if blocks else 0


def _whole_blocks(folder: Path, N: int, shape: tuple[int, ...]) -> list[Any]:
    """The blocks in state.json, up to the first that is damaged there or in `pixels`."""
    def is_whole(block, start, lo, hi):
        end, checksum, broken = block
        expected = _with_items(zlib.crc32(pixels[lo:hi]), folder, start, end, broken)
        return start < end <= N and hi <= len(pixels) and checksum == expected

    with contextlib.suppress(Exception):                 # missing files, and whatever damaged ones raise
        blocks = json.loads((folder / "state.json").read_text())
        starts = [0, *(end for end, _, _ in blocks)]
        rows = np.cumsum([0, *(end - start - len(some) for start, (end, _, some) in zip(starts, blocks))]) * prod(shape)
        pixels = np.memmap(folder / "pixels", np.uint8, "r")
        with ThreadPoolExecutor(available_cores()) as pool:
            whole = [*pool.map(is_whole, blocks, starts, rows, rows[1:])]
        return blocks[:[*whole, False].index(False)]
    return []


def _with_items(checksum: int, folder: Path, start: int, end: int, broken: dict[str, Any]) -> int:
    """The checksum of a block, from that of its rows; it includes which items they are, and of which KEY."""
    return zlib.crc32(json.dumps([folder.name, start, end, broken]).encode(), checksum)


@contextlib.contextmanager
def _locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Acquire the folder's lock, waiting for another process if needed."""
    lock = None
    is_said = False
    while lock is None:
        try:
            lock = FolderLock(folder)
        except Locked:
            if not is_said:
                log(f"waiting for another process, which decodes these pictures into {folder}")
            is_said = True
            time.sleep(0.2)
        except FileNotFoundError:                        # the other process gave up and removed the folder
            folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        lock.close()


def _decoded_before(folder, wanted, shape):
    """{hash: row} of the wanted hashes, and others, that are whole in another folder of the cache."""
    rows: dict[str, HostArray] = {}
    for other in folder.parent.iterdir():
        with contextlib.suppress(Exception):             # it is damaged, or of another version, or being removed
            hashes = json.loads((other / "items.json").read_text())
            if other != folder and other.name == _key(shape, hashes) and not wanted.isdisjoint({*hashes} - rows.keys()):
                blocks = _whole_blocks(other, len(hashes), shape)
                broken = {index for _, _, some in blocks for index in some}
                good = [hash for i, hash in enumerate(hashes[:_end(blocks)]) if str(i) not in broken]
                rows.update(zip(good, np.asarray(np.memmap(other / "pixels", np.uint8, "r", shape=(len(good), *shape)))))
    return rows


def _decode(folder, contents, names, read, shape, blocks, log):
    """Read the items after `blocks`; the blocks of all."""
    N = len(names)
    done = _end(blocks)
    reasons = [f"{name}: {why}" for _, _, broken in blocks for name, why in broken.values()]
    rows = done - len(reasons)
    needed = (N - done) * prod(shape)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(0, f"not enough space for {needed / 1e6:.0f} MB")

    write_json(folder / "items.json", [content.hash for content in contents])
    before = _decoded_before(folder, {content.hash for content in contents[done:]}, shape)

    def attempt(i):
        hash, known = contents[i]
        if hash in before:
            return before[hash]
        try:
            row = read(i)
        except DataError as error:
            if hash and getattr(error.__cause__, "errno", None):         # of the disk, not of what is in the file
                raise DataError(f"{error}; it could be read a moment ago, so run this again") from error
            row = str(error).removeprefix(f"{shown(names[i])}: ")
        if known not in (None, stamp(names[i])) or not hash and not isinstance(row, str):
            raise DataError(f"{shown(names[i])} changed while the pictures were read; run this again")
        return row

    there = done + sum(content.hash in before for content in contents[done:])
    if done < N:
        doing = f"decoding {N - there} pictures once" if there < N else f"copying {N} decoded pictures"
        log(f"{doing}, into {folder} ({needed / 1e6:.0f} MB)" + f"; {there} are there already" * (0 < there < N))
    size = max(1, min(BLOCK, BLOCK_BYTES // prod(shape)))
    with (warnings.catch_warnings(), open(folder / "pixels", "r+b" if rows else "wb") as file,
          tqdm(total=N, initial=done, desc="decoding", unit="picture", leave=False, disable=None) as bar):
        warnings.simplefilter("ignore")                  # Pillow's: see open_image
        file.truncate(rows * prod(shape))
        file.seek(0, os.SEEK_END)
        for items, results in in_blocks(attempt, range(done, N), size):
            broken: dict[str, Any] = {}
            checksum = 0                                 # of the rows
            for i, row in zip(items, results):
                if isinstance(row, str):
                    broken[str(i)] = [shown(names[i]), row]
                    reasons.append(f"{shown(names[i])}: {row}")
                else:
                    file.write(row)
                    checksum = zlib.crc32(row, checksum)
                bar.update()
                if 10 * len(reasons) >= N:
                    shutil.rmtree(folder, ignore_errors=True)            # others may wait for its lock
                    raise DataError(f"{len(reasons)} of the first {i + 1} pictures of {N} are broken, a tenth of all or "
                                    f"more; remove or replace them: {'; '.join(reasons[:3])}")
            blocks = [*blocks, [items.stop, _with_items(checksum, folder, items.start, items.stop, broken), broken]]
            file.flush()
            os.fsync(file.fileno())
            write_json(folder / "state.json", blocks)
    return blocks
