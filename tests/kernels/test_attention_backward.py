"""Backward attention in Triton against the reference's vjp in float64: bounds, order of programs, planted faults."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import planted_attention_gradients
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planting import plant

from ernie_m import kernels, reference
from ernie_m.kernels import attention_backward, attention_vjp
from ernie_m.kernels.attention import packed_attention_unchecked
from ernie_m.kernels.dropout import seed_tensor
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid
from ernie_m.kernels.sequences import HEAD_SIZES
from ernie_m.reference.dropout import random_bits
from ernie_m.reference.layouts import Packed

EPS = 2.0**-24
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 7, 17, 63, 64, 65, 127, 129]), min_size=1, max_size=3)


def drawn(lengths: list[int], H: int, D: int, dtype: torch.dtype, seed: int, size: float = 1.0) -> tuple[Any, ...]:
    """Cotangent, qkv and bounds of sequences, rounded to the dtype."""
    rng = np.random.default_rng(seed)
    T = sum(lengths)
    qkv, dy = rng.standard_normal((T, 3, H, D)) * size, rng.standard_normal((T, H, D))
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return torch.tensor(dy).to(dtype), torch.tensor(qkv).to(dtype), ends


def exact(dy: torch.Tensor, qkv: torch.Tensor, ends: torch.Tensor) -> np.ndarray:
    return reference.packed_attention_vjp(dy.double().numpy(), qkv.double().numpy(), ends.numpy())


def dropped(
    dy: torch.Tensor, qkv: torch.Tensor, ends: torch.Tensor, p: float, seed: int, tokens: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """With dropout: the context and its gradient, and what multiplies each sequence's probabilities, (H, n, n)."""
    layout = Packed(None, ends.numpy(), tokens.numpy())
    q, k, v = qkv.double().numpy().swapaxes(0, 1)
    context, _ = layout.attend(q, k, v, None, p, seed)
    gradient = np.stack(layout.attend_vjp(dy.double().numpy(), q, k, v, None, p, seed), axis=1)
    heads = np.arange(qkv.shape[2])[:, None]
    factors = []
    for start, end in itertools.pairwise(ends.tolist()):
        bits = random_bits(seed, tokens[start:end].numpy(), end - start, heads) if start < end else np.zeros(0)
        factors.append((bits >= round(p * 2**32)) / (1.0 - p))
    return context, gradient, factors


def allowed(
    dy: torch.Tensor,
    qkv: torch.Tensor,
    ends: torch.Tensor,
    truth: np.ndarray | None = None,
    factors: list[np.ndarray] | None = None,
) -> np.ndarray:  # -> (T, 3, H, D)
    """A bound on every number's error, from float64 arithmetic on the rounded inputs.

    A score is off by at most (D + 4) ε Σ|q||k|/√D, and so is the log-sum-exp that is subtracted; exp2 adds a few ε: P
    is off relatively by r. dP and δ are sums of D products, and δ starts from the context, which was rounded. P and dS
    are rounded to the dtype for their products, and sums over n numbers add n ε. With dropout, `truth` and `factors`
    are as in `dropped`: P where it weighs values, and dP, are multiplied by the factors, which rounds twice.
    """
    u = torch.finfo(dy.dtype).eps / 2
    x, g = qkv.double().numpy(), dy.double().numpy()
    bound = np.zeros(x.shape)
    D = x.shape[-1]
    truth = exact(dy, qkv, ends) if truth is None else truth
    for b, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
        n = end - start
        if not n:
            continue
        q, k, v = x[start:end].transpose(1, 2, 0, 3)  # (H, n, D)
        d = g[start:end].swapaxes(0, 1)
        _, probs = reference.attention(q, k, v)
        factor = np.ones_like(probs) if factors is None else factors[b]
        weights = probs * factor
        sizes = np.abs(q) @ np.abs(k).swapaxes(1, 2) / math.sqrt(D)
        r = EPS * (2 * (D + 4) * sizes.max(axis=-1, keepdims=True) + 2 * n + 26)
        d_probs, delta = d @ v.swapaxes(1, 2) * factor, (d * (weights @ v)).sum(-1, keepdims=True)
        e_probs = EPS * (D + 6) * (np.abs(d) @ np.abs(v).swapaxes(1, 2)) * factor
        # Of the short form, δ sums P dP; of the long one, dO O.
        e_delta = (u + r + EPS * (D + n + 8)) * np.maximum(
            (np.abs(d) * (weights @ np.abs(v))).sum(-1, keepdims=True), (probs * np.abs(d_probs)).sum(-1, keepdims=True)
        ) + (probs * e_probs).sum(-1, keepdims=True)
        d_scores = probs * (d_probs - delta)
        e_scores = probs * (e_probs + e_delta) + (r + 4 * EPS) * probs * (np.abs(d_probs) + np.abs(delta))
        e_scores += u * np.abs(d_scores)
        sums = n * EPS + 2 * EPS
        e_q = (e_scores + sums * np.abs(d_scores)) @ np.abs(k) / math.sqrt(D)
        e_k = (e_scores + sums * np.abs(d_scores)).swapaxes(1, 2) @ np.abs(q) / math.sqrt(D)
        e_v = ((r + u + sums) * weights).swapaxes(1, 2) @ np.abs(d)
        bound[start:end] = np.stack([e_q, e_k, e_v]).transpose(2, 0, 1, 3)
    return bound + u * np.abs(truth) + torch.finfo(dy.dtype).tiny


