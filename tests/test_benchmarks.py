"""The benchmarks: each case runs on both backends, and minicl and PyTorch compute the same function."""

import itertools
import json
import operator
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import checks, harness, report, run
from benchmarks.candidates import Candidate
from benchmarks.case import Peer
from benchmarks.cases import CASES
from benchmarks.harness import Worker
from benchmarks.losses import NTXent
from benchmarks.metrics import Metric, baseline_of, metrics, ratio, regressions
from benchmarks.report import document, lines, summary

from minicl.backend import to_host
from minicl.run import RunError, command

ROOT = Path(__file__).resolve().parents[1]
NAME = operator.attrgetter("name")
TINY = {tiny.name: tiny for tiny in (case.tiny() for case in CASES.values())}


@pytest.fixture(params=TINY.values(), ids=TINY.keys())
def case(request):
    return request.param


def host(results):
    return [x.detach().cpu().numpy() if hasattr(x, "detach") else to_host(x) for x in results]


def test_every_case_runs(case, xp):
    step = case.minicl(xp)
    for result in [*host(step()), *host(step())]:
        assert np.isfinite(result).all()


@pytest.mark.parametrize("case", [case for case in TINY.values() if case.torch], ids=NAME)
def test_pytorch_computes_the_same_loss_and_gradients(case):
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch")
    ours = case.minicl(np)
    theirs = case.torch(Peer(torch))
    first, same = host(ours()), host(theirs())
    assert len(first) == len(same)
    for x, y in zip(first, same):
        assert x.shape == y.shape and x.dtype == y.dtype == np.float32
        assert np.abs(x - y).max() <= case.tolerance * max(np.abs(y).max(), 1e-3)
    if first:  # compare the loss after an update of the weights
        np.testing.assert_allclose(host(ours())[0], host(theirs())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in TINY.values() if case.torch and case.layouts], ids=NAME)
def test_pytorch_computes_the_same_in_both_memory_layouts(case):
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch")
    for x, y in zip(*(host(case.torch(Peer(torch, channels_last=last))()) for last in (False, True))):
        assert np.abs(x - y).max() <= case.tolerance * max(np.abs(y).max(), 1e-3)


# ---------------------------------------------------------------- metrics of the rounds

RATES = {"flops": 1e11, "bytes": 1e10, "exps": 1e9}


def result(ours, theirs=None):
    rounds = {"minicl": ours} | ({"torch": theirs, "torch, kept": [t / 2 for t in theirs]} if theirs else {})
    return {"rounds": rounds, "peak": dict.fromkeys(rounds, 8.0), "launches": {}, "errors": {}, "rates": RATES}


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_its_noise_their_spread():
    assert ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])[0] == 0.5
    assert ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == (0.5, 0.0)  # the machine slowed down, which is not noise
    assert ratio([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])[1] > 0.3
    assert ratio([1.0, 1.0, 2.0], [2.0, 4.0, 2.0])[0] == 0.5                 # not the ratio of the medians, which belong to
                                                                             # different rounds


def test_metrics_compare_with_pytorch_as_installed_and_at_its_best():
    case = NTXent(512)
    found = metrics(case, result([0.01] * 3, [0.02] * 3))
    assert found["default"].value == 0.5 and found["best"].value == 1.0 and found["memory"].value == 1.0
    assert found["floor"].value == pytest.approx(0.01 / (3 * 512**2 * 128 / 1e11))
    assert set(metrics(case, result([0.01] * 3))) == {"floor", "seconds"}


def test_a_target_is_met_or_missed():
    assert Metric(0.5, 0.0, target=0.5).met and not Metric(0.51, 0.0, target=0.5).met and Metric(9.0).met is None


