"""Generated digits: 28x28 handwriting-like images, drawn from a seed, without a network.

A digit is a template of a few strokes through control points. For each image the points are jittered and joined by a
smooth curve, which is bent, slanted and inked by each pixel's distance to it. Size and position follow MNIST: fitted
into 20x20 pixels, centred by the centre of mass.
"""

import numpy as np

from ..typing import HostArray, Rng
from .images import ImageData, draw_chunks, generate_splits

SIDE = 28                                                # of an image, in pixels
BOX = 20                                                 # of a digit in it
SEGMENTS = 36                                            # straight pieces that approximate one digit
CHUNK = 64                                               # images inked at once: their arrays stay in cache

# How often, and the strokes: "x,y" points in percent of the digit's height (x right, y down) that the
# pen passes through, "!" a corner, "|" the pen lifted.
TEMPLATES = {
    0: [(4, "44,2 18,6 2,40 8,82 34,100 60,82 66,40 46,4 26,6"),
        (2, "50,6 28,0 6,26 2,68 22,98 52,84 66,44 56,10 34,2"),
        (1, "30,4 8,30 6,72 32,98 60,72 58,24 34,0 12,10 10,22")],
    1: [(6, "30,0 30,50 30,100"),
        (2, "18,26 27,15 34,0! 34,50 34,100"),
        (1, "17,24 34,0! 34,50 34,100 | 10,100 34,99 58,100")],
    2: [(3, "2,22 18,3 44,3 56,24 40,58 2,97! 34,96 70,95"),
        (3, "2,20 22,1 48,6 52,32 34,66 12,93 0,86 10,73 30,84 54,97 76,88"),
        (2, "4,16 28,0 54,14 50,42 24,78 4,98! 30,88 52,98 76,92"),
        (1, "0,8 30,0 52,16 44,50 2,98! 74,98")],
    3: [(4, "4,14 26,0 52,10 48,34 20,46! 50,54 60,76 36,99 2,88"),
        (2, "4,8 30,0 54,14 42,38 22,46 18,42 28,42 54,56 58,82 30,100 0,90"),
        (1, "4,3 56,2! 26,38! 52,48 60,74 38,98 2,90"),
        (2, "2,10 28,0 50,14 44,36 28,46! 56,60 52,90 24,100 0,84")],
    4: [(3, "8,2 4,26 0,54! 32,52 66,48 | 56,6 50,52 46,100"),
        (3, "6,4 4,32 14,52 36,50 56,40 | 60,0 54,44 50,100"),
        (1, "66,66 34,66 0,64! 22,34 46,0! 47,50 46,100"),
        (1, "42,0 22,34 0,62! 34,62 68,60 | 48,26 46,60 42,100"),
        (1, "20,4 14,28 6,50! 30,50 50,42! 58,4! 46,54 40,100")],
    5: [(3, "60,2 38,3 16,4! 8,42! 34,36 56,54 54,84 28,100 0,90"),
        (2, "16,6 8,44! 34,38 52,58 48,86 22,100 0,90 | 16,6 40,5 70,0"),
        (2, "62,4 34,4 18,14 14,38 36,46 54,64 46,90 22,100 0,92"),
        (1, "26,20 16,44! 38,42 48,62 38,90 14,100 0,88 | 26,20 52,14 82,2")],
    6: [(4, "46,0 22,22 4,58 6,88 30,100 52,84 46,62 24,62 6,80"),
        (3, "20,0 6,36 2,74 18,98 44,94 54,74 40,56 16,64 6,78"),
        (1, "60,8 30,10 6,46 4,84 28,100 54,88 54,64 32,54 8,70")],
    7: [(4, "0,6 34,5 68,2! 44,44 26,100"),
        (2, "0,5 34,5 66,3! 40,46 26,100 | 18,54 40,51 62,50"),
        (2, "2,24 4,6! 36,6 68,3! 44,40 32,100"),
        (1, "0,12 34,1 66,8 54,40 34,100")],
    8: [(4, "52,12 30,0 8,12 16,36 44,58 52,82 28,100 4,86 14,60 42,36 54,14"),
        (2, "60,8 36,0 10,12 18,38 42,58 44,86 22,100 2,84 18,58 46,32 56,16"),
        (1, "30,46 8,34 8,10 32,0 52,12 50,36 30,46 6,60 4,86 30,100 56,88 54,60 30,46")],
    9: [(4, "54,16 34,0 8,14 4,38 24,50 46,36 54,14! 52,56 46,100"),
        (2, "54,18 32,0 6,16 6,40 30,48 52,22 56,44 52,78 30,100 6,92"),
        (3, "50,10 24,4 2,28 14,50 40,40 54,10! 44,54 26,100")],
}


