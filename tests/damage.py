"""Damage a checkpoint, at random or on purpose: a damaged file must be refused or load correctly.

    python tests/damage.py --count 5000                  # prints how many were refused and how many loaded correctly
"""

import argparse
import io
import json
import random
import re
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":                                   # run from anywhere, without an installation
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minicl.checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint  # noqa: E402
from minicl.nn import BatchNorm, Linear, Sequential  # noqa: E402

META = {"step": 3, "seconds": 1.5, "config": {"lr": 0.1}, "log": [{"step": 0, "loss": 2.5}]}


class Optimizer:
    """A stand-in for an optimizer: a count and two states of one shape, which are easily confused."""

    def __init__(self):
        self.state = {"m": np.zeros((3, 4), "float32"), "v": np.zeros((3, 4), "float32"), "steps": np.array(0)}

    def state_dict(self):
        return {name: array.copy() for name, array in self.state.items()}

    def load_state_dict(self, state):
        self.state = {name: np.array(array) for name, array in state.items()}


def parts(seed=None):
    """A new model and optimizer; with a seed, their arrays are random."""
    found = {"model": Sequential(Linear(3, 4, rng=np.random.default_rng(0)), BatchNorm(4)), "optimizer": Optimizer()}
    if seed is not None:
        rng = np.random.default_rng(seed)
        for part in found.values():
            part.load_state_dict({name: np.asarray(9 * abs(rng.normal(size=array.shape))).astype(array.dtype)
                                  for name, array in part.state_dict().items()})
    return found


def state_of(found):
    """{name: (dtype, shape, bytes)}, for comparing bit for bit."""
    return {f"{name}.{key}": (array.dtype.str, array.shape, array.tobytes())
            for name, part in found.items() for key, array in part.state_dict().items()}


# ---------------------------------------------------------------- damage to the bytes of a file: bytes, random -> bytes

def flip_bits(data, random):
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def truncate(data, random):
    return data[:random.randrange(len(data))]


def lose_a_block(data, random):
    start, length = random.randrange(len(data)), random.randrange(1, 600)
    return data[:start] + random.choice((b"", bytes(length))) + data[start + length:]


def move_a_block(data, random):
    start, to, length = random.randrange(len(data)), random.randrange(len(data)), random.randrange(1, 600)
    block = data[start:start + length]
    return data[:to] + block + data[to + len(block):]


def append(data, random):
    return data + random.randbytes(random.randrange(1, 100))


def append_itself(data, random):
    return data + data


# ---------------------------------------------------------------- damage to its members, with correct checksums

def with_members(change):
    """A damage function made from change(members, random), which edits a list of [name, bytes]."""
    def damage(data, random):
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [[name, file.read(name)] for name in file.namelist()]
        kind = change(members, random) or zipfile.ZIP_STORED
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")                  # zipfile warns of names that occur twice
            for name, content in members:
                file.writestr(name, content)
        return out.getvalue()

    damage.__name__ = change.__name__
    return damage


def swap_members(members, random):
    a, b = random.sample(members, 2)
    a[1], b[1] = b[1], a[1]


def rename_a_member(members, random):
    names = ["x.npy", "model.npy", "../x.npy", "meta", ".npy", "model.x.npy", "digest.npy"]
    random.choice(members)[0] = random.choice(names)


def exchange_two_names(members, random):
    a, b = random.sample([m for m in members if m[0].startswith("optimizer.")], 2)
    a[0], b[0] = b[0], a[0]


def duplicate_a_member(members, random):
    name, content = random.choice(members)
    members.insert(random.randrange(len(members)), [name, flip_bits(content, random)])


def drop_a_member(members, random):
    members.remove(random.choice(members))


def add_a_member(members, random):
    file = io.BytesIO()
    np.save(file, np.zeros(random.randrange(5)))
    members.append([random.choice(["model.more.npy", "more.npy", "more"]), file.getvalue()])


def change_a_value(members, random):
    member = random.choice(members)
    data = bytearray(member[1])
    data[random.randrange(min(128, len(data) - 1), len(data))] ^= 1 << random.randrange(8)
    member[1] = bytes(data)


