"""Count the work that a training step launches on a GPU, on the tests' strict stand-in for CuPy."""

import sys
from pathlib import Path

from minicl import get_backend


def launches_per_step():
    """{method: (kernels, products and copies launched, times that the host waited)} of one training step per method."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))      # for the examples' data
    from cupy_dialect import strict
    from training_steps import STEPS

    strict.install()
    xp = get_backend("cupy")
    counts = {}
    for method, set_up in STEPS.items():
        step = set_up(xp)
        step()  # fills MoCo's queue, which is empty at first
        before = strict.launches(), strict.synchronisations()
        step()
        counts[method] = strict.launches() - before[0], strict.synchronisations() - before[1]
    return counts
