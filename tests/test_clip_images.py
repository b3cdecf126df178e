"""examples/clip_images.py and caption_files.py: tables of captions, and CLIP from start to end on coloured pictures."""

import json
import math
import re
import shlex
import unicodedata

import numpy as np
import pytest
from caption_files import load_captioned, read_captions, vocabulary
from clip_images import log_candidates, named_class, require_captions, require_prompts
from example_runs import EXAMPLES, read_run, run_example
from hypothesis import given
from hypothesis import strategies as st
from picture_files import Image, numbered, write_pictures

import minicl
from minicl import viz
from minicl.contrastive import clip_loss
from minicl.data import DataError, same_caption_ids
from minicl.nn import WordTokenizer
from minicl.nn.words import lowered, words_of

EXPECTED = [("a b.jpg", ["A dog, running.", "Two dogs"]), ("ä/c.png", ["One cat"])]
ROWS = [(name, caption) for name, captions in EXPECTED for caption in captions]
COCO = {"images": [{"id": 7, "file_name": "a b.jpg"}, {"id": 3, "file_name": "ä/c.png"}, {"id": 5, "file_name": "x.jpg"}],
        "annotations": [{"image_id": 7 if name == "a b.jpg" else 3, "caption": caption} for name, caption in ROWS]}
FORMS = [
    ("Flickr8k CSV", "image,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in ROWS)),
    ("unquoted commas", "image,caption\n" + "".join(f"{name},{caption}\n" for name, caption in ROWS)),
    ("other columns and order", "id;Caption;FileName\n" + "".join(f"{k};{c};{n}\n" for k, (n, c) in enumerate(ROWS))),
    ("TSV with a BOM, CRLF", "\ufefffile\tcaption\r\n" + "".join(f"{name}\t{caption}\r\n" for name, caption in ROWS)),
    ("Flickr30k", "image_name| comment_number| comment\n" + "".join(f"{n}| {k}| {c}\n" for k, (n, c) in enumerate(ROWS))),
    ("Flickr8k tokens", "".join(f"{name}#{k}\t{caption}\n" for k, (name, caption) in enumerate(ROWS))),
    ("COCO", json.dumps(COCO)),
    ("Excel's sep=", "sep=;\nimage;caption\n" + "".join(f"{name};{caption}\n" for name, caption in ROWS)),
    ("one picture in two spellings", "image,caption\n" + "".join(f"{k % 2 * './'}{name},{c}\n" for k, (name, c) in enumerate(ROWS))),
    ("characters that only Python treats as line ends", "image,caption\n" + "".join(
        f"{name},{caption.replace(' ', mark)}\n" for mark, (name, caption) in zip("\u2028\x85\x0b", ROWS))),
    ("the same in TSV", "image\tcaption\n" + "".join(
        f"{name}\t{caption.replace(' ', mark)}\n" for mark, (name, caption) in zip("\x0c\x1c\x1e", ROWS))),
    ("a caption of two lines", "image,caption\n" + "".join(f'{name},"{caption.replace(" ", chr(10))}"\n' for name, caption in ROWS)),
]


@pytest.mark.parametrize("text", [text for _, text in FORMS], ids=[name for name, _ in FORMS])
def test_every_file_format_gives_the_same_captions(tmp_path, text):
    (tmp_path / "captions").write_bytes(text.encode())
    assert read_captions(tmp_path / "captions", log=None) == EXPECTED


def test_lines_without_a_file_or_a_caption_are_counted(tmp_path):
    (tmp_path / "x.csv").write_text("file,caption\na.png,A dog\n,A cat\nb.png,\nc.png,?!\nonly one cell\n")
    log = []
    assert read_captions(tmp_path / "x.csv", log=log.append) == [("a.png", ["A dog"])]
    assert "skipped: 4 of the 5 lines" in log[0]


@pytest.mark.parametrize("odd", [None, ["A dog"], 7, {"en": "A dog"}])
@pytest.mark.parametrize("key", ["caption", "file_name"])
def test_json_values_that_are_not_text_are_counted(tmp_path, key, odd):
    content = json.loads(json.dumps(COCO))
    content["images"][2 if key == "file_name" else 0]["file_name"] = "a b.jpg"
    content["annotations"].append({"image_id": 5 if key == "file_name" else 7, "caption": "A dog"})
    (content["images"][2] if key == "file_name" else content["annotations"][-1])[key] = odd
    (tmp_path / "captions.json").write_text(json.dumps(content))
    log = []
    assert read_captions(tmp_path / "captions.json", log=log.append) == EXPECTED
    assert "skipped: 1 of the 4 lines" in log[0]


@pytest.mark.parametrize("title", ["split", "Subset", "fold", "id"])
@pytest.mark.parametrize("form", ["csv", "tsv", "json", "json of annotations"])
def test_a_split_in_the_file_that_is_not_read_is_told(tmp_path, form, title):
    mark = "\t" if form == "tsv" else ","
    table = "\n".join(mark.join(row) for row in [("image", title, "caption"), *((name, "test", caption) for name, caption in ROWS)])
    images = [{**image, title: "test"} for image in COCO["images"]] if form == "json" and title != "id" else COCO["images"]
    lines = [{**line, title: "test"} for line in COCO["annotations"]] if form == "json of annotations" else COCO["annotations"]
    text = json.dumps({**COCO, "images": images, "annotations": lines}) if "json" in form else table
    (tmp_path / "captions").write_text(text)
    log = []
    assert read_captions(tmp_path / "captions", log=log.append) == EXPECTED
    told = f"its {title.lower()!r} is not read; the pictures to test on are drawn at random, the same in every run"
    assert any(told in line for line in log) == (title != "id")


@pytest.mark.parametrize("header, unread", [
    ("image,caption,caption", "'caption'"), ("image,caption,text", "'text'"), ("image,title,description", "'description'"),
    ("id,file,image,caption", "'image'"), ("image,caption,text,comment", "'text', 'comment'"), ("image,caption,id", None)])
@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_columns_that_may_have_captions_or_files_and_are_not_read_are_told(tmp_path, header, unread, mark):
    cells = {"image": "a.png", "file": "a.png", "id": "7"}
    (tmp_path / "x").write_text(f"{header}\n{','.join(cells.get(name, 'A dog') for name in header.split(','))}\n".replace(",", mark))
    log = []
    assert read_captions(tmp_path / "x", log=log.append) == [("a.png", ["A dog"])]
    assert log == [] if unread is None else f"not read: {unread}, which may have captions or files too" in log[0]


@pytest.mark.parametrize("table", [
    'image\tcaption\na.png\t"A dog\nruns"\n', 'image|caption\na.png|"A dog\nruns"\n', 'image,caption\na.png, "A dog\nruns"\n',
    'image\tcaption\na.png\t"A dog\tred\nruns\tfast"\nb.png\tA cat\n', 'image|caption\na.png|"A dog|red\n""runs""|"\n',
    'image,caption\na.png, "A dog, red,\nruns"\n', 'image;caption\na.png; "A dog\nruns"\n', 'a.png#0\t"A dog\nruns"\n'])
def test_a_quoted_caption_of_two_lines_that_is_not_read_as_one_is_refused(tmp_path, table):
    (tmp_path / "x").write_text(table)
    with pytest.raises(DataError, match="a caption in quotation marks goes on in another line"):
        read_captions(tmp_path / "x", log=None)


@pytest.mark.parametrize("caption", ['"A dog" runs', '"A dog', 'A dog, 5" long', 'A "dog', '""A dog'])
def test_quotation_marks_that_are_part_of_a_caption_stay(tmp_path, caption):
    (tmp_path / "x").write_text(f"image\tcaption\na.png\t{caption}\nb.png\tA cat\n")
    assert read_captions(tmp_path / "x", log=None) == [("a.png", [caption]), ("b.png", ["A cat"])]


def test_long_captions_are_cut_and_counted(tmp_path):
    (tmp_path / "x.csv").write_text("file,caption\na.png,A dog\nb.png," + "long " * 2000)
    log = []
    assert [len(caption) for _, [caption] in read_captions(tmp_path / "x.csv", log=log.append)] == [5, 1000]
    assert "cut: 1 captions" in log[0]


@pytest.mark.parametrize("header, line", [("caption,image", "A dog, running,b.png"), ("image,caption,id", "b.png,A dog, running,7"),
                                          ("image,caption,id", "b.png,A dog"), ("id,image,caption", "7,b.png"),
                                          ("image,caption,id,source", "b.png,A dog, running,7"), ("image,caption,source", "b.png,A dog, running"),
                                          ("caption,id,image", "A dog,b.png")])
def test_lines_with_other_cells_than_columns_are_counted(tmp_path, header, line):
    first = {"caption": "A cat", "image": "a.png", "id": "1", "source": "web"}
    (tmp_path / "x.csv").write_text("\n".join([header, ",".join(first[name] for name in header.split(",")), line]))
    log = []
    assert read_captions(tmp_path / "x.csv", log=log.append) == [("a.png", ["A cat"])]
    assert "skipped: 1 of the 2 lines" in log[0]


def test_pictures_without_a_caption_are_counted(tmp_path, photos, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    write_pictures(photos, [*numbered("", 90)[80:], ".hidden.png", "elsewhere/1.png"])
    log = []
    load_captioned(photos / "captions.tsv", None, 16, log=log.append)
    assert [line for line in log if "left out: 10 pictures without a caption, such as" in line and "80.png" in line]


@pytest.mark.parametrize("words, unknown, odd", [
    (["red", "t-shirt"], True, "t-shirt"), (["hot dog"], True, "hot dog"), (["hot dog"], False, "hot dog"), (["a."], True, "a."),
    ([""], True, ""), (["'tis"], True, "'tis"), (["\u0301a"], True, "\u0301a"), (["don't", "café", "7"], True, None),
    (["t-shirt", "a."], False, None), (["cafe\u0301", "l’été"], True, None), (["cafe\u0301", "l’été"], False, None)])
def test_words_that_no_caption_can_yield_are_refused(words, unknown, odd):
    if odd is None:
        tokenizer = WordTokenizer(words, 4, unknown=unknown)
        assert tokenizer([" ".join(words)]).tolist() == [list(range(1, 1 + len(words)))]
    else:
        with pytest.raises(ValueError, match=re.escape(f"words must be single words, got {odd!r}")):
            WordTokenizer(words, 4, unknown=unknown)


BAD = [
    ("an id twice", json.dumps({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}],
                                "annotations": []}).encode(), "an id of several files"),
    ("missing", None, "No such file or directory; expected a file of captions"),
    ("empty", b"", "expected a header .* got nothing"),
    ("no header", b"a.png,A dog\nb.png,A cat\n", "expected a header with a column of files .*got 'a.png', 'A dog'"),
    ("no column of captions", b"file,width,height\na.png,3,4\n", "got 'file', 'width', 'height'"),
    ("no lines", b"file,caption\n", "has no captions"),
    ("not text", b"\xff\xfe\x00", "is not UTF-8 text"),
    ("other JSON", b'{"a": 1}', "is not COCO's captions in JSON .KeyError"),
    ("cut JSON", b'{"images": [', "is not COCO's captions in JSON"),
    ("images without names", b'{"images": [{"id": 1}], "annotations": []}', "file_name"),
    ("a quotation mark that is never closed", b'file,caption\na.png,A dog\nb.png,"A cat\nc.png,A cow\n', "line 3: unexpected end"),
    ("one that a later caption closes", b'file,caption\nb.png,"A cat\nc.png,A cow, 5"\n', "line 2: a caption has lines that look"),
    ("one closed by a quoted caption", b'file,caption\nb.png,"A cat\nc.png,"A cow"\n', "line 2: ',' expected after"),
    ("one in a quoted caption", b'file,caption\nb.png,"A "cat" runs"\n', "line 2: ',' expected after"),
    ("huge field", b"file,caption\na.png," + b"x" * 200_000, "not a table"),
]


