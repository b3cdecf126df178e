"""Files that are written whole or not at all, and checkpoints that are this run's or refused."""

import contextlib
import errno
import os
import pickle
import re

import numpy as np
import pytest

from damage import DAMAGE, Trial

from minicl import files
from minicl.backend import to_host
from minicl.checkpoint import FORMAT, CheckpointError, load_checkpoint, restore, save_checkpoint
from minicl.files import write_atomically, write_json
from minicl.nn import BatchNorm, Linear, Sequential
from minicl.optim import SGD, Adam


def model_of(rng, width=4):
    return Sequential(Linear(3, width, rng=rng), BatchNorm(width))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.npz"


@pytest.fixture
def saved(path, rng):
    """A checkpoint that is there, and the model it is of."""
    model = model_of(rng)
    save_checkpoint(path, {"model": model}, {"step": 3})
    return model


class FullDisk:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture(params=[0, 1, 100, 1000])
def full_disk(request, monkeypatch):
    """From the next open() on, that many bytes are left."""
    @contextlib.contextmanager
    def opened(*args):
        with open(*args) as file:
            yield FullDisk(file, request.param)

    monkeypatch.setattr(files, "open", opened, raising=False)


# ---------------------------------------------------------------- whole or not at all

def test_a_file_is_written_and_its_folder_made(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    write_atomically(target, lambda file: file.write(b"content"))
    assert target.read_bytes() == b"content" and os.listdir(target.parent) == ["file"]


def test_a_file_is_replaced(path):
    path.write_bytes(b"old")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_json_is_written_readable(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 0.5, "name": None})
    assert (tmp_path / "a.json").read_text() == '{\n  "loss": 0.5,\n  "name": null\n}\n'


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(path):
    def half(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "I/O error")], ids=["Ctrl-C", "disk"])
def test_a_write_cut_off_at_its_end_leaves_the_old_file_and_nothing_else(path, monkeypatch, call, error):
    def cut_off(*args):
        raise error

    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, call, cut_off)
    with pytest.raises(error if isinstance(error, type) else OSError):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


def test_the_file_is_on_disk_before_it_takes_its_place(path, monkeypatch):
    order = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(files.os, call, lambda *args, call=call, real=real: (order.append(call), real(*args)))
    write_atomically(path, lambda file: file.write(b"new"))
    assert order == ["fsync", "replace"]


# ---------------------------------------------------------------- saving

def test_a_checkpoint_holds_every_part_and_the_meta(path, xp, rng):
    model = model_of(rng).to(xp)
    optimizer = Adam(model, 0.1)
    optimizer.grads[...] = 1
    optimizer.step()
    meta = {"step": 3, "rng": rng.bit_generator.state, "config": {"out": None, "lr": 0.1}}
    save_checkpoint(path, {"model": model, "optimizer": optimizer}, meta)
    arrays, read = load_checkpoint(path)
    assert read == meta                                      # the state of a generator has integers of 128 bits
    state = {f"model.{name}": array for name, array in model.state_dict().items()}
    state |= {f"optimizer.{name}": array for name, array in optimizer.state_dict().items()}
    assert arrays.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_a_checkpoint_restores_what_was_saved(path, xp, rng):
    model, other = model_of(rng).to(xp), model_of(rng).to(xp)
    model.steps[1].running_mean.data += 3
    save_checkpoint(path, {"model": model}, {})
    restore(load_checkpoint(path)[0], {"model": other}, path)
    for part, same in zip(model.parameters() + [b for _, b in model.named_buffers()],
                          other.parameters() + [b for _, b in other.named_buffers()]):
        np.testing.assert_array_equal(to_host(part.data), to_host(same.data))


