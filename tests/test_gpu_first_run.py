"""The first run on a GPU keeps to its time, reports failures, and completes on the emulated GPU."""

import enum
import itertools
import os
import re
import sys
import types
from collections import Counter

import gpu_first_run
import pytest
from benchmarks.cases import CASES
from benchmarks.device_work import DeviceWork, device_work
from host_cuda import build, device

from minicl import get_backend


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
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="(?i)cupy|no card"):
        getattr(gpu_first_run, part)(first, 60)
    assert not any("cut short" in line for line in first.lines)
    assert os.environ == before                                          # or the next tests' processes would load CuPy


@pytest.mark.parametrize("options", [["--minutes", "nan"], ["--minutes", "0"], ["--minutes=-1"], ["--minutes", "inf"],
                                     ["--out", __file__], ["--out", f"{__file__}/x"]])
def test_invalid_options_give_one_line(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_first_run, "PARTS", [])
    with pytest.raises(SystemExit) as end:
        gpu_first_run.main(["--out", str(tmp_path), *options])
    assert end.value.code == 2 and f"error: argument {options[0].split('=')[0]}: expected" in capsys.readouterr().err.splitlines()[-1]


def test_an_emulation_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, capsys):
    def fails():
        raise build.Unavailable("the emulated GPU needs g++ to be compiled")

    monkeypatch.setattr(build, "build", fails)
    with pytest.raises(SystemExit) as end:
        gpu_first_run.main(["--out", str(tmp_path), "--emulated"])
    assert end.value.code == 2 and "error: argument --emulated: the emulated GPU needs g++" in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- beside PyTorch

class Answers:
    """A worker whose steps take the seconds of a list, one after the other."""

    def __init__(self, label, seconds, peak=3.0, order=()):
        self.label, self.seconds, self.peak, self.order = label, itertools.cycle(seconds), peak, order

    def ask(self, **request):
        if "case" in request:
            return {"seconds": 1.0, "peak": self.peak} if self.peak else {"error": "out of memory"}
        if "bursts" in request:
            self.order.append(self.label)
            return {"seconds": [next(self.seconds)]}
        return {"launches": None}


RATES = {"flops": 1e12, "bytes": 1e12, "exps": 1e12}


def test_a_row_compares_the_medians_of_alternating_rounds(first):
    order = []
    workers = [Answers("minicl", [0.002, 0.002, 0.5], order=order), Answers("torch", [0.004, 0.004, 0.001], 6.0, order)]
    row = gpu_first_run._row(first, CASES["NT-Xent 2N=4096"], "float32", workers, RATES, float("inf"))
    shares = f"{4 * 4096**2 * 128 / 1e12 / 0.002:.0%} of flops, {4096**2 / 1e12 / 0.002:.0%} of exps"
    assert row == f"| NT-Xent 2N=4096 | 2.000 | 4.000 | 0.500 | 3 | 6 | {shares} |"
    assert order == ["minicl", "torch", "torch", "minicl"] * 2 + ["minicl", "torch"] and not first.failed


def test_a_row_gives_the_error_of_the_one_that_failed(first):
    case = CASES["MoCo's loss, batch 256, K=65536"]
    row = gpu_first_run._row(first, case, "float32", [Answers("minicl", [1.0], order=[]), Answers("torch", [1.0], None)], RATES, float("inf"))
    assert "| 1000.000 |  |  | 3 |  | " in row and not first.failed
    row = gpu_first_run._row(first, case, "float32", [Answers("minicl", [1.0], None), Answers("torch", [1.0], order=[])], RATES, float("inf"))
    assert row.endswith("|  | 1000.000 |  |  | 3 | minicl: out of memory |") and first.failed == [case.name]


