"""The activations against transformers 4.40.2 and torch, on the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.activations import ACTIVATIONS, activation
from ernie_m.reference.erf import erf

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare the activations with")
theirs = pytest.importorskip(
    "transformers.activations", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def test_activation_names_are_those_of_transformers() -> None:
    assert sorted(ACTIVATIONS) == sorted(theirs.ACT2CLS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 0.1, 1.0, 5.0, 1e3]))
def test_activation_equals_transformers(name: str, dtype: Any, seed: int, scale: float) -> None:
    """Within 16 u of the largest of 1, |x| and |f(x)|: both sides round a few times, and slopes are at most 1.5.

    transformers' gelu_new and gelu_fast cube x first, and tanh propagates that error: 16 u covers it.
    """
    x = np.random.default_rng(seed).normal(0, scale, 257).astype(dtype)
    expected = theirs.ACT2FN[name](torch.from_numpy(x.copy())).numpy()
    bound = 16 * UNIT[dtype] * np.maximum(np.maximum(1.0, np.abs(x)), np.abs(expected))
    excess = np.abs(activation(name)(x).astype(np.float64) - expected) - bound
    worst = int(excess.argmax())
    assert excess[worst] <= 0, (x[worst], activation(name)(x)[worst], expected[worst])


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-300, 1e-3, 1.0, 5.0]))
def test_erf_equals_torch(seed: int, scale: float) -> None:
    # 3 units in the last place of our own (tests/reference/test_erf.py), and 1 of torch.
    x = np.random.default_rng(seed).normal(0, scale, 257)
    expected = torch.erf(torch.from_numpy(x)).numpy()
    assert np.all(np.abs(erf(x) - expected) <= 4 * np.spacing(np.abs(expected)))
