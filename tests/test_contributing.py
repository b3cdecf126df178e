"""The recipes of docs/contributing.md work: a copy of the project follows every step, then runs every command."""

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


def steps(recipe):
    """(instruction, language, code) of each numbered step; a step without code has "" for both."""
    for step in re.split(r"^\d+\. ", SECTIONS[recipe], flags=re.MULTILINE)[1:]:
        fence = re.search(r"^( *)(`{3,})(\w+)\n(.*?)^ *\2$", step, re.MULTILINE | re.DOTALL)
        if fence:
            indent, _, language, code = fence.groups()
            yield step[:fence.start()].strip(), language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        else:
            yield step.strip(), "", ""


def follow(folder, text, code):
    """Carry out one step: create a file, append to it, add lines below a quoted one, or replace a text."""
    if match := re.match(r"Create `([^`]+)`", text):
        path = folder / match[1]
        assert not path.exists(), f"{path} is there already"
        path.write_text(code)
    elif match := re.match(r"Append to `([^`]+)`", text):
        path = folder / match[1]
        path.write_text(path.read_text() + code)
    elif match := re.match(r"In `([^`]+)`, below `(.+)`, add:", text):
        replace_once(folder / match[1], f"{match[2]}\n", f"{match[2]}\n{code}")
    elif match := re.match(r"In `([^`]+)`, replace `(.+)` by `(.+)`\.", text):
        replace_once(folder / match[1], match[2], match[3])


def replace_once(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))


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
            follow(folder, text, "" if language == "bash" else code)
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
