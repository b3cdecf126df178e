"""Checks of an op's arguments and gradients, derived once from its Python signature.

Calls with Tensors that agree skip these checks; @op runs them for numbers, keywords and mistakes.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

import numpy as np

from .backend import HostArgument, array_module, is_array, sum_over
from .checks import did_you_mean, is_of_minicl, python_numbers, require_bool, shortened
from .typing import Array

if TYPE_CHECKING:                     # callers pass Tensors and the body gets arrays: Any, to a type checker
    Index: TypeAlias = Any
    Mask: TypeAlias = Any
    Scalar: TypeAlias = Any
else:
    class Index:
        """Annotates an op's argument as an array of integers (ids): constant, without a gradient."""
        kinds = "iu"
        meaning = "integer"

    class Mask:
        """Annotates an op's argument as an array of bools: constant, without a gradient."""
        kinds = "b"
        meaning = "bool"

    class Scalar:
        """Annotates an op's input as one number, such as a temperature: a 0-d Tensor or a Python number."""

MARKS = {"Index": Index, "Mask": Mask, "Scalar": Scalar}
FLOATS = (np.dtype("float32"), np.dtype("float64"))          # native; `in` compares them by identity first
PLAIN = {type(None), bool, int, float, str, slice, types.MethodType}     # of options that need no look, as most
OTHER_NAMES = {"temperature": "tau"}                          # callers may write either
Function = TypeVar("Function", bound=Callable[..., Any])


