"""Pictures are decoded once: runs resume after a kill, processes share the work, and a full disk gives one line."""

import json
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import no_room

from minicl.data import Batches, DataError, Prefetch, contents, decoded, loader
from minicl.data.contents import Content, contents_of, hash_of
from minicl.folder import FolderLock

N = 60
SHAPE = (2, 2, 3)
BROKEN = {7, 31}
NAMES = [f"item {i}" for i in range(N)]
CONTENTS = [Content(hash_of(name.encode())) for name in NAMES]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "BLOCK", 10)
    assert decoded.decode_once.__globals__["BLOCK"] == 10


class Reader:
    """Reads rows of N items, some of them broken. `calls` lists the items read; then() is called at item `stop`."""

    def __init__(self, stop=None, then=None):
        self.calls = []
        self.stop = stop
        self.then = then

    def __call__(self, i):
        self.calls.append(i)
        if i == self.stop:
            self.then()
        if i in BROKEN:
            raise DataError(f"item {i}: broken")
        return np.full(SHAPE, i, np.uint8)

    def run(self, log=lambda line: None, contents=None):
        return decoded.decode_once(contents or CONTENTS, NAMES, self, SHAPE, log=log)


def assert_whole(result):
    pixels, good = result
    assert np.flatnonzero(~good).tolist() == sorted(BROKEN)
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [i for i in range(N) if i not in BROKEN])
    assert pixels.shape[1:] == SHAPE and (pixels == pixels[:, :1, :1, :1]).all()
    assert isinstance(pixels, np.memmap) and not pixels.flags.writeable


def test_each_item_is_read_once_and_never_again():
    first, second = Reader(), Reader()
    assert_whole(first.run())
    assert_whole(second.run())
    assert sorted(first.calls) == list(range(N)) and second.calls == []



def test_rows_are_copied_from_other_files_of_the_cache(tmp_path):
    """For other orders and for fewer or more items, only new and broken items are read."""
    Reader().run()
    for order in (range(N)[::-1], [5, 7, *[3] * 10], [59, 2]):
        log, calls = [], []

        def read(k, order=order, calls=calls):
            calls.append(order[k])
            return Reader()(order[k])

        pixels, good = decoded.decode_once([CONTENTS[i] for i in order] * 8, [NAMES[i] for i in order] * 8,
                                           lambda k, n=len(order), read=read: read(k % n), SHAPE, log=log.append)
        whole = [i for i in [*order] * 8 if i not in BROKEN]
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], whole)
        assert good.sum() == len(whole) and {*calls} == BROKEN & {*order}
        assert (f"{len(whole)} are there already" if BROKEN & {*order} else f"copying {len(whole)} decoded") in log[0]
    log = []
    reader = Reader()
    extended = [*CONTENTS[:50], *(Content(hash_of(bytes([i]))) for i in range(10))]
    assert_whole(reader.run(log.append, extended))
    assert sorted({*reader.calls} - BROKEN) == list(range(50, 60)) and "decoding 12 pictures once" in log[0]


