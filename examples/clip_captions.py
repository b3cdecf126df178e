"""CLIP on captioned digits: learn images and language together, then classify by words.

    python examples/clip_captions.py                      # CPU; MNIST if available, else generated digits
    python examples/clip_captions.py --data digits --epochs 30     # 10,000 generated digits: more passes
    python examples/clip_captions.py --text bag           # captions as bags of words, without attention
    python examples/clip_captions.py --backend cupy       # the same code on a GPU
    mpirun -n 4 python examples/clip_captions.py          # four processes share every batch

Images show digits of several colours, sizes and places, and a grammar describes them. The model learns to match images
with their captions. A fifth of all combinations of digit, colour and place never occurs in training. On these it is
evaluated by zero-shot classification with prompts, and by choosing a caption among all. Then retrieval in both directions.
"""

import math

import numpy as np

from captioned_digits import COUNTS, LENGTH, NAMES, CaptionedDigits
from minicl import capture, get_backend, viz
from minicl.backend import peak_memory_mib, threads, to_device, to_host
from minicl.contrastive import clip_loss, l2_normalize
from minicl.data import Batches, load_images, same_caption_ids
from minicl.distributed import ALONE, get_world
from minicl.evaluate import (alignment, class_embeddings, encode, final_loss, retrieval_recall, to_float, uniformity,
                             zero_shot_accuracy)
from minicl.methods import CLIP, grad_cache
from minicl.nn import BagOfTokens, ConvNet, Transformer
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, options, within
from minicl.run import Run, command
from plots import caption_grid, line_plots

PROMPTS = {
    "digit": {"bare": ["{}"], "template": ["a photo of a {}"],
              "ensemble": ["a photo of a {}", "there is a digit {}", "this is the number {}", "a small {}",
                           "a large {}", "the {} is red", "the {} is blue"]},
    "colour": {"bare": ["{}"], "template": ["a photo of a {} digit"],
               "ensemble": ["a photo of a {} digit", "there is a {} number", "the digit is {}", "a small {} digit",
                            "a large {} digit", "a {} three", "a {} eight"]},
}


def main():
    parser = options(__doc__, epochs=6, batch=256, lr=3e-3, tau=0.07)
    parser.add_argument("--text", default="transformer", choices=("transformer", "bag"), help="encoder of captions")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=64, help="dimension of the common embedding space")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=0.05, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(3), help="pairs encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    args = parser.parse_args()
    if args.tau < 0.01:
        parser.error(f"--tau: expected 0.01 or more, because CLIP limits 1/tau to 100, got {args.tau}")

    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "clip_captions", world)
    rng = np.random.default_rng(args.seed)

    # Data: digits. Colour, size, place and caption are drawn for every batch.
    data = run.once(load_images, args.data, args.data_dir, seed=args.seed, log=run.print)
    dataset = CaptionedDigits()
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    run.print(f"data: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images; "
            f"{dataset.tokenize.size - 1} words")

    # Two encoders, two projections into one space, and a temperature that is learned.
    words = dataset.tokenize.size
    text = Transformer(words, LENGTH, depth=1, rng=rng) if args.text == "transformer" else BagOfTokens(words, rng=rng)
    encoder = ConvNet((32, 32, 3), (32, 64, 128, 128), strides=(2, 2, 2, 1), rng=rng)    # the last sees whole digits
    model = CLIP(encoder, text, args.dim, tau=args.tau, rng=rng).to(xp).across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, ids, same, lr):
        """One training step: images (N, 32, 32, 3), token ids (N, T), caption_ids (N,) or None."""
        def loss_of(image, text):                                                    # (N, dim) both
            if same is None:                                                         # without negatives
                return 0.0 * (image.sum() + text.sum())
            return clip_loss(image, text, model.logit_scale, caption_ids=same, world=world)

        optimizer.zero_grad()
        if args.chunk:                                                               # the same gradient in less memory
            loss, (image, text) = grad_cache(model, loss_of, images, ids, chunk=args.chunk // world.size)
        else:
            image, text = model(images, ids)
            loss = loss_of(image, text)
            loss.backward()
        optimizer.step(lr, clip_grad_norm=args.clip_grad)
        model.clamp_logit_scale()
        return loss, image, text

    # Training.
    total = args.epochs * batches.per_epoch
    with threads(args.threads, keep_memory=args.keep_memory):
        for step in run.steps(total, rng, save_every=batches.per_epoch, data=data, model=model, optimizer=optimizer,
                              tokenizer=dataset.tokenize):
            chosen = batches[step]
            images, ids, same = caption_batch(dataset, data.train_images[chosen], data.train_labels[chosen], rng, xp, world)
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            loss, image, text = train(images, ids, same, lr)

            if run.logs(step):
                image, text = world.all_gather(image.data), world.all_gather(text.data)      # of the whole batch
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), lr=lr,
                        scale=math.exp(model.logit_scale.item()), alignment=alignment(image, text),
                        uniformity=uniformity(image))

        # Zero-shot: test images, in combinations that training did not have.
        run.print("evaluating: unseen combinations of attributes, and retrieval")
        rng = np.random.default_rng([args.seed, 1])
        images, attributes = dataset.render(data.test_images, data.test_labels, rng, held_out=True)
        unseen = encode(model.image, images, xp, world=world)
        metrics = {f"{attribute}_{kind}": accuracy for (attribute, kind), accuracy in
                   zero_shot(model, dataset, unseen, attributes, PROMPTS, xp, world).items()}

        # The best caption among those of all combinations, each named in full.
        combinations = np.indices(COUNTS).reshape(4, -1).T                           # (800, 4)
        captions = dataset.caption(combinations, rng, named=dict.fromkeys(NAMES, 1.0))
        text = embed_captions(model, dataset, captions, xp, world)
        metrics["caption"] = zero_shot_accuracy(unseen, text, caption_number(attributes))

        # Retrieval among 1000 test images in any combination, and the captions of those that occur.
        shown, seen = dataset.render(data.test_images[:1000], data.test_labels[:1000], rng, held_out=None)
        occurring, caption_ids = np.unique(caption_number(seen), return_inverse=True)
        recalls = retrieval_recall(encode(model.image, shown, xp, world=world), text[to_device(occurring, xp)],
                                   caption_ids)

    log = run.read_log()
    if world.rank == 0:
        best = to_host((unseen[:18] @ l2_normalize.forward(text)[0].T).argmax(axis=1))
        draw_curves(run.folder / "curves.png", log, [math.log(args.batch)] * len(log))
        caption_grid(run.folder / "captions.png", images[:18], [captions[k] for k in best],
                     best == caption_number(attributes)[:18],
                     title=f"unseen combinations, and the best of {len(captions)} captions (red: wrong)")
    run.finish({"data": data.name, "backend": args.backend, "seed": args.seed, "loss": final_loss(log, total),
                "scale": log[-1]["scale"], **metrics, **recalls,
                "seconds": run.elapsed(), "seconds_per_epoch": run.seconds / args.epochs,
                "peak_mib": peak_memory_mib(xp)})


