"""Numbers and paths on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    return whole(text, least=1)


def whole(text: str, least: int = 0) -> int:
    """Parse an integer of at least `least`, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return int(text)


def some_path(text: str) -> Path:
    """Parse a path, for argparse; an empty text, as of an unset variable, is no path."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, such as . for the current directory, got ''")
    return Path(text)


def probability(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
