"""Time two processes of one thread beside one process of two threads: NT-Xent, and the MNIST example's step, at some sizes.

    python tests/benchmarks/processes.py                       # on idle cores if possible; needs the extra mpi
    python tests/benchmarks/processes.py --rounds 9 --processes 4

Rounds alternate between the two, each in new processes. A time is the median over the steps of a round. The ratio is
the median over the rounds, with the smallest and the largest in brackets. scaling.py adds this table to docs/scaling.md.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

if __name__ == "__main__":                                   # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

import numpy as np  # noqa: E402

from benchmarks.report import milliseconds  # noqa: E402
from minicl import Tensor  # noqa: E402
from minicl.backend import threads  # noqa: E402
from minicl.contrastive import nt_xent  # noqa: E402
from minicl.data import mnist_views, two_views  # noqa: E402
from minicl.distributed import get_world  # noqa: E402
from minicl.evaluate import to_float  # noqa: E402
from minicl.methods import SimCLR  # noqa: E402
from minicl.nn import ConvNet, projection_head  # noqa: E402
from minicl.optim import AdamW  # noqa: E402
from minicl.options import at_least  # noqa: E402
from minicl.run import RunError, command  # noqa: E402

DIM = 128


def loss(world, views):
    """A function that computes NT-Xent of this process's part of the views, forward and backward."""
    z1, z2 = np.random.default_rng(0).standard_normal((2, views // 2, DIM), dtype="float32")[:, world.part]
    return lambda: nt_xent(Tensor(z1, requires_grad=True), Tensor(z2, requires_grad=True), 0.2, world=world).backward()


def step(world, batch):
    """A function that takes a training step as in examples/simclr_mnist.py, on noise."""
    rng = np.random.default_rng(0)
    augment = mnist_views()
    encoder = ConvNet((28, 28, 1), rng=rng)
    model = SimCLR(encoder, projection_head("mlp", encoder.features, hidden=256, dim=128, rng=rng)).across(world)
    optimizer = AdamW(model, 5e-3, weight_decay=1e-4)
    data = rng.integers(0, 256, (batch, 28, 28, 1), dtype=np.uint8)

    def train():
        images = to_float(data[world.part], np)
        _, z = model(np.concatenate(two_views(augment, images, rng, world)))
        loss = nt_xent(z[:len(images)], z[len(images):], 0.2, world=world)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        world.any(False)                                     # a run asks this once per step: whether to stop

    return train


# title: (function, items, calls that are not timed, calls that are)
WORK = {f"NT-Xent, 2N = {views}, d = {DIM}": (loss, views, *calls)
        for views, calls in {1024: (5, 50), 4096: (2, 9), 16384: (2, 3), 65536: (0, 1)}.items()} | {
    f"SimCLR step, MNIST's ConvNet, batch {batch}": (step, batch, *calls)
    for batch, calls in {256: (5, 25), 1024: (2, 9), 4096: (1, 3)}.items()}


def worker(name, count):
    """Print the median seconds per call of WORK[name], in this process or in all that mpirun has started."""
    world = get_world()
    make, items, warm, repeats = WORK[name]
    seconds = []
    with threads(count):
        function = make(world, items)
        for _ in range(warm + repeats):
            world.wait()
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
    if world.rank == 0:
        print(json.dumps(statistics.median(seconds[warm:])))


def find_mpirun():
    """The path of mpirun, or None without it or without mpi4py."""
    if importlib.util.find_spec("mpi4py"):
        return shutil.which("mpirun", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    return None


def measure(name, processes, count):
    mpirun = find_mpirun()
    if processes > 1 and mpirun is None:
        raise RunError("there is no mpirun or no mpi4py; pip install 'minicl[mpi]', or load your cluster's MPI module")
    done = subprocess.run([*([mpirun, "-n", str(processes)] if processes > 1 else []), sys.executable, __file__, "--worker", name,
                           "--threads", str(count)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RunError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(k, rounds, most=math.inf, end=math.inf):
    """Yield (name, [(seconds of one process of k threads, of k processes) in each round]) for the WORK of up to `most` items,
    except what would end after time.perf_counter() = end."""
    seconds = {}                                                             # {function: (items, seconds of both)}
    for name, (make, items, warm, repeats) in WORK.items():
        before, both = seconds.get(make, (items, 0))
        if items <= most and rounds * (warm + repeats) * both * (items / before)**2 < end - time.perf_counter():
            found = [(measure(name, 1, k), measure(name, k, 1)) for _ in range(rounds)]
            seconds[make] = items, sum(found[-1])
            yield name, found


def heading(k):
    return f"| | 1 process, {k} threads, ms | {k} processes, 1 thread, ms | ratio |\n|---|--:|--:|--:|"


def row(name, found):
    one, several = (milliseconds(statistics.median(column)) for column in zip(*found))
    ratios = [b / a for a, b in found]
    return f"| {name} | {one} | {several} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=at_least(2), default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="default: %(default)s")
    parser.add_argument("--most", type=at_least(1), default=16384, help="views or images; default: %(default)s")
    parser.add_argument("--worker", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=at_least(1), default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.threads)
    print(heading(args.processes))
    for name, found in compare(args.processes, args.rounds, args.most):
        print(row(name, found), flush=True)
    return None


if __name__ == "__main__":
    command(main)
