"""A small training run, for tests of minicl.run."""

import contextlib
import signal

import numpy as np
import pytest

from minicl import nn, ops, optim
from minicl.autograd import Tensor
from minicl.backend import to_device
from minicl.checkpoint import load_checkpoint
from minicl.nn import BatchNorm, Linear, Module, Sequential
from minicl.optim import Adam
from minicl.options import options
from minicl.run import Run

TOTAL, SAVE_EVERY = 12, 5


class Scaled(Module):
    """A layer times a number that is an attribute of its class."""

    rate = 1.0

    def __init__(self, *, rng):
        self.layer = Linear(2, 2, rng=rng)

    def forward(self, x):
        return self.layer(x) * self.rate


def arguments(out, *more):
    parser = options("A test.\n\nMore.", epochs=2, batch=4, lr=0.1, tau=0.2)
    return parser.parse_args([*(["--out", str(out)] if out else []), "--log-every", "2", *more])


def start(out, *more):
    return Run(arguments(out, *more), "test")


def train(run, xp=np, total=TOTAL, at=None):
    """A small training loop that draws its data; returns the model. at = {step: function called at its end}."""
    rng = np.random.default_rng(3)
    model = Sequential(Linear(3, 4, rng=rng), BatchNorm(4)).to(xp)
    optimizer = Adam(model, 0.1)
    for step in run.steps(total, save_every=SAVE_EVERY, rng=rng, model=model, optimizer=optimizer):
        y = model(Tensor(to_device(rng.standard_normal((6, 3), dtype="float32"), xp)))
        loss = ((y - 1.0) * (y - 1.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run.logs(step):
            run.log(step, loss=loss.item())
        if at and step in at:
            at[step]()
    return model


@contextlib.contextmanager
def no_room():
    """Make every write to a file fail within this block, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Crash(Exception):
    pass


def crash():
    raise Crash


def assert_same_end(first, second):
    """Assert that two folders hold the same log and the same checkpoint, except for the seconds."""
    (arrays, meta), (others, other_meta) = (load_checkpoint(folder / "checkpoint.npz") for folder in (first, second))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert (meta["step"], meta["rng"]) == (other_meta["step"], other_meta["rng"])
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()


# ---------------------------------------------------------------- a training that is resumed

STEPS = 8
X = np.random.default_rng(9).standard_normal((STEPS, 6, 3)).astype("float32")


class Net(nn.Module):
    def __init__(self, *, rng):
        self.layer, self.norm = nn.Linear(3, 4, rng=rng), nn.BatchNorm(4)
        self.dropout, self.last = nn.Dropout(0.3, rng=rng), nn.Linear(4, 2, rng=rng)
        self.bank = nn.Buffer(np.zeros((4, 2), "float32"))

    def forward(self, x):
        return self.last(self.dropout(ops.relu(self.norm(self.layer(x)))))


def run_of(folder, *, resume=False, crash=None, each=lambda step, parts, rng: None, make=lambda model, rng: {},
           kind=optim.Adam, rng=None, leave=(), data=None, save_every=1):
    """A small training whose loop calls each(step, parts, rng) at the end of a step, and fails at the step `crash`."""
    run = start(folder, *["--resume"][:resume])
    rng = np.random.default_rng(0) if rng is None else rng
    model = Net(rng=rng)
    parts = {"model": model, "optimizer": kind(model, 0.05), **make(model, rng)}
    given = {name: part for name, part in parts.items() if name not in leave}
    try:
        for step in run.steps(STEPS, rng, save_every=save_every, data=data, **given):
            if step == crash:
                raise Crash
            noise = rng.standard_normal(X[0].shape).astype("float32")
            loss = (model(X[step] + noise)**2).mean()
            parts["optimizer"].zero_grad(), loss.backward(), parts["optimizer"].step()
            each(step, parts, rng)
            run.log(step, loss=loss.item())
        run.finish({})
    finally:
        run.close()
    return model


def assert_resumes(folder, **options):
    run_of(folder / "whole", **options)
    with pytest.raises(Crash):
        run_of(folder / "crashed", crash=5, **options)
    run_of(folder / "crashed", resume=True, **options)
    assert_same_end(folder / "whole", folder / "crashed")
