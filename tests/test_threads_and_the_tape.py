"""Threads that add gradients to the same leaves lose none of them. Two threads that walk one tape get an error."""

import sys
import threading

import numpy as np
import pytest

from minicl import Tensor, ops
from minicl.autograd import op


@pytest.fixture(autouse=True)
def threads_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work, count=4):
    """Run work(k) in `count` threads that start together; return the exception of each thread, or None."""
    start = threading.Barrier(count)
    errors = [None] * count

    def run(k):
        start.wait()
        try:
            work(k)
        except Exception as error:
            errors[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("size", [3, 40_000])                # NumPy releases the GIL while it adds long arrays
@pytest.mark.parametrize("begun", [False, True])
def test_no_gradient_is_lost(size, begun):
    steps = 40
    leaves = [Tensor(np.ones(size), requires_grad=True) for _ in range(3)]

    def work(k):
        for _ in range(steps):
            sum((ops.sum(leaf * float(k + 1)) for leaf in leaves[1:]), ops.sum(leaves[0] * float(k + 1))).backward()

    for leaf in leaves if begun else []:
        leaf.grad = np.zeros(size)
    assert in_threads(work) == [None] * 4
    assert all((leaf.grad == steps * (1 + 2 + 3 + 4)).all() for leaf in leaves)


@pytest.mark.parametrize("n", [1, 2, 20])
def test_a_tape_that_another_thread_is_walking_is_an_error(n):
    """The second walk would find a part of the tape freed and lose the gradients of that part."""
    other = []

    @op
    def crossed(x):
        def backward(g):
            other[:] = in_threads(lambda k: (trunk * 2.0).sum().backward(), count=1)
            return (g,)
        return x, backward

    leaf = Tensor(np.ones(3), requires_grad=True)
    trunk = leaf
    for _ in range(n):
        trunk = trunk * 1.0
    with pytest.raises(RuntimeError, match="another thread is walking the tape"):
        crossed(trunk).sum().backward()
    assert other == [None] and (leaf.grad == 2).all()        # the other walk is complete
