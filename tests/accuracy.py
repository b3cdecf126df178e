"""The rounding error of float32 against float64, op by op, beside PyTorch's where PyTorch is installed.

    python tests/accuracy.py                 every case
    python tests/accuracy.py sum var         cases whose names contain one of these words
    python tests/accuracy.py --check         exit code 1 if an error is more than twice PyTorch's

The error of a result is its largest |float32 - float64|, divided by the largest entry of the float64 result and given
in roundings of 2^-24. The error of a case is the largest over its value and its gradients. A case with "rms" in its
name compares the root mean square of one result instead, which varies less from draw to draw. Both precisions start
from the same float32 inputs. tests/test_accuracy.py tests each case against its own limit, without PyTorch.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from minicl import Tensor, contrastive, ops  # noqa: E402
from minicl.autograd import op  # noqa: E402
from minicl.nn import BatchNorm  # noqa: E402
from minicl.ops.winograd import conv_by_winograd  # noqa: E402
from minicl.typing import Array  # noqa: E402

ROUNDING = 2.0**-24


@dataclass
class Case:
    """One row of the table: op(*inputs, **options), and the same computation in PyTorch, peer(torch, *tensors)."""
    name: str
    op: Callable
    inputs: tuple                                  # arrays; floats are rounded to float32
    peer: Callable | None = None
    options: dict = field(default_factory=dict)
    most: float = 12                               # the largest error that tests/test_accuracy.py allows
    result: int | None = None  # compare only the rms of this result: 0 is the value, 1, ... the gradients


def normal(*shape, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng([len(shape), *shape]).standard_normal(shape)


def to_images(torch, x):
    """(H, W, B, C) -> PyTorch's (B, C, H, W)."""
    return x.permute(2, 3, 0, 1)


def conv(stride, padding):
    def peer(torch, x, w):
        y = torch.nn.functional.conv2d(to_images(torch, x), w.permute(3, 2, 0, 1), stride=stride, padding=padding)
        return y.permute(2, 3, 0, 1)
    return {"options": {"stride": stride, "padding": padding}, "peer": peer}


def batch_norm(torch, x, weight, bias):
    y = torch.nn.functional.batch_norm(to_images(torch, x), None, None, weight, bias, training=True)
    return y.permute(2, 3, 0, 1)


def evaluated_norm(x, weight, bias, *, mean):
    """BatchNorm in evaluation, with running averages mean and 1."""
    layer = BatchNorm(x.shape[-1]).astype(x.dtype).eval()
    layer.running_mean.data[...] = mean
    vars(layer).update(weight=weight, bias=bias)                             # the Tensors whose gradients are compared
    return layer(x)


def evaluated_batch_norm(mean):
    def peer(torch, x, weight, bias):
        averages = (torch.full((x.shape[-1],), value, dtype=x.dtype) for value in (mean, 1.0))
        return torch.nn.functional.batch_norm(x, *averages, weight, bias, training=False)
    return {"options": {"mean": mean}, "peer": peer}


def layer_norm(torch, x, weight, bias):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)


def max_pool(torch, x):
    return torch.nn.functional.max_pool2d(to_images(torch, x), 2).permute(2, 3, 0, 1)


def gru(torch, x, w, v, b):
    """nn.GRU's output. It has the same order of gates and a second bias; its weights are transposed."""
    layer = torch.nn.GRU(x.shape[2], v.shape[0]).to(x.dtype)
    arguments = dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"), (w.T, v.T, b)))
    arguments["bias_hh_l0"] = torch.zeros_like(b)
    return torch.func.functional_call(layer, arguments, (x,))[0]


@op
def conv2d_by_winograd(x: Array, w: Array, *, needs_grad=(True, True)):
    """conv2d with stride 1 and padding 1 in Winograd's form, which ops.conv2d takes for larger arrays than these."""
    return conv_by_winograd(x, w, needs_grad)


def winograd(channels):
    """Cases for Winograd's form of the convolution: y, dx and dw separately, summing over `channels`."""
    down, up = [(normal(16, 16, 8, C), normal(3, 3, C, K)) for C, K in ((channels, 128), (128, channels))]
    peer = conv(1, 1)["peer"]
    return [Case(f"conv2d 3x3, {channels} channels: rms of {name}", conv2d_by_winograd, inputs, peer, most=most, result=k)
            for k, (name, inputs, most) in enumerate((("y", down, 7.5), ("dx", up, 7.5), ("dw", down, 5)))]


