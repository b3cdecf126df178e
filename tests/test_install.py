"""The sdist holds the files of the repository, the wheel runs the examples, and an editable install works in any
folder.

`bash .ci/run` also installs all three into new environments and runs the tests of the unpacked sdist.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("minicl", "examples", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
BUILDS = importlib.util.find_spec("setuptools.command.bdist_wheel" if importlib.util.find_spec("setuptools") else "wheel")
pytestmark = pytest.mark.skipif(not (BUILDS or importlib.util.find_spec("wheel")),
                                reason="needs setuptools >= 70.1 (extra: test) to build packages")


def python(code, cwd, *arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *(["-c"] * bool(code)), *([code] * bool(code)), *arguments], cwd=cwd, text=True,
                          capture_output=True, env={**inherited, **environment}, timeout=120)


def build(kind, project, out):
    """Build the project as pip does and return the path of the file; kind is sdist, wheel or editable."""
    done = python(f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])", project, str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return next(path for path in out.iterdir() if path.suffix in (".gz", ".whl"))


@pytest.fixture
def clone(tmp_path):
    """A copy of the files that packages are built from, in a folder named minicl, as in a clone."""
    (tmp_path / "parent/minicl").mkdir(parents=True)
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "parent/minicl" / name)
    return tmp_path / "parent/minicl"


@pytest.fixture
def site(tmp_path):
    """A new folder for built files and installed packages, like site-packages."""
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_the_sdist_has_the_files_of_the_repository(tmp_path, site):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if listed is None or listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("needs a git repository to list its files")
    names = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    for name in names:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    with tarfile.open(build("sdist", tmp_path / "clone", site)) as archive:
        packed = {file.name.partition("/")[2] for file in archive.getmembers() if file.isfile()}
    made = {name for name in packed if name == "PKG-INFO" or name.startswith("minicl.egg-info/")}
    assert packed - made == names


def test_an_installed_wheel_lists_and_runs_the_examples(clone, site, tmp_path):
    with zipfile.ZipFile(build("wheel", clone, site)) as wheel:
        wheel.extractall(site)
    shutil.rmtree(clone)
    listed = python("", tmp_path, "-m", "minicl", PYTHONPATH=str(site))
    assert "simclr_mnist        SimCLR on MNIST: learn digits without labels" in listed.stdout
    assert "make_exercises" not in listed.stdout and "plots" not in listed.stdout
    assert "claims " in listed.stdout
    ran = python("", tmp_path, "-m", "minicl", *"cpc_sequences --epochs 1 --batch 32 --help".split(), PYTHONPATH=str(site))
    assert ran.returncode == 0 and "usage: cpc_sequences.py" in ran.stdout                 # which imports sequences.py
    claims = python("", tmp_path, "-m", "minicl", "claims", "list", PYTHONPATH=str(site))
    assert claims.returncode == 0 and claims.stdout.split()[:2] == ["1", "infonce_bound"], claims.stderr
    missing = python("", tmp_path, "-m", "minicl", "simclr_mist", PYTHONPATH=str(site))
    assert missing.returncode == 2 and missing.stderr.endswith("did you mean simclr_mnist?\n")


def test_an_editable_install_works_in_the_clones_parent_folder(clone, site):
    """Python consults an import hook after the current folder, where `import minicl` would import the clone itself."""
    with zipfile.ZipFile(build("editable", clone, site)) as wheel:
        wheel.extractall(site)
    code = (f"import site, sys; known = len(sys.path); site.addsitedir({str(site)!r}); "
            "sys.path[1:1] = sys.path[known:]; "                    # ahead of a minicl installed elsewhere
            "import minicl; print(minicl.Tensor.__name__, minicl.__file__)")
    for folder in (clone.parent, clone, site):
        found = python(code, folder)
        assert found.stdout.split() == ["Tensor", str(clone / "minicl/__init__.py")], found.stderr


def test_python_m_minicl_lists_the_scripts_of_the_clone(tmp_path):
    code = "from minicl.__main__ import jobs; print(*jobs())"
    named = python(code, tmp_path, PYTHONPATH=str(ROOT)).stdout.split()
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py") if "\nif __name__" in path.read_text()}
    assert set(named) == {name for name in scripts if not name.startswith("make_")} | {"claims"}
    for name, hint in {"simclr_mnst": "did you mean simclr_mnist?", "bogus": "`python -m minicl` lists them"}.items():
        unknown = python("", tmp_path, "-m", "minicl", name, PYTHONPATH=str(ROOT))
        assert unknown.returncode == 2 and unknown.stderr == f"error: there is no job {name!r}; {hint}\n"
    (tmp_path / "without/tqdm").mkdir(parents=True)
    (tmp_path / "without/tqdm/__init__.py").write_text("raise ModuleNotFoundError('no tqdm', name='tqdm')")
    without = python("", tmp_path, "-m", "minicl", "simclr_mnist", PYTHONPATH=os.pathsep.join([str(tmp_path / "without"), str(ROOT)]))
    assert without.returncode == 2 and "has no tqdm, which minicl needs; activate the environment" in without.stderr
    ran = python("", tmp_path, "-m", "minicl", "mutual_information", "--epochs", "0", PYTHONPATH=str(ROOT))
    assert ran.returncode == 2 and "expected an integer >= 1" in ran.stderr
