"""Reverse-mode differentiation: a Tensor, the @op decorator, and the walk back over the tape.

An op is a plain function of arrays. It returns its value and a function `backward` which turns g, the
gradient of the loss with respect to that value, into one gradient for each input:

    @op
    def mul(x, y):
        def backward(g):
            return g * y, g * x
        return x * y, backward

What `backward` closes over is what is saved for it. (Until the walk a node also holds its input Tensors,
which explain() reads.) `mul(a, b)` takes and returns Tensors and is recorded on the tape; `mul.forward(x, y)` is
the function above, for arrays, off the tape.

The chain rule is then a walk over the recorded ops, newest first. Each op was made after its inputs,
so that order is topological: when a node's turn comes, all the gradients that flow into it have arrived.

First order only: gradients are arrays, not Tensors, and cannot be differentiated again.
"""

import contextlib
import functools
import itertools
import operator

import numpy as np

from .backend import array_module, is_array
from .signature import Signature, describe, require_float_array


class Tensor:
    """An array that remembers how it was computed.

    data           array of float32 or float64 (integers and bools are refused: pass those to ops as they are)
    requires_grad  True for a leaf that needs a gradient: a parameter
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
        require_float_array("Tensor: data", data)
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
                             f"got {describe(g)}")
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
                               f"got {describe(gradients)}")
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


def _requires_grad(x):
    return isinstance(x, Tensor) and (x.requires_grad or x.node is not None)


# ---------------------------------------------------------------- ops

def op(function=None, *, broadcasts=False):
    """Lift a function of arrays, returning (value, backward), to Tensors. See the module's docstring.

    Positional parameters are the differentiable inputs, Tensors or arrays (or Python numbers, where they
    broadcast or are annotated Scalar), or constant arrays if annotated Index or Mask; keyword-only parameters
    are options. An op with the option `needs_grad` is told which inputs need a gradient, a tuple of bools, so that
    it can skip an expensive one. Neither the function nor its backward may write into what it is given: others
    hold the same arrays.

    broadcasts: inputs broadcast against each other, so gradients come in the output's shape and are
    summed back to each input's shape here, for all ops in one place.
    """
    if function is None:
        return functools.partial(op, broadcasts=broadcasts)
    checks = Signature(function, broadcasts)
    count, asks_needs_grad = checks.count, checks.asks_needs_grad

    @functools.wraps(function)
    def call(*inputs, **options):
        arrays, needs_grad, kind, dtype = [], [], None, None
        for x in inputs:                                     # nearly always Tensors that agree; a few lines here, since
            if not isinstance(x, Tensor):                    # in a small network the tape costs more than the numbers
                break
            data = x.data
            if data.dtype is not dtype or type(data) is not kind:
                if arrays:
                    break
                kind, dtype = type(data), data.dtype
            arrays.append(data)
            needs_grad.append(_recording and (x.requires_grad or x.node is not None))
        if len(arrays) != count or len(inputs) != count:     # numbers, arrays, keywords, or a mistake
            inputs = checks.in_order(inputs, options)
            arrays = checks.arrays([x.data if isinstance(x, Tensor) else x for x in inputs])
            needs_grad = [_recording and _requires_grad(x) for x in inputs]
        if options:
            checks.check_options(options)
        if asks_needs_grad:
            result = function(*arrays, needs_grad=tuple(needs_grad), **options)
        else:
            result = function(*arrays, **options)
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise TypeError(f"{call.__name__}: an op returns its value and its backward, `return y, backward`, "
                            f"got {describe(result)}")
        value, backward = result
        if type(value) is kind and value.dtype is dtype:     # like the inputs, so there is nothing left to check
            y = object.__new__(Tensor)
            y.data, y.grad, y.requires_grad = value, None, False
        else:
            y = Tensor(value if is_array(value) else np.asarray(value))      # NumPy's reductions return scalars
        y.node = _Node(call, inputs, options, backward) if True in needs_grad else None
        return y

    call.forward, call.checks, call.names, call.__signature__ = function, checks, checks.names, checks.public
    return call
