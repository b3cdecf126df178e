"""The backend module, the only one that knows both libraries: selection, transfers, sums, products, threads."""

import builtins
import itertools
import os
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from minicl import BackendError, backend, get_backend
from minicl.backend import device, memory, parallel
from minicl.backend import (array_module, column_sums, deviation_sums, fill_diagonals, mean_over, pairwise_dots, parallel_for,
                            product_sums, require_finite, row_dots, row_max, row_means, row_sums, scatter_add, sum_over,
                            threads, to_device, to_host)

# ---------------------------------------------------------------- selecting a library


def test_numpy_is_the_default():
    assert get_backend() is np and get_backend("numpy") is np


def test_an_unknown_backend_is_named():
    with pytest.raises(BackendError, match="expected 'numpy' or 'cupy', got 'torch'"):
        get_backend("torch")


def test_missing_cupy_raises_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)           # as import does for a missing package
    monkeypatch.setattr(builtins, "__import__", failing_import(ModuleNotFoundError("No module named 'cupy'", name="cupy")))
    with pytest.raises(BackendError, match=r"not installed; .*\n.*pip install 'minicl\[cupy\]'"):
        get_backend("cupy")


def test_cupy_that_does_not_import_raises_with_the_reason(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", failing_import(ImportError("libnvrtc.so.12: cannot open shared object")))
    with pytest.raises(BackendError, match="installed but does not import: libnvrtc"):
        get_backend("cupy")


@pytest.mark.parametrize("version, fits", [("13.6.0", False), ("9.0.0rc1", False), ("14.0.0", True), ("15.0.0b1", True)])
def test_cupy_older_than_14_is_refused(version, fits, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__=version, cuda=types.SimpleNamespace(is_available=lambda: False, runtime=None)))
    message = "no GPU is usable" if fits else rf"expected CuPy 14 or newer, got {version}.*\n.*pip install 'minicl\[cupy\]'"
    with pytest.raises(BackendError, match=message):
        get_backend("cupy")


RUNTIME = types.SimpleNamespace(memGetInfo=lambda: (1, 2), getDevice=lambda: 0)


def test_cupy_without_a_gpu_raises_with_the_reason(monkeypatch):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    runtime = types.SimpleNamespace(getDeviceCount=no_driver)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="14.2.0", cuda=types.SimpleNamespace(is_available=lambda: False, runtime=runtime)))
    with pytest.raises(BackendError, match="CuPy 14.2.0 is installed but no GPU is usable .*driver version is insufficient"):
        get_backend("cupy")


def test_a_gpu_that_cannot_compute_raises_with_the_reason(monkeypatch):
    def ones(*args, **options):
        raise RuntimeError("libcublas.so: not found")
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="14.2.0", cuda=types.SimpleNamespace(is_available=lambda: True, runtime=RUNTIME), ones=ones))
    with pytest.raises(BackendError, match="a GPU was found but CuPy cannot run on it.*libcublas"):
        get_backend("cupy")


@pytest.mark.parametrize("precision, tf32", [("tf32", 1), ("bf16", 0)])
def test_a_precision_is_set_before_the_first_product(precision, tf32, monkeypatch):
    def product(*shape, **options):
        raise RuntimeError("CUPY_TF32=" + os.environ["CUPY_TF32"])
    monkeypatch.setenv("CUPY_TF32", "0")
    monkeypatch.setattr(device, "_precision", None)
    gpu = types.SimpleNamespace(compute_capability="80")
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="14.2.0", ones=product,
        cuda=types.SimpleNamespace(is_available=lambda: True, Device=lambda: gpu, runtime=RUNTIME)))
    with pytest.raises(BackendError, match=f"cannot run on it.*CUPY_TF32={tf32}"):
        get_backend("cupy", precision)
    assert device.product_precision() == precision


