"""t-SNE (van der Maaten & Hinton 2008): a map in the plane on which neighbours stay neighbours.

It is a contrastive method too: p_ij is the probability that i picks j as its neighbour in the features, q_ij on the map,
and the gradient of KL(P | Q) pulls with p_ij and pushes with q_ij:

    q_ij = w_ij / sum_kl w_kl,   w_ij = 1 / (1 + |y_i - y_j|^2)
    dL/dy_i = 4 sum_j (p_ij - q_ij) w_ij (y_i - y_j)                         (their eq. 5)
"""

import numpy as np

from ..backend import to_host
from ..checks import require_integers, require_within
from ..typing import Array, HostArray
from .checks import require_features


def tsne(features: Array, *, perplexity: float = 30, steps: int = 300, seed: int = 0) -> HostArray:
    """Positions (N, 2), float32 on the host, for features (N, d); all pairs are stored, so N is a few thousand at most.

    perplexity: about the number of neighbours of a point; above 1, below N - 1. Only neighbourhoods on the map are
    meaningful, not distances or cluster sizes. Equal points are placed anywhere near 0.
    """
    require_features("tsne", features=features)
    require_integers("tsne", 1, steps=steps)
    require_integers("tsne", 0, seed=seed)
    require_within("tsne", "(1, inf)", perplexity=perplexity)
    features = _scaled(to_host(features))
    p = _neighbour_probabilities(features, perplexity)
    n = len(p)
    rng = np.random.default_rng(seed)
    y = features @ np.linalg.svd(features, full_matrices=False)[2][:2].T     # start from the principal axes
    y = np.pad(y, ((0, 0), (0, 2 - y.shape[1])))                             # of which one feature has one
    y = (y / (y.std(axis=0) + 1e-12) * 1e-2 + 1e-4 * rng.standard_normal((n, 2))).astype(np.float32)
    velocity = np.zeros_like(y)
    for step in range(steps):
        early = step < steps // 4                                            # at first pull harder, so clusters can form
        w = 1 / (1 + _squared_distances(y))
        np.fill_diagonal(w, 0)
        force = (p * (12 if early else 1) - w / w.sum()) * w
        gradient = 4 * (force.sum(axis=1, keepdims=True) * y - force @ y)
        velocity = (0.5 if early else 0.8) * velocity - (n / 40) * gradient
        y += velocity
    return y - y.mean(axis=0)


def _scaled(x):
    """x about its mean, its largest entry 1: squares neither overflow nor vanish."""
    limits = np.finfo(x.dtype)
    x = x.astype(np.float64) / max(np.abs(x).max(), limits.tiny)
    x = x - x.mean(axis=0)
    return x / max(np.abs(x).max(), 64 * limits.eps)                         # below it is rounding: points all alike


def _neighbour_probabilities(features, perplexity):
    """P (N, N), symmetric, summing to 1: each row a Gaussian whose width gives it the entropy log(perplexity)."""
    if perplexity >= len(features) - 1:
        raise ValueError(f"tsne: perplexity must be between 1 and N - 1 = {len(features) - 1}, got {perplexity}")
    d = _squared_distances(features)                                         # float64: one far point leaves the rest 1e-6
    d /= max(d.mean(), 1e-12)                                                # collapsed features: all 0
    np.fill_diagonal(d, np.inf)
    low, high = np.full((len(d), 1), 1e-3), np.full((len(d), 1), 1e15)
    for _ in range(40):                                                      # bisection for 1 / width^2, in its logarithm
        precision = np.sqrt(low * high)
        p = np.exp(((d.min(axis=1, keepdims=True) - d) * precision).astype(np.float32))
        p /= p.sum(axis=1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1, keepdims=True)
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
    return (p + p.T) / (2 * len(p))


def _squared_distances(x):
    square = (x * x).sum(axis=1)
    return np.maximum(square[:, None] + square - 2 * (x @ x.T), 0)
