"""Optimizers against the formulas of their papers, one tensor at a time; and what the flat buffer must not break."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl.autograd import Tensor
from minicl.backend import threads, to_device, to_host
from minicl.nn import Linear, Parameter
from minicl.optim import LARS, SGD, Adam, AdamW, warmup_cosine

SHAPES = {"scale": (2,), "weight": (3, 4), "bias": (4,), "kernel": (3, 3, 2, 2), "temperature": ()}
STEPS = 6


# ---------------------------------------------------------------- the formulas, slowly

def slow_sgd(w, gradients, lr, decay, momentum=0.0, nesterov=False):
    u = np.zeros_like(w)
    for g in gradients:
        g = g + decay * w
        u = momentum * u + g
        w = w - lr * (g + momentum * u if nesterov else u)
    return w


def slow_adam(w, gradients, lr, decay, betas=(0.9, 0.999), eps=1e-8, decoupled=False):
    (b1, b2) = betas
    m = np.zeros_like(w)
    v = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            w = w - lr * decay * w
        else:
            g = g + decay * w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def slow_adamw(w, gradients, lr, decay, **options):
    return slow_adam(w, gradients, lr, decay, decoupled=True, **options)


def slow_lars(w, gradients, lr, decay, momentum=0.9, eta=1e-3):
    u = np.zeros_like(w)
    adapted = w.ndim >= 2
    for g in gradients:
        g = g + decay * w
        trust = eta * np.linalg.norm(w) / np.linalg.norm(g) if adapted else 1
        u = momentum * u + trust * g
        w = w - lr * u
    return w


FORMULAS = [
    (SGD, slow_sgd, {"momentum": 0.0}),
    (SGD, slow_sgd, {"momentum": 0.9}),
    (SGD, slow_sgd, {"momentum": 0.8, "nesterov": True}),
    (Adam, slow_adam, {}),
    (Adam, slow_adam, {"betas": (0.7, 0.95), "eps": 1e-3}),
    (AdamW, slow_adamw, {}),
    (AdamW, slow_adamw, {"betas": (0.5, 0.9)}),
    (LARS, slow_lars, {}),
    (LARS, slow_lars, {"momentum": 0.5, "eta": 0.02}),
]
NAMES = [f"{optimizer.__name__} {', '.join(map(str, options))}".strip() for optimizer, _, options in FORMULAS]
EACH = [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: Adam(p, 0.1), lambda p: AdamW(p, 0.1), lambda p: LARS(p, 0.1)]
each_optimizer = pytest.mark.parametrize("make", EACH, ids=["SGD", "Adam", "AdamW", "LARS"])


def initial(dtype="float64"):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def gradients_of(steps=STEPS, dtype="float64"):
    rng = np.random.default_rng(2)
    return [{name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()} for _ in range(steps)]


def parameters_from(arrays, xp):
    return [(name, Parameter(to_device(array.copy(), xp))) for name, array in arrays.items()]


def take_steps(optimizer, parameters, gradients, xp):
    """Steps along given gradients, which come by way of the tape: d/dp sum(p g) = g."""
    for arrays in gradients:
        optimizer.zero_grad()
        for name, p in parameters:
            (p * Tensor(to_device(arrays[name], xp))).sum().backward()
        optimizer.step()


# ---------------------------------------------------------------- each formula

@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("make, slow, options", FORMULAS, ids=NAMES)
def test_an_optimizer_takes_the_steps_of_its_formula(xp, make, slow, options, decay, dtype, rtol):
    start = initial(dtype)
    gradients = gradients_of(dtype=dtype)
    parameters = parameters_from(start, xp)
    optimizer = make(parameters, 0.05, weight_decay=decay, **options)
    take_steps(optimizer, parameters, gradients, xp)
    assert optimizer.steps == STEPS
    for name, p in parameters:
        w = start[name].astype("float64")
        each = [arrays[name].astype("float64") for arrays in gradients]
        expected = slow(w, each, 0.05, decay if w.ndim >= 2 else 0.0, **options)
        assert p.dtype == dtype
        np.testing.assert_allclose(to_host(p.data), expected, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("make, slow, options", FORMULAS[:-2], ids=NAMES[:-2])
def test_a_step_leaves_the_gradients_as_they_are(xp, make, slow, options):
    """They are the user's; LARS alone, whose trust ratio is the parameter's, scales them."""
    parameters = parameters_from(initial(), xp)
    gradients, = gradients_of(1)
    take_steps(make(parameters, 0.05, weight_decay=0.1, **options), parameters, [gradients], xp)
    for name, p in parameters:
        np.testing.assert_array_equal(to_host(p.grad), gradients[name], err_msg=name)


@pytest.mark.parametrize("make, slow", [(SGD, slow_sgd), (AdamW, slow_adamw)])
def test_slices_on_threads_take_the_same_steps(rng, make, slow):
    start = {"weight": rng.standard_normal((700, 300)), "bias": rng.standard_normal(70000)}       # > one slice each
    gradients = [{name: rng.standard_normal(w.shape) for name, w in start.items()} for _ in range(3)]
    parameters = parameters_from(start, np)
    with threads(2):
        take_steps(make(parameters, 0.01, weight_decay=0.1), parameters, gradients, np)
    for name, p in parameters:
        expected = slow(start[name], [arrays[name] for arrays in gradients], 0.01, 0.1 if p.ndim >= 2 else 0.0)
        np.testing.assert_allclose(p.data, expected, rtol=1e-10, atol=1e-10)


def test_the_learning_rate_of_a_step_overrides_the_default(rng):
    p = Parameter(np.float64([1.0]))
    optimizer = SGD([("p", p)], 0.5, momentum=0.0)
    p.grad[...] = 1
    optimizer.step(0.25)
    assert p.data[0] == 0.75
    optimizer.step()
    assert p.data[0] == 0.25


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, LARS])
def test_a_learning_rate_from_numpy_is_a_number(make, xp):
    ends = []
    for rate in (0.1, np.float64(0.1)):
        p = Parameter(xp.ones((2, 3), dtype="float32"))
        optimizer = make([("p", p)], rate)
        p.grad[...] = 0.3
        optimizer.step()
        ends.append(to_host(p.data))
    np.testing.assert_array_equal(*ends)


def test_gradients_add_up_until_they_are_cleared(xp):
    p = Parameter(xp.ones(3, dtype="float32"))
    optimizer = SGD([("p", p)], 0.1, momentum=0.9)
    for _ in range(2):
        (p * 2.0).sum().backward()
    assert to_host(p.grad).tolist() == [4, 4, 4]
    optimizer.zero_grad()
    assert to_host(p.grad).tolist() == [0, 0, 0]


# ---------------------------------------------------------------- weight decay

@pytest.mark.parametrize("make", [SGD, Adam, AdamW, LARS])
def test_weight_decay_shrinks_matrices_and_kernels_only(xp, make):
    start = initial("float32")
    parameters = parameters_from(start, xp)
    optimizer = make(parameters, 0.1, weight_decay=0.5)
    take_steps(optimizer, parameters, [{name: 0 * w for name, w in start.items()}], xp)
    for name, p in parameters:
        if p.ndim >= 2:
            assert np.linalg.norm(to_host(p.data)) < np.linalg.norm(start[name])
        else:
            np.testing.assert_array_equal(to_host(p.data), start[name])


def test_adamw_decays_the_weights_and_not_their_gradient():
    p = Parameter(np.full((1, 1), 2.0))
    optimizer = AdamW([("p", p)], 0.1, weight_decay=0.5)
    (p * 0.0).sum().backward()
    optimizer.step()
    assert p.data[0, 0] == pytest.approx(2.0 * (1 - 0.1 * 0.5), rel=1e-12)


# ---------------------------------------------------------------- LARS

def test_lars_leaves_weights_of_zero(xp):
    p = Parameter(xp.zeros((2, 2), dtype="float32"))
    optimizer = LARS([("p", p)], 0.1)
    p.grad[...] = 1
    optimizer.step()
    np.testing.assert_allclose(to_host(p.data), -0.1, rtol=1e-6)         # trust 1, not 0


def test_lars_leaves_zero_biases(xp):
    p = Parameter(xp.zeros(3, dtype="float32"))
    optimizer = LARS([("p", p)], 0.1)
    p.grad[...] = 1
    optimizer.step()
    np.testing.assert_allclose(to_host(p.data), -0.1, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_stays_finite_where_a_gradient_is_zero(xp, decay):
    p = Parameter(xp.ones((2, 2), dtype="float32"))
    optimizer = LARS([("p", p)], 0.1, weight_decay=decay)
    for _ in range(3):
        optimizer.zero_grad()
        (p * 0.0).sum().backward()
        optimizer.step()
    assert np.isfinite(to_host(p.data)).all()


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient(xp):
    ends = []
    for scale in (1.0, 1000.0):
        p = Parameter(xp.ones((2, 2), dtype="float64"))
        optimizer = LARS([("p", p)], 0.1, weight_decay=0.0)
        p.grad[...] = scale
        optimizer.step()
        ends.append(to_host(p.data))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


# ---------------------------------------------------------------- the flat buffer

@each_optimizer
def test_parameters_stay_views_of_one_buffer(xp, rng, make):
    model = Linear(3, 4, rng=rng).to(xp)
    optimizer = make(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(Tensor(xp.ones((2, 3), dtype="float32"))).sum().backward()
        optimizer.step()
    optimizer.values[...] = 5
    optimizer.grads[...] = 6
    for p in model.parameters():
        assert (to_host(p.data) == 5).all() and (to_host(p.grad) == 6).all()


def test_taking_hold_of_parameters_keeps_their_values(xp):
    start = initial("float32")
    parameters = parameters_from(start, xp)
    SGD(parameters, 0.1, momentum=0.9)
    for name, p in parameters:
        np.testing.assert_array_equal(to_host(p.data), start[name])


@pytest.mark.filterwarnings("ignore:.* moves nothing")       # where what was reached is frozen
@pytest.mark.parametrize("make, options", [(make, options) for make, _, options in FORMULAS], ids=NAMES)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_gradients_from_before_the_optimizer_count_like_those_after_it(make, options, data):
    """Wherever the optimizer is made among the backward passes, its steps are the same, bit for bit, as in PyTorch."""
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    passes = data.draw(st.lists(st.sets(st.sampled_from([*SHAPES]), min_size=1), min_size=1, max_size=4))
    made = data.draw(st.integers(0, len(passes)))
    frozen = data.draw(st.sets(st.sampled_from([*SHAPES]), max_size=len(SHAPES) - 1))
    ends = []
    for when in (made, 0):
        parameters = dict(parameters_from(initial(dtype), np))
        for k, (names, arrays) in enumerate(zip(passes, gradients_of(len(passes), dtype))):
            if k == when:
                optimizer = make(parameters.items(), 0.05, weight_decay=0.1, **options)
            sum((parameters[name] * Tensor(arrays[name])).sum() for name in sorted(names)).backward()
        if when == len(passes):
            optimizer = make(parameters.items(), 0.05, weight_decay=0.1, **options)
        for name in frozen:
            parameters[name].requires_grad = False
        gradients = optimizer.grads.copy()
        optimizer.step()
        ends.append([gradients, *optimizer.state_dict().values(), *(p.data for p in parameters.values())])
    for early, late in zip(*ends):
        np.testing.assert_array_equal(early, late)


def test_gradients_from_before_the_optimizer_can_be_cleared(xp):
    p = Parameter(xp.ones(3, dtype="float32"))
    (p * 2.0).sum().backward()
    optimizer = SGD([("p", p)], 0.1)
    assert to_host(p.grad).tolist() == [2, 2, 2]
    optimizer.zero_grad()
    assert to_host(p.grad).tolist() == [0, 0, 0]


def test_a_loaded_model_state_reaches_the_optimizer(xp, rng):
    model = Linear(3, 4, rng=rng).to(xp)
    other = Linear(3, 4, rng=rng)
    optimizer = SGD(model, 0.1, momentum=0.9)
    model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(to_host(optimizer.values[:12]), other.weight.data.reshape(-1))
    optimizer.grads[...] = 1
    optimizer.step()


@pytest.mark.parametrize("replace", [
    lambda model, p: setattr(p, "data", p.data.copy()),
    lambda model, p: setattr(p, "grad", p.grad.copy()),
    lambda model, p: setattr(p, "grad", None),
    lambda model, p: model.astype("float64"),
], ids=["data", "grad", "grad cleared", "astype"])
@each_optimizer
def test_a_parameter_taken_away_from_the_optimizer_is_named(rng, make, replace):
    model = Linear(3, 4, rng=rng)
    optimizer = make(model)
    replace(model, model.weight)
    with pytest.raises(RuntimeError, match="weight no longer views the optimizer's buffer.*zero_grad"):
        optimizer.step()


# ---------------------------------------------------------------- state

@each_optimizer
def test_a_restored_optimizer_goes_on_identically(xp, make):
    gradients = gradients_of(dtype="float32")
    whole = parameters_from(initial("float32"), xp)
    take_steps(make(whole), whole, gradients, xp)

    first = parameters_from(initial("float32"), xp)
    optimizer = make(first)
    take_steps(optimizer, first, gradients[:3], xp)
    state = optimizer.state_dict()
    second = parameters_from({name: to_host(p.data) for name, p in first}, xp)
    optimizer = make(second)
    optimizer.load_state_dict(state)
    take_steps(optimizer, second, gradients[3:], xp)

    assert optimizer.steps == STEPS
    for (name, p), (_, q) in zip(whole, second):
        np.testing.assert_array_equal(to_host(p.data), to_host(q.data), err_msg=name)


@each_optimizer
def test_state_is_a_copy_on_the_host(xp, make):
    parameters = parameters_from(initial("float32"), xp)
    optimizer = make(parameters)
    state = optimizer.state_dict()
    take_steps(optimizer, parameters, gradients_of(1, "float32"), xp)
    assert len(state) == 1 + len(parameters) * (1 + len(optimizer.state_names))
    assert all(type(array) is np.ndarray and not array.any() for array in state.values())


@pytest.mark.parametrize("state", [
    lambda: SGD(parameters_from(initial(), np), 0.1).state_dict(),
    lambda: Adam([("p", Parameter(np.zeros(3)))], 0.1).state_dict(),
    lambda: {name: array for name, array in Adam(parameters_from(initial(), np), 0.1).state_dict().items()
             if name != "Adam.steps"},
], ids=["another optimizer", "another model", "no step count"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state):
    parameters = parameters_from(initial(), np)
    optimizer = Adam(parameters, 0.1)
    take_steps(optimizer, parameters, gradients_of(1), np)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="the state does not fit this Adam"):
        optimizer.load_state_dict(state())
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ---------------------------------------------------------------- options

@pytest.mark.parametrize("make", [SGD, Adam, AdamW, LARS])
@pytest.mark.parametrize("lr, options, message", [
    (0.0, {}, r"lr must be a number in \(0, inf\), got 0.0"), (-1.0, {}, "lr .*got -1.0"),
    (float("nan"), {}, "lr .*got nan"), ("0.1", {}, "lr .*got '0.1'"), (float("inf"), {}, "lr .*got inf"),
    (0.1, {"weight_decay": -1e-4}, r"weight_decay must be a number in \[0, inf\), got -0.0001"),
    (0.1, {"weight_decay": float("nan")}, "weight_decay .*got nan"),
])
def test_a_bad_rate_or_decay_is_named(make, lr, options, message):
    with pytest.raises((TypeError, ValueError), match=f"{make.__name__}: {message}"):
        make(parameters_from(initial(), np), lr, **options)


@pytest.mark.parametrize("make", [SGD, LARS])
@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_bad_momentum_is_named(make, momentum):
    with pytest.raises(ValueError, match=rf"{make.__name__}: momentum must be a number in \[0, 1\), got {momentum}"):
        make(parameters_from(initial(), np), 0.1, momentum=momentum)


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_bad_betas_are_named(make, betas):
    with pytest.raises(ValueError, match=rf"{make.__name__}: betas\[.\] must be a number in \[0, 1\), got "):
        make(parameters_from(initial(), np), 0.1, betas=betas)


def test_an_optimizer_of_nothing_says_what_to_pass():
    with pytest.raises(ValueError, match="SGD: got no parameters; pass the model"):
        SGD([], 0.1)


def test_parameters_of_two_dtypes_are_refused():
    mixed = [("a", Parameter(np.zeros(2, "float32"))), ("b", Parameter(np.zeros(2, "float64")))]
    with pytest.raises(ValueError, match="SGD: .*one dtype.*float32.*float64"):
        SGD(mixed, 0.1)


# ---------------------------------------------------------------- schedule

@pytest.mark.parametrize("replaced", ["values", "grads"])
def test_a_replaced_array_of_all_values_or_gradients_is_an_error(replaced, rng):
    """By an optimizer of one's own that forgets to write in place."""
    class Mine(SGD):
        pass

    net = Linear(2, 2, rng=rng)
    optimizer = Mine(net, 0.1)
    net(np.ones((1, 2), dtype="float32")).sum().backward()
    setattr(optimizer, replaced, getattr(optimizer, replaced) * 0.9)
    for method in (optimizer.step, optimizer.zero_grad):
        with pytest.raises(RuntimeError, match="Mine: .values or .grads was replaced, which moves no parameter; write into the"):
            method()


