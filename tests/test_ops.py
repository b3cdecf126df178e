"""Every op of tests/cases.py: its gradient, its dtypes, and its two backends."""

import importlib

import numpy as np
import pytest
from cases import CASES

import minicl
from minicl import Tensor, contrastive, ops
from minicl.backend import is_array, threads, to_device, to_host
from minicl.ops import conv

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def on(xp, x):
    """x moved to xp if it is an array; the entries of a tuple are moved one by one."""
    if isinstance(x, tuple):
        return tuple(on(xp, part) for part in x)
    return to_device(x, xp) if is_array(x) else x


def call(case, xp, dtype="float64"):
    """(function of the floating-point inputs, those inputs) of a case, on xp."""
    options = {name: on(xp, value) for name, value in case.options.items()}
    inputs = [on(xp, x.astype(dtype) if x.dtype.kind == "f" else x) for x in case.inputs]
    places = [k for k, x in enumerate(inputs) if x.dtype.kind == "f"]

    def function(*floats):
        full = list(inputs)
        for k, x in zip(places, floats):
            full[k] = x
        return case.op(*full, **{name: value() if callable(value) else value for name, value in options.items()})

    function.__name__ = case.op.__name__
    function.names = [case.op.names[k] for k in places if k < len(case.op.names)]
    return function, [inputs[k] for k in places]


@each_case
def test_gradient_agrees_with_finite_differences(case, xp):
    assert minicl.gradcheck(*call(case, xp))


@each_case
def test_a_gradient_alone_is_the_same_as_beside_others(case, xp):
    """An op may skip what only the gradients of other inputs need."""
    function, inputs = call(case, xp)

    def gradients(needed):
        tensors = [Tensor(x, requires_grad=needs) for x, needs in zip(inputs, needed)]
        y = function(*tensors)
        y.backward(to_device(np.random.default_rng(5).standard_normal(y.shape), xp))
        return [x.grad if x.grad is None else to_host(x.grad) for x in tensors]

    together = gradients([True] * len(inputs))
    for k, dx in enumerate(together):
        alone = gradients([j == k for j in range(len(inputs))])
        assert [x is None for x in alone] == [j != k or dx is None for j in range(len(inputs))]
        if dx is not None:
            np.testing.assert_allclose(alone[k], dx, rtol=1e-9, atol=1e-11)


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ops_keep_the_dtype_of_their_inputs(case, xp, dtype):
    function, inputs = call(case, xp, dtype)
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    y = function(*tensors)
    assert y.dtype == dtype
    (y * y).sum().backward()
    assert [t.grad.dtype for t in tensors] == [dtype] * len(tensors)


@each_case
def test_inputs_are_not_written(case, xp):
    function, inputs = call(case, xp)
    before = [to_host(x).copy() for x in inputs]
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    function(*tensors).sum().backward()
    for x, kept in zip(inputs, before):
        np.testing.assert_array_equal(to_host(x), kept)


@each_case
def test_float32_is_close_to_float64(case, xp):
    outputs = []
    for dtype in ("float32", "float64"):
        function, inputs = call(case, xp, dtype)
        tensors = [Tensor(x, requires_grad=True) for x in inputs]
        y = function(*tensors)
        y.sum().backward()
        outputs.append([to_host(y.data)] + [to_host(t.grad) for t in tensors])
    for single, double in zip(*outputs):
        np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-3 * max(1, np.abs(double).max()))


# ---------------------------------------------------------------- values, against NumPy or a loop

def test_elementwise_values_are_those_of_numpy(rng):
    x, y = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    t, u = Tensor(x), Tensor(y)
    for op_value, expected in [
        (t + u, x + y), (t - u, x - y), (t * u, x * y), (t / u, x / y), (-t, -x), (t ** 2, x ** 2), (2 - t, 2 - x),
        (1 / t, 1 / x), (ops.exp(t), np.exp(x)), (ops.log(ops.abs(t)), np.log(np.abs(x))), (ops.tanh(t), np.tanh(x)),
        (ops.sigmoid(t), 1 / (1 + np.exp(-x))), (ops.relu(t), np.maximum(x, 0)), (ops.maximum(t, u), np.maximum(x, y)),
        (ops.leaky_relu(t, slope=0.1), np.where(x > 0, x, 0.1 * x)), (ops.minimum(t, 0.5), np.minimum(x, 0.5)),
        (ops.clip(t, low=-0.5, high=0.5), np.clip(x, -0.5, 0.5)), (ops.where(x > y, t, u), np.where(x > y, x, y)),
        (ops.logsumexp(t, axis=1), np.log(np.exp(x).sum(1))), (t.var(axis=0, correction=1), x.var(0, ddof=1)),
    ]:
        np.testing.assert_allclose(op_value.data, expected, rtol=1e-12)


