"""The package's commands, one file each, and the code that they share."""

from .program import main

__all__ = ["main"]
