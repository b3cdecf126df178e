"""The benchmark of a whole training run: minicl and PyTorch learn from similar views, and a table shows when each
reached the goal."""

import importlib.util
import json

import numpy as np
import pytest
from benchmarks import main_job, run
from benchmarks.report import MAIN_JOB, document
from test_benchmarks import Measured, record_of, result

from minicl.data import mnist_views, two_views
from minicl.run import RunError

DIGITS = {**main_job.RECIPE, "data": "digits", "items": 256, "epochs": 2, "batch": 64}
RESULT = {"start": 1.0, "epochs": [10.0] * 8, "probe": {"5": 0.98, "6": 0.9889, "7": 0.989, "8": 0.9895}, "evaluation": 5.0,
          "metrics": {"probe_h": 0.9895, "knn_h": 0.978, "probe_z": 0.97, "knn_z": 0.97}}


def test_both_libraries_train_and_are_evaluated_alike(capfd):
    peer = "torch" if importlib.util.find_spec("torch") else "none"
    found = main_job.measure(peer, cores=1, recipe=DIGITS, first=2)
    assert list(found) == (list(main_job.NAMES) if peer == "torch" else ["minicl"])
    for each in found.values():
        assert len(each["epochs"]) == 2 and list(each["probe"]) == ["2"]
        assert set(each["metrics"]) == {"probe_h", "probe_z", "knn_h", "knn_z"}
        assert min(each["metrics"].values()) > 0.3 and each["probe"]["2"] == each["metrics"]["probe_h"]
    assert "epoch 2: " in capfd.readouterr().out


def test_missing_data_is_one_line_of_error(tmp_path, capfd):
    with pytest.raises(RunError, match=r"main_job, minicl: .*no-such-folder"):
        main_job.measure("none", 1, {**DIGITS, "data": "mnist", "data_dir": str(tmp_path / "no-such-folder")})


def test_views_of_both_libraries_are_alike(rng):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which minicl is compared with")
    from benchmarks import torch_models

    torch.manual_seed(0)
    image = np.zeros((28, 28, 1), dtype="float32")
    image[6:20, 8:16] = 1
    image[17:20, 8:22] = 0.5                                                 # an image without symmetry
    images = np.tile(image, (4000, 1, 1, 1))
    ours = two_views(mnist_views(), images, rng)[0][..., 0]
    theirs = torch_models.mnist_views(torch.tensor(images.transpose(0, 3, 1, 2)))[:, 0].numpy()
    for moment in (1, 2):
        x, y = (views**moment for views in (ours, theirs))
        assert np.abs(x.mean(axis=0) - y.mean(axis=0)).max() < 6 * 0.5 / np.sqrt(4000)
    masses = [views.sum(axis=(1, 2)) for views in (ours, theirs)]
    assert masses[0].mean() == pytest.approx(masses[1].mean(), rel=0.03)
    assert masses[0].std() == pytest.approx(masses[1].std(), rel=0.06)


def test_the_goal_is_reached_at_the_first_evaluation_that_attains_it():
    assert main_job.seconds_to(RESULT) == 71.0
    assert main_job.seconds_to(RESULT, goal=0.99) is None
    assert list(main_job.table({"minicl": RESULT}))[-1] == (
        "| minicl | 1.0 | 80.0 | 71.0 | 5.0 | 86.0 | 97.80% | 98.95% |\n")


def test_the_page_has_the_row():
    measured = {**result([0.01] * 5), "disturbed": 0.0}
    page = document({**record_of(**{"import minicl": measured}), "main_job": {"minicl": RESULT}})
    assert MAIN_JOB.format(goal=main_job.GOAL, first=main_job.FIRST) in page and "| minicl | 1.0 |" in page and "to 98.9%" in page


def test_run_keeps_the_row_beside_the_cases(monkeypatch, tmp_path, capsys):
    file, page = tmp_path / "all.json", tmp_path / "page.md"
    monkeypatch.setattr(run.main_job, "measure", lambda peer, threads, recipe: {"minicl": RESULT})
    assert run.main(["--only", "main_job", "--json", str(file)]) == 0
    assert "| minicl | 1.0 |" in capsys.readouterr().out
    assert json.loads(file.read_text())["main_job"] == {"minicl": RESULT}
    monkeypatch.setattr(run, "Worker", Measured().worker)
    monkeypatch.setattr(run, "measure", Measured())
    assert run.main(["--only", "2N=512", "--rounds", "1", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["main_job"] == {"minicl": RESULT} and list(record["cases"]) == ["NT-Xent 2N=512"]
    monkeypatch.setattr(run, "launches_per_step", dict)
    monkeypatch.setattr(run, "table", list)
    assert run.main(["--read", str(file), "--table", str(page)]) == 0
    assert "## A whole training" in page.read_text() and "| minicl | 1.0 |" in page.read_text()
