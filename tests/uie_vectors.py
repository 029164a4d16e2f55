"""What paddlenlp's `get_span` returned, run: starts, ends, and the spans that it made of them."""

from __future__ import annotations

GET_SPAN: list[tuple[list[int], list[int], list[tuple[int, int]]]] = [
    ([3, 4], [5], [(4, 5)]),
    ([3], [5, 7], [(3, 5)]),
    ([3, 6], [5, 7], [(3, 5), (6, 7)]),
    ([5], [3], []),
    ([3, 8], [8, 9], [(8, 8)]),
    ([2, 4, 6], [4, 6, 9], [(4, 4), (6, 6)]),
]
