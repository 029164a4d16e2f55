"""The objectives: what is masked, what each token sees, and that no answer leaks, whatever the depth.

Seen red: text that sees both sides; text that sees the other side instead of its own; masks that see their own side's
text; special tokens among the masked; labels of the replaced tokens instead of the original ones.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import pytest
from helpers import SMALL, random_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference import objectives
from ernie_m.reference.losses import IGNORE_INDEX
from ernie_m.reference.objectives import Example, Vocabulary, btmlm, btmlm_placeholders, camlm, collate, mmlm, tlm

VOCABULARY = Vocabulary(size=50, mask=49)
ONLY_MASKS = (1.0, 0.0, 0.0)
SEEDS = st.integers(0, 2**32 - 1)
# Words that differ, so that the table's gradient has a row for each place.
SENTENCES = st.integers(0, 9)
PAIRS = st.tuples(SENTENCES, SENTENCES)
VARIANTS = st.fixed_dictionaries(
    {
        "masks": st.sampled_from(["in_place", "appended"]),
        "masked_sides": st.sampled_from(["both", "one"]),
        "ratio": st.sampled_from([0.15, 0.5, 1.0]),
        "see_own_masks": st.sampled_from([None, False, True]),
        "positions": st.sampled_from(["on", "again"]),
    }
)


def sentences(sizes: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    words = np.random.default_rng(seed).permutation(np.arange(4, 49))
    return words[: sizes[0]], words[20 : 20 + sizes[1]]


def all_objectives(sizes: tuple[int, int], seed: int, **options: Any) -> dict[str, Example]:
    first, second = sentences(sizes, seed)
    rng = np.random.default_rng(seed)
    return {
        "mmlm": mmlm(first, VOCABULARY, rng, **options),
        "tlm": tlm(first, second, VOCABULARY, rng, **options),
        "camlm": camlm(first, second, VOCABULARY, rng, **options),
        "appended": camlm(first, second, VOCABULARY, rng, masks="appended", **options),
        "btmlm": btmlm(first, second, VOCABULARY, rng, **options),
    }


def reach(sees: np.ndarray, layers: int) -> np.ndarray:  # (n, n) -> (n, n)
    """Which tokens' inputs (columns) can change which tokens' outputs (rows) after some layers."""
    found = np.eye(len(sees), dtype=bool)
    for _ in range(layers):
        # A residual carries each token's own input along.
        found = (sees | np.eye(len(sees), dtype=bool)) @ found
    return found


@given(PAIRS, SEEDS, st.sampled_from([0.0, 0.15, 0.5, 1.0]))
def test_labels_are_the_words_that_were_masked(sizes: tuple[int, int], seed: int, ratio: float) -> None:
    """The right number of them; all else is as it was, and special tokens are never masked."""
    first, second = sentences(sizes, seed)
    for name, e in all_objectives(sizes, seed, ratio=ratio, shares=ONLY_MASKS).items():
        masked = np.flatnonzero(e.labels != IGNORE_INDEX)
        assert (e.input_ids[masked] == VOCABULARY.mask).all()
        assert (e.weights == (e.labels != IGNORE_INDEX)).all()
        whole = e.input_ids.copy()
        whole[masked] = e.labels[masked]
        single = [0, *first, 2]
        expected = {"mmlm": single, "btmlm": [*single, *second]}.get(name, [*single, 2, *second, 2])
        np.testing.assert_array_equal(whole[: len(expected)], expected)
        assert not np.isin(e.labels[masked], [0, 1, 2, 3, 49]).any()
        both = ((first, 0), (second, 1)) if name in ("tlm", "camlm", "appended") else ((first, 0),)
        for words, side in both:
            count = min(len(words), max(1, round(ratio * len(words)))) if ratio else 0
            assert np.count_nonzero(e.sides[masked] == side) == count
            assert np.isin(e.labels[masked][e.sides[masked] == side], words).all()
        if name == "appended":
            # The copy stands at the position of its word.
            for place in masked:
                (original,) = np.flatnonzero(whole[: len(expected)] == e.labels[place])
                assert e.position_ids[place] == e.position_ids[original]


@given(SEEDS, st.sampled_from([ONLY_MASKS, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]))
def test_shares_say_what_becomes_of_masked_tokens(seed: int, shares: tuple[float, float, float]) -> None:
    for e in all_objectives((8, 8), seed, ratio=0.5, shares=shares).values():
        masked = e.labels != IGNORE_INDEX
        found, answers = e.input_ids[masked], e.labels[masked]
        if shares[0]:
            assert (found == VOCABULARY.mask).all()
        elif shares[1]:
            assert not np.isin(found, VOCABULARY.special).any()
        else:
            assert (found == answers).all()


@pytest.mark.parametrize("objective", [mmlm, tlm, camlm, btmlm])
def test_defaults_are_those_of_xlm(objective: Any) -> None:
    """But for the shares of CAMLM, where a word that is not replaced tells its own answer."""
    shares = (1.0, 0.0, 0.0) if objective is camlm else (0.8, 0.1, 0.1)
    defaults = {name: parameter.default for name, parameter in signature(objective).parameters.items()}
    assert (defaults["ratio"], defaults["shares"], defaults["weight"]) == (0.15, shares, 1.0)


def test_random_words_are_all_words_and_no_special_tokens() -> None:
    vocabulary = Vocabulary(size=9, mask=6, cls=0, pad=1, sep=2, unk=5)
    drawn = vocabulary.draw(4000, np.random.default_rng(0))
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [3, 4, 7, 8]
    # Each is a quarter of 4,000, with a standard deviation of 27.
    assert np.abs(counts - 1000).max() < 5 * 27.4


def test_shares_are_probabilities() -> None:
    rng = np.random.default_rng(0)
    words = np.tile(np.arange(4, 44), 100)
    e = mmlm(words, VOCABULARY, rng, ratio=1.0)
    found, answers = e.input_ids[1:-1], e.labels[1:-1]
    n = len(words)
    for share, seen in ((0.8, found == 49), (0.1 + 0.1 / 45, found == answers)):
        assert abs(seen.mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


@given(PAIRS, SEEDS, VARIANTS)
def test_camlm_sees_what_the_table_says(sizes: tuple[int, int], seed: int, options: dict[str, Any]) -> None:
    """The rule, token by token, as in OBJECTIVES' table."""
    e = camlm(*sentences(sizes, seed), VOCABULARY, np.random.default_rng(seed), **options)
    own = options["masks"] == "appended" if options["see_own_masks"] is None else options["see_own_masks"]
    masked = e.labels != IGNORE_INDEX
    assert e.sees is not None
    for i in range(len(masked)):
        for j in range(len(masked)):
            same = e.sides[i] == e.sides[j]
            if masked[i]:
                expected = i == j or (not same and not masked[j]) or (own and same and masked[j])
            else:
                expected = same and not masked[j]
            assert e.sees[i, j] == expected


