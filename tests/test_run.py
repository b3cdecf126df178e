"""A run: its folder, its log, its result, and the command around it."""

import contextlib
import csv
import errno
import json
import math
import os
import re
import time
import types
from pathlib import Path

import numpy as np
import pytest
from small_runs import SAVE_EVERY, TOTAL, Crash, Scaled, arguments, crash, no_room, press_ctrl_c, start, train

import minicl
from minicl import Tensor, ops, run
from minicl.backend import BackendError, get_backend
from minicl.checkpoint import CheckpointError, load_checkpoint
from minicl.data import DataError
from minicl.distributed import World
from minicl.methods import EMA, Queue, frozen_copy
from minicl.nn import BatchNorm, Linear, Sequential
from minicl.optim import SGD
from minicl.run import Run, RunError, command

# ---------------------------------------------------------------- the folder

def test_a_run_records_all_its_options(out):
    train(start(out, "--seed", "7"))
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 7 and config["out"] == str(out) and config.keys() == {"script", *vars(arguments(out))}


@pytest.mark.parametrize("value, stored", [
    ((1, 2), [1, 2]), (Path("a") / "b", os.path.join("a", "b")), (np.float32(0.5), 0.5), (np.int64(3), 3), ({1: "x"}, {"1": "x"}),
    (np.arange(2), [0, 1]), (None, None), (True, True)], ids=str)
def test_options_are_stored_as_json_gives_them_back_and_the_run_can_be_resumed(out, value, stored):
    def run(*more):
        args = arguments(out, *more)
        args.mine = value
        return Run(args, "test")

    train(run())
    assert json.loads((out / "config.json").read_text())["mine"] == stored
    again = run("--resume")
    train(again)
    assert again.config["mine"] == stored


@pytest.mark.parametrize("value", [math.nan, -math.inf, {1, 2}, object, [Tensor(np.ones(2))], b"x", np.array([np.nan])], ids=str)
def test_an_option_that_json_cannot_hold_is_refused_by_name(out, value):
    args = arguments(out)
    args.mine = value
    with pytest.raises(RunError, match="the option mine must be a finite number, text, True, False, None, or a list or dict of"):
        Run(args, "test")
    assert not out.exists()


def test_an_option_cannot_be_called_script(out):
    args = arguments(out)
    args.script = "x"
    with pytest.raises(RunError, match="an option cannot be called script"):
        Run(args, "test")


@pytest.mark.parametrize("data", [{"x": np.ones(2)}, np.ones(2), (np.ones(2),), "MNIST", World])
def test_data_that_are_no_dataclass_are_refused(out, data):
    with pytest.raises(TypeError, match="Run.steps: data must be a dataclass of arrays, such as ImageData, or None, got"):
        next(start(out).steps(1, np.random.default_rng(0), save_every=1, data=data))


def test_a_metric_of_another_float_type_is_logged(out):
    run = start(out)
    for step in run.steps(1, np.random.default_rng(0), save_every=1):
        run.log(step, loss=1.0, long=np.longdouble(0.5), several=np.ones(2, dtype=np.longdouble), lost=np.longdouble("nan"))
    line = json.loads((out / "log.jsonl").read_text())
    assert (line["long"], line["several"], line["lost"]) == (0.5, [1.0, 1.0], None)


def test_options_that_change_after_the_run_is_made_are_an_error(out):
    args = arguments(out)
    run = Run(args, "test")
    args.seed = 8
    with pytest.raises(RunError, match="options were changed after Run.*: seed was 0, now 8; change them before that"):
        next(run.steps(1, np.random.default_rng(0), save_every=1))


