"""Training steps of every method on several processes agree with one process. Replicas are equal bit for bit.

    python steps.py [backend] [engine]

Prints {method: {name: the largest difference, relative to the largest entry}}, for some steps in float64 and one in
float32.
"""

import json
import sys

import numpy as np

from minicl import contrastive, get_backend, ops
from minicl.backend import to_device, to_host
from minicl.contrastive import clip_loss, info_nce_from_scores, nt_xent
from minicl.data import two_views
from minicl.data.augment import Compose, GaussianNoise, RandomAffine, RandomResizedCrop
from minicl.distributed import ALONE, get_world
from minicl.methods import BYOL, CLIP, CPC, MoCo, SimCLR, SimSiam, WindowEncoder, grad_cache
from minicl.nn import GRU, BagOfTokens, ConvNet, Dropout, Module, projection_head
from minicl.optim import LARS, SGD, AdamW

arguments = dict(enumerate(sys.argv[1:]))
world = get_world(arguments.get(0, "numpy"), arguments.get(1))
xp = get_backend(arguments.get(0, "numpy"))
B = 12 * world.size                                                          # images of the whole batch
DATA = np.random.default_rng(1)
IMAGES = DATA.random((5, B, 8, 8, 1))
TEXTS = DATA.integers(1, 20, (5, B, 4))
SEQUENCES = DATA.standard_normal((5, 12, B, 3))
AUGMENT = Compose([RandomResizedCrop(8), RandomAffine(), GaussianNoise()])


def network(rng, dropout=False):
    encoder = ConvNet((8, 8, 1), (8, 16), rng=rng)
    head = projection_head("mlp", encoder.features, hidden=16, dim=8, rng=rng)
    return encoder, WithDropout(head, rng) if dropout else head


class WithDropout(Module):
    def __init__(self, head, rng):
        self.head = head
        self.dropout = Dropout(0.2, rng=rng)

    def forward(self, h):
        return self.head(self.dropout(h))


def views_of(images, rng, w):
    return two_views(AUGMENT, to_device(images[w.part].astype(dtype), xp), rng, w)


def two_in_a_batch(loss):
    """The step of a method whose batch is [view1; view2]: loss(model, views, z, world)."""
    def step(model, k, rng, w):
        views = xp.concatenate(views_of(IMAGES[k], rng, w))
        return loss(model, views, model(views)[1], w)
    return step


def moco(model, k, rng, w):
    view1, view2 = views_of(IMAGES[k], rng, w)
    return model.loss(model(view1)[1], model.encode_keys(view2, rng), 0.2)


def moco_of_ids(model, k, rng, w):
    view1, view2 = views_of(IMAGES[k], rng, w)
    return model.loss(model(view1)[1], model.encode_keys(view2, rng), 0.2, ids=(np.arange(B) * (k + 3) % 7)[w.part])


def clip(model, k, rng, w):
    images, texts = to_device(IMAGES[k][w.part].astype(dtype), xp), to_device(TEXTS[k][w.part], xp)
    return clip_loss(*model(images, texts), model.logit_scale, world=w)


def cpc(model, k, rng, w):
    z, c = model(to_device(SEQUENCES[k][:, w.part].astype(dtype), xp))
    return sum(info_nce_from_scores(*model.scores(z, c, ahead), world=w) for ahead in (1, 2))


def cached(model, k, rng, w):
    """Gradient caching: grad_cache has already added the gradients, so the returned loss adds zeros."""
    x = to_device(IMAGES[k][w.part].astype(dtype).reshape(-1, 64), xp)
    L, _ = grad_cache(model, lambda z: nt_xent(z, z * z, 0.2, world=w), x, chunk=5)
    return L + ops.mul(model.parameters()[0], 0.0).sum()


def predictor(rng):
    return projection_head("mlp", 8, hidden=8, dim=8, rng=rng)


def cpc_model(rng):
    encoder = WindowEncoder(3, 3, rng=rng)
    return CPC(encoder, GRU(encoder.features, 16, rng=rng), 2, rng=rng)


