"""Claim 16: the future is predictable in latent space: CPC on a hidden rotation, of which all is known exactly."""

import numpy as np

from cpc_sequences import build, predict, predict_from_states, prediction_losses
from minicl.backend import threads
from minicl.viz import write_figure
from sequences import Rotation, generate_rotations, time_first
from .laboratory import QUALITATIVE, NOT_REPRODUCED, Claim, mean_std, mean_stds
from .slides import BLUE, GREY, ORANGE, chance, heading, line, note, percent, slide
from .training import descend

WINDOW = 4

CLAIM = Claim(
    number=16, name="prediction",
    title="The future is predictable in latent space, less so further ahead",
    statement="From the past of a sequence, the true window k steps ahead is picked from among those of other "
              "sequences far more often than by chance, without predicting any sample. The accuracy falls with k, as "
              "past and future share less information.",
    mathematics="""\
```text
z_t = encoder(window t)      c_t = GRU(z_1 ... z_t)      score of z for k ahead: z . W_k c_t
L_k = mean of -log softmax over the B sequences of the batch, at the same time t + k;      chance 1/B
```

In each of 4 planes a hidden point turns by its own angle a step and forgets by a = 0.98; one coordinate of each is
observed, mixed and with noise. Over g steps the states share -4 log(1 - a^(2g)) nats, g = 4 (k - 1) + 1 from the
end of one window to the start of the other, and no critic picks more often than the one that sees them.""",
    source="van den Oord, Li, Vinyals 2018 (CPC), section 3.1 and figure 4; [docs/methods/cpc.md](methods/cpc.md)",
    published={"CPC": "above chance, falling with k", "without a memory, c = z": "below CPC"},
    next="Let the negatives come from other times of the same sequence. Does it get harder or easier, and is "
         "log B - L still a bound? Then try images, row by row: python examples/cpc_sequences.py --data mnist-rows.")


def measure(setting):
    sequences = setting.pick((1000, 256), (8000, 1024), (64_000, 4096))
    batch = setting.pick(32, 64, 256)
    ahead = setting.pick(4, 6, 6)
    steps = setting.pick(90, 600, 4000)
    rotation = setting.pick(Rotation(noise=0.25), Rotation(), Rotation())    # learned sooner with little noise
    data = generate_rotations(rotation, *sequences, seed=setting.seed)
    metrics = {"chance": 1 / batch}
    with threads(1):                                         # these products are too small to share
        for name in ("CPC", "without a memory, c = z", "untrained"):
            model = build(data.train.shape[2], WINDOW, ahead, context="none" if "without" in name else "gru",
                          rng=np.random.default_rng(setting.seed)).to(setting.xp)
            if name != "untrained":
                learn(model, data.train, setting, steps=steps, batch=batch)
            metrics[name], metrics[f"{name}: nats"] = predict(model, data.test, batch, setting.xp).values()
            setting.print(f"    {name}: " + ", ".join(f"{value:.3f}" for value in metrics[name]))
        best = predict_from_states(rotation, data.test_states, WINDOW, ahead, batch)
        metrics["hidden states"], metrics["hidden states: nats"] = best.values()
    return metrics


def learn(model, train, setting, *, steps, batch):
    """Train CPC on sequences (N, T, C) by the mean InfoNCE of its predictions."""
    def objective(chosen):
        losses = prediction_losses(model, time_first(train[chosen], setting.xp))
        return sum(losses) * (1 / len(losses)), None

    for _ in descend(model, objective, len(train), setting, steps=steps, batch=batch, lr=3e-3):
        pass


def verdict(metrics):
    """At each k and in every seed: at least twice chance, below the best critic, and falling with k."""
    cpc = metrics["CPC"]
    memoryless = metrics["without a memory, c = z"]
    level = metrics["chance"][0]
    near, far = ([mean_std(values[:, k], ".1f", " %") for values in (cpc, memoryless)] for k in (0, -1))
    reason = (f"the true future is picked among {1 / level:.0f} in {near[0]} of the cases one window ahead, and in {far[0]} "
              f"{cpc.shape[1]} windows ahead; without a memory in {near[1]} and {far[1]}")
    for wrong, what in (((cpc < 2 * level).any(), "it is not above chance at each k"),
                        ((np.diff(cpc, axis=1) >= 0).any(), "it does not fall with k"),
                        ((cpc > metrics["hidden states"]).any(), "it is above the best critic")):
        if wrong:
            return NOT_REPRODUCED, f"{what}: {reason}"
    return QUALITATIVE, reason


def table(metrics):
    ks = range(1, metrics["CPC"].shape[1] + 1)

    def row(name, form, unit=""):
        return mean_stds(metrics[name], form, unit)

    return [("windows ahead, k", "", ", ".join(map(str, ks))),
            *((f"{name}, picked", CLAIM.published.get(name, ""), row(name, ".1f", " %")) for name in
              ("CPC", "without a memory, c = z", "untrained", "hidden states")),
            ("chance", "", f"{100 * metrics['chance'][0]:.2f} %"),
            ("CPC's bound, nats", "", row("CPC: nats", ".2f")),
            ("information of the hidden states, nats", row("hidden states: nats", ".2f"), "")]


def draw(metrics, path):
    ks = np.arange(1, metrics["CPC"].shape[1] + 1)
    level = metrics["chance"][0]
    first = 100 * metrics["CPC"][:, 0].mean()
    last = 100 * metrics["CPC"][:, -1].mean()
    figure, [plot] = slide("The future is predictable, less so further ahead: the true\n"
                           f"one is picked {first:.0f} % to {last:.0f} % of the time, by chance {100 * level:.1f} %")
    heading(plot, f"true future picked among {1 / level:.0f}")
    percent(plot)
    plot.set(xlim=(0.8, len(ks) + 0.2), ylim=(0, 104), xticks=ks, xlabel="windows ahead")
    for name, colour, words, k, above in (("hidden states", GREY, "the best critic, from the hidden states", 3, 4),
                                          ("CPC", BLUE, "CPC, with a memory", 2, 4),
                                          ("without a memory, c = z", ORANGE, "CPC without a memory", 1, -24)):
        values = 100 * metrics[name]
        line(plot, ks, values, colour)
        note(plot, k, values[:, k - 1].mean() + above, words, colour)
    chance(plot, 100 * level, va="bottom")
    write_figure(figure, path)
