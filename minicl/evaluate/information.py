"""What an InfoNCE loss says about information, and where it stops saying anything.

For an anchor x that picks its positive y from among K candidates, the other K - 1 drawn independently,

    I(x; y) >= log K - L                                     (van den Oord et al. 2018, eq. 5)

for every critic, that is, every way to score a pair. L >= 0, so the bound never exceeds log K: near that cap it
says nothing about what lies above. Nor does the best critic, the log density ratio, make it tight: it makes the
bound as high as K candidates can, which is below I (optimal_bound measures by how much).

NT-Xent's log(2N-1) - L is no such bound. Its candidates include both views of every other image, which are drawn
together, not independently, and it can exceed I: symbol_estimates gives an example by exact sums. What it may be
called is how far the loss lies below chance, in nats; it has the same kind of cap, log(2N-1).
With figures: docs/methods/information.md
"""

import math
from typing import NamedTuple

from ..backend import array_module
from ..contrastive.softmax import log_softmax

SATURATION = 0.95


class Bound(NamedTuple):
    """nats: log K - loss;  cap: log K, in nats;  saturated: whether nats is above 95 % of the cap."""
    nats: float
    cap: float
    saturated: bool

    @property
    def bits(self):
        return self.nats / math.log(2)

    @property
    def cap_bits(self):
        return self.cap / math.log(2)


def infonce_bound(loss, candidates):
    """log K - loss for a mean InfoNCE loss in nats over K candidates (1 positive and K - 1 negatives) -> Bound.

    For NT-Xent over N images K is 2N - 1, and the result is no bound, only the distance from chance.
    """
    if candidates < 2:
        raise ValueError(f"infonce_bound: expected at least 2 candidates, got {candidates}")
    cap = math.log(candidates)
    return Bound(cap - loss, cap, cap - loss > SATURATION * cap)


# ---------------------------------------------------------------- correlated Gaussians, whose information is known

def gaussian_information(rho, d):
    """I = -(d/2) log(1 - rho^2) nats, of x and y in R^d with unit variances whose k-th entries correlate with rho."""
    if not -1 < rho < 1 or d < 1:
        raise ValueError(f"gaussian_information: expected -1 < rho < 1 and d >= 1, got rho={rho}, d={d}; "
                         "at |rho| = 1 the information is infinite")
    return -d / 2 * math.log1p(-rho * rho)


def gaussian_correlation(nats, d):
    """rho = sqrt(1 - exp(-2I/d)) >= 0, with which Gaussians in R^d share I nats: gaussian_information's inverse."""
    if not 0 <= nats < math.inf or d < 1:
        raise ValueError(f"gaussian_correlation: expected finite nats >= 0 and d >= 1, got nats={nats}, d={d}")
    rho = math.sqrt(-math.expm1(-2 * nats / d))
    if rho == 1:
        raise ValueError(f"gaussian_correlation: {nats} nats in {d} dimensions need a correlation that rounds to 1; "
                         "float64 holds no more than about 18 nats a dimension")
    return rho


def draw_gaussians(rng, n, d, rho):
    """n pairs with correlation rho: host arrays x, y (n, d) float32, drawn from the numpy Generator rng."""
    x, noise = rng.standard_normal((2, n, d), dtype="float32")
    return x, rho * x + math.sqrt(1 - rho * rho) * noise


def log_density_ratio(x, y, rho):
    """The optimal critic of correlated Gaussians x (N, d), y (M, d): scores (N, M), arrays of either backend.

        s_ij = log p(y_j | x_i) / p(y_j) = (2 rho x_i . y_j - rho^2 (|x_i|^2 + |y_j|^2)) / (2 (1 - rho^2)) + I
    """
    squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    return ((2 * rho) * (x @ y.T) - rho**2 * squares) / (2 * (1 - rho**2)) + gaussian_information(rho, x.shape[1])


def pairs_bound(scores):
    """log K - L of scores (K, K) whose positives stand on the diagonal: a 0-d array, so nothing waits for a GPU."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"pairs_bound: expected scores (K, K) of K >= 2 pairs, got {scores.shape}")
    return array_module(scores).diagonal(log_softmax.forward(scores)[0]).mean() + math.log(len(scores))


def optimal_bound(nats, d, candidates, *, pairs=200_000, rng):
    """The InfoNCE bound that the optimal critic reaches on Gaussians which share `nats`, and its standard error.

    A mean over fresh batches of `candidates` pairs each, `pairs` altogether. It is below the true information for
    every number of candidates, and below their log for every information.
    """
    rho, batches = gaussian_correlation(nats, d), max(2, pairs // candidates)
    bounds = [float(pairs_bound(log_density_ratio(*draw_gaussians(rng, candidates, d, rho), rho)))
              for _ in range(batches)]
    mean = sum(bounds) / batches
    variance = sum((bound - mean)**2 for bound in bounds) / (batches - 1)
    return mean, math.sqrt(variance / batches)


# ---------------------------------------------------------------- a uniform symbol, seen identically in both views

class SymbolEstimates(NamedTuple):
    """In nats: information, log m, which both views share;  infonce and nt_xent: log K - L of either."""
    information: float
    infonce: float
    nt_xent: float


def symbol_estimates(symbols, batch):
    """What InfoNCE and NT-Xent say of N images that each show one of m symbols, the same in both views; exact sums.

    With the critic that scores an equal symbol infinitely above another, an anchor chooses evenly among the
    candidates with its symbol. B of the N - 1 other images have it, binomial with p = 1/m:

        InfoNCE across views   N candidates:       log N      - E log(1 + B)      never above log m
        NT-Xent                2N - 1 candidates:  log(2N-1)  - E log(1 + 2B)     can be above it
    """
    if symbols < 1 or batch < 2:
        raise ValueError(f"symbol_estimates: expected symbols >= 1 and batch >= 2, got {symbols} and {batch}")
    others, p = batch - 1, 1 / symbols
    chance = [math.comb(others, b) * p**b * (1 - p)**(others - b) for b in range(batch)]     # of B = b
    return SymbolEstimates(math.log(symbols),
                           math.log(batch) - sum(c * math.log1p(b) for b, c in enumerate(chance)),
                           math.log(2 * batch - 1) - sum(c * math.log1p(2 * b) for b, c in enumerate(chance)))
