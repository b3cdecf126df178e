"""What the loop of a Run changes: whether the run's parts save it, so that a checkpoint has all of it."""

import bisect
import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .backend import to_host
from .checkpoint import own_settings, unsaved_settings
from .fingerprint import differences, fingerprint, kept_by, marks, not_cached, of_class, read_by
from .modes import modes
from .nn import Buffer, Module, Parameter
from .nn.layers import AVERAGED
from .nn.parts import Stream, live, looked_for, time_made
from .optim import Optimizer
from .run_parts import GRADIENTS, Gradients, checksum, expanded, renewed, sums_of
from .state_values import DTYPES, CheckpointError, as_array, state_of
from .tensor import clock
from .typing import Array

KINDS = {"EMA.update()": "target", "Queue.enqueue()": "queue"}               # of what they change
MAY_BE_REPEATED = ("load_state_dict()", "Module.to() or astype()", AVERAGED)             # each time before its use, perhaps
_in_runs: dict[int, tuple[weakref.ref, list[int]]] = {}      # by id: what Runs save, and when that loop has ended, if it has


class Loop:
    """The loop of a Run from its begin on. parts: the run's; whole: also what they hold, see expanded(); log: prints."""

    def __init__(self, parts: Mapping[str, Any], whole: Mapping[str, Any], log: Callable[[str], None]):
        self.parts, self.whole = parts, whole                # whole: of now, by the names at the begin, see check()
        self.run_print = weakref.WeakMethod(log)             # a Run that is dropped frees its folder at once
        self.now = whole                                     # by their names of now, without what a resumed run makes again
        self.own = {name: part for name, part in parts.items() if not _saves_all(part)}
        self.shapes = {name: (x.data.shape, x.data.dtype) for name, x in self._arrays()}
        for name, (_, dtype) in self.shapes.items():
            if dtype.name not in DTYPES:
                raise CheckpointError(f"Run.steps: cannot save {name}, an array of {dtype}; use {', '.join(DTYPES)}")
        self.before = {id(x): _form(x) for x in live()}
        self.marks = self._marks()
        names = self._names()
        self.sums = {id(x): checksum(x.data) for x in live() if isinstance(x, (Parameter, Buffer)) and id(x) not in names}
        self.replaced: dict[int, tuple[weakref.ref, int]] = {}       # by id: what a part no longer holds, and since when
        self.ended: list[int] = []                           # the time, once it is over
        self.inside = [*map(weakref.ref, _inside(whole))]    # at the last check
        self.told = set[tuple[str, str]]()
        self.generators = _common_generators()
        for x in _inside(whole):
            _in_runs[id(x)] = weakref.ref(x), self.ended
        self.begun = next(clock)
        self.begins = [self.begun]                           # of the last steps

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        self.ended.append(next(clock))
        self._look_for([])

    def begin_step(self) -> None:
        """Note that a step begins: what it makes and changes, a resumed run does again; what the next one changes, not."""
        self.begins = [*self.begins[-1000:], next(clock)]

    def _arrays(self):
        return [(f"{name}.{key}", x) for name, part in self.parts.items() if isinstance(part, Module)
                for key, x in part.named_state()]

    def _names(self):
        return {id(x): name for name, x in self._arrays()}

    def check(self) -> list[tuple[str, str]]:
        """Raise CheckpointError unless the parts save what has changed: what optimizers have moved, these optimizers, EMA
        targets, Queues and Streams, and unless arrays have the shapes that they began with. Returns what else no part saves
        that has changed, for tell().

        A Module and an optimizer save what is theirs, any other object the arrays whose values are in its state_dict(). What
        was made in the step that has changed it is not looked at: a resumed run makes it again.
        """
        try:
            return self._check()
        except CheckpointError:
            pass                                             # the error refers to what it is about
        gc.collect()                                         # which is perhaps no longer in use
        return self._check()

    def _check(self):
        saved = _Values(self.own)
        earlier = [x for reference in self.inside if (x := reference()) is not None]
        self.whole = renewed(self.whole, self.parts)
        held = {id(x) for x in _inside(self.whole)}
        gone = [x for x in earlier if id(x) not in held]     # replaced by a trainer, or in a Module
        self.inside = [*map(weakref.ref, _inside(self.whole))]
        self.replaced |= {id(x): (weakref.ref(x), next(clock)) for x in gone}
        self.sums |= {id(x): checksum(x.data) for x in gone if not isinstance(x, Module)}
        names = self._names()
        self.now = {name: x for name, x in expanded(self.parts).items() if time_made(x) <= self.begun
                    or (self._saves(x, saved) if isinstance(x, Optimizer) else self._is_saved(x, names, saved))}
        things = [x for x in live() if not self._is_of_another(x)]
        moved = [x for x in things if isinstance(x, (Parameter, Buffer)) and x.changed and x.changed[0] > self.begun
                 and (self._outlasts(x, x.changed[0]) or x.data in saved)]
        texts = [*self._lost(moved, names, saved), *self._made(things, names, saved)]
        texts += self._written([x for x in things if id(x) not in {*names, *map(id, moved)}], saved)
        streams = [x for x in things if isinstance(x, Stream) and x.drawn > self.begun and id(x) not in names]
        if any(self._outlasts(x, x.drawn) and x.data not in saved for x in streams):
            raise _missing("dropout", "a Stream of random numbers, as in a Dropout, has drawn")
        kept = {id(x) for x in _inside(self.now)}
        if any(x.key and time_made(x) > self.begun and x.data in saved and id(x) not in kept for x in streams):
            texts += ["a Stream of random numbers that was copied in the loop has drawn"]
        texts += [f"the generator of {name} has drawn" for name, state in _common_generators().items()
                  if state != self.generators[name]]
        self._require_optimizers([x for x in things if isinstance(x, Optimizer)], moved, names, saved)
        self._require_same_arrays()
        return [*((text, text) for text in texts), *self._other_forms(things, {id(x) for x in moved})]

    def _require_same_arrays(self):
        """Raise CheckpointError unless the Modules among the parts have the arrays that they began with, in other values."""
        arrays = {name: (x.data.shape, x.data.dtype) for name, x in self._arrays()}
        for name in sorted(self.shapes.keys() ^ arrays.keys()):
            change = "removed" if name in self.shapes else "made"
            raise CheckpointError(f"Run.steps: {name} was {change} in the loop, so neither --resume nor minicl.load could "
                                  "load it; keep it from before the loop to its end, as a Buffer of zeros and a Counter")
        for name, now in arrays.items():
            if (before := self.shapes[name]) != now:
                raise CheckpointError(f"Run.steps: {name} was {before[1]} {before[0]}, now {now[1]} {now[0]}, so neither "
                                      "--resume nor minicl.load could load it; keep its shape and dtype, as by a Buffer of "
                                      "the largest size and a Counter")

    def _lost(self, moved, names, saved):
        """What has changed the arrays that are in no state, as texts. If one of two equal arrays is, it is the model's."""
        moved = sorted(moved, key=lambda x: (x.changed[2] in MAY_BE_REPEATED, x.changed[2] in KINDS))
        lost = [x for x in moved if id(x) not in names and self._outlasts(x, x.changed[0]) and not saved.take(x.data)]
        texts = [f"{x.changed[2]} has changed {x.changed[1] or 'a part'} of shape {x.data.shape}" for x in lost]
        for x, change in zip(lost, texts):
            kind = KINDS.get(x.changed[2], "model" if isinstance(x, Parameter) else "")
            if kind and x.changed[2] not in MAY_BE_REPEATED:
                raise _missing(kind, change)
        return texts

    def _written(self, things, saved):
        """What was changed in a way that nothing notes, as by p.data[...] = values, as texts."""
        found = [x for x in things if isinstance(x, (Parameter, Buffer)) and not isinstance(x, Stream)
                 and time_made(x) < self.begun and checksum(x.data) != self.sums.get(id(x)) and x.data not in saved]
        texts = [f"an assignment to .data has changed a {type(x).__name__} of shape {x.data.shape}" for x in found]
        for x, change in zip(found, texts):
            if isinstance(x, Parameter):
                raise _missing("model", change)
        return texts

    def _made(self, things, names, saved):
        """The first Module or array that the loop has made for a later step and no part saves, as a text in a list."""
        new = [x for x in things if isinstance(x, (Module, Parameter, Buffer)) and time_made(x) > self.begun]
        new = [x for x in new if not self._is_saved(x, names, saved)]
        self._look_for(new)
        now = next(clock)
        return [f"a {type(x).__name__} was made, which is still there" for x in new if self._outlasts(x, now)][:1]

    def _is_saved(self, x, names, saved):
        return all(id(part) in names or part.data in saved for _, part in x.named_state()) if isinstance(x, Module) \
            else id(x) in names or x.data in saved

    def _look_for(self, modules):
        """Warn at once if one of these is called."""
        for key in [key for key, (_, tell) in looked_for.items() if tell == self._used]:
            del looked_for[key]
        looked_for.update({id(x): (time_made(x), self._used) for x in modules})

    def _used(self, name):
        self.tell({"what no part saves": [(f"a {name}", f"a {name} was made, which a later step has used")]})

    def _require_optimizers(self, optimizers, moved, names, saved):
        """Raise CheckpointError if one has made a step, after that in which it was made, and is in no state."""
        movers = {id(p): optimizer for optimizer in optimizers for p, (_, data, _) in zip(
            optimizer.parameters, optimizer.views) if p.data is data}                    # else it is another's by now
        unsaved = [optimizer for optimizer in {*movers.values()} if not self._saves(optimizer, saved)]
        late = [p for x in unsaved for p in x.parameters if self._outlasts(x, x._stepped) and self._outlasts(p, x._stepped)]
        views = {id(p): name for optimizer in optimizers for name, p in zip(optimizer.names, optimizer.parameters)}
        others = {id(p) for x in optimizers if self._saves(x, saved) for p in x.parameters}      # of saved ones
        late += [p for p in moved if p.changed[2].endswith(".step()") and id(p) in views
                 and (id(p) not in movers or movers[id(p)] in unsaved and id(p) in others)]
        if late and id(late[0]) in views and id(late[0]) not in movers:
            name = names.get(id(late[0]), views[id(late[0])])
            raise CheckpointError(f"Run.steps: {name} no longer views the buffer of its optimizer, which cannot move it; "
                                  "write into a parameter by p.data[...] = x, not p.data = x, and give it one optimizer")
        if late:
            changed = names.get(id(late[0])) or (late[0].changed or " ")[1]
            raise _missing("optimizer", f"one has updated {changed}")

    def _is_of_another(self, x):
        """Whether x was in the loop of another Run since the begin."""
        if isinstance(x, Optimizer):
            return all(map(self._is_of_another, x.parameters))
        reference, ended = _in_runs.get(id(x), (None, self.ended))
        return ended is not self.ended and reference() is x and not (ended and ended[0] < self.begun)

    def _outlasts(self, x, time):
        """Whether a step, or the loop, began after x was made, or was replaced in a part, and before this time."""
        reference, since = self.replaced.get(id(x), (None, 0))
        made = max(time_made(x), since if reference and reference() is x else 0)
        next_step = bisect.bisect(self.begins, made)
        return next_step < len(self.begins) and self.begins[next_step] < time

    def _saves(self, optimizer, saved):
        return any(optimizer is part and name not in self.own for name, part in self.parts.items()) or np.array(
            optimizer.steps) in saved and all(array[part] in saved for array in optimizer.state.values()
                                              for part, _, _ in optimizer.views)

    def _marks(self):
        """marks() of what the Modules and the optimizers of the parts keep."""
        kept = {name: kept_by(part.named_modules()) if isinstance(part, Module) else
                not_cached(part) | own_settings(part) | of_class(part)
                for name, part in self.whole.items() if isinstance(part, (Module, Optimizer))}
        wholes = [(name, part) for name, part in self.whole.items() if isinstance(part, Module)]
        names = {id(x): f"{name}.{key}" for name, part in reversed(wholes)   # of two the first
                 for key, x in [*part.named_modules(), *part.named_state()]}
        things = [x for part in self.whole.values() for x in (part.modules() if isinstance(part, Module) else [part])]
        values = {f"{name}.{key}": x for name, held in kept.items() for key, x in held.items()} | read_by(things)
        return marks(values, names)

    def changed(self) -> list[tuple[str, str]]:
        """What the Modules and optimizers of the parts keep besides their state and is not as at the begin, for tell()."""
        return differences(self.marks, self._marks())

    def _other_forms(self, things, moved):
        """Modes and settings that are not as at the begin, of what is in no part; of what the loop has made, if it moved."""
        held = {id(x) for whole in (self.whole, self.now) for x in _inside(whole)}
        found = []
        for x in things:
            was_there = time_made(x) < self.begun
            if id(x) in held:
                continue
            before, now = self.before[id(x)] if was_there else _form_of_new(x), _form(x)
            arrays = [x] if isinstance(x, Parameter) else [x for _, x in x.named_state()] if isinstance(x, Module) else []
            if was_there or any(id(array) in moved for array in arrays):
                found += differences(before, now)
        return found

    def _log(self, line):
        if (log := self.run_print()) is not None:
            log(line)

    def tell(self, changed: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Warn of changes that a checkpoint does not have, {what: [(name, text), ...]}; once of each name."""
        for what, found in changed.items():
            new = [text for name, text in found if (what, name) not in self.told]
            self.told |= {(what, name) for name, _ in found}
            if new:
                more = f"; and {len(new) - 3} more" * (len(new) > 3)
                self._log(f"warning: {what} changed in the loop: {'; '.join(new[:3])}{more}; minicl.load and --resume have "
                         "what was there at the begin, unless each step sets it again")

    def meta(self, at_begin: Mapping[str, Any], made: Mapping[str, str]) -> dict[str, Any]:
        """What restore() and restore_modes() need of what the parts hold now: modes, at the begin and now, sums, and the
        settings of what was not yet there when the script had the settings `made`; and what the loop has made that is there
        and that no part saves, by class."""
        late = {key: text for key, text in unsaved_settings(self.now).items() if key not in made}
        if unsaved := self._unsaved():
            gc.collect()                                     # perhaps it is no longer in use
            unsaved = self._unsaved()
        return {"modes": [at_begin, modes(self.now)], "sums": sums_of(self.now), "late": late, "unsaved": unsaved}

    def _unsaved(self):
        saved, names = _Values(self.own), self._names()
        new = [x for x in live() if time_made(x) > self.begun and not self._is_of_another(x)]
        left = [x for x in new if isinstance(x, Optimizer) and not self._saves(x, saved)
                or not isinstance(x, Optimizer) and not self._is_saved(x, names, saved)]
        inside = {id(part) for x in left if isinstance(x, Module) for _, part in x.named_parts() if part is not x}
        return sorted({type(x).__name__ for x in left if id(x) not in inside})

    def gradients(self, processes: int) -> dict[str, Gradients]:
        """The gradients as a part of a checkpoint. Of several processes all have others, until step() adds them up."""
        return {} if processes > 1 else {GRADIENTS: Gradients(self.now)}

    def waits(self, put_off: int, most: int, processes: int) -> bool:
        """Whether something waits that a checkpoint does not have: keys for MoCo's update(), or gradients for the step() of
        an optimizer that no part refers to, or of one whose gradients several processes are to add up.

        put_off: for how many steps it has been. Raises CheckpointError if something waits after more than `most`.
        """
        waiting = [name for name, part in self.whole.items() if processes > 1 or not isinstance(part, Optimizer) for each in
                   (part.modules() if isinstance(part, Module) else [part]) if getattr(each, "is_pending", False)]
        known = {id(part) for part in self.whole.values()}
        waiting += [type(x).__name__ for x in live() if isinstance(x, Optimizer) and id(x) not in known and x.is_pending
                    and all(id(p) in self._names() or p.data in _Values(self.own) for p in x.parameters)]
        if waiting and put_off == most // 10:
            self._log(f"the next checkpoint waits for a step() or update() of {waiting[0]}")
        if waiting and put_off > most:
            raise CheckpointError(f"Run.steps: {waiting[0]} has gradients that wait for step(), or keys that wait for "
                                  "update(); a checkpoint has neither, and was put off for too many steps. Call both in the "
                                  "loop, at least every 100 steps, or pass the optimizer")
        return bool(waiting)


class _Values:
    """The arrays in the state of a script's own objects: whether one has these values, perhaps as a part of it."""

    def __init__(self, parts: Mapping[str, Any]):
        arrays = [as_array(name, value) for name, value in state_of(parts)]
        self.entries = Counter((x.dtype, x.tobytes()) for x in arrays)

    def __contains__(self, array: Array) -> bool:
        return self._whole(array) in self.entries or self._is_piece(array)

    def take(self, array: Array) -> bool:
        """Whether an array is there that was not taken for another one with the same values."""
        self.entries.subtract([found := self._whole(array)])
        return self.entries[found] >= 0 or self._is_piece(array)

    def _whole(self, array):
        x = np.asarray(to_host(array))
        return x.dtype, x.tobytes()

    def _is_piece(self, array):
        dtype, held = self._whole(array)
        return any(held in entry for kind, entry in self.entries if kind == dtype and len(entry) > len(held))


def _saves_all(part):
    """Whether a part is a Module, or an optimizer that has not replaced state_dict()."""
    return isinstance(part, Module) or isinstance(part, Optimizer) and type(part).state_dict is Optimizer.state_dict


def _common_generators():
    """The states of the random generators that all of a process shares, which no checkpoint has."""
    return {"np.random": fingerprint(np.random.get_state()), "random": random.getstate()}


def once(text: str) -> list[tuple[str, str]]:
    """A change, or "", for tell(), which reports it the first time only."""
    return [("", text)] if text else []


def _missing(kind, change):
    return CheckpointError(f"Run.steps: the {kind} is not among its parts, but {change}. It would not be saved, and "
                           f"--resume would continue with a new one; pass {kind}={kind}, or save its values in a part, as "
                           "of what the loop makes itself")


def _inside(whole):
    """The Modules, Parameters and Buffers of what expanded() gives."""
    held = [[*part.modules(), *(x for _, x in part.named_state())] if isinstance(part, Module) else [part]
            for part in whole.values()]
    return [x for each in held for x in each if isinstance(x, (Module, Parameter, Buffer))]


def _form(x):
    """marks() of the modes of a Module or Parameter, and of what a Module keeps."""
    held = {"requires_grad": x.requires_grad} if isinstance(x, Parameter) else {}
    if isinstance(x, Module):
        held = {"training": x.training, "_frozen": x._frozen, **kept_by([("", x)]), **read_by([x])}
    return _marks_of(x, held)


def _form_of_new(x):
    """The modes that _form() begins with."""
    return _marks_of(x, {"requires_grad": True} if isinstance(x, Parameter) else {"training": True, "_frozen": False})


def _marks_of(x, held):
    return marks({f"{key} of a {type(x).__name__}": value for key, value in held.items()})


def moved_before(parts: Mapping[str, Any]) -> str:
    """A line that says if an optimizer has moved a Module among the parts in this process; "" if none has."""
    moved = [(f"{name}.{key}", p.changed[2]) for name, part in parts.items() if isinstance(part, Module)
             for key, p in part.named_parameters() if p.changed and p.changed[2].endswith(".step()")]
    return (f"this run begins with trained weights: {moved[0][1]} has changed {moved[0][0]} before; for a run from the "
            "start, make the model and the optimizer again") if moved else ""


def checksums(parts: Mapping[str, Any]) -> dict[str, int]:
    """{name: a checksum of the array} of the Modules among parts."""
    return {f"{name}.{key}": checksum(x.data) for name, part in parts.items() if isinstance(part, Module)
            for key, x in part.named_state()}


def changed_after(loop: Loop | None, time: int, sums: Mapping[str, int]) -> str:
    """What was written into Modules of the parts after `time`, when they had these checksums, as text; "" for nothing."""
    parts = loop.whole if loop else {}
    now = checksums(parts)
    noted = {f"{name}.{key}": x.changed[2] for name, part in parts.items() if isinstance(part, Module)
             for key, x in part.named_state() if x.changed and x.changed[0] > time}
    late = [(name, by) for name in now if name in noted or now[name] != sums.get(name)
            if "Module.to()" not in (by := noted.get(name, "an assignment to .data"))]
    return f"{late[0][1]} has changed {late[0][0]}" + f" and {len(late) - 1} more" * (len(late) > 1) if late else ""
