"""ImageData.from_folder: layouts, labels and splits; arrays; and a one-line error for every folder that cannot be
used."""

import itertools
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import Image, numbered, write_pictures

from minicl.data import DataError, ImageData, open_image
from minicl.data.arrays import find_arrays
from minicl.data.picture_folder import Items, _split


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my phötos"
    folder.mkdir()
    return folder


class Log(list):
    """A log that can be searched."""

    __call__ = list.append

    def has(self, pattern):
        return [line for line in self if re.search(pattern, line)]


def load(folder, size=16, **options):
    log = Log()
    return ImageData.from_folder(folder, size, log=log, **options), log


def images_of(data):
    """{bytes of an image: (split, class)} of a data set."""
    return {image.tobytes(): (split, data.class_names[label]) for split in ("train", "test")
            for image, label in zip(getattr(data, f"{split}_images"), getattr(data, f"{split}_labels"))}


CAT_DOG = [*numbered("cat", 12), *numbered("ein Hund/ä/b", 8, ".bmp")]
LAYOUTS = [
    ("a class for each folder", CAT_DOG, lambda name: name.split("/")[0], None, None),
    ("deeper in one folder", [f"a/b/{name}" for name in CAT_DOG], lambda name: name.split("/")[2], None, None),
    ("no folders", numbered("", 20), lambda name: "unlabelled", None, "no labels: there is no folder for each class"),
    ("one class", numbered("cat", 20), lambda name: "unlabelled", None, "no labels: there is no folder"),
    ("some outside", [*CAT_DOG, "x.png"], lambda name: "unlabelled", None, "no labels: 1 of 21 pictures are not in the"),
    ("split", [f"{split}/{name}" for split in ("train", "test") for name in CAT_DOG],
     lambda name: name.split("/")[1], lambda name: name.startswith("test"), None),
    ("split in capitals, val", [f"data/{split}/{name}" for split in ("Train", "Val") for name in CAT_DOG],
     lambda name: name.split("/")[2], lambda name: name.startswith("data/Val"), None),
    ("split without classes", [f"{split}/{k}.png" for split in ("train", "test") for k in range(9)],
     lambda name: "unlabelled", lambda name: name.startswith("test"), "no labels: there is no folder for each class"),
    ("train alone", [f"train/{name}" for name in CAT_DOG], lambda name: name.split("/")[1], None, None),
]


@pytest.mark.parametrize("names, class_of, is_test, message", [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS])
def test_a_layout_gives_its_classes_and_its_split(photos, names, class_of, is_test, message):
    write_pictures(photos, names)
    data, log = load(photos)
    found = images_of(data)
    assert len(found) == len(names) and data.name == "my phötos"
    for name in names:
        split, label = found[open_image(photos / name, 16).tobytes()]
        assert label == class_of(name)
        if is_test:
            assert (split == "test") == is_test(name)
    if not is_test:
        assert len(data.test_images) == 2                                # a tenth
    assert data.is_labelled == (message is None) and bool(log.has("no labels")) == (message is not None)
    assert message is None or log.has(message)


def test_pictures_outside_train_and_test_are_left_out_and_counted(photos):
    write_pictures(photos, [*(f"{split}/{name}" for split in ("train", "test") for name in CAT_DOG), "val/cat/1.png", "2.png"])
    data, log = load(photos)
    assert len(data.train_images) == len(data.test_images) == 20 and log.has("left out: 2 pictures that are neither in")


@pytest.mark.parametrize("folders, message", [
    (("train", "dev"), "train/ is read as a class: there is no test/ or val/ beside it"), (("Test", "cat"), "Test/ is read as a class: "
     "there is no train/ beside"), (("cat", "dog"), None), (("train",), None), (("test", "train"), None)])
def test_half_a_split_beside_another_folder_is_a_class_with_a_message(photos, folders, message):
    write_pictures(photos, [name for folder in folders for sub in ("a", "b") for name in numbered(f"{folder}/{sub}", 6)])
    data, log = load(photos)
    assert bool(log.has("is read as a class")) == bool(message) and (message is None or log.has(message))
    assert not load(photos, labels=False)[1].has("is read as a class")


def test_a_class_whose_pictures_are_all_broken_is_named(photos):
    write_pictures(photos, CAT_DOG)
    (photos / "none").mkdir()
    (photos / "none/1.png").write_text("no picture")
    assert load(photos)[1].has("warning: all pictures of a class are broken: none")


def test_labels_false_makes_no_classes(photos):
    write_pictures(photos, CAT_DOG)
    data, log = load(photos, labels=False)
    assert not data.is_labelled and set(data.train_labels) == {0} and not log.has("no labels")
    np.testing.assert_array_equal(data.train_images, load(photos)[0].train_images)       # the split is the same


def test_a_split_draws_a_share_of_each_class_by_the_seed(photos):
    write_pictures(photos, [*numbered("cat", 30), *numbered("dog", 10)])
    (first, _), (again, _), (other, _) = (load(photos, seed=seed, test_share=0.2) for seed in (0, 0, 1))
    assert np.bincount(first.test_labels).tolist() == [6, 2] == np.bincount(other.test_labels).tolist()
    assert images_of(first) == images_of(again) != images_of(other)
    assert set(first.train_labels[:12]) == {0, 1}                        # shuffled, so that first() has all classes


