"""Write docs/play.html, an interactive page: points on a circle, the loss, and the force on every point.

    python examples/make_play.py

One file without network or framework, made from examples/play/. The browser computes the same as minicl; the formulas
come from docs/gradients. The page contains a few cases computed by minicl and compares its own numbers with them whenever
it is opened.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from minicl import Tensor
from minicl.contrastive import composed, cosine_similarity, info_nce, log_softmax, nt_xent
from minicl.evaluate import alignment, uniformity, uniformity_floor
from minicl.ops import where

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "examples/play"
PAGE = ROOT / "docs/play.html"

IMAGES = 6
DIGITS = 10           # decimals of minicl's numbers: more would differ between processors


def on_circle(angles):
    """z (2N, 2) of 2N angles: view 1 of the N images, then view 2."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def reference(angles, tau, loss, anchor):
    """What minicl computes for these points: a dict of floats and arrays, in the page's words.

    angles (2N,) radians; loss "nt_xent", or "info_nce" for the point `anchor` as the only query.
    """
    z = on_circle(np.asarray(angles, dtype=np.float64))
    n = len(angles)
    N = n // 2
    temperature = Tensor(np.array(float(tau)), requires_grad=True)
    if loss == "nt_xent":
        leaves = [Tensor(z[:N], requires_grad=True), Tensor(z[N:], requires_grad=True)]
        rows = [np.arange(N), np.arange(N, n)]                               # which points each leaf holds
        L = nt_xent(*leaves, temperature)
    else:
        positive = (anchor + N) % n
        rows = [np.array([anchor]), np.array([positive]), np.setdiff1d(np.arange(n), [anchor, positive])]
        leaves = [Tensor(z[ids], requires_grad=True) for ids in rows]
        L = info_nce(*leaves, temperature)
    L.backward()
    forces = np.zeros_like(z)
    for ids, leaf in zip(rows, leaves):
        forces[ids] = -leaf.grad                                             # (2N, 2)

    # The same loss composed, for the softmax that every point has as an anchor, and for the gradient by cosines.
    similarity = Tensor(cosine_similarity(z, z).data, requires_grad=True)    # (2N, 2N)
    y = log_softmax(where(np.eye(n, dtype=bool), composed.EXCLUDED, similarity), float(tau))
    ids = np.arange(n) if loss == "nt_xent" else np.array([anchor])
    (-y[ids, (ids + N) % n].mean()).backward()
    p = np.exp(y.data)
    lack = np.where(np.arange(n) == (np.arange(n)[:, None] + N) % n, 0, p).sum(axis=1)   # of the negatives: 1 - p_i+
    return {"loss": L.item(), "chance": float(np.log(n - 1)), "dtau": float(temperature.grad), "forces": forces,
            "similarity": similarity.data, "ds": similarity.grad, "softmax": p, "row": p[anchor], "lack": lack,
            "alignment": alignment(z[:N], z[N:]), "uniformity": (uniformity(z[:N]) + uniformity(z[N:])) / 2}


def drawn_apart(rng, gap=0.2):
    """Random angles (2N,), views about a radian from each other, and no two points too close to take hold of one."""
    while True:
        first = rng.uniform(0, 2 * np.pi, IMAGES)
        angles = np.concatenate([first, first + rng.normal(0, 1, IMAGES)])
        around = np.sort(angles % (2 * np.pi))
        if np.diff(around, append=around[0] + 2 * np.pi).min() > gap:
            return angles


def presets(rng):
    """[(name, 2N angles, what to look for)]."""
    even = np.arange(IMAGES) * 2 * np.pi / IMAGES + np.pi / 2
    twins = even.copy()
    twins[:2] = even[:2].mean() + np.array([-0.11, 0.11])
    best = reference(np.tile(even, 2), 0.2, "nt_xent", 0)
    false = reference(np.concatenate([twins, twins]), 0.2, "nt_xent", 0)
    apart = reference(np.concatenate([even, even + 2 * np.pi / IMAGES]), 0.2, "nt_xent", 0)
    return [
        ("random", drawn_apart(rng),
         "Drag a point, or let them run: views of one image (one colour) meet, and the images spread."),
        ("collapsed", np.full(2 * IMAGES, np.pi / 2),
         f"All at one place: every candidate is as likely as any other, so the loss is log\u00a0{2 * IMAGES - 1} = "
         f"{best['chance']:.3f} at any temperature. Perfectly aligned, and no force at all: pull one point away, "
         "then run."),
        ("aligned + uniform", np.concatenate([even, even]),
         f"Views meet, images keep apart: NT-Xent is {best['loss']:.3f} at \u03c4 = 0.2, and its forces "
         "cancel. The remaining loss comes from the neighbours, which a lower temperature hardly sees."),
        ("uniform only", np.concatenate([even, even + 2 * np.pi / IMAGES]),
         "As spread out as before, but each view sits with another image: uniformity is the best there is, and "
         f"NT-Xent {apart['loss']:.3f} at \u03c4 = 0.2, above chance: uniformity cannot tell what belongs together."),
        ("false negative", np.concatenate([twins, twins]),
         "Images A and B show the same thing, and the encoder has noticed. The loss has not: they are negatives. "
         f"NT-Xent is {false['loss']:.3f}, not {best['loss']:.3f} (\u03c4 = 0.2); its forces drive the two apart."),
    ]


def cases(rng):
    """Points, temperatures and losses drawn for the page's self-check, with minicl's numbers."""
    drawn = []
    for N, tau, loss in ((2, 2.0, "nt_xent"), (3, 0.07, "info_nce"), (4, 0.2, "nt_xent"), (4, 0.02, "nt_xent"),
                         (5, 0.5, "info_nce")):
        state = {"angles": rng.uniform(0, 2 * np.pi, 2 * N).round(3), "tau": tau, "loss": loss,
                 "anchor": int(rng.integers(2 * N))}
        drawn.append({"state": state, "minicl": reference(**state)})
    return drawn


def formulas(page):
    """The labelled formulas on top of docs/gradients/PAGE.md, which a test compares with the code's docstrings."""
    text = (ROOT / f"docs/gradients/{page}.md").read_text(encoding="utf-8")
    return re.search(r"^```text\n(.*?)^```$", text, re.M | re.S)[1].rstrip()


def rounded(x):
    """Arrays and floats within x as lists and floats of DIGITS decimals, for json."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [rounded(value) for value in x]
    return round(float(x), DIGITS) + 0.0 if isinstance(x, (float, np.floating)) else x     # + 0.0: no -0.0


def html():
    """The page as one string."""
    rng = np.random.default_rng(7)
    even = [float(uniformity(on_circle(np.arange(N) * 2 * np.pi / N))) for N in range(2, 9)]
    data = {"presets": [{"name": name, "angles": angles, "look": look} for name, angles, look in presets(rng)],
            "floor": uniformity_floor(2), "evenUniformity": dict(zip(range(2, 9), even)), "cases": cases(rng)}
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    fill = {name: (PARTS / name).read_text(encoding="utf-8") for name in ("page.css", "numbers.js", "page.js")}
    fill |= {page: _escape(formulas(page)) for page in ("info_nce", "nt_xent", "alignment_uniformity")}
    fill |= {"data": json.dumps(rounded(data), separators=(",", ":"))}
    return re.sub(r"\{\{([\w.]+)\}\}", lambda name: fill[name[1]].rstrip(), template)


def _escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    PAGE.write_text(html(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size / 1000:.1f} kB")
