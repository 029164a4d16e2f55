"""The inputs that kernels are checked on: awkward ones drawn with hypothesis, and fixed random ones.

Inputs are the arguments of one call by name, in float64 and already rounded to the format; `operations` says which
function draws for which operation.

Drawn inputs have sizes around every power of two up to 1,024, mostly those around 64 and 128; ragged batches, with
sequences of one token and empty ones; magnitudes from 10⁻³ to 10³; means of both signs that are large compared with the
spread; equal or mostly equal numbers. γ and β are random: with γ = 1 and β = 0, a kernel that never reads them would
pass. Each argument has its own seed, so that no two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .formats import Format

COMMON = (1, 2, 7, 63, 64, 65, 127, 129)
# The common sizes three times, so that they are drawn as often as all others.
SIZES = COMMON * 3 + tuple(2**k + step for k in range(2, 11) for step in (-1, 0, 1))
ROWS = (1, 2, 3, 7, 17)
HEAD_SIZES = (16, 32, 64, 128)
MAGNITUDES = (1.0, 1e-3, 0.1, 10.0, 1e3)
# Mean divided by standard deviation.
OFFSETS = (0.0, 1.0, 30.0, 300.0)
KINDS = ("random", "equal", "mostly equal", "whole numbers")
# Scores of about minus this much are numbers of every format, and below most that stand for -inf.
LOW = 3e4
EPSILONS = (1e-5, 1e-12)
MOST_TOKENS = 260

# (hypothesis' draw, format) -> the arguments of one call, by name and in call order.
Draw = Callable[[Any, Format], dict[str, Any]]


def numbers(format: Format, shape: tuple[int, ...], seed: int, magnitude: float, offset: float, kind: str) -> Array:
    """Random numbers of a format, around ±offset · magnitude and with a spread of magnitude."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    offset = offset * rng.choice((1.0, -1.0))
    if kind == "equal":
        values = np.broadcast_to(values.flat[0], shape)
    elif kind == "mostly equal":
        values = np.where(rng.random(shape) < 0.1, values, 1.0)
    elif kind == "whole numbers":
        values = np.rint(2 * values)
    # Within half of the format's range: sums and products of a few numbers may overflow, the numbers do not.
    most = format.largest / 2
    return format.round(np.clip((values + offset) * magnitude, -most, most))


def draw_numbers(draw: Any, format: Format, shape: tuple[int, ...], seed: int, offsets: Any = OFFSETS) -> Array:
    """Numbers of a format, of a drawn magnitude, offset and kind."""
    from hypothesis import strategies as st

    magnitude = draw(st.sampled_from(MAGNITUDES))
    offset = draw(st.sampled_from(offsets))
    kind = draw(st.sampled_from(KINDS))
    return numbers(format, shape, draw(st.integers(0, 99)) * 16 + seed, magnitude, offset, kind)


def pick(draw: Any, choices: tuple[Any, ...]) -> Any:
    """One of the choices."""
    from hypothesis import strategies as st

    return draw(st.sampled_from(choices))


