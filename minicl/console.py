"""Standard output and error whose failures do not end a run."""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, TextIO


BAR_COLUMNS = 58                                             # of a progress bar with its counts and times


def terminal_columns(stream: TextIO | None) -> int:
    """The width of the terminal that a stream writes to; 0 if it is none, or one whose size is unknown."""
    try:
        size = os.get_terminal_size(stream.fileno()) if stream is not None and stream.isatty() else (0, 0)
    except (OSError, ValueError):
        size = (0, 0)
    return size[0] if min(size) > 0 else 0


def fitting(parts: list[str], width: int) -> str:
    """The first of the parts, joined, that fit into so many columns.

    >>> fitting(["epoch 1", "loss 4.661", "lr 0.001066"], 22)
    'epoch 1  loss 4.661'
    """
    count = len(parts)
    while count and len("  ".join(parts[:count])) > width:
        count -= 1
    return "  ".join(parts[:count])


def wrapped(text: str, columns: int) -> str:
    """A text with its longer lines broken between words, and what follows indented. Unchanged for columns = 0, no terminal.

    >>> print(wrapped("warning: the test set has 5 pictures", 24))
    warning: the test set
      has 5 pictures
    """
    lines = text.split("\n") if columns else []
    return "\n".join(textwrap.fill(line, columns, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
                     if len(line) > columns else line for line in lines) or text


def listing(rows: list[tuple[str, str]]) -> str:
    """Rows of a name and a text, in two columns: the text is wrapped at the width of the terminal, 80 where there is none.

    >>> print(listing([("info_nce", "queries and keys"), ("clip", "both directions")]))
      info_nce  queries and keys
      clip      both directions
    """
    column = max(len(name) for name, _ in rows) + 4
    width = max(shutil.get_terminal_size().columns, column + 20)
    return "\n".join(textwrap.fill(text, width, initial_indent=f"  {name:<{column - 2}}", subsequent_indent=" " * column,
                                   break_on_hyphens=False) for name, text in rows)


class _Stream:
    """A text stream that ignores failures.

    Characters that its encoding cannot represent are escaped. If a write fails, because the reader is gone or the disk is
    full, or if there is no stream at all, the text is dropped, and `lost`, if given, is called with the error.
    """

    def __init__(self, stream: TextIO | None, lost: Any = None):
        self._stream = stream
        self._lost = lost

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._try("write", text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method, *arguments):
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:               # ValueError: it was closed
            with contextlib.suppress(OSError, ValueError):   # else the exit of Python would try to flush it again
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            self._stream = None
            if self._lost:
                self._lost(error)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """A block in which printing to a closed, full or ASCII-only stdout or stderr does not raise an error."""
    for number in range(3):                                  # else the next opened file would become stdout
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    error_stream = _Stream(sys.stderr)

    def lost(error):
        print(f"standard output is lost ({error}); continuing without it", file=error_stream)

    with contextlib.redirect_stdout(_Stream(sys.stdout, lost)), contextlib.redirect_stderr(error_stream):    # type: ignore[type-var]
        yield
