"""Export an encoder: as safetensors, from which minicl can rebuild it, or as ONNX, for programs without minicl.

    python examples/export.py runs/simclr_images encoder.safetensors
    python examples/export.py runs/simclr_images encoder.onnx

minicl.load("encoder.safetensors") reads the first, like the folder of a run.

The ONNX graph maps images (N, H, W, C), float32 in [0, 1], to features (N, d), for any N. It is read from the tape: each op
that the encoder records for two batches becomes one or a few nodes, and everything that does not depend on the images
becomes a constant. Before it is written, its types and shapes are checked, and it is run on other images, of two batch
sizes, and must return the encoder's features.
"""

import argparse
import copy
import importlib
import json
import os
from pathlib import Path

import numpy as np

import minicl
from minicl.autograd import Tensor, ancestors
from minicl.backend import to_host
from minicl.checkpoint import digest, settings
from minicl.data import DataError
from minicl.evaluate import encode, to_float
from minicl.files import write_atomically
from minicl.nn import BatchNorm
from minicl.nn.spec import spec_of
from minicl.origin import code
from minicl.options import folder
from minicl.run import RunError, command


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=folder, help="folder of the run whose encoder is exported")
    parser.add_argument("file", type=folder, help="file to write, ending in .safetensors or .onnx")
    parser.add_argument("--model", help="name of the model, if the run trained several")
    args = parser.parse_args()
    writers = {".safetensors": save_safetensors, ".onnx": save_onnx}
    if Path(args.file).suffix not in writers:
        parser.error(f"file: expected a name ending in {' or '.join(writers)}, got {args.file}")

    trained = minicl.load(args.run, model=args.model)
    meta = {key: getattr(trained, key) for key in ("name", "config", "data", "step", "total")}
    writers[Path(args.file).suffix](args.file, plain(trained.encoder), meta)
    print(f"wrote {args.file}: {os.path.getsize(args.file) / 1e6:.1f} MB, {type(trained.encoder).__name__} of "
          f"{trained.image_shape or 'sequences'}")


def plain(encoder):
    """A copy of an encoder with its constructor's settings: MoCo gives its batch norms groups, which only training uses."""
    encoder = copy.deepcopy(encoder).to("numpy")
    for layer in encoder.modules():
        if isinstance(layer, BatchNorm):
            layer.splits = 1
    return encoder.eval()


