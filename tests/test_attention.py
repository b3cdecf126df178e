"""Attention and the text encoders: known values, masks and padding, and sensitivity to word order."""

import numpy as np
import pytest

from minicl import Tensor, nn, ops
from minicl.backend import threads, to_device, to_host
from minicl.contrastive import softmax
from minicl.optim import SGD

rng0 = np.random.default_rng(0)
IDS = np.array([[3, 1, 2, 0, 0], [4, 4, 1, 2, 3], [5, 0, 0, 0, 0]])


def qkv(*shape):
    return rng0.standard_normal((3, *shape))


def on(xp, *arrays):
    return [to_device(np.asarray(x), xp) for x in arrays]


def transformer(xp, dtype="float64", **options):
    return nn.Transformer(6, 8, 16, rng=np.random.default_rng(1), **options).to(xp).astype(dtype)


# ---------------------------------------------------------------- the op

def test_equal_scores_give_the_mean_of_the_values(xp):
    v = rng0.standard_normal((4, 2))
    y = ops.attention(*on(xp, np.ones((3, 5)), np.ones((4, 5)), v))
    np.testing.assert_allclose(to_host(y.data), np.tile(v.mean(axis=0), (3, 1)), rtol=1e-12)


def test_scores_are_divided_by_the_root_of_the_width(xp):
    q = np.full((1, 4), 2.0)
    k = np.array([[1.0] * 4, [0.0] * 4])
    v = np.array([[1.0], [0.0]])
    y = ops.attention(*on(xp, q, k, v))                      # scores 8 / sqrt(4) and 0
    assert y.item() == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-12)


def test_attention_is_a_softmax_and_two_products(xp):
    tensors = [Tensor(x, requires_grad=True) for x in on(xp, *qkv(2, 3, 5, 4))]
    again = [Tensor(x.data, requires_grad=True) for x in tensors]
    q, k, v = again
    fused = ops.attention(*tensors)
    scores = ops.matmul(q, k.transpose(0, 1, 3, 2)) * 0.5
    composed = ops.matmul(softmax(scores), v)
    for y in (fused, composed):
        (y * y * y).sum().backward()
    np.testing.assert_allclose(to_host(fused.data), to_host(composed.data), rtol=1e-12)
    for x, other in zip(tensors, again):
        np.testing.assert_allclose(to_host(x.grad), to_host(other.grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (5, 4, 3), (2, 5, 4, 3)])
def test_threads_divide_the_items_and_change_no_bit(shape):
    mask = rng0.random(shape[:-1] + shape[-2:-1]) < 0.7
    arrays = qkv(*shape).astype("float32")

    def results():
        tensors = [Tensor(x, requires_grad=True) for x in arrays]
        y = ops.attention(*tensors, mask=mask)
        (y * y).sum().backward()
        return [y.data, *(x.grad for x in tensors)]

    alone = results()
    with threads(3):
        for x, y in zip(results(), alone):
            np.testing.assert_array_equal(x, y)


def test_large_scores_do_not_overflow(xp):
    q, k, v = (Tensor(x.astype("float32"), requires_grad=True) for x in on(xp, *(100 * qkv(4, 3))))
    ops.attention(q, k, v).sum().backward()
    assert all(np.isfinite(to_host(x.grad)).all() for x in (q, k, v))


def test_a_masked_key_has_no_effect_and_gets_no_gradient(xp):
    q, k, v = qkv(3, 4, 2)
    mask = to_device(np.array([True, True, False, True]), xp)
    k2, v2 = k.copy(), v.copy()
    k2[:, 2], v2[:, 2] = 1e3, -1e3
    tensors = [Tensor(x, requires_grad=True) for x in on(xp, q, k2, v2)]
    y = ops.attention(*tensors, mask=mask)
    np.testing.assert_array_equal(to_host(y.data), to_host(ops.attention(*on(xp, q, k, v), mask=mask).data))
    (y * y).sum().backward()
    assert not to_host(tensors[1].grad)[:, 2].any() and not to_host(tensors[2].grad)[:, 2].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_masked_key_has_no_effect_however_low_the_others_scores_are(xp, dtype):
    q, k = np.full((1, 1, 4), 1e16), np.array([[[-1e16] * 4, [-2e16] * 4, [1.0] * 4]])
    arrays = on(xp, *(x.astype(dtype) for x in (q, k, np.array([[[1.0], [2.0], [3.0]]]))))
    mask = to_device(np.array([[[True, True, False]]]), xp)
    assert to_host(ops.attention(*arrays, mask=mask).data).tolist() == [[[1.0]]]


