"""Time minicl beside PyTorch and beside the machine's own limits, if possible on an otherwise idle machine.

    python tests/benchmarks/run.py --peer torch                          # all cases; about fifteen minutes
    python tests/benchmarks/run.py --peer torch --only NT-Xent "conv*"   # parts of names, or globs
    python tests/benchmarks/run.py --peer torch --only main_job          # a whole training on MNIST; eight minutes
    python tests/benchmarks/run.py --peer torch --check                  # exit code 1 if something became slower
    python tests/benchmarks/run.py --backend cupy --peer torch           # on a GPU

Without --peer minicl is compared only with the machine's own rates. Needs Linux or macOS (processes are forked).
"""

import argparse
import fnmatch
import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":                      # for the packages benchmarks and minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

from benchmarks import main_job  # noqa: E402
from benchmarks.candidates import CANDIDATES, KEPT, ON_GPU  # noqa: E402
from benchmarks.cases import CASES  # noqa: E402
from benchmarks.communication import table  # noqa: E402
from benchmarks.harness import Worker, join, measure  # noqa: E402
from benchmarks.launches import launches_per_step  # noqa: E402
from benchmarks.machine import describe  # noqa: E402
from benchmarks.metrics import baseline_of, compared_kinds, metrics, regressions  # noqa: E402
from benchmarks.records import load, require_writable  # noqa: E402
from benchmarks.report import document, lines, summary  # noqa: E402
from minicl.backend import PRECISIONS, available_cores, get_backend  # noqa: E402
from minicl.files import write_json  # noqa: E402
from minicl.options import at_least, folder  # noqa: E402
from minicl.run import RunError, command  # noqa: E402

MAIN_JOB = "main_job"
BASELINE = Path(__file__).with_name("baseline.json")


def main(argv=None):
    args = parse(argv)
    records = [read("--read", path) for path in args.read]
    backends = [record["backend"] for record in records] or [args.backend]
    cases = chosen(args, backends[0], *(record["cases"] for record in records[:1]))
    baselines = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    baseline = baselines.setdefault(backends[0], {})
    refuse_what_fails_later(args, cases, backends, baseline)
    record, *others = records or [run(args, cases)]
    if records:
        record = {**record, "cases": {case.name: record["cases"][case.name] for case in cases}}
        print("".join(line + "\n" for case in cases for line in lines(case, record["cases"][case.name])), end="")
    if args.table:
        by_backend = {each["backend"]: each for each in (record, *others)}
        args.table.write_text(document(by_backend["numpy"], by_backend.get("cupy"), launches_per_step(), table()))
    print(summary(record), end="")
    found = {case.name: metrics(case, record["cases"][case.name]) for case in cases}
    code = check(found, baseline) if args.check else 0
    if args.save_baseline:
        for name, measured in found.items():
            baseline[name] = baseline.get(name, {}) | baseline_of(measured)
        write_json(BASELINE, baselines)
    return code


def parse(argv=None):
    """The parsed options; args.command is the command line without the options for output."""
    outcome = argparse.ArgumentParser(add_help=False)
    add = outcome.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="FILE", help="add all measurements to those in FILE")
    add("--read", type=Path, nargs="+", default=[], metavar="FILE", help="show the measurements in FILEs instead of measuring")
    add("--table", type=Path, metavar="FILE", help="write the page docs/benchmarks.md")
    add("--data-dir", type=folder, help="main_job: the folder with MNIST's files; default: the user's cache")
    add("--check", action="store_true", help="compare with the baseline")
    add("--save-baseline", action="store_true", help="make this run the baseline of its cases")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[outcome])
    add = parser.add_argument_group("measurements").add_argument
    add("--peer", choices=("none", "torch"), default="none", help="the library to compare with")
    add("--backend", choices=("numpy", "cupy"), default="numpy", help="CPU or GPU")
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help="parts of names, or globs; main_job for the main job")
    add("--rounds", type=at_least(1), help="times that each candidate is started and measured; default: 5, with --quick 3")
    add("--quick", action="store_true", help="short rounds, and fewer")
    add("--compile", action=argparse.BooleanOptionalAction, default=bool(shutil.which("g++")),
        help="torch.compile as well; default: if there is a C++ compiler")
    add("--threads", type=at_least(1), default=available_cores(), help="of each; default: all %(default)s cores")
    add("--precision", choices=PRECISIONS, default="float32", help="of products on a GPU")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.command = shlex.join(["python", "tests/benchmarks/run.py", *outcome.parse_known_args(argv)[1]])
    return args


def read(option, path):
    """The record in a file written by --json."""
    return load(option, path, "cases", ("backend", "command"), ("rounds", "peak", "launches", "errors", "disturbed", "rates"))


