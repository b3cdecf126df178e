"""The benchmarks: each case runs on both backends, and both sides compute the same function."""

import operator

import numpy as np
import pytest
from benchmarks import harness
from benchmarks.candidates import Candidate
from benchmarks.case import Peer
from benchmarks.cases import CASES
from benchmarks.figures import Figure, baseline_of, figures, ratio, regressions
from benchmarks.harness import Worker
from benchmarks.losses import NTXent
from benchmarks.report import document
from benchmarks.run import check

from minicl.backend import to_host

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
    torch = pytest.importorskip("torch", reason="PyTorch is not installed, with which minicl is compared")
    ours, theirs = case.minicl(np), case.torch(Peer(torch))
    first, same = host(ours()), host(theirs())
    assert len(first) == len(same)
    for x, y in zip(first, same):
        assert x.shape == y.shape and x.dtype == y.dtype == np.float32
        assert np.abs(x - y).max() <= case.tolerance * max(np.abs(y).max(), 1e-3)
    if first:                                                                # the loss after an update of the weights
        np.testing.assert_allclose(host(ours())[0], host(theirs())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in TINY.values() if case.torch and case.layouts], ids=NAME)
def test_pytorch_computes_the_same_channels_last(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed, with which minicl is compared")
    for x, y in zip(*(host(case.torch(Peer(torch, channels_last=last))()) for last in (False, True))):
        assert np.abs(x - y).max() <= case.tolerance * max(np.abs(y).max(), 1e-3)


# ---------------------------------------------------------------- what the rounds say

RATES = {"flops": 1e11, "bytes": 1e10, "exps": 1e9}


def result(ours, theirs=None):
    rounds = {"minicl": ours} | ({"torch": theirs, "torch, kept": [t / 2 for t in theirs]} if theirs else {})
    return {"rounds": rounds, "peak": dict.fromkeys(rounds, 8.0), "launches": {}, "errors": {}, "rates": RATES}


def test_ratios_are_of_medians_and_their_noise_is_that_of_the_rounds():
    assert ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])[0] == 0.5
    assert ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == (0.5, 0.0)             # the machine slowed down: no noise
    assert ratio([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])[1] > 0.3


def test_figures_compare_with_pytorch_as_installed_and_at_its_best():
    case = NTXent(512)
    found = figures(case, result([0.01] * 3, [0.02] * 3))
    assert found["default"].value == 0.5 and found["best"].value == 1.0 and found["memory"].value == 1.0
    assert found["floor"].value == pytest.approx(0.01 / (3 * 512**2 * 128 / 1e11))
    assert set(figures(case, result([0.01] * 3))) == {"floor", "seconds"}


def test_a_target_is_met_or_missed():
    assert Figure(0.5, 0.0, target=0.5).met and not Figure(0.51, 0.0, target=0.5).met and Figure(9.0).met is None


def test_a_regression_is_one_that_exceeds_the_noise_of_both_runs():
    case, steady, noisy = NTXent(512), [0.02] * 5, [0.02, 0.024, 0.02, 0.016, 0.02]
    before = baseline_of(figures(case, result([0.01] * 5, steady)))
    assert regressions(figures(case, result([0.01] * 5, steady)), before) == []
    assert len(regressions(figures(case, result([0.011] * 5, steady)), before)) == 2         # default and best
    assert regressions(figures(case, result([0.011] * 5, noisy)), before) == []
    assert regressions(figures(case, result([0.005] * 5, steady)), before) == []           # quicker is fine


def test_without_a_peer_the_machine_is_what_a_regression_is_measured_by():
    case = NTXent(512)
    before = baseline_of(figures(case, result([0.01] * 5, [0.02] * 5)))
    message, = regressions(figures(case, result([0.012] * 5)), before)
    assert message.startswith("floor")


def test_check_names_what_became_slower_and_fails(capsys):
    case = NTXent(512)
    before = {case.name: baseline_of(figures(case, result([0.01] * 5, [0.02] * 5)))}
    assert check({case.name: figures(case, result([0.01] * 5, [0.02] * 5))}, before) == 0
    assert check({case.name: figures(case, result([0.03] * 5, [0.02] * 5)), "new": {}}, before) == 1
    printed = capsys.readouterr().out
    assert "slower: NT-Xent 2N=512, default: 1.50, was 0.50: +200%" in printed and "not in the baseline" in printed


# ---------------------------------------------------------------- a run, and its page

def test_a_case_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.0)                            # other tests may run beside this one
    worker = Worker(Candidate("minicl"), "numpy", threads=1, precision="float32")
    measured = harness.measure(CASES["tape, 1000 tiny ops"], [worker], rounds=2, block=0.01)
    worker.close()
    assert len(measured["rounds"]["minicl"]) == 2 and all(t > 0 for t in measured["rounds"]["minicl"])
    assert measured["errors"] == {} and all(rate > 0 for rate in measured["rates"].values())


def test_a_case_that_fails_is_reported_and_the_process_goes_on():
    worker = Worker(Candidate("minicl"), "numpy", threads=1, precision="float32")
    answer = worker.ask(case="no such case")
    assert "error" in answer and worker.ask(case="no such case") == answer
    worker.close()


def test_the_page_shows_ratios_targets_and_that_no_gpu_has_been_measured():
    measured = {**result([0.01] * 5, [0.02] * 5), "disturbed": 0.5}
    record = {"command": "python run.py", "rounds": 5, "threads": 2, "kept": {"MALLOC": "1"},
              "machine": [("processor", "abacus")], "cases": {"NT-Xent 2N=512": measured}}
    page = document(record, launches={"MoCo": (325, 0)})
    assert "| NT-Xent 2N=512 † | 10.0 (10.0–10.0) |" in page and "0.50 ± 0.00 ✓ ≤ 0.7" in page
    assert "processor: abacus" in page and "| MoCo | 325 | 0 |" in page and "2 of 2 targets are met" in page
    assert "No time has been measured" in page
    assert "No time has been measured" not in document(record, gpu=record)
