"""SimCLR or MoCo on a folder of your own pictures, with or without labels.

    python examples/simclr_images.py --data-dir photos                       # CPU: a small ConvNet at 64 x 64 pixels
    python examples/simclr_images.py --data-dir photos --method moco         # negatives from a queue: smaller batches
    python examples/simclr_images.py --data-dir photos --backend cupy --encoder resnet18 --width 64 --size 96

Subfolders are classes, which are used for evaluation only; without them, or with --no-labels, only what needs no labels
is measured. docs/pictures.md says what may be in the folder. Pictures are decoded once, into a file in the user's cache,
and each batch is read from there by a thread while the step before is computed.
"""

import argparse
import math

import numpy as np

from minicl import get_backend
from minicl.backend import threads
from minicl.contrastive import nt_xent
from minicl.data import RESIZE, Batches, ImageData, Prefetch, simclr_views, two_views
from minicl.evaluate import alignment, frozen_accuracies, report, to_float, uniformity
from minicl.methods import MoCo, SimCLR
from minicl.nn import HEADS, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, folder, options, within
from minicl.run import Run, command
from simclr_cifar10 import ENCODERS, METHODS


def main():
    parser = options(__doc__, epochs=20, batch=256, lr=3e-3, tau=0.2, data=None)
    parser.add_argument("--data-dir", type=folder, help="folder of pictures, or an .npz or .npy file; needed")
    parser.add_argument("--size", type=int, default=64, choices=range(32, 513, 32), metavar="PIXELS",
                        help="pixels a side, a multiple of 32")
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, default=True, help="subfolders are classes")
    parser.add_argument("--method", default="simclr", choices=METHODS, help="negatives from the batch, or a queue")
    parser.add_argument("--encoder", default="convnet", choices=ENCODERS, help="what maps images to h")
    parser.add_argument("--width", type=at_least(1, 2**9), default=32, help="channels of the encoder's first layer")
    parser.add_argument("--head", default="mlp", choices=HEADS, help="what maps h to z, the space of the loss")
    parser.add_argument("--hidden", type=at_least(1, 2**14), help="hidden units of the mlp head; default: those of h")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z, unless --head none")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4, help="AdamW's, on matrices")
    parser.add_argument("--queue", type=at_least(1), default=4096, help="moco: keys in the queue")
    parser.add_argument("--momentum", type=within("[0, 1)"), default=0.99, help="moco: m of key <- m key + (1 - m) query")
    parser.add_argument("--splits", type=at_least(1), default=8, help="moco: groups that batch norm sees a batch in")
    parser.add_argument("--limit", type=at_least(20), help="use only this many training images, and test images")
    parser.add_argument("--knn-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    parser.set_defaults(channels=3, resize=RESIZE)           # for config.json: with --size, how a picture is prepared
    args = parser.parse_args()
    if not args.data_dir:
        parser.error("--data-dir: name a folder of pictures")
    if args.method == "moco" and (args.batch % args.splits or not 2 * args.splits <= args.batch <= args.queue):
        parser.error("moco: --batch must be a multiple of --splits, twice that or more, and at most --queue: got "
                     f"{args.batch} for {args.splits} splits and a queue of {args.queue}")

    xp = get_backend(args.backend, args.precision)
    run = Run(args, "simclr_images")
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images in a file that is mapped into memory; the split does not depend on --seed.
    data = ImageData.from_folder(args.data_dir, args.size, labels=args.labels, log=run.print).first(args.limit)
    run.print(f"data: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images"
              + (f" of {len(data.class_names)} classes" if data.is_labelled else ""))
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    pictures = Prefetch(data.train_images, batches)
    augment = simclr_views(args.size)

    # Encoder f and head g: h = f(x), z = g(h). MoCo adds a key encoder, at first a copy of both, and an empty queue.
    encoder = ENCODERS[args.encoder](data.train_images.shape[1:], args.width, rng)
    head = projection_head(args.head, encoder.features, hidden=args.hidden, dim=args.dim, rng=rng)
    if args.method == "moco":
        dim = encoder.features if args.head == "none" else args.dim
        model = MoCo(encoder, head, dim=dim, queue=args.queue, m=args.momentum, splits=args.splits).to(xp)
    else:
        model = SimCLR(encoder, head).to(xp)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            images = to_float(pictures[step], xp)                                    # (N, size, size, 3)
            view1, view2 = two_views(augment, images, rng)
            if args.method == "moco":
                h, z1 = model(view1)                                                 # queries (N, d), on the tape
                z2 = model.encode_keys(view2, rng)                                   # keys (N, d), a constant
                candidates = 1 + len(model.queue)                                    # fewer until it is full
                loss = model.loss(z1, z2, args.tau)
            else:
                h, z = model(xp.concatenate([view1, view2]))                         # (2N, features), (2N, d)
                z1, z2 = z[:args.batch], z[args.batch:]
                candidates = 2 * args.batch - 1
                loss = nt_xent(z1, z2, args.tau)
                z2 = z2.data

            optimizer.zero_grad()
            loss.backward()
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            optimizer.step(lr)
            if args.method == "moco":
                model.update()                                                       # keys follow; z2 joins the queue

            epoch = step // batches.per_epoch + 1
            looks = args.knn_every and data.is_labelled and (step + 1) % (args.knn_every * batches.per_epoch) == 0
            if run.logs(step) or looks:
                metrics = frozen_accuracies(model, data, xp, probe=False)[0] if looks else {}
                run.log(step, epoch=epoch, loss=loss.item(), chance=math.log(candidates), lr=lr,
                        alignment=alignment(z1.data, z2), uniformity=uniformity(z1.data), **metrics)

        # Evaluation of h and z, by labels where there are any; `waiting` is the share of time spent waiting for the disk.
        candidates = 1 + len(model.queue) if args.method == "moco" else 2 * args.batch - 1
        report(run, model, data, augment, rng, xp, candidates=candidates, waiting=pictures.waiting)


if __name__ == "__main__":
    command(main)
