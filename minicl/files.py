"""Files that are written whole or not at all."""

import contextlib
import json
import os


def write_atomically(path, write):
    """Have write(file) fill a new file beside `path`, force it to disk, and only then put it in path's place.

    The folder is made if need be. If anything fails, what stood at `path` still stands, and nothing is left
    beside it; OSErrors are passed on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path, value):
    """Write a JSON-able value, indented, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
