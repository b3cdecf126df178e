"""CIFAR-10 from archives, folders, the cache and the network, and the generated shapes that replace it."""

import hashlib
import io
import os
import pickle
import re
import tarfile
import urllib.error

import numpy as np
import pytest

from minicl.data import cifar10, cifar_files, download, shapes
from minicl.data.cifar10 import CLASSES, UNPACKED, load_cifar10
from minicl.data.cifar_files import parse_binary, parse_pickle
from minicl.data.download import CorruptFile, Unavailable
from minicl.data.load import load_colour_images
from minicl.data.shapes import draw_shapes, generate_shapes

BINARY, PYTHON = cifar10.SHA256
TRUE_HASHES = dict(cifar10.SHA256)


class Python2Pickler(pickle._Pickler):
    """Pickles bytes as Python 2 pickled str, in which the official files were written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    dispatch[bytes] = save_bytes


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")          # the module's name in NumPy 1


def batches(n=2, seed=0):
    """Rows (n, 3072) and labels (n,) for each of six files."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n)) for _ in range(6)]


def binary(rows, labels):
    return np.concatenate([labels[:, None], rows], axis=1).astype(np.uint8).tobytes()


def pickled(rows, labels):
    return python2_pickle({b"batch_label": b"one of six", b"labels": labels.tolist(), b"data": rows,
                           b"filenames": [b"a.png"] * len(labels)})


def files_of(kind, parts):
    """{name: content} of the six unpacked files of the archive `kind`, BINARY or PYTHON."""
    folder, write = ("cifar-10-batches-bin", binary) if kind == BINARY else ("cifar-10-batches-py", pickled)
    return {file: write(*part) for file, part in zip(UNPACKED[folder], parts)}


def archive_of(kind, files):
    packed = io.BytesIO()
    folder = "cifar-10-batches-bin" if kind == BINARY else "cifar-10-batches-py"
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {"readme.html": b"...", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


TINY = {kind: archive_of(kind, files_of(kind, batches())) for kind in (BINARY, PYTHON)}


@pytest.fixture(autouse=True)
def small_world(monkeypatch, tmp_path):
    """Replace CIFAR-10 by the tiny archives, of which only the hash is checked; empty the cache; remove the network."""
    def no_network(url, note):
        raise urllib.error.URLError(OSError("no route to host"))

    parse_all = cifar10._parse_all
    tiny_hashes = {kind: hashlib.sha256(packed).hexdigest() for kind, packed in TINY.items()}
    monkeypatch.setattr(cifar10, "SHA256", tiny_hashes)
    monkeypatch.setattr(cifar10, "_parse_all", lambda contents, source, check:
                        parse_all(contents, source, check and "tar.gz" not in str(source)))
    monkeypatch.setattr(download, "open_url", no_network)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))


def no_shapes(text):
    pytest.fail(f"continued without CIFAR-10: {text}")


def assert_is_tiny(data):
    parts = batches()
    assert data.name == "cifar10" and data.class_names == CLASSES and len(CLASSES) == 10
    assert data.train_images.shape == (10, 32, 32, 3) and data.test_images.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(data.train_labels, np.concatenate([labels for _, labels in parts[:5]]))
    np.testing.assert_array_equal(data.test_labels, parts[5][1])
    everything = np.concatenate([data.train_images, data.test_images])
    rows = np.concatenate([rows for rows, _ in parts])
    for channel in range(3):                                                 # the red values come first, row by row
        of_rows = rows[:, 1024 * channel:1024 * (channel + 1)]
        np.testing.assert_array_equal(everything[..., channel].reshape(12, -1), of_rows)


# ---------------------------------------------------------------- from a folder

@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("inside", ["", "cifar10"])
def test_load_cifar10_reads_an_archive(tmp_path, kind, inside):
    write(tmp_path / inside, {kind: TINY[kind]})
    assert_is_tiny(load_cifar10(tmp_path))


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("inside", ["", "cifar10", "its own"])
def test_load_cifar10_reads_unpacked_files(tmp_path, kind, inside):
    own = "cifar-10-batches-bin" if kind == BINARY else "cifar-10-batches-py"
    write(tmp_path / inside.replace("its own", own), files_of(kind, batches()))
    assert_is_tiny(load_cifar10(tmp_path, check=False))


