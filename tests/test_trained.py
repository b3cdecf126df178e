"""minicl.load reads the model of every training script on either backend, and raises one line for a folder that it
cannot load."""

import collections
import enum
import functools
import importlib
import json
import linecache
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import sequences
from example_runs import EXAMPLES, run_example
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_runs import start, train

import minicl
from minicl import Tensor, nn, ops
from minicl.backend import array_module, to_device, to_host
from minicl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, settings
from minicl.data import DataError, digits, generate_digits, open_image, shapes
from minicl.evaluate import encode
from minicl.methods import BYOL, CLIP, CPC, MoCo, SimCLR, SimSiam, WindowEncoder
from minicl.nn import spec
from minicl.nn.spec import build, spec_of
from minicl.run import Run

DIGITS = ("--data", "digits", "--batch", 16, "--epochs", 1)
SHAPES = ("--data", "shapes", "--batch", 16, "--epochs", 1, "--width", 2, "--queue", 32, "--splits", 2)
PICTURES = ("--data-dir", "photos", "--size", 32, "--batch", 16, "--epochs", 1, "--width", 2)
SCRIPTS = {                                                  # id: (script, options, which model)
    "simclr_mnist": ("simclr_mnist", DIGITS, None),
    "simclr_mnist mlp": ("simclr_mnist", (*DIGITS, "--encoder", "mlp", "--head", "none"), None),
    "moco_mnist": ("moco_mnist", (*DIGITS, "--queue", 32), None),
    "simclr_cifar10": ("simclr_cifar10", SHAPES, None),
    "resnet9": ("simclr_cifar10", (*SHAPES, "--encoder", "resnet9", "--method", "moco"), None),
    "resnet18": ("simclr_cifar10", (*SHAPES, "--encoder", "resnet18"), None),
    "simclr_images": ("simclr_images", PICTURES, None),
    "moco_images": ("moco_images", (*PICTURES, "--queue", 32, "--splits", 2), None),
    "collapse": ("collapse", DIGITS, "BYOL"),
    "collapse SimSiam": ("collapse", DIGITS, "SimSiam"),
    "circle": ("circle", DIGITS, "uniformity only"),
    "clip_images": ("clip_images", (*PICTURES, "--captions", "captions.csv"), None),
    "clip_captions": ("clip_captions", DIGITS, None),
    "clip_captions bag": ("clip_captions", (*DIGITS, "--text", "bag"), None),
    "cpc_sequences": ("cpc_sequences", ("--batch", 16, "--epochs", 1), None),
    "cpc_sequences rows": ("cpc_sequences", ("--data", "digit-rows", "--batch", 16, "--epochs", 1, "--context", "none"), None),
}


@pytest.fixture
def trained_by(monkeypatch, tmp_path):
    """trained_by(script, options) trains without evaluation and returns (folder, the script's trained models)."""
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 48, 24))
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes, 48, 24))
    monkeypatch.setattr(sequences, "generate_rotations", functools.partial(sequences.generate_rotations, n_train=48, n_test=24))
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k in range(24):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(f"photos/{k}.png")
    captions = [f"{k}.png,a {'red' if k % 2 else 'blue'} {'seven' if k % 3 else 'three'}\n" for k in range(24)]
    (tmp_path / "captions.csv").write_text("".join(["image,caption\n", *captions]))
    steps = Run.steps
    models = {}

    def only_training(run, total, rng, **options):
        models.update(options)
        yield from steps(run, total, rng, **options)
        raise KeyboardInterrupt
    monkeypatch.setattr(Run, "steps", only_training)

    def run(script, options):
        assert run_example(script, *options, "--out", tmp_path / "out") == 130
        return tmp_path / "out", models
    return run


def test_every_script_that_trains_a_model_is_listed():
    trains = {path.stem for path in EXAMPLES.glob("*.py") if re.search(r"in run\.steps\((?!.*\bcritic=)", path.read_text())}
    assert trains == {script for script, _, _ in SCRIPTS.values()}


