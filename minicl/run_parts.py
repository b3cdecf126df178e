"""What the parts of a run hold: the models and optimizers in a trainer of the script, by their paths."""

import collections
import gc
import threading
import types
import warnings
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .backend import array_module, to_device, to_host
from .nn import Buffer, Module, Parameter
from .nn.parts import time_made
from .optim import Optimizer
from .typing import Array, HostArray

SAVED = (Module, Optimizer, Parameter, Buffer)
CLOSED = (type, types.ModuleType, types.FrameType, types.GeneratorType, np.ndarray, str, int, float)      # not looked into
GRADIENTS = "all gradients"            # what they are named among the parts of a checkpoint
LEVELS, MANY = 16, 200_000             # how far an object is looked into, and after how many objects no further
_sorting = threading.local()


def held_in(part: Any) -> dict[str, Any]:
    """{path: thing}, {"model": ..., "nets.0": ...}, of the Modules, optimizers, Parameters and Buffers that an object of a
    script refers to, the nearest first."""
    found, level, seen = dict[str, Any](), [("", part)], {id(part)}
    for _ in range(LEVELS):
        outer, level = level, []
        for path, thing in outer:
            for key, x in _referents(thing):
                if not gc.is_tracked(x) or not _is_open(x):                  # not tracked: refers to nothing
                    continue
                name = f"{path}.{key}".lstrip(".")
                if isinstance(x, SAVED):
                    while found.get(name, x) is not x:                       # {1: x, "1": y}
                        name += "'"
                    found[name] = x
                elif id(x) not in seen:
                    seen.add(id(x))
                    level.append((name, x))
            if len(seen) > MANY:
                warnings.warn(f"a part of the run refers to more than {MANY:,} objects, so not all of them were looked into "
                              "for Modules and optimizers; pass those as parts of their own", stacklevel=2)
                return found
    return found


def _is_open(thing):
    return type(thing) not in weakref.ProxyTypes and not isinstance(thing, CLOSED)


def _referents(thing):
    """[(name, x), ...] of what an object refers to, in an order that all processes have; of a function not the globals of
    its file."""
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, map(gc.get_referents, thing.__closure__ or ()))      # an empty one has none
        return [*((name, x) for name, held in cells for x in held), *enumerate(thing.__defaults__ or ()),
                *(thing.__kwdefaults__ or {}).items()]
    if isinstance(thing, weakref.ref):
        return [("", thing())]
    if isinstance(thing, dict):
        names = (key if isinstance(key, (str, int)) and len(text := str(key)) < 100 and text.isprintable() else f"value {k}"
                 for k, key in enumerate(thing))
        return [*zip(names, thing.values()), *((f"key {k}", key) for k, key in enumerate(thing))]
    if isinstance(thing, (set, frozenset)):
        return [*enumerate(sorted(filter(_is_open, thing), key=_times))]
    attributes = getattr(thing, "__dict__", {})
    items = []
    if isinstance(thing, (list, tuple, collections.deque)):
        items = [(k, x) for k, x in enumerate(thing) if gc.is_tracked(x)]
        if type(thing) in (list, tuple, collections.deque):
            return items
    known = {id(attributes), *map(id, attributes.values()), *(id(x) for _, x in items)}
    return [*items, *attributes.items(), *enumerate(x for x in gc.get_referents(thing) if id(x) not in known)]


def _times(thing):
    """When what an object of a set refers to was made, the nearest first, without what is in other sets."""
    if getattr(_sorting, "is_on", False):
        return [time_made(thing)]
    _sorting.is_on = True
    try:
        return [time_made(thing), *map(time_made, held_in(thing).values())]
    finally:
        _sorting.is_on = False


