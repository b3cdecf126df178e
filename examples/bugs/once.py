"""Views drawn once and stored: the training loss falls further, and new views are found less often.

    python examples/bugs/once.py                         # about 7 s

The views are made before training to save time, or the generator is re-seeded every epoch. Each image then has the same
two views throughout, and an encoder can memorise these pairs.
"""

import numpy as np
from compare import BATCH, compare, finds_other_view, fresh_views, start, train, usual_loss

from minicl.backend import threads


@threads(1)
def main(steps=300):
    images = 2 * BATCH                                   # few images, many epochs: what can be memorised, will be
    stored = fresh_views(np.arange(images), np.random.default_rng(0))

    def correct(ids, rng):
        return fresh_views(ids, rng)

    def wrong(ids, rng):
        return stored[0][ids], stored[1][ids]            # an image's same two views in every epoch

    def run(views):
        model, losses = train(usual_loss, steps, views=views, images=images)
        return {"loss": losses, "finds the other view": finds_other_view(model)}

    return compare("once", correct=run(correct), wrong=run(wrong), curve="loss")


if __name__ == "__main__":
    start(main)
