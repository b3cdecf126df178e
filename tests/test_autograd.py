"""The tape: what is recorded, the order of the walk, where gradients accumulate, and what is refused."""

import asyncio
import gc
import inspect
import operator
import re
import threading
import weakref

import numpy as np
import pytest
from cases import CASES, all_ops
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minicl
from minicl import Scalar, Tensor, nn, no_grad, op, ops
from minicl.backend import to_host
from minicl.methods import frozen_copy


def leaf(*values, xp=np, dtype="float64"):
    return Tensor(xp.asarray(values, dtype=dtype), requires_grad=True)


# ---------------------------------------------------------------- the walk

def test_a_chain_of_5000_ops_can_be_walked(xp):
    x = leaf(1.0, xp=xp)
    y = x
    for _ in range(5000):
        y = y * 1.0001
    y.sum().backward()
    np.testing.assert_allclose(to_host(x.grad), 1.0001**5000, rtol=1e-9)


def test_a_diamond_adds_the_gradients_of_both_paths(xp):
    x = leaf(3.0, xp=xp)
    left, right = x * 2, x * x
    (left * right).sum().backward()                          # 2 x^3
    np.testing.assert_allclose(to_host(x.grad), 6 * 3.0**2)


def test_a_ladder_of_diamonds_visits_each_node_once():
    """Walking every path would take 2^60 steps."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.sum().backward()
    assert x.grad[0] == 2.0**60


def test_a_parameter_used_twice_gets_both_gradients(xp):
    w = leaf(2.0, 3.0, xp=xp)
    (w * w + w).sum().backward()
    np.testing.assert_allclose(to_host(w.grad), [5.0, 7.0])


def test_the_gradient_of_a_broadcast_bias_sums_over_the_added_axes(xp):
    x = Tensor(xp.ones((4, 5, 3)))
    b = leaf(1.0, 2.0, 3.0, xp=xp)
    (x + b).sum().backward()
    np.testing.assert_allclose(to_host(b.grad), [20.0, 20.0, 20.0])


def test_gradients_add_up_over_backward_calls_and_are_not_shared_between_leaves():
    x, y = leaf(1.0), leaf(2.0)
    (x + y).sum().backward()                                 # add returns one array for both gradients
    (x * 3).sum().backward()
    assert x.grad[0] == 4 and y.grad[0] == 1


def test_only_leaves_keep_gradients():
    x = leaf(1.0)
    y = x * 2
    y.sum().backward()
    assert y.grad is None and x.grad is not None


def test_closures_are_freed_as_the_tape_is_walked():
    saved = []

    @op
    def keeps_a_copy(x):
        kept = x.copy()
        saved.append(weakref.ref(kept))
        return x * 1, lambda g: (g * kept,)

    y = keeps_a_copy(leaf(1.0))
    assert saved[0]() is not None
    y.sum().backward()
    gc.collect()
    assert saved[0]() is None


def test_ops_are_recorded_only_where_a_gradient_is_needed():
    x = leaf(1.0)
    c = Tensor(np.ones(1))
    with no_grad():
        assert (x * 2).node is None
    assert (c * 2).node is None
    assert (x * 2).node is not None


def test_no_grad_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert (leaf(1.0) * 2).node is not None


def test_detach_stops_the_gradient():
    x = leaf(3.0)
    (x * x.detach()).sum().backward()
    assert x.grad[0] == 3                                    # not 6


def test_an_op_whose_backward_returns_none_stops_the_gradient():
    @op
    def stop(x):
        return x * 1, lambda g: (None,)

    x = leaf(3.0)
    (x * stop(x * 2)).sum().backward()
    assert x.grad[0] == 6                                    # not 12


def test_backward_starts_from_a_given_gradient(xp):
    x = leaf(1.0, 2.0, xp=xp)
    (x * x).backward(xp.asarray([1.0, 10.0]))
    np.testing.assert_allclose(to_host(x.grad), [2.0, 40.0])


# ---------------------------------------------------------------- refusals

def test_backward_twice_raises():
    loss = (leaf(1.0) * 2).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="already walked"):
        loss.backward()


def test_a_second_loss_on_a_freed_tape_raises():
    shared = leaf(1.0) * 2
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="'mul' was already walked and freed; add up losses"):
        (shared * 3).sum().backward()


def test_backward_needs_a_scalar_or_a_gradient():
    with pytest.raises(RuntimeError, match=r"needs a scalar, got shape \(2,\)"):
        (leaf(1.0, 2.0) * 2).backward()


def test_backward_checks_the_gradient_it_is_given():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(ValueError, match=r"backward\(g\): expected an array of shape \(2,\), dtype float64"):
        y.backward(np.ones(3))


def test_backward_without_a_tape_raises():
    with pytest.raises(RuntimeError, match="no recorded op"):
        Tensor(np.ones(1)).sum().backward()


@pytest.mark.parametrize("data", [np.arange(3), np.array([True]), [1, 2]], ids=["ids", "bools", "list of ints"])
def test_tensors_hold_floats(data):
    with pytest.raises(TypeError, match="Tensor: data must be a floating-point array"):
        Tensor(data)


def test_python_floats_become_float32():
    assert Tensor([1.0, 2.0]).dtype == "float32" and Tensor(3.0).shape == ()


@pytest.mark.skipif("config.getoption('--backend') == 'numpy'", reason="--backend numpy: there is no second backend")
def test_backends_are_not_mixed():
    cupy = minicl.get_backend("cupy")
    with pytest.raises(TypeError, match="add: x is on numpy but y is on cupy"):
        ops.add(Tensor(np.ones(2)), Tensor(cupy.ones(2)))


@pytest.mark.parametrize("function", [np.sum, np.mean, np.concatenate, np.where, np.clip, np.linalg.norm, np.stack, np.dot])
def test_numpys_functions_refuse_tensors(function):
    x = Tensor(np.ones(3))
    with pytest.raises(TypeError, match=rf"np\.(linalg.)?{function.__name__} takes arrays, not Tensors.* use the op of minicl.ops"):
        function([x, x]) if function in (np.concatenate, np.stack) else function(x, *[1] * (function in (np.where, np.dot)))


def test_numpys_shape_ndim_and_size_are_those_of_the_data():
    x = Tensor(np.ones((2, 3)))
    assert (np.shape(x), np.ndim(x), np.size(x), np.size(x, 1)) == ((2, 3), 2, 6, 3)


def test_a_scalar_is_formatted_by_its_value():
    loss = Tensor(np.array(1 / 3, "float32"))
    assert f"{loss:.3f}" == "0.333" and f"{loss:>6.1f}" == "   0.3" and f"{loss}" == str(loss) == f"{loss!s}"
    with pytest.raises(TypeError, match="format"):
        f"{Tensor(np.ones(3)):.3f}"


def test_a_truth_value_is_refused():
    with pytest.raises(TypeError, match="truth value"):
        bool(leaf(1.0))


def test_item_needs_one_element():
    with pytest.raises(ValueError, match=r"one element, got shape \(2,\)"):
        leaf(1.0, 2.0).item()


@pytest.mark.parametrize("wrong, words", [
    (lambda x, g: g[:1], r"the gradient of x must be float64 array of shape \(2,\), got .*\(1,\)"),
    (lambda x, g: g.astype("float32"), "the gradient of x must be .* got float32 array"),
    (lambda x, g: (g,) * 2, "expected a tuple of 1 gradients"),
    (lambda x, g: ((g,),), r"the gradient of x must be float64 array .* got a tuple; .* take its entry"),
    (lambda x, g: 0, r"the gradient of x must be float64 array of shape \(2,\), got int64 array of shape \(\)"),
], ids=["shape", "dtype", "count", "tuple", "number"])
def test_a_backward_that_returns_the_wrong_thing_is_named(wrong, words):
    @op
    def broken(x):
        def backward(g):
            dx = wrong(x, g)
            return dx if isinstance(dx, tuple) else (dx,)
        return x * 1, backward

    with pytest.raises(RuntimeError, match="backward of broken: " + words):
        broken(leaf(1.0, 2.0)).sum().backward()


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (1, 3), (2, 5, 3), (1,)])
def test_a_gradient_is_summed_only_from_the_outputs_shape(shape):
    """Otherwise a wrong backward would be added up to the right shape."""
    @op(broadcasts=True)
    def broken(x, y):
        return x * y, lambda g: (np.ones(shape) * 2.0, None)

    with pytest.raises(RuntimeError, match="backward of broken: the gradient of x must be"):
        broken(leaf(1.0, 2.0, 3.0), leaf(1.0, 2.0, 3.0)).sum().backward()


def test_a_gradient_of_a_scalar_output_is_not_summed():
    @op(broadcasts=True)
    def broken(x, y):
        return x * y, lambda g: (np.ones(3) * g, None)

    with pytest.raises(RuntimeError, match="backward of broken: the gradient of x must be float64 array of shape"):
        broken(leaf(1.0).sum(), leaf(2.0).sum()).backward()


def test_missing_and_surplus_arguments_are_named():
    with pytest.raises(TypeError, match="add: missing argument 'y'"):
        ops.add(leaf(1.0))
    with pytest.raises(TypeError, match="relu: expected 1 inputs .* options are passed by keyword"):
        ops.relu(leaf(1.0), 0.1)


def test_inputs_may_be_named():
    np.testing.assert_array_equal(ops.sub(y=leaf(1.0), x=leaf(3.0)).data, [2.0])


# ---------------------------------------------------------------- arguments by name

@op
def scaled(x, tau: Scalar = 2.0, *, shift=0.0, needs_grad=(True, True)):
    """y = x / tau + shift"""
    return x / tau + shift, lambda g: (g / tau, None)


@pytest.mark.parametrize("call", [lambda x: scaled(x, 4.0), lambda x: scaled(x, tau=4.0),
                                  lambda x: scaled(x, temperature=4.0), lambda x: scaled(temperature=4.0, x=x),
                                  lambda x: scaled(x, Tensor(np.array(4.0)))])
def test_a_temperature_has_two_names(call):
    assert call(leaf(8.0)).data == [2.0]


@pytest.mark.parametrize("lifted", [each for each in all_ops() if "tau" in each.names], ids=lambda each: each.__name__)
def test_every_op_with_a_tau_takes_a_temperature(lifted):
    case = next(case for case in CASES if case.op is lifted)
    options = {name: value() if callable(value) else value for name, value in case.options.items()}
    inputs, tau = case.inputs[:-1], case.inputs[-1]
    assert lifted.names[-1] == "tau"
    by_name = lifted(*inputs, temperature=tau, **options)
    np.testing.assert_array_equal(by_name.data, lifted(*inputs, tau, **options).data)


@pytest.mark.parametrize("call, words", [
    (lambda x: scaled(x, 4.0, temperature=2.0), "scaled: tau is given twice, also as temperature"),
    (lambda x: scaled(x, tau=4.0, temperature=2.0), "scaled: tau is given twice, also as temperature"),
    (lambda x: scaled(x, 4.0, tau=2.0), "scaled: 'tau' is given twice"),
    (lambda x: scaled(x, x=x), "scaled: 'x' is given twice"),
    (lambda x: scaled(x, temprature=2.0), "scaled: unknown argument 'temprature'; did you mean 'temperature'"),
    (lambda x: scaled(x, 4.0, shfit=2.0), "scaled: unknown argument 'shfit'; did you mean 'shift'"),
    (lambda x: scaled(x, q=2.0), "scaled: unknown argument 'q'; expected x, tau, shift, temperature"),
    (lambda x: scaled(y=x), "scaled: unknown argument 'y'"),
    (lambda x: ops.relu(x, temperature=2.0), "relu: unknown argument 'temperature'; expected x"),
    (lambda x: ops.concat(x, x, axes=0), "concat: unknown argument 'axes'; did you mean 'axis'"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_misspelt_argument_is_named_with_the_closest_match(call, words):
    with pytest.raises(TypeError, match=words):
        call(leaf(1.0))


@pytest.mark.parametrize("lifted", all_ops(), ids=lambda each: each.__name__)
def test_needs_grad_is_neither_shown_nor_accepted(lifted):
    assert "needs_grad" not in inspect.signature(lifted).parameters
    case = next(case for case in CASES if case.op is lifted)
    options = {name: value() if callable(value) else value for name, value in case.options.items()}
    with pytest.raises(TypeError, match=f"{lifted.__name__}: unknown argument 'needs_grad'"):
        lifted(*case.inputs, **options, needs_grad=(True,) * len(case.inputs))


def test_an_op_cannot_take_arbitrary_options():
    with pytest.raises(TypeError, match=r"@op: anything takes \*\*options"):
        @op
        def anything(x, **options):
            return x, lambda g: (g,)


@pytest.mark.parametrize("call", [
    lambda x, t: ops.leaky_relu(x, slope=t), lambda x, t: ops.clip(x, low=t), lambda x, t: ops.layer_norm(x, t, t, eps=t),
    lambda x, t: x.sum(axis=t), lambda x, t: scaled(x, shift=t), lambda x, t: x**t, lambda x, t: x[t],
], ids=["slope", "low", "eps", "axis", "shift", "exponent", "key"])
def test_an_option_cannot_be_a_tensor(call):
    with pytest.raises(TypeError, match="cannot be a Tensor, since no gradient would reach an option"):
        call(leaf(1.0, 2.0), leaf(0.5))


def test_an_op_needs_an_input():
    with pytest.raises(TypeError, match="@op: constant takes no input"):
        @op
        def constant(*, shape):
            return np.ones(shape), lambda g: ()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("given", [Tensor, lambda t: t, lambda t: Tensor(t, requires_grad=True)])
def test_a_scalar_is_one_number(shape, given):
    @op
    def scaled(x, t: minicl.Scalar):
        return x * t, lambda g: (g * t, np.asarray((g * x).sum()))

    x = Tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(ValueError, match=r"scaled: t must be one number, got shape \("):
        scaled(x, given(np.ones(shape)))
    assert [scaled(x, t).data[0, 0] for t in (2, 2.0, np.float64(2), Tensor(np.array(2.0)), np.array(2.0))] == [2.0] * 5


@pytest.mark.parametrize("written", ["Scalar", "minicl.Scalar", "short.Scalar", "Scalar | None", "S"])
def test_annotations_may_be_strings(written):
    """`from __future__ import annotations` turns all annotations into strings, in functions as well as in modules."""
    space = {"minicl": minicl, "op": op, "S": Scalar}
    exec(f"""from __future__ import annotations
