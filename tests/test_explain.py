"""explain(): every op has formulas, bytes and leaves are correct, and a wrong backward is found at its op."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from cases import all_ops, normal
from hypothesis import given
from hypothesis import strategies as st

import minicl
from minicl import Tensor, contrastive, op, ops, viz
from minicl.backend import to_device, to_host
from minicl.contrastive import composed
from minicl.explain import arrays_held_by, explain, formulas, source_line
from minicl.explain_pairs import explain_pairs
from minicl.methods import SimCLR, frozen_copy
from minicl.nn import MLP, ConvNet, Dropout, Linear, Sequential, projection_head

ROOT = Path(minicl.__file__).parents[1]
PAGE = ROOT / "docs/explain.md"


def simclr(encoder, xp=np, loss=contrastive.nt_xent):
    """(model, loss) on 8 images of which many pixels are exactly 0."""
    rng = np.random.default_rng(0)
    encoder = encoder((8, 8, 1), rng=rng)
    model = SimCLR(encoder, projection_head("mlp", encoder.features, hidden=8, dim=4, rng=rng)).to(xp)
    images = np.maximum(rng.standard_normal((8, 8, 8, 1), dtype="float32"), 0)
    _, z = model(to_device(images, xp))
    return model, loss(z[:4], z[4:], 0.2)


def mlp(shape, rng):
    return MLP(shape, (16, 8), rng=rng)


def convnet(shape, rng):
    return ConvNet(shape, (4, 8), rng=rng)


# ---------------------------------------------------------------- formulas and their source lines

@pytest.mark.parametrize("each", sorted({op.__name__: op for op in all_ops()}.items()), ids=lambda each: each[0])
def test_every_op_has_a_value_a_gradient_and_a_source_line(each):
    name, each = each
    value, gradient = formulas(each)
    assert value[0] and gradient, f"{name}: the docstring has no line that states a gradient, dx = ..."
    assert not set(value) & set(gradient)
    file, line = source_line(each).split(":")
    assert re.search(rf"def {name}\(", (ROOT / file).read_text().splitlines()[int(line) - 1])


def test_formulas_of_the_module_belong_to_the_op_whose_code_has_their_label():
    value, gradient = formulas(contrastive.vicreg)
    assert any("R(z) = " in line for line in value)                 # (2) belongs to _regularise, which vicreg calls
    assert any(line.startswith("dR/dz_ia = ") for line in gradient)
    value, _ = formulas(contrastive.alignment_loss)
    assert not any("log mean" in line for line in value)            # (3) belongs to uniformity_loss
    assert [line[:2] for line in formulas(ops.linear)[1]] == ["dX", "dW", "dx"]


def test_an_op_without_source_or_docstring_is_explained_too():
    space = {"op": op}
    exec("@op\ndef double(x):\n    return 2 * x, lambda g: (2 * g,)", space)
    text = str(explain(space["double"](Tensor(np.ones(3), requires_grad=True)), check=True))
    assert "(no docstring)" in text and "agrees with finite differences at 3 of 3 entries of x" in text


# ---------------------------------------------------------------- a tape

def test_rows_are_the_ops_in_order_with_their_inputs_and_shapes(xp):
    model, loss = simclr(mlp, xp)
    rows = explain(loss, model).rows
    encoder, head, views = "linear relu linear relu", "linear batch_norm linear", "getitem getitem"
    assert [row.op for row in rows] == f"{encoder} {head} {views} nt_xent".split()
    first, last = rows[0], rows[-1]
    assert [str(x) for x in first.inputs] == ["x = constant (8, 64)", "w = encoder.layers.0.weight (64, 16)",
                                              "b = encoder.layers.0.bias (16)"]
    assert [str(x) for x in last.inputs] == ["z1 = [8] (4, 4)", "z2 = [9] (4, 4)", "tau = 0.2"]
    assert (first.shape, last.shape) == ((8, 16), ())


def test_bytes_count_what_the_closure_holds_beyond_the_inputs(xp):
    x = Tensor(to_device(normal(4, 3), xp), requires_grad=True)
    row, = explain(ops.linear(x, to_device(normal(3, 2), xp))).rows
    assert row.saved == 0                                           # x and w are inputs
    row, = explain(ops.exp(x)).rows
    assert row.saved == 4 * 3 * 8                                   # saves y
    row, = explain(contrastive.l2_normalize(x)).rows
    assert row.saved == (4 * 3 + 4) * 8                             # saves x^ and 1 / |x|


def test_the_memory_of_the_tape_counts_each_array_once_and_no_leaf(xp):
    x = Tensor(to_device(normal(4, 3), xp), requires_grad=True)
    assert explain(x * x).held == 0
    assert explain(ops.exp(x) * x).held == 96  # exp saves its output, which is also an input of mul
    assert explain(ops.exp(x).reshape(3, 4)).held == 96             # a view takes no memory of its own


def test_a_view_counts_as_the_array_it_views():
    x = normal(10, 10)
    def hold(view):
        return lambda: view
    held, = arrays_held_by(hold(x[:1, 2:4]))
    assert held is x


def test_a_fused_loss_has_fewer_rows_than_its_composed_form():
    fused, whole = (explain(simclr(mlp, loss=loss)[1]) for loss in (contrastive.nt_xent, composed.nt_xent))
    assert len(fused.rows) < len(whole.rows) and fused.rows[-1].op == "nt_xent"


def test_explain_changes_nothing_and_its_result_outlives_the_tape(xp):
    model, loss = simclr(convnet, xp)
    before = model.state_dict()
    told = explain(loss, model, check=2)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    again_model, again = simclr(convnet, xp)
    again.backward()
    for p, q in zip(model.parameters(), again_model.parameters()):
        assert np.array_equal(to_host(p.grad), to_host(q.grad))
    assert "encoder.blocks.1.steps.0.weight" in str(told)


def test_explain_checks_dropout_with_its_mask_and_draws_nothing(rng):
    x = rng.standard_normal((3, 8)).astype("float32")

    def draws(looks):
        model = Sequential(Linear(8, 8, rng=np.random.default_rng(0)), Dropout(0.5, rng=np.random.default_rng(1)))
        loss = model(x).sum()
        if looks:
            rows = explain(loss, model, check=True).rows
            assert all(row.check.startswith("agrees") for row in rows), [row.check for row in rows]
        return model(x).data, frozen_copy(model).train()(x).data

    for seen, unseen in zip(draws(True), draws(False)):
        np.testing.assert_array_equal(seen, unseen)


# ---------------------------------------------------------------- each node against finite differences

@pytest.mark.parametrize("encoder, loss", [(mlp, contrastive.nt_xent), (convnet, composed.nt_xent)],
                         ids=["mlp-fused", "convnet-composed"])
def test_every_node_agrees_with_finite_differences_at_its_values(encoder, loss, xp):
    model, loss = simclr(encoder, xp, loss)
    for row in explain(loss, model, check=4).rows:
        assert row.check.startswith("agrees"), f"{row.op}: {row.check}"


def test_a_wrong_backward_is_found_at_its_node_and_nowhere_else():
    @op
    def softmax_without_tau(x):
        """y = softmax(x / 0.5).    dx = y (g - sum_k g_k y_k)"""
        y, right = contrastive.softmax.forward(x, 0.5)
        return y, lambda g: (0.5 * right(g)[0],)

    x = Tensor(normal(5, 7), requires_grad=True)
    told = explain(ops.exp(softmax_without_tau(ops.tanh(x))).sum(), check=True)
    wrong = [row for row in told.rows if not row.check.startswith("agrees")]
    assert [row.op for row in wrong] == ["softmax_without_tau"]
    assert "off by a factor 2" in wrong[0].check and "analytic" in str(told)


def test_a_kink_is_not_an_error_but_a_slope_outside_its_one_sided_slopes_is():
    x = Tensor(np.array([0.0, 0.0, -1.0, 2.0]), requires_grad=True)
    assert explain(ops.relu(x), check=True).rows[0].check.startswith("agrees")

    @op
    def steep_relu(x):
        """y = max(x, 0).    dx = g [x > 0], and wrongly 2 g at 0"""
        return np.maximum(x, 0), lambda g: (g * ((x > 0) + 2.0 * (x == 0)),)

    assert re.search(r"with respect to x\[[01]\] is wrong", explain(steep_relu(x), check=True).rows[0].check)


def test_ops_with_random_masks_or_a_repeated_input_can_be_checked(xp):
    x = Tensor(to_device(normal(4, 5), xp), requires_grad=True)
    dropped = ops.dropout(x, p=0.4, rng=np.random.default_rng(0))
    told = explain(contrastive.cosine_similarity(dropped, dropped).sum(), check=3)
    assert all(row.check.startswith("agrees") for row in told.rows)


# ---------------------------------------------------------------- the graph

def test_the_graph_has_a_box_for_each_op_and_an_arrow_for_each_array(xp):
    model, loss = simclr(mlp, xp)
    told = explain(loss, model)
    lines = [line.strip() for line in told.mermaid().splitlines()]
    assert lines[0] == "flowchart TD"
    arrows = [re.fullmatch(r'(\w+) -- "\S+" --> (\w+)', line) for line in lines if "-->" in line]
    boxes = [re.fullmatch(r'(\w+)(\["[^"]*"\]|\(\["[^"]*"\]\))', line) for line in lines[1:] if "-->" not in line]
    assert all(arrows) and all(boxes)
    names = [box[1] for box in boxes]
    assert len(set(names)) == len(names) and {end for arrow in arrows for end in arrow.groups()} <= set(names)
    assert len(arrows) == sum(x.shape is not None for row in told.rows for x in row.inputs)


# ---------------------------------------------------------------- refusals

def test_a_freed_or_missing_tape_raises():
    x = Tensor(normal(3), requires_grad=True)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="call explain.loss. before loss.backward"):
        explain(loss)
    with pytest.raises(ValueError, match="no recorded op"):
        explain(x.detach())
    with pytest.raises(TypeError, match="loss must be a Tensor, got float"):
        explain(0.5)


# ---------------------------------------------------------------- explain_pairs

def test_push_and_pull_are_the_gradient_of_the_anchors_scores(xp):
    z1 = normal(5, 3)
    z2 = normal(5, 3) + 0.5
    tau = 0.3
    u = contrastive.l2_normalize.forward(np.concatenate([z1, z2]))[0]
    told = explain_pairs(to_device(z1, xp), to_device(z2, xp), tau, anchor=7)
    others = [j for j in range(10) if j != 7]
    s = Tensor((u @ u[7])[others][None], requires_grad=True)
    loss = contrastive.info_nce_from_scores(s, np.array([others.index(2)]), tau)
    loss.backward()
    gradient = dict(zip(others, s.grad[0] * tau))
    assert np.isclose(told.pull[0], -gradient.pop(2)) and np.isclose(told.loss[0], loss.item())
    np.testing.assert_allclose(told.push[0], [gradient[j] for j in sorted(gradient, key=lambda j: -(u @ u[7])[j])])


@pytest.mark.parametrize("tau", [0.5, 0.1, 0.03, 0.025, 0.01])
def test_the_loss_of_a_pair_has_its_digits_where_the_positive_wins(tau):
    told = explain_pairs(np.eye(3), np.eye(3), tau)
    exact = np.log1p(4 * np.exp(-1 / tau))                   # four negatives of cosine 0
    np.testing.assert_allclose([told.loss[0], told.pull[0]], [exact, -np.expm1(-exact)], rtol=1e-13)


def test_all_anchors_together_are_the_gradient_of_nt_xent():
    """The rows of push and pull give G; nt_xent's gradient (2) is (G + G^T) u."""
    N, tau = 4, 0.25
    u = contrastive.l2_normalize.forward(np.concatenate([normal(N, 3), normal(N, 3) + 0.5]))[0]
    G = np.zeros((2 * N, 2 * N))
    for i in range(2 * N):
        told = explain_pairs(u[:N], u[N:], tau, anchor=i, names=range(N))
        p = (i + N) % (2 * N)
        for name, push in zip(told.negative_names, told.push[0]):
            item, view = map(int, re.findall(r"\d+", name))
            G[i, item + N * (view - 1)] = push
        G[i, p] = -told.pull[0]
    du = (G + G.T) @ u / (2 * N * tau)
    across = du - u * (du * u).sum(axis=1, keepdims=True)           # l2_normalize's backward for rows of length 1
    dz1, dz2, _ = contrastive.nt_xent.forward(u[:N], u[N:], tau)[1](np.array(1.0))
    np.testing.assert_allclose(across, np.concatenate([dz1, dz2]), atol=1e-12)


