"""examples/export.py: safetensors and ONNX files give the encoder's features; unsupported models give one line."""

import json
import re
import warnings

import export
import numpy as np
import pytest
from example_runs import run_example

import minicl
from minicl import nn, ops
from minicl.checkpoint import CheckpointError, digest, save_checkpoint
from minicl.data import DataError
from minicl.evaluate import encode, to_float
from minicl.methods import CLIP, CPC, MoCo, SimCLR, WindowEncoder
from minicl.nn.spec import spec_of


def seen(encoder, rng):
    """The encoder in evaluation mode, with running averages and batch norm parameters other than 0 and 1."""
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm):
            part.weight.data[...] = rng.uniform(0.5, 1.5, len(part.weight))
            part.bias.data[...] = rng.normal(0, 0.3, len(part.bias))
    for _ in range(3):
        encoder(rng.random((8, *shape_of(encoder)), dtype="float32"))
    return encoder.eval()


def shape_of(encoder):
    return next(module.image_shape for module in encoder.modules() if "image_shape" in vars(module))


class Own(nn.Encoder):
    """A user's encoder, made of ops that the other encoders do not use."""

    def __init__(self, image_shape, *, rng):
        self.image_shape = image_shape
        self.features = 6
        self.conv = nn.Conv2d(image_shape[2], 6, 3, stride=1, padding=0, bias=True, rng=rng)

    def forward(self, images):
        x = ops.tanh(self.conv(ops.to_pixel_major(nn.as_images(self, images))))
        x = ops.avg_pool2d(x, size=3, stride=2)
        return (x.max(axis=(0, 1)) - 0.5) * ops.sigmoid(x.mean(axis=0).mean(axis=0)) / 2.0


ENCODERS = {
    "MLP": lambda rng: nn.MLP((6, 5, 1), (8, 7), rng=rng),
    "ConvNet": lambda rng: nn.ConvNet((12, 8, 3), (4, 8), strides=(2, 1), rng=rng),
    "ConvNet grid 1": lambda rng: nn.ConvNet((9, 7, 1), (4, 8), grid=1, rng=rng),
    "ResNet9": lambda rng: nn.ResNet9((16, 16, 3), 4, rng=rng),
    "ResNet18": lambda rng: nn.ResNet18((16, 16, 1), 4, rng=rng),
    "CLIP": lambda rng: CLIP(nn.ConvNet((8, 8, 3), (4, 8), rng=rng), nn.BagOfTokens(4, rng=rng), 5, rng=rng).image,
    "own": lambda rng: Own((9, 9, 3), rng=rng),
}
each_encoder = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)


# ---------------------------------------------------------------- ONNX

@each_encoder
def test_onnx_gives_the_encoders_features_for_any_batch(make, rng, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'minicl[test]' onnx onnxruntime")
    pytest.importorskip("onnx")
    encoder = seen(make(rng), rng)
    export.save_onnx(tmp_path / "e.onnx", encoder, {"name": "a test"})
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"minicl": '{"name": "a test"}'}
    assert [x.name for x in session.get_inputs()] == ["images"] and [y.name for y in session.get_outputs()] == ["features"]
    for n in (1, 3, 10):
        images = rng.integers(0, 256, (n, *shape_of(encoder)), dtype=np.uint8)
        features, = session.run(None, {"images": to_float(images, np)})
        expected = encode(encoder, images, np)
        assert features.shape == expected.shape
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


class OffTheTape(Own):
    def forward(self, images):
        return super().forward(images) * float(getattr(images, "data", images)[0, 0, 0, 0])


class Sized(Own):
    def forward(self, images):
        return super().forward(images) * np.arange(len(images), dtype="float32")[:, None]


class Sliced(Own):
    def forward(self, images):
        return super().forward(images)[:, 1:]


class Of(nn.Encoder):
    """Images (N, 2, 2, 1) -> FUNCTIONS[name](a linear layer's values (N, 4), its weight, the images)."""

    def __init__(self, name, *, rng):
        self.image_shape = (2, 2, 1)
        self.name = name
        self.features = 4
        self.layer = nn.Linear(4, 4, rng=rng)

    def forward(self, images):
        x = images.reshape(-1, 4)
        return FUNCTIONS[self.name](self.layer(x), self.layer.weight, images)


