"""Options that are True or False refuse all other values, because the text "no" would count as true."""

import argparse
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import minicl
from minicl import Tensor, explain, gradcheck, nn, op, ops, optim
from minicl.backend import threads
from minicl.cuda_graph import capture
from minicl.data import ImageData, load_cifar10, load_mnist
from minicl.data.augment import RandomResizedCrop
from minicl.evaluate import frozen_accuracies
from minicl.run import Run

X = np.ones((4, 3), "float32")
RNG = np.random.default_rng(0)


def loss():
    return ops.relu(Tensor(X, requires_grad=True)).sum()


CALLS = {  # (function, option): a call with the option
    ("Linear", "bias"): lambda value: nn.Linear(3, 2, bias=value, rng=RNG),
    ("Conv2d", "bias"): lambda value: nn.Conv2d(3, 2, 1, bias=value, rng=RNG),
    ("BatchNorm", "relu"): lambda value: nn.BatchNorm(3, relu=value),
    ("WordTokenizer", "unknown"): lambda value: nn.WordTokenizer(["a"], 3, unknown=value),
    ("Module.train", "mode"): lambda value: nn.BatchNorm(3).train(value),
    ("Module.requires_grad_", "requires_grad"): lambda value: nn.BatchNorm(3).requires_grad_(value),
    ("Module.load_state_dict", "strict"): lambda value: nn.BatchNorm(3).load_state_dict({}, strict=value),
    ("BaseTensor.requires_grad_", "requires_grad"): lambda value: Tensor(X).requires_grad_(value),
    ("BaseTensor", "requires_grad"): lambda value: Tensor(X, requires_grad=value),
    ("batch_norm", "relu"): lambda value: ops.batch_norm(X, X[0], X[0], relu=value),
    **{(name, "keepdims"): lambda value, name=name: getattr(ops, name)(X, keepdims=value)
       for name in ("sum", "mean", "max", "logsumexp", "var")},
    ("SGD", "nesterov"): lambda value: optim.SGD(nn.BatchNorm(3), 0.1, momentum=0.9, nesterov=value),
    ("frozen_accuracies", "probe"): lambda value: frozen_accuracies(None, None, np, probe=value),
    ("gradcheck", "kinks"): lambda value: gradcheck(ops.relu, [X.astype("float64")], kinks=value),
    ("explain", "check"): lambda value: explain(loss(), check=value),
    ("threads", "keep_memory"): lambda value: threads(1, keep_memory=value).__enter__(),
    ("capture", "enabled"): lambda value: capture(np, enabled=value),
    ("Run", "grows"): lambda value: Run(argparse.Namespace(), "name", grows=value),
    ("RandomResizedCrop", "antialias"): lambda value: RandomResizedCrop(8, antialias=value),
    ("ImageData.from_folder", "labels"): lambda value: ImageData.from_folder(".", labels=value),
    **{(load.__name__, option): lambda value, load=load, option=option: load(".", **{option: value})
       for load in (load_mnist, load_cifar10) for option in ("download", "check")},
}
INSIDE = {"op", "Signature", "sum_over", "mean_over", "mark_changed", "Stopped", "read_folder", "find_arrays", "command",
          "World.any", "MPI.any", "MPI.choose_gpu", "Source.read", "parts_to_load", "Guards.open",
          "pending", "require_same_run", "HostArgument.moved", "Watched.changes"}  # internal, or for any value


def public():
    """Yield (name, option) for each option annotated bool of the public functions, classes and methods of minicl."""
    for info in pkgutil.walk_packages(minicl.__path__, "minicl."):
        if info.name == "minicl.__main__" or "examples" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name[0] == "_" or getattr(value, "__module__", None) != module.__name__ or value is Tensor:  # ops
                continue
            callables = {}
            if not inspect.isclass(value):
                callables[name] = value
            else:
                callables |= {name: value} if "__init__" in vars(value) else {}
                callables |= {f"{name}.{key}": inspect.unwrap(getattr(value, key)) for key, member in vars(value).items()
                              if key[0] != "_" and inspect.isroutine(member)}
            for called, function in callables.items():
                try:
                    parameters = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
                except (TypeError, ValueError):
                    continue
                yield from ((called, option) for option, p in parameters.items() if p.annotation in (bool, bool | int))


def test_the_table_has_all_boolean_options():
    found = {(name, option) for name, option in public() if name not in INSIDE}
    assert found == CALLS.keys()


@pytest.mark.parametrize("name, option", CALLS, ids=lambda name: name)
def test_other_values_of_a_boolean_option_are_refused(name, option):
    for value in ("no", "False", "", [], np.array([True]), 2.0):
        with pytest.raises((TypeError, ValueError), match=option):
            CALLS[name, option](value)


def test_broadcasts_of_op_must_be_boolean():
    with pytest.raises(TypeError, match="@op: broadcasts must be True or False, got 'no'"):
        op(broadcasts="no")(lambda x: (x, lambda g: (g,)))
