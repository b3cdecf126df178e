"""Every test that takes `xp` runs on NumPy and on the GPU's dialect: on a strict stand-in for CuPy, or with
`--backend cupy` on CuPy itself."""

import signal

import numpy as np
import pytest
from cupy_dialect import strict
from hypothesis import settings

from minicl import get_backend

settings.register_profile("minicl", deadline=None, derandomize=True)      # the same examples every time, however slow
settings.load_profile("minicl")


def pytest_addoption(parser):
    parser.addoption("--backend", default="stand-in", choices=("stand-in", "cupy", "numpy"),
                     help="what runs beside NumPy: the stand-in for CuPy (needs no GPU), CuPy itself, or nothing")


def pytest_configure(config):
    """Put into place what `import cupy` will find: the stand-in even where CuPy is installed, or CuPy itself."""
    if config.getoption("--backend") == "cupy":
        get_backend("cupy")
    else:
        strict.install()


def pytest_generate_tests(metafunc):
    if "xp" in metafunc.fixturenames:
        other = metafunc.config.getoption("--backend")
        metafunc.parametrize("xp", ["numpy"] if other == "numpy" else ["numpy", other], indirect=True)


@pytest.fixture
def xp(request):
    """The array module a test runs on."""
    return np if request.param == "numpy" else get_backend("cupy")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def out(tmp_path):
    """The folder of a run, not there yet."""
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's own handler, even if the tests were started in the background; it must stand again after each test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
