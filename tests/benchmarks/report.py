"""Generate docs/benchmarks.md from records of measurements, and the lines that a run prints."""

import statistics

from . import main_job
from .cases import CASES
from .metrics import fastest, metrics

INTRO = """\
# Benchmarks

Times and memory of minicl, compared with PyTorch on the same machine and with the machine's own limits, as measured by

    {command}

`--table` generates this whole page. `--only PATTERN` measures a part. `--check` compares with the ratios in
[tests/benchmarks/baseline.json](../tests/benchmarks/baseline.json) and reports what became slower by more than the noise.
The test suite measures nothing here; [tests/test_benchmarks.py](../tests/test_benchmarks.py) tests that both sides of a
case have the same losses and gradients.

## How to read it

- Times are milliseconds a step: the median over {rounds}, and in brackets the smallest and the largest.
  Each round starts every candidate again, in a process of its own with {threads}, because a shared machine is faster in
  some minutes than in others, and some processes are slower than others. In a round the candidates take turns, three
  times each, and the median of the three counts (a step over 0.3 s is timed once).
  The speed of a shared machine varies from day to day, so compare ratios, not times, between runs.
- **of PyTorch** is minicl's time over PyTorch's, both with their defaults: minicl within `threads()`, which keeps freed
  memory for the next step; PyTorch eager, with images stored channels first, and freed memory returned to the system.
  Below 1 minicl is faster. The ratio is the median of the rounds' ratios, and ± half the distance from their 10th to
  their 90th percentile.
- **not kept** is minicl within `threads(keep_memory=False)`: every step maps and clears its pages again.
- **of its best** is the faster of minicl's two candidates over PyTorch's fastest. "Kept" is PyTorch with glibc set to keep
  freed memory, `{kept}`.
  PyTorch's other candidates store images channels last, have a fused optimizer, or are compiled by
  torch.compile{compiled}.
- **memory** is the peak that a step adds to the process, in MiB: minicl over PyTorch, both with their defaults;
  the median over the rounds.
- **floor** is minicl's time over the minimum that the machine's own rates allow. They are measured before each case in each
  round, and the best of a case count. Their medians are: products at {flops:.0f} GFLOP/s, copies at {bytes:.0f} GB/s, {exps:.1f} exponentials a nanosecond.
  The letter names the rate that bounds the case: p, c or e. It is below 1 where an implementation does less than the count
  assumes: Winograd's form takes fewer products, and taps outside the image take none.
- **launches**, on a GPU, is the number of kernels that a step starts: minicl / PyTorch.
- † other processes used the machine during more than a fifth of the case's measurements: read it with care. (PyTorch's
  threads wait for each other and suffer more than minicl's.)
- The project's own target follows as ≤, with ✓ if met and ✗ if missed.
"""

