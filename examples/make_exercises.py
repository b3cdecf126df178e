"""Exercises: minicl with holes to fill, and its own tests to check the answers.

    python examples/make_exercises.py OUT                    all exercises, each raising NotImplementedError
    python examples/make_exercises.py OUT --only mul relu    these alone; if OUT has exercises already, these too
    python examples/make_exercises.py OUT --seed 7           tests with other values and more shapes
    python examples/make_exercises.py OUT --grade ANN BOB    fresh tests against the minicl of each student's tree, of the
                                                             exercises it was made with, or of those after --only

The library carries no markers: EXERCISES in exercise_list.py names each function, and `strip` takes its body out.
tests/test_exercises.py strips each and sees exactly its tests fail.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from exercise_list import BY_NAME, EXERCISES

from minicl.console import listing

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("minicl", "tests", "docs", "examples", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "test_exercises.py", "exercise_runs.py")
LIMIT = 300                                                  # seconds for a student's code
SEED_LINE = '"MINICL_CASE_SEED", {}'
RECORD = "exercises.json"                                    # in a tree: {"exercises": names, "seed": number}
CONFTEST = '''"""pytest finds this minicl before one that is installed, and a failure shows the test and the message."""


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"
'''


class ExerciseError(Exception):
    """What was asked for cannot be done; nothing was written."""


# ---------------------------------------------------------------- taking a body out

def find(tree, function):
    """(the def, or the lambda that stands for its `backward`, the block of statements it is in)."""
    node = tree
    names = function.split(".")
    for name in names:
        inner = [child for child in node.body if getattr(child, "name", None) == name]
        if not inner and name == names[-1] == "backward":
            returned = node.body[-1]
            inner = [child for child in ast.walk(returned) if isinstance(child, ast.Lambda)]
            return inner[0], returned
        if not inner:
            raise LookupError(f"exercise: {function} is not here, {getattr(node, 'name', 'the file')} has no {name}")
        node = inner[0]
    return node, None


def without(source, function):
    """The source without a function of the module, its decorator, and the blank lines above."""
    node = find(ast.parse(source), function)[0]
    lines = source.split("\n")
    start = min([node, *node.decorator_list], key=lambda part: part.lineno).lineno - 1
    while not lines[start - 1]:
        start -= 1
    del lines[start:node.end_lineno]
    return "\n".join(lines)


def strip(source, exercise):
    """The source of the exercise's file with NotImplementedError in place of the body, after docstring and checks."""
    for part in exercise.parts.split():
        source = without(source, part)
    node, returned = find(ast.parse(source), exercise.function)
    lines = source.split("\n")
    if returned is not None:                                 # `return y, lambda g: ...`: give the lambda a name
        before, after = lines[node.lineno - 1][:node.col_offset], lines[node.end_lineno - 1][node.end_col_offset:]
        indent = " " * returned.col_offset
        lines[node.lineno - 1:node.end_lineno] = [before + "backward" + after]
        stub = ["", f"{indent}def backward(g):", *_stub("", indent + "    ", exercise), ""]
        lines[returned.lineno - 1:returned.lineno - 1] = stub
        return "\n".join(lines)
    gone = node.body[(ast.get_docstring(node) is not None) + exercise.keep:]
    start, stop = gone[0].lineno - 1, gone[-1].end_lineno
    lines[start:stop] = _stub("\n".join(lines[start:stop]), " " * gone[0].col_offset, exercise)
    return "\n".join(lines)


def _stub(body, indent, exercise):
    """The lines in place of a body. Its labels stay: tests/test_derivations.py looks for them beside the code."""
    labels = sorted(set(re.findall(r"\((\d+)\)", " ".join(re.findall(r"#((?:,? \(\d+\))+)", body)))), key=int)
    which = ", ".join(f"({label})" for label in labels)
    said = [f"{indent}# {which}: yours to write; keep each label beside its line of code"] if labels else []
    return said + [f'{indent}raise NotImplementedError("exercise {exercise.name}: read docs/{exercise.page}")']


# ---------------------------------------------------------------- the tree

def write_tree(out, exercises, *, seed=0, minicl=ROOT / "minicl"):
    """Copy what a student needs into out, with the bodies of these exercises taken out of minicl."""
    if out.exists() and any(out.iterdir()):
        raise ExerciseError(f"{out} is not empty; name a new folder, so that no one's work is lost")
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = minicl if name == "minicl" else ROOT / name
        if source.is_dir():
            shutil.copytree(source, out / name, ignore=LEFT_OUT)
        else:
            shutil.copy(source, out / name)
    take_out(exercises, out / "minicl")
    write_record(out, exercises, seed)
    (out / "conftest.py").write_text(CONFTEST)
    cases = out / "tests/cases.py"
    cases.write_text(cases.read_text().replace(SEED_LINE.format(0), SEED_LINE.format(seed)))


