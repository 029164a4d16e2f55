"""Traces of transformers' models and ours: the same names and values; a planted difference is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PUBLISHED, SMALL, random_model

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


@pytest.mark.parametrize("cls", PUBLISHED)
def test_trace_names_and_values_equal_transformers(cls: Any, tmp_path: Path) -> None:
    """Both traces have the same names, except values that are not module outputs in transformers."""
    ours, theirs, mask = both(cls, tmp_path / "checkpoint")
    found = compare(ours, theirs, mask)
    assert found and compare(ours, theirs, mask, tolerance=1e-5), str(found)
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
    assert compare(ours, theirs, mask).name == name


def deep(directory: Path, seed: int, layers: int, dtype: Any = torch.float32) -> tuple[Any, Any, np.ndarray, Any]:
    """Transformers' model with random weights, a function that runs it, the mask, and our float64 trace."""
    model = random_model(seed=seed, dtype=np.float32, num_hidden_layers=layers)
    model.save_pretrained(directory)
    hf = transformers.ErnieMModel.from_pretrained(directory).to(dtype).eval()
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = np.random.default_rng(seed).integers(2, 50, mask.shape)
    with trace() as ours:
        model.astype(np.float64)(ids, attention_mask=mask)

    def run() -> None:
        with torch.no_grad():
            hf(torch.tensor(ids), attention_mask=torch.tensor(mask))

    return hf, run, mask, ours


@pytest.mark.parametrize("layers", [1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("force", [False, True])
def test_compare_finds_nothing_in_transformers(layers: int, dtype: Any, force: bool, tmp_path: Path) -> None:
    """Forced, too, where every module gets our value. Transformers has no attention mask in half precision."""
    for seed in range(3):
        hf, run, mask, ours = deep(tmp_path / str(seed), seed, layers, dtype)
        with trace_torch(hf, force=ours if force else None) as theirs:
            run()
        found = compare(ours, theirs, mask)
        assert found, found
        assert theirs.forced == (set(found.errors) if force else set())


def eps(layer: Any) -> None:
    layer.norm1.eps = 1e-12


def scaled(layer: Any) -> None:
    layer.norm2.weight.data.mul_(1.003)


def tanh_gelu(layer: Any) -> None:
    layer.activation = torch.nn.GELU(approximate="tanh")


def without_bias(layer: Any) -> None:
    layer.linear1.bias = None


def swapped(layer: Any) -> None:
    """The first two heads: in transformers, context is no module's output, so `out_proj` shows it."""
    weight = layer.self_attn.out_proj.weight.data
    weight[:, :16] = weight[:, :16].roll(8, dims=1)


FAULTS = [
    (eps, "norm1"),
    (scaled, "norm2"),
    (tanh_gelu, "activation"),
    (without_bias, "linear1"),
    (swapped, "self_attn.out_proj"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS)
@pytest.mark.parametrize("force", [False, True])
def test_compare_finds_faults_in_transformers(fault: Any, name: str, force: bool, tmp_path: Path) -> None:
    """In layer 7 of 12; forced, every other entry is right too."""
    hf, run, mask, ours = deep(tmp_path, 0, 12)
    fault(hf.encoder.layers[7])
    with trace_torch(hf, force=ours if force else None) as theirs:
        run()
    name = f"encoder.layers.7.{name}"
    found = compare(ours, theirs, mask)
    assert found.name == name and found.ratio > 1, found
    if force:
        del theirs.entries[name]
        assert compare(ours, theirs, mask)


def test_trace_torch_forces_what_fits(tmp_path: Path) -> None:
    """Every output that is returned is ours; what does not fit is named."""
    hf, run, _, ours = deep(tmp_path, 0, 2)
    with trace_torch(hf, force=ours), torch.no_grad():
        out = hf(torch.full((2, 5), 7), attention_mask=torch.ones(2, 5, dtype=torch.int64))
    np.testing.assert_allclose(out.pooler_output.numpy(), ours["pooler.activation"].value, rtol=1e-6)
    with (
        pytest.raises(ValueError, match=r"force: .*expected the shape \(1, 4, 24\) of the module's output, got \(2, 5"),
        trace_torch(hf, force=ours),
    ):
        hf(torch.full((1, 4), 7))
    with (
        pytest.raises(ValueError, match=r"force: expected names such as 'embeddings\.word_embeddings', got"),
        trace_torch(hf, force={"x": ours["pooler.activation"]}),
    ):
        run()
    assert not any(module._forward_hooks for module in hf.modules())


def test_trace_torch_leaves_no_hooks_behind() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Linear(2, 2)).to(torch.bfloat16)
    with pytest.raises(RuntimeError), trace_torch(model):
        model(torch.zeros(1, 3))
    with trace_torch(model) as t:
        model(torch.ones(1, 2, dtype=torch.bfloat16))
    assert list(t) == ["0", "2"] and t["0"].padded().dtype == np.float32
    assert not any(module._forward_hooks for module in model.modules())


class Once(torch.nn.Embedding):
    """Positions that are embedded once for all rows, as in most ports."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids[0])


@pytest.mark.parametrize("force", [False, True])
def test_compare_accepts_positions_embedded_once(force: bool, tmp_path: Path) -> None:
    """Right and, with another position's row, wrong."""
    hf, run, mask, ours = deep(tmp_path, 0, 2)
    name = "embeddings.position_embeddings"
    hf.embeddings.position_embeddings.__class__ = Once
    for right in (True, False):
        with trace_torch(hf, force=ours if force else None) as theirs:
            run()
        assert theirs[name].value.shape == (5, 24) and name not in theirs.forced
        assert compare(ours, theirs, mask).name == (None if right else name)
        hf.embeddings.position_embeddings.weight.data[2:] = hf.embeddings.position_embeddings.weight.data[2:].flip(0)
