"""Measure how time and memory grow with N, and write docs/scaling.md.

    python tests/benchmarks/scaling.py --peer torch --seconds 45 --minutes 15 --table docs/scaling.md      # on idle cores

N grows by a factor of four. A candidate leaves out a size if its last two sizes predict that a step would take more
than --seconds or two thirds of the free memory, or that the run would exceed --minutes. Needs Linux or macOS.
With mpi4py (the extra mpi) it ends with several processes, as measured by processes.py.
"""

import argparse
import importlib.util
import math
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":                      # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

import numpy as np  # noqa: E402

from benchmarks import processes  # noqa: E402
from benchmarks.candidates import Candidate  # noqa: E402
from benchmarks.curves import CURVES, LOSSES, SIZES, STEPS  # noqa: E402
from benchmarks.harness import Worker, time_all  # noqa: E402
from benchmarks.machine import describe  # noqa: E402
from benchmarks.records import load, require_writable  # noqa: E402
from benchmarks.report import machine, milliseconds  # noqa: E402
from minicl.backend import available_cores  # noqa: E402
from minicl.files import write_json  # noqa: E402
from minicl.options import at_least, within  # noqa: E402
from minicl.run import RunError, command  # noqa: E402

INTRO = """\
# Scaling

How time and memory grow with the number of items, for the losses (value and gradient, 128 dimensions) and for whole training
steps, as measured by

    {command}

A loss of all pairs takes time that grows as N^2. NT-Xent, CLIP's loss, MoCo's, DCL and uniformity compute the matrix of
similarities a tile at a time, so their memory grows as N; SigLIP and SupCon store it, as PyTorch does. MoCo's loss compares
256 queries with N keys, and VICReg, Barlow Twins and the triplet loss compare only the N given pairs, so their time grows as N too. A
training step takes N times the encoder's time for one item, and the loss's N^2, which is little until N is in the thousands.
`tests/benchmarks/processes.py` divides a loss and a step between processes; with MPI its times are the last table.

- Times are milliseconds a step: medians of {rounds} rounds that alternate between all candidates, each in a process of its own.
  A step of more than {slow:g} s is measured once, after another that maps its memory. PyTorch uses {threads} threads too, and both keep freed memory for the next step.
- **model** is the arithmetic over the machine's rates, measured in the same run on {threads} threads: products at {flops:.0f} GFLOP/s,
  exponentials at {exps:.1f} a nanosecond, copies at {bytes:.0f} GB/s. NT-Xent of N views takes 4 N^2 d multiplications and
  additions, and N^2 exponentials; up to about 2,000 views, whose tiles are kept for the backward pass, 3 N^2 d and half as many.
- **memory** is the peak that a step adds to the process, in MiB; the median of three processes if it takes less than 0.3 s.
  PyTorch's is more than in [benchmarks](benchmarks.md), where it returns freed memory to the system.
- **Exponents** are b of a fit a N^b to the three largest sizes. **Memory ends** at the N that would fill this machine's
  {ram:.0f} GB if the peak went on growing like that.
- A size is left out if the two sizes before it predict more than {seconds:g} s a step or two thirds of the free memory, or a run
  that takes too long.
"""
ALL, ONE, PEER = "minicl", "minicl, 1 thread", "torch, kept"
PROCESSES = "Several processes"
ROUNDS, BLOCK, SLOW = 3, 0.1, 2.0                # rounds for every size; seconds


def main(argv=None):
    args = parse(argv)
    require_writable(json=args.json, table=args.table)
    if not any(wanted(args, title) for title in [*(curve.title for curve in CURVES), PROCESSES]):
        raise RunError(f"--only {' '.join(args.only)}: no such loss or step; there are\n    "
                       + "\n    ".join([*(curve.title for curve in CURVES), PROCESSES]))
    if args.read:
        record = load("--read", args.read, "curves", ("command", "machine", "threads", "seconds", "ram", "rates"), ())
        record["curves"] = {title: results for title, results in record["curves"].items() if wanted(args, title)}
        record["processes"] = record.get("processes", {}) if wanted(args, PROCESSES) else {}
        if args.json:
            write_json(args.json, record)
    else:
        record = run(args)
    page = document(record)
    if args.table:
        args.table.write_text(page)
    else:
        print(page, end="")


