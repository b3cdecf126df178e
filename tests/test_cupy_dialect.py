"""The stand-in for CuPy refuses what CuPy refuses, computes what NumPy computes, and counts synchronisations.

Tests that take `cp` state facts about CuPy and also run on the real library where there is a GPU. Tests that take
`strict_xp` run only on the stand-in, which is stricter than CuPy on purpose.
"""

import copy
import json
import operator
import pickle
import sys
import types
import warnings
from unittest import mock

import numpy as np
import pytest
from cupy_dialect import make_listing, strict
from host_cuda import device
from hypothesis import given, settings
from hypothesis import strategies as st

REAL = sys.modules.get("cupy")          # CuPy itself where conftest has loaded it, else the stand-in or nothing
HAS_GPU = REAL is not None and REAL is not strict.stand_in() and REAL.cuda.is_available()


@pytest.fixture(scope="module")
def strict_xp():
    return strict.stand_in()


@pytest.fixture
def installed():
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] not in strict.PACKAGES}
    with mock.patch.dict(sys.modules, others, clear=True):
        yield strict.install()


@pytest.fixture(params=["stand-in", "cupy"] if HAS_GPU else ["stand-in"])
def cp(request):
    return REAL if request.param == "cupy" else request.getfixturevalue("strict_xp")


@pytest.fixture
def host():
    return np.arange(6, dtype=np.float32).reshape(2, 3) + 1


class Tensor:
    """The attributes by which minicl's Tensor takes precedence in NumPy and CuPy."""

    __array_ufunc__ = None
    __array_priority__ = 1000

    def __radd__(self, x):
        return "radd", x

    def __rmatmul__(self, x):
        return "rmatmul", x

    def __lt__(self, x):
        return "lt", x


def waits(action):
    before = strict.synchronisations()
    action()
    return strict.synchronisations() - before


# ---------------------------------------------------------------- host and device

@pytest.mark.parametrize("touch", [np.asarray, np.array, np.exp, np.sum, np.concatenate, np.linalg.norm, np.float64])
def test_numpy_cannot_touch_a_device_array(strict_xp, host, touch):
    with pytest.raises(TypeError, match=r"use xp\.\*|Implicit conversion"):
        touch(strict_xp.asarray(host))


@pytest.mark.parametrize("mix", [
    lambda cp, x, a: x + a, lambda cp, x, a: a + x, lambda cp, x, a: x @ a.T, lambda cp, x, a: a.T @ x,
    lambda cp, x, a: x < a, lambda cp, x, a: cp.maximum(x, a), lambda cp, x, a: cp.where(x > 1, x, a),
    lambda cp, x, a: cp.concatenate([x, a]), lambda cp, x, a: cp.matmul(x, a.T), lambda cp, x, a: x + [1, 2, 3],
    lambda cp, x, a: operator.iadd(x, a), lambda cp, x, a: cp.add(x, [1]), lambda cp, x, a: x + a[0, :0],
])
def test_host_and_device_do_not_mix(cp, host, mix):
    with pytest.raises(TypeError):
        mix(cp, cp.asarray(host), host)


@pytest.mark.parametrize("misuse", [
    lambda cp, x, a: cp.sum(a), lambda cp, x, a: cp.reshape(a, -1), lambda cp, x, a: cp.mean([1.0, 2.0]),
    lambda cp, x, a: x[np.array([0, 1])], lambda cp, x, a: x[[0, 1]], lambda cp, x, a: x < np.array(1.0),
    lambda cp, x, a: operator.setitem(x, ..., a), lambda cp, x, a: pickle.dumps(x), lambda cp, x, a: np.shape(x),
])
def test_the_stand_in_refuses_misuse_that_cupy_accepts(strict_xp, host, misuse):
    with pytest.raises(TypeError):
        misuse(strict_xp, strict_xp.asarray(host), host)


def test_scalars_are_accepted_and_promote_as_in_numpy_2(cp, host):
    x = cp.asarray(host)
    for scalar in (2, 2.0, True, np.float32(2), np.float64(2), np.int64(2)):
        for combine in (operator.add, operator.mul, operator.truediv, operator.pow, operator.lt):
            for left, right in ((x, scalar), (scalar, x)):
                found = combine(left, right)
                expected = combine(*(host if side is x else side for side in (left, right)))
                assert type(found) is cp.ndarray and found.dtype == expected.dtype
                np.testing.assert_allclose(found.get(), expected, rtol=1e-6)


