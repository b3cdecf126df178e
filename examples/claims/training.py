"""What the trained claims share: small digits, a small encoder and head, the training loop, and frozen features.

    data = digits(setting)
    model = SimCLR(*encoder_and_head(data, setting)).to(setting.xp)
    curve = train(model, contrastive(tau=0.2), data.train_images, setting, steps=400)
    accuracies = frozen_accuracies(model, data, setting.xp)[0]                # knn_h, knn_z, probe_h, probe_z

400 steps take some 8 seconds of one core: digits of 14 x 14 pixels, three narrow convolutions.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from minicl.contrastive import nt_xent
from minicl.data import Batches, mnist_views, two_views
from minicl.evaluate import encode, to_float
from minicl.nn import ConvNet, projection_head
from minicl.optim import AdamW, warmup_cosine


def digits(setting, train=(2000, 10_000, 60_000), test=(500, 5000, 10_000)):
    """ImageData of digits at half the resolution, (14, 14, 1); train, test: how many at each size."""
    data = setting.images(setting.pick(*train), setting.pick(*test))
    return replace(data, train_images=halve(data.train_images), test_images=halve(data.test_images))


def halve(images):
    """Means over 2 x 2 pixels: uint8 (N, H, W, C) -> (N, H/2, W/2, C)."""
    N, H, W, C = images.shape
    return images.reshape(N, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4)).round().astype(np.uint8)


def encoder_and_head(data, setting, *, head="mlp", hidden=128, dim=64, channels=(16, 32, 64)):
    """A ConvNet for the images of `data` and a projection head of one of nn.HEADS, on the host, from setting.seed."""
    rng = np.random.default_rng(setting.seed)
    encoder = ConvNet(data.train_images.shape[1:], channels, rng=rng)
    return encoder, projection_head(head, encoder.features, hidden=hidden, dim=dim, rng=rng)


def frozen_features(model, data, setting):
    """model's outputs for the training and for the test images, as evaluate.encode gives them."""
    return [encode(model, images, setting.xp) for images in (data.train_images, data.test_images)]


def embed_views(model, data, setting):
    """z of two views of each test image, arrays (n, d) both."""
    views = two_views(mnist_views(), to_float(data.test_images, setting.xp), np.random.default_rng([setting.seed, 3]))
    return [encode(model, view, setting.xp, prepare=lambda x, xp: x)[1] for view in views]


def contrastive(tau=0.2, loss=nt_xent):
    """SimCLR's objective for train(): a loss of z of both views, in one batch."""
    def objective(model, view1, view2, xp):
        _, z = model(xp.concatenate([view1, view2]))                         # (2N, d)
        N = len(view1)
        return loss(z[:N], z[N:], tau), z.data

    return objective


def descend(model, objective, n, setting, *, steps, batch, lr, weight_decay=0.0):
    """AdamW with a warm-up and a cosine decay of the rate; yields (step, loss, z) after each step.

    objective(chosen)  -> (loss, a Tensor (); z, whatever the caller wants to see) of the examples with ids chosen
                       (batch,), of n
    A model with update() (MoCo, BYOL) has it called after each step. The order follows from setting.seed.
    """
    setting.trained.add((steps, batch, n))
    batches = Batches(n, batch, seed=setting.seed)
    optimizer = AdamW(model, lr, weight_decay=weight_decay)
    for step in range(steps):
        setting.status = f"step {step} of {steps}"
        loss, z = objective(batches[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(warmup_cosine(step, total=steps, peak=lr, warmup=steps // 10))
        if hasattr(model, "update"):
            model.update()
        yield step, loss, z
    setting.status = "evaluating"


def train(model, objective, images, setting, *, steps, batch=256, lr=5e-3, weight_decay=1e-4,
          views=partial(two_views, mnist_views()), watch=None, points=40):
    """Train a model without labels on uint8 images (n, H, W, C) -> the curve {"step", "loss", ...: a list each}.

    objective(model, view1, view2, xp)  -> (loss, a Tensor (); z, an array for watch)
    views(images, rng)                  -> view1, view2 of float images (N, H, W, C); default: those of digits
    watch(z)                            -> {name: number} for the curve; points: how many of them, evenly spaced
    Order, views and weights follow from setting.seed. Raises FloatingPointError if the loss is no longer finite.
    """
    xp = setting.xp
    rng = np.random.default_rng([setting.seed, 1])
    logged = set(np.linspace(0, steps - 1, min(points, steps)).round().astype(int).tolist())
    curve = {}

    def on_views(chosen):
        return objective(model, *views(to_float(images[chosen], xp), rng), xp)

    for step, loss, z in descend(model, on_views, len(images), setting, steps=steps, batch=batch, lr=lr,
                                 weight_decay=weight_decay):
        if step in logged:
            metrics = {"step": step, "loss": loss.item(), **(watch(z) if watch else {})}
            if not np.isfinite(metrics["loss"]):
                raise FloatingPointError(f"the loss is {metrics['loss']} at step {step}; lower lr or raise tau")
            for name, value in metrics.items():
                curve.setdefault(name, []).append(value)
    return curve
