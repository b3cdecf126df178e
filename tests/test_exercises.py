"""The exercises: removing one makes exactly its own tests fail, and solving it needs only the exercises it names."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import exercise_list
import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("make_exercises", ROOT / "examples/make_exercises.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

each_exercise = pytest.mark.parametrize("exercise", make.EXERCISES, ids=make.BY_NAME)
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)             # trees are copied with their compiled modules
for name in ("CI", "BUILD_NUMBER"):  # with these set, pytest repeats every message in its summary
    ENVIRONMENT.pop(name, None)


def selects(k, test):
    """Whether `pytest -k k` selects this test; each word of k must occur in the test's name."""
    return bool(k) and eval(re.sub(r"(?!(?:and|or|not)\b)\b\w+", lambda word: str(word[0] in test.lower()), k))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{key: {test: outcome}} of all runs below, run together: two for each exercise, and one with another seed."""
    folder = tmp_path_factory.mktemp("exercises")
    jobs = {}
    whole = folder / "whole"
    make.write_tree(whole, [])
    files = {f"tests/{exercise.tests}" for exercise in make.EXERCISES}
    subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", *files], cwd=whole, check=True,
                   capture_output=True, env=ENVIRONMENT)        # compiles all modules once

    def run_without(exercises, key, *arguments):
        shutil.copytree(whole, folder / key, ignore=shutil.ignore_patterns("docs", "examples"))
        make.take_out(exercises, folder / key / "minicl")
        jobs[key] = str(folder / key), arguments

    for exercise in make.EXERCISES:
        file = f"tests/{exercise.tests}"
        run_without([exercise], f"{exercise.name} alone", file, "-k", "not _run_")  # the left-out tests run an example
        # All other exercises are holes, except this one and those that it needs.
        rest = [other for other in make.EXERCISES if other.name not in {exercise.name, *exercise_list.needed(exercise)}]
        run_without(rest, f"{exercise.name} among holes", file, "-k", exercise.k)
    make.write_tree(folder / "seed", [], seed=7)
    jobs["seed"] = str(folder / "seed"), ["tests/test_ops.py"]
    done = subprocess.run([sys.executable, ROOT / "tests/exercise_runs.py"], input=json.dumps(jobs), text=True,
                          capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@each_exercise
def test_removing_an_exercise_makes_exactly_its_tests_fail(exercise, outcomes):
    ran = outcomes[f"{exercise.name} alone"]
    expected = {test for test in ran if selects(exercise.k, test) or selects(exercise.falls, test)}
    failed = {test for test, outcome in ran.items() if outcome == "failed"}
    assert expected and len(ran) > len(expected)
    assert failed == expected, (f"EXERCISES, k and falls of {exercise.name}: these fail but are not declared: "
                                f"{sorted(failed - expected)}; "
                                f"these are declared but pass: {sorted(expected - failed)}")


@each_exercise
def test_an_exercise_passes_with_only_the_exercises_that_it_needs(exercise, outcomes):
    own = {test for test in outcomes[f"{exercise.name} alone"] if selects(exercise.k, test)}
    assert outcomes[f"{exercise.name} among holes"] == dict.fromkeys(own, "passed")
    assert all(make.BY_NAME[name].level < exercise.level for name in exercise_list.needed(exercise))


def test_a_seed_gives_other_values_and_more_shapes_that_pass(outcomes):
    ran = outcomes["seed"]
    assert set(ran.values()) == {"passed"}
    published = outcomes["softmax alone"]
    more = {test for test in ran if "seed 7" in test}
    assert ran.keys() - published.keys() == more
    for exercise in make.EXERCISES:
        if exercise.tests == "test_ops.py":
            assert any(selects(exercise.k, test) for test in more), f"no drawn case for {exercise.name}"


def test_the_seed_is_read_from_the_environment():
    run = [sys.executable, "-c", "import cases; print(cases.SEED, cases.normal(1)[0], cases.apart(9)[:3])"]
    said = {subprocess.run(run, cwd=ROOT / "tests", text=True, check=True, stdout=subprocess.PIPE,
                           env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "MINICL_CASE_SEED": seed}).stdout
            for seed in ("0", "7", "8")}
    assert len({line.split()[1] for line in said}) == len(said) == 3


# ---------------------------------------------------------------- the table and the page

@each_exercise
def test_an_exercise_names_existing_files_and_its_hole_names_the_page(exercise):
    source = (ROOT / "minicl" / exercise.file).read_text()
    stripped = make.strip(source, exercise)
    make.find(compile(stripped, exercise.file, "exec", 0x400), exercise.function)        # 0x400 compiles to a tree
    hole = [line for line in stripped.split("\n") if line not in source.split("\n")]
    assert sum(f"exercise {exercise.name}: read docs/{exercise.page}" in line for line in hole) == 1
    assert max(map(len, hole)) <= 118
    assert (ROOT / "docs" / exercise.page).exists() and (ROOT / "tests" / exercise.tests).exists()


def test_the_page_lists_the_exercises():
    text = (ROOT / "docs/exercises.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| \[.*?\]\((.*?)\) \| (.*?) \| (\w+) \| (\d+) \| (.*?) \| "
                      r"\[.*?\]\(\.\./minicl/(.*?)\) \| `(.*?)` \|$", text, re.M)
    assert rows == [(str(e.level), e.name, e.page, ", ".join(f"`{name}`" for name in e.needs.split()),
                     exercise_list.DIFFICULTY[e.difficulty], str(e.minutes), e.hint, e.file,
                     make.command(e).removeprefix("pytest tests/")) for e in make.EXERCISES]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    hours = sum(exercise.minutes for exercise in make.EXERCISES) / 60
    assert text.startswith(f"# Exercises\n\n{len(rows)} functions") and f"\nTogether {round(2 * hours) / 2:g} hours." in text


# ---------------------------------------------------------------- the script

def test_a_wrong_answer_is_explained_by_gradcheck(tmp_path):
    """A student first sees the hole, then an error for a softmax that lacks its 1/tau."""
    make.main([str(tmp_path / "mine"), "--only", "softmax"])
    path = tmp_path / "mine/minicl/contrastive/softmax.py"
    hole = 'raise NotImplementedError("exercise softmax: read docs/gradients/softmax.md")'
    assert hole in path.read_text()
    path.write_text(path.read_text().replace(hole, "return p * (g - (g * p).sum(axis=-1, keepdims=True)), None"))
    run = [sys.executable, "-m", "pytest", "-q", "tests/test_ops.py", "-k", "differences and softmax"]
    said = subprocess.run(run, cwd=tmp_path / "mine", capture_output=True, text=True, env=ENVIRONMENT).stdout
    assert "gradient of softmax with respect to" in said and "a missing or doubled" in said
    assert re.search("2 failed, 2 passed", said)              # on both backends; log_softmax is complete
    assert said.index("hint") < 1500 and len(said.splitlines()) < 30         # without the checker's own stack frames


def test_grading_uses_each_students_minicl_and_fresh_tests(tmp_path, capsys):
    ann, bob, cem, out = tmp_path / "ann", tmp_path / "bob", tmp_path / "cem", tmp_path / "marks"
    make.main([str(ann), "--only", "relu"])
    make.main([str(bob), "--only", "mul"])
    (ann / "tests/cases.py").write_text("CASES = []")
    path = bob / "minicl/ops/elementwise.py"
    path.write_text((ROOT / "minicl/ops/elementwise.py").read_text())                    # bob has solved his exercise
    make.main([str(cem), "--only", "conv2d", "warmup_cosine"])
    with open(cem / "minicl/ops/conv.py", "a") as file:
        file.write("def (:\n")
    capsys.readouterr()
    marks = make.main([str(out), "--grade", str(ann), str(bob), str(cem), "--seed", "3"])
    assert marks["ann"].keys() == {"relu"} and marks["bob"].keys() == {"mul"}
    assert marks["ann"]["relu"]["passed"] == 0 < marks["ann"]["relu"]["tests"] and not marks["ann"]["relu"]["done"]
    assert marks["bob"]["mul"]["passed"] == marks["bob"]["mul"]["tests"] > 8 and marks["bob"]["mul"]["done"]
    assert json.loads((out / "marks.json").read_text()) == marks
    broken, schedule = marks["cem"]["conv2d"], marks["cem"]["warmup_cosine"]
    assert re.fullmatch(r"SyntaxError: .*\(line \d+ of ops/conv.py\)", broken["error"]) and not broken["done"]
    assert "error" not in schedule and schedule["passed"] == 0 < schedule["tests"]       # its file can be imported
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ann", "bob", "cem"], ["mul", "done"], ["relu", f"0/{marks['ann']['relu']['tests']}"], ["conv2d", "error"],
        ["warmup_cosine", f"0/{schedule['tests']}"], ["minutes", "done", "0", "5", "0"], [], ["notes"],
        ["cem", "conv2d:", *broken["error"].split()]]


def test_a_folder_without_a_tree_or_list_is_an_error_of_that_student_only(tmp_path, capsys):
    for where in ("ann", "bob/bob", "cem"):
        make.main([str(tmp_path / where), "--only", "mul"])
    (tmp_path / "dee").mkdir()
    (tmp_path / "cem/exercises.json").unlink()
    students = [str(tmp_path / name) for name in ("dee", "ann", "bob", "cem")]
    capsys.readouterr()
    marks = make.main([str(tmp_path / "marks"), "--grade", *students])
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "marks/marks.json").read_text()) == marks
    assert [list(marks[name]) for name in ("ann", "bob", "cem", "dee")] == [["mul"], ["mul"], ["error"], ["error"]]
    assert re.search(r"dee +all: no folder minicl/ in", printed) and "exercises.json" in marks["cem"]["error"]
    marks = make.main([str(tmp_path / "only"), "--only", "warmup_cosine", "--grade", *students[1:]])
    assert all(list(each) == ["warmup_cosine"] and each["warmup_cosine"]["done"] for each in marks.values())
    assert "not among the exercises of this tree" in marks["ann"]["warmup_cosine"]["note"] and "note" not in marks["cem"]["warmup_cosine"]


@pytest.mark.parametrize("file, endless", [("ops/elementwise.py", "marks"), ("__init__.py", "import")])
def test_an_endless_loop_is_an_error_and_the_others_are_graded(file, endless, tmp_path, monkeypatch, capsys):
    make.main([str(tmp_path / "ann"), "--only", "relu", "logsumexp"])
    path = tmp_path / "ann/minicl" / file
    hole = 'raise NotImplementedError("exercise relu: read docs/derivations.md")'
    loop = "while True:\n            pass"
    path.write_text(path.read_text().replace(hole, loop) if endless == "marks" else "while True:\n    pass\n")
    monkeypatch.setattr(make, "LIMIT", 20)
    marks = make.main([str(tmp_path / "marks"), "--grade", str(tmp_path / "ann")])["ann"]
    assert re.search("not done after 20 s; is there an endless loop", marks["relu"]["error"])
    assert ("error" in marks["logsumexp"]) == (endless == "import")


def test_a_wrong_or_endless_need_is_named_and_the_endless_one_waited_for_once(tmp_path, monkeypatch, capsys):
    names = ("broadcast_sum", "mul", "relu")
    for student in ("ann", "bob"):
        make.main([str(tmp_path / student), "--only", *names])
        path = tmp_path / student / "minicl/ops/elementwise.py"
        path.write_text((ROOT / "minicl/ops/elementwise.py").read_text())
        path = tmp_path / student / "minicl/signature.py"
        hole = 'raise NotImplementedError("exercise broadcast_sum: read docs/derivations.md")'
        assert hole in path.read_text()
        path.write_text(path.read_text().replace(hole, "return g" if student == "ann" else "while True:\n        pass"))
    monkeypatch.setattr(make, "LIMIT", 20)
    marks = make.main([str(tmp_path / "marks"), "--grade", str(tmp_path / "ann"), str(tmp_path / "bob")])
    ann, bob = marks["ann"], marks["bob"]
    assert not ann["broadcast_sum"]["done"] and "needs" not in ann["broadcast_sum"] and not ann["mul"]["done"]
    assert ann["mul"]["needs"] == ["broadcast_sum"]
    assert "is there an endless loop" in bob["broadcast_sum"]["error"]
    assert {bob[name]["error"] for name in ("mul", "relu")} == {"not run, because broadcast_sum does not end"}
    alone = make.main([str(tmp_path / "alone"), "--only", "mul", "--grade", str(tmp_path / "ann")])["ann"]["mul"]
    assert not alone["done"] and alone["note"] == "needs broadcast_sum of this tree, not graded here"
    printed = capsys.readouterr().out
    assert "mul: needs broadcast_sum, not done" in printed.replace("mul, relu: ", "mul: ")
    assert "mul, relu: not run, because broadcast_sum does not end" in printed


@pytest.mark.parametrize("file, broken, affected", [
    ("contrastive/cosine.py", "from .checks import nothing\n", {"l2_normalize", "cosine_similarity"}),
    ("ops/conv.py", "tile = undefined\n", {"conv2d"}),
    ("ops/pool.py", "def (:\n", {"max_pool2d"}),
])
def test_a_file_that_cannot_be_imported_marks_its_own_exercises(file, broken, affected, tmp_path):
    shutil.copytree(ROOT / "minicl", tmp_path / "minicl")
    whole = (tmp_path / "minicl" / file).read_text()
    (tmp_path / "minicl" / file).write_text(broken + whole)
    errors = make.replace_broken(tmp_path / "minicl")
    assert {exercise.name for exercise in make.EXERCISES if Path(exercise.file) in errors} == affected
    assert Path() not in errors and (tmp_path / "minicl" / file).read_text() == whole


@pytest.mark.parametrize("exercise, hole, wrong", [
    ("l2_normalize", "return (_across(g, x_hat, row_dots(x_hat, g), squares, eps),)",
     "return ((g - x_hat * row_dots(x_hat, g)) / squares**0.5,)"),
    ("alignment", "nonzero**(alpha / 2 - 1)", "squared**(alpha / 2 - 1)"),
])
def test_a_formula_without_its_limit_does_not_pass(exercise, hole, wrong, tmp_path):
    """Zero rows and coinciding views are part of the exercise, as they are of the docstring."""
    exercise = make.BY_NAME[exercise]
    make.write_tree(tmp_path / "mine", [])
    path = tmp_path / "mine/minicl" / exercise.file
    assert path.read_text().count(hole) == 1
    path.write_text(path.read_text().replace(hole, wrong))
    mark = make.mark(exercise, tmp_path / "mine", {})
    assert 0 < mark["passed"] < mark["tests"] and not mark["done"]


def test_exercises_are_added_to_a_tree_that_has_some(tmp_path, capsys):
    """The course's homework adds exercises to one tree: first mul, then the others."""
    out = tmp_path / "mine"
    solved = "return g * b, g * a    # solved"
    make.main([str(out), "--only", "mul"])
    path = out / "minicl/ops/elementwise.py"
    hole = 'raise NotImplementedError("exercise mul: read docs/derivations.md")'
    path.write_text(path.read_text().replace(hole, solved))
    make.main([str(out), "--only", "relu", "matmul"])
    assert solved in path.read_text() and "exercise relu" in path.read_text()
    assert f"3 of {len(make.EXERCISES)} exercises in {out}, 2 of them new" in capsys.readouterr().out
    assert make.read_record(out) == {"exercises": ["mul", "relu", "matmul"], "seed": 0}
    before = path.read_text()
    for only, message in (["add_me"], "invalid choice"), (["linear", "relu"], "relu: already an exercise"):
        with pytest.raises(SystemExit):
            make.main([str(out), "--only", *only])
        assert message in capsys.readouterr().err
    (out / "minicl/ops/matmul.py").write_text("def (")
    with pytest.raises(SystemExit):
        make.main([str(out), "--only", "softmax", "linear"])
    assert "linear cannot be taken out" in capsys.readouterr().err
    assert "NotImplementedError" not in (out / "minicl/contrastive/softmax.py").read_text()
    assert path.read_text() == before


