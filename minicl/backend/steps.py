"""What a step computes on the host, apart from what it launches: so that capture() can launch it again with other values.

    rows, rate = each_step(x, lambda: [rng.permutation(n), lr / (1 - b1**t)])

Whatever changes from step to step goes through such a function: random numbers, counts, the learning rate. capture() calls
the functions of a step again before each launch, in their order, so what they change on the host changes as in any step.
"""

import functools
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from ..typing import Array, ArrayModule, HostArray
from .device import array_module, is_array, to_device

ALIGNMENT = 256                                              # bytes, as of cudaMalloc
ELSEWHERE = "elsewhere"                                      # in the kinds of arguments: copied to the device, or not there
HostFunction = Callable[[], Sequence[Any] | None]


def each_step(like: Array, function: HostFunction) -> list[Any]:
    """The entries of what function() returns: host arrays are moved to where `like` lives, all else stays as it is.

    In a step that is captured floats, too, become arrays () on the device, of like's dtype; any other entry (an integer,
    None, a tuple) may have shaped what is launched, so that where it changes the step is not launched again.
    """
    step = _here.step if _here.step is not None and not _here.step.is_computing else None
    values = function() or () if step is None else step.values_of(like, function)
    if step is not None and step.places is not None:
        return [step.places.put(value, like.dtype) for value in values]
    return [to_device(value, array_module(like)) if isinstance(value, np.ndarray) else
            float(value) if isinstance(value, np.floating) else value for value in values]               # as it is captured


def kind_of(value: Any, dtype: Any) -> Any:
    """What of a value must not change from one launch to the next: the shape, dtype and class of an array, all of an
    integer."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, type(value)
    return ((), np.dtype(dtype), float) if isinstance(value, (float, np.floating)) else (type(value), value, "fixed")


ONCE = ("the value of a 'Number', which changes from step to step, was read outside each_step(), which happens only "
        "once; in a captured step give it to optimizer.step() or update()")


class Number:
    """A float that may be another in the next step: read() gives this step's. float() of it works within each_step()."""

    __array_ufunc__ = None                                   # array * Number is an error, as is all other arithmetic
    __class__ = property(lambda self: self.kind)             # type: ignore[assignment]    # for isinstance(lr, float)

    def __init__(self, read: Callable[[], float], kind: type = float):
        self.read, self.kind = read, kind

    def _refuse(self, *other: Any) -> NoReturn:
        raise TypeError(ONCE)

    __bool__ = __eq__ = __ne__ = __str__ = __repr__ = __format__ = __round__ = __array__ = _refuse       # type: ignore
    __hash__ = None                                          # type: ignore[assignment]

    def __float__(self) -> float:
        if _here.step is not None and not _here.step.is_computing:
            raise TypeError(ONCE)
        return float(self.read())


def for_arrays(x: Any) -> Any:
    """A number that each_step() gave, x. In a captured step, where it is an array () of a GPU's float32, it refuses to be
    combined with another number, which a step that is not captured does in Python's float64."""
    return x.view(type=_class_for_arrays(array_module(x))) if is_captured() and is_array(x) and not x.ndim else x


@functools.lru_cache
def _class_for_arrays(xp):
    def guarded(name):
        def compute(self, other):
            if not self.ndim and not getattr(other, "ndim", 0):
                raise TypeError("it combines two numbers on the GPU, where they round differently; for an optimizer compute "
                                "with numbers, as in 1 - beta, in _numbers()")
            return getattr(xp.ndarray, name)(self, other)
        return compute

    names = [f"__{way}{name}__" for name in ("add", "sub", "mul", "truediv", "pow") for way in ("", "r")]
    return type("ForArrays", (xp.ndarray,), {name: guarded(name) for name in names})