MAIN_JOB = """\
## A whole training

Seconds of a program that trains as `examples/simclr_mnist.py` does with its default options, seed 0, and of PyTorch programs
with the same network, weights, batches, optimizer and schedule, and augmentations of the same kind. All draw other random
numbers than the script. They take turns epoch by epoch, and minicl evaluates the features of all: kNN, and a linear probe, of h
and z. Start is imports, data and the model. "To {goal:.1%}" is start and training until the probe of h is first right on
{goal:.1%} of the test images; it is evaluated after each epoch from the {first}th on.
"""
DISTURBED = 0.2          # share of a case's blocks
NO_GPU = """\
No time has been measured on a GPU yet, nor has the test suite run on one. It runs on CuPy itself without a GPU: NVIDIA's
compiler accepts its kernels for an H100, and they then run on the CPU (tests/host_cuda is a CUDA driver for machines without
a GPU). All cases above but `import minicl` and the whole training run on a GPU too, with some more that only suit a GPU (ResNet-18 at batch 512, NT-Xent at 2N = 65,536).
On a GPU the first command tries everything within the given minutes; the others run all tests and all benchmarks:

    python tests/gpu_first_run.py --minutes 9
    python -m pytest --backend cupy
    python tests/benchmarks/run.py --backend cupy --peer torch --json gpu.json
"""
LAUNCHES = """\
The work that a training step launches can be counted without a GPU: kernels, products and copies, and waits of the host for
a result. A launch takes 10 to 20 microseconds of the host's time whatever its size, so launches limit a small network. These
counts are from the stand-in for CuPy. `python tests/host_cuda` counts on CuPy itself: within 3 % of these, except for CPC
(205). These steps do not read the loss, which would be one wait. `python tests/host_cuda` also prints the host's time with a device that computes nothing: about 5 ms
for SimCLR's step on a core that needs 4 microseconds for a ufunc. Without its views the step is 95 launches and 3 ms.

`--precision bf16` rounds the operands of convolutions and linear layers to 2 bytes ([precision](runs.md#precision-on-a-gpu)).
`python tests/benchmarks/precision.py` computes what that could save at an H100's published rates: for a step of SimCLR's
convnet at batch 512, 0.05 ms of the device's time compared with tf32, which is less than the host needs; for ResNet-18's
convolutions and norms, 30 ms instead of 44 with tf32 and 77 with float32. Nearly all of what it saves over tf32 is memory traffic.
"""
COMMUNICATION = """\
## Several processes

The data that two processes exchange in a training step of each example, and in NT-Xent's forward and backward pass, counted by

    python tests/benchmarks/communication.py

The counts are exact: they follow from shapes. KiB refer to the whole array that is summed, gathered or scattered.
`--processes 8` counts for eight: the calls are the same, and so are the KiB, except for batch norm's statistics. In addition
the processes agree once a step, in 4 bytes, whether to stop and, in 4 bytes a parameter, which have a gradient, and in each loss,
in 16 bytes, that all have as many rows.
`python tests/benchmarks/processes.py` times one and two processes: [scaling](scaling.md#several-processes).
"""
TRIED = """\
## What was tried and is not used

Measured by prototypes with 2 threads, on an Intel Xeon where a row names no processor: both forms took turns, and a ratio is
the new time over the old one. A change is used if it saves 3 % of a training step or 10 % of a case, and costs neither
accuracy nor much memory, nor needs a special build of Python.

| idea | expected | measured | why |
|---|--:|--:|---|
| Winograd F(4x4, 3x3) compared with the form used now: 64; 128, 256 channels | 0.75; 0.75–0.9 | 0.81; 0.84, 1.05 | Its transforms enlarge rounding errors: those of y are 0.7 to 1.5e-5 of the maximum, 20 to 54 times PyTorch's (5 to 7 times with channels last). At most twice was allowed. |
| F(2x2, 3x3) at 64 channels, its transforms as matrix products | | 1.08 | The tiles' copies take what the products save. Its error, 4e-7, would be small enough. |
| convolution and batch norm's sums in one pass, forward, backward | 0.99 of a step | 1.07, 1.03 of the layers | Probably the sums' arithmetic takes the time, not the reading. A step would take 0.9 ms more. |
| batch norm, residual and ReLU in one loop | 0.97–0.98 of a step | 0.78–0.82 | The same bits, but 19 of the 1377 ms of a ResNet-18 step of 64 images: 0.986. |
| batch norm's mask kept as bools, or g masked by products of integers; on an AMD EPYC | 0.92 | 0.98–1.02, 0.93–0.97 of the layer | It makes 15 passes, 0.13 ns an entry on one thread, 0.17 on two: none stands out. |
| batch norm's forward sums about 0 where that rounds little; also backward sums from y; on an AMD EPYC | 0.87 | 0.95; 0.90 of the layer | 0.97 of a step, and dw with up to 13 times PyTorch's error. |
| slices of Adam of 2^14 to 2^18 entries instead of 2^16 | | 1.00–2.0 | Its 12 passes over a slice take 0.19 ns an entry each. |
| free-threaded CPython 3.13, without its GIL beside with it: SimCLR ConvNet; MoCo, CLIP, MLP step; with raised priority, on an AMD EPYC | 0.83 | 0.87 ± 0.03; 0.89, 0.89, 0.96 | It pays, with the same bits: both threads are busy for 84 to 86 % of a ConvNet step with the GIL. But it takes a build of Python of one's own. |
| space-to-depth of the input for stride 2: 32->64; 64->128 channels, 512 of 14x14, on an AMD EPYC | 1.05 | 1.01; 1.05 | A pixel of all images is a contiguous matrix whatever the stride, so this only adds a copy. A product of a whole row of pixels takes 1.36; 1.09 (with OpenBLAS's AVX2 kernels 0.93; 0.94). |
| exponentials of up to 256 MiB instead of 16 saved for the backward pass: NT-Xent 2N=8192, on an AMD EPYC | 0.75 | 0.82–0.85 | The peak grows from 27 to 165 MiB, a fifth of PyTorch's instead of a thirtieth. |
| threads that watch for work for 1 ms; 50 µs before they sleep: MLP, CLIP step, on an AMD EPYC | 0.93 | 0.97, 0.98; 1.0, 0.99 | Waking one takes 20 to 50 µs, 15 to 64 times a step. But beside one busy process the MLP step takes 1.4 times as long. |
| linear's three gradients in one loop, ReLU within linear, threads for small arrays, wider tiles, aligned memory, pinned threads, whole-pixel copies | | over 0.97 of a step | Products and passes over memory take the time. |

Where the time goes: shares of the wall time, by profiles on that Xeon while other programs ran.

- SimCLR ConvNet: convolutions 50 % (products and copies); batch norm with ReLU 34 % (NumPy's passes over memory).
- SimCLR MLP: linear layers 64 % (products); Adam 11 % and NT-Xent 11 % (passes).
- MoCo: its loss 49 % (products and exponentials over 65,536 keys); convolutions 23 %; batch norm 19 %.
- CLIP: convolutions 41 %, batch norm 18 %, linear layers 11 %, layer norm 7 %.
- Affine warp: corners and their indices 40 %, gathers 30 %, blending 19 %, coordinates 8 % (all passes).
- Crop and resize: weights 42 % (passes), products of 28 x 28 matrices 58 %. Tape: Python's calls 79 %, arithmetic 21 %.
"""


