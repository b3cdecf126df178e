"""The emulated GPU computes, counts launches, and reports errors that a real GPU does not."""

import shutil

import numpy as np
import pytest
from device_counts import launches, waits
from host_cuda import build, device, kernels
from training_steps import STEPS

from minicl import get_backend

emulated = pytest.mark.skipif("config.getoption('--backend') != 'cupy-host'", reason="needs --backend cupy-host")


@pytest.fixture
def cp():
    return get_backend("cupy")


# ---------------------------------------------------------------- availability, and the translation of kernels

def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.Unavailable, match=r"needs g\+\+"):
        build.build()


def test_an_incomplete_folder_is_not_left_behind(tmp_path):
    def make(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise build.Unavailable("no network")
    with pytest.raises(build.Unavailable):
        build._once(tmp_path / "wheels", make)
    assert not list(tmp_path.iterdir())


def test_a_failed_command_raises_with_what_was_attempted():
    with pytest.raises(build.Unavailable, match="(?s)pip could not fetch CuPy.*no-such-option"):
        build._pip("install", "--no-such-option")


@pytest.mark.parametrize("body, mode", [("CUPY_FOR(i, n) x[i] = 1;", kernels.ONE_THREAD), ("x[threadIdx.x] = 1;", kernels.EACH_THREAD),
                                        ("__syncthreads(); x[threadIdx.x] = 1;", kernels.FIBERS)])
def test_a_kernel_is_translated_to_the_mode_that_it_needs(body, mode):
    text = kernels.translate(f'extern "C" __global__ void __launch_bounds__(32) fill(float* x, int n) {{ {body} }}')
    assert f"host_mode = {mode};" in text and "HOST_KERNEL(fill, fill)" in text


# ---------------------------------------------------------------- computing

@emulated
def test_kernels_that_synchronise_blocks_are_correct(cp, rng):
    x = rng.standard_normal((700, 33), dtype="float32")
    there = cp.asarray(x)
    np.testing.assert_allclose(there.sum(axis=0).get(), x.sum(axis=0, dtype="float64"), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(there.max(axis=1).get(), x.max(axis=1))
    np.testing.assert_array_equal(cp.argsort(there, axis=1).get(), x.argsort(axis=1))


@emulated
@pytest.mark.parametrize("n", [1, 31, 33, 90, 512, 513, 2000])
def test_kernels_that_synchronise_warps_are_correct(n, cp, rng):
    x = rng.random(n) < 0.3
    np.testing.assert_array_equal(cp.asarray(x).nonzero()[0].get(), x.nonzero()[0])
    np.testing.assert_array_equal(cp.asarray(x).cumsum().get(), x.cumsum())
    y = rng.random((3, n))
    near = cp.asarray(y).argpartition(n // 2, axis=1).get()
    np.testing.assert_array_equal(np.take_along_axis(y, near, axis=1)[:, n // 2], np.sort(y, axis=1)[:, n // 2])


@emulated
def test_a_deadlock_of_threads_is_an_error(cp):
    kernel = cp.RawKernel("""extern "C" __global__ void wait() {
        if (threadIdx.x % 2) __syncthreads(); else __syncwarp(); }""", "wait")
    with pytest.raises(Exception, match="CUDA_ERROR"):
        kernel((1,), (64,), ())


@emulated
@pytest.mark.parametrize("a, b", [((3, 4), (4, 5)), ((4, 3), (5, 4)), ((7, 3, 4), (7, 4, 2)), ((3, 4), (6, 4, 5))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_correct(a, b, dtype, cp, rng):
    x, y = rng.standard_normal(a).astype(dtype), rng.standard_normal(b).astype(dtype)
    if x.shape[-1] != y.shape[-2]:
        x, y = x.T, y.T
    np.testing.assert_allclose((cp.asarray(x) @ cp.asarray(y)).get(), x @ y, rtol=1e-5, atol=1e-6)


@emulated
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (6, 1), (0, 3)])
def test_arrays_in_fortran_order_are_correct(dtype, shape, cp):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    turned = cp.asfortranarray(cp.asarray(x))
    assert turned.flags.f_contiguous
    np.testing.assert_array_equal(turned.get(), x)


@emulated
@pytest.mark.parametrize("name, arguments", [("random", (3,)), ("standard_normal", (3,)), ("uniform", (-1, 1, 3)), ("integers", (0, 5, 3))])
def test_random_numbers_of_the_device_are_refused(name, arguments, cp):
    for generator in cp.random.default_rng(0), cp.random.Generator(cp.random.Philox4x3210(1)):
        with pytest.raises(NotImplementedError, match=f"Generator.{name}: .*cuRAND"):
            getattr(generator, name)(*arguments)


@pytest.fixture
def cub(cp):
    """CuPy reduces by CUB, as on a GPU: NVRTC compiles CUB's own source, the CPU runs cub.cuh in its place."""
    before = cp._core.get_reduction_accelerators()
    cp._core.set_reduction_accelerators(["cub"])
    yield
    cp._core.set_reduction_accelerators(before)


@emulated
@pytest.mark.parametrize("shape", [(7,), (5000,), (3, 100), (2, 513), (40, 3000)])
def test_reductions_by_cub_are_correct(shape, cub, cp, rng):
    x = rng.standard_normal(shape, dtype="float32")
    there = cp.asarray(x)
    with device.recorded() as operations:
        np.testing.assert_allclose(there.sum(axis=-1).get(), x.sum(axis=-1, dtype="float64"), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(there.mean().get(), x.mean(dtype="float64"), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(there.max(axis=-1).get(), x.max(axis=-1))
        np.testing.assert_array_equal(there.argmax().get(), x.argmax())
    assert x.size < 1000 or any("cupy_cub_" in str(name) for _, name, *_ in operations)


@emulated
@pytest.mark.parametrize("method", ["SimCLR", "CLIP"])
def test_a_training_step_by_cub_computes_the_same(method, cp, request):
    plain, by_cub = STEPS[method](cp), STEPS[method](cp)
    losses = [plain().item() for _ in range(2)]
    request.getfixturevalue("cub")
    np.testing.assert_allclose([by_cub().item() for _ in range(2)], losses, rtol=1e-4)
    assert waits(by_cub) == 0


# ---------------------------------------------------------------- errors that a real GPU does not report

@emulated
def test_uninitialised_memory_is_nan(cp):
    assert np.isnan(cp.empty(1000, dtype="float32").get()).all() and (cp.empty(3, dtype="int64").get() == -1).all()


@emulated
@pytest.mark.parametrize("size", [1, 5, 1000, 1024, 5000])
@pytest.mark.parametrize("write", [True, False])
def test_an_access_beyond_an_array_is_an_error(size, write, cp):
    body = "x[n] = 1;" if write else "x[0] = x[n];"
    kernel = cp.RawKernel(f'extern "C" __global__ void reach(float* x, int n) {{ {body} }}', "reach")
    x = cp.zeros(size, dtype="float32")
    with pytest.raises(Exception, match="outside an array"):
        kernel((1,), (1,), (x, size))
    kernel((1,), (1,), (x, size - 1))                       # the device still works
    assert x.sum().item() in (0, 1)


@emulated
def test_an_access_to_a_freed_array_is_an_error(cp):
    kernel = cp.RawKernel('extern "C" __global__ void write(float* x) { x[0] = 1; }', "write")
    x = cp.zeros(4, dtype="float32")
    address = x.data.ptr
    del x
    with pytest.raises(Exception, match="outside an array"):
        kernel((1,), (1,), (np.uint64(address),))


# ---------------------------------------------------------------- counting

@emulated
def test_launches_and_waits_are_counted(cp):
    x = cp.ones((4, 3), dtype="float32")
    assert launches(lambda: x + 1) == launches(lambda: x @ x.T) == launches(lambda: x.sum(axis=0)) == 1
    assert waits(lambda: x + 1) == 0 and waits(lambda: x.sum().item()) == 1
    with device.recorded() as operations:
        cp.exp(x.T @ x)
    assert operations[0] == ("product", 3, 3, 4, 1) and operations[1][:2] == ("kernel", "cupy_exp__float32_float32")


@emulated
def test_a_device_that_does_not_compute_still_counts(cp):
    x = cp.zeros(3, dtype="float32")
    with device.not_computing():
        assert launches(lambda: x.fill(1)) == 1
    assert x.get().tolist() == [0, 0, 0]


# ---------------------------------------------------------------- graphs

@emulated
def test_a_graph_runs_what_was_captured(cp):
    x = cp.arange(4, dtype="float32")
    out = cp.zeros(4, dtype="float32")
    kernel = cp.ElementwiseKernel("T x", "T y", "y = 2 * x", "twice")
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        kernel(x, out)
        graph = stream.end_capture()
    assert out.get().tolist() == [0, 0, 0, 0]
    x += 1
    graph.launch(stream)
    assert out.get().tolist() == [2, 4, 6, 8] and launches(lambda: graph.launch(stream)) == 1


@emulated
@pytest.mark.parametrize("forbidden, mode, code", [
    (lambda cp, x, stream: stream.synchronize(), "Relaxed", "Unsupported"),
    (lambda cp, x, stream: cp.cuda.Device().synchronize(), "Relaxed", "Unsupported"),
    (lambda cp, x, stream: cp.empty(10_000), "Global", "Unsupported"),
    (lambda cp, x, stream: x.fill(1), "Relaxed", None),
    (lambda cp, x, stream: cp.empty(10_000), "Relaxed", None),
])
def test_a_capture_refuses_synchronisation_and_blocking_allocation(forbidden, mode, code, cp):
    x = cp.zeros(4, dtype="float32")
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture(getattr(cp.cuda.runtime, f"streamCaptureMode{mode}"))
        if code is None:
            forbidden(cp, x, stream)
            stream.end_capture()
            return
        with pytest.raises(Exception, match=f"cudaErrorStreamCapture{code}"):
            forbidden(cp, x, stream)
        with pytest.raises(Exception, match="Invalidated"):
            stream.end_capture()


@emulated
def test_the_default_stream_refuses_work_beside_the_capture_of_a_blocking_one(cp):
    x = cp.zeros(4, dtype="float32")
    stream = cp.cuda.Stream()
    with stream:
        stream.begin_capture()
        with cp.cuda.Stream.null, pytest.raises(Exception, match="on the emulated GPU"):
            x.fill(1)
        with pytest.raises(Exception, match="Invalidated"):
            stream.end_capture()
