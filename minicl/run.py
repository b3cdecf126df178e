"""What every training script shares around its method.

    args = options(__doc__, epochs=6, ...).parse_args()      minicl.options: the options of every script
    run = Run(args, "simclr_mnist")                  the --out folder: config.json, log.jsonl, checkpoint.npz, result.json
    for step in run.steps(total, ...):               progress, signals, checkpoints, --resume
        ...
        if run.logs(step):
            run.log(step, loss=...)
    run.finish(result)
    command(main)                                    errors as one line, signals as exit codes
"""

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from .backend import BackendError, available_memory_only
from .checkpoint import CheckpointError, HasState, load_checkpoint, restore, save_checkpoint
from .console import lasting_output
from .data import DataError
from .files import remove_parts, write_atomically, write_json
from .folder import OwnFolder, RunError
from .signals import Stopped, signals_noted, signals_stop
from .typing import Rng

# Options that a resumed run may change.
NOT_COMPARED = ("out", "resume", "data_dir", "log_every", "backend", "precision", "threads", "keep_memory")

OUT_OF_MEMORY = ("give a smaller --batch, which nearly all of it grows with, or a smaller encoder, and data in "
                 "float32. Tiles of scores (minicl.backend.tile_size) and a GPU's convolutions "
                 "(minicl.ops.columns.COLUMN_BYTES) take up to 256 MiB each; --precision tf32 saves time, not memory")


def command(main: Callable[[], int | None]) -> NoReturn:
    """Run main() as a program and exit with its code.

    An error that the user can correct becomes one line on stderr and exit code 2; SIGINT (Ctrl-C), SIGTERM and SIGHUP
    become exit code 128 + their number. Output that nobody can read does not end the program.
    """
    received: list[int] = []
    with lasting_output():
        try:
            with signals_stop() as received, available_memory_only():
                sys.exit(main())
        except SystemExit:
            raise
        except BaseException as error:
            if received or isinstance(error, KeyboardInterrupt):     # whatever a signal's exception has turned into
                stopped = Stopped(*received[:1])
                message, code = f"\n{stopped}", stopped.exit_code
            elif isinstance(error, MemoryError):             # NumPy's own, and CuPy's OutOfMemoryError is one
                message, code = f"error: out of memory ({error}); {OUT_OF_MEMORY}", 2
            elif isinstance(error, (BackendError, CheckpointError, DataError, RunError, FloatingPointError, OSError)):
                message, code = f"error: {error}", 2
            else:
                raise
            print(message, file=sys.stderr)
            sys.exit(code)


