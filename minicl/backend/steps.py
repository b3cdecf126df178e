"""What a step computes on the host, apart from what it launches: so that capture() can launch it again with other values.

    rows, rate = each_step(x, lambda: [rng.permutation(n), lr / (1 - b1**t)])

Whatever changes from step to step goes through such a function: random numbers, counts, the learning rate. capture() calls
the functions of a step again before each launch, in their order, so what they change on the host changes as in any step.
"""

import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from ..typing import Array
from .device import array_module, to_device

HostFunction = Callable[[], Sequence[Any] | None]


def each_step(like: Array, function: HostFunction) -> list[Any]:
    """The entries of what function() returns: host arrays are moved to where `like` lives, all else stays as it is.

    In a step that is captured floats, too, become arrays () on the device, of like's dtype; any other entry (an integer,
    None, a tuple) may have shaped what is launched, so that where it changes the step is not launched again.
    """
    step = _here.step
    values = function() or () if step is None else step.values_of(like, function)
    if step is not None and step.places is not None:
        return [step.places.put(value, like.dtype) for value in values]
    return [to_device(value, array_module(like)) if isinstance(value, np.ndarray) else value for value in values]


def kind_of(value: Any, dtype: Any) -> Any:
    """What of a value must not change from one launch to the next: the shape and dtype of an array, all of an integer."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype
    return ((), np.dtype(dtype)) if isinstance(value, (float, np.floating)) else (type(value), value, "fixed")


ONCE = ("the value of a 'Number', which changes from step to step, was read outside each_step(), which happens only "
        "once; in a captured step give it to optimizer.step() or update()")


class Number:
    """A number that may be another in the next step: read() gives this step's. float() of it works within each_step()."""

    __array_ufunc__ = None                                   # array * Number is an error, as is all other arithmetic

    def __init__(self, read: Callable[[], float]):
        self.read = read

    def _refuse(self, *other: Any) -> NoReturn:
        raise TypeError(ONCE)

    __bool__ = __eq__ = __ne__ = __str__ = __repr__ = _refuse
    __hash__ = None                                          # type: ignore[assignment]

    def __float__(self) -> float:
        if _here.step is not None and not _here.step.is_computing:
            raise TypeError(ONCE)
        return float(self.read())


class Step:
    """One run of a step, seen from the host: its functions, what they gave, and the modules that were called.

    supplied    what the first functions have given already: they are not called again
    places      where values go while the step is captured (it has put(value, dtype)); None: the step is computed
    generators  .draws_itself says whether the step drew from one of them outside its functions
    """

    def __init__(self, supplied: Iterable[Sequence[Any]] = (), places: Any = None,
                 generators: Sequence[np.random.Generator] = ()):
        self.supplied = deque(supplied)
        self.places = places
        self.generators = generators
        self.draws_itself = False
        self.functions: list[tuple[HostFunction, Any, list]] = []            # with floats' dtype, and its values' kinds
        self.values: list[Sequence[Any]] = []
        self.kept: dict[int, Any] = {}
        self.undo: list[Callable[[], Any]] = []
        self.is_computing = False

    def __enter__(self) -> "Step":
        self.drawn = self._states()
        _here.step = self
        return self

    def __exit__(self, *error: Any) -> None:
        _here.step = None
        self.draws_itself |= self.drawn != self._states()

    def values_of(self, like, function):
        if self.places is not None and isinstance(like, np.ndarray):
            raise NotImplementedError("it computes on NumPy")
        values = self.supplied.popleft() if self.supplied else self.compute(function)
        self.functions.append((function, like.dtype, [kind_of(value, like.dtype) for value in values]))
        self.values.append(values)
        return values

    def compute(self, function: HostFunction) -> Sequence[Any]:
        self.draws_itself |= self.drawn != self._states()
        self.is_computing = True
        try:
            return function() or ()
        finally:
            self.is_computing = False
            self.drawn = self._states()

    def _states(self):
        return [pickle.dumps(rng.bit_generator.state) for rng in self.generators]


class _Here(threading.local):
    step: Step | None = None


_here = _Here()


def is_in_step() -> bool:
    """Whether a step runs that is or may be captured."""
    return _here.step is not None


def is_captured() -> bool:
    """Whether a step is being captured: what it computes now is computed by each launch of the graph, and not before."""
    return _here.step is not None and _here.step.places is not None


def is_supplied() -> bool:
    """Whether the next each_step() takes values that were drawn before, so that it draws nothing."""
    return _here.step is not None and bool(_here.step.supplied)


def keep(x: Any) -> Any:
    """x, a Module or Transform that is called: where an attribute of it changes, a captured step is not launched again."""
    if _here.step is not None:
        _here.step.kept[id(x)] = x
    return x


def undo_if_not_captured(function: Callable[[], Any]) -> None:
    """Call function() if the capture of this step fails, before the step is computed as any other."""
    if _here.step is not None and is_captured():
        _here.step.undo.append(function)


def refuse_capture(reason: str) -> None:
    """Raise if this step is being captured: it is then computed as any other, and says why."""
    if is_captured():
        raise NotImplementedError(reason)
