"""The gradient checker: correct backwards pass, and each one of a gallery of real mistakes is caught."""

import contextlib
import math
import re

import numpy as np
import pytest

import minicl
from minicl import GradcheckError, Tensor, contrastive, gradcheck, nn, op, ops
from minicl.optim import SGD

TAU = 0.3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def softmax_without_1_over_tau(x):
    z = x / TAU
    y = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return y, lambda g: (g - np.exp(y) * g.sum(axis=-1, keepdims=True),)


def softmax_without_the_sum(x):
    y = contrastive.log_softmax.forward(x, TAU)[0]
    return y, lambda g: (g / TAU,)


def cosine_without_the_projection(x):
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / length, lambda g: (g / length,)


def cosine_without_its_length(x):
    y, right = contrastive.l2_normalize.forward(x)
    return y, lambda g: (right(g)[0] * np.sqrt((x * x).sum(axis=-1, keepdims=True)),)


def nt_xent_without_its_pull(z1, z2):
    loss, right = contrastive.nt_xent.forward(z1, z2, TAU)
    return loss, lambda g: tuple(dz + other / 3 for dz, other in zip(right(g), (z2, z1)))


def nt_xent_with_one_view_only(z1, z2):
    loss, right = contrastive.nt_xent.forward(z1, z2, TAU)
    return loss, lambda g: (right(g)[0], np.zeros_like(z2))


def nt_xent_with_one_side_of_each_pair(z1, z2):
    """du_i = sum_j p_ij u_j - u_p(i): this lacks the pairs in which i is the candidate."""
    loss, right = contrastive.nt_xent.forward(z1, z2, TAU)
    return loss, lambda g: tuple(0.5 * dz for dz in right(g)[:2])


def logsumexp_without_its_normaliser(x):
    m = x.max(axis=-1, keepdims=True)
    e = np.exp(x - m)
    return np.log(e.sum(axis=-1)) + m[..., 0], lambda g: (g[..., None] * e,)


def softmax_with_a_gradient_through_the_row_maximum(x):
    """The shift leaves the value unchanged, so it has no gradient; here the largest score gets one."""
    y, right = contrastive.log_softmax.forward(x, TAU)
    return y, lambda g: (right(g)[0] - g.sum(axis=-1, keepdims=True) * (x == x.max(axis=-1, keepdims=True)),)


QUEUE = normal(5, 4, seed=2)


def gradient_into_the_queue(query, keys):
    """MoCo's queue is constant, whatever the keys are now; here the keys receive the queue's gradient."""
    return query @ QUEUE.T, lambda g: (g @ QUEUE, g.T @ query)


def writes_into_its_input(x):
    x *= 2
    return x * 1, lambda g: (2 * g,)


def log_where_it_has_no_value(x):
    """A finite difference below 0 gives NaN, which agrees with nothing."""
    with np.errstate(invalid="ignore"):
        return np.log(x), lambda g: (12345 * g,)


def writes_into_g(x):
    def backward(g):
        g *= x
        return (g,)
    return 0.5 * x * x, backward


def product_transposed(x, w):
    return x @ w, lambda g: (g @ w, x.T @ g)


def missing_broadcast_sum(x, b):
    return x + b, lambda g: (g, g[0])


def loss_without_g(x):
    return (x * x).sum(), lambda g: (2 * x,)


def logsumexp_without_g(x):
    y = np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return y, lambda g: (np.exp(x - y),)


def relu_without_g(x):
    return np.maximum(x, 0), lambda g: ((x > 0).astype(float),)


def line_with_swapped_gradients(x, scale, bias):
    return scale * x + bias, lambda g: (g * scale, g, g * x)


def sign_flipped(x):
    return 1 - x, lambda g: (g,)


def nan_at_zero(x):
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(length > 0, 1 / length, 0)
    def backward(g):
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((g - x * (x * g).sum(axis=-1, keepdims=True) / length**2) / length,)
    return x * scale, backward


