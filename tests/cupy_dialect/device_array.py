"""The array of the stand-in for CuPy, and the boundary between host and device.

A device array wraps a NumPy array that the host cannot access. `operand` and `host` check arguments, and `device` wraps
results. stream.py counts the launches, and how often the host reads an array.
"""

import operator
import types
import weakref

import numpy as np

from .listing import LISTING, listed, signature
from .stream import FusedNumber, launch, launch_for, launch_product, synchronise, while_fusing, written

_SUPPORTED = frozenset("?bBhHiIlLqQefdFD")                     # the dtypes that CuPy can store
_SCALARS = frozenset({bool, int, float, complex} | {np.dtype(char).type for char in _SUPPORTED})
_BASIC_INDICES = frozenset({int, slice, type(None), type(Ellipsis)})


# ---------------------------------------------------------------- between host and device

def unsupported(x):
    return TypeError(f"Unsupported type {type(x)}: CuPy mixes device arrays with scalars only; "
                     "move it with xp.asarray first")


def operand(x):
    """The NumPy value of an operand of an operator or ufunc, which must be a device array or a scalar."""
    if type(x) is ndarray:
        return x._array
    if type(x) in _SCALARS:
        return x
    if type(x) is FusedNumber:
        return x.value
    raise unsupported(x)


def host(x):
    """The argument of NumPy's function for an argument of CuPy's. Host arrays are refused; shapes and dtypes pass."""
    if type(x) is ndarray:
        return x._array
    if isinstance(x, np.ndarray):
        raise unsupported(x)
    if type(x) is FusedNumber:
        return x.value
    if isinstance(x, (list, tuple)):
        return [host(item) for item in x] if isinstance(x, list) else tuple(map(host, x))
    return x


def wrap(array):
    """A device array that shares the memory of a NumPy array, or holds a NumPy scalar."""
    array = np.asarray(array)
    if array.dtype.char not in _SUPPORTED:
        raise ValueError(f"Unsupported dtype {array.dtype}")
    return object.__new__(ndarray)._around(array)


def device(result):
    """NumPy's `result` as CuPy returns it, with device arrays instead of NumPy arrays and scalars."""
    if isinstance(result, (np.ndarray, np.generic)):
        return wrap(result)
    if isinstance(result, (list, tuple)):
        return [device(item) for item in result] if isinstance(result, list) else tuple(map(device, result))
    return result


def call(function, args, kwargs):
    """function(*args, **kwargs) on the wrapped NumPy arrays. If `out` is given, the same object is returned."""
    result = function(*map(host, args), **{name: host(x) for name, x in kwargs.items()})
    return device(result) if kwargs.get("out") is None else kwargs["out"]


def in_bounds(function, *args, **kwargs):
    """function(...), with an AssertionError for an index out of bounds, where CuPy raises no error."""
    try:
        return function(*args, **kwargs)
    except IndexError as error:
        if "out of bounds" not in str(error):
            raise
        raise AssertionError(f"{error}: CuPy would wrap it around silently") from error


# ---------------------------------------------------------------- the array

def read_key(key):
    """(the key with NumPy arrays, the kinds of its index arrays), where "b" is a mask and "i" are ids."""
    if type(key) in _BASIC_INDICES:
        return key, ""
    parts = []
    kinds = ""
    for part in key if type(key) is tuple else (key,):
        if type(part) is ndarray:
            if part.dtype.kind not in "biu":
                raise IndexError("arrays used as indices must be of integer or boolean type. "
                                 f"(actual: {part.dtype.type})")
            kinds += "b" if part.dtype.kind == "b" else "i"
            part = part._array
        elif isinstance(part, (np.ndarray, list, bool, np.bool_)):
            raise TypeError(f"Unsupported type {type(part)} in an index: CuPy would copy it to the device each time")
        parts.append(part)
    if "b" in kinds:
        synchronise()                                      # for reads and writes, CuPy counts the True
    return tuple(parts), kinds


def _same_place(x, y):
    """Whether both are the same view of memory. This is False for a single entry, which NumPy returns as a number."""
    return isinstance(x, np.ndarray) and x.shape == y.shape and x.strides == y.strides and x.ctypes.data == y.ctypes.data


