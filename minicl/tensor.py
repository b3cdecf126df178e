"""The base of Tensor: its data, its attributes, and the conversions that it refuses. autograd.py has the rest."""

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from .backend import HostArgument, each_step, is_array, memory_bounds, to_host
from .checks import did_you_mean, own_attributes, require_unmasked, shortened
from .no_grad import in_no_grad
from .signature import describe, require_float_array
from .typing import Array, HostArray

clock = itertools.count()             # orders the recorded ops and the library's writes
Change: TypeAlias = tuple[int, str, str]              # time, name of what was changed, by what
# The latest Parameters whose .grad was not an optimizer's, with when they were made and got a gradient, and their shape.
first_gradients: deque[tuple[weakref.ref, int, int, tuple]] = deque(maxlen=1000)


class BaseTensor:
    """An array with a gradient. Tensor describes the attributes."""

    __slots__ = ("_data", "_grad", "_requires_grad", "changed", "switched", "node", "reached", "__weakref__")
    __array_ufunc__ = None                # array + Tensor: NumPy and CuPy defer to Tensor.__radd__
    __array_priority__ = 1000

    _data: Array
    _grad: Array | None
    _requires_grad: bool
    changed: Change | None                # the last write that was noted
    switched: Change | None               # the last change of requires_grad
    node: Any                             # the recorded op whose output this is
    reached: bool                         # by backward() since zero_grad(); an optimizer's Tensors have it

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, BaseTensor):
            raise TypeError("Tensor(data): expected an array, got a Tensor; use it as it is, or .detach() it")
        if not is_array(data):
            data = _array_of(data)
        require_float_array("Tensor: data", data)
        _require_bool(requires_grad)
        self._data = lasting(data)
        self._grad = None
        self._requires_grad = requires_grad
        self.changed = self.switched = None
        self.reached = False
        self.node = None

    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, data: Array) -> None:
        if data is self._data:                                       # x.data *= 2 has already written into it
            mark_changed([("", self)], "an assignment to .data")
        self._require_leaf("data")
        require_float_array("Tensor.data", data)
        if data is not self._data:
            if not alike(data, self._data):
                self.changed = note_change("", "an assignment to .data")
            self._data = of_its_own(self, data)
        if self._grad is not None and not alike(self._grad, data):
            self._grad = None

    @property
    def grad(self) -> Array | None:
        return self._grad

    @grad.setter
    def grad(self, g: Array | None) -> None:
        self._require_leaf("grad")
        if g is not None and not alike(g, self._data):
            raise ValueError(f"Tensor.grad: expected None or {describe(self._data)}, like data, got {describe(g)}")
        if g is not self._grad:                                      # as it is after x.grad *= 2
            self._grad = None if g is None else own_gradient(g)

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad or self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._require_leaf("requires_grad")
        _require_bool(value)
        if value is not self._requires_grad:
            self.switched = note_change("", f"requires_grad = {value}")
        self._requires_grad = value

    def _require_leaf(self, what: str) -> None:
        if self.node is not None:
            raise RuntimeError(f"Tensor.{what} cannot be set: this Tensor is the output of {self.node.op.__name__}, and "
                               f"its {what} follows from the op's inputs; use .detach() for a leaf with these values")

    def __repr__(self) -> str:
        made_by = f", op={self.node.op.__name__}" if self.node else ", requires_grad" * self.requires_grad
        return f"Tensor({self._data!r}{made_by})"

    def __len__(self) -> int:
        return len(self._data)

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError("a Tensor is not a NumPy array, and converting it would lose its gradient: use ops.concat, "
                        "ops.stack and the other ops, or .data for the values")

    def __array_function__(self, function: Any, types: Any, args: tuple, options: dict[str, Any]) -> Any:
        if function in (np.shape, np.ndim, np.size):             # of the data: no gradient is lost
            return function(*(x._data if isinstance(x, BaseTensor) else x for x in args), **options)
        name = f"{function.__module__}.{function.__name__}".replace("numpy", "np", 1)
        raise TypeError(f"{name} takes arrays, not Tensors, whose gradient would be lost: use the op of "
                        "minicl.ops, or .data for the values")

    def __format__(self, spec: str) -> str:
        """f"{loss:.3f}" formats the value of a Tensor of shape (), as in PyTorch."""
        return format(self.item(), spec) if spec and self.ndim == 0 else super().__format__(spec)

    def __bool__(self) -> NoReturn:
        raise TypeError("the truth value of a Tensor is not defined; compare its .data, or use ops.where")

    def _compare(self, other: Any) -> NoReturn:
        raise TypeError("Tensors cannot be compared; compare their .data, or write `x is y` to test for the same Tensor")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compare
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple:
        """Copies and pickles are leaves with the same values and no gradient, and what a class of a script has added."""
        if self.node is not None:
            raise TypeError(f"a Tensor on a tape (the output of {self.node.op.__name__}) cannot be copied or pickled: the "
                            "copy would send its gradient to copies of the leaves; .detach() it first")
        return _leaf_of, (type(self), self._data, self._requires_grad), own_attributes(self)

    def __getattr__(self, name: str) -> Any:             # called only for a missing attribute
        known = [other for other in dir(type(self)) if other[0] != "_"]
        hint = "" if name[0] == "_" or name in BaseTensor.__slots__ else did_you_mean(name, known)
        raise AttributeError(f"a Tensor has no attribute {name!r}{hint}")

    def requires_grad_(self, requires_grad: bool = True) -> "BaseTensor":
        """Set requires_grad of a leaf. Returns the Tensor."""
        self.requires_grad = requires_grad
        return self

    def numpy(self) -> HostArray:
        """The values as a NumPy array (on the CPU, data itself). As in PyTorch, the Tensor must be detached."""
        if self.requires_grad:
            raise RuntimeError("numpy(): a gradient flows to this Tensor, and would be lost; write x.detach().numpy()")
        return to_host(self._data)

    def item(self) -> float:
        """The value of a one-element Tensor as a Python float. On a GPU this waits for the device."""
        if self.size != 1:
            raise ValueError(f"item(): expected a Tensor of one element, got shape {self.shape}")
        return float(self._data.reshape(()))

    def __float__(self) -> float:
        if self.requires_grad and not in_no_grad():
            raise TypeError("float() of a Tensor that requires a gradient, which math's functions and NumPy's assignments "
                            "call too, would lose the gradient: use ops.exp and the other ops, or .item() for the value")
        return self.item()


