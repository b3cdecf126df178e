"""SimCLR on MNIST: learn digits without labels, then ask what the representation knows.

    python examples/simclr_mnist.py                      # CPU; MNIST if it can be had, else generated digits
    python examples/simclr_mnist.py --backend cupy       # the same code on a GPU

Two random views of each image should find each other among the views of all other images in the batch. Read
top to bottom: data, two views, encoder, head, loss, backward, step; then the evaluation.
"""

import numpy as np

from minicl import get_backend, viz
from minicl.backend import peak_memory_mib, threads, to_host
from minicl.contrastive import nt_xent
from minicl.data import Batches, load_images, mnist_views, two_views
from minicl.evaluate import (alignment, encode, infonce_bound, knn_accuracy, linear_probe, nearest_neighbours, state_hash,
                             to_float, uniformity)
from minicl.methods import SimCLR
from minicl.nn import HEADS, MLP, ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine
from minicl.run import Run, RunError, at_least, command, options


def main():
    parser = options(__doc__, epochs=8, batch=256, lr=2e-3, tau=0.2)
    parser.add_argument("--encoder", default="convnet", choices=("convnet", "mlp"), help="what maps images to h")
    parser.add_argument("--head", default="mlp", choices=HEADS, help="what maps h to z, the space of the loss")
    parser.add_argument("--dim", type=at_least(2), default=128, help="dimension of z (with --head none: that of h)")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="AdamW's, on weights of two axes and more")
    args = parser.parse_args()

    xp = get_backend(args.backend)
    run = Run(args, "simclr_mnist")
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images on the host; labels are used for evaluation only.
    data = load_images(args.data, args.data_dir, seed=args.seed, say=run.say)
    run.say(f"data: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images")
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    augment = mnist_views()

    # Encoder f and head g: h = f(x), z = g(h).
    shape = data.train_images.shape[1:]
    encoder = ConvNet(shape, rng=rng) if args.encoder == "convnet" else MLP(shape, rng=rng)
    model = SimCLR(encoder, projection_head(args.head, encoder.features, dim=args.dim, rng=rng)).to(xp)
    optimizer = AdamW(model.named_parameters(), args.lr, weight_decay=args.weight_decay)

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads):
        for step in run.steps(total, save_every=batches.per_epoch, rng=rng, model=model, optimizer=optimizer):
            images = to_float(data.train_images[batches[step]], xp)                  # (N, 28, 28, 1)
            view1, view2 = two_views(augment, images, rng)
            h, z = model(xp.concatenate([view1, view2]))                             # (2N, features), (2N, d)
            z1, z2 = z[:args.batch], z[args.batch:]
            loss = nt_xent(z1, z2, args.tau)

            optimizer.zero_grad()
            loss.backward()
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            optimizer.step(lr)

            if run.logs(step):
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), lr=lr,
                        alignment=alignment(z1.data, z2.data), uniformity=uniformity(z.data))

        # Evaluation: frozen features of the whole data set, in h (kept) and z (thrown away after training).
        run.say("evaluating: nearest neighbours and linear probe on frozen h and z")
        frozen = state_hash(model)
        train_h, train_z = encode(model, data.train_images, xp)
        test_h, test_z = encode(model, data.test_images, xp)
        knn = [knn_accuracy(train, data.train_labels, test, data.test_labels)
               for train, test in ((train_h, test_h), (train_z, test_z))]
    probe = [linear_probe(train, data.train_labels, test, data.test_labels)
             for train, test in ((train_h, test_h), (train_z, test_z))]
    if state_hash(model) != frozen:
        raise RunError("evaluation changed the model: its figures are not those of frozen features")

    log = run.read_log()
    loss = float(np.mean([line["loss"] for line in log if line["step"] >= 0.9 * total]))     # of the last tenth
    bound = infonce_bound(loss, candidates=2 * args.batch - 1)
    if viz.available():
        draw(run, log, augment, data, to_host(test_h), to_host(test_z), args)
    else:
        run.say("no pictures: they need matplotlib, pip install 'minicl[viz]'")
    run.finish({
        "data": data.name, "backend": args.backend, "seed": args.seed,
        "loss": loss, "bound_nats": bound.nats, "cap_nats": bound.cap,
        "knn_h": knn[0], "knn_z": knn[1], "probe_h": probe[0], "probe_z": probe[1],
        "seconds": run.elapsed(), "seconds_per_epoch": run.seconds / args.epochs, "peak_mib": peak_memory_mib(xp),
    })


def draw(run, log, augment, data, test_h, test_z, args):
    """The pictures of the run: views, curves, maps of h and z, nearest neighbours."""
    rng = np.random.default_rng(args.seed)
    images = to_float(data.test_images[:12], np)
    viz.image_grid(run.folder / "views.png", [images, *two_views(augment, images, rng)], title="two views of each image",
                   row_labels=("image", "view 1", "view 2"))
    viz.training_curves(run.folder / "curves.png", log, candidates=2 * args.batch - 1, dim=test_z.shape[1])
    some = slice(0, 3000)
    viz.embedding_map(run.folder / "map_h.png", test_h[some], data.test_labels[some], data.class_names,
                      title="h: test images on two principal axes")
    viz.embedding_map(run.folder / "map_z.png", test_z[some], data.test_labels[some], data.class_names,
                      title="z: test images on two principal axes")
    near = nearest_neighbours(test_h, test_h[:10], k=9)                              # the first is the image itself
    pixels = to_float(data.test_images, np)
    viz.image_grid(run.folder / "neighbours.png", [pixels[ids] for ids in near],
                   title="test images (left) and their nearest neighbours in h")


if __name__ == "__main__":
    command(main)
