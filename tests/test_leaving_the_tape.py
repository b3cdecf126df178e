"""Converting a Tensor that requires a gradient raises an error, since it would leave the tape; .item() and .data
work."""

import math

import numpy as np
import pytest

from minicl import Tensor, no_grad, ops

CONVERSIONS = {
    "float": float, "int": int, "bool": bool, "complex": complex, "round": round, "abs": abs,
    "exp": math.exp, "log": math.log, "hypot": lambda x: math.hypot(x, 1), "isnan": math.isnan, "floor": math.floor,
    "trunc": math.trunc, "isclose": lambda x: math.isclose(x, 1), "fsum": lambda x: math.fsum([x, x]),
    "%": lambda x: "%.3f".__mod__(x), "max": lambda x: max(x, 0.0), "index": lambda x: [1, 2][x],
    "range": range, "np.float32": np.float32, "np.asarray": np.asarray, "np.array": lambda x: np.array([x, x]),
    "np.array of a dtype": lambda x: np.array([x, x], "float32"), "np.exp": np.exp, "np.sum": np.sum,
    "np.add": lambda x: np.add(np.ones(2), x), "np.full": lambda x: np.full(2, x),
    "np.fromiter": lambda x: np.fromiter([x], "float32"), "np.stack": lambda x: np.stack([x, x]),
    "assignment": lambda x: np.zeros(2).__setitem__(0, x), "assignment of all": lambda x: np.zeros(2).__setitem__(..., x),
    "//": lambda x: x // 1, "**": lambda x: 2.0**x, "divmod": lambda x: divmod(x, 2),
}


def leaf(shape):
    return Tensor(np.full(shape, 0.5, "float32"), requires_grad=True)


def on_tape(shape):
    return leaf(shape) * 2.0


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("make", [leaf, on_tape])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_conversion_that_would_lose_the_gradient_is_an_error(conversion, make, shape):
    with pytest.raises((TypeError, ValueError)) as raised:   # in an assignment NumPy raises ValueError
        CONVERSIONS[conversion](make(shape))
    cause = str(raised.value.__cause__ or "")                # NumPy may put its own message first
    assert conversion not in ("float", "exp") or ".item() for the value" in str(raised.value) + cause


def test_tensors_without_a_gradient_convert():
    x = Tensor(np.full((), 0.5, "float32"))
    assert float(x) == 0.5 and math.exp(x) == math.exp(0.5)
    with no_grad():
        assert float(on_tape(())) == 1.0
    assert on_tape(()).item() == 1.0 and float(on_tape(()).detach()) == 1.0 and ops.exp(leaf(())).item() > 1
