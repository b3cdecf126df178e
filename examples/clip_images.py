"""CLIP on your own pictures and captions: search by words, retrieval both ways, classes by prompts.

    python examples/clip_images.py --captions captions.csv --data-dir photos         # columns image and caption
    python examples/clip_images.py --captions captions.csv --data-dir photos --classes dog cat "traffic light"
    python examples/clip_images.py --captions captions_train2017.json --data-dir train2017 --backend cupy --batch 1024

caption_files.py reads CSV, TSV, Flickr8k's and COCO's files; docs/pictures.md describes them. The vocabulary is that of the
training captions. If a picture has several captions, each step draws one. Without class labels, zero-shot accuracy is
measured on the test pictures whose captions name exactly one of --classes.
"""

import math
import os
import re

import numpy as np

from caption_files import load_captioned, vocabulary
from clip_captions import draw_curves
from minicl import capture, get_backend
from minicl.backend import peak_memory_mib, threads, to_device, to_host
from minicl.contrastive import clip_loss, l2_normalize
from minicl.data import Batches, DataError, Prefetch, same_caption_ids
from minicl.data.augment import RandomResizedCrop
from minicl.data.augment.base import shared_by
from minicl.distributed import get_world
from minicl.evaluate import (alignment, class_embeddings, encode, final_loss, retrieval_recall, to_float, uniformity,
                             zero_shot_accuracy)
from minicl.methods import CLIP, grad_cache
from minicl.nn import BagOfTokens, Transformer, WordTokenizer
from minicl.nn.words import words_of
from minicl.optim import AdamW, warmup_cosine
from minicl.options import at_least, folder, options, within
from minicl.run import Run, command
from plots import caption_grid
from simclr_cifar10 import ENCODERS
from simclr_images import choose_batch, picture_options


