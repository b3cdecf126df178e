"""Recurrent layers: sequences (T, B, C), time first, so that a step's batch is one contiguous matrix."""

from .. import ops
from ..autograd import Tensor
from ..checks import require_integers
from ..typing import Array, Rng
from .layers import as_tensor, filled, initial
from .module import Module
from .parts import Parameter


class GRU(Module):
    """A gated recurrent unit: x (T, B, input_size) -> states (T, B, hidden_size), starting from zeros.

    The update gate's bias is initialised to 1, so that states and gradients initially persist for a few steps (as
    Jozefowicz et al. 2015, section 3.2, for the LSTM's forget gate).
    """

    weight_ih: Parameter          # (input_size, 3 hidden_size): reset, update, new
    weight_hh: Parameter          # (hidden_size, 3 hidden_size)
    bias: Parameter               # (3 hidden_size,)

    def __init__(self, input_size: int, hidden_size: int, *, rng: Rng):
        require_integers("GRU", 1, input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.features = hidden_size
        self.weight_ih = initial(rng, (input_size, 3 * hidden_size), fan_in=input_size)
        self.weight_hh = initial(rng, (hidden_size, 3 * hidden_size), fan_in=hidden_size)
        self.bias = Parameter(filled(3 * hidden_size, 0))
        self.bias.data[hidden_size:2 * hidden_size] = 1

    def forward(self, x: Tensor | Array) -> Tensor:
        return ops.gru(as_tensor(x), self.weight_ih, self.weight_hh, self.bias)