def library(name, extra):
    """An optional library. Raises RunError that names the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunError(f"{name.partition('.')[0]} is not installed ({error}): pip install 'minicl[{extra}]'") from error


# ---------------------------------------------------------------- safetensors

def save_safetensors(path, module, meta):
    """Write a Module's state as safetensors, with metadata for minicl.load: its spec, `meta`, and a digest that detects
    damage.

    safetensors 0.8 writes the memory of an array whose axes were swapped, not its values, and raises no error:
    state_dict gives arrays in C order.
    """
    safetensors = library("safetensors.numpy", "safetensors")
    try:
        meta = {**meta, "models": {"encoder": spec_of(module)}, "settings": settings({"encoder": module}), "code": code()}
    except ValueError as error:
        raise RunError(f"cannot export: {error}") from error
    text = json.dumps(meta)
    state = module.state_dict()
    total = digest({**state, "": np.frombuffer(text.encode(), np.uint8)}).hex()
    data = safetensors.save(state, {"minicl": text, "digest": total})
    write_atomically(path, lambda file: file.write(data))


# ---------------------------------------------------------------- ONNX

SAME = {"abs": "Abs", "add": "Add", "div": "Div", "exp": "Exp", "log": "Log", "matmul": "MatMul", "maximum": "Max",
        "minimum": "Min", "mul": "Mul", "neg": "Neg", "relu": "Relu", "sigmoid": "Sigmoid", "sqrt": "Sqrt",
        "sub": "Sub", "tanh": "Tanh"}
REDUCE = {"max": "ReduceMax", "mean": "ReduceMean"}
OPSET = 17
TOLERANCE = 1e-4                                             # of the largest feature, in the test before writing


def save_onnx(path, encoder, meta):
    """Write an encoder of images as an ONNX graph: images (N, H, W, C) float32 in [0, 1] -> features (N, d).

    Raises DataError for an encoder of something else, of ops without a translation, or whose graph is not valid ONNX.
    """
    onnx = library("onnx", "onnx")
    shapes = [module.image_shape for module in encoder.modules() if "image_shape" in vars(module)]
    if not shapes:
        raise DataError(f"ONNX: expected an encoder of images, got {type(encoder).__name__}; save it as .safetensors")
    images = np.random.default_rng(0).integers(0, 256, (5, *shapes[0]), dtype=np.uint8)
    model = to_onnx(onnx, encoder, to_float(images, np), meta)
    grey = np.full_like(images[:3], 128) + images[:3] // 32
    drawn = images[:3] // 64
    drawn[:, :drawn.shape[1] // 2, 1:drawn.shape[2] // 2 + 1] = 250                      # a bright block in a corner
    for others in (images[::-1, ::-1].copy(), images[1:3], images[:4] // 16, 255 - images[:4] // 16, grey, drawn, drawn[:1]):
        expected = encode(encoder, others, np)
        got = evaluate(onnx, model, to_float(others, np))
        if got.dtype != expected.dtype or got.shape != expected.shape:
            raise DataError(f"ONNX: the graph of {type(encoder).__name__} gives {got.dtype} {got.shape} for {len(others)} "
                            f"images, the encoder {expected.dtype} {expected.shape}")
        error = np.abs(got - expected).max()
        largest = np.abs(expected).max()
        if not error <= TOLERANCE * largest:
            raise DataError(f"ONNX: the graph of {type(encoder).__name__} gives other features on other images, by "
                            f"{error:.1g}, where the largest is {largest:.1g}: something in it depends on the images in "
                            "ways that the tape does not record")
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def evaluate(onnx, model, images):
    """The features that a graph gives for images. Raises DataError unless it is valid, with the types and shapes of all its
    nodes inferred, as runtimes do when they load it."""
    try:
        onnx.checker.check_model(model, full_check=True)
        features, = library("onnx.reference", "onnx").ReferenceEvaluator(model).run(None, {"images": images})
    except Exception as error:                               # onnx raises errors of its own and of NumPy
        raise DataError(f"ONNX: the graph is not valid: {' '.join(str(error).split())[:300]}; save the encoder as "
                        ".safetensors, or correct Graph.translate") from error
    return features


def to_onnx(onnx, encoder, images, meta):
    """The graph of the encoder's computation for images (5, H, W, C), with N instead of 5."""
    small, large = (record(encoder, batch) for batch in (images[:3], images))
    graph = Graph(onnx)
    names = {id(small[0]): "images"}                         # of the Tensors that depend on the images
    if len(small) != len(large):
        raise DataError("ONNX: the encoder computes something else for another batch size")
    for tensor, other in zip(small[1:], large[1:]):
        inputs = []
        for x, y in zip(tensor.node.inputs, other.node.inputs):
            if x is None or id(x) in names:
                inputs.append(names.get(id(x)))
                continue
            data, same = (np.asarray(z.data if isinstance(z, Tensor) else z, tensor.dtype) for z in (x, y))
            if not np.array_equal(data, same):
                raise DataError(f"ONNX: {tensor.node.op.__name__} is given an array that depends on the batch size")
            inputs.append(graph.constant(data))
        shape = [n if n == m else -1 for n, m in zip(tensor.shape, other.shape)]
        before = np.shape(tensor.node.inputs[0])
        op = tensor.node.op.__name__
        try:
            names[id(tensor)] = graph.translate(tensor.node, inputs, shape, before, tensor.dtype)
        except (TypeError, KeyError, ValueError) as error:   # of an option that is not a number, or from onnx
            raise error if isinstance(error, DataError) else DataError(f"ONNX: {op} has no translation: {error}") from error
    helper = onnx.helper
    FLOAT = onnx.TensorProto.FLOAT
    graph.nodes[-1].output[0] = "features"
    made = helper.make_graph(
        graph.nodes, type(encoder).__name__, [helper.make_tensor_value_info("images", FLOAT, ["N", *images.shape[1:]])],
        [helper.make_tensor_value_info("features", FLOAT, ["N", *small[-1].shape[1:]])], graph.constants)
    model = helper.make_model(made, producer_name="minicl", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, {"minicl": json.dumps(meta)})
    return model


