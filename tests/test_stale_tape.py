"""If minicl changes an array between a forward and its backward, backward() raises instead of giving a wrong
gradient."""

import copy
import gc
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicl import Tensor, check_inputs, no_grad, op, ops, tensor
from minicl.contrastive import dcl, info_nce, l2_normalize
from minicl.methods import CLIP, EMA, MoCo, Queue, frozen_copy
from minicl.nn import MLP, BatchNorm, Buffer, Counter, Dropout, HostBuffer, Linear, Module, Parameter, Sequential, projection_head
from minicl.optim import LARS, SGD, Adam, AdamW

X = np.random.default_rng(3).standard_normal((6, 4)).astype("float32")


def model():
    rng = np.random.default_rng(0)
    return Sequential(Linear(4, 5, rng=rng), BatchNorm(5), Linear(5, 3, rng=rng))


def loss_of(net):
    y = net(X)
    return (y * y).sum()


def step_of(kind):
    def write(net):
        optimizer = kind(net, lr=0.1)
        loss_of(net).backward()
        return optimizer.step
    return write


WRITES = {
    "SGD.step()": step_of(SGD),
    "Adam.step()": step_of(Adam),
    "AdamW.step()": step_of(AdamW),
    "LARS.step()": step_of(LARS),
    "load_state_dict()": lambda net: lambda: net.load_state_dict(model().state_dict()),
    "Module.to() or astype()": lambda net: lambda: net.astype("float64"),
}


@pytest.mark.parametrize("by", WRITES)
def test_a_write_between_forward_and_backward_is_refused_and_changes_no_gradient(by):
    net = model()
    write = WRITES[by](net)
    loss = loss_of(net)
    write()
    before = [None if p.grad is None else p.grad.copy() for p in net.parameters()]
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    assert f"linear: its input w, steps.2.weight of shape (5, 3), was changed by {by}" in str(caught.value)
    for p, grad in zip(net.parameters(), before):
        np.testing.assert_array_equal(p.grad, grad)


@pytest.mark.parametrize("by", WRITES)
def test_a_write_before_the_forward_or_after_the_backward_is_allowed(by):
    net = model()
    write = WRITES[by](net)
    loss_of(net).backward()
    write()
    if "astype" not in by:
        loss_of(net).backward()


def test_an_optimizer_step_does_not_change_frozen_parameters():
    net = model()
    x = Tensor(X, requires_grad=True)
    for p in net[0].parameters():
        p.requires_grad = False
    optimizer = SGD(net, lr=0.1)
    loss_of(net).backward()
    loss = net[0](x).sum()                                   # depends only on frozen parameters
    optimizer.step()
    loss.backward()
    assert x.grad is not None


def test_a_change_of_frozen_weights_is_detected():
    """A gradient that passes through the weights of a target is also wrong after they have changed."""
    online = model()
    target = frozen_copy(online)
    ema = EMA(online, target)
    ema.update(0.5)
    x = Tensor(X, requires_grad=True)
    loss = (target(x) * target(x)).sum()
    ema.update(0.5)
    with pytest.raises(RuntimeError, match=r"steps.2.weight of shape .*, was changed by EMA.update\(\)"):
        loss.backward()


@pytest.mark.parametrize("read", [lambda bn: bn.running_var.data, lambda bn: Tensor(bn.running_var.data), lambda bn: bn.running_var.data[:2]])
@pytest.mark.parametrize("splits", [1, 2])
def test_running_averages_that_move_are_detected(read, splits):
    bn = BatchNorm(4, splits=splits)
    x = Tensor(X[:, :len(read(bn))], requires_grad=True)
    loss = (x * read(bn)).sum()
    bn(X)
    with pytest.raises(RuntimeError, match=r"mul: its input y, a view of running_var of shape .*, was changed by a BatchNorm in training"):
        loss.backward()
    bn.eval()
    (bn(x) if len(read(bn)) == 4 else x).sum().backward()
    loss = bn(Tensor(X, requires_grad=True)).sum()           # evaluation reads copies
    bn.train()(X)
    loss.backward()


