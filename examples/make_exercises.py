"""Exercises: minicl with holes to fill, and its own tests to check the answers.

    python examples/make_exercises.py OUT                    all exercises, each raising NotImplementedError
    python examples/make_exercises.py OUT --only mul relu    these alone; if OUT has exercises already, these too
    python examples/make_exercises.py OUT --seed 7           tests with other values and more shapes
    python examples/make_exercises.py OUT --grade ANN BOB    fresh tests against the minicl of each student's tree

The library carries no markers: EXERCISES below names each function, and `strip` takes its body out. docs/exercises.md
lists them for a reader; tests/test_exercises.py strips each and sees exactly its tests fail.
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
from typing import NamedTuple

from minicl.console import listing

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("minicl", "tests", "docs", "examples", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "test_exercises.py", "exercise_runs.py")
SEED_LINE = '"MINICL_CASE_SEED", {}'
RECORD = "exercises.json"                                    # in a tree: {"exercises": names, "seed": number}
CONFTEST = '''"""pytest finds this minicl before one that is installed, and a failure shows the test and the message."""


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"
'''


class ExerciseError(Exception):
    """What was asked for cannot be done; nothing was written."""


class Exercise(NamedTuple):
    """One function without its body, and the tests that fail without it."""
    name: str
    level: int           # above those of the exercises that it needs
    difficulty: int      # 1: the formula, typed; 2: a step of your own; 3: several steps, or an idea
    needs: str           # exercises that its tests need, and with them what those need
    file: str            # in minicl/
    function: str        # "outer.inner"; a `backward` may be a lambda
    page: str            # in docs/: the derivation
    k: str               # pytest -k: exactly those of its `tests` that its own absence fails
    minutes: int
    hint: str
    tests: str = "test_ops.py"
    keep: int = 0        # statements after the docstring that stay: checks and unpacking
    falls: str = ""      # pytest -k: what else in that file is built on it
    parts: str = ""      # functions of the file that it is made of, which go with it


ON_THE_SPHERE = ("info_nce or nt_xent or clip_loss or alignment or uniformity or sup_con or dcl or siglip or triplet "
                 "or cosine_similarity and not bad")
EXERCISES = [
    Exercise("tape", 1, 3, "", "autograd.py", "_walk", "derivations.md", "a_walk", 40,
             "arriving: node -> gradient of its output; for each of ancestors(root), newest first: call its backward, "
             "let node.op.checks.fit_gradient(dx, x._data, position) fit each result to its input, add it to the "
             "input's node, or to the leaf by _accumulate and Additions; return the leaves", tests="test_walk.py"),
    Exercise("broadcast_sum", 2, 2, "tape", "signature.py", "sum_to_shape", "derivations.md",
             "(broadcast or rank or against) and differences and not mul", 20,
             "an entry used n times gets the sum of n gradients: sum the added axes first, then those of length 1",
             falls="broadcast or rank or against"),
    Exercise("mul", 3, 1, "broadcast_sum", "ops/elementwise.py", "mul.backward", "derivations.md",
             "mul and not matmul", 5, "hold one factor constant; broadcasting is undone for you", falls="keep_the_dtype"),
    Exercise("relu", 4, 1, "mul", "ops/elementwise.py", "relu.backward", "derivations.md",
             "relu and not leaky and not add_relu and not norm and not bad", 5, "y alone shows where x > 0"),
    Exercise("logsumexp", 4, 1, "mul", "ops/reduce.py", "logsumexp.backward", "derivations.md",
             "logsumexp and not overflow", 10, "exp(x - y) is a softmax; _restore_axes gives g its reduced axes back",
             parts="_times_softmax"),
    Exercise("matmul", 4, 1, "mul", "ops/matmul.py", "matmul.backward", "gradients/matmul.md", "matmul and not bad",
             10, "the shapes can be multiplied in one way only"),
    Exercise("linear", 4, 2, "mul", "ops/matmul.py", "linear.backward", "gradients/matmul.md", "linear and not bad",
             20, "flatten leading axes to rows; the bias was added to every row"),
    Exercise("max_pool2d", 4, 2, "mul", "ops/pool.py", "max_pool2d.backward", "gradients/pool.md",
             "max_pool and not bad", 20, "loop over the windows' taps again; only the first maximum of a window gets g",
             parts="_take _to_overlapping"),
    Exercise("conv2d", 4, 3, "mul", "ops/conv.py", "_conv_by_taps.backward", "gradients/conv.md",
             "conv2d and not (grey or colour or columns or window or bad) or not_needed", 40,
             "the taps of the forward pass, in reverse: shift.taps() pairs outputs with inputs"),
    Exercise("layer_norm", 4, 2, "mul", "ops/normalize.py", "layer_norm.backward", "gradients/normalize.md",
             "layer_norm and not bad", 20, "take two directions out of g w: the mean, and x^",
             parts="_products _project"),
    Exercise("batch_norm", 4, 3, "mul", "ops/normalize.py", "batch_norm.backward", "gradients/normalize.md",
             "batch_norm and not (far or reports or bad)", 30, "like layer_norm with the axes swapped; with relu, g "
             "counts only where y > 0", falls="barlow", parts="_past_relu _fold_back _line_back"),
    Exercise("attention", 4, 2, "mul", "ops/attention.py", "attention.backward", "gradients/attention.md",
             "attention and not bad", 20, "three products; between them, the softmax's Jacobian of each row"),
    Exercise("winograd", 5, 3, "conv2d", "ops/winograd.py", "_kernel_gradient", "gradients/winograd.md",
             "kernel_gradient", 40, "for each strip: A g A^T, and B^T d B from _input_transform; 16 products over "
             "tiles add up; then G^T on both sides", tests="test_winograd.py"),
    Exercise("log_softmax", 5, 2, "mul", "contrastive/softmax.py", "log_softmax.backward", "gradients/softmax.md",
             "log_softmax and not bad", 15, "dx sums to zero over a row, whatever g; do not forget 1/tau"),
    Exercise("softmax", 5, 2, "mul", "contrastive/softmax.py", "softmax.backward", "gradients/softmax.md",
             "softmax and not log_softmax and not bad", 15, "the Jacobian is (diag(p) - p p^T) / tau"),
    Exercise("l2_normalize", 5, 2, "mul", "contrastive/cosine.py", "l2_normalize.backward", "gradients/cosine.md",
             "l2_normalize", 15, "a change along x^ changes only the length: project it out; then its length; a row "
             "below eps gets 0", falls=ON_THE_SPHERE, parts="_across"),
    Exercise("cosine_similarity", 6, 1, "l2_normalize", "contrastive/cosine.py", "cosine_similarity.backward",
             "gradients/cosine.md", "cosine_similarity and not bad", 10,
             "the gradient of x^ first, then l2_normalize's"),
    Exercise("info_nce", 7, 3, "l2_normalize", "contrastive/info_nce.py", "info_nce.backward", "gradients/info_nce.md",
             "info_nce", 40, "the query moves from the negatives' mean to its positive; m and ahead are from "
             "pairs.softmax, pairs.to_negatives gives (4)"),
    Exercise("nt_xent", 7, 3, "l2_normalize", "contrastive/nt_xent.py", "nt_xent.backward", "gradients/nt_xent.md",
             "nt_xent", 40, "both views are anchors: every pair counts twice, once from each side; "
             "pairs.weighted_sum(one_minus_p) is the sum in (2)"),
    Exercise("alignment", 7, 2, "l2_normalize", "contrastive/alignment_uniformity.py", "alignment_loss.backward",
             "gradients/alignment_uniformity.md", "alignment", 15, "the pull points along the difference; a distance "
             "of 0 has no direction"),
    Exercise("uniformity", 7, 2, "l2_normalize", "contrastive/alignment_uniformity.py", "uniformity_loss.backward",
             "gradients/alignment_uniformity.md", "uniformity", 20, "NT-Xent's push with one softmax over all pairs; "
             "each counts twice, as in pairs.weighted_sum"),
    Exercise("clip_loss", 7, 3, "l2_normalize", "contrastive/clip.py", "clip_loss.backward", "gradients/clip.md",
             "clip_loss", 40, "two softmaxes share the scores, and pairs.weighted_sums has both sums; the logit scale "
             "multiplies them all"),
    Exercise("siglip", 7, 2, "l2_normalize", "contrastive/siglip.py", "siglip.backward", "gradients/siglip.md",
             "siglip and not bad", 20, "G of each pair by itself; then three products with t, and two sums for the scalars"),
    Exercise("momentum_update", 8, 1, "", "methods/ema.py", "EMA.update", "methods/moco.md", "follow or launches", 10,
             "self.pairs are (online, target), self.values is all of the target; follow(xp, x, y, new, old) is x <- m x + "
             "(1 - m) y", tests="test_ema.py", keep=2, falls="normalises_alike", parts="_follow"),
    Exercise("enqueue", 8, 2, "", "methods/queue.py", "Queue.enqueue", "methods/moco.md", "queue and not evaluation",
             15, "normalise; noted gives the ids; then key t to row t mod capacity, in slices, as a batch may wrap; count",
             tests="test_queue.py", keep=5),
    Exercise("adam", 8, 2, "linear", "optim.py", "_adam", "derivations.md", "adam and not named or changes_nothing",
             20, "in place; follow(xp, m, g, new1, old1) is m <- b1 m + (1 - b1) g; rate and eps contain the "
             "corrections; l2 goes into g, decay_factor shrinks w, unless None", tests="test_optim.py"),
    Exercise("warmup_cosine", 8, 1, "", "optim.py", "warmup_cosine", "derivations.md", "warmup_cosine or schedule", 10,
             "the first step already has a rate; after the last step, stay at the final rate", tests="test_optim.py",
             keep=3),
    Exercise("effective_rank", 8, 2, "", "evaluate/geometry.py", "effective_rank", "derivations.md", "effective_rank",
             15, "float64, over the largest entry, centred; eigh of x^T x after to_host; roots above _rounding; entropy",
             tests="test_evaluate.py", keep=2, falls="training_metrics or report or the_cap_is_of"),
    Exercise("retrieval", 8, 2, "", "evaluate/zero_shot.py", "retrieval_recall", "derivations.md",
             "retrieval_of or recall_counts or repeated_caption_is or retrieves_nothing or every_k", 20,
             "count the wrong candidates that score at least as much as the best right one: fewer than k is a hit",
             tests="test_clip.py", keep=7, falls="chunks_of_a_batch"),
    Exercise("logit_scale", 9, 1, "clip_loss adam", "methods/clip.py", "CLIP.clamp_logit_scale", "methods/clip.md",
             "clamping", 5, "the parameter is a logarithm; write into its array, which the optimizer shares",
             tests="test_clip.py", falls="chunks_of_a_batch"),
    Exercise("grad_cache", 9, 3, "linear layer_norm batch_norm info_nce nt_xent clip_loss momentum_update enqueue "
             "adam", "methods/grad_cache.py", "grad_cache", "gradients/grad_cache.md",
             "gradient_of or redraws or equal_size or logit_scale or moco or add_up or memory or elsewhere or a_row "
             "or off_the_tape or is_warned_of", 30, "encode without a tape; backward of the loss alone; then each chunk "
             "again, and one backward of all its outputs' dz", tests="test_grad_cache.py", keep=9, falls="scalar"),
]
BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
DIFFICULTY = {1: "easy", 2: "medium", 3: "hard"}


def needed(exercise):
    """The names of all exercises that this one needs, directly or through others."""
    direct = exercise.needs.split()
    return set(direct).union(*(needed(BY_NAME[name]) for name in direct))


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
        raise ExerciseError(f"{', '.join(again)}: already an exercise in {out}; name another, or a new folder")
    if seed not in (0, record["seed"]):
        raise ExerciseError(f"the tests in {out} have the seed {record['seed']}, not {seed}; leave --seed out")
    take_out(exercises, out / "minicl")
    write_record(out, [*(BY_NAME[name] for name in record["exercises"]), *exercises], record["seed"])


def write_record(out, exercises, seed):
    (out / RECORD).write_text(json.dumps({"exercises": [exercise.name for exercise in exercises], "seed": seed}) + "\n")


def read_record(tree):
    """The record of a tree; of one without, every exercise."""
    try:
        record = json.loads((tree / RECORD).read_text())
        return {"exercises": [name for name in record["exercises"] if name in BY_NAME], "seed": int(record["seed"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"exercises": list(BY_NAME), "seed": 0}


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


def replace_broken(minicl):
    """Put the library's files in place of those that cannot be imported: {file: error}, with file "" if that fails."""
    broken = {}
    modules = sorted({"minicl." + exercise.file.removesuffix(".py").replace("/", ".") for exercise in EXERCISES})
    while True:
        run = subprocess.run([sys.executable, "-c", "import " + ", ".join(modules)], cwd=minicl.parent,
                             capture_output=True, text=True)
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
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--tb=no", f"tests/{exercise.tests}", "-k", exercise.k],
                             cwd=tree, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})
        passed, failed, errors = (sum(map(int, re.findall(rf"(\d+) {word}", run.stdout.strip().split("\n")[-1])))
                                  for word in ("passed", "failed", "error"))
        if passed + failed == 0:
            reasons = re.findall(r"\w*(?:Error|Exception)\b.*", run.stdout + run.stderr)
            error = reasons[-1] if reasons else f"pytest ended with status {run.returncode}"
    tests = passed + failed + errors
    return {"passed": passed, "tests": tests, "minutes": exercise.minutes, "done": 0 < passed == tests,
            **({} if error is None else {"error": error})}


