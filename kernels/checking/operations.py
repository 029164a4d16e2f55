"""The registry: every operation by its public name, with everything that is known about it.

Checking, verification, the machine-code report and the benchmark all read this table, so none of them can miss an
operation. To add one, write its two files (`reference/<name>.py`, `kernels/<name>.py`), a row here, and a workload in
`benchmark/workloads.py`.

A row without a `kernel` is for kernels that others write: the operation can be checked, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_m.reference.array import Array

from .. import attention, embedding, first_token, gelu, layer_norm
from ..runtime.variants import Variant
from . import attention_bounds, bounds, drawing
from .bounds import Expected
from .drawing import EPS, LENGTHS, SHORT_LENGTHS, Draw, drawn_rows
from .formats import FORMATS

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation.

    call: how a function for it is called.
    expected: (format, inputs...) -> the exact result, and a bound on the error of each number (see `bounds`).
    draw: draws inputs with hypothesis (see `drawing`).
    fixed: (normal) -> fixed random inputs of realistic sizes; `normal(*shape)` draws normally distributed numbers.
    crop: (inputs, index) -> the part of the inputs that the result at `index` depends on; None: all of them.
    kernel: this package's function for it.
    variants: target -> the kernel's compiled variants.
    examples: how many inputs `verify` draws for each dtype in Triton's interpreter.
    """

    call: str
    expected: Callable[..., Expected]
    draw: Draw
    fixed: Callable[[Callable[..., Array]], Inputs]
    crop: Callable[[Inputs, tuple[int, ...]], Inputs] | None = None
    kernel: Callable[..., Any] | None = None
    variants: Callable[[str], Iterator[Variant]] | None = None
    examples: int = 25


def one_number(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For elementwise operations: the number at `index`, from arguments (rows, columns) and (columns,)."""
    row, column = (slice(i, i + 1) for i in index)
    return {name: value[row, column] if value.ndim == 2 else value[column] for name, value in inputs.items()}


def one_row(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For operations on rows: the row of `index`; arguments that all rows share stay whole."""
    row = slice(index[0], index[0] + 1)
    return {name: value[row] if np.ndim(value) == 2 else value for name, value in inputs.items()}


def one_token(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For embeddings: the ids of one token."""
    row = slice(index[0], index[0] + 1)
    return inputs | {name: inputs[name][row] for name in ("input_ids", "position_ids")}


def one_head(inputs: Inputs, index: tuple[int, ...]) -> Inputs:
    """For packed attention: one head of all sequences."""
    return inputs | {"qkv": inputs["qkv"][:, :, index[1] : index[1] + 1]}


OPERATIONS: dict[str, Operation] = {
    "gelu": Operation(
        call="f(x)",
        expected=bounds.gelu,
        draw=drawn_rows(x=2),
        fixed=lambda normal: {"x": 1.5 * normal(16, 768)},
        crop=one_number,
    ),
    "bias_gelu": Operation(
        call="f(x, bias)",
        expected=bounds.bias_gelu,
        draw=drawn_rows(x=2, bias=1),
        fixed=lambda normal: {"x": 1.5 * normal(16, 768), "bias": normal(768)},
        crop=one_number,
        kernel=gelu.bias_gelu,
        variants=gelu.variants,
    ),
    "softmax": Operation(
        call="f(scores)",
        expected=bounds.softmax,
        draw=drawn_rows(scores=2),
        fixed=lambda normal: {"scores": 2 * normal(64, 129)},
        crop=one_row,
    ),
    "layer_norm": Operation(
        call="f(x, gamma, beta, eps)",
        expected=bounds.layer_norm,
        draw=drawn_rows(x=2, gamma=1, beta=1, eps=0),
        fixed=lambda normal: {"x": normal(16, 768), "gamma": normal(768), "beta": normal(768), "eps": EPS},
        crop=one_row,
    ),
    "add_layer_norm": Operation(
        call="f(x, bias, residual, gamma, beta, eps)",
        expected=bounds.add_layer_norm,
        draw=drawn_rows(x=2, bias=1, residual=2, gamma=1, beta=1, eps=0),
        fixed=lambda normal: {
            "x": normal(16, 768),
            "bias": normal(768),
            "residual": normal(16, 768),
            "gamma": normal(768),
            "beta": normal(768),
            "eps": EPS,
        },
        crop=one_row,
        kernel=layer_norm.add_layer_norm,
        variants=layer_norm.variants,
    ),
    "embed": Operation(
        call="f(input_ids, position_ids, word, position, gamma, beta, eps)",
        expected=bounds.embed,
        draw=drawing.draw_embedding,
        fixed=drawing.fixed_embedding,
        crop=one_token,
        kernel=embedding.embed,
        variants=embedding.variants,
    ),
    "packed_attention": Operation(
        call="f(qkv, cu_seqlens)",
        expected=attention_bounds.packed_attention,
        draw=drawing.draw_attention,
        fixed=lambda normal: {"qkv": normal(300, 3, 1, 64), "cu_seqlens": LENGTHS},
        crop=one_head,
        kernel=attention.packed_attention,
        variants=attention.variants,
        examples=12,
    ),
    "first_token_attention": Operation(
        call="f(q, kv, cu_seqlens)",
        expected=attention_bounds.first_token_attention,
        draw=drawing.draw_first_token,
        fixed=lambda normal: {"q": normal(4, 8, 128), "kv": normal(365, 2, 8, 128), "cu_seqlens": SHORT_LENGTHS},
        kernel=first_token.first_token_attention,
        variants=first_token.variants,
        examples=12,
    ),
    "attention_head": Operation(
        call="f(q, k, v)",
        expected=attention_bounds.attention_head,
        draw=drawing.draw_head,
        fixed=lambda normal: {name: normal(300, 64) for name in "qkv"},
    ),
}


def with_kernel() -> dict[str, Operation]:
    """The operations for which this package has a kernel."""
    return {name: operation for name, operation in OPERATIONS.items() if operation.kernel is not None}


@dataclass(frozen=True)
class Case:
    """One call of an operation. `inputs`: arguments by name, in call order; floats as float64, ids as integers."""

    op: str
    dtype: str
    inputs: Inputs
    origin: str = "fixed random data"

    @property
    def expected(self) -> Expected:
        """The exact result and its bound."""
        return OPERATIONS[self.op].expected(FORMATS[self.dtype], **self.inputs)

    def __str__(self) -> str:
        shapes = (
            f"{name} of shape {value.shape}" for name, value in self.inputs.items() if isinstance(value, np.ndarray)
        )
        return f"{self.dtype}, {', '.join(shapes)}"


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
        return Case(op, dtype, OPERATIONS[op].draw(draw, FORMATS[dtype]), "drawn inputs")

    return drawn()
