"""docs/gradients: each page runs; its naive code, the op and finite differences agree; its labels match the code's."""

import ast
import io
import re
import tokenize
from pathlib import Path

import numpy as np
import pytest
from cases import above_zero, apart, normal

import minicl
from minicl import contrastive, nn, ops
from minicl.distributed import World, all_gather, mean_of
from minicl.explain import arrays_held_by
from minicl.methods import grad_cache
from minicl.ops.winograd import conv_by_winograd

ROOT = Path(minicl.__file__).parents[1]
PAGES = {path.stem: path for path in sorted((ROOT / "docs/gradients").glob("*.md"))}
SOURCES = {path: path.read_text() for path in sorted((ROOT / "minicl").rglob("*.py"))}
MENTION = re.compile(r"docs/gradients/(\w+)\.md")

TAU = np.array(0.3)
# (page, op, inputs, options, the arguments of the page's saved[op])
CASES = [
    ("cosine", contrastive.l2_normalize, (normal(4, 3),), {}, dict(N=4, d=3)),
    ("cosine", contrastive.cosine_similarity, (normal(4, 3), normal(2, 3)), {}, dict(N=4, M=2, d=3)),
    ("softmax", contrastive.log_softmax, (normal(3, 4), TAU), {}, dict(N=3, K=4)),
    ("softmax", contrastive.softmax, (normal(3, 4), TAU), {}, dict(N=3, K=4)),
    ("info_nce", contrastive.info_nce, (normal(4, 3), normal(4, 3) + 0.5, normal(6, 3), 0.3), {}, dict(N=4, M=6, d=3)),
    ("nt_xent", contrastive.nt_xent, (normal(4, 3), normal(4, 3) + 0.5, 0.3), {}, dict(N=4, d=3)),
    ("info_nce", contrastive.info_nce, (normal(4, 3), normal(4, 3) + 0.5, normal(6, 3), 0.3),
     {"ids": np.array([0, 1, 0, 2]), "negative_ids": np.array([2, 2, 1, 4, 5, 0])}, dict(N=4, M=6, d=3, ids=True)),
    ("nt_xent", contrastive.nt_xent, (normal(4, 3), normal(4, 3) + 0.5, 0.3), {"ids": np.array([0, 1, 0, 2])},
     dict(N=4, d=3, ids=True)),
    ("dcl", contrastive.dcl, (normal(4, 3), normal(4, 3) + 0.5, 0.3), {"ids": np.array([0, 1, 0, 2])},
     dict(N=4, d=3, ids=True)),
    ("alignment_uniformity", contrastive.alignment_loss, (normal(4, 3), normal(4, 3) + 0.5), {}, dict(N=4, d=3)),
    ("alignment_uniformity", contrastive.alignment_loss, (normal(4, 3), normal(4, 3) + 0.5), {"alpha": 1}, dict(N=4, d=3)),
    ("alignment_uniformity", contrastive.uniformity_loss, (normal(4, 3),), {"t": 1.5}, dict(N=4, d=3)),
    ("sup_con", contrastive.sup_con, (normal(6, 3), 0.3), {"labels": np.array([0, 1, 0, 2, 1, 0])}, dict(V=6, d=3)),
    ("dcl", contrastive.dcl, (normal(4, 3), normal(4, 3) + 0.5, 0.3), {}, dict(N=4, d=3)),
    ("dcl", contrastive.dcl, (normal(4, 3), normal(4, 3) + 0.5, 0.3), {"weights": np.array([0.5, 1.25, 1.75, 0.5])},
     dict(N=4, d=3)),
    ("siglip", contrastive.siglip, (normal(4, 3), normal(4, 3) + 0.5, 1.5, -2.0), {}, dict(N=4, d=3)),
    ("siglip", contrastive.siglip, (normal(4, 3), normal(4, 3) + 0.5, 1.5, -2.0), {"caption_ids": np.array([0, 1, 0, 2])},
     dict(N=4, d=3)),
    ("triplet", contrastive.triplet, (normal(5, 3), normal(5, 3) + 0.5, normal(5, 3)[::-1].copy()), {"margin": 0.5},
     dict(N=5, d=3)),
    ("vicreg", contrastive.vicreg, (normal(4, 3), normal(4, 3) ** 2), {}, dict(N=4, d=3)),
    ("barlow_twins", contrastive.barlow_twins, (normal(4, 3), normal(4, 3) ** 2), {"off_diagonal": 0.1}, dict(N=4, d=3)),
    ("clip", contrastive.clip_loss, (normal(4, 3), normal(4, 3) + 0.5, 1.2), {}, dict(N=4, d=3)),
    ("clip", contrastive.clip_loss, (normal(5, 3), normal(5, 3) + 0.5, 1.2),
     {"caption_ids": np.array([0, 1, 0, 0, 1])}, dict(N=5, d=3, ids=True)),
    ("attention", ops.attention, (normal(3, 4), normal(5, 4) + 0.1, normal(5, 2)), {}, dict(T=3, S=5, e=2)),
    ("attention", ops.attention, (normal(2, 4), normal(3, 4) + 0.1, normal(3, 2)),
     {"mask": np.array([[True, False, True], [False, True, True]])}, dict(T=2, S=3, e=2)),
    ("normalize", ops.batch_norm, (normal(5, 3), normal(3), above_zero(3)), {}, dict(n=5, C=3, relu=False)),
    ("normalize", ops.layer_norm, (normal(4, 5), normal(5), above_zero(5)), {}, dict(N=4, C=5)),
    ("matmul", ops.matmul, (normal(4, 3), normal(3, 2)), {}, {}),
    ("matmul", ops.linear, (normal(4, 3), normal(3, 2), normal(2)), {}, {}),
    ("gru", ops.gru, (normal(3, 2, 4), normal(4, 6), normal(2, 6), normal(6), normal(2, 2)), {}, dict(T=3, B=2, H=2)),
    ("conv", ops.conv2d, (normal(4, 5, 2, 5), normal(3, 3, 5, 2)), {"stride": 2, "padding": 1},
     dict(H=4, W=5, B=2, C=5, k=3, stride=2, padding=1)),
    ("conv", ops.conv2d, (normal(4, 5, 2, 3), normal(3, 3, 3, 2)), {"padding": 1},
     dict(H=4, W=5, B=2, C=3, k=3, stride=1, padding=1)),
    ("pool", ops.max_pool2d, (apart(5, 4, 2, 3),), {"size": 2, "stride": 1}, dict(H=5, W=4, B=2, C=3, K=2, s=1)),
    ("pool", ops.avg_pool2d, (normal(5, 4, 2, 3),), {"size": 3, "stride": 1}, {}),
]

