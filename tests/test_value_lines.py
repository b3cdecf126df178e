"""The equation that explain() shows for each op gives the value that the op computes.

VALUES holds each equation with a program for it, in NumPy or in loops. The docstring must contain the equation, and the
program must give the op's value for every case of tests/cases.py.
"""

import copy
import math

import numpy as np
import pytest
from cases import CASES, all_ops

from minicl import contrastive, distributed, ops
from minicl.explain import formulas

WORDS_ONLY = {"attention", "batch_norm", "layer_norm", "gru"}      # their lines give shapes; the equations are in docs


def unit(z):
    return np.array([row / math.sqrt(sum(row**2)) for row in z])


def two_views(z1, z2):
    """(u, p): 2N unit rows, and the index of each row's other view."""
    u = unit(np.concatenate([z1, z2]))
    return u, [(i + len(z1)) % len(u) for i in range(len(u))]


def log_sum(numbers):
    return math.log(sum(map(math.exp, numbers)))


def softplus(x):
    return math.log(1 + math.exp(x))


def info_nce(query, positive, negatives, tau):
    q, k, n = unit(query), unit(positive), unit(negatives)
    N = len(q)
    return sum(softplus(log_sum(q[i] @ n_j / tau for n_j in n) - q[i] @ k[i] / tau) for i in range(N)) / N


def nt_xent(z1, z2, tau):
    (u, p) = two_views(z1, z2)
    N = len(z1)
    lse = [log_sum(u[i] @ u[j] / tau for j in range(2 * N) if j not in (i, p[i])) for i in range(2 * N)]
    return sum(softplus(lse[i] - u[i] @ u[p[i]] / tau) for i in range(2 * N)) / (2 * N)


def dcl(z1, z2, tau, weights=None):
    (u, p) = two_views(z1, z2)
    N = len(z1)
    w = [1.0] * 2 * N if weights is None else [*weights, *weights]
    lse = [log_sum(u[i] @ u[j] / tau for j in range(2 * N) if j not in (i, p[i])) for i in range(2 * N)]
    return sum(lse[i] - w[i] * (u[i] @ u[p[i]] / tau) for i in range(2 * N)) / (2 * N)


def clip_loss(image, text, logit_scale, caption_ids=None):
    x = np.exp(logit_scale) * unit(image) @ unit(text).T
    N = len(image)
    ids = range(N) if caption_ids is None else caption_ids
    negatives = [[j for j in range(N) if ids[j] != ids[i]] for i in range(N)]
    row = [log_sum(x[i, j] for j in negatives[i]) for i in range(N)]
    col = [log_sum(x[j, i] for j in negatives[i]) for i in range(N)]
    return sum(softplus(row[i] - x[i, i]) + softplus(col[i] - x[i, i]) for i in range(N)) / (2 * N)


def siglip(x, y, logit_scale, bias, caption_ids=None):
    s = unit(x) @ unit(y).T
    N = len(x)
    ids = range(N) if caption_ids is None else caption_ids
    pairs = [(i, j) for i in range(N) for j in range(N) if i == j or ids[i] != ids[j]]
    m = [(1 if i == j else -1) * (math.exp(logit_scale) * s[i, j] + bias) for i, j in pairs]
    return sum(math.log(1 + math.exp(-m_ij)) for m_ij in m) / N


def sup_con(z, tau, labels, base_temperature=None):
    u = unit(z)
    V = len(z)
    P = [[j for j in range(V) if j != i and labels[j] == labels[i]] for i in range(V)]
    A = sum(bool(P_i) for P_i in P)
    w = [[(j in P[i]) / (A * len(P[i])) if P[i] else 0 for j in range(V)] for i in range(V)]
    x = u @ u.T / tau
    lse = [log_sum(x[i, j] for j in range(V) if j != i) for i in range(V)]
    L = sum(sum(w[i]) * lse[i] for i in range(V)) - sum(w[i][j] * x[i, j] for i in range(V) for j in range(V))
    return L if base_temperature is None else tau / base_temperature * L


