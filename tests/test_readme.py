"""README.md: its programs print the output shown, its commands are accepted, and the code that it quotes is up to
date."""

import argparse
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from example_runs import run_example

import minicl

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
PROGRAM, QUOTED, SQUARE = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_first_program_prints_what_follows_it(capsys):
    exec(PROGRAM, {})
    printed = capsys.readouterr().out
    said = TEXT.partition(PROGRAM)[2].split("```text\n")[1].split("```")[0]
    number = r"[\d.]+(?=[;\s%])"
    assert re.sub(number, "", printed) == re.sub(number, "", said)
    (loss, chance, *accuracies), expected = (np.array(re.findall(number, text), float) for text in (printed, said))
    np.testing.assert_allclose([loss, chance, *accuracies], expected, rtol=0.03)     # rounding differs between machines
    assert loss < chance - 1 and accuracies[1] > accuracies[3]      # with 100 labels: the representation, the pixels


def test_the_quoted_op_is_that_of_the_package():
    source = (ROOT / "minicl/contrastive/softmax.py").read_text()
    for part in QUOTED.split("    ...\n"):
        assert part.strip("\n") in source


def test_the_wrong_op_gets_the_quoted_message():
    said = re.search(r"^# GradcheckError: (.*)", SQUARE, re.MULTILINE)[1]
    with pytest.raises(minicl.GradcheckError) as caught:
        exec(SQUARE, {})
    message = re.sub(r"\s+", " ", str(caught.value))
    for part in said.split(" ... "):
        assert part in message


def commands():
    """Yield (page, script, options) of each command `python examples/SCRIPT.py options` in README and docs."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        code = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        for script, options in re.findall(r"\bexamples/([\w/]+)\.py +(-[^#\n]*)", "\n".join(code)):
            yield page.relative_to(ROOT).as_posix(), script, options.strip()


class Accepted(Exception):
    """The options were parsed."""


COMMANDS = sorted(set(commands()))


@pytest.mark.parametrize("page, script, options", COMMANDS, ids=[" ".join(command) for command in COMMANDS])
def test_a_documented_command_is_accepted(page, script, options, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, arguments=None, namespace=None):
        parse(self, arguments, namespace)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Accepted):
        run_example(script, *shlex.split(options))