def split_of(sizes, share, seed):
    """The number of test items of each class, for classes of these sizes."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    names = [str(k) for k in range(len(labels))]
    train, test = _split(Items(names, None, None, labels, tuple(map(str, range(len(sizes)))), None), share, np.random.default_rng(seed))
    assert sorted([*train, *test]) == list(range(len(labels))) and len(train) and len(test)
    return np.bincount(labels[test], minlength=len(sizes))


@given(st.lists(st.one_of(st.integers(1, 12), st.integers(1, 200)), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) > 1),
       st.one_of(st.just(0.1), st.floats(0.001, 0.9)), st.integers(0, 9))
def test_the_split_has_the_share_of_all_and_of_each_class_up_to_rounding(sizes, share, seed):
    tests = split_of(sizes, share, seed)
    exact = share * np.array(sizes)
    assert tests.sum() <= max(1, round(share * sum(sizes)))
    if max(sizes) > 1:
        most = np.minimum(np.ceil(exact - 1e-5), np.array(sizes) - 1)                    # one is left to train on
        assert (np.minimum(np.floor(exact), most) <= tests).all() and (tests <= most).all()
        assert tests.sum() == min(max(1, round(share * sum(sizes))), most.sum())
    rounded = np.rint(exact)                                 # where these sum to the share, they are the split
    if rounded.sum() == round(share * sum(sizes)) > 0 and (rounded < sizes).all() and (abs(exact % 1 - 0.5) > 1e-5).all():
        assert tests.tolist() == rounded.tolist()


@pytest.mark.parametrize("sizes, tests, classes", [
    ([4] * 100, 40, 40), ([5] * 100, 50, 50), ([6] * 100, 60, 60), ([15] * 20, 30, 20), ([30] * 10, 30, 10), ([200, *[4] * 30], 32, 13),
    ([1] * 50, 1, 1), ([10] * 3 + [1] * 20, 3, 3), ([2, 2], 1, 1)])
def test_small_classes_give_a_tenth_of_all_to_the_test_set(sizes, tests, classes):
    drawn = [split_of(sizes, 0.1, seed) for seed in (0, 0, 1)]
    assert [(found.sum(), np.count_nonzero(found)) for found in drawn] == [(tests, classes)] * 3
    assert (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize("per_class, classes, message", [
    (5, 2, "^warning: the test set has only 1 test picture of only 1 of the classes: "), (10, 2, "has only 2 test pictures: "),
    (60, 1, "has only 6 test pictures: "), (100, 1, None), (50, 2, None)])
def test_a_test_set_that_is_too_small_gives_a_warning(photos, per_class, classes, message):
    images = np.random.default_rng(0).integers(0, 256, (per_class * classes, 8, 8, 3), np.uint8)
    labels = np.arange(per_class * classes)
    np.savez(photos / "a.npz", images=images, labels=labels % classes)
    _, log = load(photos / "a.npz", 8)
    assert bool(log.has("^warning: the test set")) == bool(message) and (message is None or log.has(message))


def test_a_test_set_of_one_class_gives_a_warning(photos):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(photos / "a.npz", train_images=images, train_labels=np.arange(20) % 2, test_images=images, test_labels=np.zeros(20, int))
    assert load(photos / "a.npz", 8)[1].has("^warning: the test set has only 1 of the classes: ")


def test_two_pictures_are_split_into_one_and_one(photos):
    write_pictures(photos, numbered("", 2))
    data, _ = load(photos)
    assert len(data.train_images) == len(data.test_images) == 1


@pytest.mark.parametrize("labels", [True, False])
def test_test_pictures_that_are_copies_of_training_pictures_are_counted(photos, labels):
    write_pictures(photos, [f"{split}/{name}" for split in ("train", "test") for name in CAT_DOG])
    assert not load(photos, labels=labels)[1].has("copies")
    shutil.copy(photos / "train" / CAT_DOG[0], photos / "test" / CAT_DOG[1])             # also of another class
    shutil.copy(photos / "train" / CAT_DOG[-1], photos / "test" / CAT_DOG[0])
    shutil.copy(photos / "train" / CAT_DOG[0], photos / "train" / CAT_DOG[1])            # within a split: not counted
    log = load(photos, labels=labels)[1]
    assert log.has(f"^warning: 2 of the {len(CAT_DOG)} test pictures are copies of training pictures")


def test_a_limit_reads_the_first_of_each_split(photos):
    write_pictures(photos, CAT_DOG)
    part, log = load(photos, test_share=0.3, limit=4)
    data, later = load(photos, test_share=0.3)
    for split in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(data, split)[:4], getattr(part, split))
    assert log.has("^decoding 8 pictures") and later.has("^decoding 12 pictures .*; 8 are there already")


def test_other_files_are_ignored(photos):
    write_pictures(photos, CAT_DOG)
    write_pictures(photos, [".hidden.png", "cat/._1.png", "__MACOSX/1.png", ".thumbnails/1.png"])
    (photos / "readme.txt").write_text("x")
    (photos / "cat/a.HEIC").write_bytes(b"x")
    (photos / "cat/Thumbs.db").write_bytes(b"x")
    (photos / "an empty folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(photos / "cat/fifo.png")
    data, log = load(photos)
    assert len(data.train_images) + len(data.test_images) == 20 and not log.has("skipped")
    assert log.has(r"left out: 3 of other kinds \(1 .*1 \.heic.*\)")


def test_names_that_are_not_text_are_used_and_shown_on_one_line(photos, capsys):
    names = [os.fsdecode(b"caf\xe9"), "two\nlines", "$x^$ _"]
    try:
        write_pictures(photos, [f"{folder}/{folder} {k}.png" for folder in names for k in range(10)])
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    (photos / names[0] / f"{names[0]} 3.png").write_text("")
    data = ImageData.from_folder(photos, 16)                             # prints to a strict stream
    assert data.class_names == ("$x^$ _", "caf?", "two?lines") and len(images_of(data)) == 29
    assert "skipped: " in capsys.readouterr().out


def test_links_are_followed_but_each_folder_is_read_once(photos, tmp_path):
    write_pictures(tmp_path, numbered("elsewhere", 10), seed=1)
    write_pictures(photos, numbered("cat", 10))
    (photos / "dog").symlink_to(tmp_path / "elsewhere")
    (photos / "a cat").symlink_to("cat")                                 # sorts before cat
    for k in range(30):                                                  # a cycle, and a web of 30! paths
        (photos / f"web/{k}").mkdir(parents=True)
        for other in range(30):
            (photos / f"web/{k}/{other}").symlink_to(photos / f"web/{other}" if other else photos)
    data, log = load(photos)
    assert len(images_of(data)) == 20 and data.class_names == ("cat", "dog")
    assert log.has("skipped: .* and .* more: links to folders already read")


def test_a_broken_file_is_named_and_skipped_every_time(photos):
    write_pictures(photos, [*numbered("cat", 18), *numbered("dog", 22)])
    (photos / "cat/3.png").write_text("not a picture")
    (photos / "dog/4.png").unlink()
    (photos / "dog/4.png").symlink_to("4.png")                           # to itself
    (photos / "dog/5.png").write_bytes((photos / "dog/5.png").read_bytes()[:60])
    for _ in range(2):                                                   # decoded, then from the cache
        data, log = load(photos)
        assert np.bincount([*data.train_labels, *data.test_labels]).tolist() == [17, 20]
        (line,) = log.has("^skipped: 3 of 40 pictures: ")
        assert "cat/3.png: not a picture" in line and "dog/4.png: Too many levels" in line
    write_pictures(photos, ["cat/3.png"])
    assert load(photos)[1].has("^skipped: 2 of 40 pictures: ")                   # it was replaced: no longer skipped


def test_many_broken_files_are_counted_and_listed_in_a_file(photos):
    write_pictures(photos, numbered("", 80))
    for k in range(7):
        (photos / f"{k}.png").write_text("")
    _, log = load(photos)
    (line,) = log.has("^skipped: 7 of 80 pictures: .*; and 4 more; ")
    assert "6.png" in Path(re.search(r"; ([^;]*state\.json)", line)[1]).read_text()


def test_class_folders_that_are_shown_alike_keep_different_names(photos):
    write_pictures(photos, [f"{name}/{k}.png" for name in ("a\n", "a\t", "b") for k in range(8)])
    data, _ = load(photos)
    assert data.class_names == (r"'a\t'", r"'a\n'", "'b'")


NEW = {"pixels": 1, "size": 20, "channels": 20, "seed": 0, "share": 0, "new file": 1}  # pictures decoded again


@pytest.mark.parametrize("change", NEW)
def test_a_change_of_the_pixels_or_their_order_makes_a_new_file(photos, cache, change):
    write_pictures(photos, CAT_DOG)
    load(photos)
    load(photos)
    assert len(list(cache.glob("pictures/*"))) == 1
    if change in ("pixels", "new file"):
        write_pictures(photos, ["cat/1.png" if change == "pixels" else "cat/new.png"], seed=1)
        data, log = load(photos)
    else:
        options = {"size": {"size": 8}, "channels": {"channels": 1}, "seed": {"seed": 1}, "share": {"test_share": 0.2}}[change]
        data, log = load(photos, **options)
    assert log.has(f"^decoding {NEW[change]} pictures" if NEW[change] else "^copying 20 decoded pictures") and len(list(cache.glob("pictures/*"))) == 2
    if change == "pixels":
        assert open_image(photos / "cat/1.png", 16).tobytes() in images_of(data)


COPIES = {
    "touched": lambda photos, other: [os.utime(file) for file in photos.rglob("*.png")] and photos,
    "copied": lambda photos, other: shutil.copytree(photos, other, copy_function=shutil.copy),
    "moved": lambda photos, other: photos.rename(other),
    "linked": lambda photos, other: other.symlink_to(photos) or other,
    "deeper": lambda photos, other: (other.mkdir(), photos.rename(other / "a"))[1].parent,
    "renamed in their order": lambda photos, other: [file.rename(file.with_stem("9" + file.stem)) for file in photos.rglob("*.*")] and photos,
}


@pytest.mark.parametrize("how", COPIES)
def test_the_same_pictures_elsewhere_are_not_decoded_again(photos, tmp_path, cache, how):
    write_pictures(photos, [*CAT_DOG[:12], *numbered("dog", 18)])
    (photos / "dog/17.png").write_text("not a picture")
    first, _ = load(photos)
    place = COPIES[how](photos, tmp_path / "other")
    again, log = load(place)
    assert not log.has("^decoding") and len(list(cache.glob("pictures/*"))) == 1
    np.testing.assert_array_equal(again.train_images, first.train_images)
    np.testing.assert_array_equal(again.test_labels, first.test_labels)
    name = ("9" * how.startswith("renamed")) + "17.png"
    assert log.has(f"^skipped: 1 of 30 pictures: {place}.*dog/{name}: not a picture")


@pytest.mark.parametrize("suffix", [".bmp", ".npy"])
def test_other_pixels_in_a_file_of_the_same_size_and_time_are_decoded(photos, suffix):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)

    def write():
        if suffix == ".npy":
            np.save(photos / "images.npy", images)
        else:
            for k, image in enumerate(images):
                Image.fromarray(image).save(photos / f"{k}.bmp")

    write()
    load(photos)
    before = {file: os.stat(file) for file in photos.iterdir()}
    time.sleep(0.02)                                                     # a clock tick of the file system
    images[3] = 255 - images[3]
    write()
    for file, status in before.items():
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    data, log = load(photos)
    assert images[3].tobytes() in images_of(data) and log.has(f"^decoding {1 if suffix == '.bmp' else 20} pictures")


# ---------------------------------------------------------------- folders that cannot be used



def broken(folder, count, of):
    write_pictures(folder, numbered("", of))
    for k in range(count):
        (folder / f"{k}.png").write_text("")


def unknown_class(folder):
    write_pictures(folder, [*(f"train/{name}" for name in CAT_DOG), "test/bird/1.png", "test/cat/1.png"])


BAD = [
    ("missing", lambda folder: folder.rmdir(), "there is no such folder"),
    ("empty", lambda folder: None, "has no pictures"),
    ("only text", lambda folder: (folder / "a.txt").write_text("x"), "has no pictures"),
    ("empty subfolders", lambda folder: (folder / "cat").mkdir(), "has no pictures"),
    ("one picture", lambda folder: write_pictures(folder, ["x.png"]), "x.png is the only picture; 2 are needed"),
    ("a file", lambda folder: (folder.rmdir(), folder.write_text("x")), "is a file; expected a folder of pictures"),
    ("a tenth broken", lambda folder: broken(folder, 2, 20), "2 of the first .* pictures of 20 are broken, .*0.png: not a pic"),
    ("all broken", lambda folder: broken(folder, 20, 20), "2 of the first 2 pictures of 20 are broken"),
    ("a class only to test", unknown_class, "test/ has classes that train/ does not have: bird; give both the same"),
    ("array of floats", lambda folder: np.save(folder / "images.npy", np.zeros((9, 8, 8))), r"uint8, got float64; .*255 \* x"),
    ("array of integers", lambda folder: np.save(folder / "images.npy", np.full((9, 8, 8), 255, np.uint16)),
     r"uint8, got uint16; convert values in 0 \.\.\. 255 with x\.astype"),
    ("array of text", lambda folder: (folder / "images.npy").write_text("x"), "images.npy: not a readable array file"),
    ("array of shape", lambda folder: np.save(folder / "images.npy", np.zeros((9, 8), np.uint8)), r"got shape \(9, 8\)"),
    ("empty array", lambda folder: np.save(folder / "images.npy", np.zeros((0, 8, 8), np.uint8)), "not empty"),
    ("fewer labels", lambda folder: (np.save(folder / "images.npy", np.zeros((9, 8, 8), np.uint8)),
                                     np.save(folder / "labels.npy", np.arange(8))), r"labels must be \(N,\), a label for each of the 9 images, got shape \(8,\)"),
    ("half a record", lambda folder: (folder / "train_X.bin").write_bytes(bytes(3 * 96 * 96 + 1)), "expected a whole number of"),
    ("pickled object", lambda folder: np.save(folder / "images.npy", np.array([{}])), "not a readable array file"),
]


@pytest.mark.parametrize("make, message", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_an_unusable_folder_is_one_line_and_leaves_nothing(photos, cache, make, message):
    make(photos)
    with pytest.raises(DataError, match=message) as error:
        load(photos)
    assert "my phötos" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not list(cache.glob("pictures/*"))


@pytest.fixture
def somebody():
    """A folder of a user who is not root. Tests run by root switch to another user, since no permission stops root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_root = getattr(os, "geteuid", lambda: 1)() == 0
        folder.chmod(0o777)
        try:
            if is_root:
                os.seteuid(65534)
            yield folder
        finally:
            if is_root:
                os.seteuid(0)


