"""Run pytest in many trees, two at a time, in forks of a process that has already imported the slow modules:

    python exercise_runs.py < jobs.json        jobs {key: [tree, pytest arguments]}  ->  {key: {test: outcome}}, JSON
"""

import contextlib
import json
import multiprocessing
import os
import sys

import hypothesis.extra.numpy  # noqa: F401
import numpy.testing  # noqa: F401
import pytest

OPTIONS = ["-q", "--tb=no", "-p", "no:cacheprovider", "--backend", "numpy",
           "-W", "ignore::pytest.PytestAssertRewriteWarning"]                # for the modules imported above


class Outcomes(dict):
    """A pytest plugin: {"tests/test_ops.py::test_...[...]": "passed", "failed" or "skipped"}."""

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self[report.nodeid] = report.outcome


def run(job):
    tree, arguments = job
    os.chdir(tree)
    sys.dont_write_bytecode = True                                           # the trees come with compiled files
    outcomes = Outcomes()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = pytest.main([*OPTIONS, *arguments], [outcomes])
    return outcomes if status in (0, 1) else {f"pytest {' '.join(arguments)}": f"exit status {int(status)}"}


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    with context.Pool(2, maxtasksperchild=1) as pool:
        json.dump(dict(zip(jobs, pool.map(run, jobs.values(), chunksize=1))), sys.stdout)
