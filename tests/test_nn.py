"""Modules: the tree of parts, states, errors, the values of layers, and the gradient of a whole small model."""

import copy
import pickle

import numpy as np
import pytest

from minicl import gradcheck, ops
from minicl import Tensor, no_grad
from minicl.backend import to_device, to_host
from minicl.methods import BYOL, SimCLR, frozen_copy
from minicl.nn.parts import Counter, HostBuffer, Stream
from minicl.nn import (GRU, HEADS, MLP, BatchNorm, Buffer, Conv2d, ConvNet, Dropout, Embedding, LayerNorm, Linear, Module,
                       Parameter, Sequential, projection_head)


class Nested(Module):
    """Has parts in every place that is searched for parts, and two parts in two places."""

    def __init__(self, rng):
        self.first = Linear(3, 4, rng=rng)
        self.layers = [Linear(4, 4, rng=rng, bias=False), (BatchNorm(4),)]
        self.by_name = {"scale": Parameter(np.ones(2, "float32")), "queue": Buffer(np.zeros((2, 3), "float32"))}
        self.again = self.first
        self.also = [self.layers[1][0].running_mean]
        self.width = 4


PARAMETERS = {"first.weight": (3, 4), "first.bias": (4,), "layers.0.weight": (4, 4), "layers.1.0.weight": (4,),
              "layers.1.0.bias": (4,), "by_name.scale": (2,)}
BUFFERS = {"layers.1.0.running_mean": (4,), "layers.1.0.running_var": (4,), "by_name.queue": (2, 3)}


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype="float32")


def values(tensor):
    return to_host(tensor.data)


# ---------------------------------------------------------------- the tree

def test_parameters_are_found_wherever_they_are_and_shared_ones_once(rng):
    model = Nested(rng)
    assert {name: p.shape for name, p in model.named_parameters()} == PARAMETERS
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]


def test_buffers_are_found_and_are_not_parameters(rng):
    assert {name: b.data.shape for name, b in Nested(rng).named_buffers()} == BUFFERS


def test_modules_lists_the_module_itself_and_all_below(rng):
    model = Nested(rng)
    assert model.modules()[0] is model
    assert {type(module).__name__ for module in model.modules()} == {"Nested", "Linear", "BatchNorm"}


def test_a_misspelt_assignment_is_an_error_that_suggests_the_name(rng):
    with pytest.raises(AttributeError, match=r"BatchNorm has no attribute 'momentun'; did you mean 'momentum'\?"):
        BatchNorm(3).momentun = 0.5


def test_a_misspelt_name_is_an_error_that_suggests_the_name(rng):
    with pytest.raises(AttributeError, match=r"Linear has no attribute 'wieght'; did you mean 'weight'\?"):
        Linear(2, 3, rng=rng).wieght


def test_a_name_that_resembles_none_gets_no_suggestion(rng):
    for name in ("half", "register_buffer", "zzz", "share_memory"):
        with pytest.raises(AttributeError, match=f"Linear has no attribute '{name}'$"):
            getattr(Linear(2, 3, rng=rng), name)


def test_a_new_attribute_outside_init_is_refused(rng):
    with pytest.raises(AttributeError, match="has no attribute 'zzz'; set new attributes in __init__"):
        Nested(rng).zzz = 1


def test_existing_attributes_can_be_replaced(rng):
    model = Nested(rng)
    model.first = Linear(3, 7, rng=rng, bias=False)
    model.again = None
    assert dict(model.named_parameters())["first.weight"].shape == (3, 7)


def test_calling_a_module_without_forward_is_an_error():
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        Module()(1)


def test_repr_shows_the_tree_with_shapes(rng):
    text = repr(Sequential(Linear(2, 3, rng=rng), BatchNorm(3)))
    assert "weight: Parameter (2, 3)" in text and "running_var: Buffer (3,)" in text


def test_train_and_eval_reach_every_module(rng):
    model = Nested(rng)
    assert model.eval() is model and not any(module.training for module in model.modules())
    assert model.train() is model and all(module.training for module in model.modules())


def test_to_moves_parameters_and_buffers(xp, rng):
    model = Nested(rng).to(xp)
    arrays = [part.data for _, part in model.named_parameters() + model.named_buffers()]
    assert all(isinstance(array, xp.ndarray) for array in arrays)


