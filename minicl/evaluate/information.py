"""What an InfoNCE loss says about information, and where it stops saying anything.

For an anchor that picks its positive from among K candidates, drawn independently, I(anchor; positive) >= log K - L
(van den Oord et al. 2018, eq. 5). L >= 0, so the bound never exceeds log K, whatever the true information: near
that cap it tells nothing about what lies above it. For NT-Xent, where K = 2N - 1 and the other views of the
other images are candidates too, log K - L is the same measure of how far the loss is below chance, but not
strictly a bound.
"""

import math
from typing import NamedTuple

SATURATION = 0.95


class Bound(NamedTuple):
    """nats: log K - loss;  cap: log K, in nats;  saturated: whether nats is above 95 % of the cap."""
    nats: float
    cap: float
    saturated: bool

    @property
    def bits(self):
        return self.nats / math.log(2)


def infonce_bound(loss, candidates):
    """log K - loss for a mean InfoNCE loss in nats over K candidates (1 positive and K - 1 negatives) -> Bound."""
    if candidates < 2:
        raise ValueError(f"infonce_bound: expected at least 2 candidates, got {candidates}")
    cap = math.log(candidates)
    return Bound(cap - loss, cap, cap - loss > SATURATION * cap)
