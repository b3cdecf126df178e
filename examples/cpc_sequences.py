"""CPC on sequences: learn to predict the future from the past, by choosing the true future among others.

    python examples/cpc_sequences.py                     # CPU: a hidden rotation seen through noise
    python examples/cpc_sequences.py --data mnist-rows   # MNIST images as sequences of their rows
    python examples/cpc_sequences.py --backend cupy
    mpirun -n 4 python examples/cpc_sequences.py         # four processes share every batch

Windows of a sequence are encoded, a GRU summarises those seen so far, and its state predicts the encodings of the
windows k = 1, 2, ... ahead. The accuracy of choosing the true one among those of the batch's other sequences is
measured on test sequences, and compared with chance and, for the rotation, with a critic that sees the hidden states.
"""

import math

import numpy as np

from known_information import gaussian_information, log_density_ratio
from minicl import capture, get_backend, no_grad, viz
from minicl.backend import peak_memory_mib, threads
from minicl.contrastive import choice_accuracy, info_nce_from_scores
from minicl.data import Batches
from minicl.distributed import ALONE, get_world
from minicl.evaluate import infonce_bound, linear_probe
from minicl.methods import CPC, WindowEncoder
from minicl.nn import GRU
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options
from minicl.run import Run, RunError, command
from plots import line_plots
from sequences import SEQUENCES, Rotation, load_sequences, time_first

WINDOW = {"rotation": 4, "mnist-rows": 2, "digit-rows": 2}             # samples that one z_t sees
NOTES = {
    "accuracy": "how often the window k ahead is picked, from among as many as the batch has sequences",
    "bound": "nats that past and future share, at least (the mean over all times)",
    "oracle": "the accuracy of the best critic that sees the hidden states",
    "information": "nats that those states share, exactly",
}


def main():
    parser = options(__doc__, epochs=6, batch=64, lr=3e-3, tau=1.0, data=SEQUENCES)
    parser.add_argument("--window", type=at_least(1), help="samples per window; default: 4, or 2 for image rows")
    parser.add_argument("--ahead", type=at_least(1), default=6, help="number of windows ahead to predict")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=32, help="dimension of z")
    parser.add_argument("--context", default="gru", choices=("gru", "none"), help="what summarises the past; none: c = z")
    parser.add_argument("--hidden", type=at_least(2, 2**14), default=128, help="dimension of the context c of a gru")
    parser.only_with("--context gru", "--hidden")
    args = parser.parse_args()
    window = args.window or WINDOW[args.data]

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "cpc_sequences", world)
    rng = np.random.default_rng(args.seed)

    # Data: sequences on the host, (N, T, C).
    rotation = Rotation()
    data = run.once(load_sequences, args.data, args.data_dir, rotation=rotation, seed=args.seed, log=run.print)
    N, T, C = data.train.shape
    test = len(data.test)
    run.print(f"data: {data.name}, {N} training and {test} test sequences of {T // window} windows of {window} x {C}")
    if 2 * window > T:
        raise RunError(f"--window {window}: a sequence has {T} samples, so expected at most {T // 2}")
    if args.ahead >= T // window:
        raise RunError(f"--ahead {args.ahead}: a sequence has {T // window} windows of {window}, so at most "
                       f"{T // window - 1} can be ahead; give fewer, or a smaller --window")
    if args.batch > test:
        raise RunError(f"--batch {args.batch}: there are {test} test sequences to choose among; give a smaller batch")
    batches = Batches(N, args.batch, seed=args.seed)

    # Encoder, context, and a linear prediction for each window ahead.
    model = build(C, window, args.ahead, dim=args.dim, context=args.context, hidden=args.hidden, rng=rng).to(xp)
    model.across(world)
    optimizer = AdamW(model, args.lr)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(x, lr):
        """One training step: x (T, N, C) -> the mean InfoNCE of all predictions, that of the first, that of the last."""
        losses = prediction_losses(model, x, args.tau, world)
        loss = sum(losses) * (1 / args.ahead)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lr)
        return loss, losses[0], losses[-1]

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads or 1, keep_memory=args.keep_memory):             # these products are too small to share
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            loss, first, last = train(time_first(data.train[batches[step][world.part]], xp), lr)

            if run.logs(step):
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), lr=lr,
                        first=first.item(), last=last.item())

        # Evaluation on test sequences: the choice at each k, and a probe of the last c for the class, if there is one.
        run.print("picking the future of test sequences")
        metrics = predict(model, data.test, args.batch, xp, args.tau, world)
        if data.test_states is not None:
            metrics |= predict_from_states(rotation, data.test_states, window, args.ahead, args.batch)
        classes = {} if data.train_labels is None else {"probe_c": linear_probe(
            last_context(model, data.train, xp), data.train_labels,
            last_context(model, data.test, xp), data.test_labels, world=world)}

    if world.rank == 0:
        draw(run, metrics, args)
    run.finish({"data": data.name, "backend": args.backend, "seed": args.seed,
                "chance": 1 / args.batch, "cap_nats": math.log(args.batch),
                **{f"{name}_{k}": value for name in metrics for k, value in enumerate(metrics[name], start=1)},
                **classes, "seconds": run.elapsed(), "seconds_per_epoch": run.seconds / args.epochs,
                "peak_mib": peak_memory_mib(xp)},
               [f"{name}_k: {NOTES[name]}" for name in metrics])


