"""Trained models, loaded without the script that trained them.

    trained = minicl.load("runs/simclr_mnist")
    h = trained.encode(images)                               # (N, features)

A checkpoint has the specs of its models (nn/spec.py) beside their weights, from which load() rebuilds them.
"""

import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .backend import get_backend, is_array, to_device
from .checkpoint import CheckpointError, digest, load_checkpoint
from .checks import require_ordered
from .data import DataError, open_image
from .evaluate import encode, to_float
from .methods import CPC, LastContext
from .nn import Module
from .nn.spec import build, changed_texts, class_reads, class_texts, settings_of
from .nn.words import words_of
from .origin import code
from .typing import Array, ArrayModule

TOKENIZER = "tokenizer"                # the name under which a script gives its tokenizer to Run.steps


def load(folder: str | os.PathLike, backend: str | ArrayModule = "numpy", *, model: str | None = None) -> "Trained":
    """The model trained by the run in `folder`, from its last checkpoint, on a backend: a Trained.

    folder may also be a .safetensors file that examples/export.py has written.

    model  a name, if the run trained several models: "BYOL" for collapse.py

    Architecture and weights come only from checkpoint.npz. The run may have used another backend, and may still be running.
    Nothing is unpickled; import your own Module classes first. Of what the training did to its inputs outside the model,
    such as standardising them, nothing is known: Trained.encode divides uint8 images by 255. Let the model do the rest.

    Warns if minicl or the text of a class of yours has changed since the training.

    Raises CheckpointError, in one line, if there is no checkpoint, if it is damaged, or if its model cannot be rebuilt;
    and BackendError.
    """
    xp = get_backend(backend) if isinstance(backend, str) else backend
    folder = Path(folder)
    is_exported = folder.suffix == ".safetensors" and folder.is_file()
    path = folder if is_exported else folder / "checkpoint.npz"
    if not path.is_file():
        what = "is not the folder of a run" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"load: {folder} {what}; give a folder with the checkpoint.npz that a run writes after its "
                              "first epoch, or a .safetensors file of examples/export.py")
    arrays, meta = _load_safetensors(path) if is_exported else load_checkpoint(path)
    specs = meta.get("models") if isinstance(meta, dict) else None
    if not isinstance(specs, dict) or not specs:
        raise CheckpointError(f"load: {path} does not describe how to build its model, as checkpoints of this version do; "
                              "build the model and load the arrays of minicl.checkpoint.load_checkpoint(path) into it")
    names = {name.removeprefix("model "): name for name in specs if name != TOKENIZER}
    if model is None and len(names) == 1:
        model = next(iter(names))
    if model not in names:
        raise CheckpointError(f"load: {folder} has the models {', '.join(map(repr, names))}; choose one with model= "
                              f"(--model of the examples), got {model!r}")
    texts = meta.get("code")
    if isinstance(texts, dict) and texts.get("minicl") != code()["minicl"]:
        _warn(path, "minicl changed")
    tokenizer = _rebuilt(TOKENIZER, meta, arrays, path) if TOKENIZER in specs else None
    return Trained(folder, _rebuilt(names[model], meta, arrays, path).to(xp), meta, tokenizer, xp)


def _load_safetensors(path):
    """load_checkpoint for a file that examples/export.py has written."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(f"load: safetensors is not installed ({error}): pip install 'minicl[safetensors]'") from error
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        text = about.get("minicl", "{}")
        if "minicl" in about and about.get("digest") != digest({**arrays, "": np.frombuffer(text.encode(), np.uint8)}).hex():
            raise ValueError("its content is not what was written: damaged, or changed by another program")
        return {f"encoder.{name}": array for name, array in arrays.items()}, json.loads(text)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"load: {path} is not a readable safetensors file ({' '.join(str(error).split())})") from error


def _warn(path, what):
    """Warn at the line that called load(), each time: Python's filter would drop the same text about another run."""
    frame = sys._getframe()
    while frame.f_globals is globals() and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(f"load: {what} since {path} was saved; its weights are used by the new code", UserWarning,
                           frame.f_code.co_filename, frame.f_lineno)


