"""Group attention's kernels against the reference in float64, within derived bounds, and bit for bit in any order.

Seen red: see FAULTS.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planting import plant

from ernie_m import reference
from ernie_m.kernels import attention_groups as page
from ernie_m.kernels import attention_groups_backward, attention_groups_vjp
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid
from ernie_m.reference.attention_groups import group_attention, group_attention_vjp
from ernie_m.reference.objectives import Vocabulary, arrange, camlm, dense

VOCABULARY = Vocabulary(size=50, mask=49)
EPS = 2.0**-24
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"
SIZES = st.lists(
    st.tuples(*(st.sampled_from([0, 1, 2, 30, 31, 61, 62, 63, 64, 95, 130]) for _ in range(2))), min_size=1, max_size=3
)


def pairs(sizes: list[tuple[int, int]], ratio: float, seed: int) -> torch.Tensor:  # -> (G, 5) int32
    """The groups of arranged pairs, one after the other."""
    rng, start, found = np.random.default_rng(seed), 0, []
    for a, b in sizes:
        e = camlm(rng.integers(4, 49, a), rng.integers(4, 49, b), VOCABULARY, rng, ratio=ratio)
        found.append(arrange(e)[1] + start)
        start += len(e.input_ids)
    return torch.tensor(np.concatenate(found), dtype=torch.int32, device=DEVICE)


def drawn(
    groups: torch.Tensor, H: int, D: int, dtype: torch.dtype, seed: int, size: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:  # -> (T, H, D), (T, 3, H, D)
    """dy and qkv."""
    rng, T = np.random.default_rng(seed), int(groups[:, 1].max()) if len(groups) else 0
    dy, qkv = rng.standard_normal((T, H, D)), rng.standard_normal((T, 3, H, D)) * size
    return torch.tensor(dy).to(DEVICE, dtype), torch.tensor(qkv).to(DEVICE, dtype)


def allowed(dy: torch.Tensor, qkv: torch.Tensor, groups: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the errors of the context and of the gradient, from float64 arithmetic on the rounded inputs.

    As in test_attention_backward.py, for one sequence under the groups' dense mask: a score is off by at most
    (D + 4) ε Σ|q||k|/√D, and so is the log-sum-exp that is subtracted; exp2 adds a few ε: P is off relatively by r. It
    is rounded to the dtype for its products, and sums over n numbers add n ε.
    """
    u = torch.finfo(dy.dtype).eps / 2
    x, g = qkv.double().cpu().numpy(), dy.double().cpu().numpy()
    T, D = len(x), x.shape[-1]
    sees = dense(groups.cpu().numpy(), T)
    q, k, v = x.transpose(1, 2, 0, 3)  # (H, T, D)
    d = g.swapaxes(0, 1)
    context, probs = reference.attention(q, k, v, sees)
    probs = probs * sees
    n = sees.sum(axis=1, keepdims=True)
    sizes = np.where(sees, np.abs(q) @ np.abs(k).swapaxes(1, 2) / math.sqrt(D), 0.0)
    r = EPS * (2 * (D + 4) * sizes.max(axis=-1, keepdims=True, initial=0.0) + 2 * n + 26)
    sums = n * EPS + 2 * EPS
    out = (r + u + sums) * (probs @ np.abs(v)) + u * np.abs(context)
    d_probs, delta = d @ v.swapaxes(1, 2), (d * (probs @ v)).sum(-1, keepdims=True)
    e_probs = EPS * (D + 6) * (np.abs(d) @ np.abs(v).swapaxes(1, 2))
    e_delta = (u + r + EPS * (D + n + 8)) * (np.abs(d) * (probs @ np.abs(v))).sum(-1, keepdims=True)
    d_scores = probs * (d_probs - delta)
    e_scores = probs * (e_probs + e_delta) + (r + 4 * EPS) * probs * (np.abs(d_probs) + np.abs(delta))
    e_scores = (e_scores + u * (np.abs(d_scores) + e_scores) + sums * np.abs(d_scores)) / math.sqrt(D)
    columns = EPS * (sees.sum(axis=0, keepdims=True) + 2)
    e_back = e_scores + columns * np.abs(d_scores) / math.sqrt(D)
    e_v = (r + u + sums + columns) * probs
    bound = np.stack(
        [e_scores @ np.abs(k), e_back.swapaxes(1, 2) @ np.abs(q), e_v.swapaxes(1, 2) @ np.abs(d)]
    ).transpose(2, 0, 1, 3)
    truth = group_attention_vjp(g, x, groups.cpu().numpy())
    tiny = torch.finfo(dy.dtype).tiny
    return out.swapaxes(0, 1) + tiny, bound + u * np.abs(truth) + tiny


def results(
    dy: torch.Tensor, qkv: torch.Tensor, groups: torch.Tensor, longest: int | None = None
) -> list[torch.Tensor]:
    """The context, and the gradient through autograd."""
    x = qkv.clone().requires_grad_()
    context = page.group_attention(x, groups, longest)
    return [context.detach(), *torch.autograd.grad(context, x, dy)]


