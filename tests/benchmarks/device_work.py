"""What a step hands to a GPU, counted by CUDA's profiler, which PyTorch brings along; on the emulated GPU by its own counts."""

import contextlib
from typing import NamedTuple

from host_cuda import device


class DeviceWork(NamedTuple):
    """Of one step: kernels and products, times that the host waited, and milliseconds of the kernels; None if unknown."""

    launches: float | None = None
    waits: float | None = None
    kernel_ms: float | None = None


def device_work(step, wait):
    """The DeviceWork of step(); unknown without PyTorch, without CUDA in it, or without CUPTI. wait() waits for the GPU."""
    if device.is_there():
        found = device.counted(step)
        return DeviceWork(found["launches"] + found["products"], found["synchronisations"])
    with contextlib.suppress(Exception):
        once, often = (_profiled(step, wait, repeats) for repeats in (1, 5))
        if often[0]:
            return DeviceWork(*((b - a) / 4 for a, b in zip(once, often)))       # without what the profiler itself adds
    return DeviceWork()


def _profiled(step, wait, repeats):
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            step()
        wait()
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.key.startswith("Mem")]
    waits = [event for event in events if event.device_type == DeviceType.CPU and "Synchronize" in event.key]
    return (sum(event.count for event in kernels), sum(event.count for event in waits),
            1e-3 * sum(event.device_time_total for event in kernels))
