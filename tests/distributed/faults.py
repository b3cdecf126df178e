"""A fault of the GPU of one process is an error on all processes, and no process waits for another."""

import json

import on_gpus

from minicl import BackendError
from minicl.distributed import ALONE, current, get_world

messages = {}
for fault in ("no_cupy", "no_gpu", "no_nccl", "one_gpu", "used"):
    on_gpus.install(fault)
    try:
        get_world("cupy")
    except BackendError as error:
        messages[fault] = str(error)
    assert current() is ALONE
on_gpus.install("one_gpu")
world = get_world("cupy", "mpi")                                             # two processes may share a GPU this way
assert world.share(messages) == messages                                     # the same on all processes
if world.rank == 0:
    print(json.dumps(messages))
