"""Count the data that processes exchange in a training step of each example. Needs no MPI.

    python tests/benchmarks/communication.py                   # every example, with its default batch
    python tests/benchmarks/communication.py simclr_mnist --processes 8

The examples run in a World of which only one process exists: it answers each collective as if all other processes had
the same rows, and counts it. The counts are exact, since they follow from shapes alone. Bytes refer to the whole array
that is summed, gathered or scattered; the traffic on the wire depends on the algorithm of MPI or NCCL (a ring
sends (k - 1) / k of them, and twice that for a sum).
"""

import argparse
import contextlib
import functools
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":                                   # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

import numpy as np  # noqa: E402

from minicl import Tensor, distributed, viz  # noqa: E402
from minicl.backend import array_module  # noqa: E402
from minicl.contrastive import nt_xent  # noqa: E402
from minicl.data import digits, shapes  # noqa: E402
from minicl.options import at_least  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CALLS = {"simclr_mnist": "--data digits", "simclr_cifar10": "--data shapes", "moco_mnist": "--data digits",
         "clip_captions": "--data digits", "cpc_sequences": "--threads 1", "collapse": "--data digits",
         "circle": "--data digits", "mutual_information": "--pairs 600"}
KINDS = ("all_reduce", "all_gather", "reduce_scatter")


class Counted(distributed.World):
    """The first of `size` processes that all have the same rows. `steps` lists (calls, bytes) of each step of a run."""

    def __init__(self, size):
        self.size = size
        self.calls: Counter = Counter()
        self.bytes: Counter = Counter()
        self.steps: list[tuple[Counter, Counter]] = []

    def note(self, kind, x):
        self.calls[kind] += 1
        self.bytes[kind] += x.nbytes
        return x

    def all_reduce(self, x):
        return self.note("all_reduce", x)

    def all_gather(self, x):
        return self.note("all_gather", x.repeat(self.size, axis=0))

    def reduce_scatter(self, x):
        return self.rows(self.note("reduce_scatter", x))

    def rows(self, x):
        return x[self.part]

    def sum(self, x):
        return self.all_reduce(array_module(x).array(x))

    def mean(self, x):
        return self.sum(x) / self.size

    def any(self, flag):                                     # a run asks once per step whether to stop, and an optimizer
        if isinstance(flag, list):                           # which parameters have a gradient
            return flag
        self.steps.append((self.calls, self.bytes))
        self.calls, self.bytes = Counter(), Counter()
        return bool(flag)


def few_data():
    """Reduce the data sets to a few batches and draw no pictures, in this process."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    import sequences

    for module, name in ((digits, "generate_digits"), (shapes, "generate_shapes")):
        setattr(module, name, functools.partial(getattr(module, name), 1024, 20))
    sequences.generate_rotations = functools.partial(sequences.generate_rotations, n_train=256, n_test=64)
    viz.Figure = None


def count(example, size):
    """(calls, bytes), by kind, of a step that is neither logged nor saved."""
    world = Counted(size)
    before = distributed.get_world
    argv = sys.argv
    distributed.get_world = lambda backend: world
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            sys.argv = [str(EXAMPLES / f"{example}.py"), *CALLS[example].split(), "--epochs", "1", "--log-every", "1000",
                        "--out", folder]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        distributed.get_world, sys.argv = before, argv
    return world.steps[1]


def count_loss(size, views=16384, d=128):
    """(calls, bytes), by kind, of NT-Xent's forward and backward pass."""
    world = Counted(size)
    z1, z2 = np.random.default_rng(0).standard_normal((2, views // 2 // size, d), dtype="float32")
    nt_xent(Tensor(z1, requires_grad=True), Tensor(z2, requires_grad=True), 0.2, world=world).backward()
    return world.calls, world.bytes


def row(name, calls, sizes):
    return f"| {name} | " + " | ".join(f"{calls[kind]} | {sizes[kind] / 1024:.1f}" for kind in KINDS) + " |"


def table(examples=tuple(CALLS), size=2):
    """Yield the lines of a Markdown table. The data sets of this process stay small afterwards."""
    few_data()
    yield "| a step of | " + " | ".join(f"{kind}, calls | KiB" for kind in KINDS) + " |"
    yield "|---|" + 2 * len(KINDS) * "--:|"
    for example in examples:
        yield row(f"`{example}.py`", *count(example, size))
    yield row("NT-Xent, 2N = 16384, d = 128", *count_loss(size))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="*", choices=[[], *CALLS], help="default: all")
    parser.add_argument("--processes", type=at_least(1), default=2, help="default: %(default)s")
    args = parser.parse_args()
    for line in table(args.examples or CALLS, args.processes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