@pytest.mark.parametrize("script, options, which", SCRIPTS.values(), ids=SCRIPTS)
def test_the_model_of_a_script_is_loaded_on_either_backend(trained_by, script, options, which, xp, rng):
    folder, models = trained_by(script, options)
    model = models["model" if which is None else f"model {which}"].eval()
    trained = minicl.load(folder, xp, model=which)
    assert trained.name == script and trained.config["seed"] == 0 and trained.step == trained.total > 0
    loaded, kept = trained.model.state_dict(), model.state_dict()
    assert loaded.keys() == kept.keys() and all(np.array_equal(loaded[name], kept[name]) for name in kept)

    if script == "cpc_sequences":
        items = rng.random((5, 12, models["data"].train.shape[2]), dtype="float32")
        expected = model(np.ascontiguousarray(items.transpose(1, 0, 2)))[1].data[-1]
    else:
        items = rng.integers(0, 256, (5, *trained.image_shape), dtype=np.uint8)
        expected = encode(model.image if script.startswith("clip_") else model, items, np)
        expected = expected[0] if isinstance(expected, tuple) else expected
    h = trained.encode(items, batch=2)
    assert array_module(h) is xp and h.ndim == 2
    np.testing.assert_allclose(to_host(h), expected, rtol=1e-5, atol=1e-5)
    assert not any(module.training for module in trained.encoder.modules())
    if script.startswith("clip_"):
        captions = ["a red seven", "seven"]
        expected = encode(model.text, models["tokenizer"](captions), np, prepare=to_device)
        np.testing.assert_allclose(to_host(trained.encode_text(captions)), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(to_host(trained.encode_text("seven")), expected[1:], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- images

class Data:
    """A folder with the checkpoint of an untrained model."""

    def __init__(self, folder, model, **meta):
        folder.mkdir(exist_ok=True)
        self.folder, self.model = folder, model
        save_checkpoint(folder / "checkpoint.npz", {"model": model}, {"models": {"model": spec_of(model)}, **meta})


@pytest.fixture
def grey(tmp_path, rng):
    encoder = nn.ConvNet((28, 28, 1), (4, 8), strides=(2, 1), rng=rng)
    return Data(tmp_path / "run", SimCLR(encoder, nn.projection_head("mlp", encoder.features, dim=4, rng=rng)))


def test_bytes_floats_and_files_of_the_same_pictures_have_the_same_features(grey, tmp_path, xp):
    images = generate_digits(6, 2).train_images
    trained = minicl.load(grey.folder, xp)
    h = to_host(trained.encode(images))
    files = [tmp_path / f"digit {k} ü.png" for k in range(6)]
    for file, image in zip(files, images):
        Image.fromarray(image[:, :, 0]).save(file)
    assert np.array_equal(open_image(files[0], 28, channels=1), images[0])
    floats = images.astype("float32") * np.float32(1 / 255)
    for items in (images[..., 0], floats, xp.asarray(floats), floats[..., 0].astype("float64"), files, [str(f) for f in files]):
        np.testing.assert_allclose(to_host(trained.encode(items, batch=4)), h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_host(trained.encode(files[2])), h[2:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("items, message", [
    (lambda: np.zeros((2, 32, 32, 3), "uint8"), r"expected images \(N, 28, 28, 1\), got \(2, 32, 32, 3\); resize them"),
    (lambda: np.zeros((28, 28, 1), "uint8"), r"one image is images\[None\]"),
    (lambda: np.zeros((28, 28), "uint8"), "expected images"),
    (lambda: np.full((2, 28, 28, 1), 255.0), r"in \[0, 1\].* got 255 to 255; give uint8, or divide by 255"),
    (lambda: np.full((2, 28, 28, 1), np.nan), r"in \[0, 1\].* got nan"),
    (lambda: -np.ones((2, 28, 28, 1), "float32"), r"in \[0, 1\]"),
    (lambda: np.zeros((2, 28, 28, 1), "int64"), "expected uint8 or floating-point arrays, got int64"),
    (lambda: np.zeros((2, 28, 28, 1), bool), "got bool"),
    (lambda: np.zeros((0, 28, 28, 1), "uint8"), "at least one item, got none"),
    (lambda: [], "at least one item, got none"),
    (lambda: [np.zeros((28, 28, 1), "uint8")], "stack a list of images by np.stack"),
    (lambda: "nowhere/no such.png", r"nowhere/no such.png: No such file"),
    (lambda: [__file__], "test_trained.py: not a picture"),
])
def test_items_that_do_not_fit_the_encoder_are_refused_in_one_line(grey, items, message):
    with pytest.raises(ValueError, match=message) as caught:
        minicl.load(grey.folder).encode(items())
    assert "\n" not in str(caught.value)


def test_text_needs_a_model_that_reads_it(grey, trained_by):
    with pytest.raises(DataError, match="has a SimCLR, which does not read text; give the folder of a CLIP"):
        minicl.load(grey.folder).encode_text("seven")


def test_picture_files_are_refused_by_a_model_of_sequences(tmp_path, rng):
    model = CPC(WindowEncoder(3, 4, rng=rng), nn.GRU(32, 8, rng=rng), 2, rng=rng)
    with pytest.raises(DataError, match="files are opened as square pictures, but this model reads sequences"):
        minicl.load(Data(tmp_path / "run", model).folder).encode("a.png")


# ---------------------------------------------------------------- folders that cannot be loaded

def damage(folder, change):
    """Change the metadata and the arrays of the folder's checkpoint, and save it again."""
    arrays, meta = load_checkpoint(folder / "checkpoint.npz")
    meta.pop("format", None)
    state = {name.partition(".")[2]: array for name, array in arrays.items()}
    change(meta, state)
    part = type("Part", (), {"state_dict": lambda self: state})()
    save_checkpoint(folder / "checkpoint.npz", {"model": part}, meta)


def arguments(meta):
    return meta["models"]["model"]["arguments"]["encoder"]["arguments"]


FOLDERS = {
    "nothing there": (shutil.rmtree, "does not exist; give a folder"),
    "no checkpoint": (lambda f: (f / "checkpoint.npz").unlink(), "is not the folder of a run; give a folder with the checkpoint"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "is a file; give a folder"),
    "the checkpoint is a folder": (lambda f: ((f / "checkpoint.npz").unlink(), (f / "checkpoint.npz").mkdir()), "is not the folder"),
    "empty": (lambda f: (f / "checkpoint.npz").write_bytes(b""), "is not a readable minicl checkpoint"),
    "cut": (lambda f: (f / "checkpoint.npz").write_bytes((f / "checkpoint.npz").read_bytes()[:-300]), "is not a readable"),
    "one byte": (lambda f: flip(f / "checkpoint.npz"), "is not a readable minicl checkpoint"),
    "no models": (lambda f: damage(f, lambda m, s: m.pop("models")), "does not describe how to build its model"),
    "models is a list": (lambda f: damage(f, lambda m, s: m.update(models=[1])), "does not describe how to build its model"),
    "unknown": (lambda f: damage(f, lambda m, s: m.update(models={"model": {"unknown": "f: a lambda"}})), "built again: f: a lambda"),
    "no class": (lambda f: damage(f, lambda m, s: m["models"]["model"].pop("class")), "cannot be built"),
    "other class": (lambda f: damage(f, lambda m, s: m["models"]["model"].update({"class": "minicl.nn.Linear"})), "cannot be built"),
    "not a class": (lambda f: damage(f, lambda m, s: m["models"]["model"].update({"class": "os.system"})),
                    "the class os.system is not known here; import the file that defines it first"),
    "no module": (lambda f: damage(f, lambda m, s: m["models"]["model"].update({"class": "minicl.nowhere.X"})), "not known here"),
    "argument missing": (lambda f: damage(f, lambda m, s: arguments(m).pop("image_shape")), "cannot be built"),
    "argument unknown": (lambda f: damage(f, lambda m, s: arguments(m).update(colour=1)), "cannot be built|unexpected"),
    "argument refused": (lambda f: damage(f, lambda m, s: arguments(m).update(grid=0)), "grid must be an integer >= 1"),
    "other sizes": (lambda f: damage(f, lambda m, s: arguments(m).update(channels=[4, 9])), "shape"),
    "a weight missing": (lambda f: damage(f, lambda m, s: s.pop("head.steps.0.weight")), "missing"),
    "a weight too many": (lambda f: damage(f, lambda m, s: s.update(more=np.ones(2))), "more: unknown"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("change, message", FOLDERS.values(), ids=FOLDERS)
def test_a_wrong_or_damaged_folder_is_one_line(grey, change, message):
    change(grey.folder)
    before = sorted(grey.folder.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=message) as caught:
        minicl.load(grey.folder)
    assert "\n" not in str(caught.value) and sorted(grey.folder.parent.rglob("*")) == before


def test_one_of_several_models_must_be_named(tmp_path, rng):
    models = {f"model {name}": nn.MLP((4, 4, 1), (3,), rng=rng) for name in ("A", "B")}
    save_checkpoint(tmp_path / "checkpoint.npz", models, {"models": {name: spec_of(model) for name, model in models.items()}})
    for which in (None, "C", ""):
        with pytest.raises(CheckpointError, match=f"has the models 'A', 'B'; choose one with model= .*got {which!r}"):
            minicl.load(tmp_path, model=which)
    assert np.array_equal(minicl.load(tmp_path, model="B").model.layers[0].weight.data, models["model B"].layers[0].weight.data)


def test_a_loaded_model_can_be_trained(grey, rng):
    encoder = minicl.load(grey.folder).encoder.train()
    encoder(rng.random((4, 28, 28, 1), dtype="float32")).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


# ---------------------------------------------------------------- the spec of a Module

def every_method(rng):
    def pair():
        encoder = nn.ConvNet((8, 8, 3), [4, 8], grid=1, strides=(1, 2), rng=rng)
        return encoder, nn.projection_head("mlp", encoder.features, hidden=5, dim=4, rng=rng)

    yield SimCLR(*pair())
    yield SimCLR(nn.MLP((2, 2, 1), np.array([3, 4]).tolist(), rng=rng), nn.Sequential())
    yield MoCo(*pair(), dim=4, queue=np.int64(8), m=np.float32(0.5), splits=2)
    yield BYOL(*pair(), nn.projection_head("linear", 4, dim=4, rng=rng), m=0.9)
    yield SimSiam(*pair(), nn.Linear(4, 4, rng=rng))
    yield CLIP(nn.ResNet9((8, 8, 3), 2, rng=rng), nn.Transformer(9, 5, 8, heads=2, rng=rng), 4, temperature=0.1, rng=rng)
    yield CLIP(nn.ResNet18((8, 8, 3), width=2, rng=rng), nn.BagOfTokens(9, rng=rng), dim=3, rng=rng)
    yield CPC(WindowEncoder(3, 2, rng=rng, features=4), nn.GRU(4, 5, rng=rng), ahead=2, rng=rng)
    yield CPC(WindowEncoder(3, 2, rng=rng), None, 1, rng=rng)
    yield nn.Sequential(nn.Linear(3, 4, rng=rng), ops.gelu, nn.Dropout(0.5, rng=rng), nn.LayerNorm(4), nn.Embedding(2, 3, rng=rng))
    yield nn.WordTokenizer(["a", "b"], 3, unknown=True)


def test_every_method_is_built_again_from_json_and_loads_its_weights(rng):
    for module in every_method(rng):
        twin = build(json.loads(json.dumps(spec_of(module))))
        twin.load_state_dict(module.state_dict())
        assert repr(twin) == repr(module) and type(twin) is type(module)


class Mine(nn.Module):
    def __init__(self, size, table=None, *more, settings=None, rng):
        self.layer = nn.Linear(size, size, rng=rng)
        self.size = size
        self.settings = settings or {}
        self.more = more

    def forward(self, x):
        return self.layer(x)


def test_a_user_defined_module_is_found_where_it_was_imported(rng):
    made = spec_of(Mine(3, None, 1, "b", settings={"class": 2, "dict": [None, True]}, rng=rng))
    assert made["class"] == "test_trained.Mine"
    twin = build(made)
    assert twin.more == (1, "b") and twin.settings == {"class": 2, "dict": [None, True]}


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@given(st.recursive(PLAIN, lambda inside: st.one_of(st.lists(inside), st.lists(inside).map(tuple), st.dictionaries(st.text(), inside)),
                    max_leaves=5))
def test_arguments_keep_their_types(argument):
    """A forward may ask `self.sizes == [1, 2]`, or `is True`."""
    assert repr(build(json.loads(json.dumps(spec.encode(argument))))) == repr(argument)


class Pool(enum.IntEnum):
    MEAN, MAX = 0, 1


class Act(str, enum.Enum):
    RELU, TANH = "relu", "tanh"


SUBCLASSES = {
    "IntEnum": Pool.MAX, "text Enum": Act.RELU, "Flag": re.IGNORECASE, "in a list": [Act.TANH], "in a tuple": (1, (Pool.MEAN,)),
    "in a dict": {"a": Pool.MAX},
    "key": {Act.RELU: 1}, "str": type("Text", (str,), {})("a"), "int": type("Whole", (int,), {})(3), "float": type("Real", (float,), {})(0.5),
    "namedtuple": collections.namedtuple("Size", "h w")(2, 3), "list": type("Sizes", (list,), {})([1]), "Counter": collections.Counter("ab"),
    "defaultdict": collections.defaultdict(int),
}


@pytest.mark.parametrize("argument", SUBCLASSES.values(), ids=SUBCLASSES)
def test_an_argument_of_a_subclass_is_refused(argument, rng):
    """minicl.load would build the model with a plain text, for which `if self.act is Act.RELU` is False."""
    with pytest.raises(ValueError, match=r"is not a number, a text, a list, a tuple.* or a Module(; pass its \.value)?$"):
        spec_of(Mine(2, argument, rng=rng))
    with pytest.raises(ValueError, match="fresh: .* is not a number"):
        nn.fresh(Mine(2, argument, rng=rng), rng=rng)
    assert build(spec_of(Mine(2, getattr(argument, "value", 0), rng=rng))).size == 2


@pytest.mark.parametrize("make, reason", [
    (lambda rng: nn.Sequential(nn.Linear(2, 2, rng=rng), lambda x: x), "the function '<lambda>' is not a number"),
    (lambda rng: nn.Sequential(np.tanh), "a ufunc is not a number"),
    (lambda rng: nn.Sequential(nn.Sequential(abs)), "a builtin_function_or_method is not"),
    (lambda rng: Mine(2, np.zeros(3), rng=rng), "Mine: a ndarray is not a number"),
    (lambda rng: Mine(2, float("nan"), rng=rng), "a float is not"),
    (lambda rng: type("Inner", (Mine,), {"__qualname__": "f.<locals>.Inner"})(2, rng=rng), "defined inside a function"),
    (lambda rng: type("Gone", (Mine,), {})(2, rng=rng), "the class test_trained.Gone is not known here"),
    (lambda rng: changed(nn.Sequential(ops.relu), lambda m: m.__setitem__(0, ops.tanh)), "was changed after construction"),
    (lambda rng: changed(nn.Conv2d(1, 1, 3, rng=rng), lambda m: setattr(m, "stride", 2)), "was changed after construction"),
    (lambda rng: changed(nn.Linear(2, 2, rng=rng), lambda m: setattr(m, "forward", lambda x: x)), "Linear: it was changed after"),
    (lambda rng: changed(SimCLR(nn.Linear(2, 2, rng=rng), nn.Linear(2, 2, rng=rng)), lambda m: setattr(m.head, "forward", abs)),
     "head was changed after"),
    (lambda rng: changed(nn.MLP((2, 2, 1), (3, 4), rng=rng), lambda m: m.layers.pop()), "was changed after construction"),
    (lambda rng: changed(SimCLR(*[nn.Linear(2, 2, rng=rng) for _ in "12"]), lambda m: setattr(m.head, "weight", m.encoder.weight)),
     "its parts share parameters, or attributes refer to parts, as its constructor"),
    (lambda rng: SimCLR(*[nn.Linear(2, 2, rng=rng)] * 2), "its parts share parameters, or attributes refer to parts, as its constructor"),
])
def test_a_module_that_json_cannot_describe_is_refused_with_a_reason(rng, make, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        spec_of(make(rng))


class Holding(nn.Module):
    def __init__(self, held=None):
        self.held = np.zeros(3) if held is None else held


class TwoNets(nn.Module):
    """Refers to its parts by several names, and has a Buffer of another dtype."""

    def __init__(self, *, rng):
        self.nets = [nn.Linear(2, 2, rng=rng), nn.Linear(2, 2, rng=rng)]
        self.active, self.by_name, self.use = self.nets[0], {"a": self.nets[0]}, self.nets[0].forward
        self.threshold = nn.Buffer(np.array(0.3))

    def forward(self, x):
        return self.active(x)


@pytest.mark.parametrize("change", [
    lambda m: setattr(m, "active", m.nets[1]), lambda m: setattr(m, "by_name", {"a": m.nets[1]}), lambda m: setattr(m, "use", m.nets[1].forward)])
def test_an_attribute_that_refers_to_another_part_after_the_constructor_is_detected(rng, change):
    spec_of(TwoNets(rng=rng))
    with pytest.raises(ValueError, match="TwoNets: its parts share parameters, or attributes refer to parts, as its constructor's arguments do not say"):
        spec_of(changed(TwoNets(rng=rng), change))


@pytest.mark.parametrize("dtype", ["float32", "float64", "both"])
def test_a_model_with_a_buffer_of_another_dtype_is_loaded(tmp_path, rng, dtype):
    run, model = start(tmp_path / "run"), TwoNets(rng=rng)
    if dtype != "both":
        model.astype(dtype)
    kinds = {name: array.dtype for name, array in model.state_dict().items()}
    for _ in run.steps(1, rng, save_every=1, model=model):
        pass
    run.close()
    state = minicl.load(tmp_path / "run").model.state_dict()
    assert {name: array.dtype for name, array in state.items()} == kinds
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(state[name], array)


HELD = {
    "array": np.ones(3), "one entry": np.array([0.0, 0, 1]), "dtype": np.zeros(3, "float32"), "shape": np.zeros((3, 1)), "minus": -np.zeros(3),
    "Tensor": Tensor(np.ones(3)), "list": [np.ones(3)], "dict": {"a": np.ones(3)}, "nested": [{"a": (np.ones(3),)}], "NaN": float("nan"),
    "set": {1, 2}, "complex": 1j, "function": np.tanh, "lambda": lambda x: x, "partial": functools.partial(max, 1), "bytes": b"a",
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_any_change_of_an_attribute_after_the_constructor_is_detected(held):
    spec_of(Holding())
    with pytest.raises(ValueError, match="was changed after construction"):
        spec_of(changed(Holding(), lambda m: setattr(m, "held", held)))


@pytest.mark.parametrize("edit", [
    {"x * 1": "x * 2"}, {"scale=1.0": "scale=2.0"}, {"# a comment": "# another"}, {"pass": "extra = 1"}, {"y = 3": "y = 4"}, {},
    {"x + 1": "x + 2"}, {"x + 3": "x + 4"},
])
def test_a_class_edited_since_gives_a_warning_and_its_defaults_stay(tmp_path, monkeypatch, edit, rng):
    text = """
        from minicl import nn
        y = 3
        class Base(nn.Module):
            pass
        class Mixed:
            def more(self, x):
                return x + 1
        class Net(Mixed, Base):
            def __init__(self, *, scale=1.0, rng):
                self.layer, self.scale = nn.Linear(2, 2, rng=rng), scale
            def forward(self, x):
                return self.layer(x * 1)                     # a comment
        def still_more(self, x):
            return x + 3
        Net.still_more = still_more
    """
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_own_nets.py"

    def imported():
        sys.modules.pop("my_own_nets", None), linecache.clearcache(), importlib.invalidate_caches()
        return importlib.import_module("my_own_nets").Net

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file.write_text(textwrap.dedent(text))
    run = Data(tmp_path / "run", imported()(rng=rng))
    for before, after in edit.items():
        assert before in text
        text = text.replace(before, after)
    file.write_text(textwrap.dedent(text))
    imported()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model, _ = (minicl.load(run.folder).model for _ in range(2))         # each time, though it is the same line
    edited = [] if "y = 3" in edit else ["Base" if "pass" in edit else "Mixed" if "x + 1" in edit else "Net"] * len(edit)
    assert [str(w.message) for w in caught] == 2 * [f"load: my_own_nets.{cls} changed since {run.folder / 'checkpoint.npz'} was saved; "
                                                    "its weights are used by the new code" for cls in edited]
    assert all(w.filename == __file__ for w in caught)
    assert model.scale == 1.0


CELL = """
import linecache
import sys
sys.path.insert(0, {place!r})
import numpy as np
import minicl
from minicl import nn, ops
from minicl.optim import SGD
from small_runs import start
X = np.ones((4, 3), dtype="float32")
NET = '''
class Net(nn.Module):
    def __init__(self, *, rng):
        self.layer = nn.Linear(3, 2, rng=rng)
    def forward(self, x):
        return self.act(self.layer(x))
    @property
    def act(self):
        return ops.relu
'''
def cell(text, number):
    name = f"<cell {{number}}>"
    if {in_notebook}:
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)           # as IPython does
    exec(compile(text, name, "exec"), globals())
def train(*more, until):
    run, rng = start({out!r}, *more), np.random.default_rng(0)
    model = Net(rng=rng)
    optimizer = SGD(model, 0.1)
    for step in run.steps(4, rng, save_every=1, model=model, optimizer=optimizer):
        optimizer.zero_grad(), model(X).sum().backward(), optimizer.step()
        if step == until:
            run.stop()
    run.finish({{}})
cell(NET, 1)
train(until=0)
cell(NET, 2)
print("--- the same again")
minicl.load({out!r}), train("--resume", until=1)
cell(NET.replace("relu", {then!r}), 3)
print("--- edited")
minicl.load({out!r}), train("--resume", until=2)
"""


@pytest.mark.parametrize("in_notebook", [True, False])
@pytest.mark.parametrize("then", ["relu", "tanh"])
def test_a_class_that_is_in_no_file_is_compared_by_its_methods(tmp_path, in_notebook, then):
    """As in a notebook, whose cells have a text, or in a program that is piped to Python."""
    code = CELL.format(place=str(Path(__file__).parent), in_notebook=in_notebook, out=str(tmp_path / "run"), then=then)
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    _, same, edited = done.stdout.split("---")
    assert "warning" not in same
    assert ("warning: __main__.Net" in edited) == (then != "relu")
    assert ("load: __main__.Net" in done.stderr) == (then != "relu")


def test_a_file_edited_after_its_import_is_told_from_what_ran(tmp_path, monkeypatch, rng):
    """The text in the file is then that of the next process, and the bytecode is not."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "my_edited_nets.py"
    text = ("from minicl import nn\nclass Net(nn.Module):\n    def __init__(self, *, rng):\n        self.layer = nn.Linear(2, 2, rng=rng)"
            "\n    def forward(self, x):\n        return self.layer(x * 1) if x.ndim in {2, 3} else x\n")
    file.write_text(text)
    importlib.invalidate_caches()
    old = importlib.import_module("my_edited_nets").Net(rng=rng)
    file.write_text(text.replace("x * 1", "x * 2"))
    run = Data(tmp_path / "run", old)
    for edited, told in ((text.replace("x * 1", "x * 2"), 1), (text, 1)):    # the text, or the bytecode
        file.write_text(edited)
        sys.modules.pop("my_edited_nets"), linecache.clearcache(), importlib.invalidate_caches()
        importlib.import_module("my_edited_nets")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            minicl.load(run.folder)
        assert [str(w.message).partition(" changed")[0] for w in caught] == ["load: my_edited_nets.Net"] * told


READERS = {
    "method": "def act(self, x): return x * SCALE",
    "static method": "@staticmethod\n    def act(x): return x * SCALE",
    "class method": "@classmethod\n    def act(cls, x): return x * SCALE",
    "property": "act = property(lambda self: lambda x: x * SCALE)",
    "cached property": "act = functools.cached_property(lambda self: functools.partial(ops.mul, SCALE))",
    "lambda within": "def act(self, x): return (lambda y: y * SCALE)(x)",
    "function within": "def act(self, x):\n        def inner(y): return y * SCALE\n        return inner(x)",
    "generator within": "def act(self, x): return sum(x * SCALE for _ in range(1))",
    "comprehension within": "def act(self, x): return [x * SCALE for _ in range(1)][0]",
    "default": "def act(self, x, s=SCALE): return x * s",
    "keyword default": "def act(self, x, *, s=SCALE): return x * s",
    "default, a tuple": "def act(self, x, s=(1, SCALE)): return x * s[1]", "keyword default, a list": "def act(self, x, *, s=[SCALE]): return x * s[0]",
    "partial method": "def times(self, x, s): return x * s\n    act = functools.partialmethod(times, s=SCALE)",
    "decorated": "@decorated\n    def act(self, x): return x * SCALE",
    "cached": "@functools.lru_cache\n    def times(self): return SCALE\n    def act(self, x): return x * self.times()",
    "decorated by an object": "act = Decorator(lambda self, x: x * SCALE)",
    "list": "def act(self, x): return x * LIST[1]", "tuple": "def act(self, x): return x * TUPLE[1][0]",
    "array": "def act(self, x): return x * ARRAY.item()", "class attribute, a list in a list": "scale = [[SCALE]]\n    def act(self, x): return x * self.scale[0][0]",
    "class attribute, a tuple": "scale = (SCALE,)\n    def act(self, x): return x * self.scale[0]",
    "class attribute": "scale = SCALE\n    def act(self, x): return x * self.scale",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", ["2.0", "np.float32(2.0)"])
def test_a_number_that_is_read_in_any_way_is_compared(tmp_path, monkeypatch, rng, reader, number):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "my_readers.py"
    text = f"""import functools
import numpy as np
from minicl import nn, ops
SCALE = {number}
LIST, TUPLE, ARRAY = [1, SCALE], (1, (SCALE, "a")), np.array([SCALE])
class Decorator:
    def __init__(self, function): self.function = function
    def __get__(self, owner, kind): return functools.partial(self.function, owner)
def decorated(function):
    @functools.wraps(function)
    def call(*args): return function(*args)
    return call
class Net(nn.Module):
    def __init__(self, *, rng): self.layer = nn.Linear(2, 2, rng=rng)
    def forward(self, x): return self.act(self.layer(x))
    {READERS[reader]}
"""

    def imported(text):
        file.write_text(text)
        sys.modules.pop("my_readers", None), linecache.clearcache(), importlib.invalidate_caches()
        return importlib.import_module("my_readers").Net

    run = Data(tmp_path / "run", imported(text)(rng=rng))
    x = np.ones((1, 2), dtype="float32")
    before = minicl.load(run.folder).model(x).data
    imported(text.replace("2.0", "3.0"))
    with pytest.warns(UserWarning, match=r"load: a setting changed \(.* was .*, now .*\) since" if reader == "array" else
                      r"load: a setting changed \(.* was .*2.0.*, now .*3.0.*\) since"):
        after = minicl.load(run.folder).model(x).data
    np.testing.assert_allclose(after, 1.5 * before, rtol=1e-6)


NETS = """
    import os
    from minicl import nn
    SLOPE, WIDTH, UNUSED = 0.1, 2, 3
    class Base(nn.Module):
        rate = 0.5
        def scaled(self, x):
            return x * self.rate
    class Net(Base):
        kind = "a"
        def __init__(self, *, rng):
            self.layer, self.slope = nn.Linear(WIDTH, 2, rng=rng), SLOPE
            self.mode = os.environ.get("MINICL_TEST_MODE", "x")
        def forward(self, x):
            return self.scaled(self.layer(x)) * SLOPE
"""


@pytest.mark.parametrize("place, value, told", [
    ("SLOPE", 0.2, ["model.slope was 0.2, now 0.1", "own_nets_2.SLOPE was 0.2, now 0.1"]), ("UNUSED", 9, []), ("SLOPE", 0.1, []),
    ("Base.rate", 0.25, ["own_nets_2.Base.rate was 0.25, now 0.5"]), ("Net.kind", "b", ["own_nets_2.Net.kind was 'b', now 'a'"]),
    ("environ", "y", ["model.mode was 'y', now 'x'"]), ("Net.kind", None, ["own_nets_2.Net.kind was None, now 'a'"])])
def test_values_that_the_script_had_set_give_a_warning(tmp_path, monkeypatch, rng, place, value, told):
    """The model is built with today's values: of a global, a class attribute, or the environment."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_nets_2.py").write_text(textwrap.dedent(NETS))
    sys.modules.pop("own_nets_2", None)
    module = importlib.import_module("own_nets_2")
    with monkeypatch.context() as script:
        if place == "environ":
            script.setenv("MINICL_TEST_MODE", value)
        else:
            owner, _, name = place.rpartition(".")
            script.setattr(getattr(module, owner, module), name, value)
        net = module.Net(rng=rng)
        run = Data(tmp_path / "run", net, settings=settings({"model": net}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        minicl.load(run.folder)
    expected = f"load: a setting changed ({'; '.join(told)}) since {run.folder / 'checkpoint.npz'} was saved; its weights are used by the new code"
    assert [str(warning.message) for warning in caught] == [expected] * bool(told)


@pytest.mark.parametrize("settings, told", [
    ({"model.head.steps": "[{'class': 'minicl.nn.Linear'}]", "model.gone": "1", "model BYOL.head.eps": "2"}, None), (None, None), ([1], None),
    ({f"model.encoder.image_shape{k}": "1" for k in range(9)}, None), ({"model.encoder.blocks.0.steps.1.eps": "0.1"}, "eps was 0.1, now 1e-05)"),
    ({f"model.encoder.blocks.{k}.steps.1.{key}": "x" for k in (0, 1) for key in ("eps", "momentum")}, "eps was x, now 1e-05; ...)")])
def test_only_settings_that_the_model_has_are_compared(grey, settings, told):
    """At most three are shown. Parts have settings of their own."""
    damage(grey.folder, lambda meta, state: meta.update(settings=settings))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        minicl.load(grey.folder)
    found = [str(warning.message) for warning in caught if "a setting changed" in str(warning.message)]
    assert len(found) == bool(told) and all(told in message for message in found)


def test_a_minicl_changed_since_gives_a_warning(grey, out):
    train(start(out))
    minicl.load(out)
    damage(grey.folder, lambda meta, state: meta.update(code={"minicl": "0" * 32}))
    with pytest.warns(UserWarning, match="load: minicl changed since .* was saved"):
        minicl.load(grey.folder)


def changed(module, change):
    change(module)
    return module


def test_a_run_of_a_model_that_cannot_be_described_trains_with_a_message(out, capsys, monkeypatch):
    monkeypatch.setattr("small_runs.Sequential", lambda *steps: nn.Sequential(*steps, lambda x: x))
    train(start(out))
    assert "model: its weights are saved, but minicl.load will not be able to build it: Sequential: the function" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="model cannot be built again: Sequential: the function '<lambda>'"):
        minicl.load(out)
