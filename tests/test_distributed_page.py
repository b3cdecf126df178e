"""docs/distributed.md: its program runs, its arithmetic is the script's output, its messages occur in the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import launch, needs_mpi

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/distributed.md").read_text()
SOURCE = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (ROOT / "minicl").rglob("*.py"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "train.py"
    path.write_text(re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1])
    return path


def losses(output):
    return [float(loss) for loss in re.findall(r"^step \d: loss ([0-9.]+)$", output, re.MULTILINE)]


@needs_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_the_program_has_the_same_losses_on_several_processes(program, size):
    one, several = (launch(n, program) for n in (1, size))
    assert several.returncode == one.returncode == 0, several.stderr + one.stderr
    assert len(losses(one.stdout)) == 3 and losses(several.stdout) == pytest.approx(losses(one.stdout), rel=1e-3)


def test_the_program_runs_on_one_process(program):
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and len(losses(done.stdout)) == 3, done.stderr


def test_the_arithmetic_is_the_output_of_the_script():
    done = subprocess.run([sys.executable, str(ROOT / "tests/benchmarks/estimate.py")], capture_output=True, text=True, timeout=60)
    assert done.stdout in TEXT and len(done.stdout.splitlines()) == 14


@pytest.mark.parametrize("message", re.findall(r"\| the (?:first|step)[^|]*: `([^`]*)` \|", TEXT) + re.findall(
    r"before the first step: `([^`]*)`", TEXT))
def test_the_messages_occur_in_the_code(message):
    for part in re.split(r"step 0|model\.encoder\.layers\.0\.weight|rng (?=differs)", message):
        assert part.strip() in SOURCE