def test_transfers_copy(cp, host):
    x = cp.asarray(host)
    x += 1
    y = x.get()
    y += 1
    np.testing.assert_array_equal(x.get(), host + 1)
    assert cp.asarray(x) is x and cp.array(x) is not x
    np.testing.assert_array_equal(cp.asnumpy(cp.array([x[0], x[1]])), host + 1)
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(np.array(["a"], dtype=object))
    with pytest.raises(TypeError, match="Implicit conversion"):
        cp.array([1.0, x.sum()])


def test_binary_operators_defer_to_a_tensor(cp, host):
    x = cp.asarray(host)
    tensor = Tensor()
    assert (x + tensor)[0] == "radd" and (x + tensor)[1] is x
    assert (x @ tensor)[0] == "rmatmul" and (x > tensor)[0] == "lt"
    with pytest.raises(TypeError):
        x * tensor
    with pytest.raises(TypeError):                          # in-place operators do not defer
        x += tensor


# ---------------------------------------------------------------- arrays

def test_reductions_and_single_entries_stay_on_the_device(cp, host):
    x = cp.asarray(host)
    for scalar in (x.sum(), x.mean(), x.max(), x.argmax(), cp.linalg.norm(x), x[0, 0], cp.exp(1.0),
                   cp.count_nonzero(x), cp.allclose(x, x), cp.array_equal(x, x)):
        assert type(scalar) is cp.ndarray and scalar.shape == ()


def test_views_write_through(cp, host):
    x = cp.asarray(host)
    x[0] += 10
    x.T[2] *= 2
    x.reshape(-1)[4:5].fill(7)
    x[1, 0][...] = 5                                        # in CuPy a single entry is a 0-d view
    entry = x[0, 1]
    entry -= 1
    np.testing.assert_array_equal(x.get(), [[11, 11, 26], [5, 7, 12]])


def test_in_place_operators_cast_only_within_a_kind(cp):
    x, ids = cp.zeros(2, dtype="float32"), cp.zeros(2, dtype="int32")
    x += cp.ones(2)
    assert x.dtype == np.float32
    with pytest.raises(TypeError):
        ids += 0.5
    with pytest.raises(ValueError):
        x += cp.ones((2, 2))


def test_the_default_dtype_is_float64(cp):
    made = [cp.zeros(2), cp.ones(2), cp.empty(2), cp.eye(2), cp.linspace(0, 1, 3), cp.ndarray(2)]
    assert {x.dtype for x in made} == {np.dtype("float64")}


def test_empty_is_filled_with_nan(strict_xp):
    assert np.isnan(strict_xp.empty((2, 2), dtype="float32").get()).all()
    assert np.isnan(strict_xp.empty_like(strict_xp.zeros(2)).get()).all()


def test_arrays_have_cupys_attributes(cp, host):
    x = cp.asarray(host)
    assert (x.shape, x.ndim, x.size, x.nbytes, x.itemsize, x.strides) == ((2, 3), 2, 6, 24, 4, (12, 4))
    assert x.T.shape == (3, 2) and x.flags.c_contiguous and x.T.flags.f_contiguous and len(x) == 2
    assert x.astype("float32", copy=False) is x and x.astype("float64").dtype == np.float64
    assert x[0].T.shape == (3,) and [row.shape for row in x] == [(3,), (3,)]
    assert cp.may_share_memory(x, x[1]) and isinstance(x.data.ptr, int) and x.base is None
    assert copy.deepcopy(x).get().tolist() == host.tolist()
    for broken in (lambda: hash(x), lambda: iter(x.sum()).__next__(), lambda: len(x.sum()), lambda: range(x[0, 0])):
        with pytest.raises(TypeError):
            broken()
    with pytest.raises(AttributeError):
        x.label = "anchor"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_operators_and_reductions_agree_with_numpy(strict_xp, data):
    dtype = st.sampled_from(["float32", "float64", "int32", "int64", "bool"])
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    a = draws.integers(1, 5, shape).astype(data.draw(dtype))
    b = draws.integers(1, 5, shape[-1:]).astype(data.draw(dtype))
    combine = data.draw(st.sampled_from([operator.add, operator.mul, operator.truediv, operator.floordiv,
                                         operator.mod, operator.eq, operator.ge, operator.matmul]))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    x, y = strict_xp.asarray(a), strict_xp.asarray(b)
    for found, expected in ((combine(x, y), combine(a, b)), (x.mean(axis), a.mean(axis)),
                            (strict_xp.sum(y * x, axis=axis, keepdims=True), (b * a).sum(axis=axis, keepdims=True))):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.get(), expected)


