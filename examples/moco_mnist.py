"""MoCo on MNIST: 65,536 negatives at a batch of 256, from a queue of keys of a momentum encoder.

    python examples/moco_mnist.py                        # CPU; MNIST if available, else generated digits
    python examples/moco_mnist.py --symmetric            # each view once the query and once the key
    python examples/moco_mnist.py --backend cupy         # the same code on a GPU
    mpirun -n 4 python examples/moco_mnist.py            # four processes share every batch, and the groups of batch norm

A query, one view of an image, should find the key of its other view among the keys of thousands of earlier images. Only
the query encoder learns by gradient; the key encoder follows it and fills the queue. The loss rises at first: the queue
is empty at the start, and each batch of keys adds candidates. Compare it with chance, log(K + 1), which is logged beside
it.
"""

import math

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.data import Batches, load_images, mnist_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import alignment, report, to_float, training_metrics, uniformity
from minicl.methods import MoCo, grad_cache
from minicl.nn import ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, command


def main():
    parser = options(__doc__, epochs=6, batch=256, lr=5e-3, tau=0.2)
    parser.describe("--log-every", "steps between lines of the log; default: a twentieth of the run, at most 20")
    parser.add_argument("--queue", type=at_least(1), default=65536, help="number of keys in the queue, the negatives")
    parser.add_argument("--momentum", type=within("[0, 1)"), default=0.99, help="m of key <- m key + (1 - m) query")
    parser.add_argument("--splits", type=at_least(1), default=8,
                        help="groups of the batch that batch norm normalises separately")
    parser.add_argument("--symmetric", action="store_true", help="use each view as the query and as the key")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(2), help="images encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.add_argument("--evaluate-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    args = parser.parse_args()
    if args.batch % args.splits or args.batch < 2 * args.splits:
        parser.error(f"--batch {args.batch} cannot be divided into --splits {args.splits} groups of equal size, 2 or more")
    if args.batch * (1 + args.symmetric) > args.queue:
        parser.error(f"--queue {args.queue} is too small for the keys of one batch; it needs "
                     f"{args.batch * (1 + args.symmetric)}")

    if args.chunk and (args.batch % args.chunk or args.chunk % args.splits or args.chunk < 2 * args.splits):
        parser.error(f"--chunk {args.chunk} must divide --batch {args.batch} and be a multiple of --splits {args.splits}, "
                     "twice that or more")

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "moco_mnist", world, divided=("batch", "chunk", "splits"))
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images on the host; labels are used for evaluation only.
    data = run.once(load_images, args.data, args.data_dir, seed=args.seed, log=run.print)
    run.print(f"data: {data}")
    if args.queue > len(data.train_images):
        run.print(f"warning: the queue of {args.queue} keys outgrows the {len(data.train_images)} training images: it holds "
                  "keys of a query's own image, which count as its negatives; a smaller --queue holds fewer of them")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    augment = mnist_views()

    # Query encoder h = f(x), z = g(h); a key encoder that begins as its copy; an empty queue.
    encoder = ConvNet(data.train_images.shape[1:], rng=rng)
    head = projection_head("mlp", encoder.features, hidden=256, dim=args.dim, rng=rng)
    model = MoCo(encoder, head, dim=args.dim, queue=args.queue, m=args.momentum, splits=args.splits).to(xp)
    model.across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)                          # the query encoder's

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step: images (N, 28, 28, 1) uint8."""
        images = to_float(images, xp)                                                # (N, 28, 28, 1)
        view1, view2 = two_views(augment, images, rng, world)
        if args.symmetric:
            view1, view2 = xp.concatenate([view1, view2]), xp.concatenate([view2, view1])
        chunk = args.chunk and args.chunk // world.size                              # of this process, or None
        k = model.encode_keys(view2, rng, chunk=chunk)                               # (N, d), constants

        def loss_of(h, q):                                                           # (N, features), (N, d)
            return model.loss(q, k, args.tau)

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

    # Training. All of the model is in the checkpoint: queue, its pointer, and both encoders.
    total = args.epochs * batches.per_epoch
    run.log_every = args.log_every or max(1, min(20, total // 20))                   # fine enough to see the queue fill
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer):
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            chance = math.log(1 + len(model.queue))
            loss, q, k = train(data.train_images[batches[step][world.part]], lr)

            if run.logs(step):
                q, k = world.all_gather(q.data), world.all_gather(k)                 # of the whole batch
                metrics = training_metrics(model, data, xp, world=world) if run.evaluates(step) else {}
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), chance=chance,
                        lr=lr, alignment=alignment(q, k), uniformity=uniformity(q), **metrics)

        # Evaluation of the query encoder's frozen features: h, the representation, and z, which is dropped.
        report(run, model, data, augment, rng, xp, candidates=1 + len(model.queue), queue=len(model.queue))


if __name__ == "__main__":
    command(main)
