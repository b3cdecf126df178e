"""Each case of tests/accuracy.py is within its limit. `python tests/accuracy.py` compares with PyTorch."""

import accuracy
import pytest


@pytest.mark.parametrize("case", accuracy.CASES, ids=lambda case: case.name)
def test_float32_is_within_its_limit_of_float64(case):
    results, exact = (accuracy.minicl_results(case, dtype) for dtype in ("float32", "float64"))
    assert accuracy.error(case, results, exact) <= case.most


def test_the_command_prints_one_row_per_case(capsys):
    assert accuracy.main(["var of rows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("case") and sum(line.startswith("var of rows") for line in lines) == 2
