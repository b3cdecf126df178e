"""Train as examples/simclr_mnist.py does, and time when the linear probe of h is first right on 98.9 % of the test images.

    python tests/benchmarks/run.py --peer torch --only main_job      # about eight minutes

minicl and PyTorch train the same network from the same weights on the same batches with the same recipe. Each library
has its own augmentations, of the same kind. minicl evaluates the features of both. The processes take turns epoch by
epoch. This file is also the program of each process: `python main_job.py minicl numpy '{}'`, as in worker.py.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":                      # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

import numpy as np  # noqa: E402

from benchmarks.candidates import CANDIDATES  # noqa: E402
from benchmarks.case import Peer  # noqa: E402
from benchmarks.harness import Worker  # noqa: E402
from benchmarks.steps import SimCLRStep  # noqa: E402
from minicl.backend import threads  # noqa: E402
from minicl.contrastive import nt_xent  # noqa: E402
from minicl.data import Batches, load_images, mnist_views, two_views  # noqa: E402
from minicl.evaluate import encode, knn_accuracy, linear_probe, to_float  # noqa: E402
from minicl.evaluate.frozen import PROBE_C  # noqa: E402
from minicl.optim import AdamW, warmup_cosine  # noqa: E402
from minicl.run import RunError  # noqa: E402

RECIPE = {"data": "mnist", "data_dir": None, "items": None, "seed": 0, "epochs": 8, "batch": 256, "lr": 5e-3, "tau": 0.2,
          "weight_decay": 1e-4}                 # the script's defaults; items: of each split, None for all
GOAL, FIRST = 0.989, 5                          # the probe's accuracy, and the first epoch that it is evaluated after
NAMES = {"minicl": "minicl", "torch": "PyTorch", "torch, channels last, kept": "PyTorch, channels last, kept"}


def measure(peer, cores, recipe=RECIPE, first=FIRST):
    """{label: {"start": seconds, "epochs": [seconds], "probe": {epoch: accuracy of h}, "evaluation": seconds,
    "metrics": {name: accuracy}}} of minicl and, with peer "torch", of PyTorch with its defaults and tuned."""
    labels = list(NAMES) if peer == "torch" else ["minicl"]
    jobs = []
    found = {}
    try:
        for label in labels:
            start = time.perf_counter()
            candidate = next(candidate for candidate in CANDIDATES if candidate.label == label)
            jobs.append(Worker(candidate, "numpy", cores, "float32", script=Path(__file__).name))
            ask(jobs[-1], recipe=recipe)
            found[label] = {"start": time.perf_counter() - start, "epochs": [], "probe": {}}
        for epoch in range(1, recipe["epochs"] + 1):
            for job in jobs[::1 if epoch % 2 else -1]:
                result = found[job.label]
                is_last = epoch == recipe["epochs"]
                result["epochs"].append(ask(job, epoch=epoch - 1)["seconds"])
                if is_last or epoch >= first:
                    answer = ask(job, evaluate=True, only_probe=not is_last)
                    result["probe"][str(epoch)] = answer["metrics"]["probe_h"]
                    result |= {"evaluation": answer["seconds"], "metrics": answer["metrics"]} if is_last else {}
                    found[job.label] = result
                probe = f", probe {result['probe'][str(epoch)]:.2%}" if str(epoch) in result["probe"] else ""
                print(f"{job.label:26s} epoch {epoch}: {result['epochs'][-1]:.1f} s{probe}", flush=True)
    finally:
        for job in jobs:
            job.close()
    return found


def ask(job, **request):
    answer = job.ask(**request)
    if "error" in answer:
        raise RunError(f"main_job, {job.label}: {answer['error']}")
    return answer


def seconds_to(result, goal=GOAL):
    """Seconds of start-up and training until the first evaluation in which the probe reaches the goal, or None."""
    reached = [int(epoch) for epoch, accuracy in result["probe"].items() if accuracy >= goal]
    return result["start"] + sum(result["epochs"][:min(reached)]) if reached else None


def table(found, goal=GOAL):
    """Yield the lines of a Markdown table."""
    yield f"| | start | training | to {goal:.1%} | evaluation | in all | kNN h | probe h |\n"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|\n"
    for label, result in found.items():
        start = result["start"]
        training = sum(result["epochs"])
        evaluation = result["evaluation"]
        until = seconds_to(result, goal)
        yield (f"| {NAMES[label]} | {start:.1f} | {training:.1f} | {f'{until:.1f}' if until else 'not reached'} | "
               f"{evaluation:.1f} | {start + training + evaluation:.1f} | {result['metrics']['knn_h']:.2%} | "
               f"{result['metrics']['probe_h']:.2%} |\n")


# ---------------------------------------------------------------- the two sides

class Ours:
    """Trains as examples/simclr_mnist.py does."""

    def __init__(self, data, recipe, model, options):
        self.data, self.recipe, self.model = data, recipe, model
        self.batches = Batches(len(data.train_images), recipe["batch"], seed=recipe["seed"])
        self.rng = np.random.default_rng(recipe["seed"])
        self.augment = mnist_views()
        self.optimizer = AdamW(model, recipe["lr"], weight_decay=recipe["weight_decay"])

    def step(self, step, lr):
        images = to_float(self.data.train_images[self.batches[step]], np)
        h, z = self.model(np.concatenate(two_views(self.augment, images, self.rng)))
        loss = nt_xent(z[:len(images)], z[len(images):], self.recipe["tau"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step(lr)

    def features(self, images):
        return encode(self.model, images, np)


class Theirs:
    """Trains the same in PyTorch, written as its users write it."""

    def __init__(self, data, recipe, model, options):
        import torch

        from benchmarks import torch_models

        self.torch = torch
        self.torch_models = torch_models
        self.recipe = recipe
        self.peer = Peer(torch, **options)
        torch.set_num_threads(int(os.environ["MINICL_THREADS"]))
        torch.manual_seed(recipe["seed"])
        self.net = torch_models.like(model, self.peer)
        self.optimizer = torch_models.adamw(self.net, recipe["lr"], recipe["weight_decay"], self.peer)
        self.batches = Batches(len(data.train_images), recipe["batch"], seed=recipe["seed"])
        self.images = self.bytes(data.train_images)

    def bytes(self, images):
        return self.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def step(self, step, lr):
        images = self.images[self.torch.from_numpy(self.batches[step])].float() / 255
        views = self.torch.cat([self.torch_models.mnist_views(images), self.torch_models.mnist_views(images)])
        if self.peer.channels_last:
            views = views.contiguous(memory_format=self.torch.channels_last)
        loss = self.torch_models.nt_xent(self.net(views), self.recipe["tau"])
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def features(self, images):
        self.net.eval()
        with self.torch.no_grad():
            h = [self.net.encoder(part.float() / 255) for part in self.bytes(images).split(500)]
            z = [self.net.head(part) for part in h]
        self.net.train()
        return self.torch.cat(h).numpy(), self.torch.cat(z).numpy()


def evaluate(side, data, only_probe):
    """{name: accuracy}, by the functions of minicl.evaluate.frozen_accuracies."""
    labels = data.train_labels, data.test_labels
    train, test = (dict(zip("hz", side.features(images))) for images in (data.train_images, data.test_images))

    def of(function, space, **options):
        return function(train[space], labels[0], test[space], labels[1], **options)

    metrics = {"probe_h": of(linear_probe, "h", C=PROBE_C)}
    if not only_probe:
        metrics |= {f"knn_{space}": of(knn_accuracy, space, k=min(20, len(labels[0]))) for space in "hz"}
        metrics["probe_z"] = of(linear_probe, "z", C=PROBE_C)
    return metrics


def main(library, options):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                            # keeps the libraries' output out of the answers

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    answer(ready=True)
    try:
        serve(answer, library == "minicl", options)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")


def serve(answer, ours, options):
    """Answer the requests of measure(): a recipe first, then epochs and evaluations."""
    recipe = json.loads(sys.stdin.readline())["recipe"]
    with threads(**options) if ours else contextlib.nullcontext():
        data = load_images(recipe["data"], recipe["data_dir"], seed=recipe["seed"], log=print)
        items = slice(recipe["items"])
        data = dataclasses.replace(data, **{f"{split}_{part}": getattr(data, f"{split}_{part}")[items]
                                            for split in ("train", "test") for part in ("images", "labels")})
        side = (Ours if ours else Theirs)(data, recipe, SimCLRStep(side=data.train_images.shape[1]).model(), options)
        answer(ready=True)
        each = side.batches.per_epoch
        total = recipe["epochs"] * each
        while line := sys.stdin.readline():
            request = json.loads(line)
            start = time.perf_counter()
            if "epoch" in request:
                for step in range(request["epoch"] * each, (request["epoch"] + 1) * each):
                    side.step(step, warmup_cosine(step, total=total, peak=recipe["lr"], warmup=total // 10))
                answer(seconds=time.perf_counter() - start)
            else:                                            # keeps PyTorch's allocator as it is in its epochs
                with contextlib.nullcontext() if ours else threads(keep_memory=False):
                    metrics = evaluate(side, data, request["only_probe"])
                answer(seconds=time.perf_counter() - start, metrics=metrics)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[3]))
