"""Faulty and hostile servers: a download fails with one line within the time limit, and "auto" falls back to digits."""

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc

import numpy as np
import pytest

from minicl.data import Unavailable, digits, download, load_cifar10, load_images, load_mnist, mnist

STEMS = tuple(mnist.SHA256)
LIMIT = 20_000                                           # bytes: the largest accepted file of this small MNIST
PATIENCE = 0.25                                          # seconds


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


FILES = {stem: idx(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) % 10)
         for stem, shape in zip(STEMS, [(6, 5, 4), (6,), (4, 5, 4), (4,)])}


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch, tmp_path):
    monkeypatch.setattr(mnist, "SHA256", {stem: hashlib.sha256(content).hexdigest() for stem, content in FILES.items()})
    monkeypatch.setattr(mnist, "LIMITS", dict.fromkeys(STEMS, LIMIT))
    monkeypatch.setattr(download, "PATIENCE", PATIENCE)
    monkeypatch.setattr(digits, "generate_digits", lambda seed: "generated digits")
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve(monkeypatch):
    """serve(answer, tls=None): start a server on 127.0.0.1 and return the growing list of requested paths.

    Each connection runs answer(send, path, root) for at most 10 s. The server accepts 200 connections."""
    stack = contextlib.ExitStack()

    def start(answer, tls=None):
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(10)
        root = f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
        asked = []
        monkeypatch.setattr(mnist, "MIRRORS", (f"{root}/mnist/",))

        def handle(connection):
            until = time.monotonic() + 10
            with contextlib.suppress(OSError), tls.wrap_socket(connection, server_side=True) if tls else connection \
                    as connection:
                connection.settimeout(10)
                request = connection.recv(1 << 16)
                asked.append(request.split()[1].decode())

                def send(content):
                    if time.monotonic() > until:
                        raise TimeoutError
                    connection.sendall(content)
                answer(send, asked[-1], root)

        def accept():
            with contextlib.suppress(OSError):
                for _ in range(200):
                    threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return asked

    with stack:
        yield start


def packed(path):
    return gzip.compress(FILES[path.rsplit("/", 1)[1].removesuffix(".gz")])


def ok(body, *headers, end=b"\r\n"):
    return b"HTTP/1.1 200 OK\r\n" + b"".join(h + b"\r\n" for h in headers) + end + body


def whole(body, *headers):
    return ok(body, b"Content-Length: %d" % len(body), *headers)


def drip(start, more=b"x", wait=0.02):
    def answer(send, path, root):
        send(start)
        while True:
            time.sleep(wait)
            send(more)
    return answer


def endless(start, more):
    return drip(start, more * (1 << 16), 0)


def redirect(target, code=302, body=b""):
    def answer(send, path, root):
        location = target(path, root) if callable(target) else target
        send(b"HTTP/1.1 %d Moved\r\nLocation: %s\r\n\r\n" % (code, location.encode("latin-1")) + body)
    return answer


def say(content):
    return lambda send, path, root: send(content)