GALLERY = [
    (softmax_without_1_over_tau, [normal(3, 4)], "factor 0.3: a missing or doubled 1/tau"),
    (softmax_without_the_sum, [normal(3, 4)], "is a term missing"),
    (cosine_without_the_projection, [normal(3, 4)], "is a term missing"),
    (nt_xent_with_one_view_only, [normal(3, 4), normal(3, 4, seed=1)], "zero everywhere"),
    (nt_xent_with_one_side_of_each_pair, [normal(3, 4), normal(3, 4, seed=1)], "off by a factor 2"),
    (logsumexp_without_its_normaliser, [normal(3, 4)], "each row is off by a factor of its own"),
    (cosine_without_its_length, [normal(3, 4)], "each row .* missing division by the row's length"),
    (nt_xent_without_its_pull, [normal(3, 4), normal(3, 4, seed=1)], "no common factor"),
    (softmax_with_a_gradient_through_the_row_maximum, [normal(3, 4)], "only some entries are wrong"),
    (gradient_into_the_queue, [normal(3, 4), normal(5, 4)], r"with respect to keys\[.*numeric 0"),
    (writes_into_g, [normal(3)], "writes into g"),
    (writes_into_its_input, [normal(3)], "writes_into_its_input writes into x"),
    (log_where_it_has_no_value, [np.array([5e-6])], "wrong"),
    (product_transposed, [normal(3, 4), normal(4, 4)], "transposed"),
    (missing_broadcast_sum, [normal(3, 4), normal(4)], "b\\["),
    (sign_flipped, [normal(3)], "the sign is flipped"),
    (line_with_swapped_gradients, [np.array(0.3), np.array(0.7), np.array(5.0)], "is a term or a factor missing, or are the"),
    (loss_without_g, [normal(3)], "a missing factor g, the gradient of the output"),
    (logsumexp_without_g, [normal(3, 4)], "a missing factor g, the gradient of the output"),
    (relu_without_g, [normal(3, 4)], "a missing factor g, the gradient of the output"),
    (nan_at_zero, [np.vstack([normal(1, 3), np.zeros((1, 3))])], "NaN or infinity in the backward"),
]


@pytest.mark.parametrize("wrong, inputs, words", GALLERY, ids=[wrong.__name__ for wrong, *_ in GALLERY])
def test_a_wrong_backward_is_caught(wrong, inputs, words):
    with pytest.raises(GradcheckError) as error:
        minicl.gradcheck(op(wrong), inputs)
    lines = str(error.value).splitlines()
    assert re.search(words, " ".join(str(error.value).split()))
    assert len(lines) == 1 or lines[1].startswith("    hint") and max(map(len, lines[1:])) <= 81


@pytest.mark.parametrize("right, inputs", [
    (lambda x: contrastive.log_softmax(x, TAU), [normal(3, 4)]),
    (contrastive.l2_normalize, [normal(3, 4)]),
    (lambda a, b: contrastive.nt_xent(a, b, TAU), [normal(3, 4), normal(3, 4, seed=1)]),
    (ops.matmul, [normal(3, 4), normal(4, 4)]),
    (ops.add, [normal(3, 4), normal(4)]),
], ids=["log_softmax", "l2_normalize", "nt_xent", "matmul", "add"])
def test_the_correct_ops_pass(right, inputs):
    assert minicl.gradcheck(right, inputs)


def test_a_cotangent_of_ones_would_miss_the_temperature():
    """The cotangent is random for this reason: summed with weights 1, a softmax is constant and has a gradient of 0."""
    x = Tensor(normal(3, 4), requires_grad=True)
    contrastive.softmax(x, TAU).sum().backward()
    assert np.abs(x.grad).max() < 1e-15


def test_the_message_names_op_argument_index_and_values():
    with pytest.raises(GradcheckError) as caught:
        minicl.gradcheck(op(missing_broadcast_sum), [normal(3, 4), normal(4)])
    text = str(caught.value)
    for word in ("missing_broadcast_sum", "b[", "analytic", "numeric", "ratio", "hint"):
        assert word in text


def test_inputs_must_be_double_precision():
    with pytest.raises(TypeError, match="x must be a float64 array, got float32"):
        minicl.gradcheck(ops.relu, [np.ones(3, "float32")])


def test_an_output_that_is_not_finite_raises():
    with np.errstate(divide="ignore"), pytest.raises(GradcheckError, match="output itself is not finite"):
        minicl.gradcheck(ops.log, [np.zeros(2)])


def test_a_random_op_raises():
    rng = np.random.default_rng(0)
    with pytest.raises(GradcheckError, match="a different value on each call.*random"):
        minicl.gradcheck(lambda x: ops.dropout(x, p=0.5, rng=rng), [normal(3, 4)])


@pytest.mark.parametrize("inputs, options", [([], {}), ([np.zeros((0, 3))], {}), ([normal(3)], {"sample": 0}),
                                             ([normal(3)], {"sample": -1})])
