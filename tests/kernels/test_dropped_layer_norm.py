"""Bias, dropout, residual and LayerNorm in one kernel, forward and backward, against the reference's operations.

Seen red: see FAULTS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from planting import plant
from torch import Tensor
from vjp_checks import array, assert_same_bits, worst

from ernie_m import reference
from ernie_m.kernels import dropped_layer_norm as page
from ernie_m.kernels import dropped_layer_norm_backward, encoder
from ernie_m.kernels.checking import bounds, gradient_bounds
from ernie_m.kernels.checking.bounds import EPS, Expected, several
from ernie_m.kernels.checking.formats import Format
from ernie_m.kernels.dropout import seed_tensor
from ernie_m.kernels.runtime.dispatch import INTERPRETED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"
NORM_EPS, SEED = 1e-5, 2**40 + 7


def drawn(N: int, E: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """dy, x, bias, residual, gamma (0 in places) and beta."""
    rng = np.random.default_rng(seed)
    shapes = ((N, E), (N, E), (E,), (N, E), (E,), (E,))
    found = [torch.tensor(rng.standard_normal(shape)).to(DEVICE, dtype) for shape in shapes]
    found[4] = found[4].masked_fill(torch.arange(E, device=DEVICE) % 3 == 1, 0.0)
    return found


def expectation(p: float, tokens: Tensor) -> Any:
    """The exact results of both passes and their bounds, as a function of the format and `drawn`."""
    more = (NORM_EPS, p, SEED, tokens.cpu().numpy())

    def found(format: Format, dy: Any, x: Any, bias: Any, residual: Any, gamma: Any, beta: Any) -> Expected:
        exact = reference.dropped_layer_norm(x, bias, residual, gamma, beta, *more)
        kept = reference.dropout(x + bias, *more[1:])
        dz = EPS * (3 * np.abs(kept) + np.abs(kept + residual))
        y = bounds._normalised(format, kept + residual, dz, gamma, beta, NORM_EPS, exact)
        gradients = gradient_bounds.dropped_layer_norm_vjp(format, dy, x, bias, residual, gamma, *more)
        return several(y=y, **{name: part for name, _, part in gradients.each()})

    return found


def results(inputs: list[Tensor], p: float, tokens: Tensor) -> list[Tensor]:
    """The output, and through autograd the gradients of x, the bias, the residual, gamma and beta."""
    dy, *leaves = [t.clone().requires_grad_(i > 0) for i, t in enumerate(inputs)]
    y = page.dropped_layer_norm_unchecked(*leaves, NORM_EPS, p, seed_tensor(SEED, DEVICE), tokens)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@settings(max_examples=10)
@given(
    N=st.sampled_from([1, 2, 9, 40]),
    E=st.sampled_from([1, 2, 5, 63, 65, 768]),
    dtype=st.sampled_from(DTYPES),
    p=st.sampled_from([0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_results_are_within_their_bounds(N: int, E: int, dtype: torch.dtype, p: float, seed: int) -> None:
    """Output and gradients; tokens in any order, and above 2³¹."""
    rng = np.random.default_rng(seed)
    tokens = torch.tensor(rng.integers(0, 2**32, N), device=DEVICE)
    inputs = drawn(N, E, dtype, seed)
    kept = [t.clone() for t in inputs]
    found = worst(expectation(p, tokens), inputs, results(inputs, p, tokens))
    assert max(found.values()) <= 1, found
    assert all(torch.equal(a, b) for a, b in zip(kept, inputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("p", "seed"), [(0.3, SEED), (0.3, None), (0.0, SEED), (1.0, SEED)])
def test_the_public_functions_are_those_of_the_reference(dtype: torch.dtype, p: float, seed: int | None) -> None:
    """With and without dropout, tokens given or counted; in float64 by plain torch."""
    dy, *rest = drawn(5, 12, dtype, 1)
    for tokens in (None, torch.tensor([9, 3, 4, 0, 2], device=DEVICE)):
        own = None if tokens is None else tokens.cpu().numpy()
        found = [page.dropped_layer_norm(*rest, NORM_EPS, p, seed, tokens)]
        found += page.dropped_layer_norm_vjp(dy, *rest[:-1], NORM_EPS, p, seed, tokens)
        y = reference.dropped_layer_norm(*map(array, rest), NORM_EPS, p, seed, own)
        exact = reference.dropped_layer_norm_vjp(*map(array, (dy, *rest[:-1])), NORM_EPS, p, seed, own)
        for got, expected in zip(found, (y, *exact), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(array(got), expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("E", [1, 100])
def test_only_its_own_memory_is_read_and_written(E: int) -> None:
    tokens = torch.arange(11, device=DEVICE)
    with guarded() as guards:
        inputs = [guards.hold(t) for t in drawn(11, E, torch.float32, 0)]
        found = worst(expectation(0.3, tokens), inputs, results(inputs, 0.3, tokens))
    assert max(found.values()) <= 1, found


@pytest.mark.all
def test_the_same_bits_in_any_order() -> None:
    tokens = torch.arange(40, device=DEVICE)
    inputs = drawn(40, 768, torch.bfloat16, 0)
    assert_same_bits(lambda: results(inputs, 0.2, tokens), repeats=20, orders=5)


def test_everything_dropped_leaves_the_residual() -> None:
    """p = 1, whose threshold does not fit in 32 bits."""
    inputs, tokens = drawn(3, 8, torch.float32, 0), torch.arange(3, device=DEVICE)
    y, dx, dbias, *_ = results(inputs, 1.0, tokens)
    _, _, _, residual, gamma, beta = (array(t) for t in inputs)
    np.testing.assert_allclose(array(y), reference.layer_norm(residual, gamma, beta, NORM_EPS), rtol=0, atol=1e-5)
    assert not dx.any() and not dbias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    """float64 takes plain torch."""
    dy, *rest = drawn(3, 8, dtype, 0)
    more = (0.25, seed_tensor(SEED, DEVICE), torch.arange(3, device=DEVICE))
    leaves = [t.clone().requires_grad_() for t in rest]
    torch.library.opcheck(page._dropped_layer_norm, (*leaves, NORM_EPS, *more))
    _, means, rstds = page._dropped_layer_norm(*rest, NORM_EPS, *more)
    if dtype == torch.float32:
        torch.library.opcheck(page._dropped_layer_norm_vjp, (dy, *rest[:-1], means, rstds, *more))


def test_second_derivatives_are_refused() -> None:
    dy, *rest = drawn(3, 8, torch.float32, 0)
    leaves = [t.clone().requires_grad_() for t in rest]
    more = (0.25, seed_tensor(SEED, DEVICE), torch.arange(3, device=DEVICE))
    y = page.dropped_layer_norm_unchecked(*leaves, NORM_EPS, *more)
    (dx,) = torch.autograd.grad(y, leaves[0], dy, create_graph=True)
    with pytest.raises(RuntimeError, match="kernels have no second derivatives"):
        dx.sum().backward()


def test_empty_inputs_have_empty_results() -> None:
    found = results(drawn(0, 8, torch.float32, 0), 0.25, torch.arange(0, device=DEVICE))
    assert [tuple(t.shape) for t in found] == [(0, 8), (0, 8), (8,), (0, 8), (8,), (8,)]
    assert not any(t.any() for t in found)


def test_a_training_model_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in each layer; without dropout, never."""
    from torch_models import pair, tensors

    calls: list[float] = []
    original = page.dropped_layer_norm_unchecked
    monkeypatch.setattr(
        encoder, "dropped_layer_norm_unchecked", lambda *given: (calls.append(given[6]), original(*given))[1]
    )
    _, model = pair(dtype=np.float32, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.0)
    batch = tensors({"input_ids": np.array([[3, 4, 5]])})
    model.train()(**batch)
    assert calls == [0.2] * (2 * model.config.num_hidden_layers)
    model.eval()(**batch)
    assert len(calls) == 2 * model.config.num_hidden_layers