BOMB = gzip.compress(bytes(50_000_000))
HOSTILE = {
    # slow
    "silence": (lambda send, path, root: time.sleep(1.5), "too slow: 0 bytes"),
    "a dripping body": (drip(ok(b"")), "too slow"),
    "a dripping body of the right length": (drip(ok(b"", b"Content-Length: 9000")), "too slow"),
    "a dripping header": (drip(b"HTTP/1.1 200 OK\r\nX: "), "too slow: 0 bytes"),
    "a dripping chunk": (drip(ok(b"2000\r\n", b"Transfer-Encoding: chunked")), "too slow"),
    "repeated 100 Continue": (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "too slow: 0 bytes"),
    # endless
    "an endless body": (endless(ok(b""), b"x"), "the server sends more than the 20000 bytes expected"),
    "endless chunks": (endless(ok(b"", b"Transfer-Encoding: chunked"), b"1\r\nx\r\n"), "the server sends more than the 20000 bytes"),
    "an endless header line": (endless(b"HTTP/1.1 200 OK\r\nX: ", b"x"), "got more than 65536 bytes"),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "got more than 100 headers"),
    "a redirection with an endless body": (endless(b"HTTP/1.1 302 Moved\r\nLocation: file:///etc/passwd\r\n\r\n", b"x"),
                                           "the server redirects to 'file:///etc/passwd'"),
    "an error with an endless body": (endless(b"HTTP/1.1 500 Oh\r\n\r\n", b"x"), "HTTP Error 500: Oh"),
    # headers that lie
    "a length of 10 PB": (say(ok(b"x", b"Content-Length: 10000000000000000")), "the server announces 10000000000000000 bytes"),
    "a length with 9999 digits": (say(ok(b"x", b"Content-Length: " + b"9" * 9999)), "the server announces a length of 9999 digits"),
    "a negative length": (say(ok(b"nonsense", b"Content-Length: -5")), "expected an image file"),
    "a length of words": (say(ok(b"nonsense", b"Content-Length: much")), "expected an image file"),
    "a length too long": (say(ok(b"nonsense", b"Content-Length: 99")), "closed after 8 of 99 bytes"),
    "a length too short": (lambda send, path, root: send(ok(packed(path), b"Content-Length: 20")), "damaged gzip data"),
    "a negative chunk": (say(ok(b"-1\r\nx\r\n", b"Transfer-Encoding: chunked")), "."),
    "a chunk of words": (say(ok(b"much\r\nx\r\n", b"Transfer-Encoding: chunked")), "."),
    "a missing chunk": (say(ok(b"ffffffff\r\nx", b"Transfer-Encoding: chunked")), "IncompleteRead"),
    "a status of words": (say(b"HELLO\r\n\r\n"), "HELLO"),
    "arbitrary bytes": (say(bytes(range(256)) * 10), "."),
    "no answer": (lambda send, path, root: None, "closed connection"),
    "terminal codes in the reason": (say(b"HTTP/1.1 500 \x1b[2J\x1b]0;owned\x07\r\n\r\n"), r"Error 500: \?\[2J"),
    # redirections
    "to a file": (redirect("file:///etc/passwd"), "the server redirects to 'file:///etc/passwd', which is not HTTPS"),
    "to FTP": (redirect("ftp://127.0.0.1/x"), "the server redirects to 'ftp://127.0.0.1/x'"),
    "to data": (redirect("data:text/plain,hello"), "the server redirects to 'data:"),
    "to itself": (redirect(lambda path, root: path), "the server redirects more than 5 times"),
    "to a new page each time": (redirect(lambda path, root: f"{root}{path}0"), "the server redirects more than 5 times"),
    "to an empty location": (redirect(""), "HTTP Error 302"),
    "to an invalid address": (redirect("http://[::1"), "Invalid IPv6"),
    "to an invalid port": (redirect("http://127.0.0.1:99999999/"), "."),
    "to a port of words": (redirect("http://127.0.0.1:port/", 308), "nonnumeric port"),
    "to a port of 31 digits": (redirect(f"http://[::1]:{10**30}/"), "too large"),
    "to no host": (redirect("http:///x", 301), "the server redirects more than 5 times"),
    "to another line": (redirect("/x\rSet-Cookie: y", 303), "."),
    # content
    "nothing": (say(whole(b"")), "truncated: .*got 0"),
    "204": (say(b"HTTP/1.1 204 No Content\r\n\r\n"), "truncated: .*got 0"),
    "a page": (say(whole(b"<!DOCTYPE html>")), "expected an image file"),
    "a bomb": (say(whole(BOMB[:LIMIT])), "more than the 20000 bytes expected"),
    "a bomb above the limit": (say(whole(BOMB)), "the server announces"),
    "half a gzip file": (lambda send, path, root: send(whole(packed(path)[:-9])), "damaged gzip data"),
    "a header of absurd sizes": (say(whole(gzip.compress(struct.pack(">4I", 2051, *[2**32 - 1] * 3)))), "truncated"),
    "a header of no images": (say(whole(gzip.compress(struct.pack(">4I", 2051, 0, 28, 28)))), "no images"),
    "another file of the same form": (say(whole(gzip.compress(idx(np.zeros((6, 5, 4), np.uint8))))), "not MNIST's"),
}


