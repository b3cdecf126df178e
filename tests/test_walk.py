"""The backward walk over the tape, which is an exercise. Its ops are defined here, so it needs nothing of
minicl.ops."""

import gc
import weakref

import numpy as np
import pytest

from minicl import Tensor, op
from minicl.autograd import _walk, ancestors
from minicl.backend import to_host


@op(broadcasts=True)
def times(x, y):
    return x * y, lambda g: (g * y, g * x)


@op(broadcasts=True)
def plus(x, y):
    return x + y, lambda g: (g, g)


def leaf(value, requires_grad=True):
    return Tensor(np.array(value, dtype="float64"), requires_grad=requires_grad)


def test_a_walk_of_one_op_gives_each_input_its_gradient():
    x, y = leaf(3.0), leaf(5.0)
    times(x, y).backward()
    assert (x.grad, y.grad) == (5, 3)


def test_a_walk_multiplies_along_a_chain():
    x = y = leaf(2.0)
    for _ in range(10):
        y = times(y, 3.0)
    y.backward()
    assert x.grad == 3.0**10


def test_a_walk_adds_the_gradients_of_different_paths():
    x = leaf(3.0)
    plus(times(x, x), x).backward()                          # x^2 + x
    assert x.grad == 7


def test_a_walk_adds_the_gradients_of_both_inputs_of_one_op():
    """g y is a NumPy number here, which += cannot change in place."""
    x = leaf(3.0)
    times(x, x).backward()
    assert x.grad == 6


def test_a_walk_refuses_a_gradient_that_does_not_fit():
    @op
    def wrong(x):
        return x * 1, lambda g: (np.zeros(3),)

    with pytest.raises(RuntimeError, match="backward of wrong: the gradient of x must be float64 array of shape .., got"):
        wrong(leaf(3.0)).backward()


@pytest.mark.parametrize("wrong", [lambda g: g, lambda g: None, lambda g: [g], lambda g: (g, g), lambda g: g * 1])
@pytest.mark.parametrize("value", [3.0, [3.0, 4.0]])
def test_a_walk_refuses_what_is_not_a_tuple_with_a_gradient_for_each_input(wrong, value):
    @op
    def same(x):
        return x * 1, wrong

    with pytest.raises(RuntimeError, match="backward of same: expected a tuple of 1 gradients, one for each input, got"):
        same(leaf(value)).backward(np.ones_like(value))


def test_a_walk_returns_the_leaves_that_a_gradient_has_reached():
    """An optimizer moves only these."""
    @op
    def first(x, y):
        return x * 1, lambda g: (g, None)

    x, y, constant = leaf(3.0), leaf(4.0), leaf(5.0, requires_grad=False)
    root = times(first(times(x, 2.0), y), constant)
    assert [leaf is x for leaf in _walk(root.node, np.ones(()))] == [True]


def test_a_walk_goes_through_each_node_once():
    """A walk along every path would take 2^60 steps. This walk makes 60 calls of backward."""
    calls = []

    def backward(g):
        calls.append(1)
        assert len(calls) <= 60, "the walk calls the backward of a node more than once"
        return g, g

    @op
    def twice(x, y):
        return x + y, backward

    x = y = leaf(1.0)
    for _ in range(60):
        y = twice(y, y)
    y.backward()
    assert x.grad == 2.0**60 and len(calls) == 60


def test_a_walk_waits_for_the_last_user_of_a_node():
    x = leaf(2.0)
    a = times(x, x)                                          # used now and at the end
    b = times(times(a, 3.0), 5.0)
    plus(a, b).backward()                                    # 16 x^2
    assert x.grad == 64


def test_a_walk_adds_to_existing_gradients_and_shares_no_array(xp):
    x, y = (Tensor(xp.asarray(value), requires_grad=True) for value in (1.0, 2.0))
    plus(x, y).backward()                                    # passes the same array to both
    times(x, 3.0).backward()
    assert (to_host(x.grad), to_host(y.grad)) == (4, 1), "are additions collected, but not made?"


def test_a_walk_changes_no_gradient_that_an_op_returned():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    s = plus(times(x, 1.0), times(y, 1.0))
    kept = []

    @op
    def twice(s):
        return s * 2, lambda g: kept.append(g * 2) or (kept[0],)

    s1 = times(s, 1.0)
    plus(s1, twice(s)).backward(np.ones(2))                  # newest first: twice's is the first to arrive at s
    assert x.grad.tolist() == y.grad.tolist() == [3, 3] and kept[0].tolist() == [2, 2]


def test_a_walk_ends_at_none_and_at_constants():
    @op
    def stop(x):
        return x * 1, lambda g: (None,)

    x, constant = leaf(3.0), leaf(4.0, requires_grad=False)
    times(times(x, stop(times(x, 2.0))), constant).backward()
    assert x.grad == 24 and constant.grad is None


def test_a_walk_frees_the_saved_arrays_and_happens_once():
    saved = []

    @op
    def saves(x):
        array = x.copy()
        saved.append(weakref.ref(array))
        return x * 1, lambda g: (g * array,)

    y = saves(leaf(1.0))
    y.backward()
    gc.collect()
    assert saved[0]() is None, "the walk holds a closure, and what it saved, of a node that it has visited"
    with pytest.raises(RuntimeError, match="was already walked"):
        y.backward()


def test_the_order_is_newest_first():
    x = leaf(2.0)
    a = times(x, x)
    b = plus(a, times(a, 3.0))
    assert [node.op.__name__ for node in ancestors(b.node)] == ["plus", "times", "times"]


def test_a_walk_frees_the_gradients_of_a_node_before_the_next_backward():
    """Otherwise the weight gradients of two layers would be in memory at the same time."""
    alive = []

    @op
    def layer(x, w):
        def backward(g):
            assert all(reference() is None for reference in alive), "the walk holds a gradient that it has used"
            dw = g * x
            alive.append(weakref.ref(dw))
            return g * w, dw
        return x * w, backward

    y = leaf(2.0, False)
    weights = [leaf(np.full(3, value)) for value in (2.0, 3.0, 4.0)]
    for w in weights:
        y = layer(Tensor(np.full(3, 2.0)) if y.ndim == 0 else y, w)
    y.backward(np.ones(3))
    assert len(alive) == 3 and weights[0].grad.tolist() == [24.0] * 3
