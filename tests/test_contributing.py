"""The recipes of docs/contributing.md, followed literally in a copy of the project: every step, then every command."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/contributing.md").read_text()
SECTIONS = dict(re.findall(r"^## (An? .*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
STEP = re.compile(r"^\d+\. (.*?)$\n+(?:^ *```(\w+)\n(.*?)^ *```$)?", re.MULTILINE | re.DOTALL)


def steps(recipe):
    """(instruction, language, code) of each numbered step; code is dedented, None where a step has none."""
    for text, language, code in STEP.findall(SECTIONS[recipe]):
        yield text, language, re.sub(r"^   ", "", code, flags=re.MULTILINE)


def follow(folder, text, code):
    """Do what a step says: create a file, append to it, or add lines below one that it quotes."""
    path = folder / re.search(r"`([^`]+)`", text)[1]
    if text.startswith("Create"):
        assert not path.exists(), f"{path} is there already"
        path.write_text(code)
    elif text.startswith("Append to"):
        path.write_text(path.read_text() + code)
    else:
        line = re.fullmatch(r"In `[^`]+`, below `(.+)`, add:", text)[1]
        lines = path.read_text().splitlines(keepends=True)
        at = [k for k, other in enumerate(lines) if other.strip() == line.strip()]
        assert len(at) == 1, f"{path} has {len(at)} lines {line!r}"
        path.write_text("".join([*lines[:at[0] + 1], code, *lines[at[0] + 1:]]))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project in which all recipes have been followed."""
    folder = tmp_path_factory.mktemp("project") / "minicl"
    for name in ("minicl", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for recipe in SECTIONS:
        for text, language, code in steps(recipe):
            if language and language != "bash":
                follow(folder, text, code)
    return folder


@pytest.mark.parametrize("recipe", SECTIONS)
def test_a_recipe_has_at_most_ten_steps_and_ends_with_its_tests(recipe):
    found = list(steps(recipe))
    assert 3 <= len(found) <= 10 and "pytest" in found[-1][2]


@pytest.mark.parametrize("recipe", SECTIONS)
def test_a_recipe_works(recipe, copy):
    for _, language, code in steps(recipe):
        for line in code.splitlines() if language == "bash" else []:
            words = shlex.split(line)
            assert words.pop(0) == "python"
            environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
