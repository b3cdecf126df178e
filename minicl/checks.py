"""Checks of options that are numbers, for layers, optimizers and methods."""

import numbers


def require_within(name, interval, **options):
    """Raise ValueError unless every option is a real number in `interval`, written as "[0, 1)" or "(0, inf)".

    >>> require_within("Dropout", "[0, 1)", p=1.0)
    Traceback (most recent call last):
    ValueError: Dropout: p must be a number in [0, 1), got 1.0
    """
    low, high = map(float, interval[1:-1].split(","))
    for option, x in options.items():
        if not (isinstance(x, numbers.Real) and not isinstance(x, bool)
                and (low < x or interval[0] == "[" and x == low) and (x < high or interval[-1] == "]" and x == high)):
            raise ValueError(f"{name}: {option} must be a number in {interval}, got {x!r}")


def require_sizes(name, at_least=1, **sizes):
    """Raise ValueError unless every size is an integer, at least `at_least`."""
    for option, n in sizes.items():
        if not (isinstance(n, numbers.Integral) and not isinstance(n, bool) and n >= at_least):
            raise ValueError(f"{name}: {option} must be an integer of at least {at_least}, got {n!r}")