def document(cpu, gpu=None, launches=None, communication=None):
    """The page, as a string, from a record of a run with --backend numpy, optionally one with --backend cupy, and the
    results of launches_per_step() and communication.table()."""
    rates = [result["rates"] for result in cpu["cases"].values()]
    typical = {kind: statistics.median(rate[kind] for rate in rates) / 1e9 for kind in rates[0]}
    compiled = any("torch, compiled, kept" in result["rounds"] for result in cpu["cases"].values())
    commands = cpu["command"].splitlines()
    if len(commands) > 3:
        commands[1:] = ["# in parts, and some of them again, by --only"]
    parts = [INTRO.format(command="\n    ".join(commands), rounds=number(cpu["rounds"], "round"),
                          threads=number(cpu["threads"], "thread"), **typical,
                          kept=" ".join(f"{name}={value}" for name, value in cpu["kept"].items()),
                          compiled="" if compiled else " (not in this run)")]
    parts += ["## On the CPU\n", machine(cpu), *tables(cpu), summary(cpu, named=False)]
    if cpu.get("main_job"):
        parts += [MAIN_JOB.format(goal=main_job.GOAL, first=main_job.FIRST), "".join(main_job.table(cpu["main_job"]))]
    parts += ["## On a GPU\n", *([machine(gpu), *tables(gpu), summary(gpu, named=False)] if gpu else [NO_GPU])]
    if launches:
        parts += [LAUNCHES, "| training step | launches | waits |\n|---|--:|--:|\n"
                  + "".join(f"| {method} | {count} | {waits} |\n" for method, (count, waits) in launches.items())]
    if communication:
        parts += [COMMUNICATION, "".join(line + "\n" for line in communication)]
    return "\n".join(filter(None, [*parts, TRIED]))