@given(tau=st.floats(1e-3, 10), anchor=st.integers(0, 11), sign=st.sampled_from([1, -1]))
def test_pushes_balance_the_pull_at_any_temperature(tau, anchor, sign):
    z = normal(6, 4)
    told = explain_pairs(z, sign * z + 0.01, tau, anchor=anchor)
    assert np.isclose(told.push.sum(), told.pull[0]) and 0 <= told.pull[0] <= 1 + 1e-12
    assert 1 - 1e-9 <= told.effective[0] <= 10 + 1e-9 and told.loss[0] >= 0


def test_a_lower_temperature_acts_on_fewer_negatives():
    told = explain_pairs(normal(8, 4), normal(8, 4) + 0.3, [0.05, 0.2, 1.0])
    hardest = told.push[:, 0] / told.pull
    assert (np.diff(told.effective) > 0).all() and (np.diff(hardest) < 0).all()
    assert (np.diff(told.push, axis=1) <= 0).all()                  # the more similar a negative, the larger its push


def test_the_table_names_anchor_candidates_and_temperatures(xp):
    z = Tensor(to_device(normal(6, 3).astype("float32"), xp))
    text = str(explain_pairs(z, z, (0.1, 0.5), anchor=8, names="abcdef"))
    assert "anchor: c, view 2; positive: c, view 1; 10 negatives" in text and "the 2 others" in text
    assert re.search(r"tau +cosine +0.1 +0.5", text)


