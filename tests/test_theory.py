"""The programs in docs/theory.md and docs/derivations.md run and print the output shown."""

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


def test_every_question_has_its_answer():
    text = (ROOT / "docs/theory.md").read_text()
    questions = re.findall(r"^(\d)\. \*\*", text, re.MULTILINE)
    answers = re.findall(r"^## (\d)\. ", text, re.MULTILINE)
    assert questions == answers == list("1234567")
