"""Checks the pairing of starts and ends of spans, against `ernie_m.reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rules import KEPT, UNSTABLE, Inputs, call, mistake, repeats, smallest

from ernie_m.reference.array import Array
from ernie_m.reference.tasks.decoding import TEXT, pairs_on

DPI = 80
# Products of these are exact.
LEVELS = (0.25, 0.5, 0.625, 1.0)
THRESHOLDS = (0.5, 0.25, 0.625)
EXAMPLE = {
    "starts": np.array([0.0, 0.75, 1.0, 0.125, 0.0, 0.75, 0.5]),
    "ends": np.array([0.0, 0.125, 0.0, 0.75, 1.0, 0.75, 0.0]),
    "threshold": 0.5,
}
Spans = list[tuple[int, int, float]]
NUMBERS = (int, float, np.integer, np.floating)


def made(tokens: list[tuple[float, float]], threshold: float) -> Inputs:
    starts, ends = np.array(tokens).T
    return {"starts": starts.copy(), "ends": ends.copy(), "threshold": threshold}


# What each token's start and end have as probabilities, and the threshold.
PROBABILITIES = st.builds(
    made, st.lists(st.tuples(*[st.sampled_from(LEVELS)] * 2), min_size=1, max_size=7), st.sampled_from(THRESHOLDS)
)


def right(starts: Array, ends: Array, threshold: float) -> Spans:
    return pairs_on(TEXT, np.full(len(starts), TEXT), starts, ends, threshold)


def form(
    pair: Callable[[Sequence[int], Sequence[int]], list[tuple[int, int]]],
    above: Callable[[Array, float], Array] = np.greater,
    probability: Callable[[float, float], float] = lambda s, e: s * e,
) -> Callable[..., Spans]:
    """Spans paired in another way; `above`: which probabilities count."""

    def spans(starts: Array, ends: Array, threshold: float) -> Spans:
        first, last = (np.flatnonzero(above(p, threshold)).tolist() for p in (starts, ends))
        return sorted((s, e, probability(float(starts[s]), float(ends[e]))) for s, e in pair(first, last))

    return spans


def by_rule(starts: Sequence[int], ends: Sequence[int], choose: int = -1, shift: int = 0) -> list[tuple[int, int]]:
    """The right pairs; or with the first start (`choose` 0), or with starts that must be `shift` before the end."""
    found, previous = [], -1
    for end in ends:
        between = [start for start in starts if previous < start <= end - shift]
        found += [(between[choose], end)] if between else []
        previous = end
    return found


def last_before(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(max(s for s in starts if s <= e), e) for e in ends if any(s <= e for s in starts)]


def next_after(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(s, min(e for e in ends if e >= s)) for s in starts if any(e >= s for e in ends)]


def end_first(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(start - 1, end) for start, end in by_rule([start + 1 for start in starts], ends)]


def every_pair(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(s, e) for s in starts for e in ends if s <= e]


MISTAKES: dict[str, Callable[..., Spans]] = {
    "probabilities equal to the threshold count too: they must be above it": form(by_rule, np.greater_equal),
    "every start is paired with every end behind it": form(every_pair),
    "an end takes the first of several starts; it takes the last": form(lambda s, e: by_rule(s, e, choose=0)),
    "a start is used again by a later end: only starts after the previous end count": form(last_before),
    "each start takes the next end, so that two starts share one: each end takes one start": form(next_after),
    "a token is asked for its end before its start: a start may be its own end": form(end_first),
    "a span of one token is left out: a start may be its own end": form(lambda s, e: by_rule(s, e, shift=1)),
    "the i-th start is paired with the i-th end, wherever they are": form(lambda s, e: list(zip(s, e, strict=False))),
    "a start at token 0 is left out: in an `if`, 0 counts as False": lambda starts, ends, threshold: [
        x for x in right(starts, ends, threshold) if x[0] > 0
    ],
    "`threshold` is not read": lambda starts, ends, threshold: right(starts, ends, 0.5),
    "the last token is one too far: it is the end itself": lambda starts, ends, threshold: [
        (s, e + 1, p) for s, e, p in right(starts, ends, threshold)
    ],
    "the probability is the mean of both; it is their product": form(by_rule, probability=lambda s, e: (s + e) / 2),
    "the probability is the smaller of both; it is their product": form(by_rule, probability=min),
    "the product is compared with the threshold too: it may be just above the threshold squared": (
        lambda starts, ends, threshold: [x for x in right(starts, ends, threshold) if x[2] > threshold]
    ),
}


def telling(seed: int, n: int = 30) -> Inputs:
    rng = np.random.default_rng(seed)
    starts, ends = rng.choice(LEVELS, (2, n))
    starts[0] = ends[1] = 1.0  # a span that begins at 0
    return {"starts": starts, "ends": ends, "threshold": THRESHOLDS[seed]}


def well_formed(got: Any) -> bool:
    """Whether a result is a list of tuples of three numbers."""
    spans = got if isinstance(got, list) else [None]
    return all(isinstance(x, tuple) and len(x) == 3 and all(isinstance(y, NUMBERS) for y in x) for x in spans)


def fault(got: Any, expected: Spans) -> str:
    """What is wrong with a result; "" if it is right."""
    if not well_formed(got):
        return f"it returned {got!r:.200}, expected a list of tuples (start, end, probability), three numbers each"
    if got == expected:
        return ""
    for span in expected:
        if span not in got:
            return f"it returned {plain(got)}: {plain([span])[1:-1]} is missing"
    extra = [span for i, span in enumerate(got) if span not in expected or span in got[:i]]
    if extra:
        wrong = "is there twice" if extra[0] in expected else "does not belong there"
        return f"it returned {plain(got)}: {plain(extra[:1])[1:-1]} {wrong}"
    return f"it returned {plain(got)}, expected {plain(expected)}, in this order"


def plain(spans: Spans) -> str:
    """The spans without the types of NumPy's numbers."""
    return "[" + ", ".join(f"({', '.join(f'{float(x):g}' for x in span)})" for span in spans) + "]"