@pytest.mark.parametrize("name", ["cupy", "numpy"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_precision_that_cannot_be_had_raises(name, precision, monkeypatch):
    if name == "cupy" and "cupy" not in sys.modules:
        pytest.skip("no GPU and no stand-in")
    monkeypatch.setenv("CUPY_TF32", "0")
    monkeypatch.setattr(device, "_precision", None)
    assert get_backend(name) is get_backend(name, "float32")
    with pytest.raises(BackendError, match=f"precision '{precision}': " + ("this process already computes in float32" if
                                                                           name == "cupy" else "NumPy does not have")):
        get_backend(name, precision)
    with pytest.raises(BackendError, match="expected one of float32, tf32, bf16, got 'float16'"):
        get_backend(name, "float16")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_without_the_precision_raises(precision, monkeypatch):
    gpu = types.SimpleNamespace(compute_capability="75")
    monkeypatch.setattr(device, "_precision", None)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(
        __version__="14.2.0", cuda=types.SimpleNamespace(is_available=lambda: True, Device=lambda: gpu)))
    with pytest.raises(BackendError, match=f"'{precision}'.*compute capability 8.0, Ampere.*it has 75; use --precision float32"):
        get_backend("cupy", precision)


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


def test_peak_memory_is_what_the_gpu_holds_beyond_what_it_held_at_first(monkeypatch):
    monkeypatch.setattr(memory, "_before", {})
    free, pool, gpu = [900 * 2**20], [0], [0]
    runtime = types.SimpleNamespace(memGetInfo=lambda: (free[0], 1000 * 2**20), getDevice=lambda: gpu[0])
    gpu_module = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime),
        get_default_memory_pool=lambda: types.SimpleNamespace(total_bytes=lambda: pool[0]))
    memory.note_memory_in_use(gpu_module)
    assert memory.peak_memory_mib(gpu_module) == 0
    free[0] = 840 * 2**20                                    # a graph, whose pool is another, and cuBLAS's workspace
    memory.note_memory_in_use(gpu_module)                    # again, by a second get_backend()
    pool[0] = 10 * 2**20
    assert memory.peak_memory_mib(gpu_module) == 60
    free[0] = 950 * 2**20                                    # another process has ended
    assert memory.peak_memory_mib(gpu_module) == 10
    gpu[0] = 1                                               # never asked for
    assert memory.peak_memory_mib(gpu_module) == 10


@pytest.mark.skipif("config.getoption('--backend') not in ('cupy-host', 'cupy')", reason="needs CuPy itself")
def test_peak_memory_counts_every_pool():
    cupy = get_backend("cupy")
    before = memory.peak_memory_mib(cupy)
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x = cupy.zeros(2**22, dtype="float32")               # 16 MiB, not in the default pool
    assert 16 <= memory.peak_memory_mib(cupy) - before < 64
    del x
    pool.free_all_blocks()



# ---------------------------------------------------------------- moving arrays

def test_an_array_survives_the_transfer_to_the_device_and_back(xp):
    x = np.arange(6.0).reshape(2, 3)
    there = to_device(x, xp)
    assert array_module(there) is xp
    np.testing.assert_array_equal(to_host(there), x)
    assert to_host(x) is x and to_device(x, np) is x


def test_only_an_array_has_an_array_module():
    with pytest.raises(TypeError, match="expected a numpy or cupy array, got list"):
        array_module([1.0])


def test_scatter_add_adds_up_repeats(xp):
    x = xp.zeros(3, dtype="float32")
    scatter_add(x, xp.asarray([0, 2, 2]), xp.asarray([1, 10, 100], dtype="float32"))
    np.testing.assert_array_equal(to_host(x), [1, 0, 110])


