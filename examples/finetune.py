"""Few labels: the accuracy of a trained encoder when only a few images of each class have a label.

    python examples/finetune.py runs/simclr_mnist                    # 1, 10 and 100 labels a class, three draws of each
    python examples/finetune.py runs/simclr_images --labels 5 50 --seeds 5

Three classifiers learn from the same labelled images, and are compared on all test images:

    probe       a linear layer on the h of the frozen encoder
    fine-tuned  the probe, then everything trained further; batch norm keeps the averages of the many unlabelled images
    scratch     the same architecture from random weights

It prints a table, mean and standard deviation over draws of the labelled images, and writes few_labels.png and
few_labels.json into the run's folder, or beside a .safetensors file; if they exist, few_labels-2.png and so on. If a class
has fewer images than --labels, all are used; the table has the numbers used. It warns if the data are not those that the
run trained on.
"""

import argparse
import contextlib
import copy
import os
import sys

import numpy as np

import minicl
from minicl import nn, viz
from minicl.backend import threads, to_device, to_host
from minicl.console import terminal_columns, wrapped
from minicl.contrastive import log_softmax
from minicl.data import DataError, ImageData, load_colour_images, load_images
from minicl.evaluate import encode, to_float
from minicl.files import write_json
from minicl.optim import AdamW, warmup_cosine
from minicl.options import DefaultsHelp, at_least, folder, within
from minicl.origin import fingerprint
from minicl.run import command

WAYS = {"probe": viz.BLUE, "fine-tuned": viz.RED, "scratch": viz.GREY}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0],
                                     formatter_class=DefaultsHelp)
    parser.add_argument("run", type=folder, help="the folder of a run, e.g. runs/simclr_mnist")
    parser.add_argument("--model", help="name of the model, if the run trained several")
    parser.add_argument("--data-dir", type=folder, help="folder of the data, if it has moved, or "
                        "of other labelled pictures; default: the run's")
    parser.add_argument("--labels", type=at_least(1), nargs="+", default=[1, 10, 100], help="labelled images per class")
    parser.add_argument("--probe", action="store_true", help="only the linear probe, which takes seconds")
    parser.add_argument("--seeds", type=at_least(1, 100), default=3, help="number of random draws of the labelled images")
    parser.add_argument("--steps", type=at_least(10), default=200, help="training steps of each classifier")
    parser.add_argument("--batch", type=at_least(2), default=64, help="images per step")
    parser.add_argument("--lr", type=within("(0, inf)"), default=1e-3,
                        help="peak learning rate from scratch; the probe uses ten times it, fine-tuning a third")
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"), help="numpy: CPU; cupy: GPU")
    parser.add_argument("--threads", type=at_least(1, 1024), help="CPU threads; default: all available cores")
    args = parser.parse_args()

    trained = minicl.load(args.run, args.backend, model=args.model)
    data = data_of(trained, args.data_dir)
    xp = trained.xp
    if not data.is_labelled:
        raise DataError(f"{args.data_dir or args.run}: its data has no labels to learn from; give a folder with a subfolder "
                        "for each class")
    show(f"{trained}; {data.name} has {len(data.class_names)} classes")
    if changed := changed_fields(trained, data):
        show(f"warning: {', '.join(changed)} differ from the run's training data; it may have seen test images")
    sizes = np.unique(data.train_labels, return_counts=True)[1]
    used = [np.minimum(sizes, count) for count in args.labels]                       # (classes,) each
    names = [f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}" for n in used]
    accuracies = {way: np.zeros((len(args.labels), args.seeds)) for way in (["probe"] if args.probe else WAYS)}
    home = trained.folder if trained.folder.is_dir() else trained.folder.parent      # of a .safetensors file
    name = take_name(home)
    with threads(args.threads):
        for row, count in enumerate(args.labels):
            for seed in range(args.seeds):
                for way, accuracy in three_ways(trained.encoder, data, count, seed, xp, args).items():
                    accuracies[way][row, seed] = accuracy
            spread = [f" ± {found[row].std():.1%}" if args.seeds > 1 else "" for found in accuracies.values()]
            means = [f"{way} {accuracies[way][row].mean():6.1%}{std}" for way, std in zip(accuracies, spread)]
            show("  ".join([f"{names[row]:>4} label{'s' * (names[row] != '1')} a class", *means]))
            done = {way: found[:row + 1].tolist() for way, found in accuracies.items()}
            write_json(home / f"{name}.json", {"data": data.name, "changed": changed, "labels": names[:row + 1], **done})
    draw(home / f"{name}.png", [n.mean() for n in used], names, accuracies,
         f"{data.name}: what training without labels is worth")
    show(f"{name}.png and {name}.json are in {home}" if viz.Figure else f"{name}.json is in {home}")


