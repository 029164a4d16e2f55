"""The optimiser's pages against their twins in torch and transformers, and against closed forms."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import CLASSES, random_model
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.parameters import flatten
from ernie_m.reference.training import (
    adamw_start,
    adamw_step,
    clip_by_global_norm,
    decays,
    global_norm,
    layer_wise_rates,
    warmup_then_linear,
)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = {"a.weight": (3, 4), "a.bias": (3,), "layer_norm.weight": (4,)}


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4) for path, shape in SHAPES.items()}


@given(SEEDS, st.floats(1e-5, 0.1), st.floats(0.0, 0.5), st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.8, 0.98)]))
def test_twenty_steps_agree_with_torch(seed: int, rate: float, decay: float, betas: tuple[float, float]) -> None:
    """In float64 to 1e-10, with clipping and a rate for each parameter. Seen red without the bias correction."""
    torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare with")
    ours = drawn(seed)
    rates = {path: rate * (i + 1) for i, path in enumerate(ours)}
    theirs = {path: torch.nn.Parameter(torch.tensor(array)) for path, array in ours.items()}
    groups = [
        {"params": [p], "lr": rates[path], "weight_decay": decay if decays(path) else 0.0} for path, p in theirs.items()
    ]
    optimiser, state = torch.optim.AdamW(groups, betas=betas), adamw_start(ours)
    for step in range(20):
        gradients = drawn(seed + step)
        for path, p in theirs.items():
            p.grad = torch.tensor(gradients[path])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        optimiser.step()
        clipped, own_norm = clip_by_global_norm(gradients, 2.0)
        np.testing.assert_allclose(own_norm, norm.item(), rtol=1e-12)
        ours, state = adamw_step(ours, clipped, state, rates, betas, weight_decay=decay)
    for path, p in theirs.items():
        np.testing.assert_allclose(ours[path], p.detach().numpy(), rtol=1e-10, atol=1e-10)


@given(SEEDS)
def test_the_first_step_moves_by_the_rate(seed: int) -> None:
    """Whatever the size of the gradient: m̂ / √v̂ is its sign."""
    before, g = drawn(seed), drawn(seed + 1)
    after, _ = adamw_step(before, g, adamw_start(before), 0.01, eps=0.0, weight_decay=0.0)
    for path in before:
        np.testing.assert_allclose(before[path] - after[path], 0.01 * np.sign(g[path]), rtol=0, atol=1e-11)


def test_a_step_changes_no_argument_and_keeps_dtypes() -> None:
    for dtype in (np.float32, np.float64):
        before = {path: array.astype(dtype) for path, array in drawn(0).items()}
        kept = {path: array.copy() for path, array in before.items()}
        state = adamw_start(before)
        after, new = adamw_step(before, before, state, 0.01)
        for path in before:
            np.testing.assert_array_equal(before[path], kept[path])
            assert not state.mean[path].any()
            assert after[path].dtype == new.mean[path].dtype == new.square[path].dtype == dtype


def test_half_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"parameters: a.weight: expected float32 or float64, got float16"):
        adamw_start({"a.weight": np.ones(2, np.float16)})


@pytest.mark.parametrize("cls", CLASSES)
def test_weight_decay_leaves_biases_and_norms_alone(cls: type) -> None:
    for path, array in flatten(random_model(cls).parameters).items():
        assert decays(path) == (array.ndim == 2), path


@given(SEEDS, st.floats(1e-3, 1e9))
def test_clipping_keeps_the_direction(seed: int, limit: float) -> None:
    gradients = drawn(seed)
    clipped, norm = clip_by_global_norm(gradients, limit)
    assert global_norm(clipped) <= limit * (1 + 1e-12) or norm <= limit
    factor = min(1.0, limit / (norm + 1e-6))
    for path, g in gradients.items():
        np.testing.assert_allclose(clipped[path], g * factor, rtol=1e-15)


def test_clipping_refuses_what_it_cannot_mend() -> None:
    bad = {"a": np.array([1.0, np.nan]), "b": np.ones(2)}
    with pytest.raises(ValueError, match="norm of nan; not finite: a"):
        clip_by_global_norm(bad, 1.0)
    with pytest.raises(ValueError, match="limit: expected a positive number, got 0"):
        clip_by_global_norm({"b": np.ones(2)}, 0.0)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 70))
def test_the_schedule_agrees_with_transformers(warmup: int, more: int, step: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare with")
    transformers = pytest.importorskip(
        "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
    )
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimiser, warmup, warmup + more)
    assert warmup_then_linear(step, warmup, warmup + more) == theirs.lr_lambdas[0](step)


@pytest.mark.parametrize("wrong", [(-1, 0, 1), (0, -1, 1), (0, 3, 2)])
def test_the_schedule_refuses_impossible_numbers(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="schedule: expected 0 <= warmup <= total and step >= 0, got warmup="):
        warmup_then_linear(*wrong)


def test_layer_wise_rates_fall_from_the_head_to_the_embeddings() -> None:
    """With d = 0.8 and L = 2: head and pooler 1, layer 1 0.8, layer 0 0.64, embeddings 0.512."""
    model = random_model(CLASSES[1])
    expected = {"head": 1.0, "pooler": 1.0, "layers.1": 0.8, "layers.0": 0.64}
    for path, rate in layer_wise_rates(flatten(model.parameters), 2.0, 0.8, 2).items():
        found = re.match(r"layers\.\d|head|pooler", path)
        np.testing.assert_allclose(rate, 2.0 * (expected[found[0]] if found else 0.512), rtol=1e-15)
    with pytest.raises(ValueError, match="decay: expected a number above 0 and at most 1, got 0"):
        layer_wise_rates(["head.classifier.bias"], 1.0, 0.0, 2)


def test_gradients_of_other_shapes_are_refused() -> None:
    before = drawn(0)
    for wrong in (
        {**before, "a.bias": np.zeros(4)},
        {**before, "b": np.zeros(4)},
        {**before, "a.bias": np.zeros(3, np.float32)},
        {"a.bias": before["a.bias"]},
    ):
        with pytest.raises(ValueError, match=r"gradients: (a|b|layer_norm)\S*: expected .*, got "):
            adamw_step(before, wrong, adamw_start(before), 0.1)
