"""Probing z instead of h: a representation that looks worse than it is.

    python examples/bugs/probe.py                        # about 8 s

The head maps h to z, which the loss compares. It discards what differs between the two views, and with few dimensions more
than that; h still has it. After training the head is discarded, and h is evaluated (Chen et al. 2020, section 4.2).
"""

from compare import compare, digits, start, train, usual_loss

from minicl import no_grad
from minicl.backend import threads
from minicl.evaluate import linear_probe


def correct(model, images):
    h, z = model(images)
    return h.data


def wrong(model, images):
    h, z = model(images)
    return z.data


@threads(1)
def main(steps=240, every=80):
    images, labels, test_images, test_labels = digits()

    def examine(model, features):
        model.eval()
        with no_grad():
            known, asked = features(model, images), features(model, test_images)
        return linear_probe(known, labels, asked, test_labels)

    at = list(range(every, steps + 1, every))
    models = [train(usual_loss, n, dim=8)[0] for n in at]       # the same run, stopped after n steps

    def run(features):
        return {"step": at, "linear probe": [examine(model, features) for model in models]}

    return compare("probe", correct=run(correct), wrong=run(wrong), curve="linear probe")


if __name__ == "__main__":
    start(main)
