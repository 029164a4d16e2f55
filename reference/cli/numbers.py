"""Numbers and paths on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

# Of 64 bits, and one more digit than these have.
LARGEST = 2**63 - 1
DIGITS = 20
# More than any machine has cores. Libraries that cannot start as many threads as they are told to end the process.
MOST_THREADS = 4096


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    return whole(text, least=1)


def whole(text: str, least: int = 0, most: int = LARGEST) -> int:
    """Parse an integer from `least` to `most`, for argparse."""
    # Python does not read numbers of more than 4,300 digits.
    value = int(text.lstrip("0")[:DIGITS] or "0") if text.isascii() and text.isdigit() else -1
    if value > most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r:.80}")
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r:.80}")
    return value


def thread_count(text: str) -> int:
    """Parse a number of threads, for argparse."""
    return whole(text, least=1, most=MOST_THREADS)


def some_path(text: str) -> Path:
    """Parse a path, for argparse; an empty text, as of an unset variable, is no path."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, such as . for the current directory, got ''")
    return Path(text)


def directory_name(text: str) -> str:
    """As `some_path`, for a directory whose name may also be that of a repository on the Hub."""
    some_path(text)
    return text


def file_name(text: str) -> str:
    """Parse the name of a file, for argparse; an empty text, as of an unset variable, is none."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, got ''")
    return text


def probability(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    return _number(text, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def tolerance(text: str) -> float:
    """Parse a finite number of at least 0, for argparse."""
    return _number(text, "a finite number of at least 0", lambda x: 0 <= x < float("inf"))


def rate(text: str) -> float:
    """Parse a positive, finite number, for argparse."""
    return _number(text, "a positive, finite number", lambda x: 0 < x < float("inf"))


def _number(text: str, expected: str, holds: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not holds(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r:.80}")
    return value
