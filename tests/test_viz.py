"""Plots are PNG files of arrays. A matplotlib that is missing, broken or set to an unknown backend is handled."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from circle import circle_panels
from minicl import viz
from plots import caption_grid, line_plots

pictures = pytest.mark.skipif(viz.Figure is None, reason="needs matplotlib (extra: viz)")
LOG = [{"step": k, "loss": 2.0 - k, "alignment": 0.1, "uniformity": -1.0} for k in range(2)]
ANGLES = np.linspace(0, 6, 12)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
METRICS = {"alignment": 0.1, "uniformity": -1.0, "knn": 0.5}

DRAW = {
    "image_grid": lambda path: viz.image_grid(path, [np.zeros((3, 4, 4, 1)), np.ones((2, 4, 4, 3))], title="t",
                                              row_labels=("a", "b")),
    "one pixel": lambda path: viz.image_grid(path, [np.zeros((2, 1, 1, 1))]),
    "training_curves": lambda path: viz.training_curves(path, LOG, candidates=7, floor=-3.9),
    "training_curves, loss alone": lambda path: viz.training_curves(
        path, [{"step": step, "loss": 1.0} for step in range(3)], candidates=7, floor=-3.9),
    "training_curves, geometry of some": lambda path: viz.training_curves(
        path, [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.9, "alignment": 0.5, "uniformity": None}], candidates=7, floor=-3.9),
    "training_curves, evaluated": lambda path: viz.training_curves(path, [
        {**line, "rank_h": 3.0, "rank_z": 2.0} | ({"knn_h": 0.5, "knn_z": 0.4} if line["step"] else {}) for line in LOG],
        candidates=7, floor=-3.9),
    "embedding_map": lambda path: viz.embedding_map(path, CIRCLE, np.arange(12), [str(k) for k in range(12)], title="t"),
    "line_plots": lambda path: line_plots(path, {"lines": [("a", [0, 1], [1, 2], {"color": viz.RED})], "title": "t"}),
    "caption_grid": lambda path: caption_grid(path, np.zeros((4, 4, 4, 3)), ["a"] * 4, np.arange(4) > 1, title="t"),
    "circle_panels": lambda path: circle_panels(path, [("one", CIRCLE, METRICS), ("two", CIRCLE, METRICS)],
                                                np.arange(12) % 3, ["a", "b", "c"], -1.575),
}


@pictures
@pytest.mark.parametrize("name", DRAW)
def test_arrays_become_a_picture(name, tmp_path):
    DRAW[name](tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pictures
@pytest.mark.parametrize("names", [("_misc", "a$b$", "c_d"), ("__", "_", "x"), ("ä b", "-", "nan")])
def test_the_legend_of_a_map_names_each_class(names, monkeypatch):
    drawn = []
    monkeypatch.setattr(viz, "save_figure", lambda figure, path: drawn.append(figure))
    viz.embedding_map("unused", CIRCLE, np.arange(12) % 3, names, title="t")
    legend = drawn[0].axes[0].get_legend().get_texts()
    assert [text.get_text().strip().replace(r"\$", "$") for text in legend] == list(names)


@pictures
def test_a_picture_that_fails_half_way_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    viz.image_grid(path, [np.zeros((2, 4, 4, 1))])
    before = path.read_bytes()

    def torn(self, file, **options):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(viz.Figure, "savefig", torn)
    with pytest.raises(OSError, match="No space left"):
        viz.image_grid(path, [np.ones((2, 4, 4, 1))])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", DRAW)
def test_without_matplotlib_each_plot_prints_one_line_and_returns(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(viz, "Figure", None)
    DRAW[name](tmp_path / "picture.png")
    assert capsys.readouterr().out == viz.MISSING + "\n" and not any(tmp_path.iterdir())


def run_python(code, **environment):
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, text=True,
                            capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pictures
@pytest.mark.parametrize("backend", ["module://no.such.backend_inline", "nonsense"])
def test_any_backend_in_the_environment_is_accepted(backend, tmp_path):
    out = run_python(f"import numpy; from minicl import viz; viz.image_grid({str(tmp_path / 'a.png')!r}, "
                     "[numpy.zeros((1, 2, 2, 1))]); import os; print(os.environ['MPLBACKEND'])",
                     MPLBACKEND=backend)
    assert out.strip() == backend and (tmp_path / "a.png").exists()


@pictures
def test_a_backend_that_matplotlib_can_load_stays_selected():
    assert run_python("from minicl import viz; import matplotlib; print(matplotlib.rcParams['backend'])",
                      MPLBACKEND="svg").strip() == "svg"


@pytest.mark.parametrize("source, message", [
    ("raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')",
     "no pictures: they need matplotlib, pip install 'minicl[viz]'"),
    ("raise ImportError('numpy.core.multiarray failed to import')",
     "no pictures: matplotlib is installed but its import fails (numpy.core.multiarray failed to import); it may be too "
     "old for NumPy"),
    ("raise AttributeError('_ARRAY_API not found')", "matplotlib is installed but its import fails (_ARRAY_API not found)"),
    ("raise RuntimeError", "matplotlib is installed but its import fails (RuntimeError)"),
], ids=["missing", "import error", "attribute error", "no message"])
def test_a_failed_import_of_matplotlib_is_explained(source, message, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "matplotlib.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    figure, missing = viz._import_figure()
    assert figure is None and missing.startswith("no pictures: ") and message in missing and "pip install" in missing