@pytest.mark.parametrize("content, message", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_invalid_files_give_one_line_that_names_the_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_captions(tmp_path / "captions.csv")
    assert "captions.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("listed, stored", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_is_found_in_either_spelling_of_unicode(tmp_path, monkeypatch, listed, stored):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    names = [f"Größe {k} é.png" for k in range(4)]
    write_pictures(tmp_path / "photos", [unicodedata.normalize(stored, name) for name in names])
    lines = [f"{unicodedata.normalize(listed, name)},a picture" for name in names]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]), encoding="utf-8")
    log = []
    data = load_captioned(tmp_path / "captions.csv", tmp_path / "photos", 8, log=log.append)
    assert len(data.train_images) + len(data.test_images) == 4 and not [line for line in log if "skipped" in line or "left out" in line]


def test_test_pictures_that_are_copies_of_training_pictures_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    names = [f"{k}.png" for k in range(10)]
    write_pictures(tmp_path, names)
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *(f"{name},a picture" for name in names)]))
    log = []
    load_captioned(tmp_path / "captions.csv", None, 8, log=log.append)
    assert not any("copies" in line for line in log)
    for name in names[1:]:
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    load_captioned(tmp_path / "captions.csv", None, 8, log=log.append)
    assert any(line.startswith("warning: 1 of the 1 test pictures is a copy of training pictures") for line in log)