def record(encoder, images):
    """[images, ...]: all Tensors that the encoder computes from them, in their order, the features last."""
    leaf = Tensor(images, requires_grad=True)                # so that what is computed from it alone is recorded as well
    h = encoder(leaf)
    if not isinstance(h, Tensor) or h.node is None:
        raise DataError(f"ONNX: expected an encoder that computes features from images, got {type(h).__name__} of shape "
                        f"{np.shape(h)}: the images themselves, or what does not depend on them")
    of = {h.node: h}
    nodes = ancestors(h.node)[::-1]
    for node in nodes:
        of.update((x.node, x) for x in node.inputs if isinstance(x, Tensor) and x.node)
    found = [leaf]
    for node in nodes:
        if any(x is y for x in node.inputs for y in found):
            found.append(of[node])
    if found[-1] is not h:
        raise DataError(f"ONNX: the features of {type(encoder).__name__} do not depend on its images")
    return found


class Graph:
    """Nodes and constants of an ONNX graph. Activations stay pixel-major (H, W, B, C), as in minicl; ONNX convolves
    (B, C, H, W), so each convolution and pooling is between two transpositions, which runtimes merge."""

    def __init__(self, onnx):
        self.onnx = onnx
        self.nodes = []
        self.constants = []
        self.known = {}                                      # (dtype, shape, bytes) -> the constant's name

    def constant(self, array):
        array = np.array(to_host(array), order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.known:
            self.known[key] = f"constant_{len(self.constants)}"
            self.constants.append(self.onnx.numpy_helper.from_array(array, self.known[key]))
        return self.known[key]

    def add(self, kind, *inputs, **attributes):
        output = f"{kind}_{len(self.nodes)}"
        attributes = {name: [*map(int, value)] if np.ndim(value) else int(value) for name, value in attributes.items()}
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def images(self, kind, x, *more, **attributes):
        """A node of (B, C, H, W) on x (H, W, B, C)."""
        y = self.add(kind, self.add("Transpose", x, perm=(2, 3, 0, 1)), *more, **attributes)
        return self.add("Transpose", y, perm=(2, 3, 0, 1))

    def translate(self, node, inputs, shape, before, dtype):
        """The name of the node for an op's value, of this shape with -1 for the batch, from earlier nodes, the first of
        which has the shape `before`."""
        name = node.op.__name__
        options = node.options
        x = inputs[0]

        def axes(given, default):                            # ONNX counts them from 0
            given = default if given is None else given if np.ndim(given) else [given]
            return [axis % len(before) for axis in given]

        if name == "add_relu":
            return self.add("Relu", self.add("Add", *inputs))
        if name == "pow":
            return self.add("Pow", x, self.constant(np.asarray(options["exponent"], dtype)))
        if name in SAME:
            return self.add(SAME[name], *inputs)
        if name in REDUCE:
            over = axes(options.get("axis"), range(len(before)))
            if not over:                                     # for ONNX that would be all
                return self.add("Identity", x)
            return self.add(REDUCE[name], x, axes=over, keepdims=options.get("keepdims", False))
        if name == "reshape" and shape.count(-1) < 2:
            return self.add("Reshape", x, self.constant(np.array(shape, dtype="int64")))
        if name == "transpose":
            return self.add("Transpose", x, perm=axes(options.get("axes"), range(len(before))[::-1]))
        if name == "to_pixel_major":
            return self.add("Transpose", x, perm=(1, 2, 0, 3))
        if name == "linear":
            y = self.add("MatMul", x, inputs[1])
            return y if len(inputs) < 3 or inputs[2] is None else self.add("Add", y, inputs[2])
        if name == "conv2d":
            stride, padding = options.get("stride", 1), options.get("padding", 0)
            weight = self.add("Transpose", inputs[1], perm=(3, 2, 0, 1))
            return self.images("Conv", x, weight, strides=[stride] * 2, pads=[padding] * 4)
        if name in ("max_pool2d", "avg_pool2d"):
            size = options.get("size", 2)
            kind = "MaxPool" if name == "max_pool2d" else "AveragePool"
            return self.images(kind, x, kernel_shape=[size] * 2, strides=[options.get("stride") or size] * 2)
        raise DataError(f"ONNX: the op {name!r} has no translation yet; save the encoder as .safetensors, or add it to "
                        "Graph.translate")


if __name__ == "__main__":
    command(main, alone=True)
