"""A write by minicl into an array is detected in the backward of views of the array, and does not affect copies."""

import copy

import numpy as np
import pytest

from minicl import Tensor, check_inputs, contrastive, nn, no_grad, ops, optim
from minicl.backend import array_module
from minicl.methods.ema import EMA, frozen_copy
from minicl.methods.queue import Queue


def off_the_tape(view):
    def of(w):
        with no_grad():
            return view(w)
    return of


def of_frozen(view):
    def of(w):
        w.requires_grad = False
        out = view(w)
        w.requires_grad = True
        return out
    return of


VIEWS = {
    "itself": lambda w: w,
    "detach": lambda w: w.detach(),
    "detach of a view": lambda w: w.T.detach(),
    "no_grad": off_the_tape(lambda w: w.reshape(-1)),
    "no_grad, a part": off_the_tape(lambda w: w[1:, ::2]),
    "frozen": of_frozen(lambda w: w.T),
    "Tensor of data": lambda w: Tensor(w.data),
    "array": lambda w: w.data,
    "array, a part": lambda w: w.data[:, 1],
}
COPIES = {
    "shallow copy": copy.copy,
    "array": lambda w: w.data.copy(),
    "no_grad": off_the_tape(lambda w: w * 1.0),
    "deep copy": copy.deepcopy,
    "rows": lambda w: w.detach()[array_module(w.data).array([0, 1])],
}


def by_optimizer(kind):
    def prepare(model):
        optimizer = kind(model, lr=0.1)

        def write():
            optimizer.grads[...] = 1
            optimizer.step()
        return model.second.weight, write
    return prepare


def by_load(model):
    return model.second.weight, lambda: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})


def by_ema(model):
    target = frozen_copy(model)
    ema = EMA(model, target)
    ema.update(0.5)
    model.second.weight.data[...] += 1
    return target.second.weight, lambda: ema.update(0.5)


def by_assignment(model):
    def write():
        model.second.weight.data *= 2
    return model.second.weight, write


WRITERS = {"SGD": by_optimizer(optim.SGD), "AdamW": by_optimizer(optim.AdamW), "LARS": by_optimizer(optim.LARS),
           "load_state_dict": by_load, "EMA": by_ema, "data *= 2": by_assignment}


class Net(nn.Module):
    def __init__(self, rng):
        self.first, self.second, self.third = (nn.Linear(3, 3, rng=rng) for _ in range(3))


def loss_of(view, q):
    return (Tensor(array_module(q.data).ones(1, "float32")) * q * view).sum()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_write_between_forward_and_backward_is_detected_through_views(writer, view, xp):
    part, write = WRITERS[writer](Net(np.random.default_rng(0)).to(xp))
    q = Tensor(xp.ones(1, "float32"), requires_grad=True)
    loss = loss_of(VIEWS[view](part), q)
    write()
    with pytest.raises(RuntimeError, match="was changed by"):
        loss.backward()
    loss = loss_of(VIEWS[view](part), q)                                     # a new forward is right again
    loss.backward()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("other", COPIES)
def test_a_write_does_not_affect_copies(writer, other, xp):
    part, write = WRITERS[writer](Net(np.random.default_rng(0)).to(xp))
    q = Tensor(xp.ones(1, "float32"), requires_grad=True)
    loss = loss_of(COPIES[other](part if other != "rows" else Tensor(part.data.copy())), q)
    value = loss.item()
    write()
    loss.backward()
    assert float(q.grad.sum()) == pytest.approx(value, rel=1e-6)


def test_views_on_a_device_have_one_base(xp):
    x = xp.zeros((4, 3), dtype="float32")
    assert x.base is None and all(view.base is x for view in (x[1:], x.T, x[1:].T[0], x.reshape(-1)))
    part = xp.ones(8, dtype="float32")[2:]
    assert part.base is part[1:].base is not None and part.copy().base is None


