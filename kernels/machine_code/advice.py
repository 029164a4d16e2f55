"""What is bad about a kernel's machine code, in words, and what usually helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .report import row_name

Row = Mapping[str, Any]


def _narrow_loads(row: Row) -> str | None:
    if not row["loads_2"]:
        return None
    return (
        f"{row['loads_2']} loads of 2 bytes, where 16 would take an eighth of the instructions: a pointer, size or "
        "stride is not known to be a multiple of 16, neighbouring threads do not load neighbouring numbers, or a "
        "thread has only one number to load"
    )


def _spills(row: Row) -> str | None:
    if not row["spills"]:
        return None
    return (
        f"{row['spills']:,} bytes of spills per thread: {row['registers']} registers are not enough, and values go to "
        "memory and back; more warps or smaller blocks give each thread less to hold"
    )


def _stack(row: Row) -> str | None:
    if not row["stack"] or row["spills"]:
        return None
    return (
        f"{row['stack']:,} bytes of stack per thread: something that cannot be kept in registers, such as what "
        "device_print prints"
    )


def _serialised(row: Row) -> str | None:
    if not any("serialized" in warning for warning in row["warnings"]):
        return None
    return (
        "products of matrices are serialised: each wgmma waits for the one before (ptxas C7510 to C7515); usually too "
        "few registers are left, or an accumulator is touched while products run: use smaller blocks or other warps"
    )


def _shared(row: Row) -> str | None:
    if row["shared"] <= row["shared_limit"]:
        return None
    return (
        f"{row['shared']:,} bytes of shared memory, more than the limit of {row['shared_limit']:,}: it will not "
        "launch; use fewer stages or smaller blocks"
    )


def _no_tensor_cores(row: Row) -> str | None:
    if not row["dots"] or row["tensor_cores"]:
        return None
    return (
        "no tensor cores, although it calls tl.dot: factors are float32 with input_precision='ieee', float64, or "
        "blocks too small; half precision or tf32, where that will do, is faster"
    )


RULES: tuple[Callable[[Row], str | None], ...] = (
    *(_shared, _spills, _stack, _serialised, _no_tensor_cores, _narrow_loads),
)


def sentences(rows: Sequence[Row]) -> str:
    """What is bad about each row, one line per sentence, with the row's name; or that nothing is."""
    found = [f"{row_name(row)}, {row['num_warps']} warps: {text}" for row in rows for text in advice(row)]
    if not found and all("error" not in row for row in rows):
        found = ["nothing is bad about the machine code"]
    return "".join(f"{line}\n" for line in found)


def advice(row: Row) -> list[str]:
    """A sentence for each thing that is bad, the worst first; empty if the kernel did not compile."""
    return [] if "error" in row else [sentence for rule in RULES if (sentence := rule(row))]
