"""The values in a state_dict(): arrays, numbers, and lists of either. A checkpoint holds each as an array, and its kind."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from .backend import is_array, to_host
from .checks import require_unmasked
from .nn.spec import as_text
from .signature import is_plain_array
from .typing import HostArray

DTYPES = ("float32", "float64", "int64", "bool", "uint8")
NUMBERS, LISTS = (bool, int, float), (list, tuple)
AS_BYTES = 'give its JSON, np.frombuffer(json.dumps(x).encode(), "uint8"), which json.loads(array.tobytes()) reads'
CONVERT = {str: AS_BYTES, dict: AS_BYTES + ", or each entry by a name of its own",
           type(None): "leave it out, or give a number that stands for it, such as -1 or math.inf"}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or a file is damaged, not a checkpoint, or of another run."""


class HasState(Protocol):
    """An object that a checkpoint can store: a model, an optimizer."""

    def state_dict(self) -> dict[str, HostArray]: ...
    def load_state_dict(self, state: dict[str, HostArray]) -> None: ...


def state_of(parts: Mapping[str, HasState]) -> list[tuple[str, Any]]:
    """[("model.weight", its value), ...] of all parts. Raises CheckpointError for a name that is not text."""
    values = [(part, name, value) for part, thing in parts.items() for name, value in thing.state_dict().items()]
    for part, name, _ in values:
        if not isinstance(name, str):
            raise CheckpointError(f"cannot save {part}: its state_dict() has the name {name!r:.60}, a {type(name).__name__} "
                                  "that would come back as text; give texts, and make the names again in load_state_dict()")
    return [(f"{part}.{name}", value) for part, name, value in values]


def as_array(name: str, value: Any) -> HostArray:
    """A value in a state as an array. Raises CheckpointError for a list of unequal lengths, or a value of another type."""
    require_unmasked(name, value)
    if not is_plain_array(value) and not isinstance(value, (np.generic, np.memmap)) and type(value) not in NUMBERS + LISTS:
        raise CheckpointError(f"cannot save {name}: expected an array, a number or a list of them, got a "
                              f"{type(value).__name__}, {value!r:.60}; "
                              + CONVERT.get(type(value), "convert it, as by np.asarray(x), int(x) or list(x)"))
    try:
        return np.asarray(to_host(value), order="C")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot save {name}: expected an array, number or lists of equal length: {error}") from error


def kind_of(value: Any) -> str:
    """What a value in a state is: "array", one whose "axes" have another order in memory, so that its sums round otherwise,
    or a number or list."""
    if is_array(value):
        order = np.argsort([-step for step in value.strides], kind="stable").tolist()
        return "axes " + " ".join(map(str, order)) if order != sorted(order) and value.size > 1 else "array"
    if isinstance(value, np.generic):
        return "scalar"
    for what, kind in (("scalars", np.generic), ("arrays", np.ndarray)):
        if type(value) in LISTS and value and all(isinstance(x, kind) for x in value):
            return f"{type(value).__name__} of {what}"
    return type(value).__name__


def from_array(array: HostArray, kind: str | None) -> Any:
    """The value in a state that has become this array: a new one."""
    if kind and kind.startswith("axes "):
        order = [int(axis) for axis in kind.split()[1:]]
        return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    conversions: dict[str | None, Callable] = {
        "fortran": np.asfortranarray, "scalar": lambda x: x[()], "tuple": lambda x: tuple(x.tolist()),
        "list of scalars": list, "tuple of scalars": tuple, "list of arrays": lambda x: [np.array(row) for row in x],
        "tuple of arrays": lambda x: tuple(np.array(row) for row in x),
        **dict.fromkeys(["bool", "int", "float", "list"], np.ndarray.tolist)}
    return conversions.get(kind, np.copy)(array)


def _is_packed(array):
    """Whether the entries of an array lie in memory one after the other, with its axes in any order."""
    order = np.argsort([-step for step in array.strides], kind="stable")
    return array.transpose(order).flags.c_contiguous


def require_kept(name: str, value: Any, array: HostArray) -> None:
    """Raise CheckpointError unless a number or list would come back from its array as it is, and an array with axes that lie
    in memory in a direction, without gaps."""
    for item in value if type(value) in LISTS else (value,):
        if is_array(item) and item.size > 1 and not _is_packed(item):
            raise CheckpointError(f"cannot save {name}: an array with gaps, such as a slice of columns, or one that is "
                                  "reversed or broadcast would come back as another in memory, whose sums round otherwise; "
                                  "give a copy, x.copy()")
    if not is_array(value) and not _alike(value, back := from_array(array, kind_of(value))):
        raise CheckpointError(f"cannot save {name}: {as_text(value)} would come back as {as_text(back)}; give an array, or "
                              "a list of numbers of one type, or of arrays of one shape, dtype and order of axes")


def _alike(x, y):
    if type(x) is not type(y):
        return False
    if isinstance(x, LISTS):
        return len(x) == len(y) and all(map(_alike, x, y))
    if isinstance(x, np.ndarray):
        return x.dtype == y.dtype and kind_of(x) == kind_of(y) and np.array_equal(x, y)
    return x == y


def is_finite(array: HostArray, kind: str | None) -> bool:
    """Whether there is no NaN, nor, in an array, infinity. A number may be infinite: a best loss before the first step."""
    if array.dtype.kind != "f":
        return True
    return not np.isnan(array).any() if kind in ("float", "list", "tuple", "scalar") else bool(np.isfinite(array).all())
