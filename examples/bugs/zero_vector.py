"""One image that gives a vector of zeros: from that step on everything is NaN.

    python examples/bugs/zero_vector.py                  # about 3 s

x / |x| is 0/0 for x = 0. A single row is enough: the NaN goes through the batch's softmax into the loss, from there
into every gradient, and with one optimizer step into every weight. A padded row or an empty image can cause it.
"""

import numpy as np
from compare import BATCH, TAU, compare, start, train

from minicl.backend import threads
from minicl.contrastive import l2_normalize
from minicl.nn import BatchNorm
from minicl.ops import logsumexp
from minicl.optim import AdamW


class TrustingAdamW(AdamW):
    """AdamW of a model whose optimizer and batch norm take NaN. minicl's raise an error; most others, and all on a GPU,
    do not."""

    def __init__(self, model, lr):
        super().__init__(model, lr)
        for layer in model.modules():
            if isinstance(layer, BatchNorm):
                layer.momentum = 0.0                     # keeps no running averages, which would refuse them

    def _require_finite_gradients(self):
        pass


def correct(z):
    return l2_normalize(z)                               # zeros stay zeros, and get a zero gradient


def wrong(z):
    return z / (z * z).sum(axis=1, keepdims=True) ** 0.5


@threads(1)
def main(steps=60, empty_at=40):
    def run(normalize):
        step = iter(range(steps))

        def loss(z1, z2):
            keep = np.ones((BATCH, 1), dtype="float32")
            keep[0] = next(step) != empty_at             # at one step one image's z is zero
            u1, u2 = normalize(z1 * keep), normalize(z2 * keep)
            scores = u1 @ u2.T / TAU                     # view 1 picks view 2
            log_p = scores - logsumexp(scores, axis=1, keepdims=True)    # minicl's log_softmax would refuse NaN
            return -log_p[np.arange(BATCH), np.arange(BATCH)].mean()

        with np.errstate(invalid="ignore", divide="ignore"):             # NumPy would warn; a GPU does not
            model, losses = train(loss, steps, make_optimizer=lambda model: TrustingAdamW(model, lr=3e-3))
        weights = np.concatenate([p.data.reshape(-1) for _, p in model.named_parameters()])
        return {"loss": losses, f"loss, step {empty_at - 1}": losses[empty_at - 1],
                "share of weights that are NaN": float(np.isnan(weights).mean())}

    return compare("zero_vector", correct=run(correct), wrong=run(wrong), curve="loss")


if __name__ == "__main__":
    start(main)
