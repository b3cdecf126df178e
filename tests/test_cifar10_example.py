"""examples/simclr_cifar10.py from start to end on a few generated shapes: both methods, all encoders, kNN, --resume."""

import functools
import math
import os
import re
import shlex
import signal

import numpy as np
import pytest
from example_runs import EXAMPLES, read_run, run_example

from minicl import viz
from minicl.data import ImageData, shapes
from minicl.evaluate import pixel_accuracy
from minicl.run import Run

TRAIN, TEST, BATCH, QUEUE = 72, 24, 24, 60                   # 3 steps per epoch; the queue is full in the third
SMALL = ("--data", "shapes", "--batch", BATCH, "--queue", QUEUE, "--splits", "2", "--width", "2", "--dim", "8",
         "--log-every", "1", "--epochs", "2")
KEYS = ["data", "backend", "seed", "loss", "bound_nats", "cap_nats", "knn_pixels", "knn_h", "knn_z", "probe_h",
        "probe_z", "rank_h", "rank_z", "test_images", "seconds", "seconds_per_epoch", "peak_mib"]
METHODS = pytest.mark.parametrize("method", ["simclr", "moco"])


@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options, out=name): run the script on few shapes without pictures; returns (exit code, folder)."""
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes, TRAIN, TEST))
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))

    def run(*options, out="out"):
        return run_example("simclr_cifar10", *SMALL, *options, "--out", tmp_path / out), tmp_path / out
    return run


@METHODS
@pytest.mark.parametrize("encoder, optimizer", [("convnet", "adamw"), ("resnet9", "sgd"), ("resnet18", "sgd")])
def test_a_run_ends_with_a_result_on_either_backend(example, xp, method, encoder, optimizer):
    backend = "numpy" if xp is np else "cupy"
    code, folder = example("--method", method, "--encoder", encoder, "--optimizer", optimizer, "--backend", backend,
                           "--epochs", 1)
    result, log = read_run(folder)
    assert code == 0 and list(result) == KEYS and len(log) == TRAIN // BATCH
    assert (result["data"], result["backend"]) == ("shapes", backend)
    assert all(0 <= result[key] <= 1 for key in KEYS[6:11])
    assert all(math.isfinite(line["loss"]) for line in log)


@METHODS
def test_both_backends_have_the_same_first_losses(example, xp, method):
    losses = [[line["loss"] for line in read_run(example("--method", method, "--backend", backend, out=out)[1])[1]]
              for backend, out in (("numpy", "numpy"), ("numpy" if xp is np else "cupy", "this"))]
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-3)


@pytest.mark.parametrize("method, chances", [
    ("simclr", [2 * BATCH - 1] * 6),
    ("moco", [1, 1 + BATCH, 1 + 2 * BATCH, 1 + QUEUE, 1 + QUEUE, 1 + QUEUE]),
])
def test_chance_is_the_log_of_the_number_of_candidates(example, method, chances):
    result, log = read_run(example("--method", method)[1])
    assert [line["chance"] for line in log] == pytest.approx(np.log(chances))
    assert result["cap_nats"] == pytest.approx(math.log(chances[-1]))


@METHODS
def test_learning_beats_chance(example, monkeypatch, method):
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes.func, 400, 100))
    options = ("--width", 8, "--dim", 32, "--epochs", 12, "--batch", 50, "--log-every", 10, "--lr", 0.005)
    result, log = read_run(example("--method", method, *options)[1])
    assert result["bound_nats"] > 0.5 and log[-1]["loss"] < log[-1]["chance"] - 0.5


def test_knn_is_evaluated_every_so_many_epochs_and_ends_with_the_result(example, capsys):
    result, log = read_run(example("--epochs", 4, "--evaluate-every", 2, "--log-every", 100)[1])
    looks = [line for line in log if "knn_h" in line]
    assert [(line["step"], line["epoch"]) for line in looks] == [(5, 2), (11, 4)]
    assert (looks[-1]["knn_h"], looks[-1]["knn_z"]) == (result["knn_h"], result["knn_z"])
    assert len(re.findall(r"^epoch [24]: kNN of h 0\.\d+, of z 0\.\d+$", capsys.readouterr().out, re.M)) == 2


@METHODS
def test_evaluating_does_not_change_the_run(example, method):
    losses = [[line["loss"] for line in read_run(example("--method", method, *options, out=str(len(options)))[1])[1]]
              for options in ((), ("--evaluate-every", 1))]
    assert losses[0] == losses[1]


def test_limit_takes_the_first_images(example, capsys):
    code, _ = example("--limit", 48)
    assert code == 0 and "data: shapes, 48 training and 24 test images of " in capsys.readouterr().out


@METHODS
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(example, monkeypatch, method):
    options = ("--method", method, "--encoder", "resnet9")
    _, whole = example(*options, out="whole")
    log = Run.log

    def log_and_press_ctrl_c(run, step, **metrics):
        log(run, step, **metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press_ctrl_c)
    assert example(*options, out="stopped")[0] == 130
    monkeypatch.setattr(Run, "log", log)
    code, resumed = example(*options, "--resume", out="stopped")
    assert code == 0
    (first, first_log), (second, second_log) = read_run(whole), read_run(resumed)
    assert first_log == second_log
    assert {key: first[key] for key in KEYS[:11]} == {key: second[key] for key in KEYS[:11]}


@METHODS
def test_resuming_a_finished_run_only_evaluates_again(example, method):
    first, second = (read_run(example("--method", method, *more)[1]) for more in ((), ("--resume",)))
    assert {key: first[0][key] for key in KEYS[:11]} == {key: second[0][key] for key in KEYS[:11]}
    assert first[1] == second[1]


def test_the_recipes_in_the_docstring_are_commands_that_parse(example, capsys):
    """Runs each recipe, with options for a small size appended, which override the recipe's."""
    text = (EXAMPLES / "simclr_cifar10.py").read_text().split('"""')[1].replace("\\\n", " ")
    commands = [shlex.split(line.split("#")[0]) for line in text.splitlines() if line.strip().startswith("python")]
    assert len(commands) == 5
    for k, (_, script, *options) in enumerate(commands):
        assert script == "examples/simclr_cifar10.py"
        small = ("--backend", "numpy", "--data", "shapes", "--width", 1, "--batch", 24, "--queue", 60, "--splits", 2,
                 "--epochs", 1, "--hidden", 8, "--dim", 8)
        code, _ = example(*options, *small, out=f"recipe {k}")
        assert code == 0, capsys.readouterr().err


