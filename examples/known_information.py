"""Pairs with known information: correlated Gaussians, and a symbol that is the same in both views.

The best critic's bound on them, and the estimates of InfoNCE and NT-Xent: docs/methods/information.md
"""

import math
from typing import NamedTuple

import numpy as np

from minicl.backend import array_module
from minicl.checks import require_integers, require_rng, require_within
from minicl.contrastive import log_softmax
from minicl.evaluate.checks import require_features
from minicl.typing import Array, DType, HostArray, Rng

MOST = 2**53                             # of a count that enters a formula as a float


# ---------------------------------------------------------------- correlated Gaussians

def gaussian_information(rho: float, d: int) -> float:
    """I = -(d/2) log(1 - rho^2) nats, of x and y in R^d with unit variances whose k-th entries correlate with rho.

    At |rho| = 1 it would be infinite, which is refused.

    >>> round(gaussian_information(0.5, d=20), 4)
    2.8768
    """
    require_within("gaussian_information", "(-1, 1)", rho=rho)
    require_integers("gaussian_information", 1, MOST, d=d)
    return -d / 2 * math.log1p(-rho * rho)


def gaussian_correlation(nats: float, d: int) -> float:
    """The inverse of gaussian_information: rho = sqrt(1 - exp(-2I/d)) >= 0 for Gaussians in R^d that share I nats."""
    require_within("gaussian_correlation", "[0, inf)", nats=nats)
    require_integers("gaussian_correlation", 1, MOST, d=d)
    rho = math.sqrt(-math.expm1(-2 * nats / d))
    if rho == 1:
        raise ValueError(f"gaussian_correlation: {nats} nats in {d} dimensions need a correlation that rounds to 1; "
                         "float64 holds no more than about 18 nats a dimension")
    return rho


def draw_gaussians(rng: Rng, n: int, d: int, rho: float, dtype: DType = "float32") -> tuple[HostArray, HostArray]:
    """n pairs with correlation rho: host arrays x, y (n, d) of dtype, drawn from the numpy Generator rng."""
    require_rng("draw_gaussians", rng)
    require_integers("draw_gaussians", 1, 2**31, n=n, d=d)
    require_within("draw_gaussians", "[-1, 1]", rho=rho)
    if dtype not in ("float32", "float64", np.float32, np.float64):
        raise ValueError(f"draw_gaussians: dtype must be float32 or float64, got {dtype!r}")
    x, noise = rng.standard_normal((2, n, d), dtype="float32").astype(dtype, copy=False)
    return x, rho * x + math.sqrt(1 - rho * rho) * noise


def log_density_ratio(x: Array, y: Array, rho: float) -> Array:
    """The optimal critic of correlated Gaussians x (N, d), y (M, d): scores (N, M), arrays of either backend.

        s_ij = log p(y_j | x_i) / p(y_j) = (2 rho x_i . y_j - rho^2 (|x_i|^2 + |y_j|^2)) / (2 (1 - rho^2)) + I

    Raises ValueError if 1 - rho^2, by which rounding errors are divided too, is below 1000 roundings of the dtype: beyond
    4.5 nats a dimension in float32 and 14.5 in float64.
    """
    require_features("log_density_ratio", x=x, y=y)
    require_within("log_density_ratio", "(-1, 1)", rho=rho)
    if not _resolves(x.dtype, rho):
        raise ValueError(f"log_density_ratio: 1 - rho^2 must be at least 1000 roundings of {x.dtype}, got "
                         f"{1 - rho * rho:.2g}; draw x and y in float64, or give less information a dimension")
    squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    return ((2 * rho) * (x @ y.T) - rho**2 * squares) / (2 * (1 - rho**2)) + gaussian_information(rho, x.shape[1])


def _resolves(dtype, rho):
    """Whether the log density ratio has 3 digits in this dtype, in which x and y were rounded."""
    return 1 - rho * rho >= 1000 * np.finfo(dtype).eps


def pairs_bound(scores: Array) -> float:
    """log K - L of scores (K, K) whose positives are on the diagonal, K >= 2: the InfoNCE bound of one batch of pairs.

    >>> import numpy as np
    >>> pairs_bound(np.zeros((4, 4)))                                        # chance
    0.0
    """
    require_features("pairs_bound", scores=scores)
    if scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"pairs_bound: expected scores (K, K) of K >= 2 pairs, got {scores.shape}")
    return float(array_module(scores).diagonal(log_softmax.forward(scores)[0]).mean()) + math.log(len(scores))


def optimal_bound(nats: float, d: int, candidates: int, *, pairs: int = 200_000, rng: Rng) -> tuple[float, float]:
    """The optimal critic's InfoNCE bound on Gaussians that share `nats`, and its standard error.

    A mean over pairs // candidates fresh batches of `candidates` pairs each; the error is the batches' standard deviation
    over the square root of their number. The mean is below the true information for every number of candidates, and
    below their log for every information.
    """
    require_within("optimal_bound", "[0, inf)", nats=nats)
    require_integers("optimal_bound", 1, 2**31, d=d)
    require_integers("optimal_bound", 2, 2**31, candidates=candidates)
    require_integers("optimal_bound", 2 * candidates, pairs=pairs)
    rho = gaussian_correlation(nats, d)
    batches = pairs // candidates
    dtype = "float32" if _resolves("float32", rho) else "float64"
    bounds = [pairs_bound(log_density_ratio(*draw_gaussians(rng, candidates, d, rho, dtype), rho))
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


def symbol_estimates(symbols: int, batch: int) -> SymbolEstimates:
    """The estimates of InfoNCE and NT-Xent for N images that each show one of m symbols, the same in both views; exact.

    With the critic that scores an equal symbol infinitely above another, an anchor chooses evenly among the
    candidates with its symbol. B of the N - 1 other images have it, binomial with p = 1/m:

        InfoNCE across views   N candidates:       log N      - E log(1 + B)      never above log m
        NT-Xent                2N - 1 candidates:  log(2N-1)  - E log(1 + 2B)     can be above it
    """
    require_integers("symbol_estimates", 1, MOST, symbols=symbols)
    require_integers("symbol_estimates", 2, 2**24, "it sums over the batch", batch=batch)
    others = batch - 1
    p = 1 / symbols
    if symbols == 1:
        chance = [0.0] * others + [1.0]                      # of B = b
    else:                                                    # in logarithms: the coefficients overflow
        ways = [math.lgamma(batch) - math.lgamma(b + 1) - math.lgamma(batch - b) for b in range(batch)]
        chance = [math.exp(way + b * math.log(p) + (others - b) * math.log1p(-p)) for b, way in enumerate(ways)]
    return SymbolEstimates(math.log(symbols),
                           math.log(batch) - sum(c * math.log1p(b) for b, c in enumerate(chance)),
                           math.log(2 * batch - 1) - sum(c * math.log1p(2 * b) for b, c in enumerate(chance)))
