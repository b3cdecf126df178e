"""examples/circle.py and examples/collapse.py from start to end on a few generated digits, on both backends."""

import functools
import math

import numpy as np
import pytest
from example_runs import read_run, run_example

from minicl import evaluate, viz
from minicl.data import digits
from minicl.run import Run

SMALL = ("--data", "digits", "--batch", 20, "--epochs", 2, "--log-every", 1)
STEPS = 10
EXPECTED = {"circle": ["random weights", "alignment only", "uniformity only", "both", "NT-Xent"],
            "collapse": ["positives only", "BYOL", "SimSiam", "NT-Xent"]}
each_example = pytest.mark.parametrize("name", EXPECTED)


FIGURE = viz.Figure


@pytest.fixture(autouse=True)
def few_digits_and_no_pictures(monkeypatch):
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 100, 60))
    monkeypatch.setattr(viz, "Figure", None)


@each_example
def test_a_run_ends_with_a_result_a_log_and_a_picture_on_either_backend(name, xp, tmp_path, monkeypatch):
    monkeypatch.setattr(viz, "Figure", FIGURE)
    code = run_example(name, *SMALL, "--out", tmp_path / "out", "--backend", "numpy" if xp is np else "cupy")
    result, log = read_run(tmp_path / "out")
    assert code == 0 and len(log) == STEPS
    for model in EXPECTED[name]:
        assert any(model in key for key in result)
    assert all(math.isfinite(value) for value in result.values() if isinstance(value, float))
    if FIGURE is not None:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_circle_reports_the_floor_and_no_model_is_far_below_it(tmp_path):
    run_example("circle", *SMALL, "--out", tmp_path / "out")
    result, _ = read_run(tmp_path / "out")
    assert result["uniformity_floor"] == evaluate.uniformity_floor(2)
    for model in EXPECTED["circle"]:
        assert result["uniformity_floor"] - 0.1 < result[f"uniformity, {model}"] <= 0


def test_all_encoders_of_the_collapse_example_start_from_the_same_weights(tmp_path):
    run_example("collapse", *SMALL, "--out", tmp_path / "out")
    _, log = read_run(tmp_path / "out")
    start = [log[0][f"{model}: std"] for model in EXPECTED["collapse"]]
    assert start == pytest.approx([start[0]] * 4, rel=1e-6)


@each_example
def test_a_resumed_run_equals_the_uninterrupted_one(name, tmp_path, monkeypatch):
    assert run_example(name, *SMALL, "--out", tmp_path / "whole") == 0
    log = Run.log

    def interrupted(run, step, **metrics):
        if step == STEPS - 2:                                # epoch 2; epoch 1 left a checkpoint
            raise KeyboardInterrupt
        log(run, step, **metrics)

    monkeypatch.setattr(Run, "log", interrupted)
    assert run_example(name, *SMALL, "--out", tmp_path / "stopped") == 130
    monkeypatch.setattr(Run, "log", log)
    assert run_example(name, *SMALL, "--out", tmp_path / "stopped", "--resume") == 0
    (whole, lines), (stopped, others) = (read_run(tmp_path / folder) for folder in ("whole", "stopped"))
    del whole["seconds"], stopped["seconds"]
    assert whole == stopped and lines == others


@each_example
def test_a_batch_larger_than_the_number_of_images_is_refused(name, tmp_path, capsys):
    code = run_example(name, *SMALL, "--images", 50, "--batch", 51, "--out", tmp_path / "out")
    assert code == 2 and "expected a batch of 1 to 50, the number of items, got 51" in capsys.readouterr().err
