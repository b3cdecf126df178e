"""Every test that takes `xp` runs on NumPy and on a second backend: by default a strict stand-in for CuPy, with
`--backend cupy-host` CuPy itself on an emulated GPU, with `--backend cupy` a GPU."""

import signal
import time

import numpy as np
import pytest
from cupy_dialect import strict
from host_cuda import boot
from hypothesis import settings

from minicl import get_backend

STARTED = time.monotonic()

settings.register_profile("minicl", deadline=None, derandomize=True)      # the same examples every time, no time limit
settings.load_profile("minicl")


def pytest_addoption(parser):
    parser.addoption("--backend", default="stand-in", choices=("stand-in", "cupy-host", "cupy", "numpy"),
                     help="the second backend: the stand-in for CuPy, CuPy itself on an emulated GPU (fetched and built "
                          "when first used), CuPy on a GPU, or nothing")
    parser.addoption("--minutes", type=float, default=float("inf"),
                     help="skip tests that would begin later than this many minutes after the start")


def pytest_runtest_setup(item):
    if time.monotonic() - STARTED > 60 * item.config.getoption("--minutes"):
        pytest.skip("the time of --minutes is over")


def pytest_configure(config):
    """Choose the module that `import cupy` finds: the stand-in, even where CuPy is installed, or CuPy itself."""
    if config.getoption("--backend") == "cupy-host":
        try:
            boot.load()
        except boot.Unavailable as reason:
            pytest.exit(f"skipped, nothing was run on CuPy itself: {reason}", returncode=0)
    if config.getoption("--backend") in ("cupy", "cupy-host"):
        get_backend("cupy")
    else:
        strict.install()


def pytest_generate_tests(metafunc):
    if "xp" in metafunc.fixturenames:
        other = metafunc.config.getoption("--backend")
        both = {"numpy": ["numpy"], "cupy-host": ["cupy-host"]}          # NumPy is tested beside the stand-in
        metafunc.parametrize("xp", both.get(other, ["numpy", other]), indirect=True)


@pytest.fixture
def xp(request):
    """The array module that a test runs on."""
    return np if request.param == "numpy" else get_backend("cupy")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def out(tmp_path):
    """The folder of a run, which does not exist yet."""
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's own handler, even if the tests were started in the background; it must be restored after each test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