def test_astype_converts_parameters_and_buffers_and_drops_gradients(xp, rng):
    model = Linear(2, 3, rng=rng).to(xp)
    model(Tensor(xp.ones((4, 2), dtype="float32"))).sum().backward()
    assert model.weight.grad is not None
    model.astype("float64")
    assert model.weight.dtype == "float64" and model.weight.grad is None
    assert BatchNorm(2).astype("float64").running_var.data.dtype == "float64"


@pytest.mark.parametrize("make", [lambda: Buffer(np.zeros(2)), lambda: HostBuffer(3), Counter,
                                  lambda: Stream(np.random.default_rng(0)), lambda: frozen_copy(BatchNorm(2)).weight])
@pytest.mark.parametrize("name", ["value", "dta", "requires_gradient"])
def test_a_part_takes_no_attribute_that_it_does_not_have(make, name):
    part = make()
    with pytest.raises(AttributeError, match=f"{type(part).__name__} has no attribute '{name}'"):
        setattr(part, name, 1.0)
    copy.deepcopy(part), pickle.loads(pickle.dumps(part))


def test_an_ema_has_no_momentum_of_its_own(rng):
    ema = BYOL(Linear(2, 2, rng=rng), Linear(2, 2, rng=rng), Linear(2, 2, rng=rng)).ema
    with pytest.raises(AttributeError, match="EMA has no attribute 'm'; the momentum is an argument of update"):
        ema.m = 0.5


@pytest.mark.parametrize("values", [np.array([16777217, 2**40 + 1]), np.array([True, False]), np.arange(3, dtype="uint8")])
def test_astype_leaves_buffers_of_ids_and_masks_as_they_are(values):
    class Table(Module):
        def __init__(self):
            self.ids, self.scale = Buffer(values.copy()), Buffer(np.ones(2))

    module = Table().astype("float32")
    assert module.ids.data.dtype == values.dtype and np.array_equal(module.ids.data, values)
    assert module.scale.data.dtype == "float32"


# ---------------------------------------------------------------- state

def test_state_dict_holds_copies_on_the_host(xp, rng):
    model = Nested(rng).to(xp)
    state = model.state_dict()
    assert {name: array.shape for name, array in state.items()} == PARAMETERS | BUFFERS
    assert all(type(array) is np.ndarray for array in state.values())
    state["first.weight"][...] = 7
    assert not (values(model.first.weight) == 7).any()


def test_a_state_dict_loaded_makes_models_equal(xp, rng):
    model, other = Nested(rng).to(xp), Nested(rng).to(xp)
    model.by_name["queue"].data += 5
    other.load_state_dict(model.state_dict())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array, err_msg=name)


def test_loading_writes_into_the_existing_arrays(xp, rng):
    model = Linear(2, 3, rng=rng).to(xp)
    array = model.weight.data
    model.load_state_dict(Linear(2, 3, rng=rng).state_dict())
    assert model.weight.data is array                        # an optimizer's view stays valid


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("first.bias"), "first.bias: missing"),
    (lambda state: state.update(head=np.zeros(3, "float32")), "head: unknown to this Nested"),
    (lambda state: state.update({"first.weight": np.zeros((4, 3), "float32")}),
     r"first.weight: shape \(4, 3\), expected \(3, 4\)"),
], ids=["missing", "unexpected", "mis-shaped"])
def test_a_state_that_does_not_fit_names_what_is_wrong_and_changes_nothing(rng, change, message):
    model = Nested(rng)
    state = Nested(rng).state_dict()
    before = model.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message) as error:
        model.load_state_dict(state)
    assert "the state does not fit this Nested" in str(error.value)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_state_loads_the_common_names_unless_strict(xp, rng):
    trained, model = Sequential(Linear(2, 3, rng=rng), BatchNorm(3)), Sequential(Linear(2, 3, rng=rng), Linear(3, 4, rng=rng))
    model.to(xp)
    before, state = model.state_dict(), trained.state_dict()
    del state["steps.0.bias"], state["steps.1.weight"], state["steps.1.bias"]
    with pytest.raises(ValueError, match="steps.0.bias: missing"):
        model.load_state_dict(state)
    keys = model.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["steps.0.bias", "steps.1.weight", "steps.1.bias"]
    assert keys.unexpected_keys == ["steps.1.running_mean", "steps.1.running_var"]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, {**before, "steps.0.weight": state["steps.0.weight"]}[name], err_msg=name)
    assert model.load_state_dict(before) == ([], [])


