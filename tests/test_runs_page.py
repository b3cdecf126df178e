"""docs/runs.md lists the files and numbers of a run, its code runs, and its error messages are those of the package."""

import functools
import re
from pathlib import Path

import pytest
import sequences
from example_runs import read_run, run_example
from picture_files import numbered, write_pictures

from minicl.data import digits, shapes

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


def others():
    """{script: the files and numbers that it adds according to the page}."""
    added = {}
    scripts = []
    body = TEXT.split("## What other scripts add")[1].split("\n## ")[0]
    for line in body.splitlines():
        if line.startswith("| ") and ".py" in line or line.startswith("| |"):
            first, second = line.split(" | ")[:2] if not line.startswith("| |") else ("", line.split("|")[2])
            scripts = re.findall(r"`(\w+)\.py`", first) or scripts
            for script in scripts:
                added.setdefault(script, set()).update(re.findall(r"`([^`]+)`", second))
    return added


DIGITS = ("--data", "digits", "--epochs", 1, "--batch", 20)
PICTURES = ("--size", 32, "--width", 4, "--epochs", 1, "--batch", 20)
OPTIONS = {
    "moco_mnist": (*DIGITS, "--queue", 40, "--splits", 2), "clip_captions": (*DIGITS, "--text", "bag"),
    "simclr_cifar10": ("--data", "shapes", "--width", 4, "--epochs", 1, "--batch", 20), "collapse": DIGITS, "circle": DIGITS,
    "simclr_images": PICTURES, "moco_images": (*PICTURES, "--queue", 40, "--splits", 2), "cpc_sequences": ("--epochs", 1, "--batch", 16),
    "clip_images": (*PICTURES, "--text", "bag", "--dim", 8, "--classes", "red", "blue"),
    "mutual_information": ("--epochs", 1, "--batch", 16, "--dim", 3, "--pairs", 512),
}
METHODS = "|".join(["untrained", "random weights", "positives only", "BYOL", "SimSiam", "NT-Xent", "alignment only",
                    "uniformity only", "both"])


def test_the_page_lists_every_script():
    assert others().keys() == OPTIONS.keys()
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py") if "Run(args" in path.read_text()}
    assert scripts == OPTIONS.keys() | {"simclr_mnist"}


@pytest.mark.parametrize("script", OPTIONS)
def test_the_page_lists_what_other_scripts_add(script, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 60, 100))
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes, 60, 30))
    monkeypatch.setattr(sequences, "generate_rotations", functools.partial(sequences.generate_rotations, n_train=48, n_test=32))
    options = list(OPTIONS[script])
    if script.endswith("_images"):
        names = [name for label in "abc" for name in numbered(label, 20)]
        write_pictures(tmp_path / "photos", names)
        options += ["--data-dir", tmp_path / "photos"]
    if script == "clip_images":
        lines = [f"{name},it is {('red', 'blue')[k % 2]} and number {k // 2}" for k, name in enumerate(names)]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
        options += ["--captions", tmp_path / "captions.csv"]
    assert run_example(script, *options, "--out", tmp_path / "out") == 0
    result, log = read_run(tmp_path / "out")
    names = result.keys() | {name for line in log for name in line} | {path.name for path in (tmp_path / "out").iterdir()}
    names = {name for name in names if not name.startswith(".")} - {"data", "backend", "seed"}
    names -= set(first_cells("The folder of a run"))
    plain = {re.sub(r"_\d+_\d+$", "_n_k", name) for name in names}
    plain = {re.sub(rf"(?<![\w-])({METHODS})(?![\w-])", "METHOD", re.sub(r"(?<=[a-z])_\d+$", "_k", name)) for name in plain}
    assert plain == others()[script]


def test_the_code_loads_the_trained_model(folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 200, 60))
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    assert names["h"].shape == (60, 512) and names["z"].shape == (60, 128)
    assert names["h"].std(axis=0).max() > 0 and names["trained"].step == 10
    exec(re.search(r"^### Fine-tune it\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    optimizer = names["optimizer"]
    steps = dict(zip(optimizer.names, optimizer.steps - optimizer.missed))
    assert steps["steps.1.weight"] == 20 and steps["steps.0.blocks.0.steps.0.weight"] == 10
    exec(re.search(r"^With few labelled images.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    norms = [name for name, p in names["encoder"].named_parameters() if not p.requires_grad]
    assert len(norms) == 6 and all(".steps.1." in name for name in norms)


@pytest.mark.parametrize("message", first_cells("Errors"))
def test_the_messages_are_those_of_the_code(message):
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (ROOT / "minicl").rglob("*.py"))
    for part in re.split(r"\.\.\.", message):
        assert part.strip(" ()") in source
