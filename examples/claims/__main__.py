"""The theory of contrastive learning as sixteen experiments.

    python examples/claims list
    python examples/claims run 8 11                 # or: run all; a few minutes each
    python examples/claims run 2 --seeds 0 --size fast
    python examples/claims report                   # pages of the records in runs/claims
    python examples/claims report --docs            # docs/claims.md and docs/claims/*.md, of the records in docs/claims
    python examples/claims count 256                # negatives and bits of a batch of 256 images
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

if not __package__:                                          # python examples/claims: the package is named claims
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from claims.answers import count
from claims.laboratory import DOCS, SIZES, all_claims, experiment, is_terminal, load_claim, read_records, record_path
from claims.report import pages
from minicl import get_backend, viz
from minicl.backend import available_cores
from minicl.console import listing
from minicl.data import Unavailable, load_mnist
from minicl.files import write_atomically
from minicl.folder import FolderLock, Locked
from minicl.options import at_least
from minicl.run import RunError, command


def main(argv=None):
    args = parse(argv)
    return {"list": list_claims, "run": run, "report": report, "count": print_count}[args.command](args)


def parse(argv):
    parser = argparse.ArgumentParser(prog="python examples/claims", description=__doc__.split("\n\n")[0],
                                     epilog="docs/claims.md shows the claims, their results and verdicts")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the claims")

    run = commands.add_parser("run", help="measure claims, print the results, and save a record and a picture of each")
    run.add_argument("claims", nargs="+", metavar="CLAIM", help="number or name; or: all")
    run.add_argument("--seeds", type=at_least(0), nargs="+",
                     help="one measurement for each; default: those of the published records, 0 1 2 for most")
    run.add_argument("--size", choices=SIZES, default="default",
                     help="fast: seconds, on generated digits; default: minutes on two CPU cores; full: for a GPU")
    run.add_argument("--full", dest="size", action="store_const", const="full", help="the same as --size full")
    run.add_argument("--backend", default="numpy", choices=("numpy", "cupy"), help="numpy: CPU; cupy: GPU")
    run.add_argument("--data-dir", help="folder with MNIST's files; default: the user's cache, else download")
    run.add_argument("--threads", type=at_least(1), help="CPU threads of a claim; default: the cores divided by --jobs")
    run.add_argument("--jobs", type=at_least(1), help="claims to measure at the same time, each in a process of its own; "
                     "default: as many as there are cores; with cupy 1")
    run.add_argument("--out", help="folder for records and pictures; default: runs/claims, or runs/claims-fast for "
                     "--size fast")
    run.add_argument("--resume", action="store_true", help="skip claims whose record, of the same seeds, size and "
                     "backend, is already in --out; with --data-dir those of generated digits are measured again")

    report = commands.add_parser("report", help="write a page of all records, such as docs/claims.md, and one of each")
    report.add_argument("--records", default="runs/claims", help="folder with the records; default: runs/claims")
    report.add_argument("--out", help="the page of all; default: claims.md in the folder of the records")
    report.add_argument("--docs", action="store_true", help="use docs/claims and docs/claims.md, from any working directory")
    report.add_argument("--redraw", action="store_true", help="first compute the verdicts and draw the pictures again "
                        "from the recorded numbers, after a change of verdict() or draw()")

    counts = commands.add_parser("count", help="the negatives that batches give, and the nats and bits they can show")
    counts.add_argument("N", type=at_least(2), nargs="+", help="images in a batch")
    args = parser.parse_args(argv)
    if args.command == "run":
        if args.out == "":
            parser.error("--out: expected the name of a folder, got ''; is a variable unset?")
        args.out = args.out or f"runs/claims{'-fast' * (args.size == 'fast')}"
        if args.seeds and len(set(args.seeds)) < len(args.seeds):
            parser.error(f"--seeds: expected each seed once, got {' '.join(map(str, args.seeds))}")
        if args.data_dir and args.size == "fast":
            print("warning: ignored with --size fast, which generates its digits: --data-dir", file=sys.stderr)
    if args.command == "report" and args.docs:
        args.records = DOCS / "claims"
        args.out = DOCS / "claims.md"
    return args


def list_claims(args):
    claims = [module.CLAIM for module in all_claims()]
    print(listing([(f"{claim.number:>2}  {claim.name}", claim.title) for claim in claims]))


def run(args):
    xp = get_backend(args.backend)
    modules = list(dict.fromkeys(module for which in args.claims                # each once
                                 for module in (all_claims() if which == "all" else [load_claim(which)])))
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {args.out}: expected a folder to write to ({error.strerror}); give another") from error
    require_mnist(args, [module.CLAIM.name for module in modules])
    done = read_records(args.out) if args.resume else {}
    todo = []
    for module in modules:
        claim = module.CLAIM
        before = done.get(claim.name)
        same = before and (before.seeds, before.size, before.backend) == (seeds_of(args, claim), args.size, args.backend)
        if same and not (args.data_dir and args.size != "fast" and before.data == "generated digits"):
            print(f"\n{wrapped(f'{claim.number}. {claim.title}')}")
            print(f"  {before.verdict}, from {record_path(args.out, claim.name)}", flush=True)
        else:
            todo.append(module)
    jobs = min(args.jobs or (available_cores() if args.backend == "numpy" else 1), len(todo))
    try:
        failed = run_together(args, todo, jobs) if jobs > 1 else run_one_by_one(args, todo, xp)
    except KeyboardInterrupt:
        if len(modules) > 1:
            print("\ninterrupted; --resume skips the claims that are done", file=sys.stderr)
        return 130
    if viz.Figure is None:
        print(viz.MISSING)
    if failed:
        print(f"\nfailed: {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


def seeds_of(args, claim):
    return args.seeds or list(claim.seeds)


def run_one_by_one(args, modules, xp):
    """Measure and save each claim; the numbers of those that failed."""
    failed = []
    for module in modules:
        claim = module.CLAIM
        print(f"\n{wrapped(f'{claim.number}. {claim.title}')}", flush=True)
        try:
            with one_at_a_time(args.out, claim):
                record = experiment(module, seeds_of(args, claim), size=args.size, backend=args.backend, xp=xp,
                                    data_dir=args.data_dir, log=log, cpu_threads=args.threads)
                record.save(args.out)
            show(record, args.out)
        except OSError:                                      # no data or no disk space: the next would fail too
            raise
        except Exception as error:                           # go on with the other claims
            if len(modules) == 1:
                raise
            traceback.print_exc()
            print(f"  claim {claim.number} failed: {error}", flush=True)
            failed.append(claim.number)
    return failed


def one_at_a_time(out, claim):
    """A context in which no other process measures the claim for the same folder. Raises RunError if one does."""
    try:
        return contextlib.closing(FolderLock(Path(out), f".{claim.name}.lock"))
    except Locked as error:
        raise RunError(f"--out {out}: claim {claim.number}: {error.strerror}; wait for it to end, or choose another "
                       "folder") from error


def run_together(args, modules, jobs):
    """As run_one_by_one(), `jobs` at a time: each claim is a process, whose lines are printed after the claim's number."""
    options = ["--size", args.size, "--backend", args.backend, "--out", args.out,
               "--threads", args.threads or max(1, available_cores() // jobs)]
    options += ["--data-dir", args.data_dir] if args.data_dir else []
    options += ["--seeds", *args.seeds] if args.seeds else []
    processes, status = [], {}
    bar = tqdm(bar_format="  {desc}", leave=False, file=sys.stdout, disable=not is_terminal(), dynamic_ncols=True)

    def measure(module):
        number = module.CLAIM.number
        process = subprocess.Popen([sys.executable, str(Path(__file__).parent), "run", str(number), *map(str, options)],
                                   stdout=subprocess.PIPE, text=True, encoding="utf-8",
                                   env={**os.environ, "COLUMNS": str(width() - 4), "PYTHONIOENCODING": "utf-8"})
        processes.append(process)
        for line in process.stdout:
            if line.startswith("    seed") and not bar.disable:          # its progress
                status[number] = f"{number}: {line.strip()}"
                bar.set_description_str("; ".join(status.values()))
            elif line.strip():
                with tqdm.external_write_mode(file=sys.stdout):
                    print(f"{number:>2}  {line}", end="", flush=True)
        status.pop(number, None)
        return process.wait()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            codes = [*pool.map(measure, modules)]
        except BaseException:                                # such as Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
        finally:
            bar.close()
    return [module.CLAIM.number for module, code in zip(modules, codes) if code]


def require_mnist(args, names):
    """Raise RunError, before an hour of measuring, if a record of MNIST would be replaced by one of generated digits, and
    what load_mnist raises for a wrong --data-dir."""
    of_mnist = any(is_of_mnist(record_path(args.out, name)) for name in names)
    if args.size == "fast" and of_mnist:
        raise RunError(f"--out {args.out}: its records are of MNIST, and --size fast is of generated digits; give "
                       "another --out")
    if args.size != "fast" and (args.data_dir or of_mnist):
        try:
            load_mnist(args.data_dir, log=log)
        except Unavailable as error:
            raise RunError(f"--out {args.out}: its records are of MNIST, and {error.reason}; name MNIST's folder with "
                           "--data-dir, or another --out for generated digits") from error


def is_of_mnist(path):
    """Whether there is a record at this path, and it is of MNIST."""
    try:
        return json.loads(path.read_text())["data"] == "MNIST"
    except (OSError, ValueError, TypeError, KeyError):
        return False


def log(text):
    """Print a paragraph without tearing the line of progress."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(wrapped(text), flush=True)


def show(record, folder):
    """Print a record's table, verdict, time and files."""
    print(*text_table([("", "published or exact", "measured"), *record.rows()]), sep="\n")
    print(wrapped(f"  {record.verdict}{record.caution}: {record.reason}"))
    path = record_path(folder, record.name)
    files = [path, path.with_suffix(".png")] if viz.Figure is not None else [path]
    print(f"  {sum(record.seconds):.0f} s, data: {record.data}", *(f"  {file}" for file in files), sep="\n", flush=True)


def width():
    """Columns to print: those of the terminal, or 80 where there is none, but at most 100."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def text_table(rows, shares=(0.36, 0.26, 0.38)):
    """Lines of rows of three texts, each wrapped into a column of at most its share of the width."""
    widths = [min(int(share * (width() - 6)), max(len(row[k]) for row in rows)) for k, share in enumerate(shares)]
    return [("  " + "  ".join(f"{line:<{column}}" for line, column in zip(lines, widths))).rstrip()
            for row in rows
            for lines in itertools.zip_longest(*(wrap(cell, column) for cell, column in zip(row, widths)), fillvalue="")]


def wrap(text, columns):
    """The lines of a text, broken neither at hyphens nor around the sign of a standard deviation."""
    held = text.replace(" ± ", "\0±\0")
    return [line.replace("\0", " ") for line in textwrap.wrap(held, columns, break_on_hyphens=False)]


def wrapped(text):
    """A paragraph in lines no wider than width(), indented like its first line."""
    indent = " " * (len(text) - len(text.lstrip()))
    return "\n".join(indent + line for line in wrap(text.strip(), width() - len(indent)))


def report(args):
    records = Path(args.records)
    out = Path(args.out or records / "claims.md")
    found = read_records(records)
    if not found:
        raise RunError(f"--records {records}: found no records of claims; make them with python examples/claims "
                       f"run all --out {records}")
    if args.redraw:
        found = {name: record.with_verdict() for name, record in found.items()}
        for record in found.values():
            record.save(records)
    for path, text in pages(found, records, out).items():
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    print(f"{len(found)} claims: {out}, and a page of each in {records}")


def print_count(args):
    for N in args.N:
        negatives, nats, bits = count(N)
        print(f"N = {N}: {negatives} negatives, at most log {negatives + 1} = {nats:.2f} nats = {bits:.2f} bits")


if __name__ == "__main__":
    command(main)