@given(PAIRS, SEEDS, VARIANTS, st.integers(1, 6))
def test_no_answer_can_be_reached_in_camlm(
    sizes: tuple[int, int], seed: int, options: dict[str, Any], layers: int
) -> None:
    """A mask reaches all of the other side's text and nothing of its own side's, its answer included."""
    e = camlm(*sentences(sizes, seed), VOCABULARY, np.random.default_rng(seed), **options)
    assert e.sees is not None
    masked, found = e.labels != IGNORE_INDEX, reach(e.sees, layers)
    text = ~masked
    for i in np.flatnonzero(masked):
        assert not found[i, text & (e.sides == e.sides[i])].any()
        assert found[i, text & (e.sides != e.sides[i])].all()


@pytest.mark.parametrize("masks", ["in_place", "appended"])
def test_one_masked_side_is_either_equally_often(masks: str) -> None:
    """Seen red: a third side among those drawn, so that nothing is masked in a third of the examples."""
    rng = np.random.default_rng(0)
    drawn = [camlm([5, 6], [7, 8], VOCABULARY, rng, masks=masks, masked_sides="one", ratio=1.0) for _ in range(400)]
    found = [e.sides[e.labels != IGNORE_INDEX].tolist() for e in drawn]
    assert all(sides in ([0, 0], [1, 1]) for sides in found)
    # 200 of 400, with a standard deviation of 10.
    assert abs(found.count([1, 1]) - 200) < 5 * 10


