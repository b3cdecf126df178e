"""Invalid states, options and inputs of modules, optimizers and methods are errors that state the reason."""

import numpy as np
import pytest
from small_nets import Net, ones, rng

from minicl import Tensor, nn, ops
from minicl.methods import BYOL, CLIP, CPC, EMA, MoCo, Queue, WindowEncoder, frozen_copy
from minicl.nn import BatchNorm, Buffer, Dropout, Linear, Parameter, Sequential
from minicl.optim import LARS, SGD, Adam


def linear():
    return Linear(2, 2, rng=rng())


HEAD = linear()


# ---------------------------------------------------------------- states that do not fit

SPOILERS = {
    "missing": lambda x: None, "float64": lambda x: x.astype("float64"),
    "float16": lambda x: np.ones(x.shape, "float16"),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder()), "NaN": lambda x: np.full_like(x, np.nan),
    "infinity": lambda x: np.full_like(x, -np.inf), "objects": lambda x: x.astype(object),
    "strings": lambda x: x.astype(str),
    "0-d": lambda x: x.sum(), "an axis more": lambda x: x[None], "an axis less": lambda x: x[0],
    "longer": lambda x: np.r_[x, x],
    "a list": lambda x: x.tolist(), "bool": lambda x: x > 0, "complex": lambda x: x + 0j,
    "a Tensor": lambda x: Tensor(x * 1.0),
    "negative": lambda x: -1 - np.abs(x),
}


@pytest.mark.parametrize("spoil", SPOILERS, ids=SPOILERS)
@pytest.mark.parametrize("owner", ["model", "optimizer", "queue"])
def test_a_state_that_does_not_fit_changes_nothing(owner, spoil):
    """Each entry of a state is made invalid in turn, also the last one, when all others could have been loaded."""
    model = Net()
    thing = {"model": model, "optimizer": Adam(model, 0.1), "queue": Queue(3, 2)}[owner]
    for name, array in thing.state_dict().items():
        if spoil in ("NaN", "infinity", "an axis less",
                     "negative") and (array.dtype.kind == "i") != (spoil == "negative"):
            continue
        if spoil == "0-d" and array.ndim == 0 or spoil == "negative" and name.endswith("stream"):
            continue
        state = {key: np.ones_like(value) for key, value in thing.state_dict().items()}
        state[name] = SPOILERS[spoil](np.atleast_1d(array)) if array.ndim == 0 and spoil == "longer" else \
            SPOILERS[spoil](array)
        if state[name] is None:
            del state[name]
        before = thing.state_dict()
        with pytest.raises((ValueError, TypeError)):
            thing.load_state_dict(state)
        for key, value in thing.state_dict().items():
            np.testing.assert_array_equal(value, before[key], err_msg=f"{spoil} {name}: {key}")


def test_a_state_of_the_modules_own_arrays_may_swap_them():
    model = Sequential(*(Linear(3, 3, rng=np.random.default_rng(k), bias=False) for k in range(3)))
    first, second, third = (layer.weight.data.copy() for layer in model.steps)
    own = [layer.weight.data for layer in model.steps]
    model.load_state_dict({"steps.0.weight": own[1], "steps.1.weight": own[2], "steps.2.weight": own[0].T})
    for layer, expected in zip(model.steps, (second, third, first.T)):
        np.testing.assert_array_equal(layer.weight.data, expected)