@pytest.mark.parametrize("state, error, message", [
    ({"steps.0.weight": np.zeros((3, 2), "float32")}, ValueError, r"steps.0.weight: shape \(3, 2\), expected \(2, 3\)"),
    ({"steps.0.weight": np.full((2, 3), np.nan, "float32")}, ValueError, "holds NaN or infinity"),
    ({"encoder.weight": np.zeros((2, 3), "float32")}, ValueError, "steps.0.weight: missing"), ({}, ValueError, "missing"),
    ([1, 2], TypeError, "expected a state_dict"),
], ids=["mis-shaped", "nan", "unknown name", "empty", "a list"])
def test_a_state_that_does_not_fit_is_refused_even_if_not_strict(rng, state, error, message):
    model = Sequential(Linear(2, 3, rng=rng))
    before = model.state_dict()
    for strict in (True, False):
        with pytest.raises(error, match=message):
            model.load_state_dict(state, strict=strict)
    np.testing.assert_array_equal(model.state_dict()["steps.0.weight"], before["steps.0.weight"])


def test_a_long_list_of_mismatches_is_shortened(rng):
    with pytest.raises(ValueError, match="and 1 more"):
        Nested(rng).load_state_dict({})


# ---------------------------------------------------------------- layers

@pytest.mark.parametrize("make, fan_in, gain", [
    (lambda rng: Linear(400, 300, rng=rng), 400, 1),
    (lambda rng: Linear(400, 300, rng=rng, gain=3.0), 400, 3),
    (lambda rng: Conv2d(40, 90, 3, rng=rng), 360, np.sqrt(2)),
    (lambda rng: Conv2d(400, 300, rng=rng, kernel_size=1, gain=1.0), 400, 1),
], ids=["linear", "linear with gain", "conv", "1x1 conv"])
def test_initial_weights_have_standard_deviation_gain_over_root_fan_in(rng, make, fan_in, gain):
    weight = make(rng).weight.data
    assert weight.dtype == np.float32
    assert abs(weight.mean()) < 0.02 * gain / np.sqrt(fan_in)
    assert weight.std() == pytest.approx(gain / np.sqrt(fan_in), rel=0.02)


def test_linear_is_xw_plus_b(xp, rng):
    layer = Linear(3, 4, rng=rng)
    x = normal(rng, 5, 2, 3)
    layer.bias.data[...] = normal(rng, 4)
    expected = x @ layer.weight.data + layer.bias.data
    y = layer.to(xp)(Tensor(to_device(x, xp)))
    np.testing.assert_allclose(values(y), expected, rtol=1e-5, atol=1e-6)
    assert Linear(3, 4, rng=rng, bias=False).bias is None


@pytest.mark.parametrize("kernel_size, options, size", [
    (3, {"padding": 1}, (7, 6)), (3, {"padding": 1, "stride": 2}, (4, 3)), (3, {}, (5, 4)), (1, {}, (7, 6)),
    (5, {"padding": 2, "stride": 2}, (4, 3))])
def test_conv2d_pads_by_its_argument(xp, rng, kernel_size, options, size):
    layer = Conv2d(2, 5, kernel_size, rng=rng, **options).to(xp)
    y = layer(Tensor(to_device(normal(rng, 7, 6, 3, 2), xp)))
    assert y.shape == (*size, 3, 5) and y.dtype == "float32"


def test_conv2d_adds_its_bias(rng):
    layer = Conv2d(2, 3, 3, rng=rng)
    x = Tensor(normal(rng, 4, 4, 1, 2))
    before = values(layer(x))
    layer.bias.data += np.float32([1, 2, 3])
    np.testing.assert_allclose(values(layer(x)) - before, np.broadcast_to([1, 2, 3], before.shape), rtol=1e-5)


