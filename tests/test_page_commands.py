"""The commands of the course, exercises, bugs and reading-order pages are found, the pages state their times, and some
run.

`python tests/page_commands.py`, which .ci/run calls, runs all of them. tests/test_readme.py parses every option.
"""

import re

import page_commands
import pytest

ALL = {page: list(page_commands.commands(page)) for page in page_commands.PAGES}
LINES = [line for page in ALL.values() for command in page for line in command.splitlines()]


def test_the_commands_are_found():
    assert len(ALL["bugs"]) >= 32 and len(ALL["course"]) >= 20 and len(ALL["exercises"]) == 3
    assert ALL["exercises"][0].splitlines()[1] == "cd ../first"
    assert "python examples/claims run 3" in ALL["reading-order"]


def test_every_command_names_an_existing_file():
    for line in LINES:
        for path in re.findall(r"\b(?:examples|tests)/[\w/.]+", line):
            assert (page_commands.ROOT / path.rstrip(".")).exists(), line


def test_the_course_or_the_script_of_a_bug_states_the_time_of_every_script():
    scripts = {line for line in LINES if re.match("python examples/(?!make_exercises)", line)}
    assert scripts == set(page_commands.stated())


def test_the_pages_state_the_range_of_the_times_of_the_bugs():
    seconds = [time for line, time in page_commands.stated().items() if "/bugs/" in line]
    bugs, course = (" ".join((page_commands.ROOT / f"docs/{page}.md").read_text().split()) for page in ("bugs", "course"))
    assert f"Each script takes {min(seconds)} to {max(seconds)} seconds" in bugs
    assert f"A bug's script takes {min(seconds)} to {max(seconds)} s" in course


def test_a_tree_of_exercises_is_made_and_tested_as_the_page_says(tmp_path):
    project = page_commands.fresh(tmp_path)
    code, output, _, _ = page_commands.run(ALL["exercises"][0], project)
    assert code and re.search(r"NotImplementedError.*exercise softmax: read docs/gradients/softmax.md", output)
    assert (tmp_path / "first/minicl/autograd.py").exists()


def test_numbers_that_differ_from_the_page_or_are_missing_are_found():
    printed = "loss, first step               {}       6.024\nloss, last     {}      0.9682\n"
    last = "p of the positive, exp(-loss)      0.8863      0.3797\n"
    assert not page_commands.other_numbers("mask", printed.format(5.241, 0.13) + last)
    for numbers in ((5.25, 0.13), (5.241, 0.2)):
        assert len(page_commands.other_numbers("mask", printed.format(*numbers) + last)) == 1
    missing = page_commands.other_numbers("mask", printed.format(5.241, 0.13))
    assert missing == ["mask.py prints no 'p of the positive, exp(-loss)', which docs/bugs.md has"]


@pytest.mark.parametrize("script", ["zero_shot"])
def test_a_bugs_script_prints_its_table(script, tmp_path):
    project = page_commands.fresh(tmp_path)
    code, output, wall, busy = page_commands.run(f"python examples/bugs/{script}.py", project)
    assert not code and not page_commands.other_numbers(script, output) and wall > 0 < busy
