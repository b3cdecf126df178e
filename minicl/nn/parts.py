"""The parts of a Module: Parameters, learned by gradient, and Buffers, other state that is saved with the model."""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from ..autograd import Tensor
from ..backend import is_array
from ..checks import did_you_mean, is_of_minicl, require_integers, require_rng, require_unmasked
from ..tensor import Change, clock, mark_changed, of_its_own, watch
from ..typing import Array, HostArray, Rng

making = threading.local()                # .parts: weak references to parts made by the running __init__, or None


class _Noted(weakref.ref):
    """A reference to a thing that was made at the time `made`."""

    __slots__ = ("key", "made")
    key: int
    made: int


_live: dict[int, _Noted] = {}             # by id


def noted(thing):
    """The thing, which live() then lists."""
    reference = _Noted(thing, lambda gone: _live.get(gone.key) is gone and _live.pop(gone.key))
    reference.key, reference.made = id(thing), next(clock)
    _live[id(thing)] = reference
    return thing


def live() -> list[Any]:
    """All Parameters, Buffers, Modules and optimizers of this process that are still in use."""
    return [thing for reference in list(_live.values()) if (thing := reference()) is not None and _is_made(thing)]


def _is_made(thing):
    """Whether its __init__ has not raised: the traceback may keep what is half made, as in a notebook."""
    return hasattr(thing, "data" if isinstance(thing, (Parameter, Buffer)) else getattr(thing, "_set_last", "__class__"))


def time_made(thing: Any) -> int:
    """When one of live() was made, by the clock of the tape; 0 for another thing."""
    reference = _live.get(id(thing))
    return reference.made if reference and reference() is thing else 0


looked_for: dict[int, tuple[int, Callable[[str], None]]] = {}   # by id: when a loop made an unsaved Module, and whom to tell


def note_use(module: Any) -> None:
    """Tell the loop that made a Module, which is looked_for, that a later step has called it."""
    made, tell = looked_for.pop(id(module), (-1, print))     # another thread may have taken it
    if made == time_made(module):                            # else another Module with the same id
        tell(type(module).__name__)


def record(part):
    if getattr(making, "parts", None) is not None:
        making.parts.append(weakref.ref(part))
    return noted(part)


class Parameter(Tensor):
    """A learned Tensor. Optimizers decay it only if it has two or more axes (not biases and norm weights).

    data is not copied before an optimizer takes it over, so load_state_dict() and p.data[...] = x write into the array that
    was given, unless another Parameter has it: to keep it, give x.copy().
    """

    __slots__ = ("made",)

    def __new__(cls, *args, **options):
        parameter = super().__new__(cls)
        parameter.made = next(clock)
        return record(parameter)

    def __init__(self, data: Array):
        super().__init__(of_its_own(self, data) if is_array(data) else data, requires_grad=True)
        watch([self])

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, data: Array) -> None:
        Tensor.data.fset(self, data)                                         # type: ignore[attr-defined]
        watch([self])


class Buffer:
    """A finite array, .data, that belongs to a Module's state but gets no gradient. It is not an array itself."""

    data: Array
    changed: Change | None = None              # the last write that was noted
    least: float | None = None                 # load_state_dict() refuses a value below it

    def __new__(cls, *args, **options):
        return record(super().__new__(cls))

    def __init__(self, data: Array):
        if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
            raise ValueError("Buffer: data holds NaN or infinity, which a checkpoint refuses as the mark of a run that "
                             "has diverged; use a large number, such as -1e30 in the mask of a softmax")
        self.data = data

    def __setattr__(self, name, value):
        if name != "data" and name[0] != "_" and not hasattr(type(self), name) and is_of_minicl(type(self)):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{did_you_mean(name, ['data'])}")
        if name == "data" and not is_array(value):
            raise TypeError(f"Buffer: expected an array, got {type(value).__name__}")
        if name == "data":
            require_unmasked("Buffer", value)
        if name == "data" and not isinstance(self, Tensor):      # whose .data does the same
            if value is vars(self).get("data"):              # buffer.data *= 2 has already written into it
                mark_changed([("", self)], "an assignment to .data")
            else:
                value = of_its_own(self, value)
        object.__setattr__(self, name, value)
        if name == "data":
            watch([self])

    def __setstate__(self, state):                           # of a copy or a pickle
        arrays = {key: of_its_own(self, state[key]) for key in ("data", "_value") if key in state}
        vars(self).update({**state, **arrays, "changed": None})              # a time of the process that made it
        watch([self])

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not an array, and has no values or truth value itself; use its .data")

    __array_ufunc__ = None
    __array__ = __array_function__ = __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse  # type: ignore
    __hash__ = object.__hash__