def test_gelu_is_within_its_stated_distance_of_the_exact_one():
    from math import erf, sqrt
    x = np.linspace(-5, 5, 201)
    exact = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x])
    assert np.abs(ops.gelu(Tensor(x)).data - exact).max() < 5e-4


def test_sigmoid_and_logsumexp_do_not_overflow():
    far = Tensor(np.array([-1e4, 0.0, 1e4]))
    np.testing.assert_allclose(ops.sigmoid(far).data, [0, 0.5, 1])
    assert ops.logsumexp(far).item() == 1e4


def test_logsumexp_of_infinities_is_their_limit(xp):
    inf = np.inf
    x = Tensor(to_device(np.array([[-inf, -inf], [-inf, 1.0], [2.0, 2.0]]), xp), requires_grad=True)
    y = ops.logsumexp(x, axis=1)
    np.testing.assert_allclose(to_host(y.data), [-inf, 1, 2 + np.log(2)])
    y.backward(xp.ones(3))
    np.testing.assert_allclose(to_host(x.grad), [[0, 0], [0, 1], [0.5, 0.5]])
    assert ops.logsumexp(np.array([1.0, inf, -inf])).item() == inf
    assert np.isnan(ops.logsumexp(np.array([1.0, np.nan])).item())


def test_nan_propagates_through_reductions(xp):
    x = to_device(np.array([[1.0, np.nan], [2.0, 3.0]]), xp)
    for op in (ops.sum, ops.mean, ops.max, ops.var, ops.logsumexp):
        np.testing.assert_array_equal(np.isnan(to_host(op(Tensor(x), axis=1).data)), [True, False])


def test_var_is_accurate_far_from_zero(rng):
    x = (1e4 + rng.standard_normal((500, 3))).astype("float32")
    for y, exact in zip(_with_gradient(ops.var, x, axis=0), _with_gradient(ops.var, x.astype("float64"), axis=0)):
        assert np.abs(y - exact).max() < 1e-6 * np.abs(exact).max()


def _with_gradient(op, x, **options):
    y, backward = op.forward(x, **options)
    return y, *backward(np.ones_like(y))


def test_dropout_preserves_the_mean_and_zeroes_a_fraction_p(xp):
    x = xp.ones((200, 200), dtype="float32")
    y = to_host(ops.dropout(Tensor(x), p=0.25, rng=np.random.default_rng(0)).data)
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert abs(y.mean() - 1) < 0.02