@pytest.mark.parametrize("shape", [(2,), (3, 7), (30,), (4, 50)])            # more than 20 ids for 5 rows are sorted
@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "uint64"])
def test_scatter_add_adds_rows(shape, dtype, xp, rng):
    ids = rng.integers(0 if dtype[0] == "u" else -5, 5, shape).astype(dtype)
    before, values = rng.standard_normal((5, 3)), rng.standard_normal((*shape, 3))
    x = xp.asarray(before.copy())
    scatter_add(x, xp.asarray(ids), xp.asarray(values))
    chosen = (ids.astype(int) % 5)[..., None] == np.arange(5)                # (..., 5)
    np.testing.assert_allclose(to_host(x), before + np.tensordot(chosen, values, (range(ids.ndim),) * 2), atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_require_finite_raises_for_nan_and_infinity(bad):
    require_finite(np.ones(3), "x")
    with pytest.raises(FloatingPointError, match="x is not finite"):
        require_finite(np.array([1.0, bad]), "x")


# ---------------------------------------------------------------- sums and products

@pytest.mark.parametrize("shape", [(3,), (17, 3), (300, 4), (3, 40, 5), (5, 1, 2, 7), (2, 600, 3), (0, 3), (3, 0, 2), (600, 0)])
def test_sum_over_is_the_sum_over_any_axes(shape, xp, rng):
    x = rng.standard_normal(shape)
    views = [x, x.T, x[::-1], np.broadcast_to(x[:1], shape) if shape[0] else x]
    for view in views:
        for count in range(len(shape) + 1):
            for axes in itertools.permutations(range(-len(shape), 0), count):
                for keepdims in (False, True):
                    got = to_host(sum_over(to_device(view, xp), axes, keepdims=keepdims))
                    np.testing.assert_allclose(got, view.sum(axis=axes, keepdims=keepdims), atol=1e-12)


@pytest.mark.parametrize("shape, axes", [((1031, 3), (0,)), ((2048, 5), (0,)), ((3, 5003, 2), (1,)), ((7, 11, 29, 4), (0, 1, 2)),
                                         ((2, 60, 60, 3), (1, 2)), ((40, 60, 3, 2), (1, 0))])
def test_sums_and_means_computed_in_parts_equal_numpys(shape, axes, xp, rng):
    x = rng.standard_normal(shape)
    there = to_device(x, xp)
    for view, views in ((x, there), (x[::-1], there[::-1]), (x[..., :1], there[..., :1])):
        for keepdims in (False, True):
            np.testing.assert_allclose(to_host(sum_over(views, axes, keepdims)), view.sum(axis=axes, keepdims=keepdims), atol=1e-11)
            np.testing.assert_allclose(to_host(mean_over(views, axes, keepdims)), view.mean(axis=axes, keepdims=keepdims), atol=1e-12)


@pytest.mark.parametrize("shape, axes", [((40, 30), (0,)), ((513, 30), (0,)), ((100_000, 3), (0,)), ((8, 8, 50, 30), (0, 1, 2)),
                                         ((20, 300, 30), (1,)), ((9, 300, 30), (0, 2)), ((30, 3000), (1,))])
def test_the_error_of_a_sum_does_not_grow_with_its_terms(shape, axes, rng):
    x = 1 + rng.standard_normal(shape, dtype="float32")
    exact = x.sum(axis=axes, dtype="float64")
    transposed = sum_over(np.asfortranarray(x), axes)
    for result in (sum_over(x, axes), transposed, mean_over(x, axes) * (x.size // exact.size)):
        assert np.abs(result / exact - 1).max() < 10 * 2**-24                 # 200 * 2^-24 if added term by term


def test_row_and_column_sums_equal_numpys(xp, rng):
    x = rng.standard_normal((4, 3), dtype="float32")
    for there, here in ((row_sums(to_device(x, xp)), x.sum(axis=1)), (column_sums(to_device(x, xp)), x.sum(axis=0))):
        assert there.dtype == np.float32
        np.testing.assert_allclose(to_host(there), here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(2, 5), (5, 2), (3, 3), (0, 2), (2, 0)])
def test_pairwise_dots_are_a_product_with_the_transpose(n, m, xp, rng):
    x, y = rng.standard_normal((n, 4)), rng.standard_normal((m, 4))
    dots = to_host(pairwise_dots(to_device(x, xp), to_device(y, xp)))
    assert dots.shape == (n, m)
    np.testing.assert_allclose(dots, x @ y.T, rtol=1e-13, atol=1e-13)


# rows of up to 32 are reduced column by column
@pytest.mark.parametrize("shape", [(4, 1), (5, 3), (2, 3, 16), (3, 32), (3, 33)])
def test_maxima_and_means_of_rows_equal_numpys(shape, xp, rng):
    x = rng.standard_normal(shape, dtype="float32")
    x[0, ..., -1] = np.nan
    np.testing.assert_array_equal(to_host(row_max(to_device(x, xp))), x.max(axis=-1, keepdims=True))
    if x.ndim == 2:
        means = row_means(to_device(x, xp))
        assert means.dtype == np.float32
        np.testing.assert_allclose(to_host(means), x.mean(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 255, 256, 1000, 2048, 2500])  # NumPy adds blocks of 256 rows, a GPU parts of 128
def test_two_column_sums_in_one_pass_are_correct(n, xp, rng):
    g, x, o = (rng.standard_normal(shape, dtype="float32") for shape in ((n, 3), (n, 3), 3))
    there = [to_device(each, xp) for each in (g, x, o)]
    for sums, terms in ((deviation_sums(*there[1:]), (x - o, (x - o)**2)), (product_sums(*there), (g, g * (x - o)))):
        for result, term in zip(sums, terms):
            assert result.dtype == np.float32 and result.shape == (3,)
            np.testing.assert_allclose(to_host(result), term.sum(axis=0, dtype="float64"), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (5, 1), (64, 128), (2, 3, 7), (4, 8192), (4, 200_000)])
def test_row_dots_equal_their_float64_sums(shape, xp, rng):
    """In any strides, within rounding also for long rows."""
    x, y = (rng.standard_normal(shape, dtype="float32") for _ in range(2))
    for turn in (np.s_[::-1], np.s_[..., ::-1]):
        terms = x.astype("float64") * y[turn]
        dots = row_dots(xp.asarray(x), xp.asarray(y)[turn])
        assert dots.shape == (*shape[:-1], 1) and dots.dtype == "float32"
        error = np.abs(to_host(dots)[..., 0] - terms.sum(axis=-1))
        most = 1e-6 if shape[-1] < 10**5 else 3e-6
        assert (error <= most * np.sqrt((terms * terms).sum(axis=-1))).all()


def test_the_error_of_column_sums_of_products_does_not_grow_with_the_rows(rng):
    x = 1 + rng.standard_normal((100_003, 8), dtype="float32")
    exact = (x.astype("float64")**2).sum(axis=0)
    for _, squares in (deviation_sums(x, np.zeros(8, "float32")), product_sums(x, x, np.zeros(8, "float32"))):
        assert np.abs(squares / exact - 1).max() < 10 * 2**-24


# ---------------------------------------------------------------- kernels written in CUDA

@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 1)])
@pytest.mark.parametrize("offsets", [(0,), (0, 2, -2), (3, -3), (9,), (6, -6, 0)])
def test_diagonals_are_filled(shape, offsets, xp, rng):
    x = rng.standard_normal(shape, dtype="float32")
    there = xp.asarray(x.copy())
    fill_diagonals(there, offsets, -np.inf)
    rows, columns = np.indices(shape)
    np.testing.assert_array_equal(to_host(there), np.where(np.isin(columns - rows, offsets), -np.inf, x))


