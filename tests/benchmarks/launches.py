"""What a training step asks of a GPU, counted where there is none: on the tests' strict stand-in for CuPy."""

import sys
from pathlib import Path

from minicl import get_backend


def launches_per_step():
    """{method: (kernels, products and copies launched, times the host waited)} of one training step of each method."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))      # of their data
    from cupy_dialect import strict
    from training_steps import STEPS

    strict.install()
    xp = get_backend("cupy")
    counts = {}
    for method, set_up in STEPS.items():
        step = set_up(xp)
        step()                                                               # MoCo's queue is empty at first
        before = strict.launches(), strict.synchronisations()
        step()
        counts[method] = strict.launches() - before[0], strict.synchronisations() - before[1]
    return counts