def test_a_frozen_neighbour_in_the_optimizers_buffer_is_not_touched():
    model = Net(np.random.default_rng(0))
    optimizer = optim.SGD(model, lr=0.1)
    model.first.freeze()
    q = Tensor(np.ones(1, "float32"), requires_grad=True)
    loss = loss_of(model.first.weight, q) + loss_of(model.first.weight.T, q)
    optimizer.grads[...] = 1
    optimizer.step()
    loss.backward()


def test_freezing_is_not_a_write():
    model = Net(np.random.default_rng(0))
    optimizer = optim.SGD(model, lr=0.1)
    optimizer.grads[...] = 1
    optimizer.step()
    q = Tensor(np.ones(1, "float32"), requires_grad=True)
    loss = loss_of(model.first.weight.detach(), q)
    model.first.freeze()
    loss.backward()


@pytest.mark.parametrize("view", [Queue.negatives, Queue.filled, lambda queue: queue.keys.data])
def test_writes_into_a_queue_are_detected(view):
    rng = np.random.default_rng(0)
    for write in (lambda queue: queue.enqueue(rng.standard_normal((2, 3), dtype="float32")),
                  lambda queue: queue.load_state_dict(queue.state_dict())):
        queue = Queue(4, 3)
        queue.enqueue(rng.standard_normal((4, 3), dtype="float32"))
        q = Tensor(rng.standard_normal((2, 3), dtype="float32"), requires_grad=True)
        loss = contrastive.info_nce(q, q.data + 1, view(queue), 0.5)
        write(queue)
        with pytest.raises(RuntimeError, match="was changed by"):
            loss.backward()


ids = np.array([0, 1, 0, 1])
rows = np.array([2, 0])
bools = np.ones((4, 4), bool)
ones = np.ones(4, "float32")
OPTIONS = {
    "key": (rows, lambda x, a: x[a]),
    "key in a tuple": (rows, lambda x, a: x[a, 1:]),
    "mask": (bools, lambda x, a: ops.attention(x, x, x, mask=a)),
    "condition": (bools, lambda x, a: ops.where(a[:, :3], x, 0.0)),
    "ids": (ids, lambda x, a: ops.embedding(a, x)),
    "labels": (ids, lambda x, a: contrastive.sup_con(x, 0.5, labels=a)),
    "clip_loss": (ids, lambda x, a: contrastive.clip_loss(x, x * 2.0, 1.0, caption_ids=a)),
    "siglip": (ids, lambda x, a: contrastive.siglip(x, x * 2.0, 1.0, 0.0, caption_ids=a)),
    "weights": (ones, lambda x, a: contrastive.dcl(x, x * 2.0, 0.5, weights=a)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_check_inputs_also_protects_arrays_in_options(option):
    array, op = OPTIONS[option]
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3), dtype="float32"), requires_grad=True)
    array = array.copy()
    with check_inputs():
        loss = op(x, array).sum()
        with pytest.raises(ValueError, match="read-only"):
            array[...] = array[::-1].copy()
        loss.backward()
    array[...] = 0


@pytest.mark.parametrize("switches", [(True,), (True, False)])
def test_writes_are_detected_after_a_view_switched_requires_grad(switches):
    layer = nn.Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = optim.SGD(layer, lr=0.5)
    detached = layer.weight.detach()
    for switch in switches:
        detached.requires_grad = switch
    other = Tensor(np.ones((3, 2), "float32"), requires_grad=True)
    y = (detached * other).sum()
    layer(np.ones((1, 3), "float32")).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"was changed by SGD.step\(\)"):
        y.backward()


def test_freezing_does_not_hide_an_earlier_write():
    layer = nn.Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = optim.SGD(layer, lr=0.5)
    view = Tensor(layer.weight.data, requires_grad=True)
    y = (view * view).sum()
    layer(np.ones((1, 3), "float32")).sum().backward()
    optimizer.step()
    layer.freeze()
    with pytest.raises(RuntimeError, match=r"was changed by SGD.step\(\)"):
        y.backward()