def grade(out, students, seed):
    """Run the tests of each student's exercises in fresh trees out/NAME, print a table, and write out/marks.json.

    Returns {student: {exercise: its mark}}; minutes are the estimate for a whole exercise. The exercises of a file that
    cannot be imported have an error; the others are graded with the library's file in its place.
    """
    names = [student.resolve().name for student in students]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExerciseError(f"--grade: two trees are called {', '.join(twice)}; rename one, the name is the student's")
    marks = {}
    width = max(map(len, ["minutes done", *BY_NAME])) + 2
    for name, student in zip(names, students):
        given = read_record(student)["exercises"]
        print(f"{name}: {len(given)} exercise{'s' * (len(given) > 1)} ...", file=sys.stderr, flush=True)
        write_tree(out / name, [], seed=seed, minicl=student / "minicl")
        broken = replace_broken(out / name / "minicl")
        marks[name] = {}
        for exercise in (exercise for exercise in EXERCISES if exercise.name in given):
            marks[name][exercise.name] = mark(exercise, out / name, broken)
            print(f"{name}: {exercise.name} {cell(marks[name][exercise.name])}", file=sys.stderr, flush=True)

    def row(title, cells):
        print(f"{title:<{width}}" + "".join(f"{shown:>{max(len(name), 7) + 2}}" for name, shown in zip(names, cells)))

    row("", names)
    for exercise in EXERCISES:
        cells = [cell(marks[name].get(exercise.name)) for name in names]
        if any(cells):
            row(exercise.name, cells)
    row("minutes done", [sum(mark["minutes"] for mark in marks[name].values() if mark["done"]) for name in names])
    errors = {}
    for name in names:
        for exercise, one in marks[name].items():
            if "error" in one:
                errors.setdefault((name, one["error"]), []).append(exercise)
    if errors:
        print("\nerrors\n" + listing([(name, f"{', '.join(those)}: {error}") for (name, error), those in errors.items()]))
    (out / "marks.json").write_text(json.dumps(marks, indent=1) + "\n")
    return marks


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
        if not (student / "minicl").is_dir():
            parser.error(f"--grade: expected a tree with a folder minicl/, got {student}")
    chosen = [exercise for exercise in EXERCISES if exercise.name in (options.only or BY_NAME)]
    try:
        if options.grade:
            return grade(options.out, options.grade, options.seed)
        if options.only and (options.out / RECORD).exists():
            add_to_tree(options.out, chosen, options.seed)
        else:
            write_tree(options.out, chosen, seed=options.seed)
    except ExerciseError as error:
        parser.error(str(error))
    count = len(read_record(options.out)["exercises"])
    print(f"{count} of {len(EXERCISES)} exercises in {options.out}", f"{len(chosen)} of them new; there:", sep=", ")
    for exercise in chosen:
        lines = textwrap.wrap(command(exercise), 47, break_long_words=False, break_on_hyphens=False)
        print(f"  {exercise.name:18}{exercise.minutes:3} min  " + (" \\\n" + " " * 29).join(lines))
    return 0


if __name__ == "__main__":
    main()
