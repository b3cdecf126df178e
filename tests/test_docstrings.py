"""The examples in the docstrings of the package and of the examples' data run and print the output shown."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import minicl

MODULES = sorted(module.name for module in pkgutil.walk_packages(minicl.__path__, "minicl."))
MODULES += ["captioned_digits", "known_information", "sequences"]                # modules of the folder examples


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
                            extraglobs={"minicl": minicl, "np": np})
    assert found.failed == 0
