"""examples/search.py: exact search, the index, the page in a real browser, and one-line errors for bad input."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import search
from example_runs import run_example
from PIL import Image
from test_play import FLAGS, find_browser

import minicl
from minicl import nn
from minicl.backend import to_host
from minicl.checkpoint import save_checkpoint
from minicl.contrastive import l2_normalize
from minicl.methods import CLIP, SimCLR
from minicl.nn.spec import spec_of

NAMES = ["a.png", "b ü.jpg", "deep/<b>&\"'.png", "deep/er/c.bmp", "e.PNG", "same as a.png"]


@pytest.fixture
def run(tmp_path, rng):
    """A folder with a checkpoint of an untrained SimCLR, whose random convolutions distinguish colours."""
    return saved(tmp_path / "run", SimCLR(nn.ConvNet((16, 16, 3), (8, 16), rng=rng), nn.Sequential()))


def saved(folder, model, config=None, **parts):
    folder.mkdir()
    parts = {"model": model, **parts}
    save_checkpoint(folder / "checkpoint.npz", parts, {"models": {name: spec_of(part) for name, part in parts.items()},
                                                       "config": config or {}})
    return folder


@pytest.fixture
def photos(tmp_path, rng):
    """A folder of pictures, each of one colour with noise. The last is a copy of the first."""
    root = tmp_path / "my photos"
    for k, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k % 5).normal(40 * (k % 5), 9, (40, 30 + k, 3)) + np.array([60, 0, -30]) * (k % 3)
        Image.fromarray(noise.clip(0, 255).astype("uint8")).save(root / name)
    shutil.copy(root / NAMES[0], root / NAMES[-1])
    return root


def output(capsys, *options):
    """(exit code, stdout, stderr) of the script."""
    capsys.readouterr()
    code = run_example("search", *options)
    return code, *capsys.readouterr()


def listed(text):
    """[[(cosine, name), ...] for each query] in the printed text."""
    return [[(float(s), name) for s, name in re.findall(r"^ +\d+ +(-?\d\.\d+)  (.*)$", part, re.MULTILINE)]
            for part in re.split(r"\n\n", text)[:-1]]


# ---------------------------------------------------------------- search

@pytest.mark.parametrize("N, d, M, k", [(1, 3, 1, 1), (50, 4, 3, 7), (50, 4, 3, 50), (301, 8, 40, 10)])
def test_nearest_agrees_with_a_comparison_to_all(xp, rng, N, d, M, k):
    bank = rng.standard_normal((N, d), dtype="float32")
    bank[N // 2:] = bank[:N - N // 2]                                                    # ties: the earlier is first
    queries = rng.standard_normal((M, d), dtype="float32")
    scores, ids = search.nearest(xp.asarray(bank), xp.asarray(queries), k, chunk=37)
    s = l2_normalize.forward(queries.astype("float64"))[0] @ l2_normalize.forward(bank.astype("float64"))[0].T
    expected = np.argsort(-s.round(12), axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(scores, np.take_along_axis(s, expected, axis=1), rtol=0, atol=1e-12)
    assert scores.shape == ids.shape == (M, k) and (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(np.take_along_axis(s, ids, axis=1), scores, rtol=0, atol=1e-12)


def test_a_narrow_cone_is_searched_exactly(xp, rng):
    directions = rng.standard_normal((200, 6))
    bank = (1000 + directions).astype("float32")
    _, ids = search.nearest(xp.asarray(bank), xp.asarray(bank[:50]), 1)
    assert (ids[:, 0] == np.arange(50)).all()


def test_the_nearest_pictures_are_printed_and_the_query_is_not_its_own_result(run, photos, capsys, xp):
    code, out, _ = output(capsys, run, photos / "a.png", photos / "e.PNG", "--in", photos, "--backend",
                          "numpy" if xp is np else "cupy", "--k", 3)
    first, second = listed(out)
    assert code == 0 and len(first) == len(second) == 3
    assert first[0] == (1.0, "same as a.png") and "a.png" not in [name for _, name in first]
    trained = minicl.load(run)
    u = l2_normalize.forward(to_host(trained.encode([photos / name for name in NAMES])))[0]
    for query, found in (("a.png", first), ("e.PNG", second)):
        s = u[NAMES.index(query)] @ u.T
        expected = sorted(((score, name) for score, name in zip(s, NAMES) if name != query), reverse=True)[:3]
        assert [name for _, name in found] == [name for _, name in expected]
        np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], atol=6e-4)


def test_a_picture_from_elsewhere_finds_all_pictures_if_k_is_larger(run, photos, tmp_path, capsys):
    shutil.copy(photos / "e.PNG", tmp_path / "mine.png")
    code, out, _ = output(capsys, run, tmp_path / "mine.png", "--in", photos, "--k", 100)
    assert code == 0 and len(listed(out)[0]) == len(NAMES) and listed(out)[0][0] == (1.0, "e.PNG")


def test_the_folder_that_the_run_trained_on_is_searched_by_default(photos, tmp_path, rng, capsys):
    run = saved(tmp_path / "run", SimCLR(nn.ConvNet((16, 16, 3), (8, 16), rng=rng), nn.Sequential()), {"data_dir": str(photos)})
    assert output(capsys, run, photos / "a.png")[0] == 0


def test_an_exported_file_searches_the_current_folder(run, photos, tmp_path, capsys, monkeypatch):
    pytest.importorskip("safetensors")
    assert run_example("export", run, tmp_path / "e.safetensors") == 0
    monkeypatch.chdir(photos)
    code, out, _ = output(capsys, "../e.safetensors", "a.png", "--in", ".")
    assert code == 0 and listed(out)[0][0] == (1.0, "same as a.png") and (tmp_path / "search.html").exists()
    assert len(list(tmp_path.glob("index-*.npz"))) == 1


@pytest.fixture
def clip(tmp_path, rng):
    tokenizer = nn.WordTokenizer(["red", "blue", "dog"], 4)
    model = CLIP(nn.ConvNet((16, 16, 3), (8, 16), rng=rng), nn.BagOfTokens(tokenizer.size, rng=rng), 8, rng=rng)
    return saved(tmp_path / "clip", model, tokenizer=tokenizer)


def test_a_clip_is_searched_by_words_and_by_pictures_at_once(clip, photos, capsys):
    code, out, _ = output(capsys, clip, photos / "a.png", "--words", "red dog", "--words", "Blue", "--in", photos)
    assert code == 0 and len(listed(out)) == 3 and "\nred dog\n" in out
    trained = minicl.load(clip)
    s = l2_normalize.forward(trained.encode_text("red dog"))[0] @ l2_normalize.forward(
        trained.encode([photos / name for name in NAMES]))[0].T
    found = [name for _, name in listed(out)[1]]
    assert sorted(found) == sorted(NAMES)
    np.testing.assert_allclose(s[0, [NAMES.index(name) for name in found]], np.sort(s[0])[::-1], atol=1e-5)


def test_unknown_words_are_named_and_are_an_error_if_there_are_no_others(photos, tmp_path, rng, capsys):
    tokenizer = nn.WordTokenizer(["red", "a", "dog"], 6, unknown=True)
    model = CLIP(nn.ConvNet((16, 16, 3), (8, 16), rng=rng), nn.BagOfTokens(tokenizer.size, rng=rng), 8, rng=rng)
    other = saved(tmp_path / "clip", model, tokenizer=tokenizer)
    code, out, _ = output(capsys, other, "--words", "two dogs on a beach", "--in", photos)
    assert code == 0 and out.startswith("warning: encode_text: beach, dogs, on, two: not among the 3 words")
    code, _, err = output(capsys, other, "--words", "zzz", "--in", photos)
    assert code == 2 and "no word of 'zzz' is among the 3 words" in err


def test_words_that_would_be_cut_off_are_refused_and_encode_text_warns(photos, tmp_path, rng, capsys):
    tokenizer = nn.WordTokenizer(["red", "a", "dog", "cat"], 3, unknown=True)
    model = CLIP(nn.ConvNet((16, 16, 3), (8, 16), rng=rng), nn.BagOfTokens(tokenizer.size, rng=rng), 8, rng=rng)
    folder = saved(tmp_path / "clip", model, tokenizer=tokenizer)
    assert output(capsys, folder, "--words", "a red dog", "--in", photos)[0] == 0
    code, _, err = output(capsys, folder, "--words", "a red dog", "--words", "a red dog, a cat", "--in", photos)
    assert code == 2 and "--words 'a red dog, a cat': this CLIP reads 3 words, and the rest would be cut off" in err
    with pytest.warns(UserWarning, match="only the first 3 words are read of 1 captions, such as 'a red dog, a cat'"):
        minicl.load(folder).encode_text(["red dog cat", "a red dog, a cat"])


@pytest.mark.parametrize("order", [("PICTURE", "--words", "red"), ("--words", "red", "PICTURE"), ("--k", 3, "PICTURE", "--words", "red")])
def test_pictures_and_options_may_come_in_any_order(clip, photos, capsys, order):
    options = [photos / "a.png" if option == "PICTURE" else option for option in order]
    code, out, _ = output(capsys, clip, "--in", photos, *options)
    assert code == 0 and len(listed(out)) == 2


@pytest.mark.parametrize("link", ["picture", "folder", "inside", "hard"])
def test_a_picture_is_not_its_own_result_through_a_link(run, photos, tmp_path, capsys, link):
    query = photos / "deep/er/c.bmp"
    if link == "picture":
        query = tmp_path / "link.bmp"
        query.symlink_to(photos / "deep/er/c.bmp")
    elif link == "folder":
        (tmp_path / "link").symlink_to(photos / "deep")
        query = tmp_path / "link/er/c.bmp"
    elif link == "inside":
        (photos / "again.bmp").symlink_to(query)
    else:
        os.link(query, photos / "again.bmp")
    code, out, _ = output(capsys, run, query, "--in", photos, "--k", 5)
    names = [name for _, name in listed(out)[0]]
    assert code == 0 and len(names) == 5 and not {"deep/er/c.bmp", "again.bmp"} & {*names}


def test_a_name_with_a_newline_is_one_line(run, photos, capsys):
    (photos / "a.png").rename(photos / "a\n  1   1.000  x\x1b.png")
    code, out, _ = output(capsys, run, photos / "e.PNG", "--in", photos)
    assert code == 0 and "a?  1   1.000  x?.png" in out and len(listed(out)[0]) == 5
    assert "a?  1" in (run / "search.html").read_text()


# ---------------------------------------------------------------- the index

def test_only_new_and_changed_pictures_are_encoded_again(run, photos, capsys, monkeypatch):
    seen = []
    encode_files = search.encode_files
    monkeypatch.setattr(search, "encode_files",
                        lambda trained, root, names, total: seen.append(names) or encode_files(trained, root, names, total))
    trained = minicl.load(run)
    path = run / "index.npz"

    def read():
        seen.clear()
        files, features = search.read_index(path, trained, photos)
        np.testing.assert_allclose(features, trained.encode([photos / name for name in files]), rtol=1e-5, atol=1e-5)
        return files

    assert read() == NAMES and seen == [NAMES]
    before = path.read_bytes()
    assert read() == NAMES and seen == [] and path.read_bytes() == before
    shutil.copy(photos / "e.PNG", photos / "f.png")
    Image.fromarray(np.zeros((20, 20, 3), "uint8")).save(photos / "a.png")
    (photos / "e.PNG").unlink()
    expected = [name for name in NAMES if name != "e.PNG"]
    expected.insert(-1, "f.png")
    assert read() == expected and seen == [["a.png", "f.png"]]
    (photos / "f.png").unlink()
    assert "f.png" not in read() and seen == []
    Image.fromarray(np.full((20, 20, 3), 255, "uint8")).save(photos / "b.bmp")
    Image.fromarray(np.full((20, 20, 3), 9, "uint8")).save(photos / "c.bmp")
    for name in ("b.bmp", "c.bmp"):
        os.utime(photos / name, ns=(10**18, 10**18))
    read()
    for old, new in (("b.bmp", "x"), ("c.bmp", "b.bmp"), ("x", "c.bmp")):                # same sizes and times
        (photos / old).rename(photos / new)
    read()
    assert seen == [["b.bmp", "c.bmp"]]
    for name in ("b.bmp", "c.bmp"):
        (photos / name).unlink()
    next(iter(trained.encoder.parameters())).data[...] *= 1.5                            # another encoder
    assert len(read()) == len(NAMES) - 1 == len(seen[0])


def test_an_interrupted_search_continues_from_its_index(run, photos, monkeypatch):
    seen = []
    encode_files = search.encode_files

    def ended(trained, root, names, total):
        seen.append(names)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encode_files(trained, root, names, total)
    monkeypatch.setattr(search, "PORTION", 4)
    monkeypatch.setattr(search, "encode_files", ended)
    trained = minicl.load(run)
    with pytest.raises(KeyboardInterrupt):
        search.read_index(run / "index.npz", trained, photos)
    files, features = search.read_index(run / "index.npz", trained, photos)
    assert seen == [NAMES[:4], NAMES[4:], NAMES[4:]] and files == NAMES
    np.testing.assert_allclose(features, trained.encode([photos / name for name in files]), rtol=1e-5, atol=1e-5)


def test_broken_pictures_are_named_and_skipped(run, photos, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (photos / "link.png").symlink_to(photos / "nowhere.png")
    code, out, _ = output(capsys, run, photos / "a.png", "--in", photos)
    assert code == 0 and "broken.jpg" in re.findall("^skipped: .*", out, re.MULTILINE)[0] and "link.png" in out
    (photos / "new.jpg").write_bytes((photos / "broken.jpg").read_bytes())                # the others are in the index
    assert f"skipped: 3 of {len(NAMES) + 3} pictures" in output(capsys, run, photos / "a.png", "--in", photos)[1]
    (photos / "new.jpg").unlink()
    assert len(listed(out)[1]) == len(NAMES) - 1  # printed after the skipped files


def test_a_read_only_run_is_searched_without_storing_an_index(run, photos, tmp_path, capsys):
    if os.geteuid() == 0:
        pytest.skip("root can write to any folder")
    run.chmod(0o500)
    code, out, _ = output(capsys, run, photos / "a.png", "--in", photos, "--out", tmp_path / "x.html")
    run.chmod(0o700)
    assert code == 0 and "the index is not kept" in out


# ---------------------------------------------------------------- bad input

def test_names_that_are_not_utf_8_are_printed(run, photos, capsys):
    try:
        (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system accepts only names in UTF-8")
    code, out, _ = output(capsys, run, photos / "a.png", "--in", photos)
    assert code == 0 and "caf?.png" in out and "caf?.png" in (run / "search.html").read_text()


BAD = {
    "no query": (lambda f: [f.run, "--in", f.photos], "nothing to search for: give pictures, or --words"),
    "no such run": (lambda f: [f.tmp / "none", f.picture], "none does not exist"),
    "not a run": (lambda f: [f.photos, f.picture], "is not the folder of a run"),
    "no such folder": (lambda f: [f.run, f.picture, "--in", f.tmp / "none"], "none: there is no such folder"),
    "no folder": (lambda f: [f.run, f.picture], "run was not trained on a folder of pictures; name the folder"),
    "a file": (lambda f: [f.run, f.picture, "--in", f.picture], "there is no such folder"),
    "empty": (lambda f: [f.run, f.picture, "--in", f.empty], "empty holds no pictures"),
    "all broken": (lambda f: [f.run, f.picture, "--in", f.broken], "none of its 1 pictures could be read"),
    "no such picture": (lambda f: [f.run, f.tmp / "none.png", "--in", f.photos], "none.png: No such file"),
    "not a picture": (lambda f: [f.run, f.broken / "x.png", "--in", f.photos], "x.png: not a picture"),
    "a folder as picture": (lambda f: [f.run, f.photos, "--in", f.photos], "is a folder; give the files in it"),
    "words without CLIP": (lambda f: [f.run, "--words", "red", "--in", f.photos], "has a SimCLR, which does not read text"),
    "k 0": (lambda f: [f.run, f.picture, "--in", f.photos, "--k", 0], "expected an integer >= 1"),
    "model": (lambda f: [f.run, f.picture, "--in", f.photos, "--model", "B"], "choose one with model="),
    "the index is a checkpoint": (lambda f: [f.run, f.picture, "--in", f.photos, "--index", f.run / "checkpoint.npz"],
                                  "is not an index of this script; remove it, or name another file"),
    "the index is a picture": (lambda f: [f.run, f.picture, "--in", f.photos, "--index", f.picture], "is not an index"),
    "the page is a picture": (lambda f: [f.run, f.picture, "--in", f.photos, "--out", f.picture], "ending in .html"),
    "the page is a folder": (lambda f: [f.run, f.picture, "--in", f.photos, "--out", f.page], "not a regular file"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_changes_nothing(run, photos, tmp_path, capsys, options, message):
    class Folders:
        empty = tmp_path / "empty"
        broken = tmp_path / "broken"
        page = tmp_path / "d.html"
        picture = photos / "a.png"
        tmp = tmp_path
    Folders.run, Folders.photos = run, photos
    for folder in (Folders.empty, Folders.broken, Folders.page):
        folder.mkdir()
    (Folders.broken / "x.png").write_text("x")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, _, error = output(capsys, *options(Folders))
    assert code == 2 and re.search(message, error) and "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith(("error: ", "search.py: error: "))
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*") if not path.name.startswith("index-")}
    assert after == before


# ---------------------------------------------------------------- the page

def visit(page, tmp_path, script):
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome)")
    copy = tmp_path / "visited.html"
    policy = "style-src 'unsafe-inline'"
    text = page.read_text(encoding="utf-8")
    assert policy in text
    copy.write_text(text.replace(policy, policy + "; script-src 'unsafe-inline'").replace("</html>", f"<script>{script}</script></html>"),
                    encoding="utf-8")
    run = subprocess.run([program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()],
                         capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in run.stderr, run.stderr
    return dict(re.findall(r'data-(\w+)="([^"]*)"', run.stdout.partition("<body")[2].partition(">")[0]))


def test_the_page_shows_every_picture_in_a_browser_without_a_network(clip, photos, tmp_path, capsys):
    page = tmp_path / "new/results.html"
    assert output(capsys, clip, photos / "a.png", "--words", "red", "--in", photos, "--out", page)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and not re.search(r"https?:|<script|<link|@import|url\(", text)
    seen = visit(page, tmp_path, """
        const all = [...document.images], names = [...document.querySelectorAll("figcaption")].map(c => c.textContent);
        Object.assign(document.body.dataset, { images: all.length, sections: document.querySelectorAll("section").length,
            shown: all.filter(i => i.complete && i.naturalWidth === 192 && i.getBoundingClientRect().width > 60).length,
            named: names.some(n => n.endsWith(`deep/<b>&"'.png`)), umlaut: names.some(n => n.endsWith("b ü.jpg")),
            words: document.querySelector("blockquote").textContent, bold: document.querySelectorAll("figcaption b").length,
            wide: document.documentElement.scrollWidth <= innerWidth });
    """)
    found = len(NAMES) - 1 + len(NAMES)
    assert seen == {"images": str(found + 1), "shown": str(found + 1), "sections": "2", "named": "true", "umlaut": "true",
                    "words": "red", "bold": str(found), "wide": "true"}
