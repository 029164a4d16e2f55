"""Faults that kernels have had, planted in functions that are otherwise right: each must be caught."""

from __future__ import annotations

import functools
from typing import Any

import planted
import pytest

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.report import Failure

BFLOAT16, HALF, ALL = ("bfloat16",), ("float16", "bfloat16"), ("float32", "float16", "bfloat16")
EXAMPLES = 15

# name -> operation, planted fault, and the dtypes in which it must be caught.
FAULTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "a key dropped at the tail": ("packed_attention", {"drop_tail": True}, ALL),
    "scale off by 0.3 %": ("packed_attention", {"scale": 1.003}, ALL),
    "scale off by 0.3 % in one head": ("attention_head", {"scale": 1.003}, ALL),
    "scale off by -0.3 %": ("packed_attention", {"scale": 0.997}, ALL),
    "truncating stores in attention": ("packed_attention", {"truncated": True}, BFLOAT16),
    "truncating stores in gelu": ("gelu", {"truncated": True}, BFLOAT16),
    "truncating stores in bias_gelu": ("bias_gelu", {"truncated": True}, BFLOAT16),
    "truncating stores in softmax": ("softmax", {"truncated": True}, BFLOAT16),
    "truncating stores in layer_norm": ("layer_norm", {"truncated": True}, BFLOAT16),
    "truncating stores in embedding": ("embed", {"truncated": True}, BFLOAT16),
    "sums accumulated in the low dtype": ("packed_attention", {"accumulate_low": True}, HALF),
    "a token of the next sequence read": ("packed_attention", {"read_neighbour": True}, ALL),
    "a token of the next sequence read by the first token": ("first_token_attention", {"read_neighbour": True}, ALL),
    "the first token's scale off by 0.3 %": ("first_token_attention", {"scale": 1.003}, ALL),
    "tanh for erf": ("gelu", {"form": "tanh"}, ALL),
    "tanh for erf, with a bias": ("bias_gelu", {"form": "tanh"}, ALL),
    "x sigmoid(1.702 x)": ("gelu", {"form": "sigmoid"}, ALL),
    "bias not read by gelu": ("bias_gelu", {"read_bias": False}, ALL),
    "no maximum subtracted": ("softmax", {"shift": False}, ALL),
    "variance over E - 1": ("layer_norm", {"unbiased": True}, ALL),
    "variance over E - 1, fused": ("add_layer_norm", {"unbiased": True}, ALL),
    "eps ten times too large": ("layer_norm", {"eps_factor": 10.0}, ALL),
    "eps of 0": ("add_layer_norm", {"eps_factor": 0.0}, ALL),
    "mean(x²) - mean(x)²": ("layer_norm", {"one_pass": True}, ("float32",)),
    "residual summed in the low dtype": ("add_layer_norm", {"rounded_sum": True}, HALF),
    "one column 2 % off": ("layer_norm", {"wrong_column": True}, ALL),
    "one column 2 % off, fused": ("add_layer_norm", {"wrong_column": True}, ALL),
    "bias not read by add_layer_norm": ("add_layer_norm", {"read_bias": False}, ALL),
    "gamma and beta not read": ("layer_norm", {"read_affine": False}, ALL),
    "gamma and beta not read, fused": ("add_layer_norm", {"read_affine": False}, ALL),
    "gamma and beta not read by embed": ("embed", {"read_affine": False}, ALL),
    "positions one too low": ("embed", {"offset": 1}, ALL),
}


pytestmark = pytest.mark.usefixtures("no_shrinking")


@pytest.mark.parametrize("op", planted.KERNELS)
def test_check_passes_right_functions(op: str) -> None:
    assert check(planted.KERNELS[op], op, examples=EXAMPLES)


@pytest.mark.parametrize("name", FAULTS)
def test_check_catches_each_planted_fault(name: str) -> None:
    op, fault, dtypes = FAULTS[name]
    wrong = functools.partial(planted.KERNELS[op], **fault)
    for dtype in dtypes:
        with pytest.raises(Failure):
            check(wrong, op, dtypes=[dtype], examples=EXAMPLES)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("scale off by 0.3 %", "rms"),
        ("truncating stores in gelu", "signed_mean"),
        ("sums accumulated in the low dtype", "rms"),
        ("tanh for erf", "componentwise"),
        ("one column 2 % off", "componentwise"),
    ],
)
def test_each_bound_catches_its_fault(name: str, bound: str) -> None:
    """On the fixed data, in bfloat16."""
    from ernie_m.kernels.checking.guards import as_float64, place
    from ernie_m.kernels.checking.operations import fixed_case
    from ernie_m.kernels.checking.verdicts import judge

    op, fault, _ = FAULTS[name]
    case = fixed_case(op, "bfloat16")
    arguments = [
        place(n, x, "torch", "bfloat16", "cpu").inner if hasattr(x, "shape") else x for n, x in case.inputs.items()
    ]
    verdicts = judge(as_float64(planted.KERNELS[op](*arguments, **fault)), case.expected, statistical=True)
    assert bound in [verdict.bound for verdict in verdicts if not verdict.holds]