@pytest.mark.parametrize("changed", ["a class attribute", "weight_decay", "lr"])
def test_what_is_not_saved_and_changes_in_the_loop_is_told(out, capsys, monkeypatch, changed):
    run, rng = start(out), np.random.default_rng(0)
    model = Scaled(rng=rng)
    optimizer = SGD(model, 0.1)
    monkeypatch.setattr(Scaled, "rate", 1.0)
    for step in run.steps(2, rng, save_every=1, model=model, optimizer=optimizer):
        optimizer.zero_grad(), model(np.ones((1, 2), "float32")).sum().backward(), optimizer.step()
        if changed == "a class attribute":
            Scaled.rate = 2.0 + step
        elif changed == "lr":
            optimizer.lr = 0.05                              # as a schedule does
        else:
            optimizer.weight_decay = 0.5
    run.finish({})
    told = {"a class attribute": "Scaled.rate was 1.0, now 2.0"}     # an optimizer's are in the checkpoint
    text = capsys.readouterr().out
    assert text.count("warning") == (changed == "a class attribute")
    assert f"settings changed in the loop: small_runs.{told[changed]}".replace("small_runs.optimizer", "optimizer") in text         if changed in told else "settings" not in text


def test_options_that_change_in_the_loop_or_after_it_are_told(out, capsys):
    args = arguments(out)
    run = Run(args, "test")
    args.of_the_script = 3                                   # which is none of the options
    for step in run.steps(2, np.random.default_rng(0), save_every=1):
        args.lr = 0.5 + step
    args.seed = 8
    run.finish({})
    told = capsys.readouterr().out
    assert told.count("warning") == 2 and "settings changed in the loop: lr was" in told and "now 0.5;" in told
    assert "options were changed after Run(args, ...), and config.json has the first: " in told and "seed was 0, now 8" in told


@pytest.mark.parametrize("args", [None, {"out": "run", "log_every": 1}, types.SimpleNamespace(), types.SimpleNamespace(out=None, resume=False)])
def test_options_that_are_not_those_of_a_run_are_named(args):
    with pytest.raises(TypeError, match="Run: args: expected parsed options, .* without .*log_every"):
        Run(args, "test")


def test_a_new_run_has_epochs_which_a_resumed_one_may_leave_out(out):
    """As the second one of two in a script that was called with --resume."""
    args = arguments(out)
    args.epochs = None
    with pytest.raises(RunError, match="args: epochs is None, .*set args.epochs before"):
        Run(args, "test")
    assert not out.exists()


