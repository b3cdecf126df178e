"""Items decoded once, into a file in the user's cache, which is then mapped into memory.

    CACHE/pictures/KEY/pixels        the rows of all items that could be read, one after another, uint8
    CACHE/pictures/KEY/state.json    how many items were read, and which of them are broken

state.json is written after each block of items. Where a process was killed, the next one cuts `pixels` to what
state.json counts and goes on. One process at a time writes; others wait for it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
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
from .download import cache_dir

VERSION = 1                                              # of what is in the files; another one is decoded again
BLOCK = 512                                              # items between two writes of state.json
ELSEWHERE = "set MINICL_CACHE to a folder with more room"


def decode_once(identity: Any, names: Sequence[str], read: Callable[[int], HostArray], shape: tuple[int, ...], *,
                log: Callable[[str], None] = print) -> tuple[HostArray, HostArray]:
    """Rows (n, *shape) uint8 of the items that could be read, mapped from a file, and which they are, (N,) bool.

    identity  what else the rows depend on, for JSON: sizes and times of the files, options
    names     of the N items
    read      read(i): the row of item i, or DataError if it is broken; called by several threads

    Raises DataError if a tenth of the items or more are broken, or if the cache cannot be written.
    """
    content = json.dumps([VERSION, shape, list(names), identity])
    folder = cache_dir() / "pictures" / hashlib.sha256(content.encode()).hexdigest()[:32]
    try:
        state = _read_state(folder, shape)
        if state["read"] < len(names):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder, log):
                state = _decode(folder, names, read, shape, _read_state(folder, shape), log)
    except OSError as error:
        raise DataError(f"cannot keep the decoded pictures in {folder} ({error.strerror or error}); {ELSEWHERE}") from error
    broken = {int(index): reason for index, reason in state["broken"].items()}
    for reason in list(broken.values())[:5]:
        log(f"skipped: {reason}")
    if len(broken) > 5:
        log(f"skipped: {len(broken) - 5} more, {len(broken)} of {len(names)} in all; {folder / 'state.json'} names them")
    good = np.ones(len(names), dtype=bool)
    good[list(broken)] = False
    return np.memmap(folder / "pixels", np.uint8, "r", shape=(int(good.sum()), *shape)), good


def _read_state(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """state.json, or that of nothing read yet if it is missing or more than `pixels` holds."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / "state.json").read_text())
        if os.path.getsize(folder / "pixels") >= (state["read"] - len(state["broken"])) * prod(shape):
            return state
    return {"read": 0, "broken": {}}


@contextlib.contextmanager
def _locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, after waiting for another process that does."""
    lock, is_said = None, False
    while lock is None:
        try:
            lock = FolderLock(folder)
        except Locked:
            if not is_said:
                log(f"waiting for another process, which decodes these pictures into {folder}")
            is_said = True
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.close()


def _decode(folder, names, read, shape, state, log):
    """Read the items that `state` lacks; the state of all."""
    N, done, broken = len(names), state["read"], dict(state["broken"])
    rows = done - len(broken)
    needed = (N - done) * prod(shape)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(0, f"there is no room for {needed / 1e6:.0f} MB")

    def attempt(i):
        try:
            return read(i)
        except DataError as error:
            return str(error)

    if done < N:
        log(f"decoding {N - done} pictures once, into {folder} ({needed / 1e6:.0f} MB)"
            + (f"; {done} are there already" if done else ""))
    pool = ThreadPoolExecutor(min(32, available_cores()))
    with (warnings.catch_warnings(), open(folder / "pixels", "r+b" if rows else "wb") as file,
          tqdm(total=N, initial=done, desc="decoding", unit="picture", leave=False, disable=None) as bar):
        warnings.simplefilter("ignore")                  # Pillow's: see open_image
        file.truncate(rows * prod(shape))
        file.seek(0, os.SEEK_END)
        try:
            while done < N:
                block = range(done, min(done + BLOCK, N))
                for i, row in zip(block, pool.map(attempt, block)):
                    if isinstance(row, str):
                        broken[str(i)] = row
                    else:
                        file.write(row)
                    bar.update()
                    if 10 * len(broken) >= N:
                        shutil.rmtree(folder)
                        raise DataError(f"{len(broken)} of the first {i + 1} pictures of {N} are broken, a tenth of all or "
                                        f"more; remove or replace them: {'; '.join(list(broken.values())[:3])}")
                done = block.stop
                file.flush()
                os.fsync(file.fileno())
                state = {"read": done, "broken": broken}
                write_json(folder / "state.json", state)
        finally:
            pool.shutdown(cancel_futures=True)
    return state