@example([1], 1, 16, torch.float16, 1, 4.0)  # a log-sum-exp so far below 0 that a score of 0 would overflow
@settings(max_examples=12, deadline=None)
@given(
    LENGTHS,
    st.sampled_from([1, 3]),
    st.sampled_from(HEAD_SIZES),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 1.0, 4.0]),
)
def test_packed_attention_vjp_is_right(
    lengths: list[int], H: int, D: int, dtype: torch.dtype, seed: int, size: float
) -> None:
    """Seen red with δ left out, with δ of the next head, with the scale twice, and with the last keys not masked."""
    dy, qkv, ends = drawn(lengths, H, D, dtype, seed, size)
    kept = [x.clone() for x in (dy, qkv, ends)]
    longest = max(lengths)
    for max_seqlen in {longest, longest + 70}:  # the short form, and the long one for the same sequences
        found = kernels.packed_attention_vjp(dy, qkv, ends, max_seqlen)
        assert found.dtype == dtype
        error = np.abs(found.double().numpy() - exact(dy, qkv, ends))
        np.testing.assert_array_less(error, allowed(dy, qkv, ends) + 1e-300)
    for x, y in zip(kept, (dy, qkv, ends), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("longest", [64, 200])
def test_packed_attention_vjp_errs_like_its_roundings(dtype: torch.dtype, longest: int) -> None:
    """Fixed random data: rms errors of at most k roundings, 3 for dq and dk, 2 for dv, and no bias."""
    dy, qkv, ends = drawn([64, 33, 50] if longest == 64 else [200, 33], 2, 64, dtype, 0)
    found = kernels.packed_attention_vjp(dy, qkv, ends, longest).double().numpy()
    truth, u = exact(dy, qkv, ends), torch.finfo(dtype).eps / 2
    for i, k in enumerate((3, 3, 2)):
        error, size = found[:, i] - truth[:, i], float(np.sqrt(np.square(truth[:, i]).mean()))
        rms = float(np.sqrt(np.square(error).mean())) / size
        assert rms <= 1.25 * 0.42 * u * math.sqrt(k) + 8 * EPS, (i, rms / u)
        scale = abs(float((error * truth[:, i]).sum())) / float(np.square(truth[:, i]).sum())
        # The errors of a query's δ are one.
        rows = error.shape[0] * error.shape[1]
        assert scale <= 5 * u / math.sqrt(rows) + 4 * EPS, (i, scale / u)


@settings(max_examples=10, deadline=None)
@given(LENGTHS, st.sampled_from([1, 3]), st.sampled_from([32, 64]), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_first_token_attention_vjp_is_right(lengths: list[int], H: int, D: int, dtype: torch.dtype, seed: int) -> None:
    """All float32, so the bound is that of packed attention without its roundings in between. Empty rows give 0."""
    _, qkv, ends = drawn(lengths, H, D, dtype, seed)
    rng = np.random.default_rng(seed)
    B, T = len(lengths), sum(lengths)
    q, dy = (torch.tensor(rng.standard_normal((B, H, D))).to(dtype) for _ in range(2))
    kv = qkv[:, 1:].contiguous()
    dq, dkv = kernels.first_token_attention_vjp(dy, q, kv, ends)
    wanted = reference.first_token_attention_vjp(*(x.double().numpy() for x in (dy, q, kv)), ends.numpy())
    # As packed attention in which only the first query has a cotangent.
    rows = torch.zeros(T, 3, H, D, dtype=dtype)
    rows[:, 1:] = kv
    whole = torch.zeros(T, H, D, dtype=dtype)
    present = [b for b, n in enumerate(lengths) if n]
    first = ends[:-1].long().numpy()[present]
    rows[first, 0], whole[first] = q[present], dy[present]
    bound = allowed(whole, rows, ends)
    np.testing.assert_array_less(np.abs(dkv.double().numpy() - wanted[1]), bound[:, 1:] + 1e-300)
    np.testing.assert_array_less(np.abs(dq.double().numpy() - wanted[0])[present], bound[first, 0] + 1e-300)
    assert not dq[[b for b, n in enumerate(lengths) if not n]].any()


@pytest.mark.parametrize("max_seqlen", [64, 130])
def test_gradients_are_the_same_bit_for_bit(max_seqlen: int) -> None:
    """100 times, and with programs in any order: nothing is added across programs."""
    dy, qkv, ends = drawn([33, 17] if max_seqlen == 64 else [70, 17], 1, 16, torch.float16, 0)
    first = kernels.packed_attention_vjp(dy, qkv, ends, max_seqlen)
    # The kernels of the gradient alone: its forward is repeated below.
    kept = packed_attention_unchecked(qkv, ends, max_seqlen)
    for _ in range(100 if max_seqlen == 64 else 10):
        assert torch.equal(attention_vjp.packed_attention_backward(dy, qkv, ends, max_seqlen, *kept), first)
    for seed in range(5):
        with shuffled_grid(seed):
            assert torch.equal(kernels.packed_attention_vjp(dy, qkv, ends, max_seqlen), first)


def test_autograd_finds_the_kernels() -> None:
    """`backward` gives what the vjp gives; a log-sum-exp's gradient too; a second derivative is refused."""
    dy, qkv, ends = drawn([70, 5], 2, 16, torch.float32, 0)
    x = qkv.clone().requires_grad_()
    context = kernels.packed_attention(x, ends)
    assert isinstance(context, torch.Tensor)
    context.backward(dy)
    assert torch.equal(x.grad, kernels.packed_attention_vjp(dy, qkv, ends))

    y = qkv.double().requires_grad_()
    wide = kernels.packed_attention(y, ends, return_lse=True)
    x.grad = None
    both = kernels.packed_attention(x, ends, return_lse=True)
    weights = torch.randn(both[1].shape, generator=torch.Generator().manual_seed(0))
    ((both[0] * dy).sum() + (both[1] * weights).sum()).backward()
    ((wide[0] * dy.double()).sum() + (wide[1] * weights.double()).sum()).backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-5)

    (gradient,) = torch.autograd.grad(kernels.packed_attention(x, ends), x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="kernels have no second derivatives"):
        gradient.sum().backward()


@settings(max_examples=6, deadline=None)
@given(
    LENGTHS,
    st.sampled_from([1, 3]),
    st.sampled_from([16, 64]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.1, 0.5]),
)
def test_attention_drops_what_the_reference_drops(
    lengths: list[int], H: int, D: int, dtype: torch.dtype, seed: int, p: float
) -> None:
    """Context and gradients, split and in one block, against the reference with the same seed and tokens.

    Seen red with bits drawn anew in the backward pass, with the key's place in its block, and without the head.
    """
    dy, qkv, ends = drawn(lengths, H, D, dtype, seed % 2**32)
    tokens = torch.arange(sum(lengths)) + 7
    truth, gradient, factors = dropped(dy, qkv, ends, p, seed, tokens)
    bound = allowed(dy, qkv, ends, gradient, factors)
    for max_seqlen in {max(lengths), max(lengths) + 70}:
        x = qkv.clone().requires_grad_()
        operation = attention_vjp.packed_attention_operation
        context, _ = operation(x, ends, max_seqlen, p, seed_tensor(seed), tokens)
        context.backward(dy)
        u = torch.finfo(dtype).eps
        size = float(qkv[:, 2].double().abs().amax()) / (1 - p) if len(qkv) else 1.0
        np.testing.assert_allclose(context.detach().double().numpy(), truth, rtol=0, atol=(4 * u + 200 * EPS) * size)
        assert x.grad is not None
        np.testing.assert_array_less(np.abs(x.grad.double().numpy() - gradient), bound + 1e-300)


