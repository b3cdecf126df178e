"""SimCLR on a folder of your own pictures, with or without labels.

    python examples/simclr_images.py --data-dir photos                       # CPU: a small ConvNet at 64 x 64 pixels
    python examples/simclr_images.py --data-dir photos --epochs 2 --limit 2000       # a first trial
    python examples/simclr_images.py --data-dir photos --backend cupy --encoder resnet18 --width 64 --size 96
    mpirun -n 4 python examples/simclr_images.py --data-dir photos           # four processes share every batch

Subfolders are classes, which are used only for evaluation; without them, or with --no-labels, accuracies are left out.
docs/pictures.md describes the folder. Pictures are decoded once, into a file in the user's cache, and threads read the
next batches from it while a step is computed.
"""

import argparse

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.contrastive import nt_xent
from minicl.data import RESIZE, Batches, ImageData, Prefetch, simclr_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import alignment, report, to_float, training_metrics, uniformity
from minicl.methods import SimCLR, grad_cache
from minicl.nn import HEADS, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, folder, options, within
from minicl.run import Run, RunError, command
from simclr_cifar10 import ENCODERS


def picture_options(parser):
    """The options of every script that trains on a folder of pictures."""
    parser.add_argument("--data-dir", type=folder, help="folder of pictures, or an .npz or .npy file (required)")
    parser.add_argument("--size", type=int, default=64, choices=range(32, 513, 32), metavar="PIXELS",
                        help="pixels per side, a multiple of 32")
    parser.set_defaults(batch=None)                          # see choose_batch
    parser.describe("--batch", "pictures per step; default: by their number")
    parser.add_argument("--limit", type=at_least(20), help="read at most this many pictures to train on, and to test on")
    parser.add_argument("--encoder", default="convnet", choices=ENCODERS, help="the encoder, images -> h")
    parser.add_argument("--width", type=at_least(1, 2**9), default=32, help="channels of the encoder's first layer")
    parser.set_defaults(channels=3, resize=RESIZE)           # for config.json: with --size, how a picture is prepared


def choose_batch(args, run, n, most, multiple=2):
    """Set args.batch if --batch was not given: `most`, or half of the n training pictures if that is less."""
    if args.batch is None:
        if n < multiple:
            raise RunError(f"a batch needs {multiple} training pictures or more, got {n}; take more pictures"
                           + ", or a smaller --splits" * (multiple > 2))
        unit = max(multiple, 8) if n >= 128 else multiple    # so that few processes can share it
        args.batch = run.config["batch"] = min(most, max(multiple, n // 2 - n // 2 % unit))
        if args.batch < most:
            run.print(f"--batch {args.batch}, about half of the {n} training pictures; where there are more, {most}")
    if args.batch % run.world.size:
        raise RunError(f"--batch {args.batch} must be a multiple of the {run.world.size} processes")


def main():
    parser = options(__doc__, epochs=20, batch=256, lr=3e-3, tau=0.2, data=None)
    picture_options(parser)
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, default=True, help="subfolders are classes")
    parser.add_argument("--head", default="mlp", choices=HEADS, help="projection head, h -> z")
    parser.add_argument("--hidden", type=at_least(1, 2**14), help="hidden units of the mlp head; default: those of h")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z, unless --head none")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(2), help="views encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.add_argument("--evaluate-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    parser.only_with("--head mlp", "--hidden")
    parser.only_with("--head mlp or linear", "--dim")
    args = parser.parse_args()
    if not args.data_dir:
        parser.error("--data-dir: name a folder of pictures")

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "simclr_images", world)
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images in a file that is mapped into memory; the split does not depend on --seed.
    data = ImageData.from_folder(args.data_dir, args.size, labels=args.labels, limit=args.limit, log=run.print)
    run.print(f"data: {data}")
    choose_batch(args, run, len(data.train_images), 256)
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    pictures = Prefetch(data.train_images, batches, world.part)
    augment = simclr_views(args.size)

    # Encoder f and head g: h = f(x), z = g(h).
    encoder = ENCODERS[args.encoder](data.train_images.shape[1:], args.width, rng)
    head = projection_head(args.head, encoder.features, hidden=args.hidden, dim=args.dim, rng=rng)
    model = SimCLR(encoder, head).to(xp).across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step: images (N, size, size, 3) uint8."""
        images = to_float(images, xp)                                                # (N, size, size, 3)
        N = len(images)
        views = xp.concatenate(two_views(augment, images, rng, world))               # (2N, size, size, 3)

        def loss_of(h, z):                                                           # (2N, features), (2N, d)
            return nt_xent(z[:N], z[N:], args.tau, world=world)

        optimizer.zero_grad()
        if args.chunk:                                                               # the same gradient in less memory
            loss, (h, z) = grad_cache(model, loss_of, views, chunk=args.chunk // world.size)
        else:
            h, z = model(views)
            loss = loss_of(h, z)
            loss.backward()
        optimizer.step(lr, clip_grad_norm=args.clip_grad)
        return loss, z

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            loss, z = train(pictures[step], lr)

            if run.logs(step):
                z = world.all_gather(z.data)                                # of the whole batch
                metrics = training_metrics(model, data, xp, world=world) if run.evaluates(step) else {}
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), lr=lr,
                        alignment=alignment(z[:args.batch], z[args.batch:]), uniformity=uniformity(z), **metrics)

        # Evaluation of h and z, by labels where there are any; `waiting` is the share of time spent waiting for the disk.
        report(run, model, data, augment, rng, xp, candidates=2 * args.batch - 1, waiting=pictures.waiting)


if __name__ == "__main__":
    command(main)