def test_warmup_cosine_at_its_landmarks():
    def rate(step):
        return warmup_cosine(step, total=110, peak=2.0, warmup=10, floor=0.5)

    assert rate(0) == pytest.approx(0.2)                     # the first of ten equal steps up: never a rate of 0
    assert rate(4) == pytest.approx(1.0)
    assert rate(9) == rate(10) == 2.0
    assert rate(60) == pytest.approx(0.5 + 1.5 / 2)          # half way down
    assert rate(35) == pytest.approx(0.5 + 1.5 * (1 + np.sqrt(0.5)) / 2)
    assert rate(110) == 0.5
    with pytest.raises(ValueError, match="warmup_cosine: expected .*step <= total, all in steps, .* step=111, total=110"):
        rate(111)                                            # such as epochs given as the total


def test_warmup_cosine_rises_and_then_falls():
    rates = [warmup_cosine(step, total=100, peak=1.0, warmup=20) for step in range(101)]
    assert (np.diff(rates[:20]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-12) and min(rates[:-1]) > 0


def test_without_warmup_the_schedule_starts_at_its_peak():
    assert warmup_cosine(0, total=10, peak=3.0) == 3.0


@pytest.mark.parametrize("warmup, total", [(10, 10), (11, 10), (-1, 10), (0, 0)])
def test_a_warmup_that_does_not_fit_is_refused(warmup, total):
    with pytest.raises(ValueError, match="warmup_cosine: .*warmup"):
        warmup_cosine(0, total=total, peak=1.0, warmup=warmup)


ODD = {"step": [-5, 2.5, True, None], "total": [0, -1, 10.5, True, "10"], "peak": [-1, "1", None], "warmup": [-1, 2.5, 10],
       "floor": [-1, 5, None]}


@pytest.mark.parametrize("option, value", [(option, value) for option, values in ODD.items() for value in [*values, np.nan, np.inf]])
def test_what_is_not_a_rate_or_a_count_is_named(option, value):
    fine = {"step": 0, "total": 10, "peak": 1.0, "warmup": 2, "floor": 0.1}
    with pytest.raises((ValueError, TypeError), match=f"warmup_cosine: .*{option}"):
        warmup_cosine(**{**fine, option: value})


@pytest.mark.parametrize("value", ["no", 1, 0, None, 0.5])
def test_nesterov_is_true_or_false(value):
    with pytest.raises(TypeError, match="SGD: nesterov must be True or False"):
        SGD([("w", Parameter(np.ones(2)))], 0.1, momentum=0.9, nesterov=value)


def test_moments_find_their_parameters_by_name():
    """Two parameters of one shape, defined in the other order, do not swap their moments."""
    def optimizer(names):
        return SGD([(name, Parameter(np.zeros((2, 2)))) for name in names], 0.1)
    trained = optimizer("ab")
    trained.state["momentum"][:4] = 1                        # a's
    other = optimizer("ba")
    other.load_state_dict(trained.state_dict())
    np.testing.assert_array_equal(other.state["momentum"], [0] * 4 + [1] * 4)


# ---------------------------------------------------------------- clipping

@pytest.mark.parametrize("optimizer_class", [SGD, AdamW, LARS])
@pytest.mark.parametrize("most", [0.5, 1e6])
def test_clipping_scales_all_gradients_by_one_factor(xp, optimizer_class, most):
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape, dtype="float32") for name, shape in SHAPES.items()}
    gradients = {name: rng.standard_normal(shape, dtype="float32") for name, shape in SHAPES.items()}
    norm = np.sqrt(sum((g.astype("float64")**2).sum() for g in gradients.values()))
    ends = []
    for scale, options in ((1, {"clip_grad_norm": most}), (min(1, most / norm), {})):
        parameters = {name: Parameter(to_device(w.copy(), xp)) for name, w in start.items()}
        optimizer = optimizer_class(parameters.items(), lr=0.1)
        for name, p in parameters.items():
            p.grad[...] = to_device((gradients[name] * scale).astype("float32"), xp)
        returned = optimizer.step(**options)
        assert (returned is None) == (not options)
        if options:
            np.testing.assert_allclose(to_host(returned), norm, rtol=1e-6)
            assert returned.shape == () and returned.dtype == "float64"
        ends.append({name: to_host(p.data) for name, p in parameters.items()})
    for name in start:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