@pytest.mark.parametrize("answer, words", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_ends_in_one_line_in_time_and_auto_falls_back(serve, tmp_path, answer, words):
    serve(answer)
    started = time.monotonic()
    said = []
    assert load_images("auto", log=said.append) == "generated digits"
    assert time.monotonic() - started < PATIENCE + 1.5
    (line,) = said
    assert line.isprintable() and len(line) < 600 and re.search(f"MNIST could not be downloaded .*{words}", line)
    assert "continuing with generated digits" in line
    assert not list(tmp_path.rglob("*")), "a failed download must leave no file"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The SSL context of an HTTPS server on 127.0.0.1 and the path of its certificate."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"],
                   cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, folder / "certificate.pem"


SLOW_OR_ENDLESS = [name for name in HOSTILE if "endless" in name or "dripping" in name or name == "silence"]


@pytest.mark.parametrize("name", SLOW_OR_ENDLESS)
def test_a_slow_or_endless_answer_over_https_ends_as_over_http(serve, certificate, monkeypatch, name):
    tls, file = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    answer, words = HOSTILE[name]
    before = set(threading.enumerate())
    serve(answer, tls)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=f"MNIST could not be downloaded .*({words}|too slow)"):
        load_mnist()
    assert time.monotonic() - started < PATIENCE + 1.5
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, download._Transfer):
            thread.join(2)
            assert not thread.is_alive()


def test_mnist_is_downloaded_over_https_and_an_unknown_certificate_is_refused(serve, certificate, monkeypatch):
    tls, file = certificate
    serve(lambda send, path, root: send(whole(packed(path))), tls)
    with pytest.raises(Unavailable, match="certificate verify failed"):
        load_mnist()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert len(load_mnist().train_images) == 6


@pytest.mark.parametrize("start, more", [
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"HTTP/1.1 100 Continue\r\n", b"X: y\r\n"),
    (ok(b"0\r\n", b"Transfer-Encoding: chunked"), b"X: y\r\n"),
], ids=["continue", "headers of continue", "trailers"])
def test_an_abandoned_download_leaves_no_thread_running(serve, start, more):
    def answer(send, path, root):
        send(start)
        while True:
            send(more * 1000)

    serve(answer)
    before = set(threading.enumerate())
    with pytest.raises(OSError):
        download.fetch(mnist.MIRRORS[0] + "x", "x", 100)
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, download._Transfer):
            thread.join(2)
            assert not thread.is_alive()


def test_a_hostile_server_costs_little_memory(serve):
    for name in ("an endless body", "a bomb", "an endless header line", "endless chunks"):
        serve(HOSTILE[name][0])
        tracemalloc.start()
        with pytest.raises(Unavailable):
            load_mnist()
        assert tracemalloc.get_traced_memory()[1] < 3_000_000, name
        tracemalloc.stop()