# ---------------------------------------------------------------- names and keywords

@pytest.mark.parametrize("unknown", [
    lambda cp, x: x.sum(where=x > 1), lambda cp, x: x.sum(initial=0), lambda cp, x: cp.max(x, where=x > 1),
    lambda cp, x: cp.exp(x, where=x > 1), lambda cp, x: cp.sum(x, 0, None, None, False, 0),
    lambda cp, x: cp.clip(x, min=0), lambda cp, x: cp.einsum("ij->i", x, out=x[:, 0]), lambda cp, x: cp.sum(),
    lambda cp, x: cp.random.default_rng(0).random(2, low=0), lambda cp, x: x.astype("float64", casting="safe"),
])
def test_unknown_arguments_are_refused(cp, host, unknown):
    with pytest.raises(TypeError):
        unknown(cp, cp.asarray(host))


def test_keywords_that_introspection_cannot_find_are_accepted(cp, host):
    x = cp.asarray(host)
    out = cp.empty((2, 3), dtype="float64")
    assert cp.einsum("ij->i", x, dtype="float64", optimize=True).dtype == np.float64
    assert cp.exp(x, out=out, dtype="float64", casting="same_kind") is out
    assert cp.matmul(x, x.T, out=cp.empty((2, 2), dtype="float32")).shape == (2, 2)
    assert cp.meshgrid(x[0], x[0], indexing="ij")[0].shape == (3, 3)


@pytest.mark.parametrize("name", ["errstate", "insert", "geomspace", "block", "unstack", "True_", "float128"])
def test_names_that_cupy_lacks_raise(cp, name):
    assert hasattr(np, name)
    with pytest.raises(AttributeError):
        getattr(cp, name)


@pytest.mark.parametrize("name", ["normal", "permutation", "choice", "shuffle", "multivariate_normal"])
def test_generator_methods_that_cupy_lacks_raise(cp, name):
    with pytest.raises(AttributeError):
        getattr(cp.random.default_rng(0), name)


def test_an_in_place_matrix_product_gives_a_new_array(cp):
    assert not hasattr(cp.ndarray, "__imatmul__")
    x = original = cp.eye(2)
    x @= cp.ones((2, 2))
    assert x is not original


def test_out_is_returned(cp, host):
    x = cp.asarray(host)
    out = cp.empty_like(x)
    assert cp.exp(x, out=out) is out and cp.multiply(x, 2, out) is out
    np.testing.assert_array_equal(out.get(), 2 * host)
    total = cp.empty(3, dtype="float32")
    assert x.sum(axis=0, out=total) is total and cp.sum(x, axis=0, out=total) is total


# ---------------------------------------------------------------- indexing and scatter

def test_scatter_add_adds_up_repeated_ids(cp):
    target = cp.zeros((3, 2), dtype="float32")
    ids = cp.asarray([2, 0, 2])
    cp.add.at(target, ids, cp.ones((3, 2), dtype="float32"))
    np.testing.assert_array_equal(target.get(), [[1, 1], [0, 0], [2, 2]])
    cp.add.at(target, slice(0, 1), 1)
    assert target.get()[0].tolist() == [2, 2]


def test_scatter_accepts_only_the_dtypes_of_cudas_atomics(strict_xp):
    cp = strict_xp                                          # CuPy 14 accepts some of these
    for dtype in ("int64", "int16", "bool"):
        with pytest.raises(TypeError):
            cp.add.at(cp.zeros(3, dtype=dtype), cp.asarray([0, 0]), 1)
    with pytest.raises(TypeError):
        cp.subtract.at(cp.zeros(3), cp.asarray([0, 0]), 1)
    with pytest.raises(NotImplementedError):
        cp.multiply.at(cp.zeros(3), cp.asarray([0, 0]), 1)
    with pytest.raises(NotImplementedError):
        cp.maximum.reduce(cp.zeros(3))