def test_a_regression_must_exceed_the_noise_of_both_runs():
    case = NTXent(512)
    steady = [0.02] * 5
    noisy = [0.02, 0.024, 0.02, 0.016, 0.02]
    before = baseline_of(metrics(case, result([0.01] * 5, steady)))
    assert regressions(metrics(case, result([0.01] * 5, steady)), before) == []
    # for the default and for the best PyTorch
    assert len(regressions(metrics(case, result([0.011] * 5, steady)), before)) == 2
    assert regressions(metrics(case, result([0.011] * 5, noisy)), before) == []
    assert regressions(metrics(case, result([0.005] * 5, steady)), before) == []  # a faster run is not a regression


def test_without_pytorch_a_regression_is_measured_against_the_machine():
    case = NTXent(512)
    before = baseline_of(metrics(case, result([0.01] * 5, [0.02] * 5)))
    message, = regressions(metrics(case, result([0.012] * 5)), before)
    assert message.startswith("floor")


def test_check_names_the_slower_cases_and_fails(capsys):
    case = NTXent(512)
    before = {case.name: baseline_of(metrics(case, result([0.01] * 5, [0.02] * 5)))}
    assert run.check({case.name: metrics(case, result([0.01] * 5, [0.02] * 5))}, before) == 0
    assert run.check({case.name: metrics(case, result([0.03] * 5, [0.02] * 5)), "new": {}}, before) == 1
    printed = capsys.readouterr().out
    assert "slower: NT-Xent 2N=512, default: 1.50, was 0.50: +200%" in printed and "--save-baseline adds them): new" in printed


# ---------------------------------------------------------------- a run and its page

def test_a_case_is_measured_in_its_own_process(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.0)                            # other tests may run at the same time
    worker = Worker(Candidate("minicl"), "numpy", threads=1, precision="float32")
    measured = harness.measure(CASES["tape, 1000 tiny ops"], [worker], block=0.01)
    worker.close()
    seconds, = measured["rounds"]["minicl"]
    assert seconds > 0 and measured["errors"] == {} and all(rate > 0 for rate in measured["rates"].values())


class Clock:
    """Replaces a worker: its steps take the given times, and it records the requests."""

    def __init__(self, label, *seconds):
        self.label, self.first, self.seconds = label, seconds[0], iter(seconds)
        self.asked = []

    def ask(self, **request):
        self.asked.append(request)
        if "rates" in request:
            return RATES
        if "case" in request:
            return {"seconds": self.first, "peak": 1.0}
        return {"seconds": [next(self.seconds)] if "bursts" in request else [], "used": 0.0}


def test_a_round_gives_the_median_of_three_blocks_in_turns_or_one_long_step(monkeypatch):
    monkeypatch.setattr(harness, "RESTS", 0.0)
    monkeypatch.setattr(harness, "_busy_seconds", lambda: None)
    quick, slow = Clock("minicl", 0.1, 0.3, 0.2), Clock("torch", 2.0)
    found = harness.measure(NTXent(512), [quick, slow], block=0.1)
    assert found["rounds"] == {"minicl": [0.2], "torch": [2.0]} and found["rates"] == RATES
    assert [sum("bursts" in asked for asked in clock.asked) for clock in (quick, slow)] == [3, 1]


def test_rounds_are_joined_without_a_candidate_that_failed_in_one():
    both = {**result([0.01], [0.02]), "disturbed": 0.0}
    last = {**result([0.03]), "peak": {"minicl": 2.0}, "disturbed": 0.5, "rates": {**RATES, "exps": 3e9},
            "errors": dict.fromkeys(["torch", "torch, kept"], "no memory")}
    assert harness.join([both, both, both])["rounds"]["torch"] == [0.02] * 3
    found = harness.join([both, last])
    assert found["rounds"] == {"minicl": [0.01, 0.03]} and found["peak"] == {"minicl": 5.0}
    assert found["errors"] == last["errors"] and found["disturbed"] == 0.25 and found["rates"] == last["rates"]
    assert harness.join([both, {**both, "peak": dict.fromkeys(both["peak"])}])["peak"]["torch"] is None


