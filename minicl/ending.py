"""The end of programs: how errors are printed, and how several processes end together.

    failure(error, signals)       one line for an error that the user can correct, and the exit code
    end_all(message, code)        an error on one of them
    leave(world, step, seconds)   one has left the training loop: the others must do so after the same step

end_all does not return; leave returns at once.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from .backend import BackendError
from .checkpoint import CheckpointError
from .data import DataError
from .distributed import MPI, current
from .folder import RunError
from .signals import Stopped

LEFT = 14                                                    # the tag of the messages that say so
OUT_OF_MEMORY = ("give a smaller --batch, which most of it grows with, a smaller --queue, --dim or encoder, and data in "
                 "float32. Tiles of scores (minicl.backend.tile_size) and a GPU's convolutions "
                 "(minicl.ops.columns.COLUMN_BYTES) take up to 256 MiB each; --precision saves time, not memory")

closing: list[Callable[[], Any]] = []                        # what closes the folders of this process's runs


def failure(error: BaseException, received: list[int]) -> tuple[str | None, int]:
    """What to print, None for what Python prints itself, and the exit code."""
    if isinstance(error, SystemExit):
        return None, error.code if type(error.code) is int else 1
    if received or isinstance(error, KeyboardInterrupt):     # whatever a signal's exception has turned into
        stopped = error if isinstance(error, Stopped) else Stopped(*received[:1])
        return f"\n{stopped}{_instead(error)}", stopped.exit_code
    if isinstance(error, MemoryError):                       # NumPy's own, and CuPy's OutOfMemoryError is one
        return f"error: out of memory ({error}); {OUT_OF_MEMORY}", 2
    if isinstance(error, (BackendError, CheckpointError, DataError, RunError, FloatingPointError, OSError)):
        return f"error: {error}", 2
    return None, 1


def _instead(error):
    """What has ended a step, or kept a checkpoint from being saved, after a signal; "" if the signal itself did."""
    seen = [error]
    while (cause := seen[-1].__cause__ or seen[-1].__context__) and cause not in seen:
        seen.append(cause)
    if any(isinstance(each, KeyboardInterrupt) for each in seen):
        return ""
    known = failure(error, [])[0] or as_python_says(error).rstrip()
    return f"; the step was not finished or not saved:\n{known}"


def as_python_says(error: BaseException) -> str:
    """The text that Python prints for an uncaught error."""
    only = isinstance(error, SystemExit)                     # without its traceback
    return "".join(traceback.format_exception_only(error) if only else traceback.format_exception(error))


def end_all(message: str, code: int) -> NoReturn:
    """End all processes, since the others would wait for this one. The first prints an error that all have."""
    world = current()
    time.sleep(0.5 * (world.rank > 0))
    print(f"process {world.rank} of {world.size}: {message.strip()}" if world.rank else message, file=sys.stderr)
    for close in closing:
        close()
    sys.stderr.flush()
    time.sleep(0.1)                                          # an aborted launcher may drop unread output
    world.abort(code or 1)                                   # sys.exit(0) of one process is a failure too
    os._exit(code or 1)                                      # some MPIs return, and kill a little later


def leave(world: Any, step: int, seconds: float) -> None:
    """This process leaves the training loop early, in `step`; unless the others do so within `seconds`, all end.

    A thread waits for them, because this process may already wait in a call that the others do not make.
    """
    def watch():
        others = set(range(world.size)) - {world.rank}
        sent = [world.comm.isend(step, rank, LEFT) for rank in others]
        until = time.monotonic() + seconds
        while others and time.monotonic() < until:
            time.sleep(0.05)
            others -= {rank for rank in others if world.comm.iprobe(rank, LEFT)
                       and world.comm.recv(source=rank, tag=LEFT) == step}
        if others:
            end_all(f"error: process {world.rank} left the loop over run.steps() in step {step}, and process {min(others)} "
                    "did not: decide on what is the same on all processes, such as world.any(flag)", 2)
        for request in sent:
            request.wait()

    if isinstance(world, MPI) and world.engine.Query_thread() == world.engine.THREAD_MULTIPLE:
        threading.Thread(target=watch, daemon=True).start()