def parse(argv=None):
    outcome = argparse.ArgumentParser(add_help=False)
    add = outcome.add_argument_group("output").add_argument
    add("--table", type=Path, metavar="FILE", help="write the page docs/scaling.md; default: print it")
    add("--json", type=Path, metavar="FILE", help="write the measurements to FILE")
    add("--read", type=Path, metavar="FILE", help="show the measurements in FILE instead of measuring")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[outcome])
    add = parser.add_argument_group("measurements").add_argument
    add("--peer", choices=("none", "torch"), default="none", help="the library to compare with")
    add("--only", nargs="+", default=[""], metavar="PART", help="parts of names of losses and steps")
    add("--most", type=at_least(SIZES[0]), default=SIZES[-1], help="the largest N; default: %(default)s")
    add("--seconds", type=within("(0, inf)"), default=20.0, help="the longest step; default: %(default)s")
    add("--minutes", type=within("(0, inf)"), default=8.0, help="no size begins that would end later; default: %(default)s")
    args = parser.parse_args(argv)
    if args.peer == "torch" and not args.read and importlib.util.find_spec("torch") is None:
        raise RunError("--peer torch: PyTorch is not installed; pip install torch, or leave --peer out")
    args.command = shlex.join(["python", "tests/benchmarks/scaling.py", *outcome.parse_known_args(argv)[1]])
    return args


# ---------------------------------------------------------------- measuring

def run(args):
    """Measure the smaller sizes of all curves first; returns a record for JSON."""
    end = time.perf_counter() + 60 * args.minutes
    cores = available_cores()
    candidates = [(Candidate(ALL, kept=True), cores)] + [(Candidate(ONE, kept=True), 1)] * (cores > 1) + (
        [(Candidate(PEER, kept=True, fused=True), cores)] if args.peer == "torch" else [])
    chosen = [curve for curve in CURVES if wanted(args, curve.title)]
    curves = {curve.title: {} for curve in chosen}
    workers = [Worker(candidate, "numpy", threads, "float32") for candidate, threads in candidates]
    rates = [workers[0].ask(rates=True)]
    several = {}

    def record():
        found = {"command": args.command, "machine": describe("numpy", cores, "float32"), "threads": cores, "curves": curves,
                 "processes": several, "seconds": args.seconds, "ram": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                 "rates": {kind: max(rate[kind] for rate in rates) for kind in rates[0]}}
        if args.json:
            write_json(args.json, found)
        return found

    try:
        for N in SIZES:
            for curve in chosen:
                case, before = curve.cases[N], curves[curve.title]
                able = [worker for worker in workers if N <= args.most and (worker.label == ALL or case.torch)
                        and may_run(before, worker.label, N, args.seconds, end - time.perf_counter())]
                if able:
                    before[str(N)] = result = time_all(case, able, blocks=ROUNDS, block=BLOCK, starts=3, slow=SLOW)
                    print(f"{case.name:50s}" + "".join(f"  {label} {milliseconds(median)} ms {memory or 0:.0f} MiB"
                          for label, (median, memory) in points(result).items()), file=sys.stderr, flush=True)
            if N <= args.most:
                rates.append(workers[0].ask(rates=True))
                record()                                                     # in case the run is interrupted
    finally:
        for worker in workers:
            worker.close()
    if wanted(args, PROCESSES) and cores > 1 and processes.find_mpirun():
        for name, found in processes.compare(cores, ROUNDS, args.most, end):
            several[name] = found
            print(processes.row(name, found), file=sys.stderr, flush=True)
    return record()


def wanted(args, title):
    return any(part.lower() in title.lower() for part in args.only)


def points(result):
    """{label: (seconds, MiB)} of a result of time_all()."""
    return {label: (statistics.median(rounds), result["peak"][label]) for label, rounds in result["rounds"].items()}


def series(results, label):
    """(sizes, seconds, MiB) of a candidate, as arrays."""
    rows = [(int(N), *points(result)[label]) for N, result in results.items() if label in points(result)]
    return np.array(rows, dtype=float).reshape(-1, 3).T


def exponent(sizes, values, last=3):
    """b of the fit a N^b to the last sizes; None for fewer than two sizes."""
    sizes = sizes[-last:]
    values = np.maximum(values[-last:], 1e-9)
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else None


def may_run(results, label, N, seconds, left):
    """Whether a step of size N is expected to stay within the limits of time and memory."""
    sizes, times, memory = series(results, label)
    if not results:
        return True
    if not len(sizes) or str(int(sizes[-1])) != list(results)[-1]:           # an earlier size was left out
        return False
    time, need = (values[-1] * (N / sizes[-1])**max(1, min(2.2, exponent(sizes, values, 2) or 2))
                  for values in (times, memory))
    return time <= seconds and 1.5 * need * 2**20 <= free_memory() and (4 if time < SLOW else 3) * time + 2 <= left


