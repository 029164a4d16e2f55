"""Attention for first tokens: the same rows that packed attention returns, for a fraction of the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U32, U64, attention_bound

import ernie_m.reference as reference
from ernie_m.kernels import first_token as kernel
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.sequences import HEAD_SIZES

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"


def drawn(
    lengths: list[int], H: int = 2, D: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    T, B = sum(lengths), len(lengths)
    q = torch.randn(B, H, D, generator=generator).to(DEVICE, dtype)
    kv = torch.randn(T, 2, H, D, generator=generator).to(DEVICE, dtype)
    return q, kv, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)


# In float32 and float16 too in `make test-all`: the same code with other numbers.
@pytest.mark.parametrize(
    "dtype", [*(pytest.param(name, marks=pytest.mark.all) for name in ("float32", "float16")), "bfloat16"]
)
def test_first_token_attention_equals_its_twin(dtype: str) -> None:
    """On random inputs, within the derived bounds. Seen red: `acc` not rescaled."""
    check(kernel.first_token_attention, op="first_token_attention", dtypes=[dtype], examples=15)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 129, 300]), min_size=1, max_size=4),
    H=st.integers(1, 3),
    D=st.sampled_from([*HEAD_SIZES, 20]),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
)
def test_first_token_attention_equals_the_reference(lengths: list[int], H: int, D: int, dtype: torch.dtype) -> None:
    """Seen red: the last block's mask dropped, a block of keys skipped, the next head's values read."""
    q, kv, cu = drawn(lengths, H, D, dtype)
    exact = reference.first_token_attention(q.double().cpu().numpy(), kv.double().cpu().numpy(), cu.cpu().numpy())
    for form in (kernel.first_token_attention, kernel.plain_first_token_attention):
        context = form(q, kv, cu)
        assert context.dtype == dtype
        # Computed in float32 at least, then rounded to the dtype.
        wide = (x.double().cpu().numpy().swapaxes(0, 1) for x in (q, kv[:, 0], kv[:, 1]))
        bound = attention_bound(*wide, U64 if dtype == torch.float64 else U32)
        limit = torch.finfo(dtype).eps / 2 * np.abs(exact) + bound
        assert (np.abs(context.double().cpu().numpy() - exact) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_token_attention_reads_and_writes_only_its_own_memory(dtype: torch.dtype) -> None:
    with guarded() as guards:
        q, kv, cu = (guards.hold(x) for x in drawn([65, 0, 1, 130], dtype=dtype))
        context = kernel.first_token_attention(q, kv, cu)
        assert not context.isnan().any()
        assert not context[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_token_attention_of_a_sequence_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    q, kv, cu = drawn([90], dtype=dtype)
    alone = kernel.first_token_attention(q, kv, cu)
    nan_q, nan_kv = torch.full_like(q, float("nan")), torch.full_like(kv[:5], float("nan"))
    bounds = torch.tensor([0, 5, 95, 100], dtype=torch.int32, device=DEVICE)
    with np.errstate(invalid="ignore"):
        among = kernel.first_token_attention(torch.cat([nan_q, q, nan_q]), torch.cat([nan_kv, kv, nan_kv]), bounds)
    assert torch.equal(among[1:2], alone)


def test_wrong_cu_seqlens_never_become_stray_addresses() -> None:
    q, kv, _ = drawn([20])
    for values in ([0, 5000], [-7, 20], [12, 3]):
        with guarded() as guards:
            cu = torch.tensor(values, dtype=torch.int32, device=DEVICE)
            assert not kernel._first_token_attention(guards.hold(q), guards.hold(kv), cu).isnan().any()


def test_gradients_flow_through_the_plain_form() -> None:
    q, kv, cu = drawn([3, 0, 4], 2, 4, torch.float64)
    inputs = (q.requires_grad_(), kv.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: kernel.first_token_attention(a, b, cu), inputs)


def test_first_token_attention_error_messages() -> None:
    q, kv, cu = drawn([2, 3])
    for error, message, arguments in (
        (ValueError, r"kv: expected shape \(T, 2, H, D\)", (q, kv[:, :1], cu)),
        (ValueError, r"q: expected shape \(B, H, D\) = \(2, 2, 16\), got \(1, 2, 16\)", (q[:1], kv, cu)),
        (TypeError, "q: expected torch.float32 like kv, got torch.float16", (q.half(), kv, cu)),
        (ValueError, "non-decreasing values from 0 to T = 5", (q, kv, cu + 1)),
        (ValueError, "cu_seqlens: expected a tensor on .* like kv, got one on meta", (q, kv, cu.to("meta"))),
    ):
        with pytest.raises(error, match=message):
            kernel.first_token_attention(*arguments, validate=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(kernel._first_token_attention, drawn([5, 7], dtype=dtype))


@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_opcheck_of_strided_arguments(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: the plain form's result has other strides than the fake's."""
    if form == "plain":
        monkeypatch.setattr(kernel, "runs_triton", lambda x: False)
    torch.library.opcheck(
        kernel._first_token_attention,
        tuple(x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x for x in drawn([5, 7])),
    )
