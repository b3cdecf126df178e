"""A candidate's process: `python worker.py minicl numpy '{}'` imports its library, then forks a child for each case.

So every case has a process of its own, with fresh memory and no threads of others, and no second import. Requests and
answers are lines of JSON on stdin and stdout. harness.Worker is the other end.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)                                 # Ctrl-C reaches all: end without a word
sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])               # for benchmarks and for minicl

from benchmarks.case import Peer  # noqa: E402
from benchmarks.cases import ALL  # noqa: E402
from benchmarks.machine import rates  # noqa: E402
from minicl import get_backend  # noqa: E402
from minicl.backend import threads  # noqa: E402

COMPILE_SECONDS = 180


def main():
    library = sys.argv[1]
    backend = sys.argv[2]
    options = json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                                            # what libraries print is no answer
    if library == "torch":
        import torch  # noqa: F401  once, before any fork

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    answer(ready=True)
    while line := sys.stdin.readline():                                      # one request, one answer
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            serve(request, answer, library, backend, options)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            answer(error=f"ended by signal {status & 127}" if status & 127 else f"exit status {status >> 8}")


def serve(request, answer, library, backend, options):
    """Set up one case, then time it as often as asked; or measure the machine."""
    try:
        with contextlib.ExitStack() as stack:
            device = Device(library, backend, options)
            if request.get("rates"):
                return answer(**rates(device.xp, device.wait))
            device.enter(stack)
            case = ALL[request["case"]]
            case = case.tiny() if request.get("tiny") else case
            compiled = bool(options.get("compiled"))
            if not compiled:                                                 # other shapes would be compiled apart
                warm_up(device.set_up(case.tiny()))                          # loads what is loaded lazily
            step = device.set_up(case)
            device.clear_peak()
            signal.signal(signal.SIGALRM, _give_up)
            signal.alarm(COMPILE_SECONDS * compiled)
            for _ in range(3):
                seconds = block(step, device, bursts=1, burst=1)["seconds"][0]
                if seconds > request.get("slow", math.inf):
                    break
            signal.alarm(0)
            answer(seconds=seconds, peak=None if compiled else device.peak())
            while "bursts" in (request := json.loads(sys.stdin.readline())):
                answer(**block(step, device, **request))
            answer(launches=device.launches(step))
    except Exception as error:
        if os.environ.get("BENCHMARK_TRACEBACK"):
            traceback.print_exc()
        answer(error=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def warm_up(step):
    for _ in range(2):
        step()


def _give_up(*_):
    raise TimeoutError(f"torch.compile took more than {COMPILE_SECONDS} s")


def block(step, device, bursts, burst, wake=False):
    """Seconds a step, measured `bursts` times over `burst` steps, and the processor time that all this took.

    wake: whether to begin with an untimed step, for threads that sleep and caches that another process has filled.
    """
    used = sum(os.times()[:4])
    seconds = []
    if wake:
        step()
    device.wait()
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(burst):
            step()
        device.wait()
        seconds.append((time.perf_counter() - start) / burst)
    return {"seconds": seconds, "used": sum(os.times()[:4]) - used}


class Device:
    """Where a library computes: how to set a case up there, wait for it, and measure its memory."""

    def __init__(self, library, backend, options):
        self.library = library
        self.gpu = backend == "cupy"
        self.options = options
        self.precision = os.environ.get("BENCHMARK_PRECISION")
        if library == "minicl":
            self.xp = xp = get_backend(backend, self.precision)
            self.set_up = lambda case: case.minicl(xp)
            self.wait = xp.cuda.get_current_stream().synchronize if self.gpu else lambda: None
        else:
            import torch
            self.xp = torch
            peer = Peer(torch, "cuda" if self.gpu else "cpu", **options)
            self.set_up = lambda case: case.torch(peer)
            self.wait = torch.cuda.synchronize if self.gpu else lambda: None

    def enter(self, stack):
        """The settings that a user would train with. PyTorch's way to bf16 is autocast, which rounds activations too, and the
        products of losses; without its cache of weights, which is for a block that holds one step."""
        if self.library == "torch":
            self.xp.set_num_threads(int(os.environ["MINICL_THREADS"]))
            self.xp.backends.cuda.matmul.allow_tf32 = self.xp.backends.cudnn.allow_tf32 = self.precision == "tf32"
            if self.precision == "bf16":
                stack.enter_context(self.xp.autocast("cuda", self.xp.bfloat16, cache_enabled=False))
        else:
            stack.enter_context(threads(**self.options))

    def launches(self, step):
        """Kernels a step launches on a GPU, CuPy's as well, by PyTorch's profiler; None where that is not there."""
        if not self.gpu:
            return None
        try:
            from torch.autograd import DeviceType
            from torch.profiler import ProfilerActivity, profile
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                step()
                self.wait()
        except Exception:                                                    # no PyTorch, none with CUDA, or no CUPTI
            return None
        return sum(event.count for event in profiler.key_averages()
                   if event.device_type == DeviceType.CUDA and not event.key.startswith("Mem")) or None

    def clear_peak(self):
        self.wait()
        if not self.gpu:
            with contextlib.suppress(OSError, AttributeError):               # Linux and glibc
                ctypes.CDLL(None).malloc_trim(0)                             # what setting up has freed is given back
                Path("/proc/self/clear_refs").write_text("5")
        elif self.library == "minicl":
            self.xp.get_default_memory_pool().free_all_blocks()
        else:
            self.xp.cuda.empty_cache()
            self.xp.cuda.reset_peak_memory_stats()
        self.before = self._bytes("VmRSS")

    def peak(self):
        """MiB that were taken since clear_peak(), beyond what was held then; None where the system does not tell."""
        after = self._bytes("VmHWM")
        return None if after is None else max(0.0, (after - self.before) / 2**20)

    def _bytes(self, field):
        if not self.gpu:
            with contextlib.suppress(OSError):
                lines = Path("/proc/self/status").read_text().splitlines()
                return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(field))
            return None
        free, total = self.xp.cuda.runtime.memGetInfo() if self.library == "minicl" else self.xp.cuda.mem_get_info()
        return total - free                      # neither library's pool gives any back: the workspaces of products too


if __name__ == "__main__":
    main()