def _augmented(symbol):
    """x += y as x = x + y, unless x is trained or part of a model, which would stay as it is."""
    def assign(x, y):
        if x.node is None and (x._requires_grad or BaseTensor not in type(x).__bases__):
            raise TypeError(f"x {symbol}= y would make a new Tensor and leave this {type(x).__name__} of shape {x.shape} "
                            f"as it is; write x.data {symbol}= y to change it, with y an array, or x = x {symbol} y for a "
                            "new Tensor")
        return NotImplemented
    return assign


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "matmul": "@", "pow": "**"}.items():
    setattr(BaseTensor, f"__i{_name}__", _augmented(_symbol))


def _array_of(data: Any) -> Array:
    """Numbers and lists as an array: Python floats become float32, NumPy's float64 stay float64."""
    require_unmasked("Tensor: data", data)
    try:
        x = np.asarray(data)
    except ValueError as error:                              # rows of different lengths
        raise ValueError(f"Tensor: data must be numbers, or lists of equal length: {error}") from error
    if x.dtype == object:
        raise TypeError(f"Tensor: data must be an array, a number or lists of numbers, got {type(data).__name__} "
                        f"{shortened(data)}")
    if x.dtype != np.float64 or _holds_float64(data):
        return x
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(x)).any():
        raise ValueError(f"Tensor: data holds {x[np.isinf(narrow) & np.isfinite(x)][0]:g}, which is too large for "
                         "float32, as Python's floats become; pass a float64 array")
    return narrow


