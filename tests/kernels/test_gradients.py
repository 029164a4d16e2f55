"""Gradients of the torch models: against differences, across paths, and zero for padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import ids_like, masks
from hypothesis import given, settings
from rounding import MODEL_BOUND
from torch_models import CLASSES, IGNORED, pair, tensors

from ernie_m.kernels.model import ErnieMModel

MASK = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
FLAGS = (np.arange(12).reshape(3, 4) % 3 == 0).astype(np.float64)
SPANS = {"start_positions": np.array([1, 2, 0]), "end_positions": np.array([2, 3, 0])}
TARGETS: dict[str, dict[str, Any]] = {
    "ErnieMModel": {},
    "ErnieMForSequenceClassification": {"labels": np.array([0, 1, 1])},
    "ErnieMForMultipleChoice": {"labels": np.array([1])},
    "ErnieMForTokenClassification": {"labels": np.array([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])},
    "ErnieMForQuestionAnswering": SPANS,
    "ErnieMForMaskedLM": {"labels": np.array([[7, -100, 9, 3], [-100, 8, 7, -100], [5, 5, 5, 5]])},
    "ErnieMForInformationExtraction": {"start_positions": FLAGS, "end_positions": FLAGS[::-1].copy()},
}


def batch_of(cls: Any, mask: np.ndarray = MASK) -> dict[str, Any]:
    batch = {"input_ids": ids_like(mask), "attention_mask": mask}
    batch = {key: x[None] for key, x in batch.items()} if "Choice" in cls.__name__ else batch
    return tensors({**batch, **TARGETS[cls.__name__]})


def scalar(output: Any) -> torch.Tensor:
    """The loss; for the bare model, which has none, a sum that weights every number differently."""
    if hasattr(output, "loss"):
        return output.loss
    parts = [output.last_hidden_state, output.pooler_output]
    return sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in parts)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """By parameter; parameters without a gradient are left out."""
    found = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_equal_central_differences(cls: Any) -> None:
    """Central differences of the loss, without autograd and on the fast path, along a random direction of all weights.

    A step of h = 1e-5 leaves an error of h² times the third derivative, and 1e-11 of rounding."""
    model = pair(cls, num_labels=2)[1]
    batch = batch_of(cls)
    scalar(model(**batch)).backward()
    found = gradients(model)
    generator = torch.Generator().manual_seed(0)
    directions = {n: torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in model.named_parameters()}
    h, ends = 1e-5, []
    with torch.no_grad():
        for step in (h, -2 * h):
            for name, x in model.named_parameters():
                x += step * directions[name]
            ends.append(float(scalar(model(**batch))))
    slope = sum(float((directions[name] * x).sum()) for name, x in found.items())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def split(cls: Any, found: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients that are not 0 in exact arithmetic, and those that are: of IGNORED, and of the keys' biases.

    A key's bias adds the same number to all scores of a query.
    """
    names = {*IGNORED.get(cls.__name__, ()), *(name for name in found if name.endswith("k_proj.bias"))}
    return {name: x for name, x in found.items() if name not in names}, {name: found[name] for name in names}


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_reach_every_parameter_that_is_read(cls: Any) -> None:
    """Where the exact gradient is 0, rounding leaves at most MODEL_BOUND of the largest one; elsewhere it is larger.

    Seen red: all values or keys detached, one key detached, the logits of one position detached.
    """
    model = pair(cls, num_labels=2)[1]
    scalar(model(**batch_of(cls))).backward()
    found = gradients(model)
    missing = {name for name, _ in model.named_parameters()} - set(found)
    assert missing == (
        {"ernie_m.pooler.dense.weight", "ernie_m.pooler.dense.bias"} if "Extraction" in str(cls) else set()
    )
    assert all(bool(x.isfinite().all()) for x in found.values())
    other, zero = split(cls, found)
    bound = MODEL_BOUND * max(float(x.abs().max()) for x in found.values())
    assert [name for name, x in other.items() if float(x.abs().max()) <= bound] == []
    assert [name for name, x in zero.items() if float(x.abs().max()) > bound] == []


@settings(max_examples=25)
@given(masks(lengths=(1, 2, 7)))
def test_gradients_of_packed_and_padded_calls_agree(mask: np.ndarray) -> None:
    mask = (np.arange(mask.shape[1]) < mask.sum(axis=1, keepdims=True)).astype(np.int64)
    model, ids, valid = pair()[1], ids_like(mask), mask.astype(bool)
    padded = model(torch.tensor(ids), attention_mask=torch.tensor(mask))
    weights = torch.randn(padded.last_hidden_state.shape, dtype=torch.float64)
    ((padded.last_hidden_state * weights).sum() + padded.pooler_output.sum()).backward()
    first = gradients(model)
    cu = torch.tensor(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]), dtype=torch.int32)
    packed = model.packed(torch.tensor(ids[valid]), cu, mask.shape[1])
    ((packed.last_hidden_state * weights[torch.tensor(valid)]).sum() + packed.pooler_output.sum()).backward()
    second = gradients(model)
    largest = max(float(x.abs().max()) for x in first.values())
    for name, x in first.items():
        torch.testing.assert_close(second[name], x, rtol=0, atol=MODEL_BOUND * largest)


