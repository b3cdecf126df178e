"""Signals that end a process. SIGINT (Ctrl-C), SIGTERM and SIGHUP raise Stopped; during a training step they are only
noted, so that the step can be finished and saved. A signal that the parent process ignores, as under nohup, stays
ignored. This works only in the main thread of a process; elsewhere both blocks do nothing.

Both blocks yield the list of received signals, which is reliable, while an exception can get lost in interrupted code.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; exit_code is 128 + its number, as a shell reports it.

    by_all: all processes that work together have agreed to stop, so none is left waiting for another.
    """

    def __init__(self, number: int = signal.SIGINT, *, by_all: bool = False):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        self.by_all = by_all


def signals_stop() -> contextlib.AbstractContextManager[list[int]]:
    """Within this block the signals raise Stopped at once."""
    def stop(number, frame):
        _received.append(number)
        raise Stopped(number)

    return _handled_by(stop)


def signals_noted() -> contextlib.AbstractContextManager[list[int]]:
    """Within this block the signals are only noted; Ctrl-C after another signal raises Stopped."""
    def note(number, frame):
        _received.append(number)
        if number == signal.SIGINT and len(_received) > 1:
            raise Stopped(number)

    return _handled_by(note)


_received: list[int] = []                                    # since the outermost block began
_befores: list[dict[int, Any]] = []                          # of each open block, the handlers that it replaced


def _after_fork():
    """A forked child, such as a worker of a pool, is no part of what the blocks protect: a signal to it ends it. But Ctrl-C
    reaches all processes of a terminal, and a step that is to be finished may need the workers."""
    for before in reversed(_befores):
        for number, handler in before.items():
            if number != signal.SIGINT:
                signal.signal(number, handler)
    _befores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[list[int]]:
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    before = {number: found for number in SIGNALS if (found := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    if not _befores:
        _received.clear()
    _befores.append(before)
    try:
        for number in before:
            signal.signal(number, handler)
        yield _received
    finally:
        later = next((k + 1 for k, each in enumerate(_befores) if each is before), 0)
        if later == len(_befores):
            for number, earlier in before.items():
                signal.signal(number, earlier)
        elif later:                                          # of two loops in turns, the first one ends first
            _befores[later].update(before)
        _befores[:] = [each for each in _befores if each is not before]
