"""What the loop of a Run changes: whether the run's parts hold it, so that a checkpoint does, and whether it is complete."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .checkpoint import DTYPES, CheckpointError, held_in
from .methods.ema import FOLLOWS
from .nn import Module, Parameter
from .nn.parts import drawn_since
from .optim import Optimizer
from .tensor import changed_since, clock

_in_runs: dict[int, weakref.ref] = {}                        # the parts of all Runs of this process, by id


class Loop:
    """The loop of a Run from its begin on: require_complete() tells whether the run's parts hold what it changes."""

    def __init__(self, parts: Mapping[str, Any]):
        self.parts = parts
        self.shapes = {name: (x.data.shape, x.data.dtype) for name, x in self._arrays()}
        for name, (_, dtype) in self.shapes.items():
            if dtype.name not in DTYPES:
                raise CheckpointError(f"Run.steps: cannot save {name}, an array of {dtype}; use {', '.join(DTYPES)}")
        self.saved = _saved(parts)                           # now: an object may keep a copy of the best model later
        for _, x in _state(self.saved):
            _in_runs[id(x)] = weakref.ref(x)
        self.begun = next(clock)

    def _arrays(self):
        return [(f"{name}.{key}", x) for name, part in self.parts.items() if isinstance(part, Module)
                for key, x in part.named_state()]

    def require_complete(self) -> None:
        """Raise CheckpointError unless the parts hold the model of each optimizer, the optimizer of what was moved, the EMA
        targets, Queues and Streams that have changed, and all arrays have the shapes that they began with."""
        state = _state(self.saved)
        models = [(key, x) for key, x in state if isinstance(x, Parameter)]
        moving = [p for _, thing in self.saved if isinstance(thing, Optimizer)
                  for p, (_, data, _) in zip(thing.parameters, thing.views) if p.data is data]   # else another's, made later
        lost = [name for name, p in models if p.changed and p.changed[0] > self.begun and p.changed[2].endswith(".step()")
                and all(p is not other for other in moving)]
        missing = "optimizer" if lost else "model" if not {id(p) for p in moving} <= {id(p) for _, p in models} else ""
        if missing:
            moved = f", but one has updated {lost[0]}" if lost else ""
            raise CheckpointError(f"Run.steps: the {missing} is not among its parts{moved}. It would not be saved, and "
                                  f"--resume would continue with a new one; pass {missing}={missing}")
        held = {id(x) for _, x in state} | {key for key, x in _in_runs.items() if id(x()) == key}
        for x in changed_since(self.begun) if state else []:
            kind = {"EMA.update()": "target", "Queue.enqueue()": "queue"}.get(x.changed[2])
            if kind and id(x) not in held and x._born < self.begun:          # one made in the loop is made again
                raise CheckpointError(f"Run.steps: {x.changed[2]} has changed a {kind}, {x.changed[1]} of shape "
                                      f"{x.data.shape}, which is not among its parts. It would not be saved, and --resume "
                                      f"would continue with a new one; pass {kind}={kind}")
        if any(id(stream) not in held and stream._born < self.begun for stream in drawn_since(self.begun)):
            raise CheckpointError("Run.steps: a Stream of random numbers, as in a Dropout, has drawn and is not among its "
                                  "parts. It would not be saved, and --resume would repeat them; pass dropout=dropout")
        for name, x in self._arrays():
            now, before = (x.data.shape, x.data.dtype), self.shapes.get(name)
            if before not in (None, now):
                raise CheckpointError(f"Run.steps: {name} was {before[1]} {before[0]}, now {now[1]} {now[0]}, so neither "
                                      "--resume nor minicl.load could load it; keep its shape and dtype, as by a Buffer of "
                                      "the largest size and a Counter")


def _saved(parts):
    """(name of a part, Module, Optimizer, Parameter or Buffer), ... of what the parts are, or hold and save, as their state
    has as many entries."""
    found = []
    for name, part in parts.items():
        things = [(name, thing) for thing in held_in(part)]
        arrays = {id(x): x.data.size for _, x in _state(things)}             # once, however often they are held
        moments = [thing.values.size * len(thing.state) for _, thing in things if isinstance(thing, Optimizer)]
        if not things or things[0][1] is part or sum([*arrays.values(), *moments]) <= _entries(part.state_dict()):
            found += things
    return found


