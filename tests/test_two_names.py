"""Arguments that would be silently ignored are errors: both names of the temperature, unknown names, an eps that
underflows.
"""

import functools
import math
import re

import numpy as np
import pytest

from minicl import Tensor, contrastive, gradcheck, nn, op, ops, optim
from minicl.evaluate import knn_accuracy, linear_probe, nearest_neighbours
from minicl.methods import CLIP, MoCo
from minicl.tensor import BaseTensor

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((4, 4), dtype="float32")
IDS = np.array([0, 1, 0, 1])
LAYER = nn.Linear(4, 4, rng=np.random.default_rng(0))


def moco(**temperature):
    encoder = nn.MLP((2, 2, 1), (4,), rng=np.random.default_rng(0))
    model = MoCo(encoder, nn.Linear(4, 4, rng=np.random.default_rng(1)), dim=4, queue=8, splits=1)
    model.queue.enqueue(np.eye(4, dtype="float32"))
    return model.loss(Tensor(Z), Z[::-1].copy(), **temperature).item()


def clip(**temperature):
    encoder = nn.MLP((2, 2, 1), (4,), rng=np.random.default_rng(0))
    return CLIP(encoder, encoder, 4, rng=np.random.default_rng(1), **temperature).logit_scale.item()


CALLS = {
    "nt_xent": lambda **t: contrastive.nt_xent(Z, Z[::-1].copy(), **t).item(),
    "log_softmax": lambda **t: float(contrastive.log_softmax(Z, **t).data[0, 0]),
    "info_nce_from_scores": lambda **t: contrastive.info_nce_from_scores(Tensor(Z), np.arange(4), **t).item(),
    "MoCo.loss": moco,
    "CLIP": clip,
    **{f"composed.{name}": functools.partial(lambda loss, arguments, **t: loss(*map(Tensor, arguments), **t).item(),
                                             getattr(contrastive.composed, name), arguments)
       for name, arguments in {"nt_xent": (Z, Z[::-1].copy()), "dcl": (Z, Z[::-1].copy()),
                               "info_nce": (Z, Z[::-1].copy(), Z + 1)}.items()},
}


@pytest.mark.parametrize("name", CALLS)
def test_either_name_of_the_temperature_is_accepted_but_not_both(name):
    call = CALLS[name]
    assert call(tau=0.5) == call(temperature=0.5) != call(temperature=0.2)
    for tau in (0.5, 0.2):
        with pytest.raises(TypeError, match=f"{'composed' if 'composed' in name else name}: tau"):
            call(tau=tau, temperature=0.5)