def free_memory():
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


# ---------------------------------------------------------------- the page

def document(record):
    rates = {kind: rate / 1e9 for kind, rate in record["rates"].items()}
    intro = INTRO.format(command=record["command"], rounds=ROUNDS, slow=SLOW, threads=record["threads"], **rates,
                         ram=record["ram"] / 1e9, seconds=record["seconds"])
    parts = [intro, machine(record), *(["## Exponents\n", summary(record)] if record["curves"] else [])]
    for heading, curves in ("Losses", LOSSES), ("Training steps", STEPS):
        curves = [curve for curve in curves if record["curves"].get(curve.title)]
        alone = [curve for curve in curves if not curve.cases[SIZES[0]].torch]
        tables = [table(curve, record) for curve in curves if curve not in alone]
        tables += [together(alone, record)] if alone else []
        parts += [f"## {heading}\n", *tables] if tables else []
    if record.get("processes"):
        lines = [processes.heading(record["threads"]), *(processes.row(*item) for item in record["processes"].items())]
        parts.append(f"## {PROCESSES}\n\n" + "".join(line + "\n" for line in lines))
    return "\n".join(parts)


def rows_of(cells):
    """Lines of a Markdown table of dicts with the same keys; columns without entries are left out."""
    headings = [heading for heading in cells[0] if any(row[heading] for row in cells)]
    lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *([row[heading] for heading in headings] for row in cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def table(curve, record):
    """The Markdown table of a curve's times and memory at each size."""
    cells = []
    for N, result in record["curves"][curve.title].items():
        at = points(result)
        work = curve.cases[int(N)].work()
        rates = record["rates"]
        model = sum(getattr(work, kind) / rate for kind, rate in rates.items())
        both = ALL in at and PEER in at
        cells.append({
            curve.unit: f"{int(N):,}",
            "1 thread": milliseconds(at[ONE][0]) if ONE in at else "",
            f"{record['threads']} threads": milliseconds(at[ALL][0]) if ALL in at else "",
            "model": milliseconds(model) if model else "",
            "of the model": f"{at[ALL][0] / model:.2f}" if model and ALL in at else "",
            "PyTorch": milliseconds(at[PEER][0]) if PEER in at else "",
            "of PyTorch": f"{at[ALL][0] / at[PEER][0]:.2f}" if both else "",
            "memory": mebibytes(at.get(ALL)), "PyTorch's memory": mebibytes(at.get(PEER))})
    return f"### {curve.title}\n\n{rows_of(cells)}"


def together(curves, record):
    """The Markdown table of times and memory of the curves without a peer."""
    sizes = {N: None for curve in curves for N in record["curves"][curve.title]}
    cells = []
    for N in sizes:
        at = {curve.title: points(record["curves"][curve.title].get(N, {"rounds": {}})).get(ALL) for curve in curves}
        cells.append({curves[0].unit: f"{int(N):,}"} | {
            title: f"{milliseconds(point[0])}, {mebibytes(point)} MiB" if point else "" for title, point in at.items()})
    return f"### Others, on {record['threads']} threads\n\n{rows_of(cells)}"


def mebibytes(point):
    return f"{point[1]:,.0f}" if point and point[1] is not None else ""


def summary(record):
    """The Markdown table of each curve's exponents, and of the N at which memory ends."""
    cells = []
    for curve in CURVES:
        results = record["curves"].get(curve.title)
        if results:
            row = {"": curve.title, "N": curve.unit}
            for label, of in (ALL, ""), (PEER, "PyTorch's "):
                sizes, times, memory = series(results, label)
                growth = exponent(sizes, memory)
                row |= {f"{of}time": f"{exponent(sizes, times):.2f}" if growth is not None else "",
                        f"{of}memory": f"{growth:.2f}" if growth is not None else "",
                        f"{of}memory ends": ends(sizes[-1], memory[-1], growth, record["ram"]) if growth is not None else ""}
            cells.append(row)
    return rows_of(cells)


def ends(size, mib, growth, ram):
    """The N at which the peak would fill the machine's memory, rounded to two digits."""
    if growth < 0.5 or mib < 1:
        return "not in sight"
    N = size * (ram / (mib * 2**20))**(1 / growth)
    if N > 1e9:
        return "beyond 10^9"
    digits = 10**(math.floor(math.log10(N)) - 1)
    return f"{round(N / digits) * digits:,}"


if __name__ == "__main__":
    command(main)
