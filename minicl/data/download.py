"""Downloads: fetched once, verified, and stored in the user's cache, never partially.

A response is not trusted. Its size is limited, before and after unpacking; it must arrive at a minimal pace; redirections
are few and stay within HTTP; and its content is verified by SHA-256.
"""

import contextlib
import gzip
import io
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from ..files import remove_parts, write_atomically
from .checks import DataError

TIMEOUT = 15                                             # seconds without a byte before trying the next address
PATIENCE = 30                                            # seconds that a download may take, and
PACE = 20_000                                            # received bytes for each further second
REDIRECTIONS = 5
AGAIN = "copy or download it again"


class Unavailable(OSError):
    """A data set is not on this machine and cannot be downloaded; `reason` is one line."""

    def __init__(self, reason: str, instead: str):
        super().__init__(f"{reason}; {instead}")
        self.reason = reason


class CorruptFile(DataError):
    """A file is damaged or does not match its name; it was not used."""


def require_different(contents: Mapping[str, Any], where: str | os.PathLike) -> None:
    """Raise CorruptFile if two of {file of images: its content, or a hash, or "" if unknown} are the same."""
    first: dict[Any, str] = {}
    for file, content in contents.items():
        if content != "" and (twin := first.setdefault(content, file)) != file:
            raise CorruptFile(f"{where}: {os.path.basename(twin)} and {os.path.basename(file)} are the same, so its images "
                              "are there twice; copy the right file again, or remove one")


# ---------------------------------------------------------------- the cache

