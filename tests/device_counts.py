"""Count kernel launches and synchronisations, on the stand-in for CuPy or on CuPy over the emulated GPU.

    @counted                              marks a test that counts; skipped where no backend counts
    launches(action), waits(action)
"""

import pytest
from cupy_dialect import strict
from host_cuda import device

counted = pytest.mark.skipif("config.getoption('--backend') not in ('stand-in', 'cupy-host')",
                             reason="only the stand-in for CuPy and the emulated GPU count launches and synchronisations")


def launches(action):
    """The number of kernels, products and copies that action() hands to the device."""
    return _difference(action, strict.launches, device.submissions)


def waits(action):
    """The number of times action() waits for the device."""
    return _difference(action, strict.synchronisations, device.synchronisations)


def _difference(action, *counters):
    count = counters[device.is_there()]
    before = count()
    action()
    return count() - before
