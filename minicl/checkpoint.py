"""Checkpoints: named arrays and JSON in one npz file, written atomically and read without pickle.

The file is a zip of uncompressed .npy members, so numpy.load can read it too: one member for each array, "meta" with
the JSON, and "digest", the SHA-256 of all others. Any change of a name or value after the save is an error.
"""

import hashlib
import io
import itertools
import json
import math
import os
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .backend import is_array, to_host
from .checks import is_of_minicl
from .distributed import World
from .files import json_bytes, write_atomically
from .folder import RunError
from .nn import Buffer, Module, Parameter
from .nn.module import RANDOM, held_inside
from .nn.spec import as_text, changed_texts, class_reads, class_texts, comparable, is_opaque, settings_of, spec_of
from .nn.state import arrays_in, iterators_in, require_state
from .optim import Optimizer
from .origin import changes
from .rng_state import rng_state
from .run_parts import GRADIENTS, Gradients, expanded, named_as, sums_of
from .state_values import DTYPES, CheckpointError, HasState, as_array, from_array, is_finite, kind_of, require_kept, state_of
from .tensor import owner_of
from .typing import HostArray, Rng

# Options that a resumed run may change.
NOT_COMPARED = ("out", "resume", "data_dir", "log_every", "log", "evaluate_every", "backend", "precision", "threads",
                "keep_memory", "capture")
FORMAT = 5                             # increased when the meaning of the content changes, or the meta of a Run


# ---------------------------------------------------------------- write

def save_checkpoint(path: Path, parts: Mapping[str, HasState], meta: dict[str, Any]) -> None:
    """Write the state of `parts`, {name: object with state_dict()}, and `meta`, a dict for JSON, to `path`.

    A state has arrays, and may have Python's numbers and lists of them: "python" in meta then has their types, with which
    restore() makes them again. Raises CheckpointError if the file cannot be written, and FloatingPointError if an array is
    not finite, other than gradients; an earlier checkpoint at `path` then stays intact.
    """
    values = state_of(parts)
    named = [(name, as_array(name, value)) for name, value in values]
    arrays = dict(named)
    kinds = {name: kind for name, value in values if (kind := kind_of(value)) != "array"}
    if len(arrays) < len(named):
        raise CheckpointError(f"cannot save {path}: two arrays have the same name; use names of parts without dots")
    for name, array in named:
        if not name.isprintable() or len(name) > 1000:                                   # zip files cut names at a NUL
            raise CheckpointError(f"cannot save {name[:100]!r}: expected a name of at most 1000 printable characters")
        if array.dtype.name not in DTYPES or not array.dtype.isnative:                   # what a load would refuse
            raise CheckpointError(f"cannot save {name}: expected an array of {', '.join(DTYPES)}, got {array.dtype}")
        if not _may_be_saved(name, array, kinds):
            raise FloatingPointError(f"{name} is not finite (NaN or infinity); nothing was saved, and {path} was not "
                                     "changed. Lower the learning rate, raise the temperature, or look for NaN in the input")
    for name, value in values:
        require_kept(name, value, arrays[name])
    if "format" in meta:
        raise CheckpointError("cannot save: meta must not have the key 'format', which is reserved")
    text = json.dumps({"format": FORMAT, **meta, **({"python": kinds} if kinds else {})}, allow_nan=False)
    arrays["meta"] = np.frombuffer(text.encode(), dtype=np.uint8)
    arrays["digest"] = np.frombuffer(digest(arrays), dtype=np.uint8)
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays))                    # type: ignore[arg-type]
    except OSError as error:
        kept = "the previous checkpoint is intact" if path.is_file() else "no checkpoint was written"
        raise CheckpointError(f"cannot save the checkpoint {path}: {error.strerror or error}; {kept}; free some space "
                              "or choose another --out") from error


def _may_be_saved(name, array, kinds):
    """Whether an array is finite, or gradients: the loop may leave out a step whose gradients are not."""
    return name.startswith(f"{GRADIENTS}.") or is_finite(array, kinds.get(name))


