"""Standard output and error whose failures do not end a run."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Stream:
    """A text stream that ignores failures.

    Characters that its encoding lacks are escaped. If a write fails, because the reader is gone or the disk is full, or if
    there is no stream at all, the text is dropped, and `lost`, if given, is called with the error.
    """

    def __init__(self, stream: TextIO | None, lost: Any = None):
        self._stream, self._lost = stream, lost

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
