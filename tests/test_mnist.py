"""MNIST from a folder, the cache or a mirror is read completely and correctly, or refused with the reason."""

import gzip
import hashlib
import http.server
import os
import re
import struct
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from minicl.data import digits, download, mnist
from minicl.data.download import CorruptFile, Unavailable
from minicl.data.images import ImageData
from minicl.data.load import load_images
from minicl.data.mnist import load_mnist, parse_idx

STEMS = tuple(mnist.SHA256)
OPEN_URL = download.open_url
REAL = Path(os.environ.get("MINICL_MNIST") or Path(__file__).resolve().parents[2] / "shared/data/mnist")


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def tiny(n_train=6, n_test=4, n_labels=None):
    """{stem: content} of four small IDX files."""
    rng = np.random.default_rng(0)
    arrays = (rng.integers(0, 256, (n_train, 5, 4)), rng.integers(0, 10, n_labels or n_train),
              rng.integers(0, 256, (n_test, 5, 4)), rng.integers(0, 10, n_test))
    return {stem: idx(array.astype(np.uint8)) for stem, array in zip(STEMS, arrays)}


def write(folder, files, name=lambda stem: f"{stem}.gz", pack=gzip.compress):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        (folder / name(stem)).write_bytes(pack(content))
    return folder


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    """The expected hashes are those of the tiny files, the cache is an empty folder, and there is no network."""
    def no_network(url, note):
        raise urllib.error.URLError(OSError("no route to host"))

    monkeypatch.setattr(mnist, "SHA256", {stem: hashlib.sha256(content).hexdigest()
                                          for stem, content in tiny().items()})
    monkeypatch.setattr(download, "open_url", no_network)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(monkeypatch):
    """A mirror on 127.0.0.1: `pages` maps paths to bytes, `asked` lists the requested paths."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"") + self.server.promised_too_much))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    monkeypatch.setattr(download, "open_url", OPEN_URL)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pages = {}
    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.promised_too_much = 0
        server.pages = pages
        server.asked = asked
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(mnist, "MIRRORS", (f"{root}/first/", f"{root}/second/"))
        yield server
        server.shutdown()


def serve(server, mirror, files):
    server.pages.update({f"/{mirror}/{stem}.gz": gzip.compress(content) for stem, content in files.items()})


def no_digits(text):
    pytest.fail(f"continued without MNIST: {text}")


# ---------------------------------------------------------------- from a folder

@pytest.mark.parametrize("inside", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("name, pack", [
    (lambda stem: f"{stem}.gz", gzip.compress),
    (lambda stem: stem, bytes),
    (lambda stem: stem.replace("-idx", ".idx"), bytes),
    (lambda stem: stem.replace("-idx", ".idx") + ".gz", gzip.compress),
    (lambda stem: f"{stem}.gz", bytes),                  # as some browsers save it
])
def test_reads_every_spelling(tmp_path, inside, name, pack):
    write(tmp_path / inside, tiny(), name, pack)
    data = load_mnist(tmp_path)
    assert data.name == "mnist" and data.class_names == tuple("0123456789")
    assert data.train_images.shape == (6, 5, 4, 1) and data.test_images.shape == (4, 5, 4, 1)
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == np.int64
    for array, content in zip((data.train_images, data.train_labels, data.test_images, data.test_labels),
                              tiny().values()):
        assert array.astype(np.uint8).tobytes() == content[-array.size:]


@pytest.mark.parametrize("load", [load_mnist, lambda folder: load_images("mnist", folder),
                                  lambda folder: load_images("auto", folder, log=no_digits)])
@pytest.mark.parametrize("left", [0, 3])
def test_a_folder_that_lacks_files_is_an_error_that_names_them(tmp_path, load, left):
    write(tmp_path, dict(list(tiny().items())[:left]))
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path)
    assert all(stem in str(error.value) for stem in STEMS) and str(tmp_path) in str(error.value)
    assert ("has no t10k-labels-idx1-ubyte;" if left else "has none") in str(error.value)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("damage, complaint", [
    (lambda packed: packed[:-20], "damaged gzip data"),
    (lambda packed: packed[:-8] + bytes(4) + packed[-4:], "damaged gzip data .*CRC"),
    (lambda packed: packed + b"more", "damaged gzip data"),
    (lambda packed: b"", "truncated: .*got 0"),
    (lambda packed: b"<!DOCTYPE html>", "magic 2051.*something that begins with b'<!DO' .*web page"),
    (lambda packed: gzip.compress(tiny()[STEMS[1]]),
     r"expected an image file \(magic 2051\), got a label file \(magic 2049\)"),
    (lambda packed: gzip.compress(tiny(n_train=7)[STEMS[0]]), "not MNIST's train-images.*SHA-256 .*check=False"),
])
@pytest.mark.parametrize("name", ["auto", "mnist"])
def test_a_damaged_or_wrong_file_is_named_and_never_ignored(tmp_path, name, damage, complaint):
    write(tmp_path, tiny())
    path = tmp_path / f"{STEMS[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile, match=f"(?s)^{re.escape(str(path))}: .*{complaint}"):
        load_images(name, tmp_path, log=no_digits)


def test_other_data_in_idx_format_is_read_without_the_check(tmp_path):
    write(tmp_path / "fashion", tiny(8, 5))
    with pytest.raises(CorruptFile, match="not MNIST's"):
        load_mnist(tmp_path / "fashion")
    data = load_mnist(tmp_path / "fashion", check=False)
    assert data.name == "fashion" and len(data.train_images) == 8


def test_test_images_that_are_the_training_images_are_refused(tmp_path):
    write(tmp_path, tiny(8, 8))
    content = {stem: (tmp_path / f"{stem}.gz").read_bytes() for stem in STEMS}
    (tmp_path / f"{STEMS[2]}.gz").write_bytes(content[STEMS[0]])
    with pytest.raises(CorruptFile, match="train-images-idx3-ubyte and t10k-images-idx3-ubyte are the same, so its images are"):
        load_mnist(tmp_path, check=False)


def test_the_numbers_of_images_and_labels_must_agree(tmp_path):
    write(tmp_path, tiny(n_labels=5))
    with pytest.raises(CorruptFile, match="6 images in train-images-idx3-ubyte but 5 labels in train-labels-idx1"):
        load_mnist(tmp_path, check=False)


# ---------------------------------------------------------------- the IDX format

IMAGES, LABELS = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)), idx(np.arange(5, dtype=np.uint8))


def test_parse_idx():
    np.testing.assert_array_equal(parse_idx(IMAGES, "x", "image"), np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(parse_idx(LABELS, "x", "label"), np.arange(5))


@pytest.mark.parametrize("content, kind, complaint", [
    (LABELS, "image", r"expected an image file \(magic 2051\), got a label file \(magic 2049\)"),
    (IMAGES, "label", r"expected a label file \(magic 2049\), got an image file \(magic 2051\)"),
    (b"\x00\x00\x0d\x03" + IMAGES[4:], "image", "something that begins with .*magic 3331"),
    (b"\x00\x00", "label", "truncated: expected at least 8 bytes, the header, got 2"),
    (IMAGES[:10], "image", "truncated: expected at least 16 bytes, the header, got 10"),
    (IMAGES[:-1], "image", r"truncated: expected 40 bytes for images \(2, 3, 4\), got 39"),
    (LABELS + b"ab", "label", r"expected 13 bytes for labels \(5,\), got 2 more"),
    (struct.pack(">4I", 2051, 0, 28, 28), "image", r"its header gives the shape \(0, 28, 28\), which has no images"),
    (struct.pack(">4I", 2051, *[2**32 - 1] * 3), "image", "truncated: .*got 16"),
])
def test_parse_idx_reports_what_is_wrong(content, kind, complaint):
    with pytest.raises(CorruptFile, match=f"^somewhere/file: .*{complaint}"):
        parse_idx(content, "somewhere/file", kind)


# ---------------------------------------------------------------- the cache and the mirrors

def test_mnist_is_downloaded_once(server, tmp_path):
    serve(server, "first", tiny())
    data = load_mnist()
    assert len(server.asked) == 4
    assert sorted(p.name for p in (tmp_path / "cache/mnist").iterdir()) == sorted(f"{stem}.gz" for stem in STEMS)
    again = load_mnist(download=False)
    assert len(server.asked) == 4
    np.testing.assert_array_equal(again.train_images, data.train_images)


def test_only_files_missing_in_the_cache_are_downloaded(server, tmp_path):
    serve(server, "first", tiny())
    write(tmp_path / "cache/mnist", dict(list(tiny().items())[1:]))
    load_mnist()
    assert server.asked == [f"/first/{STEMS[0]}.gz"]


@pytest.mark.parametrize("first", ["absent", "other data", "damaged"])
def test_the_next_mirror_is_used_if_the_first_fails(server, first):
    serve(server, "second", tiny())
    if first == "other data":
        serve(server, "first", tiny(9))
    if first == "damaged":
        server.pages[f"/first/{STEMS[0]}.gz"] = gzip.compress(tiny()[STEMS[0]])[:-9]
    assert load_mnist(log=no_digits).train_images.shape == (6, 5, 4, 1)


def test_a_connection_that_closes_early_leaves_no_file(server, tmp_path):
    serve(server, "first", tiny())
    server.promised_too_much = 10
    with pytest.raises(Unavailable, match="could not be downloaded"):
        load_mnist()
    assert not (tmp_path / "cache").exists()


def test_wrong_bytes_from_every_mirror_are_reported_and_not_stored(server, tmp_path, monkeypatch):
    serve(server, "first", tiny(9))
    with pytest.raises(Unavailable, match="first/train-images.* not MNIST's.*HTTP Error 404.*--data digits"):
        load_images("mnist", log=no_digits)
    monkeypatch.setattr(digits, "generate_digits", lambda seed: "digits")
    said = []
    assert load_images("auto", log=said.append) == "digits"
    assert len(said) == 1 and "\n" not in said[0] and "not MNIST's" in said[0]
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_an_error_that_names_the_fix(tmp_path):
    folder = write(tmp_path / "cache/mnist", tiny())
    (folder / f"{STEMS[2]}.gz").write_bytes(b"\x1f\x8b nonsense")
    with pytest.raises(CorruptFile, match=f"{STEMS[2]}.*delete it and it is downloaded again"):
        load_images("auto", log=no_digits)


def test_without_a_network_the_error_names_the_options():
    with pytest.raises(Unavailable, match="no route to host.*--data-dir.*--data digits"):
        load_images("mnist", log=no_digits)
    with pytest.raises(Unavailable, match="download is False.*--data-dir"):
        load_mnist(download=False)


def test_auto_without_a_network_falls_back_with_one_line(monkeypatch):
    monkeypatch.setattr(digits, "generate_digits", lambda seed: f"digits from seed {seed}")
    said = []
    assert load_images("auto", seed=3, log=said.append) == "digits from seed 3"
    assert len(said) == 1 and "\n" not in said[0]
    assert "no route to host" in said[0] and "generated digits" in said[0] and "--data-dir" in said[0]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(server, tmp_path, monkeypatch, failing):
    def full(*args):
        raise OSError(28, "No space left on device")

    serve(server, "first", tiny())
    monkeypatch.setattr(download.os, failing, full)
    said = []
    assert load_mnist(log=said.append).train_images.shape == (6, 5, 4, 1)    # what was verified is used
    assert list((tmp_path / "cache/mnist").iterdir()) == []
    assert len(said) == 1 and "No space left" in said[0] and "MINICL_CACHE" in said[0]


def test_a_cache_that_is_not_a_folder_is_reported(server, tmp_path, monkeypatch):
    serve(server, "first", tiny())
    (tmp_path / "cache").write_text("a file")
    said = []
    load_mnist(log=said.append)
    assert len(said) == 1 and "cannot be kept in" in said[0]


def test_cache_dir_follows_the_environment_and_the_platform(monkeypatch):
    assert download.cache_dir() == Path(os.environ["MINICL_CACHE"])
    monkeypatch.delenv("MINICL_CACHE")
    home = str(Path.home() / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert download.cache_dir() == Path(home, "minicl")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(download.sys, "platform", "linux")
    assert download.cache_dir() == Path.home() / ".cache/minicl"
    monkeypatch.setattr(download.sys, "platform", "darwin")
    assert download.cache_dir() == Path.home() / "Library/Caches/minicl"


# ---------------------------------------------------------------- names, and the data itself

def test_load_images_refuses_unknown_names_and_a_folder_of_digits(tmp_path):
    with pytest.raises(ValueError, match="name must be 'auto', 'mnist' or 'digits', got 'cifar'"):
        load_images("cifar")
    with pytest.raises(ValueError, match="generated digits read no files"):
        load_images("digits", tmp_path)


@pytest.mark.parametrize("change, error, complaint", [
    (dict(train_images=[1]), TypeError, "train_images must be a numpy array, got list"),
    (dict(test_images=np.zeros((2, 4, 4, 1))), TypeError, "test_images must be uint8, got float64"),
    (dict(train_labels=np.zeros(3, np.int32)), TypeError, "train_labels must be int64, got int32"),
    (dict(train_images=np.zeros((3, 4, 4), np.uint8)), ValueError, r"train_images must be \(N, H, W, C\)"),
    (dict(test_labels=np.zeros(0, np.int64)), ValueError, "test_labels must be .* not empty"),
    (dict(train_labels=np.zeros(2, np.int64)), ValueError, "train_images holds 3 images but train_labels 2 labels"),
    (dict(test_labels=np.array([0, 2])), ValueError, r"test_labels must lie in 0\.\.1"),
    (dict(test_images=np.zeros((2, 5, 4, 1), np.uint8)), ValueError, r"agree in \(H, W, C\)"),
    (dict(class_names=["a", "b"]), TypeError, "class_names must be a tuple of str"),
])
def test_image_data_checks_its_fields(change, error, complaint):
    good = dict(name="x", class_names=("a", "b"),
                train_images=np.zeros((3, 4, 4, 1), np.uint8), train_labels=np.zeros(3, np.int64),
                test_images=np.zeros((2, 4, 4, 1), np.uint8), test_labels=np.ones(2, np.int64))
    ImageData(**good)
    with pytest.raises(error, match=complaint):
        ImageData(**{**good, **change})


@pytest.mark.skipif(not REAL.is_dir(), reason="needs MNIST: set MINICL_MNIST to the folder of its four files")
def test_the_real_files_are_read(monkeypatch):
    monkeypatch.undo()                                   # the true hashes again
    data = load_mnist(REAL)
    assert data.train_images.shape == (60000, 28, 28, 1) and data.test_images.shape == (10000, 28, 28, 1)
    assert data.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3] and data.test_labels[:3].tolist() == [7, 2, 1]
    assert np.bincount(data.train_labels).min() == 5421
