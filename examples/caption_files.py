"""Pictures with captions, listed in a file.

    image,caption                                       CSV or TSV with a header; | and ; also separate
    beach.jpg,A dog runs along the beach.

    beach.jpg#0<TAB>A dog runs along the beach.         Flickr8k's and Flickr30k's token files, without a header

    {"images": [{"id": 1, "file_name": "beach.jpg"}],   COCO's captions_train2017.json
     "annotations": [{"image_id": 1, "caption": "A dog runs along the beach."}]}

A picture may have several captions, one a line.
"""

import csv
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np

from minicl.data import DataError
from minicl.data.contents import contents_of, warn_of_copies, warn_of_few
from minicl.data.decoded import decode_once
from minicl.data.pictures import SUFFIXES, decode, pillow, shown
from minicl.nn.words import words_of
from minicl.typing import HostArray

FILE = ("file", "image", "filename", "file_name", "image_name", "filepath", "file_path", "path", "img", "picture")
CAPTION = ("caption", "text", "title", "comment", "sentence", "description")
SPLIT = {"split", "subset", "set", "fold", "partition"}      # columns that say which pictures are to test on
LONGEST = 1000                                               # characters of a caption: one array holds them all


@dataclass(frozen=True)
class CaptionedPictures:
    """train_images (N, size, size, 3) uint8; picture i has train_captions[train_starts[i]:train_starts[i + 1]], text (C,).
    The same for the test pictures."""

    name: str = field(compare=False)
    train_images: HostArray
    train_captions: HostArray
    train_starts: HostArray
    test_images: HostArray
    test_captions: HostArray
    test_starts: HostArray


def load_captioned(file: str, folder: str | None, size: int, *, test_share: float = 0.1, seed: int = 0,
                   limit: int | None = None, log: Callable[[str], None] = print) -> CaptionedPictures:
    """The pictures listed in a caption file, from a folder (default: the file's), split by `seed` into train and test, at
    most `limit` each.

    Decoded once, as ImageData.from_folder does. Missing and broken pictures are named and skipped; a tenth or more raise
    DataError, as does a file of another form.
    """
    captions = read_captions(file, log)
    root = Path(os.path.abspath(folder or Path(file).parent))
    if not root.is_dir():
        raise DataError(f"--data-dir {root} is not a folder")
    pillow().init()                                          # before threads use it
    names = [_on_disk(root, name) for name, _ in captions]
    if without := _without_caption(root, names):
        log(f"left out: {len(without)} pictures without a caption, such as {shown(without[0])}")
    order = np.random.default_rng(seed).permutation(len(names))
    n_train = len(names) - max(1, round(test_share * len(names)))
    if n_train < 1:
        raise DataError(f"{file} has captions of {len(names)} picture; at least 2 are needed, to train on and to test on")
    order = np.concatenate([order[:n_train][:limit], order[n_train:][:limit]])
    n_train = min(n_train, limit or n_train)
    paths = [root / names[i] for i in order]
    names = [str(path) for path in paths]
    if not any(map(os.path.exists, names)):
        raise DataError(f"{root} has none of the pictures that {file} lists; give their folder with --data-dir")
    contents = contents_of(root, names)
    pixels, good = decode_once(contents, names, lambda k: decode(paths[k], size, 3), (size, size, 3), log=log)
    n = int(good[:n_train].sum())
    if not 0 < n < len(pixels):
        raise DataError(f"{file}: all pictures of one split are broken: {n_train} to train on, the rest to test")
    warn_of_copies(contents, good, n_train, log)
    warn_of_few(len(pixels) - n, log)
    texts = [captions[i][1] for i in order[good]]
    return CaptionedPictures(Path(file).name, pixels[:n], *_flat(texts[:n]), pixels[n:], *_flat(texts[n:]))


def vocabulary(captions: HostArray, *, least: int = 2, most: int = 10_000) -> list[str]:
    """The words that occur at least `least` times in captions, at most `most` of them, the most frequent first."""
    counts = Counter(word for caption in captions.tolist() for word in words_of(caption))
    words = [word for word, count in counts.most_common(most) if count >= least]
    if not words:
        raise DataError(f"no word occurs {least} times in the training captions; give more captions, or --min-count 1")
    return words


def _on_disk(root, name):
    r"""name, or another spelling of an existing file: ö as one character, or as o and two dots; / is \ on Windows."""
    if name.isascii() and "\\" not in name or os.path.exists(root / name):
        return name
    others = (normalize(form, other) for other in (name, name.replace("\\", "/")) for form in ("NFC", "NFD"))
    return next((other for other in others if os.path.exists(root / other)), name)


def _without_caption(root, names):
    """Paths of the pictures that are in the folders of `names` but not among them, sorted."""
    listed = {os.path.normpath(root / name) for name in names}
    found = {entry.path for folder in {os.path.dirname(path) for path in listed} if os.path.isdir(folder)
             if os.access(folder, os.R_OK) for entry in os.scandir(folder)
             if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith(".")}
    return sorted(found - listed)