def test_shares_of_a_step_are_of_the_arithmetic_and_the_traffic_of_its_network():
    shares = gpu_first_run._shares(CASES["SimCLR step, resnet18, batch 512"], "float32", {"flops": 67e12, "bytes": 3.35e12}, 0.1)
    flops, traffic = map(int, re.fullmatch(r"(\d+)% of flops, (\d+)% of bytes", shares).groups())
    assert 45 < flops < 55 and 25 < traffic < 60                             # ms: 3.4e12 products; what precision.py prints
    assert re.fullmatch(r"\d+% of flops, \d+% of bytes", gpu_first_run._shares(CASES["SimCLR step, convnet, batch 256"], "bf16", RATES, 1.0))


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records products")
def test_the_arithmetic_of_a_network_is_that_of_its_products():
    case = CASES["SimCLR step, resnet18, batch 512"].tiny()
    step = case.minicl(get_backend("cupy"))
    with device.recorded() as operations:
        step()
    counted = sum(2 * m * n * k * count for kind, m, n, k, count in (o for o in operations if o[0] == "product"))
    shares = gpu_first_run._shares(case, "float32", {"flops": counted, "bytes": float("inf")}, 0.01)
    assert re.fullmatch("99[0-9][0-9]% of flops", shares)                    # all but the projection head's


@pytest.mark.parametrize("profiles", [True, False])
def test_what_a_step_hands_to_the_gpu_is_counted_without_what_the_profiler_adds(profiles, monkeypatch):
    kinds = enum.Enum("DeviceType", "CPU CUDA")
    events = []

    class profile:
        def __init__(self, activities):
            events[:] = [("cudaDeviceSynchronize", kinds.CPU, 0)] * 2

        __enter__ = lambda self: self                                        # noqa: E731
        __exit__ = lambda self, *error: None                                 # noqa: E731

        def key_averages(self):
            return [types.SimpleNamespace(key=key, device_type=kind, count=1, device_time_total=us) for key, kind, us in events]

    def step():
        events.extend([("cupy_add", kinds.CUDA, 500), ("gemm", kinds.CUDA, 1500), ("Memcpy HtoD (Pageable -> Device)", kinds.CUDA, 70),
                       ("cudaStreamSynchronize", kinds.CPU, 0), ("cudaLaunchKernel", kinds.CPU, 0)])

    activities = types.SimpleNamespace(CPU=0, CUDA=1)
    monkeypatch.setattr(device, "is_there", lambda: not profiles)
    monkeypatch.setattr(device, "counted", lambda step: {"launches": 3, "products": 2, "synchronisations": 1})
    for name, module in {"torch": {}, "torch.autograd": {"DeviceType": kinds},
                         "torch.profiler": {"ProfilerActivity": activities, "profile": profile}}.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**module))
    assert device_work(step, lambda: None) == (DeviceWork(2, 1, 2.0) if profiles else DeviceWork(5, 1))
    monkeypatch.setitem(sys.modules, "torch.profiler", None)
    monkeypatch.setattr(device, "is_there", lambda: False)
    assert device_work(step, lambda: None) == DeviceWork()


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="needs --backend cupy-host")
def test_the_first_run_completes_on_the_emulated_gpu(tmp_path):
    assert gpu_first_run.main(["--minutes", "20", "--emulated", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "device: emulated H100" in report and " passed in " in report and '"probe_h": ' in report
    assert "failed:" not in report and "cut short" not in report
    assert [report.count(text) for text in ("| SimCLR | ", "| CPC | ", "| case, bf16 | ", "knn_h")] == [1, 1, 1, 2]
    rows = re.findall(r"^\| (.*?, batch .*?|NT-Xent.*?) \| \d+\.\d{3} \|  \|  \| \d+ \|  \| \d+% of (?:flops|exps), .*\|$", report, re.M)
    assert Counter(rows) == Counter([*gpu_first_run.COMPARED, *gpu_first_run.ROUNDED * 2])
    assert len(re.findall(r"The card: [\d.e-]+ TFLOP/s in (float32|bf16|tf32) products, [\d.e-]+ GB/s", report)) == 3
    steps = re.findall(r"\| SimCLR \| (\d+) \| 0 \|  (?:\| \d+\.\d\d ){4}\|", report)      # computed, and captured
    assert len(steps) == 1 and 50 < int(steps[0]) < 120
