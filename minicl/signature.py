"""What an op requires of its arguments and of its gradients, read off its Python signature once.

@op calls these checks on the few calls that are not plain (numbers, keywords, mistakes); the plain ones cost nothing.
"""

import inspect

import numpy as np

from .backend import array_module, is_array


class Index:
    """Annotation of an op's argument that is an array of integers (ids): constant, no gradient."""
    kinds, meaning = "iu", "integer"


class Mask:
    """Annotation of an op's argument that is an array of bools: constant, no gradient."""
    kinds, meaning = "b", "bool"


class Scalar:
    """Annotation of an op's input that is one number, such as a temperature: a 0-d Tensor or a Python number."""


class Signature:
    """What an op asks of its arguments, and of the gradients that its backward gives them."""

    def __init__(self, function, broadcasts, tensor):
        self.name, self.broadcasts, self.tensor = function.__name__, broadcasts, tensor
        parameters = inspect.signature(function).parameters.values()
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.names = [p.name for p in inputs]
        self.constants = {p.name: p.annotation for p in inputs if p.annotation in (Index, Mask)}
        self.scalars = {p.name for p in inputs if p.annotation is Scalar}
        self.defaults = {p.name: p.default for p in inputs if p.default is not p.empty}
        self.asks_needs_grad = any(p.name == "needs_grad" for p in parameters)
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in inputs)
        self.count = None if self.variadic or self.constants else len(self.names)

    def unwrap(self, inputs, options):
        """All inputs, in order, and the arrays behind them; inputs given by keyword are taken out of options."""
        if not self.variadic and len(inputs) != len(self.names):
            inputs = self._by_name(inputs, options)
        return inputs, self._arrays(inputs)

    def _by_name(self, inputs, options):
        """Inputs given by keyword, or left to their default, in their order."""
        inputs = list(inputs)
        for name in self.names[len(inputs):]:
            if name not in options and name not in self.defaults:
                raise TypeError(f"{self.name}: missing argument {name!r}; expected {', '.join(self.names)}")
            inputs.append(options.pop(name, self.defaults.get(name)))
        if len(inputs) > len(self.names):
            raise TypeError(f"{self.name}: expected {len(self.names)} inputs ({', '.join(self.names)}), "
                            f"got {len(inputs)}; options are passed by keyword")
        return tuple(inputs)

    def _arrays(self, inputs):
        """The arrays behind the inputs, after checking that they can be computed with together."""
        arrays, first = [], None
        for position, x in enumerate(inputs):
            if isinstance(x, self.tensor):
                x = x.data
            elif isinstance(x, np.generic):                  # a NumPy float64 scalar would promote float32
                arrays.append(x.item())
                continue
            elif x is None or isinstance(x, (int, float)):
                if not self._may_be_number(position, x):
                    raise TypeError(f"{self.name}: {self._name(position)} must be a Tensor or an array, got {x!r}")
                arrays.append(x)
                continue
            name = self._name(position)
            if name in self.constants:
                self._check_constant(name, x, self.constants[name])
                arrays.append(x)
                continue
            if not is_array(x) or x.dtype.kind != "f":
                hint = "; convert it with .astype('float32')" if is_array(x) and x.dtype.kind in "iub" else ""
                raise TypeError(f"{self.name}: {name} must be a floating-point Tensor or array, got "
                                f"{describe(x)}{hint}")
            if first is None:
                first = (name, x)
            elif x.dtype != first[1].dtype:
                raise TypeError(f"{self.name}: {first[0]} is {first[1].dtype} but {name} is {x.dtype}; "
                                "convert one of them with .astype (nothing is promoted silently)")
            elif array_module(x) is not array_module(first[1]):
                raise TypeError(f"{self.name}: {first[0]} is on {array_module(first[1]).__name__} but {name} is "
                                f"on {array_module(x).__name__}; move one with minicl.backend.to_device")
            arrays.append(x)
        if first is None:
            raise TypeError(f"{self.name}: expected at least one Tensor or array, got {inputs!r}")
        return arrays

    def _name(self, position):
        return self.names[min(position, len(self.names) - 1)]

    def _may_be_number(self, position, x):
        """Numbers stand for arrays where they broadcast, and for arguments that are one number, such as a temperature."""
        name = self._name(position)
        if name in self.constants:
            return False
        return x is None and name in self.defaults or x is not None and (self.broadcasts or name in self.scalars)

    def _check_constant(self, name, x, kind):
        if not is_array(x) or x.dtype.kind not in kind.kinds:
            raise TypeError(f"{self.name}: {name} must be an array of {kind.meaning} type, got {describe(x)}")

    def fit_gradient(self, dx, x, position):
        """The gradient dx of the array x that was input `position`, summed back to its shape, checked."""
        if not is_array(dx):
            dx = np.asarray(dx)
        if self.broadcasts and dx.shape != x.shape:
            dx = sum_to_shape(dx, x.shape)
        if dx.shape != x.shape or dx.dtype != x.dtype:
            raise RuntimeError(f"backward of {self.name}: the gradient of {self._name(position)} must be {describe(x)}, "
                               f"got {describe(dx)}")
        return dx


def sum_to_shape(g, shape):
    """Sum g over the axes along which an input of this shape was repeated by broadcasting."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape)))) if g.ndim > len(shape) else g
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1 and g.shape[axis] != 1)
    return g.sum(axis=repeated, keepdims=True) if repeated else g


def describe(x):
    return f"{x.dtype} array of shape {x.shape}" if is_array(x) else f"{type(x).__name__} {x!r}"
