"""What a run is made of: its options, its code and its data, which --resume compares."""

import dataclasses
import gc
import hashlib
import json
import os
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .folder import RunError


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as config.json gives them back: a tuple is a list, a Path text.

    Raises RunError for a value that JSON cannot hold, and for the name "script", under which config.json has the script's.
    """
    if "script" in options:
        raise RunError("an option cannot be called script, since config.json has the script's name there; rename it")
    found = {}
    for key, value in options.items():
        try:
            text = json.dumps(value, allow_nan=False, default=lambda x: x.tolist() if hasattr(x, "tolist") else os.fspath(x))
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"the option {key} must be a finite number, text, True, False, None, or a list or dict of these, "
                           f"so that config.json can hold it, got {value!r:.60} ({error})") from error
        found[key] = json.loads(text)
    return found


def require_options(options: Any, divided: Sequence[str], size: int) -> None:
    """Raise TypeError unless options are those of a Run. Raise RunError if a new one has no epochs, and unless the divided
    ones, totals over the processes, are multiples of their number."""
    if lost := [name for name in ("out", "resume", "log_every") if name not in getattr(options, "__dict__", {})]:
        raise TypeError(f"Run: args: expected parsed options, as of minicl.options.options(...).parse_args(), got "
                        f"{options!r:.80} without {', '.join(lost)}")
    if not options.resume and getattr(options, "epochs", 0) is None:
        raise RunError("Run: args: epochs is None, as --resume leaves it where --epochs is not given, but this is a new "
                       "run: set args.epochs before")
    for name in divided:
        n = getattr(options, name, None) or 0
        if n % size and (name, n) != ("splits", 1):
            less = n - n % size
            raise RunError(f"--{name} {n} is the {name} of all {size} processes, so it must be a multiple of {size}; give "
                           f"{f'{less} or ' * (less > 0)}{less + size}")


def code(caller: str = "") -> dict[str, str]:
    """{"the script": SHA-256 of its text and of imported modules in its folder, "minicl": SHA-256 of its files}.

    caller: the file that makes the Run, which is not the main one in `python -m cProfile train.py`, say.
    """
    main = getattr(sys.modules["__main__"], "__file__", None) or ""      # a notebook has none; piped code has "<stdin>"
    beside = set()
    for script in {Path(os.path.realpath(file)) for file in (main, caller) if os.path.isfile(file)}:
        files = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
        loaded = {Path(os.path.realpath(os.path.dirname(file)), os.path.basename(file)) for file in files}
        beside |= {script} | {path for path in loaded if script.parent in path.parents and "site-packages" not in path.parts}
    paths = {"the script": beside, "minicl": Path(__file__).parent.rglob("*.py")}
    return {part: hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files) if path.is_file())).hexdigest()[:32]
            for part, files in paths.items()}


def fingerprint(data: Any) -> dict[str, str]:
    """{field or array: its dtype, shape and SHA-256, or its text} of a dataclass of arrays; {} for None.

    Fields may be text, numbers, arrays, and lists, tuples and dicts of these; others raise TypeError.
    """
    if data is None:
        return {}
    if not dataclasses.is_dataclass(data) or isinstance(data, type):
        raise TypeError("Run.steps: data must be a dataclass of arrays, such as ImageData, or None, got "
                        f"{type(data).__name__}; --resume compares its fields by name")

    def describe(name, value):
        if type(value) in (np.ndarray, np.memmap) and value.dtype != object:
            digest = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8)).hexdigest()
            return f"{value.dtype} {value.shape} {digest[:32]}"
        if isinstance(value, (list, tuple)):
            return f"({', '.join(describe(name, item) for item in value)})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {describe(name, item)}' for key, item in value.items())}}}"
        if value is None or isinstance(value, (str, bytes, int, float, np.generic)):         # 1 is not "1", "a, b" no pair
            kind = "" if isinstance(value, str) else f"{type(value).__name__} "
            return f"{kind}{value.item() if isinstance(value, np.generic) else value!r}"
        raise TypeError(f"Run.steps: the field {name} of data must be an array, text or a number, or a list, tuple or dict "
                        f"of these, got {type(value).__name__}, which --resume cannot compare")

    found = {}
    fields = [field.name for field in dataclasses.fields(data)]
    for name in [*fields, *(name for name in _others(data) if name not in fields)]:
        value = getattr(data, name, None)
        try:
            found[name] = value if type(value) is str else describe(name, value)
        except TypeError:
            if name in fields:
                raise
            found |= {f"{name} {k}": describe(name, x) for k, x in enumerate(_arrays_in(value))}
    return found


def _others(data):
    """Names of what a dataclass has that are no fields: attributes, entries of the class and of slots, and properties."""
    names = [name for kind in type(data).__mro__ for name, value in vars(kind).items() if name[:2] != "__" and not (
        isinstance(value, (types.FunctionType, classmethod, staticmethod, property)) and name != "train_images")]
    return dict.fromkeys([*names, *getattr(data, "__dict__", {})])


def _arrays_in(value, depth=4):
    """The arrays in an object that is no array, text, number or list of these."""
    if isinstance(value, np.ndarray):
        return [value] if value.dtype != object else []
    if depth == 0 or isinstance(value, (type, types.ModuleType, str, int, float)):
        return []
    if isinstance(value, types.FunctionType):                # not the globals of its file
        held = [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
    else:
        held = gc.get_referents(value)
    return [x for inside in held for x in _arrays_in(inside, depth - 1)]


class Watched:
    """The training data of a run: their fingerprint, and whether they still have it."""

    def __init__(self, data: Any):
        self.data = data
        self.fingerprint = self._measured()

    def _measured(self):
        start = time.perf_counter()
        found = fingerprint(self.data)
        end = time.perf_counter()
        self._due = end + 100 * (end - start)                # so that looking takes less than 1 % of the time
        return found

    def differences(self, before: dict) -> str:
        """The differences from a checkpoint's fingerprint, as text, but for fields with compare=False, as a name."""
        labels = {field.name: "" for field in dataclasses.fields(self.data) if not field.compare} if self.fingerprint else {}
        return changes(before | labels, self.fingerprint | labels)

    def changes(self, now: bool) -> str:
        """What a loop has changed in the data, as text; "" for nothing, and where it was looked at just before, unless it
        must be now."""
        return changes(self.fingerprint, self._measured()) if now or time.perf_counter() > self._due else ""


def changes(before: dict, now: dict) -> str:
    """The differences of two dicts, as text; "" if there are none."""
    return "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in {**before, **now}
                     if key not in before or key not in now or before[key] != now[key])
