"""Invalid and extreme values of every example's options are used, or refused in one line that names the option."""

import argparse
import functools
import json
import math
import runpy

import pytest
from example_runs import EXAMPLES, run_example
from picture_files import numbered, write_pictures

import sequences
from minicl import viz
from minicl.data import digits, shapes

NAMES = ["simclr_mnist", "moco_mnist", "clip_captions", "circle", "collapse", "cpc_sequences", "simclr_cifar10",
         "mutual_information", "simclr_images", "moco_images", "clip_images"]
HOSTILE = ["", " ", "nan", "NaN", "inf", "-inf", "-1", "-0.5", "0", "-0", "1", "1.5", "1e400", "1e-400", "1e-320",
           "1e308", "0x10", "1_000", "\u0663", "\u221e", "None", "True", "9" * 30, "9" * 5000, "-" + "9" * 30, "1e", "1,5",
           "10 20", "\udcff", "%s", "{}", "$HOME", "~nobody", "../..", "a" * 5000, "2147483648", "16777217", "65537", "1025",
           "--"]


class Parser(BaseException):
    """Carries a parser out of main(); not an error."""


@functools.cache
def parser_of(name):
    """The argument parser of an example, which is run until it parses its options."""
    def carry_out(parser, *arguments):
        raise Parser(parser)

    before = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = carry_out
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    except Parser as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = before


def options_of(name):
    return [action for action in parser_of(name)._actions if action.option_strings and action.nargs is None]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_value_is_refused_by_its_options_name_or_in_range(name, capsys):
    refused = used = 0
    for action in options_of(name):
        option = action.option_strings[-1]
        for value in HOSTILE:
            try:
                found = getattr(parser_of(name).parse_args([f"{option}={value}"]), action.dest)
            except SystemExit as end:
                shown = capsys.readouterr().err
                assert end.code == 2 and f"error: argument {option}" in shown, (option, value)
                assert "Traceback" not in shown and len(shown.splitlines()[-1]) < 6000
                refused += 1
                continue
            used += 1
            if isinstance(found, float):
                assert math.isfinite(found) and found >= 0, (option, value)
            elif isinstance(found, int):
                assert 0 <= found <= (2**63 - 1 if option == "--seed" else 2**24), (option, value)
            else:
                assert option == "--template" or option in ("--out", "--data-dir", "--captions") and found.strip(), (option, value)
    assert refused > used > 0


def test_every_training_example_is_in_the_table():
    assert set(NAMES) == {path.stem for path in EXAMPLES.glob("*.py") if "minicl.run import Run," in path.read_text()}


# ---------------------------------------------------------------- whole runs

SMALL = {
    "simclr_mnist": ("--data", "digits", "--encoder", "mlp"),
    "moco_mnist": ("--data", "digits", "--queue", "50", "--splits", "2"),
    "clip_captions": ("--data", "digits", "--text", "bag", "--dim", "4"),
    "circle": ("--data", "digits"),
    "collapse": ("--data", "digits", "--dim", "4"),
    "cpc_sequences": ("--hidden", "4", "--dim", "4"),
    "simclr_cifar10": ("--data", "shapes", "--width", "2", "--dim", "4"),
    "mutual_information": ("--pairs", "600", "--log-every", "50"),
    "simclr_images": ("--data-dir", "photos", "--size", "32", "--width", "2", "--dim", "4"),
    "moco_images": ("--data-dir", "photos", "--size", "32", "--width", "2", "--dim", "4", "--splits", "2"),
    "clip_images": ("--captions", "photos/captions.csv", "--size", "32", "--width", "2", "--dim", "4"),
}
EVERYWHERE = ["--tau=1e-30", "--tau=1e300", "--lr=1e-300", "--lr=1e300", "--batch=65536", "--batch=41",
              "--log-every=16777216", "--seed=9223372036854775807"]