def test_the_data_folder_is_stored_as_an_absolute_path(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start(out, "--data-dir", "photos").config["data_dir"] == str(tmp_path / "photos")


def test_a_run_leaves_config_log_and_checkpoint(out, xp):
    train(start(out), xp)
    assert sorted(os.listdir(out)) == ["checkpoint.npz", "config.json", "log.jsonl"]
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    assert meta["step"] == TOTAL and arrays["optimizer.Adam.steps"] == TOTAL


def test_without_out_each_run_gets_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        start(None)                                          # a run without a step leaves no folder
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
    with pytest.raises(RunError, match="already holds a run; continue it with --resume, or choose another folder"):
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


def _link(path):
    other = path.parent.with_name("other.txt")
    other.write_text("mine")
    return other


FOREIGN = {
    "a config of something else": lambda out: (out / "config.json").write_text('{"theme": "dark"}'),
    "a config that is no dict": lambda out: (out / "config.json").write_text("3"),
    "a config of deep lists": lambda out: (out / "config.json").write_text("[" * 100_000),
    "a config that is no JSON": lambda out: (out / "config.json").write_bytes(b"\xff{"),
    "a log alone": lambda out: (out / "log.jsonl").write_text("mine"),
    "a table": lambda out: (out / "log.csv").write_text("a,b"),
    "a picture": lambda out: (out / "cat.png").write_bytes(b"PNG"),
    "a folder for a log": lambda out: (out / "log.jsonl").mkdir(),
    "a symbolic link": lambda out: (out / "log.jsonl").symlink_to(_link(out / "log.jsonl")),
    "a hard link": lambda out: os.link(_link(out / "log.jsonl"), out / "log.jsonl"),
    "a broken link": lambda out: (out / "curves.png").symlink_to(out.with_name("nothing")),
}


@pytest.mark.parametrize("with_config", [False, True], ids=["", "beside a config"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_out_with_files_of_somebody_else_is_refused(out, kind, with_config):
    with pytest.raises(Crash):
        train(start(out), at={2: crash})
    for name in ["log.jsonl"] if with_config else ["log.jsonl", "config.json"]:
        (out / name).unlink()
    if with_config and kind in ("a log alone", "a table", "a picture"):
        return                                               # they could be the earlier run's
    FOREIGN[kind](out)
    before = {path: path.is_file() and path.read_bytes() for path in [*out.parent.rglob("*")]}
    with pytest.raises(RunError, match="holds files which this run would replace, .*; choose another folder, or move them"):
        start(out)
    assert {path: path.is_file() and path.read_bytes() for path in [*out.parent.rglob("*")]} == before


def test_an_out_of_another_script_is_refused_and_an_old_table_does_not_stay(out):
    with pytest.raises(Crash):
        train(start(out, "--log", "csv"), at={2: crash})
    with pytest.raises(RunError, match="not of an earlier run of the same script"):
        Run(arguments(out), "another")
    assert (out / "log.csv").exists()
    train(start(out))
    assert not (out / "log.csv").exists()


def test_an_out_with_files_that_a_run_does_not_write_is_accepted(out):
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    train(start(out))
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoint.npz", "result.json"])
def test_an_out_with_a_broken_link_for_a_checkpoint_is_refused(out, name):
    out.mkdir()
    (out / name).symlink_to(out / "nothing")
    with pytest.raises(RunError, match="already holds a run"):
        start(out)


# ---------------------------------------------------------------- the log

def test_metrics_are_logged_at_intervals_and_at_the_last_step(out):
    run = start(out)
    train(run)
    assert [line["step"] for line in run.read_log()] == [0, 2, 4, 6, 8, 10, 11]


def test_log_lines_are_shown(out, capsys):
    train(start(out))
    assert "step 3/12  loss " in capsys.readouterr().out


def test_about_100_lines_of_a_long_run_are_shown_and_all_are_logged(out, capsys):
    run = Run(arguments(out, "--log-every", "1"), "test")
    for step in run.steps(1000, np.random.default_rng(0), save_every=1000):
        run.log(step, loss=0.5)
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert shown == [*range(1, 1000, 10), 1000] and len(run.read_log()) == 1000


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(out, value):
    run = start(out)
    rng = np.random.default_rng(0)
    with pytest.raises(FloatingPointError, match=f"the loss is {value} at step 6; lower --lr, raise --tau, or"):
        for step in run.steps(TOTAL, save_every=SAVE_EVERY, rng=rng):
            run.log(step, loss=float(value) if step == 6 else 1.0)
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == SAVE_EVERY


@pytest.mark.parametrize("value", [{1}, b"x", 1j, np.array([1j]), len, {"a": {2}}, [range(2)]], ids=str)
def test_a_metric_that_json_cannot_hold_is_refused(out, value):
    run = start(out)
    for step in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY):
        with pytest.raises(TypeError, match="expected numbers and text, lists and dicts of them, got a "):
            run.log(step, loss=1.0, metric=value)
        run.log(step, loss=1.0)


@pytest.mark.parametrize("loss", [True, np.bool_(False), "1.0", None, [1.0], np.ones(1), Tensor(np.ones(())), 1j, {}], ids=str)
def test_a_loss_that_is_not_a_number_is_refused_and_the_run_continues(out, loss):
    """A run can be resumed from every accepted line."""
    it = start(out)
    for step in it.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY):
        with pytest.raises(TypeError, match="Run.log: loss must be a number, got .*; of a Tensor give loss.item()"):
            it.log(step, loss=loss)
        it.log([step, float(step), np.int64(step), np.float32(step)][step % 4],
                **[{"loss": 1}, {"loss": np.float32(0.5)}, {"loss": np.array(2.0)}, {"acc": True}][step % 4])
    it.close()
    assert len(start(out, "--resume").read_log()) == TOTAL
    assert {type(json.loads(line)["step"]) for line in (out / "log.jsonl").read_text().splitlines()} == {int}


def test_the_result_is_written_and_shown(out, capsys):
    result = {"data": "digits", "loss": 0.123456, "peak_mib": None}
    start(out).finish(result, notes=["a note", "one of many words " * 20])
    assert json.loads((out / "result.json").read_text()) == result
    shown = capsys.readouterr().out
    assert "loss      0.1235" in shown and "peak_mib  None" in shown and "a note" in shown and str(out) in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "many words" in line)


