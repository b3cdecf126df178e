"""Reverse-mode differentiation: a Tensor, the @op decorator, and the walk back over the tape.

An op is a plain function of arrays. It returns its value and a function `backward` which turns g, the
gradient of the loss with respect to that value, into one gradient for each input:

    @op
    def mul(x, y):
        def backward(g):
            return g * y, g * x
        return x * y, backward

What `backward` closes over is what is saved for it. (Until the walk a node also holds its input Tensors,
which explain() reads.) `mul(a, b)` takes and returns Tensors and is recorded on the tape; `mul.raw(x, y)` is
the function above, for arrays, off the tape.

The chain rule is then a walk over the recorded ops, newest first. Each op was made after its inputs,
so that order is topological: when a node's turn comes, all the gradients that flow into it have arrived.

First order only: gradients are arrays, not Tensors, and cannot be differentiated again.
"""

import contextlib
import functools
import inspect
import itertools
import operator

import numpy as np

from .backend import array_module, is_array


class Tensor:
    """An array that remembers how it was computed.

    data           array of float32 or float64 (integers and bools are refused: pass those to ops as they are)
    requires_grad  True for a leaf whose gradient is wanted: a parameter
    grad           array of data's shape, or None: d loss / d data, summed over the backward() calls so far;
                   only leaves keep it
    """

    __slots__ = ("data", "grad", "requires_grad", "node", "__weakref__")
    __array_ufunc__ = None                # array + Tensor: NumPy and CuPy step back, Tensor.__radd__ is called
    __array_priority__ = 1000

    def __init__(self, data, requires_grad=False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data): expected an array, got a Tensor; use it as it is, or .detach() it")
        if not is_array(data):
            data = np.asarray(data)
            data = data.astype(np.float32) if data.dtype == np.float64 else data     # Python floats: float32
        if data.dtype.kind != "f":
            mend = "; an op works on arrays: inside it use xp, or another op's .raw" if data.dtype == object else \
                "; convert with .astype('float32'), or write 1.0 for 1 (labels and ids are passed to ops as plain arrays)"
            raise TypeError(f"Tensor(data): expected floating-point values, got {data.dtype}{mend}")
        self.data, self.grad, self.requires_grad, self.node = data, None, requires_grad, None

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def __repr__(self):
        made_by = f", op={self.node.op.__name__}" if self.node else ", requires_grad" * self.requires_grad
        return f"Tensor({self.data!r}{made_by})"

    def __len__(self):
        return len(self.data)

    def __array__(self, *args, **options):
        raise TypeError("a Tensor is no NumPy array, and making it one would lose its gradient: use ops.concat, ops.stack "
                        "and the other ops, or .data for the values")

    def __bool__(self):
        raise TypeError("the truth value of a Tensor is not defined; compare its .data, or use ops.where")

    def item(self):
        """The value of a one-element Tensor as a Python float. On a GPU this waits for the device."""
        if self.size != 1:
            raise ValueError(f"item(): expected a Tensor of one element, got shape {self.shape}")
        return float(self.data.reshape(()))

    __float__ = item

    def detach(self):
        """The same values as a leaf outside the tape: no gradient flows through it (the stop-gradient)."""
        return Tensor(self.data)

    def backward(self, g=None):
        """Add d self / d leaf to the .grad of every leaf that requires one.

        g: array of self's shape, the gradient to start from; may be left out if self is a scalar (then 1).
        Raises RuntimeError if self is on no tape, if g is needed and missing, or if the tape was walked before.
        """
        if g is None:
            if self.size != 1:
                raise RuntimeError(f"backward() without a gradient needs a scalar, got shape {self.shape}; "
                                   "reduce it with .mean() or .sum(), or pass backward(g) with g of that shape")
            g = array_module(self.data).ones_like(self.data)
        if not is_array(g) or g.shape != self.shape or g.dtype != self.dtype:
            raise ValueError(f"backward(g): expected an array of shape {self.shape} and dtype {self.dtype}, "
                             f"got {_describe(g)}")
        if self.node is None:
            if not self.requires_grad:
                raise RuntimeError("backward() on a Tensor that no recorded op has produced; was it made under "
                                   "no_grad(), detached, or computed from inputs without requires_grad?")
            _accumulate(self, g)
        else:
            _walk(self.node, g)


