"""Objectives that need a sentence and its translation: TLM and CAMLM.

Source: Cross-lingual Language Model Pretraining (Lample and Conneau, 2019) for TLM; ERNIE-M, section 3.1, for CAMLM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array
from .examples import Example, example, sequence, words_of
from .masking import ONLY_MASKS, XLM_SHARES, Vocabulary, check_ids, choose, replace_tokens


def tlm(
    first: Any,
    second: Any,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    ratio: float = 0.15,
    shares: tuple[float, float, float] = XLM_SHARES,
    positions: str = "on",
    weight: float = 1.0,
) -> Example:
    """Translation language modelling: masked words of a sentence and its translation, from both.

    positions: whether those of the second side go "on" after the first's, as in fine-tuning, or begin "again" at 0.
    ratio (of each side), shares, weight: as in `mmlm`.
    """
    sentences = check_ids("first", first, vocabulary), check_ids("second", second, vocabulary)
    tokens, sides = sequence(vocabulary, *sentences)
    masked = _choose_sides(sides, (0, 1), ratio, rng)
    replaced = replace_tokens(tokens, masked, shares, vocabulary, rng)
    return example(replaced, _positions(sides, positions), None, masked, tokens[masked], sides, weight)


def camlm(
    first: Any,
    second: Any,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    masks: str = "in_place",
    masked_sides: str = "both",
    ratio: float = 0.15,
    shares: tuple[float, float, float] = ONLY_MASKS,
    see_own_masks: bool | None = None,
    positions: str = "on",
    weight: float = 1.0,
) -> Example:
    """Cross-attention masked language modelling: masked words of a sentence, from its translation alone.

    masks: "in_place", in the place of the masked tokens; or "appended" behind the sequence, with the positions of their
        tokens, which remain (figure 1c of the paper): then a mask sees all of the other side's text.
    masked_sides: "both", or "one", drawn for each pair. With "one" and a ratio of 1, a sentence is predicted whole.
    ratio: of each masked side's tokens. The paper's is not known; 0.15 is XLM's.
    shares: as in `mmlm`. A token that is not replaced tells its own answer, and its siblings' if they see it, so that
        by default all become [MASK].
    see_own_masks: whether the masks of a side see each other, which only tells them where other masks are. By default
        they do if they are appended, as in the figure.
    positions, weight: as in `tlm`.
    """
    if masks not in ("in_place", "appended"):
        raise ValueError(f"masks: expected 'in_place' or 'appended', got {masks!r}")
    if masked_sides not in ("both", "one"):
        raise ValueError(f"masked_sides: expected 'both' or 'one', got {masked_sides!r}")
    if not (see_own_masks is None or isinstance(see_own_masks, bool)):
        raise ValueError(f"see_own_masks: expected True, False or None, got {see_own_masks!r:.80}")
    sentences = check_ids("first", first, vocabulary), check_ids("second", second, vocabulary)
    tokens, sides = sequence(vocabulary, *sentences)
    chosen = (0, 1) if masked_sides == "both" else (int(rng.integers(2)),)
    masked = _choose_sides(sides, chosen, ratio, rng)
    places, answers = _positions(sides, positions), tokens[masked]
    replaced = replace_tokens(tokens, masked, shares, vocabulary, rng)
    if masks == "appended":
        tokens = np.concatenate([tokens, replaced[masked]])
        places, sides = (np.concatenate([x, x[masked]]) for x in (places, sides))
        masked = np.arange(len(replaced), len(tokens))
    else:
        tokens = replaced
    own = masks == "appended" if see_own_masks is None else see_own_masks
    return example(tokens, places, camlm_sees(sides, masked, own), masked, answers, sides, weight)


def camlm_sees(sides: Array, masked: Array, see_own_masks: bool) -> Array:  # (n,), (M,) -> (n, n)
    """What each token of a pair sees in CAMLM, given each token's side and which tokens are masks."""
    is_mask = np.zeros(len(sides), bool)
    is_mask[masked] = True
    same_side = sides[:, None] == sides[None, :]
    text = ~is_mask[None, :]
    sees = np.where(is_mask[:, None], ~same_side & text, same_side & text)
    if see_own_masks:
        sees |= is_mask[:, None] & is_mask[None, :] & same_side
    return sees | np.eye(len(sides), dtype=bool)


def _choose_sides(sides: Array, chosen: tuple[int, ...], ratio: float, rng: np.random.Generator) -> Array:  # -> (M,)
    """The places to mask on the chosen sides."""
    return np.concatenate([choose(words_of(sides, side), ratio, rng) for side in chosen])


def _positions(sides: Array, positions: str) -> Array:  # (n,) -> (n,)
    """Each token's position: counted on, or again from the second side's first token."""
    if positions not in ("on", "again"):
        raise ValueError(f"positions: expected 'on' or 'again', got {positions!r}")
    places = np.arange(len(sides))
    return places if positions == "on" else np.where(sides == 1, places - np.count_nonzero(sides == 0), places)
