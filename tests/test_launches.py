"""On a GPU a training step must not wait for the device and must launch few kernels. Both are counted on the stand-in
for CuPy, and with --backend cupy-host on CuPy itself."""

import importlib
import pkgutil

import numpy as np
import pytest
import training_steps
from benchmarks import steps
from cupy_dialect import device_array
from device_counts import counted, launches, waits
from host_cuda import device
from training_steps import STEPS

import minicl
from minicl import get_backend, ops, optim
from minicl.backend import column_sums, fused, mean_over, sum_of_squares, sum_over, to_host
from minicl.contrastive import clip_loss, info_nce, nt_xent, pairs
from minicl.data.augment import (ColorJitter, GaussianBlur, GaussianNoise, RandomAffine, RandomErasing,
                                 RandomResizedCrop)
from minicl.methods import EMA, frozen_copy
from minicl.nn import ConvNet, Parameter, ResNet18
from minicl.ops import columns

CASES = {case.name: case for case in steps.CASES}


@pytest.fixture
def cupy():
    return get_backend("cupy")


# ---------------------------------------------------------------- whole training steps

# The most launches of a step: augmentation, networks, loss, optimizer and momentum encoder, if any. A launch takes
# about 10 us of the host's time. Without fused formulas, and with one product per tap of a convolution, the counts
# were 636 (SimCLR), 888 (MoCo), 886 (CLIP), 496 (CPC), 912 (BYOL).
MOST_LAUNCHES = {"SimCLR": 114, "SimCLR in colour, SGD": 180, "SimCLR, LARS": 160, "MoCo": 189, "CLIP": 271,
                 "CPC": 205, "BYOL": 163, "SimSiam": 121}


@counted
@pytest.mark.parametrize("method", STEPS)
def test_a_step_never_waits_and_launches_few_kernels(method, cupy):
    step = STEPS[method](cupy)
    step()                                                   # MoCo's queue is empty at first
    assert launches(step) <= MOST_LAUNCHES[method]
    assert waits(step) == 0
    loss = step()
    assert waits(lambda: np.isfinite(loss.item())) == 1      # logging the loss waits once


# ---------------------------------------------------------------- one kernel over all parameters

@counted
@pytest.mark.parametrize("optimizer", [
    lambda named: optim.SGD(named, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda named: optim.SGD(named, 0.1, momentum=0.9),
    lambda named: optim.Adam(named, 0.1, weight_decay=0.1), lambda named: optim.AdamW(named, 0.1, weight_decay=0.1),
])
def test_an_optimizer_step_is_one_kernel_with_decay_and_one_without(optimizer, cupy):
    shapes = [(3, 4), (5, 6), (7,), (8,), (2, 2), (9,)]
    named = [(str(k), Parameter(cupy.ones(shape, dtype="float32"))) for k, shape in enumerate(shapes)]
    step = optimizer(named).step
    for _, p in named:
        (p * 1.0).sum().backward()
    assert launches(step) == 2


@counted
def test_an_ema_update_gathers_and_launches_one_kernel(cupy):
    online = ConvNet((28, 28, 1), (4, 4, 4), rng=np.random.default_rng(0)).to(cupy)
    ema = EMA(online, frozen_copy(online))
    ema.update(0.9)                                     # the first moves the target into one array
    assert launches(lambda: ema.update(0.9)) == 4 + 1


# ---------------------------------------------------------------- convolution

@pytest.mark.parametrize("kernel, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (4, 1, 2), (5, 3, 4),
                                                     (2, 2, 0), (1, 1, 2), ((3, 2), 1, 1), ((2, 5), 2, 3)])
@pytest.mark.parametrize("limit", [1, 20_000, columns.COLUMN_BYTES])
def test_convolution_by_columns_is_convolution(kernel, stride, padding, limit, cupy, rng, monkeypatch):
    monkeypatch.setattr(columns, "COLUMN_BYTES", limit)      # one output row at a time, a few rows, all rows
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    x, w = rng.standard_normal((7, 8, 3, 6)), rng.standard_normal((kh, kw, 6, 5))
    y, backward = ops.conv2d.forward(x, w, stride=stride, padding=padding)
    y_there, backward_there = ops.conv2d.forward(*map(cupy.asarray, (x, w)), stride=stride, padding=padding)
    g = rng.standard_normal(y.shape)
    for here, there in zip((y, *backward(g)), (y_there, *backward_there(cupy.asarray(g)))):
        np.testing.assert_allclose(to_host(there), here, atol=1e-12)