def digest(arrays: dict[str, HostArray]) -> bytes:
    """SHA-256 of the names, dtypes, shapes and bytes of arrays."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(array.reshape(-1).view(np.uint8))                                   # type: ignore[arg-type]
    return total.digest()


# ---------------------------------------------------------------- read

def load_checkpoint(path: Path) -> tuple[dict[str, HostArray], dict[str, Any]]:
    """The arrays {name: array} and the meta of the checkpoint at `path`.

    Raises CheckpointError if there is none, or if the file is not exactly what save_checkpoint wrote.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is a folder, or a device")
        with open(path, "rb") as raw, zipfile.ZipFile(raw) as file:
            arrays = _members(file, os.fstat(raw.fileno()).st_size)
        if arrays.pop("digest").tobytes() != digest(arrays):
            raise ValueError("its content is not what was saved")
        meta = _meta(arrays.pop("meta"), path)
        kinds = found if isinstance(found := meta.get("python"), dict) else {}
        for name, array in arrays.items():
            if not _may_be_saved(name, array, kinds):
                raise ValueError(f"{name} is not finite")
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; start a run without --resume first") from error
    except CheckpointError:
        raise
    except Exception as error:                               # zipfile, NumPy and json raise undocumented errors too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is not a readable minicl checkpoint ({reason}); it may be damaged, or another "
                              "kind of file") from error
    return arrays, meta


def _members(file, size):
    """{name: array} of a zip file of `size` bytes. No member may claim more than the file holds."""
    members = file.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise ValueError("its members are not arrays with unique names")
    if any(member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size for member in members) \
            or sum(member.file_size for member in members) > size:
        raise ValueError("its members do not have the lengths that they declare")
    return {member.filename.removesuffix(".npy"): _array(file.read(member)) for member in members}    # checks the CRC


