"""The torch models against transformers 4.40.2: state_dicts in both directions, outputs, gradients, dropout."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: there are no torch models")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)

from rounding import MODEL_BOUND, U32  # noqa: E402
from torch_models import BY_NAME, PUBLISHED, tensors, way  # noqa: E402

from ernie_m.kernels.dropout import draw_seeds, drop_probabilities, dropout  # noqa: E402
from ernie_m.reference.config import ErnieMConfig  # noqa: E402

NAMES = tuple(cls.__name__ for cls in PUBLISHED)


def pair(name: str, seed: int, dtype: Any = torch.float64, **fields: Any) -> tuple[Any, Any]:
    """The class `name` in transformers and here, with the same weights, all of them random."""
    hf = getattr(transformers, name)(transformers.ErnieMConfig(**fields)).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in hf.named_parameters():
            centre = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            width = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(centre + width * drawn)
    model = BY_NAME[name](ErnieMConfig.from_dict(hf.config.to_dict()), dtype=dtype)
    model.load_state_dict(hf.state_dict(), strict=True)
    return hf, model.eval()


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
}


def batch_of(name: str, rng: np.random.Generator, B: int, S: int) -> dict[str, Any]:
    """Rows without padding, and targets that all count."""
    ids = rng.integers(2, 40, (B, S))
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones((B, S), np.int64)}
    if "Sequence" in name:
        batch["labels"] = rng.integers(0, 2, B)
    elif "Choice" in name:
        batch = {key: x[None] for key, x in batch.items()} | {"labels": rng.integers(0, B, 1)}
    elif "Token" in name:
        batch["labels"] = rng.integers(0, 2, (B, S))
    elif "Question" in name:
        batch |= {"start_positions": rng.integers(0, S, B), "end_positions": rng.integers(0, S, B)}
    elif "Extraction" in name:
        batch |= {key: rng.random((B, S)) for key in ("start_positions", "end_positions")}
    return tensors(batch)


def scalar(output: Any) -> Any:
    """The loss, or for the bare model, which has none, a sum in which every output has a different weight."""
    if getattr(output, "loss", None) is not None:
        return output.loss
    parts = [output.last_hidden_state, output.pooler_output]
    return sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in parts)


def assert_same_gradients(hf: Any, model: Any) -> None:
    """Within 1e-9 of the largest gradient of each parameter. A gradient that is None counts as 0, on both sides."""
    theirs, ours = (
        {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in one.named_parameters()}
        for one in (hf, model)
    )
    assert set(ours) == set(theirs)
    largest = max(float(x.abs().max()) for x in theirs.values())
    for name, x in theirs.items():
        # Gradients that cancel (biases of keys and choices) are 0 up to rounding on both sides.
        bound = max(1e-9 * float(x.abs().max()), MODEL_BOUND * largest)
        assert float((ours[name] - x).abs().max()) <= bound, name


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_load_strictly_both_ways(name: str) -> None:
    hf, model = pair(name, 0, **SIZES)
    theirs, ours = hf.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], x) for key, x in theirs.items())
    fresh = getattr(transformers, name)(hf.config).double().eval()
    fresh.load_state_dict(ours, strict=True)
    batch = batch_of(name, np.random.default_rng(0), 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(scalar(fresh(**batch)), scalar(hf(**batch)), rtol=1e-10, atol=1e-10)


class InOrder:
    """Takes the place of torch's dropout: drops as here, with one seed after the other, and the head with the last."""

    def __init__(self, seeds: Any) -> None:
        self.seeds, self.calls, self.length = seeds, 0, 0

    def __call__(self, x: Any, p: float, training: bool, inplace: bool = False) -> Any:
        if not training:
            return x
        seed = self.seeds[self.calls]
        if self.calls == 0:
            self.length = x.shape[1]
        self.calls += 1
        tokens = torch.arange(x.shape[0] * self.length).view(x.shape[0], self.length)
        if x.dim() == 4:
            return drop_probabilities(x, p, seed, tokens)
        return dropout(x, p, seed, tokens if x.dim() == 3 else tokens[:, 0])


@settings(max_examples=40)
@given(st.sampled_from(NAMES), st.integers(0, 99), st.booleans(), st.data())
def test_outputs_and_gradients_equal_transformers_without_padding(
    name: str, seed: int, train: bool, data: st.DataObject
) -> None:
    """In float64, all classes with their losses; in train() with all dropouts, each at its place in the order of calls.

    Red without: any one dropout, the activation's derivative, or the zero gradient of the padding token's row.
    """
    heads = data.draw(st.sampled_from([1, 2, 3]))
    fields = {
        **SIZES,
        "hidden_size": heads * data.draw(st.sampled_from([4, 8])),
        "num_attention_heads": heads,
        "num_hidden_layers": data.draw(st.integers(0, 3)),
        "hidden_act": data.draw(st.sampled_from(["gelu", "gelu_new", "silu", "quick_gelu", "tanh"])),
        "pad_token_id": data.draw(st.sampled_from([0, 1, 5])),
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "act_dropout": data.draw(st.sampled_from([0.0, 0.25])),
    }
    hf, model = pair(name, seed, **fields)
    rng = np.random.default_rng(seed)
    batch = batch_of(name, rng, data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 7, 16])))
    results = []
    seeds = draw_seeds(model.config.num_hidden_layers)
    with mock.patch("torch.nn.functional.dropout", InOrder(seeds)):
        results.append(hf.train(train)(**batch))
    results.append(model.train(train)(**batch, dropout_seeds=seeds))
    for out in results:
        scalar(out).backward()
    for field in ("loss", "last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        theirs, ours = (getattr(out, field, None) for out in results)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_same_gradients(hf, model)


@pytest.mark.parametrize("name", NAMES)
def test_fast_path_float32_error_is_at_most_twice_that_of_transformers(name: str) -> None:
    """Without gradients, in the interpreter: the error against float64 is at most twice the peer's, + 16 u."""
    sizes = {**SIZES, "hidden_size": 32, "num_hidden_layers": 1}
    batch = batch_of(name, np.random.default_rng(1), 2, 7)
    exact = pair(name, 4, **sizes)[0](**batch)
    hf, model = pair(name, 4, torch.float32, **sizes)
    batch = {key: x.float() if x.is_floating_point() else x for key, x in batch.items()}
    with way("kernels"):
        theirs, ours = hf(**batch), model(**batch)
    for field in ("loss", "last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        truth = getattr(exact, field, None)
        if truth is not None:
            errors = [float((getattr(out, field).double() - truth).detach().abs().max()) for out in (ours, theirs)]
            assert errors[0] <= 2 * errors[1] + 16 * U32 * max(1.0, float(truth.detach().abs().max())), field


def test_with_attentions_hidden_states_have_transformers_gradients() -> None:
    """Packed, they are copies, which nothing is computed from; so MIGRATING.md says to ask for attentions too."""
    name, found = "ErnieMForSequenceClassification", []
    hf, model = pair(name, 3, **SIZES)
    batch = tensors(batch_of(name, np.random.default_rng(3), 3, 9))
    batch["attention_mask"][1, 5:] = 0
    asked = {"output_hidden_states": True, "output_attentions": True}
    for one in (hf, model):
        out = one(**batch, **asked)
        found.append(torch.autograd.grad(out.loss, out.hidden_states[:3]))
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(*(x * batch["attention_mask"][..., None] for x in (theirs, ours)), rtol=0, atol=1e-12)
        assert theirs.abs().max() > 1e-3
