"""Blocks of code in which nothing is recorded."""

import contextlib
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

LATER = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
no_grad_blocks: ContextVar[tuple["no_grad", ...]] = ContextVar("no_grad blocks that this thread is in", default=())


class no_grad(contextlib.ContextDecorator):
    """A block in which ops compute values only and record nothing. Other threads continue to record.

    @no_grad() decorates a function, and so does @no_grad. A block inside a suspended generator lasts until the generator
    continues or is closed, in whichever thread that happens.
    """

    def __new__(cls, function: Callable | None = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        self.entered = 0                                     # entries minus exits

    def __enter__(self) -> None:
        self.entered += 1
        no_grad_blocks.set((*no_grad_blocks.get(), self))

    def __exit__(self, *error: Any) -> None:
        self.entered -= 1
        blocks = list(no_grad_blocks.get())
        if self in blocks:                                   # else entered in another thread
            blocks.remove(self)
            no_grad_blocks.set(tuple(blocks))

    def __call__(self, function: Callable) -> Any:
        require_plain_function("no_grad", function)
        return super().__call__(function)

    def _recreate_cm(self) -> "no_grad":
        return no_grad()                                     # a new block for each call of a decorated function


def require_plain_function(name: str, function: Any) -> None:
    """Raise TypeError unless a block `name` can decorate function: the code within it must run during the call."""
    function = function if inspect.isfunction(function) else inspect.unwrap(function)        # such as a captured step's
    if not (inspect.isfunction(function) or inspect.ismethod(function)) or any(is_later(function) for is_later in LATER):
        raise TypeError(f"{name}: expected a function to decorate, got {function!r}; within a generator or an async "
                        f"def, whose code runs after the call, write `with {name}():`")


def in_no_grad() -> bool:
    """Whether this thread is in a block that has not been left, here or in another thread."""
    return any(block.entered for block in no_grad_blocks.get())
