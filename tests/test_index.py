"""docs/index.md is up to date, its links resolve, its code runs, and every loss has a derivation and a test."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import minicl
from minicl import contrastive

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("make_index", ROOT / "docs/make_index.py")
make_index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_index)
PAGE = ROOT / "docs/index.md"


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)}


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == make_index.index(), "run python docs/make_index.py"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE.read_text()))))
def test_links_resolve(target):
    file, _, anchor = target.partition("#")
    path = (PAGE.parent / file).resolve()
    assert path.exists()
    if anchor:
        assert anchor in anchors(path)


@pytest.mark.parametrize("code", [code for _, code, _ in make_index.FROM_PYTORCH])
def test_the_equivalents_of_pytorch_code_run(code, rng):
    x, y = minicl.Tensor(np.ones((4, 3))), minicl.Tensor(np.zeros((4, 3)))
    model = minicl.nn.Linear(4, 3, rng=rng)
    model(np.ones((2, 4), "float32")).sum().backward()
    eval(code, {**vars(minicl), **{name: getattr(minicl, name) for name in minicl.__all__}, "np": np, "rng": rng, "x": x,
                "y": y, "model": model, "labels": np.array([0, 1, 2, 0])})


def test_every_loss_has_a_derivation_and_a_test():
    section = PAGE.read_text().split("## Losses and similarities")[1].split("\n## ")[0]
    rows = {cells[0].strip("|` "): cells for line in section.splitlines() if len(cells := line.split(" | ")) == 7}
    losses = [name for name, thing in vars(contrastive).items() if hasattr(thing, "checks")]
    assert len(losses) >= 12
    for name in losses:
        assert rows[name][2] and rows[name][3], name
