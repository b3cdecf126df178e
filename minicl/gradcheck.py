"""Check a backward against finite differences, with a message that names the likely mistake.

A backward computes, for a cotangent g, the vector-Jacobian product g^T J. Finite differences give the same number
for one input entry at a time, from two forward evaluations:

    d/dx_k sum(g y)  ~  (sum(g y(x + h e_k)) - sum(g y(x - h e_k))) / 2h

g is random: with g = 1 the gradient of a softmax is zero, which would hide a forgotten 1/tau.
"""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from .autograd import Tensor, ancestors
from .backend import array_module, is_array, to_device, to_host
from .checks import require_bool, require_ordered, require_within
from .no_grad import no_grad
from .signature import describe
from .tensor import clock, first_gradients
from .typing import Array, Rng


class GradcheckError(AssertionError):
    """An analytic gradient disagrees with finite differences."""


def gradcheck(function: Callable[..., Tensor], inputs: Sequence[Array], *, step: float = 1e-5, rtol: float = 1e-5,
              atol: float = 1e-7, seed: int = 0, names: Sequence[str] | None = None, sample: int | None = None,
              kinks: bool = False) -> bool:
    """Compare the gradients of `function` with central differences, at every entry of every input.

    function  maps Tensors to one Tensor: an op or any composition of ops; it must be deterministic
    inputs    float64 arrays, on either backend (small: two evaluations an entry), away from kinks
    step      h above, times |x_k| if that is above 1
    rtol, atol  allowed difference: atol + rtol |numeric|; rtol < 1, or a gradient of 0 would pass
    names     names of the inputs for the message; default: the op's own
    sample    number of random entries of each input to check; default: all
    kinks     at a kink (0 of a relu, a tie of a max) accept any slope between those of its two sides

    Returns True. Raises GradcheckError with op, argument, index, both values, their ratio and the likely mistake;
    TypeError for inputs that are not float64; ValueError if there is nothing to check.

    >>> from minicl import op
    >>> @op
    ... def cube(x):
    ...     return x**3, lambda g: (g * 3 * x**2,)
    >>> gradcheck(cube, [np.array([1.0, 2.0])])
    True
    """
    __tracebackhide__ = True                                 # pytest then shows only the test and the message
    op_name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"gradcheck of {op_name}: inputs must be a list of arrays, one for each argument, got "
                        f"{describe(inputs)}; write gradcheck({op_name}, [x])")
    require_ordered("gradcheck", names=names)
    names = list(names if names is not None else getattr(function, "names", ()))
    names += [f"input {k}" for k in range(len(names), len(inputs))]
    for name, x in zip(names, inputs):
        if not is_array(x) or x.dtype != np.float64:
            raise TypeError(f"gradcheck of {op_name}: {name} must be a float64 array, got {describe(x)}; "
                            "finite differences need double precision")
    require_bool("gradcheck", kinks=kinks)
    require_within("gradcheck", "(0, inf)", step=step)
    require_within("gradcheck", "[0, 1)", rtol=rtol)
    require_within("gradcheck", "[0, inf)", atol=atol)
    step, rtol, atol = map(float, (step, rtol, atol))        # of a NumPy float16 they would be coarse
    if not any(x.size for x in inputs) or sample is not None and sample < 1:
        raise ValueError(f"gradcheck of {op_name}: nothing to check; expected inputs with entries, and sample >= 1 or None, "
                         f"got {len(inputs)} inputs and sample={sample}")
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    y = function(*tensors)
    xp = array_module(y.data)
    value = to_host(y.data)
    if not value.size:
        raise ValueError(f"gradcheck of {op_name}: nothing to check; expected an output with entries, got {value.shape}")
    if not np.isfinite(value).all():
        raise GradcheckError(f"gradcheck of {op_name}: the output itself is not finite at these inputs")
    rng = np.random.default_rng([seed, 7])                   # not default_rng(seed), which may have drawn x: with
    cotangent = rng.standard_normal(value.shape)             # g = x the gradient of x / |x| is 0, however wrong
    g = to_device(cotangent.copy(), xp)
    _backward(y, g, tensors)
    if (to_host(g) != cotangent).any():
        raise GradcheckError(f"backward of {op_name} writes into g, which other nodes of the tape may share; return a "
                             "new array, g * y instead of g *= y")

    for name, x, tensor in zip(names, inputs, tensors):
        if (to_host(tensor.data) != to_host(x)).any():
            raise GradcheckError(f"{op_name} writes into {name}, which belongs to its caller; return a new array")
    with no_grad():
        again = to_host(function(*(Tensor(x.copy()) for x in inputs)).data)       # of one layout: BLAS rounds by it
    if not np.array_equal(again, value):
        raise GradcheckError(f"gradcheck of {op_name}: it returns a different value on each call, so finite "
                             "differences are meaningless; does it draw random numbers?")
    for position, (name, x, tensor) in enumerate(zip(names, inputs, tensors)):
        entries = _entries(x.shape, sample, rng)
        analytic = np.zeros(x.shape) if tensor.grad is None else to_host(tensor.grad)
        analytic = np.array([analytic[index] for index in entries])
        below, above = _slopes(function, inputs, position, entries, value, cotangent, step)
        numeric = (below + above) / 2
        low, high = (np.minimum(below, above), np.maximum(below, above)) if kinks else (numeric, numeric)
        allowed = atol + rtol * np.abs(numeric)
        wrong = ~((analytic >= low - allowed) & (analytic <= high + allowed))          # so written that NaN is wrong
        if wrong.any():
            twice = [Tensor(x.copy(), requires_grad=True) for x in inputs]
            _backward(function(*twice), to_device(np.asarray(2 * cotangent), xp), twice)
            g1, g2 = tensor.grad, twice[position].grad
            ignores_g = g1 is not None and g2 is not None and np.array_equal(to_host(g1), to_host(g2))
            raise GradcheckError(_explain(op_name, name, entries, analytic, numeric, wrong, ignores_g))
    return True


