"""Signals that ask a process to end. SIGINT (Ctrl-C), SIGTERM and SIGHUP raise Stopped; during a training step they are
only noted, so that the step can be finished and saved. A signal that the parent process ignores, as under nohup, stays
ignored. Only the main thread of a process can set this up; elsewhere both blocks do nothing.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; exit_code is 128 + its number, as a shell reports it."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def signals_stop() -> contextlib.AbstractContextManager[None]:
    """Within this block the signals raise Stopped at once."""
    def stop(number, frame):
        raise Stopped(number)

    return _handled_by(stop)


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Within this block the signals are appended to the list that it yields. Ctrl-C after another signal raises Stopped."""
    noted: list[int] = []

    def note(number, frame):
        noted.append(number)
        if number == signal.SIGINT and len(noted) > 1:
            raise Stopped(number)

    with _handled_by(note):
        yield noted


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: handlers for number, handlers in before.items() if handlers not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
