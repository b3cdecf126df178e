"""A program survives the loss of its output, and its lines fit the terminal."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minicl.console import BAR_COLUMNS, fitting, lasting_output, listing, terminal_columns

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
import numpy as np
from minicl.options import options
from minicl.run import Run, command

def main():
    run = Run(options("A test.", epochs=1, batch=2, lr=1, tau=1).parse_args(sys.argv[1:]), "test")
    for step in run.steps(2000, np.random.default_rng(0), save_every=1000):
        if run.logs(step):
            run.log(step, loss=0.0, text="\\u221a\\u00fc\\udcff" + "x" * 2000)
    run.finish({"\\u221a": 1.0})

command(main)
"""


def run(redirection, folder, *flags, **environment):
    return subprocess.run(["bash", "-c", f'"$0" "$@" {redirection}; echo "exit ${{PIPESTATUS[0]}}" > code', sys.executable,
                           *flags, "-c", PROGRAM, "--out", "out"], cwd=folder, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix shell")
@pytest.mark.parametrize("redirection, told", [
    ("| head -1", "standard output is lost"), ("> /dev/full", "standard output is lost"), (">&- 2>&- <&-", ""),
])
def test_a_run_continues_without_its_output(tmp_path, redirection, told):
    ended = run(redirection, tmp_path)
    assert (tmp_path / "code").read_text() == "exit 0\n", ended.stderr
    assert ended.stderr.count("\n") == bool(told) and told in ended.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["checkpoint.npz", "config.json", "log.jsonl", "result.json"]
    assert (tmp_path / "out" / "log.jsonl").read_text().count("\n") == 41


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix shell")
def test_characters_that_an_encoding_lacks_are_escaped_and_docstrings_are_not_needed(tmp_path):
    ended = run("| cat", tmp_path, "-OO", PYTHONIOENCODING="ascii")
    assert (tmp_path / "code").read_text() == "exit 0\n" and ended.stderr == ""
    assert "\\u221a" in ended.stdout and "\\udcff" in ended.stdout and "everything is in out" in ended.stdout


def test_other_attributes_come_from_the_stream(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        print("shown")
        assert sys.stdout.getvalue() == "shown\n" and not sys.stdout.isatty()
    assert sys.stdout is stream


def test_a_closed_stream_is_reported_once(monkeypatch, capsys):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        print("lost")
        print("lost")
    assert capsys.readouterr().err.count("standard output is lost") == 1


# ---------------------------------------------------------------- the terminal

@pytest.mark.skipif(os.name == "nt", reason="needs a Unix terminal")
@pytest.mark.parametrize("size, columns", [((24, 80), 80), ((0, 80), 0), ((24, 0), 0), ((0, 0), 0)])
def test_a_terminal_without_a_size_is_treated_as_a_file(size, columns):
    """A progress bar would be invisible there, and would hide the log as well."""
    import fcntl
    import pty
    import struct
    import termios
    main, other = pty.openpty()
    try:
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        with open(other, "w", closefd=False) as stream:
            assert terminal_columns(stream) == columns
    finally:
        os.close(main)
        os.close(other)
    assert terminal_columns(None) == terminal_columns(io.StringIO()) == 0


def test_metrics_beside_the_bar_fit_the_remaining_columns():
    shown = ["epoch 1", "loss 4.661", "lr 0.001066", "alignment 0.41"]
    assert fitting(shown, 80 - BAR_COLUMNS) == "epoch 1  loss 4.661" and fitting(shown, 200) == "  ".join(shown)
    assert fitting(shown, 0) == fitting(shown, -50) == ""


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix shell")
def test_an_interrupted_evaluation_reports_the_checkpoint_and_can_be_resumed(tmp_path):
    """Ctrl-C may come between the last step and the result, such as while pictures are drawn."""
    program = PROGRAM.replace("    run.finish", "    if '--resume' not in sys.argv: import os; os.kill(os.getpid(), 2)\n    run.finish")
    command = [sys.executable, "-c", program, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 130 and "training is complete: out keeps its checkpoint" in ended.stderr
    assert "--resume --out out" in ended.stderr and "everything is in" not in ended.stdout
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert again.returncode == 0 and "everything is in out" in again.stdout and "complete" not in again.stderr


@pytest.mark.parametrize("columns", [10, 40, 80, 300])
def test_a_listing_fits_the_terminal_and_keeps_its_words(columns, monkeypatch):
    rows = [("nt_xent", "two views of each image, against all other images of the batch"), ("clip", "pairs")]
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = listing(rows).splitlines()
    assert max(map(len, lines)) <= max(columns, 31)                       # 11 for the name, 20 for the text
    assert " ".join(" ".join(lines).split()) == " ".join(f"{name} {text}" for name, text in rows)
    assert all(line.startswith((" " * 11, "  nt_xent", "  clip   ")) for line in lines)