def test_seconds_of_training_accumulate_over_resumes(out):
    with pytest.raises(Crash):
        train(start(out), at={2: lambda: time.sleep(0.3), 6: crash})
    before = load_checkpoint(out / "checkpoint.npz")[1]["seconds"]
    run = start(out, "--resume")
    train(run)
    assert 0.3 <= before < run.seconds <= run.elapsed()


# ---------------------------------------------------------------- the command

@pytest.mark.parametrize("error", [
    BackendError("no GPU"), CheckpointError("no file"), DataError("no data"), RunError("no run"),
    FloatingPointError("no number"), OSError(errno.ENOSPC, "no space"),
], ids=lambda error: type(error).__name__)
def test_an_error_that_a_user_can_fix_is_one_line_and_exit_code_2(capsys, error):
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
    ("--tau", "0", "expected a number in [1e-30, 1e20], got 0"),
    ("--lr", "nan", "expected a number in (0, inf), got nan"),
    ("--lr", "-1", "expected a number in (0, inf), got -1"),
    ("--lr", "inf", "expected a number in (0, inf), got inf"),
    ("--lr", "fast", "invalid number value: 'fast'"),
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
    widths = []
    monkeypatch.setattr(run, "terminal_columns", lambda stream: widths.append(120) or 120)
    bar = start(out)
    train(bar)
    bar.print("wrapped " * 20)
    shown = capsys.readouterr()
    assert max(len(line) for line in shown.out.splitlines() if "wrapped" in line) <= 120
    assert widths and "12/12" in shown.err and "loss" in shown.err and "step 3/12" not in shown.out


@pytest.mark.parametrize("option, n, hint", [("batch", 3, "give 2 or 4"), ("chunk", 5, "give 4 or 6"), ("chunk", 1, "give 2")])
def test_several_processes_share_a_batch_and_a_chunk_evenly(out, option, n, hint):
    class Pair(World):
        size = 2

    args = arguments(out)
    setattr(args, option, n)
    with pytest.raises(RunError, match=rf"--{option} {n} is the {option} of all 2 processes, so it must be a multiple of 2; {hint}$"):
        Run(args, "test", Pair())
    assert not out.exists()


# ---------------------------------------------------------------- the loop and its end

def weights_in(folder):
    return {name: array for name, array in load_checkpoint(folder / "checkpoint.npz")[0].items() if name.startswith("model.")}


@pytest.mark.parametrize("at", [0, 1, 4, 5, 10, 11])
@pytest.mark.parametrize("how", ["break", "zip", "return", "exception"])
def test_a_result_of_a_loop_that_was_left_is_refused(out, how, at):
    run = start(out)

    def leave():
        if how == "exception":
            raise Crash
        return True

    def loop():
        steps = run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY)
        for step in (step for step, _ in zip(steps, range(at))) if how == "zip" else steps:
            if step == at and leave():
                if how == "return":
                    return
                break

    with contextlib.suppress(Crash):
        loop()
    message = (rf"left in step {at} of 12: the last checkpoint is of step {at // SAVE_EVERY * SAVE_EVERY}, not of this "
               r"result's model\. End it by run\.stop\(\), not break")
    with pytest.raises(RunError, match=message):
        run.finish({"loss": 1.0})
    assert not (out / "result.json").exists()
    run.close()


@pytest.mark.parametrize("at", [0, 4, 5, 7, 11])
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_was_stopped_keeps_the_model_of_its_result_and_can_go_on(out, at, times, tmp_path, capsys):
    run = start(out)
    model = train(run, at={at: lambda: [run.stop() for _ in range(times)]})
    run.finish({"loss": 1.0})
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == at + 1 and (out / "result.json").exists()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, weights_in(out)[f"model.{name}"])
    assert "it goes on" not in capsys.readouterr().out
    train(start(out, "--resume"))
    assert (f"Run.stop() had ended this run after step {at + 1} of 12; it goes on" in capsys.readouterr().out) == (at < TOTAL - 1)
    train(start(tmp_path / "whole"))
    for name, array in weights_in(tmp_path / "whole").items():
        np.testing.assert_array_equal(array, weights_in(out)[name])
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_run_that_is_stopped_keeps_gradients_that_wait(out):
    run = start(out)
    model = Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = SGD(model, 0.1)
    done = []
    for step in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY, model=model, optimizer=optimizer):
        model(np.ones((4, 3), "float32")).sum().backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
        if step == 6:
            run.stop()
        done.append(step)
    run.finish({})
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    assert done == [*range(7)] and meta["step"] == 7 and arrays["all gradients.optimizer.grads"].any()
    minicl.load(out)