def test_asking_for_cifar10_where_it_is_missing_is_an_error(example, tmp_path, capsys):
    code, _ = example("--data", "cifar10", "--data-dir", tmp_path)
    assert code == 2 and "has none of CIFAR-10's files" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--queue", 20), ("--splits", 5), ("--splits", 24)])
def test_a_batch_that_does_not_suit_the_queue_or_the_splits_gives_one_clear_line(example, capsys, options):
    code, _ = example("--method", "moco", *options)
    assert code == 2 and "error: moco: --batch must be a multiple of --splits" in capsys.readouterr().err


def test_pictures_are_drawn_in_colour(example, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    image = pytest.importorskip("matplotlib.image")
    monkeypatch.setattr(viz, "Figure", figure)
    code, folder = example("--epochs", 1)
    views = image.imread(folder / "views.png")[..., :3]
    assert code == 0 and (np.ptp(views, axis=-1) > 0.3).mean() > 0.1         # share of coloured pixels


def test_the_pixel_baseline_votes_by_differences_from_the_mean_image(xp):
    """All images share a bright background; the pixel that separates the classes is faint beside it."""
    images = np.full((40, 4, 4, 3), 200, np.uint8)
    labels = np.arange(40) % 2
    images[:, 0, 0, 0] = 190 + 20 * labels + np.arange(40) % 5
    data = ImageData("faint", images[:30], labels[:30], images[30:], labels[30:], ("a", "b"))
    assert pixel_accuracy(data, xp, k=5) == 1
