"""The command-line options that all training scripts share, and types for further options."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .backend import PRECISIONS
from .checks import ends
from .distributed import RANKS

IMAGES = {"auto": "MNIST if available, else generated digits", "mnist": "MNIST, else an error",
          "digits": "generated digits"}


def options(description: str | None, *, epochs: int, batch: int, lr: float, tau: float,
            data: Mapping[str, str] | None = IMAGES) -> "Parser":
    """An argument parser with the options of every training script; epochs, batch, lr and tau are defaults.

    description  the script's docstring; --help shows its first paragraph
    data         {choice of --data: its meaning}, the first is the default; None for a script that draws its own

    A script adds its own options to the parser, and declares which of them need others: parser.only_with(...).

    >>> parser = options("Learn.", epochs=6, batch=256, lr=1e-2, tau=0.2)
    >>> parser.parse_args(["--batch", "64"]).batch
    64
    """
    parser = Parser(description=(description or "").split("\n\n")[0],     # python -OO has none
                     formatter_class=DefaultsHelp)
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"), help="numpy: CPU; cupy: GPU")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS,
                        help="precision of matrix products on a GPU; tf32 has errors of 5e-4, and bf16, in convolutions "
                        "and linear layers, of 2e-3")
    parser.add_argument("--capture", action="store_true",
                        help="launch each training step as one CUDA graph on a GPU: faster for small networks")
    if data:
        parser.add_argument("--data", default=next(iter(data)), choices=data,
                            help="; ".join(f"{name}: {meaning}" for name, meaning in data.items()))
        parser.add_argument("--data-dir", type=folder,
                            help="folder with the data's files; default: the user's cache, else download")
    parser.add_argument("--epochs", type=at_least(1), default=epochs, help="passes over the training data")
    parser.add_argument("--batch", type=at_least(2, 2**16), default=batch,
                        help="items per step: images, pairs or sequences")
    parser.add_argument("--lr", type=within("(0, inf)"), default=lr, help="peak learning rate, between warmup and decay")
    parser.add_argument("--tau", type=within("[1e-30, 1e20]"), default=tau, help="temperature of the loss")
    parser.add_argument("--seed", type=at_least(0, 2**63 - 1), default=0,
                        help="seed of weights, order, augmentations and generated data")
    parser.add_argument("--threads", type=at_least(1, 1024), help="CPU threads; default: all available cores")
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True,
                        help="keep freed memory for the next step: faster on Linux, but the process stays large")
    parser.add_argument("--log-every", type=at_least(1),
                        help="steps between lines of the log; default: a twentieth of the run, at most 50")
    parser.add_argument("--log", default="jsonl", choices=("jsonl", "csv"), help="csv: also write log.csv, a table")
    parser.add_argument("--out", type=folder, help="folder for config, log, checkpoint, pictures and result.json; "
                        "default: a new one under runs/")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out, with the same options "
                        "and as many --epochs, unless more are given")
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser that warns of options without effect, such as an --evaluate-every larger than --epochs."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._conditions: list[tuple[str, tuple[str, ...]]] = []

    def only_with(self, condition: str, *names: str) -> None:
        """Warn, in a line on stderr, of any of these options that is given, also its default value, without the condition.

        condition  an option that must be given, "--classes", or its values: "--head mlp or linear"
        """
        self._conditions.append((condition, names))

    def describe(self, option: str, text: str) -> None:
        """Replace the help of an option that has another meaning, or default, in this script."""
        self._option_string_actions[option].help = text

    def parse_known_args(self, args=None, namespace=None):
        """argparse's, but --temperature is --tau, and --seed=--, which Python 3.11 turns into an empty list whatever the
        option's type, is refused."""
        args = [re.sub("^--temperature(?==|$)", "--tau", arg) for arg in (sys.argv[1:] if args is None else args)]
        for arg in args:
            if arg.startswith("-") and arg.endswith("=--"):
                self.error(f"argument {arg[:-3]}: expected a value, got '--'")
        namespace = argparse.Namespace() if namespace is None else namespace
        named = [_attribute(name) for _, names in self._conditions for name in names]
        for attribute in (*named, "epochs"):
            vars(namespace).setdefault(attribute, None)                      # which stays if the option is not given
        parsed, rest = super().parse_known_args(args, namespace)
        given = {attribute for attribute in named if getattr(parsed, attribute) is not None}
        for attribute in set(named) - given:
            setattr(parsed, attribute, self.get_default(attribute))
        if parsed.epochs is None and not getattr(parsed, "resume", False):   # else Run takes those of the checkpoint
            parsed.epochs = self.get_default("epochs")
        for condition, names in self._conditions:
            option, _, values = condition.partition(" ")
            value = getattr(parsed, _attribute(option))
            holds = value in values.split(" or ") if values else value
            idle = [name for name in names if _attribute(name) in given]
            if idle and not holds and _is_first():
                self._print_message(f"warning: ignored without {condition}: {', '.join(idle)}\n", sys.stderr)
        every, epochs = (getattr(parsed, name, None) or 0 for name in ("evaluate_every", "epochs"))
        if epochs and every > epochs and _is_first():
            self._print_message(f"warning: ignored without --epochs {every} or more: --evaluate-every\n", sys.stderr)
        return parsed, rest


def _is_first():
    """Whether this is the first of the processes that a launcher has started; get_world() comes after the options."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def _attribute(option):
    """The attribute of the parsed options for an option: "clip_grad" for "--clip-grad"."""
    return option.removeprefix("--").replace("-", "_")


class DefaultsHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to the help of options that have one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == []:
            return action.help
        action.help = action.help.partition("; default:")[0]                 # a script has set another
        return super()._get_help_string(action)


def at_least(least: int, most: int = 2**24) -> Callable[[str], int]:
    """The type of an option: an integer from least to most."""
    def integer(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            limit = f">= {least}" if value < least else f"<= {most}"
            raise argparse.ArgumentTypeError(f"expected an integer {limit}, got {text}")
        return value
    return integer


def folder(text: str) -> str:
    """The type of an option: the name of a folder or file; ~ and ~user become a home folder."""
    path = os.path.expanduser(text)
    if not path.strip() or path.startswith("~"):
        raise argparse.ArgumentTypeError(f"expected the name of a folder or file, got {text!r}"
                                         + (", which has no home folder" if path.strip() else "; is a variable unset?"))
    return path


def within(interval: str) -> Callable[[str], float]:
    """The type of an option: a number in an interval, such as "[0, 1)" or "(0, inf)"."""
    low, high = ends(interval)

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number in {interval}, got {text}")
        return value
    return number
