"""Structure: detects that a Module has gained, lost or replaced a part since an optimizer or an EMA was made for it."""

import itertools
import operator
import warnings
from collections.abc import Iterable
from typing import Any

from ..autograd import Tensor
from ..backend import array_module
from ..tensor import clock, first_gradients, owner_of
from .module import Module, require_reachable
from .parts import Buffer, HostBuffer, Parameter
from .state import arrays_in

MANY = 100                              # a longer list without a part is data and not searched again


class Structure:
    """The named parts of a Module that `owner` uses, of one kind: Parameter, or (Parameter, Buffer).

    check() compares every attribute and list of the tree with its earlier value, by identity, and walks the tree again
    only if one differs. parts: (name, part) pairs. If the owner got a list of pairs instead of a Module, nothing is
    checked.
    """

    def __init__(self, owner: str, module: Any, parts: Any, kind: Any):
        self.owner = owner
        self.module = module
        self.parts = dict(parts)
        self.kind = kind
        self.made = next(clock)
        self.places: list[tuple[Any, list]] = []         # (a list, or the values of a dict; a copy of it then)
        self.constants: list[Tensor] = []                # in the tree, and not trained
        self.steps: list[Any] = []                       # functions and Modules, such as ops.relu
        self.check()

    def check(self) -> None:
        """Raise RuntimeError if the module's parts have changed."""
        if first_gradients and self.kind is Parameter:
            self._warn_of_others()
        if not isinstance(self.module, Module):
            return
        if self.places and all(_same(now, before) for now, before in self.places):
            self._require_constant()
            return
        places: list[tuple[Any, list]] = []
        found: dict[int, tuple[str, Any]] = {}
        _walk(self.module, "", places, found)
        constants = [part for _, part in found.values() if not isinstance(part, (Parameter, Buffer))]
        now = {name: part for name, part in found.values()
               if isinstance(part, self.kind) and not isinstance(part, HostBuffer)}
        known, here = ({id(part) for part in parts.values()} for parts in (self.parts, now))
        new = [name for name, part in now.items() if id(part) not in known]
        gone = [name for name, part in self.parts.items() if id(part) not in here]
        moved = [name for name, part in self.parts.items() if now.get(name) is not part and not new and not gone]
        steps = [] if self.kind is Parameter else _functions(places)              # an EMA's target has them too
        if new or gone or moved or self.places and not _same(steps, self.steps):
            what = [f"{', '.join(names[:4])}{', ...' * (len(names) > 4)} {verb}"
                    for names, verb in ((new, "joined"), (gone, "left"), (moved, "changed places in")) if names]
            what = what or ["a function or layer joined or left"]
            raise RuntimeError(f"{self.owner}: {' and '.join(what)} the {type(self.module).__name__} after the "
                               f"{self.owner} was made, which does not follow such changes; change the parts of a "
                               f"model first, then make the {self.owner}")
        self.places, self.constants, self.steps = places, constants, steps
        self._require_constant()

    def _require_constant(self):
        for x in self.constants:
            if x._requires_grad:
                raise RuntimeError(f"{self.owner}: a Tensor of shape {x.shape} in the {type(self.module).__name__} requires "
                                   "a gradient, but an optimizer moves only Parameters; make it one, and then the "
                                   f"{self.owner}")

    def _warn_of_others(self):
        """Warn of Parameters that got a gradient since and have no optimizer: outside the model, or hidden in a lambda, a
        deque or a long list. One that is gone, perhaps since the run before, counts if it was made since."""
        others = []
        for reference, made, received, shape in first_gradients:
            p = reference()
            if made > self.made if p is None else received > self.made and p.grad is not None and p.grad.base is None:
                others.append(shape)                         # .base: a view of another optimizer's
        first_gradients.clear()
        if others:
            warnings.warn(f"{self.owner}: parameters of shape {', '.join(map(str, others[:4]))}"
                          f"{', ...' * (len(others) > 4)} received gradients, but no optimizer moves them. Keep them in "
                          "attributes of the model, and make the optimizer afterwards; if they are not to be trained, "
                          "freeze them", stacklevel=4)

    def __getstate__(self) -> dict:
        return {**vars(self), "places": [], "constants": []}             # a copy belongs to a copied module


