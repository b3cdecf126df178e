"""Text encoders: token ids (B, T) -> representations h (B, features).

ids are integers in [0, vocabulary); 0 is padding, which fills short captions up to T and has no effect.

Both encoders take the mean over a caption's tokens. CLIP takes the last token's state instead, since its attention is
causal and only the last token attends to the whole caption. Here attention is bidirectional: the mean needs no end
marker, gives each token a gradient, and makes a bag of tokens the Transformer of depth 0.
"""

from .. import ops
from ..autograd import Tensor
from ..backend import array_module, is_array, on_host
from ..checks import require_integers, require_unmasked
from ..signature import describe
from ..typing import Array, Rng
from .layers import Embedding, LayerNorm, Linear, Sequential
from .module import Module

PADDING = 0


class BagOfTokens(Module):
    """The mean of the tokens' vectors, independent of their order."""

    def __init__(self, vocabulary: int, width: int = 64, *, rng: Rng):
        self.features = width
        self.tokens = Embedding(vocabulary, width, rng=rng)

    def forward(self, ids: Array) -> Tensor:
        mask = real_tokens("BagOfTokens", ids)
        return masked_mean(self.tokens(ids), mask)


class Transformer(Module):
    """Pre-norm Transformer encoder (Vaswani et al. 2017; norm before each part: Xiong et al. 2020).

    length  the longest caption; a learned vector for each position is added to the tokens'
    width   of the tokens' vectors, a multiple of heads; depth: the number of blocks of attention and MLP
    """

    def __init__(self, vocabulary: int, length: int, width: int = 64, *, depth: int = 2, heads: int = 4, rng: Rng):
        require_integers("Transformer", 0, depth=depth)
        self.features = width
        self.length = length
        self.tokens = Embedding(vocabulary, width, rng=rng)
        self.positions = Embedding(length, width, rng=rng)
        self.blocks = [Block(width, heads, rng=rng) for _ in range(depth)]
        self.norm = LayerNorm(width)

    def forward(self, ids: Array) -> Tensor:
        mask = real_tokens("Transformer", ids)
        T = ids.shape[1]
        if T > self.length:
            raise ValueError(f"Transformer: expected captions of at most {self.length} tokens, got {T}; build "
                             "it with a greater length, since it has no position for more")
        x = self.tokens(ids) + self.positions.weight[:T]                      # (B, T, width)
        for block in self.blocks:
            x = block(x, mask)
        return masked_mean(self.norm(x), mask)


class Block(Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int, *, rng: Rng):
        self.norm1 = LayerNorm(width)
        self.attention = SelfAttention(width, heads, rng=rng)
        self.norm2 = LayerNorm(width)
        self.mlp = Sequential(Linear(width, 4 * width, rng=rng), ops.gelu, Linear(4 * width, width, rng=rng))

    def forward(self, x: Tensor, mask: Array) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class SelfAttention(Module):
    """Multi-head self-attention: every token of x (B, T, width) attends to the tokens where mask (B, T) is True."""

    def __init__(self, embed_dim: int, num_heads: int, *, rng: Rng):
        require_integers("SelfAttention", 1, embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise ValueError("SelfAttention: expected an embed_dim that is a multiple of num_heads, got "
                             f"{embed_dim} and {num_heads}")
        self.num_heads = num_heads
        self.query, self.value, self.out = (Linear(embed_dim, embed_dim, rng=rng) for _ in range(3))
        self.key = Linear(embed_dim, embed_dim, bias=False, rng=rng)         # a bias would shift all scores equally

    def forward(self, x: Tensor, mask: Array) -> Tensor:
        B, T, width = x.shape

        def split(y):
            return y.reshape(B, T, self.num_heads, width // self.num_heads).transpose(2, 0, 1, 3)    # (heads, B, T, d)

        y = ops.attention(split(self.query(x)), split(self.key(x)), split(self.value(x)), mask=mask[:, None, :])
        return self.out(y.transpose(1, 2, 0, 3).reshape(B, T, width))


def real_tokens(name, ids):
    """Bools (B, T), True where ids is not padding. Raises ValueError unless ids is an integer array of two axes."""
    require_unmasked(f"{name}: ids", ids)
    if not is_array(ids) or ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected token ids (B, T) of an integer type, got {describe(ids)}; a tokenizer "
                         "makes them from captions")
    if on_host(ids) and ids.min(initial=0) < 0:
        raise ValueError(f"{name}: expected token ids >= 0, got {ids.min()}")
    return ids != PADDING


def masked_mean(x, mask):
    """The mean of x (B, T, C) over the tokens where mask (B, T) is True; zeros without any: (B, C)."""
    xp = array_module(mask)
    kept = mask.astype(x.dtype)
    return (x * (kept / xp.maximum(kept.sum(axis=1, keepdims=True), 1))[:, :, None]).sum(axis=1)