def expanded(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts, and by their paths, as "trainer.model", the Modules, optimizers and Parameters that only other parts hold.

    A run asks at its begin, since parts may make others later. Raises TypeError for a part without a state, and ValueError
    if a name is another one and a dot before more, or "model " before another one.
    """
    for name, part in parts.items():
        if f"model {name}" in parts:
            raise ValueError(f"Run.steps: load(folder, model={name!r}) could mean the part {name!r} or 'model {name}'; give "
                             "other names")
        if longer := [other for other in parts if other.startswith(f"{name}.")]:
            raise ValueError(f"Run.steps: the names {name!r} and {longer[0]!r} of parts could mean the same array; give "
                             "names without dots")
        if not callable(getattr(part, "state_dict", None)) or not callable(getattr(part, "load_state_dict", None)):
            raise TypeError(f"Run.steps: {name} must be a Module, an optimizer, or another object with state_dict() and "
                            f"load_state_dict(), got {type(part).__name__}; hold a Parameter or array in a Module, "
                            f"model.{name} = Parameter(x) or Buffer(x), and pass that")
    whole = dict(parts)
    known = {id(thing) for part in parts.values() for thing in (part.modules() if isinstance(part, Module) else [part])}
    for name, part in parts.items():
        for path, thing in ({} if isinstance(part, SAVED) else held_in(part)).items():
            if isinstance(thing, (Module, Optimizer, Parameter)) and id(thing) not in known:
                known.add(id(thing))
                whole[f"{name}.{path}"] = thing
    return whole


def renewed(whole: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """What was expanded(), by its names of then, with what a part has made instead, as in its load_state_dict(), and without
    what it no longer holds."""
    now = {f"{name}.{path}": thing for name, part in parts.items() if not isinstance(part, SAVED)
           for path, thing in held_in(part).items()}
    held = {id(thing) for thing in now.values()}
    return {name: thing if name in parts or id(thing) in held else now[name] for name, thing in whole.items()
            if name in parts or id(thing) in held or name in now}


def sums_of(whole: Mapping[str, Any]) -> dict[str, int]:
    """{name: a checksum of the class's name and the arrays} of the Modules, optimizers, Parameters and Buffers in what
    expanded() gives."""
    def arrays(thing):
        if isinstance(thing, Module):
            return [x.data for _, x in thing.named_state()]
        return [thing.values, *thing.state.values()] if isinstance(thing, Optimizer) else [thing.data]

    return {name: zlib.crc32(b"".join(checksum(x).to_bytes(4, "big") for x in arrays(thing)), zlib.crc32(
        type(thing).__name__.encode())) for name, thing in whole.items() if isinstance(thing, SAVED)}


def checksum(array: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(to_host(array)))                  # type: ignore[arg-type]


def named_as(sums: Mapping[str, int], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What expanded() gives now, by the names of a checkpoint with these sums_of(): the thing of this name, or if it has
    other arrays the one that has them, since an object of a script may load its state in another order, as of a sorted
    list."""
    now = sums_of(whole)
    there = {name: thing for name, thing in whole.items() if sums.get(name, -1) == now.get(name, -1)}
    paths = {now[name]: name for name in reversed(now) if name not in there}
    moved = {name: paths.pop(sums[name]) for name in sums if name not in there and sums[name] in paths}
    left = {name: thing for name, thing in whole.items() if name not in {*there, *moved.values()}}
    return left | there | {name: whole[path] for name, path in moved.items()}


class Gradients:
    """The gradients of the optimizers, and of Modules and Parameters beside them, in what expanded() gives: a part of a
    checkpoint, as the next step may add to them or read them."""

    def __init__(self, whole: Mapping[str, Any]):
        self.optimizers = {name: part for name, part in whole.items() if isinstance(part, Optimizer)}
        self.rank = max((part.world.rank for part in whole.values() if isinstance(part, Module)), default=0)
        moved = {id(p) for optimizer in self.optimizers.values() for p in optimizer.parameters}
        held = {f"{name}.{key}": p for name, part in whole.items() if isinstance(part, Module)
                for key, p in part.named_parameters()} | {
            name: part for name, part in whole.items() if isinstance(part, Parameter)}
        self.others = {name: p for name, p in held.items() if id(p) not in moved}

    def state_dict(self) -> dict[str, HostArray]:
        """Without those of optimizers that are 0 and that no backward() has reached."""
        state = {name: to_host(p.grad) for name, p in self.others.items() if p.grad is not None}
        for name, optimizer in self.optimizers.items():
            flags = [optimizer._used, *(p.reached for p in optimizer.parameters)]
            if any(flags) or optimizer.grads.any():
                state |= {f"{name}.grads": to_host(optimizer.grads), f"{name}.reached": np.array(flags)}
        return state

    def load_state_dict(self, state: Mapping[str, HostArray]) -> None:
        """Set all, those that are not in the state to 0. Of several processes the first gets those that wait for step(),
        which adds them up. Raises ValueError, and changes nothing, unless they fit."""
        arrays = {f"{name}.grads": optimizer.grads for name, optimizer in self.optimizers.items()}
        arrays |= {f"{name}.reached": np.zeros(1 + len(optimizer.parameters), bool)
                   for name, optimizer in self.optimizers.items()} | {name: p.data for name, p in self.others.items()}
        if wrong := [name for name, x in state.items() if name not in arrays or x.shape != arrays[name].shape
                     or x.dtype != arrays[name].dtype]:
            raise ValueError(f"no parameters have the gradients {wrong[0]}")
        if self.rank:
            state = {name: x for name, x in state.items() if name not in self.others}
        for name, p in self.others.items():
            if name in state and p.grad is None:
                p.grad = to_device(state[name].copy(), array_module(p.data))
            elif p.grad is not None:                         # perhaps a view of an optimizer that no part refers to
                p.grad[...] = to_device(state[name], array_module(p.data)) if name in state else 0
        for name, optimizer in self.optimizers.items():
            optimizer.zero_grad()
            if f"{name}.grads" in state and (state[f"{name}.reached"][0] or optimizer.world.rank == 0):
                optimizer.grads[...] = to_device(state[f"{name}.grads"], optimizer.xp)
                optimizer._used, *reached = state[f"{name}.reached"].tolist()
                for p, has in zip(optimizer.parameters, reached):
                    p.reached = has
