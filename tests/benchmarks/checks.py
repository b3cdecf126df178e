"""The cost of minicl's checks in a training step of examples/simclr_mnist.py: minicl beside a copy without them.

    python tests/benchmarks/checks.py                           # about 15 minutes; exit code 1 above --most
    python tests/benchmarks/checks.py --batch 64 --encoder mlp  # a smaller step, in which the checks weigh more

The copy imports the same files again under another name and replaces these parts by ones that do nothing:

    require_...     checks of arguments, settings, shapes, parts and finiteness: every function that only checks
    views           image values outside [0, 1], and an augment that draws nothing or writes into its images
    @op             dtypes, backends, keywords and options of the inputs; the value; the gradients
    the walk        inputs that have changed since an op used them, and the stamps that detect it
    optimizers      changed parts, settings, finite gradients

Comparisons within a body (`if x.ndim != 4: raise ...`) remain. The copy must accept faults that minicl refuses, and
must compute the same numbers.

A process may run one copy faster than another for as long as it lives, since their arrays lie elsewhere in memory. So
each of several new processes, one after another, measures all copies, on one thread, in CPU seconds. The copies are made
in random order and take turns of a few steps, in all orders. The first step of a turn is not counted: it brings the
copy's data into the cache. The share of the checks in a process is the difference of the copies' medians. The table has
the mean of the processes, and its standard error from their spread. A third copy keeps its checks: its difference should
be 0 within about two such errors.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import inspect
import itertools
import multiprocessing
import operator
import random
import statistics
import sys
import textwrap
import time
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

if __name__ == "__main__":                      # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

import numpy as np  # noqa: E402

import minicl  # noqa: E402
from benchmarks.steps import LR, WEIGHT_DECAY  # noqa: E402
from minicl.options import at_least, within  # noqa: E402
from minicl.run import command  # noqa: E402

ENCODERS = {"mlp": "MLP", "convnet": "ConvNet"}                              # the encoders of simclr_mnist.py
PARTS = {"whole": "all of it", "rest": "without the two views: model, loss, backward and optimizer"}
STUBBED = ("mark_changed", "check_options", "check_images")  # in addition to require_... and _require_...
TURN = 3                                                     # counted steps in a row of one copy


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="default: both")
    parser.add_argument("--batch", type=at_least(2), default=256, help="images a step; default: 256")
    parser.add_argument("--processes", type=at_least(2), default=10, help="new processes that measure; default: 10")
    parser.add_argument("--rounds", type=at_least(6), default=30, help="turns of each copy in a process; default: 30")
    parser.add_argument("--most", type=within("[0, inf)"), default=2.0, help="percent of a step; default: 2")
    args = parser.parse_args(argv)
    print(f"a step of simclr_mnist.py with {args.batch} images, one thread, CPU time, mean of {args.processes} processes\n"
          "| encoder | part | ms a step | checks | standard error | a copy with checks |\n|---|---|--:|--:|--:|--:|")
    worst = 0.0
    for encoder in args.encoder:
        found = [in_a_new_process(encoder, args.batch, args.rounds) for _ in range(args.processes)]
        for part, meaning in PARTS.items():
            milliseconds, shares, controls = zip(*(parts[part] for parts in found))
            share, error = statistics.mean(shares), statistics.stdev(shares) / len(shares)**0.5
            print(f"| {encoder} | {meaning} | {statistics.mean(milliseconds):.1f} | {share:.2f} % | {error:.2f} % "
                  f"| {statistics.mean(controls):+.2f} % |", flush=True)
            if part == "whole":
                worst = max(worst, share)
    print(f"the checks take {worst:.2f} % of a step or less; the limit is {args.most:g} %")
    return int(worst > args.most)


def in_a_new_process(encoder, batch, rounds):
    """measure_parts() in a process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_parts, encoder, batch, rounds).result()


# ---------------------------------------------------------------- the copies

def copy_of_minicl(name):
    """A second import of minicl's files as the package `name`, with its own classes and functions; returns `name`."""
    if name not in sys.modules:
        package = types.ModuleType(name)  # skips __init__, which would import everything
        package.__path__ = list(minicl.__path__)
        sys.modules[name] = package
    return name