def chosen(args, backend, measured=CASES):
    """The cases selected by --only, of those that exist on the backend, or of the measured ones."""
    able = [case for name, case in CASES.items() if backend in case.backends and name in measured]
    by_pattern = {p: [case for case in able if p.lower() in case.name.lower() or fnmatch.fnmatch(case.name.lower(), p.lower())]
                  for p in args.only if p != MAIN_JOB}
    for pattern, found in by_pattern.items():
        if not found and not (pattern == "*" and measured is not CASES):     # a record of the main job alone
            raise RunError(f"--only {pattern}: no such case; there are\n    "
                           + "\n    ".join([*(case.name for case in able), MAIN_JOB]))
    return [case for case in able if any(case in found for found in by_pattern.values())]


def refuse_what_fails_later(args, cases, backends, baseline):
    """Raise the errors that would otherwise come only after minutes of measuring."""
    require_writable(json=args.json, table=args.table)
    if args.table and "numpy" not in backends:
        raise RunError("--table: the page needs measurements with --backend numpy: --read them, and those of a GPU")
    if args.table and not cases:
        raise RunError("--table: the page needs other cases too: collect them with --json FILE, then --read FILE --table PAGE")
    if MAIN_JOB in args.only and args.backend != "numpy":
        raise RunError("--only main_job: it is measured with --backend numpy")
    if args.check and not any(case.name in baseline for case in cases):
        raise RunError("--check: there is no baseline yet for these cases; --save-baseline makes one")
    if not args.read:
        if args.peer == "torch" and importlib.util.find_spec("torch") is None:
            raise RunError("--peer torch: PyTorch is not installed; pip install torch, or leave --peer out")
        get_backend(args.backend, args.precision)


def run(args, cases):
    """Measure the cases; returns a record for JSON."""
    before = read("--json", args.json) if args.json and args.json.exists() else {"command": "", "cases": {}}
    if before.get("backend", args.backend) != args.backend:
        raise RunError(f"--json {args.json}: it holds a run on {before['backend']}; give this one another file")
    candidates = [c for c in (CANDIDATES if args.backend == "numpy" else ON_GPU)
                  if (args.peer == "torch" or c.library == "minicl") and (args.compile or not c.compiled)]
    record = {"backend": args.backend, "machine": describe(args.backend, args.threads, args.precision), "kept": KEPT,
              "command": args.command, "rounds": args.rounds, "threads": args.threads, "cases": {}}
    if MAIN_JOB in before:
        record[MAIN_JOB] = before[MAIN_JOB]
    both = "\n".join(dict.fromkeys([*before["command"].splitlines(), args.command]))
    if MAIN_JOB in args.only:
        recipe = {**main_job.RECIPE, "data_dir": args.data_dir}
        record[MAIN_JOB] = main_job.measure(args.peer, args.threads, recipe)
        print("".join(main_job.table(record[MAIN_JOB])))
        if args.json:
            write_json(args.json, {**record, "command": both, "cases": before["cases"]})
    for case, result in results(args, cases, candidates):
        record["cases"][case.name] = result
        if args.json:  # written at once, in case the run is interrupted
            write_json(args.json, {**record, "command": both, "cases": {**before["cases"], **record["cases"]}})
        print("\n".join(lines(case, result)), flush=True)
    return record


def results(args, cases, candidates):
    """Yield (case, its result) in the last round; each round measures all cases in fresh processes."""
    rounds = {case.name: [] for case in cases}
    for k in range(1, args.rounds + 1 if cases else 1):
        print(f"round {k} of {args.rounds}", file=sys.stderr)
        workers = {}
        try:
            for case in cases:
                found = rounds[case.name]
                failed = {label for result in found for label in result["errors"]}
                able = [c for c in candidates if c.runs(case, args.backend) and c.label not in failed]
                for c in able:
                    workers[c.label] = workers.get(c.label) or Worker(c, args.backend, args.threads, args.precision)
                found.append(measure(case, [workers[c.label] for c in able], block=0.05 if args.quick else 0.1,
                                     gpu=args.backend == "cupy"))
                if k == args.rounds:
                    yield case, join(found)
        finally:
            for worker in workers.values():
                worker.close()


def check(found, baseline):
    """Print the regressions; returns the exit code."""
    compared = [name for name in found if compared_kinds(found[name], baseline.get(name, {}))]
    slower = {name: regressions(found[name], baseline[name]) for name in compared}
    for name, messages in slower.items():
        for message in messages:
            print(f"slower: {name}, {message}")
    others = [name for name in found if name not in compared]
    if others:
        print("not compared, because they have no ratio in common with the baseline (--peer torch measures more, --save-baseline adds them): "
              + ", ".join(others))
    if not compared:
        raise RunError("--check: no case was compared")
    count = sum(map(bool, slower.values()))
    print(f"{count} of {len(slower)} cases became slower by more than the noise")
    return int(count > 0)


if __name__ == "__main__":
    command(main)
