"""The structure of the package: imports run downwards; files and functions are short; public functions have types."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import minicl

ROOT = Path(minicl.__file__).parents[1]
PACKAGE = {path.relative_to(ROOT / "minicl"): ast.parse(path.read_text()) for path in (ROOT / "minicl").rglob("*.py")}

# A file imports only from its own part and from the layers before it. Parts on one line do not import each other.
LAYERS = [
    ("typing", "checks", "locks", "no_grad"), ("backend",), ("signature",), ("tensor",), ("autograd",), ("check_inputs", "distributed"), ("ops",), ("contrastive",), ("gradcheck", "files", "folder", "finite_gradients"),
    ("nn",), ("optim", "viz", "kinds"), ("guards",), ("watch",), ("cuda_graph",), ("methods", "explain", "explain_pairs"), ("data",), ("evaluate",), ("origin", "rng_state", "run_parts", "state_values"), ("checkpoint", "fingerprint", "modes", "options"),
    ("console", "signals", "loop_state"), ("ending",), ("run", "trained", "__main__"),
]
LAYER = {name: k for k, names in enumerate(LAYERS) for name in names}


def room(path):
    """The part of the package that a file belongs to: `ops` for ops/conv.py, `optim` for optim.py."""
    return path.parts[0].removesuffix(".py")


def imports(path, tree):
    """The files of the package that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.parent if node.level == 1 else path.parents[node.level - 1]
            base = package / (node.module or "").replace(".", "/")
            for name in node.names:
                for candidate in (base / f"{name.name}.py", base / name.name / "__init__.py", base.with_suffix(".py")
                                  if node.module else base, base / "__init__.py"):
                    if candidate in PACKAGE:
                        yield candidate
                        break


EDGES = {path: sorted(set(imports(path, tree)) - {path}) for path, tree in PACKAGE.items()}
FILES = sorted(path for path in PACKAGE if path != Path("__init__.py"))


def test_the_imports_are_read():
    assert Path("ops/__init__.py") in EDGES[Path("nn/layers.py")]
    assert Path("contrastive/pairs.py") in EDGES[Path("contrastive/nt_xent.py")]
    assert Path("autograd.py") in EDGES[Path("ops/elementwise.py")]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_downwards(path):
    for other in EDGES[path]:
        above, below = room(path), room(other)
        assert above == below or LAYER[below] < LAYER[above], f"{path} imports {other}"


def test_no_files_import_each_other_in_a_circle():
    open_ = []
    done = set()

    def visit(path):
        assert path not in open_, "circle: " + " -> ".join(map(str, [*open_[open_.index(path):], path]))
        if path not in done:
            open_.append(path)
            for other in EDGES[path]:
                if other.name != "__init__.py" or room(other) != room(path):
                    visit(other)
            done.add(open_.pop())

    for path in FILES:
        visit(path)


def test_nothing_in_the_package_imports_the_examples():
    for path, tree in PACKAGE.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.partition(".")[0] in ("examples", "claims", "tests") for name in names), path


def asks_which_device(node):
    """Whether a node is the name is_gpu, or a comparison with NumPy's module: `xp is np`."""
    return isinstance(node, (ast.Name, ast.alias)) and getattr(node, "id", getattr(node, "name", "")) == "is_gpu" or \
        isinstance(node, ast.Compare) and any(isinstance(side, ast.Name) and side.id == "np" for side in node.comparators)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_ops_and_the_backend_branch_on_the_device(path):
    """In other files a check that reads values calls on_host() first."""
    asked = [node.lineno for node in ast.walk(PACKAGE[path]) if asks_which_device(node)]
    assert room(path) in ("backend", "ops", "cuda_graph") or not asked, f"{path} asks for the device on lines {asked}"


def test_branches_on_the_device_are_found():
    found = {str(path) for path, tree in PACKAGE.items() if any(map(asks_which_device, ast.walk(tree)))}
    assert {"ops/conv.py", "backend/memory.py"} <= found


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("minicl/**/*.py")), *sorted(ROOT.glob("examples/**/*.py"))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (269 if path == ROOT / "minicl/autograd.py" else 400)


def ops_of(folder):
    """Yield the syntax tree of each function decorated with @op in a folder of the package, as a test parameter."""
    for path, tree in sorted(PACKAGE.items()):
        for node in tree.body if room(path) == folder else []:
            if isinstance(node, ast.FunctionDef) and any("op" in ast.unparse(d).split("(") for d in node.decorator_list):
                yield pytest.param(node, id=f"{path.name}:{node.name}")


def body_lines(function):
    """The lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1


@pytest.mark.parametrize("function", list(ops_of("ops")))
def test_the_body_of_an_op_fits_on_a_screen(function):
    assert body_lines(function) <= 40


@pytest.mark.parametrize("function", list(ops_of("contrastive")))
def test_the_body_of_a_loss_is_its_formula(function):
    assert body_lines(function) <= 30


def test_importing_minicl_gives_its_parts_and_no_heavy_library():
    code = ("import sys, minicl; minicl.nn.Linear, minicl.optim.AdamW, minicl.data.ImageData, minicl.contrastive.nt_xent, "
            "minicl.methods.SimCLR, minicl.evaluate.linear_probe; "
            "print({'cupy', 'matplotlib', 'torch', 'PIL'} & sys.modules.keys())")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def public_functions():
    """Yield (name, function) for all public functions and the public methods of public classes."""
    for package in (minicl, minicl.ops, minicl.contrastive, minicl.nn, minicl.optim, minicl.methods, minicl.data,
                    minicl.data.augment, minicl.evaluate):
        for name in getattr(package, "__all__", [name for name, thing in vars(package).items()
                                                 if name[0] != "_" and getattr(thing, "__module__", None) == package.__name__]):
            thing = getattr(package, name)
            if inspect.isclass(thing) and thing.__module__.startswith("minicl"):
                for method, function in vars(thing).items():
                    if inspect.isfunction(function) and (method == "__init__" or function.__doc__ and method[0] != "_"):
                        yield f"{thing.__name__}.{method}", function
            elif inspect.isfunction(thing) and thing.__module__.startswith("minicl") and thing is not minicl.op:
                yield name, thing                                        # op's types are overloads


@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in
                                      dict(public_functions()).items()])
def test_public_functions_have_type_annotations(function):
    function = getattr(function, "forward", function)                    # of an op
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "needs_grad")]
    assert not [p.name for p in parameters if p.annotation is p.empty]