def faulty(e: Example, fault: str) -> np.ndarray:
    """What the tokens would see with one of two rules that leak, and that pass for one layer."""
    masked = e.labels != IGNORE_INDEX
    assert e.sees is not None
    sees = e.sees.copy()
    if fault == "text sees both sides":
        sees[np.ix_(~masked, ~masked)] = True
    else:
        sees[np.ix_(~masked, ~masked)] = (e.sides[:, None] != e.sides[None, :])[np.ix_(~masked, ~masked)]
    return sees


@pytest.mark.parametrize(
    ("fault", "masks"), [("text sees both sides", "appended"), ("text sees the other side", "in_place")]
)
@given(st.tuples(st.integers(2, 9), st.integers(1, 9)), SEEDS)
def test_a_leak_shows_from_the_second_layer_on(fault: str, masks: str, sizes: tuple[int, int], seed: int) -> None:
    e = camlm(*sentences(sizes, seed), VOCABULARY, np.random.default_rng(seed), masks=masks)
    masked, sees = e.labels != IGNORE_INDEX, faulty(e, fault)
    own_text = ~masked & (e.sides[:, None] == e.sides[None, :])
    leaks = [bool((reach(sees, layers) & own_text)[masked].any()) for layers in (1, 2, 3)]
    assert leaks == [False, True, True]


@pytest.mark.parametrize(
    ("options", "share"),
    [({}, 0.429), ({"see_own_masks": True}, 0.436), ({"masks": "appended"}, 0.586)],
)
def test_how_much_of_the_square_is_seen(options: dict[str, Any], share: float) -> None:
    """20 and 20 tokens, 15 % masked, special tokens left out: the share of 40² that is computed."""
    words = np.arange(4, 44)
    e = camlm(words[:20], words[20:], VOCABULARY, np.random.default_rng(0), **options)
    ordinary = ~np.isin(e.input_ids, [0, 2])
    assert e.sees is not None
    assert round(e.sees[np.ix_(ordinary, ordinary)].sum() / 40**2, 3) == share


MODELS = {layers: random_model(ernie.ErnieMModel, num_hidden_layers=layers) for layers in (2, 3)}


def hidden(e: Example, sees: np.ndarray | None, model: Any) -> np.ndarray:  # -> (n, E)
    batch = collate([e], VOCABULARY)
    mask = batch["attention_mask"] if sees is None else sees[None]
    output = model(batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"])
    return np.asarray(output.last_hidden_state[0])


@given(PAIRS, SEEDS, VARIANTS, st.sampled_from(sorted(MODELS)))
@settings(max_examples=30)
def test_the_gradient_of_a_mask_with_respect_to_its_own_side_is_0(
    sizes: tuple[int, int], seed: int, options: dict[str, Any], layers: int
) -> None:
    """Exactly: of the table, whose every row is one place's input here."""
    e = camlm(*sentences(sizes, seed), VOCABULARY, np.random.default_rng(seed), **options)
    batch, masked = collate([e], VOCABULARY), e.labels != IGNORE_INDEX
    assume(masked.any())
    rng = np.random.default_rng(seed)
    for side in set(e.sides[masked].tolist()):
        d_hidden = np.zeros((1, len(masked), SMALL["hidden_size"]))
        here = masked & (e.sides == side)
        d_hidden[0, here] = rng.standard_normal((np.count_nonzero(here), SMALL["hidden_size"]))
        _, gradients = ernie.value_and_vjp(
            MODELS[layers],
            {"last_hidden_state": d_hidden},
            batch["input_ids"],
            batch["attention_mask"],
            batch["position_ids"],
        )
        ordinary = ~np.isin(e.input_ids, [0, 2]) & ~masked
        own, other = (e.input_ids[ordinary & (e.sides == s)] for s in (side, 1 - side))
        assert not gradients.word_embeddings[own].any()
        assert gradients.word_embeddings[other].any(axis=1).all()


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), SEEDS, VARIANTS, st.sampled_from(sorted(MODELS)))
@settings(max_examples=30)
def test_changing_the_answer_changes_no_bit(
    sizes: tuple[int, int], seed: int, options: dict[str, Any], layers: int
) -> None:
    """Nor does changing any text of the mask's own side; changing the other side's does."""
    e = camlm(*sentences(sizes, seed), VOCABULARY, np.random.default_rng(seed), **options)
    masked = e.labels != IGNORE_INDEX
    before = hidden(e, None, MODELS[layers])
    for side in (0, 1):
        changed = e.input_ids.copy()
        text = ~masked & (e.sides == side) & ~np.isin(e.input_ids, [0, 2])
        changed[text] = (changed[text] - 4 + 7) % 45 + 4
        moved = Example(changed, e.position_ids, e.sees, e.labels, e.weights, e.sides)
        after = hidden(moved, None, MODELS[layers])
        for i in np.flatnonzero(masked):
            same = np.array_equal(before[i], after[i])
            assert same == (e.sides[i] == side or not text.any())


