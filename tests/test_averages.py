"""Moving averages, x = old x + (1 - old) y, at every weight: Adam's moments, EMA, batch norm's averages."""

import numpy as np
import pytest

from minicl import nn
from minicl.backend import follow, to_host, weights
from minicl.methods.ema import EMA, frozen_copy
from minicl.optim import Adam, AdamW

SHARES = [0.0, 1e-30, 1e-9, 0.1, 0.4999, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0]
X = np.array([0, 0, 1, 1e12, 1e-12, 3e-20, 7, 1e30, 1e-3], "float32")
Y = np.array([0, 2, 1, 1e-9, 1e12, 5e19, 7, 1e-8, 1e-3], "float32")


@pytest.mark.parametrize("old", SHARES)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_average_is_exact_up_to_rounding(xp, old, sign):
    right = old * X.astype("float64") + (1 - old) * sign * Y.astype("float64")
    size = old * X.astype("float64") + (1 - old) * Y.astype("float64")
    for out in (False, True):
        x, y = xp.asarray(X.copy()), xp.asarray(sign * Y)
        follow(xp, x, y, *weights(old), out=y if out else None)
        assert (abs(to_host(x) - right) <= 4e-7 * size).all()


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("betas", [(0, 0), (0, 0.999), (0.9, 0), (1e-9, 1e-12), (0.3, 0.1)])
def test_adam_survives_a_gradient_that_falls_by_any_factor(make, betas):
    layer = nn.Linear(3, 3, bias=False, rng=np.random.default_rng(0))
    optimizer = make(layer, 1e-3, betas=betas)
    w = layer.weight.data.astype("float64")
    m = 0.0
    v = 0.0
    for t, g in enumerate([1e15, 1e-3, 1e-3, 1e8, 1e-6], start=1):
        layer.weight.grad[...] = g
        optimizer.step()
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * float(g)**2
        w -= 1e-3 * m / (1 - betas[0]**t) / (np.sqrt(v / (1 - betas[1]**t)) + 1e-8)
        np.testing.assert_allclose(optimizer.state["v"], np.full(9, v), rtol=1e-5)
        np.testing.assert_allclose(layer.weight.data, w, rtol=1e-5)


def test_m_of_0_copies_the_online_weights_and_m_of_1_keeps_the_target():
    online = nn.Linear(3, 3, rng=np.random.default_rng(0))
    target = frozen_copy(online)
    target.weight.data[...], online.weight.data[...] = 1e10, 0.1
    before = target.state_dict()
    EMA(online, target).update(1.0)
    assert all((x == before[name]).all() for name, x in target.state_dict().items())
    EMA(online, target).update(0.0)
    assert all((x == online.state_dict()[name]).all() for name, x in target.state_dict().items())


def test_a_momentum_of_1_takes_the_statistics_of_the_batch(rng):
    norm = nn.BatchNorm(4, momentum=1.0)
    x = rng.standard_normal((50, 4), dtype="float32")
    norm.running_var.data[...] = 1e12
    norm(x)
    np.testing.assert_allclose(norm.running_var.data, x.var(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(norm.running_mean.data, x.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("value", [-1.0, -1e-9, 1.5, 7.0, float("nan")])
def test_a_weight_set_out_of_range_after_construction_is_refused(value):
    layer = nn.BatchNorm(3)
    with pytest.raises(ValueError, match="BatchNorm: momentum must be a number in"):
        layer.momentum = value
    optimizer = Adam(nn.Linear(3, 2, rng=np.random.default_rng(0)), 0.1)
    for betas in ((value, 0.9), (0.9, value)):
        with pytest.raises(ValueError, match=r"Adam: betas\[[01]\] must be a number in"):
            optimizer.betas = betas