C = np.ones(32), np.zeros(32)
OPS = [
    Case("exp", ops.exp, (normal(64, 64, scale=5),), lambda torch, x: torch.exp(x)),
    Case("log", ops.log, (np.exp(normal(64, 64, scale=5)),), lambda torch, x: torch.log(x)),
    Case("tanh", ops.tanh, (normal(64, 64, scale=3),), lambda torch, x: torch.tanh(x)),
    Case("sigmoid", ops.sigmoid, (normal(64, 64, scale=5),), lambda torch, x: torch.sigmoid(x)),
    Case("gelu", ops.gelu, (normal(64, 64, scale=3),),
         lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh")),
    Case("div", ops.div, (normal(64, 64), np.exp(normal(64, 64))), lambda torch, x, y: x / y),
    Case("add, a bias to 20,000 rows", ops.add, (normal(20_000, 16, mean=1), normal(16)), lambda torch, x, y: x + y),
    Case("sum of 100,000 rows", ops.sum, (normal(100_000, 8, mean=1),), lambda torch, x: x.sum(0), {"axis": 0}),
    Case("sum of 300 rows in the middle", ops.sum, (normal(8, 300, 64, mean=1),), lambda torch, x: x.sum(1), {"axis": 1}),
    Case("mean over pixels", ops.mean, (normal(14, 14, 32, 32, mean=1),), lambda torch, x: x.mean((0, 1)),
         {"axis": (0, 1)}),
    Case("mean of all", ops.mean, (normal(300, 700, mean=1),), lambda torch, x: x.mean()),
    Case("var of rows", ops.var, (normal(2000, 32),), lambda torch, x: x.var(0, correction=0), {"axis": 0}),
    Case("var of rows, mean 10,000", ops.var, (normal(2000, 32, mean=1e4),), lambda torch, x: x.var(0, correction=0),
         {"axis": 0}),
    Case("logsumexp of rows", ops.logsumexp, (normal(500, 300, scale=3),), lambda torch, x: x.logsumexp(1), {"axis": 1},
         most=16),
    Case("logsumexp of columns", ops.logsumexp, (normal(3000, 30),), lambda torch, x: x.logsumexp(0), {"axis": 0}),
    Case("matmul", ops.matmul, (normal(200, 300), normal(300, 100)), lambda torch, x, w: x @ w),
    Case("linear, 5,000 rows", ops.linear, (normal(5000, 64, mean=1), normal(64, 32), normal(32)),
         lambda torch, x, w, b: x @ w + b),
    Case("conv2d 3x3", ops.conv2d, (normal(14, 14, 64, 16), normal(3, 3, 16, 32)), **conv(1, 1)),
    Case("conv2d 3x3, 128 channels", conv2d_by_winograd, (normal(8, 8, 8, 128), normal(3, 3, 128, 128)), conv(1, 1)["peer"]),
    *winograd(64), *winograd(128), *winograd(256), *winograd(512),
    Case("conv2d 3x3, stride 2", ops.conv2d, (normal(15, 15, 64, 16), normal(3, 3, 16, 32)), **conv(2, 1)),
    Case("conv2d, grey images", ops.conv2d, (normal(28, 28, 64, 1), normal(3, 3, 1, 32)), **conv(1, 1)),
    Case("max_pool2d", ops.max_pool2d, (normal(14, 14, 16, 8),), max_pool),
    Case("batch_norm", ops.batch_norm, (normal(14, 14, 32, 32), *C), batch_norm, most=20),
    Case("batch_norm, 40,009 rows", ops.batch_norm, (normal(40_009, 8), np.ones(8), np.zeros(8)),
         lambda torch, x, w, b: torch.nn.functional.batch_norm(x, None, None, w, b, training=True), most=150),
    *(Case(f"batch_norm, {n} values, mean 100", ops.batch_norm, (normal(1, 1, n, 32, mean=100), *C), batch_norm, most=20)
      for n in (3, 256)),
    Case("batch_norm, mean 3", ops.batch_norm, (normal(14, 14, 32, 32, mean=3), *C), batch_norm, most=20),
    Case("batch_norm, mean 100", ops.batch_norm, (normal(14, 14, 32, 32, mean=100), *C), batch_norm, most=60),
    *(Case(f"BatchNorm in evaluation, mean {mean:,}", evaluated_norm, (normal(2000, 32, mean=mean), *C),
           **evaluated_batch_norm(mean)) for mean in (3, 1_000, 10_000)),
    Case("layer_norm", ops.layer_norm, (normal(2000, 32), *C), layer_norm),
    Case("layer_norm, mean 100", ops.layer_norm, (normal(2000, 32, mean=100), *C), layer_norm),
    Case("layer_norm, mean 10,000", ops.layer_norm, (normal(2000, 32, mean=1e4), *C), layer_norm),
    Case("attention", ops.attention, (normal(8, 40, 32), normal(8, 60, 32), normal(8, 60, 16)),
         lambda torch, q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v)),
    Case("attention, saturated", ops.attention, (normal(8, 40, 32, scale=16), normal(8, 60, 32), normal(8, 60, 16)),
         lambda torch, q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v), most=100),
    Case("gru", ops.gru, (normal(30, 16, 24), normal(24, 96, scale=0.2), normal(32, 96, scale=0.2), normal(96)), gru),
    Case("embedding", ops.embedding, (np.arange(3000) % 7, normal(50, 32)),
         lambda torch, ids, table: torch.nn.functional.embedding(ids, table), most=16),
]


