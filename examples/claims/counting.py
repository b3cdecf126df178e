"""Claim 3: how many negatives a batch gives, how many bits they can show, and a run that reaches just that many."""

import math

import numpy as np

from minicl import Tensor
from minicl.backend import to_device
from minicl.contrastive import nt_xent
from minicl.evaluate import encode, infonce_bound
from minicl.methods import SimCLR
from minicl.nn import MLP, projection_head
from minicl.viz import write_figure
from known_information import symbol_estimates
from .laboratory import NOT_REPRODUCED, REPRODUCED, Claim, mean_std, mean_stds
from .slides import BLUE, GREY, INK, ORANGE, heading, line, note, slide
from .training import contrastive, train

IMAGES = 256
TAU = 0.05
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

CLAIM = Claim(
    number=3, name="counting",
    title="A batch of N images gives 2(N-1) negatives, and they can show log(2N-1) nats at most",
    statement="In NT-Xent every view chooses its partner among 2N - 1 others, so a collapsed encoder loses exactly "
              "log(2N-1), and no encoder can gain more than that. Doubling the batch raises the cap by one bit, "
              "whatever the images are.",
    mathematics="""\
```text
negatives   2(N-1): both views of the N - 1 other images
collapse    all scores equal:  L = log(2N-1)
cap         log(2N-1) - L <= log(2N-1) nats = log2(2N-1) bits
bits B      need more than 2^B / 2 images in a batch
```

The run that saturates: 256 images, the same in both views, so that I = log 256 = 8 bits exactly. An MLP learns to
tell them apart; then batches of N are drawn with replacement. Small batches reach their cap, large ones the 8 bits
(the exact optimum is claim 2's sum; it ends slightly above I, since NT-Xent's estimate is not a bound).""",
    source="Chen et al. 2020 (SimCLR), equation 1; closed form",
    next="CLIP's loss has N candidates, MoCo's 1 + queue: which N gives CLIP the 9 bits that SimCLR gets from 256 "
         "images? And what changes in the picture with 64 images instead of 256?",
    published={"negatives, N = 256": "510", "cap, N = 256, nats": "6.24", "cap, N = 256, bits": "9.00",
               "negatives, N = 4096": "8190", "cap, N = 4096, nats": "9.01", "cap, N = 4096, bits": "13.00",
               "collapsed loss - log(2N-1)": "0", "largest estimate - cap": "never above 0"})


def exact(N):
    """The closed form, with the names of the metrics."""
    bound = infonce_bound(0.0, 2 * N - 1)
    return {f"negatives, N = {N}": 2 * (N - 1),
            f"cap, N = {N}, nats": bound.cap, f"cap, N = {N}, bits": bound.cap_bits}


def measure(setting):
    metrics = {}
    off = []
    for N in (256, 4096):
        z = Tensor(to_device(np.ones((N, 2)), setting.xp))                   # collapsed: everything at one place
        loss = nt_xent(z, z, 0.5).item()
        metrics.update(zip(exact(N), (math.exp(loss) - 1, loss, loss / math.log(2))))
        off.append(abs(loss - math.log(2 * N - 1)))
    reached = saturate(setting, steps=setting.pick(100, 400, 400), draws=setting.pick(40, 500, 5000))
    return {**metrics, "collapsed loss - log(2N-1)": max(off),
            "largest estimate - cap": max(nats - math.log(2 * N - 1) for nats, N in zip(reached, BATCHES)),
            "reached": reached, "best": [symbol_estimates(IMAGES, N).nt_xent for N in BATCHES]}