MORE = {
    "simclr_mnist": ["--threads=64", "--weight-decay=1e300", "--dim=2000", "--data-dir=nowhere",
                     "--data=mnist --data-dir=~nobody"],
    "moco_mnist": ["--momentum=0.99999999999", "--momentum=0", "--splits=16777216", "--tau=1e-30"],
    "clip_captions": ["--tau=0.001", "--tau=1e300"],
    "circle": ["--images=19", "--images=20 --batch=2", "--images=16777216", "--tau=1e-30"],
    "collapse": ["--images=19", "--images=20 --batch=2", "--images=21 --batch=21 --dim=2", "--tau=1e-30"],
    "cpc_sequences": ["--window=16777216", "--ahead=16777216", "--batch=41", "--tau=1e-30", "--window=1 --ahead=63",
                      "--data=mnist-rows --data-dir=nowhere"],
    "mutual_information": ["--pairs=1", "--dim=1"],
    "simclr_images": ["--limit=20 --batch=2", "--limit=20 --batch=21", "--data-dir=~nobody", "--data-dir=photos/0.png",
                      "--no-labels --evaluate-every=1", "--chunk=2 --clip-grad=1e-300"],
    "clip_images": ["--tau=1e300", "--length=1", "--min-count=16777216", "--captions=photos", "--chunk=2 --clip-grad=1e300",
                    "--limit=20 --batch=2"],
    "moco_images": ["--limit=20 --batch=20 --queue=20", "--queue=16777216", "--momentum=0"],
    "simclr_cifar10": ["--limit=19", "--limit=20 --batch=2", "--limit=21 --batch=21", "--hidden=1 --warmup=0.9999",
                       "--limit=20 --knn-k=16777216 --evaluate-every=16777216", "--encoder=resnet18 --width=16384",
                       "--method=moco --queue=20 --splits=2",
                       "--limit=20 --batch=20 --method=moco --splits=1 --queue=20"],
}
CASES = [(name, option) for name in ("simclr_mnist", "mutual_information") for option in EVERYWHERE
         if (name, option) != ("mutual_information", "--batch=65536")]       # it draws any number of pairs
CASES += [(name, options) for name, cases in MORE.items() for options in cases]


@pytest.fixture
def few_data(monkeypatch, tmp_path):
    """Small generated data and pictures in an empty folder, and a memory limit of 2 GiB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**31, before[1]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 40, 30))
    monkeypatch.setattr(shapes, "generate_shapes", functools.partial(shapes.generate_shapes, 40, 30))
    monkeypatch.setattr(sequences, "generate_rotations",
                        functools.partial(sequences.generate_rotations, n_train=40, n_test=40))
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", "cache")
    write_pictures(tmp_path / "photos", numbered("", 40))
    lines = [f"{k}.png,a picture of {k % 10} things" for k in range(40)]
    (tmp_path / "photos/captions.csv").write_text("\n".join(["file,caption", *lines]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.filterwarnings("ignore:.*do not occur in train_labels")        # few images do not show all ten classes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")        # NumPy's, of overflow at extreme options
@pytest.mark.filterwarnings("ignore:.*test_labels")
@pytest.mark.parametrize("name, options", CASES)
def test_a_run_with_hostile_options_succeeds_or_ends_in_one_line(name, options, few_data, tmp_path, capsys):
    code = run_example(name, "--epochs", "1", "--batch", "20", "--threads", "1", "--log-every", "1", *SMALL[name],
                       *options.split(), "--out", "out")
    shown = capsys.readouterr().err
    if code:
        assert code == 2 and "Traceback" not in shown
        assert len([line for line in shown.splitlines() if "error: " in line]) == 1, shown
        started = (tmp_path / "out" / "log.jsonl").exists()
        assert started or not (tmp_path / "out").exists()    # an incomplete folder must not remain
        assert not (tmp_path / "out" / "result.json").exists()
    else:
        result = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=pytest.fail)
        assert all(value is not None for key, value in result.items() if key not in ("peak_mib", "cap_nats"))
