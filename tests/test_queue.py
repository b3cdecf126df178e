"""The queue of keys is first in, first out for any batches. Keys are normalised and saved, and none enter in
evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor
from minicl.backend import to_device, to_host
from minicl.contrastive import l2_normalize
from minicl.methods import Queue


def unit(*shape, seed=0):
    """Random rows of length 1, of this shape."""
    return l2_normalize.forward(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))[0]


def test_a_queue_starts_empty_and_holds_the_keys_that_entered(xp):
    queue = Queue(5, 3).to(xp)
    keys = unit(2, 3)
    assert len(queue) == 0 and queue.filled().shape == (0, 3)
    queue.enqueue(to_device(keys, xp))
    assert len(queue) == queue.enqueued == 2
    np.testing.assert_allclose(to_host(queue.filled()), keys, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=12))
def test_a_queue_holds_the_last_keys_for_any_batches(capacity, batches):
    """Key t is in row t mod capacity and stays until `capacity` newer keys have entered."""
    queue = Queue(capacity, 2)
    keys = unit(sum(batches) + 1, 2)
    entered = 0
    for batch in (min(batch, capacity) for batch in batches):
        queue.enqueue(keys[entered:entered + batch])
        entered += batch
        newest = range(max(0, entered - capacity), entered)
        assert len(queue) == len(newest)
        for t in newest:
            np.testing.assert_allclose(queue.filled()[t % capacity], keys[t], rtol=1e-6)


def test_a_batch_wraps_around_the_end_on_either_backend(xp):
    queue = Queue(5, 3).to(xp)
    keys = unit(9, 3)
    for lo in (0, 3, 6):
        queue.enqueue(to_device(keys[lo:lo + 3], xp))
    np.testing.assert_allclose(to_host(queue.filled()), keys[[5, 6, 7, 8, 4]], rtol=1e-6)


def test_ids_wrap_with_their_keys_and_a_batch_without_ids_clears_those_it_replaces(xp):
    queue = Queue(5, 3).to(xp)
    queue.enqueue(to_device(unit(3, 3), xp), np.array([6, 7, 8]))
    queue.enqueue(to_device(unit(4, 3), xp), np.array([0, 1, 2, 3]))         # rows 3, 4, 0, 1
    assert queue.ids.data.tolist() == [3, 4, 9, 1, 2]                        # 1 + the id
    queue.enqueue(to_device(unit(4, 3), xp))                                 # rows 2, 3, 4, 0
    assert queue.ids.data.tolist() == [0, 4, 0, 0, 0]


def test_keys_are_normalised_as_they_enter(xp):
    queue = Queue(4, 3).to(xp)
    queue.enqueue(to_device(7 * unit(4, 3), xp))
    np.testing.assert_allclose((to_host(queue.filled())**2).sum(axis=1), 1, rtol=1e-6)


def test_a_queue_refuses_keys_that_do_not_fit():
    queue = Queue(4, 3)
    queue.enqueue(unit(4, 3))                                # just fits
    with pytest.raises(ValueError, match="5 keys at once do not fit a queue of 4"):
        queue.enqueue(unit(5, 3))
    with pytest.raises(ValueError, match=r"expected keys to be a float32 array \(B, 3\), got float32 array of shape \(2, 2\)"):
        queue.enqueue(unit(2, 2))
    with pytest.raises(ValueError, match="got Tensor"):
        queue.enqueue(Tensor(unit(2, 3)))
    with pytest.raises(ValueError, match="Queue: capacity must be an integer >= 1, got 0"):
        Queue(0, 3)


def test_no_key_enters_in_evaluation():
    queue = Queue(4, 3)
    with pytest.raises(RuntimeError, match="enqueue.. was called in evaluation mode"):
        queue.eval().enqueue(unit(2, 3))
    assert len(queue) == 0


def test_a_loaded_queue_continues_where_the_saved_one_stopped(xp):
    queue, other = Queue(5, 3).to(xp), Queue(5, 3).to(xp)
    queue.enqueue(to_device(unit(4, 3), xp))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(to_device(unit(3, 3, seed=1), xp))
    assert other.enqueued == 7
    for name, array in queue.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[name], err_msg=name)
    with pytest.raises(ValueError, match="keys: shape"):
        Queue(6, 3).load_state_dict(queue.state_dict())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_keys_that_are_not_finite_change_nothing(value):
    """Otherwise the queue would count rows that were never written, and use their zeros as negatives."""
    queue = Queue(6, 3)
    queue.enqueue(np.eye(3, dtype="float32"), np.arange(3))
    before = queue.state_dict()
    keys = np.ones((2, 3), "float32")
    keys[1, 1] = value
    with pytest.raises(FloatingPointError, match="the length of a row is not finite"):
        queue.enqueue(keys, np.array([7, 8]))
    assert len(queue) == 3 and all(np.array_equal(queue.state_dict()[name], array) for name, array in before.items())
    queue.enqueue(np.ones((2, 3), "float32"))
    assert len(queue) == 5 and queue.ids.data.tolist() == [1, 2, 3, 0, 0, 0]
