"""The one place that knows both libraries: choosing, moving, products, threads."""

import builtins
import subprocess
import sys
import types

import numpy as np
import pytest
from cupy_dialect import strict

from minicl import BackendError, backend, get_backend
from minicl.backend import (array_module, pixel_matmul, pixel_matmul_sum, require_finite, run_slices, scatter_add, threads,
                            to_device, to_host)

# ---------------------------------------------------------------- which library


def test_numpy_is_the_default():
    assert get_backend() is np and get_backend("numpy") is np


def test_an_unknown_backend_is_named():
    with pytest.raises(BackendError, match="expected 'numpy' or 'cupy', got 'torch'"):
        get_backend("torch")


def test_cupy_not_installed_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)           # what import does for a package that is not there
    monkeypatch.setattr(builtins, "__import__", failing_import(ModuleNotFoundError("No module named 'cupy'", name="cupy")))
    with pytest.raises(BackendError, match=r"not installed; .*\n.*pip install 'minicl\[cupy\]'"):
        get_backend("cupy")


def test_cupy_that_does_not_load_says_why(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", failing_import(ImportError("libnvrtc.so.12: cannot open shared object")))
    with pytest.raises(BackendError, match="installed but does not import: libnvrtc"):
        get_backend("cupy")


def test_cupy_without_a_gpu_says_why(monkeypatch):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    runtime = types.SimpleNamespace(getDeviceCount=no_driver)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="13.6.0", cuda=types.SimpleNamespace(is_available=lambda: False, runtime=runtime)))
    with pytest.raises(BackendError, match="CuPy 13.6.0 is installed but no GPU is usable .*driver version is insufficient"):
        get_backend("cupy")


def test_a_gpu_that_cannot_compute_says_why(monkeypatch):
    def ones(*args, **options):
        raise RuntimeError("libcublas.so: not found")
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="13.6.0", cuda=types.SimpleNamespace(is_available=lambda: True), ones=ones))
    with pytest.raises(BackendError, match="a GPU was found but CuPy cannot run on it.*libcublas"):
        get_backend("cupy")


def failing_import(error):
    real = builtins.__import__

    def fake(name, *args, **options):
        if name == "cupy":
            raise error
        return real(name, *args, **options)

    return fake


def test_importing_minicl_never_imports_cupy():
    code = "import sys, minicl, minicl.contrastive, minicl.nn, minicl.optim, minicl.data, minicl.evaluate, minicl.run; " \
           "print('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# ---------------------------------------------------------------- moving arrays

def test_there_and_back(xp):
    x = np.arange(6.0).reshape(2, 3)
    there = to_device(x, xp)
    assert array_module(there) is xp
    np.testing.assert_array_equal(to_host(there), x)
    assert to_host(x) is x and to_device(x, np) is x


def test_what_is_no_array_has_no_module():
    with pytest.raises(TypeError, match="expected a numpy or cupy array, got list"):
        array_module([1.0])


def test_scatter_add_adds_up_repeats(xp):
    x = xp.zeros(3, dtype="float32")
    scatter_add(x, xp.asarray([0, 2, 2]), xp.asarray([1, 10, 100], dtype="float32"))
    np.testing.assert_array_equal(to_host(x), [1, 0, 110])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_require_finite(bad):
    require_finite(np.ones(3), "x")
    with pytest.raises(FloatingPointError, match="x is not finite"):
        require_finite(np.array([1.0, bad]), "x")


# ---------------------------------------------------------------- products

def test_pixel_products(xp, rng):
    x, w, g = rng.standard_normal((4, 6, 5, 3)), rng.standard_normal((3, 2)), rng.standard_normal((2, 3, 5, 2))
    view = (slice(None, None, 2), slice(None, None, 2))
    np.testing.assert_allclose(to_host(pixel_matmul(to_device(x, xp)[view], to_device(w, xp))), x[view] @ w)
    np.testing.assert_allclose(to_host(pixel_matmul_sum(to_device(x, xp)[view], to_device(g, xp))),
                               np.einsum("hwbc,hwbk->ck", x[view], g))


# ---------------------------------------------------------------- slices and threads