@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("channels", [1, 6])
def test_conv2d_is_the_sum_over_its_window(stride, padding, channels, rng, xp):
    x, w = rng.standard_normal((6, 7, 2, channels)), rng.standard_normal((3, 2, channels, 4))
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)))
    y = to_host(ops.conv2d(Tensor(to_device(x, xp)), to_device(w, xp), stride=stride, padding=padding).data)
    for h in range(y.shape[0]):
        for k in range(y.shape[1]):
            window = padded[stride * h:stride * h + 3, stride * k:stride * k + 2]
            np.testing.assert_allclose(y[h, k], np.einsum("ijbc,ijck->bk", window, w), atol=1e-12)
    assert y.shape[:2] == ((6 + 2 * padding - 3) // stride + 1, (7 + 2 * padding - 2) // stride + 1)


@pytest.mark.parametrize("module, size, op, shapes, options", [
    ("conv", "ITEMS", "conv2d", [(4, 5, 5, 6), (3, 3, 6, 2)], {"stride": 2, "padding": 1}),
    ("conv", "PIECE", "conv2d", [(4, 5, 6, 6), (3, 3, 6, 2)], {"padding": 1}),
    ("columns", "CACHE", "conv2d", [(4, 5, 5, 1), (3, 3, 1, 2)], {"padding": 1}),
    ("columns", "PIXELS", "conv2d", [(5, 5, 5, 2), (3, 3, 2, 2)], {"stride": 2, "padding": 1}),
    ("columns", "SMALL_PRODUCT", "conv2d", [(4, 5, 120, 1), (3, 3, 1, 2)], {}),
    ("elementwise", "SLICE", "relu", [(5, 7)], {}),
    ("pool", "SLICE", "max_pool2d", [(7, 5, 3, 2)], {}),
    ("pixel_rows", "WIDTH", "batch_norm", [(4, 3, 5, 2), (2,), (2,)], {"relu": True}),
])
@pytest.mark.parametrize("count", [1, 3])
def test_the_division_of_work_changes_only_rounding(module, size, op, shapes, options, count, rng, monkeypatch):
    arrays = [rng.standard_normal(shape) for shape in shapes]
    results = []
    for value in (1, 2, 12, 10_000):                         # ITEMS of 5 images; WIDTH below, at and above 2 channels
        monkeypatch.setattr(importlib.import_module(f"minicl.ops.{module}"), size, value)
        with threads(count):
            y, backward = getattr(ops, op).forward(*arrays, **options)
            results.append([y, *backward(np.cos(np.arange(y.size)).reshape(y.shape))])
    for result in results[1:]:
        for a, b in zip(results[0], result):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("n, C, K", [(0, 3, 2), (1, 5, 2), (3, 7, 4), (7, 7, 1), (8, 7, 1), (50, 4, 3)])
def test_linear_divides_any_shape_among_threads(n, C, K, count, rng):
    """With few rows, the rows of dw are divided among threads; with many, the sum over rows."""
    x, w, g = (rng.standard_normal(shape) for shape in ((n, C), (C, K), (n, K)))
    with threads(count):
        y, backward = ops.linear.forward(x, w)
        dx, dw, _ = backward(g)
    for result, expected in ((y, x @ w), (dx, g @ w.T), (dw, x.T @ g)):
        np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize("rows, pieces", [(1, (1, 200)), (4, (4, 64)), (5, (1, 512)), (7, (8, 64)), (14, (32, 64)), (9, (0, 64))])
def test_convolutions_divide_their_work_into_even_parts(rows, pieces):
    parts = conv._parts(rows, pieces, lambda part: range(min(part[0] + 1, 3)))                # most taps in the last rows
    found = [(row, piece) for row, end, lo, hi in parts for piece in range(pieces[0])[lo:hi] if end == row + 1]
    assert sorted(found) == [(row, piece) for row in range(rows) for piece in range(pieces[0])]
    taps = [min(row + 1, 3) for row, *_ in parts]
    assert taps == sorted(taps, reverse=True)
    assert len(parts) >= min(8, rows * pieces[0])
    assert max((len(range(pieces[0])[lo:hi]) for _, _, lo, hi in parts), default=0) <= max(1, 512 // pieces[1])


@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_of_no_images_has_no_output_and_a_zero_weight_gradient(stride, xp):
    x = xp.zeros((5, 6, 0, 6))
    w = xp.ones((3, 3, 6, 4))
    y, backward = ops.conv2d.forward(x, w, stride=stride, padding=1)
    dx, dw = backward(y)
    assert y.shape[2:] == (0, 4) and dx.shape == x.shape
    np.testing.assert_array_equal(to_host(dw), np.zeros(w.shape))


def test_pools_ignore_rows_that_fill_no_window(rng):
    x = rng.standard_normal((5, 4, 2, 3))
    windows = x[:4].reshape(2, 2, 2, 2, 2, 3)
    np.testing.assert_allclose(ops.max_pool2d(Tensor(x)).data, windows.max(axis=(1, 3)))
    np.testing.assert_allclose(ops.avg_pool2d(Tensor(x)).data, windows.mean(axis=(1, 3)))


def test_max_pool_sends_the_gradient_of_a_tie_to_one_entry():
    x = Tensor(np.zeros((2, 2, 1, 1)), requires_grad=True)
    ops.max_pool2d(x).sum().backward()
    np.testing.assert_array_equal(x.grad.reshape(-1), [1, 0, 0, 0])


@pytest.mark.parametrize("size, stride", [(1, 1), (2, 2), (3, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("entries", [1, 2**16])
def test_max_pool_sends_g_to_the_first_maximum_of_each_window(size, stride, entries, rng, xp, monkeypatch):
    monkeypatch.setattr(importlib.import_module("minicl.ops.pool"), "SLICE", entries)
    x = rng.integers(0, 3, (8, 7, 2, 3)).astype("float64")                   # ties in nearly every window
    y, backward = ops.max_pool2d.forward(to_device(x, xp), size=size, stride=stride)
    g = rng.standard_normal(y.shape)
    dx = np.zeros_like(x)
    for h, w, b, c in np.ndindex(y.shape):
        window = x[stride * h:stride * h + size, stride * w:stride * w + size, b, c]
        i, j = np.unravel_index(window.argmax(), window.shape)
        assert to_host(y)[h, w, b, c] == window[i, j]
        dx[stride * h + i, stride * w + j, b, c] += g[h, w, b, c]
    np.testing.assert_array_equal(to_host(backward(to_device(g, xp))[0]), dx)


def test_max_shares_the_gradient_of_a_tie():
    x = Tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 0.5])


def test_batch_norm_normalises_even_far_from_zero(rng):
    """The mean is 1000 standard deviations from 0, where float32 sums of squares about 0 would lose all digits."""
    x = (1000 + rng.standard_normal((5000, 3))).astype("float32")
    y = ops.batch_norm(Tensor(x), np.ones(3, "float32"), np.zeros(3, "float32")).data
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-2)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-2)


def test_batch_norm_reports_its_statistics(rng):
    x = rng.standard_normal((50, 3))
    seen = []
    ops.batch_norm(Tensor(x), np.ones(3), np.zeros(3), on_statistics=lambda *s: seen.extend(s))
    np.testing.assert_allclose(seen[0], x.mean(axis=0))
    np.testing.assert_allclose(seen[1], x.var(axis=0))
    assert seen[2] == 50


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis, equal", [(None, np.s_[:]), (0, np.s_[:, 1]), (1, np.s_[2])])
def test_the_gradient_of_std_is_0_where_all_values_are_equal(dtype, axis, equal, xp):
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    values[equal] = 3
    x = Tensor(to_device(values, xp), requires_grad=True)
    y = x.std(axis=axis)
    y.sum().backward()
    np.testing.assert_allclose(to_host(y.data), values.std(axis=axis), rtol=1e-5)
    assert np.isfinite(to_host(x.grad)).all() and not to_host(x.grad)[equal].any()


def test_a_gradient_that_is_not_needed_is_not_computed(rng):
    x, w = Tensor(rng.standard_normal((4, 4, 2, 5))), Tensor(rng.standard_normal((3, 3, 5, 2)), requires_grad=True)
    y, backward = ops.conv2d.forward(x.data, w.data, needs_grad=(False, True))
    assert backward(y)[0] is None
    ops.conv2d(x, w).sum().backward()
    assert x.grad is None and w.grad is not None


# ---------------------------------------------------------------- rows without a direction

ON_THE_SPHERE = ["l2_normalize", "cosine_similarity", "info_nce", "nt_xent", "clip_loss", "siglip", "alignment_loss",
                 "uniformity_loss", "sup_con", "dcl", "triplet"]


@pytest.mark.parametrize("case", [case for case in CASES if case.op.__name__ in ON_THE_SPHERE], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_of_zeros_or_shorter_than_eps_gets_a_zero_gradient(case, xp, dtype):
    function, inputs = call(case, xp, dtype)
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    rows = [t for t in tensors if t.ndim == 2]
    for t in rows:
        t.data[0], t.data[-1] = 0, 1e-14
    y = function(*tensors)
    y.backward(to_device(np.cos(np.arange(y.size)).reshape(y.shape).astype(dtype), xp))
    assert np.isfinite(to_host(y.data)).all() and all(np.isfinite(to_host(t.grad)).all() for t in tensors)
    for t in rows:
        np.testing.assert_array_equal(to_host(t.grad)[[0, -1]], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alignment_of_views_that_coincide_has_a_zero_gradient_for_every_alpha(dtype, xp):
    z = to_device(np.eye(3, dtype=dtype)[[0, 0, 1]], xp)
    for alpha in (0.5, 1, 1.5, 2, 3):
        for gradient in contrastive.alignment_loss.forward(z, z, alpha=alpha)[1](1.0):
            np.testing.assert_array_equal(to_host(gradient), 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2])
def test_to_pixel_major_moves_images_of_any_layout_in_memory(channels, count, xp):
    x = np.random.default_rng(0).standard_normal((4, 6, 5, 2 * channels)).astype("float32")
    layouts = [x[..., :channels], x[..., ::2], x[::-1, :, ::2, :channels], x[..., channels - 1::-1], np.asfortranarray(x),
               x.transpose(2, 1, 0, 3), x[:0], x[..., :0], np.broadcast_to(x[:1, ..., :channels], (3, 6, 5, channels))]
    with threads(count):
        for image in layouts:
            y = to_host(ops.to_pixel_major(to_device(image, xp)).data)
            assert y.flags.c_contiguous and y.dtype == "float32"
            np.testing.assert_array_equal(y, image.transpose(1, 2, 0, 3))


@pytest.mark.parametrize("op", [lambda x: ops.relu(x), lambda x: ops.add_relu(x, x)], ids=["relu", "add_relu"])
def test_relu_has_no_slope_at_zero(op, xp):
    x = Tensor(xp.asarray([[0.0, -0.0, 1.0, -1.0, 1e-30]]), requires_grad=True)
    op(x).sum().backward()
    assert to_host(x.grad != 0).tolist() == [[False, False, True, False, True]]


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize("call, words", [
    (lambda x: ops.add(x, np.arange(3)), "add: y must be a floating-point"),
    (lambda x: ops.add(x, Tensor(np.ones(3, "float32"))), "add: x is float64 but y is float32"),
    (lambda x: ops.relu([1.0, 2.0]), "relu: x must be"),
    (lambda x: ops.matmul(x, Tensor(np.ones((4, 2)))), r"matmul: expected shapes .* got \(2, 3\) @ \(4, 2\)"),
    (lambda x: ops.linear(x, np.ones((4, 2))), "linear: expected x"),
    (lambda x: ops.conv2d(x, np.ones((3, 3, 1, 1))), "conv2d: expected x"),
    (lambda x: ops.conv2d(np.ones((2, 2, 1, 1)), np.ones((3, 3, 1, 1))), "conv2d: a 3 x 3 kernel does not fit"),
    (lambda x: ops.max_pool2d(x), "max_pool2d: expected x"),
    (lambda x: ops.batch_norm(x[:1], np.ones(3), np.zeros(3)), "batch_norm: needs at least 2 values"),
    (lambda x: ops.layer_norm(x, np.ones(2), np.zeros(3)), "layer_norm: expected"),
    (lambda x: ops.embedding(np.array([0.5]), x), "embedding: ids must be an array of integer type"),
    (lambda x: ops.where(np.array([1, 0, 1]), x, x), "where: condition must be an array of bool type"),
    (lambda x: ops.dropout(x, p=1.0, rng=None), r"dropout: p must be a number in \[0, 1\)"),
    (lambda x: ops.clip(x, low=2, high=1), "clip: expected low <= high"),
    (lambda x: ops.var(x, axis=0, correction=2), "var: needs more than"),
    (lambda x: ops.pow(x, exponent=x), r"pow: exponent cannot be a Tensor.*x\*\*p as exp\(p log x\)"),
    (lambda x: x[x.data > 0], "for a bool mask use ops.where"),
    (lambda x: ops.pad(x, widths=((1, 1),)), "pad: widths must be 2 pairs"),
    (lambda x: contrastive.log_softmax(x, 0), "log_softmax: tau must be a number in .1e-30, 1e20., got 0"),
    (lambda x: contrastive.softmax(x, -1.0), "softmax: tau must be"),
    (lambda x: contrastive.cosine_similarity(x, np.ones((2, 4))), "cosine_similarity: expected x"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(Tensor(np.ones((2, 3))))
