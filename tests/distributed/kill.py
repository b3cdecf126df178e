"""Kill runs of two processes at random times, resume them, and compare their ends bit for bit.

    python tests/distributed/kill.py --count 40            # prints the counts; needs the extra mpi, and Linux

Each trial starts a small run and sends SIGKILL, SIGSEGV or SIGTERM to one of its processes, or SIGKILL to mpirun, at a
random time. It resumes the run, with further signals, until the run ends. After each signal all processes must end
within 20 seconds with a non-zero code, and the folder must hold a complete checkpoint or none.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (1, 2)]

from mpi import CHECKS, children, left_behind, start  # noqa: E402
from small_runs import assert_same_end  # noqa: E402

from minicl.checkpoint import load_checkpoint  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)


def run(folder):
    """Start mpirun for a new or resumed run in a folder, and return its process."""
    resume = ["--resume"] if (folder / "checkpoint.npz").exists() else []
    return start(2, CHECKS / "small_run.py", "--out", folder, "--log-every", 1, *resume, stdout=subprocess.DEVNULL, SLOW="0.02")


def trial(folder, seconds, draw):
    """Signal and resume a run until it ends; return the counts of the signals and of where they arrived."""
    counts = Counter()
    for attempt in range(8):                                 # the later ones get no signal
        process = run(folder)
        if attempt < 3:
            time.sleep(draw.uniform(0.2, 1.1) * seconds)
            targets = children(process.pid) if process.poll() is None else []
            number, victim = draw.choice(SIGNALS), draw.choice([*targets, process.pid])
            if victim == process.pid:
                number = signal.SIGKILL
            if process.poll() is None:
                os.kill(victim, number)
                counts[f"{number.name} to {'mpirun' if victim == process.pid else 'a process'}"] += 1
        ended = time.monotonic()
        errors = process.communicate(timeout=20)[1]
        assert time.monotonic() - ended < 20 and left_behind(folder) == [], "some processes are left"
        if (folder / "checkpoint.npz").exists():
            step = load_checkpoint(folder / "checkpoint.npz")[1]["step"]
            counts["in training" if step < 12 else "after training"] += process.returncode != 0
        else:
            counts["before the first checkpoint"] += 1
        counts["in a save"] += any(folder.glob(".checkpoint*.part"))
        if process.returncode == 0:
            return counts
        assert attempt < 3, errors
    raise AssertionError("the run did not end")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=40, help="trials; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the signals and their times")
    args = parser.parse_args()
    totals: Counter = Counter()
    with tempfile.TemporaryDirectory() as parent:
        started = time.monotonic()
        whole = Path(parent) / "whole"
        assert run(whole).wait(60) == 0
        seconds = time.monotonic() - started
        for number in range(args.count):
            folder = Path(parent) / f"trial{number}"
            totals += trial(folder, seconds, random.Random(f"{args.seed} {number}"))
            assert_same_end(folder, whole)
            totals["trials, all bit-identical"] += 1
    for kind, times in sorted(totals.items()):
        print(f"{times:6}  {kind}")


if __name__ == "__main__":
    main()