def inside():
    import minicl as short
    from minicl import Index, Mask, Scalar
    @op
    def select(ids: Index, x, mask: Mask, tau: {written} = 2.0):
        return x[ids] * mask / tau, lambda g: (None, g, None, None)
    return select
select = inside()""", space)
    y = space["select"](np.array([1]), np.array([3.0, 4.0]), np.array([True]))
    assert y.data == [2.0] and space["select"].checks.scalars == {"tau"}


# ---------------------------------------------------------------- numbers and arrays beside Tensors

def test_a_numpy_float64_scalar_does_not_promote():
    x = leaf(1.0, dtype="float32")
    assert (x * np.float64(2)).dtype == "float32"
    assert (np.float64(2) * x).dtype == "float32"


def test_an_array_on_the_left_of_a_tensor_gives_a_tensor(xp):
    array = xp.ones(2)
    x = leaf(1.0, 2.0, xp=xp)
    for y, expected in [(array + x, [2, 3]), (array - x, [0, -1]), (array * x, [1, 2]), (array / x, [1, 0.5])]:
        assert isinstance(y, Tensor)
        np.testing.assert_allclose(to_host(y.data), expected)
    assert isinstance(xp.ones((2, 2)) @ x.reshape(2, 1), Tensor)


def test_reductions_stay_arrays(xp):
    assert leaf(1.0, 2.0, xp=xp).sum().shape == ()
    assert leaf(1.0, 2.0, xp=xp)[0].shape == ()


shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([ops.add, ops.sub, ops.mul, ops.div, ops.maximum]), st.integers(0, 2**32 - 1))
def test_gradients_of_broadcasting_ops_are_correct(shapes, binary, seed):
    rng = np.random.default_rng(seed)
    x, y = (np.asarray(rng.standard_normal(shape) + 3 * k) for k, shape in enumerate(shapes.input_shapes, 1))
    y = np.where(np.abs(y) < 0.5, 0.5, y)
    assert minicl.gradcheck(binary, [x, y])


@settings(max_examples=60, deadline=None)
@given(hnp.arrays("float64", hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-2, 2)), st.data())
def test_gradients_of_slices_are_correct(x, data):
    key = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    if x[key].size:
        assert minicl.gradcheck(lambda t: t[key] * 2.0, [x])
    else:
        t = Tensor(x, requires_grad=True)
        (t[key] * 2.0).sum().backward()
        assert t.grad.shape == x.shape and not t.grad.any()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays("float64", (3, 4), elements=st.floats(-2, 2)), st.lists(st.integers(-3, 2), min_size=1, max_size=6))
def test_gradients_of_gathered_rows_are_correct(x, ids):
    assert minicl.gradcheck(lambda t: t[np.array(ids)], [x])


# ---------------------------------------------------------------- data that a Tensor can hold

FLOATS = np.array([1.0, 2.0])
REFUSED = {
    "float16": (FLOATS.astype("float16"), r"convert with .astype\('float32'\)"),
    "longdouble": (FLOATS.astype("longdouble"), r"convert with .astype\('float64'\)"),
    "big-endian": (FLOATS.astype(">f4"), r"got big-endian float32 array.*convert with .astype\('float32'\)"),
    "big-endian double": (FLOATS.astype(">f8"), r"convert with .astype\('float64'\)"),
    "matrix": (FLOATS.reshape(1, 2).view(np.matrix), r"got float64 matrix.*convert with numpy.asarray\(x\)"),
    "masked": (np.ma.masked_array(FLOATS, [True, False]), r"got float64 MaskedArray.*fill its masked entries"),
    "recarray": (FLOATS.view(np.recarray), "float64 recarray.*numpy.asarray"),
    "complex": (FLOATS.astype(complex), "got complex128 array"),
    "ids": (np.arange(2), r"convert with .astype\('float32'\)"),
    "bools": (np.array([True, False]), r"convert with .astype\('float32'\)"),
    "objects": (np.array([1.0, None]), "got object array"),
    "words": (np.array(["1.0"]), "got .*str"),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), "got datetime64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_only_plain_float_arrays_are_accepted(kind):
    data, words = REFUSED[kind]
    x = leaf(1.0, 2.0)
    for hold in (lambda: Tensor(data), lambda: setattr(x, "data", data), lambda: ops.exp(data), lambda: x + data):
        with pytest.raises(TypeError, match="must be a floating-point array, float32 or float64.*" + words):
            hold()


@pytest.mark.parametrize("thing", [nn.Buffer(np.ones(2)), nn.Counter()], ids=["Buffer", "Counter"])
def test_an_op_says_how_to_pass_a_buffer(thing):
    with pytest.raises(TypeError, match=f"mul: y must be a floating-point array.*; pass the .data of a {type(thing).__name__}"):
        leaf(1.0, 2.0) * thing


@pytest.mark.parametrize("kind", ["float16", "longdouble", "big-endian", "matrix", "recarray", "ids", "bools"])
def test_the_conversion_that_a_refusal_names_works(kind):
    data, _ = REFUSED[kind]
    with pytest.raises(TypeError) as caught:
        Tensor(data)
    conversion = str(caught.value).partition("; convert with ")[2].partition(",")[0]
    conversion = "x" + conversion if conversion.startswith(".") else conversion
    converted = eval(conversion, {"x": data, "numpy": np})
    np.testing.assert_array_equal(Tensor(converted).data, np.asarray(data, "float64"))


@pytest.mark.parametrize("wrong", ["float16", "big-endian", "matrix", "masked"])
def test_an_op_cannot_return_what_a_tensor_may_not_hold(wrong):
    with pytest.raises(TypeError, match="must be a floating-point array, float32 or float64"):
        op(lambda x: (REFUSED[wrong][0], lambda g: (g,)))(leaf(1.0, 2.0))


@pytest.mark.parametrize("compute, words", [
    (lambda x: x * np.float64(2), "must be a float32 numpy array like its inputs, got float64 array.*a NumPy number"),
    (lambda x: x.astype("float64"), "got float64 array"),
    (lambda x: x > 0, "must be a floating-point array, float32 or float64, got bool array"),
    (lambda x: np.argmax(x), "got int64 array"),
    (lambda x: [1.0, 2.0], "must be one array, got a list of 2"),
    (lambda x: (x, x), "must be one array, got a tuple of 2"),
    (lambda x: None, "got object array"),
    (lambda x: x + 1j, "got complex64 array"),
], ids=["promotes", "converts", "bools", "an id", "a list", "two values", "nothing", "complex"])
@pytest.mark.parametrize("recorded", [True, False])
def test_the_value_of_an_op_is_like_its_inputs(compute, words, recorded):
    @op
    def careless(x):
        return compute(x), lambda g: (g,)

    with pytest.raises(TypeError, match="careless: its value.*" + words):
        careless(Tensor(np.ones(2, "float32"), requires_grad=recorded))
    with pytest.raises(TypeError, match="careless: its value.*" + words):
        careless(np.ones(2, "float32"))


@given(hnp.arrays(st.sampled_from(["float32", "float64"]), hnp.array_shapes(min_dims=0, max_dims=3),
                  elements=st.floats(-1, 1, width=32)))
def test_plain_floats_are_held_as_they_are(data):
    assert Tensor(data).data is data
    assert Tensor(data[()] if data.ndim == 0 else data).dtype == data.dtype       # a NumPy scalar keeps its precision


def test_a_numpy_scalar_of_another_kind_is_refused_beside_a_tensor():
    for scalar in (np.complex64(1), np.str_("1"), np.datetime64("2020-01-01"), np.True_, True):
        with pytest.raises(TypeError, match="add: y must be"):
            ops.add(leaf(1.0), scalar)


# ---------------------------------------------------------------- what Python operators do with a Tensor

@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [leaf(1.0), 1.0, np.ones(1), None, "x"], ids=["Tensor", "number", "array", "None", "word"])
def test_tensors_are_not_compared(compare, other):
    x = leaf(1.0)
    for pair in ((x, other), (other, x)):
        with pytest.raises(TypeError, match="Tensors cannot be compared; compare their .data"):
            compare(*pair)


def test_tensors_are_distinguished_by_identity_in_sets_and_dicts():
    x, y = leaf(1.0), leaf(1.0)
    assert len({x, y, x}) == 2 and {x: 1, y: 2}[y] == 2


def test_a_loop_goes_over_rows_and_not_over_a_scalar():
    x = leaf(1.0, 2.0)
    sum(row * 3.0 for row in x).backward()
    np.testing.assert_array_equal(x.grad, [3.0, 3.0])
    with pytest.raises(TypeError, match="unsized"):
        list(leaf(1.0).sum())


# ---------------------------------------------------------------- no_grad acts on one thread or task

@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_no_grad_blocks_may_overlap_in_one_thread(order):
    """Generators may hold no_grad() open and end in any order; recording resumes when the last block ends."""
    def block():
        with no_grad():
            yield

    blocks = []
    for start in order:
        if start or not blocks:
            blocks.append(block())
            next(blocks[-1])
        else:
            blocks.pop(0).close()                            # ends the oldest first, unlike nested blocks
        assert ((leaf(1.0) * 2).node is None) == bool(blocks)
    while blocks:
        blocks.pop(0).close()
    assert (leaf(1.0) * 2).node is not None


def test_no_grad_in_one_thread_does_not_affect_another():
    inside = threading.Event()
    leave = threading.Event()
    recorded = []

    def evaluate():
        with no_grad():
            inside.set()
            leave.wait(10)
            recorded.append((leaf(1.0) * 2).requires_grad)
        recorded.append((leaf(1.0) * 2).requires_grad)

    thread = threading.Thread(target=evaluate)
    thread.start()
    inside.wait(10)
    with no_grad():
        leave_first = (leaf(1.0) * 2).requires_grad
    assert not leave_first and (leaf(1.0) * 2).requires_grad
    leave.set()
    thread.join()
    assert recorded == [False, True] and (leaf(1.0) * 2).requires_grad


def test_no_grad_does_not_affect_another_asyncio_task():
    async def task(results):
        with no_grad():
            await asyncio.sleep(0)
            results.append((leaf(1.0) * 2).requires_grad)
        results.append((leaf(1.0) * 2).requires_grad)

    async def both():
        results = []
        await asyncio.gather(task(results), task(results))
        return results

    assert sorted(asyncio.run(both())) == [False, False, True, True]


AUGMENTED = {"+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "@=": operator.imatmul,
             "**=": operator.ipow}


@pytest.mark.parametrize("symbol", AUGMENTED)
def test_a_leaf_that_is_trained_or_part_of_a_model_is_not_changed_by_an_augmented_assignment(symbol):
    """p -= lr * p.grad would give the name to a new Tensor, and train nothing."""
    parts = [Tensor(np.eye(2), requires_grad=True), nn.Parameter(np.eye(2)), frozen_copy(nn.Linear(2, 2, rng=np.random.default_rng(
        0))).weight, nn.Parameter(np.eye(2)).requires_grad_(False)]
    for part in parts:
        with no_grad(), pytest.raises(TypeError, match=rf"x {re.escape(symbol)} y would make a new .* write x.data"):
            AUGMENTED[symbol](part, 2)


@pytest.mark.parametrize("symbol", ["+=", "-=", "*=", "/="])
def test_other_tensors_are_summed_up_by_augmented_assignments(symbol):
    x = Tensor(np.array(3.0), requires_grad=True)
    total = before = x * 2
    total = AUGMENTED[symbol](total, x)
    total.backward()
    assert before.item() == 6 and total.item() == {"+=": 9, "-=": 3, "*=": 18, "/=": 2}[symbol]
    assert x.grad == {"+=": 3, "-=": 1, "*=": 12, "/=": 0}[symbol]
    constant = Tensor(np.ones(2))
    assert AUGMENTED[symbol](constant, 1.0).data.tolist() == {"+=": [2, 2], "-=": [0, 0]}.get(symbol, [1, 1])


def test_a_transpose_that_means_a_swap_is_refused():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    with pytest.raises(ValueError, match="to swap them, as in PyTorch, write x.T"):
        x.transpose(0, 1)
    assert x.transpose(1, 0).shape == x.T.shape == (3, 2) and x.transpose((0, 1)).shape == (2, 3)
