"""Signals that end a program: its exit code, the step that it finishes first, and signals ignored by the parent
process."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicl.signals import SIGNALS, Stopped, signals_noted, signals_stop

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
ENDING = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}

TRAINING = """
import sys, time
import numpy as np
from minicl.options import options
from minicl.run import Run, command

def main():
    run = Run(options("A test.", epochs=1, batch=2, lr=1, tau=1).parse_args(sys.argv[1:]), "test")
    for step in run.steps(1000, np.random.default_rng(0), save_every=1000):
        print("step", flush=True)
        time.sleep(0.02)
        run.log(step, loss=0.0)
        print("end", flush=True)

command(main)
"""


@pytest.fixture(autouse=True)
def default_handlers():
    """Set Python's default handlers for each test, and check that the test restores them."""
    own = {number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL for number in SIGNALS}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == own
    for number, handler in before.items():
        signal.signal(number, handler)


def start(folder, *before, prepare=None, **settings):
    return subprocess.Popen([*before, sys.executable, "-c", TRAINING, "--out", str(folder)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, **settings)


def wait_for_steps(process, count=3):
    for _ in range(count):
        while process.stdout.readline() != "step\n":
            assert process.poll() is None, process.stderr.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_within_a_block_ends_by_a_signal():
    """Such as a worker of a pool, which is ended by SIGTERM."""
    with signals_stop(), signals_noted():
        begun = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(begun[1], b"x")
            time.sleep(30)
            os._exit(0)
        os.read(begun[0], 1)
        os.kill(child, signal.SIGINT)                        # Ctrl-C goes to it too, while the run finishes a step
        time.sleep(0.05)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_blocks_that_end_in_any_order_leave_the_handlers_as_they_were(order):
    """As the loops of two runs that take turns."""
    before = [signal.getsignal(number) for number in SIGNALS]
    blocks = [block() for block in (signals_stop, signals_noted, signals_noted)]
    for block in blocks:
        block.__enter__()
    for k in order:
        blocks[k].__exit__(None, None, None)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_stops_at_once_outside_of_training(name):
    with pytest.raises(Stopped, match=f"interrupted by {name}") as stopped, signals_stop():
        signal.raise_signal(getattr(signal, name))
    assert stopped.value.exit_code == ENDING[name]


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_within_a_step_is_noted(name):
    with signals_stop(), signals_noted() as noted:
        signal.raise_signal(getattr(signal, name))
    assert noted == [getattr(signal, name)]


def test_only_a_second_ctrl_c_stops_at_once():
    with signals_noted() as noted:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):    # a closed terminal sends two of the same
            signal.raise_signal(number)
        assert len(noted) == 3
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ENDING)
def test_an_ignored_signal_stays_ignored(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    with signals_stop():
        signal.raise_signal(number)
        with signals_noted() as noted:
            signal.raise_signal(number)
    signal.signal(number, before)
    assert noted == []


FAILS = {"the step": ('raise AttributeError("no such thing")', "AttributeError: no such thing"),
         "the checkpoint": ("part.value = None", "error: cannot save part.value: expected an array, a number or a list")}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("what", FAILS)
def test_an_error_after_a_signal_is_printed(tmp_path, what, name):
    """What keeps the step from being finished or saved, as the checkpoint that a signal asks for is not there."""
    statement, message = FAILS[what]
    part = "type('Part', (), {'value': 1.0, 'state_dict': lambda x: {'value': x.value}, 'load_state_dict': print})()"
    script = TRAINING.replace("save_every=1000)", f"save_every=1000, part=(part := {part}))").replace(
        "time.sleep(0.02)", f"import os, signal; os.kill(os.getpid(), signal.{name})\n        {statement}")
    done = subprocess.run([sys.executable, "-c", script, "--out", str(tmp_path / "out")], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == ENDING[name]
    assert f"interrupted by {name}; the step was not finished or not saved:" in done.stderr and message in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_finishes_its_step_saves_and_exits_with_128_plus_the_signal(tmp_path, name):
    process = start(tmp_path / "out")
    wait_for_steps(process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == ENDING[name] and err == f"\ninterrupted by {name}\n"
    assert out.splitlines()[-2] == "end" and "continue with the same options and --resume --out " in out.splitlines()[-1]
    assert sorted(os.listdir(tmp_path / "out")) == ["checkpoint.npz", "config.json", "log.jsonl"]


def test_under_nohup_sighup_is_ignored_and_sigterm_ends_the_run(tmp_path):
    process = start(tmp_path / "out", "nohup")
    wait_for_steps(process)
    process.send_signal(signal.SIGHUP)
    wait_for_steps(process, 10)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_sigterm_also_ends_the_first_process_of_a_container(tmp_path):
    """The kernel has no default actions for process 1, so a signal without a handler is lost."""
    unshare = ["unshare", "--fork", "--pid", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs permission to make a PID namespace")
    process = start(tmp_path / "out", *unshare, "--")
    wait_for_steps(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert "interrupted by SIGTERM" in err and process.returncode == 143
    assert (tmp_path / "out" / "checkpoint.npz").exists()


def test_a_signal_before_training_leaves_no_folder(tmp_path):
    code = TRAINING.replace('for step', 'print("step", flush=True); time.sleep(60)\n    for step')
    process = subprocess.Popen([sys.executable, "-c", code, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for_steps(process, 1)
    time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143 and os.listdir(tmp_path) == []
