"""The commands of README and docs/pictures.md run in order: train on a folder of mixed pictures, search it, load,
export."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from example_runs import run_example
from PIL import Image

from minicl import viz

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/pictures.md").read_text()


def section(text, title):
    return re.search(rf"^##+ {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def commands(text):
    """[(script, arguments), ...] of the commands in a text that run examples."""
    code = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [(script, shlex.split(arguments, comments=True)) for script, arguments in
            re.findall(r"^python examples/(\w+)\.py (.*)$", code, re.MULTILINE)]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with pictures of many kinds in photos/, and a run trained by README's commands."""
    here = tmp_path_factory.mktemp("road of a new user")
    photos = here / "photos"
    photos.mkdir()
    for k in range(60):
        rng = np.random.default_rng(k)
        ramp = np.linspace(0, 255, 48 + k)[:, None, None] * rng.random(3) + rng.normal(0, 20, (48 + k, 70 - k // 2, 3))
        image = Image.fromarray(ramp.clip(0, 255).astype("uint8"))
        mode, suffix = [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"),
                        ("RGB", "webp"), ("I;16", "png")][k % 9]
        image = Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257) if mode == "I;16" else image.convert(mode)
        image.save(photos / f"{['beach', 'forest', f'bild {k} ü'][min(k, 2)]}.{suffix}")
    Image.open(photos / "forest.png").save(photos / "forest.jpg")
    (photos / "broken.jpg").write_bytes((photos / "beach.jpg").read_bytes()[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("MINICL_CACHE", str(here / "cache"))
        patch.setattr(viz, "Figure", None)
        (train, options), (search, query) = commands(section(README, "Your own pictures"))
        assert (train, search) == ("simclr_images", "search")
        assert run_example(train, *options, "--size", 32, "--epochs", 1, "--batch", 16, "--width", 4) == 0
        assert run_example(search, *query) == 0
    return here


def test_the_commands_of_readme_end_in_a_search_page(here):
    assert json.loads((here / "runs/simclr_images/result.json").read_text())["data"] == "photos"
    page = (here / "runs/simclr_images/search.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 13 and "beach.jpg" in page


def test_the_code_of_the_page_loads_the_trained_model(here, monkeypatch):
    monkeypatch.chdir(here)
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", section(PAGE, "3. Load and use"), re.MULTILINE | re.DOTALL)[1], names)
    assert names["h"].shape == (2, names["trained"].model.encoder.features) and np.isfinite(names["h"]).all()
    assert re.search(r'minicl\.load\("runs/simclr_images"\)\.encode\(\["photos/beach\.jpg"\]\)', README)
    assert np.allclose(names["trained"].encode(["photos/beach.jpg"]), names["h"][:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("script, arguments", commands(section(PAGE, "3. Load and use")), ids=lambda x: str(x))
def test_the_export_commands_of_the_page_run(here, monkeypatch, script, arguments):
    for library in {"export": ["safetensors", "onnx"], "to_pytorch": ["torch"]}[script]:
        pytest.importorskip(library)
    monkeypatch.chdir(here)
    assert run_example(script, *arguments) == 0 and Path(arguments[-1]).stat().st_size > 1000


def test_the_code_of_the_page_reads_a_folder_and_a_file(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("MINICL_CACHE", str(here / "cache"))
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", section(PAGE, "1. Your folder"), re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["data"].train_images.shape == (55, 64, 64, 3) and names["image"].shape == (64, 64, 3)  # of 61


@pytest.mark.parametrize("title", ["2. Train", "7. Captions"])
def test_the_commands_of_the_page_train(here, monkeypatch, tmp_path, title):
    monkeypatch.chdir(here)
    monkeypatch.setenv("MINICL_CACHE", str(here / "cache"))
    monkeypatch.setattr(viz, "Figure", None)
    files = sorted(path.name for path in (here / "photos").iterdir() if path.suffix != ".csv")
    captions = [f"{file},a {('dog', 'cat', 'traffic light')[k % 3]} in the {('park', 'street')[k % 2]}" for k, file in enumerate(files)]
    (here / "photos/captions.csv").write_text("\n".join(["image,caption", *captions]), encoding="utf-8")
    found = commands(section(PAGE, title))
    assert len(found) == {"2. Train": 3, "7. Captions": 2}[title]
    for k, (script, options) in enumerate(found):
        small = ("--backend", "numpy", "--size", 32, "--epochs", 1, "--batch", 16, "--width", 2, "--dim", 8)
        assert run_example(script, *options, *small, "--out", tmp_path / f"{k}") == 0
    if title == "7. Captions":
        shutil.copytree(tmp_path / "0", here / "runs/clip_images")
        names = {}
        with pytest.warns(UserWarning, match="beach, car, dogs, on, red, two: not among the 9 words"):
            exec(re.search(r"^```python\n(.*?)^```", section(PAGE, title), re.MULTILINE | re.DOTALL)[1], names)
        scores = names["text"] @ names["image"].T
        assert scores.shape == (2, 1) and (abs(scores) <= 1.001).all()