def test_additions_work_for_many_arrays_strided_arrays_and_one_array_twice(xp, rng):
    shapes = [(3, 4), (5,), (), (2, 1, 3)] * 9                               # more arrays than one kernel takes
    x = [rng.standard_normal(shape, dtype="float32") for shape in shapes]
    y = [rng.standard_normal((*shape, 2), dtype="float32")[..., 0] for shape in shapes]
    there = [xp.asarray(each.copy()) for each in x]
    additions = backend.Additions()
    for k in [*range(len(x)), 0, 0]:
        additions.add(there[k], xp.asarray(np.stack([y[k]] * 2, axis=-1))[..., 0])
    additions.flush()
    additions.flush()                                                        # a second flush has nothing to add
    for k, result in enumerate(there):
        np.testing.assert_allclose(to_host(result), x[k] + y[k] * (3 if k == 0 else 1), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- slices and threads

@pytest.mark.parametrize("count", [None, 1, 2, 3])
@pytest.mark.parametrize("n, size", [(0, 4), (1, 4), (4, 4), (10, 4), (10, None)])
def test_slices_cover_the_range_in_order(n, size, count):
    def run():
        slices = parallel_for(np, n, lambda lo, hi: (lo, hi), size)
        assert [k for lo, hi in slices for k in range(lo, hi)] == list(range(n))
    if count is None:
        run()
    else:
        with threads(count):
            run()


def test_a_gpu_gets_one_slice():
    if "cupy" in sys.modules:
        assert parallel_for(get_backend("cupy"), 10, lambda lo, hi: (lo, hi), 3) == [(0, 10)]


def test_an_error_in_a_thread_reaches_the_caller_and_the_pool_keeps_working():
    def fail_late(lo, hi):
        if lo == 7:
            raise ValueError("slice 7")
        return lo
    with threads(2):
        with pytest.raises(ValueError, match="slice 7"):
            parallel_for(np, 10, fail_late, 1)
        assert parallel_for(np, 3, lambda lo, hi: lo, 1) == [0, 1, 2]


def test_threads_have_the_callers_errstate():
    x = np.full(10, 3e38, "float32")
    together = threading.Barrier(2)                          # both threads take slices

    def add(lo, hi):
        together.wait()
        return x[lo:hi] + x[lo:hi]

    with threads(2):
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            parallel_for(np, 2, add, 1)
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("error")
            parallel_for(np, 2, add, 1)


@pytest.mark.parametrize("where", ["threadpool_limits", "keep_freed_memory", "_leave"])
def test_ctrl_c_while_a_block_opens_or_closes_leaves_nothing_behind(where, monkeypatch):
    before, alive = blas_threads(), threading.active_count()
    module = threadpoolctl if where == "threadpool_limits" else parallel
    original, pressed = getattr(module, where), []

    def interrupted(*args, **options):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(module, where, interrupted)
    with pytest.raises(KeyboardInterrupt), threads(3):
        assert where == "_leave"
    assert pressed and parallel._pool() is None and blas_threads() == before
    wait_for_threads(alive)


def wait_for_threads(count):
    end = time.monotonic() + 30
    while threading.active_count() > count and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == count


def test_threads_end_with_a_pool_that_nobody_closed():
    alive = threading.active_count()
    pool = parallel._ThreadPool(3)
    assert pool.map(lambda k: k, [(0,), (1,)]) == [0, 1] and threading.active_count() == alive + 2
    del pool
    wait_for_threads(alive)


def test_ctrl_c_while_a_thread_starts_is_not_taken_for_a_lack_of_threads(monkeypatch):
    def start(self):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt), threads(2):
        pass