def _rebuilt(name, meta, arrays, path):
    """The model of this name, with its weights, in evaluation mode."""
    specs = meta["models"]
    try:
        if not isinstance(specs[name], dict):
            raise ValueError(f"expected a dict of its class and arguments, got {specs[name]!r:.40}")
        if "unknown" in specs[name]:
            raise ValueError(specs[name]["unknown"])
        module = build(specs[name])
        state = {key[len(name) + 1:]: array for key, array in arrays.items() if key.startswith(name + ".")}
        if len(kinds := {array.dtype.name for array in state.values() if array.dtype.kind == "f"}) == 1:
            module.astype(*kinds)
        module.load_state_dict(state)
        texts = specs[name].get("texts")
        if edited := changed_texts(texts, _named_as_in(texts, class_texts(module), module)):
            _warn(path, f"{', '.join(edited)} changed")
        saved = {key: text for part in (meta.get("settings"), specs[name].get("reads")) if isinstance(part, dict)
                 for key, text in part.items()}              # a constructor or forward may read what the script had set
        now = _named_as_in(texts, {**{f"{name}.{key}": text for key, text in settings_of(module).items()},
                                   **class_reads(module)}, module)
        changed = [f"{key} was {text}, now {now[key]}" for key, text in saved.items() if now.get(key, text) != text
                   and "{'class': " not in text]             # a part has settings of its own
        if changed:
            _warn(path, f"a setting changed ({'; '.join(changed[:3])}{'; ...' * (len(changed) > 3)})")
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"load: {path}: {name} cannot be built again: " + " ".join(str(error).split())) from error
    return module.eval()


def _named_as_in(texts, found, module):
    """{name: text} of a Module's classes, named as in a checkpoint's texts, which their file may have saved as a script."""
    saved = tuple(texts) if isinstance(texts, dict) else ()
    for own in {f"{type(part).__module__}." for part in module.modules()} if "__main__." in "".join(saved) else ():
        if not any(name.startswith(own) for name in saved) and not own.startswith("minicl."):
            found = {re.sub("^" + re.escape(own), "__main__.", name): re.sub("^" + re.escape(own), "__main__.", text)
                     for name, text in found.items()}
    return found


