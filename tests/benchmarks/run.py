"""Time minicl beside PyTorch, and beside what the machine allows. Both cores to itself, if you can.

    python tests/benchmarks/run.py --peer torch                          # everything; about ten minutes
    python tests/benchmarks/run.py --peer torch --only NT-Xent "conv*"   # parts of names, or patterns
    python tests/benchmarks/run.py --peer torch --check                  # exit code 1 if something became slower
    python tests/benchmarks/run.py --backend cupy --peer torch           # on a GPU

Without --peer minicl is compared with the machine's own rates only. Needs Linux or macOS (processes are forked).
"""

import argparse
import fnmatch
import json
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":                      # tests/ for benchmarks, the checkout for minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

from benchmarks.candidates import CANDIDATES, KEPT, ON_GPU                   # noqa: E402
from benchmarks.cases import CASES                                           # noqa: E402
from benchmarks.figures import baseline_of, figures, regressions             # noqa: E402
from benchmarks.harness import Worker, measure                               # noqa: E402
from benchmarks.launches import launches_per_step                            # noqa: E402
from benchmarks.machine import describe                                      # noqa: E402
from benchmarks.report import document, lines, summary                       # noqa: E402
from minicl.backend import BackendError, available_cores, get_backend        # noqa: E402

BASELINE = Path(__file__).with_name("baseline.json")


def main():
    args = parse()
    records = [json.loads(path.read_text()) for path in args.read]
    if not args.read:
        try:
            get_backend(args.backend, args.precision)
        except BackendError as error:
            raise SystemExit(str(error)) from None
        records = [run(args)]
    record = records[0]
    if args.table:
        by_backend = {record["backend"]: record for record in records}
        args.table.write_text(document(by_backend["numpy"], by_backend.get("cupy"), launches_per_step()))
    print(summary(record))
    found = {name: figures(CASES[name], result) for name, result in record["cases"].items() if name in CASES}
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    of_backend = known.setdefault(record["backend"], {})
    if args.save_baseline:
        of_backend.update({name: baseline_of(figure) for name, figure in found.items()})
        BASELINE.write_text(json.dumps(known, indent=1) + "\n")
    return check(found, of_backend) if args.check else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("none", "torch"), default="none", help="what minicl is compared with")
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy", help="CPU or GPU")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="parts of names, or globs")
    parser.add_argument("--rounds", type=int, default=7, help="times that each candidate is measured")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and short ones")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=bool(shutil.which("g++")),
                        help="torch.compile as well; default: if there is a C++ compiler")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of a candidate; default: all cores")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="of products on a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all measurements to those in FILE")
    parser.add_argument("--read", type=Path, nargs="+", default=[], metavar="FILE", help="show what FILEs hold")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the page docs/benchmarks.md")
    parser.add_argument("--check", action="store_true", help="compare with the baseline")
    parser.add_argument("--save-baseline", action="store_true", help="make this run the baseline of its cases")
    return parser.parse_args()


def run(args):
    """Measure; -> a record that json can hold."""
    cases = [case for case in CASES.values() if args.backend in case.backends
             and any(p.lower() in case.name.lower() or fnmatch.fnmatch(case.name, p) for p in args.only)]
    if not cases:
        raise SystemExit(f"--only {' '.join(args.only)}: no such case; there are\n    " + "\n    ".join(CASES))
    candidates = [c for c in (CANDIDATES if args.backend == "numpy" else ON_GPU)
                  if (args.peer == "torch" or c.library == "minicl") and (args.compile or not c.compiled)]
    record = {"backend": args.backend, "machine": describe(args.backend, args.threads, args.precision), "kept": KEPT,
              "command": "python tests/benchmarks/run.py --peer torch --table docs/benchmarks.md",
              "rounds": 3 if args.quick else args.rounds, "threads": args.threads, "cases": {}}
    workers, before = {}, {}
    if args.json and args.json.exists():
        known = json.loads(args.json.read_text())
        before = known["cases"]
        if known["backend"] != args.backend:
            raise SystemExit(f"--json {args.json}: it holds a run on {known['backend']}; give this one another file")
    try:
        for case in cases:
            able = [c for c in candidates if c.runs(case, args.backend)]
            for c in able:
                workers[c.label] = workers.get(c.label) or Worker(c, args.backend, args.threads, args.precision)
            result = measure(case, [workers[c.label] for c in able], rounds=record["rounds"],
                             block=0.05 if args.quick else 0.2, gpu=args.backend == "cupy")
            record["cases"][case.name] = result
            if args.json:                                                    # now: a run that is cut short keeps it
                args.json.write_text(json.dumps({**record, "cases": {**before, **record["cases"]}}) + "\n")
            print("\n".join(lines(case, result)), flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return record


def check(found, baseline):
    """Print what regressed; -> the exit code."""
    slower = {name: regressions(found[name], baseline[name]) for name in found if name in baseline}
    for name, messages in slower.items():
        for message in messages:
            print(f"slower: {name}, {message}")
    unknown = [name for name in found if name not in baseline]
    if unknown:
        print(f"not in the baseline (--save-baseline adds them): {', '.join(unknown)}")
    count = sum(map(bool, slower.values()))
    print(f"{count} of {len(slower)} cases became slower by more than the noise")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
