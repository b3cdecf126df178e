"""x[key]: every kind of key selects NumPy's entries and adds up repeats in the gradient, or is refused."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicl import Tensor, ops
from minicl.backend import to_device, to_host

SHAPE = (4, 3, 2)
IDS = hnp.arrays(st.sampled_from(["int64", "int32", "uint8"]), hnp.array_shapes(min_dims=0, max_dims=2, max_side=3),
                 elements=st.integers(0, 1))
PART = st.one_of(st.integers(-3, 3), st.integers(-2, 1).map(np.int64), st.none(), st.just(...), IDS,
                 st.slices(4), st.lists(st.integers(-2, 1), max_size=5).map(lambda ids: np.array(ids, "int64")))


def naive_gradient(key, g):
    """The gradient (4, 3, 2): each entry of x gets the sum of g over all places that it was copied to."""
    came_from = np.arange(np.prod(SHAPE)).reshape(SHAPE)[key]
    return np.bincount(np.ravel(came_from), weights=np.ravel(g), minlength=np.prod(SHAPE)).reshape(SHAPE)


@settings(max_examples=600)
@given(st.one_of(PART, st.lists(PART, max_size=4).map(tuple)))
def test_any_key_gives_numpys_entries_and_their_gradient_or_numpys_error(key):
    data = np.arange(np.prod(SHAPE), dtype="float64").reshape(SHAPE)
    x = Tensor(data, requires_grad=True)
    try:
        expected = data[key]
    except IndexError:
        with pytest.raises(IndexError):
            x[key]
        return
    y = x[key]
    np.testing.assert_array_equal(y.data, expected)
    g = np.random.default_rng(0).standard_normal(expected.shape)
    y.backward(np.asarray(g))
    np.testing.assert_allclose(x.grad, naive_gradient(key, g))


@pytest.mark.parametrize("key", [(np.array([0, 0, 1]), slice(None)), (slice(None), np.array([[0, 2], [2, 2]])),
                                 (np.array([1, 1]), 0, np.array([0, 0])), (None, np.array([3, 3]), ...)], ids=str)
def test_repeats_add_up_on_both_backends(key, xp):
    there = tuple(to_device(part, xp) if isinstance(part, np.ndarray) else part for part in key)
    x = Tensor(xp.ones(SHAPE), requires_grad=True)
    x[there].sum().backward()
    np.testing.assert_array_equal(to_host(x.grad), naive_gradient(key, np.ones(np.ones(SHAPE)[key].shape)))


Pair = collections.namedtuple("Pair", "row column")


@pytest.mark.parametrize("kind, key", [
    ("a list", [0, 0, 1]), ("a list in a tuple", ([0, 0, 1], slice(None))), ("a tuple in a tuple", ((0, 0, 1), slice(None))),
    ("a tuple in a tuple, alone", ((0, 0, 1),)), ("a range", range(2)), ("a range in a tuple", (range(2), 0)),
    ("a bool", True), ("a bool in a tuple", (0, False)), ("NumPy's bool", (np.True_, 0)),
    ("a mask", np.ones(4, bool)), ("a mask in a tuple", (np.ones(4, bool), 0)), ("a list of bools", [True] * 4),
    ("floats", np.array([0.0, 1.0])), ("a float", (0, 1.0)), ("NumPy's float", (np.float64(1),)),
    ("a word", "0"), ("a set", {0}), ("bytes", b"0"),
    ("masked ids", np.ma.masked_array([0, 1], [True, False])), ("a matrix", np.array([[0, 1]]).view(np.matrix)),
    ("objects", np.array([0, 1], object)), ("a dict", {0: 1}), ("a namedtuple within", (Pair(0, 0),)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_other_kinds_of_key_are_refused(kind, key):
    with pytest.raises(TypeError, match="getitem: expected ints, slices, None, ... or integer arrays, got"):
        Tensor(np.ones(SHAPE), requires_grad=True)[key]


def test_the_errors_name_the_fix():
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"got \[0, 0\]; convert ids with numpy.array\(ids\)"):
        x[[0, 0]]
    for mask in (np.ones(2, bool), True, np.True_):
        with pytest.raises(TypeError, match="for a bool mask use ops.where"):
            ops.getitem(x, key=mask)
