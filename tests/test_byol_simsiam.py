"""BYOL and SimSiam: their losses, their stop-gradients, and collapse without them."""

import numpy as np
import pytest

from minicl import Tensor, nn, no_grad
from minicl.backend import to_device, to_host
from minicl.contrastive import alignment_loss, l2_normalize, negative_cosine
from minicl.evaluate import embedding_std
from minicl.methods import BYOL, MoCo, SimSiam
from minicl.methods.simsiam import other_view
from minicl.optim import SGD, Adam


@pytest.mark.parametrize("wrong", ["swapped", "detached", "under no_grad", "targets with a gradient"])
def test_a_loss_that_would_not_train_the_encoder_is_refused(wrong, rng):
    model = BYOL(nn.Linear(3, 4, rng=rng), nn.Linear(4, 2, rng=rng), nn.Linear(2, 2, rng=rng))
    x = rng.standard_normal((6, 3)).astype("float32")
    z, targets = model(x)[1], model.targets(x)
    model.loss(z, targets)
    with no_grad():
        model.loss(model(x)[1], targets)                     # an evaluation
        constant = model(x)[1]
    given = {"swapped": (targets, z), "detached": (z.detach(), targets), "under no_grad": (constant, targets),
             "targets with a gradient": (z, z)}[wrong]
    with pytest.raises(ValueError, match="BYOL.loss: expected z of the online network, with a gradient, and targets without"):
        model.loss(*given)
    model.online.freeze()
    model.loss(model(x)[1], targets)                         # the predictor alone is trained


def parts(rng, d=4):
    """Encoder, head and predictor for images (B, 4, 4, 1)."""
    encoder = nn.MLP((4, 4, 1), (12, 8), rng=rng)
    return (encoder, nn.projection_head("mlp", 8, hidden=8, dim=d, rng=rng),
            nn.projection_head("mlp", d, hidden=8, dim=d, rng=rng))


def pair_of_views(rng, xp, n=6):
    return to_device(rng.random((2 * n, 4, 4, 1), dtype="float32"), xp)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---------------------------------------------------------------- the losses

def test_simsiams_loss_is_the_mean_of_both_directions(xp, rng):
    model = SimSiam(*parts(rng)).to(xp)
    h, z = model(pair_of_views(rng, xp))
    p, u = unit(to_host(model.predictor(z).data)), unit(to_host(z.data))
    first, second = -(p[:6] * u[6:]).sum(axis=1).mean(), -(p[6:] * u[:6]).sum(axis=1).mean()
    assert (h.shape, z.shape) == ((12, 8), (12, 4))
    assert model.loss(z).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_byols_loss_is_two_minus_twice_the_cosine_with_the_target_of_the_other_view(xp, rng):
    model = BYOL(*parts(rng)).to(xp)
    views = pair_of_views(rng, xp)
    z = model(views)[1]
    target = model.targets(views)
    p, t = unit(to_host(model.predictor(z).data)), unit(to_host(target.data))
    cosines = (p * np.concatenate([t[6:], t[:6]])).sum(axis=1)
    assert model.loss(z, target).item() == pytest.approx(2 - 2 * cosines.mean(), abs=1e-6)


def test_the_target_is_a_constant_for_the_gradient(rng):
    """The gradient of every weight equals that of SimSiam's loss with a copy of the target's values as target."""
    model = SimSiam(*parts(rng))
    views = pair_of_views(rng, np)
    grads = []
    for target in (None, Tensor(other_view(model(views)[1]).data.copy())):
        for parameter in model.parameters():
            parameter.grad = None
        z = model(views)[1]
        loss = model.loss(z) if target is None else 0.5 * alignment_loss(model.predictor(z), target)
        loss.backward()
        grads.append([parameter.grad.copy() for parameter in model.parameters()])
    for stopped, constant in zip(*grads):
        np.testing.assert_allclose(stopped, constant, atol=1e-6)


def test_other_view_needs_both_views():
    z = Tensor(np.arange(8.0).reshape(4, 2))
    np.testing.assert_array_equal(other_view(z).data, z.data[[2, 3, 0, 1]])
    with pytest.raises(ValueError, match=r"two views of each image, \[view1; view2\] in one batch, got 3 rows"):
        other_view(z[:3])


# ---------------------------------------------------------------- BYOL's target

def test_the_target_starts_as_the_online_network_and_is_not_a_parameter(rng):
    model = BYOL(*parts(rng))
    online, target = model.online.state_dict(), model.target.state_dict()
    assert online.keys() == target.keys()
    assert all(np.array_equal(online[name], target[name]) for name in online)
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("target") for name in names)
    assert any(name.startswith("predictor") for name in names)