class Trained:
    """A trained model with its preprocessing, returned by minicl.load.

    model        the trained Module, e.g. a SimCLR or CLIP, in evaluation mode, on xp
    encoder      its part for later use, which returns h (B, features); for CPC the context after the last window
    tokenizer    list of captions -> ids (N, T), for a model that reads text; else None
    image_shape  (H, W, C), or None if it does not read images
    name         of the script; config: its options; step, total: the step reached and the number of steps
    data         the training data, {field: its text, or dtype, shape and hash}, such as {"name": "MNIST", ...}
    """

    image_shape: tuple[int, int, int] | None

    def __init__(self, folder: Path, model: Module, meta: dict[str, Any], tokenizer: Module | None, xp: ArrayModule):
        self.folder = folder
        self.model = model
        self.tokenizer = tokenizer
        self.xp = xp
        self.encoder = LastContext(model).eval() if isinstance(model, CPC) else getattr(model, "encoder", model)
        shapes = [module.image_shape for module in self.encoder.modules() if "image_shape" in vars(module)]
        self.image_shape = shapes[0] if shapes else None
        self.config, self.data = (value if isinstance(value := meta.get(key), dict) else {} for key in ("config", "data"))
        self.name = meta.get("name")
        self.step, self.total = meta.get("step"), meta.get("total")

    def __repr__(self):
        data = self.data.get("name", "data without a name")
        return (f"Trained({str(self.folder)!r}: {type(self.model).__name__} of {self.image_shape or 'sequences'}, trained "
                f"on {data} for {self.step} of {self.total} steps)")

    def encode(self, items: Any, *, batch: int = 500) -> Array:
        """Features (N, d) of N items, an array of xp.

        items  images (N, H, W, C), uint8, or floating-point in [0, 1]; grey images also (N, H, W). Or a path or a list of
               paths of picture files, which are opened a batch at a time, cropped and resized by data.open_image. For CPC
               sequences (N, T, C), uint8 or floating-point
        batch  items at a time; the result does not depend on it, up to rounding

        In evaluation mode, not recorded. Raises DataError for arrays of another shape, dtype or range, and for a file that
        is not a picture.
        """
        if is_array(items):
            return encode(self.encoder, self._checked(items), self.xp, batch, prepare=self._floats)
        require_ordered("encode", items=items)
        items = [items] if isinstance(items, (str, os.PathLike)) else list(items)
        if not all(isinstance(item, (str, os.PathLike)) for item in items):
            raise DataError("encode: expected one array, or a list of paths; stack a list of images by np.stack")
        if not self.image_shape or self.image_shape[0] != self.image_shape[1]:
            raise DataError("encode: files are opened as square pictures, but this model reads "
                            f"{self.image_shape or 'sequences'}")
        return encode(self.encoder, items, self.xp, batch, prepare=self._opened)  # type: ignore[arg-type]

    def encode_text(self, captions: str | Sequence[str], *, batch: int = 500) -> Array:
        """Embeddings (N, d) of N captions, to compare by cosine with those of images.

        Warns of words that the model has not learned, and of captions that are cut because they have more words than it
        reads. Raises DataError if a caption has no other words, if the tokenizer refuses it, and unless the run trained a
        CLIP.
        """
        if self.tokenizer is None:
            raise DataError(f"encode_text: {self.folder} has a {type(self.model).__name__}, which does not read text; "
                            "give the folder of a CLIP")
        require_ordered("encode_text", captions=captions)
        captions = [captions] if isinstance(captions, str) else captions
        try:
            ids = self.tokenizer(captions)
            self._warn_of_words(captions)
        except ValueError as error:
            raise DataError(f"encode_text: {error}") from error
        return encode(self.model.text, ids, self.xp, batch, prepare=to_device)

    def _warn_of_words(self, captions):
        """Warn of words that are unknown or cut off. Raises ValueError for a caption without known words."""
        known = getattr(self.tokenizer, "vocabulary", None)
        if not known or not getattr(self.tokenizer, "unknown", False):
            return
        whole = [words_of(caption) for caption in captions]
        split = [words[:self.tokenizer.length] for words in whole]
        if long := [caption for caption, words in zip(captions, whole) if len(words) > self.tokenizer.length]:
            warnings.warn(f"encode_text: only the first {self.tokenizer.length} words are read of {len(long)} captions, "
                          f"such as {long[0]!r:.200}", stacklevel=3)
        if strange := [caption for caption, words in zip(captions, split) if not known.keys() & words]:
            raise ValueError(f"no word of {strange[0]!r} is among the {len(known)} words of the run's captions")
        if words := sorted({word for words in split for word in words} - known.keys()):
            warnings.warn(f"encode_text: {', '.join(words[:10])}: not among the {len(known)} words of the run's captions; "
                          "all unknown words are read as the same one", stacklevel=3)

    def _checked(self, items):
        """items, checked; raises DataError."""
        if items.dtype.name not in ("uint8", "float16", "float32", "float64"):
            raise DataError(f"encode: expected uint8 or floating-point arrays, got {items.dtype}")
        if not self.image_shape:
            return items
        if items.ndim == 3 and self.image_shape == (*items.shape[1:], 1):
            items = items[..., None]
        if items.ndim != 4 or items.shape[1:] != self.image_shape:
            hint = "one image is images[None]" if items.shape == self.image_shape else "resize them, or give paths of files"
            raise DataError(f"encode: expected images (N, {', '.join(map(str, self.image_shape))}), got {items.shape}; "
                            + hint)
        if items.dtype.kind == "f" and items.size and not (0 <= items.min() and items.max() <= 1):
            raise DataError(f"encode: expected floating-point images in [0, 1], as the model was trained on, got "
                            f"{float(items.min()):.3g} to {float(items.max()):.3g}; give uint8, or divide by 255")
        return items

    def _floats(self, items, xp):
        items = to_float(items, xp) if items.dtype == "uint8" else to_device(items, xp)
        return items.astype(self.model.parameters()[0].dtype)

    def _opened(self, paths, xp):
        size, _, channels = self.image_shape
        return self._floats(np.stack([open_image(path, size, channels=channels) for path in paths]), xp)
