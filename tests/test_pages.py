"""README and docs can be read: at most 12 minutes a page, and a median sentence of at most 20 words."""

import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *(````?`?)\w*\n.*?^ *\1$", re.MULTILINE | re.DOTALL)
WORDS_A_MINUTE = 225
LOOKED_UP = ("docs/changelog.md",)                           # and not read from top to bottom


def visible(text):
    """A page without the targets of its links, its pictures and its HTML tags."""
    return re.sub(r"!\[[^]]*\]\([^)]*\)|(?<=\])\([^)]*\)|<[^>]*>", "", text)


def minutes(text):
    """The time to read a page: words of prose, tables and code at the same speed."""
    return len(re.findall(r"[^\s|]*\w[^\s|]*", visible(text))) / WORDS_A_MINUTE


def sentence_lengths(text):
    """Words of each sentence of a page's paragraphs and lists; code, formulas, tables and headings are left out."""
    prose = re.sub(r"^ *(\||#).*$", "", FENCE.sub("\n\n", visible(text)), flags=re.MULTILINE)
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "code", prose)
    sentences = re.split(r"(?<=[.!?:])\**\s+|\n\s*\n|\n *(?:[-*]|\d+\.) ", prose)
    return [words for sentence in sentences if (words := len(re.findall(r"\w[\w'-]*", sentence))) > 2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_read_in_12_minutes_and_has_short_sentences(page):
    text = page.read_text()
    assert page.relative_to(ROOT).as_posix() in LOOKED_UP or minutes(text) <= 12
    assert statistics.median(sentence_lengths(text) or [0]) <= 20


def test_minutes_count_words_and_no_targets_of_links():
    assert minutes("one [two three](../a/b.md) | four | -- |\n![five](six.png)\n```bash\npython seven.py\n```") == 7 / WORDS_A_MINUTE
