"""Dropout: bits equal to the reference's, to Triton's own and to published ones; what is dropped, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import U32
from torch._dynamo.testing import AotEagerAndRecordGraphs

from ernie_m import reference
from ernie_m.kernels import dropout as kernel
from ernie_m.kernels import philox
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference.dropout import draw_seeds, random_bits
from ernie_m.reference.layouts import Padded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"
SEED = 0xFEDCBA9876543210  # above 2⁶³, so that its int64 is negative

seeds = st.integers(0, 2**64 - 1)
rates = st.sampled_from([1e-6, 0.1, 0.5, 0.7, 1.0])


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random numbers, none of them 0."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x + x.sign()).to(DEVICE, dtype)


# From Random123 1.09, examples/kat_vectors, philox4x32 10: counter, key, result.
PUBLISHED = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    low, high = words(key)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in words(counter))
    found = kernel.philox((c0, c1, c2, c3), kernel.seed_tensor(low | high << 32))
    assert [int(word) for word in found] == words(result)


def test_seed_tensor_keeps_the_bits() -> None:
    assert kernel.seed_tensor(2**64 - 1).item() == -1
    found = kernel.seed_tensor(np.array([0, 1, SEED], np.uint64))
    assert found.dtype == torch.int64 and found.tolist() == [0, 1, SEED - 2**64]


@pytest.mark.parametrize("seed", [2**64, -1, 1.5, [3, 0.5], "x", np.random.default_rng(0), torch.Generator()])
def test_what_is_no_seed_gets_one_clear_error(seed: Any) -> None:
    """Seen red: 1.5 was taken for 1."""
    with pytest.raises(ValueError, match=r"^seed: expected integers from 0 to 2\*\*64 - 1, got "):
        kernel.seed_tensor(seed)


def test_draw_seeds_draws_from_torchs_generator() -> None:
    """One for each place, all 64 bits random, and the same after `manual_seed`."""
    torch.manual_seed(0)
    first, second = kernel.draw_seeds(500), kernel.draw_seeds(500)
    torch.manual_seed(0)
    assert torch.equal(kernel.draw_seeds(500), first)
    assert first.dtype == torch.int64 and len(first) == len(draw_seeds(np.random.default_rng(0), 500)) == 2002
    assert len(torch.cat([first, second]).unique()) == 4004
    for bit in range(64):
        ones = float(((first >> bit) & 1).double().mean())
        assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(len(first)), bit


@given(seeds, st.integers(0, 70), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_random_bits_equal_the_references(seed: int, columns: int, heads: int, start: int) -> None:
    """For indices of up to 32 bits. Seen red: the sign of a product not masked; a round too few."""
    tokens = (start + np.arange(5) ** 3).astype(np.int64) % 2**32
    ours = kernel.random_bits(kernel.seed_tensor(seed), torch.tensor(tokens), columns)
    np.testing.assert_array_equal(ours.numpy(), random_bits(seed, tokens, columns))
    each = np.arange(heads)[:, None]
    ours = kernel.random_bits(seed, torch.tensor(tokens), columns, torch.tensor(each))
    np.testing.assert_array_equal(ours.numpy(), random_bits(seed, tokens, columns, each))


@triton.jit
def upstream_kernel(seed, offsets, w0, w1, w2, w3, N: tl.constexpr):
    o_n = tl.arange(0, N)
    words = tl.randint4x(tl.load(seed), tl.load(offsets + o_n))
    tl.store(w0 + o_n, words[0].to(tl.int64))
    tl.store(w1 + o_n, words[1].to(tl.int64))
    tl.store(w2 + o_n, words[2].to(tl.int64))
    tl.store(w3 + o_n, words[3].to(tl.int64))


def test_random_bits_equal_tritons() -> None:
    """An int64 offset is the counter (low half, high half, 0, 0): token and group of four columns."""
    tokens, columns = torch.tensor([0, 1, 77, 2**31, 2**32 - 1]), 12
    offsets = (tokens[:, None] | torch.arange(columns // 4) << 32).flatten()
    padded = torch.zeros(16, dtype=torch.int64)
    padded[: len(offsets)] = offsets
    found = [torch.empty(16, dtype=torch.int64, device=DEVICE) for _ in range(4)]
    seed = kernel.seed_tensor(SEED, DEVICE)
    upstream_kernel[(1,)](seed, padded.to(DEVICE), *found, N=16)
    bits = torch.stack(found, dim=-1)[: len(offsets)].view(len(tokens), columns) & 0xFFFFFFFF
    assert torch.equal(bits.cpu(), kernel.random_bits(SEED, tokens, columns))


@given(seeds, rates, st.sampled_from([(3, 5), (2, 3, 8), (7,), (1, 1, 1), (0, 4)]), st.booleans())
def test_the_plain_form_equals_the_reference(seed: int, p: float, shape: tuple[int, ...], counted: bool) -> None:
    """Bit for bit, in float64."""
    x = np.random.default_rng(0).standard_normal(shape)
    tokens = None if counted else np.random.default_rng(1).integers(0, 2**32, shape[:-1])
    ours = kernel.dropout(torch.tensor(x), p, seed, None if tokens is None else torch.tensor(tokens))
    np.testing.assert_array_equal(ours.numpy(), reference.dropout(x, p, seed, tokens))


def assert_dropped(y: torch.Tensor, x: torch.Tensor, p: float, seed: int, tokens: torch.Tensor | None = None) -> None:
    """`y` is 0 where the reference's is; elsewhere within two roundings in float32, and one to its dtype."""
    exact = reference.dropout(x.double().cpu().numpy(), p, seed, None if tokens is None else tokens.cpu().numpy())
    found = y.double().cpu().numpy()
    np.testing.assert_array_equal(found == 0, exact == 0)
    u = FORMATS[str(y.dtype).removeprefix("torch.")].u
    assert (np.abs(found - exact) <= (2 * U32 + u) * (1 + 4 * U32) * np.abs(exact)).all()


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 4, 24, 127, 128, 129, 768, 1500]),
    st.sampled_from(DTYPES),
    rates,
    seeds,
    st.booleans(),
)
def test_the_kernel_equals_the_reference(
    rows: int, E: int, dtype: torch.dtype, p: float, seed: int, counted: bool
) -> None:
    """Seen red: words in another order; a tile's first column not counted; the threshold compared as signed."""
    x = drawn((rows, E), dtype, seed % 1000)
    tokens = None if counted else (torch.arange(rows, device=DEVICE) * 987654321) % 2**32
    y = kernel.dropout(x, p, seed, tokens)
    assert y.dtype == dtype
    assert_dropped(y, x, p, seed, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_form_in_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x = drawn((4, 37), dtype)
    tokens = torch.arange(4, device=DEVICE)
    y = kernel.plain_dropout(x, 0.3, kernel.seed_tensor(SEED, DEVICE), tokens)
    assert y.dtype == dtype
    assert_dropped(y, x, 0.3, SEED)


def test_pieces_do_not_change_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With heads and without. Seen red: a piece that begins at token 0."""
    tokens, seed = torch.arange(50, 63), kernel.seed_tensor(SEED)
    whole = kernel._dropped(0.5, seed, tokens, 11, 3)
    bits = kernel.random_bits(seed, tokens, 11, torch.arange(3)[:, None])
    assert torch.equal(whole, bits < 2**31)
    monkeypatch.setattr(philox, "PIECE", 20)
    assert torch.equal(kernel._dropped(0.5, seed, tokens, 11, 3), whole)
    monkeypatch.setattr(kernel, "eager_on_cpu", lambda x: False)
    assert torch.equal(kernel._dropped(0.5, seed, tokens, 11, 3), whole)


def test_without_a_seed_or_a_rate_nothing_is_dropped() -> None:
    x = drawn((2, 3))
    assert kernel.dropout(x, 0.5, None) is x
    assert kernel.dropout(x, 0.0, 1) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropped_elements_are_zero_whatever_they_were(dtype: torch.dtype) -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]] * 40, dtype=dtype, device=DEVICE)
    assert not kernel.dropout(x, 1.0, SEED).any()
    y = kernel.dropout(x, 0.5, SEED)
    dropped = kernel.random_bits(SEED, torch.arange(40), 4).to(DEVICE) < 2**31
    assert not y[dropped].any()
    assert torch.equal(y[~dropped].isfinite(), x[~dropped].isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_dropout_with_the_same_bits(dtype: torch.dtype) -> None:
    """float32 takes the kernel, float64 plain torch. Seen red: other bits, or the identity, on the way back."""
    x, dy = drawn((5, 30), dtype).requires_grad_(), drawn((5, 30), dtype, 1)
    tokens = torch.arange(3, 8, device=DEVICE)
    y = kernel.dropout(x, 0.4, SEED, tokens)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    torch.testing.assert_close(dx, kernel.dropout(dy, 0.4, SEED, tokens), rtol=0, atol=0)


@pytest.mark.parametrize("form", [kernel._dropout, kernel.plain_dropout])
def test_derivatives_of_both_orders(form: Any) -> None:
    arguments = (0.5, kernel.seed_tensor(SEED), torch.arange(2))
    x = drawn((2, 6), torch.float64).cpu().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: form(x, *arguments), x)
    assert torch.autograd.gradgradcheck(lambda x: form(x, *arguments), x)


def test_forward_derivatives_and_vmap() -> None:
    """In plain torch, also in float32; over seeds too."""
    x, tangent = drawn((3, 8)), drawn((3, 8), seed=1)
    _, along = torch.func.jvp(lambda x: kernel.dropout(x, 0.5, SEED), (x,), (tangent,))
    torch.testing.assert_close(along, kernel.dropout(tangent, 0.5, SEED))
    seeds = kernel.seed_tensor([1, 2, SEED], DEVICE)
    found = torch.func.vmap(lambda seed: kernel.dropout(x, 0.5, seed))(seeds)
    torch.testing.assert_close(found, torch.stack([kernel.dropout(x, 0.5, seed) for seed in seeds]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("E", [1, 100, 768])
def test_the_kernel_reads_and_writes_only_its_own_memory(dtype: torch.dtype, E: int) -> None:
    """Seen red: the mask on a load or the store dropped."""
    with guarded() as guards:
        x = guards.hold(drawn((3, E), dtype))
        y = kernel.dropout(x, 0.5, SEED)
        assert not y.isnan().any()
    assert_dropped(y, x, 0.5, SEED)


def test_any_strides() -> None:
    x = drawn((6, 40))
    strided = torch.stack([x, x], dim=-1)[..., 0]
    tokens = torch.arange(0, 12, device=DEVICE)
    assert torch.equal(kernel.dropout(strided, 0.5, SEED, tokens[::2]), kernel.dropout(x, 0.5, SEED, 2 * tokens[:6]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_graph_serves_all_seeds(dtype: torch.dtype) -> None:
    """Forward and backward; compiled once. Seen red: the seed read on the host."""
    backend = AotEagerAndRecordGraphs()
    compiled = torch.compile(kernel.dropout_unchecked, fullgraph=True, backend=backend)
    x, dy, tokens = drawn((4, 10), dtype), drawn((4, 10), dtype, 1), torch.arange(4, device=DEVICE)
    for seed in kernel.seed_tensor([3, SEED, 2**63], DEVICE):
        found = []
        for function in (compiled, kernel.dropout_unchecked):
            leaf = x.clone().requires_grad_()
            y = function(leaf, 0.3, seed, tokens)
            y.backward(dy)
            found.append((y.detach(), leaf.grad))
        torch.testing.assert_close(*found, rtol=0, atol=0)
    assert len(backend.fw_graphs) == len(backend.bw_graphs) == 1
    targets = [str(node.target) for graph in (*backend.fw_graphs, *backend.bw_graphs) for node in graph.graph.nodes]
    assert not [name for name in targets if "_local_scalar_dense" in name]


def test_autocast_leaves_the_dtype_alone() -> None:
    x = drawn((2, 8))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(kernel.dropout(x, 0.5, SEED), kernel.dropout(x.clone(), 0.5, SEED))
        assert kernel.dropout(x, 0.5, SEED).dtype == torch.float32


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([1, 2, 7, 16]), st.booleans())
def test_drop_probabilities_equals_the_reference(seed: int, B: int, S: int, holes: bool) -> None:
    """Of each head and each query, by the key's position in its sequence."""
    rng = np.random.default_rng(seed)
    probs, valid = rng.random((B, 3, S, S)), (rng.random((B, S)) < 0.7) | (not holes)
    layout = Padded(valid, None)
    drop = layout._drop(0.5, seed)
    assert drop is not None and layout.index is not None
    positions = torch.tensor(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    given = (torch.tensor(probs), 0.5, kernel.seed_tensor(seed), torch.tensor(layout.index))
    np.testing.assert_array_equal(kernel.drop_probabilities(*given, positions).numpy(), drop(probs))
    if valid.all():
        assert torch.equal(kernel.drop_probabilities(*given), kernel.drop_probabilities(*given, positions))


def test_error_messages() -> None:
    x = drawn((2, 8))
    seed, tokens = kernel.seed_tensor(1, DEVICE), torch.arange(2, device=DEVICE)
    for error, message, arguments in (
        (TypeError, "x: expected float32, .* got torch.int64", (x.long(), 0.5, seed)),
        (ValueError, r"x: expected shape \(..., E\), got \(\)", (x[0, 0], 0.5, seed)),
        (ValueError, "p: expected a number from 0 to 1, got 1.5", (x, 1.5, seed)),
        (ValueError, "p: expected a number from 0 to 1, got nan", (x, float("nan"), seed)),
        (TypeError, "seed: expected torch.int64, got torch.int32", (x, 0.5, seed.int())),
        (ValueError, r"seed: expected shape \(\) = \(\), got \(1,\)", (x, 0.5, seed[None])),
        (ValueError, "seed: expected a tensor on", (x, 0.5, seed.to("meta"))),
        (TypeError, "tokens: expected torch.int32 or torch.int64, got torch.float32", (x, 0.5, seed, tokens.float())),
        (ValueError, r"tokens: expected shape .* = \(2,\), got \(1,\)", (x, 0.5, seed, tokens[:1])),
        (ValueError, "tokens: expected a tensor on", (x, 0.5, seed, tokens.to("meta"))),
    ):
        with pytest.raises(error, match=message):
            kernel.dropout(*arguments)


@pytest.mark.parametrize("form", ["kernel", "plain"])
@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(form: str, strided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "plain":
        monkeypatch.setattr(kernel, "runs_triton", lambda x: False)
    x = drawn((3, 8)).t().contiguous().t() if strided else drawn((3, 8))
    arguments = (x.requires_grad_(), 0.5, kernel.seed_tensor(SEED, DEVICE), torch.arange(3, device=DEVICE))
    torch.library.opcheck(kernel._dropout, arguments)