def test_a_full_disk_leaves_the_previous_checkpoint(path, saved, rng, full_disk):
    with pytest.raises(CheckpointError, match="checkpoint.npz: No space left on device; the previous checkpoint is "
                                              "intact; free some space or choose another --out"):
        save_checkpoint(path, {"model": model_of(rng)}, {"step": 4})
    arrays, meta = load_checkpoint(path)
    assert meta == {"step": 3} and os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(arrays["model.steps.0.weight"], saved.steps[0].weight.data)


def test_a_full_disk_says_that_there_is_no_checkpoint_yet(path, rng, full_disk):
    with pytest.raises(CheckpointError, match="no checkpoint was written"):
        save_checkpoint(path, {"model": model_of(rng)}, {})
    assert os.listdir(path.parent) == []


def test_a_file_size_limit_of_the_system_leaves_the_previous_checkpoint(path, saved, rng):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = Linear(300, 300, rng=rng)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large; the previous checkpoint is intact"):
            save_checkpoint(path, {"model": large}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path)[1] == {"step": 3} and os.listdir(path.parent) == [path.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path, rng):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot save the checkpoint .*file.run.checkpoint.npz"):
        save_checkpoint(tmp_path / "file" / "run" / "checkpoint.npz", {"model": model_of(rng)}, {})


# ---------------------------------------------------------------- loading