def build(channels, window, ahead, *, dim=32, context="gru", hidden=128, rng):
    """CPC with a GRU of `hidden` units as context, or, for "none", only the last window."""
    encoder = WindowEncoder(channels, window, features=dim, rng=rng)
    context = GRU(dim, hidden, rng=rng) if context == "gru" else None
    return CPC(encoder, context, ahead, rng=rng)


def choices(model, x):
    """For each k = 1, 2, ... and sequences x (T, B, C): the scores of the B candidates, and the ids of the true ones."""
    z, c = model(x)                                                                  # (T', B, d), (T', B, H)
    return [model.scores(z, c, k) for k in range(1, len(model.predictors) + 1)]


def prediction_losses(model, x, tau=1.0, world=ALONE):
    """InfoNCE of the predictions for each k = 1, 2, ... of sequences x (T, B, C)."""
    return [info_nce_from_scores(scores, ids, tau, world=world) for scores, ids in choices(model, x)]


def predict(model, sequences, batch, xp, tau=1.0, world=ALONE):
    """{"accuracy", "bound": values at k = 1, 2, ...}, over test sequences in batches of the training's size."""
    values = []
    with no_grad():
        for lo in range(0, len(sequences) - batch + 1, batch):
            values.append([(float(world.mean(choice_accuracy(scores.data, ids))),
                            infonce_bound(info_nce_from_scores(scores, ids, tau, world=world).item(), batch).nats)
                           for scores, ids in choices(model, time_first(sequences[lo:lo + batch][world.part], xp))])
    accuracy, bound = np.mean(values, axis=0).T.tolist()
    return {"accuracy": accuracy, "bound": bound}


def predict_from_states(rotation, states, window, ahead, batch):
    """{"oracle", "information": values at k = 1, 2, ...}: the optimal critic's accuracy between the last hidden state
    of window t and the first of window t + k, and the nats that they share. States are a Markov chain, so earlier states
    add no information."""
    accuracy = []
    information = []
    last = range(window - 1, rotation.length, window)
    batches = [states[lo:lo + batch] for lo in range(0, len(states) - batch + 1, batch)]
    for k in range(1, ahead + 1):
        gap = (k - 1) * window + 1                           # steps from one state to the other
        rho = rotation.decay**gap
        information.append(gaussian_information(rho, 2 * rotation.planes))
        scores = [log_density_ratio(rotation.turned(s[:, t], gap), s[:, t + gap], rho)
                  for s in batches for t in last if t + gap < rotation.length]
        accuracy.append(float(np.mean([choice_accuracy(one, np.arange(batch)) for one in scores])))
    return {"oracle": accuracy, "information": information}


def last_context(model, sequences, xp, batch=1000):
    """c after the last window: (N, H)."""
    with no_grad():
        return xp.concatenate([model(time_first(sequences[lo:lo + batch], xp))[1].data[-1]
                               for lo in range(0, len(sequences), batch)])


def draw(run, metrics, args):
    """Accuracy and information against k."""
    ks = list(range(1, args.ahead + 1))
    looks = {"CPC": {"color": viz.BLUE, "marker": "o"}, "hidden states": {"color": viz.RED, "marker": "o"}}

    def plot(learned, hidden, level, label, **settings):
        lines = [(who, ks, metrics[name], looks[who]) for who, name in (("hidden states", hidden), ("CPC", learned))
                 if name in metrics]
        lines.append((label, ks, [level] * len(ks), {"color": viz.GREY, "linestyle": "--"}))
        return {"lines": lines, "xlabel": "windows ahead, k", **settings}

    line_plots(
        run.folder / "prediction.png",
        plot("accuracy", "oracle", 1 / args.batch, f"chance, 1/{args.batch}", ylabel="accuracy", ylim=(0, 1.05),
             title=f"the true future, picked from {args.batch}"),
        plot("bound", "information", math.log(args.batch), f"cap, log {args.batch}", ylabel="nats", ylim=(0, None),
             title="what the past predicts of the future"))


if __name__ == "__main__":
    command(main)
