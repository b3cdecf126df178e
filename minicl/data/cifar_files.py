"""The files of CIFAR-10: images and labels from the bytes of a binary batch or of a pickled one."""

import io
import pickle
import pickletools

import numpy as np

from .download import AGAIN, CorruptFile, one_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
OPCODES = set("PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
              "APPEND APPENDS SETITEM SETITEMS BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
              "BYTEARRAY8 "
              "BINUNICODE SHORT_BINUNICODE BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE "
              "BUILD".split())                           # of a pickled batch
MOST_OPCODES = 1_000_000                                 # a batch has about 30 000


def parse_binary(content, source):
    """images (N, 32, 32, 3) uint8 and labels (N,) int64 of a binary batch's bytes. Raises CorruptFile."""
    if not content or len(content) % (1 + PIXELS):
        raise CorruptFile(f"{source}: expected a whole number of {1 + PIXELS}-byte records, got {len(content)} bytes; "
                          f"{AGAIN}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return to_images(records[:, 1:]), records[:, 0].astype(np.int64)


def parse_pickle(content, source):
    """images (N, 32, 32, 3) uint8 and labels (N,) int64 of a pickled batch's bytes. Raises CorruptFile.

    A pickle can call any function and request any amount of memory. So its opcodes are checked first, and only numpy's
    names for an array are accepted, each replaced by a class that runs nothing.
    """
    try:
        _check_opcodes(content)
        batch = _Unpickler(content).load()
        labels = batch[b"labels"]
        _, shape, dtype, by_columns, pixels = batch[b"data"].state
        whole = type(labels) is list and all(type(label) is int for label in labels)
        if dtype.made_of[0] not in ("u1", b"u1") or not whole or shape != (len(labels), PIXELS):
            raise ValueError(f"data {shape} of dtype {dtype.made_of[0]!r} and labels of another kind or number")
        if not 0 <= min(labels) <= max(labels) <= 255:
            raise ValueError(f"labels {min(labels)} to {max(labels)}")
        rows = np.frombuffer(pixels, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")
    except Exception as error:                           # a damaged pickle can raise anything
        what = f"{type(error).__name__}: {one_line(error)}"
        raise CorruptFile(f"{source}: not a pickled batch of CIFAR-10 ({what}); {AGAIN}") from error
    return to_images(rows), np.array(labels, dtype=np.int64)


def _check_opcodes(content):
    """Raise ValueError for opcodes that a batch does not have, too many of them, or lengths beyond the file's.

    Nine bytes can request 4 GB: the length of a string, or a memo index.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):      # it compares lengths with the bytes
        if opcode.name not in OPCODES:
            raise ValueError(f"it has the opcode {opcode.name}, which no CIFAR-10 file has")
        if count > MOST_OPCODES or opcode.name in ("BINPUT", "LONG_BINPUT") and argument > count:
            raise ValueError(f"its opcode {count}, {opcode.name} {argument}, is beyond what a CIFAR-10 file has")


class _Stated:
    """Replaces numpy's array, dtype and array builder in a pickle, and stores their arguments."""

    def __init__(self, *made_of):
        self.made_of = made_of

    def __setstate__(self, state):
        self.state = state


def _from_buffer(pixels, dtype, shape, order):
    """The function that protocol 5 calls for an array."""
    array = _Stated()
    array.state = 1, shape, dtype, order == "F", pixels
    return array


class _Unpickler(pickle.Unpickler):
    NAMES = {("numpy", "ndarray"): _Stated, ("numpy", "dtype"): _Stated} | {
        (f"numpy.{core}.{module}", name): made for core in ("core", "_core") for module, name, made in (
            ("multiarray", "_reconstruct", _Stated), ("numeric", "_frombuffer", _from_buffer))}

    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="bytes")              # Python 2 wrote its str as bytes
        self.left = len(content)                         # limit of text to encode: one text may be used many times

    def encode(self, text, encoding):
        """The bytes of a text: protocol 2 has no bytes, so Python 3 stores _codecs.encode(text, 'latin1')."""
        self.left -= len(text) if type(text) is str and encoding == "latin1" else self.left + 1
        if self.left < 0:
            raise pickle.UnpicklingError("it makes bytes from text, which no CIFAR-10 file does: not loaded")
        return text.encode("latin1")

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file does: not loaded")
        return self.NAMES[module, name]


def to_images(rows):
    """(N, 3072), all reds, then greens, then blues -> (N, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
