"""What is drawn for pretraining."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_texts import segments, tokenizer, vocabulary, write_jsonl

from ernie_m.reference.objectives import Example
from ernie_m.reference.training.mixture import OBJECTIVES, PARALLEL, POOL, Mixture, longest_text
from ernie_m.reference.training.shards import Shards, shard

TOKENIZER = tokenizer()
WORDS = vocabulary(TOKENIZER)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Texts in three languages, and 300 more in English."""
    folder = tmp_path_factory.mktemp("mixture")
    rows = segments(120) + [{"en": row["en"]} for row in segments(400, 1, ("en",))]
    return shard([write_jsonl(folder / "a.jsonl", rows)], TOKENIZER, folder / "out")


def plain(batch: list[Example]) -> list[tuple[Any, ...]]:
    """For comparison."""
    return [(e.input_ids.tolist(), e.labels.tolist(), e.sides.tolist()) for e in batch]


def invented(examples: Sequence[Example]) -> list[Any]:
    """Pseudo-tokens for placeholders."""
    return [np.full(int((e.sides == 1).sum()), 7) for e in examples]


ALL = ("mmlm", "camlm", "tlm", "camlm", "btmlm")


def test_a_batch_depends_on_the_seed_and_its_place_alone(shards: Shards) -> None:
    """In any order, from new objects. Seen red: a generator without a seed."""
    places = [(step, i) for step in (*range(6), 70, 999) for i in range(2)]
    first, second = (Mixture(shards, WORDS, ALL, 200, 2, seed=3) for _ in range(2))
    expected = {place: plain(first.batch(*place, invented)) for place in places}
    assert {place: plain(second.batch(*place, invented)) for place in reversed(places)} == expected
    other = Mixture(shards, WORDS, ALL, 200, 2, seed=4)
    assert all(plain(other.batch(*place, invented)) != expected[place] for place in places)
    assert len({str(batch) for batch in expected.values()}) == len(places)


def test_two_processes_compute_what_one_would(shards: Shards) -> None:
    """The batches of a step are numbered through: which process computes which makes no difference to a step, and two
    batches of a step are as good as two steps of one batch."""
    one, two = (Mixture(shards, WORDS, ("camlm",), 200, n) for n in (1, 2))
    texts = [sorted(map(str, (e[2] for e in plain(m.batch(*place))))) for m, place in ((one, (5, 0)), (two, (2, 1)))]
    assert texts[0] == texts[1]


def test_objectives_come_in_turn(shards: Shards) -> None:
    """Seen red: pairs where a sentence is due."""
    mixture = Mixture(shards, WORDS, ALL, 200)
    assert [mixture.objective(step) for step in range(7)] == [*ALL, *ALL[:2]]
    for step, name in enumerate(ALL):
        for e in mixture.batch(step, 0, invented):
            assert (e.sides == 1).any() == (name != "mmlm")
            assert (e.sees is not None) == (name == "camlm")
    with pytest.raises(ValueError, match="expected `pseudo`"):
        mixture.batch(4)


@pytest.mark.parametrize("tokens", [64, 1000])
def test_a_batch_has_about_the_tokens_asked_for_and_like_lengths(shards: Shards, tokens: int) -> None:
    """Seen red: cut by numbers of texts; not sorted."""
    mixture = Mixture(shards, WORDS, ("tlm",), tokens)
    sizes = [[len(e.input_ids) for e in mixture.batch(step)] for step in range(3 * POOL)]
    longest = max(map(max, sizes))
    assert all(tokens - 2 * longest <= sum(own) <= 1.2 * tokens + 2 * longest for own in sizes)
    assert 0.9 * tokens < np.mean([sum(own) for own in sizes]) < 1.1 * tokens + longest
    spreads = [max(own) - min(own) for own in sizes]
    assert np.median(spreads) < longest / 3


@pytest.mark.parametrize(("alpha", "exponent"), [(1.0, 1.0), (0.5, 0.5)])
def test_languages_are_drawn_in_proportion_to_their_size_to_the_power_alpha(
    shards: Shards, alpha: float, exponent: float
) -> None:
    """Within five standard deviations. Seen red: alpha left out."""
    mixture = Mixture(shards, WORDS, ("mmlm",), 500, alpha=alpha)
    ranges = {name: {str(shards.text(int(i)).tolist()) for (i,) in rows} for name, rows in shards.mono.items()}
    drawn: Counter[str] = Counter()
    for step in range(2 * POOL):
        for e in mixture.batch(step):
            words = np.where(e.labels >= 0, e.labels, e.input_ids)[1:-1].tolist()
            drawn[next(name for name, own in ranges.items() if str(words) in own)] += 1
    sizes = {name: len(rows) ** exponent for name, rows in shards.mono.items()}
    total = sum(drawn.values())
    for name, size in sizes.items():
        p = size / sum(sizes.values())
        # English and German share no text here, but a text may be drawn twice: counts are binomial.
        assert abs(drawn[name] - total * p) < 5 * np.sqrt(total * p * (1 - p)), (name, drawn)


