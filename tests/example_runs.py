"""Run an example script within a test, and read the files it leaves in its folder."""

import json
import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name, *options):
    """Run examples/NAME.py as `python examples/NAME.py options...` would; returns its exit code."""
    script = str(EXAMPLES / f"{name}.py")
    before = sys.argv
    sys.argv = [script, *map(str, options)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0


def read_run(folder):
    """(result.json, the lines of log.jsonl) of a run."""
    return (json.loads((folder / "result.json").read_text()),
            [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
