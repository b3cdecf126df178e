"""Winograd's F(2x2, 3x3) agrees with the direct convolution in values and gradients, and is used where it is faster."""

import numpy as np
import pytest

from minicl import ops
from minicl.backend import threads
from minicl.ops import conv, winograd

SHAPES = [(4, 6, 5, 64, 70), (2, 2, 70, 65, 64), (8, 2, 0, 64, 64), (6, 4, 129, 3, 2), (4, 8, 140, 4, 3),
          (2, 4, 3, 257, 130)]                                                                           # H, W, B, C, K


def direct(x, w, needs_grad=(True, True)):
    shift = conv._Shifts(x.shape[:2], (3, 3), 1, 1)
    return conv._conv_by_taps(x, w, shift, needs_grad)


def arrays(H, W, B, C, K, rng):
    return rng.standard_normal((H, W, B, C)), rng.standard_normal((3, 3, C, K)), rng.standard_normal((H, W, B, K))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_y_and_dx_are_those_of_the_direct_form(shape, count, rng):
    x, w, g = arrays(*shape, rng)
    with threads(count):
        y, backward = winograd.conv_by_winograd(x, w, (True, False))
        dx, dw = backward(g)
    y_direct, backward_direct = direct(x, w, (True, False))
    assert dw is None
    np.testing.assert_allclose(y, y_direct, rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, backward_direct(g)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_the_kernel_gradient_is_that_of_the_direct_form(shape, count, rng):
    x, w, g = arrays(*shape, rng)
    with threads(count):
        dx, dw = winograd.conv_by_winograd(x, w, (False, True))[1](g)
    assert dx is None
    np.testing.assert_allclose(dw, direct(x, w)[1](g)[1], rtol=0, atol=1e-10)


def test_the_kernel_gradient_is_the_same_in_every_run(rng):
    x, w, g = (array.astype("float32") for array in arrays(8, 8, 130, 64, 64, rng))
    with threads(2):
        results = [winograd.conv_by_winograd(x, w, (True, True))[1](g) for _ in range(3)]
    for dx, dw in results[1:]:
        assert np.array_equal(dx, results[0][0]) and np.array_equal(dw, results[0][1])


@pytest.mark.parametrize("side, batch, channels, options, used", [
    (8, 64, 128, {"padding": 1}, True), (8, 63, 128, {"padding": 1}, False), (10, 64, 130, {"padding": 1}, True),
    (9, 64, 128, {"padding": 1}, False), (8, 64, 128, {}, False), (8, 64, 128, {"padding": 1, "stride": 2}, False),
    (16, 64, 64, {"padding": 1}, True), (16, 63, 64, {"padding": 1}, False), (16, 70, 63, {"padding": 1}, False),
    (8, 256, 64, {"padding": 1}, False), (4, 256, 128, {"padding": 1}, True), (4, 64, 256, {"padding": 1}, True),
    (4, 63, 256, {"padding": 1}, False), (2, 256, 256, {"padding": 1}, False)])
def test_conv2d_uses_winograd_where_it_is_faster(side, batch, channels, options, used, rng, monkeypatch):
    calls = []

    def watched(*arguments):
        calls.append(arguments)
        return winograd.conv_by_winograd(*arguments)

    monkeypatch.setattr(conv, "conv_by_winograd", watched)
    x, w = rng.standard_normal((side, side, batch, channels)), rng.standard_normal((3, 3, channels, channels))
    y, _ = ops.conv2d.forward(x, w, **options)
    assert bool(calls) == used
    shift = conv._Shifts(x.shape[:2], (3, 3), options.get("stride", 1), options.get("padding", 0))
    np.testing.assert_allclose(y, conv._conv_by_taps(x, w, shift, (True, True))[0], rtol=0, atol=1e-11)
