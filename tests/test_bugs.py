"""examples/bugs: each script runs and shows its symptom. docs/bugs.md and docs/course.md name only what exists."""

import ast
import functools
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import page_commands
import pytest

import minicl
from minicl import Tensor, viz
from minicl.contrastive import cosine_similarity, log_softmax

ROOT = Path(minicl.__file__).parents[1]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples/bugs").glob("*.py")) if path.stem != "compare"}
BUGS, COURSE = ROOT / "docs/bugs.md", ROOT / "docs/course.md"
FOUND = "finds the other view"


def last(run, what="loss"):
    return np.mean(run[what][-5:])


# {script: (options of main for a short run, a condition on the correct run c and the wrong run w)}
SYMPTOMS = {
    "mask": (dict(steps=60), lambda c, w: last(w) > last(c) + 0.6 and min(w["loss"]) > math.log(2)),
    "positives": (dict(steps=50), lambda c, w: last(c) < 5 and last(w) > 5.5),
    "views": (dict(steps=50), lambda c, w: last(w) < 0.2 < last(c) and w[FOUND] < c[FOUND] / 1.5),
    "once": (dict(steps=80), lambda c, w: last(w) < 0.2 < last(c) and w[FOUND] < c[FOUND] / 1.5),
    "broadcast": (dict(steps=60), lambda c, w: last(w) > 0.95 and last(c) < 0.1),
    "logit_scale": (dict(steps=110), lambda c, w: last(w) > last(c) + 0.2),
    "zero_vector": (dict(steps=8, empty_at=5), lambda c, w: math.isnan(last(w)) and math.isfinite(last(c))),
    "queue_order": (dict(steps=3), lambda c, w: c["loss"][0] == 0 and w["loss"][0] > math.log(2)),
    "buffers": (dict(steps=30, every=15), lambda c, w: last(w, COSINE) < last(c, COSINE) - 0.05),
    "accumulation": (dict(steps=3), lambda c, w: w[NORM] == pytest.approx(8 * c[NORM], rel=1e-4)),
    "probe": (dict(steps=60, every=60), lambda c, w: last(w, PROBE) < last(c, PROBE) - 0.05),
    "missing_tau": (dict(steps=20), lambda c, w: w[RATIO] == pytest.approx(0.1, rel=1e-4) and last(w) > last(c)),
    "lars": (dict(steps=40), lambda c, w: last(w) == pytest.approx(math.log(10)) and last(c) < 1),
    "no_positive": (dict(draws=3), lambda c, w: c["loss"][-1] > 5 and w["loss"][-1] < 2),
    "gathered": (dict(steps=12), lambda c, w: w["loss"][0] == pytest.approx(c["loss"][0], rel=1e-6) and max(w[EXACT]) < 0.97
                 and min(c[EXACT]) > 0.9999),
    "zero_shot": (dict(images=1000), lambda c, w: w[CLASSES][-1] < c[CLASSES][-1] - 0.2),
}
COSINE, NORM, PROBE = "target's cosine with online", "norm of the gradient, first step", "linear probe"
EXACT = "cosine with the exact gradient"
RATIO, CLASSES = "gradcheck: analytic / numeric", "accuracy, scattered classes"