def examine(function: Callable[..., Any], examples: int) -> tuple[bool, str, Figure | None]:
    """Whether all drawn spans are right; the verdict in words; a figure of what is wrong."""
    got, wrong = call(function, EXAMPLE)
    if got is None and not wrong:
        text = "pair_spans: not written yet: it returned None.\nThe figure shows one call and its expected result."
        return False, text, draw(EXAMPLE, {"expected": right(**EXAMPLE)})

    def faulty(inputs: Inputs) -> str:
        spans, wrong = call(function, inputs)
        return wrong or fault(spans, right(**inputs))

    found, tried = smallest(PROBABILITIES, lambda inputs: faulty(inputs) != "", examples)
    if found is None:
        return True, f"pair_spans: right.\n  {tried} drawn texts; every span is right", None
    spans, wrong = call(function, found)
    drawable = not wrong and well_formed(spans)
    if drawable and not repeats(function, EXAMPLE):
        reason, hint = UNSTABLE, KEPT
    else:
        reason = faulty(found) or UNSTABLE
        hint = mistake(function, MISTAKES, [telling(seed) for seed in range(3)])
    lines = [f"pair_spans: not right yet: {reason}.", *([f"Hint: {hint}."] if hint else [])]
    lines += ["The smallest input found:"]
    lines += [f"  {name} = {x.tolist() if isinstance(x, np.ndarray) else x}" for name, x in found.items()]
    results = {"your result": spans} if drawable else {}
    return False, "\n".join(lines), draw(found, {**results, "expected": right(**found)})


def draw(inputs: Inputs, results: dict[str, Spans]) -> Figure:
    """Draw the probabilities as bars, and the spans below as lines from the first token to the last."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 3), height_ratios=(2, 0.3 + 0.4 * len(results)), dpi=DPI, layout="constrained", sharex=True
    )
    places = np.arange(len(inputs["starts"]))
    for shift, name in ((-0.2, "starts"), (0.2, "ends")):
        above.bar(places + shift, inputs[name], 0.36, label=name)
    above.axhline(inputs["threshold"], color="0.4", linestyle="--", linewidth=1, label="threshold")
    above.set(ylabel="probability", ylim=(0, 1.4))
    above.legend(fontsize=8, ncols=3, loc="upper right")
    for row, (name, spans) in enumerate(results.items()):
        for i, (start, end, _) in enumerate(spans):
            # Overlapping spans are drawn a little apart.
            y = row + 0.2 * (i % 3 - 1)
            below.plot([start - 0.3, end + 0.3], [y, y], color="green" if name == "expected" else "red", linewidth=4)
    below.set_yticks(range(len(results)), list(results), fontsize=8)
    below.set(ylim=(len(results) - 0.5, -0.5), xlabel="token")
    below.set_xticks(places)
    return figure