def _refuse_undefined(target, key, kinds, value):
    """Raise AssertionError where CuPy leaves target[key] = value undefined."""
    if "i" in kinds:
        times = np.zeros(target.shape, np.int32)
        in_bounds(np.add.at, times, key, 1)
        if value.size > 1 and times.size and times.max() > 1:
            raise AssertionError("assignment with duplicate ids: CuPy leaves undefined which value stays; "
                                 "use xp.add.at, or make the ids unique")
    elif not kinds and np.may_share_memory(target, value):
        part = target[key]
        alike = part.shape == value.shape and part.strides == value.strides and part.dtype == value.dtype
        if (alike and part.flags.c_contiguous and np.may_share_memory(part, value)
                and part.ctypes.data != value.ctypes.data):
            raise AssertionError("assignment between overlapping parts of one array: CuPy copies them with "
                                 "memcpy, which is undefined; copy the right-hand side first")


_OWNERS = weakref.WeakValueDictionary()  # id of a NumPy array that owns its memory -> its device array


class ndarray:
    """cupy.ndarray; its methods and operators are added below, from the listing."""

    __slots__ = ("_array", "_base", "__weakref__")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in has no device pointers")
        self._around(np.empty(shape, dtype, order))

    def _around(self, array):
        self._array = array
        self._base = None
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        kept = self if owner is array or id(owner) in _OWNERS else wrap(owner)
        known = _OWNERS.setdefault(id(owner), kept)
        self._base = None if known is self else known      # one object for all views, as in CuPy
        return self

    # NumPy's functions are refused

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # CuPy allows `np.float32(2) * x`, which calls this. For `np.float32(2) < x` NumPy passes a 0-d array.
        left = inputs[0]
        if ufunc.__name__ in _COMPARISONS and isinstance(left, np.ndarray) and not left.ndim:
            left = left.item()
        if method == "__call__" and ufunc in _OPERATOR_UFUNCS and not kwargs and type(left) in _SCALARS:
            launch()
            return device(ufunc(left, self._array))
        for x in inputs:
            if isinstance(x, np.ndarray):
                raise unsupported(x)
        raise TypeError(f"np.{ufunc.__name__} was called on a device array: use xp.*")

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError(f"np.{function.__name__} was called on a device array: use xp.*")

    def __reduce__(self):
        raise TypeError("a device array was pickled: save x.get(), which any machine can load")

    # copies to the host; each is a synchronisation

    def get(self, stream=None, order="C", out=None, blocking=True):
        synchronise()
        if out is None:
            return self._array.copy(order)
        out[...] = self._array
        return out

    def item(self):
        if self._array.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    # indexing

    def __len__(self):
        while_fusing("len()")
        return len(self._array)

    def __iter__(self):
        if not self._array.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        while_fusing("x[...]")
        key, kinds = read_key(key)
        if kinds:
            launch()
        if "i" in kinds:
            return wrap(in_bounds(self._array.__getitem__, key))
        part = self._array[key]
        if type(part) is not np.ndarray:                   # NumPy returns a scalar, CuPy a 0-d view
            part = self._array[(*key, ...) if type(key) is tuple else (key, ...)]
        return wrap(part)

    def __setitem__(self, key, value):
        if key is not Ellipsis and not (isinstance(key, slice) and key == slice(None)):
            while_fusing("x[part] = y")
        key, kinds = read_key(key)
        value = operand(value)
        written(self)
        if type(value) is np.ndarray:
            if not kinds and _same_place(self._array[key], value):     # the last step of x[part] += y, already done
                return
            _refuse_undefined(self._array, key, kinds, value)
        launch()
        if "i" in kinds:
            in_bounds(self._array.__setitem__, key, value)
        else:
            self._array[key] = value

    # methods that differ from NumPy's

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError(f"{'casting' if casting is not None else 'subok'} is not supported yet")
        array = self._array.astype(dtype, order, copy=copy)
        launch(array is not self._array)
        return self if array is self._array else wrap(array)

    def fill(self, value):
        while_fusing("fill")
        launch()
        self._array.fill(operand(value))

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype} {arr.shape} cannot be set to {self.dtype} {self.shape}")
        launch()
        self._array[...] = arr

    def take(self, indices, axis=None, out=None):
        while_fusing("take")
        launch()
        return in_bounds(call, self._array.take, (indices, axis), {"out": out})

    def repeat(self, repeats, axis=None):
        if type(repeats) is ndarray:                       # the result's shape would depend on it
            raise ValueError("cupy.ndarray object cannot be specified as `repeats`.")
        launch()
        return call(self._array.repeat, (repeats, axis), {})

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # attributes

    @property
    def T(self):
        return self if self._array.ndim < 2 else wrap(self._array.T)

    base = property(operator.attrgetter("_base"))

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._array.ctypes.data, device_id=0)

    @property
    def device(self):
        return types.SimpleNamespace(id=0)

    @property
    def flags(self):
        flags = self._array.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous,
                                     forc=flags.forc, fnc=flags.fnc, owndata=self._array.base is None)


