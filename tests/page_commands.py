"""Run every command of the course, exercises, bugs and reading-order pages, in order, in a copy of the project.

    python tests/page_commands.py                    commands of at most a minute, as in .ci/run
    python tests/page_commands.py --all              all commands; half an hour on two cores, on MNIST if cached
    python tests/page_commands.py bugs --times       one page; each command's time beside the stated one

A command is a ```bash block, or inline code that begins with python or pytest. Each page begins in a new folder. A
command in a tree of exercises may fail with the name of an exercise; any other failure is an error. The output of a
bug's script is compared with its table in docs/bugs.md: the first step to the digits shown, later numbers to within a
quarter.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("course", "exercises", "bugs", "reading-order")
COPIED = ("minicl", "tests", "docs", "examples", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE",
          "MANIFEST.in")
FOUND = re.compile(r"^```bash\n(?P<block>.*?)^```|`(?P<inline>(?:python|pytest) [^`]+)`", re.MULTILINE | re.DOTALL)
ROW = r"^\|(.*?)\| *([-\d.e]+) *\| *([-\d.e]+) *\|$"
LONG = 60                                                    # seconds on two cores
SECONDS = {"s": 1, "min": 60}


def commands(page):
    """The page's commands in order. A block is one string, whose lines share a current folder."""
    text = re.sub(r"^\| `.* \| about .*\|$", "", (ROOT / f"docs/{page}.md").read_text(), flags=re.MULTILINE)     # times
    for found in FOUND.finditer(text):
        if found["block"]:
            yield found["block"].strip()
        else:
            command = " ".join(found["inline"].split())
            if command != "pytest tests/" and "--all --times" not in command:      # a fragment; this script
                yield command


def stated():
    """{command: stated seconds on two cores}, from docs/course.md's table and the docstrings of the bugs' scripts."""
    rows = re.findall(r"^\| `([^`]+)` \| about (\d+) (s|min) \|$", (ROOT / "docs/course.md").read_text(), re.MULTILINE)
    for script in sorted((ROOT / "examples/bugs").glob("*.py")):
        rows += re.findall(r"^    (python \S+) +# about (\d+) (s)$", script.read_text(), re.MULTILINE)
    return {command: int(number) * SECONDS[unit] for command, number, unit in rows}


def table(script):
    """{quantity: (correct, wrong)} from the section of docs/bugs.md that names the script."""
    sections = re.split(r"^## ", (ROOT / "docs/bugs.md").read_text(), flags=re.MULTILINE)
    section = next(text for text in sections if f"examples/bugs/{script}.py" in text)
    return {what.strip(): (float(a), float(b))
            for what, a, b in re.findall(ROW, section, re.MULTILINE)}


def other_numbers(script, printed):
    """A line for each number of the script's table that is not printed, or differs."""
    rows = {what: (float(a), float(b)) for what, a, b in re.findall(r"^(\S.*?)  +([-\d.e]+) +([-\d.e]+)$", printed, re.M)}
    differ = []
    for what, expected in table(script).items():
        if what not in rows:
            differ.append(f"{script}.py prints no {what!r}, which docs/bugs.md has")
        for here, there in zip(rows.get(what, expected), expected):
            if abs(here - there) > (1e-3 * abs(there) if what.endswith(", first step") else 0.03 + 0.25 * abs(there)):
                differ.append(f"{script}.py prints {here:g} for {what}, docs/bugs.md has {there:g}")
    return differ


def fresh(folder):
    """Copy the project to folder/minicl, so that commands may write to ../ as well; returns the copy's path."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "minicl" / name, **({"ignore": shutil.ignore_patterns("__pycache__", "runs")}
                                                       if (ROOT / name).is_dir() else {}))
    return folder / "minicl"


def run(command, project):
    """(exit code, output, wall seconds, CPU seconds) of a command run in a project."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(["bash", "-c", command], cwd=project, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, time.perf_counter() - started, busy


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE", help=f"default: {' '.join(PAGES)}")
    parser.add_argument("--all", action="store_true", help=f"also commands that take over {LONG} s")
    parser.add_argument("--times", action="store_true", help="print a table of seconds; exit 1 if a stated one is off by 2x")
    options = parser.parse_args()
    said = stated()
    done = {}
    failed = []
    for page in options.pages:
        with tempfile.TemporaryDirectory() as folder:
            project = fresh(Path(folder))
            for command in commands(page):
                if command in done and "make_exercises" not in command or said.get(command, 0) > LONG and not options.all:
                    continue
                code, output, wall, busy = run(command, project)
                done[command] = wall, busy
                if code and not re.search(r"NotImplementedError.*exercise \w+: read docs/", output):
                    failed.append(command)
                    print(f"{page}.md: exit code {code}: {command}\n{output[-3000:]}", flush=True)
                    continue
                differ = other_numbers(script[1], output) if (script := re.search(r"bugs/(\w+)\.py", command)) else []
                failed += differ
                print(*differ, sep="\n", end="\n" * bool(differ))
                print(f"{wall:6.1f} s  {busy:6.1f} s of CPU  {command.splitlines()[0]}", flush=True)
    if options.times:
        print("\non two cores: from half of the CPU time to the wall time")
        for command, seconds in said.items():
            wall, busy = done.get(command, (0, 0))
            if wall and not busy / 4 <= seconds <= 2 * wall:
                failed.append(command)
                print(f"{command}: stated as about {seconds} s, here {busy / 2:.0f} to {wall:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