def test_an_option_that_the_library_changes_is_detected(rng):
    queue = Queue(8, 3)
    queue.enqueue(keys := rng.standard_normal((8, 3)).astype("float32"), np.arange(8))
    p = Parameter(np.ones(4, "float32"))
    z1, z2, q, k = (Tensor(rng.standard_normal((n, 3)).astype("float32"), requires_grad=True) for n in (4, 4, 2, 2))
    by_ids = info_nce(q, k, queue.filled().copy(), 0.5, ids=np.array([1, 2]), negative_ids=queue.ids.data)
    by_weights = dcl(z1, z2, 0.5, weights=p.data)
    queue.enqueue(keys[:2], np.array([0, 1]))
    p.data = p.data * 2
    with pytest.raises(RuntimeError, match=r"info_nce: its input negative_ids, a view of the queue's ids of shape \(8,\), was changed by Q"):
        by_ids.backward()
    q.grad = None
    by_weights.backward()                                    # p has another array now
    optimizer = SGD([("p", p)], 0.1)
    by_weights = dcl(z1, z2, 0.5, weights=p.data)
    (p * p).sum().backward(), optimizer.step()
    with pytest.raises(RuntimeError, match=r"dcl: its input weights, a view of p of shape \(4,\), was changed by SGD.step"):
        by_weights.backward()


@pytest.mark.parametrize("given", [lambda g: g, Tensor, lambda g: g[1:], lambda g: g.T.T])
@pytest.mark.parametrize("write", ["zero_grad", "backward", "clip", "LARS"])
@pytest.mark.parametrize("owned", [True, False])
def test_a_gradient_in_a_loss_has_the_value_it_had_then(given, write, owned, rng):
    net = Linear(4, 3, rng=rng)
    optimizer = LARS(net, 0.1, momentum=0.0) if write == "LARS" else SGD(net, 0.1) if owned or write != "backward" else None
    (net(X) * net(X)).sum().backward()
    constant = given(net.weight.grad)
    expected = np.array(getattr(constant, "data", constant))
    x = Tensor(np.ones(expected.shape, "float32"), requires_grad=True)
    loss = (x * given(net.weight.grad)).sum()
    if write == "zero_grad":
        optimizer.zero_grad()
    elif write == "backward":
        net(X).sum().backward()
    else:
        optimizer.step(clip_grad_norm=1e-3 if write == "clip" else None)
    loss.backward()
    np.testing.assert_array_equal(x.grad, expected)


@op
def scaled(x, *, by):
    by = by[0] if isinstance(by, (list, tuple)) else by
    return x * by, lambda g: (g * by,)


@pytest.mark.parametrize("held", ["p.grad", "optimizer.grads", "a moment"])
@pytest.mark.parametrize("within", ["", "a list", "a tuple"])
@pytest.mark.parametrize("write", ["backward", "zero_grad", "step"])
def test_an_option_that_is_a_gradient_or_a_moment_keeps_its_value(held, within, write):
    p = Parameter(X.copy())
    optimizer = Adam([("p", p)], 0.1)
    (p * 2.0).sum().backward()
    array = {"p.grad": p.grad, "optimizer.grads": optimizer.grads.reshape(X.shape),
             "a moment": optimizer.state["m"].reshape(X.shape)}[held]
    before = array.copy()
    x = Tensor(X, requires_grad=True)
    loss = scaled(x, by={"": array, "a list": [array], "a tuple": (array,)}[within]).sum()
    {"backward": lambda: (p * 3.0).sum().backward(), "zero_grad": optimizer.zero_grad, "step": optimizer.step}[write]()
    loss.backward()
    np.testing.assert_array_equal(x.grad, before)


HELD = {
    "Tensor(p.grad)": lambda p: Tensor(p.grad),
    "Parameter(p.grad)": lambda p: Parameter(p.grad),
    "Buffer(p.grad)": lambda p: Buffer(p.grad),
    "Tensor.data = p.grad": lambda p: assigned(Tensor(np.ones_like(X)), "data", p.grad),
    "Buffer.data = p.grad": lambda p: assigned(Buffer(np.ones_like(X)), "data", p.grad),
    "Tensor.grad = p.grad": lambda p: assigned(Tensor(X, requires_grad=True), "grad", p.grad),
}


def assigned(thing, attribute, value):
    setattr(thing, attribute, value)
    return thing


