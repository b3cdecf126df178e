"""A debugging mode that finds writes into arrays between the forward and the backward pass."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .autograd import Tensor, hold_inputs
from .locks import open_in_child
from .no_grad import require_plain_function
from .typing import Array


class check_inputs(contextlib.ContextDecorator):
    """A block in which inputs, options and outputs of recorded ops are read-only until the backward pass has used them.

    A line that writes into one raises NumPy's "ValueError: assignment destination is read-only" (or "output array").
    Without the block, backward() would silently return a gradient of neither value. Arrays become writeable again after
    backward() has passed their op, or when the loss is deleted. The base array of a Tensor's view is read-only too; a
    write through another view of it is not found. NumPy only: CuPy's arrays have no such flag.

    >>> x = np.ones(3)
    >>> with check_inputs():
    ...     loss = (Tensor(x, requires_grad=True) * 2.0).sum()
    ...     x[0] = 5
    Traceback (most recent call last):
    ValueError: assignment destination is read-only
    """

    def __init__(self) -> None:
        self.outer: list[Callable | None] = []

    def __enter__(self) -> None:
        self.outer.append(hold_inputs.get())
        hold_inputs.set(_ReadOnly)

    def __exit__(self, *error: Any) -> None:
        hold_inputs.set(self.outer.pop())

    def __call__(self, function: Callable) -> Any:
        require_plain_function("check_inputs", function)
        return super().__call__(function)

    def _recreate_cm(self) -> "check_inputs":
        return check_inputs()                                # each call of a decorated function has a block of its own


class _ReadOnly:
    """A backward whose op's arrays are read-only while the tape holds it."""

    def __init__(self, backward: Callable[[Array], tuple], arguments: Any, output: Tensor) -> None:
        self.backward = backward
        self.arrays = [owner for x in _arrays_in((arguments, output.data)) for owner in _with_owners(x)]
        with _lock:
            for x in self.arrays:
                _holders[id(x)] = _holders.get(id(x), 0) + 1
                x.flags.writeable = False

    def __call__(self, g: Array) -> tuple:
        return self.backward(g)

    def __del__(self) -> None:
        with _lock:
            for x in self.arrays:
                _holders[id(x)] -= 1
                _waiting.setdefault(id(x), x)
            for x in sorted(_waiting.values(), key=lambda x: x.base is not None):        # owners first
                if _holders[id(x)] == 0 and (x.base is None or not isinstance(x.base, np.ndarray) or x.base.flags.writeable):
                    x.flags.writeable = True
                    del _holders[id(x)], _waiting[id(x)]


_holders: dict[int, int] = {}         # id of an array -> number of recorded ops that use it
_waiting: dict[int, Array] = {}       # views that become writeable once their owner is no longer used
_lock = open_in_child(threading.RLock())              # an array can be garbage-collected in any thread, at any time


def _arrays_in(x: Any) -> Iterator[Array]:
    """The NumPy arrays in x, which may be a tuple, list, dict or slice of them: a key x[rows, :] is a tuple."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, slice):
        yield from _arrays_in((x.start, x.stop, x.step))
    elif isinstance(x, (tuple, list, dict)):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _arrays_in(item)


def _with_owners(x: Any) -> Iterator[Array]:
    """A NumPy array that was writeable, or was made read-only here, and the arrays that it is a view of."""
    while isinstance(x, np.ndarray):
        if x.flags.writeable or id(x) in _holders:
            yield x
        x = x.base
