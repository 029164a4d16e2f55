"""Texts longer than the model's maximum length: truncate them, or run the model on windows of them.

A model for N tokens takes N - 2 tokens of a text, between [CLS] and [SEP]. The policies for a text of n > N - 2 tokens:

    error         refuse it
    truncate      keep the first N - 2
    window-mean   k windows of N - 2 tokens each, evenly spaced from the first token to the last, each with its own
                  [CLS] and [SEP]; the text's vector is the mean of the k windows' vectors

k is the smallest number for which neighbours overlap by at least a quarter of their length. All windows are equally
long, so the mean of their means is also the mean over all their tokens; a token in two windows counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence

ERROR, TRUNCATE, WINDOW_MEAN = POLICIES = ("error", "truncate", "window-mean")


def parts(ids: Sequence[int], longest: int, policy: str) -> list[Sequence[int]]:
    """The parts of a text that the model reads: at most `longest` token ids each, without special tokens.

    There is one part, or with "window-mean" one per window. Raises ValueError if the text is too long and `policy` is
    "error".
    """
    n = len(ids)
    if n <= longest:
        return [ids]
    if policy == ERROR:
        raise ValueError(f"expected at most {longest + 2} tokens, [CLS] and [SEP] included, got {n + 2}")
    if policy == TRUNCATE:
        return [ids[:longest]]
    return [ids[start : start + longest] for start in window_starts(n, longest)]


def window_starts(n: int, longest: int) -> list[int]:
    """The window starts for a text of n > longest tokens: the first is 0, the last n - longest."""
    step = max(1, longest - -(-longest // 4))
    count = 1 + -(-(n - longest) // step)
    return [i * (n - longest) // (count - 1) for i in range(count)]
