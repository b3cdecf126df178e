"""A captured step computes what the step computes, bit for bit, or says why it is not captured."""

import collections
import copy
import enum
import functools
import sys
import types
import weakref

import numpy as np
import pytest
import host_reads
from device_counts import launches, waits
from hypothesis import given, settings
from hypothesis import strategies as st
from host_reads import FOLLOWED, HARMLESS, REFUSED
from training_steps import N, STEPS

from minicl import Tensor, capture, check_inputs, get_backend, nn, no_grad, ops
from minicl.backend import Number, Step, capturable, device, each_step, is_captured, operand_dtype, to_device
from minicl.contrastive import nt_xent, sup_con
from minicl.data.augment import Compose, Transform, geometric
from minicl.distributed import World
from minicl.methods import BYOL, grad_cache
from minicl.optim import LARS, SGD, Adam, Optimizer, warmup_cosine

emulated = pytest.mark.skipif("config.getoption('--backend') not in ('cupy-host', 'cupy')",
                              reason="needs --backend cupy-host, or a GPU")


@pytest.fixture
def cp():
    return get_backend("cupy")


def rate(k):
    return warmup_cosine(k, total=20, peak=1e-2, warmup=3)


def state(step):
    """All that a step has changed, on the host."""
    return step.model.state_dict(), step.optimizer.state_dict(), step.optimizer._used, step.rng.bit_generator.state


# ---------------------------------------------------------------- the same numbers

METHODS = [("SimCLR", "float32"), ("SimCLR", "bf16"), ("SimCLR in colour, SGD", "float32"), ("SimCLR, LARS", "float32"),
           ("MoCo", "float32"), ("CLIP", "float32"), ("CPC", "float32"), ("BYOL", "float32"), ("SimSiam", "float32")]


@emulated
@pytest.mark.parametrize("method, precision", METHODS)
def test_a_captured_step_computes_the_same(method, precision, cp, monkeypatch):
    monkeypatch.setattr(device, "_precision", precision)
    plain, step = STEPS[method](cp), STEPS[method](cp)
    on = capture(cp)(step.on)
    for k in range(8 if method == "MoCo" else 5):                # MoCo's queue is full after 4, and begins again
        inputs = step.draw()
        assert on(*inputs, rate(k)).item() == plain.on(*plain.draw(), rate(k)).item()
    np.testing.assert_equal(state(step), state(plain))
    assert on.reason is None and on.graph is not None
    assert (operand_dtype(cp.ones(1, "float32")) == "uint16") == (precision == "bf16")
    most = 4 + sum(not isinstance(x, np.ndarray) for x in inputs)            # host's values to the device, there; the graph;
    assert launches(lambda: on(*inputs, 0.1)) <= most                        # the loss; inputs on the device
    assert waits(lambda: on(*inputs, 0.1)) == 0


def small_step(xp, *, dropout=False, optimizer=lambda model: Adam(model, 0.01, weight_decay=0.1)):
    """A step of a small network on rows (n, 6), which are each other's views by twos."""
    rng = np.random.default_rng(0)
    layers = [nn.Linear(6, 8, rng=rng), *[nn.Dropout(0.3, rng=rng)] * dropout, nn.BatchNorm(8), nn.Linear(8, 4, rng=rng)]
    model = nn.Sequential(*layers).to(xp).train()
    optimizer = optimizer(model)

    def step(x, lr=None):
        x = to_device(x, xp)
        optimizer.zero_grad()
        z = model(x)
        loss = nt_xent(z[::2], z[1::2], 0.5)
        loss.backward()
        optimizer.step(lr, clip_grad_norm=0.7)
        return loss, (z, x * 2, None)

    step.model, step.optimizer, step.rng = model, optimizer, rng
    return step


EVENTS = {
    "evaluation": lambda step: step.model.eval(),
    "freeze": lambda step: step.model[0].freeze(),
    "unfreeze": lambda step: step.model[0].unfreeze(),
    "weight decay": lambda step: setattr(step.optimizer, "weight_decay", 0.3),
    "default rate": lambda step: setattr(step.optimizer, "lr", 0.02),
    "load": lambda step: (step.model.load_state_dict(step.model.state_dict()),
                          step.optimizer.load_state_dict(step.optimizer.state_dict())),
}


@emulated
@pytest.mark.filterwarnings("ignore:Stream. two models draw the same")
@settings(max_examples=15)
@given(st.data())
def test_whatever_happens_between_steps_the_numbers_are_those_of_the_step(data):
    cp = get_backend("cupy")
    make = data.draw(st.sampled_from([lambda m: Adam(m, 0.01, weight_decay=0.1), lambda m: SGD(m, 0.1, momentum=0.9)]))
    plain, step = (small_step(cp, dropout=dropout, optimizer=make) for dropout in [data.draw(st.booleans())] * 2)
    captured = capture(cp)(step)
    events = st.sampled_from(["none"] * 6 + ["fewer rows", "on the device", *EVENTS])
    rng, launched = np.random.default_rng(1), 0
    for k, event in enumerate(["none"] * 3 + data.draw(st.lists(events, min_size=4, max_size=9))):
        for each in (plain, step):
            EVENTS.get(event, lambda step: None)(each)
        x = rng.standard_normal((4 if event == "fewer rows" else 8, 6), dtype="float32")
        inputs = (cp.asarray(x) if event == "on the device" else x, *[0.1 / (1 + k)] * (event != "default rate"))
        (loss, (z, twice, nothing)), (expected, (z_expected, twice_expected, _)) = captured(*inputs), plain(*inputs)
        assert loss.item() == expected.item() and nothing is None
        np.testing.assert_array_equal(z.detach().numpy(), z_expected.detach().numpy())
        np.testing.assert_array_equal(twice.get(), twice_expected.get())
        for each in (plain, step):
            each.model.train()
        launched += captured.graph is not None
    np.testing.assert_equal(state(step), state(plain))
    assert captured.reason is None and launched


@emulated
def test_chunks_and_their_gradient_cache(cp):
    def make():
        step = small_step(cp)

        def on(x):
            x = to_device(x, cp)
            step.optimizer.zero_grad()
            loss, [z] = grad_cache(step.model, lambda z: nt_xent(z[::2], z[1::2], 0.5), x, chunk=4)
            step.optimizer.step()
            return loss, z

        return step, on

    (plain, plain_on), (step, on) = make(), make()
    on = capture(cp)(on)
    for x in np.random.default_rng(2).standard_normal((5, 8, 6)).astype("float32"):
        assert on(x)[0].item() == plain_on(x)[0].item()
    np.testing.assert_equal(state(step), state(plain))
    assert on.graph is not None