def test_the_hashes_are_of_the_two_official_archives():
    assert list(TRUE_HASHES) == ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in TRUE_HASHES.values())


@pytest.mark.parametrize("load", [load_cifar10, lambda folder: load_colour_images("cifar10", folder),
                                  lambda folder: load_colour_images("auto", folder, log=no_shapes)])
def test_a_folder_without_the_files_is_an_error_that_names_them(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="has none of CIFAR-10's files; expected cifar-10-binary.tar.gz or"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere")
    files = files_of(BINARY, batches())
    del files["data_batch_3.bin"], files["test_batch.bin"]
    with pytest.raises(FileNotFoundError, match="has no data_batch_3.bin, test_batch.bin; unpack the archive again"):
        load(write(tmp_path, files))


# ---------------------------------------------------------------- damaged, wrong and hostile files

@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:100] + b"?" + packed[101:],
                                    lambda packed: b"", lambda packed: b"<!DOCTYPE html>"])
@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("name", ["auto", "cifar10"])
def test_a_damaged_archive_is_named_and_never_skipped(tmp_path, name, kind, damage):
    write(tmp_path, {kind: damage(TINY[kind])})
    path = re.escape(str(tmp_path / kind))
    with pytest.raises(CorruptFile, match=f"^{path}: not CIFAR-10's {kind}: .*SHA-256 that begins"):
        load_colour_images(name, tmp_path, log=no_shapes)


@pytest.mark.parametrize("packed, complaint", [
    (TINY[BINARY][:-2000], "damaged archive"),
    (b"<!DOCTYPE html>", "damaged archive .*Not a gzipped file"),
    (b"", "damaged archive"),
    (TINY[BINARY][:-8] + bytes(4) + TINY[BINARY][-4:], "damaged archive .*CRC"),
    (TINY[PYTHON], "the archive has no cifar-10-batches-bin/data_batch_1.bin"),
    (archive_of(BINARY, {**files_of(BINARY, batches()), "test_batch.bin": bytes(3072)}),
     "test_batch.bin: expected a whole number of 3073-byte records, got 3072 bytes"),
])
def test_an_archive_whose_hash_is_not_checked_is_still_validated(tmp_path, packed, complaint):
    write(tmp_path, {BINARY: packed})
    with pytest.raises(CorruptFile, match=f"^{re.escape(str(tmp_path / BINARY))}.*{complaint}"):
        load_cifar10(tmp_path, check=False)


def test_unpacked_files_must_hold_10000_images_each(tmp_path):
    write(tmp_path, files_of(BINARY, batches()))
    with pytest.raises(CorruptFile, match="data_batch_1.bin: expected 10000 images, got 2; .*check=False"):
        load_colour_images("auto", tmp_path, log=no_shapes)