def test_threads_share_no_iterator():
    """In a free-threaded Python two threads may get the same item from it, or one's index with another's item."""
    class Items(Sequence):
        def __len__(self):
            return 8

        def __getitem__(self, k):
            time.sleep(0.001)                                # lets other threads run, also with the GIL
            return (range(8)[k],)

    with threads(3):
        assert parallel._pool().map(lambda k: k, Items()) == list(range(8))


def test_threads_have_nothing_to_wait_for_without_items():
    with threads(2):
        assert parallel.parallel_map(np, [], len) == []
        assert parallel_for(np, 0, lambda lo, hi: (lo, hi), 1) == [(0, 0)]


def test_a_block_of_threads_restores_the_previous_pool():
    with threads(2):
        with threads(3):
            assert parallel._pool().size == 3
        assert parallel._pool().size == 2
    assert parallel._pool() is None


@pytest.mark.parametrize("most", [2**30, 2**25])             # glibc before 2.35 refuses more than 2**25
def test_memory_is_kept_until_the_outer_block_of_threads_ends(most, monkeypatch):
    settings = []

    def mallopt(parameter, value):
        if parameter == -3 and value > most:                 # the parameter is the mmap threshold
            return 0
        settings.append((parameter, value))
        return 1

    libc = types.SimpleNamespace(mallopt=mallopt, malloc_trim=lambda pad: settings.append("trim"))
    monkeypatch.setattr(memory, "ctypes", types.SimpleNamespace(CDLL=lambda name: libc))
    with threads(1):
        with threads(1):
            pass
        assert settings == [(-3, most), (-1, 2**31 - 1)]
    assert settings[-1] == "trim"
    with threads(1, keep_memory=False):
        assert settings[-1] == "trim"