@counted
def test_a_convolution_launches_few_kernels_and_its_columns_are_bounded(cupy, rng, monkeypatch):
    x, w = cupy.zeros((8, 8, 4, 16), dtype="float32"), cupy.zeros((3, 3, 16, 32), dtype="float32")
    y, backward = ops.conv2d.forward(x, w, padding=1)
    assert launches(lambda: ops.conv2d.forward(x, w, padding=1)) == 2            # gather, multiply
    assert launches(lambda: backward(y)) == 2 + 3                            # as many for dw; dx, and w turned around
    assert launches(lambda: ops.conv2d.forward(x, w[:1, :1])) == 1               # 1x1: the product
    monkeypatch.setattr(columns, "COLUMN_BYTES", 2 * 8 * 4 * 9 * 16 * 4)     # two output rows of columns
    sizes = [cols.size for _, cols in columns._columns(x, (3, 3), 1, 1, (8, 8))]
    assert sizes == [2 * 8 * 4 * 9 * 16] * 4


@counted
@pytest.mark.parametrize("tau", [0.5, 0.005])                # below 1/80 exp could overflow: another code path
@pytest.mark.parametrize("loss", ["nt_xent", "info_nce", "clip_loss"])
def test_the_fused_losses_never_hold_all_pairs_on_a_gpu(loss, tau, cupy, rng, monkeypatch):
    monkeypatch.setattr(pairs, "tile_size", lambda xp, n, rows=None: 16 if rows is None else 256 // rows)
    monkeypatch.setattr(pairs, "CACHE_BYTES", 0)
    largest = [0]
    real = device_array.wrap

    def watched(array):
        largest[0] = max(largest[0], array.size)
        return real(array)

    monkeypatch.setattr(device_array, "wrap", watched)       # it makes every array of the stand-in
    z = cupy.asarray(rng.standard_normal((128, 8), dtype="float32"))
    value, backward = {"nt_xent": lambda: nt_xent.forward(z[:64], z[64:], tau),
                       "info_nce": lambda: info_nce.forward(z[:32], z[32:64], z[64:], tau),
                       "clip_loss": lambda: clip_loss.forward(z[:64], z[64:], min(-np.log(tau), np.log(100)))}[loss]()
    backward(cupy.ones((), dtype="float32"))
    assert largest[0] <= 128 * 8                             # the embeddings; a tile is 256, all pairs 2048 or more


# ---------------------------------------------------------------- sums

SHAPES = [(100_352, 32), (25_088, 64), (8192, 128), (524_288, 64), (131_072, 128), (32_768, 256), (65_537, 10)]


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records the grids of kernels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)       # SimCLR's convnet on MNIST at 256, ResNet-18 on CIFAR-10 at 512
def test_column_sums_keep_a_gpu_busy(shape, cupy):
    x = cupy.empty(shape, dtype="float32")
    for action in (lambda: column_sums(x), lambda: sum_over(x, (0,)), lambda: mean_over(x.reshape(1, *shape), (0, 1)),
                   lambda: ops.batch_norm.forward(x, x[0], x[0])):
        with device.not_computing(), device.recorded() as operations:
            action()
        grids = [operation[2] for operation in operations if operation[1] in ("cupy_sum", "deviation_sums")]
        assert len(grids) >= 2 and max(grids) >= 100


def too_few_blocks(operations):
    """(kernel, blocks, entries) of each reduction that keeps few multiprocessors busy for longer than a launch takes: fewer
    than 64 blocks, and more than 2^15 entries for each (5 us at a multiprocessor's share of an H100's memory)."""
    return {(name, blocks, entries) for kind, name, blocks, _, entries in (o for o in operations if o[0] == "kernel")
            if blocks < 64 and entries > 2**15 * blocks}