def test_the_picture_is_drawn_or_an_error_asks_for_matplotlib(tmp_path, monkeypatch):
    told = explain_pairs(normal(8, 4), normal(8, 4) + 0.3)
    if viz.Figure is not None:
        told.draw(tmp_path / "pairs.png")
        assert (tmp_path / "pairs.png").stat().st_size > 10_000
    monkeypatch.setattr(viz, "Figure", None)
    with pytest.raises(ImportError, match=r"pip install 'minicl\[viz\]'"):
        told.draw(tmp_path / "no.png")


@pytest.mark.parametrize("arguments, options, words", [
    ((normal(3, 2), normal(4, 2)), {}, "expected two arrays"),
    ((normal(1, 2), normal(1, 2)), {}, "N >= 2"),
    ((normal(3, 2), normal(3, 2), 0.0), {}, "tau must be a number in .1e-30, 1e20."),
    ((normal(3, 2), normal(3, 2), [0.1, -1]), {}, "tau must be a number in .1e-30, 1e20."),
    ((normal(3, 2), normal(3, 2)), {"anchor": 6}, "anchor must be an integer from 0 to 5"),
    ((normal(3, 2), normal(3, 2)), {"names": "ab"}, "expected 3 names, one per item, got 2"),
])
def test_invalid_pairs_are_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        explain_pairs(*arguments, **options)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")           # of np.matrix
@pytest.mark.parametrize("convert", [*(lambda x, dtype=dtype: x.astype(dtype) for dtype in (
    "uint8", "int64", "bool", "float16", "longdouble", ">f4", "complex128", "object", "U8")), np.matrix,
    lambda x: np.ma.masked_array(x, mask=x > 1)])
