"""Masked ids, and numbers whose squares overflow, give an error or NaN, never a plausible wrong number."""

import os
from pathlib import Path

import numpy as np
import pytest

from minicl import Tensor, contrastive, data, evaluate, gradcheck, methods, nn, op, ops
from minicl.backend import to_device, to_host
from minicl.checkpoint import save_checkpoint

Z = np.random.default_rng(0).standard_normal((6, 4), dtype="float32")
IDS = np.array([0, 0, 1, 1, 2, 2])
TAKERS = {
    "clip_loss": lambda ids: contrastive.clip_loss(Z, Z[::-1].copy(), 1.0, caption_ids=ids),
    "siglip": lambda ids: contrastive.siglip(Z, Z[::-1].copy(), 1.0, 0.0, caption_ids=ids),
    "nt_xent": lambda ids: contrastive.nt_xent(Z, Z[::-1].copy(), 0.5, ids=ids),
    "info_nce": lambda ids: contrastive.info_nce(Z, Z[::-1].copy(), Z, 0.5, ids=IDS, negative_ids=ids),
    "semi_hard_negatives": lambda ids: contrastive.semi_hard_negatives(Z, Z[::-1].copy(), ids=ids),
    "sup_con": lambda ids: contrastive.sup_con(Z, 0.5, labels=ids),
    "info_nce_from_scores": lambda ids: contrastive.info_nce_from_scores(Tensor(Z), ids),
    "embedding": lambda ids: ops.embedding(ids, Z),
    "getitem": lambda ids: Tensor(Z)[ids],
    "choice_accuracy": lambda ids: contrastive.choice_accuracy(Z, ids),
    "dcl": lambda ids: contrastive.dcl(Z, Z[::-1].copy(), 0.5, weights=ids.astype("float32")),
    "attention": lambda ids: ops.attention(Z, Z, Z, mask=ids[:, None] == ids),
    "where": lambda ids: ops.where(ids[:, None] == 0, Z, 0.0),
}


@pytest.mark.parametrize("name", TAKERS)
def test_masked_arrays_are_refused(name):
    TAKERS[name](IDS)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        TAKERS[name](np.ma.masked_array(IDS, mask=[1, 0, 0, 0, 0, 0]))


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype="uint8")
TOKENS = np.array([[1, 2, 0], [3, 1, 1]])


def text_encoder(kind):
    return kind(*((5, 3, 8) if kind is nn.Transformer else (5, 8)), rng=np.random.default_rng(0))


class Holder:
    """An object with a state that a checkpoint stores."""

    def __init__(self, array):
        self.array = array

    def state_dict(self):
        return {"array": self.array}


CONVERTERS = {  # what converts an array: the call, and an array that it accepts
    "to_float": (lambda x: evaluate.to_float(x, np), IMAGES),
    "encode": (lambda x: evaluate.encode(nn.MLP((4, 4, 1), (2,), rng=np.random.default_rng(0)), x, np), IMAGES),
    "encode of ids": (lambda x: evaluate.encode(text_encoder(nn.BagOfTokens), x, np, prepare=to_device), TOKENS),
    "BagOfTokens": (lambda x: text_encoder(nn.BagOfTokens)(x), TOKENS),
    "Transformer": (lambda x: text_encoder(nn.Transformer)(x), TOKENS),
    "draw_digits": (lambda x: data.draw_digits(x, np.random.default_rng(0)), IDS),
    "ImageData images": (lambda x: data.ImageData("", x, IDS, IMAGES, IDS, ("a", "b", "c")), IMAGES),
    "ImageData labels": (lambda x: data.ImageData("", IMAGES, x, IMAGES, IDS, ("a", "b", "c")), IDS),
    "images of Prefetch": (lambda x: evaluate.to_float(data.Prefetch(x, data.Batches(6, 2))[0], np), IMAGES),
    "same_caption_ids": (data.same_caption_ids, TOKENS),
    "two_views": (lambda x: data.two_views(data.augment.GaussianNoise(), x, np.random.default_rng(0)), np.float32(IMAGES / 255)),
    "Buffer": (nn.Buffer, Z), "HostBuffer": (nn.HostBuffer, IDS), "Parameter": (nn.Parameter, Z),
    "Buffer.data": (lambda x: setattr(nn.Buffer(Z), "data", x), Z),
    "Buffer.data of a BatchNorm": (lambda x: setattr(nn.BatchNorm(6).running_mean, "data", x), np.ones(6, "float32")),
    "state_dict": (lambda x: [buffer := nn.Buffer(Z), vars(buffer).update(data=x), Own(buffer).state_dict()], Z),
    "Queue": (lambda x: methods.Queue(8, 4).enqueue(x), Z),
    "ids of Queue": (lambda x: methods.Queue(8, 4).enqueue(Z, ids=x), IDS),
    "knn_accuracy": (lambda x: evaluate.knn_accuracy(x, IDS, Z, IDS, k=2), Z),
    "labels of knn_accuracy": (lambda x: evaluate.knn_accuracy(Z, x, Z, IDS, k=2), IDS),
    "labels of linear_probe": (lambda x: evaluate.linear_probe(Z, x, Z, IDS), IDS),
    "retrieval_recall": (lambda x: evaluate.retrieval_recall(Z, Z, x), np.arange(6)),
    "effective_rank": (evaluate.effective_rank, Z), "tsne": (lambda x: evaluate.tsne(x, perplexity=1.5, steps=2), Z),
    "to_host": (to_host, Z), "to_device": (lambda x: to_device(x, np), Z),
    "gradcheck": (lambda x: gradcheck(lambda z: z * 2.0, [x]), Z.astype("float64")),
    "save_checkpoint": (lambda x: save_checkpoint(Path(os.devnull), {"own": Holder(x)}, {}), Z),
}