@emulated
def test_what_a_step_returns_is_left_alone_by_the_next(cp):
    step = capture(cp)(small_step(cp))
    rows = np.random.default_rng(2).standard_normal((6, 8, 6)).astype("float32")
    results = [step(x) for x in rows]
    for x, (_, (_, twice, _)) in zip(rows, results):
        np.testing.assert_array_equal(twice.get(), 2 * x)


@emulated
def test_nothing_else_is_put_where_a_graph_computes(cp):
    """The emulated GPU closes the memory of each array that is freed, and fills new memory with NaN."""
    plain, step = STEPS["SimCLR"](cp), STEPS["SimCLR"](cp)
    on = capture(cp)(step.on)
    for k in range(6):
        assert on(*step.draw(), rate(k)).item() == plain.on(*plain.draw(), rate(k)).item()
        geometric._arange.cache_clear()                          # arrays that the graph reads, and nobody else now
        others = [cp.full(size, np.nan) for size in (16, 1000, 100_000) for _ in range(5)]
        del others
    assert on.graph is not None


# ---------------------------------------------------------------- steps that are not captured

@emulated
@pytest.mark.parametrize("method", ["MoCo", "SimCLR, LARS"])
def test_a_step_that_waits_is_computed_as_usual_and_the_line_is_named(method, cp, capsys):
    plain, step = STEPS[method](cp), STEPS[method](cp)

    def train(images, lr):
        loss = step.on(images, lr)
        if loss.item() > 100:
            raise ValueError
        return loss

    on = capture(cp)(train)
    for k in range(8 if method == "MoCo" else 4):
        assert on(*step.draw(), rate(k)).item() == plain.on(*plain.draw(), rate(k)).item()
        np.testing.assert_equal(state(step), state(plain))
    assert capsys.readouterr().out.count("not captured as a CUDA graph: train(), line ") == 1


@emulated
@pytest.mark.parametrize("make, reason", [
    (lambda cp: lambda x: float(cp.asarray(x).sum()), "waits for the GPU"),
    (lambda cp: lambda x: cp.sort(cp.asarray(x)), "waits for the GPU"),
    (lambda cp: lambda x: cp.argsort(cp.asarray(x)), "waits for the GPU"),
    (lambda cp: lambda x: 1.5, "returns Tensors and arrays of the device, got float"),
    (lambda cp: lambda x: cp.asarray(np.ones(3)), "takes an array from the host"),
    (lambda cp: lambda x, lr=0.1: cp.asarray(x) * lr, None),
])
def test_the_reason_is_given(make, reason, cp):
    said = []
    step = capture(cp, log=said.append)(make(cp))
    for k in range(5):
        step(np.full(3, k, "float32"))
    assert (reason is None) == (said == []) and all(reason in line for line in said) and len(said) <= 1


# ---------------------------------------------------------------- what changes besides the arguments

X = np.arange(4, dtype="float32").reshape(2, 2)


def attribute_of_an_object(cp):
    args = types.SimpleNamespace(tau=1.0, loss=types.SimpleNamespace(margin=0.0))

    def call(step, k):
        args.tau, args.loss.margin = 1.0 + (k > 5), float(k > 10)
        return step(X)

    return lambda x: cp.asarray(x) * args.tau + args.loss.margin, call


def entry_of_a_dict(cp):
    config, scales = {"tau": 1.0}, [1.0]

    def call(step, k):
        config["tau"], scales[0] = 1.0 + (k > 5), 1.0 + (k > 10)
        return step(X)

    return lambda x: cp.asarray(x) * config["tau"] * scales[0], call


def small_array_on_the_host(cp):
    scales = np.ones(3)

    def call(step, k):
        scales[1] = 1.0 + (k > 5)
        return step(X)

    return lambda x: cp.asarray(x) * float(scales[1]), call


def variable_of_the_script(cp):
    scale = 1

    def call(step, k):
        nonlocal scale
        scale = 1 + (k > 5)
        return step(X)

    def inner(x):
        return x * scale

    return lambda x: inner(cp.asarray(x)), call


def variable_that_changes_always(cp):
    scale = 0

    def call(step, k):
        nonlocal scale
        scale = k
        return step(X)

    return lambda x: cp.asarray(x) * scale, call


class Trainer:
    """A step that is a method, which calls another and reads what both have."""

    def __init__(self, cp):
        self.cp, self.scale, self.shift, self.count, self.losses = cp, 1.0, 0.0, 0, []

    @property
    def shifted(self):
        return self.shift + 1

    def step(self, x):
        return self.scaled(self.cp.asarray(x)) + self.shifted

    def scaled(self, x):
        return x * self.scale

    def counts(self, x):
        self.count += 1
        return self.cp.asarray(x) * self.count

    def collects(self, x):
        self.losses.append(self.cp.asarray(x) * (1 + len(self.losses)))
        return self.losses[-1]


def attributes_of_self(cp):
    trainer = Trainer(cp)

    def call(step, k):
        trainer.scale, trainer.shift = 1.0 + (k > 5), float(k > 10)
        return step(X)

    return trainer.step, call


def counter_of_its_own(cp):
    return Trainer(cp).counts, lambda step, k: step(X)


def list_of_its_own(cp):
    return Trainer(cp).collects, lambda step, k: step(X)


def own_draws(cp):
    rng = np.random.default_rng(3)
    return lambda x: cp.asarray(x) * rng.random(), lambda step, k: step(X)


def decorated(cp):
    scale = 1.0

    @no_grad()
    def on(x):
        return cp.asarray(x) * scale

    def call(step, k):
        nonlocal scale
        scale = 1.0 + (k > 5)
        return step(X)

    return on, call


def captured_within(cp):
    scale = 1.0
    inner = capture(cp, log=lambda reason: None)(lambda x: cp.asarray(x) * scale)

    def call(step, k):
        nonlocal scale
        scale = 1.0 + (k > 5)
        return step(X)

    return lambda x: inner(x) + 1, call


def arguments_by_name(cp):
    return lambda x, scale, flag=1: cp.asarray(x) * (2 if flag else 1), lambda step, k: step(x=X, scale=1.0 + k, flag=k > 5)


