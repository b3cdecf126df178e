"""What every training script shares around its method.

    args = options(__doc__, epochs=6, ...).parse_args()      minicl.options: the options of every script
    run = Run(args, "simclr_mnist")                  the --out folder: config.json, log.jsonl, checkpoint.npz, result.json
    for step in run.steps(total, ...):               progress, Ctrl-C, checkpoints, --resume
        ...
        if run.logs(step):
            run.log(step, loss=...)
    run.finish(result)
    command(main)                                    errors as one line, Ctrl-C as exit code 130
"""

import contextlib
import json
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from .backend import BackendError
from .checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from .data import DataError
from .files import write_atomically, write_json

# Options that a resumed run may change.
NOT_COMPARED = ("out", "resume", "data_dir", "log_every", "backend", "precision", "threads", "keep_memory")

OUT_OF_MEMORY = ("give a smaller --batch, which nearly all of it grows with, or a smaller encoder, and data in "
                 "float32. Tiles of scores (minicl.backend.tile_size) and a GPU's convolutions "
                 "(minicl.ops.columns.COLUMN_BYTES) take up to 256 MiB each; --precision tf32 saves time, not memory")


class RunError(RuntimeError):
    """The run cannot start or go on; the message says why and what to do."""


def command(main):
    """Run main(), turning what a user can mend into one line on stderr and exit code 2, and Ctrl-C into 130."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (BackendError, CheckpointError, DataError, RunError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:                             # NumPy's own, and CuPy's OutOfMemoryError is one
        print(f"error: out of memory ({error}); {OUT_OF_MEMORY}", file=sys.stderr)
        sys.exit(2)


# ---------------------------------------------------------------- the run

class Run:
    """One training run and its folder.

    args  the parsed options; all of them are recorded in config.json
    name  of the script: where the folder goes if there is no --out
    """

    def __init__(self, args, name):
        self.config = {key: value for key, value in vars(args).items()}
        self.log_every = args.log_every
        self.seconds, self.step = 0.0, 0                     # training time and steps done, earlier sessions included
        self._started, self._earlier = time.perf_counter(), 0.0
        if args.resume and not args.out:
            raise RunError("--resume goes on from the checkpoint in a folder: name it with --out")
        self.folder = Path(args.out) if args.out else _new_folder(name)
        self.checkpoint = self.folder / "checkpoint.npz"
        self._saved = load_checkpoint(self.checkpoint) if args.resume else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / ".writable", lambda file: file.write(b""))
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise RunError(f"--out {self.folder}: cannot write there ({error.strerror}); choose another folder") from error
        if self._saved:
            self._compare(self._saved[1])
        elif self.checkpoint.exists() or (self.folder / "result.json").exists():
            raise RunError(f"--out {self.folder} already holds a run; go on with it by --resume, or choose another folder")

    def _compare(self, meta):
        if not {"step", "seconds", "config", "rng"} <= meta.keys():
            raise CheckpointError(f"{self.checkpoint} is no checkpoint of a run; choose another --out")
        before = meta["config"]
        changed = [f"--{key.replace('_', '-')} was {before.get(key)}, now {value}" for key, value in self.config.items()
                   if key not in NOT_COMPARED and before.get(key) != value]
        if changed:
            raise RunError(f"--resume: the checkpoint in {self.folder} is of a run with other options: "
                           + "; ".join(changed) + ". Give the same options, or start anew with another --out")

    def steps(self, total, *, save_every, rng, **parts):
        """Yield the steps still to do, of `total`. Around them: progress, checkpoints, Ctrl-C.

        save_every  steps between checkpoints (one is also written at the end, and at Ctrl-C)
        rng         the numpy Generator that the loop draws from; its state is part of the checkpoint
        parts       what else is: objects with state_dict() and load_state_dict()
        A checkpoint is taken between two steps, never within one, so going on from it gives the same numbers.
        """
        if self._saved:
            arrays, meta = self._saved
            if meta.get("total", total) != total:
                raise RunError(f"--resume: the checkpoint in {self.folder} is of a run of {meta['total']} steps, this one has "
                               f"{total}: other data was found? Name it with --data, or start anew with another --out")
            restore(arrays, parts, self.checkpoint)
            rng.bit_generator.state = meta["rng"]
            self.step, self.seconds, self._saved = meta["step"], meta["seconds"], None
            self._earlier = self.seconds
        write_json(self.folder / "config.json", self.config)
        self._keep_log_before(self.step)
        started, before, self.total = time.perf_counter(), self.seconds, total

        def save():
            self.seconds = before + time.perf_counter() - started
            save_checkpoint(self.checkpoint, parts, {"step": self.step, "total": total, "seconds": self.seconds,
                                                     "config": self.config, "rng": rng.bit_generator.state})

        with _interrupt_flag() as interrupted, self._progress() as self._bar:
            while self.step < total:
                yield self.step
                self.step += 1
                self._bar.update()
                if interrupted or self.step % save_every == 0 or self.step == total:
                    save()
                if interrupted:                              # perhaps only while saving
                    self.print(f"interrupted after step {self.step} of {total}; go on with --resume --out {self.folder}")
                    raise KeyboardInterrupt

    def logs(self, step):
        """Whether this step's figures are logged: reading them makes a GPU wait, so not every step's are."""
        return step % self.log_every == 0 or step == self.total - 1

    def log(self, step, **metrics):
        """Append one line to log.jsonl and show it. Raises FloatingPointError if the loss is no longer finite."""
        try:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **metrics}, default=float) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.folder / 'log.jsonl'}: {error.strerror}; free some space, and go on with "
                           "--resume") from error
        shown = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in metrics.items())
        if self._bar.disable:
            print(f"step {step + 1}/{self.total}  {shown}", flush=True)
        else:
            self._bar.set_postfix_str(shown)
        loss = metrics.get("loss", 0.0)
        if not abs(loss) < float("inf"):
            raise FloatingPointError(f"the loss is {loss} at step {step}; lower --lr, raise --tau, or look for NaN in the "
                                     f"input; the last checkpoint in {self.folder} is from before")

    def elapsed(self):
        """Seconds since the run began, all told; of sessions before --resume only their training."""
        return self._earlier + time.perf_counter() - self._started

    def read_log(self):
        """The lines of log.jsonl as dicts."""
        with open(self.folder / "log.jsonl") as file:
            return [json.loads(line) for line in file]

    def print(self, text):
        """A line for the reader that does not tear the progress bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def finish(self, result, notes=()):
        """Write result.json and print it as the run's table; the figures are numbers, None where unknown."""
        write_json(self.folder / "result.json", result)
        width = max(map(len, result))
        print()
        for key, value in result.items():
            print(f"  {key:<{width}}  " + (f"{value:.4f}" if isinstance(value, float) else str(value)))
        for note in notes:
            print(note)
        print(f"everything is in {self.folder}")

    def _progress(self):
        return tqdm(total=self.total, initial=self.step, unit="step", disable=not sys.stderr.isatty(), smoothing=0.05)

    def _keep_log_before(self, step):
        """Drop the lines that a resumed run will write again."""
        path = self.folder / "log.jsonl"
        lines = [line for line in path.read_bytes().splitlines(keepends=True)
                 if line.endswith(b"\n") and json.loads(line)["step"] < step] if path.exists() else []
        write_atomically(path, lambda file: file.writelines(lines))


def _new_folder(name):
    """runs/name, or runs/name-2, -3, ... whichever is not there yet, or empty."""
    folder, count = Path("runs") / name, 1
    while folder.exists() and any(folder.iterdir()):
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    return folder


@contextlib.contextmanager
def _interrupt_flag():
    """A list that is empty until Ctrl-C is pressed. A second Ctrl-C interrupts at once."""
    flag = []
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_interrupt(number, frame):
        if flag:
            raise KeyboardInterrupt
        flag.append(True)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
