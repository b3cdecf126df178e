"""MoCo: split and shuffled batch norm, the loss and its negatives, the order within a step, resuming."""

import numpy as np
import pytest
from device_counts import counted, waits

import minicl
from minicl import Tensor, no_grad
from minicl.backend import to_device, to_host
from minicl.checkpoint import load_checkpoint, restore, save_checkpoint
from minicl.contrastive import composed, info_nce, l2_normalize
from minicl.evaluate import encode, state_hash
from minicl.methods import MoCo
from minicl.nn import MLP, BatchNorm, Buffer, Linear, projection_head
from minicl.optim import SGD, AdamW

TAU = 0.2


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="float32")


def unit(*shape, seed=0):
    return l2_normalize.forward(normal(*shape, seed=seed))[0]


def moco(xp=np, *, queue=10, m=0.9, splits=2, seed=0):
    rng = np.random.default_rng(seed)
    encoder = MLP((2, 2, 1), widths=(8,), rng=rng)
    head = projection_head("mlp", 8, hidden=6, dim=3, rng=rng)
    return MoCo(encoder, head, dim=3, queue=queue, m=m, splits=splits).to(xp)


def train(model, optimizer, steps, rng, batch=4):
    """Train MoCo on images drawn from rng and return the losses."""
    xp = optimizer.xp
    losses = []
    for _ in range(steps):
        image = rng.standard_normal((batch, 2, 2, 1), dtype="float32")
        view1, view2 = (to_device(image + 0.1 * rng.standard_normal(image.shape, dtype="float32"), xp) for _ in "12")
        loss = model.loss(model(view1)[1], model.encode_keys(view2, rng), TAU)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update()
        losses.append(loss.item())
    return losses


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# ---------------------------------------------------------------- split batch norm

