"""The notebooks in docs/notebooks are up to date with the scripts and pages, and every cell runs."""

import importlib.util
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra: notebooks)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra: notebooks)")
pytest.importorskip("ipykernel", reason="needs ipykernel (extra: notebooks)")
pytest.importorskip("matplotlib", reason="needs matplotlib (extra: viz)")

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "docs/make_notebooks.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
NOTEBOOKS = make.notebooks()

SMALL = """\
import functools
from minicl.data import digits
digits.generate_digits = functools.partial(digits.generate_digits, 600, 200)"""
OPTIONS = {"simclr_mnist": "--encoder mlp --batch 100", "moco_mnist": "--batch 64 --queue 128", "clip_captions": "--batch 100"}

each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


@each_notebook
def test_a_notebook_is_up_to_date_with_its_source(name):
    written = nbformat.read(make.FOLDER / f"{name}.ipynb", as_version=4)
    assert written == NOTEBOOKS[name], "the sources have changed: python docs/make_notebooks.py"


def test_the_folder_has_no_other_notebook():
    assert {path.stem for path in make.FOLDER.glob("*.ipynb")} == NOTEBOOKS.keys()


@each_notebook
def test_every_cell_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.from_dict(NOTEBOOKS[name])
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = f"OPTIONS = '--data digits --epochs 1 --log-every 2 {OPTIONS[name]}'\n{SMALL}"
    folder = tmp_path / "docs/notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in outputs)
    if name in OPTIONS:                                      # the log and the pictures are shown
        assert any("step 1/" in output.get("text", "") for output in outputs)
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(pictures) == len(list((folder / f"runs/{name}").glob("*.png"))) > 0
