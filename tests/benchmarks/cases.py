"""All cases by name: CASES in the order of the table, and ALL, which adds those of curves.py."""

from . import curves, layers, losses, parts, steps

CASES = {case.name: case for module in (losses, layers, steps, parts) for case in module.CASES}
ALL = {case.name: case for curve in curves.CURVES for case in curve.cases.values()} | CASES
