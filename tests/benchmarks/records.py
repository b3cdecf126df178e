"""The JSON files that run.py and scaling.py write and read."""

import json
import os

from minicl.run import RunError


def load(option, path, part, keys, of_each):
    """The record in a file: a dict with `keys`, whose `part` is a dict of dicts with the keys `of_each`."""
    try:
        record = json.loads(path.read_text())
        if not (isinstance(record, dict) and {*keys, part} <= set(record)):
            raise ValueError(f"it lacks one of {', '.join([*keys, part])}")
        if not (isinstance(record[part], dict) and all(set(of_each) <= set(each) for each in record[part].values())):
            raise ValueError(f"its {part} lack one of {', '.join(of_each)}" if of_each else f"its {part} are no dict")
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"not what --json writes: {error}"
        raise RunError(f"{option} {path}: {reason}") from error
    return record


def require_writable(**paths):
    """Raise RunError for what would fail only after minutes of measuring; None is no path."""
    for option, path in paths.items():
        if path and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise RunError(f"--{option} {path}: expected a file that can be written, in a folder that exists")