def test_pairs_of_other_arrays_are_refused(convert):
    z1, z2 = normal(3, 2), normal(3, 2)
    explain_pairs(z1, z2)
    for argument, arguments in (("z1", (convert(z1), z2)), ("z2", (z1, convert(z2)))):
        with pytest.raises(TypeError, match=f"^explain_pairs: {argument} must be a floating-point array"):
            explain_pairs(*arguments)


@pytest.mark.parametrize("tau", [True, [0.5, True], "0.5", ["0.5"], None, [], [[0.5, 1.0]], 1j, float("nan"), np.array([True]),
                                 np.array([1j]), np.ma.masked_array([0.5, 0.1], mask=[False, True])])
def test_other_temperatures_of_pairs_are_refused(tau):
    with pytest.raises((TypeError, ValueError), match="^explain_pairs: tau"):
        explain_pairs(normal(3, 2), normal(3, 2), tau)


@pytest.mark.parametrize("tau", [(0.5, 0.1), np.array([0.5, 0.1]), np.array([0.5, 0.1], "float32"), [np.float16(0.5), 0.1]])
def test_several_temperatures_of_pairs(tau):
    assert explain_pairs(normal(3, 2), normal(3, 2), tau).taus == [float(t) for t in tau]
    assert explain_pairs(normal(3, 2), normal(3, 2), tau[0]).taus == [float(tau[0])]
    assert explain_pairs(normal(3, 2), normal(3, 2), np.array(0.5)).taus == [0.5]


# ---------------------------------------------------------------- the page

def test_the_page_shows_the_output_of_its_code():
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    printed = ""
    for language, text in blocks:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(re.sub(r"^.*\.draw\(.*$", "", text, flags=re.MULTILINE), names)
            printed = out.getvalue()
        else:
            assert printed == text, f"docs/explain.md: in place of the block\n{text}\nits code now prints\n{printed}"


@pytest.mark.parametrize("factor, agrees", [(2, True), (1, False), (0, False)])
@pytest.mark.parametrize("n", [100, 1_000_000])
def test_gradients_of_a_mean_are_checked_however_small(factor, agrees, n):
    @op
    def mean_square(x):
        return (x * x).mean(), lambda g: (factor * g * x / x.size,)

    x = Tensor(np.random.default_rng(0).random(n, dtype="float32"), requires_grad=True)
    assert explain(mean_square(x), check=True).rows[0].check.startswith("agrees") == agrees


def test_a_gradient_that_is_none_is_checked_as_zero():
    @op
    def forgotten(x):
        return x * x, lambda g: (None,)

    x = Tensor(np.ones(3), requires_grad=True)
    assert "is wrong" in explain(forgotten(x), check=True).rows[0].check
