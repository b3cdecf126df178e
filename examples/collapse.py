"""Collapse, and what prevents it: positives only, BYOL, SimSiam and NT-Xent from the same start.

    python examples/collapse.py                          # CPU, about two minutes
    python examples/collapse.py --backend cupy
    mpirun -n 4 python examples/collapse.py              # four processes share every batch

A loss of only the agreement of two views is minimal when all images have the same z. The negatives of NT-Xent rule that
out. BYOL and SimSiam have no negatives: a predictor and a target without gradient are enough (Grill et al. 2020; Chen & He
2021, figure 2). The script logs the standard deviation and the effective rank of z during training, and evaluates the
frozen features by a linear probe.
"""

import dataclasses

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.contrastive import alignment_loss, nt_xent
from minicl.data import Batches, load_images, mnist_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import effective_rank, embedding_std, frozen_accuracies, to_float
from minicl.methods import BYOL, SimCLR, SimSiam
from minicl.nn import ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, command
from plots import line_plots

COLOURS = {"positives only": "#cc3333", "BYOL": "#3465a4", "SimSiam": "#4e9a06", "NT-Xent": "#75507b"}


def main():
    parser = options(__doc__, epochs=8, batch=256, lr=5e-3, tau=0.2)
    parser.add_argument("--images", type=at_least(20), default=10_000,
                        help="number of training images, the first of the data")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=64, help="dimension of z")
    parser.add_argument("--momentum", type=within("[0, 1)"), default=0.9, help="momentum of BYOL's target")
    args = parser.parse_args()

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "collapse", world)
    rng = np.random.default_rng(args.seed)

    data = run.once(load_images, args.data, args.data_dir, seed=args.seed, log=run.print)
    data = dataclasses.replace(data, train_images=data.train_images[:args.images],
                               train_labels=data.train_labels[:args.images])
    run.print(f"data: {data}")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    augment = mnist_views()

    # The same encoder and head four times, from the same weights; a predictor for those that need one.
    shape = data.train_images.shape[1:]
    n = args.batch // world.size
    models = {"positives only": SimCLR(*encoder_and_head(shape, args)),
              "BYOL": BYOL(*encoder_and_head(shape, args), predictor(args), m=args.momentum),
              "SimSiam": SimSiam(*encoder_and_head(shape, args), predictor(args)),
              "NT-Xent": SimCLR(*encoder_and_head(shape, args))}
    losses = {"positives only": lambda model, views, z: alignment_loss(z[:n], z[n:], world=world),
              "BYOL": lambda model, views, z: model.loss(z, model.targets(views)),
              "SimSiam": lambda model, views, z: model.loss(z),
              "NT-Xent": lambda model, views, z: nt_xent(z[:n], z[n:], args.tau, world=world)}
    models = {name: model.to(xp).across(world) for name, model in models.items()}
    optimizers = {name: AdamW(model, args.lr) for name, model in models.items()}
    parts = {f"{kind} {name}": part for kind, group in (("model", models), ("optimizer", optimizers))
             for name, part in group.items()}

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step of each model: images (N, 28, 28, 1) uint8 -> (loss, z) of each."""
        views = xp.concatenate(two_views(augment, to_float(images, xp), rng, world))           # (2N, 28, 28, 1)
        results = []
        for name, model in models.items():
            h, z = model(views)                                                      # (2N, features), (2N, d)
            loss = losses[name](model, views, z)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step(lr)
            if name == "BYOL":
                model.update()
            results.append((loss, z))
        return tuple(results)

    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, **parts):
            results = train(data.train_images[batches[step][world.part]],
                            warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10))
            if run.logs(step):
                metrics = {"loss": sum(loss.item() for loss, _ in results)}          # not finite if one is not
                for name, (_, z) in zip(models, results):
                    z = world.all_gather(z.data)                                     # of the whole batch
                    metrics |= {f"{name}: std": embedding_std(z), f"{name}: rank": effective_rank(z)}
                run.log(step, epoch=step // batches.per_epoch + 1, **metrics)

        run.print("evaluating h and z: nearest neighbours and linear probe")
        untrained = SimCLR(*encoder_and_head(shape, args)).to(xp)                    # what random weights know
        accuracies = {name: frozen_accuracies(model, data, xp, world=world)[0]
                      for name, model in {"untrained": untrained, **models}.items()}

    log = run.read_log()
    if world.rank == 0:
        draw(run, log, accuracies, args.dim)
    last = {key: value for key, value in log[-1].items() if ":" in key}
    run.finish({"data": data.name, "backend": args.backend, "seed": args.seed, **last,
                **{f"{name}: {figure}": value for name, row in accuracies.items() for figure, value in row.items()},
                "seconds": run.elapsed()})


def encoder_and_head(image_shape, args):
    rng = np.random.default_rng(args.seed)
    encoder = ConvNet(image_shape, (16, 32, 64), rng=rng)
    return encoder, projection_head("mlp", encoder.features, hidden=128, dim=args.dim, rng=rng)


def predictor(args):
    rng = np.random.default_rng([args.seed, 1])
    return projection_head("mlp", args.dim, hidden=args.dim // 2, dim=args.dim, rng=rng)


def draw(run, log, accuracies, dim):
    steps = [line["step"] for line in log]

    def lines(figure, note=lambda name: ""):
        return [[name + note(name), steps, [line[f"{name}: {figure}"] for line in log], {"color": colour}]
                for name, colour in COLOURS.items()]

    line_plots(run.folder / "collapse.png",
               {"lines": lines("std"), "title": "standard deviation of z per dimension, times √d",
                "xlabel": "step", "ylim": (0, 1.05)},
               {"lines": lines("rank", lambda name: f", probe of z {accuracies[name]['probe_z']:.0%}"),
                "title": f"effective rank of z, of {dim} (probe before {accuracies['untrained']['probe_z']:.0%})",
                "xlabel": "step", "ylim": (0, None)})


if __name__ == "__main__":
    command(main)
