"""Checkpoints: named arrays and a little JSON in one npz file, written whole or not at all, read without pickle."""

import json
import zipfile
import zlib

import numpy as np

from .files import write_atomically


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or the file to read is none or not one of this run."""


def save_checkpoint(path, parts, meta):
    """Write {part name: object with state_dict()} and the JSON-able dict meta to `path`.

    Raises CheckpointError if the disk is full or the folder not writable; an earlier checkpoint is then intact.
    """
    arrays = {f"{part}.{name}": np.asarray(value) for part, thing in parts.items()
              for name, value in thing.state_dict().items()}
    bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad:
        raise FloatingPointError(f"{bad[0]} is not finite (NaN or infinity): not saved, {path} is as it was; lower the "
                                 "learning rate, raise the temperature, or look for NaN in the input")
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        kept = "the previous checkpoint is intact" if path.exists() else "no checkpoint was written"
        raise CheckpointError(f"cannot save the checkpoint {path}: {error.strerror or error}; {kept}; free some space "
                              "or choose another --out") from error


def load_checkpoint(path):
    """(arrays {name: array}, meta) of a checkpoint. Raises CheckpointError if it is missing, damaged or none."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:      # np.load leaves a bad file open
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if not isinstance(meta, dict):
            raise ValueError("its meta is no dict")
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; start a run without --resume first") from error
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error,
            RuntimeError) as error:
        raise CheckpointError(f"{path} is not a readable minicl checkpoint ({error}); it may be damaged or be "
                              "another kind of file") from error
    return arrays, meta


def restore(arrays, parts, path):
    """Load {part name: object with load_state_dict()} from a checkpoint's arrays. Raises CheckpointError on a mismatch."""
    for part, thing in parts.items():
        try:
            thing.load_state_dict({name[len(part) + 1:]: array for name, array in arrays.items()
                                   if name.startswith(part + ".")})
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path} does not fit this run's {part}: {error}") from error