def triplet(anchor, positive, negative, margin=0.2):
    a, p, n = unit(anchor), unit(positive), unit(negative)
    N = len(a)
    return sum(max(0, sum((a[i] - p[i])**2) - sum((a[i] - n[i])**2) + margin) for i in range(N)) / N


def alignment_loss(z1, z2, alpha=2):
    u, v = unit(z1), unit(z2)
    return sum(math.sqrt(sum((u[i] - v[i])**2))**alpha for i in range(len(u))) / len(u)


def uniformity_loss(z, t=2):
    u = unit(z)
    e = [math.exp(-t * sum((u[i] - u[j])**2)) for i in range(len(u)) for j in range(len(u)) if i != j]
    return math.log(sum(e) / len(e))


def columns(z):
    """Each column of z minus its mean."""
    return [z[:, a] - sum(z[:, a]) / len(z) for a in range(z.shape[1])]


def vicreg(z1, z2, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4):
    def R(z):
        (N, d) = z.shape
        m = columns(z)
        C = [[m[a] @ m[b] / (N - 1) for b in range(d)] for a in range(d)]
        std = [math.sqrt(C[a][a] + eps) for a in range(d)]
        return (variance / d * sum(max(0, 1 - std[a]) for a in range(d))
                + covariance / d * sum(C[a][b]**2 for a in range(d) for b in range(d) if a != b))
    return invariance * sum((z1 - z2).ravel()**2) / z1.size + R(z1) + R(z2)


def barlow_twins(z1, z2, off_diagonal=0.005, eps=1e-5):
    N, d = z1.shape
    x, y = ([m / math.sqrt(sum(m**2) / N + eps) for m in columns(z)] for z in (z1, z2))
    C = [[x[a] @ y[b] / N for b in range(d)] for a in range(d)]
    return (sum((1 - C[a][a])**2 for a in range(d))
            + off_diagonal * sum(C[a][b]**2 for a in range(d) for b in range(d) if a != b))


