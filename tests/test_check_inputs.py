"""check_inputs(): for every op, the arrays that a recorded op uses are read-only until its backward."""

import contextlib
import copy
import gc
import sys

import numpy as np
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from training_steps import STEPS

import minicl
from minicl import Tensor, check_inputs
from minicl.nn import Linear, Sequential
from minicl.optim import SGD


def run(case):
    """(inputs, output) of a case; inputs are leaves, except integers and bools, which stay arrays."""
    options = {name: value() if callable(value) else copy.deepcopy(value) for name, value in case.options.items()}
    inputs = [Tensor(x.copy(), requires_grad=True) if x.dtype.kind == "f" else x.copy() for x in case.inputs]
    return inputs, case.op(*inputs, **options)


def arrays_of(inputs, output):
    return [x.data if isinstance(x, Tensor) else x for x in (*inputs, output)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_arrays_of_every_op_are_read_only_until_its_backward_and_its_gradients_do_not_change(case):
    expected, y = run(case)
    y.backward(np.ones_like(y.data))
    with check_inputs():
        inputs, y = run(case)
        arrays = arrays_of(inputs, y)
        for x in arrays:
            with pytest.raises(ValueError, match="read-only"):
                x[...] = 0
        y.backward(np.ones_like(y.data))
        del y
    for x, array in zip(expected, arrays):
        array[...] = array                                   # writeable again
        if isinstance(x, Tensor):
            assert x.grad is not None
    for x, again in zip(expected, inputs):
        if isinstance(x, Tensor):
            np.testing.assert_array_equal(x.grad, again.grad)


def test_a_loss_that_is_deleted_frees_its_arrays():
    x = np.ones(3)
    with check_inputs():
        loss = (Tensor(x, requires_grad=True) * 2.0).sum()
        assert not x.flags.writeable
        del loss
        gc.collect()
        assert x.flags.writeable


def test_an_array_that_was_read_only_before_stays_read_only():
    x = np.ones(3)
    x.flags.writeable = False
    with check_inputs():
        (Tensor(x, requires_grad=True) * 2.0).sum().backward()
    assert not x.flags.writeable


def test_arrays_that_are_not_recorded_are_not_watched():
    x = np.ones(3)
    with check_inputs():
        Tensor(x) * 2.0
        with minicl.no_grad():
            y = Tensor(x, requires_grad=True) * 2.0
        x[...] = y.data
    y = Tensor(x, requires_grad=True) * 2.0                  # recorded outside the block: not watched either
    x[...] = y.data


def test_an_array_behind_a_view_is_watched():
    base = np.zeros((4, 3))
    with check_inputs():
        loss = (Tensor(base[1:3].T, requires_grad=True) * 2.0).sum()
        with pytest.raises(ValueError, match="read-only"):
            base += 1
        loss.backward()
    base += 1


def test_a_step_before_the_backward_raises_at_the_step():
    net = Sequential(Linear(3, 2, rng=np.random.default_rng(0)))
    optimizer = SGD(net.named_parameters(), lr=0.1)
    with check_inputs():
        loss = net(np.ones((4, 3), "float32")).sum()
        optimizer.grads[...] = 1
        with pytest.raises(ValueError, match="read-only"):
            optimizer.step()
        del loss
        net(np.ones((4, 3), "float32")).sum().backward()
        optimizer.step()


@given(st.lists(st.tuples(st.sampled_from(["forward", "backward", "delete"]), st.integers(0, 3)), max_size=14))
def test_an_array_is_read_only_exactly_while_a_tape_uses_it(order):
    base = np.ones((2, 4))
    arrays = [base, base[0], base[:, 1:], np.ones(3)]
    tapes = []                                               # (loss, index of its array)
    with check_inputs():
        for what, k in order:
            if what == "forward":
                tapes.append(((Tensor(arrays[k], requires_grad=True) * 2.0).sum(), k))
            elif tapes:
                loss, _ = tapes.pop(k % len(tapes))
                if what == "backward":
                    loss.backward()
                del loss
            used = {k for _, k in tapes}
            assert arrays[3].flags.writeable == (3 not in used)
            assert base.flags.writeable == (not used & {0, 1, 2})
            assert not any(arrays[k].flags.writeable for k in used)
        tapes.clear()
    assert all(x.flags.writeable for x in arrays) and not sys.modules["minicl.check_inputs"]._holders


@pytest.mark.parametrize("method", STEPS)
def test_no_method_writes_into_arrays_that_its_tape_uses(method):
    """Two steps of each method have the same losses with and without check_inputs()."""
    losses = []
    for watched in (False, True):
        step = STEPS[method](np)
        with check_inputs() if watched else contextlib.nullcontext():
            losses.append([step().item() for _ in range(2)])
    assert losses[0] == losses[1]
