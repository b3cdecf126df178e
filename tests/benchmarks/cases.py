"""All cases, by name, in the order of the table."""

from . import layers, losses, parts, steps

CASES = {case.name: case for module in (losses, layers, steps, parts) for case in module.CASES}