def test_operations_pass_opcheck() -> None:
    """With dropout and without, and the gradients' own operations."""
    dy, qkv, ends = drawn([20, 5], 2, 16, torch.float32, 0)
    x = qkv.clone().requires_grad_()
    ops = torch.ops.ernie_m
    for drops in ((), (0.25, seed_tensor(7), torch.arange(25))):
        torch.library.opcheck(attention_vjp.packed_attention_operation, (x, ends, 20, *drops))
        context, lse = attention_vjp.packed_attention_operation(qkv, ends, 20, *drops)
        torch.library.opcheck(ops.packed_attention_vjp.default, (dy, qkv, ends, 20, context, lse, None, *drops))
    q, kv = dy[:2].clone().requires_grad_(), qkv[:, 1:].clone().requires_grad_()
    torch.library.opcheck(ops.first_token_attention.default, (q, kv, ends))
    torch.library.opcheck(ops.first_token_attention_vjp.default, (dy[2:4], q.detach(), kv.detach(), ends))


def test_sequences_longer_than_promised_get_nan() -> None:
    """As in the forward pass, the tokens that no program covers are nan, and no other."""
    dy, qkv, ends = drawn([150, 5], 1, 16, torch.float16, 0)
    context, lse = attention_vjp.packed_attention_operation(qkv, ends, 150)
    for longest, covered in ((0, 64), (20, 64), (70, 128)):
        found = attention_vjp.packed_attention_backward(dy, qkv, ends, longest, context, lse).isnan()
        assert found[covered:150].all()
        assert not found[:covered].any()
        assert not found[150:].any()


