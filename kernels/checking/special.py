"""Special values: zeros of both signs, subnormal and the largest numbers, scores far below 0, NaN and infinity.

Finite ones are judged by the bounds, like any other number. NaN and infinity are judged by position: the result must
have them exactly where the twin does. Infinity is tried where one row of the result depends on one row of the inputs;
in attention, what infinite scores give depends on how they are shifted. The sign of a zero is asked for where the
operation takes one array, number by number: a sum that starts from 0 loses it.

Scores far below 0 show what a kernel has put beside them, or starts its maximum from, instead of -inf. Where a query
has one key only, its result is known to the last digit, however large its score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ernie_m.reference.array import Array

from .bounds import Expected
from .coverage import Trial, normal_numbers, rounded
from .drawing import LOW
from .families import family
from .formats import FORMATS, Format
from .operation import BY_ROW, Inputs, Operation, one_number
from .operations import Case, find
from .tails import TAILS
from .verdicts import Verdict

LARGEST = "the largest finite numbers"
# These multiply three inputs, and round a product of two to the format for the next product: it may overflow there.
OVERFLOWING = ("packed_attention_vjp", "group_attention_vjp", "first_token_attention_vjp")


def special_trials(op: str | Operation, dtype: str, tail: bool) -> Iterator[Trial]:
    """Each kind of special value, in the operation's inputs of a small size.

    -inf is where the tail of gelu ends: without `tail`, ½x(1 + erf(x/√2)) may give NaN there.
    """
    operation, known, format = find(op), family(op), FORMATS[dtype]
    if known is None:
        return
    inputs = known.small(normal_numbers(4))
    floats = [n for n, x in inputs.items() if isinstance(x, np.ndarray) and x.dtype == np.float64]
    for words, values in finite_values(format).items():
        if words == LARGEST and operation.name in OVERFLOWING:
            continue
        changed = {name: _scattered(inputs[name], values, seed) for seed, name in enumerate(floats)}
        yield rounded(op, dtype, {**inputs, **changed}, f"fixed inputs with {words}")
    for name in () if operation.name in OVERFLOWING else floats:
        lowest = {name: np.full_like(inputs[name], -format.largest)}
        yield rounded(op, dtype, {**inputs, **lowest}, f"fixed inputs with the lowest number alone in {name}")
    below = far_below(operation.name, format, known.alone(normal_numbers(7)) if known.alone else None)
    if below is not None:
        yield rounded(op, dtype, below, "fixed inputs with scores far below 0")
    for name in floats:
        for value in (np.nan, np.inf, -np.inf) if operation.crop in BY_ROW else (np.nan,):
            if value == -np.inf and operation.name in TAILS and not tail:
                continue
            changed = {name: _one(inputs[name], value)}
            yield rounded(op, dtype, {**inputs, **changed}, f"fixed inputs with {value} in {name}", kind="positions")
    if operation.name == "softmax":
        # Whole blocks of it: what is summed after them must not become NaN.
        left = {"scores": np.where(np.arange(2500) < 2400, -np.inf, normal_numbers(8)(3, 2500))}
        yield rounded(op, dtype, left, "scores of -inf but for the last 100", kind="positions")
    if len(operation.arguments) == 1 and operation.crop is one_number:
        zeros = {name: np.where(np.arange(65) % 3, -0.0, 0.0) * np.ones((5, 1)) for name in floats}
        yield rounded(op, dtype, zeros, "zeros of both signs", kind="signs")
        lower = {name: np.linspace(-14.0, 0.0, 1025).reshape(5, -1) for name in floats}
        yield rounded(op, dtype, lower, "numbers from -14 to 0")


def far_below(name: str, format: Format, alone: Inputs | None) -> Inputs | None:
    """The inputs with all scores as far below 0 as the bounds tell apart from 0; None for operations without scores.

    The gradient computes probabilities from saved log-sum-exps, which have lost their digits past 10⁵.
    """
    if alone is None:
        return None
    found = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in alone.items()}
    if "bias" in found:
        return found | {"bias": np.full_like(found["bias"], -min(1e5, format.largest / 2))}
    # Scores of -4 size², in heads of 16.
    size = 140.0 if name.endswith("_vjp") else LOW
    queries = [x[:, 0] if key == "qkv" else x for key, x in found.items() if key in ("q", "qkv")]
    keys = [x[:, int(key == "qkv")] if key != "k" else x for key, x in found.items() if key in ("k", "kv", "qkv")]
    queries[0][...], keys[0][...] = size, -size
    return found


def finite_values(format: Format) -> dict[str, Array]:
    """The special finite values of a format, in words."""
    below = format.smallest * np.array([1, 2, 3, 2.0 ** (format.bits - 1) - 1])
    return {
        "zeros of both signs": np.array([0.0, -0.0]),
        "subnormal numbers": np.concatenate([below, -below, [2.0**format.lowest]]),
        LARGEST: np.array([format.largest, -format.largest, format.largest / 2]),
    }


def _scattered(array: Array, values: Array, seed: int) -> Array:
    """The array with a third of its numbers replaced by special ones."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(array.shape) < 1 / 3, rng.choice(values, array.shape), array)


def _one(array: Array, value: float) -> Array:
    """The array with one number replaced, in the middle."""
    changed = array.copy()
    changed[tuple(n // 2 for n in array.shape)] = value
    return changed


def positions(got: Array, expected: Expected) -> Verdict:
    """Whether NaN and infinity are where the exact result has them; elsewhere, finite bounds hold too."""
    exact, limit = expected.exact, expected.limit
    strange = ~np.isfinite(exact)
    wrong = np.where(strange, ~((got == exact) | (np.isnan(got) & np.isnan(exact))), ~np.isfinite(got))
    # Without a finite bound, what has to be 0 is.
    wrong |= ~strange & ~np.isfinite(limit) & (exact == 0) & (got != 0)
    judged = ~strange & np.isfinite(limit) & np.isfinite(got)
    wrong |= judged & (
        np.abs(np.where(judged, got - np.where(strange, 0.0, exact), 0.0)) > np.where(judged, limit, 0.0)
    )
    return _found("positions", wrong)


def signs(got: Array, expected: Expected) -> Verdict:
    """Whether all zeros have the sign of the exact result."""
    return _found("signs", (got != expected.exact) | (np.signbit(got) != np.signbit(expected.exact)))


def _found(bound: str, wrong: Array) -> Verdict:
    index = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    return Verdict(bound, np.inf if wrong[index] else 0.0, 0.0, index)


def expected_with_special(trial: Case) -> Expected:
    """The twin's result for inputs with NaN or infinity; numbers without a bound there get an infinite one."""
    with np.errstate(all="ignore"):
        found = trial.expected
    return replace(found, limit=np.where(np.isnan(found.limit), np.inf, found.limit))
