"""Validation of configuration fields: one check for each kind of value.

Each check takes a field's name and value. It returns the value as a plain Python object (so that NumPy's integers and
floats can be written as JSON), or raises TypeError or ValueError with the field, the value, and what is allowed. A
`bool` is not an integer here: `num_hidden_layers: true` is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DEFAULT_MASKS = ("pad_token", "cls_token")

# Larger than any model that fits in memory, so that values from a damaged or hostile file are rejected before use.
LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 10_000
MOST_LABELS = 1_000_000
# So that neither they nor numbers drawn or divided with them overflow or vanish: float16 ends at 65,504, and float32's
# smallest normal number is 1.2e-38.
RANGES = {
    "layer_norm_eps": (1e-30, 1.0),
    "initializer_range": (0.0, 1000.0),
}


def short_repr(value: object) -> str:
    """`repr(value)` for a message, truncated to 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not print integers of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name}: expected an integer from {low} to {high}, got {short_repr(value)} of type {type(value).__name__}"
        )
    if not low <= int(value) <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {short_repr(value)}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A number in the field's range: that in RANGES, or [0, 1), that of a dropout rate."""
    low, high = RANGES.get(name, (0.0, 1.0))
    allowed = f"from {low:g} to {high:g}" if name in RANGES else "in [0, 1)"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number {allowed}, got {short_repr(value)} of type {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (low <= found <= high and (name in RANGES or found < high)):
        raise ValueError(f"{name}: expected a number {allowed}, got {short_repr(value)}")
    return found


def one_of(name: str, value: Any, allowed: Iterable[str | None]) -> Any:
    """One of the values in `allowed`."""
    allowed = tuple(allowed)
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {short_repr(value)}")
    return value


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """Any mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {short_repr(value)} of type {type(value).__name__}")
    return value


def names(name: str, value: Any) -> tuple[str, ...] | None:
    """A sequence of strings, or None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a list of names, got {short_repr(value)}")
    found = tuple(value)
    if not all(isinstance(item, str) for item in found):
        raise TypeError(f"{name}: expected a list of names, got {short_repr(list(found))}")
    return found


def is_inverse(label2id: Any, id2label: Any) -> bool:
    """Whether `label2id` maps exactly the labels of `id2label`, each to an id with that label."""
    try:
        return set(label2id) == set(id2label.values()) and all(id2label.get(i) == text for text, i in label2id.items())
    except (AttributeError, TypeError):  # not mappings, or values that cannot be keys
        return False


def labels(num_labels: Any, id2label: Any, label2id: Any) -> tuple[int, dict[int, str], dict[str, int]]:
    """The number of labels and the two label maps, each derived from the others if missing.

    Several ids may share a label; `label2id` then holds one of them.
    """
    if id2label is None and label2id is not None:
        id2label = {i: label for label, i in mapping("label2id", label2id).items()}
    if id2label is None:
        n = integer("num_labels", 2 if num_labels is None else num_labels, 1, MOST_LABELS)
        id2label = {i: f"LABEL_{i}" for i in range(n)}
    found = {integer("id2label: key", i, 0, MOST_LABELS - 1): text for i, text in mapping("id2label", id2label).items()}
    n = integer("num_labels", len(found) if num_labels is None else num_labels, 1, MOST_LABELS)
    if sorted(found) != list(range(n)):
        raise ValueError(
            f"id2label: expected the keys 0 to {n - 1} (num_labels = {n}), got {short_repr(sorted(found))}"
        )
    for i, label in found.items():
        if not isinstance(label, str):
            raise TypeError(f"id2label: expected a string for {i}, got {short_repr(label)}")
    found = {i: found[i] for i in range(n)}
    inverse: dict[str, int] = {}
    for i, label in found.items():
        inverse.setdefault(label, i)
    if label2id is not None:
        if not is_inverse(mapping("label2id", label2id), found):
            raise ValueError(
                f"label2id: expected the inverse of id2label, {short_repr(inverse)}, got {short_repr(label2id)}"
            )
        inverse = {label: integer("label2id", i, 0, n - 1) for label, i in label2id.items()}
    return n, found, inverse


def pruned_heads(value: Any, layers: int, heads: int) -> dict[int, tuple[int, ...]]:
    """{layer: pruned heads}, sorted; layers without pruned heads are left out."""
    found: dict[int, tuple[int, ...]] = {}
    for layer, pruned in mapping("pruned_heads", value).items():
        integer("pruned_heads: layer", layer, 0, layers - 1)
        if isinstance(pruned, str) or not isinstance(pruned, Iterable):
            raise TypeError(f"pruned_heads: expected a list of heads for layer {layer}, got {short_repr(pruned)}")
        row = sorted({integer(f"pruned_heads: layer {layer}", head, 0, heads - 1) for head in pruned})
        if len(row) == heads:
            raise ValueError(f"pruned_heads: layer {layer}: expected one head to remain, got all {heads} pruned")
        if row:
            found[int(layer)] = tuple(row)
    return dict(sorted(found.items()))


def extra(value: Any, known: Iterable[str]) -> dict[str, Any]:
    """Keys that this package does not use, with values that can be written as JSON."""
    from ernie_m.tokenizer.files import unique

    found = dict(mapping("extra", value))
    for key in found:
        if not isinstance(key, str) or key in known:
            raise ValueError(f"extra: expected names that are not fields, got {short_repr(key)}")
    for key, item in found.items():
        try:
            json.loads(json.dumps(item, allow_nan=False), object_pairs_hook=unique)
        except (TypeError, ValueError, RecursionError) as error:
            got = f"{short_repr(item)} for {short_repr(key)}: {error}"
            raise ValueError(f"extra: expected values that can be written as JSON, got {got}") from None
    return found