@pytest.mark.parametrize("dtype", ["float16", "int64", "complex128", ">f4", "f2"])
def test_a_refused_dtype_changes_no_part(dtype):
    model = Sequential(Linear(3, 3, rng=np.random.default_rng(0)), BatchNorm(3))
    with pytest.raises(TypeError, match="Sequential.astype: dtype must be float32 or float64"):
        model.astype(dtype)
    assert {part.data.dtype.str for _, part in model.named_state()} == {"<f4"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("splits", [1, 2])
def test_a_batch_that_is_not_finite_leaves_the_running_averages(bad, splits):
    bn = BatchNorm(3, splits=splits)
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    bn(x)
    before = bn.state_dict()
    x[3, 1] = bad
    with pytest.raises(FloatingPointError, match="BatchNorm: the variance of its input is not finite"), np.errstate(all="ignore"):
        bn(x)
    for name, array in bn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("state", [None, [], "state", 3, [("a", 1)]])
def test_a_state_is_a_dict(state):
    for thing in (Net(), SGD(Net(), 0.1)):
        with pytest.raises(TypeError, match="expected a state_dict"):
            thing.load_state_dict(state)


def test_step_counts_that_contradict_each_other_are_refused():
    optimizer = SGD(Net(), 0.1)
    state = optimizer.state_dict()
    state["steps.head.weight"] = np.array(3)
    with pytest.raises(ValueError, match="step counts must lie in"):
        optimizer.load_state_dict(state)


# ---------------------------------------------------------------- options

def encoder():
    return nn.MLP((4, 4, 1), (6,), rng=rng())


SIZES = [0, -1, 2.0, 1.5, "3", None, True, float("nan")]
NUMBERS = [-0.1, float("nan"), float("inf"), "0.1", None, True, [0.1]]
OPTIONS = {                                                  # name: (make(value), invalid values)
    "Linear.in_features": (lambda v: Linear(v, 3, rng=rng()), SIZES),
    "Linear.out_features": (lambda v: Linear(3, v, rng=rng()), SIZES),
    "Linear.gain": (lambda v: Linear(3, 3, rng=rng(), gain=v), NUMBERS),
    "Conv2d.gain": (lambda v: nn.Conv2d(3, 3, 3, rng=rng(), gain=v), NUMBERS),
    "Conv2d.in_channels": (lambda v: nn.Conv2d(v, 3, 3, rng=rng()), SIZES),
    "Conv2d.out_channels": (lambda v: nn.Conv2d(3, v, 3, rng=rng()), SIZES),
    "Conv2d.kernel_size": (lambda v: nn.Conv2d(3, 3, v, rng=rng()), [*SIZES, (3, 3)]),
    "Conv2d.stride": (lambda v: nn.Conv2d(3, 3, 3, rng=rng(), stride=v), SIZES),
    "Conv2d.padding": (lambda v: nn.Conv2d(3, 3, 3, rng=rng(), padding=v), [-1, 0.5, "same", True]),
    "BatchNorm.num_features": (BatchNorm, SIZES), "BatchNorm.splits": (lambda v: BatchNorm(3, splits=v), SIZES),
    "BatchNorm.momentum": (lambda v: BatchNorm(3, momentum=v), [*NUMBERS, 1.1]),
    "BatchNorm.eps": (lambda v: BatchNorm(3, eps=v), [*NUMBERS, 0]),
    "LayerNorm.normalized_shape": (nn.LayerNorm, [*SIZES, (3,)]),
    "LayerNorm.eps": (lambda v: nn.LayerNorm(3, eps=v), [*NUMBERS, 0]),
    "Dropout.p": (lambda v: Dropout(v, rng=rng()), [*NUMBERS, 1, 1.5]),
    "Dropout.batch_axis": (lambda v: Dropout(0.5, rng=rng(), batch_axis=v), ["no", "", True, 1.0, [], (0,), float("nan"), -99]),
    "Embedding.num_embeddings": (lambda v: nn.Embedding(v, 3, rng=rng()), SIZES),
    "Embedding.embedding_dim": (lambda v: nn.Embedding(3, v, rng=rng()), SIZES),
    "GRU.input_size": (lambda v: nn.GRU(v, 3, rng=rng()), SIZES),
    "GRU.hidden_size": (lambda v: nn.GRU(3, v, rng=rng()), SIZES),
    "MLP.image_shape": (lambda v: nn.MLP(v, rng=rng()), [(4, 4), (4, 4, 0), (4, 4, 1.0), (1, 4, 4, 1), 16]),
    "MLP.widths": (lambda v: nn.MLP((4, 4, 1), (v,), rng=rng()), SIZES),
    "MLP.widths, all": (lambda v: nn.MLP((4, 4, 1), v, rng=rng()), [{3, 4}, frozenset([3])]),
    "ConvNet.channels, all": (lambda v: nn.ConvNet((8, 8, 1), v, rng=rng()), [{3, 4}]),
    "ConvNet.strides, all": (lambda v: nn.ConvNet((8, 8, 1), (3, 4), strides=v, rng=rng()), [{1, 2}]),
    "WordTokenizer.words": (lambda v: nn.WordTokenizer(v, 5), [{"a", "b"}, "ab", b"ab", ["A"], [1], []]),
    "WordTokenizer of captions": (lambda v: nn.WordTokenizer(["a", "b"], 5)(v), [{"a", "b"}, "ab", b"ab", [1]]),
    "ConvNet.channels": (lambda v: nn.ConvNet((8, 8, 1), (v,), rng=rng()), SIZES),
    "ConvNet.strides": (lambda v: nn.ConvNet((8, 8, 1), (3,), strides=(v,), rng=rng()), SIZES),
    "ConvNet.grid": (lambda v: nn.ConvNet((8, 8, 1), (3,), grid=v, rng=rng()), SIZES),
    "ConvNet without layers": (lambda v: nn.ConvNet((8, 8, 1), v, rng=rng()), [()]),
    "ResNet9.width": (lambda v: nn.ResNet9((8, 8, 3), v, rng=rng()), SIZES),
    "ResNet18.width": (lambda v: nn.ResNet18((8, 8, 3), v, rng=rng()), SIZES),
    "Transformer.vocabulary": (lambda v: nn.Transformer(v, 5, 8, rng=rng()), SIZES),
    "Transformer.length": (lambda v: nn.Transformer(5, v, 8, rng=rng()), SIZES),
    "Transformer.width": (lambda v: nn.Transformer(5, 5, v, heads=1, rng=rng()), SIZES),
    "Transformer.depth": (lambda v: nn.Transformer(5, 5, 8, depth=v, rng=rng()), [-1, 1.0, "1", None, True]),
    "Transformer.heads": (lambda v: nn.Transformer(5, 5, 8, heads=v, rng=rng()), [*SIZES, 3, 16]),
    "BagOfTokens.vocabulary": (lambda v: nn.BagOfTokens(v, rng=rng()), SIZES),
    "head.hidden": (lambda v: nn.projection_head("mlp", 4, hidden=v, rng=rng()), [v for v in SIZES if v is not None]),
    "head.dim": (lambda v: nn.projection_head("mlp", 4, dim=v, rng=rng()), SIZES),
    "head.kind": (lambda v: nn.projection_head(v, 4, rng=rng()), ["MLP", None, ""]),
    "Sequential": (Sequential, [[ops.relu], None, 3, "relu"]),
    "SGD.lr": (lambda v: SGD(linear(), v), [*NUMBERS, 0]),
    "SGD.weight_decay": (lambda v: SGD(linear(), 0.1, weight_decay=v), NUMBERS),
    "SGD.momentum": (lambda v: SGD(linear(), 0.1, momentum=v), [*NUMBERS, 1]),
    "Adam.beta1": (lambda v: Adam(linear(), 0.1, betas=(v, 0.9)), [*NUMBERS, 1]),
    "Adam.beta2": (lambda v: Adam(linear(), 0.1, betas=(0.9, v)), [*NUMBERS, 1]),
    "Adam.betas": (lambda v: Adam(linear(), 0.1, betas=v), [0.9, (0.9,), (0.9, 0.9, 0.9), None]),
    "Adam.eps": (lambda v: Adam(linear(), 0.1, eps=v), [*NUMBERS, 0, 1e-50]),
    "LARS.eta": (lambda v: LARS(linear(), 0.1, eta=v), [*NUMBERS, 0]),
    "what is optimized": (lambda v: SGD(v, 0.1), [[], linear().parameters(), None, 3, "model", linear, Sequential(),
                                                 [("a", Parameter(ones(2))), ("a", Parameter(ones(2)))],
                                                 [("a", Tensor(ones(2), requires_grad=True) * 2)], [("a", ones(2))],
                                                 2 * [("a", Parameter(ones(2)))],
                                                 [("a", Parameter(ones(2))), ("b", Parameter(np.ones(2)))]]),
    "MoCo.m": (lambda v: MoCo(encoder(), linear(), dim=2, m=v), [*NUMBERS, 1]),
    "MoCo.dim": (lambda v: MoCo(encoder(), linear(), dim=v), SIZES),
    "MoCo.queue": (lambda v: MoCo(encoder(), linear(), dim=2, queue=v), SIZES),
    "MoCo.splits": (lambda v: MoCo(encoder(), linear(), dim=2, splits=v), SIZES),
    "BYOL.m": (lambda v: BYOL(encoder(), linear(), linear(), m=v), [*NUMBERS, 1]),
    "EMA.update": (lambda v: ema().update(v), [*NUMBERS, 1.1]),
    "Queue.capacity": (lambda v: Queue(v, 2), SIZES), "Queue.dim": (lambda v: Queue(2, v), SIZES),
    "CLIP.tau": (lambda v: CLIP(encoder(), encoder(), tau=v, rng=rng()), [0, *(v for v in NUMBERS if v is not None), 0.001, 1e-9, 0.0099]),
    "CLIP.dim": (lambda v: CLIP(encoder(), encoder(), v, rng=rng()), SIZES),
    "CPC.ahead": (lambda v: CPC(WindowEncoder(2, 2, rng=rng()), None, v, rng=rng()), SIZES),
    "WindowEncoder.channels": (lambda v: WindowEncoder(v, 2, rng=rng()), SIZES),
    "WindowEncoder.window": (lambda v: WindowEncoder(2, v, rng=rng()), SIZES),
    "WindowEncoder.hidden": (lambda v: WindowEncoder(2, 2, hidden=v, rng=rng()), SIZES),
    "WindowEncoder.features": (lambda v: WindowEncoder(2, 2, features=v, rng=rng()), SIZES),
}


def ema():
    online = linear()
    return EMA(online, frozen_copy(online))


@pytest.mark.parametrize("option", OPTIONS, ids=OPTIONS)
def test_an_option_outside_its_range_is_refused_and_named(option):
    make, values = OPTIONS[option]
    for value in values:
        with pytest.raises((ValueError, TypeError)) as error:
            make(value)
        assert any(word in str(error.value) for word in ("must be", "expected", "SGD: got no")), value


# ---------------------------------------------------------------- inputs

def normal(*shape):
    return rng().standard_normal(shape, dtype="float32")


def tensor(*shape):
    return Tensor(normal(*shape))


def spoilt(value, *shape):
    x = normal(*shape)
    x.reshape(-1)[-1] = value
    return x


def moco(filled=True):
    model = MoCo(nn.MLP((2, 2, 1), (6,), rng=rng()), Linear(6, 4, rng=rng()), dim=4, queue=8, splits=1)
    if filled:
        model.queue.enqueue(normal(4, 4))
    return model


def byol():
    return BYOL(nn.MLP((2, 2, 1), (6,), rng=rng()), Linear(6, 4, rng=rng()), Linear(4, 4, rng=rng()))


def transformer():
    return nn.Transformer(5, 4, 8, heads=2, rng=rng())


def cpc_scores(*shape, k=1):
    model = CPC(WindowEncoder(3, 2, rng=rng()), nn.GRU(32, 5, rng=rng()), 2, rng=rng())
    return model.scores(*model(normal(*shape)), k)


LAYERS = {"Linear": lambda: Linear(3, 4, rng=rng()), "LayerNorm": lambda: nn.LayerNorm(3),
          "BatchNorm": lambda: BatchNorm(3), "BatchNorm in evaluation": lambda: BatchNorm(3).eval(),
          "BatchNorm of one channel in evaluation": lambda: BatchNorm(1).eval()}
WRONG = {"list": [[1.0, 2, 3]], "None": None, "another width": tensor(4, 2), "0-d": tensor(),
         "float64": Tensor(np.ones((4, 3))),
         "integers": np.ones((4, 3), int), "float16": np.ones((4, 3), "float16"), "no argument": ()}
CALLS = {f"{layer}: {what}": (lambda make=make, x=x: make()(*([] if x == () else [x])))
         for layer, make in LAYERS.items() for what, x in WRONG.items()
         if (layer, what) != ("BatchNorm in evaluation", "list")}
CALLS |= {
    "BatchNorm in evaluation: one channel broadcast": lambda: BatchNorm(3).eval()(tensor(4, 1)),
    "BatchNorm: a batch of one": lambda: BatchNorm(3)(tensor(1, 3)),
    "BatchNorm: no items": lambda: BatchNorm(3)(tensor(0, 3)),
    "BatchNorm: no batch": lambda: BatchNorm(3)(tensor(3)),
    "BatchNorm: groups of one": lambda: BatchNorm(3, splits=4)(tensor(4, 3)),
    "Conv2d: images first": lambda: nn.Conv2d(3, 4, 3, rng=rng())(tensor(2, 5, 5, 4)),
    "Conv2d: three axes": lambda: nn.Conv2d(3, 4, 3, rng=rng())(tensor(5, 5, 3)),
    "Conv2d: a kernel too large": lambda: nn.Conv2d(3, 4, 5, rng=rng())(tensor(3, 3, 2, 3)),
    "Embedding: floats": lambda: nn.Embedding(5, 3, rng=rng())(normal(2)),
    "Embedding: too high": lambda: nn.Embedding(5, 3, rng=rng())(np.array([5])),
    "Embedding: bools": lambda: nn.Embedding(5, 3, rng=rng())(np.array([True])),
    "GRU: two axes": lambda: nn.GRU(3, 4, rng=rng())(tensor(5, 3)),
    "GRU: no steps": lambda: nn.GRU(3, 4, rng=rng())(tensor(0, 2, 3)),
    "GRU: another width": lambda: nn.GRU(3, 4, rng=rng())(tensor(2, 2, 4)),
    "MLP: bytes": lambda: nn.MLP((2, 2, 1), rng=rng())(np.zeros((3, 2, 2, 1), "uint8")),
    "ResNet9: too small": lambda: nn.ResNet9((4, 4, 3), 2, rng=rng())(normal(4, 4, 4, 3)),
    "Transformer: floats": lambda: transformer()(normal(2, 3)), "Transformer: a list": lambda: transformer()([[1, 2]]),
    "Transformer: too long": lambda: transformer()(np.ones((2, 5), int)),
    "Transformer: negative": lambda: transformer()(np.array([[1, -1]])),
    "Transformer: too high": lambda: transformer()(np.array([[1, 9]])),
    "Transformer: no tokens": lambda: transformer()(np.ones((2, 0), int)),
    "BagOfTokens: negative": lambda: nn.BagOfTokens(5, 3, rng=rng())(np.array([[1, -1]])),
    "Queue: NaN": lambda: Queue(4, 3).enqueue(spoilt(np.nan, 2, 3)),
    "Queue: infinity": lambda: Queue(4, 3).enqueue(spoilt(np.inf, 2, 3)),
    "Queue: float64": lambda: Queue(4, 3).enqueue(np.ones((2, 3))),
    "Queue: integers": lambda: Queue(4, 3).enqueue(np.ones((2, 3), int)),
    "Queue: a Tensor": lambda: Queue(4, 3).enqueue(tensor(2, 3)),
    "Queue: too many": lambda: Queue(4, 3).enqueue(normal(5, 3)),
    **{f"MoCo: {what}{empty}": (lambda q=q, k=k, tau=tau, empty=empty: moco(not empty).loss(q, k, tau))
       for empty in ("", ", empty queue") for what, q, k, tau in [
           ("keys on the tape", tensor(4, 4), tensor(4, 4), 0.2), ("fewer keys", tensor(4, 4), normal(3, 4), 0.2),
           ("narrow keys", tensor(4, 4), normal(4, 3), 0.2), ("narrow", tensor(4, 3), normal(4, 3), 0.2),
           ("queries that are an array", normal(4, 4), normal(4, 4), 0.2),
           ("float64 keys", tensor(4, 4), np.ones((4, 4)), 0.2),
           ("tau 0", tensor(4, 4), normal(4, 4), 0), ("tau NaN", tensor(4, 4), normal(4, 4), float("nan"))]},
    "MoCo: NaN": lambda: moco().loss(tensor(4, 4), spoilt(np.nan, 4, 4), 0.2),
    "MoCo: no generator": lambda: moco().encode_keys(normal(4, 2, 2, 1), None),
    "MoCo: bytes": lambda: moco().encode_keys(np.zeros((4, 2, 2, 1), "uint8"), rng()),
    "MoCo: update in evaluation": lambda: moco().eval().update(), "MoCo: update without keys": lambda: moco().update(),
    "BYOL: odd": lambda: byol().loss(tensor(5, 4), tensor(5, 4)),
    "BYOL: another batch": lambda: byol().loss(tensor(6, 4), tensor(4, 4)),
    "BYOL: nothing": lambda: byol().loss(tensor(0, 4), tensor(0, 4)),
    "BYOL: NaN": lambda: byol().loss(tensor(4, 4), Tensor(spoilt(np.nan, 4, 4))),
    "CPC: k of another kind": lambda: cpc_scores(8, 3, 3, k=1.0), "CPC: k too far": lambda: cpc_scores(8, 3, 3, k=3),
    "CPC: one sequence": lambda: cpc_scores(8, 1, 3), "CPC: too short": lambda: cpc_scores(2, 2, 3),
    "CPC: two axes": lambda: cpc_scores(8, 3), "frozen_copy: an array": lambda: frozen_copy(normal(3)),
    "EMA: itself": lambda: EMA(HEAD, HEAD), "EMA: None": lambda: EMA(HEAD, None),
    "EMA: another": lambda: EMA(HEAD, frozen_copy(encoder())),
    "Buffer: a list": lambda: Buffer([1, 2]), "Buffer: a Tensor": lambda: Buffer(tensor(2)),
    "Buffer: None": lambda: Buffer(None), "Buffer: NaN": lambda: Buffer(spoilt(np.nan, 3)),
    "Buffer: infinite": lambda: Buffer(spoilt(-np.inf, 3, 3)),
    "Parameter: integers": lambda: Parameter(np.ones(3, int)),
    "Parameter: float16": lambda: Parameter(np.ones(3, "float16")),
    "Parameter: a Tensor": lambda: Parameter(tensor(2)), "Counter: less": lambda: nn.Counter().add(-1),
    "Counter: a part": lambda: nn.Counter().add(0.5), "astype: integers": lambda: linear().astype(int),
    "astype: float16": lambda: linear().astype("float16"), "to: unknown": lambda: linear().to("gpu"),
    "an unknown keyword": lambda: HEAD(y=tensor(4, 2)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_input_that_does_not_fit_is_refused(call):
    with pytest.raises((ValueError, TypeError, IndexError, FloatingPointError, RuntimeError)) as error:
        call()
    assert len(str(error.value)) > 20 and "unpack" not in str(error.value)


def test_a_refused_batch_does_not_enter_the_queue_later():
    model = moco()
    with pytest.raises(FloatingPointError):
        model.loss(tensor(4, 4), spoilt(np.nan, 4, 4), 0.2)
    with pytest.raises(RuntimeError, match="without keys"):
        model.update()


def test_a_copy_of_a_frozen_copy_is_frozen_too():
    target = frozen_copy(frozen_copy(HEAD))
    assert target.named_parameters() == [] and np.array_equal(target(tensor(3, 2)).data, HEAD(tensor(3, 2)).data)


def test_temperature_is_another_name_for_tau():
    queries = tensor(4, 4)
    keys = normal(4, 4)
    assert moco().loss(queries, keys, temperature=0.3).item() == moco().loss(queries, keys, 0.3).item()
    assert CLIP(encoder(), encoder(), temperature=0.1, rng=rng()).logit_scale.item() == pytest.approx(np.log(10))


def test_modules_take_keywords():
    np.testing.assert_array_equal(HEAD(x=tensor(3, 2)).data, HEAD(tensor(3, 2)).data)