def test_clipping_survives_no_gradient_and_squares_that_overflow(xp):
    w = Parameter(xp.ones(3, dtype="float32"))
    optimizer = SGD([("w", w)], lr=1.0, momentum=0.0)
    for reach in (lambda: None, (w * 0.0).sum().backward):
        reach()
        with pytest.warns(match="moves nothing") if not w.reached else contextlib.nullcontext():
            assert float(optimizer.step(clip_grad_norm=1.0)) == 0 and to_host(w.data).tolist() == [1, 1, 1]
    w.grad[...] = xp.asarray([3e18, 0, 4e18], dtype="float32")
    assert float(optimizer.step(clip_grad_norm=1.0)) == pytest.approx(5e18)
    np.testing.assert_allclose(to_host(w.data), [0.4, 1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("most", [0, -1.0, float("nan"), "1", True])
def test_what_to_clip_to_is_a_number_above_zero(most):
    optimizer = SGD([("w", Parameter(np.ones(3, dtype="float32")))], lr=1.0)
    with pytest.raises((TypeError, ValueError), match="SGD: clip_grad_norm must be a number in"):
        optimizer.step(clip_grad_norm=most)
    assert optimizer.steps == 0


def test_gradients_of_another_optimizer_are_not_cleared(rng):
    """A loop that calls zero_grad() of the one and step() of the other would add up the gradients of all steps."""
    model = Linear(3, 2, rng=rng)
    every = SGD(model, 0.1)
    SGD([("weight", model.weight)], 0.1)
    for call in (every.zero_grad, every.step):
        with pytest.raises(RuntimeError, match="SGD: weight no longer views the optimizer's buffer; .*one optimizer only"):
            call()