def _array(data):
    """The array of a .npy file's bytes: its dtype and shape must account for every byte."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a member is not an array of .npy version 1")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.name not in DTYPES or not dtype.isnative or fortran_order:
        raise ValueError(f"expected members of {', '.join(DTYPES)}, got {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"a member of {len(data) - file.tell()} bytes is declared as {dtype} of shape {shape}")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _meta(array, path):
    def refuse(constant):
        raise ValueError(f"its meta contains {constant}")

    meta = json.loads(array.tobytes(), parse_constant=refuse)
    if not isinstance(meta, dict):
        raise ValueError("its meta is not a dict")
    if (found := meta.pop("format", None)) not in (2, 3, 4, FORMAT):         # 2 lacks modes and the state of a seed, 3 sums
        raise CheckpointError(f"{path} is a checkpoint of format {found!r:.20}, but this version of minicl reads format "
                              f"{FORMAT}: use the version that wrote it, or start again with another --out")
    return meta


def is_of_a_run(meta: dict[str, Any]) -> bool:
    """Whether meta has the entries of a Run, with valid types and ranges."""
    try:
        steps = [line["step"] for line in meta["log"]]
        return (all(type(n) is int for n in (meta["step"], meta["total"], *steps)) and type(meta["log"]) is list
                and 0 <= meta["step"] <= meta["total"] and type(meta["seconds"]) in (int, float)
                and 0 <= meta["seconds"] < math.inf
                and all(type(meta[key]) is dict for key in ("config", "rng", "data", "code", "settings"))
                and type(meta["name"]) is str and type(meta["config"].get("epochs", 1)) is int
                and meta["config"].get("epochs", 1) > 0
                and all(type(line) is dict and type(line.get("loss")) in (int, float, type(None)) for line in meta["log"])
                and all(low < high for low, high in itertools.pairwise([-1, *steps, meta["step"]])))
    except (TypeError, KeyError, AttributeError):
        return False


def require_same_run(meta: dict[str, Any], now: dict[str, Any], folder: Path, *, grows: bool,
                     log: Callable[[str], None]) -> None:
    """Raise unless the meta of the checkpoint in a folder is that of the run `now`, {"name", "config", "code"}; grows:
    whether it may have more epochs."""
    if not is_of_a_run(meta):
        raise CheckpointError(f"{folder / 'checkpoint.npz'} is not the checkpoint of a run; choose another --out")
    if meta["name"] != now["name"]:
        raise RunError(f"--resume: the checkpoint in {folder} was saved by {meta['name']}, but this is {now['name']}; name "
                       "another folder with --out")
    before, given = ({f"--{key.replace('_', '-')}": value for key, value in config.items() if key not in NOT_COMPARED}
                     for config in (meta["config"], now["config"]))
    for option in ("--batch", "--epochs"):                   # not given: as before
        if given.get(option, 0) is None and type(before.get(option)) is int:
            given[option] = before[option]
    earlier, epochs = before.get("--epochs"), given.get("--epochs") or 0
    if grows and type(earlier) is int and earlier < epochs:
        log(f"--epochs was {earlier}, now {epochs}: the remaining learning rates are those of a run of {epochs} epochs, "
            f"higher than those that a run of {earlier} would end with")
        before["--epochs"] = epochs
    if changed := changes(before, given):
        raise RunError(f"--resume: the checkpoint in {folder} is of a run with other options: {changed}. Give the same "
                       "options, or start again with another --out")
    if meta.get("stopped") and meta["step"] < meta["total"]:
        log(f"Run.stop() had ended this run after step {meta['step']} of {meta['total']}; it goes on")
    places = [config.get("data_dir") for config in (meta["config"], now["config"])]
    if not meta["data"] and places[0] != places[1]:          # else the data are compared, wherever they lie
        log(f"warning: --data-dir was {places[0]}, now {places[1]}, and Run.steps got no data, so it is not known whether "
            "they are the same")
    edited = [part for part in now["code"] if meta["code"].get(part) != now["code"][part]]
    if edited:                                               # perhaps a print, or a bug that ended the run: not refused
        log(f"warning: {' and '.join(edited)} changed since the checkpoint in {folder} was saved; what is left is computed "
            "by the new code")


# ---------------------------------------------------------------- restore

def specs_of(parts: Mapping[str, Any], log: Callable[[str], None]) -> dict[str, Any]:
    """{name: how minicl.load makes it again, or {"unknown": why it cannot}} of the Modules among parts."""
    specs = {}
    for name, part in parts.items():
        if isinstance(part, Module):
            try:
                specs[name] = spec_of(part)
            except ValueError as error:
                log(f"{name}: its weights are saved, but minicl.load will not be able to build it: {error}")
                specs[name] = {"unknown": str(error), "texts": class_texts(part), "reads": class_reads(part)}
    return specs


def edited_classes(before: Any, specs: Mapping[str, Any]) -> str:
    """The names of the classes whose text is not that of specs_of() before, and of what they read that is another number or
    text, as text; "" if there are none."""
    edited: list[str] = []
    for name, spec in specs.items():
        old = before.get(name) if isinstance(before, dict) else None
        if isinstance(old, dict):
            edited += changed_texts(old.get("texts"), spec.get("texts", {}))
            reads = found if isinstance(found := old.get("reads"), dict) else {}
            edited += [f"{key} (was {reads[key]}, now {text})" for key, text in spec.get("reads", {}).items()
                       if reads.get(key, text) != text]
    return ", ".join(dict.fromkeys(edited))


def settings(parts: Mapping[str, Any]) -> dict[str, str]:
    """{"model.steps.1.eps": "1e-05", "optimizer.lr": "0.1", ...} of the Modules and optimizers among parts, as text."""
    found: dict[str, str] = {}
    for name, part in parts.items():
        if isinstance(part, Module):
            found |= {f"{name}.{key}": text for key, text in settings_of(part).items()}
        elif isinstance(part, Optimizer):
            keys = [key for key in (*part._setting_ranges, *_own(part)) if hasattr(part, key)]
            if lost := [key for key in keys if any(iterators_in(getattr(part, key)))]:
                raise CheckpointError(f"Run.steps: {name}.{lost[0]} is or holds an iterator, whose position no checkpoint "
                                      "has; keep a list, or a function, and take its value by optimizer.steps")
            found |= {f"{name}.{key}": as_text(comparable(_content(getattr(part, key)))) for key in keys}
    return found


def require_no_generators(parts: Mapping[str, Any], rng: Rng) -> None:
    """Raise CheckpointError if an optimizer holds a random generator that is not the run's and is not in its state."""
    for name, part in parts.items():
        if isinstance(part, Optimizer) and type(part).state_dict is Optimizer.state_dict:
            for key in _own(part):
                if any(isinstance(item, RANDOM) and item is not rng for item in held_inside(getattr(part, key))):
                    raise CheckpointError(f"Run.steps: {name}.{key} is or holds a random generator, whose state no "
                                          "checkpoint has; give the optimizer the generator of run.steps()")


