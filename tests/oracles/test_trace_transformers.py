"""Traces of transformers' models and ours: the same names and values; a planted difference is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, SMALL

import ernie_m.reference as ernie
from ernie_m.reference import compare, trace, trace_torch

torch = pytest.importorskip("torch", reason="torch is not installed: there is no torch model to trace")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)


def both(cls: Any, directory: Path, plant: str | None = None) -> tuple[Any, Any, np.ndarray]:
    """Traces of the same checkpoint on both sides; `plant` names a weight of transformers to perturb."""
    cls.from_config(ernie.ErnieMConfig(**SMALL), seed=3).save_pretrained(directory)
    hf = getattr(transformers, cls.__name__).from_pretrained(directory).eval()
    if plant is not None:
        with torch.no_grad():
            # Not a constant: the inputs of a layer sum to about 0, which would hide it.
            weight = hf.get_parameter(plant)
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = np.random.default_rng(0).integers(2, 50, mask.shape)
    shape = (1, *mask.shape) if "Choice" in cls.__name__ else mask.shape
    with trace() as ours:
        cls.from_pretrained(directory)(ids.reshape(shape), attention_mask=mask.reshape(shape))
    with trace_torch(hf) as theirs, torch.no_grad():
        hf(torch.tensor(ids.reshape(shape)), attention_mask=torch.tensor(mask.reshape(shape)))
    return ours, theirs, mask


@pytest.mark.parametrize("cls", CLASSES)
def test_trace_names_and_values_equal_transformers(cls: Any, tmp_path: Path) -> None:
    """Both traces have the same names, except values that are not module outputs in transformers."""
    ours, theirs, mask = both(cls, tmp_path / "checkpoint")
    found = compare(ours, theirs, mask, tolerance=1e-5)
    assert found, str(found)
    unused = {"ernie_m.pooler.dense", "ernie_m.pooler.activation"} if "Extraction" in cls.__name__ else set()
    assert set(found.not_compared) == {*theirs.skipped, *unused}
    assert any(name.endswith("self_attn.self_attn.probs") for name in theirs.skipped)


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        ("encoder.layers.1.self_attn.self_attn.v_proj.weight", "encoder.layers.1.self_attn.self_attn.v_proj"),
        ("encoder.layers.0.norm1.bias", "encoder.layers.0.norm1"),
        ("embeddings.position_embeddings.weight", "embeddings.position_embeddings"),
        ("pooler.dense.bias", "pooler.dense"),
    ],
)
def test_trace_finds_a_planted_difference(weight: str, name: str, tmp_path: Path) -> None:
    ours, theirs, mask = both(ernie.ErnieMModel, tmp_path / "checkpoint", weight)
    assert compare(ours, theirs, mask, tolerance=1e-5).name == name


def test_trace_torch_leaves_no_hooks_behind() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Linear(2, 2)).to(torch.bfloat16)
    with pytest.raises(RuntimeError), trace_torch(model):
        model(torch.zeros(1, 3))
    with trace_torch(model) as t:
        model(torch.ones(1, 2, dtype=torch.bfloat16))
    assert list(t) == ["0", "2"] and t["0"].padded().dtype == np.float32
    assert not any(module._forward_hooks for module in model.modules())
