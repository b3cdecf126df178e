"""Build README and docs as a site that is read offline: open index.html, search included.

    python docs/make_site.py OUT           # needs the extra `docs`

MkDocs makes the pages, and formulas become MathML, which browsers show without a script. Source files that the pages link to
become pages themselves.
"""

import argparse
import html
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import latex2mathml.converter
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))                       # MkDocs imports MathExtension by its name
LINK = re.compile(r"(\]\()([^)\s#]+)")
WORKER_FROM_A_FILE = """
if (location.protocol === "file:") window.IFrameWorker = window.Worker = class extends EventTarget {
  constructor(url) {                      // a browser starts no worker from a file: run its script in a frame instead
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const inner = frame.contentWindow, script = inner.document.createElement("script");
    inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
    script.src = url;
    this.started = new Promise(resolve => { script.onload = () => resolve(inner); });
    inner.document.body.append(script);
  }
  postMessage(data) {
    this.started.then(inner => inner.dispatchEvent(new MessageEvent("message", {data})));
  }
};"""
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
CSS = """\
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
.math { margin: 1em 0; padding: 0.3em 0; overflow: auto hidden; }
.md-sidebar { width: 10.5rem; }
.md-typeset pre > code { font-size: 0.72em; }
.md-grid { max-width: 80rem; }
.md-typeset table:not([class]) { font-size: 0.6rem; }
.md-typeset table:not([class]) :is(td, th) { padding: 0.5em 0.6em; min-width: 2rem; }
.md-typeset table:not([class]) code { padding: 0; word-break: normal; overflow-wrap: normal; }
"""
LANGUAGES = {".py": "python", ".cfg": "ini", ".toml": "toml", ".json": "json", "": "text"}
NAVIGATION = {
    "Start": ["README.md", "docs/runs.md", "docs/pictures.md", "docs/distributed.md", "docs/notebooks/README.md"],
    "Learn": ["docs/reading-order.md", "docs/course.md", "docs/exercises.md", "docs/bugs.md", "docs/theory.md",
              "docs/derivations.md", "docs/explain.md"],
    "Claims": ["docs/claims.md", "docs/claims"],
    "Methods": ["docs/methods"],
    "Gradients": ["docs/gradients"],
    "Reference": ["docs/index.md", "docs/benchmarks.md", "docs/scaling.md", "docs/reliability.md", "docs/contributing.md",
                  "docs/changelog.md"],
}