def conv2d(x, w, stride=1, padding=0):
    (H, W, B, _) = x.shape
    (kh, kw, _, K) = w.shape
    s = stride
    p = padding
    y = np.zeros(((H + 2 * p - kh) // s + 1, (W + 2 * p - kw) // s + 1, B, K))
    for m, n, i, j in np.ndindex(*y.shape[:2], kh, kw):
        if 0 <= s * m + i - p < H and 0 <= s * n + j - p < W:        # x is 0 outside
            y[m, n] += x[s * m + i - p, s * n + j - p] @ w[i, j]
    return y


def windows(x, size=2, stride=None):
    """The windows of x, with the size x size entries of each window on the last axes."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))
    return view[::stride or size, ::stride or size]


def l2_normalize(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def dropout(x, p, rng):
    m = rng.random(x.shape, dtype="float32") >= p
    return x * m / (1 - p)


def gelu(x):
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-2 * u))


def var(x, axis=None, keepdims=False, correction=0):
    squares = (x - x.mean(axis=axis, keepdims=True))**2
    return squares.sum(axis=axis, keepdims=keepdims) / (squares.size / squares.sum(axis=axis).size - correction)


VALUES = {
    ops.abs: ("|x|", np.abs),
    ops.add: ("x + y", lambda x, y: x + y),
    ops.avg_pool2d: ("y = mean over each size x size window", lambda x, **window: windows(x, **window).mean(axis=(-2, -1))),
    ops.broadcast_to: ("x repeated along new axes and axes of length 1", np.broadcast_to),
    ops.clip: ("x limited to [low, high]", lambda x, low=-np.inf, high=np.inf: np.minimum(np.maximum(x, low), high)),
    ops.concat: ("join arrays along an existing axis", lambda *xs, axis=0: np.concatenate(xs, axis)),
    ops.conv2d: ("y[m, n] = sum_ij x[s m + i - p, s n + j - p] @ w[i, j]", conv2d),
    ops.div: ("q = x / y", lambda x, y: x / y),
    ops.dropout: ("y = x m / (1 - p)", dropout),
    ops.embedding: ("y[...] = table[ids[...]]",
                    lambda ids, table: np.array([table[i] for i in ids.ravel()]).reshape(*ids.shape, -1)),
    ops.exp: ("y = e^x", lambda x: math.e**x),
    ops.gelu: ("y = x s,  s = sigmoid(2u) = (1 + tanh u) / 2,  u = c (x + a x^3),  c = sqrt(2/pi), a = 0.044715", gelu),
    ops.getitem: ("x[key]", lambda x, key: x[key]),
    ops.leaky_relu: ("x where x > 0, else slope x", lambda x, slope=0.01: np.where(x > 0, x, slope * x)),
    ops.linear: ("y = x w + b", lambda x, w, b=0: x @ w + b),
    ops.log: ("Natural logarithm", np.log),
    ops.logsumexp: ("y = log sum_i exp(x_i)",
                    lambda x, axis=None, keepdims=False: np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))),
    ops.matmul: ("x (..., N, C) @ w (..., C, K)", lambda x, w: np.einsum("...nc,...ck->...nk", x, w)),
    ops.max: ("y = max_i x_i", lambda x, axis=None, keepdims=False: np.max(x, axis=axis, keepdims=keepdims)),
    ops.max_pool2d: ("y = max over each size x size window", lambda x, **window: windows(x, **window).max(axis=(-2, -1))),
    ops.maximum: ("max(x, y)", lambda x, y: np.where(x >= y, x, y)),
    ops.mean: ("y = (1/n) sum_i x_i", lambda x, axis=None, keepdims=False: np.mean(x, axis=axis, keepdims=keepdims)),
    ops.minimum: ("min(x, y)", lambda x, y: np.where(x <= y, x, y)),
    ops.mul: ("x y", lambda x, y: x * y),
    ops.neg: ("-x", lambda x: 0 - x),
    ops.pad: ("x surrounded by zeros", lambda x, widths: np.pad(x, widths)),
    ops.pow: ("y = x^p", lambda x, exponent: x**exponent),
    ops.relu: ("y = max(x, 0)", lambda x: np.where(x > 0, x, 0)),
    ops.add_relu: ("s = max(x + y, 0)", lambda x, y: np.where(x + y > 0, x + y, 0)),
    ops.reshape: ("The same entries in row-major order under another shape", lambda x, shape: np.reshape(x.ravel(), shape)),
    ops.sigmoid: ("y = 1 / (1 + e^-x)", lambda x: 1 / (1 + math.e**-x)),
    ops.sqrt: ("y = x^(1/2)", lambda x: x**0.5),
    ops.stack: ("join arrays of one shape along a new axis", lambda *xs, axis=0: np.stack(xs, axis)),
    ops.sub: ("x - y", lambda x, y: x - y),
    ops.sum: ("y = sum_i x_i", lambda x, axis=None, keepdims=False: np.sum(x, axis=axis, keepdims=keepdims)),
    ops.tanh: ("y = tanh x", lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1)),
    ops.to_pixel_major: ("Images (B, H, W, C) -> pixels (H, W, B, C)", lambda x: np.einsum("bhwc->hwbc", x)),
    ops.transpose: ("Axis k of the result is axis axes[k] of x; default: reversed",
                    lambda x, axes=None: np.transpose(x, axes)),
    ops.var: ("y = sum_i (x_i - mean)^2 / (n - correction)", var),
    ops.where: ("x where condition (bools) holds, else y", lambda condition, x, y: condition * x + (1 - condition) * y),
    contrastive.alignment_loss: ("L = (1/N) sum_i |u_i - v_i|^alpha", alignment_loss),
    contrastive.barlow_twins: ("L = sum_a (1 - C_aa)^2 + off_diagonal sum_{a != b} C_ab^2", barlow_twins),
    contrastive.clip_loss: ("L = (1/2N) sum_i (log(1 + exp(row_i - x_ii)) + log(1 + exp(col_i - x_ii)))", clip_loss),
    contrastive.cosine_similarity: ("s_ij = x^_i . y^_j",
                                    lambda x, y: np.array([[a @ b for b in unit(y)] for a in unit(x)])),
    contrastive.dcl: ("L = (1/2N) sum_i (lse_i - w_i x_ip(i))", dcl),
    contrastive.info_nce: ("L = (1/N) sum_i log(1 + exp(lse_i - x_i+))", info_nce),
    contrastive.l2_normalize: ("x^ = x / |x|", l2_normalize),
    contrastive.log_softmax: ("y_j  = x_j/tau - log sum_k exp(x_k/tau)",
                              lambda x, tau=1.0: x / tau - np.log(np.exp(x / tau).sum(axis=-1, keepdims=True))),
    contrastive.nt_xent: ("L = (1/2N) sum_i log(1 + exp(lse_i - x_i+))", nt_xent),
    contrastive.siglip: ("L = (1/N) sum_ij log(1 + exp(-m_ij)),   m_ij = c_ij l_ij", siglip),
    contrastive.softmax: ("p_j  = exp(x_j/tau) / sum_k exp(x_k/tau)",
                          lambda x, tau=1.0: np.exp(x / tau) / np.exp(x / tau).sum(axis=-1, keepdims=True)),
    contrastive.sup_con: ("L = sum_i w_i lse_i - sum_ij w_ij x_ij", sup_con),
    contrastive.triplet: ("L = (1/N) sum_i max(0, |a_i - p_i|^2 - |a_i - n_i|^2 + margin)", triplet),
    contrastive.uniformity_loss: ("L = log mean_{i != j} e_ij,   e_ij = exp(-t |u_i - u_j|^2)", uniformity_loss),
    distributed.all_gather: ("y_i = row i div size of process i mod size", lambda x: x),        # on one process
    distributed.mean_of: ("y = (1/size) sum over the processes of their x", lambda x: x),
    contrastive.vicreg: ("L = invariance mean_ia (z1_ia - z2_ia)^2 + R(z1) + R(z2)", vicreg),
}


@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.__name__)
def test_the_value_line_is_that_of_the_docstring(op):
    if op.__name__ in WORDS_ONLY:
        assert op not in VALUES
        return
    assert op in VALUES, f"{op.__name__}: add its docstring's equation and a function that evaluates it to VALUES"
    equation, shown = VALUES[op][0], formulas(op)[0]
    spaced = [" ".join(line.split()) for line in shown]
    assert any(" ".join(equation.split()) in line for line in spaced), f"VALUES has {equation!r}, but explain shows {shown}"


@pytest.mark.parametrize("case", [case for case in CASES if case.op.__name__ not in WORDS_ONLY], ids=str)
def test_the_value_line_gives_the_ops_value(case):
    def options():
        return {name: value() if callable(value) else copy.deepcopy(value) for name, value in case.options.items()}
    value = VALUES[case.op][1](*case.inputs, **options())
    np.testing.assert_allclose(value, case.op.forward(*case.inputs, **options())[0], rtol=1e-9, atol=1e-12)


def test_a_wrong_normaliser_would_be_detected():
    """nt_xent once showed 1/N instead of 1/2N."""
    case = next(case for case in CASES if case.op is contrastive.nt_xent)
    assert abs(2 * nt_xent(*case.inputs) - case.op(*case.inputs).item()) > 0.1


def test_examples_in_a_docstring_are_not_equations():
    for op in all_ops():
        value, gradient = formulas(op)
        assert not any(line.startswith((">>>", "...", "[", "array", "Tensor")) or line.endswith("]])")
                       for line in value + gradient), formulas(op)
