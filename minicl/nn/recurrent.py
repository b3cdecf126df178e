"""Layers with a memory: sequences (T, B, C), time first, so that a step's batch is one contiguous matrix."""

from .. import ops
from .layers import _filled, _initial, as_tensor
from .module import Module, Parameter


class GRU(Module):
    """A gated recurrent unit: x (T, B, inputs) -> its states (T, B, features), the first one computed from zeros.

    The update gate's bias begins at 1, so that at first a state is kept for a few steps, and gradients with it
    (Jozefowicz et al. 2015, section 3.2, of the LSTM's forget gate).
    """

    def __init__(self, inputs, features, *, rng):
        self.features = features
        self.w = _initial(rng, (inputs, 3 * features), inputs, 1.0)
        self.v = _initial(rng, (features, 3 * features), features, 1.0)
        self.b = Parameter(_filled(3 * features, 0))
        self.b.data[features:2 * features] = 1

    def forward(self, x):
        return ops.gru(as_tensor(x), self.w, self.v, self.b)
