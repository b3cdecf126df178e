"""Locks, shared by the threads of a process."""

import os
from typing import TypeVar

Lock = TypeVar("Lock")


def open_in_child(lock: Lock) -> Lock:
    """The lock, which is open in a forked child: the thread that held it is not there to release it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)             # type: ignore[attr-defined]
    return lock