def test_the_vocabulary_has_frequent_words_first():
    captions = np.array(["A dog, a cat!", "a Dog runs", "don't run"])
    assert vocabulary(captions, least=2) == ["a", "dog"]
    assert vocabulary(captions, least=1, most=3)[:2] == ["a", "dog"] and "don't" in vocabulary(captions, least=1)
    with pytest.raises(DataError, match="no word occurs 9 times .*--min-count 1"):
        vocabulary(captions, least=9)


# "word" or a like one in several alphabets, some with vowel signs or accents that are characters of their own.
WORDS = """word слово λέξη kelime'si İstanbul café naïve Việt šķirne don't शब्द हिन्दी कुत्ता শব্দ શબ્દ ਸ਼ਬਦ சொல் పదం ಪದ വാക്ക් වචනය คำ น้ำ
ຄຳ ཚིག စကား ពាក្យ מִלָּה שָׁלוֹם كَلِمَة مُحَمَّد واژه 単語 がぎ 단어 ቃል ᠦᠭᠡ q̃ snake_case 7""".split()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_word_of_any_alphabet_is_one_word_in_either_spelling_of_unicode(form):
    assert words_of(unicodedata.normalize(form, ", ".join(WORDS))) == [lowered(word) for word in WORDS]
    assert len({lowered(word) for word in WORDS}) == len(WORDS)
    tokenizer = WordTokenizer(sorted(map(lowered, WORDS)), len(WORDS), unknown=True)
    assert len(set(tokenizer([unicodedata.normalize(form, " ".join(WORDS))])[0].tolist())) == len(WORDS)