def make_site(out: Path) -> None:
    """Write the site to `out`, a folder that is new, empty, or an earlier site."""
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder, "pages")
        shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("__pycache__", "*.py", "runs", ".*"))
        shutil.copy(ROOT / "README.md", pages / "README.md")
        play = pages / "docs/play.html"
        play.write_text(re.sub(r'(<a href="[^":]+)\.md', r"\1.html", play.read_text()))
        (pages / "pages.css").write_text(CSS)
        for page in sorted(pages.rglob("*.md")):
            page.write_text(_with_pages_of_sources(page.read_text(), page.relative_to(pages).parent, pages))
        build(load_config(
            config_file=_config_file(folder), docs_dir=str(pages), site_dir=str(out), site_name="minicl",
            nav=_navigation(pages), not_in_nav="*", validation={"links": {"anchors": "warn"}}, strict=True,
            theme={"name": "material", "font": False,
                   "features": ["navigation.sections", "navigation.top", "search.highlight", "toc.integrate"]},
            plugins=["search", "offline"], extra={"generator": False, "homepage": "index.html"}, extra_css=["pages.css"],
            markdown_extensions=["tables", "pymdownx.highlight", f"{Path(__file__).stem}:MathExtension",
                                 {"toc": {"slugify": _slug}},
                                 {"pymdownx.superfences": {"custom_fences": [
                                     {"name": "math", "class": "math", "format": _display},
                                     {"name": "mermaid", "class": "mermaid", "format": _plain}]}}]))
        for page in out.rglob("*.html"):
            page.write_text(page.read_text().replace('<script src="https://unpkg.com/iframe-worker/shim"></script>',
                                                     f"<script>{WORKER_FROM_A_FILE}</script>"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build README and docs as a site that is read offline.")
    parser.add_argument("out", type=Path, help="the folder to write")
    out = parser.parse_args().out.resolve()
    if out.exists() and any(out.iterdir()) and not (out / "search/search_index.json").exists():
        parser.error(f"{out} holds something else; name a new folder, so that nothing is lost")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    make_site(out)
    print(f"open {out / 'index.html'}")


def _config_file(folder):
    path = Path(folder, "mkdocs.yml")
    path.write_text("site_name: minicl\n")
    return str(path)


def _navigation(pages):
    """MkDocs' nav: [{title: [{title: file}]}]; a folder stands for its pages."""
    def title(file):
        return re.match(r"# (.*)", (pages / file).read_text())[1].replace("`", "")

    def files(entry):
        path = pages / entry
        return [entry] if path.is_file() else sorted(str(file.relative_to(pages)) for file in path.glob("*.md"))

    return [{section: [{title(file): file} for entry in entries for file in files(entry)]}
            for section, entries in NAVIGATION.items()]


def _slug(heading, separator):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]|[\u00b2\u00b3]", "", heading.lower()).replace(" ", separator)


def _with_pages_of_sources(text, folder, pages):
    """A page's text, with its links to source files and folders led to pages that show them, which are written."""
    def lead(match):
        link = match[2]
        if ":" in link or link.startswith("/"):
            return match[0]
        target = Path(os.path.normpath(folder / link))
        source = ROOT / target
        if target.suffix in (".md", ".png", ".html", ".ipynb") or (pages / target).is_file():
            return match[0]
        page = pages / f"{target}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            files = [path.name for path in sorted(source.glob("*.py"))]
            links = "\n".join(f"- [{name}]({source.name}/{name})" for name in files)
            page.write_text(f"{UNSEARCHED}# {target}\n\n{_with_pages_of_sources(links, target.parent, pages)}\n")
        else:
            language = LANGUAGES.get(target.suffix, "text")
            page.write_text(f"{UNSEARCHED}# {target}\n\n````{language}\n{source.read_text()}\n````\n")
        return f"{match[1]}{link}.md"

    parts = re.split(r"(^ *(?:````?)\w*\n.*?^ *````?$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else LINK.sub(lead, part) for number, part in enumerate(parts))


# ---------------------------------------------------------------- formulas

FUNCTION = r"(?<!<msub>)(?<!<msup>)<mi>(?:cos|exp|log|sin)</mi>"
GAP = '<mspace width="0.17em"></mspace>'


def _mathml(source, display="inline"):
    """A formula as MathML, with the gaps around names of functions (log K) that latex2mathml leaves out."""
    text = latex2mathml.converter.convert(source, display=display)
    text = re.sub(rf"({FUNCTION})(?=<m(?!o))", rf"\1{GAP}", text)
    return re.sub(rf"(</mi>|</mn>|</msub>|</msup>|</mfrac>)(?={FUNCTION})", rf"\1{GAP}", text)


def _display(source, language, css_class, options, md, **kwargs):
    return f'<div class="math">{_mathml(source, "block")}</div>'


def _plain(source, language, css_class, options, md, **kwargs):
    return f"<pre><code>{html.escape(source)}</code></pre>"


class MathExtension(Extension):
    """Inline formulas, $...$ and $`...`$, as MathML."""

    def extendMarkdown(self, md):
        md.inlinePatterns.register(_Inline(r"\$(`?)([^$`\n]+(?:\n[^$`\n]+)?)\1\$", md), "math", 200)    # before code, at 190


class _Inline(InlineProcessor):
    def handleMatch(self, m, data):
        return self.md.htmlStash.store(_mathml(m[2])), m.start(0), m.end(0)


if __name__ == "__main__":
    main()