def test_each_round_measures_all_cases_in_fresh_processes_and_no_candidate_again_that_failed(monkeypatch, capsys):
    events = []

    class Process:
        def __init__(self, candidate, *_):
            self.label = candidate.label
            events.append(f"start {self.label}")

        def close(self):
            events.append(f"end {self.label}")

    def measure(case, workers, **_):
        events.append([worker.label for worker in workers])
        return {**result([0.01]), "disturbed": 0.0, "errors": {"minicl, not kept": "no memory"} if len(workers) > 1 else {}}

    monkeypatch.setattr(run, "Worker", Process)
    monkeypatch.setattr(run, "measure", measure)
    assert run.main(["--only", "NT-Xent 2N=512", "NT-Xent 2N=2048", "--rounds", "2"]) == 0
    both = ["minicl", "minicl, not kept"]
    assert events == ["start minicl", "start minicl, not kept", both, both, "end minicl", "end minicl, not kept",
                      "start minicl", ["minicl"], ["minicl"], "end minicl"]
    assert "minicl, not kept           no memory" in capsys.readouterr().out


def test_a_case_that_fails_is_reported_and_the_worker_continues():
    worker = Worker(Candidate("minicl"), "numpy", threads=1, precision="float32")
    answer = worker.ask(case="no such case")
    assert "error" in answer and worker.ask(case="no such case") == answer
    worker.close()


def test_ctrl_c_ends_a_worker_without_output(capfd):
    worker = Worker(Candidate("minicl"), "numpy", threads=1, precision="float32")
    worker.process.send_signal(signal.SIGINT)                                # a terminal sends it to all processes
    worker.close()
    assert worker.process.returncode == -signal.SIGINT and capfd.readouterr() == ("", "")


def record_of(**results):
    return {"backend": "numpy", "command": "python run.py", "rounds": 5, "threads": 2, "kept": {"MALLOC": "1"},
            "machine": [("processor", "abacus")], "cases": results}


class Measured:
    """Replaces the workers and measure(): the first case takes 10 ms, then someone presses Ctrl-C."""

    def __init__(self, candidate=None, *_):
        self.label = candidate and candidate.label
        self.calls = 0
        self.closed = []

    def worker(self, *args):
        worker = Measured(*args)
        worker.close = lambda: self.closed.append(worker.label)
        return worker

    def __call__(self, *_, **__):
        self.calls += 1
        if self.calls > 1:
            raise KeyboardInterrupt
        return {**result([0.01] * 5), "disturbed": 0.0}


def test_ctrl_c_prints_one_line_and_keeps_the_measured_cases(monkeypatch, tmp_path, capsys):
    file = tmp_path / "all.json"
    measured = Measured()
    file.write_text(json.dumps(record_of(earlier={**result([0.01] * 5), "disturbed": 0.0})))
    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(run, "Worker", measured.worker)
    with pytest.raises(SystemExit, match="130"):
        command(lambda: run.main(["--only", "NT-Xent", "--rounds", "1", "--json", str(file)]))
    assert capsys.readouterr().err == "round 1 of 1\n\ninterrupted by SIGINT\n"
    assert measured.closed == ["minicl", "minicl, not kept"]
    kept = json.loads(file.read_text())
    assert list(kept["cases"]) == ["earlier", "NT-Xent 2N=512"] and kept["rounds"] == 1
    assert kept["command"] == "python run.py\npython tests/benchmarks/run.py --only NT-Xent --rounds 1"


