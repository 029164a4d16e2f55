"""The torch losses against the reference's, and their gradients against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import LIBM, U64

from ernie_m.kernels import losses
from ernie_m.reference import losses as reference

LOWEST = float(np.finfo(np.float64).min) / 4


def cases(seed: int, B: int, C: int, scale: float) -> dict[str, tuple[Any, ...]]:
    """Arguments of each loss, with some rows ignored and some logits at padding."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((B, C))
    valid = rng.random((B, C)) < 0.7
    numbers = rng.random((B, C))
    classes = np.where(rng.random(B) < 0.3, -100, rng.integers(0, C, B))
    padded = np.where(valid, logits, LOWEST)
    return {
        "cross_entropy": (logits, classes, rng.random(B) < 0.8),
        "binary_cross_entropy": (padded, numbers, valid),
        "squared_error": (logits, numbers, valid),
        "span_loss": (padded, rng.integers(-2, C + 2, B), valid),
    }


@settings(max_examples=100)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 2, 7, 33]), st.sampled_from([1e-3, 1.0, 300.0])
)
def test_losses_equal_the_reference(seed: int, B: int, C: int, scale: float) -> None:
    """nan if no target counts; no warning, and no overflow at padding's logits."""
    # Twice a mean of B C numbers, and a few functions and roundings before it; relative to the loss, or to a logit.
    bound = 2 * (B * C + 4 * LIBM + 8) * U64
    for name, arguments in cases(seed, B, C, scale).items():
        ours = getattr(losses, name)(*map(torch.tensor, arguments)).numpy()
        theirs = getattr(reference, name)(*arguments)
        assert ours.shape == () and ours.dtype == theirs.dtype
        largest = np.abs(arguments[0], where=arguments[0] > LOWEST, out=np.ones((B, C))).max()
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=2 * bound * max(1.0, largest), err_msg=name)


@pytest.mark.parametrize("name", list(cases(0, 1, 1, 1.0)))
def test_losses_gradients_equal_central_differences(name: str) -> None:
    """Central differences along a random direction; what does not count has a gradient of 0, never nan.

    Includes binary cross-entropy at 0, where max(x, 0) and |x| are not differentiable.
    """
    logits, *rest = cases(1, 6, 7, 1.0)[name]
    logits[0, 0] = 0.0
    x = torch.tensor(logits, requires_grad=True)
    others = [torch.tensor(y) for y in rest]
    getattr(losses, name)(x, *others).backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    direction = np.random.default_rng(0).standard_normal(logits.shape) * (logits > LOWEST)
    h = 1e-5
    ends = [float(getattr(losses, name)(torch.tensor(logits + s * direction), *others)) for s in (h, -h)]
    np.testing.assert_allclose(float((x.grad.numpy() * direction).sum()), (ends[0] - ends[1]) / (2 * h), rtol=1e-7)
    if name in ("binary_cross_entropy", "squared_error"):
        assert not x.grad[~others[1]].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    """A mean over 70,000 nines: in float16 the sum alone would be infinite. Rounded once, at the end."""
    x = torch.full((70, 1000), 3.0, dtype=dtype)
    loss = losses.squared_error(x, torch.zeros_like(x), torch.ones(70, 1000, dtype=torch.bool))
    assert loss.dtype == dtype and float(loss) == 9.0


@pytest.mark.parametrize("name", list(cases(0, 1, 1, 1.0)))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_under_autocast_are_float32(name: str, dtype: torch.dtype) -> None:
    """As torch's own: a gradient scaler multiplies the loss by up to 65,536, which float16 does not hold."""
    logits, *rest = (torch.tensor(x) for x in cases(1, 6, 7, 1.0)[name])
    rest = [x.float() if x.is_floating_point() else x for x in rest]
    with torch.autocast("cpu", dtype):
        loss = getattr(losses, name)(logits.clamp(min=-100).to(dtype), *rest)
    assert loss.dtype == torch.float32
