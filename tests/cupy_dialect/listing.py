"""Access to cupy_listing.json: the names that CuPy offers, and their parameters."""

import json
import pathlib

LISTING = json.loads(pathlib.Path(__file__).with_name("cupy_listing.json").read_text())


def listed(section, name):
    """The listing's entry of a name that the stand-in needs. If it is missing, one of the two is out of date."""
    if name not in LISTING[section]:
        raise RuntimeError(f"cupy_listing.json of CuPy {LISTING['version']} has no {name!r} under {section!r}: "
                           "write it again with make_listing.py, or take the name out of the stand-in")
    return LISTING[section][name] if isinstance(LISTING[section], dict) else name


def signature(section, name):
    """A function with CuPy's parameters, so that Python itself refuses the calls that CuPy refuses."""
    accepts = eval(f"lambda {listed(section, name)}: locals()")       # the text is the committed listing's
    accepts.__name__ = accepts.__qualname__ = name
    return accepts
