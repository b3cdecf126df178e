"""The geometry of embeddings on the unit sphere: alignment, uniformity, standard deviation, effective rank.

Embeddings are arrays (N, d) of either backend, normalised here; results are Python floats (so they synchronise). A row of
zeros stays at the origin, at distance 0 from another such row and 1 from the sphere. An encoder that returns only zeros
is therefore collapsed by every measure: uniformity 0, standard deviation 0, effective rank 1.
"""

import math

import numpy as np

from ..backend import to_host
from ..checks import require_integers, require_within
from ..contrastive import alignment_loss, l2_normalize, uniformity_loss
from ..typing import Array
from .checks import require_features


def alignment(z1: Array, z2: Array, *, alpha: float = 2) -> float:
    """mean_i |z1^_i - z2^_i|^alpha over positive pairs: 0 when both views coincide (Wang & Isola 2020, section 4.1.1).

    A collapsed encoder is perfectly aligned, so read alignment together with uniformity.

    >>> import numpy as np
    >>> alignment(np.array([[1.0, 0], [0, 3]]), np.array([[2.0, 0], [5, 0]]))
    1.0
    """
    require_features("alignment", z1=z1, z2=z2)
    if z1.shape != z2.shape:
        raise ValueError(f"alignment: expected two views (N, d) of the same N items, got {z1.shape} and {z2.shape}")
    require_within("alignment", "(0, inf)", alpha=alpha)
    return float(alignment_loss.forward(*(z.astype("float64", copy=False) for z in (z1, z2)), alpha=float(alpha))[0])


def uniformity(z: Array, *, t: float = 2) -> float:
    """log mean_{i != j} exp(-t |z^_i - z^_j|^2): 0 when collapsed, uniformity_floor(d, t) when uniform on the sphere
    (Wang & Isola 2020, section 4.1.2). N >= 2.

    >>> import numpy as np
    >>> round(uniformity(np.array([[1.0, 0], [0, 3]])), 4)                   # one pair, squared distance 2
    -4.0
    """
    require_features("uniformity", z=z)
    _require_rows("uniformity", z)
    require_within("uniformity", "(0, inf)", t=t)
    return min(float(uniformity_loss.forward(z.astype("float64", copy=False), t=float(t), needs_grad=(False,))[0]), 0.0)


def uniformity_floor(d: int, t: float = 2) -> float:
    """The lowest uniformity of many points, that of the uniform distribution on the sphere in R^d:

        log E exp(-t |x - y|^2) = log 0F1(; d/2; t^2) - 2t

    A few points can be lower: two opposite ones have -4t.

    >>> round(uniformity_floor(2), 3), round(uniformity_floor(128), 3)
    (-1.575, -3.938)
    """
    require_integers("uniformity_floor", 1, 2**53, d=d)
    require_within("uniformity_floor", "(0, inf)", t=t)
    d, t = int(d), float(t)                                  # a NumPy number may wrap round, or lose digits
    if t > 1e5:
        raise ValueError(f"uniformity_floor: t must be at most 1e5 for the series to converge, got {t!r}")
    k = np.arange(1, int(3 * t) + 100)
    terms = np.cumsum(2 * math.log(t) - np.log(k * (d / 2 + k - 1)))         # logs of t^2k / (k! b (b+1) ... (b+k-1))
    return float(np.logaddexp.reduce(terms, initial=0.0)) - 2 * t            # 0F1(; b; t^2) = 1 + their sum, b = d/2


def embedding_std(z: Array) -> float:
    """Mean over the d dimensions of the standard deviation of z^, times sqrt(d): 0 when collapsed, near 1 when z^ is
    spread over all directions, at most 1 (Chen & He 2021, section 4.1, without the factor). N >= 2.

    >>> import numpy as np
    >>> round(embedding_std(np.array([[1.0, 0], [-2, 0], [0, 1], [0, -2]])), 6)
    1.0
    """
    require_features("embedding_std", z=z)
    _require_rows("embedding_std", z)
    u = l2_normalize.forward(z.astype("float64", copy=False))[0]
    return float(u.std(axis=0).mean()) * math.sqrt(z.shape[1])


def effective_rank(z: Array) -> float:
    """exp of the entropy of the normalised singular values: the number of directions in use, from 1 to d
    (Roy & Vetterli 2007). z (N, d), N >= 2, is centred, not normalised.

    Singular values within z's rounding count as 0; if all do, z is collapsed and the rank is 1. The rounding is that of each
    column, so a column with a large offset does not hide the others.

    >>> import numpy as np
    >>> round(effective_rank(np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])), 6)
    2.0
    """
    require_features("effective_rank", z=z)
    _require_rows("effective_rank", z)
    peaks = to_host(abs(z).max(axis=0)).astype("float64")                    # (d,)
    peak = float(peaks.max()) or 1.0
    x = z.astype("float64") / peak                           # before the product, which squares the spectrum
    x = x - x.mean(axis=0)
    squares, directions = np.linalg.eigh(to_host(x.T @ x))                   # (d,), (d, d): on the host, without cuSOLVER
    s = np.sqrt(np.maximum(squares, 0))
    s = np.where(s > _rounding(s, directions, z, peaks / peak), s, 0)
    total = float(s.sum())
    if total == 0:
        return 1.0
    p = s / total
    return math.exp(-float((p * np.log(np.maximum(p, 1e-300))).sum()))


def _rounding(s, directions, z, peaks):
    """How large a singular value can be by rounding alone, of z or of x^T x: (d,).

    s (d,), ascending; directions (d, d), the eigenvectors in columns; z (N, d) as given, for N and its dtype; peaks (d,),
    the largest |z| of each column before centring, divided by the largest of all. Formula: docs/derivations.md
    """
    of_z = 8 * float(np.finfo(z.dtype).eps) * np.sqrt(len(z) * directions.T**2 @ peaks**2)
    of_product = s[-1] * math.sqrt(len(s) * float(np.finfo("float64").eps))
    return np.maximum(of_z, of_product)


def _require_rows(name, z):
    if len(z) < 2:
        raise ValueError(f"{name}: expected z (N, d) with N >= 2, got {z.shape}")