class HostArgument:
    """An array on the host that is an argument of a captured step, where each launch has another one.

    It has a shape, a dtype and rows, and can be moved: xp.asarray(x) is a fresh copy on the device, as of any array on the
    host. What rounds alike on both is done on the device: + - * / with a number, and conversion to floats. All else that an
    array can do would be done on the host, where it happens once only, and is refused.
    """

    __class__ = property(lambda self: self.kind)             # type: ignore[assignment]    # for isinstance(x, np.ndarray)

    def __init__(self, place: Array, read: Callable[[], HostArray], kind: type = np.ndarray):
        self.place = place                                   # on the device; each launch fills it before all else
        self.read = read                                     # gives this step's, within each_step()
        self.kind = kind                                     # np.ndarray or np.memmap

    shape = property(lambda self: self.place.shape)
    dtype = property(lambda self: self.place.dtype)
    ndim = property(lambda self: self.place.ndim)
    size = property(lambda self: self.place.size)

    def moved(self, is_input: bool = False) -> Array:
        """A copy on the device. is_input: of an op, which may ask for its values on the host, see read_on_host()."""
        copy = self.place.copy()
        if is_input and _here.step is not None:
            _here.step.moved.append((copy, self))
        return copy

    def _with(self, function: Callable[[Array], Array]) -> "HostArgument":
        return HostArgument(function(self.place), lambda: function(self.read()))

    def __len__(self) -> int:
        return len(self.place)

    def __iter__(self) -> "Iterator[HostArgument]":
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key: Any) -> "HostArgument":
        if not all(isinstance(part, (int, slice, type(...), type(None))) for part in (key if type(key) is tuple else [key])):
            self._refuse()
        return self._with(lambda x: x[key])

    def reshape(self, *shape: Any) -> "HostArgument":
        return self._with(lambda x: x.reshape(*shape))

    def astype(self, dtype: Any) -> "HostArgument":
        if np.dtype(dtype).kind != "f":                      # to floats both round alike
            self._refuse()
        return self._with(lambda x: x.astype(dtype))

    def _refuse(self, *arguments: Any, **options: Any) -> NoReturn:
        raise TypeError("a HostArgument computes on the host")


def _arithmetic(name):
    def compute(self, other):
        if type(other) not in (int, float, HostArgument):
            self._refuse()
        if type(other) is HostArgument:
            return HostArgument(getattr(self.place, name)(other.place), lambda: getattr(self.read(), name)(other.read()))
        return self._with(lambda x: getattr(x, name)(other))
    return compute


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"):
    setattr(HostArgument, f"__{_name}__", _arithmetic(f"__{_name}__"))
for _name in vars(np.ndarray).keys() - vars(HostArgument).keys() - {"__new__", "__doc__"}:
    _refused = HostArgument._refuse if callable(getattr(np.ndarray, _name)) else property(HostArgument._refuse)
    setattr(HostArgument, _name, _refused)


class Step:
    """One run of a step, seen from the host: its functions, and what they gave.

    supplied    what the first functions have given already, or their error: they are not called again
    places      where values go while the step is captured (it has put(value, dtype)); None: the step is computed
    """

    def __init__(self, supplied: Iterable[Any] = (), places: Any = None):
        self.supplied = deque(supplied)
        self.places = places
        self.generators: list[np.random.Generator] = []
        self.drawn: list[bytes] = []                                         # their states
        self.draws_itself = False                                            # from one of them, outside its functions
        self.functions: list[tuple[HostFunction, Any, list]] = []            # with floats' dtype, and its values' kinds
        self.values: list[Any] = []
        self.moved: list[tuple[Array, HostArgument]] = []                    # copies on the device, and of what
        self.undo: list[Callable[[], Any]] = []
        self.is_computing = False
        self.refused: str | None = None                                      # why it cannot be captured

    def __enter__(self) -> "Step":
        _here.step = self
        return self

    def __exit__(self, *error: Any) -> None:
        _here.step = None
        self.draws_itself |= self.drawn != self._states()

    def values_of(self, like, function):
        if self.places is not None and isinstance(like, np.ndarray):
            raise NotImplementedError("it computes on NumPy")
        values = self.supplied.popleft() if self.supplied else self.outcome(function)
        if isinstance(values, Exception):
            self.values.append(values)
            raise values
        if any(is_array(value) and not isinstance(value, np.ndarray) for value in values):
            self.refused = "a draw() gives an array of the device; let it give one on the host, which is then moved"
        self.functions.append((function, like.dtype, [kind_of(value, like.dtype) for value in values]))
        self.values.append(values)
        return values

    def outcome(self, function: HostFunction) -> Any:
        """What function() gives, copied: a draw() may fill an array again. Or its error, as it must not be called twice."""
        self.draws_itself |= self.drawn != self._states()
        self.is_computing = True
        try:
            return [x.copy() if isinstance(x, np.ndarray) else x for x in function() or ()]
        except Exception as error:
            return error
        finally:
            self.is_computing = False
            self.drawn = self._states()

    def watch(self, rng: np.random.Generator) -> None:
        """Note whether the step draws from rng itself, from now on."""
        self.generators.append(rng)
        self.drawn.append(pickle.dumps(rng.bit_generator.state))

    def _states(self):
        return [pickle.dumps(rng.bit_generator.state) for rng in self.generators]