@pytest.mark.parametrize("shape", [(6, 2), (2, 3, 6, 2)], ids=["vectors", "pixels"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_split_batch_norm_is_a_batch_norm_for_each_group(xp, shape, relu):
    x = to_device(normal(*shape), xp)
    g = to_device(normal(*shape, seed=1), xp)
    splits = 3
    split, alone = BatchNorm(2, relu=relu, splits=splits).to(xp), BatchNorm(2, relu=relu).to(xp)
    leaf = Tensor(x, requires_grad=True)
    y = split(leaf)
    y.backward(g)
    means, variances = [], []
    for group in range(splits):
        part = Tensor(xp.ascontiguousarray(x[..., group::splits, :]), requires_grad=True)
        own = BatchNorm(2).to(xp)
        alone.running_mean = own.running_mean
        alone.running_var = own.running_var
        y_part = alone(part)
        y_part.backward(xp.ascontiguousarray(g[..., group::splits, :]))
        np.testing.assert_allclose(to_host(y.data[..., group::splits, :]), to_host(y_part.data), atol=1e-5)
        np.testing.assert_allclose(to_host(leaf.grad[..., group::splits, :]), to_host(part.grad), atol=1e-5)
        means.append(to_host(own.running_mean.data))
        variances.append(to_host(own.running_var.data))
    for name in ("weight", "bias"):                          # summed over the groups
        np.testing.assert_allclose(to_host(getattr(split, name).grad), to_host(getattr(alone, name).grad), atol=1e-5)
    np.testing.assert_allclose(to_host(split.running_mean.data), np.mean(means, axis=0), atol=1e-6)
    np.testing.assert_allclose(to_host(split.running_var.data), np.mean(variances, axis=0), rtol=1e-5)


def test_split_batch_norm_has_the_gradient_of_its_loss():
    def loss(x, weight, bias):
        layer = BatchNorm(2, splits=2).astype("float64")
        vars(layer).update(weight=weight, bias=bias)                         # gradcheck also passes constants
        return layer(x)
    assert minicl.gradcheck(loss, [array.astype("float64") for array in (normal(6, 2), normal(2), normal(2, seed=1))])


def test_groups_need_a_batch_that_they_divide(xp):
    for batch in (5, 3):
        with pytest.raises(ValueError, match="splits=3 needs a batch that is a multiple of 3 and at least 6"):
            BatchNorm(2, splits=3).to(xp)(Tensor(to_device(normal(batch, 2), xp)))


def test_evaluation_uses_no_groups():
    split = BatchNorm(2, splits=3).eval()
    whole = BatchNorm(2).eval()
    x = Tensor(normal(5, 2))
    np.testing.assert_array_equal(split(x).data, whole(x).data)


# ---------------------------------------------------------------- queries, keys and negatives

def test_the_model_is_its_query_encoder_and_not_the_key_encoder(xp):
    model = moco(xp).eval()
    images = to_device(normal(4, 2, 2, 1), xp)
    before = to_host(model(images)[0].data)
    for _, buffer in model.key.named_buffers():
        buffer.data += 1
    np.testing.assert_array_equal(to_host(model(images)[0].data), before)
    model.query.encoder.layers[0].weight.data += 1
    assert (to_host(model(images)[0].data) != before).any()


def test_an_optimizer_is_given_the_query_encoder_only():
    model = moco()
    assert model.parameters() == model.query.parameters()
    assert {name.split(".")[0] for name, _ in model.named_buffers()} == {"query", "key", "queue"}


def test_shuffled_keys_come_back_in_order(xp):
    model = moco(xp, splits=1)
    images = to_device(normal(8, 2, 2, 1), xp)
    with no_grad():
        straight = model.key(images)[1].data
    shuffled = model.encode_keys(images, np.random.default_rng(3))
    np.testing.assert_allclose(to_host(shuffled), to_host(straight), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4, 8, 50])
def test_keys_in_chunks_are_those_of_the_whole_batch_in_order(xp, chunk):
    """This holds without batch norm. The same random numbers are drawn with and without chunks."""
    rng = np.random.default_rng(0)
    model = MoCo(MLP((2, 2, 1), (5,), rng=rng), Linear(5, 3, rng=rng), dim=3, queue=8).to(xp)
    images = to_device(normal(8, 2, 2, 1), xp)
    draws = [np.random.default_rng(3) for _ in range(2)]
    for prepare in (model.train, model.eval):
        prepare()
        whole, chunks = model.encode_keys(images, draws[0]), model.encode_keys(images, draws[1], chunk=chunk)
        np.testing.assert_allclose(to_host(chunks), to_host(whole), atol=1e-6)
        assert draws[0].random() == draws[1].random()
    with pytest.raises(ValueError, match="MoCo.encode_keys: chunk must be an integer >= 1, got 0"):
        model.encode_keys(images, draws[0], chunk=0)


def test_query_i_and_key_i_are_normalised_among_different_images():
    """The images that change key i through batch norm are drawn again each step, so it cannot leak the positive."""
    model = moco(splits=4)
    images = normal(16, 2, 2, 1)
    B = 16

    def changed_by(encode):
        base = encode(images)
        rows = []
        for j in range(B):
            other = images.copy()
            other[j] += 1
            rows.append(np.abs(encode(other) - base).max(axis=1) > 1e-5)
        return np.array(rows).T                              # (i, j): whether image j changes row i

    same_group = np.arange(B)[:, None] % 4 == np.arange(B) % 4
    queries = changed_by(lambda x: model(x)[1].data)
    keys, again = (changed_by(lambda x: model.encode_keys(x, np.random.default_rng(seed))) for seed in (1, 2))
    assert not (queries & ~same_group).any() and queries.sum() > 2 * B
    for first, second in ((queries, keys), (keys, again)):
        assert (second & ~same_group).any() and (first != second).sum() > 2 * B


def test_in_evaluation_keys_are_not_shuffled_and_do_not_depend_on_their_batch():
    model = moco().eval()
    images = normal(8, 2, 2, 1)
    together = model.encode_keys(images, None)               # no permutation is drawn
    np.testing.assert_allclose(together[:3], model.encode_keys(images[:3], None), atol=1e-6)


def test_the_gradient_reaches_the_query_encoder_only(xp):
    model = moco(xp)
    images = to_device(normal(4, 2, 2, 1), xp)
    model.queue.enqueue(to_device(unit(6, 3), xp))
    keys = model.encode_keys(images, np.random.default_rng(0))
    before = {name: array for name, array in model.state_dict().items() if not name.startswith("query")}
    loss = model.loss(model(images)[1], keys, TAU)
    loss.backward()
    assert all(float(abs(p.grad).max()) > 0 for p in model.query.parameters() if p.ndim == 2)
    assert all(getattr(buffer, "grad", None) is None for _, buffer in model.named_buffers())
    after = model.state_dict()
    assert_same(before, {name: after[name] for name in before})


def test_the_loss_is_infonce_over_the_filled_rows_with_constant_keys():
    model = moco()
    q = normal(4, 3)
    k = normal(4, 3, seed=1)
    negatives = unit(6, 3, seed=2)
    model.queue.enqueue(negatives)
    leaf, read = Tensor(q, requires_grad=True), Tensor(q, requires_grad=True)
    loss = model.loss(leaf, k, TAU)
    composed_loss = composed.info_nce(read, Tensor(k), Tensor(negatives), TAU)
    assert loss.item() == pytest.approx(composed_loss.item(), rel=1e-5)
    loss.backward(), composed_loss.backward()
    np.testing.assert_allclose(leaf.grad, read.grad, atol=1e-5)


def test_the_loss_over_an_empty_queue_is_zero_and_so_is_its_gradient(xp):
    model = moco(xp)
    q = Tensor(to_device(normal(4, 3), xp), requires_grad=True)
    loss = model.loss(q, to_device(normal(4, 3), xp), TAU)
    loss.backward()
    assert loss.item() == 0 and not to_host(q.grad).any()


# ---------------------------------------------------------------- the order within a step, and evaluation

def test_keys_enter_after_they_served_and_once(xp):
    model = moco(xp)
    k = to_device(unit(4, 3), xp)
    model.loss(Tensor(to_device(unit(4, 3, seed=1), xp)), k, TAU)
    assert len(model.queue) == 0                             # not among the negatives of their own batch
    model.update()
    np.testing.assert_allclose(to_host(model.queue.filled()), to_host(k), rtol=1e-6)
    with pytest.raises(RuntimeError, match="without keys to enqueue.*has used them as positives"):
        model.update()
    assert len(model.queue) == 4


def test_accumulated_batches_all_enter():
    model = moco()
    first = unit(4, 3)
    second = unit(4, 3, seed=1)
    for keys in (first, second):
        model.loss(Tensor(keys), keys, TAU)
    model.update()
    np.testing.assert_allclose(model.queue.filled(), np.concatenate([first, second]), rtol=1e-6)


def test_evaluation_changes_neither_queue_nor_key_encoder():
    model = moco()
    train(model, AdamW(model, 0.01), 3, np.random.default_rng(1))
    before = state_hash(model)
    images = normal(4, 2, 2, 1)
    encode(model, np.zeros((6, 2, 2, 1), dtype="uint8"), np)
    model.eval()
    model.loss(model(images)[1], model.encode_keys(images, None), TAU)
    with pytest.raises(RuntimeError, match="update.. was called in evaluation mode"):
        model.update()
    model.train()
    with pytest.raises(RuntimeError, match="without keys"):  # keys of the evaluation are discarded
        model.update()
    assert state_hash(model) == before


@pytest.mark.parametrize("places", ["before", "between", "after"])
def test_keys_of_a_validation_loss_under_no_grad_do_not_enter(places, rng):
    model = moco(queue=64)

    def validate(place):
        if place in places:
            with no_grad():
                model.loss(model(normal(4, 2, 2, 1))[1], model.encode_keys(normal(4, 2, 2, 1), rng), 0.2)

    for step in range(3):
        validate("before")
        loss = model.loss(model(normal(4, 2, 2, 1, seed=step))[1], model.encode_keys(normal(4, 2, 2, 1), rng), 0.2)
        validate("between")
        loss.backward()
        model.update()
        validate("after")
        assert model.queue.enqueued == 4 * (step + 1)
    with pytest.raises(RuntimeError, match="and not under no_grad"):
        model.update()


LOADS = {"the encoder": lambda model: [model.encoder], "the query network": lambda model: [model.query],
         "a layer": lambda model: [model.query.head], "all": lambda model: [model],
         "both": lambda model: [model.query, model.key]}


@pytest.mark.parametrize("what", LOADS)
@pytest.mark.parametrize("updates", [0, 2])
def test_weights_loaded_into_the_online_network_alone_give_a_warning_until_the_copy_follows(what, updates, rng):
    model = moco(queue=64)

    def step():
        model.loss(model(normal(4, 2, 2, 1))[1], model.encode_keys(normal(4, 2, 2, 1), rng), 0.2).backward()
        model.update()

    for _ in range(updates):
        step()
    for part in LOADS[what](model):
        part.load_state_dict(part.state_dict())
    if what in ("all", "both"):
        step()
        return
    with pytest.warns(match=r"weights were loaded into the online network .* call model.ema.update\(0\)"):
        model.loss(model(normal(4, 2, 2, 1))[1], model.encode_keys(normal(4, 2, 2, 1), rng), 0.2)
    model.ema.update(0)
    assert all(np.array_equal(*pair) for pair in zip(model.query.state_dict().values(), model.key.state_dict().values()))
    step()


def test_symmetric_is_the_mean_of_both_directions():
    """With queries [q1, q2] and keys [k2, k1] the loss is (L(q1, k2) + L(q2, k1)) / 2."""
    model = moco()
    model.queue.enqueue(unit(10, 3))
    q1, q2, k1, k2 = (normal(4, 3, seed=seed) for seed in range(4))
    both = model.loss(Tensor(np.concatenate([q1, q2])), np.concatenate([k2, k1]), TAU)
    one, other = model.loss(Tensor(q1), k2, TAU), model.loss(Tensor(q2), k1, TAU)
    assert both.item() == pytest.approx((one.item() + other.item()) / 2, rel=1e-5)


@pytest.mark.parametrize("wrong, message", [
    ({"m": 1.0}, r"MoCo: m must be a number in \[0, 1\), got 1.0"), ({"splits": 0}, "MoCo: splits must be an integer >= 1, got 0"),
    ({"queue": 0}, "MoCo: queue must be an integer >= 1, got 0"),
])
def test_bad_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        moco(**wrong)


# ---------------------------------------------------------------- checkpoints and training

def test_the_ids_given_to_the_loss_are_those_of_its_keys_though_the_array_is_filled_again():
    rng = np.random.default_rng(0)
    model = MoCo(MLP((2, 2, 1), (4,), rng=rng), Linear(4, 4, rng=rng), dim=4, queue=8, splits=1)
    ids = np.zeros(4, dtype="int64")
    for start in (0, 4):                                     # gradients of two batches add up
        ids[:] = np.arange(start, start + 4)
        model.loss(Tensor(rng.standard_normal((4, 4)).astype("float32"), requires_grad=True),
                   rng.standard_normal((4, 4)).astype("float32"), 0.5, ids=ids)
    model.update()
    assert model.queue.ids.data.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_keys_given_to_the_loss_are_enqueued_though_the_array_is_filled_again(rng):
    model = MoCo(MLP((2, 2, 1), (4,), rng=rng), Linear(4, 4, rng=rng), dim=4, queue=8, splits=1)
    keys = l2_normalize(Tensor(rng.standard_normal((8, 4)).astype("float32"))).data
    buffer = np.empty((4, 4), dtype="float32")
    for start in (0, 4):
        buffer[...] = keys[start:start + 4]
        model.loss(Tensor(keys[:4], requires_grad=True), buffer, 0.5)
    model.update()
    np.testing.assert_allclose(model.queue.keys.data, keys, rtol=1e-6)


def test_keys_of_a_loss_before_load_state_dict_do_not_enter_the_loaded_queue(rng):
    model = moco()
    state = model.state_dict()
    images = rng.standard_normal((4, 2, 2, 1)).astype("float32")
    model.loss(model(images)[1], model.encode_keys(images, rng), 0.5)
    assert model.is_pending
    model.load_state_dict(state)
    assert not model.is_pending
    with pytest.raises(RuntimeError, match="update.. was called without keys"):
        model.update()


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """With a queue of 10 and batches of 4, the queue is full and its pointer is in the middle at the checkpoint."""
    whole = moco()
    rng = np.random.default_rng(1)
    optimizer = AdamW(whole, 0.01)
    losses = train(whole, optimizer, 4, rng)
    save_checkpoint(tmp_path / "c.npz", {"model": whole, "optimizer": optimizer}, {"rng": rng.bit_generator.state})
    losses = train(whole, optimizer, 5, rng)

    resumed = moco(seed=7)
    rng = np.random.default_rng(8)
    other = AdamW(resumed, 0.01)
    arrays, meta = load_checkpoint(tmp_path / "c.npz")
    assert {"model.queue.keys", "model.queue.count", "model.key.head.steps.1.running_var"} <= arrays.keys()
    restore(arrays, {"model": resumed, "optimizer": other}, tmp_path / "c.npz")
    rng.bit_generator.state = meta["rng"]
    assert train(resumed, other, 5, rng) == losses
    assert resumed.queue.enqueued == 36
    assert_same(whole.state_dict(), resumed.state_dict())


def test_both_backends_train_alike(xp):
    """The optimizer is SGD, because Adam takes full steps along gradients that are only rounding errors."""
    model, reference = moco(xp), moco()
    losses = [train(m, SGD(m, 0.1, momentum=0.9), 5, np.random.default_rng(1)) for m in (model, reference)]
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array, reference.state_dict()[name], rtol=1e-3, atol=1e-4, err_msg=name)


