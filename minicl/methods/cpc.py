"""CPC, contrastive predictive coding (van den Oord et al. 2018): predict the future, but in latent space.

    for x in batches:                                     # (T, B, C): B sequences
        z = encoder(x)                                    # (T', B, d): z_t encodes a window of the sequence
        c = context(z)                                    # (T', B, H): c_t summarises z_1 ... z_t, by a GRU
        for k in 1 ... ahead:                             # W_k c_t predicts z_{t+k}, one W_k for each k
            scores = z_{t+k} . W_k c_t                    # (B, B) at each t: all sequences' futures for all pasts
            L += info_nce_from_scores(scores, positive: the same sequence) / ahead
        optimizer.step()

The score of a candidate is the dot product z . W_k c_t (eq. 3). The candidates are the true z_{t+k} and those of the
other sequences at the same time t + k, drawn independently of c_t, as InfoNCE's bound on I(c_t; z_{t+k}) requires.
Windows of the same sequence at other times are not independent, and with candidates from other times a critic that knows
only the time would beat chance.
"""

from .. import ops
from ..autograd import Tensor
from ..backend import array_module
from ..checks import require_integers
from ..distributed import all_gather
from ..nn import Linear, Module
from ..nn.layers import RELU_GAIN, as_tensor
from ..typing import Array, Rng


class WindowEncoder(Module):
    """x (T, B, C) -> z (T / window, B, features): a strided convolution, then relu and a linear layer.

    The stride equals the width, so windows do not share samples, which would reveal the future. T mod window samples are
    left out.
    """

    def __init__(self, channels: int, window: int, *, hidden: int = 64, features: int = 32, rng: Rng):
        require_integers("WindowEncoder", 1, channels=channels, window=window, hidden=hidden, features=features)
        self.channels = channels
        self.window = window
        self.features = features
        self.convolution = Linear(window * channels, hidden, rng=rng, gain=RELU_GAIN)
        self.out = Linear(hidden, features, rng=rng)

    def forward(self, x: Tensor | Array) -> Tensor:
        x = as_tensor(x)
        width = self.window
        if x.ndim != 3 or x.shape[2] != self.channels or len(x) < width:
            raise ValueError(f"WindowEncoder: expected sequences (T, B, {self.channels}) of T >= {width} steps, got "
                             f"{x.shape}")
        steps = len(x) // width
        B = x.shape[1]
        windows = x[:steps * width].reshape(steps, width, B, -1).transpose(0, 2, 1, 3)       # (T', B, width, C)
        return self.out(ops.relu(self.convolution(windows.reshape(steps, B, -1))))


class CPC(Module):
    """sequences (T, B, C) -> (z (T', B, d), c (T', B, H)), and scores of predictions 1 to `ahead` windows ahead.

    context  a Module (T', B, d) -> (T', B, context.features), such as nn.GRU; None for c = z, only the last window
    """

    def __init__(self, encoder: Module, context: Module | None, ahead: int, *, rng: Rng):
        require_integers("CPC", 1, ahead=ahead)
        self.encoder = encoder
        self.context = context
        width = (encoder if context is None else context).features
        self.predictors = [Linear(width, encoder.features, rng=rng, bias=False) for _ in range(ahead)]

    def forward(self, x: Tensor | Array) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return z, z if self.context is None else self.context(z)

    def scores(self, z: Tensor, c: Tensor, k: int) -> tuple[Tensor, Array]:
        """Scores z_{t+k} . W_k c_t between the future of sequence j and the context of sequence i.

        -> scores ((T'-k) B, B), row t B + i and column j, and positive_ids ((T'-k) B,), the columns j = i. With several
        processes each has the rows of its B sequences, and the columns of all.
        """
        require_integers("CPC.scores", 1, k=k)
        if k > len(self.predictors):
            raise ValueError(f"CPC.scores: expected k from 1 to {len(self.predictors)}, got {k}")
        if len(z) <= k or z.shape[:2] != c.shape[:2] or z.shape[1] * self.world.size < 2:
            raise ValueError(f"CPC.scores: expected z (T, B, d) and c (T, B, H) with T > {k} and B >= 2, got "
                             f"{z.shape} and {c.shape}; longer sequences or smaller windows give more steps")
        xp = array_module(z.data)
        B = z.shape[1]
        world = self.world
        predicted = self.predictors[k - 1](c[:-k])                           # (T'-k, B, d)
        positive_ids = xp.arange((len(z) - k) * B) % B
        if world.size == 1:
            scores = predicted @ z[k:].transpose(0, 2, 1)                    # (T'-k, B, B)
        else:
            scores = predicted @ all_gather(z[k:].transpose(1, 0, 2), world=world).transpose(1, 2, 0)
            positive_ids = positive_ids * world.size + world.rank
        return scores.reshape(-1, B * world.size), positive_ids


class LastContext(Module):
    """sequences (B, T, C) -> c after the last window (B, H): a trained CPC's representation of whole sequences.

    >>> rng = np.random.default_rng(0)
    >>> model = CPC(WindowEncoder(3, 4, features=6, rng=rng), None, 2, rng=rng)
    >>> LastContext(model)(np.ones((5, 8, 3), "float32")).shape
    (5, 6)
    """

    def __init__(self, model: CPC):
        self.model = model

    def forward(self, sequences: Tensor | Array) -> Tensor:
        return self.model(as_tensor(sequences).transpose(1, 0, 2))[1][-1]