def test_pairs_with_a_language(shards: Shards) -> None:
    """Each pair in both orders."""
    mixture = Mixture(shards, WORDS, ("tlm",), 300, pairs_with="ru")
    rows = [row for batch in mixture._pool("tlm", 0) for row in batch]
    russian = {int(i) for (i,) in shards.mono["ru"]}
    firsts = [a in russian for a, b in rows]
    assert all((a in russian) != (b in russian) for a, b in rows)
    assert 0.4 < np.mean(firsts) < 0.6


def test_errors(shards: Shards, tmp_path: Path) -> None:
    """What cannot be drawn is refused before training begins."""
    mono = shard([write_jsonl(tmp_path / "a.jsonl", [{"en": "cat"}])], TOKENIZER, tmp_path / "out")
    for found, objectives, options, expected in (
        (mono, ("camlm",), {}, "camlm: expected texts with translations, found none"),
        (shards, ("tlm",), {"pairs_with": "fr"}, "between fr and other languages, found none"),
        (shards, ("mlm",), {}, "objectives: expected some of mmlm, tlm, camlm, btmlm, got 'mlm'"),
        (shards, ("tlm",), {"pairs_with": 3}, "between 3 and other languages, found none"),
    ):
        with pytest.raises(ValueError, match=expected):
            Mixture(found, WORDS, objectives, 100, **options)  # type: ignore[arg-type]


NO_NUMBERS = (None, True, "a", [1], float("nan"), float("inf"), -1e9, -1)


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        (
            "objectives",
            ((), [], "mmlm", 3, None, {"mmlm": 1}),
            "objectives: expected a list of at least one of mmlm, tlm",
        ),
        ("objectives", ([["mmlm"]], ["mmlm", 3], [None]), "objectives: expected some of mmlm, tlm, camlm, btmlm"),
        ("alpha", (*NO_NUMBERS, 1e9, 1.01), "alpha: expected a number from 0 to 1"),
        ("tokens", (*NO_NUMBERS, 0, 1.0), "tokens: expected a whole number of at least 1"),
        ("per_step", (*NO_NUMBERS, 0, 1.0), "per_step: expected a whole number of at least 1"),
        ("seed", (*NO_NUMBERS, 1.0), "seed: expected a whole number of at least 0"),
        ("arguments", (None, 3, ["mmlm"]), "arguments: expected those of each objective by its name"),
        ("arguments", ({"mlm": {}}, {3: {}}), "arguments: expected some of mmlm, tlm, camlm, btmlm"),
        ("arguments", ({"tlm": 3}, {"tlm": None}, {"tlm": ["ratio"]}), "arguments: tlm: expected arguments by name"),
        (
            "arguments",
            ({"mmlm": {"foo": 1}}, {"mmlm": {"ids": 1}}),
            "arguments: mmlm: expected some of ratio, shares, weight",
        ),
        (
            "arguments",
            ({"mmlm": {"ratio": x}} for x in NO_NUMBERS),
            "arguments: mmlm: ratio: expected a number from 0 to 1",
        ),
        (
            "arguments",
            ({"btmlm": {"weight": x}} for x in NO_NUMBERS),
            "arguments: btmlm: weight: expected a finite number",
        ),
        ("arguments", ({"camlm": {"masks": 3}},), "arguments: camlm: masks: expected 'in_place' or 'appended'"),
        (
            "arguments",
            ({"tlm": {"ratio": 0}}, {"tlm": {"weight": 0.0}}),
            "arguments: tlm: expected a ratio and a weight above 0",
        ),
    ],
)
def test_values_of_another_kind_are_refused_by_name(shards: Shards, name: str, wrong: Any, expected: str) -> None:
    """When the mixture is made. Seen red: nan among the probabilities, an unhashable type, Python's own words."""
    good: dict[str, Any] = {"objectives": ("mmlm",), "tokens": 100}
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{expected}"):
            Mixture(shards, WORDS, **{**good, name: value})


@pytest.mark.parametrize("alpha", [0, 0.0, 1, np.float32(0.5)])
def test_limits_of_alpha(shards: Shards, alpha: float) -> None:
    """Whole numbers and NumPy's are numbers."""
    assert Mixture(shards, WORDS, ["mmlm"], 100, alpha=alpha).batch(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"positions": "again"}])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_longest_text_fits_and_a_longer_one_does_not(name: str, options: dict[str, Any]) -> None:
    """With as many placeholders as words in BTMLM."""
    options = options if name in PARALLEL else {}
    for positions in (20, 21):
        n = longest_text(name, positions, options)
        for size, fit in ((n, True), (n + 1, False)):
            texts = [np.full(size, 7)] * (1 if name == "mmlm" else 2)
            made: Any = OBJECTIVES[name]
            e = made(*texts, WORDS, np.random.default_rng(0), **options)
            assert (e.position_ids.max() < positions) == fit
