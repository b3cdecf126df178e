"""The bound of an InfoNCE loss on mutual information, and its limits.

For an anchor x that picks its positive y among K candidates, the other K - 1 drawn independently,

    I(x; y) >= log K - L                                     (van den Oord et al. 2018, eq. 5)

for every critic, that is, every way to score a pair. L >= 0, so the bound never exceeds log K and is uninformative near
that cap. Even the best critic, the log density ratio, leaves a gap.

NT-Xent's log(2N-1) - L is not such a bound: its candidates include both views of every other image, which are not
independent, and it can exceed I. It measures how far the loss is below chance, in nats; its cap is log(2N-1).
Derivation and tables: docs/methods/information.md. Examples with known information: examples/known_information.py
"""

import math
from typing import NamedTuple

from ..checks import require_integers, require_within

SATURATION = 0.95


class Bound(NamedTuple):
    """nats: log K - loss;  cap: log K, in nats;  saturated: whether nats is above 95 % of the cap."""
    nats: float
    cap: float
    saturated: bool

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def cap_bits(self) -> float:
        return self.cap / math.log(2)


def infonce_bound(loss: float, candidates: int) -> Bound:
    """log K - loss for a mean InfoNCE loss >= 0 in nats over K candidates (1 positive and K - 1 negatives) -> Bound.

    For NT-Xent over N images K is 2N - 1, and the result is not a bound, only the distance from chance.

    >>> infonce_bound(loss=0.5, candidates=256)
    Bound(nats=5.045177444479562, cap=5.545177444479562, saturated=False)
    """
    require_within("infonce_bound", "[-1e-3, inf)", loss=loss)               # rounding may take it below 0
    require_integers("infonce_bound", 2, 2**53, candidates=candidates)
    cap = math.log(candidates)
    nats = cap - max(float(loss), 0.0)
    return Bound(nats, cap, nats > SATURATION * cap)