def _entries(state):
    return sum(np.size(x) for x in state.values())


def _state(saved):
    """(name, Parameter or Buffer), ... of what _saved() gives."""
    return [(f"{name}.{key}", x) for name, thing in saved if not isinstance(thing, Optimizer)
            for key, x in (thing.named_state() if isinstance(thing, Module) else [("", thing)])]


def modes(parts: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """{part: {"evaluation": names of its modules in evaluation mode, "frozen": of frozen ones, "follows": of a target's that
    are frozen as online's, "constant": of its Parameters that get no gradient}} of the Modules among parts."""
    return {name: {"evaluation": [key for key, module in part.named_modules() if not module.training],
                   "frozen": [key for key, module in part.named_modules() if module._frozen is True],
                   "follows": [key for key, module in part.named_modules() if isinstance(module._frozen, str)],
                   "constant": [key for key, p in part.named_parameters() if not p.requires_grad]}
            for name, part in parts.items() if isinstance(part, Module)} | {
        name: {"constant": [""][:not part.requires_grad]} for name, part in parts.items() if isinstance(part, Parameter)}


def restore_modes(parts: Mapping[str, Any], saved: Any, log: Callable[[str], None]) -> None:
    """Put the Modules among parts into the modes() of a checkpoint, saved = [those at the begin, those then].

    If the script begins with others by now, they stay.
    """
    begin, then = saved if isinstance(saved, list) and len(saved) == 2 else (None, None)
    if then and begin != modes(parts):
        log("warning: the script now freezes or puts in evaluation mode other parts than at the begin of the run; these "
            "modes are used, and not those of the checkpoint")
        return
    for name, found in (then if isinstance(then, dict) else {}).items():
        part = parts.get(name)
        if isinstance(part, Module) and isinstance(found, dict) and all(isinstance(names, list) for names in found.values()):
            for key, module in part.named_modules():
                object.__setattr__(module, "training", key not in found.get("evaluation", ()))
                follows = key in found.get("follows", ())
                object.__setattr__(module, "_frozen", FOLLOWS if follows else key in found.get("frozen", ()))
            for key, p in part.named_parameters():
                p.requires_grad = key not in found.get("constant", ())
        elif isinstance(part, Parameter) and isinstance(found, dict) and isinstance(found.get("constant"), list):
            part.requires_grad = not found["constant"]


def moved_before(parts: Mapping[str, Any]) -> str:
    """A line that warns if an optimizer has moved a Module among the parts in this process; "" if none has."""
    moved = [(f"{name}.{key}", p.changed[2]) for name, part in parts.items() if isinstance(part, Module)
             for key, p in part.named_parameters() if p.changed and p.changed[2].endswith(".step()")]
    return (f"warning: this run begins with trained weights: {moved[0][1]} has changed {moved[0][0]} before; for a run from "
            "the start, make the model and the optimizer again") if moved else ""


def changed_after(parts: Mapping[str, Any], time: int) -> str:
    """What the library has written into Modules among the parts after `time`, as text; "" for nothing."""
    late = [(f"{name}.{key}", x.changed[2]) for name, part in parts.items() if isinstance(part, Module)
            for key, x in part.named_state() if x.changed and x.changed[0] > time and "Module.to()" not in x.changed[2]]
    return f"{late[0][1]} has changed {late[0][0]}" + f" and {len(late) - 1} more" * (len(late) > 1) if late else ""


def pending(parts: Mapping[str, Any], is_late: bool) -> bool:
    """Whether gradients wait for an optimizer's step(), or keys for MoCo's update(): a checkpoint has neither. Raises
    CheckpointError if some do when it is late."""
    waiting = [name for name, part in parts.items()
               for each in (part.modules() if isinstance(part, Module) else [part]) if getattr(each, "is_pending", False)]
    if waiting and is_late:
        raise CheckpointError(f"Run.steps: {waiting[0]} has gradients that wait for step(), or keys that wait for update(); "
                              "a checkpoint has neither, and was put off for too many steps. Call both in the loop, "
                              "at least every 100 steps")
    return bool(waiting)