# Which kernel, what is changed in it, and into what.
FAULTS = {
    "δ left out": ("queries_kernel", "probs * (d_probs - b_delta[:, None])", "probs * d_probs"),
    "δ of the next head": ("delta_kernel", "tl.int64) * H + o_stats", "tl.int64) * H + (o_stats + T) % (H * T)"),
    "the scale twice": ("keys_kernel", "dk * scale", "dk * scale * scale"),
    "a key of the next sequence": ("queries_kernel", "m_n = whole + o_n < n", "m_n = whole + o_n < n + 1"),
    "the last keys not masked in the short form": (
        "short_kernel",
        "m_m[None, :], scores, -1.0e38",
        "True, scores, 0.0",
    ),
    "a cotangent read as ones": ("keys_kernel", "load_rows(p_dy, o_m, m_m, H * D, D)", "b_q * 0 + 1"),
    "the last query left out": ("keys_kernel", "m_m = o_m < n\n            b_q", "m_m = o_m < n - 1\n            b_q"),
    "the last block of queries left out": ("keys_kernel", "tl.range(0, n, BM)", "tl.range(0, n - BM, BM)"),
    "dq from values": ("queries_kernel", "d_scores.to(b_k.dtype), b_k", "d_scores.to(b_k.dtype), b_v"),
    "P where dS belongs": ("short_kernel", "tl.dot(d_scores, b_k", "tl.dot(probs.to(b_k.dtype), b_k"),
}