def test_layers_have_the_attributes_and_defaults_of_pytorch(rng):
    linear = Linear(3, 4, rng=rng)
    conv = Conv2d(3, 4, 5, rng=rng)
    embedding = Embedding(7, 2, rng=rng)
    gru = GRU(3, 4, rng=rng)
    assert (linear.in_features, linear.out_features) == (3, 4)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding) == (3, 4, 5, 1, 0)
    assert conv.bias.shape == (4,) and Conv2d(3, 4, 5, rng=rng, bias=False).bias is None
    assert (embedding.num_embeddings, embedding.embedding_dim) == (7, 2)
    assert (gru.input_size, gru.hidden_size) == (3, 4)
    assert BatchNorm(5).num_features == 5 and LayerNorm(6).normalized_shape == 6


def test_children_are_the_modules_directly_below(rng):
    inner = Sequential(Linear(3, 3, rng=rng), Linear(3, 3, rng=rng))
    last = Linear(3, 2, rng=rng)
    model = Sequential(inner, last)
    assert model.named_children() == [("steps.0", inner), ("steps.1", last)] and model.children() == [inner, last]
    assert [name for name, _ in model.named_modules()] == ["", "steps.0", "steps.0.steps.0", "steps.0.steps.1", "steps.1"]
    assert last.children() == []


def test_requires_grad_switches_gradients_and_nothing_else(rng):
    model = Sequential(Linear(3, 3, rng=rng), BatchNorm(3))
    assert model.requires_grad_(False) is model and not any(p.requires_grad for p in model.parameters())
    assert model.training and model[1].training
    assert all(p.requires_grad for p in model.requires_grad_().parameters())


def test_sizes_below_one_are_refused(rng):
    with pytest.raises(ValueError, match="in_features must be an integer >= 1, got 0"):
        Linear(0, 3, rng=rng)


def test_batch_norm_averages_match_a_computation_by_hand(xp):
    layer = BatchNorm(1).to(xp)
    layer(Tensor(to_device(np.float32([[1], [3]]), xp)))             # mean 2, unbiased variance 2
    assert values(layer.running_mean) == pytest.approx(0.9 * 0 + 0.1 * 2)
    assert values(layer.running_var) == pytest.approx(0.9 * 1 + 0.1 * 2)
    layer(Tensor(to_device(np.float32([[5], [5]]), xp)))             # mean 5, variance 0
    assert values(layer.running_mean) == pytest.approx(0.9 * 0.2 + 0.1 * 5)
    assert values(layer.running_var) == pytest.approx(0.9 * 1.1)


def test_batch_norm_averages_over_pixels_and_batch(xp, rng):
    x = normal(rng, 3, 2, 4, 5) * 3 + 1
    layer = BatchNorm(5, momentum=1.0).to(xp)
    layer(Tensor(to_device(x, xp)))
    rows = x.reshape(-1, 5)
    np.testing.assert_allclose(values(layer.running_mean), rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(layer.running_var), rows.var(axis=0, ddof=1), rtol=1e-5)


def test_batch_norm_in_training_uses_the_batch(xp, rng):
    layer = BatchNorm(4).to(xp)
    layer.running_mean.data += 100
    y = values(layer(Tensor(to_device(normal(rng, 50, 4) * 7 + 3, xp))))
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_in_evaluation_uses_the_averages_without_changing_them(xp, rng, relu):
    layer = BatchNorm(3, relu=relu)
    x = normal(rng, 6, 3)
    mean = np.float32([1, -2, 0])
    var = np.float32([4, 1, 0.25])
    weight = normal(rng, 3)
    bias = normal(rng, 3)
    layer.load_state_dict({"weight": weight, "bias": bias, "running_mean": mean, "running_var": var})
    y = values(layer.to(xp).eval()(Tensor(to_device(x, xp))))
    expected = weight * (x - mean) / np.sqrt(var + 1e-5) + bias
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values(layer.running_mean), mean)
    np.testing.assert_array_equal(values(layer.running_var), var)


def test_batch_norm_of_one_value_per_channel_is_refused_with_a_hint(xp):
    layer = BatchNorm(4).to(xp)
    with pytest.raises(ValueError, match="needs at least 2 values a channel.*larger batch"):
        layer(Tensor(xp.ones((1, 4), dtype="float32")))
    assert layer.eval()(Tensor(xp.ones((1, 4), dtype="float32"))).shape == (1, 4)