def arguments_on_both_sides(cp):
    weight = nn.Parameter(cp.ones((2, 2), dtype="float32"))
    optimizer = SGD([("weight", weight)], 1.0)

    def on(x, y, rate, z):
        optimizer.zero_grad()
        (weight * (x + to_device(y, cp) * to_device(z, cp).astype("float32"))).sum().backward()
        optimizer.step(rate)
        return weight.detach()

    return on, lambda step, k: step(cp.asarray(X + k), X * k, 1.0 + k, np.int64([k, 1]))


def tensor_as_argument(cp):
    return lambda x: x.data * 2, lambda step, k: step(Tensor(cp.asarray(X)))


def pair_as_argument(cp):
    return lambda pair: cp.asarray(pair[0]) + 1, lambda step, k: step((X + k, X))


def integer_that_changes(cp):
    return lambda x, k: cp.asarray(x) * k, lambda step, k: step(X, k)


def shapes_that_take_turns(cp):
    return lambda x: cp.asarray(x) + 1, lambda step, k: step(X[:1 + k % 2])


def rate_computed_with(cp):
    return lambda x, rate: cp.asarray(x) * rate, lambda step, k: step(X, 1.0 + k)


def rate_as_a_condition(cp):
    return lambda x, rate: cp.asarray(x) + (1 if rate else 2), lambda step, k: step(X, float(k > 5))


def rate_compared(cp):
    return lambda x, rate: cp.asarray(x) + (1 if rate == 1.0 else 2), lambda step, k: step(X, float(k > 5))


def rate_as_text(cp):
    return lambda x, rate: cp.asarray(x) + len(f"{rate}"), lambda step, k: step(X, 1 + 1 / (k + 1))


class Scaled(nn.Module):
    def __init__(self, *, scale=1.0):
        self.scale, self.calls = scale, 0

    def forward(self, x):
        return x * self.scale


class Counting(Scaled):
    def forward(self, x):
        self.calls += 1
        return x * (1.0 + self.calls)


def attribute_of_a_module(cp):
    model = nn.Sequential(Scaled(), ops.relu)

    def call(step, k):
        model[0].scale = 1.0 + (k > 5)
        if k > 10:
            model.steps[1] = ops.exp
        return step(X)

    return lambda x: model(Tensor(cp.asarray(x))), call


def counter_of_a_module(cp):
    model = Counting()
    return lambda x: model(Tensor(cp.asarray(x))), lambda step, k: step(X)


def gradients_without_an_optimizer(cp, *, clear):
    weight = nn.Parameter(cp.ones((2, 2), dtype="float32"))

    def on(x):
        (weight * to_device(x, cp)).sum().backward()

    def call(step, k):
        if clear(k):
            weight.grad = None
        if k == 9:
            weight.data = weight.data * 2
        step(X + k)
        return weight.grad

    return on, call


class Brighter(Transform):
    def __init__(self, *, most):
        self.most = most

    def draw(self, shape, rng):
        return [rng.random(shape[0])]

    def apply(self, images, out, brightness):
        out[...] = images * (brightness[:, None, None, None] * self.most)


def option_of_a_transform(cp):
    augment, rng = Compose([Brighter(most=0.5)]), np.random.default_rng(3)

    def call(step, k):
        augment.transforms[0].most = 0.5 + 0.2 * (k > 5)
        if k == 10:
            augment.transforms.append(Brighter(most=0.1))
        return step(X[..., None, None] / 4)

    return lambda x: augment(cp.asarray(x), rng), call


def loss_without_its_update(cp):
    step = STEPS["MoCo"](cp)
    rng = np.random.default_rng(7)

    def on(q, k):
        return step.model.loss(Tensor(q), k, 0.2)

    def call(on, k):
        q, keys = (cp.asarray(rng.standard_normal((N, 128), dtype="float32")) for _ in range(2))
        loss = on(q, keys)
        step.model.update()
        return cp.concatenate([loss.data.reshape(1), step.model.queue.keys.data.reshape(-1)])

    return on, call


def two_steps_of_one_model(cp):
    step = small_step(cp)
    other = capture(cp)(lambda x: step.model(to_device(x, cp)).detach())
    rows = np.random.default_rng(2).standard_normal((20, 8, 6)).astype("float32")

    def call(on, k):
        loss, _ = on(rows[k], 0.1 / (1 + k))
        return cp.concatenate([loss.data.reshape(1), other(rows[k]).data.reshape(-1)])

    return step, call


def options_of_an_optimizer(cp, make, options):
    """Each of the options is set to another value before a step of its own."""
    step = small_step(cp, optimizer=make)
    rows = np.random.default_rng(2).standard_normal((20, 8, 6)).astype("float32")

    def call(on, k):
        if k >= 5 and k - 5 < len(options):
            setattr(step.optimizer, *options[k - 5])
        on(rows[k], 0.01)
        return step.optimizer.values

    return step, call


class Slower(Optimizer):
    """An optimizer of one's own, whose formula counts the steps."""

    def _update(self, part, lr, decay, t):
        self.values[part] -= lr / t * self.grads[part]


class Lion(Optimizer):
    """Chen et al. 2023, with the numbers of its formula from NumPy."""

    state_names = ("m",)
    beta = 0.9

    def _numbers(self, lr, decay, t):
        return [np.sqrt(lr), self.beta, 1 - self.beta]

    def _update(self, part, lr, old, new):
        m = self.state["m"][part]
        m *= old
        m += new * self.grads[part]
        self.values[part] -= lr * (self.xp.sign(m) + m / (1 + abs(m)))


class CarelessLion(Lion):
    def _update(self, part, lr, old, new):
        super()._update(part, lr, old, 1 - old)


def astype(cp):
    step = small_step(cp)
    rows = np.random.default_rng(2).standard_normal((20, 8, 6)).astype("float32")

    def on(x):
        return step.model(to_device(x, cp).astype(step.model[0].weight.dtype)).detach()

    def call(on, k):
        if k == 6:
            step.model.astype("float64")
        return on(rows[k])

    return on, call


class Filling(Transform):
    """Each draw fills the same array. Some raise an error, once, and then the step may be left out."""

    def __init__(self, *, fails):
        self.buffer, self.draws, self.fails = np.zeros(2, "float32"), [], fails

    def draw(self, shape, rng):
        rng.random(dtype="float32", out=self.buffer)
        if self.buffer[0] > self.fails:
            raise ArithmeticError
        return [self.buffer]

    def apply(self, images, out, brightness):
        out[...] = images * brightness[:, None, None, None]


