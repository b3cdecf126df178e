"""minicl.options reports options that have no effect without another one."""

import argparse
import importlib
import sys

import pytest

from minicl import distributed
from minicl.options import at_least, options

CASES = [  # script, arguments, the options without effect
    ("simclr_cifar10", "--queue 512", "--queue"),
    ("simclr_cifar10", "--queue 4096", "--queue"),                           # the default value
    ("simclr_cifar10", "--momentum 0.5 --splits 4", "--momentum, --splits"),
    ("simclr_cifar10", "--method moco --queue 512 --splits 4", ""),
    ("simclr_cifar10", "--head linear --hidden 64", "--hidden"),
    ("simclr_cifar10", "--head linear --dim 64", ""),
    ("simclr_cifar10", "--head none --dim 64", "--dim"),
    ("simclr_cifar10", "--head none --dim 128", "--dim"),
    ("simclr_cifar10", "--head none", ""),
    ("simclr_mnist", "--head none --dim 64", "--dim"),
    ("simclr_images", "--data-dir x --head none --dim 64", "--dim"),
    ("simclr_images", "--data-dir x --head linear --hidden 64", "--hidden"),
    ("simclr_images", "--data-dir x --hidden 64 --dim 64", ""),
    ("clip_images", "--captions x.csv --template {}", "--template"),
    ("clip_images", "--captions x.csv", ""),
    ("clip_images", "--captions x.csv --template {} --classes cat dog", ""),
    ("cpc_sequences", "--context none --hidden 64", "--hidden"),
    ("cpc_sequences", "--hidden 64", ""),
    *[(script, f"--data-dir x --epochs {epochs} --evaluate-every {every}".removeprefix("--data-dir x " * ("images" not in script)),
       "--evaluate-every" * (every > epochs))
      for script in ("simclr_images", "moco_images", "simclr_mnist", "moco_mnist", "simclr_cifar10")
      for epochs, every in ((3, 5), (3, 4), (3, 3), (3, 1))],
    ("simclr_mnist", "--evaluate-every 99", "--evaluate-every"), ("simclr_mnist", "--epochs 1", ""),
]


class Parsed(Exception):
    """Ends a script's main() after its options are parsed."""


@pytest.mark.parametrize("script, arguments, idle", CASES)
def test_an_option_without_effect_is_reported(script, arguments, idle, monkeypatch, capsys):
    monkeypatch.syspath_prepend("examples")
    module = importlib.import_module(script)

    def stop(*_):
        raise Parsed

    monkeypatch.setattr(module, "get_world", stop)                           # main() calls it next
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    with pytest.raises(Parsed):
        module.main()
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ignored")]
    assert len(found) == bool(idle) and all(line.endswith(f": {idle}") for line in found)


@pytest.fixture
def parser():
    parser = options("Learn.", epochs=1, batch=2, lr=1.0, tau=1.0)
    parser.add_argument("--kind", default="a", choices="abc")
    parser.add_argument("--two-words", type=at_least(1), default=7)
    parser.add_argument("--words", nargs="+", default=["x"])
    parser.add_argument("--switch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--other", type=at_least(1))
    parser.only_with("--kind b or c", "--two-words", "--words", "--switch")
    parser.only_with("--other", "--flag")
    parser.only_with("--flag", "--two-words")
    return parser


GIVEN = [  # arguments, what is reported, what differs from the defaults
    ("", [], {}),
    ("--kind c", [], {"kind": "c"}),
    ("--two-words 2", ["--two-words", "--two-words"], {"two_words": 2}),
    ("--two-words 7", ["--two-words", "--two-words"], {}),
    ("--two-words 2 --two-words 7 --kind b", ["--two-words"], {"kind": "b"}),
    ("--two-w=7 --words x", ["--two-words, --words", "--two-words"], {}),
    ("--switch", ["--switch"], {}),
    ("--no-switch", ["--switch"], {"switch": False}),
    ("--flag", ["--flag"], {"flag": True}),
    ("--flag --two-words 2 --kind b", ["--flag"], {"flag": True, "two_words": 2, "kind": "b"}),
    ("--flag --two-words 2 --kind b --other 1", [], {"flag": True, "two_words": 2, "kind": "b", "other": 1}),
]


@pytest.mark.parametrize("arguments, idle, changed", GIVEN, ids=[arguments for arguments, *_ in GIVEN])
def test_an_option_counts_as_given_even_with_its_default_value(parser, arguments, idle, changed, capsys):
    defaults = {"kind": "a", "two_words": 7, "words": ["x"], "switch": True, "flag": False, "other": None}
    for namespace in (None, argparse.Namespace()):
        parsed = parser.parse_args(arguments.split(), namespace)
        assert {name: getattr(parsed, name) for name in defaults} == {**defaults, **changed}
        found = capsys.readouterr().err.splitlines()
        assert [line.partition(": ignored without ")[2].partition(": ")[2] for line in found] == idle


@pytest.mark.parametrize("rank", distributed.RANKS)
def test_only_the_first_of_several_processes_warns(rank, parser, monkeypatch, capsys):
    for name in distributed.RANKS:
        monkeypatch.delenv(name, raising=False)
    for number, count in (("0", 1), ("1", 0), ("3", 0)):
        monkeypatch.setenv(rank, number)
        parser.parse_args(["--flag"])
        assert capsys.readouterr().err.count("warning: ignored without ") == count


def test_help_shows_the_defaults_set_by_a_script(parser):
    parser.set_defaults(log_every=10, words=[])
    text = " ".join(parser.format_help().split())
    assert "steps between lines of the log (default: 10)" in text and "generated data (default: 0)" in text
    assert "CPU threads; default: all available cores --" in text and "default: None" not in text and "[]" not in text


@pytest.mark.parametrize("given", [["--temperature", "0.3"], ["--temperature=0.3"], ["--tau", "0.3"]])
def test_the_temperature_has_two_names(given, parser):
    assert parser.parse_args(given).tau == 0.3