@pytest.mark.parametrize("call, hint", [
    (lambda: knn_accuracy(Z, IDS, Z, IDS, n_neighbors=1), "knn_accuracy: unknown argument 'n_neighbors'; did you mean 'k'?"),
    (lambda: nearest_neighbours(Z, Z, n_neighbors=1), "'n_neighbors'; did you mean 'k'?"),
    (lambda: linear_probe(Z, IDS, Z, IDS, max_iter=9), "linear_probe: unknown argument 'max_iter'; did you mean 'steps'?"),
    (lambda: MoCo(LAYER, LAYER, dim=4, queue_size=8), "MoCo: unknown argument 'queue_size'; did you mean 'queue'?"),
    (lambda: MoCo(LAYER, LAYER, dim=4, K=8), "did you mean 'queue'?"),
    (lambda: MoCo(LAYER, LAYER, dim=4, momentum=0.9), "MoCo: unknown argument 'momentum'; did you mean 'm'?"),
    (lambda: nn.Linear(3, 4, biases=True, rng=RNG), "Linear: unknown argument 'biases'; did you mean 'bias'?"),
    (lambda: nn.Linear(3, 4, device="cpu", rng=RNG), "Linear: unknown argument 'device'"),
    (lambda: optim.LARS(LAYER, 0.1, trust_coefficient=1.0), "LARS: unknown argument 'trust_coefficient'; did you mean 'eta'?"),
    (lambda: optim.SGD(LAYER, 0.1, nestrov=True), "SGD: unknown argument 'nestrov'; did you mean 'nesterov'?"),
    (lambda: optim.warmup_cosine(0, total_steps=9, peak=1.0), "'total_steps'; did you mean 'total'?"),
    (lambda: contrastive.composed.nt_xent(Tensor(Z), Tensor(Z), taux=1.0), "composed: unknown argument 'taux'; did you mean 'tau'?"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_unknown_argument_is_named_with_the_nearest_one(call, hint):
    with pytest.raises(TypeError, match=re.escape(hint)):
        call()


@pytest.mark.parametrize("thing, name, hint", [
    (Tensor(Z), "view", "reshape"), (Tensor(Z), "permute", "transpose"), (Tensor(Z), "requires_gard", "requires_grad"),
    (LAYER, "in_feature", "in_features"), (LAYER, "cuda", "to")])
def test_an_unknown_attribute_is_named_with_the_nearest_one(thing, name, hint):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; did you mean '{hint}'?"):
        getattr(thing, name)


def test_tensors_have_numpy_std_and_requires_grad():
    x = Tensor(Z)
    assert x.numpy() is Z and x.requires_grad_() is x and x.requires_grad
    with pytest.raises(RuntimeError, match=r"write x.detach\(\).numpy\(\)"):
        x.numpy()
    assert not x.requires_grad_(False).requires_grad
    np.testing.assert_allclose(x.std(axis=0).numpy(), Z.std(axis=0), rtol=1e-5)
    assert gradcheck(lambda z: z.std(axis=1, correction=1), [Z.astype("float64")])


def test_no_attribute_of_a_tensor_is_left_unset():
    for tensor in (Tensor(Z), ops.relu(Z), ops.relu(Tensor(Z, requires_grad=True)), Tensor(Z).detach(), nn.Parameter(Z)):
        assert all(hasattr(tensor, name) for name in BaseTensor.__slots__)


def test_a_module_with_any_options_takes_them():
    class Free(nn.Module):
        def __init__(self, **options):
            self.options = options
    assert Free(temperature=1.0).options == {"temperature": 1.0}


@pytest.mark.parametrize("loss, more", [(contrastive.clip_loss, ()), (contrastive.siglip, (0.0,))])
@pytest.mark.parametrize("name", ["tau", "temperature"])
def test_a_loss_of_a_logit_scale_says_how_to_pass_a_temperature(loss, more, name):
    with pytest.raises(TypeError, match=rf"{loss.__name__}: unknown argument '{name}'; pass logit_scale, math.log\(1 / 0.07\)"):
        loss(Z, Z, math.log(10), *more, **{name: 0.07})


@pytest.mark.parametrize("dtype, eps", [("float32", 1e-12), ("float32", 1e-15), ("float64", 1e-140), ("float64", 1.0)])
def test_l2_normalize_gives_unit_rows_down_to_eps(dtype, eps):
    x = (RNG.standard_normal((50, 3)) * 10.0**RNG.uniform(0, 4, (50, 1)) * eps).astype(dtype)
    long = np.sqrt(((x / np.dtype(dtype).type(eps)).astype("float64")**2).sum(axis=1)) >= 1.001
    y = contrastive.l2_normalize(x, eps=eps).data.astype("float64")
    assert np.allclose((y * y).sum(axis=1)[long], 1, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype, eps", [("float32", 1e-17), ("float32", 1e-30), ("float64", 1e-150), ("float64", 1e-300)])
def test_l2_normalize_refuses_an_eps_whose_square_underflows(dtype, eps):
    with pytest.raises(ValueError, match="l2_normalize: eps must be"):
        contrastive.l2_normalize(np.ones((2, 2), dtype), eps=eps)


class Called:
    def __call__(self, x):
        return x, lambda g: (g,)


@pytest.mark.parametrize("what", [True, "add", Called(), Called, len, functools.partial(lambda x: x), None.__class__],
                         ids=lambda what: type(what).__name__)
def test_op_accepts_only_functions(what):
    with pytest.raises(TypeError, match="@op: expected a function"):
        op(what)