def test_a_resumed_run_knows_its_step_before_the_loop(out):
    with pytest.raises(Crash):
        train(start(out), at={7: crash})
    run = start(out, "--resume")
    assert run.step == SAVE_EVERY and run.seconds > 0
    train(run)
    assert run.step == TOTAL


def test_stop_outside_the_loop_is_refused(out):
    run = start(out)
    for loop in (False, True):
        if loop:
            train(run)
        with pytest.raises(RunError, match="call it in its body"):
            run.stop()


@pytest.mark.parametrize("first", [1, 6, 12])
def test_a_second_loop_of_a_run_is_refused(out, first):
    run = start(out)
    train(run, total=first)
    for total in (first, 4, 20):
        with pytest.raises(RunError, match="Run.steps was called before: a Run has one loop"):
            next(run.steps(total, np.random.default_rng(0), save_every=1))
    run.close()


CHANGES = {
    "a step": lambda model, optimizer: (model.weight * 1.0).sum().backward() or optimizer.step(),
    "a load": lambda model, optimizer: model.load_state_dict(model.state_dict()),
    "an assignment": lambda model, optimizer: setattr(model.weight, "data", model.weight.data),
    "an evaluation": lambda model, optimizer: [model.eval()(np.ones((1, 3), "float32")), model.train()],
    "nothing": lambda model, optimizer: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_after_its_last_checkpoint_is_told(out, change, capsys):
    run = start(out)
    model = Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = SGD(model, 0.1)
    for _ in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY, model=model, optimizer=optimizer):
        CHANGES["a step"](model, optimizer)
    CHANGES[change](model, optimizer)
    run.finish({})
    warned = "has changed model.weight" in capsys.readouterr().out
    assert warned == (change in ("a step", "a load", "an assignment"))


BESIDE = {"a target": lambda model: (target := frozen_copy(model), EMA(model, target).update),
          "a queue": lambda model: (queue := Queue(8, 2), lambda m: queue.enqueue(np.ones((2, 2), "float32")))}


@pytest.mark.parametrize("moved_at", [0, 3])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("given", [False, True])
def test_a_target_or_queue_that_would_not_be_saved_is_an_error(out, beside, moved_at, given):
    run = start(out)
    model = Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = SGD(model, 0.1)
    part, move = BESIDE[beside](model)
    parts = {"model": model, "optimizer": optimizer} | ({"part": part} if given else {})
    with contextlib.nullcontext() if given else pytest.raises(
            CheckpointError, match="is not among its parts.*pass (target=target|queue=queue)"):
        for step in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY, **parts):
            CHANGES["a step"](model, optimizer)
            if step >= moved_at:
                move(0.5)
    run.close()


@pytest.mark.parametrize("alter, name", [
    (lambda model: setattr(model[1], "relu", True), r"model\..*relu was false, now true"),
    (lambda model: setattr(model[1], "eps", 0.5), r"model\..*eps was 1e-05, now 0.5"),
    (lambda model: model.steps.append(ops.tanh), r"model\.steps")])
def test_settings_that_the_loop_changes_are_told_once(out, alter, name, capsys):
    run = start(out)
    rng = np.random.default_rng(0)
    model = Sequential(Linear(3, 4, rng=rng), BatchNorm(4))
    optimizer = SGD(model, 0.1)
    for step in run.steps(TOTAL, rng, save_every=2, model=model, optimizer=optimizer):
        optimizer.lr = 0.1 / (1 + step)                      # not a model's
        if step == 5:
            alter(model)
    shown = capsys.readouterr().out
    assert shown.count("warning: settings changed in the loop: ") == 1
    assert re.search(name + ".*minicl.load and --resume have what was there at the begin", shown.replace("\n", " ").replace("True", "true")
                     .replace("False", "false"))
    run.close()


