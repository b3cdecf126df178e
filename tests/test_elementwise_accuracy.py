"""The relative error of every elementwise op, value and gradient, over its whole range, against 50-digit decimals."""

import decimal
from decimal import Decimal

import numpy as np
import pytest

from minicl import ops

CONTEXT = decimal.Context(prec=50, Emax=10**12, Emin=-10**12)
ONE = Decimal(1)
C = CONTEXT.multiply(Decimal("0.7978845608028653558798921198687637369517"), ONE)     # sqrt(2/pi)
A = Decimal("0.044715")


def sigmoid(x):
    return ONE / (ONE + min(max(-x, Decimal(-5000)), Decimal(5000)).exp())      # a float64 underflows beyond 750


def tanh(x):
    return 2 * sigmoid(2 * x) - 1 if abs(x) > Decimal("1e-8") else x - x**3 / 3 + 2 * x**5 / 15


def gelu(x):
    return x * sigmoid(2 * C * (x + A * x**3))


def gelu_slope(x):
    s = sigmoid(2 * C * (x + A * x**3))
    return s + x * s * (1 - s) * 2 * C * (1 + 3 * A * x * x)


# op: (options, value, derivative, range)
ONE_INPUT = {
    "neg": ({}, lambda x: -x, lambda x: -ONE, "all"),
    "abs": ({}, abs, lambda x: Decimal(0) if x == 0 else ONE.copy_sign(x), "all"),
    "relu": ({}, lambda x: max(x, Decimal(0)), lambda x: Decimal(int(x > 0)), "all"),
    "leaky_relu": ({"slope": 0.25}, lambda x: x if x > 0 else x / 4, lambda x: ONE if x > 0 else ONE / 4, "all"),
    "clip": ({"low": -2.0, "high": 8.0}, lambda x: min(max(x, Decimal(-2)), Decimal(8)),
             lambda x: Decimal(int(-2 <= x <= 8)), "all"),
    "exp": ({}, Decimal.exp, Decimal.exp, "exp"),
    "log": ({}, Decimal.ln, lambda x: ONE / x, "positive"),
    "sqrt": ({}, Decimal.sqrt, lambda x: ONE / (2 * x.sqrt()), "positive"),
    "tanh": ({}, tanh, lambda x: 4 * sigmoid(2 * x) * sigmoid(-2 * x), "all"),
    "sigmoid": ({}, sigmoid, lambda x: sigmoid(x) * sigmoid(-x), "all"),
    "gelu": ({}, gelu, gelu_slope, "all"),
    "pow-2": ({"exponent": 2}, lambda x: x * x, lambda x: 2 * x, "middle"),
    "pow-3": ({"exponent": 3}, lambda x: x**3, lambda x: 3 * x * x, "middle"),
    "pow-minus-1": ({"exponent": -1}, lambda x: ONE / x, lambda x: -ONE / (x * x), "middle"),
    "pow-half": ({"exponent": 0.5}, Decimal.sqrt, lambda x: ONE / (2 * x.sqrt()), "positive"),
    "pow-1.5": ({"exponent": 1.5}, lambda x: x * x.sqrt(), lambda x: x.sqrt() * 3 / 2, "middle positive"),
}
# gelu's exponent 2u is itself rounded, and exp multiplies that error by |2u|. Its slope has a zero, where sums cancel.
LOSSES = {"gelu": lambda x: 1 + abs(2 * C * (x + A * x**3)) + (20 if abs(x + Decimal("0.75")) < Decimal("0.3") else 0)}
FLUSHED = {"gelu": {"float32": 1e-35, "float64": 1e-297}}  # the error from gelu's limit on its exponent


def points(dtype, kind):
    """Points over the whole range of a dtype: both signs, 0, tails, and large and small numbers."""
    info = np.finfo(dtype)
    largest, smallest = float(info.max), float(info.tiny)
    middle = np.concatenate([np.geomspace(1e-6, 1, 25), np.linspace(0.1, 25, 120), np.geomspace(25, 1e4, 20)])
    wide = np.concatenate([np.geomspace(smallest, 1e-6, 30), middle, np.geomspace(1e4, largest / 2, 30), [largest]])
    if kind == "exp":
        most = float(np.log(info.max)) * 0.999
        return np.concatenate([-middle, [0], middle[middle < most]]).astype(dtype)
    chosen = wide if kind in ("all", "positive") else middle
    zero = [0.0] if kind == "all" else []
    both = chosen if "positive" in kind else np.concatenate([-chosen, zero, chosen])
    return both.astype(dtype)