def draw_curves(path, log, chance):
    """The loss against chance, a number for each line of the log, and the scale of the logits, over the steps."""
    steps = [line["step"] for line in log]
    line_plots(path,
               {"lines": [("loss", steps, [line["loss"] for line in log], {"color": viz.BLUE}),
                          ("chance", steps, chance, {"color": viz.GREY, "linestyle": "--"})],
                "title": "loss", "xlabel": "step", "ylabel": "nats", "ylim": (0, None)},
               {"lines": [("1/tau", steps, [line["scale"] for line in log], {"color": viz.RED})],
                "title": "scale of the logits, learned", "xlabel": "step", "ylim": (0, None)})


def caption_batch(dataset, digits, labels, rng, xp, world=ALONE):
    """Digits (N, 28, 28, 1) in new pictures (N, 32, 32, 3), their captions' token ids, and caption_ids (N,), None if all
    captions are the same, which a small batch may have.

    All processes draw the whole batch and get their part of it."""
    images, attributes = dataset.render(digits, labels, rng)
    ids = dataset.tokenize(dataset.caption(attributes, rng))
    same = same_caption_ids(ids)                                                     # captions repeat: no negatives
    same = to_device(same[world.part], xp) if same.any() else None
    return to_float(images[world.part], xp), to_device(ids[world.part], xp), same


def embed_captions(model, dataset, captions, xp, world=ALONE):
    """The text embeddings (N, dim) of N captions, as an array."""
    return encode(model.text, dataset.tokenize(captions), xp, prepare=to_device, world=world)


def zero_shot(model, dataset, images, attributes, prompts, xp, world=ALONE):
    """{(attribute, kind of prompt): accuracy} of image embeddings (N, dim) whose attributes are known.

    prompts  {attribute: {kind: templates with {} for the value's name}}
    """
    def embed(captions):
        return embed_captions(model, dataset, captions, xp, world)

    return {(attribute, kind): zero_shot_accuracy(images, class_embeddings(embed, NAMES[attribute], templates),
                                                  attributes[:, list(NAMES).index(attribute)])
            for attribute, kinds in prompts.items() for kind, templates in kinds.items()}


def caption_number(attributes):
    """The number of each row of attributes (N, 4) among all combinations, in the order of np.indices."""
    return np.ravel_multi_index(attributes.T, COUNTS)


if __name__ == "__main__":
    command(main)
