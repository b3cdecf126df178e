"""A set where a list is expected is refused: its order, and so the result, would differ from process to process."""

import numpy as np
import pytest

from minicl import explain_pairs, gradcheck, nn, ops, viz
from minicl.data import many_views, mnist_views
from minicl.evaluate import class_embeddings, retrieval_recall

X = np.random.default_rng(0).standard_normal((2, 3))
CALLS = {
    "transpose: axes": lambda v: ops.transpose(X, axes=v),
    "broadcast_to: each of shape": lambda v: ops.broadcast_to(X, shape=v),
    "gradcheck: names": lambda v: gradcheck(ops.exp, [X], names=v),
    "explain_pairs: names": lambda v: explain_pairs(X, X[::-1].copy(), names=v),
    "class_embeddings: names": lambda v: class_embeddings(lambda captions: np.ones((len(captions), 3)), v, ["a {}"]),
    "class_embeddings: templates": lambda v: class_embeddings(lambda captions: np.ones((len(captions), 3)), ["a", "b"], v),
    "retrieval_recall: ks": lambda v: retrieval_recall(X, X, np.arange(2), ks=v),
    "MLP: widths": lambda v: nn.MLP((4, 4, 1), v, rng=np.random.default_rng(0)),
    "ConvNet: channels": lambda v: nn.ConvNet((8, 8, 1), v, rng=np.random.default_rng(0)),
    "ConvNet: strides": lambda v: nn.ConvNet((8, 8, 1), (3, 4), strides=v, rng=np.random.default_rng(0)),
    "WordTokenizer: words": lambda v: nn.WordTokenizer(v, 4),
    "tokenize: captions": lambda v: nn.WordTokenizer(["a", "b"], 4)(v),
    "many_views: augments": lambda v: many_views({mnist_views(), mnist_views()}, X, np.random.default_rng(0)),
    "image_grid: rows": lambda v: viz.image_grid("x.png", v),
    "image_grid: row_labels": lambda v: viz.image_grid("x.png", [np.ones((1, 2, 2, 1))], row_labels=v),
    "embedding_map: class_names": lambda v: viz.embedding_map("x.png", X[:, :2], np.arange(2), v, title=""),
}


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("name", CALLS)
def test_a_set_is_refused_by_name(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = kind(["a {}", "b"]) if any(part in name for part in ("names", "words", "labels", "captions", "templates")) else kind([0, 1])
    with pytest.raises((TypeError, ValueError), match=f"{name} must be "):
        CALLS[name](values)
    assert list(tmp_path.iterdir()) == []


def test_lists_tuples_arrays_and_the_keys_of_a_dict_are_read_in_order():
    assert ops.transpose(X, axes=[1, 0]).shape == (3, 2)
    for words in (["b", "a"], ("b", "a"), {"b": 0, "a": 1}.keys(), np.array(["b", "a"])):
        assert nn.WordTokenizer(words, 4)(["a b"]).tolist() == [[2, 1]]
    for lengths in ((2, 2, 3), [2, 2, 3]):
        assert ops.broadcast_to(X, shape=lengths).shape == (2, 2, 3)