def number(n, noun):
    return f"{n} {noun}{'s' * (n != 1)}"


def marked(case, result):
    return case.name + " †" * (result["disturbed"] > DISTURBED)


def machine(record):
    return "".join(f"- {name}: {value}\n" for name, value in record["machine"])


def tables(record):
    families = dict.fromkeys(CASES[name].family for name in in_order(record))
    for family in families:
        rows = [row(CASES[name], record["cases"][name]) for name in in_order(record) if CASES[name].family == family]
        headings = [heading for heading in rows[0] if any(cells[heading] for cells in rows)]
        lines = [headings, ["---"] + ["--:"] * (len(headings) - 1)]
        lines += [[cells[heading] for heading in headings] for cells in rows]
        yield f"### {family.capitalize()}\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def in_order(record):
    return [name for name in CASES if name in record["cases"]]


def row(case, result):
    """{heading: cell} for a case."""
    found = metrics(case, result)
    rounds = result["rounds"]
    best = fastest(result, "torch")

    def cell(label):
        return times(rounds.get(label)) or result["errors"].get(label, "").split(":")[0]

    def pair(kind):
        both = [f"{result[kind][label]:.0f}" for label in ("minicl", "torch") if result[kind].get(label) is not None]
        return " / ".join(both)

    aim = f" {'✓' if found['seconds'].met else '✗'} ≤ {case.target.seconds * 1e3:g}" if case.target.seconds else ""
    how = best.removeprefix("torch").removeprefix(", ") or "as installed" if best else ""
    bound = case.work().floor(result["rates"])[1]
    return {
        "case": marked(case, result),
        "minicl": cell("minicl") + aim,
        "not kept": cell("minicl, not kept"),
        "PyTorch": cell("torch"),
        "its best": f"{milliseconds(statistics.median(rounds[best]))} {how}" if best else "",
        "of PyTorch": str(found.get("default", "")),
        "of its best": str(found.get("best", "")),
        "memory": pair("peak") + (f" = {found['memory']}" if "memory" in found else ""),
        "floor": f"{found['floor']} {dict(flops='p', bytes='c', exps='e')[bound]}" if "floor" in found else "",
        "launches": pair("launches"),
    }


def times(rounds):
    if not rounds:
        return ""
    return f"{milliseconds(statistics.median(rounds))} ({milliseconds(min(rounds))}–{milliseconds(max(rounds))})"


def milliseconds(seconds):
    """Milliseconds, with three digits."""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def summary(record, named=True):
    """The number of targets met and, if named, the list of those missed; "" without targets."""
    aimed = [(name, kind, figure) for name in in_order(record)
             for kind, figure in metrics(CASES[name], record["cases"][name]).items() if figure.target is not None]
    missed = [f"- {marked(CASES[name], record['cases'][name])}: {WORDS[kind]} {figure}\n"
              for name, kind, figure in aimed if not figure.met]
    if not aimed:
        return ""
    return f"{len(aimed) - len(missed)} of {len(aimed)} targets are met." + (
        " Missed:\n\n" + "".join(missed) if missed and named else "\n")


WORDS = {"default": "time over PyTorch's", "best": "time over PyTorch's best", "memory": "memory over PyTorch's",
         "floor": "time over the floor", "seconds": "seconds"}


def lines(case, result):
    """Yield what a run prints for a case: one line per candidate, then the metrics."""
    share = result["disturbed"]
    yield marked(case, result) + (f"   ({share:.0%} of its blocks were disturbed)" if share > DISTURBED else "")
    for label, rounds in result["rounds"].items():
        peak = result["peak"][label]
        yield f"    {label:26s} {times(rounds):>26s} ms" + (f" {peak:8.1f} MiB" if peak is not None else "")
    for label, message in result["errors"].items():
        yield f"    {label:26s} {message}"
    found = [f"{WORDS[kind]} {figure}" for kind, figure in metrics(case, result).items()
             if kind != "seconds" or figure.target]
    if found:
        yield "    " + "   ".join(found)
