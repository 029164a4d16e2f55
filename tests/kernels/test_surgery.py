"""Models that are changed: pruned heads, another vocabulary, other word vectors; against the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rounding import MODEL_BOUND
from torch_models import CLASSES, pair

BATCH = {"input_ids": np.array([[0, 5, 9, 2], [0, 7, 1, 1]])}
CHOICES = {"input_ids": BATCH["input_ids"][None]}


def agree(model: Any, twin: Any) -> None:
    batch = CHOICES if "Choice" in type(model).__name__ else BATCH
    ours = model(**{name: torch.tensor(x) for name, x in batch.items()})
    for key, x in twin(**batch).items():
        own = ours[key].detach().numpy()
        # A resized vocabulary has other logits too: those that both have.
        shared = min(own.shape[-1], x.shape[-1]) if "Masked" in type(model).__name__ else x.shape[-1]
        np.testing.assert_allclose(own[..., :shared], x[..., :shared], rtol=0, atol=MODEL_BOUND, err_msg=key)


@pytest.mark.parametrize("cls", CLASSES)
def test_prune_heads_equals_the_references(cls: Any) -> None:
    """In steps too; what does not need a gradient still does not."""
    twin, model = pair(cls, hidden_size=24, num_attention_heads=3)
    model.requires_grad_(False)
    for heads in ({0: [1]}, {1: [0]}, {0: [1, 0], 1: []}):
        twin = twin.prune_heads(heads)
        model.prune_heads(heads)
        agree(model, twin)
    assert model.config == twin.config == getattr(model, "ernie_m", model).config
    found = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert found == {name: x.shape for name, x in twin.state_dict().items()}
    assert not any(x.requires_grad for x in model.parameters())
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("size", "multiple", "rows"), [(10, None, 10), (60, None, 60), (60, 16, 64), (None, 64, 64)])
def test_resize_token_embeddings_cuts_or_adds_rows(cls: Any, size: int | None, multiple: int | None, rows: int) -> None:
    twin, model = pair(cls)
    before = model.get_input_embeddings().weight.clone()
    table = model.resize_token_embeddings(size, multiple)
    assert table is model.get_input_embeddings() and table.num_embeddings == table.weight.shape[0] == rows
    assert model.config.vocab_size == getattr(model, "ernie_m", model).config.vocab_size == rows
    kept = min(rows, len(before))
    assert torch.equal(table.weight[:kept], before[:kept]) and bool(table.weight[kept:].any(dim=1).all())
    agree(model, twin)


def test_resize_token_embeddings_without_a_size_changes_nothing() -> None:
    model = pair()[1]
    table, weight = model.get_input_embeddings(), model.get_input_embeddings().weight
    assert model.resize_token_embeddings() is table and model.get_input_embeddings().weight is weight


@pytest.mark.parametrize("given", [(0, None), (-1, None), (True, None), (2.0, None), (None, 0)])
def test_resize_token_embeddings_rejects_what_is_no_size(given: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="expected an integer of at least 1, got"):
        pair()[1].resize_token_embeddings(*given)


def test_resize_token_embeddings_of_a_table_that_was_wrapped() -> None:
    model = pair()[1]
    model.set_input_embeddings(torch.nn.Sequential(model.get_input_embeddings()))
    with pytest.raises(TypeError, match="word_embeddings: expected torch's Embedding, got Sequential: unwrap"):
        model.resize_token_embeddings(10)


def test_set_input_embeddings_sets_the_size_of_the_vocabulary() -> None:
    model, E = pair()[1], pair()[1].config.hidden_size
    table = torch.nn.Embedding(7, E)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table and model.config.vocab_size == 7
    with pytest.raises(ValueError, match=f"value: expected word vectors of {E} numbers, got Embedding\\(7, {E + 1}\\)"):
        model.set_input_embeddings(torch.nn.Embedding(7, E + 1))