def without_checks(name):
    """A copy of minicl whose checks do nothing; returns `name`."""
    if name in sys.modules:
        return name
    copy_of_minicl(name)
    part = functools.partial(part_of, name)
    autograd = part("autograd")
    autograd.op = bare_op(autograd)                                          # must come before any op is made
    autograd._walk = bare_walk(autograd)
    for module in ("ops", "nn", "contrastive", "methods", "optim", "data", "evaluate"):
        part(module)
    for module in [module for key, module in sys.modules.items() if key.startswith(name + ".")]:
        for owner in (module, *filter(inspect.isclass, vars(module).values())):
            if owner is module or owner.__module__.startswith(name + "."):
                for key, value in list(vars(owner).items()):
                    if only_checks(value):
                        setattr(owner, key, nothing)
    part("nn.structure").Structure.check = nothing
    part("checks").Sealed.__setattr__ = object.__setattr__
    part("data.augment.recipes")._views = lambda name, augments, images, rng, world: [a(images, rng) for a in augments]
    return name


def part_of(package, module):
    return importlib.import_module(f"{package}.{module}")


def nothing(*_, **__):
    pass


def only_checks(value):
    """Whether value is a function with the name of a check and without a return value."""
    if not inspect.isfunction(value) or not (value.__name__.lstrip("_").startswith("require_") or value.__name__ in STUBBED):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    return not any(isinstance(node, (ast.Return, ast.Yield)) and node.value is not None for node in ast.walk(tree))


def bare_op(autograd):
    """An @op that passes arrays to the function and records, without any check."""
    Tensor = autograd.Tensor
    Node = autograd.Node
    blocks = autograd.no_grad_blocks
    in_no_grad = autograd.in_no_grad

    def op(function=None, *, broadcasts=False):
        if function is None:
            return functools.partial(op, broadcasts=broadcasts)
        checks = autograd.Signature(function, broadcasts)
        count = 0 if checks.variadic else len(checks.names)
        asks_needs_grad = checks.asks_needs_grad

        @functools.wraps(function)
        def call(*inputs, **options):
            recording = not (blocks.get() and in_no_grad())
            if len(inputs) < count:
                inputs = checks.in_order(inputs, options)
            arrays, needs_grad = [], []
            for x in inputs:
                is_tensor = isinstance(x, Tensor)
                arrays.append(x._data if is_tensor else x)
                needs_grad.append(recording and is_tensor and (x._requires_grad or x.node is not None))
            if asks_needs_grad:
                value, backward = function(*arrays, needs_grad=tuple(needs_grad), **options)
            else:
                value, backward = function(*arrays, **options)
            y = object.__new__(Tensor)
            y._data = np.asarray(value) if isinstance(value, np.generic) else value
            y._grad = y.changed = y.switched = y.node = None
            y._requires_grad = False
            if True in needs_grad:
                y.node = Node(call, inputs, arrays, options, backward)
            return y

        call.forward = function
        call.checks = checks
        call.names = checks.names
        call.__signature__ = checks.public
        return call

    return op


def bare_walk(autograd):
    """A backward walk that trusts every node and gradient; it still sums broadcast gradients."""
    Tensor = autograd.Tensor
    Additions = autograd.Additions
    accumulate = autograd._accumulate
    sum_to_shape = sys.modules[autograd.Signature.__module__].sum_to_shape

    def walk(root, g):
        arriving = {root: g}
        additions = Additions()
        leaves = []
        for node in ancestors(root):
            inputs = node.inputs
            backward = node.backward
            node.inputs = ()
            node.options = {}
            node.backward = None
            if node not in arriving:
                continue
            for x, dx in zip(inputs, backward(arriving.pop(node))):
                if dx is None or not isinstance(x, Tensor) or x.node is None and not x._requires_grad:
                    continue
                source = x.node
                if dx.shape != x._data.shape:
                    dx = sum_to_shape(dx, x._data.shape)
                if source is None:
                    leaves.append(accumulate(x, dx, additions.add))
                else:
                    arriving[source] = arriving[source] + dx if source in arriving else dx
        additions.flush()
        return leaves

    def ancestors(root):
        seen = {root}
        nodes = [root]
        for node in nodes:
            for x in node.inputs:
                source = x.node if isinstance(x, Tensor) else None
                if source is not None and source not in seen:
                    seen.add(source)
                    nodes.append(source)
        return sorted(nodes, key=operator.attrgetter("index"), reverse=True)

    return walk


# ---------------------------------------------------------------- faults that minicl refuses and the copy accepts

