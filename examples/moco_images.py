"""MoCo on a folder of your own pictures: negatives from a queue of keys, so the batch may be small.

    python examples/moco_images.py --data-dir photos                         # CPU: a small ConvNet at 64 x 64 pixels
    python examples/moco_images.py --data-dir photos --backend cupy --encoder resnet18 --width 64 --queue 65536
    python examples/moco_images.py --data-dir photos --batch 512 --chunk 128 # a batch larger than memory

It differs from simclr_images.py in the queue and the momentum encoder; moco_mnist.py explains both.
"""

import argparse

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.data import Batches, ImageData, Prefetch, simclr_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import alignment, report, to_float, training_metrics, uniformity
from minicl.methods import MoCo, grad_cache
from minicl.nn import projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, RunError, command
from simclr_cifar10 import ENCODERS
from simclr_images import choose_batch, picture_options

BATCH = 128                                                  # unless --batch is given, or the pictures are few


def main():
    parser = options(__doc__, epochs=20, batch=BATCH, lr=3e-3, tau=0.2, data=None)
    picture_options(parser)
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, default=True, help="subfolders are classes")
    parser.add_argument("--queue", type=at_least(1), default=4096, help="number of keys in the queue, the negatives")
    parser.add_argument("--momentum", type=within("[0, 1)"), default=0.99, help="m of key <- m key + (1 - m) query")
    parser.add_argument("--splits", type=at_least(1), default=8,
                        help="groups of the batch that batch norm normalises separately")
    parser.add_argument("--hidden", type=at_least(1, 2**14), help="hidden units of the head; default: those of h")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(2), help="images encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.add_argument("--evaluate-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    args = parser.parse_args()
    if not args.data_dir:
        parser.error("--data-dir: name a folder of pictures")
    batch = args.batch or BATCH
    if batch % args.splits or not 2 * args.splits <= batch <= args.queue:
        parser.error("--batch must be a multiple of --splits, twice that or more, and at most --queue: got "
                     f"{batch} for {args.splits} splits and a queue of {args.queue}")

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "moco_images", world, divided=("batch", "chunk", "splits"))
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images in a file that is mapped into memory; the split does not depend on --seed.
    data = ImageData.from_folder(args.data_dir, args.size, labels=args.labels, limit=args.limit, log=run.print)
    run.print(f"data: {data}")
    if args.queue > len(data.train_images):
        run.print(f"warning: the queue of {args.queue} keys outgrows the {len(data.train_images)} training images: it holds "
                  "several keys of an image; those of a query's own are left out of its negatives")
    choose_batch(args, run, len(data.train_images), BATCH, 2 * args.splits)
    if args.chunk and (args.batch % args.chunk or args.chunk % args.splits or args.chunk < 2 * args.splits):
        raise RunError(f"--chunk {args.chunk} must divide --batch {args.batch} and be a multiple of --splits {args.splits}, "
                       "twice that or more")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    pictures = Prefetch(data.train_images, batches, world.part)
    augment = simclr_views(args.size)

    # Query encoder h = f(x), z = g(h); a key encoder that begins as its copy; an empty queue.
    encoder = ENCODERS[args.encoder](data.train_images.shape[1:], args.width, rng)
    head = projection_head("mlp", encoder.features, hidden=args.hidden, dim=args.dim, rng=rng)
    model = MoCo(encoder, head, dim=args.dim, queue=args.queue, m=args.momentum, splits=args.splits).to(xp).across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)                          # the query encoder's

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, ids, lr):
        """One training step: images (N, size, size, 3) uint8, and their numbers in the data (N,)."""
        images = to_float(images, xp)                                                # (N, size, size, 3)
        view1, view2 = two_views(augment, images, rng, world)
        chunk = args.chunk and args.chunk // world.size                              # of this process, or None
        k = model.encode_keys(view2, rng, chunk=chunk)                               # (N, d), constants

        def loss_of(h, q):                                                           # (N, features), (N, d)
            return model.loss(q, k, args.tau, ids=ids)                               # own keys are no negatives

        optimizer.zero_grad()
        if args.chunk:                                                               # the same gradient in less memory
            loss, (h, q) = grad_cache(model.query, loss_of, view1, chunk=chunk)
        else:
            h, q = model(view1)
            loss = loss_of(h, q)
            loss.backward()
        optimizer.step(lr, clip_grad_norm=args.clip_grad)
        model.update()                                                               # keys follow; k enters the queue
        return loss, q, k

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            chance = log_candidates(model.queue, batches[step]) if run.logs(step) else None
            loss, q, k = train(pictures[step], batches[step][world.part], lr)

            if run.logs(step):
                q, k = world.all_gather(q.data), world.all_gather(k)                 # of the whole batch
                metrics = training_metrics(model, data, xp, world=world) if run.evaluates(step) else {}
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), chance=chance, lr=lr,
                        alignment=alignment(q, k), uniformity=uniformity(q), **metrics)

        # Evaluation of h and z, by labels where there are any; `waiting` is the share of time spent waiting for the disk.
        report(run, model, data, augment, rng, xp, candidates=1 + len(model.queue), waiting=pictures.waiting)


def log_candidates(queue, ids):
    """log K, in the mean over the images with these ids (N,): K counts the positive and the keys of other images."""
    own = queue.ids.data[:len(queue)] == 1 + ids[:, None]                            # (N, keys)
    return float(np.log(1 + len(queue) - own.sum(axis=1)).mean())


if __name__ == "__main__":
    command(main)
