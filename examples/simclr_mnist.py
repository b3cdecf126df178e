"""SimCLR on MNIST: learn digits without labels, then evaluate the representation.

    python examples/simclr_mnist.py                      # CPU; MNIST if available, else generated digits
    python examples/simclr_mnist.py --batch 4096 --chunk 512       # a batch larger than memory
    python examples/simclr_mnist.py --backend cupy       # the same code on a GPU
    mpirun -n 4 python examples/simclr_mnist.py          # on four processes, each with a quarter of every batch

Two random views of each image should find each other among the views of all other images in the batch. Read from top to
bottom: data, two views, encoder, head, loss, backward, step; then the evaluation.
"""

import numpy as np

from minicl import capture, get_backend
from minicl.backend import threads
from minicl.contrastive import nt_xent
from minicl.data import Batches, load_images, mnist_views, two_views
from minicl.distributed import get_world
from minicl.evaluate import alignment, report, to_float, training_metrics, uniformity
from minicl.methods import SimCLR, grad_cache
from minicl.nn import HEADS, MLP, ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, command


def main():
    parser = options(__doc__, epochs=8, batch=256, lr=5e-3, tau=0.2)
    parser.add_argument("--encoder", default="convnet", choices=("convnet", "mlp"), help="the encoder, images -> h")
    parser.add_argument("--head", default="mlp", choices=HEADS, help="projection head, h -> z")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of z, unless --head none")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=1e-4, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(2), help="views encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.add_argument("--evaluate-every", type=at_least(1), help="epochs between evaluations by kNN; default: none")
    parser.only_with("--head mlp or linear", "--dim")
    args = parser.parse_args()

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "simclr_mnist", world)
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images on the host; labels are used for evaluation only.
    data = run.once(load_images, args.data, args.data_dir, seed=args.seed, log=run.print)
    run.print(f"data: {data}")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    augment = mnist_views()

    # Encoder f and head g: h = f(x), z = g(h).
    shape = data.train_images.shape[1:]
    encoder = ConvNet(shape, rng=rng) if args.encoder == "convnet" else MLP(shape, rng=rng)
    model = SimCLR(encoder, projection_head(args.head, encoder.features, hidden=256, dim=args.dim, rng=rng)).to(xp)
    model.across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, lr):
        """One training step: images (N, 28, 28, 1) uint8."""
        images = to_float(images, xp)                                                # (N, 28, 28, 1)
        N = len(images)
        views = xp.concatenate(two_views(augment, images, rng, world))               # (2N, 28, 28, 1)

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
            loss, z = train(data.train_images[batches[step][world.part]], lr)

            if run.logs(step):
                z = world.all_gather(z.data)                                # of the whole batch
                metrics = training_metrics(model, data, xp, world=world) if run.evaluates(step) else {}
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), lr=lr,
                        alignment=alignment(z[:args.batch], z[args.batch:]), uniformity=uniformity(z), **metrics)

        # Evaluation of the frozen features: h, the representation, and z, which is dropped after training.
        report(run, model, data, augment, rng, xp, candidates=2 * args.batch - 1)


if __name__ == "__main__":
    command(main)