@given(st.lists(st.text(st.sampled_from("aéक\u0903\u093e\u0940\u094dนำ\u0e49ש\u05b8\u0301"), min_size=1).filter(str.isidentifier), min_size=1))
def test_different_words_are_read_as_different_words(words):
    read = words_of(". ".join(words))
    assert read == [lowered(word) for word in words] and len(set(read)) == len(set(map(lowered, words)))


@pytest.mark.parametrize("text, words", [("❤️ 1️⃣!", ["1"]), ("👩‍👧 a_b", ["a_b"]), ("\u0301 \ufe0f", []), ("Rock'n'Roll’s", ["rock'n'roll's"])])
def test_signs_that_belong_to_no_letter_are_no_words(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("captions", [[0, 1, 2, 3], [0, 0, 2, 2], [0, 1, 0, 0, 4], [0, 0, 0], [0, 1]])
def test_the_chance_of_a_batch_is_the_loss_of_a_collapsed_model(captions):
    ids = same_caption_ids(np.array(captions)[:, None])
    z = np.ones((len(ids), 3))
    expected = clip_loss(z, z, 1.0, caption_ids=ids).item() if ids.any() else 0.0
    assert log_candidates(ids) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("caption, expected", [("यह का है", 0), ("यह की है", 1), ("यह क है", -1), ("un cafe\u0301 noir", 2), ("cafeteria", -1), ("C++!", 3)])
def test_a_class_is_named_by_its_whole_word_in_any_alphabet(caption, expected):
    assert named_class([caption], ["का", "की", "Café", "c++"]) == expected


@pytest.mark.parametrize("name", ["traffic light", "traffic-light", "traffic  light", "Traffic Light,", " traffic light.", "'traffic' light"])
@pytest.mark.parametrize("caption", ["a traffic light at night", "A traffic-light!", "the  traffic\tlight", "“Traffic light”"])
def test_a_class_is_found_by_its_words_whatever_is_between_them(name, caption):
    assert named_class([caption, "no words of it"], ["dog,", name, "light"]) == 1
    assert named_class(["a light of traffic"], ["dog,", name, "light"]) == 2


@pytest.mark.parametrize("captions, expected", [(["A dog runs", "a big DOG"], 0), (["a dog and a cat"], -1), (["a hotdog"], -1),
                                                (["the traffic light"], 2), ([""], -1), (["a light"], 3), (["hot dog"], 4),
                                                (["a light and a traffic light"], -1), (["a dog", "a hot dog"], -1)])
def test_a_picture_has_a_class_where_its_captions_name_exactly_one(captions, expected):
    assert named_class(captions, ["dog", "cat", "traffic light", "light", "hot dog"]) == expected


@pytest.mark.parametrize("classes, template, length, message", [
    (["cat", "dog"], "a photo of a {}", 5, None), (["cat", "hot dog"], "a photo of a {}", 6, None), (["cat", "dog"], "{} {}!", 2, None),
    (["cat", "dog"], "a photo of a {}", 4, "--length 4: the prompt 'a photo of a cat' would be cut to 'a photo of a'; give --length 5 "),
    (["cat", "hot dog"], "a photo of a {}", 5, "--length 5: the prompt 'a photo of a hot dog' would be cut .*; give --length 6 or more"),
    (["cat", "dog"], "the {} and a photo", 4, "'the cat and a photo' would be cut to 'the cat and a'"),
    (["cat", "dog"], "a photo of a {}s", 5, "--template: the prompts 'a photo of a cats' and 'a photo of a dogs' differ only"),
    (["cat", "CAT"], "{}", 5, "--classes: 'cat' and 'CAT' have the same prompt, 'cat'"),
    (["dog", "hot dog", "Hot-Dog!"], "a {}", 5, "'hot dog' and 'Hot-Dog!' have the same prompt, 'a hot dog'"),
    (["dog", "cat", "?"], "a {}", 5, "--classes: '[?]' has no word"),
    (["dog", "cow"], "a {}", 5, "--classes: cow: not among the 7 words of the training captions")])
def test_prompts_must_fit_the_length_and_differ(classes, template, length, message):
    tokenizer = WordTokenizer(["a", "photo", "of", "cat", "dog", "hot", "and"], length, unknown=True)
    if message is None:
        require_prompts(classes, template, tokenizer)
    else:
        with pytest.raises(DataError, match=message) as caught:
            require_prompts(classes, template, tokenizer)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("captions, length, cut, message", [
    (["a dog", "a cat"], 2, 0, None), (["a dog", "a cat", "A dog!"], 2, 0, None), (["a dog", "a cow"], 2, 0, None),
    (["a dog runs", "a cat"], 2, 1, None), (["a dog", "a cat"], 1, 2, "all 2 .* within --length 1 words"),
    (["a cow", "a pig", "A hen."], 3, 0, "all 3 training captions are read as the same words.*--min-count"),
    (["a dog"], 2, 0, "all 1 training captions"), (["dog", "dog dog"], 1, 1, "within --length 1 words")])
def test_captions_that_are_all_read_as_the_same_are_refused_and_cut_ones_counted(captions, length, cut, message):
    tokenizer, log = WordTokenizer(["a", "dog", "cat"], length, unknown=True), []
    if message is None:
        require_captions(captions, tokenizer(captions), tokenizer, log.append)
    else:
        with pytest.raises(DataError, match=message):
            require_captions(captions, tokenizer(captions), tokenizer, log.append)
    assert log[:cut > 0] == [f"cut: {cut} of the {len(captions)} training captions have more than --length {length} words"] * (cut > 0)
    assert not any("read alike" in line for line in log)


@pytest.mark.parametrize("captions, length, different, read", [
    (["a cow", "a pig", "a dog"], 9, 3, 2), (["a dog", "A dog!", "a cat"], 9, 2, 2), (["a dog a", "a dog cat", "cat"], 2, 3, 2),
    (["dog", "cow", "cow", "cat"], 9, 3, 3), (["cow", "pig", "hen", "dog"], 9, 4, 2), (["cow pig", "pig cow", "cow", "dog"], 9, 4, 3)])
def test_captions_that_are_read_alike_are_counted(captions, length, different, read):
    tokenizer, log = WordTokenizer(["a", "dog", "cat"], length, unknown=True), []
    require_captions(captions, tokenizer(captions), tokenizer, log.append)
    found = [line for line in log if line.startswith("read alike")]
    assert [f"the {different} different training captions are read as {read}, " in line for line in found] == [True] * (read < different)


# ---------------------------------------------------------------- whole runs

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
SMALL = ("--size", 32, "--width", 2, "--dim", 8, "--batch", 20, "--epochs", 1, "--log-every", 1, "--text", "bag")


@pytest.fixture
def photos(tmp_path):
    """80 pictures of four colours, and a file with two captions for each."""
    rng = np.random.default_rng(0)
    lines = ["image\tcaption"]
    (tmp_path / "my phötos").mkdir()
    for k, (name, colour) in enumerate(list(COLOURS.items()) * 20):
        pixels = np.clip(colour + rng.normal(0, 20, (40, 36, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"my phötos/{k}.png")
        lines += [f"{k}.png\tA {name} picture, $5 & $^", f"{k}.png\tit is {name}."]
    (tmp_path / "my phötos/captions.tsv").write_text("\n".join(lines))
    return tmp_path / "my phötos"


@pytest.fixture
def example(monkeypatch, tmp_path, photos):
    """example(*options): run the script on the photos without pictures; returns (exit code, folder)."""
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))

    def run(*options, out="out"):
        return run_example("clip_images", "--captions", photos / "captions.tsv", *SMALL, *options, "--out", tmp_path / out), \
            tmp_path / out
    return run


def test_words_find_colours(example, photos):
    """Images of four colours are matched with four words: chance is 1/4. Captions that are read as the same words are one
    candidate, however they are written."""
    lines = (photos / "captions.tsv").read_text().splitlines()
    (photos / "captions.tsv").write_text("\n".join(line.replace("A ", "a ").replace("picture,", "PICTURE") if k % 3 else line
                                                   for k, line in enumerate(lines)))
    code, folder = example("--epochs", 60, "--lr", 0.01, "--dim", 16, "--width", 4, "--classes", *COLOURS, "--template", "it is {}")
    result, log = read_run(folder)
    assert code == 0 and result["zero_shot_pictures"] == 8 and result["zero_shot"] == 1
    assert result["candidates"] == 4 and result["text_r1"] == result["image_r1"] == 1
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


@pytest.mark.parametrize("options", [(), ("--text", "transformer", "--chunk", 10, "--classes", "red", "blue")])
def test_a_run_can_be_loaded_and_resumed(example, options, xp):
    options = (*options, "--backend", "numpy" if xp is np else "cupy")
    code, folder = example(*options)
    first = read_run(folder)
    assert code == 0 and math.isfinite(first[0]["loss"]) and example(*options, "--resume")[0] == 0
    assert read_run(folder)[1] == first[1]
    trained = minicl.load(folder)
    with pytest.warns(UserWarning, match="encode_text: else, entirely: not among the 9 words of the run's captions"):
        words = trained.encode_text(["A red picture", "it is else entirely"])
    for captions in ("zzz", ["it is red", "two dogs"]):
        with pytest.raises(DataError, match=r"encode_text: no word of '(zzz|two dogs)' is among the 9 words"):
            trained.encode_text(captions)
    assert words.shape == trained.encode(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 8)


def test_a_batch_of_one_caption_has_the_loss_0(example):
    """Of each picture's two captions a word is read, "a" or "it", so half of the batches of two have no negative."""
    code, folder = example("--length", 1, "--batch", 2)
    losses = [line["loss"] for line in read_run(folder)[1]]
    assert code == 0 and len(losses) == 36 and 6 < sum(loss == 0 for loss in losses) < 30
    assert all(math.isfinite(loss) for loss in losses)


def test_captions_that_are_all_the_same_leave_no_run(example, photos, capsys):
    lines = (photos / "captions.tsv").read_text().splitlines()
    (photos / "captions.tsv").write_text("\n".join(line for line in lines if "it is" not in line))
    code, folder = example("--length", 1)
    message = "all 72 training captions are read as the same words"
    assert code == 2 and message in capsys.readouterr().err.splitlines()[-1] and not folder.exists()


def test_pictures_are_drawn(example, monkeypatch):
    monkeypatch.setattr(viz, "Figure", pytest.importorskip("matplotlib.figure").Figure)
    code, folder = example("--classes", "red", "blue")
    assert code == 0 and {path.stem for path in folder.glob("*.png")} == {"captions", "classes", "curves"}


@pytest.mark.parametrize("options, message", [
    (("--classes", "red", "beige"), "--classes: beige: not among the 9 words"), (("--classes", "red"), "two or more"),
    (("--classes", "red", "red"), "two or more different"), (("--classes", "red", "blue", "--length", 4), "would be cut to 'a photo of a'"),
    (("--classes", "red", "Red"), "'red' and 'Red' have the same prompt"), (("--template", "no place"), "{} in --template"),
    (("--captions", "nowhere.csv"), "nowhere.csv: No such file"), (("--data-dir", "nowhere"), "nowhere is not a folder"),
    (("--data-dir", "/"), "/ has none of the pictures that"),
    (("--captions", ""), "--captions: expected the name of"), (("--min-count", 1000), "no word occurs 1000 times"),
    (("--tau", 0.001), "--tau: expected 0.01"), (("--batch", 100), "expected a batch of 1 to 72, the number of items")])
def test_invalid_options_give_one_line_and_leave_no_run(example, capsys, options, message):
    code, folder = example(*options)
    assert code == 2 and message in capsys.readouterr().err.splitlines()[-1] and not folder.exists()


def test_missing_pictures_are_named_and_refused_above_a_tenth(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    log = []
    (photos / "3.png").unlink()
    data = load_captioned(photos / "captions.tsv", None, 32, log=log.append)
    assert any("skipped" in line and "3.png: No such file" in line for line in log)
    assert len(data.train_images) + len(data.test_images) == 79 and len(data.train_starts) == len(data.train_images) + 1
    for images, captions, starts in ((data.train_images, data.train_captions, data.train_starts),
                                     (data.test_images, data.test_captions, data.test_starts)):
        for image, lo, hi in zip(images, starts, starts[1:]):            # each picture has kept its own captions
            colour = min(COLOURS, key=lambda name: np.abs(image.mean(axis=(0, 1)) - COLOURS[name]).sum())
            assert hi - lo == 2 and all(colour in caption for caption in captions[lo:hi])
    few = load_captioned(photos / "captions.tsv", None, 32, limit=5, log=log.append)
    assert len(few.train_images) == len(few.test_images) == 5 and (few.test_captions == data.test_captions[:10]).all()
    for k in range(8):
        (photos / f"{k}.png").unlink(missing_ok=True)
    with pytest.raises(DataError, match="8 of the first .* of 80 are broken"):
        load_captioned(photos / "captions.tsv", None, 32, log=log.append)


def test_windows_paths_are_found_and_a_backslash_in_a_name_is_kept(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    write_pictures(photos, ["sub/er/1.png", "back\\slash.png"])
    with open(photos / "captions.tsv", "a") as file:
        file.write("\nsub\\er\\1.png\ta red picture\nback\\slash.png\ta red picture")
    log = []
    data = load_captioned(photos / "captions.tsv", None, 16, log=log.append)
    assert len(data.train_images) + len(data.test_images) == 82 and not [line for line in log if "skipped" in line or "left out" in line]


@pytest.mark.parametrize("name", ["a\0.png", "sub\0/a.png", "x" * 300 + ".png", "ö" * 300 + ".png", "ö\\\0.png"])
def test_an_impossible_file_name_counts_as_a_broken_picture(photos, tmp_path, monkeypatch, name):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    with open(photos / "captions.tsv", "a") as file:
        file.write(f"\n{name}\ta red picture")
    log = []
    data = load_captioned(photos / "captions.tsv", None, 16, log=log.append)
    assert len(data.train_images) + len(data.test_images) == 80 and [line for line in log if line.startswith("skipped")]


def test_the_commands_in_the_docstring_run(example, photos, capsys):
    write_pictures(photos, numbered("", 1))
    text = (EXAMPLES / "clip_images.py").read_text().split('"""')[1]
    commands = [shlex.split(line.split("#")[0]) for line in text.splitlines() if line.strip().startswith("python")]
    assert len(commands) == 3
    lines = (photos / "captions.tsv").read_text() + "\n1.png\ta dog, a cat\n2.png\tone traffic light, a cat and a dog"
    (photos / "captions.tsv").write_text(lines + "\n3.png\ta traffic light")
    for k, (_, script, *options) in enumerate(commands):
        assert script == "examples/clip_images.py"
        small = ("--captions", photos / "captions.tsv", "--data-dir", photos, "--backend", "numpy", "--min-count", 1, *SMALL)
        assert example(*options, *small, out=f"command {k}")[0] == 0, capsys.readouterr().err
