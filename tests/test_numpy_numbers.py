"""An option that is a NumPy number gives the result of Python's, in every dtype: NumPy's own wrap round (np.uint8(200) + 100 is
44), lose digits (float16) and promote arrays (float64)."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from minicl import Tensor, contrastive, explain_pairs, gradcheck, nn, ops
from minicl import evaluate as ev
from minicl.data import Batches, ImageData, augment, open_image
from minicl.methods import BYOL, CLIP, EMA, MoCo, Queue, frozen_copy, grad_cache
from minicl.optim import LARS, SGD, Adam, AdamW, warmup_cosine

DTYPES = [np.dtype(code).type for code in "bhilqBHILQefdg"]
X = np.random.default_rng(0).standard_normal((220, 4)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 3, 220)
IMAGES = np.random.default_rng(2).integers(0, 256, (210, 4, 4, 1), dtype="uint8")
PICTURES = np.random.default_rng(4).random((2, 12, 12, 1), dtype="float32")
STEPS = np.random.default_rng(3).standard_normal((3, 6, 4)).astype("float32")


def rng(seed=0):
    return np.random.default_rng(seed)


def state(model):
    return np.concatenate([array.ravel() for array in model.state_dict().values()])


def trained(make, bits=32):
    """The weights after steps of the optimizer make(model)."""
    model = nn.Linear(4, 3, rng=rng()).astype(f"float{bits}")
    optimizer = make(model)
    for x in STEPS.astype(f"float{bits}"):
        optimizer.zero_grad()
        (model(x)**2).sum().backward()
        optimizer.step()
    return state(model)


def normalised(**options):
    """What a batch norm returns in training and in evaluation."""
    layer = nn.BatchNorm(4, **options)
    parts = [layer(x).data for x in STEPS]
    return np.concatenate([*parts, layer.eval()(STEPS[0]).data])


def set_later(value):
    layer = nn.LayerNorm(4)
    layer.eps = value
    return layer(STEPS[0]).data


def followed(m):
    online = nn.Linear(4, 3, rng=rng())
    target = frozen_copy(online)
    online.load_state_dict({name: array + 1 for name, array in online.state_dict().items()})
    EMA(online, target).update(m)
    return state(target)


def moved(kind, **options):
    """The weights of the slow network of MoCo or BYOL, after one update."""
    parts = [nn.Linear(4, 4, rng=rng(seed)) for seed in range(3)]
    model = MoCo(*parts[:2], dim=4, queue=12, **options) if kind is MoCo else BYOL(*parts, **options)
    x = STEPS[0]
    optimizer = SGD(model, 0.1)
    z = model(x)[1]
    (model.loss(z, model.encode_keys(x, rng()), 0.5) if kind is MoCo else model.loss(z, model.targets(x))).backward()
    optimizer.step()
    model.update()
    return state(model.key if kind is MoCo else model.target)


def encoded_keys(chunk):
    model = MoCo(*(nn.Linear(4, 4, rng=rng(seed)) for seed in range(2)), dim=4, queue=12)
    model.eval()
    return model.encode_keys(X, rng(), chunk=chunk)


def cached(chunk):
    model = nn.Linear(4, 3, rng=rng())
    grad_cache(model, lambda z: contrastive.uniformity_loss(z), X, chunk=chunk)
    return model.weight.grad


def jpeg(size):
    file = io.BytesIO()
    y, x = np.mgrid[:600, :600]
    Image.fromarray(((x * y) % 251).astype("uint8")).save(file, "JPEG")
    return open_image(file, size)


def of_folder(tmp_path, **options):
    np.savez(tmp_path / "a.npz", images=IMAGES[:40], labels=LABELS[:40])
    data = ImageData.from_folder(tmp_path / "a.npz", **{"size": 4, **options}, log=lambda line: None)
    return np.concatenate([data.train_images.ravel(), data.test_images.ravel(), data.test_labels])


def clip_scale(tau):
    return CLIP(*(nn.MLP((4, 4, 1), rng=rng()) for _ in range(2)), tau=tau, rng=rng()).logit_scale.data


USES = {  # (a function of the option, its values)
    "knn k": (lambda v: ev.knn_accuracy(X[:210], LABELS[:210], X[200:] + 1, LABELS[200:], k=v), (1, 7, 100, 200)),
    "knn tau": (lambda v: ev.knn_accuracy(X[:200], LABELS[:200], X[200:], LABELS[200:], k=5, tau=v), (1, 47, 0.1)),
    "nearest_neighbours": (lambda v: ev.nearest_neighbours(X, X[:3], k=v), (1, 7, 200)),
    "probe C": (lambda v: ev.linear_probe(X[:200], LABELS[:200], X[200:], LABELS[200:], C=v), (1, 200, 0.1)),
    "uniformity": (lambda v: ev.uniformity(X, t=v), (2, 200, 0.3)),
    "uniformity_floor t": (lambda v: ev.uniformity_floor(3, v), (2, 100, 200, 0.3)),
    "uniformity_floor d": (lambda v: ev.uniformity_floor(v), (2, 200)),
    "alignment": (lambda v: ev.alignment(X[:100], X[100:200], alpha=v), (2, 1.5)),
    "tsne": (lambda v: ev.tsne(X[:20], perplexity=v, steps=2), (3, 2.7)),
    "bound loss": (lambda v: ev.infonce_bound(v, 7), (0, 1, 0.3)),
    "bound candidates": (lambda v: ev.infonce_bound(0.5, v), (2, 200)),
    "retrieval": (lambda v: ev.retrieval_recall(X[:40], X[:40] + 1, np.arange(40), ks=[v])[f"text_r{v}"], (1, 5)),
    "encode": (lambda v: ev.encode(nn.MLP((4, 4, 1), rng=rng()), IMAGES, np, v), (7, 100, 200)),
    "encode_keys": (encoded_keys, (7, 100, 200)),
    "grad_cache": (cached, (7, 100, 200)),
    "mises_fisher_weights": (lambda v: contrastive.mises_fisher_weights(X[:9], X[9:18], sigma=v), (1, 0.3)),
    "explain_pairs": (lambda v: explain_pairs(X[:9], X[9:18], v, anchor=1).loss, (1, 0.3)),
    "gradcheck": (lambda v: gradcheck(ops.exp, [X[:2].astype("float64")], step=v), (1e-5,)),
    "warmup step": (lambda v: warmup_cosine(v, total=300, peak=1.0, warmup=255), (0, 100, 127, 254)),
    "warmup total": (lambda v: warmup_cosine(60, total=v, peak=1.0, warmup=50), (70, 100, 200)),
    "warmup warmup": (lambda v: warmup_cosine(60, total=300, peak=1.0, warmup=v), (1, 100, 200)),
    "warmup peak": (lambda v: warmup_cosine(3, total=300, peak=v, warmup=250), (1, 50, 100, 0.3)),
    "warmup floor": (lambda v: warmup_cosine(9, total=30, peak=1.0, floor=v), (0, 1, 0.3)),
    "Batches": (lambda v: Batches(500, v, seed=v)[2], (7, 100, 200)),
    "Queue": (lambda v: Queue(v, 2).keys.data, (7, 100, 200)),
    "SGD": (lambda v: trained(lambda model: SGD(model, v, momentum=v, weight_decay=v)), (0.1,)),
    **{f"AdamW {bits}": (lambda v, bits=bits: trained(lambda model: AdamW(model, v, weight_decay=v), bits), (1, 0.1))
       for bits in (32, 64)},
    **{f"Adam b{k} {bits}": (lambda v, k=k, bits=bits: trained(
        lambda model: Adam(model, 0.1, betas=(v, 0.9) if k == 1 else (0.9, v)), bits), (0, 0.3, 0.9))
       for k in (1, 2) for bits in (32, 64)},
    "Adam eps": (lambda v: trained(lambda model: Adam(model, 0.1, eps=v), 64), (1, 0.3)),
    "LARS": (lambda v: trained(lambda model: LARS(model, 0.1, eta=v, weight_decay=v), 64), (1, 0.3)),
    "EMA": (followed, (0, 1, 0.3)),
    "MoCo": (lambda v: moved(MoCo, m=v), (0, 0.3)),
    "BYOL": (lambda v: moved(BYOL, m=v), (0, 0.3)),
    "CLIP": (clip_scale, (1, 3, 0.3)),
    "BatchNorm momentum": (lambda v: normalised(momentum=v), (0, 1, 0.3)),
    "BatchNorm eps": (lambda v: normalised(eps=v), (1, 0.3)),
    "BatchNorm splits": (lambda v: normalised(splits=v), (1, 3)),
    "LayerNorm later": (set_later, (1, 0.3)),
    "Dropout": (lambda v: nn.Dropout(v, rng=rng())(Tensor(X)).data, (0, 0.3)),
    "Linear": (lambda v: state(nn.Linear(v, 3, rng=rng(), gain=v)), (7, 100, 200)),
    "Conv2d kernel": (lambda v: state(nn.Conv2d(2, 3, v, rng=rng())), (3, 16)),
    "Conv2d channels": (lambda v: state(nn.Conv2d(v, 3, 3, rng=rng())), (64, 100)),
    "MLP": (lambda v: state(nn.MLP((v, 4, 1), (v, 5), rng=rng())), (7, 100)),
    "ConvNet": (lambda v: state(nn.ConvNet((64, 64, 1), (4, v), rng=rng(), strides=(2, 2), grid=2)), (64, 100)),
    "ResNet9": (lambda v: state(nn.ResNet9((v, v, 1), v, rng=rng())), (16, 32)),
    "Transformer": (lambda v: state(nn.Transformer(v, 3, v, heads=4, rng=rng())), (8, 64)),
    "projection_head": (lambda v: state(nn.projection_head("mlp", v, hidden=v, dim=v, rng=rng())), (7, 100)),
    "GRU": (lambda v: state(nn.GRU(3, v, rng=rng())), (7, 64)),
    "RandomResizedCrop": (lambda v: augment.RandomResizedCrop(v)(PICTURES, rng()), (7, 100)),
    "GaussianBlur": (lambda v: augment.GaussianBlur(sigma=v, p=1)(PICTURES, rng()), (1, 0.3)),
    "open_image": (jpeg, (7, 100, 200)),
}


@pytest.mark.parametrize("use", USES)
def test_a_numpy_number_gives_the_result_of_pythons(use):
    function, values = USES[use]
    compared = 0
    for value in values:
        for kind in DTYPES:
            is_whole = issubclass(kind, np.integer)
            if is_whole and (value != int(value) or value > np.iinfo(kind).max):
                continue
            number = kind(value)
            try:
                expected = function(value if is_whole else float(number))
            except TypeError:                                                # an integer is needed
                with pytest.raises(TypeError, match="must be an integer"):
                    function(number)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)               # NumPy's of integers that wrap round
                got = function(number)
            assert np.asarray(got).dtype == np.asarray(expected).dtype, kind
            np.testing.assert_array_equal(got, expected, err_msg=f"{kind.__name__}({value})")
            compared += 1
    assert compared


@pytest.mark.parametrize("options", [{"size": 6}, {"channels": 1}, {"channels": 3}, {"test_share": 0.3}, {"limit": 9},
                                     {"seed": 7}])
def test_numpy_numbers_for_a_folder(tmp_path, options):
    expected = of_folder(tmp_path, **options)
    (name, value), = options.items()
    for kind in [np.float64, np.longdouble] if isinstance(value, float) else [np.int8, np.uint8, np.int64, np.uint64]:
        np.testing.assert_array_equal(of_folder(tmp_path, **{name: kind(value)}), expected, err_msg=kind.__name__)


@pytest.mark.parametrize("channels", [True, 3.0, "3", 2, None])
def test_channels_of_another_kind_are_refused(channels):
    with pytest.raises(ValueError, match="channels must be 3"):
        open_image(io.BytesIO(b"P6 1 1 255 abc"), 2, channels=channels)


def test_a_users_module_gets_its_arguments_as_they_are():
    class Scaled(nn.Module):
        def __init__(self, scale):
            self.scale = scale

    assert type(Scaled(np.float16(0.5)).scale) is np.float16