class Signature:
    """The names and kinds of an op's arguments, and their checks.

    names      names of the differentiable inputs and the constants (Index, Mask), in order
    options    names of the keyword-only arguments
    variadic   whether the inputs are *xs
    count      the number of inputs if calls may skip the checks, else None
    public     the signature for help(): without needs_grad, which @op passes, and without the type Any
    """

    def __init__(self, function: Callable[..., Any], broadcasts: bool = False) -> None:
        require_bool("@op", broadcasts=broadcasts)
        self.name = function.__name__
        self.broadcasts = broadcasts
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name != "needs_grad"]
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        if not inputs:
            raise TypeError(f"@op: {self.name} takes no input that a gradient could flow to")
        if any(p.kind is p.VAR_KEYWORD for p in inputs):
            raise TypeError(f"@op: {self.name} takes **{inputs[-1].name}; write its options out, as keyword-only arguments")
        self.names = [p.name for p in inputs]
        self.options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.bools = {p.name for p in parameters if p.annotation in (bool, "bool")}
        self.plain = {name: {bool} if name in self.bools else PLAIN for name in self.options if name != "world"}
        self.defaults = {p.name: p.default for p in inputs if p.default is not p.empty}
        self.asks_needs_grad = "needs_grad" in signature.parameters
        self.public = signature.replace(parameters=[p.replace(annotation=p.empty) if p.annotation is Any else p
                                                    for p in parameters])
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in inputs)
        marks = {p.name: _mark(p.annotation, function) for p in inputs}
        self.constants = {name: mark for name, mark in marks.items() if mark in (Index, Mask)}
        self.scalars = {name for name, mark in marks.items() if mark is Scalar}
        self.count = None if self.variadic or self.constants else len(self.names)

    # ------------------------------------------------------------ arguments

    def in_order(self, inputs: tuple, options: dict[str, Any]) -> tuple:
        """All inputs in order; those given by keyword are removed from options, missing ones get their default."""
        if self.variadic or len(inputs) == len(self.names):
            return inputs
        if len(inputs) > len(self.names):
            raise TypeError(f"{self.name}: expected {len(self.names)} inputs ({', '.join(self.names)}), "
                            f"got {len(inputs)}; options are passed by keyword")
        missing = self.names[len(inputs):]
        for other, name in OTHER_NAMES.items():
            if other in options and name in missing and name not in options:
                options[name] = options.pop(other)
        by_name = {name: options.pop(name) for name in missing if name in options}
        self.check_options(options)
        for name in missing:
            if name not in by_name and name not in self.defaults:
                raise TypeError(f"{self.name}: missing argument {name!r}; expected {', '.join(self.names)}")
        return (*inputs, *(by_name.get(name, self.defaults.get(name)) for name in missing))

    def check_options(self, options: dict[str, Any], kept: Callable[[Any], Any] = lambda x: x) -> None:
        """Refuse unknown options and Tensors; convert NumPy numbers, which would promote float32, to Python's, and arrays to
        those that may be kept until the backward."""
        for name, value in options.items():
            if type(value) in self.plain.get(name, ()):
                continue
            if name not in self.options:
                raise TypeError(f"{self.name}: {self._what_is_wrong_with(name)}")
            if name in self.bools:
                require_bool(self.name, **{name: value})
            if isinstance(value, np.generic):
                options[name] = value.item()
            elif name == "world" and not hasattr(value, "all_reduce"):
                raise TypeError(f"{self.name}: world must be what minicl.distributed.get_world() returns, got {value!r}")
            elif hasattr(value, "requires_grad") or _holds_tensor(value):
                verb = "be" if hasattr(value, "requires_grad") else "hold"
                raise TypeError(f"{self.name}: {name} cannot {verb} a Tensor, since no gradient would reach an option; "
                                "pass its .data or .item(), or write the formula with other ops (x**p as exp(p log x))")
            else:
                options[name] = type(value)(map(kept, value)) if type(value) in (list, tuple) else kept(value)

    def _what_is_wrong_with(self, name: str) -> str:
        if name in self.names:
            return f"{name!r} is given twice"
        other_names = [other for other, of in OTHER_NAMES.items() if of in self.names]
        if name in other_names:
            return f"{OTHER_NAMES[name]} is given twice, also as {name}"
        if name in ("tau", "temperature") and "logit_scale" in self.names:
            return f"unknown argument {name!r}; pass logit_scale, math.log(1 / 0.07) for a temperature of 0.07"
        known = [*self.names, *self.options, *other_names]
        return f"unknown argument {name!r}" + (did_you_mean(name, known) or f"; expected {', '.join(known)}")

    def arrays(self, values: Sequence[Any]) -> list[Any]:
        """The input arrays, checked for matching dtype and backend."""
        checked = []
        first = None                                         # the first differentiable input: (name, array)
        for position, x in enumerate(values):
            name = self.input_name(position)
            if type(x) is HostArgument:                      # such as labels, in a step that is captured
                x = x.moved(is_input=True)
            if isinstance(x, np.generic):
                x = x.item()                                 # a NumPy float64 would promote float32
            if x is None or isinstance(x, (int, float)):
                if not self._may_be_number(name, x):
                    number = "a number, " * (name in self.scalars or self.broadcasts)
                    raise TypeError(f"{self.name}: {name} must be {number}a Tensor or an array, got {x!r}")
            elif name in self.constants:
                kind = self.constants[name]
                if not is_plain_array(x) or x.dtype.kind not in kind.kinds:
                    raise TypeError(f"{self.name}: {name} must be an array of {kind.meaning} type, got {describe(x)}")
            elif first is None or type(x) is not type(first[1]) or x.dtype is not first[1].dtype:
                require_float_array(f"{self.name}: {name}", x)
                first = first or (name, x)
                self._require_like(*first, name, x)
            checked.append(x)
        if first is None:
            raise TypeError(f"{self.name}: expected at least one Tensor or array, got {values!r}")
        return checked

    def require_scalars(self, arrays: Sequence[Any]) -> None:
        """Raise ValueError unless each input annotated Scalar is one number."""
        for name, x in zip(self.names, arrays):
            if name in self.scalars and getattr(x, "ndim", 0) != 0:
                raise ValueError(f"{self.name}: {name} must be one number, got shape {x.shape}")

    def _may_be_number(self, name: str, x: Any) -> bool:
        """Whether the input may be a number: if the op broadcasts, or the input is a Scalar."""
        if x is None:
            return name in self.defaults
        return not isinstance(x, bool) and name not in self.constants and (self.broadcasts or name in self.scalars)

    def _require_like(self, first_name: str, first: Array, name: str, x: Array) -> None:
        if x.dtype != first.dtype:
            raise TypeError(f"{self.name}: {first_name} is {first.dtype} but {name} is {x.dtype}; "
                            "convert one of them with .astype (nothing is promoted silently)")
        if type(x) is not type(first):
            raise TypeError(f"{self.name}: {first_name} is on {array_module(first).__name__} but {name} is "
                            f"on {array_module(x).__name__}; move one with minicl.backend.to_device")

    def input_name(self, position: int) -> str:
        """The name of the argument at this position; xs[0], xs[1], ... for *xs."""
        return f"{self.names[-1]}[{position + 1 - len(self.names)}]" if self.variadic else self.names[position]

    def name_error(self, error: Exception, arrays: Sequence[Any]) -> None:
        """Add the op and its inputs to the message of an error that does not name the op, such as NumPy's about shapes."""
        if type(error) in (IndexError, OverflowError, TypeError, ValueError) and not re.match(r"\w+: ", str(error)):
            got = ", ".join(f"{self.input_name(position)} {describe(x)}" for position, x in enumerate(arrays))
            error.args = (f"{self.name}: {error}; got {got}",)

    # ------------------------------------------------------------ values and gradients

    def fit_value(self, value: Any, kind: Any, dtype: np.dtype) -> Array:
        """The op's value, checked: an array of the inputs' backend and dtype."""
        if isinstance(value, (tuple, list)):
            raise TypeError(f"{self.name}: its value must be one array, got a {type(value).__name__} of {len(value)}; join "
                            "them into one, or write an op for each")
        if not is_array(value) and not hasattr(value, "requires_grad"):
            value = np.asarray(value)                        # NumPy's reductions return scalars
        require_float_array(f"{self.name}: its value", value)
        if type(value) is not kind or value.dtype != dtype:
            raise TypeError(f"{self.name}: its value must be a {dtype} {kind.__module__} array like its inputs, got "
                            f"{describe(value)}; a NumPy number promotes, so compute with Python's, float(x)")
        return value

    def require_gradients(self, gradients: Any, count: int) -> None:
        """Raise RuntimeError unless a backward has returned a tuple of `count` gradients, one for each input."""
        if type(gradients) is not tuple or len(gradients) != count:
            raise RuntimeError(f"backward of {self.name}: expected a tuple of {count} gradients, one for each input, got "
                               f"{f'{len(gradients)}' if type(gradients) is tuple else describe(gradients)}; of a single "
                               "one, `return dx,`")

    def fit_gradient(self, dx: Any, x: Array, position: int, output: tuple[int, ...] | None = None) -> Array:
        """The gradient dx of x, the input at `position`, summed to x's shape and checked. output: the output's shape; a
        gradient of more axes is not summed."""
        if isinstance(dx, (tuple, list)):
            raise RuntimeError(f"backward of {self.name}: the gradient of {self.input_name(position)} must be "
                               f"{describe(x)}, got a {type(dx).__name__}; another op's backward returns a tuple: take its "
                               "entry, to_x(g)[0]")
        returned = dx
        if self.broadcasts and is_array(dx) and dx.shape != x.shape and _is_broadcast(dx, x, output):
            dx = sum_to_shape(dx, x.shape)
        if not is_array(dx) and not hasattr(dx, "requires_grad"):      # NumPy's sums over all axes are scalars
            dx = np.asarray(dx)
        if type(dx) is not type(x) or dx.shape != x.shape or dx.dtype != x.dtype:
            raise RuntimeError(f"backward of {self.name}: the gradient of {self.input_name(position)} must be "
                               f"{describe(x)}, got {describe(dx)}{self._guess(returned, dx, x)}")
        return dx

    def _guess(self, returned, dx, x):
        """The likely mistake behind a gradient dx that does not fit x; `returned` is what it was before it was summed."""
        if is_array(returned) and returned is not dx and returned.ndim >= x.ndim:
            return f"; sum_to_shape made it from {returned.shape}"
        if x.ndim > 1 and dx.shape == x.shape[::-1]:
            return "; is it transposed?"
        return "; was g left out, or an axis summed?" if self.broadcasts else ""


