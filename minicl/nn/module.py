"""Module: a tree of parameters and buffers with names.

The attributes of a Module are its parts. `Parameter`s are learned by gradient, `Buffer`s are other state (running
averages). The walk over the parts descends into Modules, lists, tuples and dicts. Parts need no registration; their
names follow from the attributes, `encoder.convs.0.weight`.

A part that the walk does not find (a layer in a set, a closure or another kind of object) would be neither trained nor
saved, so making such a Module, or an optimizer for it, raises an error.
"""

import copy
import gc
import random
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import array_module, get_backend, to_device, to_host
from ..checks import (did_you_mean, is_of_minicl, python_number, python_numbers, require_bool, require_settable,
                      require_setting)
from ..distributed import ALONE, World
from ..signature import by_known_names
from ..tensor import mark_changed, owner_of
from ..typing import Array, ArrayModule, DType, HostArray
from .parts import Buffer, HostBuffer, Parameter, looked_for, making, note_use, record, warned_if_frozen
from .spec import globals_of, note
from .state import IncompatibleKeys, parts_to_load, require_lasting, unsaved_arrays


class _Sealed(type):
    """After __init__, a Module accepts no new attributes, so a misspelt one is an error, and its parts are reachable."""

    def __call__(cls, *args, **options):
        options = by_known_names(cls.__name__, cls.__init__, (cls, *args), options)
        if is_of_minicl(cls):
            args, options = python_numbers(args, options)
        outermost = getattr(making, "parts", None) is None
        if outermost:
            making.parts = []
        try:
            module = super().__call__(*args, **options)
        finally:
            made = making.parts
            if outermost:
                making.parts = None
        object.__setattr__(module, "_made", note(cls, args, options))
        object.__setattr__(module, "_sealed", True)
        if unsaved := unsaved_arrays(module):
            object.__setattr__(module, "_unsaved", unsaved)
        if outermost:
            require_reachable(module, made)
        return module