@pytest.mark.parametrize("damage", ["pixels", "items.json", "state.json"])
def test_rows_are_not_copied_from_a_damaged_file(tmp_path, damage):
    Reader().run()
    (path,) = (tmp_path / "cache/pictures").glob(f"*/{damage}")
    content = path.read_bytes()
    path.write_bytes(changed(content, len(content) // 2) if damage != "items.json" else content.replace(b'"', b"'", 2))
    reader = Reader()
    assert_whole(reader.run(contents=CONTENTS[:-1] + [Content("x")]))
    assert len(reader.calls) >= 30


# ---------------------------------------------------------------- contents

@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for k in range(25):
        (folder / f"{k} ä").write_bytes(bytes([k]) * 3)
    return [str(folder / f"{k} ä") for k in range(25)]


@pytest.fixture
def reads(monkeypatch):
    """A list that collects the names of the files read."""
    names: list[str] = []
    monkeypatch.setattr(contents, "open", lambda file, mode: names.append(file) or open(file, mode), raising=False)
    return names


def test_a_file_is_read_once(files, reads):
    first = contents_of("here", files)
    assert [content.hash for content in first] == [hash_of(bytes([k]) * 3) for k in range(25)] and sorted(reads) == sorted(files)
    assert contents_of("here", files[3:7]) == first[3:7] and contents_of("here", files) == first and len(reads) == 25


def in_place(path):
    """Overwrite a file with other bytes of the same length and restore its times."""
    times = os.stat(path).st_mtime_ns
    with open(path, "r+b") as file:
        file.write(b"abc")
    os.utime(path, ns=(times, times))


def replaced(path):
    times = os.stat(path).st_mtime_ns
    Path(path + "2").write_bytes(b"abc")
    os.utime(path + "2", ns=(times, times))
    os.replace(path + "2", path)


@pytest.mark.parametrize("change", [in_place, replaced, os.utime, lambda path: Path(path).write_bytes(b"longer")])
def test_a_file_is_read_again_where_it_may_have_changed(files, reads, change):
    before = contents_of("here", files)
    time.sleep(0.02)                                         # longer than a tick of the file system's clock
    change(files[4])
    reads.clear()
    after = contents_of("here", files)
    assert reads == [files[4]] and [i for i in range(25) if after[i] != before[i]] == [4]
    assert (after[4].hash == before[4].hash) == (change is os.utime)


def test_files_that_cannot_be_read_have_no_hash_and_are_tried_again(files, reads):
    odd = [files[0] + "no", "with a \0", str(Path(files[0]).parent)]
    for _ in range(2):
        assert [content.hash for content in contents_of("here", odd)] == ["", "", ""]
    assert len(reads) == 6


@pytest.mark.parametrize("memory", ["", "[", "null", "[1]", "3", '{"%s": 3}', '{"%s": ["x"]}', '{"%s": []}', '{"%s": ["x", 3]}'])
def test_a_damaged_memory_of_hashes_is_written_again(tmp_path, files, memory):
    first = contents_of("here", files)
    (path,) = (tmp_path / "cache/hashes").iterdir()
    whole = json.loads(path.read_text())
    path.write_text(memory.replace("%s", files[2]))
    assert contents_of("here", files) == first and json.loads(path.read_text()) == whole


@pytest.mark.parametrize("change", [
    lambda one, other: (other, one), lambda one, other: ([other[0], *one[1:]], [one[0], *other[1:]]),
    lambda one, other: ([*other[:1], *one[1:2], *other[2:]], other), lambda one, other: (one[:2], other[:2])],
    ids=["entries swapped", "hashes swapped", "hash and checksum copied", "of an earlier version"])
def test_what_is_remembered_of_a_file_is_used_for_no_other(tmp_path, files, reads, change):
    for file in files:
        os.utime(file, ns=(0, 0))
    first = contents_of("here", files)
    (path,) = (tmp_path / "cache/hashes").iterdir()
    known = json.loads(path.read_text())
    known[files[2]], known[files[3]] = change(known[files[2]], known[files[3]])
    path.write_text(json.dumps(known))
    reads.clear()
    assert contents_of("here", files) == first and files[2] in reads and {*reads} <= {*files[2:4]}


def test_contents_are_known_even_on_a_full_disk(files):
    with no_room():
        found = contents_of("here", files)
    assert found == contents_of("here", files)


def interrupt_at(file):
    def stop(path, mode):
        if path == file:
            raise KeyboardInterrupt
        return open(path, mode)
    return stop


def test_hashes_are_remembered_when_reading_is_interrupted(files, monkeypatch):
    monkeypatch.setattr(contents, "BLOCK", 5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(contents, "open", interrupt_at(files[17]), raising=False)
        contents_of("here", files)
    read: list[str] = []
    monkeypatch.setattr(contents, "open", lambda file, mode: read.append(file) or open(file, mode), raising=False)
    assert len(contents_of("here", files)) == 25 and sorted(read) == sorted(files[15:])


@pytest.mark.parametrize("then", [os.unlink, in_place, replaced])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_decoded_stops_the_run(files, then, when):
    """A row must not be stored under the hash of other contents."""
    def read(i):
        row = np.zeros(SHAPE, np.uint8)
        if i == 3 and when == "before":
            then(files[i])
        if not os.path.exists(files[i]):
            raise DataError(f"{files[i]}: No such file or directory") from FileNotFoundError(2, "No such file or directory")
        if i == 3 and when == "after":
            then(files[i])
        return row

    known = contents_of("here", files)
    time.sleep(0.02)
    with pytest.raises(DataError, match="3 ä: No such file.*; it could be read a moment ago, so run|3 ä changed while the pictures were read; run this again"):
        decoded.decode_once(known, files, read, SHAPE, log=lambda line: None)
    when = None
    pixels, good = decoded.decode_once(contents_of("here", files), files, read, SHAPE, log=lambda line: None)
    assert [i for i in range(25) if not good[i]] == ([3] if then is os.unlink else []) and not pixels.any()


def test_an_item_that_had_no_hash_and_is_readable_now_is_not_stored(files):
    with pytest.raises(DataError, match="item 2 changed while"):
        decoded.decode_once([*CONTENTS[:2], Content("", None)], NAMES[:3], Reader(), SHAPE, log=lambda line: None)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [0, 9, 10, 25, 59])
def test_an_interrupted_decoding_resumes_after_the_last_whole_block(stop):
    with pytest.raises(KeyboardInterrupt):
        Reader(stop, interrupt).run()
    reader = Reader()
    assert_whole(reader.run())
    assert sorted(reader.calls) == list(range(stop // 10 * 10, N))


def test_a_killed_decoding_resumes_too(tmp_path):
    """The process is killed after writing rows that state.json does not count yet."""
    code = ("import os, sys; sys.path.insert(0, 'tests'); import test_decoded as t; t.decoded.BLOCK = 10; "
            "t.Reader(37, lambda: os._exit(9)).run()")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    (file,) = (tmp_path / "cache/pictures").glob("*/pixels")
    with open(file, "ab") as file:
        file.write(bytes(7))
    reader = Reader()
    assert_whole(reader.run())
    # a block is read ahead
    assert sorted(reader.calls) == list(range(min(reader.calls), N)) and min(reader.calls) in (20, 30)


def cut(content, place):
    return content[:place]


def zeros(content, place):
    return content[:place] + bytes(len(content[place:place + 20])) + content[place + 20:]


def changed(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]


@pytest.mark.parametrize("damage", [cut, zeros, changed, None])
@pytest.mark.parametrize("file", ["pixels", "state.json"])
def test_a_damaged_cache_is_decoded_again_from_the_damaged_block_on(tmp_path, file, damage):
    Reader().run()
    (path,) = (tmp_path / "cache/pictures").glob(f"*/{file}")
    content = path.read_bytes()
    for place in range(len(content) // 9, len(content), len(content) // 4) if damage else [0]:
        path.unlink() if damage is None else path.write_bytes(damage(content, place))
        damaged = path.exists() and path.read_bytes()
        reader = Reader()
        assert_whole(reader.run())
        if file == "pixels" and damaged != content:
            first = ([i for i in range(N) if i not in BROKEN][place // 12] if damage else 0) // 10 * 10
            assert sorted(reader.calls) == list(range(first, N))
        assert path.read_bytes() == content


@pytest.mark.parametrize("state", ["[]", "{}", "null", "[[60, 0, {}]]", "[[60]]", "[[-1, 0, {}]]", "[[1e400, 0, {}]]", "[" * 99_999,
                                   '[[60, 0, {"-1": "x"}]]', '[["60", 0, []]]', '{"read": 60, "broken": {}}'])
def test_an_invalid_state_is_ignored(tmp_path, state):
    Reader().run()
    (path,) = (tmp_path / "cache/pictures").glob("*/state.json")
    path.write_text(state)
    assert_whole(Reader().run())


def test_the_rows_of_other_items_under_this_name_are_decoded_again(tmp_path):
    """The checksums are of a KEY: those of a folder that has another one's name, or its files, do not fit."""
    def run(offset):
        reader = Reader()
        pixels, good = decoded.decode_once([Content(hash_of(bytes([i + offset]))) for i in range(N)], NAMES,
                                           lambda i: reader(i) + np.uint8(offset), SHAPE, log=lambda line: None)
        assert (pixels[:, 0, 0, 0] == np.flatnonzero(good) + offset).all()
        return reader.calls

    run(0)
    folder, = (tmp_path / "cache/pictures").iterdir()
    run(100)
    other, = (path for path in (tmp_path / "cache/pictures").iterdir() if path != folder)
    folder.rename(tmp_path / "first")
    other.rename(folder)
    (tmp_path / "first").rename(other)
    assert sorted(run(0)) == sorted(run(100)) == list(range(N))
    for file in ("pixels", "state.json"):
        (folder / file).write_bytes((other / file).read_bytes())
    assert sorted(run(0)) == list(range(N)) and run(100) == []


def test_which_items_are_broken_is_part_of_the_checksum(tmp_path):
    """If item 8 were listed as broken instead of 7, there would be as many rows, but some with a neighbour's label."""
    Reader().run()
    (path,) = (tmp_path / "cache/pictures").glob("*/state.json")
    text = path.read_text()
    path.write_text(text.replace('"7":', '"8":'))
    assert path.read_text() != text
    assert_whole(Reader().run())


def test_each_of_several_threads_reports_the_broken_pictures():
    def attempt():
        def read(i):
            time.sleep(0.05)
            raise DataError(f"item {i} is broken")
        try:
            decoded.decode_once(CONTENTS, NAMES, read, SHAPE, log=lambda line: None)
        except DataError as error:
            said.append(str(error))

    said: list[str] = []
    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3 and all("of 60 are broken, a tenth of all or more" in line for line in said), said


def test_a_second_process_waits_for_the_first(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Reader(25, interrupt).run()
    (folder,) = (tmp_path / "cache/pictures").iterdir()
    lock = FolderLock(folder)
    log = []
    results = []
    if not lock.is_held:
        pytest.skip("no locks on this file system")
    thread = threading.Thread(target=lambda: results.append(Reader().run(log.append)))
    thread.start()
    while not log:
        time.sleep(0.01)
    assert "waiting for another process" in log[0] and not results
    lock.close()
    thread.join(10)
    assert_whole(results[0])


def test_a_full_disk_gives_one_line_and_keeps_the_decoded_rows(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Reader(25, interrupt).run()
    with no_room(), pytest.raises(DataError, match="cannot keep the decoded pictures .*; set MINICL_CACHE"):
        Reader().run()
    reader = Reader()
    assert_whole(reader.run())
    assert min(reader.calls) == 20


def test_too_little_disk_space_is_reported_before_anything_is_read(monkeypatch):
    reader = Reader()
    with pytest.raises(DataError, match="not enough space for 1000000 MB.; set MINICL_CACHE"):
        decoded.decode_once(CONTENTS[:1] * 100, ["a"] * 100, reader, (10**5, 10**5, 1))
    assert not reader.calls


def test_training_does_not_wait_for_images_that_load_faster_than_a_step():
    class Slow:
        def __getitem__(self, ids):
            time.sleep(0.02)
            return ids

    batches = Batches(100, 10)
    images = Prefetch(Slow(), batches)
    assert images.waiting is None
    for step in range(20):
        assert (images[step] == batches[step]).all()
        time.sleep(0.03)                                     # the training step
    assert 0.02 / 0.7 < images.waiting < 0.2                 # only the first batch is waited for


@pytest.mark.parametrize("offset, start, row", [(0, 0, 3), (5, 0, 4096), (4099, 2, 5000), (8192, 7, 12288)])
def test_rows_of_a_mapped_file_are_prefetched_and_correct(tmp_path, offset, start, row):
    """Each range begins at a page boundary and contains the bytes of its row and less than one page more."""
    content = np.random.default_rng(0).integers(0, 256, offset + 40 * row, dtype=np.uint8)
    content.tofile(tmp_path / "pixels")
    images = np.memmap(tmp_path / "pixels", np.uint8, "r", offset, (40, row))[start:]
    batches = Batches(len(images), 8)
    mapping = np.frombuffer(images._mmap, np.uint8)
    for ids, rows in ((batches[0], images[batches[0]]), (np.array([], np.int64), [])):
        ranges = list(loader.mapped_ranges(images, ids))
        assert len(ranges) == len(ids)
        for (lo, length), pixels in zip(ranges, rows):
            assert lo % mmap.PAGESIZE == 0 and row <= length < row + mmap.PAGESIZE
            np.testing.assert_array_equal(mapping[lo:lo + length][-row:], pixels)
    prefetch = Prefetch(images, batches)
    for step in range(8):
        np.testing.assert_array_equal(prefetch[step], content[offset:].reshape(40, row)[start:][batches[step]])
    for other in (np.array(images), images[:, ::2], images[::2], images[:0], images + 1):
        assert not list(loader.mapped_ranges(other, np.arange(3)))
    with pytest.raises(IndexError):
        Prefetch(images, Batches(100, 50))[0]


def test_prefetched_images_are_correct_in_any_order_and_errors_are_raised():
    batches = Batches(100, 10)
    images = Prefetch(np.arange(100), batches)
    for step in (5, 6, 2, 2, 3, 9, 0):
        np.testing.assert_array_equal(images[step], batches[step])
    with pytest.raises(IndexError):
        Prefetch(np.arange(50), batches)[0]
    for step in (True, 1.0, -1, "1"):
        with pytest.raises((TypeError, ValueError), match="Prefetch: step must be an integer"):
            images[step]


@pytest.mark.parametrize("kind", [np.array, np.asfortranarray, lambda x: x[::-1]])
def test_writing_into_a_batch_does_not_change_other_batches(kind, rng):
    """Ids and images of a step that is read again, whatever the caller did to them, are as at first."""
    pixels = kind(np.arange(60).reshape(20, 3))
    before, batches = pixels.copy(), Batches(20, 4)
    images = Prefetch(pixels, batches)
    for step in rng.integers(0, 8, 30):
        ids, rows = batches[step], images[step]
        np.testing.assert_array_equal(ids, Batches(20, 4)[step])
        np.testing.assert_array_equal(rows, before[ids])
        ids[...] = 0
        rows[...] = -1
    np.testing.assert_array_equal(pixels, before)