def take_name(folder):
    """few_labels, or few_labels-2, ...: the first of which the folder has no file; its .json is made, for nobody else."""
    k, name = 1, "few_labels"
    while True:
        if not os.path.lexists(folder / f"{name}.png"):
            with contextlib.suppress(FileExistsError):
                open(folder / f"{name}.json", "x").close()
                return name
        k += 1
        name = f"few_labels-{k}"


def data_of(trained, data_dir):
    """The ImageData that a run was trained on."""
    config = trained.config
    seed = trained.config.get("seed", 0)
    place = data_dir or config.get("data_dir")
    if trained.name in ("simclr_mnist", "moco_mnist"):
        return load_images(config["data"], place, seed=seed)
    if trained.name == "simclr_cifar10":
        return load_colour_images(config["data"], place, seed=seed).first(config.get("limit"))
    if place and trained.image_shape:
        size, _, channels = trained.image_shape
        return ImageData.from_folder(place, size=size, channels=channels, limit=None if data_dir else config.get("limit"))
    raise DataError(f"{trained.folder} is a run of {trained.name}; give --data-dir, a folder with a subfolder for each "
                    "class")


def show(text):
    print(wrapped(text, terminal_columns(sys.stdout)), flush=True)


def changed_fields(trained, data):
    """Names of the fields of data that differ from the run's. With --no-labels it had no labels to compare."""
    ignored = () if trained.config.get("labels", True) else ("train_labels", "test_labels", "class_names")
    return [field for field, text in fingerprint(data).items() if trained.data.get(field) != text and field not in ignored]


def three_ways(encoder, data, count, seed, xp, args):
    """{way: test accuracy} from `count` labelled images a class, drawn by the seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train_labels))
    chosen = np.concatenate([order[data.train_labels[order] == label][:count] for label in np.unique(data.train_labels)])
    images = data.train_images[chosen]
    labels = data.train_labels[chosen]
    classes = len(data.class_names)

    def learn(classifier, lr):
        fit(classifier, images, labels, xp, rng, lr=lr, steps=args.steps, batch=args.batch)
        scores = to_host(encode(classifier, data.test_images, xp))
        return float((scores.argmax(axis=1) == data.test_labels).mean())

    encoder = copy.deepcopy(encoder)
    features = encode(encoder, images[:1], xp).shape[1]
    classifier = nn.Sequential(encoder, nn.Linear(features, classes, rng=rng).to(xp))
    encoder.freeze()                                         # no gradient, no dropout, and batch norm as in evaluation
    accuracies = {"probe": learn(classifier, 10 * args.lr)}
    if args.probe:
        return accuracies

    encoder.unfreeze()
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm):
            layer.freeze()                                   # keeps the statistics of many images
            layer.splits = 1                                 # MoCo's groups, which its constructor has set
    accuracies["fine-tuned"] = learn(classifier, args.lr / 3)

    fresh = nn.fresh(encoder, rng=rng).to(xp)
    accuracies["scratch"] = learn(nn.Sequential(fresh, nn.Linear(features, classes, rng=rng).to(xp)), args.lr)
    return accuracies


def fit(classifier, images, labels, xp, rng, *, lr, steps, batch):
    """Train by cross-entropy on batches drawn from the images; warmup, then a cosine down to 0."""
    optimizer = AdamW(classifier, lr, weight_decay=1e-4)
    for step in range(steps):
        ids = rng.permutation(len(labels))[:batch]
        log_p = log_softmax(classifier(to_float(images[ids], xp)))                   # (B, classes)
        loss = -log_p[xp.arange(len(ids)), to_device(labels[ids], xp)].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(warmup_cosine(step, total=steps, peak=lr, warmup=steps // 10))


def draw(path, counts, names, accuracies, title):
    """Accuracy against labels a class, on a logarithmic axis; bars are standard deviations over draws."""
    if viz.Figure is None:
        print(viz.MISSING)
        return
    figure = viz.Figure(figsize=(5.6, 4.0), dpi=150)
    plot = figure.subplots()
    for k, (way, found) in enumerate(accuracies.items()):
        aside = 1.06**(k - (len(accuracies) - 1) / 2)                                # to show those that are equal
        plot.errorbar(np.multiply(counts, aside), 100 * found.mean(axis=1), 100 * found.std(axis=1), label=way,
                      color=WAYS[way], marker="o", capsize=3)
    plot.set(xscale="log", xlabel="labelled images a class", ylabel="test accuracy (%)", title=title)
    plot.set_xticks(counts, ["\n" * (" " in name) + name for name in names])
    plot.minorticks_off()
    plot.grid(axis="y", linewidth=0.4)
    plot.legend(frameon=False)
    viz.save_figure(figure, path)


if __name__ == "__main__":
    command(main, alone=True)
