"""Measure candidates side by side: A B C, C B A, A B C ..., each in its own process while the others wait.

The speed of a shared machine changes by a third, for seconds or minutes, so times of separate runs cannot be compared:
blocks of a few steps alternate, and two candidates are compared round by round. Rounds lie minutes apart, and each starts
fresh processes, since a process draws its layout of memory at random. A block during which other processes
used the machine is measured again, REPEATS times in all. The machine's own rates are measured before each case.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from minicl.run import RunError

RESTS = 0.05          # seconds between two candidates, repeated while threads still spin or other processes are busy
PATIENCE = 3.0        # seconds per case and round spent on waiting for other processes, and on disturbed blocks
FOREIGN = 0.06        # share of the machine's time that others may use during a block
REPEATS = 3           # measurements of a block until one is undisturbed; the last one counts
LONG = 0.3            # seconds: a step this long needs no untimed step before it
BLOCKS = 3            # of a candidate in a round; one of longer steps


class Worker:
    """The process of one candidate, which runs worker.py."""

    def __init__(self, candidate, backend, threads, precision, script="worker.py", environment=None):
        self.label = candidate.label
        command = [sys.executable, str(Path(__file__).with_name(script)), candidate.library, backend,
                   json.dumps(candidate.options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=candidate.environment(threads, precision) | (environment or {}))
        started = self.answer()
        if "error" in started:
            raise RunError(f"{self.label}: its process did not start; see above")

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def close(self):
        self.process.communicate()                                           # the process ends at the end of its input


def measure(case, workers, *, block, gpu=False):
    """One round of a case: the result of time_all() with the median of each worker's blocks, and "rates": {"flops": per
    second, ...}, the machine's, measured by the first worker."""
    rates = workers[0].ask(rates=True)
    result = time_all(case, workers, blocks=BLOCKS, block=block, gpu=gpu, long=LONG)
    medians = {label: [statistics.median(seconds)] for label, seconds in result["rounds"].items()}
    return {**result, "rounds": medians, "rates": rates}


def join(results):
    """One result of those of several rounds: all times, the median peak, the best rates, and the mean share of disturbed
    blocks. A candidate that failed in one round is left out."""
    errors = {label: message for result in results for label, message in result["errors"].items()}
    first = results[0]
    labels = [label for label in first["rounds"] if label not in errors]

    def each(kind, label):
        return [result[kind][label] for result in results]

    peaks = {label: each("peak", label) for label in labels}
    return {"rounds": {label: sum(each("rounds", label), []) for label in labels},
            "peak": {label: None if None in peak else statistics.median(peak) for label, peak in peaks.items()},
            "launches": first["launches"], "errors": errors,
            "disturbed": statistics.mean(result["disturbed"] for result in results),
            "rates": {kind: max(each("rates", kind)) for kind in first["rates"]}}


def time_all(case, workers, *, blocks, block, gpu=False, starts=1, long=math.inf, slow=math.inf):
    """Time a case on all workers.

    blocks  measurements of each worker; block: seconds that one takes, at least one step
    starts  processes of each worker, whose median peak counts
    long    seconds: a longer step is measured in one block
    slow    seconds: a longer step is measured once, after another that maps its memory
    ->      {"rounds": {label: [seconds per step, one per block]}, "peak": {label: MiB}, "launches": {label: kernels per
             step}, "errors": {label: message}, "disturbed": share of blocks}
    """
    peak, errors, plans, counts, once = {}, {}, {}, {}, {}
    for worker in workers:
        answer = _start(worker, starts, case=case.name, slow=min(slow, 1e9))
        if "error" in answer:
            errors[worker.label] = answer["error"]
            continue
        peak[worker.label] = answer["peak"]
        if answer["seconds"] > slow:
            once[worker.label] = [answer["seconds"]]
            worker.ask(end=True)                                             # frees its memory
            continue
        burst = max(1, math.ceil((0.05 if gpu else 0.001) / answer["seconds"]))    # steps between readings of the clock
        plans[worker.label] = {"burst": burst, "bursts": max(1, round(block / (burst * answer["seconds"]))),
                               "wake": answer["seconds"] < LONG}
        counts[worker.label] = 1 if answer["seconds"] > long else blocks
    running = [worker for worker in workers if worker.label in plans]
    seconds = {worker.label: [] for worker in running}
    disturbed = 0
    quiet = Quiet()
    for k in range(blocks):
        for worker in running[::1 if k % 2 == 0 else -1]:
            if k >= counts[worker.label]:
                continue
            answer, foreign = quiet.ask(worker, plans[worker.label])
            if "error" in answer:
                raise RunError(f"{case.name}, {worker.label}: {answer['error']}")
            seconds[worker.label].append(statistics.median(answer["seconds"]))
            disturbed += foreign > FOREIGN
    launches = {worker.label: worker.ask(end=True).get("launches") for worker in running}
    return {"rounds": {**seconds, **once}, "peak": peak, "launches": launches, "errors": errors,
            "disturbed": disturbed / max(1, sum(counts.values()))}


def _start(worker, times, **request):
    """The worker's answer to `request`, with the median of the peaks of several processes, the last of which stays. Whether
    an array fits into a gap of the process's memory depends on chance, in either library. A long step starts once."""
    answer = worker.ask(**request)
    peaks = [answer.get("peak")]
    while None not in peaks and len(peaks) < times and answer["seconds"] < LONG:
        worker.ask(end=True)
        answer = worker.ask(**request)
        peaks.append(answer.get("peak"))
    return answer if None in peaks else {**answer, "peak": statistics.median(peaks)}


class Quiet:
    """Sends requests while no other process uses the machine, within PATIENCE seconds of waiting."""

    def __init__(self):
        self.patience = PATIENCE

    def ask(self, worker, plan):
        """(the worker's answer, the share of the machine's processors that other processes used meanwhile)."""
        for _ in range(REPEATS):
            self.wait()
            start = time.perf_counter()
            answer, foreign = _watched(lambda: worker.ask(**plan))
            if foreign <= FOREIGN or self.patience <= 0:
                break
            self.patience -= time.perf_counter() - start
        return answer, foreign

    def wait(self):
        start = time.perf_counter()
        while True:
            _, others = _watched(lambda: time.sleep(RESTS))
            if others <= FOREIGN or self.patience < time.perf_counter() - start:
                break
        self.patience -= time.perf_counter() - start - RESTS


def _watched(action):
    """(action()'s result, the share of all processors used meanwhile beyond the seconds in its "used")."""
    start = time.perf_counter()
    before = _busy_seconds()
    answer = action()
    if before is None:
        return answer, 0.0
    used = answer.get("used", 0.0) if answer else 0.0
    foreign = _busy_seconds() - before - used - 0.01                         # the clock ticks every 10 ms
    return answer, foreign / ((time.perf_counter() - start) * os.cpu_count())


def _busy_seconds():
    """CPU seconds used by all processes since the machine started (Linux), else None."""
    try:
        cpu = Path("/proc/stat").read_text().splitlines()[0]
        user, nice, system, _, _, irq, softirq, steal = map(int, cpu.split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
