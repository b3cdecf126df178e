"""Masked ids, and numbers whose squares overflow, give an error or NaN, never a plausible wrong number."""

import numpy as np
import pytest

from minicl import Tensor, contrastive, op, ops

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