def array_that_each_draw_fills(cp, *, fails=2.0):
    augment, rng = Filling(fails=fails), np.random.default_rng(3)

    def call(step, k):
        try:
            return step(X[..., None, None] / 4)
        except ArithmeticError:
            return cp.ones(1)

    return lambda x: cp.concatenate([augment(cp.asarray(x), rng), augment(cp.asarray(x), rng)]), call


def view_of_a_bank(cp, *, rows):
    """At first the argument is another array, or other rows of the bank."""
    bank = cp.asarray(X)

    def on(x, negatives):
        bank[:1] = cp.asarray(x)
        return negatives * 2

    return on, lambda step, k: step(X[:1] + k, bank[:1] if k > 5 else rows(bank))


def piece_of_a_step(cp, *, piece):
    """Only this piece is captured. One step reaches one weight only, one has no loss, and then a gradient becomes 0."""
    weights, scale = [Weight(cp.ones((2, 2), dtype="float32")) for _ in range(2)], cp.ones(2, dtype="float32")
    optimizer = SGD(zip("ab", weights), 0.1, momentum=0.5, weight_decay=0.1)

    def backward(x, number=2):
        sum((w * s).sum() for w, s in zip(weights[:number], [to_device(x, cp), scale])).backward()

    pieces = {"zero_grad": lambda x: optimizer.zero_grad(), "backward": backward, "step": lambda x: optimizer.step()}

    def call(step, k):
        scale[...] = k < 11
        for name, compute in pieces.items():
            if name == piece:
                step(X + k)
            elif not (name == "backward" and k == 8):
                compute(X + k, *[1] * (name == "backward" and k == 6))
        return optimizer.values.copy()

    return pieces[piece], call


def on_host(result):
    return (result.data if isinstance(result, Tensor) else result).get()


CHANGES = {
    attribute_of_an_object: None, entry_of_a_dict: None, small_array_on_the_host: None, variable_of_the_script: None,
    variable_that_changes_always: "scale changes from step to step", attributes_of_self: None,
    counter_of_its_own: "counts(), line ", list_of_its_own: "self.losses changes from step to step",
    own_draws: "draws random numbers itself", decorated: None, captured_within: None, arguments_by_name: None,
    arguments_on_both_sides: None,
    tensor_as_argument: "got Tensor", pair_as_argument: "got tuple", integer_that_changes: "an integer argument",
    shapes_that_take_turns: "an argument's shape", rate_computed_with: "computes with a float argument",
    rate_as_a_condition: "with a float argument", rate_compared: "with a float argument",
    rate_as_text: "with a float argument",
    attribute_of_a_module: None, counter_of_a_module: "Counting.forward(), line ", option_of_a_transform: None,
    functools.partial(gradients_without_an_optimizer, clear=lambda k: False): None,
    functools.partial(gradients_without_an_optimizer, clear=lambda k: k == 6): None,
    functools.partial(gradients_without_an_optimizer, clear=lambda k: True): "gradient of weight",
    array_that_each_draw_fills: None, functools.partial(array_that_each_draw_fills, fails=0.7): None,
    **{functools.partial(view_of_a_bank, rows=rows): "writes into argument 2" for rows in (
        lambda bank: bank[1:], lambda bank: bank[:1].copy())},
    **{functools.partial(piece_of_a_step, piece=piece): None for piece in ("zero_grad", "backward", "step")},
    loss_without_its_update: "it changes step.model.served", two_steps_of_one_model: None, astype: None,
    functools.partial(options_of_an_optimizer, make=lambda model: Adam(model, 0.01), options=[
        ("betas", (0.5, 0.9)), ("eps", 1e-3), ("weight_decay", 0.1), ("lr", 0.5)]): None,
    functools.partial(options_of_an_optimizer, make=lambda model: SGD(model, 0.01, momentum=0.9), options=[
        ("momentum", 0.5), ("nesterov", True), ("weight_decay", 0.1)]): None,
    functools.partial(options_of_an_optimizer, make=lambda model: LARS(model, 0.01, momentum=0.9), options=[
        ("eta", 0.5), ("weight_decay", 0.1)]): None,
    functools.partial(options_of_an_optimizer, make=lambda model: Slower(model, 0.01), options=[]): "never",
    functools.partial(options_of_an_optimizer, make=lambda model: Lion(model, 0.01), options=[("beta", 0.8)]): None,
    functools.partial(options_of_an_optimizer, make=lambda model: CarelessLion(model, 0.01), options=[]): "combines two numbers",
}


@emulated
@pytest.mark.filterwarnings("ignore:SGD. step.. moves nothing")
@pytest.mark.parametrize("scene, reason", CHANGES.items(), ids=lambda x: getattr(getattr(x, "func", x), "__name__", " "))
def test_a_change_outside_the_arguments_is_followed_or_refused(scene, reason, cp):
    (plain, call), (step, call_captured), said = scene(cp), scene(cp), []
    step = capture(cp, log=said.append)(step)
    for k in range(16):
        expected, result = call(plain, k), call_captured(step, k)
        np.testing.assert_array_equal(on_host(result), on_host(expected))
    if reason is None:
        assert step.reason is None and step.graph is not None
    else:
        assert step.graph is None and [line for line in said if reason in line] == said


# ---------------------------------------------------------------- what the step reads, see host_reads.py

@emulated
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_the_step_reads_is_compared(name, cp, monkeypatch):
    host_reads.reset(monkeypatch)
    read, change = FOLLOWED[name]()
    step = capture(cp)(lambda x: cp.asarray(x) * read())
    for k in range(9):
        if k == 5:
            assert step.graph is not None
            change((lambda: 3.0) if name == "function in a dict" else 3.0)
        np.testing.assert_array_equal(step(X).get(), X * np.float32(read()))
    assert step.reason is None and step.graph is not None


@emulated
@pytest.mark.parametrize("name", HARMLESS)
def test_what_the_step_does_not_read_may_change(name, cp, monkeypatch):
    host_reads.reset(monkeypatch)
    read, happen = HARMLESS[name]()
    step = capture(cp)(lambda x: cp.asarray(x) * read())
    for k in range(6):
        np.testing.assert_array_equal(step(X).get(), X * np.float32(read()))
        assert step.reason is None and (step.graph is not None) == (k > 1)
        happen()