@pytest.mark.parametrize("hold", HELD)
@pytest.mark.parametrize("made", ["backward", "assigned", "in place", "an optimizer"])
@pytest.mark.parametrize("write", ["backward", "zero_grad"])
def test_a_gradient_that_is_held_keeps_its_value(hold, made, write):
    if write == "zero_grad" and made != "an optimizer":
        pytest.skip("zero_grad() writes into an optimizer's gradients")
    p = Parameter(X.copy())
    optimizer = SGD([("p", p)], 0.1) if made == "an optimizer" else None
    (p * 2.0).sum().backward()
    if made == "assigned":
        p.grad = np.clip(p.grad, -1, 1)
    elif made == "in place":
        p.grad *= 0.5
    held = HELD[hold](p)
    values = held.grad if hold.startswith("Tensor.grad") else held.data
    before = values.copy()
    (p * 3.0).sum().backward() if write == "backward" else optimizer.zero_grad()
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("owner", [lambda net: SGD(net, 0.1), lambda net: EMA(net, frozen_copy(net))], ids=["SGD", "EMA"])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:], lambda x: x.T.T])
def test_data_assigned_from_a_model_that_is_trained_do_not_move_with_it(owner, view):
    net, other = (Linear(4, 3, rng=np.random.default_rng(seed)) for seed in range(2))
    moves = owner(net)
    if isinstance(moves, EMA):
        moves.update(0.5)
    source = moves.pairs[0][1] if isinstance(moves, EMA) else net.weight
    buffer = Buffer(view(source.data))
    other.weight.data = view(source.data)
    before = source.data.copy()
    source.data *= 2                                         # in place, as the owner's next step
    assert (source.data == 2 * before).all()
    assert (other.weight.data == before).all() and (buffer.data == before).all()
    if isinstance(moves, EMA):
        moves.update(0.5)                                    # it still has its arrays
    else:
        moves.zero_grad()


def assigned_data(thing, data):
    thing.data = data
    return thing


OWN = {"Parameter(p.data)": Parameter, "Buffer(p.data)": Buffer, "Parameter.data": lambda x: assigned_data(Parameter(X.copy()), x),
       "Buffer.data": lambda x: assigned_data(Buffer(X.copy()), x), "Tensor.data": lambda x: assigned_data(Tensor(X.copy()), x)}


@pytest.mark.parametrize("of", ["Parameter", "Buffer", "an array given to two"])
@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:], lambda x: x.T.T])
def test_a_part_shares_its_memory_with_no_other_part(of, how, view):
    array = X.copy()
    first = Buffer(array) if of == "Buffer" else Parameter(array)
    second = OWN[how](view(array if of == "an array given to two" else first.data))
    assert first.data is array                               # of the caller, who may go on using it
    first.data *= 2
    np.testing.assert_array_equal(second.data, X)
    second.data *= 3
    np.testing.assert_array_equal(first.data, 2 * X)
    third = Tensor(view(first.data))                         # but a Tensor is a view, as detach() is
    assert np.shares_memory(third.data, first.data)


@pytest.mark.parametrize("exchange", [lambda x: np.frombuffer(memoryview(x).cast("B"), dtype="float32").reshape(x.shape),
                                      lambda x: np.asarray(memoryview(x)), np.from_dlpack])
def test_memory_of_another_library_is_copied(exchange):
    """No owner of such memory is known, as of a PyTorch Tensor's, so two parts could share it."""
    array = X.copy()
    for part in (Parameter(exchange(array)), Buffer(exchange(array)), assigned_data(Buffer(np.ones_like(X)), exchange(array))):
        assert not np.shares_memory(part.data, array)
        np.testing.assert_array_equal(part.data, X)


OF_COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda net: pickle.loads(pickle.dumps(net)), "frozen_copy": frozen_copy,
          "pickle 5": lambda net: pickle.loads(pickle.dumps(net, protocol=5)), "itself": lambda net: net,
          "deepcopy of a frozen_copy": lambda net: copy.deepcopy(frozen_copy(net)), "copy of a copy": lambda net: copy.deepcopy(copy.deepcopy(net))}


@pytest.mark.parametrize("how", OF_COPIES)
def test_memory_of_a_part_of_a_copy_is_copied(how):
    teacher = OF_COPIES[how](Sequential(*model().steps, Dropout(0.5, rng=np.random.default_rng(0))))
    for _, part in teacher.named_state():
        other = Buffer(part.data)
        assert not np.shares_memory(other.data, part.data)
        if not isinstance(part, HostBuffer):
            assigned_data(taker := Buffer(np.ones_like(part.data)), part.data)
            assert not np.shares_memory(taker.data, part.data)


def normalised(x):
    x.data /= 10
    return x