@pytest.mark.parametrize("options, message", [
    ("--peer torch", "PyTorch is not installed; pip install torch, or leave --peer out"),
    ("--check", "there is no baseline yet for these cases; --save-baseline makes one"),
    ("--only nosuch", "no such case; there are"),
    ("--table nowhere/page.md", "in a folder that exists"),
    ("--only main_job --table page.md", "the page needs other cases too"),
    ("--only main_job --backend cupy", "it is measured with --backend numpy"),
    ("--json nowhere/all.json", "in a folder that exists"),
    ("--json text", "text: not what --json writes"),
    ("--read nofile.json", "nofile.json: No such file"),
    ("--read list.json", "it lacks one of backend"),
    ("--table page.md --backend cupy", "needs measurements with --backend numpy"),
])
def test_invalid_options_are_reported_before_anything_is_measured(options, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)                          # as on a machine without PyTorch
    monkeypatch.setattr(run, "BASELINE", tmp_path / "none.json")
    monkeypatch.setattr(run, "Worker", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("Twas brillig")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(RunError, match=message):
        run.main(options.split())


def test_a_record_can_be_saved_as_a_baseline_and_compared_with_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "BASELINE", tmp_path / "baseline.json")
    for name, seconds in ("quick", 0.01), ("slow", 0.03):
        measured = {**result([seconds] * 5, [0.02] * 5), "disturbed": 0.0}
        (tmp_path / name).write_text(json.dumps(record_of(**{"NT-Xent 2N=512": measured})))
    assert run.main(["--read", str(tmp_path / "quick"), "--save-baseline"]) == 0
    assert run.main(["--read", str(tmp_path / "quick"), "--check"]) == 0
    # compared with the former baseline
    assert run.main(["--read", str(tmp_path / "slow"), "--check", "--save-baseline"]) == 1
    assert run.main(["--read", str(tmp_path / "slow"), "--check"]) == 0
    assert "1 of 1 cases became slower" in capsys.readouterr().out


def test_options_are_whole_numbers_and_rounds_overrides_quick(capsys):
    for option in "--rounds", "--threads":
        with pytest.raises(SystemExit, match="2"):
            run.parse([option, "0"])
        assert "expected an integer >= 1, got 0" in capsys.readouterr().err
    assert [run.parse(line.split()).rounds for line in ("", "--quick", "--quick --rounds 5")] == [5, 3, 5]


def test_the_command_on_the_page_leaves_out_the_output_files():
    args = run.parse(["--only", "conv*", "tape", "--json", "x.json", "--quick", "--check", "--threads", "1"])
    assert args.command == "python tests/benchmarks/run.py --only 'conv*' tape --quick --threads 1"
    measured = {**result([0.01] * 5), "disturbed": 0.0}
    page = document({**record_of(**{"import minicl": measured}), "command": "one\ntwo", "rounds": 1, "threads": 1})
    assert "\n    one\n    two\n" in page and "median over 1 round," in page and "of its own with 1 thread," in page


def test_missing_targets_and_ratios_are_not_mentioned():
    measured = {**result([]), "rounds": {}, "disturbed": 0.0}
    assert summary(record_of(**{"NT-Xent 2N=512": measured})) == ""
    assert list(lines(CASES["NT-Xent 2N=512"], measured)) == ["NT-Xent 2N=512"]


def test_a_target_missed_on_a_busy_machine_is_marked():
    measured = {**result([0.03] * 5, [0.02] * 5), "disturbed": 0.5}
    missed = summary(record_of(**{"NT-Xent 2N=512": measured}))
    assert "- NT-Xent 2N=512 †: time over PyTorch's 1.50 ± 0.00 ✗" in missed


def test_the_page_shows_ratios_targets_and_whether_a_gpu_was_measured():
    measured = {**result([0.01] * 5, [0.02] * 5), "disturbed": 0.5}
    record = record_of(**{"NT-Xent 2N=512": measured})
    page = document(record, launches={"MoCo": (325, 0)})
    assert "| NT-Xent 2N=512 † | 10.0 (10.0–10.0) |" in page and "0.50 ± 0.00 ✓ ≤ 0.7" in page
    assert "processor: abacus" in page and "| MoCo | 325 | 0 |" in page and "3 of 3 targets are met" in page
    assert "No time has been measured" in page
    assert "No time has been measured" not in document(record, gpu=record)


