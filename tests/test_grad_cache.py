"""grad_cache: the gradient of a batch computed in chunks, with its temperature, masks and statistics."""

import contextlib
import math
import tracemalloc

import numpy as np
import pytest

from minicl import Tensor, contrastive, nn, ops
from minicl.backend import to_device, to_host
from minicl.contrastive import clip_loss, nt_xent
from minicl.methods import CLIP, MoCo, SimCLR, grad_cache
from minicl.optim import AdamW

LOSSES = {
    "nt_xent": lambda h, z: nt_xent(z[:6], z[6:], 0.3),
    "sup_con": lambda h, z: contrastive.sup_con(z, 0.3, labels=np.arange(12) % 4),
    "vicreg": lambda h, z: contrastive.vicreg(z[:6], z[6:]),
    "of both outputs": lambda h, z: nt_xent(z[:6], z[6:], 0.3) + 0.1 * nt_xent(h[:6], h[6:], 0.5),
    "of the first": lambda h, z: nt_xent(h[:6], h[6:], 0.5),
}


def gradients(model):
    return {name: to_host(p.grad).copy() for name, p in model.named_parameters() if p.grad is not None}


def simclr(xp, *layers, dim=4):
    rng = np.random.default_rng(0)
    encoder = nn.Sequential(nn.Linear(5, 8, rng=rng), *layers, ops.gelu, nn.LayerNorm(8))
    return SimCLR(encoder, nn.Sequential(nn.Linear(8, dim, rng=rng))).astype("float64").to(xp)


def items(xp, n=12, seed=1):
    return to_device(np.random.default_rng(seed).standard_normal((n, 5)), xp)


def assert_alike(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys() and found
    for name, g in found.items():
        np.testing.assert_allclose(g, expected[name], rtol=0, atol=tolerance * max(1, np.abs(expected[name]).max()),
                                   err_msg=name)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [1, 5, 6, 12, 50])
def test_chunks_have_the_gradient_of_the_whole_batch(xp, name, chunk):
    whole = simclr(xp)
    cut = simclr(xp)
    x = items(xp)
    loss = LOSSES[name](*whole(x))
    loss.backward()
    cached, outputs = grad_cache(cut, LOSSES[name], x, chunk=chunk)
    assert cached.item() == pytest.approx(loss.item(), rel=1e-12)
    assert not cached.requires_grad, "the loss is on the tape"
    assert not any(y.requires_grad for y in outputs), "an output is on the tape"
    assert_alike(gradients(cut), gradients(whole))
    for y, z in zip(outputs, whole(x)):
        np.testing.assert_allclose(to_host(y.data), to_host(z.data), rtol=0, atol=1e-12)


def layers_with_state(splits=1):
    return nn.BatchNorm(8, splits=splits), nn.Dropout(0.4, rng=np.random.default_rng(3))


@pytest.mark.filterwarnings("ignore:grad_cache. batch norm")
@pytest.mark.filterwarnings("ignore:Stream. two models draw the same")       # this test wants equal draws
@pytest.mark.parametrize("splits", [1, 2])
def test_dropout_redraws_its_masks_and_batch_norm_averages_once(xp, splits):
    """The gradient equals that of the chunks' embeddings on one tape, each chunk with its own masks and statistics."""
    whole = simclr(xp, *layers_with_state(splits))
    cut = simclr(xp, *layers_with_state(splits))
    x = items(xp)
    for _ in range(2):                                       # the second time, the averages have moved
        z = ops.concat(*[whole(x[lo:lo + 4])[1] for lo in (0, 4, 8)])
        LOSSES["nt_xent"](None, z).backward()
        _, (_, cached) = grad_cache(cut, LOSSES["nt_xent"], x, chunk=4)
        np.testing.assert_array_equal(to_host(cached.data), to_host(z.data))
        assert_alike(gradients(cut), gradients(whole))
        for name, array in whole.state_dict().items():
            np.testing.assert_array_equal(cut.state_dict()[name], array, err_msg=name)


@pytest.mark.parametrize("layer, chunk, is_warned", [(nn.BatchNorm(8), 3, True), (nn.BatchNorm(8), 12, False),
                                                     (nn.BatchNorm(8).eval(), 3, False), (nn.LayerNorm(8), 3, False)])
