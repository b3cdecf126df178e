"""The example scripts by name, from a clone or an installed minicl, in any folder:

    python -m minicl                                 list them
    python -m minicl simclr_mnist --epochs 1         run one, as python examples/simclr_mnist.py --epochs 1 would
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from .console import lasting_output, listing

INSTALLED = Path(__file__).with_name("examples")
CLONED = Path(__file__).parents[1] / "examples"
REQUIRED = ("numpy", "threadpoolctl", "tqdm")                # as in setup.cfg
EXAMPLES = INSTALLED if INSTALLED.exists() else CLONED


def jobs() -> dict[str, str]:
    """{name: what it does} of the scripts in examples/, and of examples/claims; make_*.py need a clone and are left out.

    >>> jobs()["simclr_mnist"]
    'SimCLR on MNIST: learn digits without labels, then evaluate the representation.'
    """
    paths = {path.stem: path for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    paths |= {path.parent.name: path for path in EXAMPLES.glob("*/__main__.py")}
    docs = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in sorted(paths.items())}
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items() if not name.startswith("make_")}


def main(arguments: list[str]) -> None:
    """Run the job that the first argument names with the others as its options, or list the jobs."""
    name, *options = arguments or ["--help"]
    known = jobs()
    if name in ("-h", "--help"):
        with lasting_output():
            print("usage: python -m minicl JOB [options]; JOB --help lists a job's options\n")
            print(listing(list(known.items())), flush=True)
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "`python -m minicl` lists them"
        print(f"error: there is no job {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    path = EXAMPLES / name
    if not path.is_dir():
        path = path.with_suffix(".py")
        sys.path[0] = str(EXAMPLES)                          # modules beside the script
    sys.argv = [str(path), *options]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        print(f"error: this Python, {sys.executable}, has no {error.name}, which minicl needs; activate the environment in "
              "which minicl is installed", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
