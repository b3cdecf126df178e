"""minicl's models in PyTorch, layer for layer with the same weights, written as PyTorch's users write them.

Each class takes the minicl Module that it copies, and has its parts in the same order.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from minicl import methods, ops
from minicl import nn as ours
from minicl.nn import resnet, text
from minicl.nn.text import PADDING


def like(model, peer):
    """The PyTorch copy of a minicl model, on the peer's device and in its layout."""
    net = build(model).to(peer.device)
    return net.to(memory_format=torch.channels_last) if peer.channels_last else net


def build(m):
    return nn.ReLU(inplace=True) if m is ops.relu else nn.GELU("tanh") if m is ops.gelu else PEERS[type(m)](m)


def parameter(value):
    return nn.Parameter(torch.tensor(value))


# ---------------------------------------------------------------- layers

def linear(m):
    layer = nn.Linear(*m.weight.shape, bias=m.bias is not None)
    layer.weight = parameter(m.weight.data.T.copy())
    if m.bias is not None:
        layer.bias = parameter(m.bias.data)
    return layer


def conv(m):
    kh, kw, inputs, outputs = m.weight.shape
    layer = nn.Conv2d(inputs, outputs, (kh, kw), m.stride, m.padding, bias=False)
    layer.weight = parameter(m.weight.data.transpose(3, 2, 0, 1).copy())
    return layer


def embedding(m):
    layer = nn.Embedding(*m.weight.shape)
    layer.weight = parameter(m.weight.data)
    return layer


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of (B, C, H, W) or (B, C), followed by relu where the minicl layer has it."""

    def __init__(self, m):
        super().__init__(len(m.weight), eps=m.eps, momentum=m.momentum)
        self.relu = m.relu
        self.splits = m.splits

    def _check_input_dim(self, x):
        """Accepts any number of axes."""

    def forward(self, x):
        y = super().forward(x) if self.splits == 1 else self.by_group(x)
        return F.relu(y, inplace=True) if self.relu else y

    def by_group(self, x):
        """Turn groups of items into channels, as MoCo does on one GPU."""
        n = self.splits
        (B, C, *pixels) = x.shape
        mean, var = self.running_mean.repeat(n), self.running_var.repeat(n)
        y = F.batch_norm(x.reshape(B // n, n * C, *pixels), mean, var, self.weight.repeat(n), self.bias.repeat(n),
                         True, self.momentum, self.eps)
        self.running_mean.copy_(mean.view(n, C).mean(dim=0))
        self.running_var.copy_(var.view(n, C).mean(dim=0))
        return y.reshape(x.shape)


# ---------------------------------------------------------------- encoders of images

class ConvNet(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.blocks = nn.Sequential(*map(build, m.blocks))
        self.grid = m.grid

    def forward(self, x):
        cells = F.adaptive_avg_pool2d(self.blocks(x), self.grid)             # (B, C, grid, grid)
        return cells.permute(0, 2, 3, 1).flatten(1)


def mlp(m):
    layers = [part for layer in m.layers for part in (build(layer), nn.ReLU(inplace=True))]
    return nn.Sequential(nn.Flatten(), *layers)


class BasicBlock(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.first, self.second = build(m.first), build(m.second)
        self.shortcut = nn.Identity() if m.shortcut is None else build(m.shortcut)

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.second(self.first(x)), inplace=True)


def resnet18(m):
    return nn.Sequential(build(m.stem), *map(build, m.blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# ---------------------------------------------------------------- an encoder of text

class Transformer(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.tokens, self.positions = build(m.tokens), build(m.positions)
        self.blocks = nn.ModuleList(map(build, m.blocks))
        self.norm = build(m.norm)

    def forward(self, ids):
        real = ids != PADDING                                                # (B, T)
        x = self.tokens(ids) + self.positions.weight[:ids.shape[1]]
        for block in self.blocks:
            x = block(x, real)
        mask = real[:, :, None].to(x.dtype)
        return (self.norm(x) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Block(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = map(build, (m.norm1, m.attention, m.norm2, m.mlp))

    def forward(self, x, real):
        x = x + self.attention(self.norm1(x), real)
        return x + self.mlp(self.norm2(x))


class SelfAttention(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.query, self.value, self.out, self.key = map(build, (m.query, m.value, m.out, m.key))
        self.heads = m.num_heads

    def forward(self, x, real):
        B, T, width = x.shape
        q, k, v = (part(x).view(B, T, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        return self.out(y.transpose(1, 2).reshape(B, T, width))


# ---------------------------------------------------------------- methods

class SimCLR(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.encoder, self.head = build(m.encoder), build(m.head)

    def forward(self, images):
        return self.head(self.encoder(images))


class CLIP(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.image, self.text = build(m.image), build(m.text)
        self.scale = nn.ParameterList([parameter(m.logit_scale.data)])       # a list, so that it comes last

    def forward(self, images, ids):
        return self.image(images), self.text(ids)


class MoCo(nn.Module):
    """Query encoder, key encoder, queue (d, K): MoCo's own code, except that one call moves all key weights."""

    def __init__(self, m):
        super().__init__()
        self.query = build(m.query)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        for layer in self.key.modules():
            if isinstance(layer, BatchNorm):
                layer.momentum = 0.0
        self.register_buffer("queue", torch.tensor(m.queue.keys.data.T.copy()))
        self.m = m.m
        self.next = 0

    def encode_keys(self, images, order):
        with torch.no_grad():
            keys = F.normalize(self.key(images[order]))
            return keys[torch.argsort(order)]

    def update(self, keys):
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged(self.key), self._averaged(self.query), 1 - self.m)
            self.queue[:, self.next:self.next + len(keys)] = keys.T
            self.next = (self.next + len(keys)) % self.queue.shape[1]

    def _averaged(self, net):
        return [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]