def test_a_query_whose_keys_are_all_masked_gives_zeros_not_nan(xp):
    tensors = [Tensor(x, requires_grad=True) for x in on(xp, *qkv(2, 3, 4).astype("float32"))]
    y = ops.attention(*tensors, mask=to_device(np.array([[[False] * 3], [[True] * 3]]), xp))
    y.sum().backward()
    assert not to_host(y.data)[0].any() and to_host(y.data)[1].all()
    assert all(not to_host(x.grad)[0].any() and np.isfinite(to_host(x.grad)).all() for x in tensors)


@pytest.mark.parametrize("shapes", [((3, 4), (5, 3), (5, 2)), ((3, 4), (5, 4), (6, 2)),
                                    ((2, 3, 4), (5, 4), (5, 2)), ((4,),) * 3])
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"attention: expected q \(\.\.\., T, d\).*got q"):
        ops.attention(*map(np.ones, shapes))


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match="mask must be an array of bools.*ids != 0"):
        ops.attention(*qkv(3, 4), mask=np.ones((3, 3)))


# ---------------------------------------------------------------- the encoders

def encoders(xp):
    return [transformer(xp), nn.BagOfTokens(6, 16, rng=np.random.default_rng(1)).to(xp).astype("float64")]


@pytest.mark.parametrize("which", [0, 1], ids=["transformer", "bag"])
def test_padding_changes_nothing(which, xp):
    encoder = encoders(xp)[which]
    together, *_ = [to_host(encoder(ids).data) for ids in on(xp, IDS)]
    for row, ids in zip(together, IDS):
        alone = to_host(encoder(*on(xp, ids[None, :(ids > 0).sum()])).data)[0]
        np.testing.assert_allclose(row, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1], ids=["transformer", "bag"])
def test_the_padding_token_learns_nothing(which, xp):
    encoder = encoders(xp)[which]
    h = encoder(*on(xp, IDS))
    (h * h * h).sum().backward()
    grad = to_host(encoder.tokens.weight.grad)
    assert not grad[0].any() and grad[1:].any(axis=1).all()


def test_the_transformer_reads_order_and_the_bag_does_not(xp):
    forth, back = on(xp, IDS[1:2], IDS[1:2, ::-1])
    reads, bag = encoders(xp)
    assert np.abs(to_host(reads(forth).data - reads(back).data)).max() > 1e-3
    np.testing.assert_allclose(to_host(bag(forth).data), to_host(bag(back).data), rtol=1e-12)


def test_a_bag_is_the_mean_of_its_tokens_vectors():
    bag = nn.BagOfTokens(6, 4, rng=np.random.default_rng(1))
    np.testing.assert_allclose(bag(IDS).data[0], bag.tokens.weight.data[[3, 1, 2]].mean(axis=0), rtol=1e-6)


def test_a_caption_of_only_padding_gives_finite_features(xp):
    for encoder in encoders(xp):
        h = encoder(*on(xp, np.zeros((2, 3), dtype=int)))
        h.sum().backward()
        assert not to_host(h.data).any()
        assert all(np.isfinite(to_host(p.grad)).all() for p in encoder.parameters() if p.grad is not None)


def test_every_parameter_of_the_transformer_gets_a_gradient(xp):
    encoder = transformer(xp, depth=2)
    h = encoder(*on(xp, IDS))
    (h * h * h).sum().backward()
    assert all(np.abs(to_host(p.grad)).max() > 1e-6 for _, p in encoder.named_parameters())


def test_a_transformer_learns_which_token_comes_first(xp):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 3, (64, 5))
    truth = to_device((2.0 * (ids[:, 0] == 1) - 1).astype("float32"), xp)
    encoder = transformer(xp, "float32", depth=1, heads=2)
    ids = to_device(ids, xp)
    readout = nn.Linear(16, 1, rng=rng).to(xp)
    optimizer = SGD(nn.Sequential(encoder, readout), 0.05, momentum=0.9)
    for _ in range(60):
        error = readout(encoder(ids)).reshape(64) - truth
        loss = (error * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05                                # an encoder that ignores order stays at 1


@pytest.mark.parametrize("ids", [np.ones((2, 3)), np.ones(3, dtype=int)], ids=["floats", "one axis"])
def test_invalid_ids_are_refused(ids):
    for encoder in encoders(np):
        with pytest.raises(ValueError, match=r"expected token ids \(B, T\) of an integer type"):
            encoder(ids)


def test_a_caption_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        transformer(np)(np.ones((2, 9), dtype=int))


def test_a_width_that_is_not_a_multiple_of_the_heads_is_refused():
    with pytest.raises(ValueError, match="a multiple of num_heads, got 16 and 3"):
        transformer(np, heads=3)
