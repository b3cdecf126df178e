"""Training one model on several processes, each with its part of every batch; the result is that of one process.

    mpirun -n 4 python examples/simclr_mnist.py

    world = get_world("numpy")             the processes that mpirun started; without a launcher ALONE, which does nothing.
                                           Call it before get_backend: it also chooses each process's GPU
    world.rank, world.size                 this process's number, and the number of processes
    images[world.part]                     this process's part of a batch: every size-th row, from its rank on
    model.across(world)                    batch norm, dropout and the methods use the batch of all processes,
                                           and the model's optimizer adds up the gradients
    nt_xent(z1, z2, tau, world=world)      the loss of the whole batch, from this process's rows

MPI (through mpi4py) carries arrays between CPUs, and NCCL (through CuPy) between GPUs. Three rules make the result equal
to one process's up to rounding, and a checkpoint independent of their number:

    1. There is one loss, that of the whole batch, and every process has its value. Every gradient is that loss's.
    2. Rows and their gradients are a part of the batch. All processes have the same parameters; each computes the gradient
       share of its rows, and the optimizer adds up the shares. Nothing is averaged.
    3. All processes draw the random numbers of the whole batch, and use their part of them.
"""

import importlib
import os
import signal
import sys
import time
import zlib
from typing import Any

import numpy as np

from .autograd import op
from .backend import BackendError, array_module, on_host, share_cores, to_device, to_host
from .typing import Array

# Launchers tell each process how many there are by one of these. srun sets the last, and PMI_RANK or PMIX_RANK if it
# also serves MPI; a plain shell of a Slurm job has only the last.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PALS_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID", "PALS_RANKID")


