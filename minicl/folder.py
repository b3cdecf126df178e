"""A run's folder: a new one or the given one, locked, so that only one process at a time writes there."""

import contextlib
import errno
import json
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:                                          # on Windows
    fcntl = None                                             # type: ignore[assignment]
    import msvcrt

WRITTEN = ("checkpoint.npz", "result.json", "config.json", "log.jsonl", "log.csv")       # by a Run, beside pictures
BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}


class RunError(RuntimeError):
    """The run cannot start or continue; the message gives the reason and the fix."""


class OwnFolder:
    """The folder `out`, or by default a new one: runs/name, runs/name-2, runs/name-3, ... It is locked until close() or the
    end of the process. close() removes a folder that was made here and is still empty.

    path     the folder
    is_held  False on a file system without locks

    Raises RunError if another run writes there, or if it cannot be written.
    """

    def __init__(self, out: str | None, name: str):
        self.path = Path(out) if out else Path("runs") / name
        is_new = False
        try:
            if out:
                is_new = not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
            else:
                self.path = _new_folder(self.path)
                is_new = True
            lock = FolderLock(self.path)
        except OSError as error:
            if is_new:
                _remove_empty(self.path)
            if isinstance(error, Locked):
                reason = f"{error.strerror}; wait for it to end, or choose another folder"
                if error.is_own:
                    reason += ". It is a run of this process, such as a notebook's earlier one: restart the kernel to end it"
            else:
                about = f"{name}: " if (name := Path(error.filename or self.path).name) != self.path.name else ""
                reason = f"cannot write there ({about}{error.strerror}); choose another folder"
            raise RunError(f"--out {self.path}: {reason}") from error
        self.is_held = lock.is_held
        self._lock, self._current = lock, _current_folder()
        self.close = weakref.finalize(self, _leave, self.path, lock, _identity(self.path) if is_new else None)

    def require_owned(self) -> None:
        """Raise RunError if the run has ended, the folder was removed or replaced, or this is a forked process."""
        if not self._lock.is_own():
            raise RunError(f"--out {self.path} is written by the process that this one was forked from, process "
                           f"{os.getppid()}; end this one after its work, as by os._exit(0)")
        if not self.path.is_absolute() and (now := _current_folder()) != self._current:
            raise RunError(f"--out {self.path} is relative to {self._current}, but the current folder is now {now}: do not "
                           "call os.chdir in a run, or give --out an absolute path")
        if not self.close.alive:
            raise RunError(f"--out {self.path}: the run has ended, so nothing more is written there; give all of the result "
                           "to finish(), once, and make another Run for more")
        if self.is_held and not self._lock.is_there():
            raise RunError(f"--out {self.path} was removed or replaced while this run used it; nothing more is written "
                           "there. Start the run again")


def _current_folder():
    try:
        return os.getcwd()
    except OSError:                                          # it was removed
        return "one that is gone"


def require_unused(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Raise RunError if a new run with these options would replace files in the folder, other than those of a run of the
    same script that ended before its first checkpoint."""
    files = [path for path in sorted(folder.iterdir()) if path.name in WRITTEN or path.suffix == ".png"]
    if any(path.name in WRITTEN[:2] for path in files):
        raise RunError(f"--out {folder} already holds a run; continue it with --resume, or choose another folder")
    regular = all(path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1 for path in files)
    if files and not (regular and _is_of(name, config, folder / "config.json")):
        names = ", ".join(path.name for path in files[:3]) + ", ..." * (len(files) > 3)
        raise RunError(f"--out {folder} holds files which this run would replace, and which are not of an earlier run of "
                       f"the same script: {names}; choose another folder, or move them away")


def _is_of(name, config, path):
    """Whether a config.json is of a run of the script `name` with the same options."""
    try:
        found = json.loads(path.read_text())
        return found.keys() == {"script", *config} and found["script"] == name
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _new_folder(first):
    """Make `first`, or first-2, first-3, ...: mkdir fails on an existing folder, so no two runs get the same."""
    first.parent.mkdir(parents=True, exist_ok=True)
    path = first
    count = 1
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            count += 1
            path = first.with_name(f"{first.name}-{count}")


def _leave(path, lock, made):
    lock.close()
    if made and lock.is_own() and _identity(path) == made:                   # not another folder that has this name by now
        _remove_empty(path)


def _identity(path):
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino


def _remove_empty(path):
    with contextlib.suppress(OSError):                       # it is not empty, or not there
        path.rmdir()


class Locked(OSError):
    """The folder is locked already; the message has the process id, if known. is_own: by this process."""

    is_own = False


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [lock._forget() for lock in list(_held)])


class FolderLock:
    """A lock on an existing folder, or on what `name` stands for there, until close() or the end of the process, also by a
    kill.

    It is the operating system's lock on a file of this name, which contains the process id; close() removes it.
    `is_held` is False on a file system without locks. Raises Locked, or OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, name: str = ".lock"):
        self.path = Path(folder) / name
        self.is_held = True
        self._file = -1
        self._pid = os.getpid()
        _held.add(self)
        while self._file < 0:
            self._file = self._open()

    def _open(self):
        """The locked file's descriptor, or -1 if its former owner removed it between opening and locking."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if os.fstat(file).st_nlink > 1:                      # writing there would overwrite what it links to
            os.close(file)
            raise OSError(errno.EMLINK, f"{self.path.name} is a hard link to another file; remove it")
        try:
            self._lock(file)
            if not self.is_there(file):
                os.close(file)
                return -1
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
        except BaseException as error:
            if not isinstance(error, Locked):
                self._remove()
            os.close(file)
            raise
        return file

    def _owner(self, file):
        for _ in range(50 if fcntl else 0):                  # Windows does not allow reading a locked file
            if pid := os.read(file, 20):
                return pid.decode(errors="replace")
            time.sleep(0.01)                                 # just locked, and the owner not yet written
        return "unknown"

    def is_own(self) -> bool:
        """Whether this process made the lock, and not the one that it was forked from."""
        return self._pid == os.getpid()

    def is_there(self, file: int | None = None) -> bool:
        """Whether the path still refers to the locked file."""
        try:
            return os.path.samestat(os.fstat(self._file if file is None else file), os.stat(self.path))
        except OSError:
            return False

    def _remove(self):
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _lock(self, file):
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)     # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in BUSY:
                locked = Locked(error.errno, f"another run (pid {(owner := self._owner(file))}) is writing there")
                locked.is_own = owner == str(os.getpid())
                raise locked from None
            self.is_held = False

    def _forget(self):
        """In a forked child, which would hold the lock after the owner's end."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Remove the file and release the lock."""
        if self._file >= 0:
            if self.is_own() and self.is_there():            # while it is locked, so nobody else holds it
                self._remove()
            os.close(self._file)
            self._file = -1