FUNCTIONS = {"all_gather": {"all_gather", "mean_of"}, "grad_cache": {"grad_cache"}, "winograd": {"winograd"}}        # pages on functions other than ops, tested separately below

each_page = pytest.mark.parametrize("page", PAGES)
each_case = pytest.mark.parametrize("page, op, inputs, options, sizes", CASES,
                                    ids=[f"{case[1].__name__}-{position}" for position, case in enumerate(CASES)])


def blocks(path, language):
    """[(line number, text)] of the fenced blocks in this language."""
    text = path.read_text()
    return [(text.count("\n", 0, m.start(1)), m[1])
            for m in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


_namespaces = {}


def namespace(page):
    """{name: value} defined by a page's python blocks, executed in one namespace, asserts included.

    The namespace begins with the definitions of the pages to read first. Errors point into the page.
    """
    if page not in _namespaces:
        names = {}
        if first := re.search(r"Read (\[[^.]*\.md\)[^.]*)+ first", PAGES[page].read_text()):
            for earlier in re.findall(r"\]\((\w+)\.md\)", first[0]):
                names |= namespace(earlier)
        for line, code in blocks(PAGES[page], "python"):
            exec(compile("\n" * line + code, str(PAGES[page]), "exec"), names)
        _namespaces[page] = names
    return _namespaces[page]


# ---------------------------------------------------------------- values and gradients

@each_page
def test_a_page_runs_without_importing_the_ops(page):
    code = "".join(code for _, code in blocks(PAGES[page], "python"))
    imports = set(re.findall(r"^[ ]*(?:import|from) .*", code, re.MULTILINE))
    assert imports <= {"import math", "import numpy as np"}, f"{page}.md imports more than math and numpy: {imports}"
    naive = {name.removeprefix("naive_") for name in namespace(page) if name.startswith("naive_")}
    tested = {op.__name__ for case_page, op, *_ in CASES if case_page == page} | FUNCTIONS.get(page, set())
    assert tested and tested <= naive, f"{page}.md: naive forms of {sorted(naive)}, but CASES tests {sorted(tested)}"


@each_case
def test_naive_is_the_op(page, op, inputs, options, sizes):
    y, backward = op.forward(*inputs, **options)
    g = np.random.default_rng(5).standard_normal(np.shape(y))
    naive_y, naive_gradients = namespace(page)["naive_" + op.__name__](*inputs, g, **options)
    np.testing.assert_allclose(naive_y, y, rtol=0, atol=1e-10, err_msg=f"{page}.md: the value of {op.__name__}")
    gradients = backward(g)
    assert len(gradients) == len(naive_gradients) == len(inputs)
    for name, naive, dx in zip(op.names, naive_gradients, gradients):
        assert np.shape(naive) == np.shape(dx), f"{page}.md: d{name} of {op.__name__}"
        np.testing.assert_allclose(naive, dx, rtol=0, atol=1e-10, err_msg=f"{page}.md: d{name} of {op.__name__}")


@each_case
def test_finite_differences_agree(page, op, inputs, options, sizes):
    def function(*tensors):
        return op(*tensors, **options)
    function.__name__ = op.__name__
    assert minicl.gradcheck(function, [np.asarray(x) for x in inputs], names=op.names)


@each_case
def test_the_backward_saves_as_much_as_the_page_states(page, op, inputs, options, sizes):
    _, backward = op.forward(*inputs, **options)
    held = [x for x in arrays_held_by(backward) if not any(np.may_share_memory(x, given) for given in inputs)]
    said = namespace(page)["saved"][op.__name__](**sizes)
    assert sum(x.size for x in held) == said, (f"{page}.md states that {op.__name__} saves {said} entries beside its "
                                               f"inputs; its backward saves arrays of shapes {[x.shape for x in held]}")


@pytest.mark.parametrize("n", [5, 62])                                       # PixelRows joins 62 rows in pairs
def test_batch_norm_with_relu_saves_its_output_too(n):
    x = normal(n, 3)
    weight = normal(3)
    bias = above_zero(3)
    held = [a for a in arrays_held_by(ops.batch_norm.forward(x, weight, bias, relu=True)[1])
            if not any(np.may_share_memory(a, given) for given in (x, weight))]
    assert sum(a.size for a in held) == namespace("normalize")["saved"]["batch_norm"](n=n, C=3, relu=True)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_naive_grad_cache_is_grad_cache(chunk):
    x = normal(8, 5)
    W = normal(5, 3)
    g = 0.7
    encoder = nn.Linear(5, 3, bias=False, rng=np.random.default_rng(0)).astype("float64")
    encoder.weight.data[...] = W
    L, _ = grad_cache(encoder, lambda z: g * contrastive.nt_xent(z[:4], z[4:], 0.3), x, chunk=chunk)
    naive_L, naive_dW = namespace("grad_cache")["naive_grad_cache"](x, W, 0.3, g)
    np.testing.assert_allclose(L.item(), g * naive_L, rtol=1e-12)
    np.testing.assert_allclose(encoder.weight.grad, naive_dW, rtol=0, atol=1e-12)

    def function(weight):
        return contrastive.nt_xent(x[:4] @ weight, x[4:] @ weight, 0.3) * g
    assert minicl.gradcheck(function, [W])
    dW = minicl.Tensor(W, requires_grad=True)
    function(dW).backward()
    np.testing.assert_allclose(encoder.weight.grad, dW.grad, rtol=0, atol=1e-12)


def test_naive_winograd_is_winograd():
    x, w, g = normal(4, 6, 2, 3), normal(3, 3, 3, 5), normal(4, 6, 2, 5)
    y, backward = conv_by_winograd(x, w, (True, True))
    naive_y, naive_gradients = namespace("winograd")["naive_winograd"](x, w, g)
    conv_y, conv_gradients = namespace("winograd")["naive_conv2d"](x, w, g, padding=1)
    assert arrays_held_by(backward) and all(any(held is given for given in (x, w)) for held in arrays_held_by(backward))
    for a, b, c in zip((y, *backward(g)), (naive_y, *naive_gradients), (conv_y, *conv_gradients)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-11)


class Played(World):
    """Process `rank` of several, which receives prepared arrays instead of communicating."""

    def __init__(self, rank, sent):
        self.rank = rank
        self.size = len(sent)
        self.sent = sent

    def all_gather(self, x):
        assert x is self.sent[self.rank]
        return np.stack(self.sent, axis=1).reshape(-1, *x.shape[1:])

    def reduce_scatter(self, x):
        assert x is self.sent[self.rank]
        return sum(self.sent)[self.part]

    def mean(self, x):
        return sum(self.sent) / self.size


@pytest.mark.parametrize("size", [1, 2, 3])
def test_naive_all_gather_and_mean_of_are_the_ops(size, rng):
    xs, gs = list(rng.standard_normal((size, 4, 3))), list(rng.standard_normal((size, 4 * size, 3)))
    naive_y, naive_dxs = namespace("all_gather")["naive_all_gather"](xs, gs)
    naive_mean, naive_shares = namespace("all_gather")["naive_mean_of"](xs, gs[0][:4])
    for rank in range(size):
        world = Played(rank, xs)
        y, backward = all_gather.forward(xs[rank], world=world)
        mean, mean_backward = mean_of.forward(xs[rank], world=world)
        world.sent = gs
        np.testing.assert_allclose(y, naive_y, rtol=1e-14)
        np.testing.assert_allclose(backward(gs[rank])[0], naive_dxs[rank], rtol=1e-14)
        np.testing.assert_allclose(mean, naive_mean, rtol=1e-14)
        np.testing.assert_allclose(mean_backward(gs[0][:4])[0], naive_shares[rank], rtol=1e-14)


# ---------------------------------------------------------------- the labels

def docstring_equations(source):
    """{label: equation} of the docstring lines `equation    (label)` in a source."""
    equations = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            equations.update(labelled_lines(ast.get_docstring(node) or ""))
    return equations


def labelled_lines(text):
    found = re.findall(r"^(.*\S) {2,}\((\d+)\)$", text, re.MULTILINE)
    return {int(label): " ".join(equation.split()) for equation, label in found}


def comment_labels(source):
    """The set of labels in trailing comments `# (1)`, `# (1): why`, `# (2), (1)`."""
    labels = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (start := re.match(r"#((?:,? \(\d+\))+)", token.string)):
            labels |= {int(label) for label in re.findall(r"\d+", start[1])}
    return labels


def code_of(page):
    """The sources of the modules that mention the page."""
    named = [source for source in SOURCES.values() if page in MENTION.findall(source)]
    assert named, f"no module of minicl mentions docs/gradients/{page}.md"
    return named


@each_page
def test_labels_occur_in_docstrings_comments_and_page(page):
    """A label is an equation of a docstring, a trailing comment in the code and a step of the page, or none of them."""
    derived = {int(label) for _, formula in blocks(PAGES[page], "math")
               for label in re.findall(r"\\qquad \((\d+)\)$", formula.strip())}
    stated = set().union(*(labelled_lines(block) for _, block in blocks(PAGES[page], "text")))
    in_docstrings = set().union(*map(docstring_equations, code_of(page)))
    in_comments = set().union(*map(comment_labels, code_of(page)))
    places = {f"the derivation in {page}.md (```math ... \\qquad (n) ```)": derived,
              f"the list on top of {page}.md": stated, "the docstrings": in_docstrings,
              "the code's trailing comments": in_comments}
    everywhere = set.union(*places.values())
    missing = [f"({label}) is not in: {where}" for label in sorted(everywhere)
               for where, labels in places.items() if label not in labels]
    assert everywhere and not missing, "\n".join(missing)


@each_page
def test_the_page_states_the_docstrings_equations(page):
    in_code = {label: equation for source in code_of(page) for label, equation in docstring_equations(source).items()}
    for _, block in blocks(PAGES[page], "text"):
        for label, equation in labelled_lines(block).items():
            assert equation in in_code.get(label, ""), \
                f"({label})\n    {page}.md has   {equation}\n    the code has  {in_code.get(label, 'no such label')}"


# ---------------------------------------------------------------- links

def test_every_derivation_that_code_mentions_exists():
    for path, source in SOURCES.items():
        for page in MENTION.findall(source):
            assert page in PAGES, f"{path.relative_to(ROOT)} mentions docs/gradients/{page}.md, which does not exist"


@pytest.mark.parametrize("path", [*PAGES.values(), ROOT / "docs/reading-order.md"], ids=lambda path: path.stem)
def test_links_exist_and_formulas_are_closed(path):
    prose = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), path.read_text(), flags=re.M | re.S)
    for number, line in enumerate(prose.split("\n"), start=1):
        assert line.count("$") % 2 == 0, f"{path.name}:{number}: an odd number of $: {line}"
        for target in re.findall(r"\]\(([^)#]+)\)", line):
            assert "://" in target or (path.parent / target).exists(), f"{path.name}:{number}: no such file: {target}"


# ---------------------------------------------------------------- the reading order

def test_the_code_of_the_reading_order_runs():
    path = ROOT / "docs/reading-order.md"
    names = {}
    for line, code in blocks(path, "python"):
        exec(compile("\n" * line + code, str(path), "exec"), names)


def test_the_tests_that_the_reading_order_names_exist():
    text = (ROOT / "docs/reading-order.md").read_text()
    proofs = re.findall(r'`pytest tests/(\w+\.py)(?: -k (?:"([^"]+)"|(\w+)))?`', text)
    assert proofs
    for file, quoted, plain in proofs:
        words = (quoted or plain or "test").split(" or ")
        names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(), re.M)
        for word in words:
            assert any(word in name for name in names), f"reading-order.md: tests/{file} has no test ...{word}..."
