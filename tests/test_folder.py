"""A run's folder: a new one for each run, one owner at a time, and nothing left behind by a run that never began."""

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicl.folder import FolderLock, Locked, OwnFolder, RunError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def own_a_new_folder(barrier, results, out=None):
    barrier.wait()
    try:
        folder = OwnFolder(out, "test")
        results.put(str(folder.path))
    except RunError as error:
        results.put(str(error))
    barrier.wait()                                           # keep the folder until all processes have tried


def together(count, *arguments):
    """The folder or error of each of `count` processes that ask for a folder at the same time."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    barrier = context.Barrier(count)
    results = context.SimpleQueue()
    processes = [context.Process(target=own_a_new_folder, args=(barrier, results, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_runs_started_together_get_different_folders():
    assert len(set(together(8))) == 8


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("exists", [False, True])
def test_only_one_of_the_runs_started_together_with_the_same_out_begins(tmp_path, exists):
    if exists:
        (tmp_path / "out").mkdir()
    found = together(6, "out")
    refused = [text for text in found if text != "out"]
    assert len(refused) == 5 and all(re.match(r"--out out: another run \(pid \d+\) is writing there", text) for text in refused)


def test_folders_are_named_after_the_run_and_numbered():
    folders = []
    for _ in range(3):
        folders.append(OwnFolder(None, "test"))
        (folders[-1].path / "file").write_text("")
    assert [str(own.path) for own in folders] == [os.path.join("runs", name) for name in ("test", "test-2", "test-3")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent():
    own = OwnFolder("out", "test")
    child = os.fork()
    if child == 0:
        own.close()                                          # as at the end of Python
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    own.require_owned()
    child = os.fork()
    if child == 0:                                           # which may not write there
        with contextlib.suppress(RunError):
            own.require_owned()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(RunError, match="is writing there"):
        OwnFolder("out", "test")
    own.close()
    assert not os.path.exists("out")


def test_another_current_folder_is_named(tmp_path, monkeypatch):
    own, absolute = OwnFolder("out", "test"), OwnFolder(str(tmp_path / "absolute"), "test")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="--out out is relative to .*, but the current folder is now .*elsewhere"):
        own.require_owned()
    absolute.require_owned()
    monkeypatch.chdir(tmp_path)
    own.require_owned()
    own.close(), absolute.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_that_lives_on_does_not_hold_the_lock():
    """As of a data loader, whose run is killed."""
    reads, writes = os.pipe()
    owner = os.fork()
    if owner == 0:
        with contextlib.suppress(BaseException):
            _own = OwnFolder("out", "test")
            child = os.fork()
            if child == 0:
                time.sleep(20)
                os._exit(0)
            os.write(writes, str(child).encode())
            time.sleep(20)
        os._exit(0)
    child = int(os.read(reads, 20))
    try:
        with pytest.raises(RunError, match="is writing there"):
            OwnFolder("out", "test")
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        OwnFolder("out", "test").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reads), os.close(writes)


def test_the_owner_is_named_and_the_folder_is_free_when_it_ends(tmp_path):
    own = OwnFolder("out", "test")
    with pytest.raises(RunError, match=rf"another run \(pid {os.getpid()}\) is writing there; .*a run of this process.*restart the kernel"):
        OwnFolder("out", "test")
    (own.path / "result.json").write_text("")
    own.close()
    assert os.listdir("out") == ["result.json"]
    OwnFolder("out", "test")


def test_an_owner_that_is_deleted_frees_its_folder():
    OwnFolder("out", "test")
    assert not Path("out").exists()


def test_an_empty_new_folder_is_removed_and_an_old_one_is_kept():
    Path("old").mkdir()
    for out in ("new/folder", "old"):
        OwnFolder(out, "test").close()
    assert not Path("new/folder").exists() and os.listdir("old") == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_frees_the_folder():
    code = "import time; from minicl.folder import OwnFolder; own = OwnFolder('out', 'x'); print(own.path, flush=True)"
    owner = subprocess.Popen([sys.executable, "-c", code + "; time.sleep(60)"], stdout=subprocess.PIPE,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert owner.stdout.readline() == b"out\n"
    with pytest.raises(RunError, match=rf"another run \(pid {owner.pid}\)"):
        OwnFolder("out", "test")
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert os.listdir("out") == [".lock"]
    OwnFolder("out", "test")


def test_a_lock_that_was_removed_while_another_waited_is_taken_again(tmp_path):
    first = FolderLock(tmp_path)
    class Late(FolderLock):
        def _lock(self, file):                               # opened before the owner leaves, locked afterwards
            first.close()
            super()._lock(file)

    late = Late(tmp_path)
    with pytest.raises(Locked):
        FolderLock(tmp_path)
    late.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_planted_link_for_the_lock_is_refused(tmp_path, link):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    getattr(tmp_path / "out" / ".lock", link)(tmp_path / "precious")
    with pytest.raises(RunError, match=r"cannot write there .*\.lock"):
        OwnFolder("out", "test")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run", "/dev/null/run", "x" * 300, "dangling"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(RunError, match="cannot write there .*; choose another folder"):
        OwnFolder(out, "test")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_a_file_named_runs_is_refused(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RunError, match="cannot write there"):
        OwnFolder(None, "test")


@pytest.mark.parametrize("lost", ["removed", "replaced", "moved"])
def test_a_lost_folder_belongs_only_to_its_next_owner(lost, tmp_path):
    """If a live run's folder is deleted and a new run uses it, the first run stops and leaves the second's lock."""
    path = tmp_path / "out"
    first = OwnFolder(str(path), "test")
    first.require_owned()
    path.rename(tmp_path / "elsewhere") if lost == "moved" else shutil.rmtree(path)
    second = OwnFolder(str(path), "test") if lost != "removed" else None
    with pytest.raises(RunError, match="was removed or replaced while this run used it"):
        first.require_owned()
    first.close()
    if second:
        second.require_owned()
        with pytest.raises(RunError, match="another run"):
            OwnFolder(str(path), "test")
        second.close()


def test_a_folder_that_has_taken_the_name_of_a_runs_is_not_removed(tmp_path):
    own = OwnFolder(str(tmp_path / "out"), "test")
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "out").mkdir()
    own.close()
    assert (tmp_path / "out").is_dir()
    own = OwnFolder(str(tmp_path / "new"), "test")
    own.close()
    assert not (tmp_path / "new").exists()