def edit_a_header(members, random):
    member = random.choice(members)
    change = random.choice([
        (rb"'<f4'", b"'<f2'"), (rb"'<f4'", b"'>f4'"), (rb"'<f4'", b"'<i4'"), (rb"'<f4'", b"'<f8'"), (rb"'<f4'", b"'|O' "),
        (rb"'<f4'", b"'<U1'"), (rb"'<i8'", b"'<f8'"), (rb"'\|u1'", b"'|i1'"), (rb"\(3, 4\)", b"(4, 3)"),
        (rb"\(3, 4\)", b"(12,) "), (rb"\(3, 4\)", b"(-3,-4)"), (rb"\(4,\)", b"(9**9**9,)"), (rb"\(4,\)", b"(99999999999,)"),
        (rb"False", b"True "), (rb"\x93NUMPY\x01", b"\x93NUMPY\x02"), (rb"'shape'", b"'shapf'"), (rb"\{", b"[[[[[[")])
    member[1] = re.sub(change[0], lambda match: change[1], member[1], count=1)


def edit_the_meta(members, random):
    member = next(m for m in members if m[0] == "meta.npy")
    old, new = random.choice([(b'"step": 3', b'"step": 4'), (b"1.5", b"NaN"), (b"2.5", b"9.5"), (b"{", b"["),
                              (b'"format": 1', b'"format": 2'), (b'"lr"', b'"lR"'), (b"0.1", b"1e9"), (b"{", b"\xff")])
    member[1] = member[1].replace(old, new, 1)


def deep_meta(members, random):
    file = io.BytesIO()
    np.save(file, np.frombuffer(b"[" * 100_000, np.uint8))
    next(m for m in members if m[0] == "meta.npy")[1] = file.getvalue()


def compress(members, random):
    return zipfile.ZIP_DEFLATED


def zip_bomb(members, random):
    random.choice(members)[1] = bytes(10_000_000)
    return zipfile.ZIP_DEFLATED


def another_checkpoint(data, random):
    """A valid checkpoint of another run, cut off and completed with the end of this one: a torn write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        save_checkpoint(path, parts(seed=random.randrange(2, 1000)), META)
        other = path.read_bytes()
    while (torn := other[:(cut := random.randrange(1, len(data)))] + data[cut:]) == other:
        pass
    return torn


DAMAGE = [flip_bits, truncate, lose_a_block, move_a_block, append, append_itself, another_checkpoint, *map(with_members, (
    swap_members, rename_a_member, exchange_two_names, duplicate_a_member, drop_a_member, add_a_member, change_a_value,
    edit_a_header, edit_the_meta, deep_meta, compress, zip_bomb))]


# ---------------------------------------------------------------- the check

class Trial:
    """A checkpoint in `folder`, to be damaged."""

    def __init__(self, folder):
        self.path = folder / "checkpoint.npz"
        saved = parts(seed=1)
        save_checkpoint(self.path, saved, META)
        self.whole = self.path.read_bytes()
        self.saved = state_of(saved)
        self.untouched = state_of(parts())

    def outcome(self, damage, number):
        """"refused" or "loaded right"; raises AssertionError if the damaged file loads wrongly or changes an object."""
        damaged = damage(self.whole, random.Random(f"{damage.__name__} {number}"))
        self.path.write_bytes(damaged)
        found = parts()
        try:
            arrays, meta = load_checkpoint(self.path)
            restore(arrays, found, self.path)
        except CheckpointError:
            assert state_of(found) == self.untouched, "refused, but something was changed"
            return "refused"
        assert state_of(found) == self.saved and meta == META, "loaded wrongly"
        return "loaded right"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="damaged files, shared out over all kinds of damage")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        totals = Counter()
        for damage in DAMAGE:
            outcomes = Counter(trial.outcome(damage, number) for number in range(-(-count // len(DAMAGE))))
            totals += outcomes
            print(f"{damage.__name__:22}" + "".join(f"{kind} {outcomes[kind]:6}   " for kind in ("refused", "loaded right")))
    print(f"{sum(totals.values())} damaged files: " + json.dumps(totals))


if __name__ == "__main__":
    main()