def _holds_float64(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return any(map(_holds_float64, data))
    return type(data) not in (float, int, bool) and np.asarray(data).dtype == np.float64


def _leaf_of(kind: type[BaseTensor], data: Array, requires_grad: bool) -> BaseTensor:
    leaf = kind.__new__(kind)
    is_part = BaseTensor not in kind.__bases__
    BaseTensor.__init__(leaf, of_its_own(leaf, data) if is_part else data, requires_grad)
    watch([leaf] if is_part else [])
    return leaf


def _require_bool(requires_grad: Any) -> None:
    if not isinstance(requires_grad, bool):
        raise TypeError(f"requires_grad: expected True or False, got {requires_grad!r}")


def mark_reached(leaves: Sequence[BaseTensor]) -> None:
    """backward() has added to the gradients of these leaves. A launch of a captured step marks them again."""
    leaves = [leaf for leaf in leaves if hasattr(leaf, "reached")]

    def mark():
        for leaf in leaves:
            leaf.reached = True

    if leaves:
        each_step(leaves[0]._data, mark)


def alike(x: Array, y: Array) -> bool:
    """Whether two arrays agree in backend, shape and dtype."""
    return type(x) is type(y) and x.shape == y.shape and x.dtype == y.dtype


# ---------------------------------------------------------------- writes of the library

MANY = 1000                           # writes to one array that are told apart
last_change = [0]                     # its time: backward() needs to look for changes only in what an op used before


class Memory:
    """An array, the parts that view it, and {bytes of it: the last write}, which outlives the part that was written to."""

    def __init__(self, owner: Array):
        self.owner = weakref.ref(owner, lambda _, key=id(owner), found=_memory: found.pop(key, None))    # type: ignore
        self.parts: dict[int, tuple[weakref.ref, tuple[int, int]]] = {}      # by id: the part, and its bytes
        self.writes: dict[tuple[int, int], Change] = {}
        self.last = -1                                       # the time of the last write

    def note(self, there: tuple[int, int], change: Change) -> None:
        """A write to these bytes."""
        self.last = change[0]
        self.writes[there] = change
        if len(self.writes) > MANY:                          # of ever other slices: one for all, to be safe
            starts, ends = zip(*self.writes)
            self.writes = {(min(starts), max(ends)): change}


_memory: dict[int, Memory] = {}       # by id of the array


def note_change(name: str, by: str) -> Change:
    """The Change that happens now."""
    last_change[0] = next(clock)
    return last_change[0], name, by


def mark_changed(named: Iterable[tuple[str, Any]], by: str, *, within: Sequence[tuple[Memory, tuple]] | None = None) -> None:
    """Record that these Tensors and Buffers were written to; backward() of an op that used the old values then raises.

    within: the region() of arrays that consist of them all, which saves time in a training step.
    """
    change = note_change("", by)
    for name, x in named:
        x.changed = change[0], name, by
        if within is None:
            memory = _memory.get(id(owner_of(x.data)))
            if memory is None or id(x) not in memory.parts or isinstance(x, BaseTensor):
                watch([x])
                memory = _memory[id(owner_of(x.data))]
            memory.note(memory.parts[id(x)][1], x.changed)
    for memory, there in within or ():
        memory.note(there, change)


def region(array: Array) -> tuple[Memory, tuple[int, int]]:
    """Where the bytes of an array are, for which, or for a part that views it, watch() has been called."""
    return _memory[id(owner_of(array))], memory_bounds(array)


def watch(parts: Iterable[Any]) -> None:
    """Register the memory of these Tensors and Buffers, so that a write to one is detected through its views: .detach(),
    results of ops under no_grad(), Tensor(x.data)."""
    for part in parts:
        owner = owner_of(part.data)
        if id(owner) not in _memory:
            _memory[id(owner)] = Memory(owner)
        _memory[id(owner)].parts[id(part)] = weakref.ref(part), memory_bounds(part.data)


def last_write(data: Any, since: int) -> Change | None:
    """The last write since then to the memory of an array."""
    memory = _memory.get(id(owner_of(data)))
    if memory is None or memory.last < since:
        return None
    changes = [(memory_bounds(part.data), part.changed) for reference, _ in list(memory.parts.values())
               if (part := reference()) is not None and part.changed and part.changed[0] > since]   # with the part's name
    changes += [(there, change) for there, change in list(memory.writes.items()) if change[0] > since]
    here = memory_bounds(data)
    return max((change for there, change in changes if there[0] < here[1] and here[0] < there[1]), default=None)


def require_unchanged(node: Any) -> None:
    """Raise RuntimeError if the library has written to an input or an option of this recorded op since."""
    time = node.index
    for position, (x, array) in enumerate(zip(node.inputs, node.arrays)):
        if isinstance(x, BaseTensor):
            if x.node is not None:                           # require_output_unchanged() looks at it
                continue
            if x.changed and x.changed[0] > time or x.switched and x.switched[0] > time:
                _raise_changed(node, position, x, array)
        if last_write(array, time):
            _raise_changed(node, position, x, array)
    for name, x in node.options.items():                     # neither they nor their items are Tensors
        for item in x if isinstance(x, (tuple, list)) else (x,):             # of x[rows, :]
            for array in (item.start, item.stop, item.step) if isinstance(item, slice) else (item,):
                if last_write(array, time):
                    _raise_changed(node, name, array, array)


def _raise_changed(node: Any, key: int | str, x: Any, array: Any) -> NoReturn:
    changes = [getattr(x, "changed", None), getattr(x, "switched", None)]
    change = max(filter(None, [*changes, last_write(array, node.index)]))
    name = key if isinstance(key, str) else node.op.checks.input_name(key)
    what = f"{name}, {'a view of ' * (change not in changes)}{change[1] or 'a Tensor'} of shape {x.shape}"
    raise RuntimeError(f"{node.op.__name__}: its input {what}, was changed by {change[2]} after this op had used it, so its "
                       "gradient would belong to neither value; call backward() before that, or run the forward again")


def require_output_unchanged(y: Any) -> None:
    """Raise RuntimeError if the library has written to the output y of a recorded op since: its backward may use y."""
    if (change := last_write(y._data, y.node.index)) is not None:
        raise RuntimeError(f"{y.node.op.__name__}: its output of shape {y.shape} was changed by {change[2]}, through a view "
                           "such as .detach(), so its gradient would belong to neither value; write into a copy")


_gradients: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()      # by id


def register_gradient(grad: Array) -> None:
    """Note that this array is written to: a .grad, the array whose views an optimizer's gradients are, or its state."""
    _gradients[id(grad)] = grad


def of_its_own(x: Any, data: Array) -> Array:
    """data to become x.data, or a copy if it belongs to another part or is a gradient: both would change with the other.
    x: a Tensor, or a part, whose memory this is from then on; its axes are in order, as in a checkpoint."""
    owner = owner_of(data := data if data.flags.c_contiguous else data.copy())
    if type(data) is np.ndarray and not (isinstance(owner, np.ndarray) and owner.flags.owndata):
        return data.copy()                                   # the memory of another library, of which no owner is known
    memory = _memory.get(id(owner))
    if memory and any((part := reference()) is not None and part is not x and owner_of(part.data) is owner
                      for reference, _ in list(memory.parts.values())):
        data = data.copy()
    return lasting(data)


def place(part: Any, view: Array) -> None:
    """Make a view of a larger array the memory of a part: the array of an optimizer or an EMA, for all of its parts."""
    if isinstance(part, BaseTensor):
        part._data = view
    else:
        vars(part)["data"] = view


def own_gradient(g: Array) -> Array:
    """A copy of g to be a leaf's .grad, since others may use or change g."""
    grad = g.copy()
    register_gradient(grad)
    return grad


def lasting(x: Any) -> Any:
    """x, or a copy if x is a gradient or an optimizer's state: the next backward(), zero_grad() or step() writes into it,
    perhaps before the backward() of the op that uses x."""
    return x.copy() if type(x) is not HostArgument and is_array(x) and id(owner_of(x)) in _gradients else x


def owner_of(x: Any) -> Any:
    """The array whose memory x is a view of, or x."""
    owner = x
    while (x := getattr(x, "base", None)) is not None:
        owner = x if is_array(x) else owner
    return owner
