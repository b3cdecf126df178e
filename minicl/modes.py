"""The modes of a run's parts, which a checkpoint has besides their arrays: evaluation, frozen, keys of streams, settings."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .methods.ema import FOLLOWS
from .nn import Module, Parameter
from .nn.parts import Stream
from .optim import Optimizer


def modes(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{part: {"evaluation": names of its modules in evaluation mode, "frozen": of frozen ones, "follows": of a target's that
    are frozen as online's, "constant": of its Parameters that get no gradient, "copied": what the next copy of a Stream
    depends on, "keys": of Streams, "scheduled": settings such as BYOL's m, [[module, name, value], ...]}} of the Modules
    among parts, and {part: {"settings": {"lr": ...}}} of optimizers."""
    return {name: {"evaluation": [key for key, module in part.named_modules() if not module.training],
                   "frozen": [key for key, module in part.named_modules() if module._frozen is True],
                   "follows": [key for key, module in part.named_modules() if isinstance(module._frozen, str)],
                   "constant": [key for key, p in part.named_parameters() if not p.requires_grad],
                   "copied": [[key, *x.copied] for key, x in part.named_state() if isinstance(x, Stream) and x.copied[1]],
                   "keys": [[key, *x.key] for key, x in part.named_state() if isinstance(x, Stream)],
                   "scheduled": [[key, name, _plain(getattr(module, name))] for key, module in part.named_modules()
                                 for name in getattr(type(module), "_scheduled", ())]}
            for name, part in parts.items() if isinstance(part, Module)} | {
        name: {"constant": [""][:not part.requires_grad]} for name, part in parts.items() if isinstance(part, Parameter)} | {
        name: {"settings": {key: _plain(getattr(part, key)) for key in part._setting_ranges if hasattr(part, key)}}
        for name, part in parts.items() if isinstance(part, Optimizer)}


def _plain(value):
    """A setting as JSON gives it back."""
    return [*map(_plain, value)] if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value


def restore_modes(parts: Mapping[str, Any], at_begin: Any, saved: Any, log: Callable[[str], None]) -> None:
    """Put the parts, named_as() in a checkpoint, into its modes(), saved = [those at the begin, those then].

    If the script begins with others by now, at_begin, they stay. Settings that are refused are named.
    """
    begin, then = saved if isinstance(saved, list) and len(saved) == 2 else (None, None)
    if then and not (isinstance(begin, dict) and all(
            isinstance(found, dict) and found.items() <= at_begin.get(name, {}).items() for name, found in begin.items())):
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
            copies, keys = ({item[0]: tuple(item[1:]) for item in found.get(what, ()) if isinstance(item, list) and item}
                            for what in ("copied", "keys"))
            for key, x in part.named_state():
                if isinstance(x, Stream):
                    x.copied, x.key = copies.get(key, (0, 0)), keys.get(key, x.key)
            scheduled = [item for item in found.get("scheduled", ()) if isinstance(item, list) and len(item) == 3]
            for key, module in part.named_modules():
                values = {item[1]: item[2] for item in scheduled if item[0] == key}
                _set(module, f"{name}.{key}".rstrip("."), getattr(type(module), "_scheduled", ()), values, log)
        elif isinstance(part, Parameter) and isinstance(found, dict) and isinstance(found.get("constant"), list):
            part.requires_grad = not found["constant"]
        elif isinstance(part, Optimizer) and isinstance(found, dict) and isinstance(found.get("settings"), dict):
            _set(part, name, part._setting_ranges, found["settings"], log)


def _set(thing, name, known, values, log):
    """Set the known settings of a Module or optimizer to values, in an order in which each is valid: SGD's nesterov needs a
    momentum."""
    left = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known}
    for _ in [*left]:
        for key, value in [*left.items()]:
            with contextlib.suppress(TypeError, ValueError):                 # of one that is out of range, perhaps so far
                setattr(thing, key, value)
                del left[key]
    if left:
        log(f"warning: {name} cannot have the settings of the checkpoint {left}, and keeps those that it was made with")
