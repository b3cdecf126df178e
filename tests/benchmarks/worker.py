"""The process of a candidate: `python worker.py minicl numpy '{}'` imports its library and forks a child for each case.

Thus every case runs in its own process, with fresh memory, without other threads and without a second import. Requests
and answers are lines of JSON on stdin and stdout. harness.Worker is the other end.
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

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes: end silently
sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])               # for the packages benchmarks and minicl

from benchmarks.case import Peer  # noqa: E402
from benchmarks.cases import ALL  # noqa: E402
from benchmarks.device_work import device_work  # noqa: E402
from benchmarks.machine import rates  # noqa: E402
from minicl import get_backend  # noqa: E402
from minicl.backend import threads  # noqa: E402

COMPILE_SECONDS = 180
VERY_LONG = 1.0             # seconds: a step this long is warmed up by a single one


def main():
    library = sys.argv[1]
    backend = sys.argv[2]
    options = json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the libraries' output out of the answers
    if library == "torch":
        import torch  # noqa: F401  once, before any fork
        if options.get("compiled") and backend == "numpy":
            import torch._inductor.compile_fx  # noqa: F401  takes as long again

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    answer(ready=True)
    while line := sys.stdin.readline():                                      # one answer per request
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            serve(request, answer, library, backend, options)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            answer(error=f"ended by signal {status & 127}" if status & 127 else f"exit status {status >> 8}")


def serve(request, answer, library, backend, options):
    """Set up one case and time it as often as asked, or measure the machine."""
    try:
        with contextlib.ExitStack() as stack:
            device = Device(library, backend, options)
            if request.get("rates"):
                return answer(**rates(device.xp, device.wait, bool(request.get("tiny"))))
            device.enter(stack)
            case = ALL[request["case"]]
            case = case.tiny() if request.get("tiny") else case
            compiled = bool(options.get("compiled"))
            if not compiled:  # another shape would be compiled separately
                warm_up(device.set_up(case.tiny()))                          # loads what is loaded lazily
            step = device.set_up(case)
            device.clear_peak()
            signal.signal(signal.SIGALRM, _give_up)
            signal.alarm(COMPILE_SECONDS * compiled)
            for k in range(3):
                seconds = block(step, device, bursts=1, burst=1)["seconds"][0]
                slow = seconds > request.get("slow", math.inf)
                if k >= (1 if slow else compiled) and (slow or seconds > VERY_LONG):     # the first compiles, or maps memory
                    break
            signal.alarm(0)
            answer(seconds=seconds, peak=None if compiled else device.peak())
            while "bursts" in (request := json.loads(sys.stdin.readline())):
                answer(**block(step, device, **request))
            answer(launches=device_work(step, device.wait).launches if device.gpu else None)
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
    """{"seconds": [seconds per step, measured `bursts` times over `burst` steps], "used": CPU seconds of all of it}.

    wake: whether to begin with an untimed step, for sleeping threads and for caches that another process has filled.
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
    """The place where a library computes: sets up a case, waits for it, and measures its memory."""

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
        """Apply the settings that a user would train with. PyTorch's way to bf16 is autocast, which also rounds
        activations and the products of losses. Its cache of weights is for blocks of one step, so it is off."""
        if self.library == "torch":
            self.xp.set_num_threads(int(os.environ["MINICL_THREADS"]))
            self.xp.backends.cuda.matmul.allow_tf32 = self.xp.backends.cudnn.allow_tf32 = self.precision == "tf32"
            if self.precision == "bf16":
                stack.enter_context(self.xp.autocast("cuda", self.xp.bfloat16, cache_enabled=False))
        else:
            stack.enter_context(threads(**self.options))

    def clear_peak(self):
        self.wait()
        if not self.gpu:
            with contextlib.suppress(OSError, AttributeError):               # needs Linux and glibc
                ctypes.CDLL(None).malloc_trim(0)                             # gives back what the set-up has freed
                Path("/proc/self/clear_refs").write_text("5")
        elif self.library == "minicl":
            self.xp.get_default_memory_pool().free_all_blocks()
        else:
            self.xp.cuda.empty_cache()
            self.xp.cuda.reset_peak_memory_stats()
        self.before = self._bytes("VmRSS")

    def peak(self):
        """MiB taken since clear_peak() beyond what was held then; None where the system does not report it."""
        after = self._bytes("VmHWM")
        return None if after is None else max(0.0, (after - self.before) / 2**20)

    def _bytes(self, field):
        if not self.gpu:
            with contextlib.suppress(OSError):
                lines = Path("/proc/self/status").read_text().splitlines()
                return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(field))
            return None
        free, total = self.xp.cuda.runtime.memGetInfo() if self.library == "minicl" else self.xp.cuda.mem_get_info()
        return total - free  # neither library's pool gives memory back; includes the workspaces of products


if __name__ == "__main__":
    main()