def generate_digits(n_train: int = 10000, n_test: int = 2000, seed: int = 0) -> ImageData:
    """ImageData "digits": n_train and n_test generated digits, from separate random streams.

    Classes are balanced (to within one) and shuffled; the same seed and sizes give the same images.
    Raises ValueError for a size below 1 or a negative seed.
    """
    return generate_splits("generate_digits", "digits", draw_digits, tuple("0123456789"), n_train, n_test, seed)


def draw_digits(labels: HostArray, rng: Rng) -> HostArray:
    """One new image of each label: labels (N,) of 0..9, rng a NumPy Generator -> (N, 28, 28, 1) uint8.

    >>> draw_digits(np.array([3, 1, 4]), np.random.default_rng(0)).shape
    (3, 28, 28, 1)
    """
    return draw_chunks("draw_digits", labels, rng, _draw, CHUNK, (SIDE, SIDE, 1))


def _draw(labels, rng):
    start, end = _bend(_write(labels, rng), rng)
    return _ink(*_fit(start, end, rng))[..., None]


# ---------------------------------------------------------------- from templates to curves

def _spline(n, t):
    """Weights (len(t), n) of the natural-ended Catmull-Rom curve through n points at t in [0, n-1].

    The curve is linear in its points, so sampling it is one product: weights @ points.
    """
    points = np.eye(n)
    slopes = np.gradient(points, axis=0) if n > 2 else np.diff(points, axis=0).repeat(2, axis=0)
    k = np.minimum(t.astype(int), n - 2)
    u = (t - k)[:, None]
    return ((1 + 2 * u) * (1 - u) ** 2 * points[k] + u * (1 - u) ** 2 * slopes[k]
            + u * u * (3 - 2 * u) * points[k + 1] - u * u * (1 - u) * slopes[k + 1])


def _compile(path):
    """A template's control points (P, 2), and the weights (2, SEGMENTS, P) that turn them into the starts and ends of its
    segments, divided among the strokes by length."""
    points = []
    pieces = []                                          # a piece runs between corners and pen lifts
    for stroke in path.split("|"):
        piece = []
        for word in stroke.split():
            piece.append(len(points))
            points.append([float(number) / 100 for number in word.rstrip("!").split(",")])
            if word.endswith("!"):
                pieces.append(piece)
                piece = piece[-1:]
        pieces.append(piece)
    points = np.array(points)

    lengths = np.array([np.hypot(*np.diff(points[piece], axis=0).T).sum() for piece in pieces])
    ends = np.round(SEGMENTS * np.cumsum(lengths) / lengths.sum()).astype(int)
    weights = np.zeros((2, SEGMENTS, len(points)))
    for piece, lo, hi in zip(pieces, [0, *ends], ends):
        curve = _spline(len(piece), np.linspace(0, len(piece) - 1, hi - lo + 1))
        weights[0, lo:hi, piece] = curve[:-1].T
        weights[1, lo:hi, piece] = curve[1:].T
    return points, weights


_COMPILED = {digit: ([how_often for how_often, _ in variants], [_compile(path) for _, path in variants])
             for digit, variants in TEMPLATES.items()}


def _write(labels, rng):
    """Curves of the labels (B,), with jittered control points: starts and ends (2, B, SEGMENTS, 2)."""
    curves = np.empty((2, len(labels), SEGMENTS, 2))
    choice = rng.random(len(labels))
    for digit, (how_often, variants) in _COMPILED.items():
        upto = np.cumsum(how_often) / sum(how_often)
        for v, (points, weights) in enumerate(variants):
            rows = np.flatnonzero((labels == digit) & (np.searchsorted(upto, choice, side="right") == v))
            jitter = rng.triangular(-0.08, 0, 0.08, (len(rows), *points.shape))
            curves[:, rows] = np.matmul(weights[:, None], points + jitter)
    return curves


