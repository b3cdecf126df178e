"""Reverse-mode differentiation: Tensor, the @op decorator, and the backward pass over the tape.

An op is a plain function of arrays. It returns its value and a function `backward`, which maps g, the
gradient of the loss with respect to that value, to one gradient for each input:

    @op
    def mul(x, y):
        def backward(g):
            return g * y, g * x
        return x * y, backward

`backward` closes over the arrays that it needs, which saves them. `mul(a, b)` takes and returns Tensors and is recorded
on the tape; `mul.forward(x, y)` is the function above, on arrays, not recorded.

The chain rule is then a walk over the recorded ops, newest first. Each op was recorded after those that made its
inputs, so this order is topological: when a node is visited, all gradients of its output have arrived.

First order only: gradients are arrays, not Tensors, and cannot be differentiated again.
"""

import functools
import inspect
import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, overload

from .backend import Additions, array_module, is_array
from .locks import open_in_child
from .no_grad import in_no_grad, no_grad_blocks
from .signature import Signature, describe
from .tensor import (BaseTensor, alike, clock, first_gradients, last_change, lasting, mark_reached, own_gradient,
                     require_output_unchanged, require_unchanged)
from .typing import Array


class Tensor(BaseTensor):
    """An array that records how it was computed.

    data           array of float32 or float64, not copied, unless it is a .grad (integers and bools are passed to ops as
                   plain arrays)
    requires_grad  whether a gradient flows to it: set for a leaf, inherited by results computed from one
    grad           array of data's shape, or None: d loss / d data, summed over all backward() calls; leaves only.
                   Assigning an array copies it

    Ops save references to their arrays, not copies. Do not write into one between the forward and the backward pass:
    the gradient would belong to neither value. backward() detects the library's own writes (optimizers,
    load_state_dict, running averages), also through views; run your code within minicl.check_inputs() to find others.

    Values do not leave the tape silently: NumPy's functions, float(x) and math.exp(x) raise TypeError if x requires a
    gradient. Use x.item() or x.data for the value; under no_grad() float(x) is x.item().
    """

    __slots__ = ()

    if TYPE_CHECKING:                     # the operators and methods that minicl.ops adds
        def _operator(self, other: Any) -> "Tensor": ...
        def __getattr__(self, name: str) -> Callable[..., "Tensor"]: ...
        def __neg__(self) -> "Tensor": ...
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
        __matmul__ = __rmatmul__ = __pow__ = __getitem__ = _operator
        T: "Tensor"

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[k] for k in range(len(self)))           # TypeError for a scalar

    def detach(self) -> "Tensor":
        """The same values as a leaf outside the tape: no gradient flows through it (the stop-gradient)."""
        return Tensor(self._data)

    def backward(self, g: Array | None = None) -> None:
        """Add d self / d leaf to the .grad of every leaf that requires one.

        g: array of self's shape, the initial gradient; default 1 if self is a scalar.
        Raises RuntimeError if self is not on a tape, if g is needed and missing, if the tape was already walked, or if
        the library has changed a parameter since an op used it.
        """
        if g is None:
            if self.size != 1:
                raise RuntimeError(f"backward() without a gradient needs a scalar, got shape {self.shape}; "
                                   "reduce it with .mean() or .sum(), or pass backward(g) with g of that shape")
            g = array_module(self._data).ones_like(self._data)
        if not is_array(g) or not alike(g, self._data):
            raise ValueError(f"backward(g): expected an array of shape {self.shape}, dtype {self.dtype}, got {describe(g)}")
        g = lasting(g)
        if self.node is not None:
            require_output_unchanged(self)
            mark_reached(_walk(self.node, g))
        elif self._requires_grad:
            mark_reached([_accumulate(self, g, operator.iadd)])
        else:
            raise RuntimeError("backward() on a Tensor that no recorded op has produced; was it made under "
                               "no_grad(), detached, or computed from inputs without requires_grad?")


# ---------------------------------------------------------------- the tape

class Node:
    """One recorded call of an op: its inputs and their arrays, its options (for minicl.explain), and its backward."""

    __slots__ = ("op", "inputs", "arrays", "options", "backward", "index")

    def __init__(self, op: "Op", inputs: tuple, arrays: list, options: dict[str, Any], backward: Callable) -> None:
        self.op, self.inputs, self.arrays, self.options = op, inputs, arrays, options
        self.backward: Callable[[Array], tuple] | None = backward     # None once walked
        self.index = next(clock)          # creation order is a topological order


hold_inputs: ContextVar[Callable | None] = ContextVar("the backward as check_inputs() wraps it", default=None)


def _walk(root: Node, g: Array) -> list[Tensor]:
    """Propagate g from the node `root` back to the leaves, freeing gradients and closures once used. Returns the leaves."""
    arriving = {root: g}                                     # node -> gradient of its output
    additions, leaves = Additions(), list[Tensor]()
    for node in ancestors(root):
        inputs, backward = node.inputs, node.backward
        node.inputs, node.arrays, node.options, node.backward = (), [], {}, None
        if node not in arriving:                             # all its users returned None
            continue
        if backward is None:
            raise RuntimeError(f"another thread is walking the tape behind {node.op.__name__!r} too; add up losses that "
                               "share a graph, then call backward() once")
        output = arriving[node].shape
        gradients = backward(arriving.pop(node))
        node.op.checks.require_gradients(gradients, len(inputs))
        for position, (x, dx) in enumerate(zip(inputs, gradients)):
            if dx is None or not isinstance(x, Tensor) or x.node is None and not x._requires_grad:
                continue
            data, source = x._data, x.node
            if type(dx) is not type(data) or dx.shape != data.shape or dx.dtype is not data.dtype:
                dx = node.op.checks.fit_gradient(dx, data, position, output)
            if source is None:
                leaves.append(_accumulate(x, dx, additions.add))
            else:
                arriving[source] = arriving[source] + dx if source in arriving else dx
        del gradients, dx                                    # their memory serves the next backward
    additions.flush()
    return leaves