def ratios(dy: torch.Tensor, qkv: torch.Tensor, groups: torch.Tensor, longest: int | None = None) -> list[float]:
    """The largest errors of both, over their bounds."""
    if not len(qkv):
        assert [len(y) for y in results(dy, qkv, groups, longest)] == [0, 0]
        return [0.0]
    x, g, ranges = qkv.double().cpu().numpy(), dy.double().cpu().numpy(), groups.cpu().numpy()
    truth = group_attention(x, ranges), group_attention_vjp(g, x, ranges)
    found = [y.double().cpu().numpy() for y in results(dy, qkv, groups, longest)]
    errors = zip(found, truth, allowed(dy, qkv, groups), strict=True)
    return [float(np.nan_to_num(np.abs(y - t) / bound, nan=math.inf).max(initial=0.0)) for y, t, bound in errors]


@pytest.mark.all
@settings(max_examples=10)
@given(
    SIZES,
    st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    st.sampled_from([1, 3]),
    st.sampled_from([16, 32, 64]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 1.0, 4.0]),
    st.sampled_from([None, 400]),
)
def test_pairs_are_computed_within_bounds(
    sizes: list[tuple[int, int]],
    ratio: float,
    H: int,
    D: int,
    dtype: torch.dtype,
    seed: int,
    size: float,
    longest: int | None,
) -> None:
    """CAMLM's rule, everything or nothing masked and empty sides included; inputs are left alone."""
    groups = pairs(sizes, ratio, seed)
    dy, qkv = drawn(groups, H, D, dtype, seed, size)
    kept = [x.clone() for x in (dy, qkv, groups)]
    found = ratios(dy, qkv, groups, longest)
    assert max(found) <= 1, found
    assert all(torch.equal(a, b) for a, b in zip(kept, (dy, qkv, groups), strict=True))


@settings(max_examples=4)
@given(
    st.lists(st.sampled_from([0, 1, 5, 63, 64, 65, 130]), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
)
def test_plain_packed_sequences_too(lengths: list[int], dtype: torch.dtype, seed: int) -> None:
    ends = np.cumsum([0, *lengths])
    groups = torch.tensor(np.stack([ends[:-1], ends[1:], ends[1:], ends[:-1], ends[1:]], axis=1), dtype=torch.int32)
    dy, qkv = drawn(groups.to(DEVICE), 2, 16, dtype, seed)
    found = ratios(dy, qkv, groups.to(DEVICE))
    assert max(found) <= 1, found


def test_rows_that_see_nothing_or_are_in_no_group_are_zero() -> None:
    """Rows 0 to 2 see nothing, 3 to 5 see 8 and 9, of which 5 itself too; the others are in no group."""
    groups = torch.tensor([[0, 3, 3, 8, 8], [3, 6, 5, 8, 10]], dtype=torch.int32, device=DEVICE)
    rng = np.random.default_rng(0)
    dy, qkv = (
        torch.tensor(rng.standard_normal(shape)).to(DEVICE, torch.float32) for shape in ((12, 1, 16), (12, 3, 1, 16))
    )
    assert max(ratios(dy, qkv, groups)) <= 1
    context, gradient = results(dy, qkv, groups)
    assert not context[:3].any() and not context[6:].any() and context[3:6].all()
    assert not gradient[:3].any() and not gradient[10:].any() and not gradient[6:8].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_computes_the_same(dtype: torch.dtype) -> None:
    """What a CPU without the interpreter, and heads of another size, use."""
    groups = pairs([(9, 12), (0, 5)], 0.5, 0)
    for D in (16, 24):
        dy, qkv = drawn(groups, 2, D, dtype, 0)
        x = qkv.clone().requires_grad_()
        context, _ = page.plain_group_attention(x, groups)
        (gradient,) = torch.autograd.grad(context, x, dy)
        bounds = allowed(dy, qkv, groups)
        given, ranges = (qkv.double().cpu().numpy(), dy.double().cpu().numpy()), groups.cpu().numpy()
        truth = group_attention(given[0], ranges), group_attention_vjp(given[1], given[0], ranges)
        for y, t, bound in zip((context.detach(), gradient), truth, bounds, strict=True):
            assert (np.abs(y.double().cpu().numpy() - t) <= bound).all()
    assert torch.isfinite(page.group_attention(drawn(groups, 2, 24, dtype, 0)[1], groups)).all()


@pytest.mark.all
def test_the_same_bits_in_any_order() -> None:
    groups = pairs([(70, 17), (30, 90)], 0.3, 0)
    dy, qkv = drawn(groups, 2, 16, torch.float16, 0)
    first = results(dy, qkv, groups)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(results(dy, qkv, groups), first, strict=True))
    for seed in range(5 if INTERPRETED else 0):
        with shuffled_grid(seed):
            assert all(torch.equal(a, b) for a, b in zip(results(dy, qkv, groups), first, strict=True))


