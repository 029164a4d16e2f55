"""Requirements on the machine code of every kernel variant, which continuous integration checks without a GPU.

Most gates use figures that are stable across compiler versions: no spills, tensor cores in use, wide loads. Those on
instructions per score hold for the pinned Triton, 3.7; dk and dv, for example, take 9.7 there, 9.5 with Triton 3.6
and 10.7 with 3.9. Register counts and totals vary by ten per cent, so they are reported but not gated. float32
attention is exact and slow and may spill, but like every kernel it must fit into shared memory, and none of its
products may round to tf32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..attention import DROPS
from ..runtime.variants import Variant
from .compiler import Depth

Row = Mapping[str, Any]

HALF = ("float16", "bfloat16")
TUNED = ("sm_90", "sm_100")
# The operations whose work is matrix products.
ATTENTION = ("packed_attention", "packed_attention_vjp", "group_attention", "group_attention_vjp")


def _half(row: Row) -> bool:
    return row["dtype"] in HALF and row["target"] in TUNED


def _attention_products(row: Row) -> bool:
    """Attention's kernels and those of its gradients, but for δ, which is a sum per row."""
    return _half(row) and row["operation"] in ATTENTION and not row["label"].endswith(" delta")


def _attention_loop(row: Row) -> bool:
    """The loop over whole blocks of keys, with the base model's 12 heads of size 64, without dropout."""
    sized = row["operation"] == "packed_attention" and row["label"] in ("H=12 D=64 S<=64", "H=12 D=64 S<=512")
    return sized and row["loop"] and row["dtype"] in HALF and row["target"] == "sm_90"


def _group_loop(row: Row) -> bool:
    """The same loop of group attention."""
    sized = row["operation"] == "group_attention" and row["label"] == "H=12 D=64"
    return sized and row["dtype"] in HALF and row["target"] == "sm_90"


def _kernel(operation: str, label: str) -> Callable[[Row], bool]:
    """One kernel in half precision, at the size that its label says."""
    return lambda row: row["operation"] == operation and row["label"] == label and _half(row)


def _gelu(row: Row) -> bool:
    sized = row["operation"] == "bias_gelu" and row["label"] == "F=3072"
    return sized and row["dtype"] == "bfloat16" and row["target"] in TUNED


def _attention_gradient(row: Row) -> bool:
    """The two loops of the split form, with the base model's 12 heads of size 64, of sequences or of groups."""
    named = row["operation"] in ("packed_attention_vjp", "group_attention_vjp")
    sized = named and row["label"] in ("H=12 D=64 dk dv", "H=12 D=64 dq")
    return sized and row["dtype"] in HALF and row["target"] == "sm_90"


def _dropping_gradient(row: Row) -> bool:
    """The same two loops with dropout."""
    return _attention_gradient({**row, "label": row["label"].removesuffix(DROPS)}) and row["label"].endswith(DROPS)


def _at_most(limit: float, per: str = "element") -> Callable[[Row], bool]:
    """At most so many instructions, per element or per row."""
    return lambda row: row["per"] == per and row["instructions_per"] <= limit


@dataclass(frozen=True)
class Gate:
    """A requirement: `holds(row)` must be true for every compiled kernel for which `applies(row)` is true."""

    name: str
    applies: Callable[[Row], bool]
    holds: Callable[[Row], bool]
    # How far a kernel must be compiled to tell.
    depth: Depth = Depth.CODE


GATES = (
    Gate(
        "shared memory within the target's limit",
        lambda row: True,
        lambda row: row["shared"] <= row["shared_limit"],
        Depth.MEMORY,
    ),
    Gate(
        "no tf32 in float32 attention",
        lambda row: row["dtype"] == "float32" and row["operation"] in ATTENTION,
        lambda row: row["tf32_dots"] == 0,
        Depth.MEMORY,
    ),
    Gate(
        "NaN survives the maximum in GELU",
        lambda row: row["operation"] == "bias_gelu",
        lambda row: row["nan_maxima"] > 0,
        Depth.MEMORY,
    ),
    Gate(
        "NaN survives the minimum in GELU's gradient",
        lambda row: row["operation"] == "bias_gelu_vjp" and "partials" not in row["label"],
        lambda row: row["nan_minima"] > 0,
        Depth.MEMORY,
    ),
    Gate("no spills", _half, lambda row: row["spills"] == 0),
    Gate("no stack", _half, lambda row: row["stack"] == 0),
    Gate("no 2-byte loads", _half, lambda row: row["loads_2"] == 0),
    Gate("no ptxas warnings", _half, lambda row: not row["warnings"]),
    Gate(
        "wgmma in attention",
        lambda row: _attention_products(row) and row["target"] == "sm_90",
        lambda row: set(row["tensor_cores"]) == {"wgmma"},
    ),
    Gate(
        "tcgen05 in attention",
        lambda row: _attention_products(row) and row["target"] == "sm_100",
        lambda row: set(row["tensor_cores"]) == {"tcgen05"},
    ),
    Gate("at most 9.0 instructions per attention score", _attention_loop, _at_most(9.0), Depth.LISTING),
    Gate("at most 9.2 instructions per attention score of groups", _group_loop, _at_most(9.2), Depth.LISTING),
    Gate("at most 28 instructions per element of GELU", _gelu, _at_most(28.0), Depth.LISTING),
    Gate(
        "at most 500 instructions per row of LayerNorm",
        _kernel("add_layer_norm", "E=768"),
        _at_most(500.0, "row"),
        Depth.LISTING,
    ),
    Gate(
        "at most 11 instructions per score for dk and dv, 8 for dq: 19 together",
        _attention_gradient,
        lambda row: _at_most(8.0 if " dq" in row["label"] else 11.0)(row),
        Depth.LISTING,
    ),
    Gate(
        "with dropout, at most 30 instructions per score for dk and dv, 23 for dq: 53 together",
        _dropping_gradient,
        lambda row: _at_most(23.0 if " dq" in row["label"] else 30.0)(row),
        Depth.LISTING,
    ),
    Gate(
        "at most 40 instructions per element of GELU's gradient",
        _kernel("bias_gelu_vjp", "F=3072"),
        _at_most(40.0),
        Depth.LISTING,
    ),
    Gate(
        "at most 900 instructions per row of LayerNorm's gradient",
        _kernel("add_layer_norm_vjp", "E=768"),
        _at_most(900.0, "row"),
        Depth.LISTING,
    ),
)


def failures(row: Row) -> list[str]:
    """The names of the gates that a row of the report violates, or one message if the kernel did not compile."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    return [gate.name for gate in GATES if gate.applies(row) and not gate.holds(row)]


def depth(variant: Variant, target: str) -> Depth:
    """How far a kernel must be compiled to evaluate its gates."""
    row = {**vars(variant), "target": target}
    return max(gate.depth for gate in GATES if gate.applies(row))
