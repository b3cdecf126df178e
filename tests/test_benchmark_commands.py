"""The benchmark commands: what is not compared is said, nothing measured is lost, and files that are no records are named."""

import json
import sys
from pathlib import Path

import accuracy
import pytest
from benchmarks import run, scaling
from test_benchmarks import record_of, result
from test_scaling import RECORD as SCALING

from minicl.run import RunError


def saved(path, **results):
    path.write_text(json.dumps(record_of(**{name: {**each, "disturbed": 0.0} for name, each in results.items()})))
    return str(path)


@pytest.fixture(autouse=True)
def baseline(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "baseline.json"


LOSS = "NT-Xent 2N=512"
STEP = "SimCLR step, mlp, batch 256"


def test_check_fails_if_nothing_could_be_compared(tmp_path, capsys):
    both = saved(tmp_path / "both", **{LOSS: result([0.01] * 5, [0.02] * 5), STEP: result([0.01] * 5, [0.02] * 5)})
    alone = saved(tmp_path / "alone", **{LOSS: result([0.009] * 5), STEP: result([0.01] * 5)})
    assert run.main(["--read", both, "--save-baseline"]) == 0
    assert run.main(["--read", alone, "--check"]) == 0                       # the loss has a floor, the step has none
    printed = capsys.readouterr().out
    assert f"--save-baseline adds them): {STEP}\n" in printed
    assert "0 of 1 cases became slower" in printed
    with pytest.raises(RunError, match="no case was compared"):
        run.main(["--read", alone, "--check", "--only", STEP])


def test_a_baseline_keeps_the_ratios_that_a_run_without_a_peer_lacks(tmp_path, baseline):
    run.main(["--read", saved(tmp_path / "both", **{LOSS: result([0.01] * 5, [0.02] * 5)}), "--save-baseline"])
    run.main(["--read", saved(tmp_path / "alone", **{LOSS: result([0.02] * 5)}), "--save-baseline"])
    found = json.loads(baseline.read_text())["numpy"][LOSS]
    assert found["default"][0] == 0.5 and set(found) == {"default", "best", "floor"}


def test_read_shows_the_cases_that_only_selects(tmp_path, capsys):
    path = saved(tmp_path / "both", **{LOSS: result([0.01] * 5), STEP: result([0.01] * 5)})
    run.main(["--read", path])
    shown = capsys.readouterr().out
    assert f"{LOSS}\n    minicl" in shown and f"{STEP}\n    minicl" in shown
    run.main(["--read", path, "--only", "nt-XENT*"])                         # capitals do not matter
    assert STEP not in capsys.readouterr().out
    with pytest.raises(RunError, match="--only relu: no such case; there are\n    NT-Xent 2N=512\n    SimCLR step, mlp"):
        run.main(["--read", path, "--only", "NT-Xent", "relu"])


def test_the_cases_of_another_backend_are_not_offered():
    with pytest.raises(RunError) as error:
        run.main(["--only", "NT-Xent 2N=65536"])
    assert "there are\n    NT-Xent 2N=512" in str(error.value) and "2N=65536" not in str(error.value).split("there are")[1]


@pytest.mark.parametrize("text, message", [
    ('{"backend": "numpy", "command": "x", "cases": {"NT-Xent 2N=512": {}}}', "its cases lack one of rounds"),
    ('{"backend": "numpy", "command": "x", "cases": []}', "its cases lack one of rounds"),
    ("3", "it lacks one of backend"),
])
def test_a_file_that_is_no_record_is_named(text, message, tmp_path):
    (tmp_path / "no.json").write_text(text)
    with pytest.raises(RunError, match=f"--read no.json: not what --json writes: {message}"):
        run.main(["--read", "no.json"])


@pytest.mark.parametrize("text, message", [
    ("Twas brillig", "--read no.json: not what --json writes: Expecting value"),
    ("[]", "--read no.json: not what --json writes: it lacks one of command"),
    (json.dumps(record_of()), "--read no.json: not what --json writes: it lacks one of command, machine, .*curves"),
    (None, "--read no.json: No such file"),
])
def test_scaling_names_a_file_that_is_no_record(text, message, tmp_path):
    if text is not None:
        (tmp_path / "no.json").write_text(text)
    with pytest.raises(RunError, match=message):
        scaling.main(["--read", "no.json"])


@pytest.mark.parametrize("option", ["--table", "--json"])
@pytest.mark.parametrize("path", ["nowhere/file", ".."])
def test_scaling_finds_an_output_that_cannot_be_written_before_it_measures(option, path, monkeypatch):
    monkeypatch.setattr(scaling, "Worker", None)
    with pytest.raises(RunError, match=f"{option} {path}: expected a file that can be written, in a folder that exists"):
        scaling.main([option, path])
    assert not Path("nowhere").exists()


def test_scaling_reads_what_only_selects_and_writes_it(tmp_path, capsys):
    (tmp_path / "all.json").write_text(json.dumps(SCALING))
    scaling.main(["--read", "all.json", "--only", "NT-Xent", "--json", "one.json"])
    page = capsys.readouterr().out
    assert "### NT-Xent" in page and "triplet |" not in page
    assert list(json.loads((tmp_path / "one.json").read_text())["curves"]) == ["NT-Xent"]
    with pytest.raises(RunError, match="--only nosuch: no such loss or step"):
        scaling.main(["--read", "all.json", "--only", "nosuch"])


def test_scaling_saves_each_size_at_once(tmp_path, monkeypatch):
    class Interrupted:
        label = scaling.ALL

        def __init__(self, *_):
            pass

        def ask(self, **request):
            return {"flops": 1e9, "bytes": 1e9, "exps": 1e9}

        def close(self):
            pass

    def time_all(case, workers, **_):
        if (tmp_path / "curves.json").exists():
            raise KeyboardInterrupt
        return {"rounds": {scaling.ALL: [0.001]}, "peak": {scaling.ALL: 1.0}}

    monkeypatch.setattr(scaling, "Worker", Interrupted)
    monkeypatch.setattr(scaling, "time_all", time_all)
    with pytest.raises(KeyboardInterrupt):
        scaling.main(["--only", "triplet", "--json", "curves.json"])
    assert list(json.loads((tmp_path / "curves.json").read_text())["curves"]["triplet"]) == [str(scaling.SIZES[0])]


def test_accuracy_refuses_words_that_no_case_has(capsys):
    with pytest.raises(SystemExit, match="2"):
        accuracy.main(["--check", "nosuch"])
    assert "no case has nosuch in its name; there are" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["precision", "estimate"])
def test_scripts_without_options_refuse_any(name, monkeypatch, capsys):
    module = pytest.importorskip(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--nosuch"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert "unrecognized arguments: --nosuch" in capsys.readouterr().err
