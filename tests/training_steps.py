"""One training step of each method, with the encoders and augmentations of the examples and a small batch.

    step = STEPS["SimCLR"](xp)
    loss = step()                       a Tensor whose value has not been read
"""

import numpy as np

from captioned_digits import LENGTH, CaptionedDigits
from minicl import nn
from minicl.backend import to_device
from minicl.contrastive import clip_loss, info_nce_from_scores, nt_xent
from minicl.data import mnist_views, same_caption_ids, simclr_views, two_views
from minicl.evaluate import to_float
from minicl.methods import BYOL, CLIP, CPC, MoCo, SimCLR, SimSiam, WindowEncoder
from minicl.optim import LARS, SGD, AdamW
from sequences import time_first

N = 16                                                       # images per batch
GREY, COLOUR = (28, 28, 1), (32, 32, 3)


def encoder_and_head(shape, rng):
    encoder = nn.ConvNet(shape, rng=rng)
    return encoder, nn.projection_head("mlp", encoder.features, hidden=256, dim=128, rng=rng)


def predictor(rng):
    return nn.projection_head("mlp", 128, hidden=64, dim=128, rng=rng)


def training(model, optimizer, draw, loss_of, rng, after=lambda: None):
    """A function that takes one step on inputs from draw(). Its .on(*inputs, lr) takes a step on given inputs."""
    def on(*inputs):
        *inputs, lr = inputs
        loss = loss_of(*inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(lr)
        after()
        return loss

    def step():
        return on(*draw(), None)

    step.on, step.draw, step.model, step.optimizer, step.rng = on, draw, model, optimizer, rng
    return step


def on_views(model, optimizer, loss_of, augment, shape, rng, xp, after=lambda: None):
    """training() on two views of images of this shape."""
    def draw():
        return [rng.integers(0, 256, (N, *shape), dtype=np.uint8)]

    return training(model, optimizer, draw, lambda images: loss_of(model, *two_views(augment, to_float(images, xp), rng)), rng,
                    after)


def simclr(xp, *, colour=False, optimizer=lambda model: AdamW(model, 1e-3, weight_decay=1e-4)):
    rng = np.random.default_rng(0)
    shape = COLOUR if colour else GREY
    model = SimCLR(*encoder_and_head(shape, rng)).to(xp)

    def loss(model, view1, view2):
        _, z = model(xp.concatenate([view1, view2]))
        return nt_xent(z[:len(view1)], z[len(view1):], 0.2)

    augment = simclr_views() if colour else mnist_views()
    return on_views(model, optimizer(model), loss, augment, shape, rng, xp)


def moco(xp):
    rng = np.random.default_rng(0)
    model = MoCo(*encoder_and_head(GREY, rng), dim=128, queue=64).to(xp)

    def loss(model, view1, view2):
        _, queries = model(view1)
        return model.loss(queries, model.encode_keys(view2, rng), 0.2)

    return on_views(model, AdamW(model, 1e-3), loss, mnist_views(), GREY, rng, xp, model.update)


def byol(xp):
    rng = np.random.default_rng(0)
    model = BYOL(*encoder_and_head(GREY, rng), predictor(rng)).to(xp)

    def loss(model, view1, view2):
        views = xp.concatenate([view1, view2])
        return model.loss(model(views)[1], model.targets(views))

    return on_views(model, AdamW(model, 1e-3), loss, mnist_views(), GREY, rng, xp, model.update)


def simsiam(xp):
    rng = np.random.default_rng(0)
    model = SimSiam(*encoder_and_head(GREY, rng), predictor(rng)).to(xp)

    def loss(model, view1, view2):
        return model.loss(model(xp.concatenate([view1, view2]))[1])

    return on_views(model, AdamW(model, 1e-3), loss, mnist_views(), GREY, rng, xp)


def clip(xp):
    rng = np.random.default_rng(0)
    dataset = CaptionedDigits()
    text = nn.Transformer(dataset.tokenize.size, LENGTH, depth=1, rng=rng)
    model = CLIP(nn.ConvNet(COLOUR, (32, 64, 128, 128), strides=(2, 2, 2, 1), rng=rng), text, rng=rng).to(xp)

    def draw():
        digits, labels = rng.integers(0, 256, (N, *GREY), dtype=np.uint8), rng.integers(0, 10, N)
        images, attributes = dataset.render(digits, labels, rng)
        ids = dataset.tokenize(dataset.caption(attributes, rng))
        return images, np.pad(ids, [(0, 0), (0, LENGTH - ids.shape[1])]), same_caption_ids(ids)      # to one shape

    def loss(images, ids, same):
        image, text = model(to_float(images, xp), to_device(ids, xp))
        return clip_loss(image, text, model.logit_scale, caption_ids=to_device(same, xp))

    return training(model, AdamW(model, 1e-3, weight_decay=0.05), draw, loss, rng, model.clamp_logit_scale)


def cpc(xp):
    rng = np.random.default_rng(0)
    ahead = 3
    model = CPC(WindowEncoder(4, 4, rng=rng), nn.GRU(32, 64, rng=rng), ahead, rng=rng).to(xp)

    def draw():
        return [time_first(rng.standard_normal((N, 32, 4), dtype="float32"), xp)]

    def loss(sequences):
        z, c = model(sequences)
        return sum(info_nce_from_scores(*model.scores(z, c, k), 1.0) for k in range(1, ahead + 1)) * (1 / ahead)

    return training(model, AdamW(model, 1e-3), draw, loss, rng)


STEPS = {
    "SimCLR": simclr,
    "SimCLR in colour, SGD": lambda xp: simclr(xp, colour=True, optimizer=lambda model: SGD(model, 0.1, momentum=0.9)),
    "SimCLR, LARS": lambda xp: simclr(xp, optimizer=lambda model: LARS(model, 0.1)),
    "MoCo": moco, "CLIP": clip, "CPC": cpc, "BYOL": byol, "SimSiam": simsiam,
}