def ancestors(root: Node) -> list[Node]:
    """All nodes that `root` depends on, itself included, newest first. Raises RuntimeError for a stale tape."""
    seen, nodes, written = {root}, [root], last_change[0]
    for node in nodes:                                       # grows in the loop
        if node.backward is None:
            raise RuntimeError(f"the tape behind {node.op.__name__!r} was already walked and freed; add up losses that "
                               "share a graph and call backward() once, or run the forward pass again")
        if node.index < written:
            require_unchanged(node)
        for x in node.inputs:
            source = x.node if isinstance(x, Tensor) else None
            if source is not None and source.index < written:
                require_output_unchanged(x)
            if source is not None and source not in seen:
                seen.add(source)
                nodes.append(source)
    return sorted(nodes, key=operator.attrgetter("index"), reverse=True)


def _accumulate(leaf: Tensor, g: Array, add: Callable) -> Tensor:
    """leaf.grad += g, copying the first g: an op may return the same array for several inputs."""
    _adding.acquire()                                        # other threads may add to the same leaf;
    try:                                                     # `with` takes three times as long
        if leaf._grad is None:
            leaf._grad = own_gradient(g)
            if (made := getattr(type(leaf), "made", None)) is not None:      # of a Parameter
                first_gradients.append((weakref.ref(leaf), made.__get__(leaf), next(clock), leaf.shape))
        else:
            add(leaf._grad, g)
        return leaf
    finally:
        _adding.release()


_adding = open_in_child(threading.Lock())


# ---------------------------------------------------------------- ops

class Op(Protocol):
    """A function of Tensors made by @op; .forward is the original function, of arrays."""
    __name__: str
    forward: Callable[..., Any]
    checks: Signature
    names: list[str]

    def __call__(self, *inputs: Any, **options: Any) -> Tensor: ...


@overload
def op(function: Callable[..., Any]) -> Op: ...
@overload
def op(*, broadcasts: bool) -> Callable[[Callable[..., Any]], Op]: ...
def op(function=None, *, broadcasts=False):
    """Make an op of Tensors from a function of arrays that returns (value, backward). See the module's docstring.

    Positional parameters are differentiable inputs: Tensors or arrays (or Python numbers, if the op broadcasts or they
    are annotated Scalar), or constant arrays if annotated Index or Mask. Keyword-only parameters are options. @op passes
    the option `needs_grad`, if the function has it: a tuple of bools, one for each input, so that it can skip expensive
    gradients. Neither the function nor its backward may write into its arguments: others share these arrays.

    broadcasts: inputs broadcast against each other; gradients come in the output's shape and are summed to each input's
    shape here, for all ops.
    """
    if function is None:
        return functools.partial(op, broadcasts=broadcasts)
    if not inspect.isfunction(function):
        raise TypeError(f"@op: expected a function of arrays, got {describe(function)}; options of @op are written "
                        "@op(broadcasts=True)")
    checks = Signature(function, broadcasts)
    count = checks.count
    asks_needs_grad = checks.asks_needs_grad

    @functools.wraps(function)
    def call(*inputs, **options):
        recording = not (no_grad_blocks.get() and in_no_grad())
        arrays, needs_grad = [], []                          # of each input
        kind = dtype = None                                  # of all of them
        for x in inputs:                                     # nearly always Tensors that agree: checked inline, since in
            if not isinstance(x, Tensor):                    # a small network the tape costs more than the arithmetic
                break
            data = x._data
            if data.dtype is not dtype or type(data) is not kind:
                if arrays:
                    break
                kind, dtype = type(data), data.dtype
            arrays.append(data)
            needs_grad.append(recording and (x._requires_grad or x.node is not None))
        if len(arrays) != count or len(inputs) != count:     # numbers, arrays, keywords, or a mistake
            inputs = checks.in_order(inputs, options)
            inputs = tuple(x if isinstance(x, Tensor) else lasting(x) for x in inputs)
            arrays = checks.arrays([x._data if isinstance(x, Tensor) else x for x in inputs])
            needs_grad = [recording and isinstance(x, Tensor) and x.requires_grad for x in inputs]
            kind, dtype = next((type(x), x.dtype) for x in arrays if is_array(x) and x.dtype.kind == "f")
        if options:
            checks.check_options(options, lasting)
        if checks.scalars:
            checks.require_scalars(arrays)
        try:
            if asks_needs_grad:
                result = function(*arrays, needs_grad=tuple(needs_grad), **options)
            else:
                result = function(*arrays, **options)
        except Exception as error:
            checks.name_error(error, arrays)
            raise
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise TypeError(f"{call.__name__}: an op returns its value and its backward, `return y, backward`, "
                            f"got {describe(result)}")
        value, backward = result
        if type(value) is not kind or value.dtype is not dtype:
            value = checks.fit_value(value, kind, dtype)
        y = object.__new__(Tensor)
        y._data = value
        y._grad = y.changed = y.switched = y.node = None
        y._requires_grad = y.reached = False
        if True in needs_grad:
            hold = hold_inputs.get()
            y.node = Node(call, inputs, arrays, options, hold(backward, (arrays, options), y) if hold else backward)
        return y

    call.forward = function
    call.checks = checks
    call.names = checks.names
    call.__signature__ = checks.public
    return call