def test_missing_permissions_are_named(somebody, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(somebody / "cache"))
    write_pictures(somebody / "photos", CAT_DOG)
    file, folder = somebody / "photos/cat/0.png", somebody / "photos/ein Hund"
    file.chmod(0)
    data, log = load(somebody / "photos")
    assert log.has("skipped: .*cat/0.png: Permission denied") and len(images_of(data)) == 19
    file.chmod(0o600)
    assert len(images_of(load(somebody / "photos")[0])) == 20            # the same size and time, but readable now
    for part in ("hashes", "pictures"):                          # a complete cache is used even if read-only
        (somebody / "cache" / part).chmod(0o500)
    shutil.rmtree(somebody / "cache/hashes", ignore_errors=True)
    assert len(images_of(load(somebody / "photos")[0])) == 20
    folder.chmod(0)
    with pytest.raises(DataError, match="cannot read .*ein Hund: Permission denied; change its permissions"):
        load(somebody / "photos")
    folder.chmod(stat.S_IRWXU)
    (somebody / "cache").chmod(0o500)
    monkeypatch.setenv("MINICL_CACHE", str(somebody / "cache/no"))
    with pytest.raises(DataError, match="cannot keep the decoded pictures in .*Permission denied.*MINICL_CACHE"):
        load(somebody / "photos")