OUTPUT_WRITES = {
    "detach": lambda h: normalised(h.detach()), "Buffer": lambda h: normalised(Buffer(h.data)),
    "Parameter": lambda h: normalised(Parameter(h.data)), "leaf": lambda h: normalised(Tensor(h.data, requires_grad=True)),
    "a view": lambda h: normalised(h.detach()[1:]), "load_state_dict": lambda h: Bank(h.data).load_state_dict({"keys": h.data * 2}),
    "under no_grad": lambda h: normalised(viewed(h))}


class Bank(Module):
    def __init__(self, keys):
        self.keys = Buffer(keys)


def viewed(h):
    with no_grad():
        return h.reshape(-1)


@pytest.mark.parametrize("write", OUTPUT_WRITES)
@pytest.mark.parametrize("op", [ops.exp, ops.relu, l2_normalize, lambda x: x * x])
def test_a_write_to_the_output_of_an_op_is_detected(write, op):
    """Also where what has written is gone."""
    x = Tensor(X, requires_grad=True)
    h = op(x)
    loss = (h * h).sum()
    OUTPUT_WRITES[write](h)
    refused = pytest.raises(RuntimeError, match="its output of shape .* was changed by (an assignment to .data|load_state_dict)")
    with refused:
        loss.backward()
    h = op(x)                                                # written to before it is used
    OUTPUT_WRITES[write](h)
    with refused:
        (h * h).sum().backward()
    with refused:
        h.backward(np.ones_like(X))
    (h.detach() * x).sum().backward()


def twice(buffer):
    buffer.data *= 5
    buffer.data = buffer.data * 2


FORGOTTEN = {                                                # by a part that then dies, or gets other memory
    "a helper's detach": lambda net, step: (normalised(net[0].weight.detach()),),
    "load_state_dict, then an optimizer": lambda net, step: (net.load_state_dict(model().state_dict()), SGD(net, 0.1)),
    "load_state_dict, then astype": lambda net, step: (net.load_state_dict(model().state_dict()), net.astype("float64")),
    "a step, then another optimizer": lambda net, step: (step(), Adam(net, 0.1)),
    "a step, then astype": lambda net, step: (step(), net.astype("float64")),
    "in place, then replaced": lambda net, step: twice(net[0].weight),
    "a step, then a part of another shape": lambda net, step: (step(), setattr(net[0].weight, "data", np.ones((7, 2), "float32"))),
    "a step, then gone": lambda net, step: (step(), net.steps.clear())}


@pytest.mark.parametrize("how", FORGOTTEN)
@pytest.mark.parametrize("view", [lambda p: p.detach(), lambda p: p.data, lambda p: p.data[1:]])
def test_a_write_is_not_forgotten_when_its_part_dies_or_is_moved(how, view):
    net = model()
    step = step_of(SGD)(net)
    w = view(net[0].weight)
    x = Tensor(np.ones((2, len(w)), "float32"), requires_grad=True)
    loss = (x @ w).sum()
    FORGOTTEN[how](net, step)
    del step
    gc.collect()
    with pytest.raises(RuntimeError, match="its input w, a view of .* was changed by"):
        loss.backward()


@pytest.mark.parametrize("renew", [lambda v, net: setattr(v, "data", net[0].weight.data.copy()), lambda v, net: SGD([("v", v)], 0.1)])
@pytest.mark.parametrize("write", [lambda net: net.load_state_dict(model().state_dict()), lambda net: normalised(net[0].weight)])
def test_a_write_is_not_forgotten_when_the_view_gets_other_memory(renew, write):
    net = model()
    v = Tensor(net[0].weight.data, requires_grad=True)
    x = Tensor(np.ones((4, 5), "float32"), requires_grad=True)
    loss = (x * v).sum()
    write(net)
    renew(v, net)
    with pytest.raises(RuntimeError, match="its input y, .* was changed by"):
        loss.backward()


def test_a_write_is_not_forgotten_when_the_tensor_was_given_other_memory_before():
    bank = Buffer(X.copy())
    x, w = Tensor(bank.data), Tensor(X, requires_grad=True)
    loss = (w * x).sum()
    x.data = np.zeros_like(X)                                # as for the next batch
    bank.data *= 0.9
    with pytest.raises(RuntimeError, match="mul: its input y, a view of .* was changed by an assignment to .data"):
        loss.backward()


UNPICKLE = """
import pickle, sys
import numpy as np
from minicl import Tensor, contrastive, nn, ops
moco = pickle.load(open(sys.argv[1], "rb"))
moco.is_pending
x = Tensor(np.ones((4, 2, 2, 1), "float32"), requires_grad=True)
norm = nn.BatchNorm(3)
z = moco(x)[1]
loss = contrastive.info_nce(z, np.ones((4, 3), "float32"), moco.queue.negatives(), 0.2)
norm(z)
loss.backward()
assert moco.is_pending
moco.load_state_dict(moco.state_dict())
assert not moco.is_pending
"""