# ---------------------------------------------------------------- one writer's hand

def _bend(curves, rng):
    """Warp, slant, turn and stretch each of the curves (2, B, SEGMENTS, 2); returns starts and ends."""
    batch = curves.shape[1]

    def draw(spread, *shape):
        return spread * rng.triangular(-2, 0, 2, (batch, 1, *shape))   # bounded, so that all stay legible
    for _ in range(2):                                   # slow waves bend the sheet; strokes stay joined
        wave = (curves * draw(2.8, 2)).sum(axis=-1, keepdims=True)
        curves = curves + draw(0.08, 2) * np.sin(wave + draw(3.0, 1))

    slant = 0.15 + draw(0.26)
    turn = draw(0.15)
    aspect = np.exp(0.1 + draw(0.2))
    x, y = aspect * curves[..., 0], curves[..., 1]
    x = x - slant * y
    return np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=-1)


def _fit(start, end, rng):
    """Scale into the box and centre by the centre of mass; a pen for each image.

    start, end (B, SEGMENTS, 2)  ->  start, end in pixels, radius (B, SEGMENTS)
    """
    batch = len(start)
    pen = np.clip(np.exp(rng.normal(0.2, 0.25, (batch, 1))), 0.65, 1.8)
    phase = rng.uniform(0, 2 * np.pi, (batch, 1))
    pressure = rng.uniform(0, 0.22, (batch, 1))
    radius = pen * (1 + pressure * np.sin(np.linspace(0, 5, SEGMENTS) + phase))

    both = np.concatenate([start, end], axis=1)
    extent = (both.max(axis=1) - both.min(axis=1)).max(axis=-1)                 # (B,)
    scale = ((BOX - 2 * pen[:, 0]) / extent)[:, None, None]
    start, end, both = scale * start, scale * end, scale * both
    mass = radius * np.linalg.norm(end - start, axis=-1)                        # ink in a segment
    centre = (mass[..., None] * (start + end)).sum(axis=1, keepdims=True) / (2 * mass.sum(axis=1)[:, None, None])
    reach = radius.max(axis=1)[:, None, None] + 0.5                             # ink and its soft edge
    shift = np.clip((SIDE - 1) / 2 - centre,                                    # no ink beyond the image's edge
                    reach - both.min(axis=1, keepdims=True), SIDE - 1 - reach - both.max(axis=1, keepdims=True))
    return start + shift, end + shift, radius


def _ink(start, end, radius):
    """Grey values (B, 28, 28) uint8 of segments start -> end (B, S, 2) drawn with a round pen (B, S)."""
    start, end, radius = (a.astype(np.float32) for a in (start, end, radius))
    length = np.linalg.norm(end - start, axis=-1)
    along = (end - start) / np.maximum(length, 1e-6)[..., None]                 # unit vectors
    grid = np.arange(SIDE, dtype=np.float32)
    gap = np.full((len(start), SIDE, SIDE), np.inf, dtype=np.float32)           # to the nearest edge of ink
    for s in range(start.shape[1]):
        dx = (grid - start[:, s, :1])[:, None, :]                               # (B, 1, 28)
        dy = (grid - start[:, s, 1:])[:, :, None]                               # (B, 28, 1)
        # the nearest point of the segment lies t from its start; |d - t along|^2 = |d|^2 - t (2 d.along - t)
        dot = dx * along[:, s, 0, None, None] + dy * along[:, s, 1, None, None]
        t = np.clip(dot, 0, length[:, s, None, None])
        dot *= 2
        dot -= t
        dot *= t
        distance = dx * dx + dy * dy
        distance -= dot
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        distance -= radius[:, s, None, None]
        np.minimum(gap, distance, out=gap)
    return np.rint(255 * np.clip(0.5 - gap, 0, 1)).astype(np.uint8)