def test_the_target_gets_no_gradient_and_moves_only_by_its_momentum(xp, rng):
    model = BYOL(*parts(rng), m=0.9).to(xp)
    optimizer = SGD(model, 0.1, momentum=0.9)
    views = pair_of_views(rng, xp)
    before, start = model.target.state_dict(), model.online.state_dict()
    optimizer.zero_grad()
    model.loss(model(views)[1], model.targets(views)).backward()
    optimizer.step()
    assert all(np.array_equal(before[name], array) for name, array in model.target.state_dict().items())
    model.update()
    online, after = model.online.state_dict(), model.target.state_dict()
    assert any(not np.array_equal(start[name], online[name]) for name in online)
    for name in before:
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * online[name], atol=1e-6, err_msg=name)


def test_update_is_refused_in_evaluation_mode(rng):
    model = BYOL(*parts(rng))
    model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model.update()


def test_a_target_that_never_moves_is_refused(rng):
    with pytest.raises(ValueError, match=r"BYOL: m must be a number in \[0, 1\), got 1"):
        BYOL(*parts(rng), m=1)


# ---------------------------------------------------------------- collapse

def test_embedding_std_is_0_in_a_collapse_and_near_1_on_the_whole_sphere(xp, rng):
    z = to_device(rng.standard_normal((2000, 16)), xp)
    assert embedding_std(xp.ones((8, 16))) == pytest.approx(0, abs=1e-12)
    assert 0.98 < embedding_std(z) <= 1 and embedding_std(z * 7) == pytest.approx(embedding_std(z), rel=1e-12)
    assert embedding_std(z * to_device(np.eye(16)[0], xp)) == pytest.approx(1 / 4, rel=0.01)      # one of 16 directions


def spread_after(loss_of, seed=0, steps=300):
    """embedding_std(z) after training a linear encoder and a predictor on noisy pairs of 64 points."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((64, 16)).astype("float32")
    model = SimSiam(nn.Linear(16, 16, rng=rng), nn.Sequential(),
                    nn.projection_head("mlp", 16, hidden=8, dim=16, rng=rng))
    optimizer = Adam(model, 3e-2)
    for _ in range(steps):
        noise = 0.5 * rng.standard_normal((2, 64, 16)).astype("float32")
        z = model(np.concatenate([points + noise[0], points + noise[1]]))[1]
        optimizer.zero_grad()
        loss_of(model, z).backward()
        optimizer.step()
    return embedding_std(model(points)[1].data)


def without_stop_gradient(model, z):
    """SimSiam's loss with the target on the tape."""
    p, t = l2_normalize(model.predictor(z)), l2_normalize(other_view(z))
    return -(p * t).sum(axis=1).mean()


def test_without_the_stop_gradient_simsiam_collapses():
    assert spread_after(without_stop_gradient) < 0.1
    assert spread_after(lambda model, z: model.loss(z)) > 0.9


def test_without_the_predictor_too_only_alignment_is_left_and_it_collapses():
    assert spread_after(lambda model, z: alignment_loss(z, other_view(z))) < 0.01
    assert spread_after(lambda model, z: negative_cosine(z, other_view(z))) < 0.1


# ---------------------------------------------------------------- a forgotten update()

def byol_and_moco(rng):
    encoder, head, predictor = parts(rng)
    return {"BYOL": BYOL(encoder, head, predictor), "MoCo": MoCo(*parts(rng)[:2], dim=4, queue=24, splits=1)}


@pytest.mark.parametrize("kind", ["BYOL", "MoCo"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("losses, updates, warned", [
    (1, lambda step: True, False), (3, lambda step: True, False), (1, lambda step: False, True), (1, lambda step: step != 1, True),
    (2, lambda step: step != 2, True),
])
def test_a_forgotten_update_gives_a_warning(rng, kind, frozen, losses, updates, warned):
    """Neither several losses before one optimizer step nor frozen layers count as a forgotten update."""
    model = byol_and_moco(rng)[kind]
    optimizer = SGD(model, 0.01)
    if frozen:
        model.encoder.freeze()

    def train():
        for step in range(4):
            for _ in range(losses):
                x = pair_of_views(rng, np, 2)
                z = model(x)[1]
                loss = model.loss(z, model.targets(x)) if kind == "BYOL" else model.loss(z, model.encode_keys(x, rng), 0.2)
                loss.backward()
            optimizer.step()
            if updates(step):
                model.update()

    if warned:
        with pytest.warns(UserWarning, match="update.. was not called: the online network has changed .* call model.update"):
            train()
    else:
        train()
