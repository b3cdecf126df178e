"""Every example trains bit for bit the same with --capture, or logs why it cannot capture its step."""

import functools

import numpy as np
import pytest
import sequences
from example_runs import run_example
from picture_files import numbered, write_pictures
from small_runs import assert_same_end

from minicl.cuda_graph import Graph
from minicl.data import digits, shapes
from minicl.nn import WordTokenizer

pytestmark = pytest.mark.skipif("config.getoption('--backend') not in ('cupy-host', 'cupy')",
                                reason="needs --backend cupy-host, or a GPU")

SMALL = ("--epochs", 2, "--batch", 10)
DIGITS, PICTURES = ("--data", "digits", *SMALL), ("--size", 32, "--width", 4, "--dim", 8, *SMALL)
MOCO = ("--queue", 40, "--splits", 2)
SCRIPTS = {
    "simclr_mnist": ((*DIGITS, "--encoder", "mlp"), None), "moco_mnist": ((*DIGITS, *MOCO), None),
    "circle": (DIGITS, None), "collapse": (DIGITS, None), "clip_captions": (DIGITS, None),
    "simclr_cifar10": (("--data", "shapes", "--width", 4, *SMALL), None), "simclr_images": (PICTURES, None),
    "moco_images": ((*PICTURES, *MOCO), "MoCo.loss takes ids from the host"),
    "clip_images": ((*PICTURES, "--text", "bag"), None), "cpc_sequences": (("--epochs", 2, "--batch", 8), None),
    "mutual_information": (("--epochs", 1, "--batch", 16, "--dim", 3, "--pairs", 512), None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")           # the warnings are about small batches
@pytest.mark.parametrize("script, options, reason", [(script, *case) for script, case in SCRIPTS.items()], ids=list(SCRIPTS))
def test_a_captured_run_ends_as_the_plain_run_does(script, options, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 60, 60))
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes, 60, 30))
    monkeypatch.setattr(sequences, "generate_rotations", functools.partial(sequences.generate_rotations, n_train=48, n_test=32))
    if script == "clip_captions":                            # otherwise the longest caption of a batch of 10 varies
        def padded(self, captions, tokenize=WordTokenizer.forward):
            ids = tokenize(self, captions)
            return np.pad(ids, ((0, 0), (0, self.length - ids.shape[1])))

        monkeypatch.setattr(WordTokenizer, "forward", padded)
    if script.endswith("_images"):
        names = [name for label in "abc" for name in numbered(label, 25)]
        write_pictures(tmp_path / "photos", names)
        captions = [f"{name},it is {('red', 'blue')[k % 2]} and number {k % 9}" for k, name in enumerate(names)]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *captions]))
        options = (*options, "--data-dir", tmp_path / "photos", *(["--captions", tmp_path / "captions.csv"] * (script == "clip_images")))
    launched = []
    monkeypatch.setattr(Graph, "launch", lambda self, *values, launch=Graph.launch: launched.append(1) or launch(self, *values))
    for name, more in (("plain", []), ("captured", ["--capture"])):
        assert run_example(script, *options, "--log-every", 1, "--backend", "cupy", "--out", tmp_path / name, *more) == 0
    reasons = [line for line in capsys.readouterr().out.splitlines() if "not captured" in line]
    assert reasons == [] and launched if reason is None else len(reasons) == 1 and reason in reasons[0]
    assert_same_end(tmp_path / "plain", tmp_path / "captured")
