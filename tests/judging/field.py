"""The tests of well-known libraries, given our operations: their sizes, their inputs and their tolerances.

Each compares with the exact result, rounded once to the dtype, which is a better reference than theirs. Where a library
tests on more sizes than here, the smallest, the largest and the odd ones are kept, with fewer rows or sequences: what a
test sees depends on its widths, lengths and tolerances. Random numbers are normally distributed, as in all of these
tests. A library has no test for some operations: there, nothing is claimed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ernie_m.kernels.checking.default_bounds import exactly
from ernie_m.kernels.checking.drawing import Rows, pair_groups, sequence_ends
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.operations import OPERATIONS
from ernie_m.kernels.runtime.dtypes import TORCH_DTYPES

from .right import TWINS

ATTENTION = ("packed_attention", "first_token_attention", "attention_head")
ALL = (*OPERATIONS, *EXAMPLES)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Size:
    """Sizes of one call. lengths: of sequences.  affine: whether γ and β are random, or 1 and 0.  std: of attention.

    views: whether the rows are also passed as every second row and column of a larger array.
    """

    rows: int = 256
    columns: int = 768
    lengths: tuple[int, ...] = (128, 128)
    heads: int = 12
    head_size: int = 64
    affine: bool = True
    eps: float = 1e-5
    std: float = 1.0
    views: bool = False


@dataclass(frozen=True)
class Call:
    """The arguments of one call, and what it should return: exact, in float64, and rounded to the dtype."""

    op: str
    arguments: tuple[Any, ...]
    exact: Tensor
    rounded: Tensor

    @functools.cached_property
    def plain_error(self) -> Tensor:
        """The largest error of plain torch in the dtype."""
        return (_plain(self.op, self.arguments).double() - self.exact).abs().max()


# (result, call) -> whether the test passes.
Agree = Callable[[Tensor, Call], bool]


@dataclass(frozen=True)
class FieldTest:
    """A test of a library. source: its file, and what it asks.  settings: (operation, dtype, size, agree)."""

    name: str
    source: str
    settings: tuple[tuple[str, str, Size, Agree], ...]

    def settings_for(self, op: str, dtypes: tuple[str, ...]) -> list[tuple[str, str, Size, Agree]]:
        """The settings for an operation in these dtypes."""
        return [setting for setting in self.settings if setting[0] == op and setting[1] in dtypes]

    def covers(self, op: str, dtypes: tuple[str, ...] = DTYPES) -> bool:
        """Whether it can be given this operation."""
        return bool(self.settings_for(op, dtypes))

    def passes(self, function: Callable[..., Tensor], op: str, dtypes: tuple[str, ...] = DTYPES) -> bool:
        """Whether the function, of tensors, passes. An exception does not."""
        for _, dtype, size, agree in self.settings_for(op, dtypes):
            for call in calls(op, dtype, size):
                try:
                    with torch.no_grad(), _slack():
                        arguments = [_copied(x) for x in call.arguments]
                        good = agree(function(*arguments), call)
                except Exception:
                    good = False
                if not good:
                    return False
        return True


def _copied(x: Any) -> Any:
    """A copy with the same strides."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


