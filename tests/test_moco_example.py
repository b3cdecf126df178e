"""examples/moco_mnist.py runs on a few generated digits: results on both backends, the log, --resume."""

import functools
import math
import os
import signal

import numpy as np
import pytest
from example_runs import read_run, run_example

from minicl import viz
from minicl.checkpoint import load_checkpoint
from minicl.data import digits
from minicl.run import Run

TRAIN, TEST, BATCH, QUEUE = 200, 60, 40, 150                 # 5 steps an epoch; the queue is full in the first
SMALL = ("--data", "digits", "--batch", str(BATCH), "--queue", str(QUEUE), "--log-every", "1", "--epochs", "2")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options, out=name) runs the script and returns (exit code, folder)."""
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, TRAIN, TEST))
    monkeypatch.setattr(viz, "Figure", None)

    def run(*options, out="out"):
        return run_example("moco_mnist", *SMALL, *options, "--out", tmp_path / out), tmp_path / out
    return run


def test_a_run_ends_with_a_result_on_either_backend(example, xp):
    code, folder = example("--backend", "numpy" if xp is np else "cupy")
    result, log = read_run(folder)
    assert code == 0 and result["queue"] == QUEUE
    assert result["cap_nats"] == pytest.approx(math.log(1 + QUEUE))
    assert all(0 <= result[key] <= 1 for key in ("knn_h", "knn_z", "probe_h", "probe_z"))
    assert log[0]["loss"] == 0 and all(line["loss"] > 0 for line in log[1:])


def test_chance_is_logged_and_rises_while_the_queue_fills(example):
    _, log = read_run(example()[1])
    expected = [math.log(1 + min(QUEUE, step * BATCH)) for step in range(10)]
    assert [line["chance"] for line in log] == pytest.approx(expected)


def test_learning_beats_chance(example):
    result, _ = read_run(example("--epochs", "8", "--batch", "20", "--splits", "2", "--symmetric")[1])
    assert result["bound_nats"] > 0.5 and result["probe_h"] > 0.5


def test_a_run_stopped_and_resumed_is_the_uninterrupted_one(example, monkeypatch):
    _, whole = example(out="whole")
    log = Run.log

    def log_and_press_ctrl_c(run, step, **metrics):
        log(run, step, **metrics)
        if step == 6:                                        # the queue is full, and its next row is 130
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press_ctrl_c)
    code, stopped = example(out="stopped")
    assert code == 130 and load_checkpoint(stopped / "checkpoint.npz")[0]["model.queue.count"] == 7 * BATCH
    monkeypatch.setattr(Run, "log", log)
    assert example("--resume", out="stopped")[0] == 0

    arrays, others = (load_checkpoint(folder / "checkpoint.npz")[0] for folder in (whole, stopped))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert (whole / "log.jsonl").read_bytes() == (stopped / "log.jsonl").read_bytes()


def test_chunks_of_a_batch_fill_the_queue_as_the_whole_batch(example):
    """Batch norm normalises each chunk separately, so the losses differ slightly. The queue fills at the same rate."""
    (_, whole), (_, chunks) = (read_run(example(*chunk, out=f"out{len(chunk)}")[1]) for chunk in ((), ("--chunk", 20,
                                                                                                       "--splits", 4)))
    assert [line["chance"] for line in chunks] == [line["chance"] for line in whole]
    np.testing.assert_allclose([line["loss"] for line in chunks], [line["loss"] for line in whole], rtol=0.2)


@pytest.mark.parametrize("queue, is_warned", [(200, False), (201, True)])
def test_a_queue_that_outgrows_the_data_gives_a_warning(example, capsys, queue, is_warned):
    example("--queue", queue, "--epochs", 1)
    assert ("warning: the queue of 201 keys outgrows the 200 training images" in capsys.readouterr().out) is is_warned


@pytest.mark.parametrize("options, message", [
    (("--chunk", "24"), "--chunk 24 must divide --batch 40 and be a multiple of --splits 8, twice that or more"),
    (("--chunk", "8"), "--chunk 8 must divide --batch 40"),
    (("--batch", "44"), "--batch 44 cannot be divided into --splits 8 groups of equal size, 2 or more"),
    (("--queue", "39"), "--queue 39 is too small for the keys of one batch; it needs 40"),
    (("--queue", "79", "--symmetric"), "it needs 80"),
    (("--momentum", "1"), "argument --momentum: expected a number in [0, 1), got 1"),
])
def test_a_bad_value_is_one_clear_line_and_exit_code_2(example, capsys, options, message):
    assert example(*options)[0] == 2
    assert message in capsys.readouterr().err
