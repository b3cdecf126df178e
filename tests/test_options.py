"""minicl.options: options that need another say so."""

import importlib
import sys

import pytest

from minicl.options import at_least, options

CASES = [  # script, arguments, the options without effect
    ("simclr_cifar10", "--queue 512", "--queue"),
    ("simclr_cifar10", "--momentum 0.5 --splits 4", "--momentum, --splits"),
    ("simclr_cifar10", "--method moco --queue 512 --splits 4", ""),
    ("simclr_cifar10", "--head linear --hidden 64", "--hidden"),
    ("simclr_cifar10", "--head linear --dim 64", ""),
    ("simclr_cifar10", "--head none --dim 64", "--dim"),
    ("simclr_mnist", "--head none --dim 64", "--dim"),
    ("simclr_images", "--data-dir x --head none --dim 64", "--dim"),
    ("simclr_images", "--data-dir x --head linear --hidden 64", "--hidden"),
    ("simclr_images", "--data-dir x --hidden 64 --dim 64", ""),
    ("clip_images", "--captions x.csv --template {}", "--template"),
    ("clip_images", "--captions x.csv --template {} --classes cat dog", ""),
    ("cpc_sequences", "--context none --hidden 64", "--hidden"),
    ("cpc_sequences", "--hidden 64", ""),
]


class Parsed(Exception):
    """Ends a script's main() once its options are read."""


@pytest.mark.parametrize("script, arguments, idle", CASES)
def test_an_option_without_effect_is_reported(script, arguments, idle, monkeypatch, capsys):
    monkeypatch.syspath_prepend("examples")
    module = importlib.import_module(script)

    def stop(*_):
        raise Parsed

    monkeypatch.setattr(module, "get_world", stop)                           # the script's own name, which main() calls next
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    with pytest.raises(Parsed):
        module.main()
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: without")]
    assert len(found) == bool(idle) and all(line.endswith(f"there is no effect of {idle}") for line in found)


def test_conditions_of_an_option_that_is_given_and_of_its_values(capsys):
    parser = options("Learn.", epochs=1, batch=2, lr=1.0, tau=1.0)
    parser.add_argument("--kind", default="a", choices="abc")
    parser.add_argument("--two-words", type=at_least(1))
    parser.add_argument("--flag", action="store_true")
    parser.only_with("--kind b or c", "--two-words")
    parser.only_with("--two-words", "--flag")
    for arguments, count in (("", 0), ("--two-words 2", 1), ("--two-words 2 --kind c", 0), ("--flag", 1),
                             ("--flag --two-words 2", 1), ("--flag --two-words 2 --kind b", 0)):
        parser.parse_args(arguments.split())
        assert capsys.readouterr().err.count("warning: without ") == count, arguments