def cone(cosine, n=128, d=64, views=2, along_an_axis=True):
    """`views` arrays (n, d) whose mean cosine is about `cosine`, as early in training; views of one item are closer."""
    rng = np.random.default_rng(int(1000 * cosine))
    centre = np.eye(d)[0] if cosine else np.zeros(d)
    centre = centre if along_an_axis else rng.standard_normal(d) / d**0.5
    spread = ((1 - cosine) / max(cosine, 0.5) / d)**0.5
    first = centre + spread * rng.standard_normal((n, d))
    return [first, *(first + 0.5 * spread * rng.standard_normal((n, d)) for _ in range(views - 1))]


def clusters(n=1024, d=32):
    """Two views (n, d) of items of 4 classes, which are narrow cones around 4 centres."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((4, d))[rng.integers(0, 4, n)]
    return [centres + 0.05 * rng.standard_normal((n, d)) for _ in range(2)]


def rectified(n=1024, d=64):
    """Two views (n, d) past a ReLU, whose columns have many equal entries, 0."""
    z = np.random.default_rng(6).standard_normal((n, d))
    return [np.maximum(z + 0.3 * np.random.default_rng(seed).standard_normal((n, d)), 0) for seed in (7, 8)]


def cosines(torch, x, y):
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T


def torch_nt_xent(torch, z1, z2, tau):
    z = torch.cat([z1, z2])
    n = len(z1)
    scores = (cosines(torch, z, z) / tau).masked_fill(torch.eye(2 * n, dtype=bool), -torch.inf)
    return torch.nn.functional.cross_entropy(scores, (torch.arange(2 * n) + n) % (2 * n))


def torch_clip(torch, image, text, logit_scale):
    scores = cosines(torch, image, text) * logit_scale.exp()
    own = torch.arange(len(image))
    return (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2


def torch_info_nce(torch, query, positive, negatives, tau):
    hit = torch.nn.functional.cosine_similarity(query, positive)[:, None]
    scores = torch.cat([hit, cosines(torch, query, negatives)], dim=1) / tau
    return torch.nn.functional.cross_entropy(scores, torch.zeros(len(query), dtype=torch.long))


def torch_siglip(torch, x, y, logit_scale, bias):
    scores = cosines(torch, x, y) * logit_scale.exp() + bias
    return -torch.nn.functional.logsigmoid(scores * (2 * torch.eye(len(x)) - 1)).sum() / len(x)


def torch_sup_con(torch, z, tau):
    others = ~torch.eye(len(z), dtype=bool)
    log_p = (cosines(torch, z, z) / tau).masked_fill(~others, -torch.inf).log_softmax(1).masked_fill(~others, 0)
    same = torch.tensor(CLASSES[:, None] == CLASSES) & others
    return -((log_p * same).sum(1) / same.sum(1)).mean()


def torch_dcl(torch, z1, z2, tau):
    z = torch.cat([z1, z2])
    n = len(z1)
    own = torch.eye(2 * n, dtype=bool)
    scores = cosines(torch, z, z) / tau
    negatives = scores.masked_fill(own | own.roll(n, 0), -torch.inf)
    return negatives.logsumexp(1).mean() - scores[own.roll(n, 0)].mean()


def torch_uniformity(torch, z, t=2):
    return torch.pdist(torch.nn.functional.normalize(z, dim=1)).pow(2).mul(-t).exp().mean().log()


def torch_alignment(torch, z1, z2):
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z1, z2))
    return (u - v).pow(2).sum(1).mean()


def torch_vicreg(torch, z1, z2):
    loss = 25 * torch.nn.functional.mse_loss(z1, z2)
    d = z1.shape[1]
    for z in (z1, z2):
        C = torch.cov(z.T)
        loss = loss + 25 * torch.relu(1 - (C.diagonal() + 1e-4).sqrt()).mean() + (C - C.diag().diag()).pow(2).sum() / d
    return loss


def torch_barlow_twins(torch, z1, z2):
    x, y = (torch.nn.functional.batch_norm(z, None, None, training=True) for z in (z1, z2))
    missing = x.T @ y / len(z1) - torch.eye(z1.shape[1])
    return missing.diagonal().pow(2).sum() + 5e-3 * (missing - missing.diag().diag()).pow(2).sum()


def learned_alone(loss, views):
    """The loss as a function of its temperature or logit scale only."""
    return lambda number: loss(*(z.astype("float32").astype(number.dtype) for z in views), number)


def peer_alone(peer, views):
    return lambda torch, number: peer(torch, *(torch.tensor(z.astype("float32")) for z in views), number)


def in_batches(loss, views):
    """The summed losses of 8 batches, each with its own temperature: one batch may have a small error by luck."""
    batches = list(zip(*(np.split(z, 8) for z in views)))
    return lambda *numbers: sum((learned_alone(loss, batch)(number) for batch, number in zip(batches[1:], numbers[1:])),
                                learned_alone(loss, batches[0])(numbers[0]))


def peer_in_batches(peer, views):
    batches = list(zip(*(np.split(z, 8) for z in views)))
    return lambda torch, *numbers: sum(peer_alone(peer, batch)(torch, number) for batch, number in zip(batches, numbers))


CLASSES = np.arange(128) % 5
TAU, SCALE = np.array(0.2), np.array(2.659)
LOSSES = [
    *(Case(f"{loss.__name__}, mean cosine {c}", loss, (*cone(c), number), peer, most=most)
      for loss, number, peer in ((contrastive.nt_xent, TAU, torch_nt_xent), (contrastive.clip_loss, SCALE, torch_clip))
      for c, most in ((0, 100), (0.99, 150), (0.999, 400))),
    *(Case(f"{name} of {loss.__name__}, {c}", learned_alone(loss, cone(c)), (number,), peer_alone(peer, cone(c)), most=most)
      for loss, name, number, peer in ((contrastive.nt_xent, "temperature", TAU, torch_nt_xent),
                                       (contrastive.clip_loss, "logit scale", SCALE, torch_clip))
      for c, most in ((0.9, 8),)),
    *(Case(f"{name} of {loss.__name__} in 8 batches, {c}", in_batches(loss, cone(c, 1024, views=views)), (number,) * 8,
           peer_in_batches(peer, cone(c, 1024, views=views)), most=most)
      for loss, name, number, peer, views in ((contrastive.nt_xent, "temperature", TAU, torch_nt_xent, 2),
                                              (contrastive.info_nce, "temperature", TAU, torch_info_nce, 3),
                                              (contrastive.clip_loss, "logit scale", SCALE, torch_clip, 2))
      for c, most in ((0.99, 88), (0.999, 1200), (0.99999, 200_000))),
    Case("info_nce, mean cosine 0.99", contrastive.info_nce, (*cone(0.99, views=3), TAU), torch_info_nce, most=900),
    Case("siglip, mean cosine 0.99", contrastive.siglip, (*cone(0.99), np.array(2.3), np.array(-10.0)), torch_siglip,
         most=500),
    *(Case(f"sup_con, mean cosine {c}", contrastive.sup_con, (cone(c)[0], TAU), torch_sup_con, {"labels": CLASSES},
           most=most) for c, most in ((0, 100), (0.9, 1500))),
    *(Case(f"dcl, {c}, not along an axis", contrastive.dcl, (*cone(c, along_an_axis=False), TAU), torch_dcl, most=most)
      for c, most in ((0.99, 40), (0.999, 40), (0.99999, 400))),
    Case("dcl, mean cosine 0.99", contrastive.dcl, (*cone(0.99), TAU), torch_dcl, most=40),
    *(Case(f"temperature of dcl in 8 batches, {name}", in_batches(contrastive.dcl, views), (TAU,) * 8,
           peer_in_batches(torch_dcl, views), most=most)
      for name, views, most in (("spread", cone(0, 1024), 6), ("4 clusters", clusters(), 30))),
    *(Case(f"uniformity_loss, {d} dimensions, t = {t}", contrastive.uniformity_loss, (normal(300, d),),
           lambda torch, z, t=t: torch_uniformity(torch, z, t), {"t": t}, most=80 if t == 2 else 20) for d in (2, 8, 33, 64) for t in (2, 20)),
    *(Case(f"uniformity_loss, mean cosine {c}", contrastive.uniformity_loss, (cone(c)[0],), torch_uniformity, most=most)
      for c, most in ((0, 60), (0.9, 30), (0.99, 30), (0.999, 60), (0.99999, 1500))),
    Case("uniformity_loss, 4 clusters in 128 dimensions", contrastive.uniformity_loss, (clusters(256, 128)[0],), torch_uniformity,
         most=30),
    Case("alignment_loss, cosine 0.99", contrastive.alignment_loss, cone(0.99), torch_alignment, most=100),
    Case("vicreg, mean cosine 0.99", contrastive.vicreg, cone(0.99), torch_vicreg, most=30),
    Case("barlow_twins, mean cosine 0.99", contrastive.barlow_twins, cone(0.99), torch_barlow_twins, most=150),
    *(Case(f"{loss.__name__} of rectified views", loss, rectified(), peer, most=most)
      for loss, peer, most in ((contrastive.vicreg, torch_vicreg, 6), (contrastive.barlow_twins, torch_barlow_twins, 60))),
]
CASES = OPS + LOSSES


def minicl_results(case, dtype):
    """[value, gradients...], computed in this dtype."""
    inputs = [Tensor(x.astype("float32").astype(dtype), requires_grad=True) if x.dtype.kind == "f" else x
              for x in map(np.asarray, case.inputs)]
    value = case.op(*inputs, **case.options)
    value.backward(_cotangent(value.shape).astype(dtype))
    return [value.data, *(x.grad for x in inputs if isinstance(x, Tensor))]


def torch_results(case, torch):
    inputs = [torch.tensor(x.astype("float32") if x.dtype.kind == "f" else x) for x in map(np.asarray, case.inputs)]
    floats = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    value = case.peer(torch, *inputs)
    value.backward(torch.tensor(_cotangent(tuple(value.shape))))
    return [value.detach().numpy(), *(x.grad.numpy() for x in floats)]


def _cotangent(shape):
    return np.asarray(1 + np.random.default_rng(5).standard_normal(shape), dtype="float32")


def error(case, results, exact):
    """The largest relative error of the value and the gradients, or the relative rms of case.result, in roundings."""
    if case.result is not None:
        got, right = results[case.result], exact[case.result]
        return float(np.linalg.norm(got - right) / np.linalg.norm(right)) / ROUNDING
    return max(float(np.abs(got - right).max() / np.abs(right).max()) for got, right in zip(results, exact)) / ROUNDING


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--check", action="store_true", help="exit code 1 if an error is more than twice PyTorch's")
    args = parser.parse_args(argv)
    try:
        import torch
    except ImportError:
        torch = None
    cases = [case for case in CASES if not args.words or any(word in case.name for word in args.words)]
    if not cases:
        parser.error(f"no case has {' or '.join(args.words)} in its name; there are {', '.join(case.name for case in CASES)}")
    print(f"{'case':46}{'minicl':>9}{'PyTorch':>9}{'ratio':>7}    roundings of 2^-24; {len(CASES)} cases")
    worse = 0
    for case in cases:
        exact = minicl_results(case, "float64")
        ours = error(case, minicl_results(case, "float32"), exact)
        line = ""
        if torch is not None and case.peer is not None:
            theirs = error(case, torch_results(case, torch), exact)
            line = f"{theirs:9.2f}{ours / theirs if theirs else float(ours > 0):7.2f}"
            worse += ours > 2 * max(theirs, 0.5)
        print(f"{case.name:46}{ours:9.2f}{line}")
    if torch is not None:
        print(f"{worse} cases with more than twice PyTorch's error")
    return 1 if args.check and worse else 0


if __name__ == "__main__":
    sys.exit(main())
