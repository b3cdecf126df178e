"""The first minutes on a GPU: the most informative measurements first, within a time limit.

    python tests/gpu_first_run.py --minutes 9                    # writes to the folder gpu_first_run
    python tests/gpu_first_run.py --minutes 9 --emulated         # the same at tiny sizes on a machine without a GPU

The order: versions and card; the tests on CuPy; one epoch of SimCLR on MNIST; launches, waits and times of a training
step of each method, launched kernel by kernel and as one CUDA graph; losses and steps beside PyTorch (if it is installed),
and as shares of the card's peak rates; MoCo on CIFAR-10, ResNet-18, for as many epochs as fit. Each part gets a share of the
minutes; the next parts get what it leaves. A part that fails or runs out of time is reported, and the next one begins.
report.md is rewritten after each part. The exit status is 1 if a part failed, and 2 if an option is invalid.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests", ".", "examples")]

import numpy as np  # noqa: E402
from benchmarks.candidates import ON_GPU  # noqa: E402
from benchmarks.cases import CASES  # noqa: E402
from benchmarks.harness import Worker  # noqa: E402
from benchmarks.precision import convnet, resnet18  # noqa: E402
from benchmarks.precision import seconds as network_seconds  # noqa: E402
from benchmarks.steps import SimCLRStep  # noqa: E402
from host_cuda import build  # noqa: E402

from minicl.options import within  # noqa: E402

# Losses and steps to compare with PyTorch, the most informative first.
COMPARED = ["NT-Xent 2N=4096", "NT-Xent 2N=16384", "SimCLR step, convnet, batch 256", "MoCo's loss, batch 256, K=65536",
            "SimCLR step, resnet18, batch 512", "NT-Xent 2N=65536", "SimCLR step, convnet, batch 1024"]
ROUNDED = ["SimCLR step, resnet18, batch 512"]                        # the same step in tf32 and in bf16
# The tests to run first: ops and their gradients, losses, optimizers, whole steps.
TESTS = ["test_ops.py", "test_contrastive.py", "test_optim.py", "test_ema.py", "test_nn.py", "test_moco.py", "test_clip.py"]
ROUNDS = 5
ON_STARTUP = "from host_cuda import boot\nboot.load()\n"              # sitecustomize.py for the emulation's processes


class Ended(NamedTuple):
    """A finished script: its output, whether it ran out of time, and its exit status."""

    text: str
    late: bool                                                           # it ran out of time
    status: int

    def check(self):
        """Raise the script's last error if it ended before the time limit with an exit status other than 0."""
        if self.status and not self.late:
            lines = [f"exit status {self.status}", *filter(None, self.text.splitlines())]
            start = max((k for k, line in enumerate(lines) if "rror: " in line), default=-1)
            raise RuntimeError(" ".join(lines[start:][:5]))


class First:
    """What the parts share: options, the output folder, the time left, the report and the failures."""

    def __init__(self, args):
        self.args = args
        self.out = args.out
        self.start = time.monotonic()
        self.lines = []
        self.failed = []                                                 # names of parts, or of rows of a part
        self.tiny = args.emulated
        self.out.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:3])}
        if args.emulated:
            (self.out / "emulated").mkdir(exist_ok=True)
            (self.out / "emulated" / "sitecustomize.py").write_text(ON_STARTUP)
            self.environment["PYTHONPATH"] = os.pathsep.join([str(self.out / "emulated"), *sys.path[:3]])

    def left(self):
        return 60 * self.args.minutes - (time.monotonic() - self.start)

    def say(self, line=""):
        print(line, flush=True)
        self.lines.append(line)
        (self.out / "report.md").write_text("\n".join(self.lines) + "\n")

    def run(self, name, command, seconds):
        """Run a Python script within `seconds`, with its output in NAME.log; returns an Ended."""
        log = self.out / f"{name}.log"
        late = False
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=self.environment, stdout=file,
                                       stderr=subprocess.STDOUT)
            try:
                process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                late = True
                process.send_signal(signal.SIGINT)                       # the scripts save and end
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        return Ended(log.read_text(errors="replace"), late, process.wait())