def test_layer_norm_normalises_each_row(xp, rng):
    y = values(LayerNorm(64).to(xp)(Tensor(to_device(normal(rng, 3, 64) * 5 + 2, xp))))
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=1), 1, rtol=1e-4)


def test_dropout_zeroes_a_fraction_p_and_scales_the_rest(xp):
    layer = Dropout(0.25, rng=np.random.default_rng(0))
    y = values(layer(Tensor(xp.ones((100, 100), dtype="float32"))))
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(y[y != 0], 1 / 0.75, rtol=1e-6)


def test_dropout_does_nothing_in_evaluation(xp):
    x = Tensor(xp.ones((5, 5), dtype="float32"))
    assert Dropout(0.5, rng=np.random.default_rng(0)).eval()(x) is x


def test_dropout_draws_the_same_mask_on_both_backends(xp):
    here, host = (Dropout(0.5, rng=np.random.default_rng(3))(Tensor(module.ones((6, 6), dtype="float32")))
                  for module in (xp, np))
    np.testing.assert_array_equal(values(here), values(host))


def test_dropout_continues_from_its_state_dict():
    def layer():
        return Dropout(0.5, rng=np.random.default_rng(3))
    x = Tensor(np.ones((6, 6)))
    first = layer()
    resumed = layer()
    masks = [first(x).data]
    after_one = first.state_dict()
    masks.append(first(x).data)
    resumed.load_state_dict(after_one)
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(resumed(x).data, masks[1])


@pytest.mark.parametrize("p", [-0.1, 1, float("nan")])
def test_dropout_refuses_an_invalid_p(p):
    with pytest.raises(ValueError, match=r"Dropout: p must be a number in \[0, 1\)"):
        Dropout(p, rng=np.random.default_rng(0))


def test_embedding_looks_up_rows(xp, rng):
    layer = Embedding(5, 3, rng=rng)
    ids = np.array([[0, 4], [4, 1]])
    expected = layer.weight.data[ids]
    np.testing.assert_array_equal(values(layer.to(xp)(to_device(ids, xp))), expected)


def test_sequential_takes_modules_and_functions(rng):
    model = Sequential(Linear(3, 4, rng=rng), ops.relu)
    x = normal(rng, 2, 3)
    np.testing.assert_allclose(values(model(Tensor(x))), np.maximum(x @ model.steps[0].weight.data, 0), rtol=1e-5,
                               atol=1e-6)


def test_sequential_is_indexed_sliced_and_iterated_as_a_list(rng):
    model = Sequential(Linear(3, 4, rng=rng), ops.relu, Linear(4, 2, rng=rng))
    assert len(model) == 3 and model[-1] is model.steps[2] and list(model) == model.steps
    trunk = model[:2]
    assert isinstance(trunk, Sequential) and trunk.parameters() == model[0].parameters()         # shared, not copied
    model[1] = ops.gelu
    assert model.steps[1] is ops.gelu and trunk[1] is ops.relu
    with pytest.raises(IndexError):
        model[3]


@pytest.mark.parametrize("steps", [([ops.relu],), (None,), (3,)])
def test_sequential_refuses_what_cannot_be_called(steps):
    with pytest.raises(TypeError, match="Sequential: expected Modules and functions, each its own argument"):
        Sequential(*steps)


# ---------------------------------------------------------------- encoders and heads

@pytest.mark.parametrize("make, features", [
    (lambda rng: MLP((16, 16, 3), rng=rng), 256),
    (lambda rng: MLP((16, 16, 3), (20,), rng=rng), 20),
    (lambda rng: ConvNet((16, 16, 3), rng=rng), 2 * 2 * 128),
    (lambda rng: ConvNet((16, 16, 3), rng=rng, grid=1), 128),
    (lambda rng: ConvNet((16, 16, 3), (4, 7), rng=rng, strides=(1, 2)), 2 * 2 * 7),
], ids=["mlp", "narrow mlp", "convnet", "grid of one", "narrow convnet"])
def test_encoders_give_one_row_of_features_per_image(xp, rng, make, features):
    encoder = make(rng).to(xp)
    h = encoder(to_device(rng.random((5, 16, 16, 3), dtype="float32"), xp))
    assert encoder.features == features and h.shape == (5, features) and h.dtype == "float32"
    assert isinstance(h.data, xp.ndarray)