def test_unpacked_files_must_have_balanced_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_files, "PIXELS", 3)
    monkeypatch.setattr(cifar_files, "to_images", lambda rows: rows.reshape(-1, 1, 1, 3))
    labels = np.arange(10000) % 10
    names = UNPACKED["cifar-10-batches-bin"]
    write(tmp_path, {name: binary(np.full((10000, 3), k), labels) for k, name in enumerate(names)})
    odd = binary(np.full((10000, 3), 7), np.minimum(labels, 8))
    assert len(load_cifar10(tmp_path).train_images) == 50000
    write(tmp_path, {names[-1]: odd})
    with pytest.raises(CorruptFile, match=r"expected 1000 test images of each of the ten classes, got \[1000, .* 2000, 0\]"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("first, second", [(0, 1), (0, 5), (3, 5)])
def test_a_file_that_is_there_twice_is_refused(tmp_path, kind, first, second):
    files = files_of(kind, batches())
    names = list(files)
    files[names[second]] = files[names[first]]
    write(tmp_path / "unpacked", files)
    write(tmp_path / "archive", {kind: archive_of(kind, files)})
    first, second = (re.escape(names[k].rpartition("/")[2]) for k in (first, second))
    for folder in ("unpacked", "archive"):
        with pytest.raises(CorruptFile, match=f"{first} and {second} are the same, so its images are there twice"):
            load_cifar10(tmp_path / folder, check=False)


def test_a_label_beyond_nine_is_refused(tmp_path):
    parts = batches()
    parts[2][1][1] = 10
    write(tmp_path, files_of(BINARY, parts))
    with pytest.raises(CorruptFile, match="data_batch_3.bin: expected labels 0 to 9, got 10"):
        load_cifar10(tmp_path, check=False)


class Hostile:
    """An object that creates a folder when pickle.loads unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code(tmp_path):
    victim = tmp_path / "made by the pickle"
    content = python2_pickle({b"data": Hostile(victim), b"labels": [1]})
    with pytest.raises(CorruptFile, match="^here: .*it asks for (posix|nt).mkdir, which no CIFAR-10 file does"):
        parse_pickle(content, "here")
    assert not victim.exists()
    pickle.loads(content)                                                    # shows that the pickle is hostile
    assert victim.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.core.multiarray.dot"])
def test_only_the_functions_that_build_an_array_may_be_unpickled(name):
    module, _, function = name.rpartition(".")
    with pytest.raises(CorruptFile, match=f"it asks for {name}"):
        parse_pickle(f"c{module}\n{function}\n.".encode(), "here")


@pytest.mark.parametrize("content", [
    b"", b"nonsense", pickled(*batches()[0])[:-200],
    python2_pickle([1, 2]), python2_pickle({b"labels": [1]}), python2_pickle({b"data": b"x", b"labels": [1]}),
    pickled(batches()[0][0][:, :100], batches()[0][1]),
    pickled(batches()[0][0].astype(np.float32), batches()[0][1]),
    pickled(batches()[0][0], batches()[0][1][:1]),
    pickled(batches()[0][0], np.array([1, -1])),
    pickled(batches()[0][0], np.array([0.5, 1.0])),
])
def test_a_pickle_that_is_not_a_batch_is_refused(content):
    with pytest.raises(CorruptFile, match="^here: not a pickled batch of CIFAR-10"):
        parse_pickle(content, "here")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("writeable", [True, False])
def test_batches_pickled_again_can_be_read(protocol, order, writeable):
    rows, labels = batches()[0]
    rows = np.array(rows, order=order)
    rows.flags.writeable = writeable
    again = pickle.dumps({b"data": rows, b"labels": labels.tolist()}, protocol)
    images, read = parse_pickle(again, "here")
    np.testing.assert_array_equal(images, parse_binary(binary(rows, labels), "there")[0])
    assert read.tolist() == labels.tolist() and read.dtype == np.int64


# ---------------------------------------------------------------- the cache and the network

def serve(monkeypatch, content):
    """Make the network return this content for every URL; returns the list of requested URLs."""
    asked = []

    class Response(io.BytesIO):
        headers = {"Content-Length": str(len(content))}

    def open_url(url, note):
        asked.append(url)
        return Response(content)

    monkeypatch.setattr(download, "open_url", open_url)
    return asked


def test_the_binary_archive_is_downloaded_once(monkeypatch, tmp_path):
    asked = serve(monkeypatch, TINY[BINARY])
    assert_is_tiny(load_colour_images("auto", log=no_shapes))
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert [path.name for path in (tmp_path / "cache/cifar10").iterdir()] == [BINARY]
    assert_is_tiny(load_cifar10(download=False))
    assert len(asked) == 1


def test_a_download_of_another_archive_is_reported_and_not_cached(monkeypatch, tmp_path):
    serve(monkeypatch, TINY[PYTHON])
    with pytest.raises(Unavailable, match="https://.*not CIFAR-10's.*--data shapes"):
        load_colour_images("cifar10", log=no_shapes)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_named_with_the_fix(tmp_path):
    write(tmp_path / "cache/cifar10", {BINARY: TINY[BINARY][:-1]})
    with pytest.raises(CorruptFile, match="cifar-10-binary.*delete it and it is downloaded again"):
        load_colour_images("auto", log=no_shapes)


def test_without_a_network_asking_for_cifar10_raises_with_advice():
    expected = "CIFAR-10 could not be downloaded.*no route to host.*--data-dir.*--data shapes"
    with pytest.raises(Unavailable, match=expected):
        load_colour_images("cifar10", log=no_shapes)


def test_without_a_network_auto_logs_one_line_and_uses_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "generate_shapes", lambda seed: f"shapes from seed {seed}")
    said = []
    assert load_colour_images("auto", seed=3, log=said.append) == "shapes from seed 3"
    assert len(said) == 1 and "\n" not in said[0]
    assert "no route to host" in said[0] and "generated shapes" in said[0] and "reads the published files" in said[0]


def test_load_colour_images_refuses_invalid_arguments(tmp_path):
    with pytest.raises(ValueError, match="name must be 'auto', 'cifar10' or 'shapes', got 'mnist'"):
        load_colour_images("mnist")
    with pytest.raises(ValueError, match="generated shapes read no files"):
        load_colour_images("shapes", tmp_path)


# ---------------------------------------------------------------- generated shapes

@pytest.fixture(scope="module")
def some_shapes():
    return generate_shapes(2000, 500, seed=1)


def test_shapes_have_ten_balanced_classes(some_shapes):
    assert some_shapes.name == "shapes" and len(some_shapes.class_names) == 10
    assert some_shapes.train_images.shape == (2000, 32, 32, 3) and some_shapes.test_images.shape == (500, 32, 32, 3)
    assert (np.bincount(some_shapes.train_labels) == 200).all()
    assert (np.diff(some_shapes.train_labels) < 0).mean() > 0.3              # shuffled


def test_the_seed_determines_the_shapes():
    one, same, other = (generate_shapes(60, 60, seed) for seed in (5, 5, 6))
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
        assert (getattr(one, field) != getattr(other, field)).any()
    assert (one.train_images != one.test_images).any()


def nearest_class(data, features):
    train, test = features(data.train_images), features(data.test_images)
    nearest = ((train * train).sum(axis=1) - 2 * test @ train.T).argmin(axis=1)
    return (data.train_labels[nearest] == data.test_labels).mean()


def test_neither_pixels_nor_mean_colours_identify_a_shape(some_shapes):
    assert nearest_class(some_shapes, lambda images: images.reshape(len(images), -1) / np.float32(255)) < 0.3
    assert nearest_class(some_shapes, lambda images: images.mean(axis=(1, 2)) / 255) < 0.2


def test_every_shape_covers_10_to_60_percent_and_no_two_are_alike():
    y, x = np.mgrid[-1.2:1.2:97j, -1.2:1.2:97j]
    covers = [inside(x, y) > 0 for inside in shapes.SHAPES.values()]
    assert all(0.1 < cover.mean() < 0.6 for cover in covers)
    for k, one in enumerate(covers):
        for other in covers[:k]:
            assert (one & other).sum() / (one | other).sum() < 0.9             # disc and square have 0.84


def test_draw_shapes_takes_any_labels():
    images = draw_shapes([7, 7, 3], np.random.default_rng(0))
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8 and (images[0] != images[1]).any()
    assert draw_shapes(np.zeros(0, int), np.random.default_rng(0)).shape == (0, 32, 32, 3)
    with pytest.raises(ValueError, match="labels must be 0..9, got 3..10"):
        draw_shapes([3, 10], np.random.default_rng(0))


def test_first_keeps_the_first_images_of_both_splits(some_shapes):
    few = some_shapes.first(30)
    np.testing.assert_array_equal(few.train_images, some_shapes.train_images[:30])
    assert len(few.train_labels) == len(few.test_labels) == len(few.test_images) == 30
    assert len(some_shapes.first(1000).test_images) == 500 and len(some_shapes.first(None).train_images) == 2000