def cache_dir() -> Path:
    """The folder for downloads: $MINICL_CACHE, else minicl/ in the system's cache folder.

    Raises DataError if that needs a home folder and there is none.
    """
    chosen = os.environ.get("MINICL_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        return user_path(chosen, "MINICL_CACHE", "set it to a folder")
    if os.path.isabs(xdg):                               # the XDG specification: a relative path is ignored
        return Path(xdg, "minicl")
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"], "minicl", "cache")
    home = user_path("~", "the user's cache", "set MINICL_CACHE to a folder")
    return home / {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache") / "minicl"


def user_path(path: str | os.PathLike, what: str, hint: str = "write the path in full") -> Path:
    """path with its ~ or ~user replaced. Raises DataError if there is no such user or home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{what}: {os.fspath(path)!r} has no home folder on this machine; {hint}") from error


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of the file at `path`. Raises CorruptFile if they are more than `limit`."""
    size = os.stat(path).st_size
    if size > limit:
        raise CorruptFile(f"{path}: expected at most {limit} bytes, got {size}; {AGAIN}")
    return path.read_bytes()


class Gunzip(gzip.GzipFile):
    """The content of gzipped bytes, as a file. Raises CorruptFile beyond `limit` bytes: 1 MB can unpack to 1 GB.
    """

    def __init__(self, packed: bytes, limit: int):
        super().__init__(fileobj=io.BytesIO(packed))
        self.limit = self.left = limit

    def read(self, size: int | None = -1) -> bytes:
        most = self.left + 1
        chunk = super().read(most if size is None or size < 0 else min(size, most))
        self.left -= len(chunk)
        if self.left < 0:
            raise CorruptFile(f"it unpacks to more than the {self.limit} bytes expected")
        return chunk


class Source:
    """A data set's files in the cache or, if missing there, on the network.

    name     of the data set, for messages: "MNIST"
    folder   of its files, in the cache
    limits   {file: maximal size in bytes}
    decode   decode(content, where, file) returns a file's content; raises CorruptFile if the bytes are not the file's
    instead  alternatives for users without it, for messages
    """

    def __init__(self, name: str, folder: str, limits: Mapping[str, int], decode: Callable[[bytes, Any, str], Any],
                 instead: str):
        self.name = name
        self.limits = limits
        self.decode = decode
        self.instead = instead
        try:
            self.folder = cache_dir() / folder
        except DataError as error:
            raise Unavailable(f"{name} cannot be cached ({error})", instead) from error

    def read(self, wanted: Mapping[str, Path], urls: Callable[[str], Sequence[str]], *, download: bool = True,
             log: Callable[[str], None] = print) -> list:
        """The decoded content of each file of `wanted`, a dict {file: its path in the cache}.

        urls      urls(file): the addresses to try, in order
        download  whether the network may be used
        log       gets a line of text if the cache cannot be written
        """
        decoded = []
        unwritten = None
        for file, path in wanted.items():
            inside = self._cached(file, path)
            if inside is None and not download:
                raise Unavailable(f"{self.name} is not in {self.folder}, and download is False", self.instead)
            if inside is None:
                content, inside = self._download(file, urls(file))
                try:
                    write_atomically(path, lambda target: target.write(content))
                    remove_parts(path.parent, seconds=3600)
                except OSError as error:                 # a full disk, no permission: the content is still valid
                    unwritten = error
            decoded.append(inside)
        if unwritten:
            log(f"{self.name} was downloaded but cannot be kept in {self.folder} ({unwritten}); set MINICL_CACHE to "
                "another folder")
        return decoded

    def _cached(self, file, path):
        """The content of the file at `path`, or None if it cannot be read."""
        if not os.path.isfile(path):                     # follows links
            return None
        try:
            return self.decode(read_file(path, self.limits[file]), path, file)
        except OSError:
            return None
        except CorruptFile as error:
            raise CorruptFile(f"{error}; this file is in minicl's cache: delete it and it is downloaded again") from error

    def _download(self, file, urls):
        """The bytes of `file` and its content, from the first address that has it complete."""
        reasons = []
        for url in urls:
            try:
                content = fetch(url, file, self.limits[file])
                return content, self.decode(content, url, file)
            except urllib.error.HTTPError as error:      # it holds the open response
                error.close()
                reasons.append(error)
            except (OSError, CorruptFile) as error:
                reasons.append(error.reason if isinstance(error, urllib.error.URLError) else error)
        lines = dict.fromkeys(one_line(reason) for reason in reasons)
        raise Unavailable(f"{self.name} could not be downloaded ({'; '.join(lines)})", self.instead)


def one_line(error):
    """An error's text, or its type, as one printable line, since a remote host may have written part of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:300])


# ---------------------------------------------------------------- the network

def fetch(url: str, title: str, limit: int) -> bytes:
    """The bytes at `url`, with a progress bar on a terminal.

    Raises OSError for any fault, more than `limit` bytes, a response that ends early, or one that is not complete after
    PATIENCE + bytes / PACE seconds, including the lookup of the host's address.
    """
    transfer = _Transfer(url, title, limit)
    transfer.start()
    started = time.monotonic()
    try:
        while transfer.is_alive():
            transfer.join(0.05)
            seconds = time.monotonic() - started
            if transfer.is_alive() and seconds > PATIENCE + transfer.received / PACE:
                raise OSError(f"too slow: {transfer.received} bytes after {seconds:.0f} s")
    finally:
        transfer.stop()
    error = transfer.error
    if error is not None:                                # a hostile response can raise anything, even OverflowError
        raise error if isinstance(error, OSError) else OSError(one_line(error)) from error
    return b"".join(transfer.chunks)


class _Transfer(threading.Thread):
    """A download in its own thread, which can be abandoned if a server or name server keeps it waiting."""

    def __init__(self, url, title, limit):
        super().__init__(daemon=True)
        self.url = url
        self.title = title
        self.limit = limit
        self.chunks: list[bytes] = []
        self.received = 0
        self.error: Exception | None = None
        self.stopped = False
        self._sockets: list[socket.socket] = []

    def run(self):
        try:
            with open_url(self.url, self._note) as response:
                self._receive(response)
        except Exception as error:
            self.error = error

    def stop(self):
        """Shut the sockets down: nothing else ends http.client's call while it reads endless headers."""
        self.stopped = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):           # it is closed already
                sock.shutdown(socket.SHUT_RDWR)

    def _note(self, sock):
        self._sockets.append(sock)
        if self.stopped:
            raise OSError("the download was cancelled")

    def _receive(self, response):
        length = response.headers.get("Content-Length") or ""
        if len(length) > 18:
            raise OSError(f"the server announces a length of {len(length)} digits")
        total = int(length) if length.isascii() and length.isdigit() else 0          # 0: not known
        if total > self.limit:
            raise OSError(f"the server announces {total} bytes, expected at most {self.limit}")
        with tqdm(total=total or None, desc=self.title, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while not self.stopped and (chunk := response.read1(1 << 16)):           # what is there: no wait for more
                self.chunks.append(chunk)
                self.received += len(chunk)
                bar.update(len(chunk))
                if self.received > self.limit:
                    raise OSError(f"the server sends more than the {self.limit} bytes expected")
        if self.received < total:
            raise OSError(f"the connection closed after {self.received} of {total} bytes")


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """urllib's handler would read a redirection's whole body, however long, and follow it to FTP."""

    def http_error_302(self, *args):
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Noting(urllib.request.AbstractHTTPHandler):
    """For urllib's handler of HTTP or HTTPS: calls note(socket) with every socket that a connection opens."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def do_open(self, http_class, req, **options):
        note = self.note

        class Connection(http_class):
            def __setattr__(self, name, value):
                super().__setattr__(name, value)
                if name == "sock" and value is not None:
                    note(value)

        return super().do_open(Connection, req, **options)


class _HTTP(_Noting, urllib.request.HTTPHandler):
    pass


class _HTTPS(_Noting, urllib.request.HTTPSHandler):
    pass


def open_url(url: str, note: Callable[[socket.socket], None]) -> Any:
    """The open response of `url`, after at most REDIRECTIONS redirections, each to HTTPS, or from HTTP to HTTP.

    note(socket) is called with every socket that is opened for it.
    """
    opener = urllib.request.build_opener(_NoRedirections, _HTTP(note), _HTTPS(note))
    for _ in range(1 + REDIRECTIONS):
        try:
            return opener.open(urllib.request.Request(url, headers={"User-Agent": "minicl"}), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308) or not error.headers.get("Location"):
                raise
            error.close()
            target = urljoin(url, error.headers["Location"])
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise OSError(f"the server redirects to {target[:100]!r}, which is not HTTPS") from None
            url = target
    raise OSError(f"the server redirects more than {REDIRECTIONS} times")
