"""Queries, keys and values: one product on a GPU, three where one of the layers is no longer plain."""

from __future__ import annotations

import pytest
import torch
from rounding import MODEL_BOUND
from torch_models import pair

from ernie_m.kernels.self_attention import PROJECTIONS


class Claimed(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


X = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("first", "last"), [(0, 3), (0, 1), (1, 3)])
def test_project_on_a_gpu_is_one_product_of_the_same_numbers(first: int, last: int) -> None:
    attention = pair(hidden_size=24, num_attention_heads=3)[1].encoder.layers[0].self_attn.self_attn
    with torch.no_grad():
        three, one = (attention.project(x, None, first, last) for x in (X, X.as_subclass(Claimed)))
    assert one.shape == (2, 5, last - first, 3, 8)
    torch.testing.assert_close(one.as_subclass(torch.Tensor), three, rtol=0, atol=MODEL_BOUND)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_project_on_a_gpu_calls_a_layer_that_was_hooked(name: str) -> None:
    attention = pair(hidden_size=24, num_attention_heads=3)[1].encoder.layers[0].self_attn.self_attn
    getattr(attention, name).register_forward_hook(lambda module, inputs, output: output + 1)
    with torch.no_grad():
        found = attention.project(X.as_subclass(Claimed), None).as_subclass(torch.Tensor)
        expected = attention.project(X, None)
        for i, projection in enumerate(PROJECTIONS):
            plain = torch.nn.functional.linear(X, *getattr(attention, projection).parameters()).unflatten(-1, (3, 8))
            torch.testing.assert_close(found[:, :, i], plain + (projection == name), rtol=0, atol=MODEL_BOUND)
    torch.testing.assert_close(found, expected, rtol=0, atol=MODEL_BOUND)
