"""A run: its folder, its log, Ctrl-C, and going on as if nothing had happened."""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from minicl.autograd import Tensor
from minicl.backend import BackendError, get_backend, to_device
from minicl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from minicl.data import DataError
from minicl.nn import BatchNorm, Linear, Sequential
from minicl.optim import Adam
from minicl.options import options
from minicl.run import Run, RunError, command

TOTAL, SAVE_EVERY = 12, 5


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's own handler, whatever the tests were started by; it must stand again after each test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def arguments(out, *more):
    parser = options("A test.\n\nMore.", epochs=2, batch=4, lr=0.1, tau=0.2)
    return parser.parse_args([*(["--out", str(out)] if out else []), "--log-every", "2", *more])


def start(out, *more):
    return Run(arguments(out, *more), "test")


def train(run, xp=np, total=TOTAL, at=None):
    """A small training loop that draws its data; at = {step: function called at the end of that step}."""
    rng = np.random.default_rng(3)
    model = Sequential(Linear(3, 4, rng=rng), BatchNorm(4)).to(xp)
    optimizer = Adam(model.named_parameters(), 0.1)
    for step in run.steps(total, save_every=SAVE_EVERY, rng=rng, model=model, optimizer=optimizer):
        y = model(Tensor(to_device(rng.standard_normal((6, 3), dtype="float32"), xp)))
        loss = ((y - 1.0) * (y - 1.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run.logs(step):
            run.log(step, loss=loss.item())
        if at and step in at:
            at[step]()
    return model


@contextlib.contextmanager
def no_room():
    """Within this block every write to a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Crash(Exception):
    pass


def crash():
    raise Crash


def assert_same_end(first, second):
    """Two folders hold the same checkpoint, but for the seconds, and the same log."""
    (arrays, meta), (others, other_meta) = (load_checkpoint(folder / "checkpoint.npz") for folder in (first, second))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert (meta["step"], meta["rng"]) == (other_meta["step"], other_meta["rng"])
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()


# ---------------------------------------------------------------- the folder

def test_a_run_records_all_its_options(out):
    train(start(out, "--seed", "7"))
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 7 and config["out"] == str(out) and config.keys() == vars(arguments(out)).keys()


def test_a_run_leaves_config_log_and_checkpoint(out, xp):
    train(start(out), xp)
    assert sorted(os.listdir(out)) == ["checkpoint.npz", "config.json", "log.jsonl"]
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    assert meta["step"] == TOTAL and arrays["optimizer.steps"] == TOTAL


def test_without_out_each_run_gets_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        start(None)                                          # a start that comes to nothing leaves nothing behind
        run = start(None)
        train(run)
        folders.append(str(run.folder))
    assert folders == [os.path.join("runs", name) for name in ("test", "test-2", "test-3")]


def test_an_out_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="--out .*file.run: cannot write there .*; choose another folder"):
        start(tmp_path / "file" / "run")


def test_an_out_on_a_full_disk_is_refused_before_training(out):
    with no_room(), pytest.raises(RunError, match="cannot write there .File too large.*; choose another folder"):
        start(out)
    assert not out.exists()


def test_an_out_that_holds_a_run_is_refused(out):
    train(start(out))
    before = (out / "checkpoint.npz").read_bytes()
    with pytest.raises(RunError, match="already holds a run; go on with it by --resume, or choose another folder"):
        start(out, "--seed", "1")
    assert (out / "checkpoint.npz").read_bytes() == before
    assert json.loads((out / "config.json").read_text())["seed"] == 0


def test_an_out_that_holds_a_result_is_refused(out):
    start(out).finish({"loss": 1.0})
    with pytest.raises(RunError, match="already holds a run"):
        start(out)


def test_a_run_that_failed_before_its_first_checkpoint_can_be_started_again(out):
    with pytest.raises(Crash):
        train(start(out), at={2: crash})
    train(start(out))
    assert len(Run(arguments(out, "--resume"), "test").read_log()) == 7


# ---------------------------------------------------------------- the log

def test_figures_are_logged_every_so_often_and_at_the_last_step(out):
    run = start(out)
    train(run)
    assert [line["step"] for line in run.read_log()] == [0, 2, 4, 6, 8, 10, 11]


def test_log_lines_are_shown(out, capsys):
    train(start(out))
    assert "step 3/12  loss " in capsys.readouterr().out


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(out, value):
    run = start(out)
    rng = np.random.default_rng(0)
    with pytest.raises(FloatingPointError, match=f"the loss is {value} at step 6; lower --lr, raise --tau, or"):
        for step in run.steps(TOTAL, save_every=SAVE_EVERY, rng=rng):
            run.log(step, loss=float(value) if step == 6 else 1.0)
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == SAVE_EVERY


def test_the_result_is_written_and_shown(out, capsys):
    result = {"data": "digits", "loss": 0.123456, "peak_mib": None}
    start(out).finish(result, notes=["a note"])
    assert json.loads((out / "result.json").read_text()) == result
    shown = capsys.readouterr().out
    assert "loss      0.1235" in shown and "peak_mib  None" in shown and "a note" in shown and str(out) in shown


def test_seconds_of_training_go_on_counting(out):
    with pytest.raises(Crash):
        train(start(out), at={2: lambda: time.sleep(0.3), 6: crash})
    before = load_checkpoint(out / "checkpoint.npz")[1]["seconds"]
    run = start(out, "--resume")
    train(run)
    assert 0.3 <= before < run.seconds <= run.elapsed()


# ---------------------------------------------------------------- going on

def test_resume_needs_an_out():
    with pytest.raises(RunError, match="--resume goes on from the checkpoint in a folder: name it with --out"):
        start(None, "--resume")


def test_resume_needs_a_checkpoint(out):
    with pytest.raises(CheckpointError, match="no checkpoint at .*; start a run without --resume first"):
        start(out, "--resume")
    assert not out.exists()


def test_resume_names_the_options_that_changed(out):
    train(start(out))
    with pytest.raises(RunError) as error:
        start(out, "--resume", "--lr", "0.5", "--seed", "3")
    text = str(error.value)
    assert "--lr was 0.1, now 0.5" in text and "--seed was 0, now 3" in text and "--tau" not in text
    assert json.loads((out / "config.json").read_text())["seed"] == 0


@pytest.mark.parametrize("option", [("--log-every", "3"), ("--backend", "cupy"), ("--data-dir", "elsewhere"),
                                    ("--threads", "1")])
def test_options_that_do_not_change_the_run_may_change_on_resume(out, option):
    train(start(out))
    start(out, "--resume", *option)


def test_resume_refuses_another_model(out):
    train(start(out))
    run, rng = start(out, "--resume"), np.random.default_rng(0)
    with pytest.raises(CheckpointError, match="does not fit this run, it is of another model or optimizer"):
        next(run.steps(TOTAL, save_every=SAVE_EVERY, rng=rng, model=Linear(3, 4, rng=rng)))


def test_resume_refuses_a_checkpoint_without_a_run(out):
    save_checkpoint(out / "checkpoint.npz", {}, {"step": 1})
    with pytest.raises(CheckpointError, match="checkpoint.npz is not the checkpoint of a run"):
        start(out, "--resume")


@pytest.mark.parametrize("step", [5, 6, 8, 9, 11])
def test_a_crashed_run_resumed_is_the_uninterrupted_run(tmp_path, xp, step):
    train(start(tmp_path / "whole"), xp)
    with pytest.raises(Crash):
        train(start(tmp_path / "crashed"), xp, at={step: crash})
    run = start(tmp_path / "crashed", "--resume")
    train(run, xp)
    assert_same_end(tmp_path / "whole", tmp_path / "crashed")


def test_a_finished_run_resumed_trains_no_further(out):
    train(start(out))
    log = (out / "log.jsonl").read_bytes()
    train(start(out, "--resume"), at=dict.fromkeys(range(TOTAL), crash))
    assert (out / "log.jsonl").read_bytes() == log


def test_a_line_of_the_log_cut_off_by_a_crash_is_dropped(tmp_path):
    train(start(tmp_path / "whole"))
    with pytest.raises(Crash):
        train(start(tmp_path / "crashed"), at={8: crash})
    with open(tmp_path / "crashed" / "log.jsonl", "a") as file:
        file.write('{"step": 1')
    train(start(tmp_path / "crashed", "--resume"))
    assert_same_end(tmp_path / "whole", tmp_path / "crashed")


# ---------------------------------------------------------------- Ctrl-C

@pytest.mark.parametrize("step", [0, 3, 4, 7, 11])
def test_ctrl_c_finishes_the_step_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, xp, capsys, step):
    train(start(tmp_path / "whole"), xp)
    with pytest.raises(KeyboardInterrupt):
        train(start(tmp_path / "stopped"), xp, at={step: press_ctrl_c})
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint.npz")[1]["step"] == step + 1
    assert f"interrupted after step {step + 1} of {TOTAL}; go on with --resume --out" in capsys.readouterr().out
    train(start(tmp_path / "stopped", "--resume"), xp)
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")


def test_a_second_ctrl_c_stops_at_once(out):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(start(out), at={7: twice})
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == SAVE_EVERY


@pytest.mark.parametrize("step", [SAVE_EVERY, TOTAL])
def test_ctrl_c_during_a_save_stops_after_it(out, monkeypatch, step):
    def save_under_ctrl_c(path, parts, meta):
        save_checkpoint(path, parts, meta)
        if meta["step"] == step:
            press_ctrl_c()

    monkeypatch.setattr("minicl.run.save_checkpoint", save_under_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(start(out))
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == step


def test_a_run_in_another_thread_trains_too(out):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train(start(out))))
    thread.start()
    thread.join()
    assert ended and load_checkpoint(out / "checkpoint.npz")[1]["step"] == TOTAL


# ---------------------------------------------------------------- the command

@pytest.mark.parametrize("error", [
    BackendError("no GPU"), CheckpointError("no file"), DataError("no data"), RunError("no run"),
    FloatingPointError("no number"), OSError(errno.ENOSPC, "no space"),
], ids=lambda error: type(error).__name__)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_out_of_memory_is_one_line_with_advice(capsys, backend):
    def main():
        if backend == "numpy":
            np.empty((2**40, 2**10))
        raise get_backend("cupy").cuda.memory.OutOfMemoryError(4096, 1024, 0)

    with pytest.raises(SystemExit) as end:
        command(main)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (") and "smaller --batch" in said and said.count("\n") == 1


def test_ctrl_c_is_exit_code_130(capsys):
    with pytest.raises(SystemExit) as end:
        command(press_ctrl_c)
    assert end.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(Crash):
        command(crash)


def test_success_is_exit_code_0():
    with pytest.raises(SystemExit) as end:
        command(lambda: None)
    assert not end.value.code


@pytest.mark.parametrize("option, value, message", [
    ("--epochs", "0", "expected an integer >= 1, got 0"),
    ("--batch", "1", "expected an integer >= 2, got 1"),
    ("--batch", "many", "invalid integer value: 'many'"),
    ("--seed", "-1", "expected an integer >= 0, got -1"),
    ("--threads", "0", "expected an integer >= 1, got 0"),
    ("--log-every", "0", "expected an integer >= 1, got 0"),
    ("--tau", "0", "expected a finite number > 0, got 0"),
    ("--lr", "nan", "expected a finite number > 0, got nan"),
    ("--lr", "-1", "expected a finite number > 0, got -1"),
    ("--lr", "inf", "expected a finite number > 0, got inf"),
    ("--lr", "fast", "invalid positive value: 'fast'"),
    ("--backend", "torch", "invalid choice: 'torch'"),
])
def test_a_bad_option_is_exit_code_2_with_its_name_and_what_was_expected(capsys, option, value, message):
    with pytest.raises(SystemExit) as end:
        arguments(None, option, value)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert f"argument {option}: " in shown and message in shown


def test_help_shows_the_first_paragraph_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        arguments(None, "--help")
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "A test." in shown and "More." not in shown
    assert "(default: 0.2)" in shown and "--resume" in shown


def test_progress_is_a_bar_on_a_terminal(out, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(start(out))
    shown = capsys.readouterr()
    assert "12/12" in shown.err and "step 3/12" not in shown.out
