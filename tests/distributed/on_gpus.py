"""Run a check on the stand-in for CuPy, where each process has its own GPU and MPI carries NCCL's calls.

    mpirun -n 2 python on_gpus.py script.py arguments...
    MINICL_CUPY=host mpirun -n 2 python on_gpus.py ...       on CuPy itself over host_cuda's emulated GPU

This file provides cupy.cuda.nccl. It has the arguments of CuPy's and moves the data at the given addresses. It refuses
calls whose count, type or order differs between processes, where NCCL would hang or mix up bytes.
"""

import ctypes
import os
import runpy
import sys
import types
import zlib

import numpy as np
from cupy_dialect import strict
from mpi4py import MPI

TYPES = {2: "int32", 4: "int64", 7: "float32", 8: "float64"}                 # nccl.h's ncclDataType_t
SUM = 0


class NcclCommunicator:
    """cupy.cuda.nccl.NcclCommunicator over MPI."""

    def __init__(self, ndev, commId, rank, config=None):
        assert type(commId) is bytes and len(commId) == 128, commId
        self.comm = MPI.COMM_WORLD.Dup()
        self.calls = 0
        assert (ndev, rank) == (self.comm.size, self.comm.rank)
        assert len(set(self.comm.allgather(commId))) == 1

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        self._same("allReduce", count, datatype, op, stream)
        out = np.empty(count, dtype=TYPES[datatype])
        self.comm.Allreduce(_at(sendbuf, count, datatype).copy(), out)
        _at(recvbuf, count, datatype)[...] = out

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        self._same("allGather", count, datatype, SUM, stream)
        self.comm.Allgather(_at(sendbuf, count, datatype).copy(), _at(recvbuf, count * self.comm.size, datatype))

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):
        self._same("reduceScatter", recvcount, datatype, op, stream)
        self.comm.Reduce_scatter_block(_at(sendbuf, recvcount * self.comm.size, datatype).copy(),
                                       _at(recvbuf, recvcount, datatype))

    def _same(self, name, count, datatype, op, stream):
        assert op == SUM and stream == sys.modules["cupy"].cuda.get_current_stream().ptr and type(count) is int and count > 0 and datatype in TYPES
        call = zlib.crc32(repr((self.calls, name, count, datatype)).encode())
        assert len(set(self.comm.allgather(call))) == 1, f"call {self.calls}, {name}, differs between processes"
        self.calls += 1


def _at(pointer, count, datatype):
    assert type(pointer) is int and pointer
    size = count * np.dtype(TYPES[datatype]).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype=TYPES[datatype])


def install(fault=None):
    """Make `import cupy` find the stand-in, with one GPU per process; return a list of the index of the chosen GPU.

    fault: the fault of the last process (no_nccl, no_cupy or no_gpu), or of all: one_gpu (they share a GPU) or used (an
    array was made before the GPU was chosen).
    """
    if os.environ.get("MINICL_CUPY") == "host":
        from host_cuda import boot

        cupy = boot.load()
    else:
        sys.modules.pop("cupy", None)
        cupy = strict.install()
        cupy.cuda.get_current_stream().ptr = 4711
        cupy.get_default_memory_pool().total_bytes = lambda: 512 * (fault == "used")
    world = MPI.COMM_WORLD
    runtime = cupy.cuda.runtime
    chosen = [0]
    last = world.rank == world.size - 1
    if fault == "no_gpu" and last:
        def missing():
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        runtime.getDeviceCount = missing
    else:
        runtime.getDeviceCount = lambda: 1 if fault == "one_gpu" else world.size
    runtime.getDevice = lambda: chosen[0]
    runtime.deviceGetPCIBusId = lambda device: f"0000:{device:02x}:00.0"
    cupy.cuda.Device = lambda device=0: types.SimpleNamespace(use=lambda: chosen.__setitem__(0, device), id=device)
    nccl = types.ModuleType("cupy.cuda.nccl")
    nccl.available = not (fault == "no_nccl" and last)
    if nccl.available:
        vars(nccl).update(NcclCommunicator=NcclCommunicator, get_unique_id=lambda: os.urandom(128), NCCL_SUM=SUM,
                          **{f"NCCL_{name.upper()}": code for code, name in TYPES.items()})
    cupy.cuda.nccl = sys.modules["cupy.cuda.nccl"] = nccl
    if fault == "no_cupy" and last:
        sys.modules["cupy"] = None
    return chosen


if __name__ == "__main__":
    gpu = install()
    del sys.argv[:1]
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert gpu[0] == MPI.COMM_WORLD.rank                                     # each has chosen its own GPU