@pytest.mark.parametrize("options, message", [({"size": 0}, "size"), ({"channels": 2}, "channels"), ({"seed": -1}, "seed"),
                                              ({"test_share": 1.5}, "test_share")])
def test_invalid_options_are_named(photos, options, message):
    with pytest.raises((TypeError, ValueError), match=f"from_folder: .*{message}"):
        load(photos, **options)


# ---------------------------------------------------------------- arrays

N, M = 12, 5


def arrays(shape, dtype=np.uint8):
    return (np.random.default_rng(0).integers(0, 256, (N + M, *shape)).astype(dtype))


def test_a_file_of_arrays_may_hold_a_split(photos):
    images = arrays((16, 16, 3))
    labels = np.arange(N + M) % 3
    np.savez(photos / "x.npz", train_images=images[:N], train_labels=labels[:N, None], test_images=images[N:],
             test_labels=labels[N:, None], class_names=["a", "b", "c"])
    data, _ = load(photos / "x.npz")
    found = images_of(data)
    assert data.class_names == ("a", "b", "c") and data.name == "x.npz"
    for k, image in enumerate(images):
        assert found[image.tobytes()] == ("test" if k >= N else "train", "abc"[k % 3])


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), share=st.sampled_from([0.1, 0.3, 0.5]),
       seed=st.integers(0, 9), kind=st.sampled_from(["integers", "text", "names", "column", "-1", "short", "floats"]))
