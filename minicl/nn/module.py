"""Module: a tree of parameters and buffers with names.

A Module is an object whose attributes are its parts. `Parameter`s are learned by gradient, `Buffer`s are
state that is not (running averages); other Modules, and lists, tuples and dicts of any of these, are walked.
Nothing is registered by hand: the names are the attributes', `encoder.convs.0.weight`.
"""

import difflib

import numpy as np

from ..autograd import Tensor
from ..backend import array_module, get_backend, to_device, to_host
from ..tensor import mark_changed


class Parameter(Tensor):
    """A Tensor that is learned. Optimizers decay it only if it has two axes or more (so no bias, no norm weight)."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Buffer:
    """An array that belongs to a Module's state but gets no gradient."""

    def __init__(self, data):
        self.data = data


class Counter(Buffer):
    """An integer that is saved with the model and stays on the host wherever the model goes: reading it never waits."""

    def __init__(self):
        self._value = np.zeros((), dtype="int64")

    data = property(lambda self: self._value, lambda self, moved: None)

    def __int__(self):
        return int(self._value)

    def add(self, n):
        self._value[...] += n


class _Sealed(type):
    """After __init__ a Module takes no new attributes, so that a misspelt one is an error."""

    def __call__(cls, *args, **options):
        module = super().__call__(*args, **options)
        object.__setattr__(module, "_sealed", True)
        return module


class Module(metaclass=_Sealed):
    """Subclasses set their parts in __init__ and define forward(); calling the module calls forward.

    training  True at first; .eval() and .train() switch it for the module and everything below it
    """

    _sealed = False
    training = True

    def __call__(self, *inputs):
        return self.forward(*inputs)

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __setattr__(self, name, value):
        if self._sealed and not hasattr(self, name):
            raise AttributeError(self._unknown(name) + "; set new attributes in __init__")
        object.__setattr__(self, name, value)

    def __getattr__(self, name):                     # called only when the attribute is not there
        raise AttributeError(self._unknown(name))

    def _unknown(self, name):
        near = difflib.get_close_matches(name, [*vars(self), *dir(type(self))], 1)
        return f"{type(self).__name__} has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")

    # ------------------------------------------------------------ the tree

    def named_parts(self, prefix=""):
        """(name, part) for this module and every Parameter, Buffer and Module below it, in order of definition."""
        yield prefix.rstrip("."), self
        for name, value in vars(self).items():
            yield from _parts(prefix + name, value)

    def named_parameters(self):
        """[(name, Parameter), ...], a parameter used in two places only once."""
        return _unique(self.named_parts(), Parameter)

    def named_buffers(self):
        """[(name, Buffer), ...]"""
        return _unique(self.named_parts(), Buffer)

    def parameters(self):
        return [parameter for _, parameter in self.named_parameters()]

    def modules(self):
        """This module and every module below it."""
        return [part for _, part in self.named_parts() if isinstance(part, Module)]

    # ------------------------------------------------------------ switches

    def train(self, mode=True):
        for module in self.modules():
            object.__setattr__(module, "training", mode)
        return self

    def eval(self):
        return self.train(False)

    def to(self, xp):
        """Move parameters and buffers to xp, an array module or the name of a backend (before an optimizer takes hold of
        them)."""
        xp = get_backend(xp) if isinstance(xp, str) else xp
        return self._each_array(lambda data: to_device(data, xp))

    def astype(self, dtype):
        """Convert parameters and buffers, e.g. to float64 for a gradcheck."""
        return self._each_array(lambda data: data.astype(dtype))

    def _each_array(self, change):
        parts = self.named_parameters() + self.named_buffers()
        for _, part in parts:
            part.data = change(part.data)
            if isinstance(part, Parameter):
                part.grad = None
        mark_changed(parts, "Module.to() or astype()")
        return self

    # ------------------------------------------------------------ state

    def state_dict(self):
        """{name: host array, a copy} of all parameters and buffers."""
        return {name: np.array(to_host(part.data)) for name, part in self.named_parameters() + self.named_buffers()}

    def load_state_dict(self, state):
        """Copy the arrays of a state_dict into this module.

        Raises ValueError listing the names that are missing, unexpected or of another shape; then nothing is copied.
        """
        parts = dict(self.named_parameters() + self.named_buffers())
        wrong = [f"{name}: missing" for name in parts if name not in state]
        wrong += [f"{name}: unknown to this model" for name in state if name not in parts]
        wrong += [f"{name}: shape {state[name].shape}, this model has {part.data.shape}" for name, part in parts.items()
                  if name in state and state[name].shape != part.data.shape]
        if wrong:
            raise ValueError(f"the state is of another architecture than this {type(self).__name__}:\n    "
                             + "\n    ".join(wrong[:8] + [f"... and {len(wrong) - 8} more"] * (len(wrong) > 8)))
        for name, part in parts.items():
            part.data[...] = to_device(state[name], array_module(part.data)).astype(part.data.dtype)
        mark_changed(parts.items(), "load_state_dict()")

    def __repr__(self):
        lines = [f"{type(self).__name__}("]
        for name, value in vars(self).items():
            if any(True for _ in _parts(name, value)):
                what = f"{type(value).__name__} {value.data.shape}" if isinstance(value, (Parameter, Buffer)) else repr(value)
                lines.append(f"  {name}: " + what.replace("\n", "\n  "))
        return "\n".join(lines + [")"]) if len(lines) > 1 else lines[0] + ")"


def _parts(name, value):
    if isinstance(value, Module):
        yield from value.named_parts(name + ".")
    elif isinstance(value, (Parameter, Buffer)):
        yield name, value
    elif isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} is a Tensor that requires a gradient, which no optimizer would be given: wrap its data in "
                        "Parameter")
    elif isinstance(value, (list, tuple)):
        for k, item in enumerate(value):
            yield from _parts(f"{name}.{k}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}", item)


def _unique(parts, kind):
    seen, found = set(), []
    for name, part in parts:
        if isinstance(part, kind) and id(part) not in seen:
            seen.add(id(part))
            found.append((name, part))
    return found
