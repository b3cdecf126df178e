"""Unusual inputs to every op: valid inputs agree with NumPy in float64 and with finite differences; an error for an
invalid input names the op and the argument."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicl
from minicl import Tensor, ops

x = np.arange(1.0, 7.0).reshape(2, 3)
images, kernel = np.ones((4, 4, 2, 5)), np.ones((3, 3, 5, 2))
C1 = np.ones(3)
C0 = np.zeros(3)
rng = np.random.default_rng(0)
q = np.ones((2, 3, 4))

# op, arguments, options, pattern of the error message
REFUSED = [
    *[(op, (x, np.ones(4)), {}, rf"{op.__name__}: .*broadcast.*x float64 array of shape \(2, 3\), y ")
      for op in (ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.minimum)],
    *[(op, ([1.0, 2.0],), {}, f"{op.__name__}: x must be") for op in (ops.exp, ops.log, ops.relu, ops.gelu, ops.neg,
      ops.abs)],
    (ops.where, (np.array([True, False]), x, x), {}, r"where: .*broadcast"),
    (ops.where, (x > 1, 1.0, 2.0), {}, "where: expected at least one Tensor"),
    *[(ops.pow, (x,), {"exponent": value}, "pow: exponent must be") for value in (np.nan, np.inf, True, "2", None, x)],
    *[(ops.leaky_relu, (x,), {"slope": value}, "leaky_relu: slope must be")
      for value in (1.0, -0.1, np.nan, "0.1", None)],
    *[(ops.clip, (x,), {"low": value}, "clip: low must be") for value in (np.nan, np.inf, "0", x, True)],
    (ops.clip, (x,), {}, "clip: expected low <= high"),
    (ops.clip, (x,), {"low": 2, "high": 1}, "clip: expected low <= high"),
    *[(ops.dropout, (x,), {"p": value, "rng": rng}, "dropout: p must be")
      for value in (-0.1, 1, 1.5, np.nan, "0.5", None, x)],
    *[(ops.dropout, (x,), {"p": 0.5, "rng": value}, "dropout: rng must be")
      for value in (None, 0, np.random.RandomState(0))],
    *[(op, (x,), {"axis": axis}, rf"{op.__name__}: axis")
      for op in (ops.sum, ops.mean, ops.max, ops.logsumexp, ops.var)
      for axis in (2, -3, (0, 0), (0, -2), [1, 1], 0.0, "0", True, (0, None), (0, 5))],
    *[(op, (np.ones(shape),), {"axis": axis}, rf"{op.__name__}: axis .* has no values")
      for op in (ops.mean, ops.max, ops.logsumexp, ops.var) for shape, axis in (((0,), None), ((0, 3), 0), ((2, 0),
      (0, 1)))],
    *[(ops.var, (x,), {"axis": 0, "correction": value}, "var: (correction must be|needs more)")
      for value in (2, 5, np.nan, "1")],
    *[(ops.reshape, (x,), {"shape": shape}, "reshape: ") for shape in ((4,), (-1, -1), (4, -1), "6", (2.0, 3), None)],
    *[(ops.transpose, (x,), {"axes": axes}, "transpose: ax") for axes in ((0,), (0, 0), (0, 2), (0, 1, 2), (0, -2),
      (0.0, 1), 1)],
    *[(ops.broadcast_to, (x,), {"shape": shape}, "broadcast_to: ") for shape in ((3,), (2, 4), (2, 3, 1), None)],
    *[(ops.concat, (x, x), {"axis": axis}, "concat: axis") for axis in (2, -3, 0.0, None, True)],
    (ops.concat, (x, np.ones((2, 4))), {"axis": 0}, r"concat: .*xs\[1\] float64 array of shape \(2, 4\)"),
    (ops.concat, (x, x.astype("float32")), {}, "concat: .*float64 but .*float32"),
    *[(ops.stack, (x, x), {"axis": axis}, "stack: axis") for axis in (3, -4, 0.0, None)],
    (ops.stack, (x, np.ones((2, 4))), {}, r"stack: .*xs\[1\] float64 array of shape \(2, 4\)"),
    *[(ops.pad, (x,), {"widths": widths}, "pad: ") for widths in (((1, 1),), ((1,), (1,)), ((-1, 0), (0, 0)),
      ((0.5, 0), (0, 0)), 1, (1, 1))],
    (ops.to_pixel_major, (x,), {}, "to_pixel_major: "),
    (ops.add_relu, (x, x[:1]), {}, "add_relu: expected two arrays of one shape"),
    (ops.matmul, (x, np.ones(3)), {}, "matmul: expected"),
    (ops.matmul, (np.ones((2, 2, 3)), np.ones((3, 3, 4))), {}, "matmul: .*broadcast.*x float64"),
    (ops.linear, (np.array(1.0), np.ones((1, 2))), {}, "linear: expected"),
    (ops.linear, (x, np.ones((3, 2)), np.ones((1, 2))), {}, "linear: expected"),
    *[(ops.conv2d, (images, kernel), {name: value}, f"conv2d: {name} must be an int")
      for name, value in (("stride", 0), ("stride", -1), ("stride", 1.0), ("stride", (1, 1)), ("padding", -1),
      ("padding", "1"))],
    (ops.conv2d, (images, np.ones((5, 5, 5, 2))), {}, "conv2d: a 5 x 5 kernel does not fit"),
    *[(op, (images,), {name: value}, f"{op.__name__}: {name} must be an int")
      for op in (ops.max_pool2d, ops.avg_pool2d)
      for name, value in (("size", 0), ("size", 2.0), ("size", (2, 2)), ("stride", 0), ("stride", -1),
      ("stride", 1.5))],
    (ops.max_pool2d, (images,), {"size": 5}, "max_pool2d: expected x"),
    (ops.to_pixel_major, (images[0],), {}, r"to_pixel_major: expected images \(B, H, W, C\), .* one image is x\[None\]"),
    (ops.conv2d, (images, kernel[:0]), {}, r"conv2d: expected .* kh, kw >= 1, got .*\(0, 3, 5, 2\); C is a Conv2d's in_channels"),
    (ops.conv2d, (images, kernel[:, :0]), {}, r"conv2d: expected .* kh, kw >= 1, got .*\(3, 0, 5, 2\)"),
    *[(op, (np.ones((4, 3)), C1, C0), {"eps": value}, f"{op.__name__}: eps must be")
      for op in (ops.batch_norm, ops.layer_norm)
      for value in (-1e-5, np.nan, "0", None)],
    *[(op, (np.ones((4, 0)), np.ones(0), np.zeros(0)), {}, f"{op.__name__}: expected")
      for op in (ops.batch_norm, ops.layer_norm)],
    (ops.batch_norm, (np.ones(3), C1, C0), {}, "batch_norm: needs at least 2"),
    (ops.batch_norm, (np.ones((0, 3)), C1, C0), {}, "batch_norm: needs at least 2"),
    (ops.layer_norm, (np.array(1.0), C1, C0), {}, "layer_norm: expected"),
    (ops.attention, (q, np.ones((2, 0, 4)), np.ones((2, 0, 4))), {}, "attention: expected at least one key"),
    (ops.attention, (np.ones((2, 3, 0)),) * 2 + (q,), {}, "attention: expected at least one key"),
    (ops.attention, (q, np.ones((1, 3, 4)), q), {}, "attention: expected q"),
    *[(ops.attention, (q, q, q), {"mask": mask}, "attention: mask must")
      for mask in (np.ones((2, 3), dtype=bool), np.ones((5, 1, 3, 3), dtype=bool), np.ones((3, 3)),
      [[True] * 3] * 3, True)],
    *[(ops.embedding, (np.array(ids), x), {}, "embedding: ids must be")
      for ids in ([2], [-2], [[0, 99]], [0.5], [True])],
    (ops.embedding, (np.array([0]), np.ones(3)), {}, "embedding: expected a table"),
    (ops.gru, (np.ones((0, 2, 3)), np.ones((3, 6)), np.ones((2, 6)), np.ones(6)), {}, "gru: expected x"),
    (ops.gru, (np.ones((1, 2, 3)), np.ones((3, 6)), np.ones((2, 6)), np.ones(5)), {}, "gru: expected b"),
]


@pytest.mark.parametrize("op, inputs, options, words", REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_illegal_input_is_refused_by_name(op, inputs, options, words):
    with pytest.raises((TypeError, ValueError, IndexError), match=words):
        op(*(Tensor(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in inputs), **options)


# ---------------------------------------------------------------- unusual valid inputs: any layout, no entries, no axes

def laid_out(draw, values, ties=True):
    """The values in a drawn memory layout: contiguous, transposed, reversed, a slice of a larger array, or (where ties
    are allowed) the first row broadcast to all rows."""
    layout = draw(st.sampled_from(["contiguous", "transposed", "reversed", "every other", *["broadcast"] * ties]))
    if layout == "transposed" and values.ndim:
        return np.ascontiguousarray(values.T).T
    if layout == "reversed":
        return np.ascontiguousarray(values[..., ::-1])[..., ::-1] if values.ndim else values
    if layout == "every other" and values.ndim:
        return np.repeat(values, 2, axis=0)[::2]
    if layout == "broadcast" and values.ndim and len(values):
        return np.broadcast_to(values[:1], values.shape)
    return values.copy()


def drawn(draw, shape, low=-3.0, ties=True):
    """An array of this shape in a drawn layout, with values from low to 3, none near 0."""
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).uniform(low, 3, shape)
    return laid_out(draw, np.where(np.abs(values) < 0.05, 0.07, values), ties)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def agree(op, expected, *inputs, **options):
    """Check the op's value against `expected`, its gradients against finite differences, its float32 results, and that
    the inputs are unchanged."""
    inputs = [np.asarray(a) for a in inputs]                 # NumPy gives scalars for sums of 0-d arrays
    before = [a.copy() for a in inputs]
    (y, *gradients), (_, *plain) = _run(op, inputs, options, broadcast=True), _run(op, before, options)
    assert y.shape == np.shape(expected)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients, plain):                       # for any layout of the inputs and of g
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)

    def function(*tensors):
        return op(*tensors, **options)

    function.__name__ = op.__name__
    if y.size and all(a.size for a in inputs):
        assert minicl.gradcheck(function, before, sample=3, kinks=True, rtol=1e-4, atol=1e-6)
    single, *singles = _run(op, [a.astype("float32") for a in inputs], options)
    assert single.dtype == "float32" and all(g.dtype == "float32" and g.shape == a.shape for g, a in zip(singles, inputs))
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-4)
    for a, b in zip(inputs, before):
        np.testing.assert_array_equal(a, b)


def _run(op, inputs, options, broadcast=False):
    """[value, *gradients] for g = 1, where g is a broadcast scalar or a full array."""
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    y = op(*tensors, **options)
    one = np.ones((), dtype=y.dtype)
    y.backward(np.broadcast_to(one, y.shape) if broadcast else np.full(y.shape, one))
    return [y.data, *(t.grad for t in tensors)]


UNARY = {
    ops.neg: np.negative, ops.abs: np.abs, ops.exp: np.exp, ops.tanh: np.tanh, ops.relu: lambda x: np.maximum(x, 0),
    ops.sigmoid: lambda x: 1 / (1 + np.exp(-x)), ops.leaky_relu: lambda x: np.where(x > 0, x, 0.01 * x),
    ops.gelu: lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ops.log: np.log, ops.sqrt: np.sqrt,
}


@settings(max_examples=40)
@given(st.data(), st.sampled_from(list(UNARY)), shapes)
def test_elementwise_ops_of_one_input_agree_with_numpy(data, op, shape):
    x = drawn(data.draw, shape, 0.1 if op in (ops.log, ops.sqrt) else -3.0)
    agree(op, UNARY[op](x), x)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["add", "sub", "mul", "div", "maximum", "minimum"]), shapes)
def test_elementwise_ops_of_two_inputs_broadcast_as_numpy(data, name, shape):
    cut = data.draw(st.integers(0, len(shape)))
    ones = [data.draw(st.booleans()) for _ in shape[cut:]]
    x, y = drawn(data.draw, shape), drawn(data.draw, tuple(1 if one else n for one, n in zip(ones, shape[cut:])))
    if data.draw(st.booleans()):
        x, y = y, x
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum,
                "minimum": np.minimum}[name]
    agree(getattr(ops, name), function(x, y), x, y)


@settings(max_examples=40)
@given(st.data(), shapes, st.sampled_from([(-1.0, None), (None, 1), (-0.5, 0.5), (2, 2)]))
def test_clip_where_and_dropout_agree_with_numpy(data, shape, limits):
    x, y = drawn(data.draw, shape), drawn(data.draw, shape)
    agree(ops.clip, np.clip(x, *limits), x, low=limits[0], high=limits[1])
    mask = np.asarray(np.random.default_rng(0).random(shape) < 0.5)
    with_mask = lambda x, y: ops.where(mask, x, y)           # noqa: E731
    with_mask.__name__ = "where"
    agree(with_mask, np.where(mask, x, y), x, y)
    z = ops.dropout(x, p=0.25, rng=np.random.default_rng(1)).data
    assert np.all((z == 0) | np.isclose(z, x / 0.75))


AXIS_FORMS = [lambda axes: axes, list, lambda axes: tuple(map(np.int64, axes)),
              lambda axes: axes[0] if len(axes) == 1 else axes]


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["sum", "mean", "max", "logsumexp", "var"]), shapes, st.booleans(),
       st.sampled_from(AXIS_FORMS))
def test_reductions_along_any_axes_agree_with_numpy(data, name, shape, keepdims, form):
    if name != "sum":
        shape = tuple(max(n, 1) for n in shape)
    x = drawn(data.draw, shape)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)) if shape else st.just(set()))
    axes = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in axes)
    axes, axis = (None, None) if data.draw(st.booleans()) else (axes, form(axes))
    reference = {"sum": np.sum, "mean": np.mean, "max": np.max, "var": np.var,
                 "logsumexp": lambda x, **options: np.log(np.sum(np.exp(x), **options))}[name]
    agree(getattr(ops, name), reference(x, axis=axes, keepdims=keepdims), x, axis=axis, keepdims=keepdims)


@settings(max_examples=40)
@given(st.data(), shapes)
def test_shape_ops_agree_with_numpy(data, shape):
    x = drawn(data.draw, shape)
    order = data.draw(st.permutations(range(len(shape))))
    signed = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in order)
    agree(ops.transpose, x.transpose(order), x, axes=signed)
    agree(ops.reshape, x.reshape(x.size), x, shape=x.size)
    agree(ops.reshape, x.reshape(x.shape[::-1]), x, shape=list(x.shape[::-1]))
    agree(ops.broadcast_to, np.broadcast_to(x, (2, *shape)), x, shape=(2, *shape))
    agree(ops.pad, np.pad(x, [(1, 2)] * x.ndim) if x.ndim else x, x, widths=[(1, 2)] * x.ndim)
    axis = data.draw(st.integers(-x.ndim - 1, x.ndim))
    agree(ops.stack, np.stack([x, x + 1], axis=axis), x, x + 1, axis=axis)
    if x.ndim:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        agree(ops.concat, np.concatenate([x, x, x + 1], axis=axis), x, x.copy(), x + 1, axis=axis)


@settings(max_examples=40)
@given(st.data(), shapes, st.integers(0, 4), st.integers(0, 4))
def test_products_agree_with_numpy(data, shape, C, K):
    x, w, b = drawn(data.draw, (*shape, C)), drawn(data.draw, (C, K)), drawn(data.draw, (K,))
    agree(ops.linear, x @ w + b, x, w, b)
    agree(ops.linear, x @ w, x, w)
    if x.ndim > 1:
        agree(ops.matmul, x @ w, x, w)


@settings(max_examples=40)
@given(st.data(), st.tuples(*[st.integers(1, 5)] * 2), st.integers(0, 3), st.sampled_from([1, 4, 5]),
       st.integers(0, 3),
       st.tuples(*[st.integers(1, 3)] * 2), st.integers(1, 3), st.integers(0, 2))
def test_convolution_agrees_with_its_definition(data, size, B, C, K, kernel, stride, padding):
    x, w = drawn(data.draw, (*size, B, C)), drawn(data.draw, (*kernel, C, K))
    if any(n + 2 * padding < k for n, k in zip(size, kernel)):
        with pytest.raises(ValueError, match="conv2d: a .* kernel does not fit"):
            ops.conv2d(x, w, stride=stride, padding=padding)
        return
    padded = np.pad(x, [(padding, padding)] * 2 + [(0, 0)] * 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(0, 1))[::stride, ::stride]
    agree(ops.conv2d, np.einsum("mnbcij,ijck->mnbk", windows, w), x, w, stride=stride, padding=padding)


@settings(max_examples=40)
@given(st.data(), st.tuples(*[st.integers(1, 5)] * 2), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3),
       st.integers(1, 3))
def test_pools_agree_with_their_definition(data, shape, B, C, size, stride):
    if min(shape) < size:
        return
    x = drawn(data.draw, (*shape, B, C), ties=False)             # at a tie a finite difference changes several windows
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]
    agree(ops.max_pool2d, windows.max(axis=(-1, -2)), x, size=size, stride=stride)
    agree(ops.avg_pool2d, windows.mean(axis=(-1, -2)), x, size=size, stride=stride)


@settings(max_examples=40)
@given(st.data(), shapes, st.integers(1, 5), st.booleans())
def test_norms_agree_with_their_formulas(data, shape, C, relu):
    x = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).standard_normal((*shape, C))
    x = laid_out(data.draw, x)
    weight = drawn(data.draw, (C,))
    bias = drawn(data.draw, (C,))
    mean = x.mean(axis=-1, keepdims=True)
    var = x.var(axis=-1, keepdims=True)
    agree(ops.layer_norm, (x - mean) / np.sqrt(var + 0.1) * weight + bias, x, weight, bias, eps=0.1)
    rows = x.reshape(x.size // C, C)
    if len(rows) > 1:
        y = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 0.1) * weight + bias
        agree(ops.batch_norm, (np.maximum(y, 0) if relu else y).reshape(x.shape), x, weight, bias, eps=0.1, relu=relu)


@settings(max_examples=40)
@given(st.data(), st.lists(st.integers(0, 3), max_size=2).map(tuple), st.integers(0, 3), st.integers(1, 3),
       st.integers(1, 3),
       st.integers(0, 3), st.booleans())
def test_attention_agrees_with_its_formula(data, lead, T, S, d, e, masked):
    q, k, v = (drawn(data.draw, (*lead, n, m)) for n, m in ((T, d), (S, d), (S, e)))
    mask = np.random.default_rng(0).random((T, S)) < 0.6 if masked else np.ones((T, S), dtype=bool)
    p = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(d)) * mask
    total = p.sum(axis=-1, keepdims=True)
    agree(ops.attention, p / np.where(total == 0, 1, total) @ v, q, k, v, mask=mask if masked else None)


@settings(max_examples=40)
@given(st.data(), shapes, st.integers(1, 4), st.integers(0, 3))
def test_embedding_agrees_with_indexing(data, shape, V, C):
    ids = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(-1, V, shape)
    ids = ids.astype(data.draw(st.sampled_from(["int8", "int32", "int64"])))

    def embedding(table):
        return ops.embedding(ids, table)

    table = drawn(data.draw, (V, C))
    agree(embedding, table[ids], table)


def test_an_embedding_without_columns_has_a_gradient_without_columns():
    table = Tensor(np.ones((2, 0)), requires_grad=True)
    ops.embedding(np.zeros(20, "int64"), table).backward(np.ones((20, 0)))
    assert table.grad.shape == (2, 0)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_with_nan_sends_all_of_g_to_its_last_entry(stride):
    pixels = Tensor(np.array([0.0, np.nan, 2.0, 3.0]).reshape(2, 2, 1, 1), requires_grad=True)
    y = ops.max_pool2d(pixels, size=2, stride=stride)
    y.backward(np.full((1, 1, 1, 1), 5.0))
    assert np.isnan(y.item()) and pixels.grad.ravel().tolist() == [0, 0, 0, 5]


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("channels", [2, 8])
def test_images_without_pixels_are_convolved_with_their_padding(size, channels):
    pixels = Tensor(np.ones((*size, 2, channels)), requires_grad=True)
    weight = Tensor(np.ones((3, 3, channels, 2)), requires_grad=True)
    y = ops.conv2d(pixels, weight, padding=2)
    y.backward(np.ones(y.shape))
    assert y.shape == (size[0] + 2, size[1] + 2, 2, 2) and not y.data.any()
    assert pixels.grad.shape == pixels.shape and not weight.grad.any()