@pytest.mark.parametrize("count", [0, -1, "two", "1e3", "0x4", "3.5", "1 2", "٣", 1025, 10**12, "9" * 40, 2.0, True])
def test_a_thread_count_must_be_a_whole_number_from_1_to_1024(count, monkeypatch):
    with pytest.raises(BackendError, match="threads: count must be a whole number from 1 to 1024, got"), threads(count):
        pass
    monkeypatch.setenv("MINICL_THREADS", str(count))
    with pytest.raises(BackendError, match="environment variable MINICL_THREADS must be .* 1 to 1024, got"), threads():
        pass
    assert parallel._pool() is None


@pytest.mark.parametrize("unset", ["", "  "])
def test_an_empty_environment_variable_counts_as_unset(unset, monkeypatch):
    monkeypatch.setenv("MINICL_THREADS", unset)
    with threads():
        assert parallel._pool().size == backend.available_cores()


def test_processes_that_train_together_share_the_cores(monkeypatch):
    cores = backend.available_cores()
    for processes, share in ((1, cores), (2, max(1, cores // 2)), (2 * cores, 1)):
        monkeypatch.setattr(parallel, "_sharing", 0)         # restored after the test
        backend.share_cores(processes)
        assert backend.available_cores() == share


def test_a_system_that_refuses_more_threads_raises_with_the_count(monkeypatch):
    class Refused(threading.Thread):
        started = 0

        def start(self):
            if Refused.started == 2:
                raise RuntimeError("can't start new thread")
            Refused.started += 1
            super().start()

    before = threading.active_count()
    monkeypatch.setattr(parallel.threading, "Thread", Refused)
    with pytest.raises(BackendError, match=r"could start only 3 of 5 threads \(can't start new thread\); use fewer"), threads(5):
        pass
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.001)
    assert threading.active_count() <= before and Refused.started == 2


def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=12))
def test_overlapping_blocks_each_close_their_own_pool(order):
    """Blocks of several Python threads may begin and end in any order."""
    before = threading.active_count()
    blas = blas_threads()
    blocks = {}
    for start, count in order:
        if start or not blocks:
            block = threads(count)
            block.__enter__()
            blocks[block] = count
        else:
            block = list(blocks)[count % len(blocks)]
            block.__exit__(None, None, None)
            del blocks[block]
        newest = list(blocks.values())[-1:]
        assert [pool.size for pool in parallel._pools][-1:] == newest
        assert parallel_for(np, 9, lambda lo, hi: lo, 2) == [0, 2, 4, 6, 8]
        assert blas_threads() == ([1] * len(blas) if blocks else blas)
    for block in blocks:
        block.__exit__(None, None, None)
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.0005)
    assert threading.active_count() <= before and parallel._pools == [] and blas_threads() == blas and memory._blocks == 0


def test_two_python_threads_may_each_be_in_a_block():
    entered = threading.Barrier(2)
    leave = threading.Event()
    results = []

    def work():
        with threads(2):
            entered.wait(10)
            leave.wait(10)
            results.append(parallel_for(np, 9, lambda lo, hi: lo, 3))

    other = threading.Thread(target=work)
    other.start()
    with threads(3):
        entered.wait(10)
    assert [pool.size for pool in parallel._pools] == [2]
    leave.set()
    other.join()
    assert results == [[0, 3, 6]] and parallel._pools == []


def test_the_environment_sets_the_count(monkeypatch):
    monkeypatch.setenv("MINICL_THREADS", "3")
    with threads():
        assert parallel._pool().size == 3


# ---------------------------------------------------------------- parallel_sum, nested calls, and forks

