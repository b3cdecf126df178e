"""Gradient caching (Gao et al. 2021, GradCache): the exact gradient of a batch whose activations do not fit into memory.

A contrastive loss L(z_1, ..., z_N) compares all embeddings of a batch, so splitting the batch would lose negatives. But
the encoder treats each item separately, z_i = f(x_i; w), so the gradient of its weights is a sum over items. With J_i the
derivative of z_i by w:

    z_i = f(x_i; w)                                                          (1)
    dz_i = dL/dz_i                                                           (2)
    dw = sum_i J_i^T dz_i                                                    (3)

(1) needs no tape; (2) needs only the embeddings; (3) is computed a chunk of items at a time, with a tape of only that
chunk. The price is a second forward pass.    Derivation: docs/gradients/grad_cache.md
"""

import warnings
import weakref
from collections.abc import Callable

import numpy as np

from ..autograd import Tensor
from ..backend import array_module, each_step, is_array, on_host, require_finite
from ..checks import require_integers
from ..nn import BatchNorm, HostBuffer, Module
from ..no_grad import no_grad
from ..signature import describe
from ..typing import Array


def grad_cache(model: Module, loss: Callable[..., Tensor], *inputs: Array, chunk: int) -> tuple[Tensor, list[Tensor]]:
    """loss(*model(*inputs)).backward() with the memory of a chunk: returns the loss and the list of
    the model's outputs, all of them detached.

    model   a Module: inputs -> one Tensor or several, with a row for each item
    loss    a function of the model's outputs for the whole batch that returns a scalar Tensor; it may have parameters,
            such as a logit scale
    inputs  arrays with a row for each item
    chunk   the largest number of items encoded at a time; chunk sizes differ by at most one item

    Gradients are added to .grad as by backward(). They equal those of the whole batch up to rounding if each row of the
    outputs depends only on its row of the inputs. Dropout draws a mask for each chunk, the same in both passes. BatchNorm
    normalises each chunk by its own statistics and averages them once for each chunk, so its results differ from those of
    the whole batch, as on several GPUs, which a warning reports.
    Raises TypeError if loss returns anything but a Tensor, and RuntimeError if the model's outputs differ in the second
    pass (not on a GPU, where the check would wait for it).

    >>> from minicl import nn, contrastive
    >>> views, encoder = np.random.default_rng(0).standard_normal((2, 6, 5)), nn.Linear(5, 3, rng=np.random.default_rng(1))
    >>> L, [z] = grad_cache(encoder.astype("float64"), lambda z: contrastive.nt_xent(z[:6], z[6:], 0.5),
    ...                     views.reshape(12, 5), chunk=4)
    >>> z.shape, encoder.weight.grad.shape
    ((12, 3), (5, 3))
    """
    require_integers("grad_cache", 1, chunk=chunk)
    chunk = int(chunk)                                       # a NumPy number may wrap round
    if not all(map(is_array, inputs)) or len({len(x) for x in inputs}) != 1 or not len(inputs[0]):
        raise ValueError("grad_cache: expected inputs to be arrays of the same N >= 1 items, got "
                         + ", ".join(map(describe, inputs)))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"grad_cache: no parameter of the {type(model).__name__} is trained, so there is no memory to "
                         "save; call loss(*model(*inputs)).backward()")
    xp = array_module(inputs[0])
    N = len(inputs[0])
    count = -(-N // chunk)
    bounds = [(N * k // count, N * (k + 1) // count) for k in range(count)]
    chunks = [tuple(x[lo:hi] for x in inputs) for lo, hi in bounds]
    if count > 1 and any(isinstance(layer, BatchNorm) and layer.training for layer in model.modules()):
        warnings.warn("grad_cache: batch norm normalises each chunk separately, so the loss and its gradient are not those "
                      f"of the whole batch ({N} items in {count} chunks)", stacklevel=2)
    hosts, devices = ([buffer for _, buffer in model.named_buffers() if isinstance(buffer, HostBuffer) == is_host]
                      for is_host in (True, False))
    before = [buffer.data.copy() for buffer in devices]
    each_step(inputs[0], lambda: _before.update({model: [buffer.data.copy() for buffer in hosts]}))
    with no_grad():
        parts = [_outputs(model, items) for items in chunks]                 # (1)
    each_step(inputs[0], lambda: _restore(hosts, _before[model]))            # the second pass draws the same masks, and
    _restore(devices, before)                                                # averages statistics once
    z = [Tensor(xp.concatenate([part.data for part in column]), requires_grad=True) for column in zip(*parts)]
    L = loss(*z)
    if not isinstance(L, Tensor):
        raise TypeError(f"grad_cache: loss must return a scalar Tensor, got {describe(L)}")
    L.backward()                                                             # (2)
    if all(whole.grad is None for whole in z):
        raise ValueError("grad_cache: loss does not depend on the outputs of model, so there is nothing to train it by; its "
                         "arguments are these outputs, loss(*model(*inputs))")
    for (lo, hi), items, part in zip(bounds, chunks, parts):
        again = _outputs(model, items)
        if on_host(inputs[0]):
            _require_same(part, again)
        sum((y * whole.grad[lo:hi]).sum() for y, whole in zip(again, z) if whole.grad is not None).backward()  # (3)
    return L.detach(), [whole.detach() for whole in z]


# The streams' positions before the first pass; a captured GPU step saves them again at each replay.
_before: weakref.WeakKeyDictionary[Module, list] = weakref.WeakKeyDictionary()


def _restore(buffers, before):
    for buffer, data in zip(buffers, before):
        buffer.data[...] = data


def _outputs(model, items):
    """The model's outputs for a chunk, a tuple of Tensors."""
    outputs = model(*items)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for y in outputs:
        if not isinstance(y, Tensor) or y.shape[:1] != items[0].shape[:1]:
            raise ValueError(f"grad_cache: model must give Tensors with {len(items[0])} rows, one for each item of the "
                             f"chunk, got {type(y).__name__} of shape {getattr(y, 'shape', 'unknown')}")
    return outputs


def _require_same(first, second):
    """Raise unless two sequences of Tensors, the outputs of a chunk, agree and the first are finite."""
    for x, y in zip(first, second):
        require_finite(x.data, "grad_cache: the model's output")
        size = np.abs(x.data).max(axis=0, keepdims=True)                     # of each output over the items
        if not (np.abs(x.data - y.data) <= 1e-3 * size + 1e-6 * size.max(initial=0)).all():
            raise RuntimeError("grad_cache: the model returned other outputs the second time, so the gradient would be "
                               "wrong; let it draw its random numbers from an nn.Stream, as Dropout does")
