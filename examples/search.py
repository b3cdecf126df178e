"""Search a folder for the pictures nearest to yours, by the encoder of a run.

    python examples/search.py runs/simclr_images photos/beach.jpg            # among the run's training pictures
    python examples/search.py runs/simclr_images a.jpg b.png --in holidays   # in another folder
    python examples/search.py runs/clip_images --words "two dogs on a beach" # with a run of a CLIP, by words

Every picture of the folder is encoded once and stored in an index beside the run; later searches encode only new or changed
pictures. The search is exact: it computes the cosine of the query with every picture. The results are printed, and drawn on
a page that opens in any browser without a network.
"""

import argparse
import base64
import hashlib
import html
import io
import math
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import minicl
from minicl.backend import array_module, get_backend, threads, to_device, to_host
from minicl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from minicl.contrastive import l2_normalize
from minicl.data import DataError, open_image
from minicl.data.contents import stamp
from minicl.data.decoded import skipped
from minicl.data.picture_folder import find_pictures
from minicl.data.pictures import pillow
from minicl.evaluate import state_hash
from minicl.files import write_atomically
from minicl.nn.words import words_of
from minicl.options import DefaultsHelp, at_least, folder
from minicl.run import RunError, command

BLOCK = 512                                                  # pictures that are decoded and encoded at a time
PORTION = 10_000                                             # pictures between two writes of the index, and a quarter
THUMB = 192                                                  # pixels a side on the page


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], formatter_class=DefaultsHelp)
    parser.add_argument("run", type=folder, help="folder of the run whose encoder is used")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="pictures to search for")
    parser.add_argument("--in", dest="folder", type=folder, help="folder to search; default: what the run trained on")
    parser.add_argument("--words", action="append", default=[], help="caption to search by, in quotes; needs a run of a "
                        "CLIP; repeat it for more captions")
    parser.add_argument("--k", type=at_least(1, 10_000), default=12, help="results for each query")
    parser.add_argument("--model", help="name of the model, if the run trained several")
    parser.add_argument("--index", type=folder, help="file of the index; default: in the run's folder, or beside the "
                        ".safetensors file")
    parser.add_argument("--out", type=folder, help="page of results; default: search.html in the same folder")
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"), help="numpy: CPU; cupy: GPU")
    parser.add_argument("--threads", type=at_least(1, 1024), help="CPU threads; default: all available cores")
    args = parser.parse_intermixed_args()                    # pictures may follow --words
    if not args.pictures and not args.words:
        parser.error("nothing to search for: give pictures, or --words with a run of a CLIP")
    if args.words and (missing := [path for path in args.pictures if not os.path.exists(path)]):
        parser.error(f"there is no picture {missing[0]}; write a caption of several words in quotes, --words \"two dogs\", "
                     "and repeat --words for more captions")
    if args.out and not args.out.endswith(".html"):
        parser.error(f"--out: expected the name of a page, ending in .html, got {args.out}")

    trained = minicl.load(args.run, get_backend(args.backend), model=args.model)
    searched = args.folder or trained.config.get("data_dir")
    if not searched or not os.path.isdir(searched):
        raise RunError((f"{searched}: there is no such folder" if searched else
                        f"{args.run} was not trained on a folder of pictures") + "; name the folder to search with --in")
    root = Path(searched)
    home = Path(args.run) if os.path.isdir(args.run) else Path(args.run).parent

    length = getattr(trained.tokenizer, "length", math.inf)
    if long := [words for words in args.words if len(words_of(words)) > length]:
        raise RunError(f"--words {printable(long[0])!r}: this CLIP reads {length} words, and the rest would be cut off; "
                       "give fewer words, or train with a larger --length")

    with threads(args.threads):
        queries = [trained.encode(args.pictures)] if args.pictures else []           # first: they may be mistaken
        with warnings.catch_warnings(record=True) as noted:                          # of unknown words
            warnings.simplefilter("always")
            queries += [trained.encode_text(args.words)] if args.words else []
        for note in noted:
            print(f"warning: {printable(note.message)}")
        index = Path(args.index) if args.index else home / index_name(args.run, root, args.model)
        files, features = read_index(index, trained, root)
        own = themselves(files, root, args.pictures) + [set()] * len(args.words)
        k = min(args.k + max(map(len, own)), len(files))
        scores, ids = nearest(features, trained.xp.concatenate(queries), k)

    results = []
    for query, mine, s, near in zip(args.pictures + args.words, own, scores, ids):
        found = [(float(a), files[i]) for a, i in zip(s, near) if int(i) not in mine][:args.k]
        results.append((query, found))
        print(f"\n{printable(query)}")
        for rank, (score, name) in enumerate(found, start=1):
            print(f"  {rank:3}  {score:6.3f}  {printable(name)}")
    page = Path(args.out) if args.out else home / "search.html"
    title = f"{len(files)} pictures of {printable(root)}, by {printable(args.run)}"
    text = draw(title, results, root, len(args.pictures))
    write_atomically(page, lambda file: file.write(text.encode()))
    print(f"\ndrawn in {printable(page)}")


