"""The registry: the operations of the model by their public names, and `Case`, one call of an operation.

Checking, verification, the machine-code report and the benchmark all read the registry, so none of them can miss an
operation. To add one, write its two files (`reference/<name>.py`, `kernels/<name>.py`), a row here, and a workload in
`benchmark/workloads.py`. A row without a `kernel` is for kernels that others write: the operation can be checked,
nothing else.

An operation of your own needs no row: `examples.py` has four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import attention, attention_groups, dropped_layer_norm, embedding, first_token, gelu, layer_norm
from . import attention_bounds, bounds, drawing
from .bounds import Expected
from .drawing import EPS, FIRST_LENGTHS, GROUPS, LENGTHS, LOW, drawn_rows
from .formats import FORMATS
from .gradients import GRADIENTS
from .operation import Inputs, Operation, joined, one_head, one_number, one_row, one_token

FIXED = "fixed random data"

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
        # The last rows are far below what a kernel may put beside them in a block, instead of -inf.
        fixed=lambda normal: {"scores": np.concatenate([2 * normal(64, 129), 2 * normal(4, 129) - LOW])},
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
        variants=joined(layer_norm.variants, dropped_layer_norm.variants),
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
    "group_attention": Operation(
        call="f(qkv, groups)",
        expected=attention_bounds.group_attention,
        draw=drawing.draw_groups,
        fixed=lambda normal: {"qkv": normal(640, 3, 1, 64), "groups": GROUPS},
        crop=one_head,
        kernel=attention_groups.group_attention,
        variants=attention_groups.variants,
        examples=12,
    ),
    "first_token_attention": Operation(
        call="f(q, kv, cu_seqlens)",
        expected=attention_bounds.first_token_attention,
        draw=drawing.draw_first_token,
        fixed=lambda normal: {"q": normal(4, 8, 128), "kv": normal(1626, 2, 8, 128), "cu_seqlens": FIRST_LENGTHS},
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
    **GRADIENTS,
}


def with_kernel() -> dict[str, Operation]:
    """The operations for which this package has a kernel."""
    return {name: operation for name, operation in OPERATIONS.items() if operation.kernel is not None}


def find(op: str | Operation) -> Operation:
    """The operation of that name, or `op` itself. Raises ValueError if there is none, or if it has no name."""
    if isinstance(op, Operation):
        if not op.name:
            raise ValueError(f"op: expected an Operation with a name, got one without, called as {op.call}")
        return op
    if op not in OPERATIONS:
        raise ValueError(f"op: expected one of {', '.join(OPERATIONS)}, or an Operation, got {op!r}")
    return replace(OPERATIONS[op], name=op)


@dataclass(frozen=True)
class Case:
    """One call of an operation. `inputs`: arguments by name, in call order; floats as float64, ids as integers.

    op: the operation's name. own: the operation itself, unless it is looked up in OPERATIONS.
    """

    op: str
    dtype: str
    inputs: Inputs
    origin: str = FIXED
    own: Operation | None = None

    @property
    def operation(self) -> Operation:
        """The operation that is called."""
        return OPERATIONS[self.op] if self.own is None else self.own

    @property
    def expected(self) -> Expected:
        """The exact result and its bound. Raises ValueError if a default bound is infinite on fixed data."""
        found = self.operation.expect(FORMATS[self.dtype], self.inputs)
        if self.own is not None and self.origin == FIXED and np.isinf(found.limit).any():
            raise ValueError(
                f"{self.op}: expected a finite bound on fixed data, got inf: write one, or use 'three-way'"
            )
        return found

    def __str__(self) -> str:
        shapes = (
            f"{name} of shape {value.shape}" for name, value in self.inputs.items() if isinstance(value, np.ndarray)
        )
        return f"{self.dtype}, {', '.join(shapes)}"


def case_of(op: str | Operation, dtype: str, inputs: Mapping[str, Any], origin: str = FIXED) -> Case:
    """A case with these inputs, whose floats are rounded to the dtype.

    Raises ValueError unless the inputs have the names that the operation is called with, in that order, and TypeError
    for values that are neither arrays nor numbers.
    """
    operation = find(op)
    if list(inputs) != operation.arguments:
        got = ", ".join(map(str, inputs)) or "none"
        raise ValueError(f"cases: expected inputs by name for {operation.call}, in this order; got {got}")
    for name, value in inputs.items():
        if not isinstance(value, (np.ndarray, int, float)):
            raise TypeError(f"cases: {name}: expected a NumPy array or a number, got {type(value).__name__}")
    rounded = {
        name: FORMATS[dtype].round(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for name, value in inputs.items()
    }
    return Case(operation.name, dtype, rounded, origin, None if isinstance(op, str) else op)


def fixed_case(op: str | Operation, dtype: str, seed: int = 0) -> Case:
    """The fixed random data of an operation."""
    rng = np.random.default_rng(seed)
    return case_of(op, dtype, find(op).fixed_inputs(lambda *shape: rng.standard_normal(shape)))


def cases(op: str | Operation, dtype: str) -> Any:
    """A hypothesis strategy for the drawn inputs of an operation."""
    from hypothesis import strategies as st

    operation = find(op)
    own = None if isinstance(op, str) else op

    @st.composite
    def drawn(draw: Any) -> Case:
        return Case(operation.name, dtype, operation.draw(draw, FORMATS[dtype]), "drawn inputs", own)

    return drawn()
