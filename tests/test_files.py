"""Files written atomically: permissions, links, and part files that were planted or left over."""

import os
import stat
import threading

import pytest

from minicl import files
from minicl.files import remove_parts, write_atomically

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs the permissions and links of POSIX")


def new(file):
    file.write(b"new")


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666, 0o444])
def test_an_existing_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, new)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_has_the_permissions_that_open_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", new)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@POSIX
@pytest.mark.parametrize("chain", [1, 3])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path, chain):
    (tmp_path / "far").mkdir()
    target = link = tmp_path / "far" / "target"
    target.write_bytes(b"old")
    for k in range(chain):
        link, before = tmp_path / f"link{k}", link
        link.symlink_to(before)
    write_atomically(link, new)
    assert link.is_symlink() and target.read_bytes() == b"new" and not target.is_symlink()
    assert os.listdir(tmp_path / "far") == ["target"]


@POSIX
def test_a_planted_link_instead_of_the_part_file_is_never_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "folder" / "file"
    victim.write_bytes(b"untouched")
    path.parent.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)      # an attacker who guesses the name
    (path.parent / f".file.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, new)
    assert victim.read_bytes() == b"untouched" and not path.exists()


@POSIX
@pytest.mark.parametrize("make, words", [
    (lambda path: path.mkdir(), "not a regular file"),
    (os.mkfifo, "not a regular file"),
    (lambda path: path.symlink_to(path), "symbolic links"),
    (lambda path: path.symlink_to("no/such/folder/file"), "No such file"),
])
def test_a_path_that_is_not_a_file_is_refused_by_name(tmp_path, make, words):
    path = tmp_path / "it"
    make(path)
    with pytest.raises(OSError, match=f"{words}.*{path}"):
        write_atomically(path, new)
    assert os.listdir(tmp_path) == ["it"]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "below", new)


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    write_atomically(tmp_path / ("n" * 255), new)
    assert (tmp_path / ("n" * 255)).read_bytes() == b"new"


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([k]) * 100_000 for k in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(path, lambda file, c=c: file.write(c))) for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents and os.listdir(tmp_path) == ["file"]


def test_only_left_over_parts_are_removed(tmp_path):
    others = ["file", ".hidden", "a.part", ".file.12.part", ".file.0123456789abcdef.party", "x.0123456789abcdef.part"]
    old, young = ".file.0123456789abcdef.part", ".file.fedcba9876543210.part"
    for name in (*others, old, young):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (0, 0))
    remove_parts(tmp_path, seconds=3600)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, young])
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    remove_parts(tmp_path / "nowhere")


@POSIX
def test_a_link_among_the_parts_is_removed_and_its_target_kept(tmp_path):
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / ".file.0123456789abcdef.part").symlink_to(tmp_path / "victim")
    remove_parts(tmp_path)
    assert os.listdir(tmp_path) == ["victim"]


def test_the_part_file_of_a_write_has_a_name_that_is_removed(tmp_path):
    seen = []
    write_atomically(tmp_path / "file", lambda file: seen.extend(os.listdir(tmp_path)))
    assert len(seen) == 1 and files.PART.fullmatch(seen[0])
