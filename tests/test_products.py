"""--precision bf16 rounds the operands of convolutions and linear layers to bfloat16, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from host_cuda import device
from test_ops import call
from training_steps import STEPS

from minicl import Tensor, get_backend, ops
from minicl.backend import device as settled
from minicl.backend import operand, product, to_host
from minicl.ops import columns

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif("config.getoption('--backend') not in ('cupy', 'cupy-host')", reason="needs CuPy itself")
counted = pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU counts products")


@pytest.fixture
def cp(monkeypatch):
    """CuPy, with products in bf16."""
    cupy = get_backend("cupy")
    monkeypatch.setattr(settled, "_precision", "bf16")
    assert operand(cupy.ones(1, dtype="float32")).dtype == "uint16"
    return cupy


def rounded(x):
    """x rounded to 8 significant bits, ties to even, as float64; below the smallest normal number, to multiples of
    2^-133."""
    exponent = np.maximum(np.frexp(x)[1], -125)
    y = np.ldexp(np.rint(np.ldexp(x.astype("float64"), 8 - exponent)), exponent - 8)
    return np.where(np.abs(y) >= 2.0**128, np.copysign(np.inf, x), y)


def float_of(bits):
    return (to_host(bits).astype("uint32") << 16).view("float32")


# ---------------------------------------------------------------- rounding

@pytest.mark.parametrize("tail", [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff], ids=hex)
def test_numbers_at_and_above_every_bfloat16_are_rounded_to_the_nearest(tail, cp):
    x = (np.arange(2**16, dtype="uint32") << 16 | tail).view("float32")
    y = float_of(operand(cp.asarray(x)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, rounded(x).astype("float32"))       # NaN and infinities as well
    assert (np.signbit(y) == np.signbit(x)).all()


def test_only_float32_arrays_on_the_gpu_are_rounded_also_strided_ones(cp, rng):
    x = rng.standard_normal((5, 6, 4), dtype="float32")
    there = cp.asarray(x)
    bits = operand(there[::-1, 1:, ::2].swapaxes(0, 1))
    np.testing.assert_array_equal(float_of(bits), rounded(x[::-1, 1:, ::2].swapaxes(0, 1)))
    assert bits.flags.c_contiguous and operand(x) is x
    there = there.astype("float64")
    assert operand(there) is there
    settled._precision = "float32"
    there = there.astype("float32")
    assert operand(there) is there


# ---------------------------------------------------------------- products

@pytest.mark.parametrize("n, k, m", [(3, 4, 5), (1, 7, 1), (1, 1, 1), (8, 1, 2), (0, 3, 2), (3, 0, 2), (3, 2, 0), (33, 70, 9)])
@pytest.mark.parametrize("turn_x", [False, True])
@pytest.mark.parametrize("turn_y", [False, True])
def test_a_product_is_that_of_rounded_operands(n, k, m, turn_x, turn_y, cp, rng):
    x = rng.standard_normal((k, n) if turn_x else (n, k), dtype="float32")
    y = rng.standard_normal((m, k) if turn_y else (k, m), dtype="float32")
    there = [operand(cp.asarray(a)) for a in (x, y)]
    there = [a.T if turned else a for a, turned in zip(there, (turn_x, turn_y))]
    x, y = x.T if turn_x else x, y.T if turn_y else y
    exact = rounded(x) @ rounded(y)
    out = cp.empty((n + 2, m), dtype="float32")[1:n + 1]
    result = product(*there, out=out)
    assert result is out and product(*there).dtype == "float32"
    for found in (out, product(*there)):
        np.testing.assert_allclose(to_host(found), exact, rtol=1e-5, atol=1e-5)
    if exact.size and k > 4:
        assert np.abs(to_host(out) - x @ y).max() > 1e-4                     # float32 would be closer


def test_operands_that_are_not_contiguous_are_copied(cp, rng):
    x, y = (rng.standard_normal(shape, dtype="float32") for shape in ((8, 6), (6, 8)))
    found = product(operand(cp.asarray(x))[::2, 1:], operand(cp.asarray(y))[1:, ::2])
    np.testing.assert_allclose(to_host(found), rounded(x)[::2, 1:] @ rounded(y)[1:, ::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_nan_and_infinity_reach_the_product(value, cp):
    x = np.ones((2, 3), dtype="float32")
    x[0, 1] = value
    y = to_host(ops.linear.forward(*map(cp.asarray, (x, np.ones((3, 2), dtype="float32"))))[0])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, rounded(x) @ np.ones((3, 2)))
    assert not np.isfinite(y[0]).any() and np.isfinite(y[1]).all()


# ---------------------------------------------------------------- the ops that round

def assert_rounds_operands(op, x, w, cp, rng, *more, **options):
    """Check that the op on the GPU agrees with float64 for rounded operands; return g and the GPU's gradients.

    This holds because the value and the gradients are linear in x, w and g."""
    y, backward = op.forward(rounded(x), rounded(w), *(a.astype("float64") for a in more), **options)
    y_there, backward_there = op.forward(*map(cp.asarray, (x, w, *more)), **options)
    g = rng.standard_normal(y.shape, dtype="float32")
    gradients = backward(rounded(g))[:2]
    gradients_there = backward_there(cp.asarray(g))
    for here, there in zip((y, *gradients), (y_there, *gradients_there)):
        assert there.dtype == "float32"
        np.testing.assert_allclose(to_host(there), here, rtol=1e-5, atol=2e-5)
    return g, gradients_there


@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (4, 1, 2), (5, 3, 4)])
@pytest.mark.parametrize("limit", [1, 20_000, columns.COLUMN_BYTES])
def test_convolutions_round_their_operands(kernel, stride, padding, limit, cp, rng, monkeypatch):
    monkeypatch.setattr(columns, "COLUMN_BYTES", limit)
    x = rng.standard_normal((7, 8, 3, 6), dtype="float32")
    w = rng.standard_normal((kernel, kernel, 6, 5), dtype="float32")
    assert_rounds_operands(ops.conv2d, x, w, cp, rng, stride=stride, padding=padding)


@pytest.mark.parametrize("shape", [(9, 6), (2, 3, 6), (0, 6)])
def test_linear_layers_round_their_operands_but_not_the_bias(shape, cp, rng):
    x, w, b = (rng.standard_normal(size, dtype="float32") for size in (shape, (6, 5), (5,)))
    g, (_, _, db) = assert_rounds_operands(ops.linear, x, w, cp, rng, b)
    np.testing.assert_allclose(to_host(db), g.reshape(-1, 5).sum(axis=0, dtype="float64"), rtol=1e-6, atol=1e-6)


def products(action):
    """{kind: how many products} of action()."""
    with device.recorded() as operations:
        action()
    kinds = [operation[0] for operation in operations if operation[0].endswith("product")]
    return {kind: kinds.count(kind) for kind in kinds}


@counted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_convolutions_and_linear_layers_use_bf16(case, cp):
    function, inputs = call(case, cp, "float32")
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    kinds = products(lambda: function(*tensors).sum().backward())
    assert list(kinds) == ["bf16_product"] if case.op in (ops.conv2d, ops.linear) else "bf16_product" not in kinds


@counted
@pytest.mark.parametrize("method, layers, others", [("SimCLR", 5, 2), ("CLIP", 12, 9)])
def test_a_training_step_has_the_expected_products(method, layers, others, cp):
    """Each convolution and linear layer has 3 products, except dx of the first. The loss and attention have others."""
    step = STEPS[method](cp)
    assert products(step) == {"bf16_product": 3 * layers - 1, "product": others}


@counted
def test_a_process_that_requests_bf16_gets_it():
    code = ("from host_cuda import boot; boot.load(); from minicl import get_backend; from minicl.backend import operand; "
            "print(operand(get_backend('cupy', 'bf16').ones(3, dtype='float32')).get().tolist())")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "[16256, 16256, 16256]\n", done.stderr            # 0x3f80, the upper half of 1.0


def test_training_in_bf16_is_close_to_float32(cp):
    losses = {}
    for precision in ("float32", "bf16"):
        settled._precision = precision
        step = STEPS["SimCLR"](cp)
        losses[precision] = np.array([step().item() for _ in range(4)])
    difference = np.abs(losses["bf16"] - losses["float32"])
    assert 1e-6 < difference.max() < 0.02 and losses["bf16"][-1] < losses["bf16"][0]