@pytest.mark.parametrize("count", [None, 1, 2, 3])
@pytest.mark.parametrize("n, size", [(0, 4), (1, 4), (4, 4), (10, 4), (10, None)])
def test_slices_cover_the_range_in_order(n, size, count):
    def run():
        slices = run_slices(np, n, lambda lo, hi: (lo, hi), size)
        assert [k for lo, hi in slices for k in range(lo, hi)] == list(range(n))
    if count is None:
        run()
    else:
        with threads(count):
            run()


def test_a_gpu_gets_one_slice():
    if "cupy" in sys.modules:
        assert run_slices(get_backend("cupy"), 10, lambda lo, hi: (lo, hi), 3) == [(0, 10)]


def test_an_error_in_a_thread_reaches_the_caller_and_the_team_goes_on():
    def fail_late(lo, hi):
        if lo == 7:
            raise ValueError("slice 7")
        return lo
    with threads(2):
        with pytest.raises(ValueError, match="slice 7"):
            run_slices(np, 10, fail_late, 1)
        assert run_slices(np, 3, lambda lo, hi: lo, 1) == [0, 1, 2]


def test_threads_are_given_back():
    with threads(2):
        with threads(3):
            assert backend._team.size == 3
        assert backend._team.size == 2
    assert backend._team is None


@pytest.mark.parametrize("count", [0, -1, "two"])
def test_a_thread_count_must_be_positive(count, monkeypatch):
    monkeypatch.setenv("MINICL_THREADS", str(count))
    for argument in (None, count):
        with pytest.raises(ValueError, match="expected a count >= 1"), threads(argument):
            pass


def test_the_environment_sets_the_count(monkeypatch):
    monkeypatch.setenv("MINICL_THREADS", "3")
    with threads():
        assert backend._team.size == 3


# ---------------------------------------------------------------- waiting for the device

@pytest.mark.skipif("config.getoption('--backend') != 'stand-in'", reason="only the stand-in counts synchronisations")
def test_a_training_step_never_waits_for_the_device():
    from minicl import nn, optim
    from minicl.contrastive import nt_xent
    from minicl.data import mnist_views, two_views
    from minicl.methods import SimCLR
    cupy, rng = get_backend("cupy"), np.random.default_rng(0)
    encoder = nn.ConvNet((28, 28, 1), (8, 8, 8), rng=rng)
    model = SimCLR(encoder, nn.projection_head("mlp", encoder.features, dim=8, rng=rng)).to(cupy)
    optimizer = optim.AdamW(model.named_parameters(), 1e-3)
    images = cupy.asarray(rng.random((4, 28, 28, 1), dtype="float32"))
    before = strict.synchronisations()
    for _ in range(2):
        view1, view2 = two_views(mnist_views(), images, rng)
        _, z = model(cupy.concatenate([view1, view2]))
        loss = nt_xent(z[:4], z[4:], 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert strict.synchronisations() == before
    assert np.isfinite(loss.item())


# ---------------------------------------------------------------- accumulate, and threads under stress

@pytest.mark.parametrize("count", [1, 2, 5])
def test_accumulate_adds_every_slice_once_whatever_the_threads(count):
    def add(lo, hi, total, squares):
        total += np.arange(lo, hi).sum()
        squares[:] += (np.arange(lo, hi)[:, None] * 0.1) .sum(axis=0)
    like = np.zeros(()), np.zeros(3)
    alone = backend.accumulate(np, 101, add, *like, size=4)
    with threads(count):
        together = backend.accumulate(np, 101, add, *like, size=4)
    assert alone[0] == 5050
    for a, b in zip(alone, together):
        np.testing.assert_array_equal(a, b)


def test_slices_within_slices_do_not_deadlock():
    with threads(2):
        inner = run_slices(np, 4, lambda a, b: sum(run_slices(np, 50, lambda c, d: c, 1)), 1)
    assert inner == [sum(range(50))] * 4


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_a_forked_child_works_without_the_team():
    code = """
import os, numpy as np
from minicl.backend import run_slices, threads
with threads(2):
    child = os.fork()
    if child == 0:
        os._exit(run_slices(np, 4, lambda lo, hi: lo, 1) != [0, 1, 2, 3])
    print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n"


def test_a_negative_temperature_that_is_learned_is_refused():
    from minicl import Tensor
    from minicl.contrastive import nt_xent
    z = np.eye(3)
    with pytest.raises(ValueError, match="nt_xent: tau must be > 0, got -0.5; learn its logarithm"):
        nt_xent(z, z, Tensor(np.array(-0.5)))