def test_many_written_slices_of_one_array_take_little_memory():
    array = np.zeros((5000, 2), "float32")
    for k in range(5000):
        normalised(Tensor(array[k]))
    memory = tensor._memory[id(array)]
    assert len(memory.writes) <= tensor.MANY
    x, used = Tensor(np.ones((5000, 2), "float32"), requires_grad=True), Tensor(array)
    loss = (x * used).sum()
    normalised(Tensor(array[-1]))
    with pytest.raises(RuntimeError, match="its input y, a view of"):
        loss.backward()


def test_a_pickle_has_no_times_of_the_process_that_made_it(tmp_path):
    rng = np.random.default_rng(0)
    moco = MoCo(MLP((2, 2, 1), (4,), rng=rng), projection_head("linear", 4, hidden=4, dim=3, rng=rng), dim=3, queue=8, splits=1)
    images = rng.standard_normal((4, 2, 2, 1)).astype("float32")
    for step in range(40):
        moco.loss(moco(images)[1], moco.encode_keys(images, rng), 0.2).backward()
        if step < 39:
            moco.update()
    (tmp_path / "moco.pickle").write_bytes(pickle.dumps(moco))
    done = subprocess.run([sys.executable, "-W", "error", "-c", UNPICKLE, str(tmp_path / "moco.pickle")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_write_that_is_refused_is_noted():
    """As in a notebook, where the session goes on after the error."""
    x = Tensor(X, requires_grad=True)
    y = ops.exp(x)
    loss = y.sum()
    with pytest.raises(RuntimeError, match="Tensor.data cannot be set: this Tensor is the output of exp"):
        y.data /= 10
    with pytest.raises(RuntimeError, match="exp: its output of shape .* was changed by an assignment to .data"):
        loss.backward()


def test_a_host_buffer_takes_a_write_in_place():
    table, x = Table(), Tensor(np.arange(16.0).reshape(4, 4), requires_grad=True)
    loss = x[table.ids.data].sum()
    table.ids.data += 2
    np.testing.assert_array_equal(table.ids.data, [2, 3])
    with pytest.raises(RuntimeError, match="getitem: its input key, a view of .* was changed by an assignment to .data"):
        loss.backward()
    with pytest.raises(AttributeError, match="cannot be replaced"):
        table.ids.data = np.array([0, 1])


def test_an_average_whose_model_is_gone_has_been_written_to():
    online = model()
    target = frozen_copy(online)
    ema = EMA(online, target)
    ema.update(0.9)
    w, x = target[0].weight.detach(), Tensor(np.ones((2, 4), "float32"), requires_grad=True)
    loss = (x @ w).sum()
    ema.update(0.5)
    del ema, online, target
    gc.collect()
    with pytest.raises(RuntimeError, match="its input w, a view of .* was changed by EMA.update"):
        loss.backward()


@pytest.mark.parametrize("move", [lambda net: SGD(net, 0.1), lambda net: net.astype("float64"),
                                  lambda net: setattr(net[0].weight, "data", net[0].weight.data * 2)])
def test_a_part_that_is_only_moved_writes_nothing_into_its_old_memory(move):
    net = model()
    w, before = net[0].weight.detach(), net[0].weight.data.copy()
    x = Tensor(np.ones((2, 4), "float32"), requires_grad=True)
    loss = (x @ w).sum()
    move(net)
    loss.backward()
    np.testing.assert_allclose(x.grad, np.tile(before.sum(axis=1), (2, 1)), rtol=1e-6)


@pytest.mark.parametrize("change", [lambda count: count.add(1), lambda count: setattr(count, "data", count.data)])
@pytest.mark.parametrize("use", [lambda x, n: x[n], lambda x, n: x[n:], lambda x, n: x[:n, 0], lambda x, n: x[..., n:], lambda x, n: ops.embedding(n.reshape(1), x)])
def test_a_counter_that_counts_before_the_backward_is_detected(use, change):
    """As of a layer that takes its time step from one, and is called for two views."""
    count, x = Counter(), Tensor(np.arange(12.0).reshape(4, 3), requires_grad=True)
    count.add(1)
    y = use(x, count.data).sum()
    change(count)
    with pytest.raises(RuntimeError, match="was changed by (Counter.add|an assignment to .data)"):
        y.backward()
    with check_inputs():
        y = use(x, count.data).sum()
        with pytest.raises(ValueError, match="read-only"):
            count.data[...] += 1
        del y


def test_a_part_may_take_a_view_of_its_own_memory_or_that_of_a_part_that_is_gone():
    p = Parameter(X.copy())
    array = p.data
    p.data = array[1:]
    assert np.shares_memory(p.data, array)
    del p
    gc.collect()
    assert np.shares_memory(Parameter(array).data, array)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, LARS])
