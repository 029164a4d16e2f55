"""The arguments of tasks, validated: one text or a list of them, and how many results are wanted; and the numbers that
their models return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ernie_m.tokenizer.piece_model import check_unicode

from ..array import Array


def listed(name: str, texts: Any, names: Sequence[str] | None = None) -> list[str]:
    """One text as a list, or a sequence or 1-D array of texts.

    names: what errors call each text; by default `name[i]`. Raises TypeError, naming the argument, for anything else,
    ValueError for a text that is not Unicode.
    """
    if isinstance(texts, str):
        check_unicode(texts, name)
        return [texts]
    if isinstance(texts, np.ndarray) and texts.ndim == 1:
        texts = texts.tolist()
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise TypeError(f"{name}: expected a text or a list of texts, got {type(texts).__name__}")
    for i, text in enumerate(texts):
        place = f"{name}[{i}]" if names is None else names[i]
        if not isinstance(text, str):
            raise TypeError(f"{place}: expected a text, got {type(text).__name__}")
        check_unicode(text, place)
    return list(texts)


def several(name: str, texts: Any, names: Sequence[str] | None = None) -> list[str]:
    """A sequence or 1-D array of texts, not one text. Raises as `listed`."""
    if isinstance(texts, str):
        raise TypeError(f"{name}: expected a list of texts, got one text, {texts!r:.80}")
    return listed(name, texts, names)


def options(name: str, texts: Any) -> list[str]:
    """A list of at least one text. Raises TypeError or ValueError, naming the argument, for anything else."""
    found = several(name, texts)
    if not found:
        raise ValueError(f"{name}: expected at least one text, got none")
    return found


def alike(names: tuple[str, str], first: Any, second: Any) -> tuple[list[str], list[str]]:
    """Both arguments as lists. Raises TypeError unless they are one text each or a list each, ValueError unless equally
    long ones."""
    one, other = names
    if isinstance(first, str) != isinstance(second, str):
        kinds = ["one text" if isinstance(x, str) else "a list" for x in (first, second)]
        raise TypeError(f"{one}, {other}: expected one text each, or a list each, got {kinds[0]} and {kinds[1]}")
    found = listed(one, first), listed(other, second)
    if len(found[0]) != len(found[1]):
        raise ValueError(f"{one}, {other}: expected lists of equal length, got {len(found[0])} and {len(found[1])}")
    return found


def at_least_one(name: str, value: Any) -> int:
    """Raises TypeError unless `value` is an integer, ValueError if it is below 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r:.80}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def finite(values: Array) -> Array:
    """Return `values`, outputs of a model. Raises ValueError for nan and inf, which would look like an answer."""
    wrong = values[~np.isfinite(values)]
    if wrong.size:
        raise ValueError(f"model: expected finite outputs, got {wrong[0]}; its weights are damaged, or too large")
    return values