@counted
def test_a_step_does_not_wait_for_the_device():
    xp = minicl.get_backend("cupy")
    rng = np.random.default_rng(0)
    model = moco(xp)
    images = to_device(normal(4, 2, 2, 1), minicl.get_backend("cupy"))
    optimizer = AdamW(model, 0.01)
    train(model, optimizer, 1, rng)

    def step():
        loss = model.loss(model(images)[1], model.encode_keys(images, rng), TAU)
        loss.backward()
        optimizer.step()
        model.update()

    assert [waits(step) for _ in range(3)] == [0, 0, 0]


def test_astype_converts_every_floating_point_buffer():
    model = moco().astype("float64")
    assert {str(buffer.data.dtype) for _, buffer in model.named_buffers()} == {"float64", "int64"}
    assert isinstance(model.queue.keys, Buffer) and model.queue.enqueued == 0


def test_learning_beats_chance_which_rises_while_the_queue_fills():
    model = moco(queue=64, splits=2)
    rng = np.random.default_rng(0)
    losses = train(model, AdamW(model, 0.01), 120, rng, batch=8)
    assert losses[0] == 0 < losses[1] < losses[7]            # log(1), log(9), ..., log(57)
    assert np.mean(losses[-20:]) < np.log(65) - 0.5


# ---------------------------------------------------------------- false negatives by id