PEERS = {
    ours.Linear: linear, ours.Conv2d: conv, ours.Embedding: embedding, ours.BatchNorm: BatchNorm,
    ours.LayerNorm: lambda m: nn.LayerNorm(len(m.weight), m.eps),
    ours.Sequential: lambda m: nn.Sequential(*map(build, m.steps)),
    ours.ConvNet: ConvNet, ours.MLP: mlp, ours.ResNet18: resnet18, resnet.BasicBlock: BasicBlock,
    ours.Transformer: Transformer, text.Block: Block, text.SelfAttention: SelfAttention,
    methods.SimCLR: SimCLR, methods.CLIP: CLIP, methods.MoCo: MoCo,
}


# ---------------------------------------------------------------- other parts of a training step

def in_our_layout(net, read=lambda p: p.grad):
    """Views of all gradients (or of read(parameter)), transposed to minicl's layout."""
    turned = []
    for module in net.modules():
        for p in module.parameters(recurse=False):
            if p.requires_grad:
                x = read(p)
                linear = isinstance(module, nn.Linear) and x.ndim == 2
                turned.append(x.permute(2, 3, 1, 0) if x.ndim == 4 else x.T if linear else x)
    return turned


def adamw(net, lr, weight_decay, peer):
    """AdamW that decays only matrices and kernels, as minicl's does."""
    learned = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr, fused=peer.fused)


def nt_xent(z, tau):
    """Cross-entropy on z z^T / tau with a masked diagonal, for z (2N, d)."""
    u = F.normalize(z)
    n = len(z)
    scores = (u @ u.T / tau).fill_diagonal_(-math.inf)
    return F.cross_entropy(scores, (torch.arange(n, device=z.device) + n // 2) % n)


def moco_loss(query, keys, queue, tau):
    """Cross-entropy on one matrix of logits, the positive first, for query, unit keys (N, d) and unit queue (d, K)."""
    q = F.normalize(query)
    logits = torch.cat([(q * keys).sum(dim=1, keepdim=True), q @ queue], dim=1)
    return F.cross_entropy(logits / tau, torch.zeros(len(q), dtype=torch.long, device=q.device))


def clip_loss(image, text, logit_scale, caption_ids=None):
    """CLIP's figure 3. caption_ids (N,): pairs with the same caption are not negatives of each other."""
    logits = logit_scale.exp() * F.normalize(image) @ F.normalize(text).T
    ids = torch.arange(len(image), device=image.device)
    if caption_ids is not None:
        same = (caption_ids[:, None] == caption_ids).fill_diagonal_(False)
        logits = logits.masked_fill(same, -math.inf)
    return (F.cross_entropy(logits, ids) + F.cross_entropy(logits.T, ids)) / 2


def mnist_views(x):
    """A view of each image (B, 1, H, W), as by minicl.data.mnist_views: an affine map; half get an erased box."""
    B, _, H, W = x.shape

    def uniform(low, high, *shape):
        return torch.empty(B, *shape, device=x.device).uniform_(low, high)

    angle = uniform(-20, 20).deg2rad()
    lean = uniform(-15, 15).deg2rad().tan()
    scale = uniform(0.75, 1.25)
    cos = angle.cos()
    sin = angle.sin()
    A = torch.stack([lean * sin + cos, lean * cos - sin, sin, cos], dim=1).view(B, 2, 2) / scale[:, None, None]   # x, y
    shift = uniform(-0.1, 0.1, 2, 1) * 2                                     # the sides of an image have length 2
    grid = F.affine_grid(torch.cat([A, -A @ shift], dim=2), x.shape, align_corners=False)
    y = F.grid_sample(x, grid, align_corners=False)

    area = uniform(0.02, 0.15) * H * W
    ratio = uniform(math.log(0.3), math.log(3.3)).exp()
    height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    top, left = (uniform(0, 1) * (H - height + 1)).floor(), (uniform(0, 1) * (W - width + 1)).floor()
    rows, columns = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    rows = (rows >= top[:, None]) & (rows < (top + height)[:, None]) & (uniform(0, 1, 1) < 0.5)
    columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return y.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
