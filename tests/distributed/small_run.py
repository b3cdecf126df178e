"""A small run on the processes of mpirun. The environment variable FAULT names a fault of the last process at step
7."""

import dataclasses
import os
import signal
import sys
import time

import numpy as np

from minicl import Tensor
from minicl.data import two_views
from minicl.data.augment import RandomHorizontalFlip
from minicl.distributed import ALONE, get_world, mean_of
from minicl.nn import Linear, Sequential
from minicl.ops import relu
from minicl.optim import Adam
from minicl.options import options
from minicl.run import Run, command

FAULTS = {
    "bug": lambda: [][0],
    "exit 3": lambda: sys.exit(3),
    "exit 0": lambda: sys.exit(0),
    "nan": lambda: (_ for _ in ()).throw(FloatingPointError("made up")),
    "exit words": lambda: sys.exit("some words"),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}
fault = os.environ.get("FAULT")


def main():
    args = options(__doc__, epochs=1, batch=12, lr=0.1, tau=1, data=None).parse_args()
    world = get_world(args.backend)
    run = Run(args, "small", *[world] * (fault != "run"))
    rng = np.random.default_rng(3 + (fault == "seed") * world.rank)
    if fault == "before":
        raise OSError("nothing to train on")
    target = run.once(make_target, world.rank)
    data = Data(target + (fault == "data") * world.rank)
    model = Sequential(Linear(3, 8, rng=np.random.default_rng(0)), relu, Linear(8, 2, rng=np.random.default_rng(1)))
    model.across(ALONE if fault == "across" else world)
    optimizer = Adam(model, args.lr)
    for step in run.steps(12, rng, save_every=5, data=data, model=model, optimizer=optimizer):
        x = rng.standard_normal((args.batch, 3), dtype="float32")[slice(None) if fault == "part" else world.part]
        if fault == "part":
            two_views(RandomHorizontalFlip(), np.abs(x[:, :, None, None]).clip(0, 1), rng, world)
        loss = mean_of(((model(Tensor(x)) - x @ target)**2).mean(), world=ALONE if fault == "loss" else world)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(float(os.environ.get("SLOW", "0")))
        if step == 7 and world.rank == world.size - 1 and fault in FAULTS:
            FAULTS[fault]()
        if step == 7 and (fault == "all leave" or world.rank == world.size - 1 and fault in ("leave", "finish")):
            break
        if step == 7 and world.rank == world.size - 1 and fault == "stop":
            run.stop()
        if run.logs(step):
            run.log(step, loss=loss.item())
    if fault in ("leave", "all leave"):
        return
    run.finish({"loss": run.read_log()[-1]["loss"]})


@dataclasses.dataclass
class Data:
    target: np.ndarray


def make_target(rank):
    assert rank == 0, "only the first process makes it"
    return np.ones((3, 2), dtype="float32")


if __name__ == "__main__":
    command(main)
