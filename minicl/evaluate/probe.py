"""The linear probe: how well a linear classifier separates the classes by frozen features.

Multinomial logistic regression on standardised features x (N, d), with an intercept, by L-BFGS:

    L  = (1/N) sum_i -log softmax(W x_i + b)_label_i + |W|^2 / (2 C N),   p_i = softmax(W x_i + b)
    dW = (1/N) sum_i (p_i - one_hot_i) x_i^T + W / (C N),   db = (1/N) sum_i (p_i - one_hot_i)

For two classes the penalty is twice that: W then has the rows v/2 and -v/2, so it is |v|^2 / (2 C N), as in scikit-learn.
L is convex with one minimum, so there is no learning rate, seed or batch.
"""

import warnings
from collections import deque
from collections.abc import Callable

import numpy as np

from ..backend import array_module, parallel_for, parallel_sum, to_device
from ..checks import require_integers, require_within
from ..distributed import ALONE, World
from ..signature import accepts_other_names
from ..typing import Array, HostArray
from .checks import class_ids, require_features
from .scores import chosen

TOLERANCE = 3e-4           # of the largest entry of the gradient, for C up to 1: with less, accuracies change only by noise
FEW = 1e-5                 # for fewer than 10 labels a feature
ROWS = 1024                # of a slice
ROUNDING = 16              # a column whose deviation is within this many roundings of its largest entry is constant


@accepts_other_names
def linear_probe(train_features: Array, train_labels: HostArray, test_features: Array, test_labels: HostArray, *,
                 C: float = 1.0, steps: int = 1000, world: World = ALONE) -> float:
    """Test accuracy, a fraction, of a linear classifier trained by cross-entropy on fixed features (N, d) and (M, d).

    Features are arrays, so no gradient reaches the encoder. Labels are integers >= 0, (N,) and (M,), on the host. Equal
    scores count as chance, and test items whose class does not occur in training as errors, with a warning.

    C      inverse strength of the L2 penalty, as in scikit-learn's LogisticRegression, 1e-6 to 1e6; b has no penalty
    steps  maximum for L-BFGS, which stops when no entry of the gradient is above 3e-4. It is less, down to 1e-5, if a class
           has less than N/20 items, which count little in L, and for N < 10 d, where items may be fitted closely, and the
           gradient be small, long before the minimum; times C^(-2/3) for C > 1, where L is flatter. It warns if that is
           not reached
    world  processes that divide the sums over training items; all have all features

    >>> import numpy as np
    >>> x, labels = np.array([[0.0], [1.0], [3.0], [4.0]]), np.array([0, 0, 1, 1])
    >>> linear_probe(x, labels, np.array([[-1.0], [1.5], [2.5]]), np.array([0, 0, 0]))
    0.6666666666666666
    """
    require_features("linear_probe", train_features=train_features, test_features=test_features)
    train_ids, test_ids, classes = class_ids("linear_probe", train_labels, test_labels, len(train_features),
                                             len(test_features))
    require_within("linear_probe", "[1e-6, 1e6]", C=C)
    require_integers("linear_probe", 1, steps=steps)
    xp = array_module(train_features)
    standardize = standardizer(train_features)
    x = standardize(train_features)
    loss = _Loss(x, to_device(train_ids, xp), classes, (2 if classes == 2 else 1) / (C * len(x)), world)
    rarest = np.unique(train_ids, return_counts=True)[1].min() / len(x)      # the share of the rarest class
    tolerance = max(FEW, TOLERANCE * min(1, 20 * rarest)) if len(x) >= 10 * x.shape[1] else FEW
    tolerance /= max(1, C)**(2 / 3)
    w, slope = lbfgs(loss, xp.zeros((x.shape[1] + 1) * classes, dtype=x.dtype), steps, tolerance)
    if not slope <= tolerance:
        warnings.warn(f"linear_probe: not converged: the gradient's largest entry is {slope:.2g}, above {tolerance:.2g}, "
                      f"so the accuracy may be too low; raise steps ({steps}), lower C ({C:g}), or pass float64 features",
                      stacklevel=3)
    W, b = loss.split(w)

    def scores_of(lo, hi):
        with np.errstate(over="ignore", invalid="ignore"):   # checked below
            return standardize(test_features[lo:hi]) @ W.T + b

    scores = xp.concatenate(parallel_for(xp, len(test_features), scores_of, ROWS))
    if not bool(xp.isfinite(scores).all()):
        raise FloatingPointError("linear_probe: test_features are so much larger than train_features that their scores "
                                 "overflow; both must come from the same encoder, scaled alike")
    return float(chosen(scores, to_device(test_ids, xp)).mean())


