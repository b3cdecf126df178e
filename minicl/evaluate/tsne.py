"""t-SNE (van der Maaten & Hinton 2008): a map in the plane on which neighbours stay neighbours.

It is a contrastive method too: p_ij is the probability that i picks j as its neighbour in the features, q_ij on the map,
and the gradient of KL(P | Q) pulls with p_ij and pushes with q_ij:

    q_ij = w_ij / sum_kl w_kl,   w_ij = 1 / (1 + |y_i - y_j|^2)
    dL/dy_i = 4 sum_j (p_ij - q_ij) w_ij (y_i - y_j)                         (their eq. 5)
"""

import warnings

import numpy as np

from ..backend import parallel_for, to_host
from ..checks import require_integers, require_within
from ..typing import Array, HostArray
from .checks import require_features

ROWS = 128             # of pairs in a slice, which stays in the cache


def tsne(features: Array, *, perplexity: float = 30, steps: int = 300, seed: int = 0) -> HostArray:
    """Positions (N, 2), float32 on the host, for features (N, d); all pairs are stored, so N is a few thousand at most.

    perplexity: about the number of neighbours of a point; above 1, below N - 1, and best at most N / 4: beyond that all
    points may fall on one spot, which a warning reports. Only neighbourhoods on the map are meaningful, not distances or
    cluster sizes. Equal points are placed anywhere near 0.
    """
    require_features("tsne", features=features)
    require_integers("tsne", 1, steps=steps)
    require_integers("tsne", 0, seed=seed)
    require_within("tsne", "(1, inf)", perplexity=perplexity)
    features = _scaled(to_host(features))
    p = _neighbour_probabilities(features, float(perplexity))
    n = len(p)
    rng = np.random.default_rng(seed)
    y = features @ np.linalg.svd(features, full_matrices=False)[2][:2].T     # start from the principal axes
    y = np.pad(y, ((0, 0), (0, 2 - y.shape[1])))                             # of which one feature has one
    y = (y / (y.std(axis=0) + 1e-12) * 1e-2 + 1e-4 * rng.standard_normal((n, 2))).astype(np.float32)
    velocity = np.zeros_like(y)
    gradient = np.zeros_like(y)
    w = np.zeros_like(p)
    for step in range(steps):
        early = step < steps // 4                                            # at first pull harder, so clusters can form
        sums = parallel_for(np, n, lambda lo, hi: _weights(y, lo, hi, w[lo:hi]), ROWS)
        pull, push = np.float32(12 if early else 1), np.float32(-1 / sum(sums))
        parallel_for(np, n, lambda lo, hi: _forces(y, p[lo:hi], w[lo:hi], pull, push, lo, hi, gradient), ROWS)
        velocity = (0.5 if early else 0.8) * velocity - (n / 40) * gradient
        y += velocity
    y -= y.mean(axis=0)
    spot, line = np.abs(y).max() < 1e-2, y.std(axis=0).min() < 1e-6 * y.std(axis=0).max()       # closer than at the start
    if (spot or line) and len(np.unique(features, axis=0)) > 2:
        where = "within 0.01 of one spot" if spot else "on a line"
        warnings.warn(f"tsne: all {n} points lie {where}: take a perplexity of at most N / 4 = {n / 4:g}, "
                      f"got {perplexity:g}, or more than {steps} steps", stacklevel=2)
    return y


def _weights(y, lo, hi, w):
    """Rows lo:hi of w_ij = 1 / (1 + |y_i - y_j|^2), into w, with w_ii = 0; their sum."""
    square = (y * y).sum(axis=1, keepdims=True)
    ones = np.ones_like(square)                              # (-2 y_i, 1 + y_i^2, 1) . (y_j, 1, y_j^2)
    np.matmul(np.hstack([-2 * y, 1 + square, ones])[lo:hi], np.hstack([y, ones, square]).T, out=w)
    np.maximum(w, 1, out=w)
    np.reciprocal(w, out=w)
    w[np.arange(hi - lo), np.arange(lo, hi)] = 0
    return float(w.sum())


def _forces(y, p, w, pull, push, lo, hi, gradient):
    """Rows lo:hi of the gradient, from the same rows of p and w: p_ij pull + w_ij push for p_ij - q_ij."""
    force = w * push
    force += p if pull == 1 else p * pull
    force *= w
    sums = force @ np.hstack([y, np.ones_like(y[:, :1])])                    # sum_j of force_ij y_j, and of force_ij
    gradient[lo:hi] = 4 * (sums[:, 2:] * y[lo:hi] - sums[:, :2])


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
    square = (features * features).sum(axis=1)                               # float64: one far point leaves the rest 1e-6
    d = np.maximum(square[:, None] + square - 2 * (features @ features.T), 0)
    d /= max(d.mean(), 1e-12)                                                # collapsed features: all 0
    np.fill_diagonal(d, np.inf)
    p = np.empty(d.shape, dtype=np.float32)
    parallel_for(np, len(d), lambda lo, hi: _fit_widths(d[lo:hi], perplexity, p[lo:hi]), ROWS)
    return (p + p.T) / (2 * len(p))


def _fit_widths(d, perplexity, p):
    """p_j = exp(x_j) / sum exp(x), x_j = (d_min - d_j) / width^2, into p; H = log sum exp(x) - sum_j p_j x_j."""
    below = d.min(axis=1, keepdims=True) - d
    low, high = np.full((len(d), 1), 1e-3), np.full((len(d), 1), 1e15)
    for _ in range(40):                                                      # bisection for 1 / width^2, in its logarithm
        precision = np.sqrt(low * high)
        x = np.maximum(below * precision, -200).astype(np.float32)           # exp(-200) is 0, and so is its share of H
        np.exp(x, out=p)
        total = p.sum(axis=1, keepdims=True)
        entropy = np.log(total) - np.einsum("ij,ij->i", p, x)[:, None] / total
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
    p /= total
