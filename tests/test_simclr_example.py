"""examples/simclr_mnist.py runs on a few generated digits: results, repeatability, Ctrl-C and --resume."""

import functools
import json
import math
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicl import viz
from minicl.checkpoint import load_checkpoint
from minicl.data import digits, mnist

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "simclr_mnist.py"
KEYS = ["data", "backend", "seed", "loss", "bound_nats", "cap_nats", "knn_h", "knn_z", "probe_h", "probe_z",
        "rank_h", "rank_z", "test_images", "seconds", "seconds_per_epoch", "peak_mib"]
REPEATED = KEYS[2:13]                                        # determined by the seed
TRAIN, TEST, BATCH = 200, 60, 20
SMALL = ("--data", "digits", "--batch", str(BATCH), "--log-every", "1")
TWO_EPOCHS = (*SMALL, "--epochs", "2", "--encoder", "mlp")
STEPS = 2 * TRAIN // BATCH

# Runs the example on few digits. At the end of step `wait_at` it waits for a line on stdin, so that a test can
# press Ctrl-C within that step.
DRIVER = f"""
import functools, runpy, signal, sys
from minicl import viz
from minicl.data import digits
from minicl.run import Run

digits.generate_digits = functools.partial(digits.generate_digits, {TRAIN}, {TEST})
viz.Figure = None
log, wait_at = Run.log, int(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)     # also where the tests run in the background

def log_and_wait(run, step, **metrics):
    log(run, step, **metrics)
    if step == wait_at:
        print("waiting", flush=True)
        sys.stdin.readline()

Run.log = log_and_wait
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    """Few digits, no plots, an empty cache."""
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, TRAIN, TEST))
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options, out=name) runs the script and returns (exit code, folder)."""
    def run(*options, out="out"):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options, "--out", str(tmp_path / out)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return end.value.code or 0, tmp_path / out
    return run


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def figures_of(folder):
    result = result_of(folder)
    return {key: result[key] for key in REPEATED}


def backend_of(xp):
    return "numpy" if xp is np else "cupy"


# ---------------------------------------------------------------- a whole run

@pytest.mark.parametrize("encoder", ["convnet", "mlp"])
def test_a_run_ends_with_a_result_on_either_backend(example, xp, encoder):
    code, folder = example(*SMALL, "--epochs", "1", "--encoder", encoder, "--backend", backend_of(xp))
    assert code == 0
    assert sorted(os.listdir(folder)) == ["checkpoint.npz", "config.json", "log.jsonl", "result.json"]
    result = result_of(folder)
    assert list(result) == KEYS
    assert (result["data"], result["backend"], result["seed"]) == ("digits", backend_of(xp), 0)
    assert result["cap_nats"] == pytest.approx(math.log(2 * BATCH - 1))
    assert result["bound_nats"] == pytest.approx(result["cap_nats"] - result["loss"])
    assert 0 < result["loss"] < 5 and 0 < result["seconds_per_epoch"] <= result["seconds"]
    assert all(0 <= result[key] <= 1 for key in ("knn_h", "knn_z", "probe_h", "probe_z"))