def standardizer(train: Array) -> Callable[[Array], Array]:
    """A function that subtracts the means of train's columns, and divides by their standard deviations.

    A column that is constant in train, up to rounding, becomes zeros everywhere.
    """
    xp = array_module(train)
    N = len(train)

    def total(function):                                     # over the rows, in float64, a slice at a time
        return parallel_sum(xp, N, lambda lo, hi, y: xp.add(y, function(train[lo:hi]), out=y), xp.zeros(train.shape[1]),
                            size=ROWS)[0]

    peak = xp.stack(parallel_for(xp, N, lambda lo, hi: abs(train[lo:hi]).max(axis=0), ROWS)).max(axis=0)
    peak = xp.where(peak > 0, peak, xp.ones_like(peak))      # divided by first, so that no square overflows
    mean = total(lambda x: (x / peak).sum(axis=0, dtype="float64")) / N
    std = xp.sqrt(total(lambda x: ((x / peak - mean)**2).sum(axis=0)) / N)
    constant = std <= ROUNDING * xp.finfo(train.dtype).eps
    if bool(constant.any()) and (varying := int((train != train[:1]).any(axis=0)[constant].sum())):
        warnings.warn(f"linear_probe: {varying} of {train.shape[1]} columns of train_features vary by less than "
                      f"{ROUNDING} roundings of their largest entry, and are treated as constant; if they separate classes, "
                      "subtract their mean in float64 first", stacklevel=3)
    scale = xp.where(constant, 0, 1 / xp.where(constant, 1, std)).astype(train.dtype)
    mean = mean.astype(train.dtype)

    def scaled(part):
        y = xp.empty_like(part)

        def work(lo, hi):
            with np.errstate(over="ignore", invalid="ignore"):           # others may be much larger than train
                y[lo:hi] = xp.where(constant, part.dtype.type(0), (part[lo:hi] / peak - mean) * scale)

        parallel_for(xp, len(part), work, ROWS)
        return y

    return scaled


class _Loss:
    """w -> L and its gradient, for W (classes, d) and b (classes,) in one vector w."""

    def __init__(self, x, ids, classes, decay, world=ALONE):
        self.N = len(x)
        self.classes = classes
        self.decay = decay
        self.world = world
        lo, hi = (len(x) * k // world.size for k in (world.rank, world.rank + 1))
        self.x, self.ids = x[lo:hi], ids[lo:hi]                              # this process's rows

    def split(self, w):
        return w[:-self.classes].reshape(self.classes, -1), w[-self.classes:]

    def __call__(self, w):
        xp = array_module(w)
        W, b = self.split(w)

        def add(lo, hi, dw, loss):
            x = self.x[lo:hi]
            right = (self.ids[lo:hi], xp.arange(hi - lo))
            y = xp.ascontiguousarray((x @ W.T + b).T)                        # (classes, rows): sums over classes are fast
            y -= y.max(axis=0)
            loss -= y[right].sum(dtype="float64")
            p = xp.exp(y, out=y)
            total = p.sum(axis=0)
            loss += xp.log(total).sum(dtype="float64")
            p /= total
            p[right] -= 1                                                    # p - one_hot
            dW, db = self.split(dw)
            dW += p @ x
            db += p.sum(axis=1)

        dw, loss = map(self.world.all_reduce, parallel_sum(xp, len(self.x), add, w, xp.zeros(1), size=ROWS))
        dw /= self.N
        self.split(dw)[0][...] += self.decay * W
        return float(loss[0]) / self.N + self.decay / 2 * float((W * W).sum()), dw


def lbfgs(function: Callable, w: Array, steps: int, tolerance: float, memory: int = 10) -> tuple[Array, float]:
    """The minimum w of a convex function, w -> (value, gradient), and the largest entry of the gradient there.

    Limited-memory BFGS (Nocedal & Wright, section 7.2), until that entry is `tolerance` or `steps` are done. A step is
    taken if the value falls enough, or is still falling at its end: then it is lower, though rounding may hide that.
    """
    value, g = function(w)
    past: deque = deque(maxlen=memory)                                       # (s, y, 1 / y.s), s and y: changes of w, g
    for _ in range(steps):
        if float(abs(g).max()) <= tolerance:
            break
        q = g.copy()
        alphas = []
        for s, y, rho in reversed(past):
            alphas.append(rho * float(s @ q))
            q -= alphas[-1] * y
        q *= 1 / (past[-1][2] * float(past[-1][1] @ past[-1][1])) if past else 1 / float(abs(g).sum())
        for (s, y, rho), alpha in zip(past, reversed(alphas)):
            q += (alpha - rho * float(y @ q)) * s
        slope = -float(g @ q)
        step = 1.0
        for _ in range(30):
            new = w - step * q
            new_value, new_g = function(new)
            if new_value <= value + 1e-4 * step * slope or float(new_g @ q) >= 0:
                break
            step /= 2
        else:
            break                                                            # no further than rounding allows
        s, y = new - w, new_g - g
        if not bool(s.any()):
            break                                                            # likewise
        if float(y @ s) > 0:
            past.append((s, y, 1 / float(y @ s)))
        w, value, g = new, new_value, new_g
    return w, float(abs(g).max())
