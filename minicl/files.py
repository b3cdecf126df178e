"""Atomic writing of files."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .typing import HostArray

PART = re.compile(r"\..*\.[0-9a-f]{16}\.part")              # the name of a file that is being written


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on a new file beside `path`, flush it to disk, and rename it to `path`.

    Missing folders are created. An existing file keeps its permissions, and a symbolic link stays one. If anything fails,
    the file at `path` is unchanged and no partial file is left. Raises OSError, also if `path` is not a regular file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    mode = _mode(path)
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        # O_EXCL: fails if the name exists, also as a link to another place.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(part, flags, 0o666 if mode is None else mode), "wb") as file:
            if mode is not None:
                os.chmod(part, mode)                         # exactly, whatever the umask
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _mode(path):
    """The permissions of the regular file at `path`, or None if there is none."""
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, "exists and is not a regular file; remove it, or write elsewhere", str(path))
    return stat.S_IMODE(found)


def remove_parts(folder: str | os.PathLike, *, seconds: float = 0) -> None:
    """Remove partial files of killed processes in `folder` that are at least `seconds` old.

    With seconds=0 the caller must ensure, as by a lock, that nobody else writes there.
    """
    with contextlib.suppress(OSError):                       # no folder, no permission: nothing to remove
        for part in Path(folder).iterdir():
            if PART.fullmatch(part.name):
                with contextlib.suppress(OSError):           # of a link, lstat and unlink see the link
                    if time.time() - part.lstat().st_mtime >= seconds:
                        part.unlink()


def finite(value: Any) -> Any:
    """A value for JSON: None replaces NaN and infinity, which JSON cannot represent. Names are text, as in JSON: 0 is "0".

    Raises ValueError if two names of a dict have the same text.
    """
    if isinstance(value, dict):
        keys = [key.item() if isinstance(key, np.generic) else key for key in value]
        names = [next(iter(json.loads(json.dumps({key: None})))) for key in keys]
        if len(set(names)) < len(names):
            raise ValueError(f"two names have the same text in JSON, as 0 and '0': {', '.join(map(repr, value)):.200}")
        return dict(zip(names, map(finite, value.values())))
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "requires_grad"):
        raise TypeError("expected numbers and text, got a Tensor; give its .item() or .data")
    if isinstance(value, np.longdouble):                     # which is its own tolist()
        value = float(value)
    if hasattr(value, "tolist"):                             # NumPy's and CuPy's scalars and arrays
        return finite(value.tolist())
    if not isinstance(value, (str, int, float, type(None))):
        raise TypeError(f"expected numbers and text, lists and dicts of them, got a {type(value).__name__}, {value!r:.60}")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> HostArray:
    """A value for JSON, as an array (n,) uint8 that processes can compare."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as JSON, indented, atomically. Raises ValueError for NaN and infinity, which JSON cannot represent."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


class Table:
    """A CSV file of lines {column: value}, which begins with those given. Each write() adds the last line; for a new column
    the file is written again."""

    def __init__(self, path: Path, lines: Sequence[Mapping[str, Any]] = ()):
        self.path = path
        self.columns: list[str] = []
        if lines:
            self.write(lines)

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The lines so far, of which only the last is new. Empty cells are values that a line does not have, or None."""
        new = [key for line in (lines[-1:] if self.columns else lines) for key in line if key not in self.columns]
        self.columns += dict.fromkeys(new)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines if new else lines[-1:])
        if new:
            write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
        else:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text.getvalue())
