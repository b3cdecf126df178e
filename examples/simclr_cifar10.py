"""SimCLR or MoCo on CIFAR-10: photographs, colour augmentations, a ResNet.

    python examples/simclr_cifar10.py                                        # CPU: a small ConvNet, some minutes
    python examples/simclr_cifar10.py --encoder resnet9 --width 16 --limit 5000
    python examples/simclr_cifar10.py --data shapes                          # no network: generated coloured shapes
    mpirun -n 4 python examples/simclr_cifar10.py                            # four processes share every batch

The published recipes, for a GPU:

    python examples/simclr_cifar10.py --backend cupy --data cifar10 --method moco --encoder resnet18 --width 64 \
        --head linear --optimizer sgd --lr 0.06 --warmup 0 --weight-decay 5e-4 --batch 512 --tau 0.1 --dim 128 \
        --queue 4096 --momentum 0.99 --splits 8 --epochs 200 --evaluate-every 5 --knn-k 200

    python examples/simclr_cifar10.py --backend cupy --data cifar10 --method simclr --encoder resnet18 --width 64 \
        --head mlp --hidden 1024 --optimizer sgd --lr 0.06 --warmup 0 --weight-decay 5e-4 --batch 512 --tau 0.5 \
        --dim 128 --epochs 100 --evaluate-every 5

The first is that of MoCo's own CIFAR-10 notebook, whose kNN accuracy of z at epoch 1/5/10/20/50/100/200 is
32.0/38.0/48.0/61.4/73.3/78.1/82.6 %. The second reaches about 83 % (kNN of h) elsewhere, with milder views than here.
The two methods share data, views, encoder and head, and differ in where the negatives come from.
"""

import functools
import math

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.contrastive import nt_xent
from minicl.data import Batches, load_colour_images, simclr_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import alignment, pixel_accuracy, report, to_float, training_metrics, uniformity
from minicl.methods import MoCo, SimCLR, grad_cache
from minicl.nn import HEADS, ConvNet, ResNet9, ResNet18, projection_head
from minicl.optim import SGD, AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, command

DATA = {"auto": "CIFAR-10 if available, else generated shapes", "cifar10": "CIFAR-10, else an error",
        "shapes": "generated coloured shapes"}
ENCODERS = {"convnet": lambda shape, width, rng: ConvNet(shape, [width, 2 * width, 4 * width, 8 * width], rng=rng),
            "resnet9": lambda shape, width, rng: ResNet9(shape, width, rng=rng),
            "resnet18": lambda shape, width, rng: ResNet18(shape, width, rng=rng)}
METHODS = ("simclr", "moco")
OPTIMIZERS = {"sgd": functools.partial(SGD, momentum=0.9), "adamw": AdamW}