# ---------------------------------------------------------------- the tape

class _Node:
    """One recorded call of an op: who its inputs were, and how to send a gradient back to them.

    The walk needs no options; they are kept for minicl.explain, which can run the call again.
    """

    __slots__ = ("op", "inputs", "options", "backward", "index")
    count = itertools.count()

    def __init__(self, op, inputs, options, backward):
        self.op, self.inputs, self.options, self.backward = op, inputs, options, backward
        self.index = next(_Node.count)    # creation order is a topological order


_recording = True


@contextlib.contextmanager
def no_grad():
    """Within this block ops compute values only; nothing is recorded."""
    global _recording
    outer, _recording = _recording, False
    try:
        yield
    finally:
        _recording = outer


def _walk(root, g):
    """Send g back from the node `root` to the leaves, dropping each gradient and closure once used."""
    arriving = {root: g}                                     # node -> gradient of its output
    nodes = _ancestors(root)
    for node in nodes:
        if node.backward is None:
            raise RuntimeError(f"backward(): the tape behind {node.op.__name__!r} was already walked and freed; "
                               "add losses that share a graph before one backward(), or run the forward again")
    for node in nodes:
        op, inputs = node.op, node.inputs                    # nothing arrives where all users sent back None
        gradients = node.backward(arriving.pop(node)) if node in arriving else (None,) * len(inputs)
        node.inputs, node.options, node.backward = (), None, None
        if type(gradients) is not tuple or len(gradients) != len(inputs):
            raise RuntimeError(f"backward of {op.__name__}: expected a tuple of {len(inputs)} gradients, "
                               f"got {_describe(gradients)}")
        for position, dx in enumerate(gradients):
            x = inputs[position]
            if dx is None or not isinstance(x, Tensor):
                continue
            data, source = x.data, x.node
            if source is None and not x.requires_grad:
                continue
            if type(dx) is not type(data) or dx.shape != data.shape or dx.dtype is not data.dtype:
                dx = op.checks.fit_gradient(dx, data, position)
            if source is None:
                _accumulate(x, dx)
            else:
                arriving[source] = arriving[source] + dx if source in arriving else dx


def _ancestors(root):
    """Every node that `root` depends on, itself included, newest first."""
    seen, nodes = {root}, [root]
    for node in nodes:                                       # which grows as we go
        for x in node.inputs:
            if isinstance(x, Tensor) and x.node is not None and x.node not in seen:
                seen.add(x.node)
                nodes.append(x.node)
    return sorted(nodes, key=operator.attrgetter("index"), reverse=True)


def _accumulate(leaf, g):
    """leaf.grad += g, copying the first one: ops may hand the same array to several inputs."""
    if leaf.grad is None:
        leaf.grad = g.copy()
    else:
        leaf.grad += g


def _wants_grad(x):
    return isinstance(x, Tensor) and (x.requires_grad or x.node is not None)


# ---------------------------------------------------------------- ops

class Index:
    """Annotation of an op's argument that is an array of integers (ids): constant, no gradient."""
    kinds, meaning = "iu", "integer"


class Mask:
    """Annotation of an op's argument that is an array of bools: constant, no gradient."""
    kinds, meaning = "b", "bool"


class Scalar:
    """Annotation of an op's input that is one number, such as a temperature: a 0-d Tensor or a Python number."""