@settings(max_examples=40, deadline=None)
def test_arrays_are_split_alike_with_and_without_their_labels(counts, share, seed, kind):
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(labels) < 2:
        return
    images = np.zeros((len(labels), 4, 4), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    given_labels = {"text": labels.astype(str), "column": labels[:, None], "-1": labels - 1, "short": labels[1:],
                    "floats": labels + 0.5}.get(kind, labels)
    names = {"class_names": np.array(list("abcdef"))} if kind == "names" else {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/x.npz", images=images, labels=given_labels, **names)
        without, log = load(f"{folder}/x.npz", size=4, labels=False, test_share=share, seed=seed)
        assert not without.is_labelled and not log.has("labels")
        try:
            data, _ = load(f"{folder}/x.npz", size=4, test_share=share, seed=seed)
        except DataError:                                                    # labels that cannot be read
            assert kind in ("-1", "short", "floats")
            return
    np.testing.assert_array_equal(data.train_images, without.train_images)
    np.testing.assert_array_equal(data.test_images, without.test_images)
    assert not without.test_labels.any() and not without.train_labels.any()


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (1, 16, 16), (3, 16, 16), (32, 24, 3)])
def test_arrays_of_other_shapes_are_read_from_a_folder(photos, shape):
    images = arrays(shape)
    np.save(photos / "images.npy", images)
    np.save(photos / "labels.npy", np.array(["red", "blue"])[np.arange(N + M) % 2])
    data, _ = load(photos)
    found = images_of(data)
    assert len(found) == N + M and data.class_names == ("blue", "red") and data.train_images.shape[1:] == (16, 16, 3)
    if shape[:1] == (3,):
        images = images.transpose(0, 2, 3, 1)
    for k, image in enumerate(images):
        picture = Image.fromarray(image.reshape(16, 16) if image.size == 256 else image)
        if image.shape[0] == 32:
            picture = picture.resize((16, 16), Image.Resampling.BILINEAR, box=(0, 4, 24, 28))
        assert found[np.asarray(picture.convert("RGB")).tobytes()][1] == ("red", "blue")[k % 2]


