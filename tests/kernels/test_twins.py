"""Each operation is written twice, in files of the same name; without Triton, the package still imports."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

OPERATIONS = {
    "attention": ["packed_attention"],
    "attention_groups": ["group_attention"],
    "dropout": ["dropout", "dropout_vjp", "random_bits", "philox"],
    "dropped_layer_norm": ["dropped_layer_norm", "dropped_layer_norm_vjp"],
    "embedding": ["embed", "embed_vjp"],
    "first_token": ["first_token_attention", "first_token_attention_vjp"],
    "gelu": ["bias_gelu", "bias_gelu_vjp"],
    "layer_norm": ["add_layer_norm", "add_layer_norm_vjp"],
    "linear_cross_entropy": ["linear_cross_entropy", "linear_cross_entropy_vjp"],
    "padding": ["token_indices", "cu_seqlens", "unpad", "pad"],
}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in OPERATIONS.items() for name in names])
def test_twins_have_the_same_name_and_the_same_arguments_in_the_same_order(file: str, name: str) -> None:
    twins = [getattr(import_module(f"ernie_m.{room}.{file}"), name) for room in ("reference", "kernels")]
    plain, fast = (list(inspect.signature(twin).parameters) for twin in twins)
    assert fast[: len(plain)] == plain
    # Extra arguments of a kernel have defaults, so any call of the reference is a call of the kernel too.
    extra = list(inspect.signature(twins[1]).parameters.values())[len(plain) :]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extra)


def test_without_triton_the_package_imports_and_uses_plain_torch() -> None:
    program = """
import sys
sys.modules["triton"] = None  # importing it fails
import torch
from ernie_m import kernels, reference
assert not kernels.runtime.dispatch.HAS_TRITON
x, bias = torch.randn(3, 8), torch.randn(8)
expected = reference.bias_gelu(x.double().numpy(), bias.double().numpy())
assert abs(kernels.bias_gelu(x, bias).numpy() - expected).max() < 1e-6
model = reference.ErnieMModel.from_config(
    reference.ErnieMConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
)
ids = [[3, 4, 5, 1], [6, 7, 1, 1]]
with torch.no_grad():
    got = kernels.ErnieMModel.from_reference(model).eval()(torch.tensor(ids)).last_hidden_state
assert abs(got.numpy() - model(ids).last_hidden_state).max() < 1e-5
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
