"""The scaling page: its curves run, its fits find the exponents, and sizes that take too much time or memory are left
out."""

import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks import harness, processes, scaling
from benchmarks.curves import CURVES, LOSSES, Loss
from benchmarks.scaling import ALL, ONE, PEER

from minicl.run import RunError

PAGE = Path(__file__).resolve().parents[1] / "docs/scaling.md"
OTHERS = [curve.cases[256] for curve in LOSSES if isinstance(curve.cases[256], Loss)]


def result(**times):
    """The record of one size, made from label=(seconds, MiB)."""
    return {"rounds": {label: [seconds] for label, (seconds, _) in times.items()},
            "peak": {label: memory for label, (_, memory) in times.items()}, "disturbed": 0.0, "errors": {}}


def squares(last=16384, peer=4096):
    """{size: record} with times that grow as N^2, twice as long with one thread. The memory of minicl grows as N, that
    of PyTorch as N^2, and PyTorch is measured only up to `peer`."""
    return {str(N): result(**{ALL: (1e-9 * N**2, N / 256), ONE: (2e-9 * N**2, N / 256)},
                           **{PEER: (4e-9 * N**2, 1e-5 * N**2)} if N <= peer else {})
            for N in scaling.SIZES if N <= last}


RECORD = {"command": "python scaling.py --peer torch", "machine": [("processor", "abacus")], "threads": 2, "ram": 2**34,
          "seconds": 20, "rates": {"flops": 1e11, "bytes": 1e10, "exps": 1e9},
          "curves": {"NT-Xent": squares(), "SigLIP": squares(peer=0), "SimCLR step, MLP": squares(last=1024)}}


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.title)
def test_every_loss_without_a_peer_runs(case, xp):
    step = case.tiny().minicl(xp)
    for results in step(), step():
        assert len(results) > 1 and all(np.isfinite(float(abs(x).max())) for x in results)


def test_every_size_is_a_case_that_a_worker_finds():
    from benchmarks.cases import ALL as CASES

    for case in (case for curve in CURVES for case in curve.cases.values()):
        found = CASES[case.name]                             # may be a benchmark, which has a target
        assert type(found) is type(case) and found.tiny().name == case.tiny().name


def test_exponents_and_the_memory_limit_are_those_of_the_power_laws():
    sizes, times, memory = scaling.series(squares(), ALL)
    assert scaling.exponent(sizes, times) == pytest.approx(2) and scaling.exponent(sizes, memory) == pytest.approx(1)
    assert scaling.exponent(sizes[:1], times[:1]) is None
    assert scaling.ends(16384, 64, 1.0, 2**34) == "4,200,000"                # 16384 * 2^34 / 2^26, two digits
    assert scaling.ends(4096, 168, 2.0, 2**34) == "40,000"
    assert scaling.ends(4096, 168, 0.1, 2**34) == "not in sight" and scaling.ends(1e6, 2, 1.0, 2**44) == "beyond 10^9"


def test_sizes_that_take_too_long_or_too_much_memory_are_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "free_memory", lambda: 2**33)
    before = squares()
    assert scaling.may_run({}, ALL, 256, seconds=1, left=100)
    assert scaling.may_run(before, ALL, 65536, seconds=5, left=100)          # 4.3 s
    assert not scaling.may_run(before, ALL, 65536, seconds=4, left=100)
    assert not scaling.may_run(before, ALL, 65536, seconds=5, left=5)
    assert not scaling.may_run(before, PEER, 65536, seconds=1e9, left=1e9)   # it was left out before
    few = squares(last=4096)
    assert scaling.may_run(few, PEER, 16384, seconds=5, left=100)            # 2.7 of 8 GB
    monkeypatch.setattr(scaling, "free_memory", lambda: 2**31)
    assert not scaling.may_run(few, PEER, 16384, seconds=5, left=100)


def test_the_page_has_the_model_and_the_peer():
    page = scaling.document(RECORD)
    assert "| 4,096 | 33.6 | 16.8 | 103 | 0.16 | 67.1 | 0.25 | 16 | 168 |" in page  # 4 N^2 128 / 1e11 + N^2 / 1e9
    assert "| 16,384 | 537 | 268 | 1643 | 0.16 |  |  | 64 |  |" in page
    assert "| NT-Xent | views | 2.00 | 1.00 | 4,200,000 | 2.00 | 2.00 | 40,000 |" in page
    assert "Others, on 2 threads" in page and "| 1,024 | 1.05, 4 MiB |" in page and "CLIP" not in page.split("## Exp")[1]


def test_the_page_ends_with_several_processes_where_they_were_measured():
    rounds = [(0.02, 0.022), (0.02, 0.018), (0.02, 0.021)]
    page = scaling.document({**RECORD, "curves": {}, "processes": {"NT-Xent, 2N = 1024, d = 128": rounds}})
    assert page.endswith("| 1 process, 2 threads, ms | 2 processes, 1 thread, ms | ratio |\n|---|--:|--:|--:|\n"
                         "| NT-Xent, 2N = 1024, d = 128 | 20.0 | 21.0 | 1.05 (0.90–1.10) |\n")
    assert "1 process" not in scaling.document(RECORD)


@pytest.mark.parametrize("most, left, count", [(4096, 1e3, 5), (1e9, 1e3, 7), (1e9, 3.0, 5), (1e9, 0.0, 0)])
def test_processes_leave_out_what_is_too_large_or_too_late(most, left, count, monkeypatch):
    monkeypatch.setattr(processes, "measure", lambda name, *_: 1e-9 * processes.WORK[name][1]**2)
    found = dict(processes.compare(2, 2, most, time.perf_counter() + left))
    assert len(found) == count and all(len(rounds) == 2 for rounds in found.values())
    assert ("NT-Xent, 2N = 65536, d = 128" in found) == (count == 7)


def test_the_page_in_docs_is_from_this_generator():
    if not PAGE.exists():
        pytest.skip("docs/scaling.md does not exist")
    page = PAGE.read_text()
    text = scaling.INTRO.splitlines()
    assert [line for line in text if "{" not in line and line not in page] == []
    assert [curve.title for curve in CURVES if curve.title not in page] == []


def test_an_unknown_part_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(scaling, "Worker", None)
    with pytest.raises(RunError, match="--only nosuch: no such loss or step; there are"):
        scaling.main(["--only", "nosuch"])


def test_a_run_measures_and_prints_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.0)                            # other tests may run beside this one
    scaling.main(["--only", "triplet", "--most", "256", "--json", str(tmp_path / "all.json")])
    printed = capsys.readouterr()
    assert "python tests/benchmarks/scaling.py --only triplet --most 256" in printed.out and "triplet, 256 pairs" in printed.err
    scaling.main(["--read", str(tmp_path / "all.json"), "--table", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == printed.out