def test_the_page_has_the_counted_communication():
    script = ROOT / "tests/benchmarks/communication.py"
    done = subprocess.run([sys.executable, str(script), "simclr_mnist"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert report.COMMUNICATION in page and all(line in page for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 4


def test_the_page_ends_with_what_was_tried():
    assert (ROOT / "docs/benchmarks.md").read_text().endswith("\n\n" + report.TRIED)
    measured = {**result([0.01] * 5, [0.02] * 5), "disturbed": 0.0}
    assert document(record_of(**{"NT-Xent 2N=512": measured})).endswith("\n\n" + report.TRIED)


@pytest.fixture(scope="module")
def unchecked():
    return checks.without_checks("minicl_unchecked")


def test_the_copy_without_checks_accepts_what_minicl_refuses(unchecked):
    assert len(checks.faults("minicl")) == 9
    checks.require_patched(unchecked)
    with pytest.raises(AssertionError, match="minicl does not refuse: fine"):
        checks.require_patched(unchecked, lambda package: {"fine": lambda: None})
    # a copy with checks fails at the first fault
    with pytest.raises(RuntimeError, match="was changed by load_state_dict"):
        checks.require_patched(checks.copy_of_minicl("minicl_again"))


def test_the_copy_without_checks_takes_the_same_steps(unchecked):
    for encoder in checks.ENCODERS:
        steps = {package: checks.step_of(package, encoder, 8) for package in ("minicl", unchecked)}
        seconds = checks.measure(steps, 2)                                   # also asserts that both compute the same
        assert [len(times) for times in seconds.values()] == [2 * checks.TURN] * 2


def test_copies_that_compute_other_numbers_are_not_compared():
    g = np.zeros(3)
    for other in (np.float32(2), g), (np.float32(1), g + 1):
        with pytest.raises(AssertionError, match="the copies compute other numbers"):
            checks.measure({"minicl": lambda: (np.float32(1), g), "other": lambda other=other: other}, 1)


def test_the_share_of_the_checks_is_measured_in_new_processes(capsys):
    assert checks.main("--encoder mlp --batch 8 --rounds 6 --processes 2 --most 100".split()) == 0
    assert capsys.readouterr().out.count("| mlp |") == 2


def test_the_mean_of_the_processes_and_its_standard_error_are_printed_and_limited(monkeypatch, capsys):
    calls, shares = [], itertools.cycle([1.0, 2.0, 6.0])

    def measured(*arguments):
        calls.append(arguments)
        share = next(shares)
        return {"whole": (10 * share, share, share - 3.5), "rest": (5.0, 9.0, 0.0)}

    monkeypatch.setattr(checks, "in_a_new_process", measured)
    arguments = ["--encoder", "convnet", "--batch", "8", "--rounds", "6", "--processes", "3", "--most"]
    assert checks.main([*arguments, "3"]) == 0
    assert calls == [("convnet", 8, 6)] * 3
    out = capsys.readouterr().out
    assert "| convnet | all of it | 30.0 | 3.00 % | 1.53 % | -0.50 % |" in out            # sqrt(7) / sqrt(3)
    assert "optimizer | 5.0 | 9.00 % | 0.00 % | +0.00 % |" in out and "take 3.00 % of a step or less; the limit is 3 %" in out
    assert checks.main([*arguments, "2.9"]) == 1


def test_a_share_is_the_difference_of_the_medians(monkeypatch):
    asked = []

    def measure(steps, rounds):
        asked.append((sorted(steps), rounds))
        return {"minicl": [2.0, 9.0, 2.0], "same": [2.1, 2.1, 7.0], "bare": [1.5, 1.0, 1.5]}

    monkeypatch.setattr(checks, "measure", measure)
    assert checks.measure_parts("mlp", 8, 6) == dict.fromkeys(checks.PARTS, (2000.0, 25.0, pytest.approx(-5.0)))
    assert asked == [(["bare", "minicl", "same"], 6)] * 2