def test_the_loss_of_the_result_is_the_mean_of_the_last_tenth(example):
    _, folder = example(*TWO_EPOCHS)
    losses = losses_of(folder)
    assert len(losses) == STEPS
    assert result_of(folder)["loss"] == pytest.approx(np.mean(losses[-STEPS // 10:]), rel=1e-12)


def test_both_backends_see_the_same_first_losses(example, xp):
    on_numpy, on_this = (losses_of(example(*SMALL, "--epochs", "1", "--backend", backend, out=out)[1])
                         for backend, out in (("numpy", "numpy"), (backend_of(xp), "this")))
    np.testing.assert_allclose(on_numpy[:3], on_this[:3], rtol=1e-3)


def test_learning_beats_chance(example):
    _, folder = example(*SMALL, "--epochs", "4", "--lr", "0.005")
    result = result_of(folder)
    assert result["bound_nats"] > 0.6 and result["knn_h"] > 0.5 and result["probe_h"] > 0.5


def test_a_seed_repeats_its_run_and_another_does_not(example):
    first, again, other = (figures_of(example(*TWO_EPOCHS, "--seed", seed, out=out)[1])
                           for seed, out in (("5", "first"), ("5", "again"), ("6", "other")))
    assert first == again
    assert first["loss"] != other["loss"]


def test_the_number_of_threads_does_not_change_the_first_steps_much(example):
    one, two = (losses_of(example(*SMALL, "--epochs", "1", "--threads", count, out=count)[1]) for count in "12")
    np.testing.assert_allclose(one[:3], two[:3], rtol=1e-3)


@pytest.mark.parametrize("head", ["none", "linear"])
def test_the_other_heads_run_too(example, head):
    code, folder = example(*TWO_EPOCHS, "--head", head, "--dim", "16")
    result = result_of(folder)
    assert code == 0
    assert (result["knn_h"] == result["knn_z"]) is (head == "none")


@pytest.mark.parametrize("more", [("--clip-grad", "0.5"), ()], ids=["clipped", "not clipped"])
def test_chunks_of_a_batch_train_as_the_whole(example, more):
    options = (*TWO_EPOCHS, "--head", "linear", *more)       # no batch norm
    whole, chunks = (losses_of(example(*options, *chunk, out=f"out{len(chunk)}")[1]) for chunk in ((), ("--chunk", "12")))
    np.testing.assert_allclose(whole, chunks, rtol=2e-4)
    if more:
        free = losses_of(example(*TWO_EPOCHS, "--head", "linear", out="free")[1])
        assert free[0] == whole[0] and free[1:] != whole[1:]


def test_evaluation_every_epoch_is_logged_and_changes_nothing(example):
    folders = [example(*TWO_EPOCHS, *more, out=f"out{len(more)}")[1] for more in ((), ("--evaluate-every", "1"))]
    assert losses_of(folders[0]) == losses_of(folders[1])
    looks = [line for line in map(json.loads, (folders[1] / "log.jsonl").read_text().splitlines()) if "knn_h" in line]
    result = result_of(folders[1])
    assert [line["step"] for line in looks] == [STEPS // 2 - 1, STEPS - 1]
    assert all(looks[-1][name] == result[name] for name in ("knn_h", "knn_z", "rank_h", "rank_z"))


def test_a_finished_run_continues_for_more_epochs(example, capsys):
    _, folder = example(*SMALL, "--epochs", "1", "--encoder", "mlp")
    code, _ = example(*TWO_EPOCHS, "--resume")
    assert code == 0 and "--epochs was 1, now 2: the remaining learning rates are" in capsys.readouterr().out
    assert len(losses_of(folder)) == STEPS and result_of(folder)["loss"] == pytest.approx(np.mean(losses_of(folder)[-2:]))


def test_few_steps_still_have_a_loss(example):
    code, folder = example("--data", "digits", "--encoder", "mlp", "--epochs", "1", "--batch", "100")      # 2 steps
    assert code == 0 and math.isfinite(result_of(folder)["loss"])


def test_plots_are_drawn_if_matplotlib_is_installed(example, xp, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(viz, "Figure", figure.Figure)
    code, folder = example(*TWO_EPOCHS, "--backend", backend_of(xp))
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert code == 0
    assert pictures == ["curves.png", "map.png", "neighbours.png", "views.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_without_matplotlib_a_line_says_how_to_get_pictures(example, capsys):
    example(*TWO_EPOCHS)
    assert "no pictures: they need matplotlib, pip install 'minicl[viz]'" in capsys.readouterr().out


# ---------------------------------------------------------------- data

def test_without_a_network_generated_digits_are_used_with_one_line(example, monkeypatch, capsys):
    with socket.socket() as unused:                          # a loopback port where nobody listens
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{unused.getsockname()[1]}/",))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        code, folder = example(*TWO_EPOCHS, "--data", "auto")
    shown = capsys.readouterr()
    told = [line for line in (shown.out + shown.err).splitlines() if "continuing with generated digits" in line]
    assert code == 0 and result_of(folder)["data"] == "digits"
    assert len(told) == 1 and "MNIST could not be downloaded" in told[0] and "--data-dir" in told[0]


def test_requested_mnist_that_is_missing_is_an_error(example, tmp_path, capsys):
    code, _ = example("--data", "mnist", "--data-dir", str(tmp_path))
    assert code == 2
    assert "has none of MNIST's files" in capsys.readouterr().err


# ---------------------------------------------------------------- invalid options

@pytest.mark.parametrize("option, value, message", [
    ("--tau", "0", "argument --tau: expected a number in [1e-30, 1e20], got 0"),
    ("--batch", "1", "argument --batch: expected an integer >= 2, got 1"),
    ("--epochs", "0", "argument --epochs: expected an integer >= 1, got 0"),
    ("--lr", "nan", "argument --lr: expected a number in (0, inf), got nan"),
    ("--dim", "1", "argument --dim: expected an integer >= 2, got 1"),
    ("--head", "deep", "argument --head: invalid choice: 'deep'"),
    ("--batch", "201", "error: Batches: expected a batch of 1 to 200, the number of items, got 201"),
    ("--weight-decay", "-1", "--weight-decay"),
])
def test_a_bad_value_is_one_clear_line_and_exit_code_2(example, capsys, option, value, message):
    code, _ = example(*TWO_EPOCHS, option, value)
    assert code == 2
    assert message in capsys.readouterr().err


def test_help_shows_every_option(example, capsys):
    code, _ = example("--help")
    shown = capsys.readouterr().out
    assert code == 0
    assert all(option in shown for option in ("--backend", "--data", "--epochs", "--resume", "--encoder", "--head"))


def test_an_out_that_cannot_be_written_is_an_error_before_training(example, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _ = example(*TWO_EPOCHS, out="file/run")
    assert code == 2 and "cannot write there" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")        # NumPy's, of the expected overflow
def test_a_learning_rate_that_diverges_is_an_error_with_advice(example, capsys):
    code, folder = example(*TWO_EPOCHS, "--lr", "1e30")
    assert code == 2 and re.search("not finite.*learning rate|the loss is nan.*--lr", capsys.readouterr().err)
    assert (folder / "log.jsonl").exists() and not (folder / "result.json").exists()


# ---------------------------------------------------------------- Ctrl-C and --resume

def start(folder, *options, wait_at=-1):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(wait_at), *TWO_EPOCHS, "--out", str(folder), *options],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def press_ctrl_c_at(step, folder, *options):
    """Start the example, press Ctrl-C within a step, and return (process, stdout, stderr)."""
    process = start(folder, *options, wait_at=step)
    for line in process.stdout:
        if line == "waiting\n":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("go on\n", timeout=60)
    return process, out, err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
@pytest.mark.parametrize("encoder", ["mlp", "convnet"])
def test_ctrl_c_exits_130_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, encoder):
    whole = start(tmp_path / "whole", "--encoder", encoder)
    out, err = whole.communicate(timeout=60)
    assert whole.returncode == 0, err

    step = STEPS // 2 + 3                                    # within the second epoch
    stopped, out, err = press_ctrl_c_at(step, tmp_path / "stopped", "--encoder", encoder)
    assert stopped.returncode == 130, err
    assert f"interrupted after step {step + 1} of {STEPS}; continue with the same options and --resume --out" in out
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint.npz")[1]["step"] == step + 1

    resumed = start(tmp_path / "stopped", "--encoder", encoder, "--resume")
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert f"step {step + 2}/{STEPS}" in out and f"step {step + 1}/{STEPS}" not in out

    arrays, others = (load_checkpoint(tmp_path / name / "checkpoint.npz")[0] for name in ("whole", "stopped"))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1] and logs[0].count(b"\n") == STEPS
    assert figures_of(tmp_path / "whole") == figures_of(tmp_path / "stopped")