def _defers(x):
    """Whether a device array leaves `array + x` to x.__radd__, as NEP 13 defines and CuPy does."""
    if hasattr(x, "__array_ufunc__"):
        return x.__array_ufunc__ is None
    return getattr(x, "__array_priority__", 0) > ndarray.__array_priority__


def _operators(stem, ufunc):
    """array + x, x + array and array += x for the ufunc of addition."""

    product = stem == "matmul"

    def forward(self, x):
        if type(x) is not ndarray and type(x) not in _SCALARS and _defers(x):
            return NotImplemented
        x = operand(x)
        result = device(ufunc(self._array, x))
        if product:
            while_fusing("a matrix product")
            launch_product(self._array, x)
        else:
            launch()
        return result

    def reflected(self, x):
        result = device(ufunc(operand(x), self._array))
        launch()
        return result

    def in_place(self, x):                                 # CuPy does not defer here
        ufunc(self._array, operand(x), out=self._array)
        launch()
        written(self)
        return self

    return {f"__{stem}__": forward, f"__r{stem}__": reflected, f"__i{stem}__": in_place}


def _reading(name):
    """A method that reads the array on the host, such as tolist or float()."""
    return lambda self, *args: getattr(self.get(), name)(*args)


def _method(name):
    """A method that NumPy's array has under the same name."""
    accepts = signature("methods", name)
    waits = name in LISTING["synchronises"]

    def method(self, *args, **kwargs):
        if name != "copy":
            while_fusing(name)
        accepts(self, *args, **kwargs)
        if waits:
            synchronise()
        result = call(getattr(self._array, name), args, kwargs)
        if kwargs.get("out") is not None:
            launch()
        else:
            launch_for(result, [self])
        return result

    method.__name__ = name
    return method


_UFUNC_OF = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
             "mod": "remainder", "divmod": "divmod", "pow": "power", "matmul": "matmul", "lshift": "left_shift",
             "rshift": "right_shift", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
             "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
             "ne": "not_equal"}
_COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
_OPERATOR_UFUNCS = frozenset(getattr(np, name) for name in _UFUNC_OF.values())


def _teach_ndarray():
    """Add the listed methods and attributes of CuPy's array that NumPy can compute to the class."""
    methods = {}
    for stem, ufunc in _UFUNC_OF.items():
        methods |= _operators(stem, getattr(np, ufunc))
    for name in ("__neg__", "__pos__", "__abs__", "__invert__"):
        methods[name] = lambda self, _name=name: launch() or device(getattr(self._array, _name)())
    for name in LISTING["operators"]:                      # without __imatmul__, which CuPy does not have
        if name in methods:
            setattr(ndarray, name, methods[name])
    for name in LISTING["methods"]:
        if not hasattr(ndarray, name) and hasattr(np.ndarray, name) and name not in ("dump", "dumps"):
            setattr(ndarray, name, _method(name))
    for name in ("tolist", "tobytes", "tofile", "__float__", "__int__", "__bool__", "__complex__"):
        setattr(ndarray, name, _reading(name))
    for name in ("dtype", "ndim"):
        setattr(ndarray, listed("attributes", name), property(operator.attrgetter(f"_array.{name}")))
    for name in ("itemsize", "nbytes", "shape", "size", "strides"):       # not available in fused functions
        attribute = property(lambda self, _name=name: while_fusing(_name) or getattr(self._array, _name))
        setattr(ndarray, listed("attributes", name), attribute)
    for name in ("real", "imag", "mT"):
        part = property(lambda self, _name=name: wrap(getattr(self._array, _name)))
        setattr(ndarray, listed("attributes", name), part)


_teach_ndarray()