class Own(nn.Module):
    def __init__(self, buffer):
        self.buffer = buffer


@pytest.mark.parametrize("name", CONVERTERS)
def test_no_conversion_drops_a_mask(name):
    """The array is accepted. With a mask, also one without a masked entry, it is refused."""
    call, array = CONVERTERS[name]
    if name != "save_checkpoint":                            # which would write
        call(array)
    for mask in (np.arange(array.size).reshape(array.shape) == 1, np.ma.nomask):
        with pytest.raises((TypeError, ValueError), match="masked array|MaskedArray"):
            call(np.ma.masked_array(array, mask=mask))


@pytest.mark.parametrize("make", [Tensor, nn.Parameter, lambda x: op(lambda x: (x, lambda g: (g,)))(Tensor(x))])
@pytest.mark.parametrize("hold", [lambda x: [x, x], lambda x: (x,), lambda x: [[1.0, 2.0], x], lambda x: [[x], [x]]])
def test_lists_of_masked_arrays_are_refused(make, hold):
    make(hold(np.array([1.0, 2.0])) if make is not nn.Parameter else np.array([1.0]))
    with pytest.raises(TypeError, match="masked array"):
        make(hold(np.ma.masked_array([1.0, 2.0], mask=[0, 1])))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype, huge", [("float32", 1e20), ("float32", 1e30), ("float64", 1e160)])
def test_norms_of_values_whose_squares_overflow_are_nan(dtype, huge):
    x = Z.astype(dtype) * huge
    one = np.ones(4, dtype)
    zero = np.zeros(4, dtype)
    for norm in (ops.batch_norm, ops.layer_norm):
        assert np.isnan(norm(x, one, zero).data).all()
    with pytest.raises(FloatingPointError, match="barlow_twins"):
        contrastive.barlow_twins(x, x)


@pytest.mark.parametrize("number", [1.0, 2, np.float32(3)])
def test_a_matrix_product_with_a_number_is_refused(number):
    for product in (lambda: Tensor(Z) @ number, lambda: number @ Tensor(Z)):
        with pytest.raises(TypeError, match="matmul: expected two arrays"):
            product()


@pytest.mark.parametrize("call", [lambda x: x * 10**400, lambda x: 10**400 - x, lambda x: ops.maximum(x, -10**400)])
def test_a_number_beyond_every_float_is_refused_by_name(call):
    with pytest.raises(OverflowError, match=r"^\w+: int too large .* float32 array of shape \(6, 4\)"):
        call(Tensor(Z))


def test_an_op_that_returns_a_tensor_is_named():
    @op
    def value(x):
        return Tensor(x), lambda g: (g,)

    @op
    def gradient(x):
        return x + 1, lambda g: (Tensor(g),)

    with pytest.raises(TypeError, match="^value: its value must be a floating-point array.* got Tensor"):
        value(Tensor(Z))
    with pytest.raises(RuntimeError, match="^backward of gradient: the gradient of x must be .* got Tensor"):
        gradient(Tensor(Z, requires_grad=True)).sum().backward()
