"""Claim 1: InfoNCE bounds the information from below and saturates at log K, on Gaussians whose information is known.

Three ways to the bound: the best critic by quadrature (no draws), the best critic by draws, and a critic that learns.
"""

import functools
import math

import numpy as np

from minicl.backend import threads, to_device, to_host
from minicl.contrastive import info_nce_from_scores
from minicl.optim import Adam
from minicl.viz import write_figure
from known_information import draw_gaussians, gaussian_correlation, optimal_bound
from mutual_information import CANDIDATES, NATS, Critic
from .laboratory import QUALITATIVE, NOT_REPRODUCED, REPRODUCED, Claim, mean_stds
from .slides import BLUE, GREEN, GREY, INK, ORANGE, heading, note, slide

DIM = 20

CLAIM = Claim(
    number=1, name="infonce_bound",
    title="InfoNCE bounds mutual information from below, and saturates at log K",
    statement="Whatever scores the pairs, log K - L never exceeds the information I between the two views, nor log K. "
              "Above that cap, more information does not change the loss, even for the best critic.",
    mathematics="""\
x and y are Gaussians in 20 dimensions whose entries correlate with rho; their information I = -10 log(1 - rho^2) is
raised in steps. An anchor x picks its y from among K. The best critic scores a pair with its density ratio
r = p(y|x)/p(y), and then

```text
log K - L = I - E log (1/K) sum_j r_j        r_1 of the positive, about e^I: it outweighs the others once K << e^I
E log S   = integral over t of (exp(-t) - E exp(-t S)) / t,    S = sum_j r_j
```

Given |x|, the r_j are independent and log r_j is linear in a noncentral chi-squared: E exp(-t S) is a product of
one-dimensional integrals. That gives the exact bound, without sampling.""",
    source="van den Oord et al. 2018, eq. 5; the staircase: Poole et al. 2019, figure 2",
    next="How many candidates K would show 8 of 10 nats? Compute it, in the folder examples: `from "
         "claims.infonce_bound import exact_bound`, then `exact_bound(10, 20, K)`. What would a step cost?")


@functools.cache
def exact_bound(nats, d, K):
    """log K - L of the optimal critic, in nats, by quadrature: trapezoids over |x|, log t and the distance in r.

    With v = 1 - rho^2 and w = |y - x/rho|^2:  log r = I + |x|^2 / 2 - rho^2 w / (2v), where, given x, w is noncentral
    chi-squared with d degrees of freedom, its centre |x|^2 / rho^2, for a negative; for the positive it is v times
    one whose centre is v |x|^2 / rho^2. Half the step changes nothing in the sixth digit (tests/test_claims.py).
    """
    return _exact_bound(nats, d, K)


def _exact_bound(nats, d, K, step=1.0):
    rho2 = -math.expm1(-2 * nats / d)
    v = 1 - rho2
    a = np.arange(-60, 25, 0.3 * step)                                       # log t
    lengths = np.arange(0.2 * step, math.sqrt(d) + 6, 0.4 * step)            # |x|, chi with d degrees of freedom
    weights = np.exp((d - 1) * np.log(lengths / math.sqrt(d)) - (lengths**2 - d) / 2)
    E_log_S = 0.0
    for length, weight in zip(lengths, weights / weights.sum()):
        def laplace(centre, scale):
            """E exp(-t r) at every t, of w = scale * chi'^2."""
            root, p = noncentral_chi(d, centre, 0.06 * step)
            log_r = nats + length**2 / 2 - rho2 / (2 * v) * scale * root**2
            return p @ np.exp(-np.exp(np.minimum(a + log_r[:, None], 50.0)))
        S = laplace(length**2 * v / rho2, v) * laplace(length**2 / rho2, 1.0)**(K - 1)
        E_log_S += weight * (np.exp(-np.exp(a)) - S).sum() * 0.3 * step
    return nats + math.log(K) - E_log_S


def noncentral_chi(d, centre, step):
    """Values and probabilities of the length of a normal vector in R^d whose mean is sqrt(centre) from 0: a Poisson
    mixture of chi distributions with d + 2j degrees of freedom."""
    values = np.arange(step / 2, math.sqrt(centre + d) + 10, step)
    j = np.arange(int(centre / 2 + 9 * math.sqrt(centre) + 40))
    log_gamma = np.array([[math.lgamma(d / 2 + k), math.lgamma(k + 1)] for k in j]).T
    p = np.exp(j * math.log(centre / 4) - log_gamma.sum(axis=0) + (d - 1 + 2 * j) * np.log(values)[:, None]
               - values[:, None]**2 / 2 - centre / 2).sum(axis=1)
    return values, p / p.sum()


