"""Runs of several processes: evaluation, checkpoints, the log, failures and signals. Needs MPI, else it skips."""

import pytest
from mpi import check, needs_mpi

SIZES = pytest.mark.parametrize("size", [2, 3])


@needs_mpi
@SIZES
def test_evaluation_on_several_processes_is_that_on_one(size):
    errors = check(size, "evaluation.py")["errors"]
    assert max(errors.values()) < 1e-12