def test_pictures_without_an_ending_are_counted(photos):
    write_pictures(photos, CAT_DOG)
    for k in range(3):
        (photos / f"cat/{k}.png").rename(photos / f"cat/{k}")
    _, log = load(photos)
    assert log.has(r"left out: 3 of other kinds \(3 no ending\)")


MIXED = {
    "arrays": (lambda folder: np.save(folder / "images.npy", arrays((16, 16))),
               "my phötos holds images.npy and 20 pictures, such as cat/0.png; move one of them to another folder"),
    "records": (lambda folder: (folder / "data_batch_1.bin").write_bytes(bytes(3073)), "holds data_batch_1.bin and 20 pictures"),
    "labels": (lambda folder: np.save(folder / "labels.npy", np.arange(20)), None),
}


@pytest.mark.parametrize("kind", MIXED)
def test_pictures_beside_arrays_are_refused_and_other_arrays_are_counted(photos, kind):
    write_pictures(photos, CAT_DOG)
    add, message = MIXED[kind]
    add(photos)
    if message:
        with pytest.raises(DataError, match=message):
            load(photos)
    else:
        data, log = load(photos)
        assert len(images_of(data)) == 20 and log.has(r"left out: 1 of other kinds \(1 \.npy\)")


def test_two_data_sets_in_a_folder_are_refused(photos):
    np.save(photos / "images.npy", arrays((16, 16)))
    (photos / "data_batch_1.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="several data sets, with .*images.npy and .*data_batch_1.bin; put each in its own folder"):
        load(photos)


@pytest.mark.parametrize("numbers, missing", [((1, 3), "2.bin, data_batch_4.bin, data_batch_5.bin, test_batch.bin"), ((2, 7), "1.bin"),
                                            ((1, 2, 3, 4, 5), "test_batch.bin")])
def test_missing_batches_of_cifar_are_named(photos, numbers, missing):
    for k in numbers:
        np.random.default_rng(k).integers(0, 9, (3, 3073), dtype=np.uint8).tofile(photos / f"data_batch_{k}.bin")
    data, log = load(photos)
    assert log.has(f"has no (data_batch_)?{missing}.*: only the others are read") and len(images_of(data)) == 3 * len(numbers)


@pytest.mark.parametrize("hidden, left_out", [([".net/1.png", ".net/2.png"], ".net"), (["cats/.1.png"], "cats/.1.png"),
                                              ([".a/1.png", "cats/.2.JPG"], ".a and 1 more"), (["cats/._1.png"], None)])
def test_pictures_whose_names_begin_with_a_dot_are_told(photos, hidden, left_out):
    write_pictures(photos, [*numbered("cats", 4), *numbered("dogs", 4), *hidden])
    data, log = load(photos)
    assert len(data.train_images) + len(data.test_images) == 8 and len(data.class_names) == 2
    if left_out is None:
        assert not log.has("begin with a dot")
    else:
        assert log.has(f"left out: .*{re.escape(left_out.split()[0])}.*: names that begin with a dot")


def test_more_names_of_classes_than_labels_are_told(photos):
    images = arrays((16, 16))
    for names, told in ((["a", "b"], False), (["a", "b", "c"], True)):
        np.savez(photos / "x.npz", images=images, labels=np.arange(N + M) % 2, class_names=names)
        log = load(photos / "x.npz")[1]
        assert bool(log.has("class_names has 3 names, but the labels are 0 to 1; check that each")) == told


def test_unused_arrays_are_named(photos):
    images = arrays((16, 16))
    np.savez(photos / "x.npz", images=images, labels=np.arange(N + M) % 2, val_images=images)
    assert load(photos / "x.npz")[1].has("left out of .*x.npz: val_images; read: images, labels$")
    for name in ("images", "labels", "val_images"):
        np.save(photos / f"{name}.npy", np.load(photos / "x.npz")[name])
    (photos / "x.npz").unlink()
    assert load(photos)[1].has("left out of .*: val_images; read: images, labels$")


def test_test_labels_without_images_and_an_array_that_is_there_twice_are_reported(photos):
    for name, array in {"images": (images := arrays((16, 16))), "labels": np.arange(N + M) % 2, "test_labels": np.arange(3) % 2}.items():
        np.save(photos / f"{name}.npy", array)
    assert load(photos)[1].has("left out of .*: test_labels; read: images, labels$")
    np.save(photos / "test_images.npy", images)
    np.save(photos / "test_labels.npy", np.arange(N + M) % 2)
    with pytest.raises(DataError, match="images.npy and test_images.npy are the same, so its images are there twice"):
        load(photos)


@pytest.mark.parametrize("first, second", [("Käse", "Ka\u0308se"), ("cats", "Cats"), ("cats", "cats "), ("Straße", "STRASSE")])
def test_classes_with_nearly_the_same_name_give_a_warning(photos, first, second):
    np.savez(photos / "x.npz", images=arrays((16, 16)), labels=np.array([first, second, "dog"])[np.arange(N + M) % 3])
    data, log = load(photos / "x.npz")
    one, other = map(ascii, sorted([first, second]))
    assert len(data.class_names) == 3 and log.has(re.escape(f"warning: {one} and {other} are two classes; if they are one, "))


EVEN = np.arange(N + M) % 2
LABELS = [                                                               # labels, class_names, message or classes
    (EVEN.reshape(-1, 1), None, ("0", "1")), (EVEN.reshape(1, -1), None, ("0", "1")), (EVEN.astype("u8"), None, ("0", "1")),
    (np.array([b"caf\xc3\xa9", b"tea"])[EVEN], None, ("café", "tea")), (EVEN.astype("S"), ["a", "b"], ("0", "1")),
    (EVEN, [b"a", b"b"], ("a", "b")), (EVEN + 2, ["a", "b", "c", "d"], ("a", "b", "c", "d")),
    (np.eye(2, dtype=int)[EVEN], None, r"must be \(N,\), .* got shape \(17, 2\); .* labels.argmax\(axis=1\)"),
    (np.zeros((1, 17, 1), int), None, "must be"), (EVEN[:-1], None, r"17 images, got shape \(16,\)"),
    (EVEN.astype(float), None, "must be integers or text, got float64"), (EVEN > 0, None, "got bool"),
    (EVEN.astype("u8") + np.uint64(2**63), None, "must be less than 2.63, got 9223372036854775809"),
    (EVEN + 1, ["a", "b"], r"labels must be indices into class_names, from 0, got 1..2 and class_names of shape \(2,\)"),
    (EVEN - 1, ["a", "b"], "got -1..0"), (EVEN - 1, None, "integers from 0, got '-1' for 9 images; leave these images out"),
    (np.array(["", "cat"])[EVEN], None, "labels must be text, or integers from 0, got '' for 9 images"), (EVEN, [["a"], ["b"]], r"shape \(2, 1\)"),
    (np.array([b"b\xe4r", b"b\xf6r"])[EVEN], None, r"x.npz: labels: b'b\\x..r' is not text in UTF-8; save text"),
    (EVEN, [b"b\xe4r", b"b\xf6r"], r"x.npz: class_names: b'b\\xe4r' is not text in UTF-8"),
    (EVEN, "ab", r"class_names of shape \(\)"), (np.array(["x", "y"])[EVEN], "ab", ("x", "y")),
]


@pytest.mark.parametrize("labels, names, expected", LABELS)
def test_labels_are_one_per_image_or_refused(photos, labels, names, expected):
    images = arrays((16, 16, 3))
    np.savez(photos / "x.npz", images=images, labels=labels, **({} if names is None else {"class_names": names}))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load(photos / "x.npz")
    else:
        data, _ = load(photos / "x.npz")
        used = sorted(set(np.append(data.train_labels, data.test_labels)))
        known = dict(zip(used, sorted(set(EVEN))))
        assert data.class_names == expected
        for split in ("train", "test"):
            for image, label in zip(getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")):
                assert EVEN[(images == image).all(axis=(1, 2, 3))] == known[label]


@pytest.mark.parametrize("train, test, message", [
    (EVEN[:N].astype("i8"), EVEN[N:].astype("u8"), None),
    (EVEN[:N], EVEN[N:].astype("U"), "labels are text in one split and integers in the other"),
    (EVEN[:N], EVEN[N:] + 1, "test labels that no training image has: 2$"),
])
def test_labels_of_both_splits_must_be_of_one_kind(photos, train, test, message):
    images = arrays((16, 16))
    np.savez(photos / "x.npz", train_images=images[:N], train_labels=train, test_images=images[N:], test_labels=test)
    if message:
        with pytest.raises(DataError, match=message):
            load(photos / "x.npz")
    else:
        assert load(photos / "x.npz")[0].class_names == ("0", "1")


def test_a_named_class_of_only_test_images_gives_a_warning(photos):
    images = arrays((16, 16))
    np.savez(photos / "x.npz", train_images=images[:N], train_labels=EVEN[:N], test_images=images[N:], test_labels=EVEN[N:] + 1,
             class_names=["a", "b", "c"])
    assert load(photos / "x.npz")[1].has("warning: .*test labels that no training image has: 2$")


@pytest.mark.parametrize("fields, reason", [
    ({}, "has none of its training and test images"), ({"train_labels": EVEN[:N]}, "has none of its test images"),
    ({"test_labels": EVEN[N:]}, "has none of its training images"),
    ({"train_labels": EVEN[:N] * 0, "test_labels": EVEN[N:] * 0}, "has only one class")])
def test_the_reason_for_missing_labels_is_logged(photos, fields, reason):
    images = arrays((16, 16))
    np.savez(photos / "x.npz", train_images=images[:N], test_images=images[N:], **fields)
    data, log = load(photos / "x.npz")
    assert not data.is_labelled and log.has(f"no labels: .*x.npz {reason}; accuracies")


@pytest.mark.parametrize("name", ["X.NPZ", "X.Npy"])
def test_array_files_with_endings_in_capitals_are_read(photos, name):
    with open(photos / name, "wb") as file:
        np.savez(file, images=arrays((16, 16))) if name == "X.NPZ" else np.save(file, arrays((16, 16)))
    assert len(images_of(load(photos / name)[0])) == N + M


def test_an_array_file_of_the_other_kind_is_read_by_its_content(photos):
    np.save(photos / "x", arrays((16, 16)))
    (photos / "x.npy").rename(photos / "x.npz")
    assert len(images_of(load(photos / "x.npz")[0])) == N + M


def test_a_single_array_has_no_labels(photos):
    np.save(photos / "pixels.npy", arrays((16, 16)))
    data, log = load(photos / "pixels.npy")
    assert not data.is_labelled and log.has("no labels") and len(images_of(data)) == N + M


@pytest.mark.parametrize("kind", ["cifar-10-batches-bin", "cifar-100-binary", "stl10_binary"])
def test_binary_files_of_cifar_and_stl10_are_read(photos, kind):
    side = 96 if kind == "stl10_binary" else 32
    images = arrays((side, side, 3))
    labels = np.arange(N + M, dtype=np.uint8) % 3
    folder = photos / kind
    folder.mkdir()
    planes = images.transpose(0, 3, 1, 2)                                # (N, C, H, W)
    splits = {"train": slice(0, N), "test": slice(N, N + M)}
    if kind == "stl10_binary":
        for split, part in splits.items():
            planes[part].transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
            (labels[part] + 1).tofile(folder / f"{split}_y.bin")
        planes[:7].transpose(0, 1, 3, 2).tofile(folder / "unlabeled_X.bin")
        (folder / "class_names.txt").write_text("sea plane\n\n Vögel \ncar\n", "utf-8-sig")
    else:
        columns = [labels] if "10-" in kind else [labels + 9, labels]
        records = np.column_stack([*columns, planes.reshape(N + M, -1)]).astype(np.uint8)
        files = {"train": ["data_batch_1.bin", "data_batch_2.bin"], "test": ["test_batch.bin"]} if "10-" in kind else \
            {"train": ["train.bin"], "test": ["test.bin"]}
        for split, part in splits.items():
            for file, some in zip(files[split], np.array_split(records[part], len(files[split]))):
                some.tofile(folder / file)
    data, log = load(photos, size=side)
    found = images_of(data)
    names = {"c": ("airplane", "automobile", "bird"), "s": ("sea plane", "Vögel", "car")}[kind[0]]
    names = ("0", "1", "2") if "100" in kind else names
    assert len(found) == N + M and data.train_images.shape == (N, side, side, 3)
    for k, image in enumerate(images):
        assert found[image.tobytes()] == ("test" if k >= N else "train", names[k % 3])
    if kind == "stl10_binary":
        assert log.has("left out: STL-10's unlabeled_X.bin")
        data, _ = load(photos, size=side, labels=False)
        assert len(data.train_images) == 7 and not data.is_labelled
        (folder / "test_X.bin").unlink()
        log = load(photos, size=side)[1]
        assert log.has("has no test_X.bin: a part of train_X.bin is used") and log.has("left out of .*: test_labels; read: ")
    else:
        first, *_, last = (folder / name for name in (*files["train"], *files["test"]))
        last.write_bytes(first.read_bytes())
        with pytest.raises(DataError, match=f"{first.name} and {last.name} are the same, so its images are there twice"):
            load(photos, size=side)


def test_pickled_cifar_is_read(photos):
    from test_cifar10 import PYTHON, batches, files_of
    for name, content in files_of(PYTHON, batches()).items():
        (photos / Path(name).name).write_bytes(content)
    data, _ = load(photos, size=32)
    assert data.train_images.shape == (10, 32, 32, 3) and data.class_names[:2] == ("airplane", "automobile")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_with_a_changed_bit_is_refused_or_gives_the_same_arrays(photos, rng, save):
    """NumPy alone would read fewer images if the shape in a member's header were smaller."""
    images, labels = rng.integers(0, 256, (3, 4, 4), dtype=np.uint8), np.array([0, 1, 0])
    save(photos / "x.npz", images=images, labels=labels)
    content = bytearray((photos / "x.npz").read_bytes())
    refused = 0
    for place, bit in itertools.product(range(len(content)), (0, 5)):
        content[place] ^= 1 << bit
        (photos / "x.npz").write_bytes(content)
        content[place] ^= 1 << bit
        try:
            found = find_arrays(photos / "x.npz", True, lambda line: None)
        except DataError as error:
            assert str(photos / "x.npz") in str(error)
            refused += 1
        else:
            assert np.array_equal(found.train[..., 0], images) and np.array_equal(found.labels, labels)
    assert refused > len(content)


@pytest.mark.parametrize("declared", [(2, 4, 4), (3, 4, 3), (3, 5, 4)])
def test_an_array_file_that_is_longer_or_shorter_than_its_header_says_is_refused(photos, declared):
    np.save(photos / "images.npy", np.zeros((3, 4, 4), np.uint8))
    content = (photos / "images.npy").read_bytes()
    (photos / "images.npy").write_bytes(content.replace(b"(3, 4, 4)", str(declared).encode()))
    for path in (photos, photos / "images.npy"):
        with pytest.raises(DataError, match="images.npy: not a readable array file"):
            load(path)
