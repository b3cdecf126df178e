"""ResNet-18 and ResNet-9 for 32x32 images: their published sizes, the formula of a block, and their gradients."""

import numpy as np
import pytest

from minicl import Tensor, no_grad, ops
from minicl.backend import threads, to_device, to_host
from minicl.nn import ResNet9, ResNet18
from minicl.nn.resnet import BasicBlock, Residue

BOTH = pytest.mark.parametrize("network", [ResNet18, ResNet9])


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype="float32")


def parameters_of(model):
    return sum(parameter.size for parameter in model.parameters())


# ---------------------------------------------------------------- sizes

@pytest.mark.parametrize("network, parameters, with_classifier", [
    (ResNet18, 11_168_832, 11_173_962),        # the usual count for CIFAR
    (ResNet9, 6_568_000, 6_573_130),
])
def test_the_number_of_parameters_is_the_published_one(rng, network, parameters, with_classifier):
    model = network((32, 32, 3), rng=rng)
    assert parameters_of(model) == parameters
    assert parameters + 512 * 10 + 10 == with_classifier
    assert model.features == 512


def test_resnet18_has_the_convolutions_of_table_1(rng):
    weights = [p.shape for name, p in ResNet18((32, 32, 3), rng=rng).named_parameters() if p.ndim == 4]
    assert len(weights) == 1 + 16 + 3                                        # stem, two per block, a shortcut per stage
    assert weights[0] == (3, 3, 3, 64)
    assert [w for w in weights if w[0] == 1] == [(1, 1, 64, 128), (1, 1, 128, 256), (1, 1, 256, 512)]


@BOTH
def test_each_image_becomes_one_vector(xp, rng, network):
    model = network((32, 32, 3), width=2, rng=rng).to(xp)
    h = model(to_device(normal(rng, 3, 32, 32, 3), xp))
    assert h.shape == (3, 16) == (3, model.features) and h.dtype == "float32"


@BOTH
def test_images_of_another_shape_are_refused(rng, network):
    expected = rf"{network.__name__}: expected images \(B, 32, 32, 3\), got \(2, 28, 28, 1\)"
    with pytest.raises(ValueError, match=expected):
        network((32, 32, 3), width=2, rng=rng)(normal(rng, 2, 28, 28, 1))


# ---------------------------------------------------------------- what they compute

@pytest.mark.parametrize("inputs, outputs, stride, convolved", [(4, 4, 1, False), (4, 4, 2, True), (4, 8, 1, True)])
def test_a_shortcut_has_a_convolution_only_where_shapes_differ(rng, inputs, outputs, stride, convolved):
    block = BasicBlock(inputs, outputs, rng=rng, stride=stride)
    assert (block.shortcut is not None) is convolved
    assert block(Tensor(normal(rng, 6, 6, 2, inputs))).shape == (6 // stride, 6 // stride, 2, outputs)


def test_a_block_with_a_zero_residual_is_the_identity(rng):
    x = abs(normal(rng, 4, 4, 3, 5))                                         # relu leaves it unchanged
    block = BasicBlock(5, 5, rng=rng)
    residue = Residue(5, rng=rng)
    for layer in (block, residue):
        layer.second.steps[1].weight.data[...] = 0
        np.testing.assert_array_equal(layer(Tensor(x)).data, x)


def test_a_block_agrees_with_its_formula(rng):
    x = normal(rng, 4, 4, 3, 2)
    block = BasicBlock(2, 4, rng=rng, stride=2)

    def convolved(x, w, stride, padding):
        padded = np.pad(x, [(padding, padding)] * 2 + [(0, 0)] * 2)
        k = len(w)
        n = (x.shape[0] + 2 * padding - len(w)) // stride + 1
        return np.array([[np.einsum("ijbc,ijck->bk", padded[stride * r:stride * r + k, stride * c:stride * c + k], w)
                          for c in range(n)] for r in range(n)])

    def normed(y):
        return (y - y.mean(axis=(0, 1, 2))) / np.sqrt(y.var(axis=(0, 1, 2)) + 1e-5)

    w1, w2, w3 = (layer.steps[0].weight.data for layer in (block.first, block.second, block.shortcut))
    f = normed(convolved(np.maximum(normed(convolved(x, w1, 2, 1)), 0), w2, 1, 1))
    expected = np.maximum(normed(convolved(x, w3, 2, 0)) + f, 0)
    np.testing.assert_allclose(block(Tensor(x)).data, expected, atol=2e-5)


@BOTH
def test_evaluation_of_an_image_does_not_depend_on_its_batch(xp, rng, network):
    model = network((8, 8, 3), width=2, rng=rng).to(xp)
    images = to_device(normal(rng, 6, 8, 8, 3), xp)
    model(images)                                                            # updates the running averages
    model.eval()
    with no_grad():
        whole, part = model(images).data, model(images[:2]).data
    np.testing.assert_allclose(to_host(whole[:2]), to_host(part), atol=1e-5)


@BOTH
def test_the_gradient_of_the_whole_network_is_right(xp, network):
    rng = np.random.default_rng(3)
    model = network((8, 8, 2), width=1, rng=rng).to(xp).astype("float64")
    images = to_device(rng.standard_normal((3, 8, 8, 2)), xp)
    names, tensors = zip(*model.named_parameters())
    some = [k for k, name in enumerate(names) if "stem" in name or "second" in name or "shortcut" in name]
    direction = to_device(rng.standard_normal((3, model.features)), xp)

    loss = (model(images) * direction).sum()
    loss.backward()
    for k in some[::3]:                                                      # central differences along a random line
        p = tensors[k]
        step = to_device(rng.standard_normal(p.shape), xp) * 1e-6
        value = []
        for sign in (1, -1):
            p.data += sign * step
            value.append((model(images) * direction).sum().item())
            p.data -= sign * step
        expected = float((p.grad * step).sum())
        assert (value[0] - value[1]) / 2 == pytest.approx(expected, rel=2e-4, abs=1e-11), names[k]


@BOTH
def test_both_backends_compute_the_same(xp, network):
    values = []
    for module in (np, xp):
        rng = np.random.default_rng(0)
        model = network((16, 16, 3), width=2, rng=rng).to(module)
        values.append(to_host(model(to_device(normal(rng, 4, 16, 16, 3), module)).data))
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side, batch, C, K", [(7, 70, 6, 5), (4, 130, 8, 3), (1, 300, 5, 4), (9, 600, 1, 2), (3, 2, 3, 2)])
def test_convolutions_are_the_same_on_any_number_of_threads(side, batch, C, K, stride, count, rng):
    x, w = rng.standard_normal((side, side, batch, C)), rng.standard_normal((3, 3, C, K))
    y, backward = ops.conv2d.forward(x, w, stride=stride, padding=1)
    g = rng.standard_normal(y.shape)
    with threads(count):
        y_threads, backward_threads = ops.conv2d.forward(x, w, stride=stride, padding=1)
        gradients = backward_threads(g)
    for result, expected in zip((y_threads, *gradients), (y, *backward(g)), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-11)