@contextmanager
def _slack() -> Iterator[None]:
    """In the interpreter, writes behind an array could end the process; on a GPU they go unnoticed, as they do here."""

    def empty(*shape: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = int(np.prod(shape))
        buffer = torch.zeros(count + 2**14, dtype=dtype, device=device)
        return buffer[:count].view(shape)

    with mock.patch("torch.empty", empty):
        yield


@functools.lru_cache(maxsize=12)
def calls(op: str, dtype: str, size: Size) -> tuple[Call, ...]:
    """The calls of one setting."""
    format = FORMATS[dtype]
    drawn = inputs(op, size)
    wide = {n: format.round(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in drawn.items()}
    if op in TWINS:
        exact = np.asarray(TWINS[op](*wide.values()))
    else:
        truth = EXAMPLES[op].truth
        assert truth is not None
        exact = exactly(truth, wide)
    rounded = torch.from_numpy(format.round(exact)).to(TORCH_DTYPES[dtype])
    arguments = tuple(_tensor(x, dtype) for x in wide.values())
    found = [Call(op, arguments, torch.from_numpy(exact), rounded)]
    if size.views:
        found.append(Call(op, tuple(_every_second(x) for x in arguments), found[0].exact, rounded))
    return tuple(found)


def _tensor(x: Any, dtype: str) -> Any:
    if not isinstance(x, np.ndarray):
        return x
    found = torch.from_numpy(np.ascontiguousarray(x))
    return found.to(TORCH_DTYPES[dtype]) if found.is_floating_point() else found


def _every_second(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.ndim != 2:
        return x
    return torch.zeros(2 * x.shape[0], 2 * x.shape[1], dtype=x.dtype)[::2, ::2].copy_(x)


def inputs(op: str, size: Size) -> dict[str, Any]:
    """Inputs by name, in call order, float64."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    ends, H, D = sequence_ends(size.lengths), size.heads, size.head_size
    T, B = int(ends[-1]), len(size.lengths)
    found: dict[str, Any]
    if op == "packed_attention":
        found = {"qkv": size.std * normal((T, 3, H, D)), "cu_seqlens": ends}
    elif op == "group_attention":
        groups = pair_groups([(n - 3 * (n // 4), *3 * [n // 4]) for n in size.lengths])
        found = {"qkv": size.std * normal((T, 3, H, D)), "groups": groups}
    elif op == "first_token_attention":
        found = {"q": size.std * normal((B, H, D)), "kv": size.std * normal((T, 2, H, D)), "cu_seqlens": ends}
    elif op == "attention_head":
        found = {name: size.std * normal((max(size.lengths), D)) for name in "qkv"}
    elif op == "embed":
        ids = {"input_ids": rng.integers(0, 250, size.rows), "position_ids": np.arange(size.rows) % 512}
        tables = {"word": normal((250, size.columns)), "position": normal((514, size.columns))}
        found = {**ids, **tables, "gamma": normal(size.columns), "beta": normal(size.columns), "eps": size.eps}
    elif op in EXAMPLES:
        draw: Any = EXAMPLES[op].draw
        known = {"N": size.rows, "E": size.columns, "S": size.columns, "T": T, "H": H, "D": D}
        letters = {letter: n for letter, n in known.items() if letter in draw.letters}
        found = draw.sized(**letters).fixed(lambda *shape: normal(shape))
    else:
        rows: Any = OPERATIONS[op].draw
        assert isinstance(rows, Rows)
        found = rows.at(lambda *shape: normal(shape), size.rows, size.columns)
    if "eps" in found:
        found["eps"] = size.eps
    if not size.affine:
        plain = {"gamma": np.ones, "beta": np.zeros}
        found |= {name: make(size.columns) for name, make in plain.items() if name in found}
    return found


def within(atol: float, rtol: float) -> Agree:
    """`torch.allclose` and `numpy.testing.assert_allclose`."""
    return lambda got, call: got.dtype == call.rounded.dtype and torch.allclose(got, call.rounded, rtol, atol)


def defaults(got: Tensor, call: Call) -> bool:
    """`torch.testing.assert_close`, whose tolerances depend on the dtype; it raises."""
    torch.testing.assert_close(got, call.rounded)
    return True


def corner(got: Tensor, call: Call) -> bool:
    """The first three numbers of three tokens, as in transformers' integration tests."""
    first, second = (x.reshape(len(x), -1)[:3, :3] for x in (got, call.rounded))
    return torch.allclose(first, second, atol=1e-3)


def ratio(factor: float, more: float) -> Agree:
    """The largest error is at most `factor` times that of plain torch in the dtype, and `more`."""
    return lambda got, call: bool((got.double() - call.exact).abs().max() <= factor * call.plain_error + more)


def _plain(op: str, arguments: tuple[Any, ...]) -> Tensor:
    """Every step of the computation in the dtype of the arguments."""
    if op == "layer_norm":
        x, gamma, beta, eps = arguments
        return F.layer_norm(x, x.shape[-1:], gamma, beta, eps)
    if op == "add_layer_norm":
        x, bias, residual, *rest = arguments
        return F.layer_norm(x + bias + residual, x.shape[-1:], *rest)
    if op == "attention_head":
        return _plain_head(*arguments)
    *tensors, cu_seqlens = arguments
    kv = tensors[-1][:, -2:]
    heads = range(kv.shape[2])
    results = []
    for b, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        q = tensors[0][b : b + 1] if op == "first_token_attention" else tensors[0][start:end, 0]
        parts = [_plain_head(q[:, h], kv[start:end, 0, h], kv[start:end, 1, h]) for h in heads]
        results.append(torch.stack(parts, 1))
    return torch.cat(results)


def _plain_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ (k / q.shape[1] ** 0.5).T, -1) @ v


def each(ops: tuple[str, ...], tolerances: dict[str, Any], *sizes: Size) -> tuple[tuple[str, str, Size, Agree], ...]:
    """Settings for operations x dtypes x sizes; a tolerance is (atol, rtol) or a function."""
    agrees = {dtype: x if callable(x) else within(*x) for dtype, x in tolerances.items()}
    return tuple((op, dtype, size, agree) for op in ops for dtype, agree in agrees.items() for size in sizes)


FLASH = [Size(lengths=(128, 113), heads=9), Size(lengths=(1025,), heads=9, head_size=32)]
FLASH_NORMS = [Size(rows=16, columns=columns) for columns in (192, 768, 3000, 6144)]
LIGER_NORMS = [
    Size(rows=rows, columns=columns, affine=False, eps=1e-6)
    for rows, columns in ((16, 64), (64, 128), (1, 1023), (21, 256))
]
LIGER_RMS = [Size(rows=256, columns=512, affine=False, eps=1e-6), Size(rows=615, columns=123, affine=False, eps=1e-6)]
LIGER_SOFTMAX = [Size(rows=rows, columns=columns) for rows, columns in ((2, 8), (1, 1023), (21, 256), (1, 4096))]
XFORMERS = [
    Size(lengths=(256, 1024), heads=1, head_size=32),
    Size(lengths=(256, 32), heads=1, head_size=128),
    Size(lengths=(136, 31, 2), heads=8, head_size=32),
]

TESTS = (
    FieldTest(
        "torch",
        "`torch.testing.assert_close` with its defaults (`torch/testing/_comparison.py`): float32 1e-5 + 1.3e-6 |y|, "
        "float16 1e-5 + 1e-3 |y|, bfloat16 1e-5 + 1.6e-2 |y|; 256 rows of 768, 2 sequences of 128, 12 heads",
        each(ALL, dict.fromkeys(DTYPES, defaults), Size()),
    ),
    FieldTest(
        "allclose",
        "`numpy.allclose` and `torch.allclose` with their defaults, 1e-8 + 1e-5 |y|, float32 "
        "(as Triton's `python/tutorials/02-fused-softmax.py`: rows of 781)",
        each(ALL, {"float32": (1e-8, 1e-5)}, Size(columns=781)),
    ),
    FieldTest(
        "Triton",
        "the tutorials of Triton, 1e-2 in float16: rows of 8,192 (`python/tutorials/05-layer-norm.py`), "
        "1,024 keys, 2 heads of 64, numbers of 0.5 (`06-fused-attention.py`)",
        each(ALL, {"float16": (1e-2, 0.0)}, Size(32, 8192, lengths=(1024,), heads=2, std=0.5)),
    ),
    FieldTest(
        "flash",
        "flash-attention, at most twice the error of plain torch in half precision "
        "(`tests/test_flash_attn.py`: sequences of 113, 128 and 1,025, 9 heads); four times, and 1e-4, for "
        "norms (`tests/ops/test_dropout_layer_norm.py`: up to 6,144 columns)",
        (
            *each(ATTENTION, dict.fromkeys(("float16", "bfloat16"), ratio(2, 0)), *FLASH),
            *each(("layer_norm", "add_layer_norm"), dict.fromkeys(DTYPES, ratio(4, 1e-4)), *FLASH_NORMS),
        ),
    ),
    FieldTest(
        "ERNIE-M",
        "transformers' test of ERNIE-M, 1e-3 for three numbers of three tokens out of 6 "
        "(`tests/models/ernie_m/test_modeling_ernie_m.py`), float32",
        each(ALL, {"float32": corner}, Size(rows=6, lengths=(6,))),
    ),
    FieldTest(
        "sdpa",
        "transformers' eager against sdpa (`tests/test_modeling_common.py`): float32 1e-6 + 1e-4 |y|, float16 5e-3, "
        "bfloat16 1e-2; sequences of 7, small heads",
        each(
            ATTENTION,
            {"float32": (1e-6, 1e-4), "float16": (5e-3, 5e-3), "bfloat16": (1e-2, 1e-2)},
            Size(lengths=(7, 7), heads=4, head_size=16),
        ),
    ),
    FieldTest(
        "Liger",
        "Liger-Kernel (`test/transformers/test_layer_norm.py`, `test_rms_norm.py`, `test_softmax.py`, `test_rope.py`): "
        "float32 1e-5 + 1e-5 |y|, bfloat16 5e-2 to 2e-1; up to 4,096 columns, γ = 1 and β = 0",
        (
            *each(("layer_norm",), {"float32": (1e-5, 1e-5)}, *LIGER_NORMS),
            *each(("rms_norm",), {"float32": (1e-4, 1e-6), "bfloat16": (2e-1, 2e-2)}, *LIGER_RMS),
            *each(("softmax",), {"float32": (1e-5, 1e-5), "bfloat16": (5e-2, 5e-2)}, *LIGER_SOFTMAX),
            *each(("rotary",), {"float32": (1e-5, 1e-5), "bfloat16": (1e-1, 1e-5)}, Size(lengths=(128,), heads=32)),
        ),
    ),
    FieldTest(
        "Pallas",
        "JAX Pallas (`tests/pallas/gpu_ops_test.py`): attention 5e-2 in float16, up to 384 keys and 8 heads; norms "
        "1e-5, 768 rows of 192; softmax 1e-7 + 1e-6 |y| in float32, 1e-2 in half precision, 1,024 rows of 125",
        (
            *each(ATTENTION, {"float16": (5e-2, 1e-7)}, Size(lengths=(384, 384), heads=8)),
            *each(("layer_norm", "rms_norm"), {"float32": (1e-5, 1e-7)}, Size(rows=768, columns=192)),
            *each(
                ("softmax",),
                {"float32": (1e-7, 1e-6), "float16": (1e-2, 1e-4), "bfloat16": (1e-2, 1e-4)},
                Size(rows=1024, columns=125),
            ),
        ),
    ),
    FieldTest(
        "xFormers",
        "xFormers (`tests/test_mem_eff_attention.py`, tolerances in `xformers/ops/fmha/common.py`): float32 "
        "3e-4 + 2e-5 |y|, float16 4e-3 + 4e-4 |y|, bfloat16 2e-2 + 5e-3 |y|; up to 1,024 keys and 8 heads",
        each(ATTENTION, {"float32": (3e-4, 2e-5), "float16": (4e-3, 4e-4), "bfloat16": (2e-2, 5e-3)}, *XFORMERS),
    ),
    FieldTest(
        "Apex",
        "Apex (`tests/L0/run_fused_layer_norm/test_fused_layer_norm.py`): `assert_close`, bfloat16 3e-4 + 1.6e-2 |y|; "
        "16 and (of 65,536) 4,096 rows of 512, contiguous and not, γ = 1 and β = 0",
        (
            *each(
                ("layer_norm", "rms_norm"),
                {"float32": defaults, "float16": defaults, "bfloat16": (3e-4, 1.6e-2)},
                Size(rows=16, columns=512, affine=False, views=True),
            ),
            *each(("layer_norm", "rms_norm"), {"float32": defaults}, Size(rows=4096, columns=512, affine=False)),
        ),
    ),
)