# ---------------------------------------------------------------- the parts

def machine(first, seconds):
    show = "from benchmarks.machine import describe; import json; print(json.dumps(describe('cupy', 1, 'float32')))"
    ended = first.run("machine", ["-c", show], seconds)
    ended.check()
    if ended.late:
        raise RuntimeError("no answer in time")
    for name, value in json.loads(ended.text.strip().splitlines()[-1]):
        first.say(f"- {name}: {value}")
    if shutil.which("nvidia-smi"):
        first.say("```\n" + subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout.strip() + "\n```")


def tests(first, seconds):
    files = [f"tests/{name}" for name in (["test_ema.py"] if first.tiny else TESTS)]
    ended = first.run("tests", ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "cupy", "--minutes",
                                max(1, seconds - 15) / 60, *files], seconds)
    for line in [line for line in ended.text.splitlines() if line.startswith(("FAILED", "ERROR"))][:20]:
        first.say(f"- {line}")
    ended.check()
    first.say(f"{(ended.text.strip().splitlines() or ['no output'])[-1]}{' (cut short)' * ended.late}")


def epoch(first, seconds):
    out = first.out / "simclr_mnist"
    shutil.rmtree(out, ignore_errors=True)
    size = ["--encoder", "mlp", "--data", "digits", "--batch", 512] if first.tiny else []
    ended = first.run("simclr_mnist", ["examples/simclr_mnist.py", "--backend", "cupy", "--epochs", 1, "--seed", 0,
                                       "--out", out, "--log-every", 5, *size], seconds)
    log = out / "log.jsonl"
    losses = [json.loads(line).get("loss") for line in log.read_text().splitlines()] if log.exists() else []
    first.say(f"{'cut short; ' * ended.late}{len(losses)} lines of log, loss {losses[:1]} to {losses[-1:]}")
    ended.check()
    if (out / "result.json").exists():
        first.say("```json\n" + (out / "result.json").read_text().strip() + "\n```")


STEPS_SCRIPT = """
import json, sys
import numpy as np
from benchmarks.device_work import device_work
from cupyx.profiler import benchmark
from minicl import capture, get_backend
from training_steps import STEPS
xp = get_backend("cupy")

def medians(step):
    found = benchmark(step, n_repeat=int(sys.argv[2]), n_warmup=int(sys.argv[3]))
    return [1e3 * float(np.median(found.cpu_times)), 1e3 * float(np.median(found.gpu_times[0]))]

for method in json.loads(sys.argv[1]) or STEPS:
    step = STEPS[method](xp)
    times = [*device_work(step, xp.cuda.get_current_stream().synchronize), *medians(step)]
    captured, inputs = capture(xp, log=lambda reason: None)(step.on), step.draw()
    found = medians(lambda: captured(*inputs, 1e-3))
    times += found if captured.reason is None else [captured.reason]
    print(json.dumps([method, *times]), flush=True)
"""


def steps(first, seconds):
    """Launches, waits and times of a step of 16 images, which is nearly all launches; then the same as one CUDA graph."""
    methods, repeats, warmup = (["SimCLR", "CPC"], 2, 3) if first.tiny else ([], 20, 10)       # MoCo's queue needs 10
    ended = first.run("steps", ["-c", STEPS_SCRIPT, json.dumps(methods), repeats, warmup], seconds)
    first.say("| step of 16 images | launches | waits | kernels, ms | host ms | until the card is done, ms | captured: host ms "
              "| until done, ms |\n|---|--:|--:|--:|--:|--:|--:|--:|")
    for line in ended.text.splitlines():
        with contextlib.suppress(ValueError):
            method, launches, waits, *times = json.loads(line)
            cells = ["" if x is None else f"{x:.2f}" if isinstance(x, float) else x for x in times]
            counts = ["" if x is None else f"{x:.0f}" for x in (launches, waits)]
            first.say("| " + " | ".join([method, *counts, *cells, ""][:8]) + " |")
    first.say("\ncut short" * ended.late)
    ended.check()