def test_batch_norm_that_sees_chunks_is_warned_of(layer, chunk, is_warned):
    model = simclr(np, layer)
    layer.train(layer.training)
    with pytest.warns(UserWarning, match="each chunk separately") if is_warned else contextlib.nullcontext():
        grad_cache(model, LOSSES["nt_xent"], items(np), chunk=chunk)


@pytest.mark.filterwarnings("ignore:grad_cache. batch norm")
@pytest.mark.parametrize("N", range(3, 30))
@pytest.mark.parametrize("chunk", [3, 4, 7, 21])
def test_chunks_are_of_equal_size_so_that_batch_norm_never_sees_one_item(N, chunk):
    model = simclr(np, nn.BatchNorm(8))
    x = items(np, 2 * N)
    seen = []
    grad_cache(nn.Sequential(lambda x: seen.append(len(x)) or x, model.encoder), lambda h: (h * h).sum(), x, chunk=chunk)
    sizes = seen[:len(seen) // 2]
    assert sum(sizes) == 2 * N and max(sizes) <= chunk and max(sizes) - min(sizes) <= 1 and min(sizes) >= 2
    assert len(sizes) == -(-2 * N // chunk) and seen == 2 * sizes


def test_clip_learns_its_logit_scale_once(xp):
    class Encoder(nn.Module):
        def __init__(self, rng):
            self.features = 6
            self.layer = nn.Linear(5, 6, rng=rng)

        def forward(self, x):
            return ops.tanh(self.layer(x))

    def clip():
        rng = np.random.default_rng(2)
        return CLIP(Encoder(rng), Encoder(rng), 4, rng=rng).astype("float64").to(xp)

    whole = clip()
    cut = clip()
    images = items(xp, 7)
    texts = items(xp, 7, seed=2)
    clip_loss(*whole(images, texts), whole.logit_scale).backward()
    grad_cache(cut, lambda image, text: clip_loss(image, text, cut.logit_scale), images, texts, chunk=3)
    assert_alike(gradients(cut), gradients(whole))
    assert "logit_scale" in gradients(cut)


def test_moco_enqueues_the_keys_once(xp):
    rng = np.random.default_rng(0)
    model = MoCo(nn.Sequential(nn.Linear(5, 6, rng=rng)), nn.Sequential(nn.Linear(6, 4, rng=rng)), dim=4, queue=16,
                 splits=1).to(xp)
    views = items(xp).astype("float32")
    for step in range(2):
        keys = model.encode_keys(views, rng)
        loss, (h, q) = grad_cache(model.query, lambda h, q: model.loss(q, keys, 0.2), views, chunk=5)  # noqa: B023
        model.update()
        assert len(model.queue) == 12 + 4 * step and math.isfinite(loss.item())
    assert loss.item() > 0 and all(np.isfinite(g).all() for g in gradients(model).values())


def test_gradients_add_up_and_training_works(xp):
    model = simclr(xp)
    x = items(xp)
    optimizer = AdamW(model, lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(grad_cache(model, LOSSES["nt_xent"], x, chunk=5)[0].item())
        optimizer.step()
    assert losses[-1] < losses[0]
    optimizer.zero_grad()
    grad_cache(model, LOSSES["nt_xent"], x, chunk=5)
    once = gradients(model)
    grad_cache(model, LOSSES["nt_xent"], x, chunk=5)
    assert_alike(gradients(model), {name: 2 * g for name, g in once.items()})


def test_the_memory_depends_on_the_chunk():
    rng = np.random.default_rng(0)
    model = nn.Sequential(*(nn.Linear(256, 256, rng=rng) for _ in range(6)), nn.Linear(256, 8, rng=rng))
    x = rng.standard_normal((4096, 256), dtype="float32")            # 4 MiB, and as much for each layer's output

    def loss(z):
        return nt_xent(z[:2048], z[2048:], 0.5)

    peaks = {}
    for name, step in (("whole", lambda: loss(model(x)).backward()),
                       ("chunks", lambda: grad_cache(model, loss, x, chunk=256))):
        tracemalloc.start()
        step()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["whole"] > 24 * 2**20 and peaks["chunks"] < 22 * 2**20      # the loss itself takes 16 MiB


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("beside", [0, 1, 3000, 1e5])
def test_a_model_that_draws_elsewhere_is_an_error(beside):
    """Also beside an output that is so large that the others' differences are small in comparison."""
    model = nn.Sequential(nn.Linear(5, 4, rng=np.random.default_rng(0)), lambda x: ops.dropout(x, p=0.5, rng=GENERATOR),
                          lambda x: x + beside * np.eye(1, 4, dtype="float32"))
    with pytest.raises(RuntimeError, match="grad_cache: the model returned other outputs the second time"):
        grad_cache(model, lambda z: nt_xent(z[:6], z[6:], 0.3), items(np).astype("float32"), chunk=4)


def test_outputs_must_have_a_row_per_item():
    model = nn.Sequential(nn.Linear(5, 4, rng=np.random.default_rng(0)), lambda x: x.mean(axis=0))
    with pytest.raises(ValueError, match=r"grad_cache: model must give Tensors with 6 rows, one for each item .* \(4,\)"):
        grad_cache(model, lambda z: z.sum(), items(np).astype("float32"), chunk=6)
    with pytest.raises(ValueError, match="grad_cache: chunk must be an integer >= 1, got 0"):
        grad_cache(model, lambda z: z.sum(), items(np), chunk=0)


@pytest.mark.parametrize("sizes", [(6, 8), (8, 6), (6, 0), (1, 6)])
def test_inputs_of_different_lengths_are_refused(xp, sizes):
    """Otherwise rows would be dropped, or a chunk of one row broadcast."""
    model = Two().to(xp)
    with pytest.raises(ValueError, match=rf"grad_cache: expected inputs .* of the same N >= 1 items, got .*\({sizes[0]}, 5\).*\({sizes[1]}, 5\)"):
        grad_cache(model, lambda a, b: a.sum() + b.sum(), *(items(xp, n) for n in sizes), chunk=3)


class Two(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(5, 4, rng=np.random.default_rng(0)).astype("float64")

    def forward(self, a, b):
        return self.layer(a), self.layer(b)


@pytest.mark.parametrize("loss, inputs, freeze, error, message", [
    (lambda h, z: 1.0, lambda xp: items(xp), False, TypeError, "loss must return a scalar Tensor, got .*float"),
    (lambda h, z: z.data, lambda xp: items(xp), False, TypeError, "loss must return a scalar Tensor"),
    (lambda h, z: z.sum(), lambda xp: Tensor(items(xp)), False, ValueError, "expected inputs to be arrays .* got Tensor"),
    (lambda h, z: z.sum(), lambda xp: [1.0], False, ValueError, "expected inputs to be arrays"),
    (lambda h, z: z.sum(), lambda xp: items(xp), True, ValueError, "no parameter of the SimCLR is trained.*call loss"),
])
def test_mistakes_raise_before_any_gradient_is_added(xp, loss, inputs, freeze, error, message):
    model = simclr(xp)
    scale = Tensor(xp.ones(()), requires_grad=True)
    if freeze:
        model.freeze()
    with pytest.raises(error, match="grad_cache: " + message):
        grad_cache(model, lambda h, z: loss(h, z) * scale if freeze else loss(h, z), inputs(xp), chunk=4)
    assert scale.grad is None and not gradients(model)


def test_a_loss_off_the_tape_is_an_error(xp):
    with pytest.raises(RuntimeError, match="no recorded op has produced"):
        grad_cache(simclr(xp), lambda h, z: Tensor(xp.ones(())), items(xp), chunk=4)


def test_a_row_that_is_not_finite_and_an_empty_batch_raise(rng):
    model = nn.Linear(3, 2, rng=rng)
    x = np.ones((4, 3), "float32")
    x[1, 1] = np.nan
    with pytest.raises(FloatingPointError, match="grad_cache: the model's output is not finite"):
        grad_cache(model, lambda z: (z * z).sum(), x, chunk=2)
    with pytest.raises(ValueError, match="grad_cache: expected inputs to be arrays of the same N >= 1 items"):
        grad_cache(model, lambda z: (z * z).sum(), x[:0], chunk=2)
