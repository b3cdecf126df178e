"""Alignment and uniformity on a circle: the effect of each half of a contrastive loss, in a picture.

    python examples/circle.py                            # CPU, about a minute and a half
    python examples/circle.py --backend cupy
    mpirun -n 4 python examples/circle.py                # four processes share every batch

Normalised embeddings in two dimensions are points on a circle. Four encoders start from the same weights and get the same
views; they learn by alignment alone, uniformity alone, their sum, and NT-Xent. The picture shows where each maps views of
test images, and how far that is from the floor of uniformity (Wang & Isola 2020, figure 3).
"""

import numpy as np

from minicl import capture, get_backend, no_grad, viz
from minicl.backend import threads, to_host
from minicl.contrastive import alignment_loss, l2_normalize, nt_xent, uniformity_loss
from minicl.data import Batches, load_images, mnist_views, two_views
from minicl.distributed import ALONE, get_world
from minicl.evaluate import alignment, knn_accuracy, to_float, uniformity, uniformity_floor
from minicl.methods import SimCLR
from minicl.nn import ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options
from minicl.run import Run, command


def both_uniform(z1, z2, world):
    return (uniformity_loss(z1, world=world) + uniformity_loss(z2, world=world)) / 2


LOSSES = {
    "alignment only": lambda z1, z2, tau, world=ALONE: alignment_loss(z1, z2, world=world),
    "uniformity only": lambda z1, z2, tau, world=ALONE: both_uniform(z1, z2, world),
    "both": lambda z1, z2, tau, world=ALONE: alignment_loss(z1, z2, world=world) + both_uniform(z1, z2, world),
    "NT-Xent": nt_xent,
}