def test_the_state_of_an_optimizer_in_a_loss_has_the_value_it_had_then(kind):
    net = Linear(4, 3, rng=np.random.default_rng(0))
    optimizer = kind(net, 0.1)
    loss_of(net).backward(), optimizer.step(), optimizer.zero_grad()
    for state in optimizer.state.values():
        x, before = Tensor(np.ones_like(state), requires_grad=True), state.copy()
        loss = (x * state).sum()
        loss_of(net).backward(), optimizer.step(), optimizer.zero_grad()
        loss.backward()
        np.testing.assert_array_equal(x.grad, before)
        assert (state != before).any()


def test_an_array_that_is_assigned_to_two_gradients_belongs_to_neither():
    a, b, zeros = Parameter(X.copy()), Parameter(X.copy()), np.zeros_like(X)
    a.grad = b.grad = zeros
    (a * 2.0 + b * 3.0).sum().backward()
    assert (a.grad == 2).all() and (b.grad == 3).all() and not zeros.any()


def test_a_gradient_from_which_backward_starts_keeps_its_value_on_the_way():
    a, b = Parameter(X.copy()), Parameter(X.copy())
    (a * 2.0).sum().backward()
    (a + b).backward(a.grad)
    assert (a.grad == 4).all() and (b.grad == 2).all()


def test_the_clamp_of_the_logit_scale_is_detected():
    clip = CLIP(MLP((2, 2, 1), (4,), rng=np.random.default_rng(0)), MLP((2, 2, 1), (4,), rng=np.random.default_rng(0)), 2,
                rng=np.random.default_rng(0))
    y = ops.exp(clip.logit_scale)
    clip.clamp_logit_scale()
    with pytest.raises(RuntimeError, match=r"logit_scale of shape \(\), was changed by clamp_logit_scale"):
        y.backward()


def test_keys_that_enter_a_queue_are_detected():
    rng = np.random.default_rng(0)
    encoder = MLP((2, 2, 1), (4,), rng=rng)
    moco = MoCo(encoder, projection_head("linear", 4, hidden=4, dim=3, rng=rng), dim=3, queue=8, splits=1)
    images = rng.standard_normal((4, 2, 2, 1)).astype("float32")
    for backward_first in (True, True, False):
        loss = moco.loss(moco(images)[1], moco.encode_keys(images, rng), 0.2)
        if backward_first:
            loss.backward()
        moco.update()
    with pytest.raises(RuntimeError, match=r"info_nce: its input negatives, a view of the queue's keys .* Queue.enqueue\(\)"):
        loss.backward()


class Table(Module):
    def __init__(self):
        self.ids = HostBuffer([0, 1])


@pytest.mark.parametrize("rows", [lambda ids: ids, lambda ids: (ids, slice(None)), lambda ids: (ids, 1), lambda ids: (slice(1), ids)])
def test_row_numbers_that_change_are_detected_in_any_key(rows):
    table, x = Table(), Tensor(np.arange(16.0).reshape(4, 4), requires_grad=True)
    loss = x[rows(table.ids.data)].sum()
    table.load_state_dict({"ids": np.array([2, 3])})
    with pytest.raises(RuntimeError, match=r"getitem: its input key, a view of ids of shape \(2,\), was changed by load_state"):
        loss.backward()


def test_a_model_without_references_is_freed():
    gc.collect()
    before = set(tensor._memory)
    net = model()
    SGD(net, lr=0.1)
    net.load_state_dict(net.state_dict())
    assert set(tensor._memory) - before
    del net
    gc.collect()
    assert not set(tensor._memory) - before


def test_running_averages_may_change_before_the_backward():
    norm = BatchNorm(4)
    x = Tensor(X, requires_grad=True)
    norm(X)
    norm.eval()
    expected = []
    for between in (False, True):
        norm.weight.grad = None
        loss = (norm(x) * norm(x)).sum()
        if between:
            norm.train()(X * 7 + 5)
        loss.backward()
        expected.append(norm.weight.grad)
    np.testing.assert_array_equal(*expected)


