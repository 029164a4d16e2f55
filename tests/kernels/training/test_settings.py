"""Each setting refuses what it cannot be, by name, in Python as on the command line."""

from __future__ import annotations

import sys
from dataclasses import fields
from inspect import signature
from typing import Any

import pytest

from ernie_m.kernels.training import Settings
from ernie_m.reference.training import train

NAN, INFINITY = float("nan"), float("inf")
GOOD: dict[str, Any] = {"steps": 5, "rate": 1e-3}
NAMES = [field.name for field in fields(Settings)]
# What no setting can be; a list of one name is unhashable.
NOTHING = (
    None,
    {},
    [],
    ["a", "b"],
    [["ddp"]],
    "a",
    -1,
    -0.5,
    NAN,
    INFINITY,
    -INFINITY,
    2**63,
    10**400,
    [0.9],
    [0.9, NAN],
)
ALSO_WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("steps", "accumulate", "evaluate_every", "save_every", "log_every"), (0, 1.0, True)),
    **dict.fromkeys(("warmup", "patience", "seed"), (1.0, True)),
    **dict.fromkeys(("rate", "clip", "eps"), (0, True)),
    "warmup": (6, 1.0, True),
    "layer_decay": (0, 1.1, True),
    "betas": (0.9, "ab", [0.9, 1.0], [0.9, True], [0.9, -0.1], [0.9, 0.9, 0.9]),
    "checkpointing": (0, 1, "true"),
}


@pytest.mark.parametrize("name", NAMES)
def test_wrong_values_are_refused_by_name(name: str) -> None:
    """By the constructor too. Seen red: a comparison of 'int' and 'str'; nan, infinity, and whole numbers
    that fill the memory or are too large for a float taken."""
    for value in (*NOTHING, *ALSO_WRONG.get(name, ())):
        if value == 2**63 and name in ("rate", "clip", "eps", "weight_decay"):
            continue
        for make in (Settings.from_dict, lambda values: Settings(**values)):
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*, got ") as caught:
                make({**GOOD, name: value})
            assert str(caught.value).count("expected") == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [1, 10**6]),
        ("rate", [1, sys.float_info.max, 1e-300]),
        ("warmup", [0, 5]),
        ("betas", [[0, 0.5], (0.9, 0.999)]),
        ("weight_decay", [0, 0.0, 1, 2.5]),
        ("layer_decay", [1, 0.5]),
        ("seed", [0, 2**63 - 1]),
        ("checkpointing", [True, False]),
        ("precision", ["float32", "bfloat16", "float16"]),
        ("parallel", ["ddp", "fsdp"]),
    ],
)
def test_limits_are_allowed(name: str, values: list[Any]) -> None:
    """Whole numbers where numbers are, and lists as in JSON."""
    for value in values:
        found = Settings.from_dict({**GOOD, name: value})
        assert found.as_dict()[name] == (list(value) if name == "betas" else value)
        assert Settings.from_dict(found.as_dict()) == found


def test_defaults_are_the_references_and_plain() -> None:
    names, found = {"limit": "clip"}, Settings(**GOOD)
    for name, parameter in signature(train).parameters.items():
        if parameter.default not in (parameter.empty, None):
            assert getattr(found, names.get(name, name)) == parameter.default, name
    assert (found.accumulate, found.precision, found.checkpointing, found.patience) == (1, "float32", False, 0)


def test_names_and_what_is_lacking() -> None:
    """Seen red: nothing before the colon for an empty name."""
    for values, message in (
        ({**GOOD, "": 3}, "'': not a setting; expected some of steps, rate, "),
        ({**GOOD, "step": 3}, "step: not a setting; expected some of steps, rate, "),
        ({"steps": 3}, "rate: expected a value, got none"),
        ({"rate": 3}, "steps: expected a value, got none"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Settings.from_dict(values)
