"""What the parts of a run hold: the models and optimizers in a trainer of the script, by their paths."""

import gc
import types
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from .backend import to_device, to_host
from .nn import Buffer, Module, Parameter
from .nn.parts import time_made
from .optim import Optimizer
from .typing import HostArray

SAVED = (Module, Optimizer, Parameter, Buffer)
CLOSED = (type, types.ModuleType, types.FrameType, types.GeneratorType, np.ndarray, str, int, float)      # not looked into
WAITING = "waiting gradients"          # what they are named among the parts of a checkpoint
LEVELS, MANY = 16, 1000                # how far an object is looked into, and how many entries of each level


def held_in(part: Any) -> dict[str, Any]:
    """{path: thing}, {"model": ..., "nets.0": ...}, of the Modules, optimizers, Parameters and Buffers that an object of a
    script refers to."""
    found, level, seen = dict[str, Any](), [("", part)], {id(part)}
    for _ in range(LEVELS):
        outer, level = level[:MANY], []
        for path, thing in outer:
            for key, x in [(key, x) for key, x in _referents(thing) if _is_open(x)][:MANY]:
                name = f"{path}.{key}".lstrip(".")
                if isinstance(x, SAVED):
                    found.setdefault(name, x)
                elif id(x) not in seen:
                    seen.add(id(x))
                    level.append((name, x))
    return found


def _is_open(thing):
    return type(thing) not in weakref.ProxyTypes and not isinstance(thing, CLOSED)


def _referents(thing):
    """[(name, x), ...] of what an object refers to; of a function not the globals of its file."""
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, map(gc.get_referents, thing.__closure__ or ()))      # an empty one has none
        return [*((name, x) for name, held in cells for x in held), *enumerate(thing.__defaults__ or ()),
                *(thing.__kwdefaults__ or {}).items()]
    if isinstance(thing, weakref.ref):
        return [("", thing())]
    if isinstance(thing, dict):
        return [*thing.items(), *((f"key {k}", key) for k, key in enumerate(thing))]
    if isinstance(thing, (set, frozenset)):                  # its order is another one in each process
        return [*enumerate(sorted(thing, key=time_made))]
    attributes = getattr(thing, "__dict__", {})
    known = {id(attributes), *map(id, attributes.values())}
    return [*attributes.items(), *enumerate(x for x in gc.get_referents(thing) if id(x) not in known)]


def expanded(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts, and by their paths, as "trainer.model", the Modules, optimizers and Parameters that only other parts hold.

    A run asks at its begin, since parts may make others later.
    """
    whole = dict(parts)
    known = {id(thing) for part in parts.values() for thing in (part.modules() if isinstance(part, Module) else [part])}
    for name, part in parts.items():
        for path, thing in ({} if isinstance(part, SAVED) else held_in(part)).items():
            if isinstance(thing, (Module, Optimizer, Parameter)) and id(thing) not in known:
                known.add(id(thing))
                whole[f"{name}.{path}"] = thing
    return whole


def renewed(whole: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """What was expanded(), with what a part has made instead, as in its load_state_dict(), if it no longer holds the old."""
    now = {f"{name}.{path}": thing for name, part in parts.items() if not isinstance(part, SAVED)
           for path, thing in held_in(part).items()}
    held = {id(thing) for thing in now.values()}
    return {name: thing if name in parts or id(thing) in held else now.get(name, thing) for name, thing in whole.items()}


class Waiting:
    """The gradients that wait for step(), as of a loop that adds up several, of the optimizers in what expanded() gives."""

    def __init__(self, whole: Mapping[str, Any]):
        self.optimizers = {name: part for name, part in whole.items() if isinstance(part, Optimizer)}

    def state_dict(self) -> dict[str, HostArray]:
        return {f"{name}.{key}": x for name, optimizer in self.optimizers.items() if optimizer.is_pending for key, x in (
            ("grads", to_host(optimizer.grads)), ("reached", np.array([p.reached for p in optimizer.parameters])))}

    def load_state_dict(self, state: Mapping[str, HostArray]) -> None:
        """Raises ValueError, and changes nothing, if a gradient has no optimizer of its size."""
        given = [(optimizer, state[f"{name}.grads"], state[f"{name}.reached"]) for name, optimizer in self.optimizers.items()
                 if f"{name}.grads" in state]
        fit = [(g.shape, g.dtype, len(reached)) == (optimizer.grads.shape, optimizer.grads.dtype, len(optimizer.parameters))
               for optimizer, g, reached in given]
        if 2 * len(given) < len(state) or not all(fit):
            raise ValueError(f"no optimizer has the gradients {', '.join(state)}")
        for optimizer, g, reached in given:
            optimizer.zero_grad()
            optimizer.grads[...] = to_device(g, optimizer.xp)
            for p, has in zip(optimizer.parameters, reached):
                p.reached = bool(has)