@pytest.mark.parametrize(
    ("fault", "masks"), [("text sees both sides", "appended"), ("text sees the other side", "in_place")]
)
def test_a_leak_changes_what_masks_compute(fault: str, masks: str) -> None:
    """The test above would see both faults, with two layers and not with one."""
    e = camlm(*sentences((6, 5), 0), VOCABULARY, np.random.default_rng(0), masks=masks, ratio=0.3)
    masked, sees = e.labels != IGNORE_INDEX, faulty(e, fault)
    text = ~masked & (e.sides == 0) & ~np.isin(e.input_ids, [0, 2])
    changed = e.input_ids.copy()
    changed[text] = (changed[text] - 4 + 7) % 45 + 4
    moved = Example(changed, e.position_ids, e.sees, e.labels, e.weights, e.sides)
    for layers, leaks in ((1, False), (2, True)):
        model = random_model(ernie.ErnieMModel, num_hidden_layers=layers)
        rows = masked & (e.sides == 0)
        assert np.array_equal(hidden(e, sees, model)[rows], hidden(moved, sees, model)[rows]) != leaks


def test_a_kept_token_leaks_its_own_answer() -> None:
    """By design of the shares: so CAMLM replaces all masked tokens by default."""
    rng = np.random.default_rng
    first, second = sentences((6, 6), 0)
    kept = camlm(first, second, VOCABULARY, rng(0), shares=(0.0, 0.0, 1.0), masked_sides="one", ratio=1.0)
    assert (kept.input_ids[kept.labels != IGNORE_INDEX] == kept.labels[kept.labels != IGNORE_INDEX]).all()
    default = camlm(first, second, VOCABULARY, rng(0), masked_sides="one", ratio=1.0)
    assert (default.input_ids[default.labels != IGNORE_INDEX] == VOCABULARY.mask).all()


@given(PAIRS, SEEDS)
def test_placeholders_see_the_sentence_and_each_other(sizes: tuple[int, int], seed: int) -> None:
    first, _ = sentences(sizes, seed)
    e = btmlm_placeholders(first, VOCABULARY, 3)
    assert e.sees is not None
    n = len(first) + 2
    assert (e.input_ids[n:] == VOCABULARY.mask).all() and len(e.input_ids) == n + 3
    assert e.sees[n:].all() and e.sees[:n, :n].all() and not e.sees[:n, n:].any()
    assert (e.labels == IGNORE_INDEX).all() and (e.position_ids == np.arange(n + 3)).all()