def test_undefined_assignments_are_caught(strict_xp):
    x = strict_xp.zeros((4, 2))
    ids = strict_xp.asarray([1, 1])
    with pytest.raises(AssertionError, match="duplicate"):
        x[ids] = strict_xp.ones((2, 2))
    with pytest.raises(AssertionError, match="duplicate"):
        x[ids, ids] += strict_xp.ones(2)
    x[ids] = 1.0                                            # all writers write the same value
    x[ids, strict_xp.asarray([0, 1])] = strict_xp.ones(2)
    with pytest.raises(AssertionError, match="overlapping"):
        x[1:] = x[:-1]
    x[1:] = x[:-1].copy()
    x[0] = x[1]
    x[:, 0] = x[:, 1]


@pytest.mark.parametrize("reach", [
    lambda cp, x, ids: x[ids], lambda cp, x, ids: x[:, ids], lambda cp, x, ids: x.take(ids, axis=0),
    lambda cp, x, ids: cp.take(x, ids, axis=1), lambda cp, x, ids: operator.setitem(x, ids, 0.0),
    lambda cp, x, ids: cp.add.at(x, ids, 1.0), lambda cp, x, ids: operator.setitem(x, ids, cp.ones((2, 3))),
    lambda cp, x, ids: cp.take_along_axis(x[:2], ids[:, None], axis=1),
])
def test_ids_out_of_bounds_are_caught(strict_xp, reach):
    with pytest.raises(AssertionError, match="wrap"):
        reach(strict_xp, strict_xp.zeros((3, 3)), strict_xp.asarray([0, 3]))


def test_other_indices_fail_as_in_cupy(cp, host):
    x = cp.asarray(host)
    for wrong in (2, (0, 0, 0), cp.asarray([0.0])):
        with pytest.raises(IndexError):
            x[wrong]
    assert x[cp.asarray([-1])].get().tolist() == [[4, 5, 6]] and x[cp.asarray(1)].shape == (3,)
    assert x[..., None].shape == (2, 3, 1) and x[::-1].get().tolist() == host[::-1].tolist()


def test_repeats_must_be_known_on_the_host(strict_xp, host):
    cp = strict_xp
    x = strict_xp.asarray(host)              # CuPy 14 takes them from the device, and synchronises
    assert cp.repeat(x, 2, axis=0).shape == x.repeat([2, 2], axis=0).shape == (4, 3)
    with pytest.raises(ValueError):
        cp.repeat(x, cp.asarray([1, 2]), axis=0)


# ---------------------------------------------------------------- synchronisations

def test_synchronisations_are_counted(strict_xp, host):
    x = strict_xp.asarray(host)
    once = [x.get, lambda: strict_xp.asnumpy(x), x.tolist, lambda: float(x.sum()), lambda: int(x.max()),
            lambda: bool((x > 0).all()), lambda: x.mean().item(), lambda: x[x > 2], lambda: f"{x.sum():.1f}",
            lambda: operator.setitem(x, x > 2, 0.0), lambda: strict_xp.where(x > 0), lambda: strict_xp.nonzero(x),
            lambda: strict_xp.unique(x), strict_xp.cuda.Stream.null.synchronize, strict_xp.cuda.Device().synchronize]
    assert [waits(action) for action in once] == [1] * len(once)
    never = [lambda: x.sum(), lambda: strict_xp.where(x > 2, x, 0), lambda: x[strict_xp.asarray([0])],
             lambda: x[0, 0], lambda: x.shape, lambda: strict_xp.count_nonzero(x),
             lambda: strict_xp.putmask(x, x > 2, 0.0)]
    assert [waits(action) for action in never] == [0] * len(never)


# ---------------------------------------------------------------- the module

def test_installing_twice_gives_the_same_module(installed):
    import cupy
    import cupy.cuda
    import cupy.lib.stride_tricks

    assert cupy is installed is strict.install() and cupy.get_array_module(cupy.zeros(1), 1) is cupy
    assert cupy.get_array_module(np.zeros(1)) is np
    with mock.patch.dict(sys.modules, cupy=types.ModuleType("cupy")), pytest.raises(RuntimeError, match="imported"):
        strict.install()


def test_minicl_accepts_the_stand_in_as_cupy(installed):
    from minicl import backend

    x = installed.ones((2, 3))
    assert backend.get_backend("cupy") is backend.array_module(x) is installed
    assert isinstance(backend.to_host(backend.to_device(np.ones(2), installed)), np.ndarray)
    backend.scatter_add(x, installed.asarray([1, 1]), x.copy())
    assert backend.to_host(x)[:, 0].tolist() == [1, 3] and backend.peak_memory_mib(installed) == 0