@dataclass(frozen=True)
class Rows:
    """Arguments by name, in call order, and their number of axes: 2 for shape (rows, columns), 1 for (columns,).

    An argument with 0 axes is the ε of a normalisation.
    """

    axes: Mapping[str, int]

    def __call__(self, draw: Any, format: Format) -> dict[str, Any]:
        """Draw the arguments of one call."""
        rows, columns = pick(draw, ROWS), pick(draw, SIZES)
        inputs: dict[str, Any] = {}
        for seed, (name, count) in enumerate(self.axes.items()):
            if count == 0:
                inputs[name] = pick(draw, EPSILONS)
            elif count == 1:
                inputs[name] = draw_numbers(draw, format, (columns,), seed, (0.0, 1.0))
            else:
                inputs[name] = draw_numbers(draw, format, (rows, columns), seed)
        return inputs

    def at(self, normal: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
        """The arguments at given sizes; `normal(*shape)` draws the numbers."""
        shapes = {2: (rows, columns), 1: (columns,)}
        return {name: normal(*shapes[count]) if count else EPS for name, count in self.axes.items()}


def drawn_rows(**axes: int) -> Rows:
    """Draws arguments by their number of axes; see `Rows`."""
    return Rows(axes)


def draw_embedding(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `embed`: ids and positions (T,), tables (V, E) and (P, E), gamma and beta (E,), eps."""
    T, V, P, E = pick(draw, ROWS), pick(draw, (1, 2, 33)), pick(draw, (3, 4, 35)), pick(draw, SIZES)
    rng = np.random.default_rng(T)
    tables = {"word": (V, E), "position": (P, E), "gamma": (E,), "beta": (E,)}
    return {
        "input_ids": rng.integers(0, V, T),
        "position_ids": rng.integers(0, P - 2, T),
        **{name: draw_numbers(draw, format, shape, seed) for seed, (name, shape) in enumerate(tables.items())},
        "eps": pick(draw, EPSILONS),
    }


def draw_embedding_vjp(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `embed_vjp`: a cotangent (T, E), and those of `embed` but for beta."""
    inputs = draw_embedding(draw, format)
    shape = (len(inputs["input_ids"]), inputs["word"].shape[1])
    return {"dy": draw_numbers(draw, format, shape, 4), **without_beta(inputs)}


def without_beta(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without beta: no gradient depends on a shift."""
    return {name: value for name, value in inputs.items() if name != "beta"}


def _draw_lengths(draw: Any) -> Array:
    """cu_seqlens, (B + 1,): where sequences begin and end. Some may be empty, but not all."""
    from hypothesis import strategies as st

    sizes = [n for n in SIZES if n <= MOST_TOKENS]
    lengths = draw(st.lists(st.sampled_from([*sizes, 0, 0]), min_size=1, max_size=4))
    while sum(lengths) > MOST_TOKENS:
        lengths = lengths[:-1]
    return sequence_ends(lengths if sum(lengths) else [1])


def sequence_ends(lengths: Sequence[int] | Array) -> Array:  # (B,) -> (B + 1,)
    """cu_seqlens, int32: where sequences of these lengths begin and end."""
    return np.cumsum([0, *lengths]).astype(np.int32)


def draw_attention(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `packed_attention`: qkv (T, 3, H, D) and cu_seqlens (B + 1,); sequences may be empty."""
    cu_seqlens, H, D = _draw_lengths(draw), pick(draw, (1, 2)), pick(draw, HEAD_SIZES)
    T = int(cu_seqlens[-1])
    parts = [draw_numbers(draw, format, (T, H, D), seed, (0.0, 1.0)) for seed in range(3)]
    return {"qkv": np.stack(parts, axis=1), "cu_seqlens": cu_seqlens}


def draw_first_token(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `first_token_attention`: q (B, H, D), kv (T, 2, H, D) and cu_seqlens (B + 1,)."""
    cu_seqlens, H, D = _draw_lengths(draw), pick(draw, (1, 2)), pick(draw, HEAD_SIZES)
    T, B = int(cu_seqlens[-1]), len(cu_seqlens) - 1
    q, k, v = (draw_numbers(draw, format, (n, H, D), seed, (0.0, 1.0)) for seed, n in enumerate((B, T, T)))
    return {"q": q, "kv": np.stack([k, v], axis=1), "cu_seqlens": cu_seqlens}


def draw_groups(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `group_attention`: qkv (T, 3, H, D), and groups (G, 5) of a few pairs (`pair_groups`)."""
    from hypothesis import strategies as st

    sizes = st.sampled_from([0, *(n for n in SIZES if n <= 65)])
    pairs = draw(st.lists(st.tuples(sizes, sizes, sizes, sizes), min_size=1, max_size=2))
    while sum(map(sum, pairs)) > MOST_TOKENS // 2:
        pairs = [tuple(n // 2 for n in pair) for pair in pairs]
    T, crossed = max(sum(map(sum, pairs)), 1), draw(st.booleans())
    # In any order.
    groups = pair_groups(pairs, crossed)[:: -1 if crossed else 1].copy()
    # The rows of a group that is left out are in none.
    groups = groups[: len(groups) - draw(st.integers(0, 1))]
    H, D = pick(draw, (1, 2)), pick(draw, HEAD_SIZES)
    parts = [draw_numbers(draw, format, (T, H, D), seed, (0.0, 1.0)) for seed in range(3)]
    return {"qkv": np.stack(parts, axis=1), "groups": groups}


def pair_groups(pairs: Sequence[Sequence[int]], crossed: bool = False) -> Array:  # (B, 4) -> (2 B, 5)
    """The groups of pairs [X, M_y, Y, M_x] of these lengths: X and M_y see X, M_y also themselves, and so on.

    `crossed`: X and M_y see Y, and Y and M_x see X.
    """
    found = []
    ends = np.cumsum([0, *(n for pair in pairs for n in pair)]).tolist()
    for x, m_y, y, m_x, end in zip(*(ends[i::4] for i in range(4)), ends[4::4], strict=False):
        keys = [(x, m_y), (y, m_x)]
        first, second = reversed(keys) if crossed else keys
        found += [(x, y, m_y, *first), (y, end, m_x, *second)]
    return np.array(found, np.int32).reshape(-1, 5)


def with_cotangent(operation: Draw) -> Draw:
    """Draws inputs of the gradient of a form of attention: a cotangent of the queries' shape, then its own inputs."""

    def draw_vjp(draw: Any, format: Format) -> dict[str, Any]:
        inputs = operation(draw, format)
        queries = inputs["q"] if "q" in inputs else inputs["qkv"][:, 0]
        return {"d_context": draw_numbers(draw, format, queries.shape, 3, (0.0, 1.0)), **inputs}

    return draw_vjp


def draw_head(draw: Any, format: Format) -> dict[str, Any]:
    """Inputs of `attention_head`: q, k and v, each (S, D)."""
    S, D = pick(draw, SIZES), pick(draw, HEAD_SIZES)
    return {name: draw_numbers(draw, format, (S, D), seed, (0.0, 1.0)) for seed, name in enumerate("qkv")}


# The fixed data: the base model's sizes, numbers of realistic magnitude, and at least 4,096 results.
EPS = 1e-5
# No sequence of one token: its result is its value, without error, and would hide other errors in an average.
LENGTHS = np.array([0, 37, 300], np.int32)
# More than 256 keys, so that sums that are too long for a format show in an average.
GROUPS = pair_groups([(300, 40, 270, 30)])
FIRST_LENGTHS = np.array([0, 300, 601, 1113, 1626], np.int32)


def fixed_embedding(normal: Callable[..., Array]) -> dict[str, Any]:
    """Fixed random inputs of `embed`: 16 tokens of 768 numbers."""
    ids = np.random.default_rng(0).integers(0, 30, (2, 16))
    tables = {"word": normal(30, 768), "position": normal(32, 768), "gamma": normal(768), "beta": normal(768)}
    return {"input_ids": ids[0], "position_ids": ids[1], **tables, "eps": EPS}


def fixed_embedding_vjp(normal: Callable[..., Array]) -> dict[str, Any]:
    """Fixed random inputs of `embed_vjp`: 40 tokens of 4,096 numbers, so that γ has enough of them."""
    ids = np.random.default_rng(0).integers(0, 20, (2, 40))
    tables = {"word": normal(20, 4096), "position": normal(22, 4096), "gamma": normal(4096)}
    return {"dy": normal(40, 4096), "input_ids": ids[0], "position_ids": ids[1], **tables, "eps": EPS}