def test_the_commands_of_the_course_in_order_make_one_tree(tmp_path):
    text = (ROOT / "docs/course.md").read_text()
    homework = [names.split() for names in re.findall(r"make_exercises\.py\s\.\./mine\s--only\s([\w\s]+)`", text)]
    assert len(homework) == 8
    for names in homework:
        make.main([str(tmp_path / "mine"), "--only", *names])
    assert make.read_record(tmp_path / "mine")["exercises"] == [
        exercise.name for names in homework for exercise in make.EXERCISES if exercise.name in names]
    for exercise in make.EXERCISES:                          # the remaining exercises, one by one
        if not any(exercise.name in names for names in homework):
            make.main([str(tmp_path / "mine"), "--only", exercise.name])
    for exercise in make.EXERCISES:
        source = (tmp_path / "mine/minicl" / exercise.file).read_text()
        assert f"exercise {exercise.name}: read" in source and compile(source, exercise.file, "exec")


def test_existing_files_are_never_overwritten(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, message in (([], "is not empty; name a new folder"), (["--only", "mul"], "is not empty")):
        with pytest.raises(SystemExit):
            make.main([str(tmp_path), *arguments])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make.main([str(tmp_path / "new"), "--only", "sofmax"])
    with pytest.raises(SystemExit):
        make.main([str(tmp_path / "new"), "--grade", str(tmp_path / "nobody")])
    with pytest.raises(SystemExit):
        make.main([str(tmp_path / "new"), "--grade", str(ROOT), f"{ROOT}/../{ROOT.name}"])
    assert "two trees are called" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and (tmp_path / "notes.txt").read_text() == "mine"