# Which kernel, what is changed in it, and into what.
FAULTS = {
    "bits drawn anew in the backward pass": ("vjp", "tl.load(seed), b_tokens", "tl.load(seed) + 1, b_tokens"),
    "a row's place instead of its token": ("", "tl.load(tokens + i_row)", "i_row"),
    "the residual dropped too": (
        "",
        "v = tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, v * keep)\n    v +=",
        "v = tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, v * keep)\n    v += 0.0 * v + "
        "tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, 1.0) *",
    ),
    "the bias after dropout": ("vjp", "+ b_bias[None, :]\n", "\n        v += b_bias[None, :] / keep\n"),
    "not divided by 1 - p": ("vjp", "b_dx = tl.where(dropped, 0.0, dv * keep)", "b_dx = tl.where(dropped, 0.0, dv)"),
    "dx of all elements": ("vjp", "b_dx = tl.where(dropped, 0.0, dv * keep)", "b_dx = dv"),
    "the residual's gradient dropped": (
        "vjp",
        "d_residual + o_ne, dv",
        "d_residual + o_ne, tl.where(dropped, 0.0, dv)",
    ),
    "the bias's gradient of dv": ("vjp", "d_bias += tl.sum(b_dx, 0)", "d_bias += tl.sum(dv, 0)"),
    "a signed threshold": (
        "",
        "b_bits < tl.cast(threshold, tl.uint32)",
        "b_bits.to(tl.int32) < tl.cast(threshold, tl.int32)",
    ),
}


@pytest.mark.parametrize("fault", ["", *sorted(FAULTS)])
def test_planted_faults_are_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where bounds are widest; and none without a fault."""
    if fault:
        kind, old, new = FAULTS[fault]
        source = dropped_layer_norm_backward if kind else page
        name = f"dropped_layer_norm{'_vjp' if kind else ''}_kernel"
        plant(source, name, old, new, tmp_path, monkeypatch, source)
    tokens = torch.arange(12, device=DEVICE) + 5
    inputs = drawn(12, 65, torch.bfloat16, 0)
    found = worst(expectation(0.6, tokens), inputs, results(inputs, 0.6, tokens))
    assert (max(found.values()) <= 1) == (not fault), found
