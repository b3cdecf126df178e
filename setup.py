"""A wheel carries the example scripts too, as data: `python -m minicl` runs them. All else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExamples(build_py):
    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree("examples", Path(self.build_lib, "minicl/examples"), dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("make_*", "play", "runs", "__pycache__"))


setup(cmdclass={"build_py": BuildWithExamples})