def main():
    parser = options(__doc__, epochs=10, batch=256, lr=3e-3, tau=0.2, data=DATA)
    parser.add_argument("--method", default="simclr", choices=METHODS, help="negatives from the batch, or from a queue")
    parser.add_argument("--encoder", default="convnet", choices=ENCODERS, help="the encoder, images -> h")
    parser.add_argument("--width", type=at_least(1, 2**9), default=32, help="channels of the encoder's first layer")
    parser.add_argument("--head", default="mlp", choices=HEADS, help="projection head, h -> z")
    parser.add_argument("--hidden", type=at_least(1, 2**14), help="hidden units of the mlp head; default: those of h")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z, unless --head none")
    parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS, help="sgd uses momentum 0.9")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4,
                        help="weight decay, on weights of two axes or more")
    parser.add_argument("--warmup", type=within("[0, 1)"), default=0.1,
                        help="share of the steps in which the learning rate rises")
    parser.add_argument("--queue", type=at_least(1), default=4096, help="moco: number of keys in the queue")
    parser.add_argument("--momentum", type=within("[0, 1)"), default=0.99, help="moco: m of key <- m key + (1 - m) query")
    parser.add_argument("--splits", type=at_least(1), default=8,
                        help="moco: groups of the batch that batch norm normalises separately")
    parser.add_argument("--limit", type=at_least(20), help="use at most this many training images, and test images")
    parser.add_argument("--chunk", type=at_least(2), help="views encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.add_argument("--evaluate-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    parser.add_argument("--knn-k", type=at_least(1), default=20, help="number of nearest neighbours")
    parser.only_with("--method moco", "--queue", "--momentum", "--splits")
    parser.only_with("--head mlp", "--hidden")
    parser.only_with("--head mlp or linear", "--dim")
    args = parser.parse_args()
    if args.method == "moco" and (args.batch % args.splits or not 2 * args.splits <= args.batch <= args.queue):
        parser.error("moco: --batch must be a multiple of --splits, twice that or more, and at most --queue: got "
                     f"{args.batch} for {args.splits} splits and a queue of {args.queue}")

    if args.chunk and args.method == "moco" and (args.batch % args.chunk or args.chunk % args.splits
                                                 or args.chunk < 2 * args.splits):
        parser.error(f"moco: --chunk {args.chunk} must divide --batch {args.batch} and be a multiple of --splits "
                     f"{args.splits}, twice that or more")

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "simclr_cifar10", world, divided=("batch", "chunk", *["splits"] * (args.method == "moco")))
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images on the host; labels are used for evaluation only.
    data = run.once(load_colour_images, args.data, args.data_dir, seed=args.seed, log=run.print).first(args.limit)
    run.print(f"data: {data}")
    if args.method == "moco" and args.queue > len(data.train_images):
        run.print(f"warning: the queue of {args.queue} keys outgrows the {len(data.train_images)} training images: it holds "
                  "keys of a query's own image, which count as its negatives; a smaller --queue holds fewer of them")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    augment = simclr_views()
    k = min(args.knn_k, len(data.train_images))

    # Encoder f and head g: h = f(x), z = g(h). MoCo adds a key encoder, at first a copy of both, and an empty queue.
    encoder = ENCODERS[args.encoder](data.train_images.shape[1:], args.width, rng)
    head = projection_head(args.head, encoder.features, hidden=args.hidden, dim=args.dim, rng=rng)
    if args.method == "moco":
        dim = encoder.features if args.head == "none" else args.dim
        model = MoCo(encoder, head, dim=dim, queue=args.queue, m=args.momentum, splits=args.splits).to(xp)
    else:
        model = SimCLR(encoder, head).to(xp)
    model.across(world)
    optimizer = OPTIMIZERS[args.optimizer](model, args.lr, weight_decay=args.weight_decay)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step: images (N, 32, 32, 3) uint8. Returns the loss, and z of both views."""
        images = to_float(images, xp)                                                # (N, 32, 32, 3)
        view1, view2 = two_views(augment, images, rng, world)
        N = len(images)
        chunk = args.chunk and args.chunk // world.size                              # of this process, or None
        if args.method == "moco":
            trained = model.query
            views = view1
            keys = model.encode_keys(view2, rng, chunk=chunk)                        # (N, d), constants

            def loss_of(h, z):                                                       # (N, features), (N, d)
                return model.loss(z, keys, args.tau)
        else:
            trained = model
            views = xp.concatenate([view1, view2])

            def loss_of(h, z):                                                       # (2N, features), (2N, d)
                return nt_xent(z[:N], z[N:], args.tau, world=world)

        optimizer.zero_grad()
        if args.chunk:                                                               # the same gradient in less memory
            loss, (h, z) = grad_cache(trained, loss_of, views, chunk=chunk)
        else:
            h, z = trained(views)
            loss = loss_of(h, z)
            loss.backward()
        optimizer.step(lr, clip_grad_norm=args.clip_grad)
        if args.method == "moco":
            model.update()                                                           # keys follow; z2 joins the queue
            return loss, z.data, keys
        return loss, z.data[:N], z.data[N:]

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=int(args.warmup * total))
            candidates = 1 + len(model.queue) if args.method == "moco" else 2 * args.batch - 1      # fewer until it is full
            loss, z1, z2 = train(data.train_images[batches[step][world.part]], lr)

            epoch = step // batches.per_epoch + 1
            if run.logs(step):
                metrics = training_metrics(model, data, xp, k=k, world=world) if run.evaluates(step) else {}
                z1, z2 = world.all_gather(z1), world.all_gather(z2)                  # of the whole batch
                run.log(step, epoch=epoch, loss=loss.item(), chance=math.log(candidates), lr=lr,
                        alignment=alignment(z1, z2), uniformity=uniformity(z1), **metrics)
            if run.evaluates(step):
                run.print(f"epoch {epoch}: kNN of h {metrics['knn_h']:.4f}, of z {metrics['knn_z']:.4f}")

        pixels = pixel_accuracy(data, xp, k=k, world=world)
        candidates = 1 + len(model.queue) if args.method == "moco" else 2 * args.batch - 1
        report(run, model, data, augment, rng, xp, candidates=candidates, k=k, knn_pixels=pixels)


if __name__ == "__main__":
    command(main)