def test_gradients_of_padding_are_zero() -> None:
    """Even where padded vectors are nan; also for tokens that a 3-D mask leaves with nothing to attend to."""
    model = pair()[1]
    vectors = torch.randn(3, 4, 16, dtype=torch.float64)
    vectors[torch.tensor(MASK == 0)] = float("nan")
    pairs = np.eye(4, dtype=bool)[None] & (MASK[:, None, :] == 1)
    for mask in (MASK, pairs):
        x = vectors.clone().requires_grad_()
        out = model(inputs_embeds=x, attention_mask=torch.tensor(mask))
        assert bool(out.last_hidden_state.isfinite().all())
        scalar(out).backward()
        assert x.grad is not None
        assert not x.grad[torch.tensor(MASK == 0)].any() and bool(x.grad[torch.tensor(MASK == 1)].any(dim=-1).all())
        assert all(bool(g.isfinite().all()) for g in gradients(model).values())


def test_gradients_of_the_padding_token_are_zero() -> None:
    """As in transformers, its row is trained in neither table, even if a mask marks it as a token."""
    model = pair(pad_token_id=4)[1]
    scalar(model(torch.tensor([[4, 4, 5]]), attention_mask=torch.ones(1, 3))).backward()
    found = gradients(model)
    assert not found["embeddings.word_embeddings.weight"][4].any()
    assert found["embeddings.word_embeddings.weight"][5].any()
    assert not found["embeddings.position_embeddings.weight"][4].any()
    assert found["embeddings.position_embeddings.weight"][3].any()


def test_gradients_of_inputs_alone() -> None:
    """Frozen weights do not change the input's gradient; if nothing requires a gradient, neither does the output."""
    model = pair()[1]
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    found = []
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        leaf = x.clone().requires_grad_()
        scalar(model(inputs_embeds=leaf)).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0, atol=MODEL_BOUND * float(found[0].abs().max()))
    assert not model(inputs_embeds=x).last_hidden_state.requires_grad


@pytest.mark.parametrize(("cls", "frozen"), [(CLASSES[1], "ernie_m"), (CLASSES[0], "embeddings")])
def test_gradients_of_a_model_that_is_frozen_in_part(cls: Any, frozen: str) -> None:
    """The rest is trained as if nothing were frozen. A frozen encoder takes the fast path; its head is trained."""
    model = pair(cls, dtype=np.float32)[1]
    batch = batch_of(cls)
    scalar(model(**batch)).backward()
    whole = gradients(model)
    getattr(model, frozen).requires_grad_(False)
    scalar(model(**batch)).backward()
    rest = gradients(model)
    assert set(rest) == {name for name in whole if not name.startswith(f"{frozen}.")}
    if frozen == "ernie_m":
        assert set(rest) == {"classifier.weight", "classifier.bias"}
    for name, x in rest.items():
        torch.testing.assert_close(x, whole[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_half_precision_are_finite(dtype: torch.dtype) -> None:
    model = ErnieMModel.from_reference(pair()[0], dtype=dtype)
    out = model(torch.tensor(ids_like(MASK)), attention_mask=torch.tensor(MASK))
    out.last_hidden_state.float().square().mean().backward()
    found = gradients(model)
    assert all(x.dtype == dtype and bool(x.isfinite().all()) for x in found.values())


@pytest.mark.parametrize("cls", CLASSES[:2])
def test_gradients_do_not_depend_on_the_amount_of_padding(cls: Any) -> None:
    """Bitwise, with dropout on: padding is not computed, and dropout does not count it. Seen red: the rectangle."""
    model = pair(cls, num_labels=2)[1].train()
    found = []
    for more in (0, 3):
        batch = batch_of(cls)
        batch |= {name: torch.nn.functional.pad(batch[name], (0, more)) for name in ("input_ids", "attention_mask")}
        torch.manual_seed(0)
        out = model(**batch)
        (out.loss if hasattr(out, "loss") else out.last_hidden_state[:, :4].sin().sum()).backward()
        found.append(gradients(model))
    for name, x in found[0].items():
        assert torch.equal(x, found[1][name]), name


def test_second_derivatives_of_a_model() -> None:
    """The gradient of the square of the gradient, along a direction of the inputs, against differences."""
    model = pair()[1].requires_grad_(False)
    x, along = (torch.randn(2, 3, 16, dtype=torch.float64) for _ in range(2))

    def slope(x: torch.Tensor, create_graph: bool) -> torch.Tensor:
        leaf = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(scalar(model(inputs_embeds=leaf)), leaf, create_graph=create_graph)[0]

    leaf, h = x.clone().requires_grad_(), 1e-5
    exact = torch.autograd.grad(slope(leaf, True).square().sum(), leaf)[0]
    ends = [slope(x + step * along, False).square().sum() for step in (h, -h)]
    assert float((exact * along).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-5)
