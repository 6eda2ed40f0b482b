"""Types of command-line arguments that several tools share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from fractions import Fraction


def positive_int(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: it is below 1.
        ValueError: it is no whole number.
    """
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def strength(text: str) -> float:
    """A strength of degradation, from 0 to 1, as a number or a fraction such as 1/3.

    Raises:
        ArgumentTypeError: it is neither, or out of range.
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ArgumentTypeError(f"expected a number or a fraction, got {text!r}") from error
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"expected a strength from 0 to 1, got {text}")
    return value
