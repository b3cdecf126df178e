"""The gradient of a contrastive loss as push and pull: the share of each candidate in one anchor's gradient.

The gradient of an anchor's NT-Xent loss with respect to its cosines s_ij is

    dl_i/ds_ij = p_ij / tau  for a negative,   dl_i/ds_i+ = -(1 - p_i+) / tau  for the positive

with p the softmax of s_i / tau over all candidates: negatives push with p_ij, in sum as strongly as the positive pulls.
At a low temperature only the few most similar negatives push.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .autograd import Tensor
from .backend import array_module, to_host
from .checks import require_integers, require_ordered, require_unmasked
from .contrastive.checks import require_arrays, require_pairs, require_temperature
from .contrastive.cosine import l2_normalize
from .signature import require_float_array
from .typing import Array


def explain_pairs(z1: Tensor | Array, z2: Tensor | Array, tau: float | Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0), *,
                  anchor: int = 0, names: Sequence[str] | None = None) -> "Pairs":
    """Push and pull on one anchor of nt_xent(z1, z2, tau): print it, or .draw(path) it.

    z1, z2  two views (N, d) of N items, Tensors or arrays; lengths do not matter
    tau     a temperature > 0, or several to compare
    anchor  0 to 2N - 1: view 1 of item `anchor`, from N on view 2 of item `anchor - N`
    names   N words for the items; default: "item 0", ...

    Raises ValueError for arguments that do not fit.
    """
    z1, z2 = (z.data if isinstance(z, Tensor) else z for z in (z1, z2))
    require_arrays("explain_pairs", z1=z1, z2=z2)
    require_float_array("explain_pairs: z1", z1)
    require_float_array("explain_pairs: z2", z2)
    require_pairs("explain_pairs", z1, z2, at_least=2)
    require_unmasked("explain_pairs: tau", tau)
    is_several = isinstance(tau, (Sequence, np.ndarray)) and not isinstance(tau, str) and np.ndim(tau) > 0
    taus: list[Any] = list(tau) if is_several else [tau]          # type: ignore[arg-type]
    for t in taus or [None]:
        require_temperature("explain_pairs", t)
    taus = [float(t) for t in taus]
    N = len(z1)
    require_integers("explain_pairs", 0, 2 * N - 1, "one of the 2N views", anchor=anchor)
    require_ordered("explain_pairs", names=names)
    names = [f"item {k}" for k in range(N)] if names is None else list(map(str, names))
    if len(names) != N:
        raise ValueError(f"explain_pairs: expected {N} names, one per item, got {len(names)}")
    u = l2_normalize.forward(array_module(z1).concatenate([z1, z2]).astype("float64"))[0]            # (2N, d)
    s = to_host(u @ u[anchor])                                               # (2N,) cosines
    views = [f"{name}, view {view}" for view in (1, 2) for name in names]
    positive = (anchor + N) % (2 * N)
    negatives = np.array([j for j in np.argsort(-s, kind="stable") if j not in (anchor, positive)])
    return Pairs(views[anchor], views[positive], s[positive], [views[j] for j in negatives], s[negatives], taus)


class Pairs:
    """Push and pull of an anchor's K = 2N - 2 negatives and its positive, at T temperatures.

    similarity ()   cosine of the positive;  similarities (K,) of the negatives, falling, with their negative_names
    push (T, K)     p_ij, the weight of each negative in the gradient
    pull (T,)       1 - p_i+, that of the positive: the sum of the pushes
    loss (T,)       -log p_i+
    effective (T,)  1 / sum_j (p_ij / pull)^2, the effective number of negatives: how many share the push, 1 to K
    """

    def __init__(self, anchor, positive, similarity, negative_names, similarities, taus):
        self.anchor = anchor
        self.positive = positive
        self.similarity = similarity
        self.negative_names = negative_names
        self.similarities = similarities
        self.taus = taus
        self.push, self.pull, self.loss, self.effective = self._at(np.array(taus))

    def _at(self, taus):
        """push, pull, loss and effective at temperatures (T,)."""
        x = (self.similarities - self.similarity) / taus[:, None]            # (T, K): scores above the positive's
        top = np.maximum(x.max(axis=1, keepdims=True), 0)
        e = np.exp(x - top)
        others = e.sum(axis=1, keepdims=True)
        total = others + np.exp(-top)
        push = e / total
        loss = np.where(top > 0, top + np.log(total), np.log1p(others))      # log1p: many digits where the others are small
        effective = 1 / (self._share(taus)**2).sum(axis=1)
        return push, push.sum(axis=1), loss[:, 0], effective

    def _share(self, taus):
        """p_ij / (1 - p_i+) at temperatures (T,): no 0/0 where the pull is 0."""
        x = (self.similarities - self.similarities[0]) / taus[:, None]       # (T, K): the first is the most similar
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    def table(self, rows: int = 8) -> str:
        """The `rows` most similar negatives one by one, the others together; a column a temperature."""
        K = len(self.similarities)
        width = max(24, *(len(name) for name in self.negative_names[:rows]))

        def line(name, cosine, numbers, digits=4):
            cosine = f"{cosine:8.3f}" if cosine is not None else " " * 8
            return f"{name:<{width}} {cosine}   " + "".join(f"{number:10.{digits}f}" for number in numbers)

        lines = [f"anchor: {self.anchor}; positive: {self.positive}; {K} negatives", "",
                 f"{'tau':<{width}}   cosine   " + "".join(f"{tau:10g}" for tau in self.taus), "",
                 "push of a negative, p_ij"]
        lines += [line(name, s, p) for name, s, p in
                  zip(self.negative_names[:rows], self.similarities, self.push.T)]
        if K > rows:
            lines.append(line(f"the {K - rows} others", None, self.push[:, rows:].sum(axis=1)))
        lines += ["", line("pull, 1 - p_i+", self.similarity, self.pull),
                  line("pull / tau", None, self.pull / self.taus, 3),
                  line("effective negatives", None, self.effective, 1), line("loss, -log p_i+", None, self.loss)]
        return "\n".join(lines)

    __str__ = __repr__ = table

    def draw(self, path: str | Path) -> None:
        """The same as a picture: each negative's share of the push by its cosine; pull and effective negatives by tau."""
        from . import viz  # here: matplotlib is slow to import

        if viz.Figure is None:
            raise ImportError(f"explain_pairs(...).draw: {viz.MISSING}; print(explain_pairs(...)) works without it")
        figure = viz.Figure(figsize=(10, 3.8), dpi=110)
        left, right = figure.subplots(1, 2)
        K = len(self.similarities)
        order = np.argsort(self.taus)
        share = self._share(np.array(self.taus))
        for rank, k in enumerate(order):
            colour = _between(viz.RED, viz.BLUE, rank / max(1, len(order) - 1))
            left.plot(self.similarities, share[k], ".-", color=colour, linewidth=1, markersize=5,
                      label=f"{self.taus[k]:g}: pull {self.pull[k]:.3f}")
        left.axvline(self.similarity, color=viz.GREY, linestyle="--", linewidth=1)
        left.text(self.similarity, 0.97, " positive ", ha="right", va="top", fontsize=8, color=viz.GREY, rotation=90,
                  transform=left.get_xaxis_transform())
        left.set(xlabel="cosine of a negative to the anchor", ylabel="its share of the push, $p_{ij} / (1 - p_{i+})$",
                 ylim=(0, None), title=f"which negatives push {self.anchor}")
        left.legend(title="tau", fontsize=8, title_fontsize=8, frameon=False, loc="upper left")

        sweep = np.geomspace(min(0.02, *self.taus), max(2.0, *self.taus), 120)
        _, pull, _, effective = self._at(sweep)
        right.plot(sweep, pull, color=viz.BLUE, label="pull $1 - p_{i+}$ = all pushes together")
        right.plot(sweep, effective / K, color=viz.RED, label=f"effective negatives, share of {K}")
        for tau in self.taus:
            right.axvline(tau, color=viz.GREY, linewidth=0.6, alpha=0.5)
        right.set(xlabel="temperature tau", xscale="log", ylim=(0, 1.05), title="how tau moves them")
        right.set_xticks(self.taus, [f"{tau:g}" for tau in self.taus])
        right.minorticks_off()
        right.legend(fontsize=8, frameon=False, loc="upper left")
        viz.save_figure(figure, path)


def _between(first, last, share):
    """The colour that lies `share` of the way from first to last, both "#rrggbb"."""
    (a, b) = ([int(colour[k:k + 2], 16) for k in (1, 3, 5)] for colour in (first, last))
    return tuple((x + share * (y - x)) / 255 for x, y in zip(a, b))
