"""Packed attention: every row against the reference, memory accesses, and error messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U32, U64, attention_bound

import ernie_m.reference as reference
from ernie_m.kernels import attention as kernel
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.runtime.dispatch import INTERPRETED

LENGTHS = (0, 1, 2, 7, 63, 64, 65, 127, 129)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)


def drawn(T: int, H: int = 2, D: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, 3, H, D, generator=generator).to(DEVICE, dtype)


def test_packed_attention_on_a_worked_example() -> None:
    # Two tokens, scores ln 3 and 0 for the first query: it takes 3/4 of the first value and 1/4 of the second.
    qkv = torch.zeros(2, 3, 1, 16)
    qkv[0, 0, 0, 0] = 1.0
    qkv[0, 1, 0, 0] = math.log(3) * 4.0
    qkv[:, 2, 0, 0] = torch.tensor([8.0, 16.0])
    context, lse = kernel.packed_attention(qkv.to(DEVICE), cumulative([2]), return_lse=True)
    assert context[:, 0, 0].tolist() == pytest.approx([10.0, 12.0], rel=1e-6)
    assert lse[0].tolist() == pytest.approx([math.log(4), math.log(2)], rel=1e-6)


# In float32 and float16 too in `make test-all`: the same code with other numbers.
@pytest.mark.parametrize(
    "dtype", [*(pytest.param(name, marks=pytest.mark.all) for name in ("float32", "float16")), "bfloat16"]
)
def test_packed_attention_equals_its_twin(dtype: str) -> None:
    """On random inputs, within the derived bounds. Seen red: `acc` not rescaled, the values' pointer not advanced."""
    check(kernel.packed_attention, op="packed_attention", dtypes=[dtype], examples=15)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4),
    H=st.integers(1, 3),
    D=st.sampled_from(kernel.HEAD_SIZES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_packed_attention_saves_the_log_sum_exp(
    lengths: list[int], H: int, D: int, dtype: torch.dtype, seed: int
) -> None:
    qkv, cu = drawn(sum(lengths), H, D, dtype, seed), cumulative(lengths)
    _, lse = kernel.packed_attention(qkv, cu, return_lse=True)
    q, k = qkv.double().cpu().numpy().swapaxes(0, 1)[:2]
    assert lse.dtype == torch.float32
    for start, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        scores = q[start:end].swapaxes(0, 1) @ k[start:end].transpose(1, 2, 0) / math.sqrt(D)  # (H, n, n)
        exact = np.log(np.exp(scores).sum(-1))
        # Each score errs by γ_D |q||k|/√D, a sum of n exponentials by n more roundings; both in float32.
        magnitudes = np.abs(q[start:end]).swapaxes(0, 1) @ np.abs(k[start:end]).transpose(1, 2, 0) / math.sqrt(D)
        bound = 2**-24 * ((D + 8) * magnitudes.max(-1, initial=0.0) + (end - start) + 8 * np.abs(exact) + 8)
        assert (np.abs(lse[:, start:end].cpu().numpy() - exact) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_attention_reads_and_writes_only_its_own_memory(dtype: torch.dtype) -> None:
    """Seen red: the mask dropped from the last block of keys, or from the store."""
    lengths = [65, 1, 0, 130, 7]
    with guarded() as guards:
        qkv, cu = guards.hold(drawn(sum(lengths), 2, 32, dtype)), guards.hold(cumulative(lengths))
        context, lse = kernel.packed_attention(qkv, cu, return_lse=True)
        assert not context.isnan().any()
        assert not lse.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("longest", [40, 100])
def test_packed_attention_of_a_sequence_does_not_depend_on_its_neighbours(dtype: torch.dtype, longest: int) -> None:
    """Bitwise, with NaN neighbours, wherever the sequence is in the batch."""
    own = drawn(longest, 2, 16, dtype, seed=1)
    alone = kernel.packed_attention(own, cumulative([longest]))
    poison = torch.full_like(drawn(23, 2, 16, dtype), float("nan"))
    for before, after in ((0, 1), (1, 2), (2, 0)):
        qkv = torch.cat([poison] * before + [own] + [poison] * after)
        cu = cumulative([23] * before + [longest] + [23] * after)
        with np.errstate(invalid="ignore"):
            context = kernel.packed_attention(qkv, cu)
        assert torch.equal(context[23 * before : 23 * before + longest], alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_attention_is_reproducible_bitwise_and_keeps_its_arguments(dtype: torch.dtype) -> None:
    qkv, cu = drawn(70, dtype=dtype), cumulative([64, 6])
    kept = qkv.clone(), cu.clone()
    first, second = (kernel.packed_attention(qkv, cu, return_lse=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(qkv, kept[0])
    assert torch.equal(cu, kept[1])


def test_packed_attention_accepts_any_strides() -> None:
    qkv, cu = drawn(70, dtype=torch.float16), cumulative([64, 6])
    strided = torch.stack([qkv, qkv], dim=-1)[..., 0], torch.stack([cu, cu], dim=-1)[..., 0]
    assert torch.equal(kernel.packed_attention(*strided), kernel.packed_attention(qkv, cu))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_sequences_that_fit_in_one_block_of_keys_need_no_loop(dtype: torch.dtype) -> None:
    for D in kernel.HEAD_SIZES:
        for n, loop in ((1, False), (64, False), (65, True), (512, True)):
            blocks = kernel.configuration("sm_90", dtype, D, n).blocks
            assert blocks["LOOP"] is loop and (loop or n <= blocks["BN"])


@pytest.mark.parametrize("n", [1, 63, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_configurations_for_short_and_long_sequences_agree_bitwise(dtype: torch.dtype, n: int) -> None:
    """`max_seqlen` decides the size of query blocks, and whether there is a loop; neither may change the result."""
    qkv = drawn(n, 2, 64, dtype)
    short, long = (kernel.packed_attention(qkv, cumulative([n]), max_seqlen=longest) for longest in (64, 512))
    if INTERPRETED:  # NumPy may sum in another order if a product has another number of rows
        q, k, v = qkv.double().numpy().transpose(1, 2, 0, 3)
        # In half precision a probability, and the result, may then round the other way: 2 u each.
        flips = 0.0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps * float(np.abs(v).max())
        torch.testing.assert_close(short, long, rtol=0, atol=attention_bound(q, k, v, U32) + flips)
    else:
        assert torch.equal(short, long)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_plain_form_equals_the_reference(dtype: torch.dtype) -> None:
    lengths = [5, 0, 1, 17]
    qkv, cu = drawn(23, 3, 20, dtype), cumulative(lengths)  # the kernel has no head size 20
    exact = reference.packed_attention(qkv.double().cpu().numpy(), cu.cpu().numpy())
    context = kernel.packed_attention(qkv, cu)
    assert context.dtype == dtype
    error = np.abs(context.double().cpu().numpy() - exact)
    q, k, v = qkv.double().cpu().numpy().transpose(1, 2, 0, 3)
    bound = attention_bound(q, k, v, U64 if dtype == torch.float64 else U32)
    # Half precision rounds the probabilities and the result.
    roundings = 1 if dtype in (torch.float16, torch.bfloat16) else 0
    assert (error <= roundings * torch.finfo(dtype).eps / 2 * (np.abs(exact) + np.abs(v).max()) + bound).all()


def test_gradients_flow_through_the_plain_form() -> None:
    qkv = drawn(9, 2, 4, torch.float64).requires_grad_()
    cu = cumulative([4, 0, 5])
    assert torch.autograd.gradcheck(lambda x: kernel.packed_attention(x, cu), (qkv,))


def test_wrong_cu_seqlens_never_become_stray_addresses() -> None:
    """Without validation, as on a GPU, the kernel clamps them. Seen red: reads outside the guards."""
    qkv = drawn(20, 2, 16)
    for values in ([0, 5000], [-7, 20], [12, 3], [0, 2**31 - 1, -(2**31)]):
        with guarded() as guards:
            held = guards.hold(qkv)
            kernel._packed_attention(held, torch.tensor(values, dtype=torch.int32, device=DEVICE), 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_tokens_past_max_seqlen_are_nan_where_nobody_checks(form: str, dtype: torch.dtype) -> None:
    """The kernel computes whole blocks of queries. Seen red: `mark_past` left out, or for the first sequence only; in
    plain torch, the tokens past it put in the last column."""
    lengths, longest = [300, 10, 140], 100
    qkv, cu = drawn(450, 2, 16, dtype), cumulative(lengths)
    function = kernel._packed_attention if form == "kernel" else kernel.plain_packed_attention
    context, lse = function(qkv, cu, longest)
    chosen = kernel.configuration(kernel.target_of(qkv.device), dtype, 16, longest)
    computed = longest if form == "plain" else kernel.blocks_of(longest, chosen) * chosen.blocks["BM"]
    past = torch.cat([torch.arange(n, device=DEVICE) >= computed for n in lengths])
    assert torch.equal(context.isnan().all(dim=-1), past[:, None].expand(-1, 2))
    assert torch.equal(lse.isnan(), past.expand(2, -1))
    if form == "kernel":
        assert torch.equal(context[~past], kernel._packed_attention(qkv, cu, 300)[0][~past])


def test_packed_attention_error_messages() -> None:
    qkv, cu = drawn(6), cumulative([2, 4])
    for error, message, call in (
        (
            TypeError,
            "qkv: expected a torch.Tensor, got ndarray",
            lambda: kernel.packed_attention(qkv.cpu().numpy(), cu),
        ),
        (TypeError, "qkv: expected float32, .* got torch.int64", lambda: kernel.packed_attention(qkv.long(), cu)),
        (ValueError, r"qkv: expected shape \(T, 3, H, D\)", lambda: kernel.packed_attention(qkv[:, :2], cu)),
        (
            TypeError,
            "cu_seqlens: expected torch.int32, got torch.int64",
            lambda: kernel.packed_attention(qkv, cu.long()),
        ),
        (
            ValueError,
            r"non-decreasing values from 0 to T = 6, got \[0, 2, 5\]",
            lambda: kernel.packed_attention(qkv, cumulative([2, 3]), validate=True),
        ),
        (
            ValueError,
            r"non-decreasing values from 0 to T = 6, got \[0, 8, 6\]",
            lambda: kernel.packed_attention(qkv, cumulative([8, -2]), validate=True),
        ),
        (
            ValueError,
            "max_seqlen: expected at least 4, .*, got 3",
            lambda: kernel.packed_attention(qkv, cu, 3, validate=True),
        ),
        (
            ValueError,
            f"cu_seqlens: expected a tensor on {qkv.device} like qkv, got one on meta",
            lambda: kernel.packed_attention(qkv, cu.to("meta")),
        ),
        (
            ValueError,
            r"cu_seqlens: expected shape \(B \+ 1,\), got \(1, 3\)",
            lambda: kernel.packed_attention(qkv, cu[None]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_packed_attention_of_no_tokens_is_empty(lengths: list[int]) -> None:
    context, lse = kernel.packed_attention(drawn(0), cumulative(lengths), return_lse=True)
    assert context.shape == (0, 2, 16)
    assert lse.shape == (2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(kernel._packed_attention, (drawn(12, dtype=dtype), cumulative([5, 7]), 7))


@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_opcheck_of_strided_arguments(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: the plain form's result has other strides than the fake's."""
    if form == "plain":
        monkeypatch.setattr(kernel, "runs_triton", lambda x: False)
    torch.library.opcheck(
        kernel._packed_attention, (drawn(12).transpose(0, 2).contiguous().transpose(0, 2), cumulative([5, 7]), 7)
    )