def compared(first, seconds):
    """Alternate rounds of minicl and PyTorch, a process each; report medians, and the card's rates per precision."""
    has_torch = subprocess.run([sys.executable, "-c", "import torch; assert torch.cuda.is_available()"],
                               capture_output=True).returncode == 0
    start = time.monotonic()
    candidates = [c for c in ON_GPU if c.library == "minicl" or has_torch and c.label == "torch"]
    if not has_torch:
        first.say("PyTorch with CUDA is not installed: minicl alone.\n")
    for precision, names, share in ("float32", COMPARED, 0.7), ("bf16", ROUNDED, 0.85), ("tf32", ROUNDED, 1):
        _table(first, candidates, precision, names, start + share * seconds)


def _table(first, candidates, precision, names, end):
    environment = {"PYTHONPATH": first.environment["PYTHONPATH"]}
    workers = [Worker(c, "cupy", os.cpu_count() or 1, precision, environment=environment) for c in candidates]
    try:
        rates = _answer(workers[0], rates=True, tiny=first.tiny)
        first.say(f"The card: {rates['flops'] / 1e12:.3g} TFLOP/s in {precision} products, {rates['bytes'] / 1e9:.3g} GB/s, "
                  f"{rates['exps'] / 1e9:.3g} G exp/s.\n")
        first.say(f"| case, {precision} | minicl ms | torch ms | minicl / torch | MiB | torch MiB | minicl's share of the rates |\n"
                  "|---|--:|--:|--:|--:|--:|--:|")
        for name in names:
            if time.monotonic() < end:
                first.say(_row(first, CASES[name], precision, workers, rates, end))
        first.say()
    finally:
        for worker in workers:
            worker.close()


def _answer(worker, **request):
    answer = worker.ask(**request)
    if "error" in answer:
        raise RuntimeError(f"{worker.label}: {answer['error']}")
    return answer


def _shares(case, precision, rates, seconds):
    """The shares of the card's rates that a case reaches in `seconds`: the least work of a loss, or the arithmetic and the
    memory traffic of a step's convolutions and norms, as precision.py estimates them."""
    if isinstance(case, SimCLRStep) and case.encoder in ("convnet", "resnet18"):
        layers = convnet(case.side) if case.encoder == "convnet" else resnet18(case.side, case.width)
        least = {"flops": sum(network_seconds(layers, precision, 2 * case.batch, rates["flops"], math.inf)),
                 "bytes": sum(network_seconds(layers, precision, 2 * case.batch, math.inf, rates["bytes"]))}
    else:
        least = {kind: amount / rates[kind] for kind, amount in vars(case.work()).items()}
    return ", ".join(f"{least[kind] / seconds:.0%} of {kind}" for kind in least if least[kind])


def _row(first, case, precision, workers, rates, end):
    plans = {}
    peaks = {}
    errors = []
    for worker in workers:
        answer = worker.ask(case=case.name, tiny=first.tiny)
        if "error" in answer:
            errors.append(f"{worker.label}: {answer['error']}")
            first.failed += [case.name] * (worker.label == "minicl")
            continue
        peaks[worker.label] = answer["peak"]
        plans[worker.label] = max(1, math.ceil(0.1 / answer["seconds"]))
    times = {label: [] for label in plans}
    running = [worker for worker in workers if worker.label in plans]
    for k in range(ROUNDS):
        for worker in running[::1 if k % 2 == 0 else -1]:
            if time.monotonic() < end or not times[worker.label]:
                times[worker.label] += _answer(worker, bursts=1, burst=plans[worker.label])["seconds"]
    for worker in running:
        worker.ask(end=True)
    medians = {label: 1e3 * statistics.median(seconds) for label, seconds in times.items()}
    mine, peer = medians.get("minicl"), medians.get("torch")
    share = _shares(case.tiny() if first.tiny else case, precision, rates, mine / 1e3) if mine else ""
    cells = [f"{x:.3f}" if x else "" for x in (mine, peer, mine / peer if mine and peer else None)]
    memory = [f"{peaks[label]:.0f}" if peaks.get(label) is not None else "" for label in ("minicl", "torch")]
    return "| " + " | ".join([case.name, *cells, *memory, share or "; ".join(errors)]) + " |"