def add_to_tree(out, exercises, seed):
    """Take out these exercises too, in a tree that has some. The student's work on others stays."""
    record = read_record(out)
    again = [exercise.name for exercise in exercises if exercise.name in record["exercises"]]
    if again:
        raise ExerciseError(f"{', '.join(again)}: already an exercise in {out}; name another, or begin it again in a new "
                            "folder")
    if seed not in (0, record["seed"]):
        raise ExerciseError(f"the tests in {out} have the seed {record['seed']}, not {seed}; leave --seed out")
    take_out(exercises, out / "minicl")
    write_record(out, [*(BY_NAME[name] for name in record["exercises"]), *exercises], record["seed"])


def write_record(out, exercises, seed):
    (out / RECORD).write_text(json.dumps({"exercises": [exercise.name for exercise in exercises], "seed": seed}) + "\n")


def read_record(tree):
    """The record of a tree."""
    try:
        record = json.loads((tree / RECORD).read_text())
        return {"exercises": [name for name in record["exercises"] if name in BY_NAME], "seed": int(record["seed"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExerciseError(f"{tree} has no {RECORD}, or another one than this script wrote; name its exercises with --only"
                            ) from error


def take_out(exercises, minicl):
    """Strip these exercises in place, in a copy of minicl/; if one cannot be stripped, none is."""
    stripped = {}
    for exercise in exercises:
        path = minicl / exercise.file
        try:
            stripped[path] = strip(stripped.get(path) or path.read_text(), exercise)
        except (LookupError, SyntaxError, OSError) as error:
            raise ExerciseError(f"{exercise.name} cannot be taken out of {path}: {error}; name a new folder") from error
    for path, source in stripped.items():
        path.write_text(source)


def command(exercise):
    """What a student types."""
    return f'pytest tests/{exercise.tests} -k "{exercise.k}"'


def ended(tree, *arguments):
    """A process of Python in `tree` that has ended, at the latest after LIMIT seconds."""
    try:
        return subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, timeout=LIMIT,
                              env={**os.environ, "COLUMNS": "300"})
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "", f"TimeoutError: not done after {LIMIT} s; is there an endless loop?")


def replace_broken(minicl):
    """Put the library's files in place of those that cannot be imported: {file: error}, with file "" if that fails."""
    broken = {}
    modules = sorted({"minicl." + exercise.file.removesuffix(".py").replace("/", ".") for exercise in EXERCISES})
    while True:
        run = ended(minicl.parent, "-c", "import " + ", ".join(modules))
        if run.returncode == 0:
            return broken
        error = run.stderr.strip().split("\n")[-1]
        inside = re.findall(rf'File "{re.escape(str(minicl.resolve()))}.(.*?)", line (\d+)', run.stderr)
        file, line = inside[-1] if inside else ("", 0)
        if not inside or Path(file) in broken or not (ROOT / "minicl" / file).exists():
            return {**broken, Path(): error}
        broken[Path(file)] = f"{error} (line {line} of {file})"
        shutil.copy(ROOT / "minicl" / file, minicl / file)


def mark(exercise, tree, broken):
    """{"passed", "tests", "minutes", "done"} of one exercise, and "error" where its tests could not run."""
    error = broken.get(Path(exercise.file), broken.get(Path()))
    passed = failed = errors = 0
    if error is None:
        run = ended(tree, "-m", "pytest", "-q", "--tb=no", f"tests/{exercise.tests}", "-k", exercise.k)
        passed, failed, errors = (sum(map(int, re.findall(rf"(\d+) {word}", run.stdout.strip().split("\n")[-1])))
                                  for word in ("passed", "failed", "error"))
        if passed + failed == 0:
            reasons = re.findall(r"\w*(?:Error|Exception)\b.*", run.stdout + run.stderr)
            error = reasons[-1] if reasons else f"pytest ended with status {run.returncode}"
    tests = passed + failed + errors
    holes = {*re.findall(r"NotImplementedError: exercise (\w+):", run.stdout if error is None else "")} - {exercise.name}
    return {"passed": passed, "tests": tests, "minutes": exercise.minutes, "done": 0 < passed == tests,
            **({} if error is None else {"error": error}), **({"needs": sorted(holes)} if holes else {})}


def all_needs(exercise):
    """Names of the exercises that one needs, and of those that these need."""
    return {name for need in exercise.needs.split() for name in {need, *all_needs(BY_NAME[need])}}


def tree_of(student):
    """The student's tree: the folder, or the one in it that has a minicl/, as in an unpacked archive."""
    found = [tree for tree in (student, *sorted(student.glob("*/"))) if (tree / "minicl").is_dir()]
    if not found:
        raise ExerciseError(f"no folder minicl/ in {student}, nor in a folder of it")
    return found[0]


def grade(out, students, seed, only=()):
    """Run the tests of each student's exercises in fresh trees out/NAME, print a table, and write out/marks.json.

    only: names of the exercises, by default those that each tree was made with. Returns {student: {exercise: its mark}}, or
    {student: {"error": why there is none}}; minutes are the estimate for a whole exercise. The exercises of a file that
    cannot be imported have an error; the others are graded with the library's file in its place.
    """
    names = [student.resolve().name for student in students]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExerciseError(f"--grade: two trees are called {', '.join(twice)}; rename one, the name is the student's")
    if out.exists() and any(out.iterdir()):
        raise ExerciseError(f"{out} is not empty; name a new folder, so that no one's work is lost")
    out.mkdir(parents=True, exist_ok=True)
    marks = {}
    for name, student in zip(names, students):
        try:
            marks[name] = marks_of(student, out / name, seed, only)
        except ExerciseError as error:
            marks[name] = {"error": str(error)}
        (out / "marks.json").write_text(json.dumps(marks, indent=1) + "\n")              # in case the next is interrupted
    print_table(marks)
    return marks


def marks_of(student, tree, seed, only):
    """{exercise: its mark} of one student, graded in a new tree."""
    source = tree_of(student)
    given = only or read_record(source)["exercises"]
    made_with = read_record(source)["exercises"] if (source / RECORD).exists() else given
    print(f"{tree.name}: {len(given)} exercise{'s' * (len(given) > 1)} ...", file=sys.stderr, flush=True)
    write_tree(tree, [], seed=seed, minicl=source / "minicl")
    broken = replace_broken(tree / "minicl")
    marks = {}
    for exercise in (exercise for exercise in EXERCISES if exercise.name in given):      # after those that it needs
        undone = {name for name in all_needs(exercise) if name in marks and not marks[name]["done"]}
        endless = sorted(name for name in undone if marks[name].get("error", "").startswith("TimeoutError"))
        one = mark(exercise, tree, broken if not endless else {Path(): f"not run, because {endless[0]} does not end"})
        if undone and not one["done"] and not endless:
            one["needs"] = sorted({*one.get("needs", ()), *undone})
        apart = sorted((all_needs(exercise) & {*made_with}) - {*given, *one.get("needs", ())})
        if exercise.name not in made_with:
            one["note"] = "not among the exercises of this tree, so it may be the library's"
        elif apart and not one["done"]:
            one["note"] = f"needs {', '.join(apart)} of this tree, not graded here"
        marks[exercise.name] = one
        print(f"{tree.name}: {exercise.name} {cell(one)}", file=sys.stderr, flush=True)
    return marks


def print_table(marks):
    """A column for each student, a row for each exercise, and errors and unsolved needs below."""
    notes = {(name, of_student["error"]): ["all"] for name, of_student in marks.items() if "error" in of_student}
    marks = {name: {} if "error" in of_student else of_student for name, of_student in marks.items()}
    width = max(map(len, ["minutes done", *BY_NAME])) + 2

    def row(title, cells):
        print(f"{title:<{width}}" + "".join(f"{shown:>{max(len(name), 7) + 2}}" for name, shown in zip(marks, cells)))

    row("", marks)
    for exercise in EXERCISES:
        cells = [cell(of_student.get(exercise.name)) for of_student in marks.values()]
        if any(cells):
            row(exercise.name, cells)
    row("minutes done", [sum(mark["minutes"] for mark in each.values() if mark["done"]) for each in marks.values()])
    for name, of_student in marks.items():
        for exercise, one in of_student.items():
            needs = f"needs {', '.join(one['needs'])}, not done" if "needs" in one else None
            if note := "; ".join(filter(None, [one.get("error"), needs, one.get("note")])):
                notes.setdefault((name, note), []).append(exercise)
    if notes:
        print("\nnotes\n" + listing([(name, f"{', '.join(those)}: {note}") for (name, note), those in notes.items()]))


def cell(mark):
    """A mark in the table: done, error, the number of tests that pass, or nothing."""
    if mark is None:
        return ""
    return "error" if "error" in mark else "done" if mark["done"] else f"{mark['passed']}/{mark['tests']}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write minicl with holes to fill; docs/exercises.md lists them.")
    parser.add_argument("out", type=Path, help="folder to write, new or empty; with --only also one written by this script")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BY_NAME, help=", ".join(BY_NAME))
    parser.add_argument("--seed", type=int, default=0, help="seed of the tests' values and shapes; default: as published")
    parser.add_argument("--grade", type=Path, nargs="+", metavar="STUDENT",
                        help="trees to test with new tests; marks.json and the trees go to `out`")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, got {options.seed}")
    for student in options.grade or ():
        if not student.is_dir():
            parser.error(f"--grade: there is no folder {student}")
    chosen = [exercise for exercise in EXERCISES if exercise.name in (options.only or BY_NAME)]
    try:
        if options.grade:
            return grade(options.out, options.grade, options.seed, options.only or ())
        if options.only and (options.out / RECORD).exists():
            add_to_tree(options.out, chosen, options.seed)
        else:
            write_tree(options.out, chosen, seed=options.seed)
    except ExerciseError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; what is done is in {options.out}\n")
    count = len(read_record(options.out)["exercises"])
    print(f"{count} of {len(EXERCISES)} exercises in {options.out}", f"{len(chosen)} of them new", sep=", ")
    print(f"\n  cd {options.out}")
    for exercise in chosen:
        lines = textwrap.wrap(command(exercise), 47, break_long_words=False, break_on_hyphens=False)
        print(f"  {exercise.name:18}{exercise.minutes:3} min  " + (" \\\n" + " " * 29).join(lines))
    return 0


if __name__ == "__main__":
    main()
