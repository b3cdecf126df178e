"""Labels and ids of every integer dtype give the results of int64, bit for bit and in the same dtype."""

import numpy as np
import pytest
from captioned_digits import CaptionedDigits
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, ops
from minicl.contrastive import clip_loss, sup_con
from minicl.data import same_caption_ids
from minicl.data.digits import draw_digits
from minicl.data.shapes import draw_shapes
from minicl.evaluate import knn_accuracy, linear_probe, retrieval_recall, zero_shot_accuracy
from minicl.methods import Queue

IDS = np.array([3, 1, 0, 3, 2, 1, 0, 2])
X = np.random.default_rng(0).standard_normal((8, 4))
DRAWN = np.random.default_rng(1).integers(0, 255, (8, 28, 28, 1), dtype="uint8")


def rng():
    return np.random.default_rng(2)


def gradient_and_value(loss):
    x = Tensor(X, requires_grad=True)
    y = loss(x)
    y.backward(np.ones_like(y.data))
    return y.data, x.grad


DATASET = CaptionedDigits()
USES = {
    "render": lambda ids: DATASET.render(DRAWN, ids, rng()),
    "caption": lambda ids: np.array(DATASET.caption(np.stack([ids, ids, ids % 2, ids], axis=1), rng())),
    "same_caption_ids": lambda ids: same_caption_ids(ids.reshape(4, 2)),
    "draw_digits": lambda ids: draw_digits(ids, rng()),
    "draw_shapes": lambda ids: draw_shapes(ids, rng()),
    "sup_con": lambda ids: gradient_and_value(lambda x: sup_con(x, 0.5, labels=ids)),
    "clip_loss": lambda ids: gradient_and_value(lambda x: clip_loss(x, X[::-1].copy(), 1.0, caption_ids=ids)),
    "embedding": lambda ids: gradient_and_value(lambda x: ops.embedding(ids, x)),
    "getitem": lambda ids: gradient_and_value(lambda x: x[ids]),
    "key": lambda ids: gradient_and_value(lambda x: x[ids, ids]),
    "knn_accuracy": lambda ids: knn_accuracy(X, ids, X[::-1].copy(), ids, k=3),
    "linear_probe": lambda ids: linear_probe(X, ids, X[::-1].copy(), ids),
    "zero_shot_accuracy": lambda ids: zero_shot_accuracy(X, X[:4].copy(), ids),
    "retrieval_recall": lambda ids: list(retrieval_recall(X, X[:4].copy(), ids, ks=[1, 2]).values()),
}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"])
@pytest.mark.parametrize("use", USES)
def test_every_integer_dtype_gives_the_results_of_int64(use, dtype):
    found, right = USES[use](IDS.astype(dtype)), USES[use](IDS)
    for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, right))):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and np.array_equal(x, y)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@given(st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_a_queue_stores_the_largest_ids_of_every_dtype_or_refuses_them(dtype, below):
    top = np.iinfo(dtype).max
    ids = np.array([top - below, 0, 1, top], dtype)
    queue = Queue(8, 2)
    numbers = [int(i) for i in ids]
    if top >= 2**63 - 1:
        with pytest.raises(ValueError, match="Queue: ids must be from 0 to 2\\^63 - 2, got 0 to"):
            queue.enqueue(np.ones((4, 2), "float32"), ids)
        ids[ids >= 2**63 - 1] = 2**63 - 2
        numbers = [min(i, 2**63 - 2) for i in numbers]
    queue.enqueue(np.ones((4, 2), "float32"), ids)
    assert queue.ids.data[:4].tolist() == [i + 1 for i in numbers]
    Queue(8, 2).load_state_dict(queue.state_dict())