def test_devices_and_generators_work_as_in_cupy(cp):
    assert cp.cuda.is_available() and cp.cuda.runtime.getDeviceCount() >= 1
    start, end = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    end.record()
    end.synchronize()
    assert cp.cuda.get_elapsed_time(start, end) >= 0 and cp.get_default_memory_pool().used_bytes() >= 0
    cp.get_default_memory_pool().free_all_blocks()
    if cp is REAL and device.is_there():
        return                                              # the emulated GPU has no cuRAND
    generator = cp.random.default_rng(3)
    out = cp.empty(4, dtype="float32")
    assert generator.standard_normal(4, np.float32, out) is out
    assert generator.uniform(-1, 1, size=(2, 2), dtype=np.float32).dtype == np.float32
    assert generator.random(size=2, dtype="float32").dtype == np.float32
    assert generator.integers(low=0, high=4, size=3, dtype="int32", endpoint=True).dtype == np.int32
    assert generator.standard_exponential(size=2, dtype="float32", method="inv").shape == (2,)
    assert generator.uniform(low=0, high=1, size=2).dtype == generator.standard_normal(2).dtype == np.float64
    ids = generator.integers(0, 5, size=1000)
    assert ids.dtype == np.int64 and int(ids.min()) == 0 and int(ids.max()) == 4
    assert cp.random.Generator(cp.random.XORWOW(1)).random(2).shape == (2,)


def test_cuda_kernels_are_refused(strict_xp):
    with pytest.raises(NotImplementedError, match="CUDA source"):
        strict_xp.ElementwiseKernel("T x", "T y", "y = x", "copy")


# ---------------------------------------------------------------- launches, and cupy.fuse

def test_launches_are_counted(strict_xp, host):
    xp = strict_xp
    x = strict_xp.asarray(host)
    ids = xp.asarray([0])
    mask = x > 0
    none = [lambda: x.T, lambda: x[0], lambda: x.reshape(-1), lambda: x[:, None], lambda: xp.empty(3),
            lambda: xp.broadcast_to(x, (4, 2, 3)), lambda: xp.ascontiguousarray(x), lambda: x.shape,
            lambda: x.astype("float32", copy=False), lambda: operator.setitem(x, 0, x[0])]
    one = [lambda: x + 1, lambda: xp.exp(x), lambda: operator.iadd(x, 1), lambda: x.sum(axis=0), lambda: xp.zeros(3),
           lambda: x.copy(), lambda: x.T.reshape(-1), lambda: x[ids], lambda: operator.setitem(x, 0, 1.0),
           lambda: x @ x.T, lambda: xp.ascontiguousarray(x.T), lambda: -x, lambda: x.astype("float64"),
           lambda: np.float32(2) * x, lambda: xp.asarray(host), lambda: xp.where(mask, x, 0)]
    assert [launches(action) for action in none] == [0] * len(none)
    assert [launches(action) for action in one] == [1] * len(one)
    assert launches(lambda: x[:, :2] @ x[:, :2].T) == 1 + 2  # neither operand has a layout that cuBLAS reads
    assert launches(lambda: xp.concatenate([x] * 3)) == 3 and launches(lambda: xp.concatenate([x] * 20)) == 4


def launches(action):
    before = strict.launches()
    action()
    return strict.launches() - before


def test_a_fused_function_computes_the_same_in_one_launch(cp, host):
    @cp.fuse(kernel_name="update")
    def update(x, y, rate, shift):
        x -= rate * y
        z = cp.sqrt(cp.maximum(x, 0)) if shift is None else x + shift
        z[...] = cp.where(z > 1, z, cp.clip(z, 0, 1)).astype(z.dtype)
        return z, z > y

    for shift in (None, 0.25):
        x, y = cp.asarray(host), cp.asarray(host[0])
        before = strict.launches()
        z, larger = update(x, y, 0.5, shift)
        assert cp is not strict.stand_in() or strict.launches() == before + 1
        expected = host - np.float32(0.5) * host[0]
        np.testing.assert_allclose(x.get(), expected)
        np.testing.assert_allclose(z.get(), np.sqrt(expected) if shift is None else expected + np.float32(shift))
        assert z.dtype == np.float32 and larger.dtype == bool and larger.shape == (2, 3)