FUNCTIONS = {
    "1 - y": lambda y, w, x: 1 - y, "2 / exp(y)": lambda y, w, x: 2 / ops.exp(y), "1 + y": lambda y, w, x: 1 + y,
    "y / 2 - 1": lambda y, w, x: 0.5 * y - 1.0, "sum after a number": lambda y, w, x: 1.0 - y.max(axis=1, keepdims=True),
    "zeros": lambda y, w, x: 0.0 * y,
    "the images": lambda y, w, x: x, "a constant": lambda y, w, x: w * 1.0, "an array": lambda y, w, x: np.zeros((3, 4), "float32"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_may_occur_anywhere_and_other_functions_than_of_the_images_give_one_line(name, rng, tmp_path):
    onnx = pytest.importorskip("onnx")
    encoder = Of(name, rng=rng).eval()
    if name in ("the images", "a constant", "an array"):
        with pytest.raises(DataError, match="ONNX: .*(depend on|themselves)"):
            export.save_onnx(tmp_path / "e.onnx", encoder, {})
        assert not list(tmp_path.iterdir())
        return
    export.save_onnx(tmp_path / "e.onnx", encoder, {})
    images = rng.integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
    from onnx.reference import ReferenceEvaluator
    got, = ReferenceEvaluator(onnx.load(tmp_path / "e.onnx")).run(None, {"images": to_float(images, np)})
    np.testing.assert_allclose(got, encode(encoder, images, np), rtol=1e-5, atol=1e-6)


CALLS = {  # functions of x (4, 4, B, 6) that a user's encoder may call
    **{f"x**{p}": lambda x, p=p: (x * x + 0.5)**p for p in (0, 1, 2, -1, -0.5, 0.5, 3)}, "pow of an int": lambda x: ops.pow(x, exponent=2),
    **{f"{name} over {axis}": lambda x, name=name, axis=axis: x * 0.5 + getattr(ops, name)(x, axis=axis, keepdims=True)
       for name in ("mean", "max", "sum", "var") for axis in (None, 0, -1, [0, 1], (-1,), [-4, -3], np.int64(-1), (np.int32(0), 1), 2, ())},
    **{f"transposed {axes}": lambda x, axes=axes: x.transpose(*axes)
       for axes in ((1, 0, 2, 3), (-3, 0, -2, -1), (-3, -4, -2, -1), tuple(np.array([1, 0, -2, 3])))},
    "transposed by a list": lambda x: ops.transpose(x, axes=[1, 0, 2, -1]), "transposed by an array": lambda x: ops.transpose(x, axes=np.array([-3, 0, 2, 3])),
    "transposed twice": lambda x: x.T.transpose(3, 2, 1, 0), "reshaped": lambda x: x.reshape(16, -1, 6).reshape((4, 4, -1, 6)),
    "reshaped by a list": lambda x: ops.reshape(x, shape=[4, 4, -1, 6]), "the batch folded": lambda x: x.reshape(-1, 6).reshape(4, 4, -1, 6),
    **{f"{op} of {size}, {stride}": lambda x, op=op, size=size, stride=stride: getattr(ops, op)(x, size=size, stride=stride)
       for op in ("max_pool2d", "avg_pool2d") for size, stride in ((2, None), (2, 1), (3, 2), (4, np.int64(1)))},
    **{name: getattr(ops, name) for name in ("abs", "exp", "neg", "relu", "sigmoid", "tanh", "gelu", "leaky_relu")}, "log": lambda x: ops.log(x * x + 1),
    "sqrt": lambda x: ops.sqrt(x * x + 1), "sum of two": lambda x: x + x.T.T, "where": lambda x: ops.where(x.data > 0, x, 0.0),
    "clip": lambda x: ops.clip(x, low=0), "concat": lambda x: ops.concat(x, x, axis=0), "getitem": lambda x: x[1:], "minimum": lambda x: ops.minimum(0.1, x),
    "as many as the batch": lambda x: x * float(x.shape[2]),
}


class Calls(Own):
    """An encoder that applies one of CALLS between a convolution and a mean."""

    def __init__(self, call, *, rng):
        super().__init__((6, 6, 3), rng=rng)
        self.call = call

    def forward(self, images):
        x = self.call(self.conv(ops.to_pixel_major(nn.as_images(self, images))))
        return x.mean(axis=0).mean(axis=0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_graph_can_be_loaded_by_runtimes_or_gives_one_line(call, rng, tmp_path):
    onnx = pytest.importorskip("onnx")
    encoder = Calls(call, rng=rng).eval()
    try:
        export.save_onnx(tmp_path / "e.onnx", encoder, {})
    except DataError as error:
        assert str(error).startswith("ONNX: ") and "\n" not in str(error) and not list(tmp_path.iterdir())
        return
    model = onnx.load(tmp_path / "e.onnx")
    assert not any(n < 0 for node in model.graph.node for a in node.attribute if a.name in ("perm", "axes") for n in a.ints)
    try:
        from onnxruntime import InferenceSession as Session
    except ImportError:
        from onnx.reference import ReferenceEvaluator as Session
    session = Session(model.SerializeToString())
    for n in (1, 2, 4):
        images = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
        features, = session.run(None, {"images": to_float(images, np)})
        expected = encode(encoder, images, np)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))


def test_most_of_these_calls_have_a_translation(rng, tmp_path):
    pytest.importorskip("onnx")
    without = ("sum over", "var", "gelu", "leaky", "where", "clip", "concat", "getitem", "as many")
    for name in (name for name in CALLS if not any(op in name for op in without)):
        export.save_onnx(tmp_path / "e.onnx", Calls(CALLS[name], rng=rng).eval(), {})


def first(kind, name, ints):
    """A change of a graph that sets an attribute of its first node of a kind."""
    def change(graph):
        node = next(node for node in graph.node if node.op_type == kind)
        next(a for a in node.attribute if a.name == name).ints[:] = ints
    return change


def an_input(change):
    return lambda graph: change(next(node for node in graph.node if node.op_type == "Conv").input)


BROKEN = {  # changes after which no runtime loads the graph, or its output does not fit
    "an axis below 0": first("Transpose", "perm", [1, -2, 0, 3]), "an axis twice": first("Transpose", "perm", [0, 0, 1, 2]),
    "an axis too many": first("Transpose", "perm", [0, 1, 2, 4]), "three axes": first("Transpose", "perm", [0, 1, 2]),
    "negative pads": first("Conv", "pads", [-1] * 4), "stride 0": first("Conv", "strides", [0, 1]), "one stride": first("Conv", "strides", [1]),
    "an axis of none": first("ReduceMean", "axes", [7]), "no weight": an_input(lambda names: names.pop()),
    "an unknown weight": an_input(lambda names: names.__setitem__(1, "nothing")), "backwards": lambda graph: graph.node.reverse(),
    "an unknown op": lambda graph: setattr(graph.node[-1], "op_type", "Reluu"), "an unknown output": lambda graph: setattr(graph.output[0], "name", "x"),
    "another shape": lambda graph: setattr(graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7),
    "another dtype": lambda graph: setattr(graph.output[0].type.tensor_type, "elem_type", 11),
    "one name twice": lambda graph: graph.node[2].output.__setitem__(0, graph.node[1].output[0]),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_the_check_before_writing_refuses_what_a_runtime_refuses(change, rng):
    onnx = pytest.importorskip("onnx")
    encoder = Calls(lambda x: x, rng=rng).eval()
    images = rng.random((5, 6, 6, 3), dtype="float32")
    model = export.to_onnx(onnx, encoder, images, {})
    np.testing.assert_allclose(export.evaluate(onnx, model, images), encoder(images).data, rtol=1e-4, atol=1e-5)
    change(model.graph)
    with pytest.raises(DataError, match="ONNX: the graph is not valid: ") as caught:
        export.evaluate(onnx, model, images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make, message", [
    (lambda rng: nn.BagOfTokens(4, rng=rng), "expected an encoder of images, got BagOfTokens; save it as .safetensors"),
    (lambda rng: Sliced((9, 9, 3), rng=rng), "the op 'getitem' has no translation yet"),
    (lambda rng: Sized((9, 9, 3), rng=rng), "mul is given an array that depends on the batch size"),
])
def test_models_without_a_translation_give_one_line_and_no_file(make, message, rng, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(DataError, match=re.escape(message)):
        export.save_onnx(tmp_path / "e.onnx", make(rng), {})
    assert not list(tmp_path.iterdir())


def test_computations_off_the_tape_are_found_by_running_the_graph(rng, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(DataError, match="gives other features on other images"):
        export.save_onnx(tmp_path / "e.onnx", OffTheTape((9, 9, 3), rng=rng), {})
    assert not list(tmp_path.iterdir())


class Inverts(Own):
    """An encoder that inverts images by their brightness, or divides by their largest value."""

    kind = "dark"

    def forward(self, images):
        x = images if isinstance(images, np.ndarray) else images.data
        change = {"dark": x.mean() < 0.3, "bright": x.mean() > 0.7, "flat": x.std() < 0.1, "largest": False,
                  "drawn": x.std() > 0.35, "one": len(x) == 1}[self.kind]
        y = super().forward(1 - images if change else images)
        return y * (1.0 / float(x.max())) if self.kind == "largest" else y


@pytest.mark.parametrize("kind", ["dark", "bright", "flat", "largest", "drawn", "one"])
def test_encoders_that_depend_on_the_brightness_are_found_by_running_the_graph(rng, tmp_path, monkeypatch, kind):
    pytest.importorskip("onnx")
    monkeypatch.setattr(Inverts, "kind", kind)
    with pytest.raises(DataError, match="gives other features on other images|depends on the batch size|something else"):
        export.save_onnx(tmp_path / "e.onnx", Inverts((9, 9, 3), rng=rng), {})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- safetensors

SCALE = {"scale": 1.0}


class Scaled(nn.Module):
    def __init__(self, image_shape, *, rng):
        self.image_shape, self.scale = image_shape, SCALE["scale"]
        self.layer = nn.Linear(4, 3, rng=rng)

    def forward(self, images):
        return self.layer(images.reshape(len(images), -1)) * self.scale


@pytest.mark.parametrize("changed", ["nothing", "a setting", "minicl"])
def test_an_exported_file_tells_what_has_changed_since_as_a_run_does(changed, tmp_path, rng, monkeypatch):
    pytest.importorskip("safetensors.numpy", reason="needs safetensors: pip install 'minicl[safetensors]'")
    export.save_safetensors(tmp_path / "e.safetensors", Scaled((2, 2, 1), rng=rng), {"name": "a test", "data": {"name": "MNIST"}})
    if changed == "a setting":
        monkeypatch.setitem(SCALE, "scale", 2.0)
    elif changed == "minicl":
        monkeypatch.setattr("minicl.trained.code", lambda: {"minicl": "another"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        minicl.load(tmp_path / "e.safetensors")
    told = {"nothing": [], "a setting": ["load: a setting changed (encoder.scale was 1.0, now 2.0; test_export.SCALE was {'dict': {'scale': 1.0}}, "
                          "now {'dict': {'scale': 2.0}})"], "minicl": ["load: minicl changed"]}
    assert [str(w.message).partition(" since ")[0] for w in caught] == told[changed]


@each_encoder
def test_a_safetensors_file_loads_with_the_same_features(make, rng, tmp_path, xp):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors: pip install 'minicl[safetensors]'")
    encoder = seen(make(rng), rng)
    for _, part in encoder.named_state():
        if part.data.ndim == 2:
            part.data = np.asfortranarray(part.data)                                     # axes swapped in memory
    export.save_safetensors(tmp_path / "e.safetensors", encoder, {"name": "a test", "data": {"name": "MNIST"}})
    arrays = safetensors.load_file(tmp_path / "e.safetensors")
    state = encoder.state_dict()
    assert arrays.keys() == state.keys() and all(np.array_equal(arrays[name], state[name]) for name in state)
    trained = minicl.load(tmp_path / "e.safetensors", xp)
    images = rng.integers(0, 256, (4, *shape_of(encoder)), dtype=np.uint8)
    np.testing.assert_allclose(minicl.backend.to_host(trained.encode(images)), encode(encoder, images, np), rtol=1e-5, atol=1e-5)
    assert trained.name == "a test" and trained.data["name"] == "MNIST"


def written(save, arrays, text):
    """The bytes of a file with a correct digest."""
    return save(arrays, {"minicl": text, "digest": digest({**arrays, "": np.frombuffer(text.encode(), np.uint8)}).hex()})


W = {"w": np.ones(2)}
DAMAGED = {  # {id: (the file's bytes as a function of save and a model's text, message)}
    "empty": (lambda save, text: b"", "is not a readable safetensors file"),
    "no json": (lambda save, text: b"\x08\0\0\0\0\0\0\0not json", "is not a readable safetensors file"),
    "of another program": (lambda save, text: save(W), "does not describe how to build its model"),
    "without a digest": (lambda save, text: save(W, {"minicl": text}), "its content is not what was written"),
    "another digest": (lambda save, text: save(W, {"minicl": text, "digest": "0" * 64}), "its content is not what was written"),
    "a list": (lambda save, text: written(save, W, "[1]"), "does not describe how to build its model"),
    "broken json": (lambda save, text: written(save, W, "{"), "is not a readable safetensors file"),
    "other weights": (lambda save, text: written(save, W, text), "encoder cannot be built again"),
    "models are a number": (lambda save, text: written(save, W, '{"models": 3}'), "does not describe how to build its model"),
    **{f"a model is {odd}": (lambda save, text, odd=odd: written(save, W, f'{{"models": {{"encoder": {odd}}}}}'),
                             "encoder cannot be built again") for odd in ("3", '"x"', "[]", "null", '{"op": 3}', '{"op": "no"}',
                                                                        '{"dict": 1}', '{"class": 1}', '{"class": "os.system"}')},
    "a tokenizer is 3": (lambda save, text: written(save, W, text.replace('{"encoder"', '{"tokenizer": 3, "encoder"')),
                         "tokenizer cannot be built again: expected a dict"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_gives_one_line(content, message, rng, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    text = json.dumps({"models": {"encoder": spec_of(nn.MLP((2, 2, 1), rng=rng))}})
    (tmp_path / "e.safetensors").write_bytes(content(safetensors.save, text))
    with pytest.raises(CheckpointError, match=message) as caught:
        minicl.load(tmp_path / "e.safetensors")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_of_a_safetensors_file_never_changes_the_model(rng, tmp_path):
    pytest.importorskip("safetensors")
    export.save_safetensors(tmp_path / "e.safetensors", nn.MLP((2, 2, 1), (3, 2), rng=rng), {"name": "a test"})
    whole = (tmp_path / "e.safetensors").read_bytes()
    expected = minicl.load(tmp_path / "e.safetensors").model.state_dict()
    for bit in rng.choice(8 * len(whole), 400, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "e.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError):                 # a flipped blank in the header loads the same model
            found = minicl.load(tmp_path / "e.safetensors").model.state_dict()
            assert all((found[name] == array).all() for name, array in expected.items())
            raise CheckpointError


@pytest.mark.parametrize("field", ["config", "data", "name", "step"])
@pytest.mark.parametrize("odd", [3, "x", None, [1]])
def test_invalid_metadata_does_not_prevent_loading(field, odd, rng, tmp_path):
    pytest.importorskip("safetensors")
    export.save_safetensors(tmp_path / "e.safetensors", nn.MLP((2, 2, 1), rng=rng), {field: odd})
    trained = minicl.load(tmp_path / "e.safetensors")
    assert "MLP" in repr(trained) and trained.encode(np.zeros((1, 2, 2, 1), np.uint8)).shape[0] == 1


# ---------------------------------------------------------------- the script

def run_of(folder, model):
    folder.mkdir()
    save_checkpoint(folder / "checkpoint.npz", {"model": model}, {"models": {"model": spec_of(model)}, "name": "a test"})
    return folder


def test_the_encoder_of_a_moco_is_exported_without_its_batch_norm_groups(rng, tmp_path, capsys):
    pytest.importorskip("safetensors")
    encoder = nn.ConvNet((8, 8, 1), (4, 8), rng=rng)
    run = run_of(tmp_path / "run", MoCo(encoder, nn.Linear(32, 4, rng=rng), dim=4, queue=8, splits=2))
    assert run_example("export", run, tmp_path / "e.safetensors") == 0
    assert "wrote" in capsys.readouterr().out
    images = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    loaded = minicl.load(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(loaded.encode(images), minicl.load(run).encode(images))
    assert {layer.splits for layer in loaded.encoder.modules() if isinstance(layer, nn.BatchNorm)} == {1}


@pytest.mark.parametrize("make, file, message", [
    (lambda rng: SimCLR(nn.MLP((2, 2, 1), rng=rng), nn.Sequential()), "e.pkl", "expected a name ending in .safetensors or .onnx"),
    (lambda rng: CPC(WindowEncoder(3, 2, rng=rng), None, 1, rng=rng), "e.onnx", "expected an encoder of images, got LastContext"),
    (None, "e.onnx", "is not the folder of a run"),
])
def test_a_failed_export_gives_one_line_and_no_file(make, file, message, rng, tmp_path, capsys):
    pytest.importorskip("onnx")
    run = run_of(tmp_path / "run", make(rng)) if make else tmp_path
    assert run_example("export", run, tmp_path / file) == 2
    assert message in capsys.readouterr().err and not (tmp_path / file).exists()


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(minicl.run.RunError, match=r"no_such_library is not installed .*pip install 'minicl\[onnx\]'"):
        export.library("no_such_library", "onnx")
