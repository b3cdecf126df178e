"""The parts that all training scripts share.

    args = options(__doc__, epochs=6, ...).parse_args()      minicl.options: the options of every script
    world = get_world(args.backend)                  minicl.distributed: the processes of mpirun, or this one alone
    run = Run(args, "simclr_mnist", world)           the --out folder: config.json, log.jsonl, checkpoint.npz, result.json
    for step in run.steps(total, ...):               progress, signals, checkpoints, --resume
        ...
        if run.logs(step):
            run.log(step, loss=...)
    run.finish(result)
    command(main)                                    errors as one line, signals as exit codes

With several processes the first one reads, writes and prints. A signal to one stops all after the same step, and if one
fails, all end, since the others would wait for it.
"""

import argparse
import copy
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

import numpy as np
from tqdm import tqdm

from .backend import available_memory_only
from .checkpoint import (CheckpointError, HasState, edited_classes, load_checkpoint, require_alike, require_no_generators,
                         require_same_run, restore, save_checkpoint, settings, specs_of)
from .checks import require_bool, require_integers
from .console import BAR_COLUMNS, fitting, lasting_output, terminal_columns, wrapped
from .distributed import ALONE, World, current, hold_signals, launched
from .ending import as_python_says, closing, end_all, failure, leave
from .files import Table, finite, json_bytes, remove_parts, write_atomically, write_json
from .folder import OwnFolder, RunError, require_unused
from .loop_state import Loop, changed_after, checksums, moved_before, once
from .modes import modes, restore_modes
from .origin import Watched, changes, code, plain_options, require_options
from .rng_state import load_rng_state, require_rng_state, require_storable, rng_state
from .run_parts import expanded, renewed
from .signals import Stopped, signals_noted, signals_stop
from .tensor import clock
from .typing import Rng

Result = TypeVar("Result")
_trained: WeakSet["Run"] = WeakSet()                         # runs that have no result yet


def command(main: Callable[[], int | None], *, alone: bool = False) -> NoReturn:
    """Run main() as a program and exit with its code. alone: refuse several processes.

    An error that the user can correct becomes one line on stderr and exit code 2; SIGINT (Ctrl-C), SIGTERM and SIGHUP
    become exit code 128 + their number. A closed or full stdout does not end the program.
    """
    received: list[int] = []
    with lasting_output():
        try:
            with signals_stop() as received, available_memory_only():
                if alone and launched() > 1:
                    raise RunError(f"this script runs in one process, but {launched()} were started, which would write "
                                   "the same files; start it without mpirun or srun")
                code: Any = main()
                current().wait()                             # the first process may still evaluate, draw and write
        except BaseException as error:
            message, code = failure(error, received)
            if current().size > 1 and not (isinstance(error, Stopped) and error.by_all):
                end_all(message or as_python_says(error), code)
            if message is None:
                raise
            if current().rank == 0:
                print("\n".join([message, *(run._keeps() for run in _trained)]), file=sys.stderr)
        if current().size > 1:
            hold_signals()                                   # for good: MPI ends after this
        sys.exit(code)