def main():
    parser = options(__doc__, epochs=12, batch=256, lr=1e-2, tau=0.25)
    parser.add_argument("--images", type=at_least(20), default=10_000,
                        help="number of training images, the first of the data")
    args = parser.parse_args()

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "circle", world)
    rng = np.random.default_rng(args.seed)

    data = run.once(load_images, args.data, args.data_dir, seed=args.seed, log=run.print)
    train_images = data.train_images[:args.images]
    run.print(f"data: {data.name}, {len(train_images)} training and {len(data.test_images)} test images")
    batches = Batches(len(train_images), args.batch, seed=args.seed)
    augment = mnist_views()

    # One encoder into two dimensions for each loss, all from the same weights, and one that is not trained.
    models = {name: encoder(train_images.shape[1:], args.seed).to(xp).across(world)
              for name in ["random weights", *LOSSES]}
    optimizers = {name: AdamW(models[name], args.lr) for name in LOSSES}
    parts = {f"{kind} {name}": part for kind, group in (("model", models), ("optimizer", optimizers))
             for name, part in group.items()}

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step of each model: images (N, 28, 28, 1) uint8 -> their losses."""
        images = to_float(images, xp)
        views = xp.concatenate(two_views(augment, images, rng, world))               # (2N, 28, 28, 1)
        losses = []
        for name, loss_of in LOSSES.items():
            h, z = models[name](views)                                               # (2N, features), (2N, 2)
            loss = loss_of(z[:len(images)], z[len(images):], args.tau, world=world)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step(lr)
            losses.append(loss)
        return tuple(losses)

    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, **parts):
            losses = train(train_images[batches[step][world.part]],
                           warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10))
            if run.logs(step):
                metrics = {name: loss.item() for name, loss in zip(LOSSES, losses)}
                run.log(step, epoch=step // batches.per_epoch + 1, loss=sum(metrics.values()), **metrics)

        # Views of test images. (Unchanged images lie to one side: the encoders were not trained to spread those.)
        labels = data.test_labels[:2000]
        view1, view2 = two_views(augment, to_float(data.test_images[:2000], xp), rng)
        metrics = {}
        circles = []
        half = len(labels) // 2
        for name, model in models.items():
            z1, z2 = embed(model, view1), embed(model, view2)
            metrics[name] = {"alignment": alignment(z1, z2), "uniformity": uniformity(z1),
                             "knn": knn_accuracy(z1[:half], labels[:half], z1[half:], labels[half:], k=min(20, half))}
            circles.append((name, to_host(l2_normalize.forward(z1)[0]), metrics[name]))

    floor = uniformity_floor(2)
    if world.rank == 0:
        circle_panels(run.folder / "circle.png", circles, labels, data.class_names, floor)
    run.finish({"data": data.name, "backend": args.backend, "seed": args.seed, "uniformity_floor": floor,
                **{f"{metric}, {name}": value for name, row in metrics.items() for metric, value in row.items()},
                "seconds": run.elapsed()})


def encoder(image_shape, seed):
    rng = np.random.default_rng(seed)
    convolutions = ConvNet(image_shape, (16, 32, 64), rng=rng)
    return SimCLR(convolutions, projection_head("mlp", convolutions.features, hidden=128, dim=2, rng=rng))


def embed(model, images):
    """z (N, 2) of the images, as an array; BatchNorm by its running averages."""
    model.eval()
    with no_grad():
        return model(images)[1].data


@viz.needs_matplotlib
def circle_panels(path, circles, labels, class_names, floor):
    """Embeddings on the unit circle, one panel each; the last panel is uniformity against alignment.

    circles  (name, unit vectors (N, 2), {"alignment", "uniformity", "knn"}), ...
    floor    the lowest uniformity of many points
    """
    figure = viz.Figure(figsize=(11, 7.4), dpi=150)
    *panels, plane = figure.subplots(2, -(-(len(circles) + 1) // 2)).reshape(-1)
    angles = np.linspace(0, 2 * np.pi, 361)
    around = np.stack([np.cos(angles), np.sin(angles)])
    blur = 1 + 0.09 * np.random.default_rng(0).standard_normal((len(labels), 1))         # points beside each other
    for plot, (name, points, metrics) in zip(panels, circles):
        density = np.exp(60 * (points @ around - 1)).mean(axis=0)
        plot.fill(*(1.35 + 0.15 * np.sqrt(density / density.mean())) * around, color="#d5deea", linewidth=0)
        plot.fill(*1.35 * around, color="white", linewidth=0)
        plot.plot(*around, color=viz.GREY, linewidth=0.6)
        drawn = plot.scatter(*(points * blur).T, c=labels, cmap="tab10", s=5, vmin=-0.5, vmax=9.5, linewidths=0,
                             zorder=3)
        plot.text(0, 0, f"kNN {metrics['knn']:.0%}", ha="center", va="center", fontsize=10)
        plot.set(xlim=(-1.85, 1.85), ylim=(-1.85, 1.85), aspect="equal",
                 title=f"{name}\nalignment {metrics['alignment']:.2f}, uniformity {metrics['uniformity']:.2f}")
        plot.axis("off")
    for name, _, metrics in circles:
        at = metrics["alignment"], metrics["uniformity"]
        plane.plot(*at, "o", color=viz.BLUE)
        near_floor = at[1] < floor + 0.1                                     # the dashed line must not cross its name
        if near_floor and at[0] <= 1:
            plane.text(at[0], floor - 0.09, name, va="center", fontsize=9)
        else:
            plane.annotate(name, at, xytext=(0, 14) if near_floor else (7, 0), textcoords="offset points",
                           ha="center" if near_floor else "left", va="center", fontsize=9)
    plane.axhline(floor, color=viz.RED, linestyle="--", linewidth=1)
    plane.text(2, floor - 0.05, f"floor of uniformity, {floor:.3f}", ha="right", va="top", fontsize=9, color=viz.RED)
    plane.set(xlabel="alignment (0: views coincide)", ylabel="uniformity (0: collapsed)", xlim=(-0.1, 2.05),
              ylim=(floor - 0.2, 0.1))
    figure.legend(drawn.legend_elements(num=range(len(class_names)))[0], class_names, loc="lower center",
                  ncols=len(class_names), fontsize=9, frameon=False, handletextpad=0)
    viz.save_figure(figure, path, rect=(0, 0.04, 1, 1))


if __name__ == "__main__":
    command(main)