@emulated
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_a_reason(name, cp, monkeypatch):
    host_reads.reset(monkeypatch)
    make, owner, reason = REFUSED[name]
    read, said = make(owner), []
    step = capture(cp, log=said.append)(lambda x: cp.asarray(x) * read())
    for _ in range(13):
        step(X)
    assert step.graph is None and len(said) == 1 and reason in said[0]


# ---------------------------------------------------------------- what of minicl may change

class Bank(nn.Buffer):
    shared = 1.0


class Weight(nn.Parameter):
    shared = 1.0


class Value(Tensor):
    shared = 1.0


def pointer_of_a_bank(cp):
    bank = Bank(cp.asarray([1.0, 3.0], dtype="float32"))
    bank.pointer = 0
    return lambda: bank.data[bank.pointer], lambda value: setattr(bank, "pointer", 1)


OWN_PARTS = {
    "pointer of a bank": pointer_of_a_bank,
    **{f"attribute of a {kind.__name__}": lambda cp, kind=kind: host_reads.instance(kind(cp.ones(2, "float32")))
       for kind in (Bank, Weight, Value)},
    **{f"attribute of the class {kind.__name__}": lambda cp, kind=kind: (
        lambda owner: (lambda: owner.shared, host_reads.attribute(kind, "shared")))(kind(cp.ones(2, "float32")))
       for kind in (Bank, Weight, Value)},
    "class of a Buffer": lambda cp: (lambda owner: (lambda: 3.0 if isinstance(owner, Bank) else 1.0,
                                                    lambda value: setattr(owner, "__class__", Bank)))(nn.Buffer(cp.ones(2))),
}


@emulated
@pytest.mark.parametrize("name", OWN_PARTS)
def test_an_attribute_of_a_part_of_ones_own_is_compared(name, cp, monkeypatch):
    for kind in (Bank, Weight, Value):
        monkeypatch.setattr(kind, "shared", 1.0)
    read, change = OWN_PARTS[name](cp)
    step = capture(cp)(lambda x: cp.asarray(x) * read())
    for k in range(9):
        if k == 5:
            assert step.graph is not None
            change(3.0)
        np.testing.assert_array_equal(step(X).get(), X * np.float32(1.0 if k < 5 else 3.0))
    assert step.reason is None and step.graph is not None


def doubled(function):
    return lambda *inputs, **options: function(*inputs, **options) * 2


REPLACED = {
    "function of a package": (ops, "relu"), "function that a layer calls": (ops, "linear"), "method": (nn.Linear, "forward"),
    "inherited method": (nn.Sequential, "__call__"), "operator": (Tensor, "__getitem__"), "method of Tensors": (Tensor, "exp"),
    "function of another file": (sys.modules["minicl.contrastive.nt_xent"], "row_dots"),
}


@emulated
@pytest.mark.parametrize("owner, name", REPLACED.values(), ids=list(REPLACED))
def test_a_function_of_minicl_that_is_replaced_is_noticed(owner, name, cp, monkeypatch):
    def make():
        step = small_step(cp)

        def on(x):
            step(x)
            return (ops.relu(step.model(cp.asarray(x))) + step.model(cp.asarray(x)).exp()).detach()

        return on

    plain, step = make(), capture(cp)(make())
    rows = np.random.default_rng(2).standard_normal((9, 8, 6)).astype("float32")
    for k, x in enumerate(rows):
        if k == 5:
            assert step.graph is not None
            monkeypatch.setattr(owner, name, doubled(getattr(owner, name)))
        np.testing.assert_array_equal(step(x).numpy(), plain(x).numpy())
    assert step.reason is None and step.graph is not None


def writes(x):
    x -= 1
    return x


class Level(enum.IntEnum):
    ONE = 1


class Rows(np.ndarray):
    pass


ARGUMENTS = {
    "member of an IntEnum": (lambda cp: lambda level: cp.ones(2) * int(level), Level.ONE, "got Level"),
    "subclass of str": (lambda cp: lambda text: cp.ones(2) * len(text), host_reads.Text("a"), "got Text"),
    **{f"a {kind.__name__}": (lambda cp: lambda x: cp.asarray(np.asarray(x)[0]), X.view(kind), f"is a {kind.__name__}")
       for kind in (np.matrix, np.ma.MaskedArray, Rows)},
    "big-endian": (lambda cp: lambda x: cp.asarray(x.astype("float32")), X.astype(">f4"), "dtype >f4"),
    "longdouble": (lambda cp: lambda x: cp.asarray(x.astype("float32")), X.astype(np.longdouble), "dtype <f16"),
    "by columns": (lambda cp: lambda x: cp.asarray(x).sum(axis=0), np.asfortranarray(X), "not C-contiguous"),
    "written, on the host": (lambda cp: lambda x: cp.asarray(writes(x)), X.copy(), "writes into argument 1"),
    "written, on the device": (lambda cp: writes, "device", "writes into argument 1"),
    "on the tape": (lambda cp: (lambda w: lambda x: w * cp.asarray(x))(nn.Parameter(cp.ones((2, 2), "float32"))), X,
                    "still on the tape"),
    "a parameter": (lambda cp: (lambda w: lambda x: (w, None))(nn.Parameter(cp.ones((2, 2), "float32"))), X,
                    "still on the tape"),
    "on NumPy": (lambda cp: (lambda model: lambda x: model(np.ones((1, 3), "float32")).detach())(
        nn.Linear(3, 2, rng=np.random.default_rng(0))), X, "is on the host"),
}