CIFAR = """
import sys
import numpy as np
from minicl.data import load_cifar10
data = load_cifar10()
np.savez(sys.argv[1], train_images=data.train_images, train_labels=data.train_labels, test_images=data.test_images,
         test_labels=data.test_labels)
"""


def training(first, seconds):
    """MoCo on CIFAR-10 with the settings of its authors' demo, except for AdamW: kNN on h after each epoch."""
    start = time.monotonic()
    data = first.out / "cifar10.npz"
    out = first.out / "moco_cifar10"
    shutil.rmtree(out, ignore_errors=True)
    size = ["--encoder", "resnet18", "--width", 64, "--queue", 4096, "--batch", 512, "--epochs", 200]
    if first.tiny:
        rng = np.random.default_rng(0)
        arrays = {f"{part}_{what}": array for part, n in (("train", 64), ("test", 30)) for what, array in (
            ("images", rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)), ("labels", np.arange(n) % 3))}
        np.savez(data, **arrays)
        size = ["--encoder", "convnet", "--width", 4, "--queue", 32, "--batch", 32, "--epochs", 1]
    elif not data.exists():
        ended = first.run("cifar10", ["-c", CIFAR, data], seconds / 3)
        ended.check()
        if ended.late:
            raise RuntimeError("CIFAR-10 was not read in time")
    ended = first.run("moco_cifar10", ["examples/moco_images.py", "--backend", "cupy", "--data-dir", data, "--size", 32,
                                       "--momentum", 0.99, "--tau", 0.1, "--evaluate-every", 1, "--out", out, *size],
                      seconds - (time.monotonic() - start))
    log = out / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not lines:
        ended.check()
        raise RuntimeError("no step in the time that was left; see moco_cifar10.log")
    first.say("Published end values, not a curve: the authors' demo has kNN 82.6 % after 200 epochs and 86.3 % after 400 (asymmetric "
              "loss, SGD). Here, after each epoch:\n")
    for line in [line for line in lines if any("knn" in name for name in line)][-40:] or lines[-1:]:
        first.say(f"- `{json.dumps(line)}`")
    ended.check()


PARTS = [("Machine", machine, 0.05), ("Tests on CuPy", tests, 0.2), ("SimCLR on MNIST, one epoch", epoch, 0.2),
         ("Steps", steps, 0.2), ("Beside PyTorch", compared, 0.5), ("MoCo on CIFAR-10", training, 1.0)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=within("(0, inf)"), default=9, help="time for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu_first_run"), help="folder (default: %(default)s)")
    parser.add_argument("--emulated", action="store_true", help="tiny sizes on the GPU that tests/host_cuda emulates")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    try:
        if args.emulated:
            build.build()                                                # takes a minute at first, before the time runs
    except build.Unavailable as error:
        parser.error(f"argument --emulated: {error}")
    try:
        first = First(args)
        first.say("# First run on a GPU" + " (emulated, tiny sizes: no time means anything)" * args.emulated)
    except OSError as error:
        parser.error(f"argument --out: expected a folder that can be written to, got {args.out}: {error.strerror}")
    for title, part, share in PARTS:
        first.say(f"\n## {title}\n")
        if first.left() < 5:
            first.say("no time left")
            continue
        start = time.monotonic()
        try:
            part(first, share * first.left() if share < 1 else first.left() - 15)
        except Exception as error:
            first.failed.append(title)
            first.say(f"failed: {type(error).__name__}: {error}")
        first.say(f"\n({time.monotonic() - start:.0f} s)")
    print(f"written to {args.out / 'report.md'}" + ("; failed: " + ", ".join(first.failed) if first.failed else ""))
    return 1 if first.failed else 0


if __name__ == "__main__":
    sys.exit(main())