@pytest.mark.parametrize("count", [1, 2, 5])
def test_parallel_sum_adds_every_slice_once_and_rounds_the_same_every_time(count):
    def add(lo, hi, total, squares):
        total += np.arange(lo, hi).sum()
        squares[:] += (np.arange(lo, hi)[:, None] * 0.1) .sum(axis=0)
    like = np.zeros(()), np.zeros(3)
    alone = backend.parallel_sum(np, 101, add, *like, size=4)
    with threads(count):
        together, again = (backend.parallel_sum(np, 101, add, *like, size=4) for _ in range(2))
    assert alone[0] == together[0] == 5050
    for a, b, c in zip(alone, together, again):
        np.testing.assert_allclose(a, b, rtol=1e-14)
        np.testing.assert_array_equal(b, c)
    with threads(count):
        assert backend.parallel_sum(np, 0, add, *like, size=4)[0] == 0


def test_an_idle_thread_holds_no_reference_to_the_last_call():
    def work(lo, hi):
        time.sleep(0.001)                                    # gives the other thread time to take slices
    alive = weakref.ref(work)
    with threads(2):
        parallel_for(np, 8, work, 1)
        del work
        until = time.monotonic() + 5
        while alive() is not None and time.monotonic() < until:
            time.sleep(0.001)
        assert alive() is None


def test_nested_calls_of_parallel_for_do_not_deadlock():
    with threads(2):
        inner = parallel_for(np, 4, lambda a, b: sum(parallel_for(np, 50, lambda c, d: c, 1)), 1)
    assert inner == [sum(range(50))] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_works_without_the_threads_and_leaves_the_block():
    code = """
import os, threading, numpy as np
from minicl.backend import parallel_for, threads
def right():
    return parallel_for(np, 4, lambda lo, hi: lo, 1) == [0, 1, 2, 3]
with threads(2):
    child = os.fork()
    if child == 0:
        before = right()
        with threads(2):
            inside = right() and threading.active_count() == 2
if child == 0:
    os._exit(0 if before and inside and right() else 1)                  # its own block has ended as well
assert right()
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("columns", [*range(1, 14), 31, 65, 257])
@pytest.mark.parametrize("n", [5, 64, 256, 1000, 4096])
@pytest.mark.parametrize("layout", ["C", "F", "a part of wider rows"])
def test_the_sums_of_the_last_columns_are_as_accurate_as_those_of_others(columns, n, layout):
    """BLAS adds up the columns after a multiple of four term by term. Equal terms round alike, so that errors add up."""
    x = np.full((n, columns + 4), 0.1, dtype="float32")
    x = np.asfortranarray(x) if layout == "F" else x
    exact = n * np.float64(np.float32(0.1))
    first = np.abs(column_sums(x[:, :4]) / exact - 1).max() * 2**24          # in halves of a rounding
    y = x[:, 4:] if layout == "a part of wider rows" else np.array(x[:, 4:], order=layout)
    assert np.abs(column_sums(y) / exact - 1).max() * 2**24 <= max(8, 1.5 * first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_lock_that_is_held_is_open_in_a_forked_child():
    locks = ("autograd._adding", "check_inputs._lock", "backend.memory._counting", "backend.parallel._entering")
    code = f"""
import os, sys, threading, minicl
import minicl.check_inputs
modules = {{name: sys.modules["minicl." + name.rpartition(".")[0]] for name in {locks}}}
locks = [getattr(module, name.rpartition(".")[2]) for name, module in modules.items()]
held, over = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set(), over.wait()
    for lock in locks:
        lock.release()
thread = threading.Thread(target=hold)
thread.start(), held.wait()
child = os.fork()
if child == 0:
    os._exit(sum(not lock.acquire(timeout=1) for lock in locks))
over.set(), thread.join()
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


def test_a_learned_temperature_below_zero_is_refused():
    from minicl import Tensor
    from minicl.contrastive import nt_xent
    z = np.eye(3)
    with pytest.raises(ValueError, match="nt_xent: tau must be a number in .1e-30, 1e20., got -0.5; learn its logarithm"):
        nt_xent(z, z, Tensor(np.array(-0.5)))


def test_arrays_larger_than_the_free_memory_are_refused_until_a_gpu_is_used():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if not Path("/proc/meminfo").exists():
        pytest.skip("needs Linux")
    with memory.available_memory_only():
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        with pytest.raises(MemoryError):
            np.empty(limit, np.uint8)
        with memory.available_memory_only():
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] <= limit
            get_backend("cupy")
            assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