def test_what_is_past_the_promised_length_is_nan() -> None:
    groups = torch.tensor([[0, 150, 150, 0, 150], [150, 155, 155, 150, 155]], dtype=torch.int32, device=DEVICE)
    _, qkv = drawn(groups, 1, 16, torch.float16, 0)
    found = page.group_attention(qkv, groups, 20).isnan()
    assert found[128:150].all() and not found[:128].any() and not found[150:].any()


def test_opcheck() -> None:
    groups = pairs([(20, 5)], 0.3, 0)
    dy, qkv = drawn(groups, 2, 16, torch.float32, 0)
    x = qkv.clone().requires_grad_()
    torch.library.opcheck(page._group_attention, (x, groups, 30))
    context, lse = page._group_attention(qkv, groups, 30)
    torch.library.opcheck(attention_groups_vjp._group_attention_vjp, (dy, qkv, groups, 30, context, lse))
    context = page.group_attention(x, groups)
    (gradient,) = torch.autograd.grad(context, x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="kernels have no second derivatives"):
        gradient.sum().backward()


def test_how_many_scores_are_computed() -> None:
    """20 and 20 tokens, 15 % masked, special tokens left out: 43 % of 40²."""
    e = camlm(np.arange(4, 24), np.arange(24, 44), VOCABULARY, np.random.default_rng(0))
    order, groups = arrange(e)
    words = ~np.isin(e.input_ids[order], [0, 2])
    computed = sum(
        int(words[q0:q1].sum()) * int(words[k0:k1].sum()) + int(words[first:q1].sum())
        for q0, q1, first, k0, k1 in groups.tolist()
    )
    assert round(computed / 40**2, 2) == 0.43


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.tensor([[0, 3, 3, 0, 3]]), r"groups: expected torch.int32"),
        (torch.tensor([[0, 3, 3, 0]], dtype=torch.int32), r"groups: expected shape \(G, 5\)"),
        (torch.tensor([[0, 3, 2, 0, 3]], dtype=torch.int32), "each row to be a key at most once, got row 2 twice"),
    ],
)
def test_wrong_groups_get_one_clear_error(groups: torch.Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        page.group_attention(torch.zeros(5, 3, 1, 16), groups)


# Which kernel, what is changed in it, and into what.
FAULTS = {
    "no score of its own": ("group_attention_kernel", "m_own = m_m & (o_m >= first)", "m_own = m_m & (o_m < 0)"),
    "a score of its own for every row": ("group_attention_kernel", "m_own = m_m & (o_m >= first)", "m_own = m_m"),
    "its own value not counted": (
        "group_attention_kernel",
        "row_sum = tl.where(m_own, 1.0, 0.0)",
        "row_sum = tl.where(m_own, 0.0, 0.0)",
    ),
    "its own score without the scale": ("group_attention_kernel", "own_k, 1) * scale2", "own_k, 1)"),
    "keys of the queries' range": ("group_attention_kernel", "p_k = qkv + k0", "p_k = qkv + q0"),
    "the last keys not masked": ("group_attention_kernel", "m_n = whole + o_n < n", "m_n = o_n >= 0"),
    "dq without its own score": ("group_queries_kernel", "dq += d_scores[:, None] * b_k", "dq += 0.0 * b_k"),
    "dk of itself not scaled": ("group_queries_kernel", "b_q.to(tl.float32) * scale\n", "b_q.to(tl.float32)\n"),
    "dv of itself is dO": ("group_queries_kernel", "probs[:, None] * b_dy.to", "1.0 * b_dy.to"),
    "no δ in its own gradient": ("group_queries_kernel", "b_v, 1) - b_delta)", "b_v, 1))"),
    "dk of the queries' rows": ("group_keys_kernel", "dk * scale, o_n,", "dk * scale, o_n - k0 + q0,"),
    "queries from the first row": ("group_keys_kernel", "p_q = qkv + q0.to(tl.int64)", "p_q = qkv + k0.to(tl.int64)"),
}


@pytest.mark.parametrize("fault", ["", *sorted(FAULTS)])
def test_planted_faults_are_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where bounds are widest; and none without a fault."""
    if fault:
        name, old, new = FAULTS[fault]
        forward = name == "group_attention_kernel"
        source, user = (page, page) if forward else (attention_groups_backward, attention_groups_vjp)
        plant(source, name, old, new, tmp_path, monkeypatch, user)
    # Keys elsewhere than queries, in several blocks; some rows are no keys.
    groups = torch.tensor([[0, 90, 70, 100, 190], [90, 200, 195, 0, 70]], dtype=torch.int32, device=DEVICE)
    with np.errstate(all="ignore"):
        found = ratios(*drawn(groups, 2, 32, torch.bfloat16, 0), groups)
    assert (max(found) <= 1) == (not fault), found
