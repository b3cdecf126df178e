"""README and docs are readable: a page takes at most 12 minutes and has a median sentence of at most 20 words."""

import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *(````?`?)\w*\n.*?^ *\1$", re.MULTILINE | re.DOTALL)
WORDS_A_MINUTE = 225
LOOKED_UP = ("docs/changelog.md",)                           # not read from top to bottom


def visible(text):
    """The text of a page without link targets, pictures and HTML tags."""
    return re.sub(r"!\[[^]]*\]\([^)]*\)|(?<=\])\([^)]*\)|<[^>]*>", "", text)


def minutes(text):
    """The minutes to read a page, at the same speed for prose, tables and code."""
    return len(re.findall(r"[^\s|]*\w[^\s|]*", visible(text))) / WORDS_A_MINUTE


def sentence_lengths(text):
    """The number of words of each sentence in paragraphs and lists, without code blocks, tables and headings."""
    prose = re.sub(r"^ *(\||#).*$", "", FENCE.sub("\n\n", visible(text)), flags=re.MULTILINE)
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "code", prose)
    sentences = re.split(r"(?<=[.!?:])\**\s+|\n\s*\n|\n *(?:[-*]|\d+\.) ", prose)
    return [words for sentence in sentences if (words := len(re.findall(r"\w[\w'-]*", sentence))) > 2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_read_in_12_minutes_and_has_short_sentences(page):
    text = page.read_text()
    assert page.relative_to(ROOT).as_posix() in LOOKED_UP or minutes(text) <= 12
    assert statistics.median(sentence_lengths(text) or [0]) <= 20


def test_minutes_count_words_but_not_link_targets():
    assert minutes("one [two three](../a/b.md) | four | -- |\n![five](six.png)\n```bash\npython seven.py\n```") == 7 / WORDS_A_MINUTE
