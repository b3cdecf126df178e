"""Several processes: the engines, and equality with one process. The checks run scripts of tests/distributed/."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from mpi import CHECKS, ROOT, check, needs_mpi

from minicl import BackendError, Tensor, distributed
from minicl.distributed import ALONE, World, all_gather, get_world, mean_of
from minicl.nn import Linear
from minicl.optim import SGD

SIZES = pytest.mark.parametrize("size", [2, 3])


EACH = pytest.mark.parametrize("size, engine", [(2, "MPI"), (3, "MPI"), (2, "NCCL")])


@pytest.fixture
def run(pytestconfig):
    """run(size, engine, script) returns a check's output. GPUs are the stand-in's, or CuPy's own emulated ones."""
    def run(size, engine, script):
        if engine == "MPI":
            return check(size, script)
        on_cupy = {"MINICL_CUPY": "host", "timeout": 900} if pytestconfig.getoption("--backend") == "cupy-host" else {}
        return check(size, "on_gpus.py", CHECKS / script, "cupy", *(["mpi"] if engine != "NCCL" else []), **on_cupy)
    return run


@needs_mpi
@pytest.mark.parametrize("size, engine", [(2, "MPI"), (3, "MPI"), (2, "NCCL"), (3, "NCCL"), (3, "MPI from GPUs")])
def test_collectives_compute_what_they_document(size, engine, run):
    result = run(size, engine, "collectives.py")
    assert result["size"] == size and engine.startswith(result["engine"]) and result["error"] < 1e-13


@needs_mpi
@EACH
def test_losses_and_layers_equal_those_of_one_process(size, engine, run):
    result = run(size, engine, "equality.py")
    assert len(result["exact"]) > 40 and max(result["exact"].values()) < 1e-12, result["exact"]
    assert len(result["single"]) > 40 and max(result["single"].values()) < 1e-5, result["single"]


@needs_mpi
@EACH
def test_training_steps_equal_those_of_one_process(size, engine, run):
    result = run(size, engine, "steps.py")
    assert result["size"] == size and result["engine"] == engine and len(result["results"]) == 24
    for name, differences in result["results"].items():
        assert max(differences.values()) < (1e-12 if "float64" in name else 1e-5), (name, differences)


@needs_mpi
def test_a_fault_of_one_gpu_is_an_error_on_all_processes():
    messages = check(2, "faults.py")
    assert list(messages) == ["no_cupy", "no_gpu", "no_nccl", "one_gpu", "used"]
    for fault, words in {"no_cupy": "process 1 of 2: no GPU can be used", "no_gpu": "no CUDA-capable device",
                         "no_nccl": "process 1 of 2: NCCL is missing: pip install nvidia-nccl-cu12",
                         "one_gpu": "2 processes of this machine have the same GPU (0000:00:00.0)",
                         "used": "process 1 of 2: arrays are already on GPU 0, but this process should use GPU 1"}.items():
        assert words in messages[fault], messages[fault]


def test_one_process_gets_its_own_arrays_back():
    x = np.ones((4, 2))
    for same in (ALONE.all_reduce(x), ALONE.all_gather(x), ALONE.reduce_scatter(x), ALONE.rows(x), ALONE.sum(x),
                 ALONE.share(x), all_gather(x, world=ALONE).data, mean_of(x, world=ALONE).data):
        assert same is x
    assert np.array_equal(x[ALONE.part], x) and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.alike(x) and ALONE.wait() is None and repr(ALONE) == "World(rank=0, size=1)"


def test_copying_and_pickling_keep_the_world():
    assert copy.deepcopy([ALONE])[0] is ALONE and pickle.loads(pickle.dumps(ALONE)) is ALONE


def test_without_a_launcher_a_process_runs_alone():
    for name in (*distributed.SIZES, *distributed.RANKS):
        assert name not in os.environ, "this test is run by mpirun"
    assert get_world() is ALONE and get_world("cupy") is ALONE and distributed.current() is ALONE
    with pytest.raises(BackendError, match="engine must be 'mpi'"):
        get_world("numpy", "nccl")


@pytest.mark.parametrize("environment", [{"PMI_RANK": "0", "PMI_SIZE": "4"},
                                         {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
                                         {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}], ids=lambda e: min(e))
@pytest.mark.parametrize("hidden", [False, True], ids=["another MPI", "no mpi4py"])
def test_a_process_that_cannot_see_the_others_is_an_error(environment, hidden):
    if not hidden and "PMIX_RANK" in environment:
        pytest.skip("without its server, MPICH ends the process")
    if not hidden:
        pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'minicl[mpi]'")
    code = "import sys; sys.modules.update({'mpi4py': None} if sys.argv[1] == 'True' else {}); " \
           "from minicl.distributed import get_world; get_world()"
    done = subprocess.run([sys.executable, "-c", code, str(hidden)], cwd=ROOT, env={**os.environ, **environment}, timeout=60,
                          capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("minicl.backend.device.BackendError")
    assert ("started 4 processes, but they cannot communicate" in last and "minicl[mpi]" in last if hidden else
            "started 4 processes but mpi4py sees 1: mpirun and mpi4py belong to different MPIs" in last)


@pytest.mark.parametrize("environment, count", [
    ({}, 1), ({"SLURM_STEP_NUM_TASKS": "4"}, 1), ({"PMI_RANK": "0", "PMI_SIZE": "4"}, 4), ({"PMIX_RANK": "0"}, 0),
    ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, 4), ({"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, 1),
    # OMPI_COMM_WORLD_SIZE is left from another job
    ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "2"}, 2)], ids=str)
def test_launched_counts_the_processes_that_the_launcher_started(monkeypatch, environment, count):
    for name in (*distributed.SIZES, *distributed.RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() == count


def test_world_must_be_a_world(rng):
    for other in (4, None, "x", True):
        with pytest.raises(TypeError, match=f"all_gather: world must be what minicl.distributed.get_world.. returns, got {other!r}"):
            all_gather(Tensor(np.eye(3)), world=other)
    with pytest.raises(TypeError, match="Linear.across: world must be what minicl.distributed.get_world.. returns, got 4"):
        Linear(2, 3, rng=rng).across(4)


class Recorder(World):
    """A stand-in for one of two processes, whose peer always sends the same arrays."""

    size = 2

    def all_reduce(self, x):
        x *= 2
        return x


def test_an_optimizer_sums_gradients_whether_its_model_was_shared_before_or_after(rng):
    model = Linear(2, 3, rng=rng)
    copies = [copy.deepcopy(model) for _ in range(3)]
    before, after, pairs = (SGD(each if k < 2 else each.named_parameters(), lr=0.5) for k, each in enumerate(copies))
    copies[1].across(Recorder())
    pairs.world = Recorder()
    for optimizer, each in zip((before, after, pairs), copies):
        optimizer.zero_grad()
        each(np.ones((4, 2), "float32")).sum().backward()
        optimizer.step()
    assert before.world is ALONE and np.array_equal(after.grads, 2 * before.grads)
    assert np.array_equal(pairs.grads, after.grads) and np.array_equal(pairs.values, after.values)
    assert copy.deepcopy(copies[1]).world is copies[1].world                 # a copy keeps the world
