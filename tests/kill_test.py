"""Kill training runs at random moments, resume them, and compare their final state bit for bit.

    python tests/kill_test.py --count 100                # cycles through the examples; prints the counts

Each trial starts an example on little data, sends SIGKILL or SIGTERM at a random moment, one to three times, and
resumes the run after each signal (or restarts it if there is no checkpoint yet). Its checkpoint, log and result must
equal those of an uninterrupted run, except for times and memory. The runs are forks of this process, so that a trial
takes about as long as its training.
"""

import argparse
import functools
import itertools
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

if __name__ == "__main__":                                   # run from anywhere, without an installation
    sys.path[:0] = [str(EXAMPLES.parent), str(EXAMPLES)]

import minicl.run  # noqa: E402, F401
import sequences  # noqa: E402
from minicl import viz  # noqa: E402
from minicl.checkpoint import load_checkpoint  # noqa: E402
from minicl.data import digits, shapes  # noqa: E402

COMMON = ("--log-every", "1", "--threads", "1")
DIGITS = ("--data", "digits", "--batch", "20", "--epochs", "4", *COMMON)
RUNS = {
    "simclr_mnist": (*DIGITS, "--encoder", "mlp"),
    "moco_mnist": (*DIGITS, "--queue", "50", "--splits", "2"),
    "clip_captions": (*DIGITS, "--dim", "8", "--text", "bag"),
    "circle": DIGITS,
    "collapse": (*DIGITS, "--dim", "8"),
    "cpc_sequences": ("--batch", "20", "--epochs", "4", "--dim", "4", "--hidden", "4", "--ahead", "2", *COMMON),
    "simclr_cifar10": ("--data", "shapes", "--batch", "20", "--epochs", "4", "--method", "moco", "--queue", "50",
                       "--splits", "2", "--width", "2", "--dim", "8", *COMMON),
    "mutual_information": ("--epochs", "1", "--pairs", "600", *COMMON),
}
UNREPEATABLE = ("seconds", "seconds_per_epoch", "peak_mib")


def use_few_data():
    """Generate small data sets and draw no pictures, in this process and its forks."""
    for module, name, sizes in ((digits, "generate_digits", (60, 40)), (shapes, "generate_shapes", (60, 40)),
                                (sequences, "generate_rotations", None)):
        generate = getattr(module, name)
        few = functools.partial(generate, *sizes) if sizes else functools.partial(generate, n_train=60, n_test=40)
        setattr(module, name, few)
    viz.Figure = None


def start(example, folder, *more):
    """Fork a process that runs an example; returns its id. The output goes to the file `output` beside the folder."""
    script = str(EXAMPLES / f"{example}.py")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(folder.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        sys.argv = [script, *RUNS[example], "--out", str(folder), *more]
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid):
    """The exit code of a process, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end_of(folder):
    """What a resumed run must reproduce: the arrays, meta, log and result in this folder."""
    arrays, meta = load_checkpoint(folder / "checkpoint.npz")
    result = json.loads((folder / "result.json").read_text())
    return {"arrays": {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
            "meta": {key: meta[key] for key in ("name", "step", "total", "rng", "data", "log")},
            "log.jsonl": (folder / "log.jsonl").read_bytes(),
            "result.json": {key: result[key] for key in result if key not in UNREPEATABLE}}


class Failure(Exception):
    pass


class Whole:
    """The uninterrupted run of an example: its duration and its final state."""

    def __init__(self, example, folder):
        started = time.perf_counter()
        code = wait(start(example, folder / "whole"))
        self.seconds = time.perf_counter() - started
        if code:
            raise Failure(f"{example} ends with {code}:\n{(folder / 'output').read_text()}")
        self.end = end_of(folder / "whole")


def trial(example, whole, folder, random):
    """Interrupt a run at random, resume it and compare its final state; returns a Counter of what happened."""
    counts = Counter()
    out = folder / "out"
    expected = {signal.SIGKILL: [-signal.SIGKILL],
                signal.SIGTERM: [128 + signal.SIGTERM, -signal.SIGTERM]}      # the second before command() or after it
    for number in random.choices(list(expected), k=random.choice((1, 1, 2, 3))):
        pid = start(example, out, *resume(out))
        time.sleep(random.uniform(0, 1.1) * whole.seconds)
        os.kill(pid, number)
        code = wait(pid)
        if code not in (0, *expected[number]):
            raise Failure(f"{example}: exit code {code} after {number.name}")
        counts[number.name if code else f"{number.name}, too late"] += 1
        counts["in a save"] += any(out.glob(".checkpoint*.part"))
        counts["before the first checkpoint"] += not (out / "checkpoint.npz").exists()
        if (out / "checkpoint.npz").exists():                # the file is whole, whenever the kill came
            step, total = (load_checkpoint(out / "checkpoint.npz")[1][key] for key in ("step", "total"))
            counts["in training" if step < total else "after training" if code else "after the end"] += 1
        if not code:
            break
    code = wait(start(example, out, *resume(out)))
    if code:
        raise Failure(f"{example}: exit code {code} of the resumed run")
    end = end_of(out)
    for part in end:
        if end[part] != whole.end[part]:
            raise Failure(f"{example}: its {part} is not that of the uninterrupted run")
    left = [path.name for path in out.iterdir() if path.name.startswith(".")]
    if left:
        raise Failure(f"{example}: left behind {', '.join(left)}")
    return counts


def resume(out):
    return ["--resume"] if (out / "checkpoint.npz").exists() else []


def run(count, examples=tuple(RUNS), seed=0, seconds=float("inf")):
    """Run `count` trials, or as many as fit in `seconds`; print the counts. Raises Failure if a run ends differently."""
    use_few_data()
    started = time.perf_counter()
    totals = Counter()
    wholes = {}
    with tempfile.TemporaryDirectory() as parent:
        for number, example in zip(range(count), itertools.cycle(examples)):
            if time.perf_counter() - started > seconds:
                break
            folder = Path(parent) / f"{number}"
            folder.mkdir()
            if example not in wholes:
                wholes[example] = Whole(example, folder)
            try:
                totals += trial(example, wholes[example], folder, random.Random(f"{seed} {number}"))
            except Failure as failure:
                output = (folder / "output").read_text()[-3000:]
                raise Failure(f"trial {number} of seed {seed}, {failure}\n{output}") from None
            totals["trials, all bit-identical"] += 1
    for kind, times in sorted(totals.items()):
        print(f"{times:6}  {kind}")


def test_killed_and_resumed_runs_equal_uninterrupted_runs():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    ended = subprocess.run([sys.executable, __file__, "--count", str(len(RUNS))], capture_output=True, text=True,
                           timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert f"{len(RUNS)}  trials, all bit-identical" in ended.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100, help="trials, shared out over the examples")
    parser.add_argument("--examples", nargs="+", default=tuple(RUNS), choices=RUNS, help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the signals and their moments")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no trial after that; default: no limit")
    args = parser.parse_args()
    run(args.count, args.examples, args.seed, args.seconds)


if __name__ == "__main__":
    main()
