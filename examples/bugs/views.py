"""The same augmentation for both views: the loss has never looked better.

    python examples/bugs/views.py                        # about 6 s

Two generators with one seed draw the same tilt, shift and shear. Both views are the same picture. There is nothing to
learn to ignore, and a picture is found again by its pixels.
"""

import copy

from compare import compare, digits, finds_other_view, start, train, usual_loss

from minicl.backend import threads
from minicl.data import mnist_views

augment = mnist_views()


def correct(ids, rng):
    images = digits()[0][ids]
    return augment(images, rng), augment(images, rng)


def wrong(ids, rng):
    images = digits()[0][ids]
    again = copy.deepcopy(rng)                           # as two workers of a loader that were given one seed
    return augment(images, rng), augment(images, again)


@threads(1)
def main(steps=200):
    def run(views):
        model, losses = train(usual_loss, steps, views=views)
        return {"loss": losses, "finds the other view": finds_other_view(model)}

    return compare("views", correct=run(correct), wrong=run(wrong), curve="loss")


if __name__ == "__main__":
    start(main)
