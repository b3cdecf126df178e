"""no_grad() ends with its block, in generators, threads and decorated functions, in any order."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicl import Tensor, nn, no_grad, ops


def records():
    return (Tensor(np.ones(1), requires_grad=True) * 2.0).requires_grad


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def suspended():
    with no_grad():
        yield


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_gradients_are_recorded_while_no_generator_is_open(moves):
    """Each move opens generator k, or closes it if it is open, in this or in another thread."""
    open_ones = {}
    for k, elsewhere in moves:
        if k not in open_ones:
            open_ones[k] = suspended()
            next(open_ones[k])
        else:
            close = open_ones.pop(k).close
            in_thread(close) if elsewhere else close()
        assert records() is not bool(open_ones)
    for generator in open_ones.values():
        generator.close()
    assert records()


def test_closing_another_threads_generator_does_not_end_this_threads_block():
    found = []

    def work():
        with no_grad():
            generator.close()
            found.append(records())

    generator = suspended()
    next(generator)
    in_thread(work)
    assert found == [False] and records()


def test_one_object_may_be_entered_again_and_within_itself():
    block = no_grad()
    for _ in range(2):
        with block, contextlib.suppress(KeyError), block:
            assert not records()
            raise KeyError
        assert records()


async def awaited():
    return records()


async def awaited_bit_by_bit():
    yield records()


def test_it_decorates_functions_but_not_generators_coroutines_or_classes():
    @no_grad()
    def inner(depth):
        return [records()] + (inner(depth - 1) if depth else [])

    assert inner(3) == [False] * 4 and records()
    for what in (suspended, awaited, awaited_bit_by_bit, 3, nn.Module):
        with pytest.raises(TypeError, match="no_grad: expected a function"):
            no_grad()(what)


class Holder:
    def __init__(self, rng):
        self.rng = rng


@pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState])
@pytest.mark.parametrize("hide", [lambda rng: rng, lambda rng: [rng], lambda rng: {"a": (rng,)}, Holder, lambda rng: {rng},
                                  lambda rng: lambda x: ops.dropout(x, p=0.5, rng=rng), lambda rng: rng.random])
def test_a_random_generator_in_a_module_is_refused_wherever_it_is_held(kind, hide):
    class Noisy(nn.Module):
        def __init__(self):
            self.noise = hide(kind(0))

    with pytest.raises(TypeError, match="noise (is|holds) a numpy (Generator|RandomState), .* nn.Stream"):
        Noisy()


def test_the_decorator_may_be_written_without_parentheses():
    @no_grad
    def twice(x):
        """Of x."""
        return x * 2

    x = Tensor(np.ones(2), requires_grad=True)
    assert twice(x).node is None and twice.__doc__ == "Of x." and twice.__name__ == "twice" and (x * 2).node is not None
    with pytest.raises(TypeError, match="no_grad: expected a function to decorate"):
        no_grad(3)
