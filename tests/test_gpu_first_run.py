"""The first run on a GPU keeps to its time, reports failures, and completes on the emulated GPU."""

import os
import re

import gpu_first_run
import pytest


def test_parts_share_the_minutes_and_a_failed_part_is_reported(tmp_path, monkeypatch, capsys):
    given = {}

    def part(first, seconds):
        given[len(given)] = seconds
        first.say("done")

    def fails(first, seconds):
        raise RuntimeError("no card")

    monkeypatch.setattr(gpu_first_run, "PARTS", [("A", part, 0.5), ("B", fails, 0.5), ("C", part, 1.0)])
    assert gpu_first_run.main(["--minutes", "2", "--out", str(tmp_path)]) == 1
    assert given[0] == pytest.approx(60, abs=1) and given[1] == pytest.approx(105, abs=2)
    report = (tmp_path / "report.md").read_text()
    assert report.count("done") == 2 and "failed: RuntimeError: no card" in report
    assert gpu_first_run.main(["--minutes", "0.01", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text().count("no time left") == 3


@pytest.fixture
def first(tmp_path):
    return gpu_first_run.First(type("Arguments", (), {"out": tmp_path, "minutes": 1, "emulated": False}))


def test_a_script_that_runs_out_of_time_is_interrupted(first):
    script = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    ended = first.run("sleeper", ["-c", script], 1.5)
    assert ended == ("saved\n", True, 0)
    ended.check()


@pytest.mark.parametrize("script, error", [("raise KeyError('no card')", "KeyError: 'no card'"), ("raise SystemExit(3)", "exit status 3"),
                                           ("raise ValueError('no card;\\nsee there')", "no card; see there")])
def test_an_error_is_not_reported_as_running_out_of_time(script, error, first):
    ended = first.run("broken", ["-c", script], 20)
    assert not ended.late
    with pytest.raises(RuntimeError, match=error):
        ended.check()


@pytest.mark.parametrize("part", ["machine", "steps", "tests", "epoch", "compared", "training"])
def test_without_a_gpu_each_part_gives_the_reason(part, first, tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("raise ImportError('no card here')")
    first.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{first.environment['PYTHONPATH']}"
    (tmp_path / "cifar10.npz").touch()                                   # as if CIFAR-10 had been loaded
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(RuntimeError, match="(?i)cupy|no card"):
        getattr(gpu_first_run, part)(first, 60)
    assert not any("cut short" in line for line in first.lines)


@pytest.mark.parametrize("options", [["--minutes", "nan"], ["--minutes", "0"], ["--minutes=-1"], ["--minutes", "inf"],
                                     ["--out", __file__], ["--out", f"{__file__}/x"]])
def test_invalid_options_give_one_line(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_first_run, "PARTS", [])
    with pytest.raises(SystemExit) as end:
        gpu_first_run.main(["--out", str(tmp_path), *options])
    assert end.value.code == 2 and f"error: argument {options[0].split('=')[0]}: expected" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="needs --backend cupy-host")
def test_the_first_run_completes_on_the_emulated_gpu(tmp_path):
    assert gpu_first_run.main(["--minutes", "5", "--emulated", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "device: emulated H100" in report and " passed in " in report and "failed:" not in report
    for row in ("| SimCLR | ", "| CPC | ", "| NT-Xent 2N=4096 | ", "| case, bf16 | ", "knn_h"):
        assert report.count(row) == 1
    assert len(re.findall(r"\| SimCLR (\| \d+\.\d\d ){4}\|", report)) == 1      # computed step by step, and captured