def unsaved_settings(parts: Mapping[str, Any]) -> dict[str, str]:
    """settings() without those that are in modes()."""
    saved = {f"{name}.{key}" for name, part in parts.items() if isinstance(part, Optimizer) for key in part._setting_ranges}
    saved |= {".".join(filter(None, (name, key, setting))) for name, part in parts.items() if isinstance(part, Module)
              for key, module in part.named_modules() for setting in getattr(type(module), "_scheduled", ())}
    return {key: text for key, text in settings(parts).items() if key not in saved}


def _own(optimizer):
    """The attributes that an optimizer's own class has added, other than views of its saved state."""
    if is_of_minicl(type(optimizer)):
        return []
    saved = {id(array) for array in (optimizer.values, optimizer.grads, *optimizer.state.values())}
    known = {*optimizer._known, *optimizer._setting_ranges, "_setting_ranges", "_is_sealed"}
    state = optimizer.state_dict() if type(optimizer).state_dict is not Optimizer.state_dict else {}     # may have more
    return sorted(key for key, value in vars(optimizer).items()
                  if key not in known and all(id(owner_of(x)) not in saved for x in arrays_in(_content(value)))
                  and not (key in state and is_array(state[key]) == is_array(value)
                           and np.array_equal(to_host(state[key]), to_host(value))))


def own_settings(optimizer: Optimizer) -> dict[str, Any]:
    """{name: value, with arrays in place of Modules and their parts} of what an optimizer's own class has added."""
    return {key: _content(getattr(optimizer, key)) for key in _own(optimizer)}


def _content(value):
    """An attribute of an optimizer, with arrays in place of Modules, Parameters and Buffers."""
    if isinstance(value, Module):
        return [x.data for _, x in value.named_state()]
    if isinstance(value, (Parameter, Buffer)):
        return value.data
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    value = vars(value) if isinstance(value, types.SimpleNamespace) else value
    return {key: _content(item) for key, item in value.items()} if isinstance(value, dict) else value


def require_alike(world: World, parts: Mapping[str, HasState], rng: Rng, step: int) -> None:
    """Raise RunError unless the state is the same on all processes, bit for bit."""
    if world.size == 1:
        return
    state = dict(state_of(parts))
    state["rng"] = json_bytes(rng_state(rng))
    if not world.alike(*state.values()):
        name = next(name for name, array in state.items() if not world.alike(array))
        raise RunError(f"after step {step}, {name} differs between processes: was model.across(world) called before the "
                       "optimizer was made, and do all processes draw the same random numbers?")