@pytest.mark.parametrize("make", [MLP, ConvNet])
def test_encoders_in_evaluation_treat_each_image_separately(rng, make):
    encoder = make((16, 16, 1), rng=rng).eval()
    images = rng.random((4, 16, 16, 1), dtype="float32")
    np.testing.assert_allclose(values(encoder(images))[2:3], values(encoder(images[2:3])), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [MLP, ConvNet])
@pytest.mark.parametrize("shape", [(5, 16, 16), (16, 16, 1), (5, 16, 16, 3), (5, 1, 16, 16), (5, 16, 8, 1)])
def test_encoders_refuse_images_of_another_shape(rng, make, shape):
    with pytest.raises(ValueError, match=rf"{make.__name__}: expected images \(B, 16, 16, 1\), got \({shape[0]}, "):
        make((16, 16, 1), rng=rng)(np.zeros(shape, "float32"))


@pytest.mark.parametrize("make", [MLP, ConvNet])
def test_encoders_refuse_bytes(rng, make):
    with pytest.raises(TypeError, match="must be a floating-point array, float32 or float64, got uint8; scale them"):
        make((16, 16, 1), rng=rng)(np.zeros((5, 16, 16, 1), "uint8"))


def test_the_cells_of_a_convnet_average_to_the_mean_over_the_image(xp):
    images = to_device(np.random.default_rng(1).random((3, 16, 16, 1), dtype="float32"), xp)
    whole, cells = (ConvNet((16, 16, 1), (4, 5), rng=np.random.default_rng(0), grid=grid).to(xp).eval()
                    for grid in (1, 2))
    np.testing.assert_allclose(values(cells(images)).reshape(3, 4, 5).mean(axis=1), values(whole(images)), rtol=1e-4,
                               atol=1e-6)


def test_a_convnet_refuses_a_grid_that_does_not_divide_the_image(rng):
    with pytest.raises(ValueError, match="8 x 8 images are 1 x 1 pixels after strides .*which a grid of 2 x 2 does not divide"):
        ConvNet((8, 8, 1), (4, 5, 6), rng=rng)


def test_convnet_expects_one_stride_per_convolution(rng):
    with pytest.raises(ValueError, match="one stride a convolution, got 1 for 2"):
        ConvNet((8, 8, 1), (4, 8), rng=rng, strides=(2,))


@pytest.mark.parametrize("kind, dim, count", [("none", 6, 0), ("linear", 3, 18), ("mlp", 3, 6 * 6 + 2 * 6 + 6 * 3)])
def test_heads_map_h_to_z(xp, rng, kind, dim, count):
    head = projection_head(kind, 6, dim=3, rng=rng).to(xp)
    z = head(Tensor(to_device(normal(rng, 5, 6), xp)))
    assert z.shape == (5, dim) and sum(p.size for p in head.parameters()) == count


def test_the_head_none_is_the_identity(rng):
    h = Tensor(normal(rng, 5, 6))
    assert projection_head("none", 6, rng=rng)(h) is h


def test_the_mlp_head_has_the_requested_width(rng):
    head = projection_head("mlp", 6, hidden=11, dim=3, rng=rng)
    assert [p.shape for p in head.parameters()] == [(6, 11), (11,), (11,), (11, 3)]


def test_an_unknown_head_lists_the_known_ones(rng):
    with pytest.raises(ValueError, match=f"projection head: expected one of {', '.join(HEADS)}, got 'bottleneck'"):
        projection_head("bottleneck", 6, rng=rng)


# ---------------------------------------------------------------- a whole model

@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_gradients_of_a_convnet_with_its_head_are_right(xp, rng, training):
    encoder = ConvNet((6, 5, 2), (3, 4), rng=rng)
    head = projection_head("mlp", encoder.features, hidden=5, dim=3, rng=rng)
    model = SimCLR(encoder, head).astype("float64").to(xp).train(training)
    for _, buffer in model.named_buffers():
        buffer.data += 0.5
    images = to_device(rng.random((4, 6, 5, 2)), xp)
    places = [(module, name) for module in model.modules() for name, part in vars(module).items()
              if isinstance(part, Parameter)]

    def z_of(*tensors):
        for (module, name), tensor in zip(places, tensors):
            object.__setattr__(module, name, tensor)          # gradcheck also passes constants
        return model(images)[1]

    arrays = [to_device(rng.standard_normal(part.shape), xp) for part in model.parameters()]
    assert len(arrays) == len(places) == 10
    gradcheck(z_of, arrays, names=[f"{type(module).__name__}.{name}" for module, name in places])