def _flat(texts):
    """All captions of a list of lists, (C,), and where each list starts, (N + 1,)."""
    return np.array([text for some in texts for text in some]), np.cumsum([0, *map(len, texts)])


# ---------------------------------------------------------------- the file

def read_captions(file: str, log: Callable[[str], None] = print) -> list[tuple[str, list[str]]]:
    """(picture's file, its captions) in the order of the file, without captions that have no word. Raises DataError."""
    try:
        text = Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; expected a file of captions") from error
    pairs, unread = _of_json(file, text) if text.lstrip().startswith("{") else _of_table(file, text)
    if splits := SPLIT.intersection(unread):
        log(f"{file}: its {min(splits)!r} is not read; the pictures to test on are drawn at random, the same in every run")
    if others := [title for title in unread if title in FILE + CAPTION]:
        log(f"{file}: not read: {', '.join(map(repr, others))}, which may have captions or files too; give one line for "
            "each caption")
    found: dict[str, list[str]] = {}
    long = 0
    for name, caption in pairs:
        if name and words_of(caption):
            caption = " ".join(caption.split())
            long += len(caption) > LONGEST
            found.setdefault(posixpath.normpath(name), []).append(caption[:LONGEST])     # ./a.png is a.png
    left_out = len(pairs) - sum(map(len, found.values()))
    if not found:
        raise DataError(f"{file} has no captions; expected a picture's file and a caption on each line")
    if left_out:
        log(f"skipped: {left_out} of the {len(pairs)} lines of {file}, which have no file, no caption or other "
            "cells than the header")
    if long:
        log(f"cut: {long} captions of {file} after {LONGEST} characters")
    return list(found.items())


def _of_json(file, text):
    try:
        content = json.loads(text)
        names = {image["id"]: _text(image["file_name"]) for image in content["images"]}
        if len(names) < len({(image["id"], _text(image["file_name"])) for image in content["images"]}):
            raise ValueError("an id of several files")
        pairs = [(names.get(line["image_id"], ""), _text(line["caption"])) for line in content["annotations"]]
        keys = {key.lower() for entry in (*content["images"], *content["annotations"]) for key in entry}
        return pairs, sorted(keys - {"file_name", "caption"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is not COCO's captions in JSON ({type(error).__name__}: {error}); expected "
                        '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}') from error


def _text(value):
    """A text of a JSON file; "" for null and other values."""
    return value if isinstance(value, str) else ""


def _of_table(file, text):
    marked, _, rest = text.partition("\n")
    text = rest if marked.lower().startswith("sep=") else text           # Excel's line; the header shows the separator too
    first = text.partition("\n")[0]
    separator = next((mark for mark in "\t|;" if mark in first), ",")
    rows = [row for row in _rows(file, text, separator, (marked != first) + 1) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    name, caption = (next((header.index(title) for title in titles if title in header), None) for titles in (FILE, CAPTION))
    if name is None and caption is None and len(header) == 2 and "#" in header[0]:       # Flickr8k: beach.jpg#0
        return [(row[0].rpartition("#")[0], row[1]) if len(row) == 2 else ("", "") for row in rows], []
    if name is None or caption is None:
        raise DataError(f"{file}: expected a header with a column of files ({', '.join(FILE[:4])}) and one of captions "
                        f"({', '.join(CAPTION[:4])}), got {', '.join(map(repr, rows[0][:6])) if rows else 'nothing'}")
    if caption == len(header) - 1:                           # commas within an unquoted caption
        rows = [[*row[:caption], separator.join(row[caption:])] for row in rows]
    after = caption + 1                                      # the next column, which commas in a caption may have shifted

    def is_whole(row):
        if len(row) != len(header) or after == len(row):
            return len(row) == len(header)
        return not row[after].startswith(" ") or rows[0][after].startswith(" ")              # not of "a dog, red"

    return [(row[name].strip(), row[caption]) if is_whole(row) else ("", "") for row in rows[1:]], [
        title for k, title in enumerate(header) if k not in (name, caption)]


def _rows(file, text, separator, number):
    """Rows of a table whose first line has this number. Raises DataError, also for an unclosed quotation mark."""
    quoted = csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoted, strict=True)
    end = 0
    is_open = False                                          # whether a row has a quotation mark that it does not close
    try:
        for row in reader:
            closes = any(cell.rstrip().endswith('"') for cell in row) and "".join(row).count('"') % 2 == 1
            if is_open and (len(row) == 1 or closes and quoted == csv.QUOTE_NONE):
                raise csv.Error("a caption in quotation marks goes on in another line")
            is_open = any(cell.lstrip().startswith('"') for cell in row) and "".join(row).count('"') % 2 == 1
            swallowed = [part for cell in row for line in cell.split("\n")[1:] for part in line.split(separator)]
            if any(os.path.splitext(part.strip())[1].lower() in SUFFIXES for part in swallowed):
                raise csv.Error("a caption has lines that look like rows")
            end = reader.line_num
            yield row
    except csv.Error as error:
        raise DataError(f"{file}: not a table (line {number + end}: {error}); a quotation mark that is never closed, or a "
                        'single one in a quoted cell, where "" stands for one?') from error