class Run:
    """One training run and its folder, which no other run may use before this one has ended.

    args  the parsed options; all of them are recorded in config.json
    name  of the script; without --out the folder is runs/name, or runs/name-2, runs/name-3, ...

    A run that fails before its first step is done leaves no folder.
    Raises RunError or CheckpointError.
    """

    def __init__(self, args: argparse.Namespace, name: str):
        self.config = dict(vars(args))
        self.name, self.log_every = name, args.log_every
        self.step, self.seconds = 0, 0.0                     # steps done and time in training, earlier sessions included
        self._log: list[dict] = []
        self._has_begun = False
        self._saved: tuple[dict, dict] | None = None
        self._started, self._earlier = time.perf_counter(), 0.0
        if args.resume and not args.out:
            raise RunError("--resume goes on from the checkpoint in a folder: name it with --out")
        if args.resume and not Path(args.out).exists():
            load_checkpoint(Path(args.out) / "checkpoint.npz")                           # raises
        own = OwnFolder(args.out, name)
        self.folder, self.close = own.path, own.close
        self.checkpoint = self.folder / "checkpoint.npz"
        self._own = own                                      # a run that is dropped leaves its folder
        try:
            if not own.is_held:
                self.print(f"{self.folder}: its file system has no locks; let no other run write there")
            remove_parts(self.folder)
            if args.resume:
                self._saved = load_checkpoint(self.checkpoint)
                self._compare(self._saved[1])
                self._log = self._saved[1]["log"]
            elif self.checkpoint.exists() or (self.folder / "result.json").exists():
                raise RunError(f"--out {self.folder} already holds a run; go on with it by --resume, or choose another "
                               "folder")
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------- resume

    def _compare(self, meta):
        """Raise unless the meta of a checkpoint is that of a run, and of this one."""
        try:
            is_valid = (0 <= meta["step"] <= meta["total"] and 0 <= meta["seconds"] < math.inf
                        and type(meta["step"]) is type(meta["total"]) is int
                        and all(isinstance(meta[key], dict) for key in ("config", "rng", "data"))
                        and isinstance(meta["name"], str) and isinstance(meta["log"], list)
                        and all(0 <= line["step"] < meta["step"] for line in meta["log"]))
        except (TypeError, KeyError):
            is_valid = False
        if not is_valid:
            raise CheckpointError(f"{self.checkpoint} is not the checkpoint of a run; choose another --out")
        if meta["name"] != self.name:
            raise RunError(f"--resume: the checkpoint in {self.folder} is of {meta['name']}, this is {self.name}; name "
                           "another folder with --out")
        before, now = ({f"--{key.replace('_', '-')}": value for key, value in config.items() if key not in NOT_COMPARED}
                       for config in (meta["config"], self.config))
        changed = _changes(before, now)
        if changed:
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run with other options: {changed}. Give the "
                           "same options, or start anew with another --out")

    def _restore(self, total, data, rng, parts):
        """Take up the saved state: everything, or nothing if something does not fit."""
        arrays, meta = self._saved
        changed = _changes(meta["data"], data)
        if changed:
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run on other data: {changed}. Name the same "
                           "data with --data and --data-dir, or start anew with another --out")
        if meta["total"] != total:
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run of {meta['total']} steps, this one has "
                           f"{total}; start anew with another --out")
        try:
            type(rng.bit_generator)().state = meta["rng"]    # raises before anything is changed
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise CheckpointError(f"{self.checkpoint} does not fit this run's rng: {error}") from error
        restore(arrays, parts, self.checkpoint)
        rng.bit_generator.state = meta["rng"]
        self.step, self.seconds, self._earlier = meta["step"], meta["seconds"], meta["seconds"]
        self._saved = None

    # ---------------------------------------------------------------- the loop

    def steps(self, total: int, rng: Rng, *, save_every: int, data: Any = None, **parts: HasState) -> Iterator[int]:
        """Yield the steps still to do, of `total`. Around them: progress, checkpoints, signals.

        rng         the numpy Generator that the loop draws from; its state is part of the checkpoint
        save_every  steps between checkpoints; one is also written at the end, and when a signal asks the run to end
        data        what it trains on, a dataclass of arrays such as ImageData; --resume refuses other data
        parts       all else that the loop changes: objects with state_dict() and load_state_dict()

        A checkpoint is taken between two steps, so a resumed run computes the same numbers as an uninterrupted one.
        """
        fingerprints = fingerprint(data)
        if self._saved:
            self._restore(total, fingerprints, rng, parts)
            self._begin()
        started = time.perf_counter()
        before, self.total = self.seconds, total

        def save():
            self._own.require_owned()
            self._begin()
            self.seconds = before + time.perf_counter() - started
            save_checkpoint(self.checkpoint, parts, {
                "name": self.name, "step": self.step, "total": total, "seconds": self.seconds, "config": self.config,
                "data": fingerprints, "rng": rng.bit_generator.state, "log": self._log})

        with signals_noted() as signals, self._progress() as self._bar:
            while self.step < total:
                yield self.step
                self.step += 1
                self._bar.update()
                if signals or self.step % save_every == 0 or self.step == total:
                    save()
                if signals:                                  # perhaps only while saving
                    self.print(f"interrupted after step {self.step} of {total}; go on with --resume --out "
                               + shlex.quote(str(self.folder)))
                    self.close()
                    raise Stopped(signals[0])

    def _begin(self):
        """The first files in the folder, once a step was computed."""
        if not self._has_begun:
            write_json(self.folder / "config.json", self.config)
            lines = "".join(json.dumps(line) + "\n" for line in self._log)
            write_atomically(self.folder / "log.jsonl", lambda file: file.write(lines.encode()))
            self._has_begun = True

    def _progress(self):
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        return tqdm(total=self.total, initial=self.step, unit="step", disable=not is_terminal, smoothing=0.05)

    # ---------------------------------------------------------------- the log and the result

    def logs(self, step: int) -> bool:
        """Whether this step's metrics are logged. Not every step's are, because reading them makes a GPU wait."""
        return step % self.log_every == 0 or step == self.total - 1

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to log.jsonl and show it.

        Raises FloatingPointError if metrics["loss"] is not finite.
        """
        self._own.require_owned()
        line = _finite({"step": step, **metrics})
        try:
            self._begin()
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.folder / 'log.jsonl'}: {error.strerror}; free some space, and go on with "
                           "--resume") from error
        self._log.append(line)
        shown = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in metrics.items())
        if self._bar.disable:
            self.print(f"step {step + 1}/{self.total}  {shown}")
        else:
            self._bar.set_postfix_str(shown)
        loss = metrics.get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}; lower --lr, raise --tau, or look for NaN in the "
                                     f"input; {self.folder} keeps the log, and the last checkpoint if there is one")

    def elapsed(self) -> float:
        """Seconds since the run began; of sessions before --resume only their training."""
        return self._earlier + time.perf_counter() - self._started

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log as dicts. They are part of the checkpoint, so a lost log.jsonl does not matter."""
        return [dict(line) for line in self._log]

    def print(self, text: str) -> None:
        """Print a line that does not tear the progress bar."""
        if sys.stdout is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def finish(self, result: dict[str, Any], notes: Sequence[str] = ()) -> None:
        """Write result.json, {name: number, or None where unknown}, print it as a table, and end the run."""
        self._own.require_owned()
        result = _finite(result)
        write_json(self.folder / "result.json", result)
        width = max(map(len, result))
        table = [f"  {key:<{width}}  " + (f"{value:.4f}" if isinstance(value, float) else str(value))
                 for key, value in result.items()]
        self.print("\n".join(["", *table, *notes, f"everything is in {self.folder}"]))
        self.close()


def fingerprint(data: Any) -> dict[str, str]:
    """{field: its dtype, shape and SHA-256, or its text} of a dataclass of arrays; {} of None."""
    if data is None:
        return {}

    def describe(value):
        if not isinstance(value, np.ndarray):
            return str(value)
        digest = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8)).hexdigest()
        return f"{value.dtype} {value.shape} {digest[:32]}"

    return {field.name: describe(getattr(data, field.name)) for field in dataclasses.fields(data)}


def _changes(before, now):
    """What differs in two dicts, as text, "" if nothing does."""
    return "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in {**before, **now}
                     if key not in before or key not in now or before[key] != now[key])


def _finite(value):
    """A value for JSON, which has no NaN and no infinity: None stands for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):                               # NumPy's and CuPy's scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
