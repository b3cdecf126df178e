"""Count what training steps ask of the GPU, on CuPy itself over the emulated one: python tests/host_cuda [METHOD ...]

Prints for each method of training_steps.py the operations that a step hands to the device, how often it waits, and the
time that the host takes for it while the device computes nothing; and where the step can be captured as a CUDA graph, the
operations and the time that are left. A method that is named is also listed kernel by kernel.
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
    """The median time of a step of which the device does nothing."""
    times = []
    with device.not_computing():
        for _ in range(repeats):
            start = time.process_time()
            step()
            times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def captured(xp, step):
    """How many operations a captured step hands to the device, and its host_ms(); empty if it cannot be captured."""
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