def warned_if_frozen(module: Any, parameters: list[Parameter]) -> list[Parameter]:
    """The parameters, with a warning if a loop over them would do nothing to weights that are there."""
    if not parameters and any(isinstance(part, Tensor) for _, part in module.named_state()):
        warnings.warn(f"{type(module).__name__}.parameters() is empty, since the weights of a frozen_copy are no "
                      "Parameters: EMA moves them, and named_state() lists them", stacklevel=3)
    return parameters


class HostBuffer(Buffer):
    """Integers saved with the model that stay on the host, so reading them never waits for a GPU."""

    def __init__(self, value: int | Array):
        require_unmasked("HostBuffer", value)
        self._value = np.array(value, dtype="int64")
        watch([self])

    @property
    def data(self) -> HostArray:                                             # type: ignore[override]
        return self._value

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._value:                             # buffer.data *= 2 has already written into it
            return mark_changed([("", self)], "an assignment to .data")
        raise AttributeError(f"{type(self).__name__}.data cannot be replaced; write into it: buffer.data[...] = value")


class Counter(HostBuffer):
    """An integer that only grows."""

    least = 0

    def __init__(self):
        super().__init__(0)

    def __int__(self) -> int:
        return int(self._value)

    def add(self, n: int) -> None:
        require_integers("Counter.add", 0, n=n)
        mark_changed([("", self)], "Counter.add()")
        self._value[...] += n


class Stream(HostBuffer):
    """A sequence of random generators, a new one for every forward of a layer such as Dropout.

    data is (seed, number of generators so far), saved with the model, so a resumed run draws the same numbers as an
    uninterrupted one. A deep copy draws other numbers than the original: a momentum encoder with its original's dropout
    masks would reveal the positives. load_state_dict and pickle reproduce the draws, as resuming requires; if two such
    models draw in turn, a warning is raised.

    >>> stream = Stream(np.random.default_rng(0))
    >>> stream.next().random() == stream.next().random()
    False
    """

    least = 0
    key: tuple[int, ...] = ()                                                # of a copy: where in its original it was made
    copied = (0, 0)                                                          # the last: after which draw, and its number
    drawn = 0                                                                # when next() was called last
    echoes = echoed = 0                                        # echoed: the last draw of another repeated

    def __init__(self, rng: Rng):
        require_rng(self, rng)
        super().__init__([rng.integers(2**32), 0])

    def next(self) -> Rng:
        """The next generator of the stream."""
        self._value[1] += 1
        state = self._value.tolist()
        last = _last_to_draw.get((state[0], self.key), self)
        if last is not self and last._value[1] >= state[1]:                  # it drew the same before
            self.echoes = 1 + self.echoes * (state[1] > self.echoed)
            self.echoed = state[1]
            if self.echoes == 2:                                             # once may be a comparison of two runs
                warnings.warn("Stream: two models draw the same random numbers, such as dropout masks, because they share a "
                              "seed, a state or a pickle; use copy.deepcopy or frozen_copy", stacklevel=4)
        _last_to_draw[state[0], self.key] = self
        self.drawn = next(clock)
        return self.last()

    def last(self) -> Rng:
        """The generator that next() gave last, starting over."""
        return np.random.default_rng(np.random.SeedSequence(self._value.tolist(), spawn_key=self.key))

    def __deepcopy__(self, memo):
        copy = type(self).__new__(type(self))
        drawn = int(self._value[1])                                          # saved, so also right in a resumed run
        self.copied = drawn, self.copied[1] * (self.copied[0] == drawn) + 1
        copy._value = self._value.copy()
        copy.key = (*self.key, *self.copied)
        copy.copied = (drawn, 0)
        copy.echoes = copy.echoed = 0
        watch([copy])
        return copy


_last_to_draw: weakref.WeakValueDictionary[tuple, Stream] = weakref.WeakValueDictionary()    # by seed and key