# ---------------------------------------------------------------- search

def nearest(bank, queries, k, chunk=None):
    """(cosines (M, k), ids (M, k)) of the k rows of bank (N, d) most similar to each query (M, d), on the host, best first,
    equal ones in order. Computed in float64, since an encoder's features may lie in a narrow cone, and in chunks of rows
    that fit into the cache with their cosines."""
    xp = array_module(bank)
    M = len(queries)
    chunk = chunk or max(1, 2**19 // max(M, bank.shape[1]))
    u = l2_normalize.forward(queries.astype("float64"))[0]
    scores, ids = xp.full((M, 0), 0.0), xp.zeros((M, 0), dtype="int64")
    for lo in range(0, len(bank), chunk):
        rows = bank[lo:lo + chunk].astype("float64")
        norms = xp.sqrt((rows * rows).sum(axis=1))
        s = u @ rows.T / xp.where(norms > 0, norms, 1)                                               # (M, chunk)
        scores = xp.concatenate([scores, s], axis=1)
        ids = xp.concatenate([ids, xp.broadcast_to(xp.arange(lo, lo + s.shape[1]), s.shape)], axis=1)
        best = xp.argsort(-scores, axis=1, kind="stable")[:, :k]                                     # ids rise: ties too
        scores, ids = xp.take_along_axis(scores, best, axis=1), xp.take_along_axis(ids, best, axis=1)
    return to_host(scores), to_host(ids)


def themselves(files, root, pictures):
    """[{ids}, ...]: the files that are the picture itself, also through links."""
    def identity(path):
        try:
            status = os.stat(path)
            return status.st_dev, status.st_ino
        except OSError:                                      # removed meanwhile
            return path

    places = [identity(root / name) for name in files] if pictures else []
    return [{k for k, place in enumerate(places) if place == mine} for mine in map(identity, pictures)]


# ---------------------------------------------------------------- the index

def index_name(run, root, model):
    """The index's name for a folder and model, or for an exported file; a folder may have several of these."""
    key = "\n".join(["" if os.path.isdir(run) else os.path.basename(run), os.path.realpath(root), model or ""])
    return f"index-{hashlib.sha256(os.fsencode(key)).hexdigest()[:12]}.npz"


class Index:
    """Features (N, d) for a checkpoint."""

    def __init__(self, features):
        self.features = features

    def state_dict(self):
        return {"features": self.features}


def read_index(path, trained, root):
    """(files below root, their features (N, d) on trained.xp): from the index at `path`, for pictures that did not change
    since this encoder read them; others are encoded now, and the index is written again."""
    key = state_hash(trained.encoder)
    found = find_pictures(root, print)
    if not found:
        raise DataError(f"{root} holds no pictures; name the folder to search with --in")
    now = {name: stamp(os.path.join(root, name)) for name, _ in found}
    known = {}
    old = None
    try:
        arrays, meta = load_checkpoint(path)
        if "encoder" not in meta:
            raise CheckpointError(f"{path} is a checkpoint")
        if (meta["encoder"], meta["root"]) == (key, os.path.realpath(root)):
            old = arrays["index.features"]
            known = {name: (k, then) for k, (name, then) in enumerate(meta["files"])}
    except CheckpointError as error:
        if os.path.lexists(path):
            raise RunError(f"{path} is not an index of this script; remove it, or name another file with --index "
                           f"({error})") from error
    features = {name: old[known[name][0]] for name, at in now.items() if name in known and known[name][1] == at}
    new = [name for name in now if name not in features]
    is_stale = len(features) < len(known)
    while new or is_stale:
        portion = max(PORTION, len(features) // 4)
        features |= encode_files(trained, root, new[:portion], len(now)) if new else {}
        new = new[portion:]
        is_stale = False
        files = [name for name in now if name in features]
        if files:
            meta = {"encoder": key, "root": os.path.realpath(root), "files": [[name, now[name]] for name in files]}
            keep(path, np.stack([features[name] for name in files]), meta)
    if not features:
        raise DataError(f"{root}: none of its {len(found)} pictures could be read")
    files = [name for name in now if name in features]
    return files, to_device(np.stack([features[name] for name in files]), trained.xp)


def keep(path, features, meta):
    """Write the index if possible; a search that was interrupted continues from it."""
    try:
        save_checkpoint(path, {"index": Index(features)}, meta)
    except (CheckpointError, UnicodeEncodeError) as error:
        print(f"the index is not kept: {error}")


def encode_files(trained, root, names, total):
    """{name: feature (d,)} of the readable pictures; others are reported, of the folder's total."""
    size, _, channels = trained.image_shape
    features = {}
    broken = []

    def read(name):
        try:
            return open_image(root / name, size, channels=channels)
        except DataError as error:
            return str(error)

    pillow().init()                                          # before threads use it
    with (ThreadPoolExecutor() as pool,
          tqdm(total=len(names), desc="encoding", unit="picture", leave=False, disable=None) as bar):
        for lo in range(0, len(names), BLOCK):
            rows = dict(zip(names[lo:lo + BLOCK], pool.map(read, names[lo:lo + BLOCK])))
            broken += [row for row in rows.values() if isinstance(row, str)]
            good = {name: row for name, row in rows.items() if not isinstance(row, str)}
            if good:
                features |= zip(good, to_host(trained.encode(np.stack([*good.values()]))))
            bar.update(len(rows))
    if broken:
        print(printable(skipped(broken, total)))
    return features


# ---------------------------------------------------------------- the page

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.25rem; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
header p, figcaption { color: color-mix(in srgb, currentColor 65%, transparent); margin: 0; }
section { display: grid; grid-template-columns: 13rem 1fr; gap: 1.5rem; border-top: 1px solid var(--line);
  margin-top: 1.25rem; padding-top: 1.25rem; }
.query { position: sticky; top: 1.25rem; align-self: start; }
.query img { outline: 3px solid #3465a4; }
blockquote { margin: 0; padding: .75rem 1rem; border-left: 3px solid #3465a4; font-size: 1.1rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; margin: 0; padding: 0;
  list-style: none; }
figure { margin: 0; }
img { display: block; width: 100%; aspect-ratio: 1; border-radius: 4px; background: var(--line); }
figcaption { font-size: .8rem; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption b { color: CanvasText; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) { section { grid-template-columns: 1fr; } .query { position: static; max-width: 13rem; } }
"""


def draw(title, results, root, pictures):
    """The page: each query, a picture or words, beside its results, [(cosine, name), ...]."""
    parts = []
    for k, (query, found) in enumerate(results):
        shown = figure(Path(query), Path(query).name) if k < pictures else f"<blockquote>{escape(query)}</blockquote>"
        cards = "\n".join(f"<li>{figure(root / name, name, score)}</li>" for score, name in found)
        parts.append(f'<section>\n<div class="query">{shown}</div>\n<ol>\n{cards}\n</ol>\n</section>')
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<header><h1>{escape(title)}</h1>
<p>Framed: the query. Beside it: the nearest pictures and their cosine similarity, best first.</p></header>
{chr(10).join(parts)}
</html>
"""


def figure(path, name, score=None):
    """A picture of the page, as the encoder sees it: its centre square, as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(open_image(path, THUMB)).save(file, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    number = "" if score is None else f"<b>{score:.3f}</b> "
    return f'<figure><img src="{source}" alt="{escape(name)}"><figcaption>{number}{escape(name)}</figcaption></figure>'


def escape(text):
    return html.escape(printable(text))


def printable(text):
    """Text on one line that any output can encode: names of files may hold newlines, and bytes that are not UTF-8."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "?", str(text)).encode(errors="replace").decode()


if __name__ == "__main__":
    command(main, alone=True)