NT_XENT = two_in_a_batch(lambda model, views, z, w: nt_xent(z[:len(z) // 2], z[len(z) // 2:], 0.2, world=w))
OTHER = {name: two_in_a_batch(lambda model, views, z, w, loss=getattr(contrastive, name):
                              loss(z[:len(z) // 2], z[len(z) // 2:], world=w)) for name in ("vicreg", "barlow_twins")}
METHODS = {                                                                  # name: (model of an rng, step, optimizer)
    "SimCLR": (lambda rng: SimCLR(*network(rng)), NT_XENT, AdamW),
    "SimCLR, dropout, LARS": (lambda rng: SimCLR(*network(rng, dropout=True)), NT_XENT, LARS),
    "MoCo": (lambda rng: MoCo(*network(rng), dim=8, queue=2 * B + 2, m=0.9, splits=2 * world.size), moco, SGD),
    "MoCo, one group": (lambda rng: MoCo(*network(rng), dim=8, queue=2 * B + 2, m=0.9, splits=1), moco, SGD),
    "MoCo, ids": (lambda rng: MoCo(*network(rng), dim=8, queue=2 * B + 2, m=0.9, splits=world.size), moco_of_ids, SGD),
    "CLIP": (lambda rng: CLIP(ConvNet((8, 8, 1), (8, 16), rng=rng), BagOfTokens(20, 16, rng=rng), 8, rng=rng), clip, AdamW),
    "BYOL": (lambda rng: BYOL(*network(rng), predictor(rng)),
             two_in_a_batch(lambda model, views, z, w: model.loss(z, model.targets(views))), SGD),
    "SimSiam": (lambda rng: SimSiam(*network(rng), predictor(rng)),
                two_in_a_batch(lambda model, views, z, w: model.loss(z)), SGD),
    "CPC": (cpc_model, cpc, AdamW),
    "VICReg": (lambda rng: SimCLR(*network(rng)), OTHER["vicreg"], SGD),
    "Barlow Twins": (lambda rng: SimCLR(*network(rng)), OTHER["barlow_twins"], SGD),
    "gradient caching": (lambda rng: projection_head("linear", 64, dim=8, rng=rng), cached, SGD),
}


def train(name, w, steps):
    """Train a method and return (losses, gradients of each step, last state). Replicas must be equal at each step."""
    make, step, optimizer = METHODS[name]
    model = make(np.random.default_rng(0)).to(xp).astype(dtype).across(w)
    optimizer = optimizer(model, 1e-3)
    rng = np.random.default_rng(2)
    losses = []
    gradients = []
    for k in range(steps):
        optimizer.zero_grad()
        loss = step(model, k, rng, w)
        loss.backward()
        optimizer.step()
        for update in ("update", "clamp_logit_scale"):
            if hasattr(type(model), update):
                getattr(model, update)()
        losses.append(loss.item())
        gradients.append(np.array(to_host(optimizer.grads)))
        state = {**model.state_dict(), **{f"optimizer {key}": x for key, x in optimizer.state_dict().items()}}
        assert w.alike(losses[-1], *state.values(), rng.bit_generator.state["state"]["state"] % 2**60), (name, k)
    return losses, gradients, state


def difference(got, expected):
    got, expected = np.asarray(got, "float64"), np.asarray(expected, "float64")
    assert got.shape == expected.shape and np.isfinite(got).all() and np.isfinite(expected).all()
    return float(np.abs(got - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-300))


results = {}
for dtype in ("float64", "float32"):
    for name in METHODS:
        steps = 1 if dtype == "float32" else 5 if name in ("SimCLR", "MoCo", "CLIP") else 3
        expected, got = train(name, ALONE, steps), train(name, world, steps)
        results[f"{name}, {dtype}"] = {
            "loss": difference(got[0], expected[0]), "gradient": difference(got[1], expected[1]),
            "state": max(difference(x, expected[2][key]) for key, x in got[2].items())}
if world.rank == 0:
    print(json.dumps({"size": world.size, "engine": type(world).__name__, "results": results}))