def test_keys_of_a_querys_own_id_are_not_negatives(xp, rng):
    """The queue stores ids with its keys, also when it wraps around. Keys without ids are negatives of all queries."""
    model = MoCo(Linear(5, 6, rng=rng), Linear(6, 4, rng=rng), dim=4, queue=7, splits=1).to(xp)
    batches = [rng.standard_normal((3, 5), dtype="float32") for _ in range(5)]
    ids = [np.array([0, 1, 2]), None, np.array([2, 0, 5]), np.array([1, 1, 0]), np.array([0, 9, 1])]
    kept, kept_ids = [], []
    for x, own in zip(batches, ids):
        queries = model(to_device(x, xp))[1]
        keys = model.encode_keys(to_device(x, xp), rng)
        loss = model.loss(queries, keys, 0.3, ids=own)
        if kept and own is not None:
            negatives, known = np.concatenate(kept)[-7:], np.concatenate(kept_ids)[-7:]
            rows = [info_nce(to_host(queries.data)[i:i + 1], to_host(keys)[i:i + 1], negatives[known != own[i]], 0.3).item()
                    for i in range(3)]
            assert loss.item() == pytest.approx(np.mean(rows), rel=1e-5)
        kept.append(to_host(keys))
        kept_ids.append(np.full(3, -1) if own is None else own)
        loss.backward()
        model.update()
    state = model.state_dict()
    assert sorted(state["queue.ids"].tolist()) == sorted((np.concatenate(kept_ids)[-7:] + 1).tolist())
    assert state["queue.ids"].dtype == "int64"


@pytest.mark.parametrize("ids, message", [
    (np.array([0, 1]), "ids must be a host .numpy. array of 3 integers"), (np.array([0, -1, 2]), "MoCo.loss: ids must be from 0 to 2.63 - 2, got -1"),
])
def test_ids_of_keys_are_checked(ids, message, rng):
    model = MoCo(Linear(5, 6, rng=rng), Linear(6, 4, rng=rng), dim=4, queue=7, splits=1)
    x = rng.standard_normal((3, 5), dtype="float32")
    for _ in range(2):                                       # first over an empty queue
        queries = model(x)[1]
        keys = model.encode_keys(x, rng)
        with pytest.raises(ValueError, match=message):
            model.loss(queries, keys, 0.3, ids=ids)
        model.queue.enqueue(keys)
