"""The programs in docs/theory.md and docs/derivations.md run and print the output shown."""

import codeop
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["theory", "derivations"])
def test_the_programs_of_a_page_print_what_it_shows(page, capsys):
    path = ROOT / f"docs/{page}.md"
    names = {}
    text = path.read_text()
    for program in PROGRAM.finditer(text):
        exec(compile("\n" * text.count("\n", 0, program.start(1)) + program[1], str(path), "exec"), names)
        assert capsys.readouterr().out == (program[2] or ""), f"{path.name}: printed by\n{program[1]}"


@pytest.mark.parametrize("page", ["theory", "derivations", "reading-order"])
def test_the_programs_of_a_page_can_be_pasted_into_python(page):
    """Line by line, as at its prompt, where a blank line ends a block."""
    for program in PROGRAM.finditer((ROOT / f"docs/{page}.md").read_text()):
        lines = []
        for line in [*program[1].splitlines(), ""]:
            lines.append(line)
            if codeop.compile_command("\n".join(lines), symbol="single") is not None:   # raises SyntaxError
                lines = []
        assert lines in ([], [""]), program[1]


def test_every_question_has_its_answer():
    text = (ROOT / "docs/theory.md").read_text()
    questions = re.findall(r"^(\d)\. \*\*", text, re.MULTILINE)
    answers = re.findall(r"^## (\d)\. ", text, re.MULTILINE)
    assert questions == answers == list("1234567")