def test_a_missing_checkpoint_says_how_to_get_one(path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*checkpoint.npz; start a run without --resume"):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 30, 200, -30, -1])
def test_a_truncated_checkpoint_is_refused_by_name(path, saved, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="checkpoint.npz is not a readable minicl checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_with_a_flipped_bit_is_refused_by_name(path, saved):
    content = bytearray(path.read_bytes())
    content[content.index(saved.steps[0].weight.data.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint.npz is not a readable minicl checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing_or_still_loads_right(damage, tmp_path):
    trial = Trial(tmp_path)
    for number in range(20):
        trial.outcome(damage, number)                        # asserts it


def test_a_state_that_a_part_refuses_leaves_every_part_as_it_was(path, rng):
    class Refusing:
        def state_dict(self):
            return {"steps": np.array(0)}

        def load_state_dict(self, state):
            if state["steps"] > 1:
                raise ValueError("too many steps")

    class Counting(Refusing):
        def state_dict(self):
            return {"steps": np.array(2)}

    model = model_of(rng)
    save_checkpoint(path, {"model": model, "optimizer": Counting()}, {})
    other = model_of(np.random.default_rng(9))
    before = other.state_dict()
    with pytest.raises(CheckpointError, match="does not fit this run's optimizer: too many steps"):
        restore(load_checkpoint(path)[0], {"model": other, "optimizer": Refusing()}, path)
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("other", [1, FORMAT + 1, None, "2", [2], 2.5])
def test_a_checkpoint_of_another_format_names_it(path, rng, monkeypatch, other):
    with monkeypatch.context() as patch:
        patch.setattr("minicl.checkpoint.FORMAT", other)
        save_checkpoint(path, {"model": model_of(rng)}, {})
        load_checkpoint(path)                                # the patch took
    with pytest.raises(CheckpointError, match=f"checkpoint.npz is a checkpoint of format {re.escape(repr(other))}, but this "
                                              f"version of minicl reads format {FORMAT}: use the version that wrote it"):
        load_checkpoint(path)


def test_two_arrays_of_one_name_are_not_saved(path):
    class State:
        def __init__(self, name):
            self.name = name

        def state_dict(self):
            return {self.name: np.zeros(1)}

    with pytest.raises(CheckpointError, match="two arrays have the same name; use names of parts without dots"):
        save_checkpoint(path, {"a": State("b.c"), "a.b": State("c")}, {})
    assert not path.exists()


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\n", "\ud800", "a" * 70_000],
                         ids=["NUL inside", "NUL", "line", "surrogate", "long"])
def test_a_name_that_a_file_cannot_hold_is_not_saved(path, saved, rng, name):
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="cannot save .*: expected a name of at most 1000 printable characters"):
        save_checkpoint(path, {name: Linear(2, 2, rng=rng)}, {})
    assert path.read_bytes() == before


def test_numpy_reads_a_checkpoint_too(path, saved):
    with np.load(path) as file:
        np.testing.assert_array_equal(file["model.steps.0.weight"], saved.steps[0].weight.data)


@pytest.mark.parametrize("value, error, message", [
    (np.array([1.0, np.nan], "float32"), FloatingPointError, "a.x is not finite .*; nothing was saved, and .* was not changed"),
    (np.array([np.inf]), FloatingPointError, "a.x is not finite"),
    (np.zeros(2, "float16"), CheckpointError, "cannot save a.x: expected an array of float32, .*, got float16"),
    (np.zeros(2, object), CheckpointError, "got object"),
])
def test_a_state_that_could_not_be_loaded_is_not_saved(path, saved, value, error, message):
    class State:
        def state_dict(self):
            return {"x": value}

    before = path.read_bytes()
    with pytest.raises(error, match=message):
        save_checkpoint(path, {"a": State()}, {})
    assert path.read_bytes() == before


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def save_objects(path):
    np.savez(path, meta=np.frombuffer(b"{}", dtype=np.uint8), bomb=np.array([Bomb()], dtype=object))


@pytest.mark.parametrize("write", [
    lambda path: path.write_text("not an archive"),
    lambda path: path.write_bytes(pickle.dumps(Bomb())),
    save_objects,
    lambda path: np.savez(path, weight=np.zeros(3)),
    lambda path: np.savez(path, meta=np.frombuffer(b"not JSON", dtype=np.uint8)),
    lambda path: np.savez(path, meta=np.frombuffer(b"\xff\xff", dtype=np.uint8)),
    lambda path: np.savez(path, meta=np.frombuffer(b"[3]", dtype=np.uint8)),
    lambda path: write_atomically(path, lambda file: np.save(file, np.zeros(3))),
    lambda path: path.mkdir(),
    os.mkfifo,
    lambda path: path.symlink_to("/dev/zero"),
], ids=["text", "pickle", "npz with a pickle", "npz without meta", "meta not JSON", "meta not text", "meta no dict",
        "npy", "folder", "pipe", "device"])
def test_what_is_no_checkpoint_is_refused_by_name(path, write):
    write(path)
    with pytest.raises(CheckpointError, match="checkpoint.npz is not a readable minicl checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_architecture_lists_the_names(path, saved, rng):
    other = Sequential(Linear(3, 5, rng=rng, bias=False), BatchNorm(5), Linear(5, 2, rng=rng))
    before = other.state_dict()
    with pytest.raises(CheckpointError) as error:
        restore(load_checkpoint(path)[0], {"model": other}, path)
    text = str(error.value)
    assert f"{path} does not fit this run" in text
    assert "model.steps.2.weight: missing" in text and "model.steps.0.bias: unknown to this run" in text
    assert "model.steps.0.weight: shape (3, 4), expected (3, 5)" in text
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_checkpoint_of_another_optimizer_is_refused(path, rng):
    model = model_of(rng)
    save_checkpoint(path, {"optimizer": SGD(model, 0.1)}, {})
    with pytest.raises(CheckpointError, match="another model or optimizer:\n +optimizer.m.steps.0.weight: missing"):
        restore(load_checkpoint(path)[0], {"optimizer": Adam(model, 0.1)}, path)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_what_could_not_be_loaded_is_not_saved(dtype, tmp_path):
    class Part:
        def state_dict(self):
            return {"x": np.ones(3, dtype)}

    with pytest.raises(CheckpointError, match="cannot save part.x"):
        save_checkpoint(tmp_path / "c.npz", {"part": Part()}, {})
    with pytest.raises(CheckpointError, match="'format'"):
        save_checkpoint(tmp_path / "c.npz", {}, {"format": 2})
    assert not list(tmp_path.iterdir())
