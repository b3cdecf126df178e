"""Run examples on few data, on one process or on those of mpirun: examples.py FOLDER NAME [option ...] , NAME ...

Run k writes to FOLDER/k.
"""

import runpy
import sys

import kill_test

kill_test.use_few_data()
folder, *rest = sys.argv[1:]
for k, call in enumerate(" ".join(rest).split(" , ")):
    name, *options = call.split()
    script = str(kill_test.EXAMPLES / f"{name}.py")
    sys.argv = [script, *kill_test.RUNS.get(name, kill_test.COMMON), *options, "--epochs", "1", "--out", f"{folder}/{k}"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
