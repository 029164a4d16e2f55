"""Activations in plain torch: values, limits, tails and derivatives, against the definitions in 60 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch

import ernie_m.reference.activations as reference
from ernie_m.kernels.activations import ACTIVATIONS, activate

WIDE = (torch.float32, torch.float64)
SPECIALS = (math.inf, -math.inf, math.nan, 0.0, -0.0, 1e30, -1e30, 1e4, -1e4, 200.0, -200.0)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def _tanh_gelu(scale: Any) -> Callable[[Any], Any]:
    # The coefficients are the float64 numbers that the code holds.
    return lambda x: x * _sigmoid(2 * scale * (x + mp.mpf(0.044715) * x**3))


def _laplace(x: Any) -> Any:
    return mp.erfc((mp.mpf(0.707107) - x) / (mp.mpf(0.282095) * mp.sqrt(2))) / 2


# x times a gate that rises from 0 to 1.
GATED: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_fast": _tanh_gelu(mp.mpf(0.7978845608)),
    "gelu_new": _tanh_gelu(mp.sqrt(2 / mp.pi)),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "quick_gelu": lambda x: x * _sigmoid(mp.mpf(1.702) * x),
    "silu": lambda x: x * _sigmoid(x),
}
# The same functions less their limit on one side, exact where they are within rounding of it.
AT_THE_ENDS: dict[tuple[str, bool], Callable[[Any], Any]] = {
    ("laplace", True): lambda x: -mp.erfc((x - mp.mpf(0.707107)) / (mp.mpf(0.282095) * mp.sqrt(2))) / 2,
    ("sigmoid", True): lambda x: -_sigmoid(-x),
    ("tanh", True): lambda x: -2 * _sigmoid(-2 * x),
    ("tanh", False): lambda x: 2 * _sigmoid(2 * x),
}
SMOOTH = GATED | {"laplace": _laplace, "sigmoid": _sigmoid, "tanh": mp.tanh}
ALIASES = {"gelu_accurate": "gelu_new", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
KINKED = ("gelu_10", "leaky_relu", "linear", "relu", "relu2", "relu6")


def points(dtype: torch.dtype) -> torch.Tensor:
    """From deep in one tail to deep in the other, and close to 0."""
    ends = np.linspace(-80, 80, 161) + 0.137
    close = np.concatenate([np.linspace(-13, 13, 201) + 0.031, [1e-3, -1e-3, 1e-20, -1e-20]])
    return torch.tensor(np.concatenate([ends, close])).to(dtype)


def differentiated(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = activate(name, x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def test_every_activation_is_tested() -> None:
    assert set(ACTIVATIONS) == {*SMOOTH, *ALIASES, *KINKED}
    assert all(ACTIVATIONS[alias] is ACTIVATIONS[name] for alias, name in ALIASES.items())


@pytest.mark.parametrize("dtype", [*WIDE, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_specials_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    """Seen red: torch's silu, mish, gelu, and x·sigmoid(1.702 x), which are nan at -inf."""
    x = torch.tensor(SPECIALS).to(dtype)
    with np.errstate(over="ignore"):
        wide = x.double().numpy() if dtype == torch.float64 else x.float().numpy()
        exact = torch.from_numpy(reference.ACTIVATIONS[name](wide)).to(dtype)
    for y in (activate(name, x), differentiated(name, x)[0]):
        # The reference's ½ (1 + erf) has lost laplace's lower tail.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y, exact, rtol=4 * eps, atol=eps * (name == "laplace"), equal_nan=True)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_values_and_derivatives_keep_their_digits_in_the_tails(name: str, dtype: torch.dtype) -> None:
    """An argument off by 8 units, and 16 (32) more units of the result; of both terms that make up a derivative.

    Seen red: torch's gelu, tanh form and laplace below -6; the derivatives of sigmoid and tanh, from their results,
    above 17; ½(1 + erf).
    """
    x = points(dtype)
    y, slope = differentiated(name, x)
    # float32 flushes an intermediate below 2⁻¹²⁶ to 0, which the argument multiplies.
    u, flushed = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    with mp.workdps(60):
        f = SMOOTH[name]
        for z, got, got_slope in zip(x.tolist(), y.tolist(), slope.tolist(), strict=True):
            shifted = AT_THE_ENDS.get((name, z > 0), f)
            value, first, second = f(mp.mpf(z)), mp.diff(shifted, z), mp.diff(shifted, z, 2)
            assert abs(got - value) <= u * (16 * abs(value) + 8 * abs(z * first)) + flushed * (1 + abs(z)), z
            gate = abs(value / z) if name in GATED else 0
            limit = u * (32 * (abs(first) + gate) + 8 * abs(z * second)) + flushed * (1 + z * z) ** 2
            assert abs(got_slope - first) <= limit, z


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_derivatives_have_their_limits(name: str, dtype: torch.dtype) -> None:
    """Seen red: autograd of x·gate, nan at both infinities; of max(z, 0) − |z| Φ(−|z|), 0 at 0."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([math.inf, largest, -largest, -math.inf, math.nan, 0.0], dtype=dtype)
    *ends, nan, middle = differentiated(name, x)[1].tolist()
    assert ends == ([1.0, 1.0, 0.0, 0.0] if name in GATED else [0.0] * 4)
    assert math.isnan(nan)
    with mp.workdps(60):
        assert middle == pytest.approx(float(mp.diff(SMOOTH[name], 0)), rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", KINKED)
def test_kinked_activations_have_finite_derivatives_at_infinity(name: str) -> None:
    slopes = differentiated(name, torch.tensor([math.inf, -math.inf, 5.0, -5.0]))[1]
    expected = {
        "gelu_10": [0.0, 0.0, 1.0],
        "leaky_relu": [1.0, 0.01, 1.0],
        "linear": [1.0, 1.0, 1.0],
        "relu": [1.0, 0.0, 1.0],
        "relu2": [math.inf, 0.0, 10.0],
        "relu6": [0.0, 0.0, 1.0],
    }[name]
    assert slopes[:3].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_activations_can_be_differentiated_twice_and_forwards(name: str) -> None:
    """At 0 too. Seen red: a derivative written with |z|, whose slope at 0 is 0."""
    x = torch.tensor([-3.0, -0.5, 0.0, 0.7, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activate(name, x), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: activate(name, x), x)
    along = torch.func.vmap(torch.func.grad(lambda x: activate(name, x)))(x.detach())
    torch.testing.assert_close(along, differentiated(name, x.detach())[1])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_compiled_activations_are_one_graph_and_equal(name: str) -> None:
    torch._dynamo.reset()
    x = torch.cat([points(torch.float32), torch.tensor(SPECIALS)])
    compiled = torch.compile(lambda x: activate(name, x), fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    y.sum().backward()
    expected, slope = differentiated(name, x)
    torch.testing.assert_close(y.detach(), expected, equal_nan=True)
    torch.testing.assert_close(leaf.grad, slope, equal_nan=True)


def test_activations_keep_only_their_argument_for_the_gradient() -> None:
    """Seen red: autograd of the formula, which keeps every intermediate."""
    kept: list[int] = []
    for name in SMOOTH:
        x = torch.randn(50, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
            activate(name, x)
        assert kept == [x.data_ptr()], name
        kept.clear()


def test_activate_error_messages() -> None:
    for name in ("gelus", None, ["gelu"]):
        with pytest.raises(ValueError, match=r"activation: expected a callable or one of gelu, .* got"):
            activate(name, torch.zeros(2))