# The same, of dropout.
FAULTS_OF_DROPOUT = {
    "bits drawn anew for dk and dv": (
        "keys_kernel",
        "probability_bits(tl.load(seed),",
        "probability_bits(tl.load(seed) + 1,",
    ),
    "bits drawn anew for dq": ("queries_kernel", "b_seed = tl.load(seed)", "b_seed = tl.load(seed) + 1"),
    "bits drawn anew in the short form": (
        "short_kernel",
        "(tl.load(seed), b_tokens, 0,",
        "(tl.load(seed) + 1, b_tokens, 0,",
    ),
    "a key's place in its block": ("keys_kernel", "i_block * BN, i_head, BN", "0, i_head, BN"),
    "the last keys' place in their block": ("queries_kernel", "b_tokens, whole, i_head", "b_tokens, 0, i_head"),
    "bits of the first head": ("short_kernel", "0, i_head, BM", "0, i_head * 0, BM"),
    "bits of a query's place in its sequence": ("keys_kernel", "tl.load(tokens + start + o_m", "tl.load(tokens + o_m"),
    "dv of all keys": ("keys_kernel", "weights = probs * b_kept", "weights = probs"),
    "dv not divided by 1 - p": ("keys_kernel", "dv *= keep", "dv *= 1.0"),
    "dP not divided by 1 - p": (
        "queries_kernel",
        "kept(b_bits, threshold, keep)",
        "kept(b_bits, threshold, 1.0)",
    ),
}


@pytest.mark.parametrize("fault", ["", *sorted(FAULTS_OF_DROPOUT)])
def test_planted_faults_of_dropout_are_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault, in bfloat16, where bounds are widest; and none without a fault."""
    p, seed, short = 0.25, 2**40 + 7, False
    if fault:
        short = FAULTS_OF_DROPOUT[fault][0] == "short_kernel"
        plant(attention_backward, *FAULTS_OF_DROPOUT[fault], tmp_path, monkeypatch, attention_vjp)
    dy, qkv, ends = drawn([17, 30] if short else [70, 133], 2, 32, torch.bfloat16, 0)
    tokens = torch.arange(int(ends[-1])) + 7
    _, truth, factors = dropped(dy, qkv, ends, p, seed, tokens)
    x = qkv.clone().requires_grad_()
    context, _ = attention_vjp.packed_attention_operation(x, ends, 30 if short else 133, p, seed_tensor(seed), tokens)
    context.backward(dy)
    assert x.grad is not None
    error = np.abs(x.grad.double().numpy() - truth)
    right = bool((error <= allowed(dy, qkv, ends, truth, factors)).all())
    assert right == (not fault)


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.all), torch.float32])
def test_planted_faults_are_seen(
    fault: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(attention_backward, *FAULTS[fault], tmp_path, monkeypatch, attention_vjp)
    short = FAULTS[fault][0] == "short_kernel"
    dy, qkv, ends = drawn([17, 30] if short else [70, 33], 2, 32, dtype, 0)
    with np.errstate(all="ignore"):
        found = kernels.packed_attention_vjp(dy, qkv, ends, 32 if short else 70).double().numpy()
    assert not (np.abs(found - exact(dy, qkv, ends)) <= allowed(dy, qkv, ends)).all()


FAULTS_OF_CHECK = [(op, fault) for op, faults in planted_attention_gradients.FAULTS.items() for fault in faults]


@pytest.mark.all
@pytest.mark.parametrize(("op", "fault"), FAULTS_OF_CHECK)
def test_check_refuses_gradients_with_faults(op: str, fault: str) -> None:
    """In bfloat16, where bounds are widest."""
    function = functools.partial(planted_attention_gradients.KERNELS[op], fault=fault)
    with pytest.raises(kernels.Failure):
        kernels.check(function, op, dtypes=["bfloat16"], quick=True)
