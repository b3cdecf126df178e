"""docs/runs.md: the files and numbers that it lists are those of a run, its code runs, its messages exist."""

import functools
import re
from pathlib import Path

import pytest
from example_runs import read_run, run_example

from minicl.data import digits

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/runs.md").read_text()


def first_cells(section):
    """The names in the first column of the tables of a section."""
    body = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]
    return [name for line in body.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "runs/simclr_mnist"
    with pytest.MonkeyPatch.context() as patch:                  # load.py reads it from the module
        patch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 200, 60))
        assert run_example("simclr_mnist", "--data", "digits", "--epochs", "1", "--batch", "20", "--log", "csv",
                           "--out", folder) == 0
    return folder


def test_every_file_and_number_of_a_run_is_explained(folder):
    result, log = read_run(folder)
    numbers = result.keys() - {"data", "backend", "seed"} | log[0].keys()
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert set(first_cells("The folder of a run")) == numbers | files


def test_the_code_loads_what_was_trained(folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 200, 60))
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    assert names["h"].shape == (60, 512) and names["z"].shape == (60, 128)
    assert names["h"].std(axis=0).max() > 0 and names["meta"]["step"] == 10
    exec(re.search(r"^### Fine-tune it\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    optimizer = names["optimizer"]
    steps = dict(zip(optimizer.names, optimizer.steps - optimizer.missed))
    assert steps["steps.1.weight"] == 20 and steps["steps.0.blocks.0.steps.0.weight"] == 10
    exec(re.search(r"^Where the labelled images are few.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    norms = [name for name, p in names["encoder"].named_parameters() if not p.requires_grad]
    assert len(norms) == 6 and all(".steps.1." in name for name in norms)


@pytest.mark.parametrize("message", first_cells("Errors"))
def test_the_messages_are_those_of_the_code(message):
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (ROOT / "minicl").rglob("*.py"))
    for part in re.split(r"\.\.\.", message):
        assert part.strip(" ()") in source