def restore(arrays: Mapping[str, HostArray], parts: Mapping[str, HasState], path: Path,
            meta: Mapping[str, Any] | None = None, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Load the arrays of a checkpoint into `parts`, {name: object with load_state_dict()}. Gradients become those of the
    checkpoint, or 0. Returns what the parts hold, by the names of the checkpoint, as named_as().

    meta: the checkpoint's. log: called with a warning if a load_state_dict() leaves out what it was given.

    Raises CheckpointError, and changes no part, unless all names, dtypes and shapes fit, and the settings are those in meta;
    None: they are not compared.
    """
    gradients = {key.removeprefix(GRADIENTS + "."): x for key, x in arrays.items() if key.startswith(GRADIENTS + ".")}
    arrays = {key: x for key, x in arrays.items() if not key.startswith(GRADIENTS + ".")}
    states = {part: thing.state_dict() for part, thing in parts.items()}
    expected = {f"{part}.{name}": np.asarray(array) for part, state in states.items() for name, array in state.items()}
    modules: list[tuple[str, Any]] = [(part, thing) for part, thing in parts.items() if isinstance(thing, Module)]
    trained = {f"{part}.{key}": x.changed[2] for part, module in modules for key, x in module.named_state()
               if x.changed and x.changed[2].endswith(".step()")}
    saved = {part: {key: x for key, x in arrays.items() if key.startswith(part + ".")} for part in parts}
    # the state of an object of another class may change its form
    free = tuple(f"{part}." for part in saved if saved[part] and not isinstance(parts[part], (Module, Optimizer)))
    fixed, wanted = ({key: x for key, x in state.items() if not key.startswith(free)} for state in (arrays, expected))
    try:
        require_state("run", fixed, wanted)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this run: it was saved from another model or optimizer:"
                              + str(error).partition(":")[2]) from error
    whole = expanded(parts)
    now = settings(whole)
    before = now if meta is None else meta["settings"]
    entries = ((meta or {}).get(key) for key in ("python", "sums", "late"))
    python, sums, late = (entry if isinstance(entry, dict) else {} for entry in entries)
    contents = {f"{name}.{own}": _content(getattr(part, own)) for name, part in whole.items() if isinstance(part, Optimizer)
                for own in _own(part)}
    scratch = {key for key, value in contents.items() if key not in before or [*arrays_in(value)]            # of np.empty
               or any(map(is_opaque, value if isinstance(value, list) else [value]))}
    if different := [f"{key} was {before.get(key)}, now {now.get(key)}" for key in {**before, **now}
                     if before.get(key) != now.get(key) and key not in scratch]:
        different.sort(key=len)                              # what can be read comes first
        more = f"; and {len(different) - 3} more" * (len(different) > 3)
        raise CheckpointError(f"{path} does not fit this run, it is of another model or optimizer: "
                              f"{'; '.join(different[:3])}{more}. Make the same ones, or start again with another --out")
    try:
        for part in parts:
            parts[part].load_state_dict({key.removeprefix(part + "."): from_array(x, python.get(key))
                                         for key, x in saved[part].items()})
    except Exception as error:
        for part, state in states.items():
            parts[part].load_state_dict(state)
        raise CheckpointError(f"{path} does not fit this run's {part}: {error}") from error
    whole = named_as({name: x for name, x in sums.items() if type(x) is int}, expanded(parts))
    try:
        Gradients(whole).load_state_dict(gradients)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from error
    if replaced := [name for name in trained if not np.array_equal(arrays[name], expected[name])]:
        log(f"warning: {trained[replaced[0]]} has changed {replaced[0]} in this process, and {path} has replaced it by "
            "earlier values; to go on from the new ones, start again with another --out")
    unsaved = found if isinstance(found := (meta or {}).get("unsaved"), list) else []
    if unsaved := [name for name in unsaved if isinstance(name, str)]:
        log(f"when this checkpoint was saved, the loop had made a {' and a '.join(unsaved)} that no part saves; if a later "
            "step uses it, this run goes on in another way than an uninterrupted one")
    there = dict(state_of(parts))
    lost = [name for name, array in arrays.items() if kind_of(there.get(name)) != python.get(name, "array")
            or (x := as_array(name, there[name])).dtype != array.dtype or not np.array_equal(x, array)]
    if lost:
        log(f"warning: {lost[0]} is not as the checkpoint has it after load_state_dict(), so this run may go on in another "
            "way than an uninterrupted one; load_state_dict() must set all that state_dict() gives")
    there_now = sums_of(whole)
    if not lost and (other := [name for name, then in sums.items() if there_now.get(name) != then]):
        log(f"warning: {other[0]} has other values after load_state_dict() than at the checkpoint, so this run may go on in "
            "another way than an uninterrupted one; let state_dict() and load_state_dict() have all that it changes")
    if different := [f"{key} was {late[key]}, now {text}" for key, text in unsaved_settings(whole).items()
                     if late.get(key, text) != text]:
        log(f"warning: after load_state_dict() what the loop had made is not as it was: {different[0]}; keep what changes "
            "in a Buffer, or let load_state_dict() set it")
    return whole