def saturate(setting, *, steps, draws):
    """log(2N-1) - L in nats for each N of BATCHES, of an encoder that has learned to tell the images apart;
    `draws` batches of each."""
    images = setting.images(IMAGES, 1).train_images
    rng = np.random.default_rng(setting.seed)
    encoder = MLP(images.shape[1:], (256, 128), rng=rng)
    model = SimCLR(encoder, projection_head("linear", encoder.features, dim=128, rng=rng)).to(setting.xp)
    train(model, contrastive(TAU), images, setting, steps=steps, lr=1e-3, views=lambda images, rng: (images, images))
    z = encode(model, images, setting.xp)[1]
    reached = []
    for N in BATCHES:
        drawn = (z[to_device(rng.integers(0, IMAGES, N), setting.xp)] for _ in range(draws))
        losses = [nt_xent(Tensor(batch), Tensor(batch), TAU).item() for batch in drawn]
        reached.append(infonce_bound(float(np.mean(losses)), 2 * N - 1).nats)
    return reached


def verdict(metrics):
    wrong = [name for N in (256, 4096) for name, value in exact(N).items()
             if np.abs(metrics[name] - value).max() > 0.005]
    if wrong:
        return NOT_REPRODUCED, f"{', '.join(wrong)}: not the closed form's"
    if metrics["collapsed loss - log(2N-1)"].max() > 1e-9 or metrics["largest estimate - cap"].max() > 0:
        return NOT_REPRODUCED, "a collapsed encoder does not lose log(2N-1), or some encoder gains more"
    short = np.abs(metrics["reached"] - metrics["best"]).max()
    if short > 0.1:
        return NOT_REPRODUCED, f"the run that should saturate misses the best possible value by {short:.2f} nats"
    return REPRODUCED, (f"the run is within {short:.2f} nats of the best possible for every N from {BATCHES[0]} "
                        f"to {BATCHES[-1]}; the closed form agrees to the digits given")


def table(metrics):
    forms = {"negatives": ".0f", "cap": ".2f", "collapsed loss": ".0e", "largest estimate": ".4f"}
    rows = [(name, CLAIM.published[name], mean_std(values, next(form for start, form in forms.items()
                                                                   if name.startswith(start))))
            for name, values in metrics.items() if values.ndim == 1]
    caps, best = (", ".join(f"{nats:.2f}" for nats in values)
                  for values in ((math.log(2 * N - 1) for N in BATCHES), metrics["best"][0]))
    return rows + [(f"cap in nats, N = {', '.join(map(str, BATCHES))}", caps, ""),
                   (f"reached by the encoder, {IMAGES} images", best,
                    mean_stds(metrics["reached"], ".2f"))]


def draw(metrics, path):
    bits = 1 / math.log(2)
    known = math.log2(IMAGES)
    reached = metrics["reached"] * bits
    least, most = reached[:, [0, -1]].mean(axis=0)
    figure, [plot] = slide(f"A small batch shows what its cap allows, {least:.2f} bits at N = {BATCHES[0]};\n"
                           f"a large one shows all there is, {most:.2f} of {known:.0f} bits", bottom=0.15)
    plot.set_xscale("log", base=2)
    plot.plot(BATCHES, [infonce_bound(0.0, 2 * N - 1).cap_bits for N in BATCHES], color=GREY, linestyle="--",
              linewidth=2)
    note(plot, 200, 9.6, "cap, log2(2N-1)", GREY, ha="right")
    plot.axhline(known, color=INK, linewidth=1.5)
    plot.text(BATCHES[0], known + 0.15, f"information, log2 {IMAGES} = {known:.0f} bits", fontsize=15, color=INK)
    plot.plot(BATCHES, metrics["best"][0] * bits, color=ORANGE, linewidth=3.5)
    line(plot, BATCHES, reached, BLUE, linestyle="none")
    note(plot, BATCHES[-1], 6.2, "best possible, exact sums", ORANGE, ha="right", va="top")
    note(plot, BATCHES[-1], 5.2, "learned encoder (dots)", BLUE, ha="right", va="top")
    heading(plot, "log2(2N-1) - L / log 2 (bits)")
    plot.set(xticks=BATCHES, xticklabels=BATCHES, xlabel="N, images in the batch", ylim=(0, 11.5))
    write_figure(figure, path)
