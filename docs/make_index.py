"""Write docs/index.md: where every op, loss, layer, optimizer, method, data set and metric is explained, tested and used.

    python docs/make_index.py

The tables are read from the code: papers and derivation pages from docstrings, tests, exercises and claims from the names
that they use.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import minicl

ROOT = Path(__file__).resolve().parents[1]
PAPER = re.compile(r"[A-Z][\w'-]+(?:,? (?:& |and )?[A-Z][\w'-]+)*(?: et al\.)?,? (?:19|20)\d\d\b")
PAGE = re.compile(r"docs/(gradients/\w+\.md)")
INTRODUCTION = """\
Every public op, loss, layer, optimizer, method, data set and metric: its file, its derivation, the test that checks it,
the paper it comes from, and the [exercises](exercises.md) and [claims](claims.md) that use it.
`python docs/make_index.py` writes this page from the code."""
QUESTIONS = [
    ("Where is the gradient of the temperature?", "[softmax.py](../minicl/contrastive/softmax.py), equation (2); derived in "
     "[gradients/softmax.md](gradients/softmax.md)"),
    ("How do I add an op?", "[contributing.md, an op](contributing.md#an-op)"),
    ("How do I add a loss?", "[contributing.md, a loss](contributing.md#a-loss)"),
    ("How do I add an encoder?", "[contributing.md, an encoder](contributing.md#an-encoder)"),
    ("How do I add a data set?", "[contributing.md, a data set](contributing.md#a-data-set)"),
    ("How do I add a method?", "[contributing.md, a method](contributing.md#a-method)"),
    ("Where are the files of my run explained?", "[runs.md, the folder of a run](runs.md#the-folder-of-a-run)"),
    ("How do I use what I trained?", "[runs.md, use what you trained](runs.md#use-what-you-trained)"),
    ("How do I train on my own pictures, and search them?", "[pictures.md](pictures.md)"),
    ("Which loss is SigLIP?", "[siglip.py](../minicl/contrastive/siglip.py), `contrastive.siglip`"),
    ("What does this error mean?", "[runs.md, errors](runs.md#errors)"),
]
FROM_PYTORCH = [            # (PyTorch, minicl, what differs); x and y are Tensors (N, d), model is a Module
    ("`nn.Linear(4, 3)`", "nn.Linear(4, 3, rng=rng)", "`rng = np.random.default_rng(seed)`, no global seed; "
     "the weight is (in, out)"),
    ("`nn.ReLU()`", "nn.Sequential(model, ops.relu)", "functions stand in a Sequential as they are"),
    ("`nn.Conv2d(1, 8, 3)`", "nn.Conv2d(1, 8, 3, rng=rng)", "activations are (H, W, B, C), "
     "see `ops.to_pixel_major`"),
    ("`nn.BatchNorm2d(8)`", "nn.BatchNorm(8)", "channels last, any number of axes"),
    ("`nn.ModuleList(layers)`", "[nn.BatchNorm(8), nn.BatchNorm(8)]", "a Module finds its parts in lists, tuples and dicts"),
    ("`SGD(model.parameters(), lr=0.1)`", "optim.SGD(model, lr=0.1)", "takes the model"),
    ("`AdamW(model.parameters())`", "optim.AdamW(model, lr=1e-3, weight_decay=0.01)",
     "PyTorch's defaults; here lr has none, weight_decay is 0, and biases and norms are not decayed"),
    ("`p.grad`, kept", "np.copy(x.grad)", "`zero_grad()` writes 0 into the gradients of an optimizer; copy one to keep it"),
    ("a scheduler", "optim.warmup_cosine(0, total=100, peak=1e-3, warmup=10)",
     "a function of the step: `optimizer.step(lr)`"),
    ("`clip_grad_norm_(model.parameters(), 1.0)`", "optim.SGD(model, lr=0.1).step(clip_grad_norm=1.0)",
     "an argument of the step; it returns the norm as it was"),
    ("`model.load_state_dict(state, strict=False)`", "model.load_state_dict(model.state_dict(), strict=False)",
     "also returns `missing_keys` and `unexpected_keys`"),
    ("`model.double()`, `model.cuda()`", 'model.astype("float64").to("numpy")', "`model.to(\"cupy\")` for a GPU"),
    ("`x.detach().cpu().numpy()`", "backend.to_host(x.data)", "`x.data` is the array on its own device"),
    ("`x.view(-1)`, `x.permute(1, 0)`", "x.reshape(-1), x.transpose(1, 0)", ""),
    ("`x.transpose(0, 1)`", "x.T", "`transpose(1, 0)` names the axes in their new order, as in NumPy"),
    ("`x.sum(dim=1, keepdim=True)`", "x.sum(axis=1, keepdims=True)", ""),
    ("`x.std(dim=0)`, `x.var(dim=0)`", "x.std(axis=0, correction=1), x.var(axis=0, correction=1)",
     "without `correction=1` they divide by N, as NumPy's"),
    ("`torch.cat([x, y], dim=0)`", "ops.concat(x, y, axis=0)", "`ops.stack` likewise"),
    ("`F.softmax(x, dim=1)`", "contrastive.softmax(x)", "over the last axis; a second argument is the temperature"),
    ("`F.cross_entropy(x, labels)`", "-contrastive.log_softmax(x)[np.arange(len(labels)), labels].mean()",
     "labels (N,), from 0"),
    ("`DataLoader`, `transforms`", "data.Batches(1000, batch_size=100, seed=0)",
     "ids of each batch; views are in `data.augment`"),
]
SECTIONS = [
    ("Ops", "ops", "Differentiable functions of Tensors. `ops.relu(x)` is recorded on the tape."),
    ("Losses and similarities", "contrastive", "One file a loss: the loss and its gradients, a readable form made of small "
     "ops, and the op whose gradient is derived by hand."),
    ("Layers, encoders and heads", "nn", "Modules are trees of parameters."),
    ("Optimizers and schedules", "optim", "An optimizer updates all parameters in one flat buffer."),
    ("Methods", "methods", "What each training script trains."),
    ("Data", "data", "Data sets by name, batches, and random views."),
    ("Several processes", "distributed", "Rows of a batch are shared out, the loss is that of all."),
    ("Metrics", "evaluate", "What a representation knows, as numbers."),
]
COLUMNS = ("name", "file", "derivation", "test", "paper", "exercise", "claims")


def public(module):
    """(name, class or function) of what a module offers: its __all__, or what is defined in it."""
    names = getattr(module, "__all__", None) or [
        name for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__]
    for name in sorted(names, key=str.lower):
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            yield name, thing


def link(path, text):
    """A link from docs/ to a path of the repository."""
    target = path.relative_to("docs") if path.parts[0] == "docs" else Path("..") / path
    return f"[{text}]({target.as_posix()})"


def found_in_docstrings(pattern, thing):
    """What a pattern finds in the docstring of a definition, or else in that of its file."""
    texts = inspect.getdoc(thing) or "", sys.modules[thing.__module__].__doc__ or ""
    return next((found for text in texts if (found := pattern.findall(" ".join(text.split())))), [])


def uses(path):
    """How often a file uses each name of minicl: imported names, and attributes of imported modules (ops.relu)."""
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) for alias in getattr(node, "names", ())
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "minicl"}
    modules = imported & {module for _, module, _ in SECTIONS}
    counts = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in imported:
            counts[node.id] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            counts[node.attr] += 1
    return counts


def claim_uses(path):
    """What the file of a claim uses, and what the functions and classes use that it imports from an example script."""
    counts = uses(path)
    for node in ast.parse(path.read_text()).body:
        script = path.parents[1] / f"{getattr(node, 'module', '')}.py"
        if isinstance(node, ast.ImportFrom) and not node.level and script.exists():
            tree = ast.parse(script.read_text())
            definitions = {name: node for node in tree.body for name in (
                [node.name] if hasattr(node, "name") else [node.target.id] if isinstance(node, ast.AnnAssign) else
                [target.id for target in getattr(node, "targets", ())])}
            todo, seen = [alias.name for alias in node.names], set()
            while todo:
                name = todo.pop()
                seen.add(name)
                todo += {part.id for part in ast.walk(definitions[name]) if isinstance(part, ast.Name)} \
                    & definitions.keys() - seen
            everything = uses(script)
            counts.update(part.id for name in seen for part in ast.walk(definitions[name])
                          if isinstance(part, ast.Name) and part.id in everything)
    return counts


def test_of(name, thing, tests):
    """The test file that uses it most. Every op has a case in tests/cases.py, and test_ops.py runs them all."""
    if inspect.isfunction(thing) and hasattr(thing, "forward"):
        return link(Path("tests/test_ops.py"), "ops")
    best = max(tests, key=lambda path: tests[path][name])
    return link(best, best.stem.removeprefix("test_")) if tests[best][name] else ""


def exercises():
    """EXERCISES of examples/exercise_list.py."""
    spec = importlib.util.spec_from_file_location("exercise_list", ROOT / "examples/exercise_list.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXERCISES


def index():
    """The text of docs/index.md."""
    tests = {path.relative_to(ROOT): uses(path) for path in sorted(ROOT.glob("tests/test_*.py"))}
    records = sorted(path.stem.split("-") for path in (ROOT / "docs/claims").glob("*.json"))          # 08-head.json
    claims = {f"[{int(number)}](claims/{number}-{name}.md)": claim_uses(ROOT / f"examples/claims/{name}.py")
              for number, name in records}
    holes = [(Path("minicl") / hole.file, hole.function.partition(".")[0], hole.name) for hole in exercises()]

    def cells(name, thing):
        path = Path(sys.modules[thing.__module__].__file__).resolve().relative_to(ROOT)      # of an op: not op's wrapper
        yield f"`{name}`"
        yield link(path, path.relative_to("minicl").as_posix())
        yield ", ".join(link(Path("docs") / page, Path(page).stem) for page in sorted(set(found_in_docstrings(PAGE, thing))))
        yield test_of(name, thing, tests)
        yield next(iter(found_in_docstrings(PAPER, thing)), "")
        yield ", ".join(f"`{hole}`" for file, function, hole in holes if file == path and name in (function, hole))
        yield ", ".join(page for page, used in claims.items() if used[name])

    lines = ["# Index", "", INTRODUCTION, "", "## Questions of a newcomer", "", "| question | answer |", "|---|---|"]
    lines += [f"| {question} | {answer} |" for question, answer in QUESTIONS]
    lines += ["", "## From PyTorch", "", "| PyTorch | minicl | what differs |", "|---|---|---|"]
    lines += [f"| {theirs} | `{code}` | {remark} |" for theirs, code, remark in FROM_PYTORCH]
    for title, module, what in SECTIONS:
        lines += ["", f"## {title}", "", what, "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(cells(name, thing)) + " |"
                  for name, thing in public(importlib.import_module(f"minicl.{module}"))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs/index.md").write_text(index())
    print(f"docs/index.md: minicl {minicl.__version__}")