def require_views(optimizer: Any) -> None:
    """Raise RuntimeError unless its parameters have the data and gradients of .views, parts of .values and .grads."""
    name = type(optimizer).__name__
    for own, p, (_, data, grad) in zip(optimizer.names, optimizer.parameters, optimizer.views):
        if p._data is not data or p._grad is not grad:
            raise RuntimeError(f"{name}: {own} no longer views the optimizer's buffer; write into a parameter by "
                               "p.data[...] = x, make the optimizer after model.to() and model.astype(), give each "
                               "parameter to one optimizer only, and clear gradients with zero_grad()")
    if owner_of(data) is not optimizer.values or owner_of(grad) is not optimizer.grads:
        raise RuntimeError(f"{name}: .values or .grads was replaced, which moves no parameter; write into the array, as by "
                           "self.values[part] -= lr * self.grads[part]")


def named_parameters(name, model) -> list[tuple[str, Any]]:
    """[(name, Parameter), ...] of a Module or of pairs, checked."""
    if isinstance(model, Module):
        require_reachable(model)
    named = model.named_parameters() if isinstance(model, Module) else model
    named = list(named) if isinstance(named, Iterable) else [named]
    if not all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor)
               for item in named):
        raise TypeError(f"{name}: expected a Module or (name, Parameter) pairs; pass the model, {name}(model, lr=...)")
    if not named:
        raise ValueError(f"{name}: got no parameters; pass the model, {name}(model, lr=...)")
    if len({id(p) for _, p in named}) < len(named) or len(dict(named)) < len(named):
        raise ValueError(f"{name}: expected each name and each parameter once, got {', '.join(n for n, _ in named)}")
    if any(p.node is not None for _, p in named):
        raise ValueError(f"{name}: expected leaves, got the result of an op; pass Parameters")
    _require_own_memory(name, named, model)
    kinds = sorted({f"{p.dtype} on {array_module(p.data).__name__}" for _, p in named})
    if len(kinds) > 1:
        raise ValueError(f"{name}: expected parameters of one dtype on one device, got {' and '.join(kinds)}; convert "
                         "the model with model.astype() or model.to()")
    return named


def _require_own_memory(name, named, model):
    """Raise ValueError if a parameter shares memory with another part or array of the model, which would not follow it."""
    arrays = [(other, p.data) for other, p in named]
    if isinstance(model, Module):
        arrays += [(other, buffer.data) for other, buffer in model.named_buffers()]
        arrays += [(f"{other}.{key}".lstrip("."), x) for other, part in model.named_modules()
                   for key, value in vars(part).items() for x in arrays_in(value)]
    same: dict[int, list] = {}
    for other, x in arrays:
        same.setdefault(id(owner_of(x)), []).append((other, x))
    moved = {other for other, _ in named}
    for group in same.values():
        for (one, x), (other, y) in itertools.combinations(group, 2):
            if one in moved and array_module(x).may_share_memory(x, y):
                raise ValueError(f"{name}: {one} and {other} share memory; the optimizer moves each parameter into its own "
                                 "array, so they would diverge. Use one Parameter in both places, or copy the array")


def _same(now, before):
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _functions(places):
    """The functions and Modules of a tree, such as the ops.relu of a Sequential."""
    return [item for _, items in places for item in items if callable(item) and not isinstance(item, Tensor)]


def _walk(value, name, places, found):
    """Collect the dicts and lists below value in places, and its parts and Tensors in found, {id: (name, part)}. Returns
    whether it has a part."""
    if isinstance(value, (Parameter, Buffer)):
        found.setdefault(id(value), (name, value))
        return True
    if isinstance(value, Tensor):
        found.setdefault(id(value), (name, value))
        return False
    is_module = isinstance(value, Module)
    if not is_module and not isinstance(value, (list, tuple, dict)):
        return False
    inside = vars(value) if is_module else value
    mark = len(places)
    named = inside.items() if isinstance(inside, dict) else enumerate(inside)
    inside = inside.values() if isinstance(inside, dict) else inside
    places.append((inside, list(inside)))
    holds = [_walk(item, f"{name}.{key}" if name else key, places, found) for key, item in named]
    if not any(holds) and not is_module and len(holds) > MANY:
        del places[mark:]
    return is_module or any(holds)