@pytest.mark.parametrize("wrong", [
    lambda xp, x, n: x @ x.T, lambda xp, x, n: x[0] + 1, lambda xp, x, n: x + len(x), lambda xp, x, n: x * x.shape[0],
    lambda xp, x, n: x.sum(axis=0), lambda xp, x, n: x.reshape(-1), lambda xp, x, n: xp.zeros_like(x),
    lambda xp, x, n: x if n else -x, lambda xp, x, n: x * (1 - n), lambda xp, x, n: x if n == 2 else -x,
    lambda xp, x, n: operator.setitem(x, 0, 1.0), lambda xp, x, n: xp.add.at(x, 0, 1.0), lambda xp, x, n: x.fill(0.0),
    lambda xp, x, n: xp.concatenate([x, x]), lambda xp, x, n: x.take(0),
])
def test_functions_that_fuse_cannot_trace_are_refused(strict_xp, host, wrong):
    with pytest.raises(TypeError, match="fuse|unsupported operand"):
        strict_xp.fuse(lambda x, n: wrong(strict_xp, x, n))(strict_xp.asarray(host), 2.0)
    strict_xp.asarray(host) @ strict_xp.asarray(host).T      # the failed trace leaves no state behind


def test_a_fused_function_writes_and_returns_whole_shapes(strict_xp, host):
    x, row = strict_xp.asarray(host), strict_xp.asarray(host[0])
    for wrong in (lambda x, row: operator.iadd(row, 1), lambda x, row: (x * row, row * 2)):
        with pytest.raises(AssertionError, match=r"\(3,\) .* broadcast to \(2, 3\)"):
            strict_xp.fuse(wrong)(x, row)
    with pytest.raises(TypeError, match="device arrays, numbers or None"):
        strict_xp.fuse(lambda x, row: x + row)(x, host)


def test_a_count_enters_a_fused_formula_as_a_float(strict_xp, host):
    divide = strict_xp.fuse(lambda x, n: x / n)
    with pytest.raises(AssertionError, match=r"pass float\(n\)"):
        divide(strict_xp.asarray(host), 2)
    assert divide(strict_xp.asarray(host), 2.0).dtype == np.float32
    assert divide(strict_xp.asarray([4]), 2).get().tolist() == [2]


def test_the_stand_in_has_nothing_that_cupy_lacks(strict_xp):
    listing = strict.LISTING
    members = strict.LISTING["members"]
    names = {"same as numpy", "ufuncs", "functions"}
    of_cupy = set().union(*(listing[section] for section in names)) | {"cuda", "random", "linalg", "lib", "ufunc"}
    array = {*listing["methods"], *listing["attributes"]}
    pairs = [(strict_xp, of_cupy), (strict_xp.ndarray, array), (strict_xp.random.Generator, listing["generator"]),
             (strict_xp.linalg, listing["linalg"]), (strict_xp.random, listing["random"]),
             (strict_xp.cuda, members["cuda"]), (strict_xp.cuda.runtime, members["cuda.runtime"]),
             (strict_xp.cuda.Device(), members["cuda.Device"]), (strict_xp.cuda.Stream(), members["cuda.Stream"]),
             (strict_xp.cuda.Event(), members["cuda.Event"]), (strict_xp.zeros(1).flags, members["flags"]),
             (strict_xp.get_default_memory_pool(), members["cuda.MemoryPool"])]
    for mine, cupys in pairs:
        assert {name for name in dir(mine) if not name.startswith("_")} <= set(cupys)
    mine = {name for name, value in vars(strict_xp.ndarray).items() if name.startswith("__") and callable(value)}
    assert mine - {"__init__"} <= set(listing["operators"])


def test_the_listing_equals_that_of_the_installed_cupy():
    if not HAS_GPU:
        pytest.skip("needs CuPy itself: --backend cupy-host or cupy")
    import cupy
    assert cupy.cuda.cublas                                  # as other tests may have loaded it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = json.loads(json.dumps(make_listing.listing()))
    if found["version"] != strict.LISTING["version"]:
        pytest.skip(f"CuPy {found['version']} is installed, the listing is for {strict.LISTING['version']}")
    assert found == strict.LISTING


def test_a_stale_listing_fails_loudly(monkeypatch):
    from cupy_dialect import listing

    monkeypatch.setitem(strict.LISTING, "methods", {})
    with pytest.raises(RuntimeError, match="make_listing.py"):
        listing.signature("methods", "sum")