def op(function=None, *, broadcasts=False):
    """Lift a function of arrays, returning (value, backward), to Tensors. See the module's docstring.

    Positional parameters are the differentiable inputs, Tensors or arrays (or Python numbers, where they
    broadcast or are annotated Scalar), or constant arrays if annotated Index or Mask; keyword-only parameters
    are options. An op with the option `wanted` is told which inputs need a gradient, a tuple of bools, so that
    it can skip an expensive one. Neither the function nor its backward may write into what it is given: others
    hold the same arrays.

    broadcasts: inputs broadcast against each other, so gradients come in the output's shape and are
    summed back to each input's shape here, for all ops in one place.
    """
    if function is None:
        return functools.partial(op, broadcasts=broadcasts)
    checks = _Checks(function, broadcasts)
    count, asks_wanted = checks.count, checks.asks_wanted

    @functools.wraps(function)
    def call(*inputs, **options):
        arrays, wanted, kind, dtype = [], [], None, None
        for x in inputs:                                     # nearly always Tensors that agree; a few lines here, since
            if not isinstance(x, Tensor):                    # in a small network the tape costs more than the numbers
                break
            data = x.data
            if data.dtype is not dtype or type(data) is not kind:
                if arrays:
                    break
                kind, dtype = type(data), data.dtype
            arrays.append(data)
            wanted.append(_recording and (x.requires_grad or x.node is not None))
        if len(arrays) != count or len(inputs) != count:     # numbers, arrays, keywords, or a mistake
            inputs, arrays = checks.unwrap(inputs, options)
            wanted = [_recording and _wants_grad(x) for x in inputs]
        for name, value in options.items():
            if isinstance(value, np.generic):                # as for the inputs: nothing is promoted silently
                options[name] = value.item()
        if asks_wanted:
            options["wanted"] = tuple(wanted)
        result = function(*arrays, **options)
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise TypeError(f"{call.__name__}: an op returns its value and its backward, `return y, backward`, "
                            f"got {_describe(result)}")
        value, backward = result
        if type(value) is kind and value.dtype is dtype:     # like the inputs, so there is nothing left to check
            y = object.__new__(Tensor)
            y.data, y.grad, y.requires_grad = value, None, False
        else:
            y = Tensor(value if is_array(value) else np.asarray(value))      # NumPy's reductions return scalars
        y.node = _Node(call, inputs, options, backward) if True in wanted else None
        return y

    call.raw, call.checks, call.names = function, checks, checks.names
    return call


class _Checks:
    """What an op asks of its arguments, and of the gradients that its backward gives them."""

    def __init__(self, function, broadcasts):
        self.name, self.broadcasts = function.__name__, broadcasts
        parameters = inspect.signature(function).parameters.values()
        inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.names = [p.name for p in inputs]
        self.constants = {p.name: p.annotation for p in inputs if p.annotation in (Index, Mask)}
        self.scalars = {p.name for p in inputs if p.annotation is Scalar}
        self.defaults = {p.name: p.default for p in inputs if p.default is not p.empty}
        self.asks_wanted = any(p.name == "wanted" for p in parameters)
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
            if isinstance(x, Tensor):
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
                mend = "; convert it with .astype('float32')" if is_array(x) and x.dtype.kind in "iub" else ""
                raise TypeError(f"{self.name}: {name} must be a floating-point Tensor or array, got "
                                f"{_describe(x)}{mend}")
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
            raise TypeError(f"{self.name}: {name} must be an array of {kind.meaning} type, got {_describe(x)}")

    def fit_gradient(self, dx, x, position):
        """The gradient dx of the array x that was input `position`, summed back to its shape, checked."""
        if not is_array(dx):
            dx = np.asarray(dx)
        if self.broadcasts and dx.shape != x.shape:
            dx = _sum_to_shape(dx, x.shape)
        if dx.shape != x.shape or dx.dtype != x.dtype:
            raise RuntimeError(f"backward of {self.name}: the gradient of {self._name(position)} must be {_describe(x)}, "
                               f"got {_describe(dx)}")
        return dx


def _sum_to_shape(g, shape):
    """Sum g over the axes along which an input of this shape was repeated by broadcasting."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape)))) if g.ndim > len(shape) else g
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1 and g.shape[axis] != 1)
    return g.sum(axis=repeated, keepdims=True) if repeated else g


def _describe(x):
    return f"{x.dtype} array of shape {x.shape}" if is_array(x) else f"{type(x).__name__} {x!r}"