def test_simclr_gives_the_representation_and_its_projection(rng):
    encoder = MLP((4, 4, 1), (7,), rng=rng)
    images = rng.random((3, 4, 4, 1), dtype="float32")
    model = SimCLR(encoder, projection_head("linear", 7, dim=2, rng=rng))
    with no_grad():
        h, z = model(images)
    np.testing.assert_array_equal(values(h), values(encoder(images)))
    np.testing.assert_allclose(values(z), values(h) @ model.head.weight.data, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- assignments with unintended effects

class Parts(Module):
    def __init__(self):
        self.weight = Parameter(np.ones((2, 2)))
        self.average = Buffer(np.ones(2))
        self.layer = Linear(2, 2, rng=np.random.default_rng(0))
        self.layers = [Parameter(np.ones(2)), None]
        self.named = {"a": BatchNorm(2)}
        self.setting = 1

    def forward(self, x):
        return x


LOST = {"array": lambda x: np.ones((2, 2)), "Tensor": lambda x: Tensor(np.ones((2, 2))), "number": lambda x: 0.5, "text": lambda x: "no",
        "function": lambda x: (lambda y: y), "op": lambda x: ops.relu, "list": lambda x: [np.ones(2)], "class": lambda x: Linear}
PART_NAMES = ["weight", "average", "layer", "layers", "named"]


@pytest.mark.parametrize("name", PART_NAMES)
@pytest.mark.parametrize("kind", LOST)
def test_a_part_cannot_be_replaced_by_a_value_that_is_not_a_part(name, kind):
    model = Parts()
    before = getattr(model, name)
    state = set(model.state_dict())
    with pytest.raises(TypeError, match=f"Parts.{name}: a .* cannot become a .*write into its .data"):
        setattr(model, name, LOST[kind](before))
    assert getattr(model, name) is before and set(model.state_dict()) == state
    for value in (None, Parameter(np.ones(2)), BatchNorm(3), [Buffer(np.ones(1))]):
        setattr(model, name, value)
    for value in (np.ones(2), lambda x: x, None):
        model.setting = value


@pytest.mark.parametrize("name, value, hint", [
    ("training", False, "call train"), ("training", True, "call train"), ("world", None, "call across"),
    ("train", False, "choose another name"), ("eval", True, "choose another name"), ("freeze", True, "choose another name"),
    ("parameters", [], "choose another name"), ("state_dict", {}, "choose another name"),
    ("requires_grad", False, "see freeze"),
])
def test_attributes_of_every_module_cannot_be_assigned(name, value, hint):
    """For example, model.training = False would leave dropout layers below the model in training mode."""
    class Net(Module):
        def __init__(self):
            setattr(self, name, value)

    for assign in (lambda: setattr(Parts(), name, value), Net):
        with pytest.raises(AttributeError, match=f"{name} cannot be set, since no submodule would change; {hint}"):
            assign()


def test_an_activation_kept_in_an_attribute_must_be_detached():
    class Keeps(Module):
        def __init__(self):
            self.layer, self.last = Linear(2, 2, rng=np.random.default_rng(0)), None

        def forward(self, x):
            self.last = self.layer(x)
            return self.last

    model = Keeps()
    model(np.ones((1, 2), "float32"))
    with pytest.raises(TypeError, match=r"last is a Tensor that linear has computed.*keep its .detach\(\)"):
        model.eval()
    model.last = None
    model.eval()


@pytest.mark.parametrize("step", [None, 1, "relu", np.ones(2), [Linear]])
def test_a_step_assigned_later_must_be_callable(step):
    model = Sequential(ops.relu, BatchNorm(2))
    with pytest.raises(TypeError, match="Sequential: expected Modules and functions"):
        model[0] = step
    model[0] = BatchNorm(3)