@pytest.fixture
def main(monkeypatch, tmp_path):
    """main(script) returns the script's main(), in a folder where its pictures may be written."""
    monkeypatch.syspath_prepend(ROOT / "examples/bugs")
    monkeypatch.chdir(tmp_path)
    return lambda script: runpy.run_path(str(SCRIPTS[script]))["main"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_bug_shows_its_symptom(script, main, monkeypatch, capsys):
    monkeypatch.setattr(viz, "Figure", None)
    options, holds = SYMPTOMS[script]
    runs = main(script)(**options)
    assert holds(runs["correct"], runs["wrong"])
    assert "correct" in capsys.readouterr().out
    # the page promises that this number is the same on every machine
    said = page_commands.table(script).get("loss, first step")
    if said:
        assert [f"{run['loss'][0]:.3g}" for run in runs.values()] == [f"{value:.3g}" for value in said]


def test_the_page_has_the_numbers_that_its_fastest_script_prints(main, monkeypatch):
    monkeypatch.setattr(viz, "Figure", None)
    runs = main("zero_shot")()
    for what in ("zero-shot accuracy", CLASSES):
        correct, wrong = (runs[run][what][-1] for run in ("correct", "wrong"))
        assert f"| {correct:.4g} | {wrong:.4g} |" in BUGS.read_text()


def test_a_script_draws_its_curves_where_matplotlib_is_installed(main, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, the viz extra")
    main("zero_shot")(images=100)
    assert (tmp_path / "runs/bugs/zero_shot.png").read_bytes().startswith(b"\x89PNG")


def test_a_script_runs_as_on_the_page(tmp_path):
    script = subprocess.run([sys.executable, SCRIPTS["zero_shot"]], cwd=tmp_path, capture_output=True, text=True,
                            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert script.returncode == 0, script.stderr
    assert "accuracy, scattered classes" in script.stdout


def test_the_mean_of_the_parts_gradients_is_the_gradient_of_the_whole(rng):
    """accumulation.py gets this wrong: N anchors in k parts, each part seeing all keys."""
    z1, z2 = rng.standard_normal((8, 5)), rng.standard_normal((8, 5))

    def gradient(k):
        x = Tensor(z1.copy(), requires_grad=True)
        for rows in np.arange(8).reshape(k, -1):
            (-log_softmax(cosine_similarity(x[rows], z2), 0.2)[np.arange(len(rows)), rows].mean() / k).backward()
        return x.grad

    np.testing.assert_allclose(gradient(4), gradient(1), rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- the pages

def test_every_script_is_on_the_page():
    assert set(SYMPTOMS) == set(SCRIPTS)
    assert set(re.findall(r"python examples/bugs/(\w+)\.py", BUGS.read_text())) == set(SCRIPTS)


@functools.cache
def named_tests(path):
    return [node.name for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize("page", [BUGS, COURSE], ids=lambda page: page.stem)
def test_the_tests_that_a_page_names_exist(page):
    named = re.findall(r"pytest (tests/\w+\.py)(?: -k (?:\"([^\"]+)\"|(\w+)))?", page.read_text())
    assert named
    for path, several, one in named:
        for word in re.split(r" or ", several or one):
            assert any(word in test for test in named_tests(path)), f"{page.name}: {path} has no test {word!r}"


@pytest.mark.parametrize("page", [BUGS, COURSE], ids=lambda page: page.stem)
def test_the_links_and_pictures_of_a_page_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", [BUGS, COURSE], ids=lambda page: page.stem)
def test_the_commands_of_a_page_name_scripts_and_options_that_exist(page):
    commands = re.findall(r"^\s*python (examples/\S+\.py)([^\n#`]*)|`python (examples/\S+\.py)([^`]*)`",
                          page.read_text(), flags=re.MULTILINE)
    assert commands
    for a, more_a, b, more_b in commands:
        script, options = a or b, more_a or more_b
        source = (ROOT / script).read_text()
        if "import command" in source or " options" in source:
            source += (ROOT / "minicl/options.py").read_text()
        for option in re.findall(r"--([\w-]+)", options):
            known = f'"--{option}"' in source or f"{option.replace('-', '_')}=" in source
            assert known, f"{page.name}: {script} has no --{option}"


def test_the_losses_at_chance_in_the_course_are_correct_logarithms():
    claims = re.findall(r"log ([\d,]+) = (\d+\.\d+)", COURSE.read_text())
    assert len(claims) >= 4
    for K, value in claims:
        assert f"{math.log(int(K.replace(',', ''))):.{len(value.split('.')[1])}f}" == value


def test_the_course_names_existing_exercises_with_their_minutes():
    exercises = runpy.run_path(str(ROOT / "examples/exercise_list.py"))["EXERCISES"]
    minutes = {exercise.name: exercise.minutes for exercise in exercises}
    lectures = re.findall(r"\*\*Exercises?\*\* \(([\d +]+) min[^)]*\):(.*?)\*\*Bug", COURSE.read_text(), re.DOTALL)
    assert len(lectures) == 8
    for said, text in lectures:
        named = " ".join(a or b for a, b in re.findall(r"--only ([\w ]+)`|`(\w+)`", text)).split()
        assert [str(minutes[name]) for name in named][:said.count("+") + 1] == said.split(" + ")