class World:
    """A single process: each method returns its argument. MPI and NCCL are the same for several processes.

    All processes call the array methods in the same order, with arrays of equal shape and dtype.

    >>> ALONE.part, ALONE.all_reduce(np.ones(2)).tolist()
    (slice(0, None, 1), [1.0, 1.0])
    """

    rank = local_rank = 0
    size = local_size = 1

    @property
    def part(self) -> slice:
        """This process's rows of a batch."""
        return slice(self.rank, None, self.size)

    def all_reduce(self, x: Array) -> Array:
        """The sum of x over all processes, written into x."""
        return x

    def all_gather(self, x: Array) -> Array:
        """The rows of all processes in the batch's order: x (n, ...) -> (size n, ...), so all_gather(x)[part] is x.

        Stacked views of a part, [view1; view2], become the stacked views of the batch.
        """
        return x

    def reduce_scatter(self, x: Array) -> Array:
        """The sum of x over all processes, of which each gets its part: x (size n, ...) -> (n, ...)."""
        return x

    def rows(self, x: Array) -> Array:
        """This process's part of the rows x (size n, ...): x[part]."""
        return x

    def sum(self, x: Any) -> Any:
        """The sum of x over all processes, a new array; x may be a NumPy number."""
        return x

    def mean(self, x: Any) -> Any:
        """The mean of x over all processes."""
        return x

    def share(self, value: Any = None) -> Any:
        """Rank 0's value, any Python object, on every process."""
        return value

    def any(self, flag: Any) -> Any:
        """Whether the flag, or each of a list of flags, is true on any process; exchanged without waiting for a GPU."""
        return [bool(each) for each in flag] if isinstance(flag, list) else bool(flag)

    def alike(self, *arrays: Any) -> bool:
        """Whether these arrays or numbers are equal on all processes, bit for bit."""
        return True

    def require_rows(self, name: str, count: int) -> None:
        """Raise ValueError on all processes unless all have equally many rows. No GPU waits."""

    def require_part(self, name: str, rows: Array) -> None:
        """Raise ValueError on all processes if all have the same rows. Checked only once, since a GPU waits."""

    def wait(self) -> None:
        """A barrier. It sleeps, while MPI's own would keep a core busy."""

    def abort(self, code: int) -> None:
        """End all processes now, with this exit code."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"

    def __deepcopy__(self, memo: dict) -> "World":
        return self                                          # the same processes train a copy of a model

    def __reduce__(self) -> tuple:
        return current, ()


class MPI(World):
    """Several processes over MPI. CuPy arrays pass through the host: slow, but two processes may share one GPU."""

    def __init__(self) -> None:
        from mpi4py import MPI as engine

        self.engine: Any = engine
        self.comm: Any = engine.COMM_WORLD
        self.here: Any = self.comm.Split_type(engine.COMM_TYPE_SHARED)       # the processes of this machine
        self.rank, self.size = self.comm.rank, self.comm.size
        self.asked: set[str] = set()                         # by require_part
        self.local_rank, self.local_size = self.here.rank, self.here.size
        mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share_cores(self.here.allgather(mine).count(mine))                   # a launcher may have bound each to a core

    def all_reduce(self, x: Array) -> Array:
        if x.dtype.kind not in "fi" or not x.flags.c_contiguous:
            raise ValueError("all_reduce: x must be a contiguous array of floats or integers, to hold the sum, got "
                             f"{x.dtype} of shape {x.shape}")
        return self._all_reduce(x)

    def all_gather(self, x: Array) -> Array:
        return self._all_gather(x).swapaxes(0, 1).reshape(-1, *x.shape[1:])                  # (n, size, ...)

    def reduce_scatter(self, x: Array) -> Array:
        parts = x.reshape(-1, self.size, *x.shape[1:]).swapaxes(0, 1)                        # (size, n, ...)
        return self._reduce_scatter(array_module(x).ascontiguousarray(parts))

    def rows(self, x: Array) -> Array:
        return x[self.part].copy()

    def sum(self, x: Any) -> Any:
        return self.all_reduce(array_module(x).array(x))

    def mean(self, x: Any) -> Any:
        return self.sum(x) / self.size

    # ------------------------------------------------------------ the engine: arrays by rank

    def _all_reduce(self, x: Array) -> Array:
        """The sum of the x (...), in place."""
        self.comm.Allreduce(self.engine.IN_PLACE, host := to_host(x))
        if host is not x:
            x.set(host)
        return x

    def _all_gather(self, x: Array) -> Array:
        """x (...) -> (size, ...)"""
        out = np.empty((self.size, *x.shape), dtype=x.dtype)
        self.comm.Allgather(np.ascontiguousarray(to_host(x)), out)
        return to_device(out, array_module(x))

    def _reduce_scatter(self, x: Array) -> Array:
        """x (size, ...) -> (...): the sum of the x[rank]"""
        out = np.empty(x.shape[1:], dtype=x.dtype)
        self.comm.Reduce_scatter_block(to_host(x), out)
        return to_device(out, array_module(x))

    # ------------------------------------------------------------ the host

    def share(self, value: Any = None) -> Any:
        return self.comm.bcast(value)

    def any(self, flag: Any) -> Any:
        both = np.array(flag, dtype=bool).astype("int32")
        self.comm.Allreduce(self.engine.IN_PLACE, both, self.engine.MAX)
        return both.astype(bool).tolist()

    def alike(self, *arrays: Any) -> bool:
        sums = [zlib.crc32(np.ascontiguousarray(to_host(array)).tobytes()) for array in arrays]
        return all(other == sums for other in self.comm.allgather(sums))

    def require_rows(self, name: str, count: int) -> None:
        bounds = np.array([count, -count])
        self.comm.Allreduce(self.engine.IN_PLACE, bounds, self.engine.MAX)
        if bounds.sum():
            raise ValueError(f"{name}: expected the same number of rows on each of {self.size} processes, got {-bounds[1]} "
                             f"to {bounds[0]}; use a batch that is a multiple of {self.size}")

    def require_part(self, name: str, rows: Array) -> None:
        if name not in self.asked:
            self.asked.add(name)
            if self.alike(rows) and bool((rows != rows[:1]).any()):
                raise ValueError(f"{name}: all {self.size} processes have the same rows of the batch, so each row "
                                 f"counts {self.size} times; give each process its own, batch[world.part]")

    def wait(self) -> None:
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.02)

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(code)

    def require(self, problem: str | None) -> None:
        """Raise BackendError on all processes if one has a problem; if it raised alone, the others would wait for it."""
        problems = self.comm.allgather(problem)
        if any(problems):
            rank = next(rank for rank, problem in enumerate(problems) if problem)
            raise BackendError(f"process {rank} of {self.size}: {problems[rank]}")

    def choose_gpu(self, shared: bool) -> Any:
        """Select this process's GPU, before any array is on one; returns cupy."""
        problem = gpu = None
        try:
            cupy = importlib.import_module("cupy")
            count = cupy.cuda.runtime.getDeviceCount()       # 1 where Slurm shows each process its own
            chosen = self.local_rank % count
            gpu = cupy.cuda.runtime.deviceGetPCIBusId(chosen)
            if chosen != cupy.cuda.runtime.getDevice() and cupy.get_default_memory_pool().total_bytes():
                problem = (f"arrays are already on GPU {cupy.cuda.runtime.getDevice()}, but this process should use GPU "
                           f"{chosen}; call get_world() before get_backend() and before the first array")
            cupy.cuda.Device(chosen).use()
        except Exception as error:                           # no CuPy, or no driver
            problem = f"no GPU can be used: {error}; check with nvidia-smi, install 'minicl[nccl]', or use --backend numpy"
        self.require(problem)
        sharing = self.here.allgather(gpu).count(gpu)
        self.require(f"{sharing} processes of this machine have the same GPU ({gpu}), and NCCL needs one for each: start "
                     "fewer, or use get_world('cupy', 'mpi')" if sharing > 1 and not shared else None)
        return sys.modules["cupy"]