def main():
    parser = options(__doc__, epochs=20, batch=128, lr=1e-3, tau=0.07, data=None)
    picture_options(parser)
    parser.add_argument("--captions", type=folder, help="CSV, TSV or JSON file of captions of the pictures in --data-dir "
                        "(required)")
    parser.add_argument("--classes", nargs="+", default=[], help="class names, to classify the test pictures by words")
    parser.add_argument("--template", default="a photo of a {}", help="prompt for a class; {} stands for its name")
    parser.add_argument("--min-count", type=at_least(1), default=2, help="occurrences that a word needs to be learned")
    parser.add_argument("--length", type=at_least(1, 512), default=32, help="words read of each caption")
    parser.add_argument("--text", default="transformer", choices=("transformer", "bag"), help="encoder of captions")
    parser.add_argument("--dim", type=at_least(2, 2**14), default=128, help="dimension of the common embedding space")
    parser.add_argument("--weight-decay", type=within("[0, inf)"), default=0.05, help="weight decay of AdamW, on matrices")
    parser.add_argument("--chunk", type=at_least(3), help="pairs encoded at a time, to save memory; default: all at once")
    parser.add_argument("--clip-grad", type=within("(0, inf)"), help="largest norm of the gradients; default: no limit")
    parser.only_with("--classes", "--template")
    args = parser.parse_args()
    if not args.captions:
        parser.error("--captions: name a file with captions")
    if args.tau < 0.01:
        parser.error(f"--tau: expected 0.01 or more, because CLIP limits 1/tau to 100, got {args.tau}")
    if "{}" not in args.template or len(set(args.classes)) != len(args.classes) or len(args.classes) == 1:
        parser.error("--classes: expected two or more different names, and {} in --template")

    args.data_dir = args.data_dir or os.path.dirname(args.captions) or "."           # config.json says where they are
    world = get_world(args.backend)
    xp = get_backend(args.backend, args.precision)
    run = Run(args, "clip_images", world)
    rng = np.random.default_rng(args.seed)

    # Data: uint8 images in a file that is mapped into memory, and the words of the training captions.
    data = load_captioned(args.captions, args.data_dir, args.size, limit=args.limit, log=run.print)
    tokenizer = WordTokenizer(vocabulary(data.train_captions, least=args.min_count), args.length, unknown=True)
    require_prompts(args.classes, args.template, tokenizer)
    tokens = tokenizer(data.train_captions.tolist())                                 # (captions, T)
    require_captions(data.train_captions.tolist(), tokens, tokenizer, run.print)
    run.print(f"data: {data.name}, {len(data.train_images)} training and {len(data.test_images)} test images, "
              f"{len(tokens)} training captions of {len(tokenizer.vocabulary)} words")
    choose_batch(args, run, len(data.train_images), 128)
    batches = Batches(len(data.train_images), args.batch, seed=args.seed)
    pictures = Prefetch(data.train_images, batches, world.part)
    augment = RandomResizedCrop(args.size, scale=(0.5, 1.0))                         # captions name colours and sides

    # Two encoders, two projections into one space, and a temperature that is learned.
    text = Transformer(tokenizer.size, args.length, rng=rng) if args.text == "transformer" else \
        BagOfTokens(tokenizer.size, rng=rng)
    encoder = ENCODERS[args.encoder](data.train_images.shape[1:], args.width, rng)
    model = CLIP(encoder, text, args.dim, tau=args.tau, rng=rng).to(xp).across(world)
    optimizer = AdamW(model, args.lr, weight_decay=args.weight_decay)

    @capture(xp, world=world, log=run.print, enabled=args.capture)
    def train(images, ids, same, lr):
        """One training step: images (N, size, size, 3) uint8, token ids (N, T), caption_ids (N,) or None."""
        images = augment(to_float(images, xp), rng, *shared_by(world))               # (N, size, size, 3)

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
                              tokenizer=tokenizer):
            first, end = data.train_starts[batches[step]], data.train_starts[batches[step] + 1]
            ids = tokens[rng.integers(first, end)]                                   # one caption for each image
            ids = ids[:, :np.count_nonzero(ids, axis=1).max()]                       # (N, T)
            same = same_caption_ids(ids)                                             # captions repeat: no negatives
            chance = log_candidates(same)
            same = to_device(same[world.part], xp) if same.any() else None           # None: all are the same
            lr = warmup_cosine(step, total=total, peak=args.lr, warmup=total // 10)
            loss, image, text = train(pictures[step], to_device(ids[world.part], xp), same, lr)

            if run.logs(step):
                image, text = world.all_gather(image.data), world.all_gather(text.data)      # of the whole batch
                run.log(step, epoch=step // batches.per_epoch + 1, loss=loss.item(), chance=chance, lr=lr,
                        scale=math.exp(model.logit_scale.item()), alignment=alignment(image, text),
                        uniformity=uniformity(image))

        def embed(captions):
            return encode(model.text, tokenizer(captions), xp, prepare=to_device, world=world)

        # Retrieval among at most 1000 test pictures and their first captions.
        run.print("evaluating: retrieval, and classes by prompts")
        shown = data.test_images[:1000]
        image = encode(model.image, shown, xp, world=world)
        captions = data.test_captions[data.test_starts[:len(shown)]]
        one_of, caption_ids = np.unique(same_caption_ids(tokenizer(captions.tolist())), return_inverse=True)
        captions = captions[one_of]                                                  # those that are read differently
        text = embed(captions.tolist())
        metrics = retrieval_recall(image, text, caption_ids) if len(captions) > 1 else {}
        metrics["candidates"] = len(captions)

        # Zero-shot: a prompt for each class; the label is the class that the captions name, if they name exactly one.
        if args.classes:
            classes = class_embeddings(embed, args.classes, [args.template])
            truth = np.array([named_class(data.test_captions[lo:hi], args.classes)
                              for lo, hi in zip(data.test_starts, data.test_starts[1:len(shown) + 1])])
            known = np.flatnonzero(truth >= 0)
            if not len(known):
                run.print("zero_shot is unknown: no test picture has captions that name exactly one of --classes")
            metrics["zero_shot_pictures"] = len(known)
            metrics["zero_shot"] = None
            if len(known):
                metrics["zero_shot"] = zero_shot_accuracy(image[to_device(known, xp)], classes, truth[known])

    log = run.read_log()
    if world.rank == 0:
        draw_curves(run.folder / "curves.png", log, [line.get("chance", math.log(args.batch)) for line in log])
        image = l2_normalize.forward(image)[0]
        best = to_host((image[:18] @ l2_normalize.forward(text)[0].T).argmax(axis=1))
        caption_grid(run.folder / "captions.png", shown[:18], captions[best], best == caption_ids[:18],
                     title=f"test pictures, and the best of {len(captions)} captions (red: another picture's)")
        if args.classes:
            best = to_host((image @ classes.T).argmax(axis=1))
            some = known[:18] if len(known) else np.arange(min(18, len(shown)))      # without captions that tell: all black
            caption_grid(run.folder / "classes.png", shown[some], np.array(args.classes)[best[some]],
                         (best == truth)[some] | (truth[some] < 0),
                         title=f"test pictures, and the best of {len(args.classes)} classes (red: captions name another)")
    run.finish({"data": data.name, "backend": args.backend, "seed": args.seed, "loss": final_loss(log, total),
                "scale": log[-1]["scale"], **metrics, "waiting": pictures.waiting,
                "seconds": run.elapsed(), "seconds_per_epoch": run.seconds / args.epochs,
                "peak_mib": peak_memory_mib(xp)})


def log_candidates(ids):
    """log K, in the mean over the pairs of caption_ids (N,): K counts a pair's own caption and the other pairs' different
    ones. It is the loss of a guess."""
    return float(np.log(len(ids) + 1 - np.bincount(ids)[ids]).mean())


def require_captions(captions, tokens, tokenizer, log):
    """Raise DataError if all captions are read as the same tokens (captions, T). Log how many are cut, or read alike."""
    words = [tuple(words_of(caption)) for caption in captions]
    if cut := sum(len(each) > tokenizer.length for each in words):
        log(f"cut: {cut} of the {len(captions)} training captions have more than --length {tokenizer.length} words")
    ids = same_caption_ids(tokens)
    if not ids.any():
        raise DataError(f"--captions: all {len(captions)} training captions are read as the same words, so no picture has a "
                        f"negative; give captions that differ within --length {tokenizer.length} words, in words that "
                        "occur --min-count times")
    if (read := len(np.unique(ids))) < (different := len(set(words))):
        log(f"read alike: the {different} different training captions are read as {read}, since some differ only after "
            "--length words, or in words that occur fewer than --min-count times; those are no negatives of each other")


def require_prompts(classes, template, tokenizer):
    """Raise DataError unless the tokenizer reads the whole prompt of each class, and reads different ones."""
    if without := [name for name in classes if not words_of(name)]:
        raise DataError(f"--classes: {without[0]!r} has no word")
    if unknown := {word for name in classes for word in words_of(name)} - tokenizer.vocabulary.keys():
        raise DataError(f"--classes: {', '.join(sorted(unknown))}: not among the {len(tokenizer.vocabulary)} words of the "
                        "training captions that occur --min-count times")
    prompts = {name: words_of(template.replace("{}", name)) for name in classes}
    read = {}
    for name, words in prompts.items():
        if len(words) > tokenizer.length:
            needed = max(map(len, prompts.values()))
            raise DataError(f"--length {tokenizer.length}: the prompt {' '.join(words)!r} would be cut "
                            f"to {' '.join(words[:tokenizer.length])!r}; give --length {needed} or more, or a shorter "
                            "--template")
        other = read.setdefault(tuple(word if word in tokenizer.vocabulary else None for word in words), name)
        if other != name and prompts[other] == words:
            raise DataError(f"--classes: {other!r} and {name!r} have the same prompt, {' '.join(words)!r}; give "
                            "classes that differ in a word")
        if other != name:
            raise DataError(f"--template: the prompts {' '.join(prompts[other])!r} and {' '.join(words)!r} differ only in "
                            "words that the training captions lack; write {} as a word of its own")


def named_class(captions, classes):
    """The index of the only class named in captions; -1 if none or several are. "traffic light" does not name "light"."""
    text = " | ".join(" ".join(words_of(caption)) for caption in captions)
    names = [" ".join(words_of(name)) for name in classes]
    named = []
    for k in sorted(range(len(names)), key=lambda k: -len(names[k])):                    # the longest first
        text, times = re.subn(rf"(?<!\S){re.escape(names[k])}(?!\S)", "|", text)
        named += [k] * (times > 0)
    return named[0] if len(named) == 1 else -1


if __name__ == "__main__":
    command(main)