# ---------------------------------------------------------------- a leaf's own attributes

def test_an_in_place_assignment_is_detected():
    w = Tensor(X, requires_grad=True)
    loss = (w * w).sum()
    w.data *= 2
    with pytest.raises(RuntimeError, match=r"mul: its input x, a Tensor of shape \(6, 4\), was changed by an assignment"):
        loss.backward()


def test_an_in_place_assignment_to_a_buffer_is_detected():
    w, scale = Parameter(X.copy()), Buffer(np.ones_like(X))
    loss = (w * scale.data).sum()
    scale.data *= 0.5
    with pytest.raises(RuntimeError, match=r"mul: its input y, a view of a Tensor of shape \(6, 4\), was changed by an assi"):
        loss.backward()


@pytest.mark.parametrize("watched", ["an optimizer", "an assignment", "no"])
@pytest.mark.parametrize("view", [lambda p: p.detach(), lambda p: Tensor(p.data), lambda p: Tensor(p.data[1:])])
def test_an_assignment_through_a_view_is_detected(watched, view):
    net = Linear(4, 3, rng=np.random.default_rng(0))
    if watched == "an optimizer":
        SGD(net, 0.1)
    elif watched == "an assignment":
        net.weight.data *= 1
    x = Tensor(X.copy(), requires_grad=True)
    loss = net(x).sum()
    through = view(net.weight)
    through.data *= 2
    with pytest.raises(RuntimeError, match="linear: its input w, a view of a Tensor .* was changed by an assignment to .data"):
        loss.backward()


@pytest.mark.parametrize("other", [X.astype("float64"), X[:1], X.T], ids=["dtype", "rows", "transposed"])
def test_data_of_another_shape_or_dtype_are_detected(other):
    w = Tensor(X, requires_grad=True)
    loss = (w * w).sum()
    w.data = other
    with pytest.raises(RuntimeError, match="was changed by an assignment to .data"):
        loss.backward()


def test_new_data_do_not_change_the_tape():
    """The ops hold the array that they used, so the gradient is that of the old data."""
    w = Tensor(X.copy(), requires_grad=True)
    loss = (w * w).sum()
    w.data = np.zeros_like(X)
    loss.backward()
    np.testing.assert_array_equal(w.grad, 2 * X)


@pytest.mark.parametrize("first", [True, False])
def test_requires_grad_cannot_change_before_the_backward(first):
    w, x = Tensor(X, requires_grad=first), Tensor(X, requires_grad=True)
    loss = (w * x).sum()
    w.requires_grad = not first
    with pytest.raises(RuntimeError, match=f"was changed by requires_grad = {not first}"):
        loss.backward()


def test_a_gradient_that_no_longer_fits_is_dropped():
    w = Tensor(np.ones((2, 3)), requires_grad=True)
    w.grad = np.ones((2, 3))
    w.data = np.zeros((2, 3))
    assert w.grad is not None
    w.data = np.zeros((3, 3))
    assert w.grad is None


@pytest.mark.parametrize("grad", [np.ones(3), np.ones((2, 3), "float32"), np.ones((2, 1)), 1.0, [[1.0] * 3] * 2,
                                  Tensor(np.ones((2, 3)))], ids=str)
def test_a_gradient_must_be_like_its_data(grad):
    with pytest.raises(ValueError, match=r"Tensor.grad: expected None or float64 array of shape \(2, 3\), like data, got"):
        Tensor(np.ones((2, 3)), requires_grad=True).grad = grad


@pytest.mark.parametrize("name, value", [("data", np.ones(2)), ("grad", np.ones(2)), ("grad", None),
                                         ("requires_grad", False)])
def test_attributes_of_the_output_of_an_op_cannot_be_set(name, value):
    y = Tensor(np.ones(2), requires_grad=True) * 2.0
    with pytest.raises(RuntimeError, match=rf"Tensor.{name} cannot be set: this Tensor is the output of mul.*detach"):
        setattr(y, name, value)


@pytest.mark.parametrize("value", ["no", 1, np.float32, None, np.True_])
def test_requires_grad_must_be_a_bool(value):
    with pytest.raises(TypeError, match="requires_grad: expected True or False"):
        Tensor(np.ones(2), requires_grad=value)
    with pytest.raises(TypeError, match="requires_grad: expected True or False"):
        Tensor(np.ones(2)).requires_grad = value


