"""Prompts averaged and not normalised again: classes lose because their prompts disagree.

    python examples/bugs/zero_shot.py                    # about 1 s

The mean of unit vectors is shorter than 1, and the more they differ the shorter it is. With dot products as scores, a
class that is described in many ways starts behind one whose prompts all agree. The embeddings here are made up: 20
classes with 10 prompts each. In half of the classes the prompts scatter by the amount on the horizontal axis.
"""

import numpy as np
from compare import compare, start

from minicl.backend import threads
from minicl.contrastive import l2_normalize

CLASSES = 20
PROMPTS = 10
DIM = 64


def correct(prompts):
    return l2_normalize.forward(l2_normalize.forward(prompts)[0].mean(axis=1))[0]                # (classes, d), unit again


def wrong(prompts):
    return l2_normalize.forward(prompts)[0].mean(axis=1)     # (classes, d), each of its own length


@threads(1)
def main(images=4000):
    rng = np.random.default_rng(0)
    scattered = np.arange(CLASSES) % 2 == 1
    centre = l2_normalize.forward(rng.standard_normal((CLASSES, DIM)) + 1.0)[0]              # alike, as classes are
    labels = rng.integers(CLASSES, size=images)
    x = centre[labels] + rng.standard_normal((images, DIM)) * (0.7 / np.sqrt(DIM))
    noise = rng.standard_normal((CLASSES, PROMPTS, DIM)) / np.sqrt(DIM) * scattered[:, None, None]
    scatter = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]

    def run(average):
        accuracy = []
        seldom = []
        for amount in scatter:
            classes = average(centre[:, None] + amount * noise)
            predicted = (x @ classes.T).argmax(axis=1)
            accuracy.append(float((predicted == labels).mean()))
            seldom.append(float((predicted == labels)[scattered[labels]].mean()))
        return {"scatter of the prompts": scatter, "zero-shot accuracy": accuracy,
                "accuracy, scattered classes": seldom}

    return compare("zero_shot", correct=run(correct), wrong=run(wrong), curve="accuracy, scattered classes",
                   x="scatter of the prompts")


if __name__ == "__main__":
    start(main)