@pytest.mark.parametrize("again", ["all", "the optimizer", "nothing"])
def test_a_run_that_begins_with_trained_weights_says_so(out, again, capsys):
    """As in a notebook, where the cell that makes the model is not run again."""
    for k in range(2):
        rng = np.random.default_rng(0)
        if k == 0 or again == "all":
            model = Linear(3, 2, rng=rng)
        if k == 0 or again != "nothing":
            optimizer = SGD(model, 0.1)
        run = start(out / str(k))
        for _ in run.steps(TOTAL, rng, save_every=SAVE_EVERY, model=model, optimizer=optimizer):
            CHANGES["a step"](model, optimizer)
        run.finish({})
        shown = " ".join(capsys.readouterr().out.split())
        told = "this run begins with trained weights: SGD.step() has changed model.weight before"
        assert (told in shown) == (k == 1 and again != "all")
    run = start(out / "1", "--resume")                       # the checkpoint's weights replace the model's
    assert list(run.steps(TOTAL, rng, save_every=SAVE_EVERY, model=model, optimizer=optimizer)) == []
    assert "trained weights" not in capsys.readouterr().out
    run.close()


def test_a_table_is_written_on_where_the_resumed_run_does_not_ask_for_it(out):
    with pytest.raises(Crash):
        train(start(out, "--log", "csv"), at={7: crash})
    train(start(out, "--resume"))
    assert len((out / "log.csv").read_text().splitlines()) == 1 + len((out / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize("kind", ["Philox", "MT19937", "SFC64"])
def test_a_generator_that_a_checkpoint_cannot_hold_is_refused(out, kind):
    rng = np.random.Generator(getattr(np.random, kind)(0))
    with pytest.raises(TypeError, match=f"Run.steps: rng must be of PCG64, .* cannot hold the state of {kind}"):
        next(start(out).steps(3, rng, save_every=1))
    assert list(start(out).steps(3, np.random.Generator(np.random.PCG64DXSM(0)), save_every=1)) == [0, 1, 2]


# ---------------------------------------------------------------- log.csv, and evaluation during training

def test_log_csv_is_the_log_as_a_table(out):
    for more in ((), ("--resume",)):                         # interrupted after step 6, and resumed
        run = start(out, "--log", "csv", *more)
        rng = np.random.default_rng(0)
        for step in run.steps(TOTAL, rng, save_every=SAVE_EVERY):
            if step == 8 and not more:
                run.close()
                break
            if run.logs(step):
                run.log(step, loss=0.5 * step, **{"knn_h": 0.25} if step in (4, 10) else {}, note=None)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    with open(out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "note", "knn_h"]
    assert [row["knn_h"] for row in rows] == ["", "", "0.25", "", "", "0.25", ""]
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in lines] and not any(row["note"] for row in rows)


def test_a_log_that_is_edited_is_whole_at_the_end(out):
    files = [out / "log.jsonl", out / "log.csv"]

    def edit():
        for file in files:
            file.write_text(file.read_text().replace("0", "7") + "edited\n")

    run = start(out, "--log", "csv")
    train(run, at={7: edit})
    run.finish({"knn": 0.5})
    whole = [file.read_bytes() for file in files]
    assert [json.loads(line) for line in whole[0].splitlines()] == run.read_log() and b"edited" not in whole[1]
    edit()
    run = start(out, "--log", "csv", "--resume")
    train(run)
    run.finish({"knn": 0.5})
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.parametrize("every, expected", [(None, []), (1, [5, 11, 17]), (2, [11]), (3, [17]), (4, [])])
def test_a_model_is_evaluated_every_n_epochs(out, every, expected):
    args = arguments(out, "--epochs", "3")
    args.evaluate_every = every
    run = Run(args, "test")
    steps = [step for step in run.steps(18, np.random.default_rng(0), save_every=6) if run.evaluates(step)]
    assert steps == expected and all(run.logs(step) for step in steps)