def test_requires_grad_shows_whether_a_gradient_flows():
    x = Tensor(np.ones(2), requires_grad=True)
    assert (x * 2.0).requires_grad and not (x * 2.0).detach().requires_grad and not Tensor(np.ones(2)).requires_grad


# ---------------------------------------------------------------- copies

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_leaf_is_an_independent_leaf(how):
    x = Tensor(np.arange(3.0), requires_grad=True)
    (x * x).sum().backward()
    y = COPIES[how](x)
    assert type(y) is Tensor and y.requires_grad and y.grad is None
    (y * 3.0).sum().backward()
    np.testing.assert_array_equal(y.grad, [3, 3, 3])
    np.testing.assert_array_equal(x.grad, [0, 2, 4])


class Weighted(Parameter):
    weight = 1.0


class Slotted(Parameter):
    __slots__ = ("weight",)


@pytest.mark.parametrize("kind", [Weighted, Slotted])
@pytest.mark.parametrize("how", COPIES)
def test_a_copied_leaf_has_what_its_class_has_added(how, kind):
    x = kind(np.arange(3.0))
    x.weight = [0.25]
    y = COPIES[how](x)
    assert type(y) is kind and y.weight == [0.25] and (y.weight is x.weight) == (how == "copy")


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("make", [lambda: Parameter(np.ones(2)), lambda: Buffer(np.ones(2)), lambda: HostBuffer([1, 1]), Counter,
                                  lambda: frozen_copy(Linear(2, 2, rng=np.random.default_rng(0))).weight])
def test_a_copied_part_has_memory_of_its_own(how, make):
    part = make()
    before = part.data.copy()
    twin = COPIES[how](part)
    twin.data[...] = 7
    assert type(twin) is type(part) and np.array_equal(part.data, before) and (twin.data == 7).all()


@pytest.mark.parametrize("how", COPIES)
def test_the_output_of_an_op_cannot_be_copied(how):
    y = Tensor(np.ones(2), requires_grad=True) * 2.0
    with pytest.raises(TypeError, match=r"the output of mul\) cannot be copied"):
        COPIES[how](y)
    np.testing.assert_array_equal(COPIES[how](y.detach()).data, [2, 2])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_model_trains_independently(how):
    net = model()
    SGD(net, lr=0.1)
    twin = COPIES[how](net)
    optimizer = SGD(twin, lr=0.1)
    loss_of(twin).backward()
    optimizer.step()
    assert all((p.data != q.data).any() for p, q in zip(net.parameters(), twin.parameters()) if p.ndim == 2)


@pytest.mark.parametrize("how", COPIES)
def test_an_optimizer_cannot_be_copied(how):
    with pytest.raises(TypeError, match="SGD cannot be copied or pickled.*load_state_dict"):
        COPIES[how](SGD(model().named_parameters(), lr=0.1))


def test_a_copied_average_follows_the_copied_model():
    online = model()
    ema = EMA(online, frozen_copy(online))
    ema.update(0.9)
    twin = copy.deepcopy(ema)
    for p in twin.online.parameters():
        p.data[...] = 1
    twin.update(0.0)
    np.testing.assert_allclose(twin.target.state_dict()["steps.0.weight"], 1, rtol=1e-6)
    assert (ema.target.state_dict()["steps.0.weight"] != 1).any()


# ---------------------------------------------------------------- drawn programs

@given(st.lists(st.sampled_from(["forward", "write", "backward"]), min_size=2, max_size=8))
def test_any_order_of_writes_gives_the_gradient_of_the_forward_or_an_error(order):
    """The parameter w_t of the forward defines the gradient 2 w_t. A write before the backward must be an error."""
    w = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    optimizer = SGD([("w", w)], lr=0.1, momentum=0.0)
    tapes = []
    written = 0
    for what in order:
        if what == "forward":
            tapes.append((((w * w).sum()), 2 * w.data, written))
        elif what == "write":
            w.grad[...] = 1
            optimizer.step()
            written += 1
        elif tapes:
            loss, expected, at = tapes.pop()
            optimizer.zero_grad()
            if at == written:
                loss.backward()
                np.testing.assert_allclose(w.grad, expected)
            else:
                with pytest.raises(RuntimeError, match=r"w of shape \(2,\), was changed by SGD.step\(\)"):
                    loss.backward()
                assert not w.grad.any()