class Run:
    """One training run and its folder, which no other run may use at the same time.

    args   the parsed options; all of them are recorded in config.json
    name   of the script; without --out the folder is runs/name, or runs/name-2, runs/name-3, ...
    world  the processes that train together, each on its part of every batch. All make the same calls
    divided  options whose values are totals over the processes, and so must be multiples of their number
    grows  whether --resume may have more --epochs than before

    A run that fails before its first step is done leaves no folder. Raises RunError or CheckpointError.
    """

    def __init__(self, args: argparse.Namespace, name: str, world: World = ALONE, *,
                 divided: Sequence[str] = ("batch", "chunk"), grows: bool = True):
        require_bool("Run", grows=grows)
        if world.size < current().size:
            raise RunError(f"this is process {current().rank} of {current().size}, and each would make its own run; "
                           f"pass the world that get_world() returned: Run(args, {name!r}, world)")
        require_options(args, divided, world.size)
        places = {key: os.path.abspath(path) for key in ("data_dir", "captions") if (path := getattr(args, key, None))}
        self.config = plain_options({**vars(args), **places})            # config.json is read in other current folders too
        self._args, self._places, self.log_every = args, places, args.log_every
        self.name, self.world, self.is_first = name, world, world.rank == 0
        self._shown_from, self._has_begun = 0, False         # the next step whose line of the log may be shown
        self._log: list[dict] = []
        self._loop = ""                                      # then "running", perhaps "stopping", and "over"
        self._kept: tuple = 0, None, 0, {}                   # the last checkpoint: step, loop, when, checksums
        self._table: Table | None = None
        self._saved: tuple[dict, dict] | None = None
        self._code = code(sys._getframe(1).f_code.co_filename)
        self._started = time.perf_counter()
        self.folder, self.close = Path(), lambda: None
        if self.is_first:
            self._open(args, grows)
        self.folder, self._saved, self._log = world.share((self.folder, self._saved, self._log))
        self.checkpoint = self.folder / "checkpoint.npz"
        meta = self._saved[1] if self._saved else {"step": 0, "seconds": 0.0}
        self.step, self.seconds, self._earlier = meta["step"], meta["seconds"], meta["seconds"]          # done; in training
        for option in ("batch", "epochs"):
            if getattr(args, option, 0) is None and self._saved:             # not given: as before
                self.config[option] = vars(args)[option] = self._saved[1]["config"].get(option)
        if world.size > 1:
            part = f"{args.batch // world.size} of a batch's {args.batch} items" if args.batch else "a part of each batch"
            self.print(f"{world.size} processes, each with {part}")

    def _open(self, args, grows):
        """Lock the folder, and read the checkpoint in it."""
        if args.resume and not args.out:
            raise RunError("--resume continues from the checkpoint in a folder: name it with --out")
        if args.resume and not Path(args.out).exists():
            load_checkpoint(Path(args.out) / "checkpoint.npz")                           # raises
        own = self._own = OwnFolder(args.out, self.name)     # a run that is dropped leaves its folder
        self.folder, self.close = own.path, own.close
        closing.append(own.close)
        self.checkpoint = self.folder / "checkpoint.npz"
        try:
            if not own.is_held:
                self.print(f"{self.folder}: its file system has no locks; let no other run write there")
            remove_parts(self.folder)
            if args.resume:
                self._saved = load_checkpoint(self.checkpoint)
                require_same_run(self._saved[1], {"name": self.name, "config": self.config, "code": self._code}, self.folder,
                                 grows=grows, log=self.print)
                self._log = self._saved[1]["log"]
            else:
                require_unused(self.folder, self.name, self.config)
        except BaseException:
            self.close()
            raise

    def _changed_options(self):
        now = {key: vars(self._args).get(key, value) for key, value in self.config.items()}
        return changes(self.config, plain_options(now | self._places))

    # ---------------------------------------------------------------- resume

    def _restore(self, total, watched, rng, parts, whole, at_begin):
        """Load the saved state: everything, or nothing if something does not fit. Returns whole, with what was made anew."""
        arrays, meta = self._saved
        if changed := watched.differences(meta["data"]):
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run on other data: {changed}. Name the same "
                           "data with --data and --data-dir, or start again with another --out")
        if meta["total"] * self.config.get("epochs", 1) != total * meta["config"].get("epochs", 1):
            was, now = (f" in {n} epochs" * bool(n) for n in (meta["config"].get("epochs"), self.config.get("epochs")))
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run of {meta['total']} steps{was}, but this "
                           f"one has {total}{now}; start again with another --out")
        try:
            require_rng_state(rng, meta["rng"])
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise CheckpointError(f"{self.checkpoint} does not fit this run's rng: {error}") from error
        named = restore(arrays, parts, self.checkpoint, meta, self.print)
        load_rng_state(rng, meta["rng"])
        restore_modes(named, at_begin, meta.get("modes"), self.print)
        self._saved = None
        return renewed(whole, parts)

    # ---------------------------------------------------------------- the loop

    def steps(self, total: int, rng: Rng, *, save_every: int, data: Any = None, **parts: HasState) -> Iterator[int]:
        """Yield the remaining steps of `total`, with progress, checkpoints and signals in between.

        rng         the numpy Generator that the loop draws from; its state is part of the checkpoint
        save_every  steps between checkpoints; one is also written at the end, and on a signal
        data        the training data, a dataclass of arrays such as ImageData; --resume refuses other data
        parts       everything else that the loop changes: objects with state_dict() and load_state_dict()

        A checkpoint is taken between two steps, so a resumed run computes the same numbers as an uninterrupted one. While
        keys wait for MoCo's update(), or gradients of several processes for step(), it is put off. It does not depend on how
        many processes there are. Raises RunError if they differ in their state when one is taken; CheckpointError after a
        step if an optimizer has moved what is in no part's state, or is in none itself, or a target or Queue is in none.
        """
        require_storable("Run.steps", rng)
        return self._steps(total, rng, save_every, data, parts, rng_state(rng))

    def _steps(self, total, rng, save_every, data, parts, state):
        if self._loop:
            raise RunError("Run.steps was called before: a Run has one loop, which --resume continues. Choose in its body, "
                           "as by `if step < 100:`, or make a second Run with another --out")
        require_integers("Run.steps", 1, total=total, save_every=save_every)
        if rng_state(rng) != state:
            raise RunError("rng has drawn between run.steps(...) and its first step, which --resume would repeat: draw in "
                           "the loop's body, and in zip() write run.steps(...) first")
        if changed := self._changed_options():
            raise RunError(f"options were changed after Run(args, ...), and config.json would have the first: {changed}; "
                           "change them before that")
        watched = Watched(data)
        if not self.world.alike(json_bytes([watched.fingerprint, int(total), self.config])):
            raise RunError("the processes have different data or options; load the data by run.once(load_images, ...), and "
                           "start all processes with the same options")
        if (batch := self.config.get("batch")) and (n := len(getattr(data, "train_images", ()))) % batch > n // 10:
            self.print(f"each epoch leaves out {n % batch} of the {n} training images, other ones each time: {n} is "
                       f"not a multiple of --batch {batch}")
        grown = bool(self._saved) and self._saved[1]["total"] < total
        require_no_generators(whole := expanded(parts), rng)
        self.total, made, specs, at_begin = int(total), settings(whole), specs_of(parts, self.print), modes(whole)
        if self._saved:
            if edited := edited_classes(self._saved[1].get("models"), specs):
                self.print(f"warning: {edited} changed since the checkpoint was saved; the rest is computed by the new code")
            whole = self._restore(total, watched, rng, parts, whole, at_begin)
        elif earlier := moved_before(whole):
            self.print(earlier)
        self._loop, before, first, started = "running", self.seconds, self.step, time.perf_counter()
        loop, due, whole = Loop(parts, whole, self.print), 0, {}   # due: the step after which a checkpoint was first wanted
        self.log_every = every = self.log_every or max(1, min(50, total // 20))          # 20 lines of a short run

        def save():
            unsaved = loop.check()
            require_alike(self.world, parts, rng, self.step)
            self.seconds = before + time.perf_counter() - started
            if self.is_first:
                save_checkpoint(self.checkpoint, parts | loop.gradients(self.world.size), {
                    "name": self.name, "step": self.step, "total": self.total, "stopped": self._loop == "stopping",
                    "seconds": self.seconds, "config": self.config, "data": watched.fingerprint, "code": self._code,
                    "models": specs, "settings": made, **loop.meta(at_begin, made), "rng": rng_state(rng), "log": self._log})
                self._begin()
                loop.tell({
                    "what no part saves": unsaved,
                    "settings": [*once(self._changed_options()), *loop.changed()],
                    "the run": once(f"run.log_every was {every}, now {self.log_every}" * (every != self.log_every)),
                    "the arrays of data": once(watched.changes(now=self.step == total or bool(signals)))})
            self._kept = self.step, loop, next(clock), checksums(loop.whole)
            self.world.wait()

        bar = tqdm(total=total, initial=self.step, unit="step", smoothing=0.05,
                   disable=not (self.is_first and terminal_columns(sys.stderr)))
        with loop, signals_noted() as signals, bar as self._bar:
            if grown:                                        # so a later --resume without --epochs has as many
                save()
            elif self.step:
                self._begin()
            while self.step < total and self._loop != "over":
                loop.begin_step()
                try:
                    yield self.step
                except GeneratorExit:                        # break, return or an error in the loop
                    leave(self.world, self.step, 5 + 3 * (time.perf_counter() - started) / (1 + self.step - first))
                    raise
                self.step += 1
                self._bar.update()
                if self.step == first + 1:
                    loop.check()
                ends = bool(signals) or self._loop == "stopping"
                due = due or self.step * (self.world.any(ends) or self.step % save_every == 0)
                waits = bool(due) and loop.waits(self.step - due, max(100, save_every), self.world.size)
                if self.step < total and (not due or self.world.any(waits)):
                    continue
                save()
                due = 0
                if self.world.any(bool(signals)):            # all stop after this step, or none
                    self.print(f"interrupted after step {self.step} of {total}; continue with the same options and "
                               f"--resume --out {shlex.quote(str(self.folder))}")
                    self.close()
                    number = self.world.all_gather(np.array([*signals[:1], 0][:1])).max()
                    raise Stopped(int(number), by_all=True)
                self._loop = "over" if self.world.any(self._loop == "stopping") else self._loop

        self._loop = "over"
        _trained.add(self)                                   # until finish()

    def stop(self) -> None:
        """End the loop after this step, as for early stopping: with a checkpoint, unlike `break`. --resume would go on."""
        if self._loop in ("", "over"):
            raise RunError("Run.stop ends the loop over run.steps(): call it in its body")
        self._loop = "stopping"

    def _keeps(self):
        return (f"training is complete: {self.folder} keeps its checkpoint, its log and the pictures drawn so far; go on "
                f"with the same options and --resume --out {shlex.quote(str(self.folder))}")

    def _begin(self, again=False):
        """The first files in the folder, once a step was computed."""
        if self.is_first:
            self._own.require_owned()
        if self.is_first and self._has_begun == again:
            write_json(self.folder / "config.json", {"script": self.name, **self.config})
            if not self.config.get("resume"):                # of a run that ended before its first checkpoint
                (self.folder / "log.csv").unlink(missing_ok=True)
            if self.step < self.total:                       # of fewer epochs, in a run that is resumed for more
                (self.folder / "result.json").unlink(missing_ok=True)
            lines = "".join(json.dumps(line) + "\n" for line in self._log)
            write_atomically(self.folder / "log.jsonl", lambda file: file.write(lines.encode()))
            if self.config.get("log") == "csv" or self.config.get("resume") and (self.folder / "log.csv").exists():
                self._table = Table(self.folder / "log.csv", self._log)
            self._has_begun = True

    # ---------------------------------------------------------------- the log and the result

    def logs(self, step: int) -> bool:
        """Whether this step's metrics are logged. Most are not, because reading them makes a GPU wait."""
        return step % self.log_every == 0 or step == self.total - 1 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after this step, every --evaluate-every epochs."""
        every = self.config.get("evaluate_every")
        return bool(every) and (step + 1) % (every * (self.total // self.config["epochs"])) == 0

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to log.jsonl and show it.

        Raises FloatingPointError if metrics["loss"] is not finite, TypeError if it is not a number, RunError if it differs
        between processes, and ValueError unless the step is the one that is computed, and it has no line yet.
        """
        if step != self.step or self._log and self._log[-1]["step"] >= step:
            raise ValueError(f"Run.log: expected one line for the current step, {self.step}, got step "
                             f"{step}" + " again; give all metrics in one call" * (step == self.step))
        loss = metrics.get("loss", 0.0)
        loss = loss.tolist() if hasattr(loss, "tolist") else loss                        # of NumPy or CuPy
        if type(loss) not in (int, float):
            raise TypeError(f"Run.log: loss must be a number, got {loss!r:.100}; of a Tensor give loss.item()")
        line = finite({"step": self.step, **metrics})
        if not self.world.alike(json_bytes(line.get("loss"))):
            raise RunError(f"the loss of step {step} differs between processes: it must be that of the whole batch; pass "
                           "world=world to the loss, or use minicl.distributed.mean_of(loss, world=world)")
        if self.is_first:
            self._write(line)
        self._log.append(line)
        shown = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()]
        if self._bar.disable and (step >= self._shown_from or step == self.total - 1 or self.evaluates(step)):
            self._shown_from = step + self.total // 100      # of a long run about 100 lines are shown; all are logged
            self.print("  ".join([f"step {self.step + 1}/{self.total}", *shown]))
        elif not self._bar.disable:
            self._bar.set_postfix_str(fitting(shown, terminal_columns(sys.stderr) - BAR_COLUMNS))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}; lower --lr, raise --tau, or look for NaN in the "
                                     f"input; {self.folder} keeps the log, and the last checkpoint if there is one")

    def _write(self, line):
        try:
            self._begin()
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            if self._table:
                self._table.write([*self._log, line])
        except OSError as error:
            raise RunError(f"cannot write {error.filename or self.folder / 'log.jsonl'}: {error.strerror}; free some space, "
                           "and continue with --resume") from error

    def once(self, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """function(*args, **options), computed by the first process; the others sleep, and get the same value."""
        value = function(*args, **options) if self.is_first else None
        self.world.wait()
        return self.world.share(value)

    def elapsed(self) -> float:
        """Seconds since the run began; for sessions before --resume only their training time."""
        return self._earlier + time.perf_counter() - self._started

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log as dicts. They are part of the checkpoint, so a lost log.jsonl does not matter."""
        return copy.deepcopy(self._log)

    def print(self, text: str) -> None:
        """Print a line without disturbing the progress bar; it is wrapped in a terminal, and whole in a file."""
        if self.is_first and sys.stdout is not None:
            tqdm.write(wrapped(text, terminal_columns(sys.stdout)), file=sys.stdout)
            sys.stdout.flush()

    def finish(self, result: dict[str, Any], notes: Sequence[str] = ()) -> None:
        """Write result.json, {name: number, or None where unknown}, print it as a table, and end the run."""
        _trained.discard(self)
        if self._loop in ("running", "stopping"):
            raise RunError(f"Run.finish: the loop over run.steps() was left in step {self.step} of {self.total}: the last "
                           f"checkpoint is of step {self._kept[0]}, not of this result's model. End it by run.stop(), "
                           "not break or return; in zip() the other iterator was too short. --resume goes on from there")
        if changed := changed_after(*self._kept[1:]):
            self.print(f"warning: {changed} after the last checkpoint was saved, so it has another model than this result")
        if changed := self._changed_options():
            self.print(f"warning: options were changed after Run(args, ...), and config.json has the first: {changed}")
        if not self.is_first:
            return
        self._begin(again=True)                              # the log's files may have been edited meanwhile
        write_json(self.folder / "result.json", result := finite(result))
        width = max(map(len, result), default=0)
        table = [f"  {key:<{width}}  " + (f"{value:.4f}" if isinstance(value, float) else str(value))
                 for key, value in result.items()]
        notes = [wrapped(note, terminal_columns(sys.stdout) or 80) for note in notes]
        self.print("\n".join(["", *table, *notes, f"everything is in {self.folder}; docs/runs.md explains its files"]))
        self.close()