class NCCL(MPI):
    """Several processes with a GPU each, over NCCL: in the order of CuPy's current stream, so the host does not wait.

    MPI distributes NCCL's id and exchanges host data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cupy = self.choose_gpu(shared=os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1")
        from cupy.cuda import nccl                           # without libnccl this warns and is empty

        self.require(None if nccl.available else "NCCL is missing: pip install nvidia-nccl-cu12 (for CUDA 13: "
                                                 "nvidia-nccl-cu13), or use get_world('cupy', 'mpi')")
        self.nccl = nccl
        self.link = nccl.NcclCommunicator(self.size, self.share(nccl.get_unique_id() if self.rank == 0 else None), self.rank)
        self.kinds = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64, "int32": nccl.NCCL_INT32,
                      "int64": nccl.NCCL_INT64}

    def _call(self, function, source, target, count, *more):
        function(source.data.ptr, target.data.ptr, count, self.kinds[source.dtype.name], *more,
                 self.cupy.cuda.get_current_stream().ptr)
        return target

    def _all_reduce(self, x: Array) -> Array:
        if on_host(x):
            return super()._all_reduce(x)
        return self._call(self.link.allReduce, x, x, x.size, self.nccl.NCCL_SUM)

    def _all_gather(self, x: Array) -> Array:
        if on_host(x):
            return super()._all_gather(x)
        out = self.cupy.empty((self.size, *x.shape), dtype=x.dtype)
        return self._call(self.link.allGather, self.cupy.ascontiguousarray(x), out, x.size)

    def _reduce_scatter(self, x: Array) -> Array:
        if on_host(x):
            return super()._reduce_scatter(x)
        out = self.cupy.empty(x.shape[1:], dtype=x.dtype)
        return self._call(self.link.reduceScatter, x, out, out.size, self.nccl.NCCL_SUM)


ALONE = World()
_current = ALONE


def current() -> World:
    """The World that get_world() returned last; ALONE before."""
    return _current


def get_world(backend: str = "numpy", engine: str | None = None) -> World:
    """The World of the processes that mpirun or srun started, or of this one alone. Call it before get_backend.

    engine  "mpi" or "nccl"; None: NCCL for CuPy, MPI for NumPy

    Raises BackendError, on every process, if there are several and mpi4py is missing or belongs to another MPI than the
    launcher (each process would run as if alone), or if CuPy, NCCL or a GPU for each process is missing.
    """
    global _current
    if engine not in (None, "mpi", "nccl") or (engine == "nccl" and backend != "cupy"):
        raise BackendError(f"get_world: engine must be 'mpi' or, for backend 'cupy', 'nccl', got {engine!r}")
    if launched() == 1 and "mpi4py.MPI" not in sys.modules:
        return ALONE
    before = hold_signals()
    try:
        _current = _start(backend, engine, launched())
    finally:
        hold_signals(before)
    return _current


def launched() -> int:
    """The number of processes that the launcher reports; 1 without a launcher, 0 if it reports no number."""
    if not any(name in os.environ for name in RANKS):
        return 1
    told = [int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdecimal()]
    return max(told[:-1] or told, default=0) if "SLURM_STEP_NUM_TASKS" in os.environ else max(told, default=0)


def hold_signals(mask: Any = None) -> Any:
    """Block the signals that end a program, until called with the returned earlier mask. A signal that interrupts MPI while
    it communicates with its launcher, at the start and at the end, can leave it waiting permanently."""
    if not hasattr(signal, "pthread_sigmask"):               # Windows has no such signals
        return None
    if mask is None:
        return signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    return signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(backend, engine, launched):
    try:
        import mpi4py

        mpi4py.rc.initialize = False                                         # MPICH would abort under Open MPI's launcher
        mpi4py.rc.finalize = True
        from mpi4py import MPI as library
    except (ImportError, RuntimeError) as error:
        raise BackendError(f"a launcher started {launched or 'several'} processes, but they cannot communicate: {error}; "
                           "run pip install 'minicl[mpi]', or on a cluster load its MPI and pip install mpi4py") from error
    version = library.Get_library_version().splitlines()[0].strip()
    is_other = os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1" and any(name in version for name in ("MPICH", "Intel"))
    if not is_other and not library.Is_initialized():
        library.Init_thread()
    seen = 1 if is_other else library.COMM_WORLD.size
    if seen < (launched or 1):
        raise BackendError(f"the launcher started {launched} processes but mpi4py sees {seen}: mpirun and mpi4py "
                           f"belong to different MPIs; use the mpirun of mpi4py's, {version}")
    if seen == 1:
        return ALONE
    if backend == "cupy" and engine != "mpi":
        return NCCL()
    world = MPI()
    if backend == "cupy":
        world.choose_gpu(shared=True)
    return world


# ---------------------------------------------------------------- ops

@op
def all_gather(x: Array, *, world: World = ALONE):
    """The rows of all processes, in the batch's order: x (n, ...) -> y (size n, ...).

        y_i = row i div size of process i mod size                               (1)
        dx_j = sum over the processes of their g_i, i = j size + rank            (2)

    A loss computed from y must end in mean_of, even if each process computes the same loss from the whole y:
    mean_of(loss(all_gather(z1, world=world), ...), world=world). Without mean_of the gradient is size times too long, and
    no check notices. Stacked views of a part, [view1; view2], become the stacked views of the batch.
    Derivation: docs/gradients/all_gather.md

    >>> all_gather(np.ones((2, 3))).shape                                    # one process: the rows themselves
    (2, 3)
    """
    world.require_rows("all_gather", len(x))
    y = world.all_gather(x)                                                  # (1)

    def backward(g):
        return (world.reduce_scatter(g),)                                    # (2)

    return y, backward


@op
def mean_of(x: Array, *, world: World = ALONE):
    """The mean of x over the processes: the loss of all rows, if x is the mean of a loss over equally many rows.

        y = (1/size) sum over the processes of their x                           (3)
        dx = g / size                                                            (4)

    >>> mean_of(np.ones(())).item()
    1.0
    """
    def backward(g):
        return (g / world.size,)                                             # (4)

    return world.mean(x), backward                                           # (3)
