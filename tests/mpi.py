"""Run a check script on several processes with mpirun, in a subprocess with a time limit. Skips where there is no MPI.

A script prints one JSON object from rank 0. `python script.py` runs it as one process.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = Path(__file__).parent / "distributed"
MPIRUN = shutil.which("mpirun", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))

needs_mpi = pytest.mark.skipif(MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
                               reason="needs mpi4py and mpirun: pip install 'minicl[mpi]'")


def start(size, script, *arguments, cwd=ROOT, stdout=subprocess.PIPE, **environment):
    """Start `mpirun -n size python script arguments` in a new session; the script may also be ["-c", code]."""
    command = [sys.executable, *(script if isinstance(script, list) else [str(script)]), *map(str, arguments)]
    paths = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests"), str(CHECKS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MINICL_THREADS": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **environment}
    return subprocess.Popen([MPIRUN, "-n", str(size), *command], cwd=cwd, env=environment, stdout=stdout,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def launch(size, script, *arguments, timeout=120, **settings):
    """Run `start` to its end; returns a CompletedProcess."""
    process = start(size, script, *arguments, **settings)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def check(size, name, *arguments, **settings):
    """The JSON object that tests/distributed/`name` prints on `size` processes; the test fails if the script does."""
    done = launch(size, CHECKS / name, *arguments, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def children(pid):
    """The ids of all Python processes that descend from a process."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        name = Path(f"/proc/{child}/comm").read_text()
        found += children(child) + [child] * name.startswith("python")
    return found


def left_behind(folder):
    """The command lines of running processes that name a folder, after up to 5 s of waiting for them to end."""
    for _ in range(50):
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:                                  # the process has ended
                continue
            found += [line] * (str(folder).encode() in line)
        if not found:
            break
        time.sleep(0.1)
    return found
