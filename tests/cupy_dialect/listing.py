"""cupy_listing.json as the stand-in asks it: what CuPy offers, and with which parameters."""

import json
import pathlib

LISTING = json.loads(pathlib.Path(__file__).with_name("cupy_listing.json").read_text())


def listed(section, name):
    """What the listing says of a name that the stand-in needs: without it one of the two is stale."""
    if name not in LISTING[section]:
        raise RuntimeError(f"cupy_listing.json of CuPy {LISTING['version']} has no {name!r} under {section!r}: "
                           "write it again with make_listing.py, or take the name out of the stand-in")
    return LISTING[section][name] if isinstance(LISTING[section], dict) else name


def signature(section, name):
    """A function with CuPy's parameters: called like the real one, Python itself refuses what CuPy would."""
    accepts = eval(f"lambda {listed(section, name)}: locals()")       # the text is the committed listing's
    accepts.__name__ = accepts.__qualname__ = name
    return accepts
