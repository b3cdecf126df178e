"""`import minicl` gives all packages and is fast."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, **environment}).stdout


def test_one_import_gives_every_package():
    names = ["nn.Linear", "optim.Adam", "data.load_mnist", "contrastive.nt_xent", "methods.SimCLR", "evaluate.knn_accuracy",
             "ops.relu", "Tensor"]
    shown = python(f"import minicl; print({', '.join(f'minicl.{name}.__name__' for name in names)})")
    assert shown.split() == [name.split(".")[-1] for name in names]


def test_completion_lists_packages_that_are_not_imported_yet():
    shown = python("import minicl, sys; print('minicl.data' in sys.modules, *dir(minicl))").split()
    assert shown[0] == "False" and {"nn", "optim", "data", "contrastive", "methods", "evaluate", "explain"} <= set(shown)


def test_star_imports_work_and_unknown_names_are_errors():
    assert python("from minicl import *; print(nn.Linear.__name__, gradcheck.__name__)") == "Linear gradcheck\n"
    with pytest.raises(subprocess.CalledProcessError):
        python("import minicl; minicl.optimisers")


def test_an_editable_install_is_found_from_any_folder():
    """Without package_dir setuptools installs an import hook, which Python consults after the current folder. In the
    clone's parent folder, `import minicl` would then import the clone itself, an empty namespace."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    assert setup["options"]["package_dir"].split() == ["=", "."]


def test_importing_minicl_adds_little_to_importing_numpy(tmp_path):
    """The CPU time of the compiled import, the best of three, stays below 0.1 s: packages are imported on first use."""
    code = """if True:
        import time, numpy, threadpoolctl
        start = time.process_time()
        import minicl
        print(time.process_time() - start)"""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert min(float(python(code, **compiled)) for _ in range(3)) < 0.1