@emulated
@pytest.mark.parametrize("make, x, reason", ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_arguments_and_results_that_a_launch_could_not_have(make, x, reason, cp):
    said = []
    step = capture(cp, log=said.append)(make(cp))
    for _ in range(4):
        step(cp.asarray(X) if type(x) is str else x)
    assert step.graph is None and len(said) == 1 and reason in said[0]


@emulated
def test_kinds_of_numbers_are_told_apart(cp):
    step = capture(cp)(lambda x, n: (cp.asarray(x) * n, cp.ones(1) * (2 if n is True else 1)))
    for n in [1] * 4 + [True] * 4 + [np.int64(1)] * 4:
        result, kind = step(X, n)
        assert result.dtype == (cp.asarray(X) * n).dtype and kind.item() == (2 if n is True else 1)
    assert step.graph is not None


@emulated
def test_an_array_in_a_file_is_told_from_one_in_memory(cp, tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype="float32", shape=(12, 2, 2))
    file[:] = np.arange(48).reshape(file.shape)
    step = capture(cp)(lambda x: cp.asarray(x[:1] / 2) + isinstance(x, np.memmap))
    for k in range(12):
        x = file[k] if k < 6 else np.asarray(file[k])
        np.testing.assert_array_equal(step(x).get(), file[k][:1] / 2 + (k < 6))
        assert (step.graph is not None) == (k not in (0, 1, 6, 7)) or k == 6
    assert step.reason is None


@emulated
def test_a_named_tuple_stays_one(cp):
    Result = collections.namedtuple("Result", "double, nothing")
    step = capture(cp)(lambda x: Result(cp.asarray(x) * 2, None))
    for k in range(5):
        result = step(X + k)
        np.testing.assert_array_equal(result.double.get(), (X + k) * 2)
    assert step.graph is not None and type(result) is Result


@emulated
@pytest.mark.filterwarnings("ignore:Stream. two models draw the same")
def test_both_passes_of_a_gradient_cache_have_the_same_masks(cp):
    def make():
        step = small_step(cp, dropout=True)

        def on(x):
            x = to_device(x, cp)
            step.optimizer.zero_grad()
            loss, [z] = grad_cache(step.model, lambda z: nt_xent(z[::2], z[1::2], 0.5), x, chunk=4)
            step.optimizer.step()
            return loss, z

        return step, on

    (plain, plain_on), (step, on) = make(), make()
    on = capture(cp)(on)
    for x in np.random.default_rng(2).standard_normal((6, 8, 6)).astype("float32"):
        assert on(x)[0].item() == plain_on(x)[0].item()
    np.testing.assert_equal(state(step), state(plain))
    assert on.graph is not None


def toggle_rate(optimizer):
    optimizer.lr = 0.1
    optimizer.step()
    optimizer.lr = 0.001


def toggle_decay(optimizer):
    optimizer.weight_decay = 0.5
    optimizer.step()
    optimizer.weight_decay = 0.1


@emulated
@pytest.mark.parametrize("toggle, option", [(toggle_rate, "lr"), (toggle_decay, "weight_decay")])
def test_an_option_that_the_step_sets_is_a_reason(toggle, option, cp):
    weight = nn.Parameter(cp.ones((2, 2), dtype="float32"))
    optimizer = SGD([("weight", weight)], 1.0)

    def on(x):
        optimizer.zero_grad()
        (weight * cp.asarray(x)).sum().backward()
        toggle(optimizer)

    step = capture(cp, log=lambda line: None)(on)
    for _ in range(3):
        step(X)
    assert f"{toggle.__name__}(), line " in step.reason and f"sets optimizer.{option}" in step.reason


@emulated
def test_an_interrupted_capture_is_undone(cp):
    step, interrupts = STEPS["MoCo"](cp), []

    class Interrupting(nn.Module):
        def __init__(self):
            self.hook = interrupts

        def forward(self, loss):
            if self.hook and is_captured():
                raise KeyboardInterrupt
            return loss

    last = Interrupting()

    def train(q, keys):
        loss = last(step.model.loss(Tensor(q), keys, 0.2))
        step.model.update()
        return loss

    on, rng = capture(cp)(train), np.random.default_rng(7)
    for k in range(12):
        if k == 9:
            interrupts.append(1)                                 # a change: two steps are computed, and then one is captured
        q, keys = (cp.asarray(rng.standard_normal((N, 128), dtype="float32")) for _ in range(2))
        if k < 11:
            on(q, keys)
        else:
            with pytest.raises(KeyboardInterrupt):
                on(q, keys)
        assert k != 8 or on.graph is not None
    assert not step.model.served
    interrupts.clear()
    assert np.isfinite(on(q, keys).item()) and np.isfinite(step.model.queue.keys.data.get()).all()


@emulated
@pytest.mark.filterwarnings("ignore:Stream. two models draw the same")
@pytest.mark.parametrize("wrong", [(np.ones((8, 5), "float32"), 0.1), (np.ones((8, 6), "float32"), -0.1)], ids=["rows", "rate"])
@pytest.mark.parametrize("when", [1, 2, 5])
def test_a_step_that_raises_leaves_those_after_it_right(wrong, when, cp):
    plain, step = small_step(cp, dropout=True), small_step(cp, dropout=True)
    captured = capture(cp)(step)
    rows = np.random.default_rng(2).standard_normal((9, 8, 6)).astype("float32")
    for k, x in enumerate(rows):
        if k == when:
            for each in (plain, captured):
                with pytest.raises(ValueError, match="linear|lr must be"):
                    each(*wrong)
        assert captured(x, 0.01)[0].item() == plain(x, 0.01)[0].item()
    np.testing.assert_equal(state(step), state(plain))
    assert captured.graph is not None


@emulated
def test_blocks_that_change_what_a_step_does_are_respected(cp):
    plain, step = small_step(cp), small_step(cp)
    captured, x = capture(cp)(step), np.ones((8, 6), "float32") * np.arange(8, dtype="float32")[:, None]
    for _ in range(5):
        captured(x), plain(x)
    with no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        captured(x)
    with no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        plain(x)
    with check_inputs():
        captured(x), plain(x)
    assert captured(x)[0].item() == plain(x)[0].item()


def test_a_step_is_called_with_arguments_that_have_positions():
    def later(x):
        yield x

    for wrong in (later, functools.partial(later, 1), Trainer, 3):
        with pytest.raises(TypeError, match="capture: expected a function to decorate"):
            capture(np)(wrong)
    with pytest.raises(TypeError, match="takes scale only as a keyword"):
        capture(np)(lambda x, *, scale=1: x)
    assert capture(np)(functools.partial(lambda x, y: x - y, 1))(y=2) == -1
    with pytest.raises(TypeError, match="takes y only as a keyword"):
        capture(np, log=lambda reason: None)(lambda x, **options: x)(1, y=2)


class Method:
    """A step that is decorated in the body of the class, called as __call__, or through a partial."""

    def __init__(self, cp, scale):
        self.cp, self.scale = cp, scale

    def plain(self, x):
        return self.cp.asarray(x) * self.scale

    def __call__(self, x):
        return self.plain(x)


@emulated
@pytest.mark.parametrize("make", [lambda cp, owner: functools.partial(Method.plain, owner), lambda cp, owner: owner,
                                  lambda cp, owner: owner.plain, lambda cp, owner: capture(cp)(owner.plain)])
def test_all_that_is_called_can_be_captured(make, cp):
    owner = Method(cp, 1.0)
    step = capture(cp)(make(cp, owner))
    for k in range(9):
        owner.scale = 1.0 + (k > 5)
        np.testing.assert_array_equal(step(X).get(), X * owner.scale)
    assert step.reason is None and step.graph is not None


@emulated
def test_a_module_can_be_captured(cp):
    model = nn.Linear(2, 3, rng=np.random.default_rng(0)).to(cp).eval()
    model.requires_grad_(False)
    embed, without_gradient = capture(cp)(model), no_grad()(capture(cp)(lambda x: model(Tensor(cp.asarray(x)))))
    for k in range(5):
        expected = model(cp.asarray(X + k)).numpy()
        np.testing.assert_array_equal(embed(cp.asarray(X + k)).numpy(), expected)
        np.testing.assert_array_equal(without_gradient(X + k).numpy(), expected)
    assert embed.graph is not None


@emulated
def test_a_method_has_a_graph_for_each_object(cp):
    class Decorated(Method):
        step = capture(cp)(Method.plain)

    one, other = Decorated(cp, 1.0), Decorated(cp, 2.0)
    for k in range(5):
        copied = copy.copy(one)
        copied.scale = 5.0
        for owner, scale in ((one, 1.0), (other, 2.0), (copied, 5.0)):
            np.testing.assert_array_equal(owner.step(X + k).get(), (X + k) * np.float32(scale))
    assert one.step.graph is not None and other.step.graph is not None and one.step.graph is not other.step.graph


@emulated
def test_an_object_with_a_captured_method_can_be_copied(cp):
    class Trained(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 3, rng=np.random.default_rng(0))

        @capture(cp)
        def embed(self, x):
            return self.layer(cp.asarray(x)).detach()

    one = Trained().to(cp)
    for k in range(4):
        one.embed(X + k)
        other = copy.deepcopy(one)
        other.layer.weight.data *= 2
        np.testing.assert_array_equal(other.embed(X).numpy(), other.layer(cp.asarray(X)).detach().numpy())
    assert one.embed.graph is not None and copy.deepcopy(test := capture(cp)(Trainer.step)) is test


@emulated
def test_what_a_step_reads_weakly_is_not_kept_alive(cp):
    owner = host_reads.Plain()
    reference = weakref.ref(owner)
    step = capture(cp, log=lambda line: None)(lambda x: cp.asarray(x) * (1.0 if reference() is None else 3.0))
    for _ in range(3):
        step(X)
    del owner
    np.testing.assert_array_equal(step(X).get(), X)


@emulated
def test_a_method_of_a_class_with_slots(cp):
    class Slots:
        __slots__ = ("scale",)

        @capture(cp)
        def step(self, x):
            return cp.asarray(x) * self.scale

    one, other = Slots(), Slots()
    one.scale, other.scale = 1.0, 2.0
    for k in range(8):
        one.scale = 1.0 + (k > 3)
        for owner in (one, other):
            np.testing.assert_array_equal(owner.step(X + k).get(), (X + k) * np.float32(owner.scale))
    assert one.step.graph is not None and other.step.graph is not one.step.graph


# ---------------------------------------------------------------- arguments on the host

def twice(x, cp):
    """The first copy is written into; the second must be as x is."""
    first = cp.asarray(x)
    first -= first.mean(axis=0)
    return first + 3 * cp.asarray(x)


MOVED = {
    "twice": twice, "rows": lambda x, cp: cp.asarray(x[:1]) + cp.asarray(x[1]), "reversed": lambda x, cp: cp.asarray(x[::-1]),
    "reshaped": lambda x, cp: cp.asarray(x.reshape(-1)), "loop": lambda x, cp: sum(cp.asarray(row) for row in x),
    "scaled": lambda x, cp: cp.asarray((x / 255 - 0.1) * 3), "of rows": lambda x, cp: cp.asarray(x[0] - x[1]),
    "converted": lambda x, cp: cp.asarray(x.astype("float64")), "length": lambda x, cp: cp.asarray(x) / len(x) * x.shape[1],
    "isinstance": lambda x, cp: cp.asarray(x) * (2 if isinstance(x, np.ndarray) else 3),
    "new dtype": lambda x, cp: cp.asarray(x, dtype="float64"), "array": lambda x, cp: cp.array(x),
}
COMPUTED = {
    "mean": lambda x, cp: cp.asarray(x - x.mean(axis=0)), "ufunc": lambda x, cp: cp.asarray(np.exp(x)),
    "stack": lambda x, cp: cp.asarray(np.stack([x, x])), "item": lambda x, cp: cp.asarray(x) * x[0, 0].item(),
    "float": lambda x, cp: cp.asarray(x) * float(x[0, 1]), "tolist": lambda x, cp: cp.asarray(x) * x.tolist()[0][1],
    "if": lambda x, cp: cp.asarray(x) * (2 if x[0, 1] > 3 else 1), "text": lambda x, cp: cp.asarray(x) * len(f"{x}"),
    "key": lambda x, cp: cp.asarray(X[x.astype("int64") % 2]), "asarray": lambda x, cp: cp.asarray(np.asarray(x)),
    "fancy": lambda x, cp: cp.asarray(x[[1, 0]]), "type": lambda x, cp: cp.asarray(x) * (2 if type(x) is np.ndarray else 3),
    "transposed": lambda x, cp: cp.asarray(x.T),
}


@emulated
@pytest.mark.parametrize("name", [*MOVED, *COMPUTED])
def test_an_argument_on_the_host_is_moved_as_usual_or_refused(name, cp):
    compute = {**MOVED, **COMPUTED}[name]
    step = capture(cp, log=lambda reason: None)(lambda x: compute(x, cp))
    for k in range(6):
        result, expected = step(X + k), compute(X + k, cp)
        np.testing.assert_array_equal(result.get(), expected.get())
        assert result.dtype == expected.dtype
    if name in MOVED:
        assert step.graph is not None
    else:
        assert step.graph is None and ("on the host" in step.reason or "other code" in step.reason)


@emulated
def test_a_float_argument_is_a_float(cp):
    def on(x, rate):
        return cp.asarray(x) * (2 if isinstance(rate, float) else 3)

    step = capture(cp)(on)
    for k in range(8):
        rate = 0.1 * k if k < 5 else np.float32(k)
        np.testing.assert_array_equal(step(X, rate).get(), on(X, rate).get())
    assert step.reason is None and step.graph is not None


@emulated
def test_labels_that_are_an_argument_pick_rows(cp):
    weight = nn.Parameter(cp.asarray(X))
    step = capture(cp)(lambda ids: weight.detach()[ids])
    for k in range(6):
        np.testing.assert_array_equal(step(np.array([k % 2, 1])).numpy(), X[[k % 2, 1]])
    assert step.graph is not None


@emulated
def test_ids_are_checked_before_each_launch(cp):
    """As in the step: an id of the wrong size raises, and whatever comes after is as if it had never come."""
    def make():
        model = nn.Embedding(5, 2, rng=np.random.default_rng(0)).to(cp)
        optimizer = Adam(model, 0.01)

        def on(ids):
            optimizer.zero_grad()
            loss = (model(ids[:, 1:]) * model(ids)[:, :1]).sum()
            loss.backward()
            optimizer.step()
            return loss

        return on

    plain, step = make(), capture(cp)(make())
    for k, wrong in enumerate([0, 0, 0, 0, 5, 0, -2, 0, 5, 0, 0]):
        ids = np.array([[1, 2, 3], [k % 5, -1, wrong]])
        if wrong:
            for each in (plain, step):
                with pytest.raises(IndexError, match="embedding: ids must be from -1"):
                    each(ids)
        else:
            assert step(ids).item() == plain(ids).item()
    assert step.graph is not None and step.reason is None
    moved = capture(cp)(lambda ids: ops.embedding(cp.asarray(ids), weight))
    weight = cp.ones((3, 2))
    for _ in range(4):
        moved(np.array([0, 2]))
    assert moved.graph is not None


@emulated
def test_labels_that_must_be_on_the_host_are_the_reason(cp):
    weight = nn.Parameter(cp.asarray(np.arange(8, dtype="float32").reshape(4, 2)))
    step = capture(cp, log=lambda reason: None)(lambda labels: sup_con(weight, 0.5, labels=labels).detach())
    for _ in range(4):
        step(np.array([0, 0, 1, 1]))
    assert step.reason == "sup_con takes labels from the host"


@emulated
def test_an_argument_that_is_returned_is_that_argument(cp):
    step = capture(cp)(lambda x: (x, x * 2))
    for k in range(5):
        x = cp.asarray(X + k)
        assert step(x)[0] is x
    assert step.graph is not None


@emulated
def test_a_momentum_may_be_set_before_each_step(cp):
    def make():
        rng = np.random.default_rng(0)
        model = BYOL(nn.Linear(6, 8, rng=rng), nn.Linear(8, 4, rng=rng), nn.Linear(4, 4, rng=rng), m=0.9).to(cp)
        optimizer = SGD(model, 0.05)

        def on(x):
            x = to_device(x, cp)
            loss = model.loss(model(x)[1], model.targets(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update()
            return loss

        return model, on

    (plain, plain_on), (model, on) = make(), make()
    on = capture(cp)(on)
    for k, x in enumerate(np.random.default_rng(2).standard_normal((7, 8, 6)).astype("float32")):
        plain.m = model.m = 1 - 0.1 / (k + 1)
        assert on(x).item() == plain_on(x).item()
    np.testing.assert_equal(model.state_dict(), plain.state_dict())
    assert on.reason is None and on.graph is not None


def test_on_numpy_and_of_several_processes_a_step_stays_what_it_is(capsys):
    class Two(World):
        size = 2

    step = capture(np)(small_step(np))
    plain = small_step(np)
    for x in np.random.default_rng(2).standard_normal((4, 8, 6)).astype("float32"):
        assert step(x)[0].item() == plain(x)[0].item()
    assert capsys.readouterr().out == "the training step is not captured as a CUDA graph: NumPy has no CUDA graphs\n"
    assert "2 processes" in capture(get_backend("cupy"), world=Two(), log=lambda line: None)(small_step(np)).reason


# ---------------------------------------------------------------- the parts

def test_what_the_host_computes_comes_back_as_it_is_without_a_capture(xp):
    x = xp.zeros(3, dtype="float32")
    rows, rate, count, nothing = each_step(x, lambda: [np.arange(3), 0.5, 2, None])
    assert type(rows) is type(x) and (rate, count, nothing) == (0.5, 2, None) and type(rate) is float


def test_values_are_supplied_once_and_in_order():
    drawn, x = [], np.zeros(1)
    with Step([[1.0], [2.0]]) as step:
        values = [each_step(x, lambda k=k: drawn.append(k) or [float(k)])[0] for k in range(4)]
    assert values == [1.0, 2.0, 2.0, 3.0] and drawn == [2, 3] and not step.supplied
    with Step(), pytest.raises(TypeError, match="read outside each_step"):
        float(Number(lambda: 1.0))


SHAPES = [((3, 4), (4, 5)), ((1, 4), (4, 5)), ((4, 1), (1, 5)), ((4, 7), (7, 1)), ((1, 4), (4, 1)), ((2, 3, 4), (2, 4, 5)),
          ((3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((4,), (4,)), ((0, 4), (4, 3))]


@emulated
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_products_for_a_capture_are_cupys(shapes, dtype, cp, rng):
    def layouts(shape):
        x = cp.asarray(rng.standard_normal(shape).astype(dtype))
        return [x, cp.ascontiguousarray(x.T).T, cp.repeat(x, 2, axis=-1)[..., ::2]]

    for x in layouts(shapes[0]):
        for y in layouts(shapes[1]):
            expected = x @ y
            with capturable(cp):
                np.testing.assert_array_equal((x @ y).get(), expected.get())
                if expected.ndim:
                    out = cp.empty_like(expected)
                    assert cp.matmul(x, y, out=out) is out
                    np.testing.assert_array_equal(out.get(), expected.get())
    assert "__matmul__" not in vars(cp.ndarray)


@emulated
def test_many_arrays_are_joined_for_a_capture(cp, rng):
    arrays = [cp.asarray(rng.standard_normal(5)) for _ in range(70)]
    expected, stacked = cp.concatenate(arrays).get(), cp.stack(arrays, axis=1).get()
    with capturable(cp):
        out = cp.empty(350)
        cp.concatenate(arrays, out=out)
        np.testing.assert_array_equal(out.get(), expected)
        np.testing.assert_array_equal(cp.stack(arrays, axis=1).get(), stacked)