def _backward(y, g, inputs):
    """y.backward(g) that leaves the gradients of other leaves, such as the weights of a model, as they were."""
    nodes = [] if y.node is None else ancestors(y.node)
    leaves = {id(x): x for node in nodes for x in node.inputs if isinstance(x, Tensor) and x.node is None}
    others = [leaf for key, leaf in leaves.items() if key not in map(id, inputs)]
    before = [(leaf, None if leaf.grad is None else leaf.grad.copy(), leaf.reached) for leaf in others]
    start = next(clock)
    try:
        y.backward(g)
    finally:
        for leaf, grad, reached in before:
            if grad is None:
                leaf.grad = None
            else:
                leaf._grad[...] = grad                       # perhaps a view of an optimizer's array
            leaf.reached = reached
        kept = [entry for entry in first_gradients if entry[2] < start or all(entry[0]() is not leaf for leaf in others)]
        first_gradients.clear()
        first_gradients.extend(kept)


def _entries(shape: tuple[int, ...], sample: int | None, rng: Rng) -> list[tuple[int, ...]]:
    """The indices of all entries of an array of this shape, or of `sample` of them."""
    size = int(np.prod(shape))
    if sample is None or sample >= size:
        return list(np.ndindex(shape))
    return [tuple(map(int, np.unravel_index(k, shape))) for k in np.sort(rng.choice(size, sample, replace=False))]


def _slopes(function, inputs, position, entries, value, cotangent, step):
    """d sum(cotangent * function(inputs)) / d inputs[position] at these entries, from below and from above.

    Values are subtracted before they are summed, so outputs that do not change cancel exactly.
    """
    xp = array_module(inputs[position])
    host = to_host(inputs[position])

    def slope(index, h):
        moved = host.copy()
        moved[index] += h
        arrays = [Tensor(to_device(moved, xp) if k == position else other) for k, other in enumerate(inputs)]
        return (cotangent * (to_host(function(*arrays).data) - value)).sum() / h

    steps = [step * max(1, abs(host[index])) for index in entries]
    return np.array([[slope(index, side * h) for index, h in zip(entries, steps)] for side in (-1, 1)])


def _explain(op_name, name, entries, analytic, numeric, wrong, ignores_g):
    k = np.argmax(np.where(wrong, np.nan_to_num(np.abs(analytic - numeric), nan=np.inf), -1))
    worst = entries[k]
    a, n = analytic[k], numeric[k]
    ratios = (analytic[wrong] / np.where(numeric[wrong] == 0, np.nan, numeric[wrong]))
    where = f"{name}[{', '.join(map(str, worst))}]" if worst else name
    hint = textwrap.fill(_hint(entries, analytic, ratios, wrong, ignores_g), 76, initial_indent="    hint     ",
                         subsequent_indent=" " * 13)
    return (f"gradient of {op_name} with respect to {where} is wrong ({wrong.sum()} of {wrong.size} entries)\n"
            f"{hint}\n"
            f"    analytic {a:.9g}\n"
            f"    numeric  {n:.9g}\n"
            f"    ratio    {a / n if n else float('nan'):.6g}")


def _hint(entries, analytic, ratios, wrong, ignores_g):
    """The usual mistake behind such a disagreement."""
    if not np.isfinite(analytic).all():
        return "NaN or infinity in the backward: a division by a zero norm, log of 0, or exp that overflowed?"
    if not analytic.any():
        return "the analytic gradient is zero everywhere: is the input detached, or its gradient not returned?"
    if ignores_g:
        return "a missing factor g, the gradient of the output: twice the g gives the same gradient"
    difference = np.ptp(ratios) if np.isfinite(ratios).all() else np.inf
    common = float(np.median(ratios)) if difference < 1e-3 * abs(np.median(ratios)) else None
    if common is None or wrong.sum() == 1 < wrong.size:
        if wrong.all():
            rows: dict[tuple[int, ...], list[float]] = {}
            for index, ratio in zip(entries, ratios):
                rows.setdefault(index[:-1], []).append(ratio)
            if np.isfinite(ratios).all() and all(len(row) > 1 and np.ptp(row) < 1e-3 * abs(row[0]) for row in rows.values()):
                return "each row is off by a factor of its own: a missing division by the row's length or sum?"
            return ("no common factor: is a term missing (the projection in a normalisation, the sum in a softmax), a sum "
                    "over the wrong axis, a product transposed, or the gradients returned in another order than the inputs?")
        return ("only some entries are wrong: an index, a mask, a missing term that is tiny at the others, "
                "a kink (ties, 0 of a relu), or repeats that should add up?")
    if abs(common + 1) < 1e-3:
        return "the sign is flipped" + " at some entries" * (not wrong.all())
    if abs(common - 0.5) < 1e-3 or abs(common - 2) < 1e-3:
        return ("off by a factor 2: one of two views or of two symmetric terms left out, or counted twice? Or an option or "
                "the length of an axis, which is 2 here?")
    if wrong.size == 1:
        return "is a term or a factor missing, or are the gradients returned in another order than the inputs?"
    return (f"all entries are off by the factor {common:.6g}: a missing or doubled 1/tau, 1/N, option such as alpha, or "
            "sum over a broadcast axis? Compare it with your numbers and sizes")
