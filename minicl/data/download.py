"""Files that come from the network once: fetched whole, checked, kept in the user's cache, never half written."""

import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ..files import write_atomically

TIMEOUT = 15                                             # seconds without a byte before the next address is tried
AGAIN = "copy or download it again"


class Unavailable(OSError):
    """A data set is not on this machine and cannot be downloaded; `reason` says why, in one line."""

    def __init__(self, reason, instead):
        super().__init__(f"{reason}; {instead}")
        self.reason = reason


class DataError(ValueError):
    """The data asked for cannot be used; the message says why and what to do."""


class CorruptFile(DataError):
    """A file is damaged, or is not what its name says; it was not used."""


def cache_dir():
    """The folder for downloads: $MINICL_CACHE, else minicl/ where this system keeps its caches."""
    chosen, xdg = os.environ.get("MINICL_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if chosen:
        return Path(chosen).expanduser()
    if os.path.isabs(xdg):                               # the XDG specification: a relative path is ignored
        return Path(xdg, "minicl")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local", "minicl", "cache")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "minicl"


class Source:
    """A data set's files in the cache and, where the cache lacks them, on the network.

    name     of the data set, for messages: "MNIST"
    folder   where its files are kept
    decode   decode(content, where, file): what is in a file's bytes; raises CorruptFile if they are not the file's
    instead  what a user without it can do, for messages
    """

    def __init__(self, name, folder, decode, instead):
        self.name, self.folder, self.decode, self.instead = name, folder, decode, instead

    def read(self, wanted, urls, *, download=True, log=print):
        """[what is in each file of `wanted`], a dict {file: its path in the cache, there or to be}.

        urls      urls(file): the addresses to try, in order
        download  whether the network may be used
        log       gets a line of text if the cache cannot be written
        """
        decoded, unwritten = [], None
        for file, path in wanted.items():
            if os.path.isfile(path):
                try:
                    decoded.append(self.decode(path.read_bytes(), path, file))
                except CorruptFile as error:
                    raise CorruptFile(f"{error}\nThis file is in minicl's cache: delete it and it is downloaded "
                                      "again") from error
            elif not download:
                raise Unavailable(f"{self.name} is not in {self.folder} and was not to be downloaded", self.instead)
            else:
                content, inside = self._download(file, urls(file))
                decoded.append(inside)
                try:
                    write_atomically(path, lambda target: target.write(content))
                except OSError as error:                 # a full disk, no permission: what came is good all the same
                    unwritten = error
        if unwritten:
            log(f"{self.name} was downloaded but cannot be kept in {self.folder} ({unwritten}); set MINICL_CACHE to "
                "another folder")
        return decoded

    def _download(self, file, urls):
        """The bytes of `file`, and what is in them, from the first address that has it whole."""
        reasons, corrupt = [], None
        for url in urls:
            try:
                content = fetch(url, file)
                return content, self.decode(content, url, file)
            except CorruptFile as error:
                corrupt = error
            except urllib.error.HTTPError as error:      # it holds the open response
                error.close()
                reasons.append(str(error))
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                reasons.append(" ".join(str(reason).split()) or type(reason).__name__)
        if corrupt:                                      # an answer that is another file is no missing network
            raise CorruptFile(f"{corrupt}\nNo address gave the right file; if a proxy or a login page answers in its "
                              f"place, {self.instead}") from corrupt
        raise Unavailable(f"{self.name} could not be downloaded ({'; '.join(dict.fromkeys(reasons))})", self.instead)


def fetch(url, title):
    """The bytes at `url`, with a progress bar on a terminal. Raises OSError or HTTPException."""
    request = urllib.request.Request(url, headers={"User-Agent": "minicl"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0)
        chunks, received = [], 0
        with tqdm(total=total or None, desc=title, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while chunk := response.read(1 << 16):
                chunks.append(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if received < total:
        raise OSError(f"the connection closed after {received} of {total} bytes")
    return b"".join(chunks)