class KindError(ValueError):
    """This step is of another kind than the one before, which only its host functions could tell."""


class Places:
    """Memory on the device for values of the host, one behind the other, so that one copy fills them all.

    kinds: of the values, as kind_of() gives them, in the order in which they will be put there
    """

    def __init__(self, xp: ArrayModule, kinds: Sequence[Any]):
        self.xp, self.kinds = xp, kinds
        sizes = [int(np.prod(kind[0])) * kind[1].itemsize if _is_place(kind) else 0 for kind in kinds]
        ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes])
        self.on_host = np.zeros(ends[-1] if len(ends) else 0, dtype="uint8")
        self.on_device = xp.zeros(len(self.on_host), dtype="uint8")
        starts = [0, *ends[:-1]]
        self.host, self.device = ([memory[start:start + size].view(kind[1]).reshape(kind[0]) if _is_place(kind) else None
                                   for kind, start, size in zip(kinds, starts, sizes)]
                                  for memory in (self.on_host, self.on_device))
        self.count = 0                                       # values that have been put so far

    def put(self, value: Any, dtype: Any) -> Any:
        """The next value as it is for the capture: its place on the device, or itself if it may not change."""
        kind = kind_of(value, dtype)
        while self.count < len(self.kinds) and ELSEWHERE in self.kinds[self.count][2:]:
            self.count += 1
        if self.count == len(self.kinds) or self.kinds[self.count] != kind:
            raise KindError("what it computes on the host is of another kind than without a capture")
        self.count += 1
        return self.device[self.count - 1] if _is_place(kind) else value

    def fill(self, values: Sequence[Any]) -> None:
        for place, value in zip(self.host, values):
            if place is not None:
                place[...] = value
        self.on_device[...] = self.xp.asarray(self.on_host)  # by way of pinned memory that CuPy leaves alone meanwhile


def _is_place(kind):
    return type(kind[0]) is tuple and ELSEWHERE not in kind[2:]


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


def read_on_host(x: Array) -> Callable[[], HostArray] | None:
    """What gives the values of x on the host, within each_step(); None if only the device has them. In a step that is
    captured x may be a copy of an argument on the host."""
    if isinstance(x, np.ndarray):
        return lambda: x
    step = _here.step if is_captured() else None
    return next((argument.read for copy, argument in step.moved if copy is x), None) if step is not None else None


def undo_if_not_captured(function: Callable[[], Any]) -> None:
    """Call function() if the capture of this step fails, before the step is computed as any other."""
    if _here.step is not None and is_captured():
        _here.step.undo.append(function)


def refuse_capture(reason: str) -> None:
    """Raise if this step is being captured: it is then computed as any other, and says why. Else it will not be captured."""
    if is_captured():
        raise NotImplementedError(reason)
    if _here.step is not None:
        _here.step.refused = _here.step.refused or reason
