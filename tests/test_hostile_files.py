"""Damaged and hostile files: IDX, pickle and tar files are read completely and correctly, or refused in one line with
little memory and time."""

import gzip
import io
import pickle
import struct
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicl.data import CorruptFile, cifar10, cifar_files, load_cifar10, load_mnist, mnist
from minicl.data.cifar_files import parse_pickle
from minicl.data.mnist import parse_idx

STEMS = tuple(mnist.SHA256)

@given(st.binary(max_size=40) | st.builds(lambda head, dims, body: struct.pack(">4I", head, *dims) + body,
                                          st.sampled_from([2051, 2049, 0, 3331]),
                                          st.tuples(*[st.sampled_from([0, 1, 2, 3, 28, 2**31, 2**32 - 1])] * 3),
                                          st.binary(max_size=20)))
def test_any_bytes_are_read_completely_as_idx_or_refused(content):
    for kind, ndim in (("image", 3), ("label", 1)):
        try:
            array = parse_idx(content, "here", kind)
        except CorruptFile as error:
            assert "\n" not in str(error)
        else:
            assert array.ndim == ndim and content[4 + 4 * ndim:] == array.tobytes()


ALLOC = {                                                # short pickles that request gigabytes
    "BINSTRING": b"\x80\x02T\xff\xff\xff\x7f.", "BINBYTES": b"\x80\x03B\xff\xff\xff\xff.",
    "BINUNICODE": b"X\xff\xff\xff\xff.",
    "BINBYTES8": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.", "BYTEARRAY8": b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.",
    "BINUNICODE8": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00.", "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "LONG_BINPUT": b"\x80\x02Nr\xff\xff\xff\x7f.", "LONG_BINPUT of 64 MB": b"\x80\x02Nr\x00\x00\x40\x00.",
    "a name with line breaks": b"cnumpy\n\x1b[2J\x85owned\n.", "BINPUT beyond": b"\x80\x02Nq\xff.", "PUT": b"Np4000000000\n.",
    "FRAME": b"\x80\x04\x95" + b"\xff" * 7 + b"\x00N.",
    "INT": b"I" + b"9" * 5000 + b"\n.", "LONG": b"L" + b"9" * 5000 + b"L\n.", "PERSID": b"Pid\n.", "EXT": b"\x82\x01.",
    "NEXT_BUFFER": b"\x80\x05\x97.", "INST": b"(ios\nsystem\n.", "OBJ": b"(cos\nsystem\no.",
}


@pytest.mark.parametrize("content", ALLOC.values(), ids=ALLOC)
def test_a_few_bytes_of_pickle_take_no_memory(content):
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(CorruptFile, match="^here: not a pickled batch") as caught:
        parse_pickle(content, "here")
    assert time.monotonic() - started < 1 and str(caught.value).isprintable()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"(" * 2000, b"N" * 2000])
def test_a_pickle_with_too_many_opcodes_is_refused(monkeypatch, content):
    monkeypatch.setattr(cifar_files, "MOST_OPCODES", 1000)
    with pytest.raises(CorruptFile, match="its opcode 1001, .* is beyond what a CIFAR-10 file has"):
        parse_pickle(content, "here")


@pytest.mark.parametrize("text, encoding, times", [("x" * 10_000, "latin1", 1000), ("x", "utf-8", 1), (3, "latin1", 1)])
def test_bytes_encoded_from_text_in_a_pickle_are_refused(text, encoding, times):
    """Python 3 writes bytes in protocol 2 as _codecs.encode(text, 'latin1'). One text can be encoded many times."""
    begin = pickle.dumps(text, 2)[:-1]
    content = b"\x80\2]" + b"".join(b"c_codecs\nencode\n" + (begin[2:] if k == 0 else b"h\0") +
                                    b"X" + len(encoding).to_bytes(4, "little") + encoding.encode() + b"\x86Ra"
                                    for k in range(times)) + b"."
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="it makes bytes from text, which no CIFAR-10 file does"):
        parse_pickle(content, "here")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_nested_labels_are_not_expanded():
    """The labels are 40 nested lists, each holding the next one twice. An array of them would have 2^40 elements."""
    labels = [1, 2]
    for _ in range(40):
        labels = [labels, labels]
    content = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": labels}, 4)
    with pytest.raises(CorruptFile, match="labels of another kind"):
        parse_pickle(content, "here")


ROWS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
BATCH = pickle.dumps({b"data": ROWS, b"labels": [3, 7]}, 4)


@given(st.lists(st.tuples(st.integers(0, len(BATCH) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_pickle_is_refused_or_is_a_valid_batch(flips):
    content = bytearray(BATCH)
    for place, value in flips:
        content[place] = value
    try:
        images, labels = parse_pickle(bytes(content), "here")
    except CorruptFile:
        return
    assert images.shape == (len(labels), 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert 0 <= labels.min() and labels.max() <= 255


def archive(*members):
    """The bytes of a tar archive of the given (TarInfo, content) members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member(name, size, **fields):
    info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


SIX = [(member(name, 3073), bytes(3073)) for name in cifar10.UNPACKED["cifar-10-batches-bin"]]


def claims(tar, at, field):
    """The tar with `field` at byte `at` of its first header, and the checksum of that header corrected."""
    head = bytearray(tar[:512])
    head[at:at + len(field)] = field
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + tar[512:]


def claims_size(tar, size):
    return claims(tar, 124, b"%011o\0" % size if size >= 0 else b"\xff" * 8 + struct.pack(">i", size))


def begins_with(kind, size=512, **fields):
    return archive((member("data_batch_1.bin", size, type=kind, **fields), bytes(512)), *SIX[1:])


@pytest.mark.parametrize("tar", [
    claims_size(archive(*SIX), 2**33 - 1), claims_size(archive(*SIX), -512), claims_size(archive(*SIX), 0),
    archive(*SIX)[:-30_000], archive(*SIX[:5]), bytes(10240), b"x" * 5000,
    begins_with(tarfile.LNKTYPE, 0, linkname="/etc/passwd"), begins_with(tarfile.SYMTYPE, 0, linkname="/etc/passwd"),
    begins_with(tarfile.CHRTYPE, 0), claims(begins_with(tarfile.GNUTYPE_SPARSE), 483, b"%011o\0" % (2**33 - 1)),
    claims_size(begins_with(tarfile.GNUTYPE_LONGNAME), 2**32), claims_size(begins_with(tarfile.XHDTYPE), 2**32),
], ids=range(13))
def test_an_inconsistent_tar_is_refused_in_time(tmp_path, tar):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar))
    started = time.monotonic()
    with pytest.raises(CorruptFile) as caught:
        load_cifar10(tmp_path, check=False)
    assert time.monotonic() - started < 5 and "\n" not in str(caught.value)


def test_a_bomb_as_an_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "LIMIT", 1_000_000)
    bomb = archive((member("data_batch_1.bin", 8_000_000), bytes(8_000_000)), *SIX[1:])
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(CorruptFile, match="more than the 2000000 bytes expected"):
        load_cifar10(tmp_path, check=False)


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    for load, stems in ((load_mnist, STEMS), (load_cifar10, cifar10.UNPACKED["cifar-10-batches-bin"])):
        for stem in stems:
            with open(tmp_path / stem, "wb") as file:
                file.truncate(2**40)                     # a sparse file: 1 TB that takes no space
        with pytest.raises(CorruptFile, match=f"expected at most .* bytes, got {2**40}"):
            load(tmp_path)