def worst_error(got, exact, dtype, losses, flushed=0.0):
    """The largest |got - exact| minus `flushed`, in roundings of max(|exact|, the smallest normal number)."""
    tiny = Decimal(float(np.finfo(dtype).tiny))
    rounding = Decimal(float(np.finfo(dtype).eps)) / 2
    worst = 0
    for value, reference, loss in zip(got, exact, losses):
        assert np.isfinite(value), (value, reference)
        error = abs(Decimal(float(value)) - reference) - Decimal(flushed)
        worst = max(worst, error / max(abs(reference), tiny) / rounding / loss)
    return float(worst)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ONE_INPUT)
def test_value_and_gradient_have_small_relative_errors(name, dtype):
    options, value, slope, kind = ONE_INPUT[name]
    op = name.partition("-")[0]
    x = points(dtype, kind)
    with np.errstate(under="ignore"):
        y, backward = getattr(ops, op).forward(x, **options)
        dx, = backward(np.ones_like(x))
    with decimal.localcontext(CONTEXT):
        exact = [Decimal(float(v)) for v in x]
        losses = [LOSSES.get(op, lambda v: ONE)(v) for v in exact]
        for got, reference in ((y, value), (dx, slope)):
            assert worst_error(got, map(reference, exact), dtype, losses, FLUSHED.get(op, {}).get(dtype, 0.0)) < 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum"])
def test_ops_of_two_inputs_have_small_relative_errors(name, dtype, rng):
    x, y = (np.concatenate([s * 10.0 ** rng.uniform(-9, 9, 200) for s in (1, -1)]).astype(dtype) for _ in range(2))
    rng.shuffle(y)
    value, backward = getattr(ops, name).forward(x, y)
    exact = {"add": lambda a, b: (a + b, ONE, ONE), "sub": lambda a, b: (a - b, ONE, -ONE),
             "mul": lambda a, b: (a * b, b, a), "div": lambda a, b: (a / b, ONE / b, -a / (b * b)),
             "maximum": lambda a, b: (max(a, b), Decimal(int(a >= b)), Decimal(int(a < b))),
             "minimum": lambda a, b: (min(a, b), Decimal(int(a <= b)), Decimal(int(a > b)))}[name]
    with decimal.localcontext(CONTEXT):
        references = zip(*(exact(Decimal(float(a)), Decimal(float(b))) for a, b in zip(x, y)))
        for got, reference in zip((value, *backward(np.ones_like(x))), references):
            assert worst_error(got, reference, dtype, [ONE] * 400) < 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_is_accurate_in_the_tails_whose_logarithm_losses_take(dtype):
    x = np.array([-17, -20, -60, -80], dtype=dtype)
    y, backward = ops.sigmoid.forward(x)
    np.testing.assert_allclose(-np.log(y), -x, rtol=1e-6)
    np.testing.assert_allclose(backward(1 / y)[0], 1, rtol=1e-6)            # d log sigmoid(x) / dx = sigmoid(-x)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "relu", "leaky_relu", "abs"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_inputs_give_the_limits(name, dtype):
    x = np.array([-np.inf, np.inf], dtype=dtype)
    y, backward = getattr(ops, name).forward(x)
    limits = {"tanh": ([-1, 1], [0, 0]), "sigmoid": ([0, 1], [0, 0]), "gelu": ([0, np.inf], [0, 1]), "relu": ([0, np.inf],
              [0, 1]), "leaky_relu": ([-np.inf, np.inf], [0.01, 1]), "abs": ([np.inf, np.inf], [-1, 1])}
    for got, expected in zip((y, *backward(np.ones_like(x))), limits[name]):
        np.testing.assert_allclose(got, np.array(expected, dtype=dtype), rtol=1e-6, atol=1e-30)


def test_leaky_relu_without_a_slope_is_relu():
    x = np.array([-np.inf, -2, 0, 3, np.inf])
    y, backward = ops.leaky_relu.forward(x, slope=0.0)
    assert y.tolist() == [0, 0, 0, 3, np.inf] and backward(np.ones(5))[0].tolist() == [0, 0, 0, 1, 1]