@given(SEEDS)
def test_pseudo_tokens_are_words(seed: int) -> None:
    """The most probable ones; drawn ones follow the softmax; special tokens never."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((6, 50))
    logits[:, list(VOCABULARY.special)] += 100.0
    best = objectives.pseudo_tokens(logits, VOCABULARY)
    words = np.setdiff1d(np.arange(50), VOCABULARY.special)
    np.testing.assert_array_equal(best, words[logits[:, words].argmax(axis=1)])
    assert np.isin(objectives.pseudo_tokens(logits, VOCABULARY, rng), words).all()
    np.testing.assert_array_equal(objectives.pseudo_tokens(logits, VOCABULARY, rng, temperature=1e-6), best)


def test_drawn_pseudo_tokens_follow_the_softmax() -> None:
    logits = np.full((20000, 50), -np.inf)
    shares = {10: 0.1, 11: 0.2, 12: 0.7}
    logits[:, list(shares)] = 2.0 * np.log(list(shares.values()))
    drawn = objectives.pseudo_tokens(logits, VOCABULARY, np.random.default_rng(0), temperature=2.0)
    assert set(drawn.tolist()) == shares.keys()
    for word, share in shares.items():
        assert abs((drawn == word).mean() - share) < 5 * np.sqrt(share * (1 - share) / 20000)


@given(PAIRS, SEEDS, st.sampled_from(["mmlm", "all"]))
@settings(max_examples=20)
def test_a_batch_has_the_loss_of_its_examples(sizes: tuple[int, int], seed: int, kind: str) -> None:
    """Whatever stands beside an example, and with different weights."""
    model = random_model(ernie.ErnieMForMaskedLM)
    found = all_objectives(sizes, seed, ratio=0.5)
    examples = [
        mmlm(words, VOCABULARY, np.random.default_rng(i), weight=1.0 + i) for i, words in enumerate(sentences(sizes, 1))
    ]
    examples += list(found.values()) if kind == "all" else []
    assume(any((e.labels != IGNORE_INDEX).any() for e in examples))
    total = count = 0.0
    for e in examples:
        if (e.labels != IGNORE_INDEX).any():
            total += float(model(**collate([e], VOCABULARY)).loss) * e.weights.sum()
            count += e.weights.sum()
    batch = collate(examples, VOCABULARY)
    assert batch["attention_mask"].ndim == (2 if kind == "mmlm" else 3)
    np.testing.assert_allclose(float(model(**batch).loss), total / count, rtol=1e-12)


def test_nothing_masked_has_no_loss_and_no_gradient() -> None:
    model = random_model(ernie.ErnieMForMaskedLM)
    e = mmlm([5, 6, 7], VOCABULARY, np.random.default_rng(0), ratio=0.0)
    output, gradients = ernie.value_and_gradients(model, **collate([e], VOCABULARY))
    assert np.isnan(output.loss)
    assert not gradients.word_embeddings.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda rng: mmlm([5, 60], VOCABULARY, rng),
            r"ids: expected values in \[0, 50\) for a vocabulary of 50 rows, got 60",
        ),
        (lambda rng: mmlm([5, 2], VOCABULARY, rng), "ids: expected words, without special tokens, got 2"),
        (lambda rng: mmlm([[5, 6]], VOCABULARY, rng), r"ids: expected one sentence, shape \(n,\), got \(1, 2\)"),
        (lambda rng: mmlm([0.5], VOCABULARY, rng), "ids: expected integers, got float64"),
        (lambda rng: tlm([5], [49], VOCABULARY, rng), "second: expected words, without special tokens, got 49"),
        (lambda rng: mmlm([5], VOCABULARY, rng, ratio=1.5), "ratio: expected a number from 0 to 1, got 1.5"),
        (
            lambda rng: mmlm([5], VOCABULARY, rng, shares=(0.5, 0.2, 0.2)),
            "shares: expected three numbers of at least 0",
        ),
        (lambda rng: tlm([5], [6], VOCABULARY, rng, positions="0"), "positions: expected 'on' or 'again', got '0'"),
        (lambda rng: camlm([5], [6], VOCABULARY, rng, masks="x"), "masks: expected 'in_place' or 'appended', got 'x'"),
        (
            lambda rng: camlm([5], [6], VOCABULARY, rng, masked_sides="x"),
            "masked_sides: expected 'both' or 'one', got 'x'",
        ),
        (lambda rng: btmlm_placeholders([5], VOCABULARY, 0), "count: expected at least 1 placeholder, got 0"),
        (lambda rng: collate([], VOCABULARY), "examples: expected at least one, got none"),
        (lambda rng: Vocabulary(50, mask=50), r"special tokens: expected five different ids in \[0, 50\)"),
        (lambda rng: Vocabulary(50, mask=2), r"special tokens: expected five different ids in \[0, 50\)"),
        (lambda rng: Vocabulary(5, mask=4), "size: expected at least one word beside the five special tokens, got 5"),
        (
            lambda rng: objectives.pseudo_tokens(np.zeros((1, 50)), VOCABULARY, rng, 0.0),
            "temperature: expected a number above 0",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(np.random.default_rng(0))


SENTENCES_OF: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mmlm": (lambda ids, rng: mmlm(ids, VOCABULARY, rng), ("ids",)),
    "placeholders": (lambda ids, rng: btmlm_placeholders(ids, VOCABULARY, 1), ("ids",)),
    "tlm": (lambda first, second, rng: tlm(first, second, VOCABULARY, rng), ("first", "second")),
    "camlm": (lambda first, second, rng: camlm(first, second, VOCABULARY, rng), ("first", "second")),
    "btmlm": (lambda ids, pseudo, rng: btmlm(ids, pseudo, VOCABULARY, rng), ("ids", "pseudo")),
}


@pytest.mark.parametrize("name", SENTENCES_OF)
def test_a_sentence_that_holds_no_words_is_named(name: str) -> None:
    call, arguments = SENTENCES_OF[name]
    for argument in arguments:
        given = {other: [0.5] if other == argument else [5] for other in arguments}
        with pytest.raises(TypeError, match=f"^{argument}: expected integers, got float64"):
            call(**given, rng=np.random.default_rng(0))


NO_NUMBERS = (None, True, "a", [0.5], {}, float("nan"), float("inf"), -0.1)


@pytest.mark.parametrize(
    ("name", "wrong", "also"),
    [
        ("ratio", NO_NUMBERS, ("camlm", "tlm", "mmlm", "btmlm")),
        ("weight", NO_NUMBERS, ("camlm", "tlm", "mmlm", "btmlm")),
        (
            "shares",
            (3, None, "abc", {}, [1.0], [1, 0, "a"], [1, 0, [0]], [float("nan")] * 3, [1.5, -0.5, 0], [True, 0, 0]),
            ("camlm", "tlm", "mmlm", "btmlm"),
        ),
        ("positions", (None, 3, ["on"], {}), ("camlm", "tlm")),
        ("masks", (None, 3, ["appended"], {}), ("camlm",)),
        ("masked_sides", (None, 3, ["one"], {}), ("camlm",)),
        ("see_own_masks", (3, 1, "a", []), ("camlm",)),
    ],
)
def test_named_arguments_of_another_kind_are_refused_by_name(name: str, wrong: Any, also: tuple[str, ...]) -> None:
    """Seen red: a comparison of 'float' and 'str'; nan as a share; infinity as a weight; 3 as "they see each other"."""
    words = {"mmlm": ([5, 6],), "tlm": ([5], [6]), "camlm": ([5], [6]), "btmlm": ([5], [6])}
    for objective in also:
        for value in wrong:
            call: Any = getattr(objectives, objective)
            with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
                call(*words[objective], VOCABULARY, np.random.default_rng(0), **{name: value})


@pytest.mark.parametrize("temperature", [0, -1.0, "a", None, True, float("nan"), float("inf")])
def test_temperature_is_positive_and_finite(temperature: Any) -> None:
    """Seen red: special tokens drawn at an infinite temperature, where their logits are nan."""
    with pytest.raises(ValueError, match=r"^temperature: expected a number above 0"):
        objectives.pseudo_tokens(np.zeros((1, 50)), VOCABULARY, np.random.default_rng(0), temperature)
