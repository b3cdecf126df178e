"""Batches: each item occurs at most once an epoch, in a new order each epoch, and the order is the same after a
resume."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minicl.data import Batches, DataError


def epoch_of(batches, epoch):
    return np.concatenate([batches[epoch * batches.per_epoch + k] for k in range(batches.per_epoch)])


def test_an_epoch_holds_every_item_once():
    np.testing.assert_array_equal(np.sort(epoch_of(Batches(12, 4), 0)), np.arange(12))


def test_items_that_do_not_fill_a_batch_are_left_out_and_change_each_epoch():
    batches = Batches(11, 4)
    assert batches.per_epoch == 2 and all(len(batches[step]) == 4 for step in range(6))
    epochs = [epoch_of(batches, epoch) for epoch in range(6)]
    assert all(len(set(ids)) == 8 for ids in epochs)
    assert set(np.concatenate(epochs)) == set(range(11))


def test_every_epoch_has_another_order():
    batches = Batches(50, 10)
    orders = {tuple(epoch_of(batches, epoch)) for epoch in range(5)}
    assert len(orders) == 5 and tuple(range(50)) not in orders


def test_the_seed_determines_the_order():
    assert (Batches(50, 10, seed=1)[7] == Batches(50, 10, seed=1)[7]).all()
    assert (Batches(50, 10, seed=1)[7] != Batches(50, 10, seed=2)[7]).any()


def test_a_step_has_the_same_batch_in_any_order_of_access():
    in_order = Batches(11, 4)
    expected = {step: in_order[step] for step in range(8)}
    for step in (5, 0, 7, 6, 1, 5):
        np.testing.assert_array_equal(Batches(11, 4)[step], expected[step])
        np.testing.assert_array_equal(in_order[step], expected[step])


def test_threads_that_share_batches_get_those_of_one_thread():
    shared, steps = Batches(300, 10), [step * 7 % 210 for step in range(210)]            # of seven epochs, mixed
    expected = [Batches(300, 10)[step] for step in steps]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda step: shared[step], steps * 10))
    finally:
        sys.setswitchinterval(interval)
    assert all(map(np.array_equal, found, expected * 10))


def test_iterating_over_batches_is_refused():
    with pytest.raises(TypeError, match="not iterable"):
        for _ in Batches(11, 4):
            pass


def test_a_batch_may_hold_all_items():
    batches = Batches(5, 5)
    assert batches.per_epoch == 1 and sorted(batches[3]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n, batch", [(10, 11), (0, 1)])
def test_a_batch_that_the_data_cannot_fill_is_refused(n, batch):
    with pytest.raises(DataError, match=f"expected a batch of 1 to {n}, the number of items, got {batch}"):
        Batches(n, batch)