def measure(setting):
    pairs = setting.pick(10_000, 400_000, 4_000_000)
    rng = np.random.default_rng(setting.seed)
    metrics = {}
    with threads(1):                                     # these products are too small to share
        for K in CANDIDATES:
            setting.status = f"optimal critic, {K} candidates"
            drawn = [optimal_bound(nats, DIM, K, pairs=pairs, rng=rng) for nats in NATS]
            metrics[f"exact, K = {K}"] = [exact_bound(nats, DIM, K) for nats in NATS]
            metrics[f"drawn, K = {K}"], metrics[f"error, K = {K}"] = ([pair[k] for pair in drawn] for k in (0, 1))
        curve = learn(setting, rng, steps=setting.pick(300, 4000, 20_000), lr=setting.pick(2e-3, 5e-4, 5e-4))
    stairs = curve.reshape(len(NATS), -1)
    metrics["learned, K = 64"] = stairs[:, stairs.shape[1] // 2:].mean(axis=1)         # of pairs never seen
    metrics["staircase"] = curve.reshape(-1, len(curve) // 100).mean(axis=1)
    return metrics


def learn(setting, rng, *, steps, lr, K=64):
    """log K - L of every step of a critic that learns while the information rises, `steps` a stair: (5 steps,)."""
    xp = setting.xp
    critic = Critic(DIM, rng).to(xp)
    optimizer = Adam(critic, lr)
    losses = xp.zeros(steps * len(NATS))
    positive_ids = xp.arange(K)                                                          # x_i belongs to y_i
    for step in range(len(losses)):
        rho = gaussian_correlation(NATS[step // steps], DIM)
        x, y = (to_device(side, xp) for side in draw_gaussians(rng, K, DIM, rho))
        loss = info_nce_from_scores(critic(x, y), positive_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.data
        setting.status = f"step {step} of {len(losses)}"
    return math.log(K) - to_host(losses)


def verdict(metrics):
    nats = np.array(NATS)
    for K in CANDIDATES:
        off = np.abs(metrics[f"drawn, K = {K}"].mean(axis=0) - metrics[f"exact, K = {K}"][0])
        error = np.sqrt((metrics[f"error, K = {K}"]**2).mean(axis=0) / len(metrics[f"error, K = {K}"]))
        if (off > 4 * error).any():
            return NOT_REPRODUCED, f"with K = {K} the draws of the optimal critic differ from the quadrature"
    learned = metrics["learned, K = 64"]
    if (learned > np.minimum(nats, metrics["exact, K = 64"][0]) + 0.05).any():
        return NOT_REPRODUCED, "the learned critic is above the best critic"
    late = learned[:, -1] - learned[:, -2]
    if (np.diff(learned) <= 0).any() or (late > 0.5).any():
        return QUALITATIVE, "the bound holds, but the learned critic has not come near its cap"
    return REPRODUCED, (f"a learned critic reaches {learned[:, -1].mean():.2f} of log 64 = {math.log(64):.2f} nats and "
                        f"stays below the best critic; the last 2 nats of information raise it by {late.mean():.2f}; "
                        "draws and quadrature agree")


def table(metrics):
    rows = [("information I (nats)", ", ".join(map(str, NATS)), "")]
    for K in CANDIDATES:
        exact = ", ".join(f"{nats:.2f}" for nats in metrics[f"exact, K = {K}"][0])
        rows.append((f"best critic, K = {K}, log K = {math.log(K):.2f}", exact,
                     mean_stds(metrics[f"drawn, K = {K}"], ".3f")))
    return rows + [("learned critic, K = 64", "below the best", mean_stds(metrics["learned, K = 64"], ".2f"))]


def draw(metrics, path):
    learned = metrics["learned, K = 64"][:, -1].mean()
    exact = metrics["exact, K = 64"][0]
    figure, (left, right) = slide(f"InfoNCE saturates at log K: of {NATS[-1]} nats, 64 candidates\n"
                                  f"show {exact[-1]:.2f} to the best critic and {learned:.2f} to a learned one",
                                  panels=2, wspace=0.2, left=0.06, bottom=0.15)
    curves = metrics["staircase"]
    edges = np.arange(len(NATS) + 1)
    heading(left, "log K - L in training, K = 64 (nats)")
    left.stairs(NATS, edges, baseline=None, color=INK, linewidth=3)
    left.stairs(exact, edges, baseline=None, color=ORANGE, linewidth=3)
    for curve in curves:
        left.plot((np.arange(len(curve)) + 0.5) / len(curve) * len(NATS), curve, color=BLUE, linewidth=2)
    left.axhline(math.log(64), color=GREY, linestyle="--", linewidth=1.5)
    left.text(0.05, math.log(64) + 0.1, "cap, log 64", color=GREY, fontsize=14)
    note(left, 2.9, 6.3, "information I", INK, ha="right")
    note(left, 4.95, 2.2, "best critic, exact", ORANGE, ha="right")
    note(left, 4.95, 1.3, "learned critic, each seed", BLUE, ha="right")
    left.set(xlabel="stages of training: I rises by 2 nats", ylim=(0, 10.5), xlim=(0, len(NATS)))

    heading(right, "best critic (dots: drawn; dashed: cap)")
    right.plot(NATS, NATS, color=INK, linewidth=3)
    note(right, 6.8, 8, "information I", INK, ha="right")
    for K, colour in zip(CANDIDATES, (ORANGE, BLUE, GREEN)):
        bound = metrics[f"exact, K = {K}"][0]
        right.plot(NATS, bound, color=colour, linewidth=3)
        right.plot(NATS, metrics[f"drawn, K = {K}"].mean(axis=0), "o", color=colour, markersize=8)
        right.axhline(math.log(K), color=colour, linestyle="--", linewidth=1.5)
        note(right, NATS[-1] + 0.35, bound[-1] - 0.35, f"K = {K}", colour, ha="right", va="top")
    right.set(xlabel="information I (nats)", ylim=(0, 10.5), xticks=NATS)
    write_figure(figure, path)
