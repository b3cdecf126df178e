"""The first run on a GPU plans itself into its time, reports what fails, and runs whole on the emulated GPU."""

import re

import gpu_first_run
import pytest


def test_parts_share_the_minutes_and_one_that_fails_is_reported(tmp_path, monkeypatch, capsys):
    given = {}

    def part(first, seconds):
        given[len(given)] = seconds
        first.say("done")

    def fails(first, seconds):
        raise RuntimeError("no card")

    monkeypatch.setattr(gpu_first_run, "PARTS", [("A", part, 0.5), ("B", fails, 0.5), ("C", part, 1.0)])
    gpu_first_run.main(["--minutes", "2", "--out", str(tmp_path)])
    assert given[0] == pytest.approx(60, abs=1) and given[1] == pytest.approx(105, abs=2)
    report = (tmp_path / "report.md").read_text()
    assert report.count("done") == 2 and "failed: RuntimeError: no card" in report
    gpu_first_run.main(["--minutes", "0.01", "--out", str(tmp_path)])
    assert (tmp_path / "report.md").read_text().count("no time left") == 3


def test_a_script_that_runs_out_of_time_is_interrupted(tmp_path):
    args = type("Arguments", (), {"out": tmp_path, "minutes": 1, "emulated": False})
    script = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    assert gpu_first_run.First(args).run("sleeper", ["-c", script], 1.5) == ("saved\n", True)


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="needs --backend cupy-host")
def test_it_runs_whole_on_the_emulated_gpu(tmp_path):
    gpu_first_run.main(["--minutes", "5", "--emulated", "--out", str(tmp_path)])
    report = (tmp_path / "report.md").read_text()
    assert "device: emulated H100" in report and " passed in " in report and "failed:" not in report
    for row in ("| SimCLR | ", "| CPC | ", "| NT-Xent 2N=4096 | ", "| case, bf16 | ", "knn_h"):
        assert report.count(row) == 1
    assert len(re.findall(r"\| SimCLR (\| \d+\.\d\d ){4}\|", report)) == 1      # computed, and captured
