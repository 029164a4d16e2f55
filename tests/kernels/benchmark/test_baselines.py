"""The baselines compute the same as the reference; otherwise their times would mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SMALL, random_model

import ernie_m.reference as reference
from ernie_m import kernels
from ernie_m.kernels.benchmark.baselines import PackedEncoder, PaddedEncoder, transformers_model

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model() -> reference.ErnieMModel:
    return random_model(hidden_size=32, num_attention_heads=2)


@pytest.fixture(scope="module")
def torch_model(model: reference.ErnieMModel) -> kernels.ErnieMModel:
    return kernels.ErnieMModel.from_reference(model, dtype=torch.float64).requires_grad_(False)


def ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, SMALL["vocab_size"], MASK.shape, generator=generator)


@pytest.mark.parametrize("attend", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [True, False])
def test_padded_encoders_equal_the_reference(
    attend: str, padded: bool, model: reference.ErnieMModel, torch_model: kernels.ErnieMModel
) -> None:
    """Seen red: no scale, q and k exchanged with v, an inverted mask, a missing residual."""
    mask = MASK if padded else np.ones_like(MASK)
    expected = model(ids().numpy(), attention_mask=mask).last_hidden_state
    got = PaddedEncoder(torch_model, attend)(ids(), torch.from_numpy(mask) if padded else None).numpy()
    np.testing.assert_allclose(got[mask == 1], expected[mask == 1], rtol=0, atol=1e-10)


def test_packed_encoders_equal_the_reference(
    model: reference.ErnieMModel, torch_model: kernels.ErnieMModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own packed attention needs a GPU: ours replaces it here, so that everything around it is tested."""
    from torch.nn.attention import varlen

    def on_a_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, *rest: object) -> torch.Tensor:
        context = kernels.packed_attention(torch.stack([q, k, v], dim=1), cu)
        assert isinstance(context, torch.Tensor)
        return context

    monkeypatch.setattr(varlen, "varlen_attn", on_a_cpu)
    valid = torch.from_numpy(MASK == 1)
    positions = torch.arange(MASK.shape[1]).expand_as(valid)[valid]
    cu = kernels.cu_seqlens(valid)
    expected = model(ids().numpy(), attention_mask=MASK).last_hidden_state
    got = PackedEncoder(torch_model)(ids()[valid], positions, cu, 5).numpy()
    np.testing.assert_allclose(got, expected[MASK == 1], rtol=0, atol=1e-10)


def test_baselines_share_the_weights(torch_model: kernels.ErnieMModel) -> None:
    own = {x.untyped_storage().data_ptr() for x in torch_model.parameters()}
    for baseline in (PaddedEncoder(torch_model, "eager"), PackedEncoder(torch_model)):
        # But for the product that joins queries, keys and values.
        shared = [x for name, x in baseline.named_parameters() if ".qkv." not in name]
        assert {x.untyped_storage().data_ptr() for x in shared} <= own


def test_transformers_model_has_the_same_weights(
    model: reference.ErnieMModel, torch_model: kernels.ErnieMModel
) -> None:
    pytest.importorskip("transformers", reason="transformers 4.40.2 cannot be installed on Python 3.13")
    expected = model(ids().numpy(), attention_mask=MASK).last_hidden_state
    with torch.inference_mode():
        got = transformers_model(torch_model)(ids(), attention_mask=torch.from_numpy(MASK)).last_hidden_state.numpy()
    np.testing.assert_allclose(got[MASK == 1], expected[MASK == 1], rtol=0, atol=1e-5)