@pytest.mark.parametrize("answer", [
    lambda send, path, root: send(whole(packed(path))),
    lambda send, path, root: send(ok(packed(path))),  # ends when the connection closes
    lambda send, path, root: send(ok(packed(path), b"Content-Length: unknown")),
    lambda send, path, root: send(ok(packed(path), b"Content-Length: -1")),
    lambda send, path, root: [send(ok(b"", b"Transfer-Encoding: chunked"))]
    + [send(b"1\r\n%c\r\n" % byte) for byte in packed(path)] + [send(b"0\r\n\r\n")],
    lambda send, path, root: (redirect(lambda path, root: "/far/" + path[7:], 308) if "/mnist/" in path else
                              lambda send, path, root: send(whole(packed(path))))(send, path, root),
    lambda send, path, root: (redirect(lambda path, root: f"{root}/1{path[2:]}" if path[1] == "0" else f"{root}/0{path}")
                              if path.count("0") + path.count("1") < 99 and len(path) < 40 and "/mnist" == path[:6] else
                              lambda send, path, root: send(whole(packed(path))))(send, path, root),
])
def test_a_valid_answer_is_read_however_it_is_sent(serve, answer):
    serve(answer)
    data = load_mnist()
    assert data.train_images.tobytes() == FILES[STEMS[0]][16:]
    assert data.test_labels.astype(np.uint8).tobytes() == FILES[STEMS[3]][8:]


def test_simultaneous_downloads_all_succeed(serve, tmp_path):
    asked = serve(lambda send, path, root: (time.sleep(0.05), send(whole(packed(path)))))
    found = []
    readers = [threading.Thread(target=lambda: found.append(load_mnist())) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(found) == 4 and 4 <= len(asked) <= 16
    assert sorted(p.name for p in (tmp_path / "cache/mnist").iterdir()) == sorted(f"{stem}.gz" for stem in STEMS)
    load_mnist(download=False)


def test_old_files_of_a_killed_download_are_removed(serve, tmp_path):
    serve(lambda send, path, root: send(whole(packed(path))))
    folder = tmp_path / "cache/mnist"
    folder.mkdir(parents=True)
    left = folder / f".{STEMS[0]}.gz.0123456789abcdef.part"
    left.write_bytes(b"half")
    load_mnist()
    assert left.exists(), "a recent .part file may belong to a download in progress"
    (folder / f"{STEMS[0]}.gz").unlink()
    os.utime(left, (0, 0))
    load_mnist()
    assert not left.exists()


# ---------------------------------------------------------------- the cache folder

@pytest.mark.parametrize("make", [
    lambda cache: cache.write_bytes(b"a file"),
    lambda cache: (cache.mkdir(), (cache / "mnist").write_bytes(b"a file")),
    lambda cache: [(cache / "mnist" / f"{stem}.gz").mkdir(parents=True) for stem in STEMS],
    lambda cache: cache.symlink_to(cache),
    lambda cache: cache.symlink_to("/dev/null"),
], ids=["a file", "a file below", "folders as files", "a loop", "a device"])
def test_an_unwritable_cache_gives_one_line_and_the_data_is_used(serve, tmp_path, make):
    make(tmp_path / "cache")
    serve(lambda send, path, root: send(whole(packed(path))))
    said = []
    assert len(load_images("auto", log=said.append).train_images) == 6
    assert len(said) == 1 and "cannot be kept" in said[0] and "MINICL_CACHE" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("cache", [None, "~nobody-of-that-name/x"], ids=["no home", "no such user"])
def test_without_a_home_folder_auto_falls_back_and_names_what_to_set(monkeypatch, cache):
    for name in ("MINICL_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    if cache:
        monkeypatch.setenv("MINICL_CACHE", cache)
    else:                                                # as pathlib does for an unknown user
        def no_home(path):
            raise RuntimeError("Could not determine home directory.")
        monkeypatch.setattr(download.Path, "expanduser", no_home)
    said = []
    assert load_images("auto", log=said.append) == "generated digits"
    assert len(said) == 1 and "MINICL_CACHE" in said[0] and "no home folder" in said[0] and "\n" not in said[0]
    with pytest.raises(Unavailable, match="MINICL_CACHE"):
        load_mnist()


@pytest.mark.parametrize("load", [load_mnist, load_cifar10])
@pytest.mark.parametrize("folder", ["~nobody-of-that-name", "", "\0", "/dev/null", "n" * 5000])
def test_an_impossible_folder_is_refused_in_one_line(load, folder):
    with pytest.raises((ValueError, FileNotFoundError), match="data_dir") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
