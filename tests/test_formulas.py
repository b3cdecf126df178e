"""Markdown leaves the formulas of README and docs unchanged."""

import re
from pathlib import Path

import pytest

MarkdownIt = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed (extra: test)").MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOKEN = re.compile(r"^ *(````?`?)\w*\n.*?^ *\1$|(?P<formula>\$(`?)[^$`\n]+(?:\n[^$`\n]+)?\3\$)|`[^`\n]+`|\$\$", re.MULTILINE | re.DOTALL)


def formulas(text):
    """The formulas in a page's source, as a list: $...$, or $`...`$ where Markdown would change $...$."""
    return [token["formula"] or token[0] for token in TOKEN.finditer(text) if token[0].startswith("$")]


def rendered(text):
    """The text of a page as a CommonMark parser outputs it, with code in ` and markup tokens as <name>."""
    marks = {"softbreak": "\n", "hardbreak": "\n"}
    return "\n".join("".join(f"`{part.content}`" if part.type == "code_inline" else
                             part.content if part.type == "text" else marks.get(part.type, f"<{part.type}>")
                             for part in token.children)
                     for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "inline")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_markdown_leaves_formulas_alone(page):
    text = page.read_text()
    shown = rendered(text)
    changed = [formula for formula in formulas(text) if formula not in shown]
    assert not changed, "write these as $`...`$:\n" + "\n".join(changed)
    assert "$$" not in formulas(text), "write display formulas in ```math fences: Markdown changes $$...$$"


def test_a_formula_that_markdown_changes_is_found():
    for formula in (r"$a\,b$", "$x_{i}_j + y_{k}_l$ and $z_{i}_j$", r"$\{x\}$"):
        assert any(part not in rendered(formula) for part in formulas(formula)), formula
    for formula in (r"$`a\,b`$", "$x_{ij}$"):
        assert formulas(formula) == [formula] and formula in rendered(formula)