def by_known_names(name: str, function: Callable[..., Any], inputs: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """options with the function's own argument names. Raises TypeError, with the nearest name, for an unknown one."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return options
    for other in [option for option in options if option not in parameters]:
        known = OTHER_NAMES.get(other, "")
        if known not in parameters:
            raise TypeError(f"{name}: unknown argument {other!r}{did_you_mean(other, parameters)}")
        if known in options or known in list(parameters)[:len(inputs)]:
            raise TypeError(f"{name}: {known} and {other} are two names of one argument; give one of them")
        options = {**options, known: options[other]}
        del options[other]
    return options


def accepts_other_names(function: Function) -> Function:
    """Decorator for functions that are not ops: accepts temperature for tau, and NumPy's numbers as Python's, and adds a
    hint to an unknown argument."""
    names = inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    def call(*inputs, **options):
        if not options.keys() <= names:
            options = by_known_names(function.__qualname__, function, inputs, options)
        inputs, options = python_numbers(inputs, options)
        return function(*inputs, **options)
    return call                           # type: ignore[return-value]


def _holds_tensor(value: Any) -> bool:
    return hasattr(value, "named_parameters") or isinstance(value, (list, tuple, set, dict)) and any(
        hasattr(item, "requires_grad") or _holds_tensor(item)
        for item in (value.values() if isinstance(value, dict) else value))


def _mark(annotation: Any, function: Callable[..., Any]) -> Any:
    """Index, Mask or Scalar if the annotation is one of them, else None."""
    if isinstance(annotation, str):                          # under `from __future__ import annotations`
        try:
            annotation = eval(annotation, {**MARKS, **function.__globals__})
        except Exception:                                    # a name local to an enclosing function
            annotation = MARKS.get(annotation.rpartition(".")[2])
    return next((mark for mark in MARKS.values() if mark is annotation or mark in get_args(annotation)), None)


def require_float_array(what: str, x: Any) -> None:
    """Raise TypeError, with a hint how to convert x, unless x is a plain array of float32 or float64."""
    if is_plain_array(x) and x.dtype in FLOATS:
        return
    hint = ""
    if is_array(x) and not is_plain_array(x):
        hint = ("; fill its masked entries, .filled(0), and mask the loss" if isinstance(x, np.ma.MaskedArray) else
                "; convert with numpy.asarray(x)")
    elif is_of_minicl(type(x)) and hasattr(x, "data"):       # a Tensor, a Buffer
        hint = f"; pass the .data of a {type(x).__name__}"
    elif is_array(x) and x.dtype.kind in "iub":
        hint = "; convert with .astype('float32'), or write 1.0 for 1 (labels and ids are passed to ops as plain arrays)"
    elif is_array(x) and x.dtype == object:
        hint = "; an op works on arrays: inside it use xp, or another op's .forward"
    elif is_array(x) and x.dtype.kind == "f":
        hint = f"; convert with .astype('float{64 if x.dtype.itemsize > 4 else 32}')"
    raise TypeError(f"{what} must be a floating-point array, float32 or float64, got {describe(x)}{hint}")


def _is_broadcast(dx, x, output):
    """Whether dx may be the gradient of x where it was broadcast: x has its axes or 1, and the output has as many axes."""
    return dx.ndim <= max(x.ndim, len(dx.shape if output is None else output)) and all(
        n in (1, m) for n, m in zip(x.shape[::-1], dx.shape[::-1]))


def sum_to_shape(g: Array, shape: Iterable[int]) -> Array:
    """Sum g over the axes along which an input of this shape was repeated by broadcasting."""
    shape = tuple(shape)
    g = sum_over(g, range(g.ndim - len(shape))) if g.ndim > len(shape) else g
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1 and g.shape[axis] != 1)
    return sum_over(g, repeated, keepdims=True) if repeated else g


def is_plain_array(x: Any) -> bool:
    """Whether x is an array of either backend, but not of a subclass such as a matrix, masked array or memmap."""
    return type(x) is np.ndarray or is_array(x) and not isinstance(x, np.ndarray)


def describe(x: Any) -> str:
    """x for an error message; for an array its dtype, kind and shape."""
    if not is_array(x):
        return f"{type(x).__name__} {shortened(x)}"
    kind = "array" if is_plain_array(x) else type(x).__name__
    order = "" if x.dtype.isnative else "big-endian " if x.dtype.byteorder == ">" else "little-endian "
    return f"{order}{x.dtype.name} {kind} of shape {x.shape}"
