"""Count the operations of training steps with CuPy on the emulated GPU: python tests/host_cuda [METHOD ...]

For each method of training_steps.py it prints the operations that a step hands to the device, how often the host
waits, and the time of the host while the device computes nothing. If the step can be captured as a CUDA graph, it also
prints the operations and the time of the captured step. For each METHOD given it also lists the kernels.
"""

import collections
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("tests", ".", "examples")]

from host_cuda import boot, device  # noqa: E402
from training_steps import STEPS  # noqa: E402

from minicl import capture  # noqa: E402

COLUMNS = ("| training step | kernels | products | copies | all | waits | host ms | captured: all | host ms |\n"
           "|---|--:|--:|--:|--:|--:|--:|--:|--:|")


def host_ms(step, repeats=15):
    """The median host time of a step in ms, while the device computes nothing."""
    times = []
    with device.not_computing():
        for _ in range(repeats):
            start = time.process_time()
            step()
            times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def captured(xp, step):
    """(number of operations, host_ms()) of a captured step, or empty texts if it cannot be captured."""
    on = capture(xp)(step.on)
    inputs = step.draw()
    for _ in range(4):
        on(*inputs, 1e-3)
    with device.recorded() as operations:
        on(*inputs, 1e-3)
    return ("", "") if on.graph is None else (len(operations), f"{host_ms(lambda: on(*inputs, 1e-3)):.1f}")


def main(named):
    xp = boot.load()
    xp.cuda.set_allocator(xp.get_default_memory_pool().malloc)
    print(COLUMNS)
    for method, set_up in STEPS.items():
        if named and method not in named:
            continue
        step = set_up(xp)
        step(), step()                                       # compiles, and fills MoCo's queue
        with device.recorded() as operations:
            found = device.counted(step)
        copies = found["device_copies"] + found["to_device"]
        graphs, graphs_ms = captured(xp, step)
        print(f"| {method} | {found['launches']} | {found['products']} | {copies} | {len(operations)} | "
              f"{found['synchronisations']} | {host_ms(step):.1f} | {graphs} | {graphs_ms} |", flush=True)
        if named:
            names = collections.Counter(" ".join(map(str, operation[:2])) for operation in operations)
            print(*(f"{count:6} {name}" for name, count in names.most_common()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