class Module(metaclass=_Sealed):
    """Subclasses set their parts in __init__ and define forward(); calling the module calls forward.

    A part reached only through a global list or object, as in `self.f = lambda x: LAYERS[0](x)`, is not found unless
    this module's __init__ makes it: keep it in an attribute. Optimizers warn when a gradient reaches a part made later.

    training  True at first; .eval() and .train() switch it for the module and everything below it
    world     the processes that train it, at first ALONE; .across(world) sets it for the module and everything below it

    >>> from minicl import nn, ops
    >>> class Net(nn.Module):
    ...     def __init__(self, *, rng):
    ...         self.first, self.second = nn.Linear(4, 8, rng=rng), nn.Linear(8, 2, rng=rng)
    ...     def forward(self, x):
    ...         return self.second(ops.relu(self.first(x)))
    >>> net = Net(rng=np.random.default_rng(0))
    >>> [name for name, _ in net.named_parameters()]
    ['first.weight', 'first.bias', 'second.weight', 'second.bias']
    """

    _sealed = False
    _frozen: bool | str = False                      # a text if it follows another module, see methods/ema.py
    _made = ""                                       # JSON of the constructor's call, see spec.py
    _unsaved: dict[str, str] = {}                    # hashes of arrays that are not parts, after __init__
    training = True
    world: World = ALONE

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if vars(cls).get("__slots__"):
            raise TypeError(f"{cls.__name__}: parts in __slots__ would be neither trained nor saved; leave __slots__ out")
        replaced = [name for name in vars(cls) if name in vars(Module) and name != "forward" and not name.endswith("__")]
        if replaced:
            hint = "; to leave layers in evaluation mode, freeze() them" * (replaced[0] in ("train", "eval", "training"))
            raise TypeError(f"{cls.__name__}.{replaced[0]} would replace Module's, which is used only of the "
                            f"outermost module, so a submodule's would be ignored; choose another name{hint}")

    def __new__(cls, *args, **options):
        return record(super().__new__(cls))

    def __deepcopy__(self, memo):
        """A copy with parts of its own. Raises TypeError if a function in it would go on using this module's."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        own, reached = ({id(part) for _, part in module.named_parts()} for module in (self, copied))
        for each in copied.modules():
            for attribute, value in vars(each).items():
                if any(id(part) in own - reached for part in held_inside(value)):
                    raise TypeError(f"{type(each).__name__}: {attribute} is or holds a function or reference to a part of "
                                    "this module, such as a lambda that uses self; in a copy it would go on using the "
                                    "original's part. Make it a method, or a Module")
        return copied

    def __call__(self, *inputs, **options):
        if id(self) in looked_for:
            note_use(self)
        return self.forward(*inputs, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __setattr__(self, name, value):
        if name in vars(Module) and name != "forward" or name == "requires_grad":
            hint = {"training": "call train() or eval()", "world": "call across()", "requires_grad": "see freeze"}.get(name)
            raise AttributeError(f"{type(self).__name__}.{name} cannot be set, since no submodule would change; "
                                 + (hint or "choose another name"))
        if self._sealed and not hasattr(self, name):
            raise AttributeError(self._unknown(name) + "; set new attributes in __init__")
        require_setting(self, name, value)
        if self._sealed:
            require_lasting(type(self), name, value)
        ranges = getattr(type(self), "_setting_ranges", ())
        if name in ranges:
            value = python_number(value)
        before = vars(self).get(name)
        if self._sealed and isinstance(before, (int, tuple)) and name not in ranges:
            require_settable(self, name)                     # a size, by which the parts were made
        if _holds_part(before) and not (value is None or isinstance(value, (list, tuple, dict)) and not value
                                        or _holds_part(value)):
            raise TypeError(f"{type(self).__name__}.{name}: a {type(before).__name__} cannot become a "
                            f"{type(value).__name__}, which would be neither trained nor saved; to change its values "
                            "write into its .data[...], or assign a Parameter, Buffer, Module or None")
        object.__setattr__(self, name, value)

    def __getattr__(self, name):                     # called only for a missing attribute
        raise AttributeError(self._unknown(name))

    def _unknown(self, name):
        hint = did_you_mean(name, [*vars(self), *dir(type(self))], cutoff=0.75)
        return f"{type(self).__name__} has no attribute {name!r}{hint}"

    # ------------------------------------------------------------ the tree

    def named_parts(self, prefix: str = "") -> "Iterator[tuple[str, Parameter | Buffer | Module]]":
        """(name, part) for this module and every Parameter, Buffer and Module below it, in order of definition."""
        yield prefix.rstrip("."), self
        for name, value in vars(self).items():
            yield from _parts(prefix + name, value)

    def named_state(self) -> list[tuple[str, Any]]:
        """[(name, Parameter or Buffer), ...], shared ones once. Raises ValueError if names collide."""
        found: dict[int, tuple[str, Any]] = {}
        names: dict[str, Any] = {}
        for name, part in self.named_parts():
            if not isinstance(part, Module) and id(part) not in found:
                if name in names:
                    raise ValueError(f"{type(self).__name__}: two parts are named {name!r}, so one would not be saved; "
                                     "rename an attribute or a key of a dict")
                names[name] = part
                found[id(part)] = (name, part)
        return list(found.values())

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """[(name, Parameter), ...], shared parameters once."""
        return [(name, part) for name, part in self.named_state() if isinstance(part, Parameter)]

    def named_buffers(self) -> list[tuple[str, Buffer]]:
        """[(name, Buffer), ...]"""
        return [(name, part) for name, part in self.named_state() if isinstance(part, Buffer)]

    def parameters(self) -> list[Parameter]:
        return warned_if_frozen(self, [parameter for _, parameter in self.named_parameters()])

    def named_modules(self) -> "list[tuple[str, Module]]":
        """[(name, Module), ...] of this module and every module below it."""
        return [(name, part) for name, part in self.named_parts() if isinstance(part, Module)]

    def modules(self) -> "list[Module]":
        return [module for _, module in self.named_modules()]

    def named_children(self) -> "list[tuple[str, Module]]":
        """[(name, Module), ...] of the modules directly below this one."""
        _, *below = self.named_modules()
        return [(name, part) for name, part in below if not any(name.startswith(f"{other}.") for other, _ in below)]

    def children(self) -> "list[Module]":
        return [module for _, module in self.named_children()]

    # ------------------------------------------------------------ switches

    def train(self, mode: bool = True):
        """Set training mode for this module and all below it, except frozen ones. Returns the module."""
        require_bool(f"{type(self).__name__}.train", mode=mode)
        for module in self.modules():
            object.__setattr__(module, "training", mode and not module._frozen)
        return self

    def eval(self):
        return self.train(False)

    def freeze(self):
        """Stop training this module and all below it: no gradients, and evaluation mode, which train() does not change.

        Optimizers neither decay nor move frozen parameters, batch norm keeps its running averages, dropout is off.
        Gradients still flow through to earlier layers. Returns the module.
        """
        return self._freeze(True)

    def unfreeze(self):
        """Undo freeze(): gradients and training mode for this module and all below it. Returns the module."""
        return self._freeze(False)

    def requires_grad_(self, requires_grad: bool = True):
        """Switch only the gradients of all parameters, where freeze() does more. Returns the module."""
        for _, parameter in self.named_parameters():
            parameter.requires_grad = requires_grad
        return self

    def _freeze(self, frozen):
        self.requires_grad_(not frozen)
        for module in self.modules():
            object.__setattr__(module, "_frozen", frozen)
        return self.train(not frozen)

    def across(self, world: World):
        """Train this module and all below it on the processes of `world`, each with its rows of a batch: batch norm uses
        all rows, dropout draws for all rows, and optimizers add up the gradients. Returns the module."""
        if not isinstance(world, World):
            raise TypeError(f"{type(self).__name__}.across: world must be what minicl.distributed.get_world() returns, got "
                            f"{world!r}")
        for module in self.modules():
            object.__setattr__(module, "world", world)
        return self

    def to(self, xp: ArrayModule | str):
        """Move parameters and buffers to xp, an array module or a backend's name, before making an optimizer."""
        xp = get_backend(xp) if isinstance(xp, str) else xp
        return self._each_array(lambda data: to_device(data, xp))

    def astype(self, dtype: DType):
        """Convert parameters, and buffers of floats, e.g. to float64 for a gradcheck."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"{type(self).__name__}.astype: dtype must be float32 or float64, got {dtype!r}")
        return self._each_array(lambda data: data.astype(dtype) if data.dtype.kind == "f" else data)

    def _each_array(self, change):
        parts = [(name, part) for name, part in self.named_state() if not isinstance(part, HostBuffer)]
        for _, part in parts:
            part.data = change(part.data)
            if isinstance(part, Parameter):
                part.grad = None
        mark_changed(parts, "Module.to() or astype()")
        return self

    # ------------------------------------------------------------ state

    def state_dict(self) -> dict[str, HostArray]:
        """{name: host array, a copy} of all parameters and buffers. Warns of plain arrays that have changed since the
        constructor, such as a running mean: they are not saved."""
        for name, module in self.named_modules():
            if changed := [key for key, hashed in unsaved_arrays(module).items() if module._unsaved.get(key) != hashed]:
                where = ", ".join(f"{name}.{key}".lstrip(".") for key in changed)
                warnings.warn(f"{type(self).__name__}.state_dict: {where} changed since the {type(module).__name__} was "
                              "made and is not saved, as it is not a Parameter or Buffer; keep it in a Buffer", stacklevel=2)
        return {name: np.array(to_host(part.data), order="C") for name, part in self.named_state()}

    def load_state_dict(self, state: Mapping[str, Array], *, strict: bool = True) -> IncompatibleKeys:
        """Copy the arrays of a state_dict into this module. Returns (missing_keys, unexpected_keys): names.

        strict  False copies the names that both have, at least one, and leaves the others unchanged: for a trained
                encoder in a model with another head
        Raises ValueError listing names that are missing, unexpected, of another shape or dtype, or not finite; then
        nothing is copied.
        """
        require_bool(self, strict=strict)
        loaded, keys = parts_to_load(type(self).__name__, state, dict(self.named_state()), strict)
        mark_changed(loaded.items(), "load_state_dict()")
        own = {id(owner_of(part.data)) for part in loaded.values()}          # a state of these arrays may swap them
        values = {name: state[name].copy() if id(owner_of(state[name])) in own else state[name] for name in loaded}
        for name, part in loaded.items():
            part.data[...] = to_device(values[name], array_module(part.data))
        return keys

    def __repr__(self):
        lines = [f"{type(self).__name__}("]
        for name, value in vars(self).items():
            if _holds_part(value):
                is_leaf = isinstance(value, (Parameter, Buffer))
                what = f"{type(value).__name__} {value.data.shape}" if is_leaf else repr(value)
                lines.append(f"  {name}: " + what.replace("\n", "\n  "))
        return "\n".join(lines + [")"]) if len(lines) > 1 else lines[0] + ")"


def _parts(name, value):
    if isinstance(value, Module):
        yield from value.named_parts(name + ".")
    elif isinstance(value, (Parameter, Buffer)):
        yield name, value
    elif isinstance(value, Tensor) and value.node is not None:
        raise TypeError(f"{name} is a Tensor that {value.node.op.__name__} has computed, which cannot be saved or trained: "
                        "compute it in forward(), and to look at it later keep its .detach()")
    elif isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} is a Tensor that requires a gradient, but an optimizer updates only Parameters; wrap its "
                        "data in a Parameter")
    elif isinstance(value, (list, tuple)):
        for k, item in enumerate(value):
            yield from _parts(f"{name}.{k}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}", item)


def _holds_part(value):
    try:
        return any(True for _ in _parts("", value))
    except TypeError:                                        # a Tensor that requires a gradient
        return True


def require_reachable(module, made=()):
    """Raise unless the walk finds all parts that the module holds in any way, under unique names.

    made: weak references to the parts that its __init__ made; those that still exist must be found too.
    """
    name = type(module).__name__
    try:
        module.named_state()
        reachable = {id(part) for _, part in module.named_parts()}
    except RecursionError:
        raise ValueError(f"{name}: a part of it contains itself, so the names of its parameters would never end") from None
    for cls in {cls for each in module.modules() for cls in type(each).__mro__} - {Module, object}:
        for attribute, value in vars(cls).items():
            own = cls.__module__.split(".")[0] != "minicl" and attribute not in NOT_USED
            if any(_parts(attribute, value)) or own and any(id(part) not in reachable and _is_trained(part)
                                                            for part in held_inside(value)):
                raise TypeError(f"{name}: {cls.__name__}.{attribute} is, holds or uses a part that belongs to the class or "
                                "its file: all objects would share it, neither trained nor saved. Set it in __init__, or "
                                "freeze() what a method uses and should not be trained")
            if own:
                require_lasting(cls, attribute, value)
    for each in module.modules():
        for attribute, value in vars(each).items():
            require_lasting(type(each), attribute, value)
            for item in held_inside(value):
                if isinstance(item, RANDOM):
                    raise TypeError(f"{type(each).__name__}: {attribute} {'is' if item is value else 'holds'} a "
                                    f"{type(item).__module__.split('.')[0]} {type(item).__name__}, whose state would not "
                                    "be saved and which a copy would share or repeat; use a nn.Stream(rng) and its next()")

    def lost():
        held = [part for each in module.modules() for value in vars(each).values() for part in held_inside(value)
                if not isinstance(part, RANDOM)]
        alive = [part for reference in made if (part := reference()) is not None]
        return list({id(part): part for part in held + alive if id(part) not in reachable}.values())

    if lost():
        gc.collect()                                                         # some may only await collection
    if left := lost():
        what = ", ".join(f"{type(part).__name__} {getattr(getattr(part, 'data', None), 'shape', '')}".strip()
                         for part in left[:4])
        raise TypeError(f"{name}: it has parts that would be neither trained nor saved, since no attribute leads to "
                        f"them: {what}{', ...' * (len(left) > 4)}. Keep them in attributes, or in lists, tuples and "
                        "dicts; in sets, closures, functions and other objects they are not found")


NOT_USED = ("__init__", "__annotations__", "__dict__", "__weakref__", "__doc__")     # of a class, in forward()
RANDOM = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence, random.Random)
_PLAIN = (str, bytes, int, float, complex, type(None), type, types.ModuleType, np.generic, Tensor)


def _is_trained(part):
    leaves = [leaf for _, leaf in part.named_parameters()] if isinstance(part, Module) else [part]
    return any(not isinstance(leaf, Tensor) or leaf.requires_grad for leaf in leaves)


def held_inside(value, depth=4):
    """Parts, Tensors to be trained and random generators that a value holds where the walk does not look: in closures, sets,
    objects."""
    if isinstance(value, (Module, Parameter, Buffer, *RANDOM)) or isinstance(value, Tensor) and value._requires_grad:
        yield value
    elif depth and not isinstance(value, _PLAIN) and getattr(value, "dtype", "O") == "O":
        if isinstance(value, types.FunctionType):
            named = [value.__globals__.get(name) for name in globals_of(value.__code__)]
            inside = [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__,
                      *(part for part in named if isinstance(part, (Module, Parameter)))]
        elif isinstance(value, weakref.ref):
            inside = [value()]
        else:
            inside = value.ravel().tolist() if isinstance(value, np.ndarray) else gc.get_referents(value)
        for item in inside:
            yield from held_inside(item, depth - 1)
