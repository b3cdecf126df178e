"""Checks of a state_dict, and arrays of a Module that are not in it."""

import collections
import dataclasses
import functools
import gc
import hashlib
import io
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Tensor
from ..backend import is_array, to_host
from ..typing import Array
from .parts import Buffer, Parameter


class IncompatibleKeys(NamedTuple):
    """What load_state_dict() did not load, as in PyTorch: names missing in the state, and names unknown to the model."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def unsaved_arrays(module: Any) -> dict[str, str]:
    """{attribute: hash of its arrays} of a Module's arrays and constant Tensors other than Parameters and Buffers."""
    found = {name: [str((x.dtype, x.shape)).encode() + to_host(x).tobytes() for x in arrays_in(value)]
             for name, value in vars(module).items()}
    return {name: hashlib.sha256(b"".join(arrays)).hexdigest() for name, arrays in found.items() if arrays}


def arrays_in(value: Any) -> Iterator[Array]:
    """The arrays in an attribute of a Module that are no Parameters or Buffers."""
    if isinstance(value, Tensor) and not isinstance(value, (Parameter, Buffer)):
        value = value.data
    if is_array(value) and value.dtype.kind != "O":
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


def iterators_in(value: Any, depth: int = 4) -> Iterator[Any]:
    """The iterators in an attribute of a Module, such as zip(a, b) or reversed(a), also in a container or in a function's
    closure, other than open files, itertools.count and those of a class in Python."""
    is_of_python = isinstance(getattr(type(value), "__next__", None), types.FunctionType)    # which may begin again
    if isinstance(value, Iterator) and not is_of_python and not isinstance(value, (io.IOBase, itertools.count)):
        yield value
    inside: Any = ()
    if isinstance(value, types.FunctionType):
        inside = [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
    elif isinstance(value, (list, tuple, set, frozenset, dict, collections.deque, functools.partial, types.CellType,
                            types.SimpleNamespace, types.MappingProxyType)) or dataclasses.is_dataclass(value):
        inside = gc.get_referents(value)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        inside = value.ravel().tolist()
    for item in inside if depth else ():
        yield from iterators_in(item, depth - 1)


def require_lasting(owner: type, name: str, value: Any) -> None:
    """Raise TypeError if an attribute is or holds an iterator, which one forward() would use up."""
    for item in iterators_in(value):
        raise TypeError(f"{owner.__name__}: {name} {'is' if item is value else 'holds'} a {type(item).__name__}, which "
                        "forward() uses up, and which no checkpoint saves; use a list")


def parts_to_load(owner: str, state: Mapping[str, Array], parts: Mapping[str, Any],
                  strict: bool) -> tuple[dict[str, Any], IncompatibleKeys]:
    """The parts {name: Parameter or Buffer} to load from a state, all of them if strict, and the names left out."""
    names = state if isinstance(state, Mapping) else ()
    missing = [name for name in parts if name not in names]
    unexpected = [name for name in names if name not in parts]
    if not strict and len(missing) < len(parts):             # else nothing fits, which is an error
        parts = {name: part for name, part in parts.items() if name in state}
        state = {name: state[name] for name in parts}
    if fixed := [name for name, part in parts.items() if not getattr(getattr(part.data, "flags", None), "writeable", True)]:
        raise ValueError(f"{owner}: {fixed[0]} is a read-only array, such as np.broadcast_to gives; make it of a copy")
    require_state(owner, state, {name: part.data for name, part in parts.items()},
                  {name: part.least for name, part in parts.items() if getattr(part, "least", None) is not None})
    return dict(parts), IncompatibleKeys(missing, unexpected)


def require_state(owner: str, state: Mapping[str, Array], arrays: Mapping[str, Array],
                  least: Mapping[str, float] | None = None) -> None:
    """Raise ValueError unless `state` has the names of `arrays`, no more, with their shapes and dtypes, all finite, and none
    below the value that `least` has for its name."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{owner}: expected a state_dict, {{name: array}}, got {type(state).__name__}")
    wrong = [f"{name}: missing" for name in arrays if name not in state]
    wrong += [f"{name}: unknown to this {owner}" for name in state if name not in arrays]
    least = least or {}
    for name, array in arrays.items():
        x = state.get(name, array)
        if not is_array(x) or isinstance(x, np.ma.MaskedArray):              # its masked entries would be copied
            wrong.append(f"{name}: {type(x).__name__}, not an array")
        elif x.shape != array.shape:
            wrong.append(f"{name}: shape {x.shape}, expected {array.shape}")
        elif x.dtype != array.dtype:
            wrong.append(f"{name}: dtype {x.dtype}, expected {array.dtype}; convert it with .astype")
        elif x.dtype.kind == "f" and name in state and not np.isfinite(to_host(x)).all():
            wrong.append(f"{name}: holds NaN or infinity")
        elif name in least and to_host(x).min(initial=least[name]) < least[name]:
            wrong.append(f"{name}: a value below {least[name]}")
    if wrong:
        raise ValueError(f"the state does not fit this {owner}; nothing was loaded:\n    "
                         + "\n    ".join(wrong[:8] + [f"... and {len(wrong) - 8} more"] * (len(wrong) > 8)))