def faults(package):
    """{check: a function that makes a fault for it}, using the classes of `package`, a copy of minicl."""
    part = functools.partial(part_of, package)
    Tensor = part("autograd").Tensor
    nt_xent = part("contrastive").nt_xent
    SGD = part("optim").SGD
    nn = part("nn")
    x = np.ones((4, 3), "float32")

    def model():
        return nn.Linear(3, 3, rng=np.random.default_rng(0))

    def stale():
        layer, second = model(), model()
        y = second(layer(Tensor(x))).sum()
        second.load_state_dict(second.state_dict())
        y.backward()

    def other_dtype():
        part("ops").add(Tensor(x), Tensor(x.astype("float64")))

    def tau():
        nt_xent(x, 2 * x, float("inf"))

    def nan_rows():
        nt_xent(x * np.float32("nan"), x, 0.5)

    def nan_gradient():
        layer = model()
        optimizer = SGD(layer, 0.1)
        layer.weight.grad[...] = np.nan
        optimizer.step()

    def rate():
        optimizer = SGD(model(), 0.1)
        optimizer.grads[...] = 1
        optimizer.step(-1.0)

    def dark_images():
        part("data").mnist_views()(np.full((2, 28, 28, 1), -1, "float32"), np.random.default_rng(0))

    def equal_views():
        part("data").two_views(lambda images, rng: images.copy(), np.zeros((2, 28, 28, 1), "float32"), np.random.default_rng(0))

    def late_part():
        layers = nn.Sequential(model())
        optimizer = SGD(layers, 0.1)
        layers.steps = [*layers.steps, model()]
        optimizer.grads[...] = 1
        optimizer.step()

    return {f.__name__: f for f in (stale, other_dtype, tau, nan_rows, nan_gradient, rate, dark_images, equal_views, late_part)}


def require_patched(package, faults_of=faults):
    """Raise unless minicl refuses all faults and this copy none, so that every stub is where the code reads it."""
    for name, make in faults_of("minicl").items():
        try:
            make()
        except (ArithmeticError, RuntimeError, TypeError, ValueError):
            continue
        raise AssertionError(f"minicl does not refuse: {name}")
    for make in faults_of(package).values():
        make()


# ---------------------------------------------------------------- measurement

def step_of(package, encoder, batch, views=True):
    """step() -> (loss, gradients), a step of simclr_mnist.py with one copy of minicl, and with new or given views."""
    part = functools.partial(part_of, package)
    nn = part("nn")
    nt_xent = part("contrastive").nt_xent
    rng = np.random.default_rng(0)
    encoder = getattr(nn, ENCODERS[encoder])((28, 28, 1), rng=rng)
    model = part("methods").SimCLR(encoder, nn.projection_head("mlp", encoder.features, hidden=256, dim=128, rng=rng))
    optimizer = part("optim").AdamW(model, LR, weight_decay=WEIGHT_DECAY)
    data = np.random.default_rng(1).integers(0, 256, (10 * batch, 28, 28, 1), dtype=np.uint8)
    batches = part("data").Batches(len(data), batch)
    augment = part("data").mnist_views()
    order = itertools.count()

    def two_views():
        images = part("evaluate").to_float(data[batches[next(order)]], np)
        return np.concatenate(part("data").two_views(augment, images, rng))

    given = two_views()

    def step():
        _, z = model(two_views() if views else given)
        loss = nt_xent(z[:batch], z[batch:], 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.data, optimizer.grads

    return step


def measure_parts(encoder, batch, rounds):
    """{part: (ms a step, percent of it that the checks take, percent by which the copy with checks is faster)}."""
    packages = {"minicl": "minicl", "same": copy_of_minicl("minicl_again"), "bare": without_checks("minicl_unchecked")}
    require_patched(packages["bare"])
    found = {}
    with contextlib.ExitStack() as stack:
        for package in packages.values():                                    # each copy has its own loops
            stack.enter_context(part_of(package, "backend").threads(1))      # limits BLAS as well
        for part in PARTS:
            made = random.sample(list(packages), len(packages))              # where arrays lie depends on their order
            seconds = measure({name: step_of(packages[name], encoder, batch, part == "whole") for name in made}, rounds)
            ours, same, bare = (statistics.median(seconds[name]) for name in packages)
            found[part] = 1e3 * ours, 100 * (ours - bare) / ours, 100 * (ours - same) / ours
    return found


def measure(steps, rounds):
    """{name: CPU seconds of each step}. The copies take turns in all orders, and must compute the same numbers."""
    seconds = {name: [] for name in steps}
    orders = list(itertools.permutations(steps))
    for k in range(-1, rounds):                                              # the first round warms up
        results = []
        for name in orders[k % len(orders)]:
            steps[name]()
            for _ in range(TURN):
                start = time.process_time()
                loss, g = steps[name]()
                if k >= 0:
                    seconds[name].append(time.process_time() - start)
            results.append((loss.item(), g.copy()))
        for loss, g in results[1:]:
            assert loss == results[0][0] and np.array_equal(g, results[0][1]), "the copies compute other numbers"
    return seconds


if __name__ == "__main__":
    command(main)