def test_nothing_to_check_is_an_error(inputs, options):
    with pytest.raises(ValueError, match="nothing to check"):
        minicl.gradcheck(lambda *xs: ops.exp(xs[0]), inputs, **options)


@pytest.mark.parametrize("empty", [lambda x: x[:0], lambda x: x[2:2], lambda x: x.reshape(3, 1)[:, :0], lambda x: ops.exp(x)[np.array([], int)]])
def test_an_output_without_entries_is_an_error(empty):
    with pytest.raises(ValueError, match="nothing to check; expected an output with entries, got .*0"):
        minicl.gradcheck(empty, [np.ones(3)])


@op
def forgets(x):
    return x**3, lambda g: (0 * g,)


@pytest.mark.parametrize("option", ["step", "rtol", "atol"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1e-5, "1e-5", None, True, -math.inf, 0, 0.5, 1, 2.0])
def test_no_tolerance_lets_every_gradient_pass(option, value):
    """A tolerance is refused, or finds that a gradient of 3 and more is 0."""
    with pytest.raises((TypeError, ValueError, GradcheckError), match=f"gradcheck: {option} must be|gradient of forgets"):
        minicl.gradcheck(forgets, [np.ones(3) + np.arange(3)], **{option: value})


@pytest.mark.parametrize("wrong", [normal(3).astype(">f8"), [1.0, 2.0], 1.0, Tensor(normal(3)),
                                   np.ma.masked_array(normal(3))])
def test_inputs_must_be_plain_arrays(wrong):
    with pytest.raises(TypeError, match="must be a"):
        minicl.gradcheck(ops.exp, [wrong])


def test_the_same_array_twice_counts_as_two_inputs():
    x = normal(2, 2)
    assert minicl.gradcheck(ops.mul, [x, x])


def test_inputs_of_any_layout_are_checked(rng):
    x = rng.standard_normal((30, 40))[::-1, ::-1]
    w = rng.standard_normal((20, 40)).T
    assert minicl.gradcheck(ops.linear, [x, w])


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_g_differs_from_an_input_drawn_with_the_same_seed(seed):
    """With g parallel to x the gradient of x / |x| is 0, so a wrong factor would pass."""
    wrong = op(cosine_without_its_length)
    with pytest.raises(GradcheckError, match="each row"):
        minicl.gradcheck(wrong, [normal(3, 4, seed=seed)], seed=seed)


def test_an_array_instead_of_a_list_of_arrays_is_refused():
    with pytest.raises(TypeError, match=r"inputs must be a list of arrays.*write gradcheck\(exp, \[x\]\)"):
        minicl.gradcheck(ops.exp, np.ones(3))


@pytest.mark.parametrize("before", ["no gradient", "a gradient", "an optimizer"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_gradients_of_a_model_in_the_function_stay_as_they_were(before, fails, recwarn):
    """The function may close over a model, to check the gradient of its input."""
    net = nn.Linear(3, 2, rng=np.random.default_rng(0)).astype("float64")
    other = nn.Linear(3, 2, rng=np.random.default_rng(0)).astype("float64")
    if before == "a gradient":
        (net(normal(4, 3)) ** 2).sum().backward()
    optimizer = SGD(net if before == "an optimizer" else other, 0.1)
    if before == "an optimizer":
        (net(normal(4, 3)) ** 2).sum().backward()
    grads = [None if p.grad is None else p.grad.copy() for p in net.parameters()]
    held = [p.grad for p in net.parameters()]
    x = normal(4, 3)

    def function(x):
        return net(x) * (1.5 if fails and not x.requires_grad else 1.0)

    with pytest.raises(GradcheckError) if fails else contextlib.nullcontext():
        gradcheck(function, [x])
    for p, grad, array in zip(net.parameters(), grads, held):
        assert p.grad is array
        np.testing.assert_array_equal(p.grad, grad)
    if before != "an optimizer":
        other(x).sum().backward()
    optimizer.step()                                         # no warning of parameters that it does not have
    assert not recwarn


def test_the_gradients_of_a_model_stay_as_they_were_if_the_backward_fails():
    net = nn.Linear(3, 2, rng=np.random.default_rng(0)).astype("float64")

    @op
    def fails(x):
        def backward(g):
            raise RuntimeError("in the backward")
        return x, backward

    with pytest.raises(RuntimeError, match="in the backward"):
        gradcheck(lambda x: net(fails(x)), [normal(4, 3)])
    assert all(p.grad is None for p in net.parameters())