# The steps above with batches of 256, those of the benchmarks, and two with other optimizers of ResNet-18.
LARGE_STEPS = [*(set(STEPS) - {"MoCo"}), *CASES, "ResNet-18, LARS", "ResNet-18, clipped"]


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records the grids of kernels")
@pytest.mark.parametrize("name", sorted(LARGE_STEPS))
def test_no_reduction_of_a_large_step_leaves_a_gpu_idle(name, cupy, monkeypatch):
    monkeypatch.setattr(training_steps, "N", 256)
    with device.not_computing():
        if name in STEPS:
            step = STEPS[name](cupy)
        elif name in CASES:
            step = CASES[name].minicl(cupy)
        else:
            model = ResNet18((32, 32, 3), rng=np.random.default_rng(0)).to(cupy)
            optimizer = optim.LARS(model, 0.1) if "LARS" in name else optim.AdamW(model, 1e-3)
            images = cupy.empty((256, 32, 32, 3), dtype="float32")

            def step():
                optimizer.zero_grad()
                h = model(images)
                nt_xent(h[:128], h[128:], 0.2).backward()
                optimizer.step(clip_grad_norm=1.0)
        with device.recorded() as operations:
            step()
    assert sum(kind == "kernel" and rest[-1] > 2**16 for kind, *rest in operations) >= 3
    assert too_few_blocks(operations) == set()


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records the grids of kernels")
def test_a_reduction_with_few_blocks_is_found(cupy):
    x = cupy.empty((100_352, 32), dtype="float32")
    with device.not_computing(), device.recorded() as operations:
        x.sum(axis=0), x.sum(axis=1), x.max(), (x + 1), column_sums(x)
    assert too_few_blocks(operations) == {("cupy_sum", 1, x.size), ("cupy_max", 1, x.size)}


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records the grids of kernels")
@pytest.mark.parametrize("shape, axes", [((131_072,), (0,)), ((256, 32, 31), (0, 1, 2)), ((5, 99_991), (1,)), ((3, 300, 300), (1, 2))])
def test_sums_of_few_long_rows_use_the_whole_gpu(shape, axes, cupy, rng):
    x = rng.standard_normal(shape, dtype="float32")
    there = cupy.asarray(x)
    for keepdims in (False, True):
        with device.recorded() as operations:
            sums, means = sum_over(there, axes, keepdims), mean_over(there, axes, keepdims)
        assert too_few_blocks(operations) == set()
        np.testing.assert_allclose(to_host(sums), x.sum(axes, "float64", keepdims=keepdims), atol=2e-2)
        np.testing.assert_allclose(to_host(means), x.mean(axes, "float64", keepdims=keepdims), atol=1e-6)


@pytest.mark.parametrize("size", [1, 900, 5000, 2**17 + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_of_squares_is_in_float64(size, dtype, xp, rng):
    x = 1e25 * rng.standard_normal(size).astype(dtype)
    found = sum_of_squares(xp.asarray(x), 2**12)
    assert found.shape == () and found.dtype == "float64"
    np.testing.assert_allclose(float(found), np.square(x.astype("float64")).sum(), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2500, 32), (5003, 3)])
def test_batch_norm_of_many_rows_agrees_with_numpy(shape, cupy, rng):
    x, w, b, g = (rng.standard_normal(size) for size in (shape, shape[1], shape[1], shape))
    y, backward = ops.batch_norm.forward(x, w, b)
    y_there, backward_there = ops.batch_norm.forward(*map(cupy.asarray, (x, w, b)))
    for here, there in zip((y, *backward(g)), (y_there, *backward_there(cupy.asarray(g)))):
        np.testing.assert_allclose(to_host(there), here, atol=1e-10)


# ---------------------------------------------------------------- fused formulas

@fused
def scaled_sum(xp, x, y, scale, offset):
    x += scale * y
    return xp.sqrt(x) if offset is None else xp.sqrt(x) + offset


def test_a_fused_formula_is_one_launch_and_the_same_formula(xp, rng):
    x, y = (rng.random((3, 4), dtype="float32") for _ in range(2))
    for offset in (None, 2.0):
        there, row = xp.asarray(x.copy()), xp.asarray(y[0])
        result = scaled_sum(there, row, 0.5, offset)
        np.testing.assert_allclose(to_host(there), x + np.float32(0.5) * y[0])
        np.testing.assert_allclose(to_host(result), np.sqrt(x + np.float32(0.5) * y[0]) + (offset or 0), rtol=1e-6)


def fused_functions():
    """Yield (module, name) for every fused function of minicl."""
    for module in pkgutil.walk_packages(minicl.__path__, "minicl."):
        if not module.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if getattr(value, "is_fused", False) and value.__module__ == module.name:
                    yield module.name, name


@pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="only the emulated GPU records the names of kernels")
def test_cupy_makes_one_kernel_of_each_fused_function(cupy):
    """NVRTC compiles each fused function, and it is launched under its own name. Other tests check its values."""
    with device.recorded() as operations:
        for method in ("SimCLR", "SimCLR in colour, SGD", "SimCLR, LARS", "MoCo", "CLIP", "CPC"):
            step = STEPS[method](cupy)
            step(), step()
        rng = np.random.default_rng(0)
        images = cupy.full((4, 8, 8, 3), 0.5, dtype="float32")
        for op in (ops.sigmoid, ops.tanh, ops.logsumexp, ops.max_pool2d):
            value, backward = op.forward(images)
            backward(value)
        ops.add_relu.forward(images, images)
        for transform in (GaussianNoise(), GaussianBlur(), RandomErasing(p=1.0, value=0.5), ColorJitter(), RandomAffine(),
                          RandomResizedCrop(4)):
            transform(images, rng)
        nt_xent.forward(images[:, 0, :, 0], images[:, 1, :, 1], 0.005)[1](cupy.ones((), dtype="float32"))  # small tau
    launched = {name for kind, name, *_ in operations if kind == "kernel"}
    assert {name for _, name in fused_functions()} <= launched
