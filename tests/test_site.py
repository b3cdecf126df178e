"""The docs as an offline site: every formula is rendered, every link resolves, and the search works from a file."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_formulas import PAGES, formulas
from test_play import FLAGS, find_browser

ROOT = Path(__file__).resolve().parents[1]
for needed in ("material", "latex2mathml"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed} (extra: docs)", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    run = subprocess.run([sys.executable, ROOT / "docs/make_site.py", out], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "contains a link" not in run.stderr, run.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: path.read_text() for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_formula_is_rendered(pages, site):
    for source in PAGES:
        name = source.relative_to(ROOT).as_posix()
        page = pages[site / ("index.html" if name == "README.md" else name.replace("README.md", "index.md")[:-3] + ".html")]
        text = re.sub(r"^ *````markdown\n.*?^ *````$", "", source.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert len(re.findall("<math", page)) == len(formulas(text)) + len(re.findall(r"^ *```math$", text, re.MULTILINE)), name
        shown = re.sub(r"<[^>]*>", "", re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page, flags=re.DOTALL))
        assert not re.search(r"\$|\\[a-z]+", shown), name


def test_every_link_resolves(pages):
    anchors = {path: {html.unescape(a) for a in re.findall(r'\bid="?([^"\s>]+)', text)} for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        for link in map(html.unescape, re.findall(r'(?:href|src)="?([^"\s>]+)', text)):
            if re.match(r"https?:|data:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            if not target.is_file() or anchor and target in anchors and unquote(anchor) not in anchors[target]:
                dead.append((path.name, link))
    assert not dead
    loaded = {link for text in pages.values() for link in re.findall(r'<(?:script|img|link)[^>]*(?:href|src)="?(https?:[^"\s>]+)', text)}
    assert not loaded, "the site needs a network"


def test_the_search_works_in_a_browser(site, tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (chromium, chromium-browser or google-chrome)")
    run = subprocess.run([program, *FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom",
                          f"{(site / 'index.html').as_uri()}?q=temperature"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in run.stderr, run.stderr
    assert re.search(r"\d+ matching documents", run.stdout)
    assert "gradients/softmax.html" in run.stdout.partition("matching documents")[2]
