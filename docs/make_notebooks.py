"""Writes docs/notebooks/*.ipynb from the scripts and pages, which stay the only source.

    python docs/make_notebooks.py          # needs the extra `notebooks`

A script's main() becomes cells, one for each of its paragraphs; a page's text and code blocks become cells as they are.
The second cell of each notebook installs minicl from the checkout if it is missing, and picks CuPy where a GPU is.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/notebooks"

SETUP = '''\
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minicl") is None:               # install it from the checkout that holds this notebook
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", "../..[viz]"], check=True)
    sys.path.insert(0, "../..")                              # this session started before it was installed
sys.path.append("../../examples")                            # modules that the scripts share

from minicl import BackendError, get_backend

try:
    get_backend("cupy")
    backend = "cupy"                                         # a GPU, and CuPy for it
except BackendError:
    backend = "numpy"
print("backend:", backend)'''

OPTIONS = '''\
OPTIONS = ""             # such as "--epochs 1 --data digits"; `parser.print_help()` lists them'''

PICTURES = '''\
from IPython.display import Image, display

for path in sorted(run.folder.glob("*.png")):
    display(Image(path))'''

COMPARE = '''\
from minicl import contrastive, gradcheck

rng = np.random.default_rng(0)
query, positive, negatives = (rng.standard_normal((n, 3)) for n in (4, 4, 6))
loss, backward = contrastive.info_nce.forward(query, positive, negatives, 0.3)
by_hand, gradients = naive_info_nce(query, positive, negatives, 0.3, 1.0)
assert np.allclose(loss, by_hand)
for fast, slow in zip(backward(1.0), gradients):
    assert np.allclose(fast, slow)
gradcheck(contrastive.info_nce, [query, positive, negatives, np.array(0.3)])'''


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, notebook in notebooks().items():
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def notebooks() -> dict[str, NotebookNode]:
    """{name: notebook}, in the order in which to read them."""
    return {
        "quick_start": _notebook(_quick_start()),
        "simclr_mnist": _notebook(_script("simclr_mnist")),
        "info_nce": _notebook(_page("info_nce")),
        "moco_mnist": _notebook(_script("moco_mnist")),
        "clip_captions": _notebook(_script("clip_captions")),
    }


def _notebook(cells: Iterator[NotebookNode]) -> NotebookNode:
    cells = list(cells)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"                        # the same notebook each time
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _quick_start():
    """README's first program."""
    before, code, after = re.search(r"^## The first minute$\n(.*?)^```python\n(.*?)^```\n(.*?)(?=^## )",
                                    (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL).groups()
    yield new_markdown_cell("# The first minute\n" + _relinked(before, "../..").rstrip())
    yield new_code_cell(SETUP)
    for part in re.split(r"\n\n(?=\S)", code.replace('get_backend("numpy")', "get_backend(backend)")):
        yield new_code_cell(part.strip())
    yield new_markdown_cell(_relinked(after, "../..").strip())


def _script(name):
    """The cells of examples/NAME.py: what stands around main(), then main's paragraphs, then the pictures."""
    source = (ROOT / f"examples/{name}.py").read_text()
    tree = ast.parse(source)
    title, _, text = ast.get_docstring(tree).partition("\n")
    yield new_markdown_cell(f"# {title}\n{text}\n\nThis is [examples/{name}.py](../../examples/{name}.py) in cells.")
    yield new_code_cell(SETUP)
    yield new_code_cell(OPTIONS, metadata={"tags": ["parameters"]})

    _, *statements, last = tree.body
    assert ast.unparse(last).startswith("if __name__")
    imports = [node for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
    yield new_code_cell("\n".join(ast.get_source_segment(source, node) for node in imports))
    for node in statements:
        if node not in imports and getattr(node, "name", "") != "main":
            yield new_code_cell(ast.get_source_segment(source, node))
    body = next(ast.get_source_segment(source, node) for node in statements if getattr(node, "name", "") == "main")
    body = textwrap.dedent(body.partition("\n")[2])
    assert body.count(".parse_args()") == 1
    body = body.replace(".parse_args()", '.parse_args(["--backend", backend, *OPTIONS.split()])')
    options, run, *rest = re.split(r"\n\n(?=\S)", body)
    for paragraph in [f"{options}\n\n{run}", *rest]:                # one cell: other options are another run
        comment, code = re.fullmatch(r"((?:#[^\n]*\n)*)(.*)", paragraph.strip(), re.DOTALL).groups()
        if comment:
            yield new_markdown_cell(re.sub(r"^# ?", "", comment, flags=re.MULTILINE).strip())
        yield new_code_cell(code)
    yield new_markdown_cell("The pictures of this run.")
    yield new_code_cell(PICTURES)


def _page(name):
    """The text and the code of docs/gradients/NAME.md, the code of the pages to read first, and a comparison with the op."""
    path = ROOT / f"docs/gradients/{name}.md"
    title, text = path.read_text().split("\n", 1)
    yield new_markdown_cell(f"{title}: the gradient by hand\n\nThis is [{name}.md](../gradients/{name}.md) in cells.")
    yield new_code_cell(SETUP)
    for earlier in re.findall(r"\]\((\w+)\.md\)", re.search(r"Read (.*?) first", text, re.DOTALL)[1]):
        yield new_markdown_cell(f"The code of [{earlier}.md](../gradients/{earlier}.md), which this page uses.")
        yield from (cell for cell in _cells((path.parent / f"{earlier}.md").read_text()) if cell.cell_type == "code")
    yield from _cells(text)
    yield new_markdown_cell("The op of minicl gives the same value and gradients, and so do finite differences.")
    yield new_code_cell(COMPARE)


def _cells(page):
    """A page of Markdown as cells: its python blocks are code."""
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)):
        if number % 2:
            yield new_code_cell(part.strip())
        elif part.strip():
            yield new_markdown_cell(_relinked(part.strip(), "../gradients"))


def _relinked(text, folder):
    """Markdown from a page in `folder` as seen from docs/notebooks, its formulas as Jupyter wants them."""
    text = re.sub(r"^```math\n(.*?)\n```$", r"$$\1$$", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$`(.+?)`\$", r"$\1$", text, flags=re.DOTALL)
    return re.sub(r"\]\((?!https?:|#|\.\./\.\./)", f"]({folder}/", text)


if __name__ == "__main__":
    main()
