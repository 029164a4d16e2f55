"""What kernels are checked on: inputs that hypothesis draws to be awkward, and fixed random ones.

A `Case` is one call: an operation, a format, and the arguments by name, in float64 and already rounded to the format.

Drawn: sizes around blocks of 64 and 128 and sizes of 1; ragged batches, with sequences of 1 token and of none;
magnitudes from 10⁻³ to 10³; numbers far from 0 next to their spread; numbers that are all alike, or mostly. γ and β are
random: with γ = 1 and β = 0, a kernel that never reads them would pass. Each argument has a seed of its own, so that
two of them are never the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import bounds, bounds_attention
from .bounds import Expected
from .formats import FORMATS, Array, Format

SIZES = (1, 2, 7, 63, 64, 65, 127, 129)
ROWS = (1, 2, 3, 7, 17)
HEAD_SIZES = (16, 32, 64, 128)
MAGNITUDES = (1.0, 1e-3, 0.1, 10.0, 1e3)
# Mean over standard deviation.
OFFSETS = (0.0, 1.0, 30.0, 300.0)
KINDS = ("random", "alike", "mostly alike", "whole numbers")
EPSILONS = (1e-5, 1e-12)
MOST_TOKENS = 260


@dataclass(frozen=True)
class Case:
    """One call of an operation. `inputs`: by name, in the order of the call; floats as float64, ids as integers."""

    op: str
    dtype: str
    inputs: dict[str, Any]
    drawn: str = "fixed random data"

    @property
    def expected(self) -> Expected:
        """The truth and its bound."""
        return OPERATIONS[self.op].expected(FORMATS[self.dtype], **self.inputs)

    def __str__(self) -> str:
        shapes = (
            f"{name} of shape {value.shape}" for name, value in self.inputs.items() if isinstance(value, np.ndarray)
        )
        return f"{self.dtype}, {', '.join(shapes)}"


@dataclass(frozen=True)
class Operation:
    """What can be checked: how it is called, its truth and bound, how its inputs are drawn, and the fixed ones."""

    call: str
    expected: Callable[..., Expected]
    draw: Callable[[Any, Format], dict[str, Any]]
    fixed: Callable[[Callable[..., Array]], dict[str, Any]]


def numbers(format: Format, shape: tuple[int, ...], seed: int, magnitude: float, offset: float, kind: str) -> Array:
    """Random numbers of a format: around offset · magnitude, with a spread of magnitude."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    if kind == "alike":
        values = np.broadcast_to(values.flat[0], shape)
    elif kind == "mostly alike":
        values = np.where(rng.random(shape) < 0.1, values, 1.0)
    elif kind == "whole numbers":
        values = np.rint(2 * values)
    # Half of float16's range: sums and products of a few of them may leave it, they do not.
    most = format.largest / 2
    return format.round(np.clip((values + offset) * magnitude, -most, most))


def _draw_numbers(draw: Any, format: Format, shape: tuple[int, ...], seed: int, offsets: Any = OFFSETS) -> Array:
    from hypothesis import strategies as st

    magnitude = draw(st.sampled_from(MAGNITUDES))
    offset = draw(st.sampled_from(offsets))
    kind = draw(st.sampled_from(KINDS))
    return numbers(format, shape, draw(st.integers(0, 99)) * 16 + seed, magnitude, offset, kind)


def _pick(draw: Any, choices: tuple[Any, ...]) -> Any:
    from hypothesis import strategies as st

    return draw(st.sampled_from(choices))


def _draw_rows(draw: Any, format: Format, wide: tuple[str, ...], flat: tuple[str, ...], eps: bool) -> dict[str, Any]:
    """Arguments of shape (rows, columns), others of shape (columns,), in the order in which `wide` + `flat` sorts."""
    rows, columns = _pick(draw, ROWS), _pick(draw, SIZES)
    inputs: dict[str, Any] = {}
    for seed, name in enumerate(ORDER):
        if name in wide:
            inputs[name] = _draw_numbers(draw, format, (rows, columns), seed)
        elif name in flat:
            inputs[name] = _draw_numbers(draw, format, (columns,), seed, (0.0, 1.0))
    return inputs | ({"eps": _pick(draw, EPSILONS)} if eps else {})


ORDER = ("x", "scores", "bias", "residual", "gamma", "beta")


def _draw_embedding(draw: Any, format: Format) -> dict[str, Any]:
    T, V, P, E = _pick(draw, ROWS), _pick(draw, (1, 2, 33)), _pick(draw, (3, 4, 35)), _pick(draw, SIZES)
    rng = np.random.default_rng(T)
    tables = {"word": (V, E), "position": (P, E), "gamma": (E,), "beta": (E,)}
    return {
        "input_ids": rng.integers(0, V, T),
        "position_ids": rng.integers(0, P - 2, T),
        **{name: _draw_numbers(draw, format, shape, seed) for seed, (name, shape) in enumerate(tables.items())},
        "eps": _pick(draw, EPSILONS),
    }


def _draw_lengths(draw: Any, shortest: int) -> Array:
    """(B + 1,) where sequences begin and end. At least one has a token."""
    from hypothesis import strategies as st

    lengths = draw(st.lists(st.sampled_from((*SIZES, 0)[: None if shortest == 0 else -1]), min_size=1, max_size=4))
    while sum(lengths) > MOST_TOKENS:
        lengths = lengths[:-1]
    lengths = lengths if sum(lengths) else [1]
    return np.cumsum([0, *lengths]).astype(np.int32)


