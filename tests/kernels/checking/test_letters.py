"""Inputs declared by letters: sizes agree, are those that were asked for, and numbers are of the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.kernels.checking.drawing import ROWS, SIZES
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.kernels.checking.letters import Booleans, Made, drawn

INPUTS = drawn(
    x="N E",
    gamma="E",
    keep=Booleans("N E"),
    ids=Made("N V", lambda rng, N, V: rng.integers(0, V, N)),
    table="V E",
    angles=Made("E", lambda rng, E: rng.uniform(-1, 1, E)),
    p=(0.1, 0.5),
)


@given(data=st.data(), name=st.sampled_from(list(FORMATS)))
def test_sizes_agree_and_numbers_are_of_the_format(data: Any, name: str) -> None:
    format = FORMATS[name]
    inputs = INPUTS(data.draw, format)
    assert list(inputs) == ["x", "gamma", "keep", "ids", "table", "angles", "p"]
    (N, E), V = inputs["x"].shape, inputs["table"].shape[0]
    assert N in ROWS and V in SIZES and E in SIZES
    assert inputs["gamma"].shape == inputs["angles"].shape == (E,)
    assert inputs["keep"].shape == (N, E) and inputs["keep"].dtype == bool
    assert inputs["ids"].shape == (N,) and inputs["ids"].max() < V
    assert inputs["p"] in (0.1, 0.5)
    for x in ("x", "gamma", "table", "angles"):
        np.testing.assert_array_equal(inputs[x], format.round(inputs[x]))


@given(data=st.data())
def test_sizes_of_ones_own_replace_the_others(data: Any) -> None:
    inputs = INPUTS.sized(E=(768, 4096), N=5).sized(N=3)(data.draw, FORMATS["float32"])
    assert inputs["x"].shape[0] == 3 and inputs["x"].shape[1] in (768, 4096)


def test_fixed_inputs_are_large_or_the_largest_that_were_asked_for() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    assert drawn(x="N E").fixed(normal)["x"].shape == (16, 768)
    assert drawn(x="N").fixed(normal)["x"].shape == (8192,)
    assert drawn(x="T H D").sized(D=(2, 64), H=12).fixed(normal)["x"].shape == (16, 12, 64)
    assert INPUTS.fixed(normal)["p"] == 0.1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"D": 3}, "sizes: expected any of N, E, V, got 'D'"),
        ({"E": (1, 0)}, r"sizes: E: expected integers of at least 1, got \(1, 0\)"),
        ({"E": ()}, r"sizes: E: expected integers of at least 1, got \(\)"),
        ({"E": 2.0}, "sizes: E: expected integers of at least 1, got 2.0"),
        ({"E": True}, "sizes: E: expected integers of at least 1, got True"),
        ({"E": "64"}, "sizes: E: expected integers of at least 1, got '64'"),
    ],
)
def test_sizes_are_validated(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        INPUTS.sized(**sizes)


@pytest.mark.parametrize("spec", ["", (), 3, None, Booleans(""), {"E": 1}])
def test_a_specification_that_is_none_is_refused(spec: Any) -> None:
    with pytest.raises(
        ValueError, match="x: expected letters such as 'N E', a tuple of numbers, Booleans or Made, got"
    ):
        drawn(x=spec)