def _draw_attention(draw: Any, format: Format) -> dict[str, Any]:
    cu_seqlens, H, D = _draw_lengths(draw, 0), _pick(draw, (1, 2)), _pick(draw, HEAD_SIZES)
    T = int(cu_seqlens[-1])
    parts = [_draw_numbers(draw, format, (T, H, D), seed, (0.0, 1.0)) for seed in range(3)]
    return {"qkv": np.stack(parts, axis=1), "cu_seqlens": cu_seqlens}


def _draw_first_token(draw: Any, format: Format) -> dict[str, Any]:
    cu_seqlens, H, D = _draw_lengths(draw, 1), _pick(draw, (1, 2)), _pick(draw, HEAD_SIZES)
    T, B = int(cu_seqlens[-1]), len(cu_seqlens) - 1
    q, k, v = (_draw_numbers(draw, format, (n, H, D), seed, (0.0, 1.0)) for seed, n in enumerate((B, T, T)))
    return {"q": q, "kv": np.stack([k, v], axis=1), "cu_seqlens": cu_seqlens}


def _draw_head(draw: Any, format: Format) -> dict[str, Any]:
    S, D = _pick(draw, SIZES), _pick(draw, HEAD_SIZES)
    return {name: _draw_numbers(draw, format, (S, D), seed, (0.0, 1.0)) for seed, name in enumerate("qkv")}


def _rows(wide: tuple[str, ...], flat: tuple[str, ...] = (), eps: bool = False) -> Any:
    return partial(_draw_rows, wide=wide, flat=flat, eps=eps)


# The fixed data: sizes of the base model, numbers of the size that it works on, and at least 4,096 results.
EPS = 1e-5
# No sequence of one token: its result is its value, free of error, and would hide that of the others in a mean.
LENGTHS = np.array([0, 37, 300], np.int32)
SHORT_LENGTHS = np.array([0, 37, 101, 300, 365], np.int32)


def _fixed_embedding(normal: Callable[..., Array]) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, 30, (2, 16))
    tables = {"word": normal(30, 768), "position": normal(32, 768), "gamma": normal(768), "beta": normal(768)}
    return {"input_ids": ids[0], "position_ids": ids[1], **tables, "eps": EPS}


OPERATIONS = {
    "gelu": Operation("f(x)", bounds.gelu, _rows(("x",)), lambda normal: {"x": 1.5 * normal(16, 768)}),
    "bias_gelu": Operation(
        "f(x, bias)",
        bounds.bias_gelu,
        _rows(("x",), ("bias",)),
        lambda normal: {"x": 1.5 * normal(16, 768), "bias": normal(768)},
    ),
    "softmax": Operation(
        "f(scores)", bounds.softmax, _rows(("scores",)), lambda normal: {"scores": 2 * normal(64, 129)}
    ),
    "layer_norm": Operation(
        "f(x, gamma, beta, eps)",
        bounds.layer_norm,
        _rows(("x",), ("gamma", "beta"), eps=True),
        lambda normal: {"x": normal(16, 768), "gamma": normal(768), "beta": normal(768), "eps": EPS},
    ),
    "add_layer_norm": Operation(
        "f(x, bias, residual, gamma, beta, eps)",
        bounds.add_layer_norm,
        _rows(("x", "residual"), ("bias", "gamma", "beta"), eps=True),
        lambda normal: {
            "x": normal(16, 768),
            "bias": normal(768),
            "residual": normal(16, 768),
            "gamma": normal(768),
            "beta": normal(768),
            "eps": EPS,
        },
    ),
    "embedding": Operation(
        "f(input_ids, position_ids, word, position, gamma, beta, eps)",
        bounds.embedding,
        _draw_embedding,
        _fixed_embedding,
    ),
    "attention": Operation(
        "f(qkv, cu_seqlens)",
        bounds_attention.packed_attention,
        _draw_attention,
        lambda normal: {"qkv": normal(300, 3, 1, 64), "cu_seqlens": LENGTHS},
    ),
    "first_token_attention": Operation(
        "f(q, kv, cu_seqlens)",
        bounds_attention.first_token_attention,
        _draw_first_token,
        lambda normal: {"q": normal(4, 8, 128), "kv": normal(365, 2, 8, 128), "cu_seqlens": SHORT_LENGTHS},
    ),
    "attention_head": Operation(
        "f(q, k, v)",
        bounds_attention.attention_head,
        _draw_head,
        lambda normal: {name: normal(300, 64) for name in "qkv"},
    ),
}


def fixed_case(op: str, dtype: str, seed: int = 0) -> Case:
    """The fixed random data of an operation."""
    rng = np.random.default_rng(seed)
    inputs = OPERATIONS[op].fixed(lambda *shape: rng.standard_normal(shape))
    rounded = {
        name: FORMATS[dtype].round(value) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value
        for name, value in inputs.items()
    }
    return Case(op, dtype, rounded)


def cases(op: str, dtype: str) -> Any:
    """A hypothesis strategy for the drawn inputs of an operation."""
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: Any) -> Case:
        return Case(op, dtype, OPERATIONS[op].draw(draw, FORMATS[dtype]), "drawn")

    return drawn()
