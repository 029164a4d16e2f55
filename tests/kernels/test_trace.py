"""What `reference.trace` records of the torch models, and how it compares with the reference's trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import ids_like, masks
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND
from torch_models import BY_NAME, CLASSES, pair, tensors, way

from ernie_m.kernels.trace import tracing
from ernie_m.reference import compare, trace, trace_torch
from ernie_m.reference.trace import scope

READ_FIRST = ("ErnieMForSequenceClassification", "ErnieMForMultipleChoice")
LAST_SCORES = ("layers.1.self_attn.self_attn.scores", "layers.1.self_attn.self_attn.probs")
PAIRS = [pair(cls, num_labels=2) for cls in CLASSES]
MASK = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


def traces(twin: Any, model: Any, mask: np.ndarray, how: str, **asked: bool) -> tuple[Any, Any]:
    batch = {"input_ids": ids_like(mask), "attention_mask": mask}
    if "Choice" in type(model).__name__:
        batch = {key: x[None] for key, x in batch.items()}
    with trace() as a:
        twin(**batch, **asked)
    with way(how), trace() as b:
        model(**tensors(batch), **asked)
    return a, b


@settings(max_examples=60)
@given(masks(), st.sampled_from(PAIRS), st.sampled_from(["plain operations", "gradients"]), st.booleans())
def test_trace_agrees_with_the_references(mask: np.ndarray, models: Any, how: str, attentions: bool) -> None:
    """The same names; the same numbers, however much of a layer is computed; 0 at padding.

    Without gradients, a head that reads the first token has no scores in its last layer.
    """
    twin, model = models
    a, b = traces(twin, model, mask, how, output_attentions=attentions)
    lean = how == "plain operations" and not attentions and type(model).__name__ in READ_FIRST
    names = [name for name in a if not (lean and name.endswith(LAST_SCORES))]
    if not mask.any() and not attentions:  # without tokens, the reference computes no attention
        b.entries = {name: entry for name, entry in b.entries.items() if not name.endswith(("scores", "probs"))}
    assert set(b) == set(names)
    found = compare(a, b, mask, tolerance=MODEL_BOUND)
    assert found and set(found.errors) == set(names), found
    for name, entry in b.items():
        padded = entry.padded()
        assert padded.dtype == np.float64
        logits = ("classifier", "linear_start", "linear_end", "qa_outputs")
        # What heads compute at padding is as of a hidden state of 0.
        if padded.ndim == 3 and not (name.endswith(logits) or name.startswith("prediction.")):
            assert not padded[mask == 0].any()


def test_trace_finds_where_a_wrong_weight_first_shows() -> None:
    twin, model = pair()
    with torch.no_grad():
        model.encoder.layers[1].linear2.weight[0, 0] += 1.0
    assert compare(*traces(twin, model.float(), MASK, "plain operations"), MASK).name == "encoder.layers.1.norm2"
    for how in ("plain operations", "gradients"):
        assert compare(*traces(twin, model.double(), MASK, how), MASK).name == "encoder.layers.1.linear2"


def test_trace_of_the_fast_path_has_the_tokens_positions() -> None:
    _, b = traces(*pair(), MASK, "plain operations")
    entry = b["encoder.layers.0.self_attn.self_attn.q_proj"]
    assert entry.value.shape == (5, 16)
    np.testing.assert_array_equal(entry.indices, np.flatnonzero(MASK))


def test_trace_of_a_packed_call() -> None:
    model = pair()[1]
    ids, cu = torch.arange(2, 7), torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    with way("plain operations"), trace() as t:
        model.packed(ids, cu, 4)
    np.testing.assert_array_equal(t["embeddings.layer_norm"].indices, [0, 1, 2, 8, 9])
    assert t["encoder.layers.1.norm2"].padded().shape == (3, 4, 16)


def test_trace_of_a_packed_call_with_gradients_has_every_entry() -> None:
    """Attention is then computed on the rectangle, because it is recorded; the result is the same."""
    twin, model = pair()
    mask = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0]])
    ids = ids_like(mask)
    with trace() as a:
        twin(ids, attention_mask=mask)
    packed, cu = torch.tensor(ids[mask == 1]), torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    with way("gradients"), trace() as b:
        traced = model.packed(packed, cu, 3)
    assert set(b) == set(a)
    found = compare(a, b, mask, tolerance=MODEL_BOUND)
    assert found and set(found.errors) == set(a), found
    plain = model.packed(packed, cu, 3)
    torch.testing.assert_close(traced.last_hidden_state, plain.last_hidden_state, rtol=0, atol=MODEL_BOUND)


def test_trace_keeps_bfloat16_as_float32_and_copies() -> None:
    """The caller's scope becomes a prefix of the names."""
    model = type(PAIRS[0][1]).from_reference(PAIRS[0][0], dtype=torch.bfloat16)
    with way("gradients"), trace() as t:
        out = model(torch.tensor([[0, 5]]))
    entry = t["encoder.layers.1.norm2"]
    assert entry.value.dtype == np.float32
    assert torch.equal(torch.tensor(entry.padded()), out.last_hidden_state.float())
    with way("plain operations"), trace() as t, scope("outer"):
        out = PAIRS[0][1](inputs_embeds=torch.ones(1, 2, 16, dtype=torch.float64))
    out.last_hidden_state.zero_()
    assert t["outer.encoder.layers.1.norm2"].value.any()


def test_trace_records_nothing_outside_and_nothing_while_compiling() -> None:
    model = pair(num_hidden_layers=0)[1]
    ids = torch.tensor([[0, 5]])
    with trace() as t:
        pass
    model(ids)
    assert not t
    assert not tracing()
    seen = []

    def call(x: torch.Tensor) -> torch.Tensor:
        seen.append(tracing())
        return model(x).last_hidden_state

    with trace() as t:
        torch.compile(call, fullgraph=True, backend="eager")(ids)
    assert seen == [False] and not t


@pytest.mark.parametrize("models", PAIRS, ids=lambda pair: type(pair[0]).__name__)
def test_trace_has_the_order_of_computation(models: Any) -> None:
    a, b = traces(*models, MASK, "gradients")
    assert list(b) == list(a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["kernels", "plain operations", "gradients"])
@pytest.mark.parametrize("layers", [1, 6])
def test_compare_finds_nothing_in_right_models(dtype: Any, how: str, layers: int) -> None:
    """The reference's weights are not rounded to the dtype: what that changes is explained too."""
    twin, _ = pair(num_hidden_layers=layers)
    model = type(PAIRS[0][1]).from_reference(twin, dtype=dtype)
    found = compare(*traces(twin, model, MASK, how))
    assert found and found.ratio < 1, found


@pytest.mark.parametrize(
    ("fault", "fused", "plain"),
    [
        (lambda layer: setattr(layer.norm1, "eps", 1e-12), "norm1", "norm1"),
        (lambda layer: layer.norm2.weight.mul_(1.003), "norm2", "norm2"),
        (lambda layer: setattr(layer, "hidden_act", "gelu_new"), "activation", "activation"),
        (lambda layer: layer.linear2.bias.zero_(), "norm2", "linear2"),
        (lambda layer: layer.self_attn.out_proj.weight.copy_(layer.self_attn.out_proj.weight.T.clone()), "norm1",
         "self_attn.out_proj"),
    ],
)  # fmt: skip
def test_compare_finds_a_fault_in_its_own_entry(fault: Any, fused: str, plain: str) -> None:
    """In layer 4 of 6; on the fast path, in the first entry after it that is written to memory.

    Float32 would hide the ε of a normalisation of few and large numbers.
    """
    twin, _ = pair(num_hidden_layers=6)
    model = type(PAIRS[0][1]).from_reference(twin, dtype=torch.float64 if fused == plain == "norm1" else torch.float32)
    with torch.no_grad():
        fault(model.encoder.layers[4])
    for how, name in (("plain operations", fused), ("gradients", plain)):
        found = compare(*traces(twin, model, MASK, how))
        assert found.name == f"encoder.layers.4.{name}" and found.ratio > 1, found


@pytest.mark.parametrize("how", ["plain operations", "gradients"])
@pytest.mark.parametrize("fault", [False, True])
def test_trace_torch_forces_our_models(how: str, fault: bool) -> None:
    twin, model = pair()
    model = model.float()
    if fault:
        with torch.no_grad():
            model.encoder.layers[0].linear1.bias.add_(0.1)
    truth, _ = traces(twin, pair()[1], MASK, how)
    with way(how), trace_torch(model, force=truth) as forced:
        model(**tensors({"input_ids": ids_like(MASK), "attention_mask": MASK}))
    found = compare(truth, forced, MASK)
    hidden = () if how == "gradients" else ("scores", "probs")
    assert set(forced) == {x for x in truth if not x.endswith(hidden)} and all(
        x.endswith(hidden) for x in forced.skipped
    )
    assert (found.name == "encoder.layers.0.linear1") if fault else bool(found), found
    forced.entries.pop("encoder.layers.0.linear1")
    assert compare(truth, forced, MASK)


REPLACED = ("embeddings.layer_norm", "encoder.layers.1.self_attn.self_attn.context", "encoder.layers.0.norm1",
            "encoder.layers.1.activation", "encoder.layers.0.self_attn.self_attn.v_proj", "pooler.dense")  # fmt: skip


@pytest.mark.parametrize("how", ["kernels", "plain operations", "gradients"])
@pytest.mark.parametrize("name", REPLACED)
def test_trace_continues_with_what_replaces_a_value(name: str, how: str) -> None:
    """As in the reference, on each path."""
    twin, model = pair()
    batch = {"input_ids": ids_like(MASK), "attention_mask": MASK}
    model = model.float()
    with trace({name: lambda x: x * 0.5}) as a:
        twin(**batch)
    with way(how):
        if how == "gradients" and name.endswith("v_proj"):
            with pytest.raises(ValueError, match=r"v_proj: expected torch\.no_grad"), trace({name: lambda x: x * 0.5}):
                model(**tensors(batch))
            return
        with trace({name: lambda x: x * 0.5}) as b:
            out = model(**tensors(batch))
    assert compare(a, b, MASK)
    np.testing.assert_array_equal(b["pooler.activation"].value, out.pooler_output.detach().numpy())


def test_trace_replaces_only_what_is_computed() -> None:
    """What is fused away, and the logits that are recorded from a copy, are errors that say what can be replaced."""
    model = pair()[1].float()
    batch = tensors({"input_ids": ids_like(MASK), "attention_mask": MASK})
    name = "encoder.layers.0.linear1"
    with (
        pytest.raises(ValueError, match=r"linear1' was not computed, or was fused away; .*layers\.0\.activation"),
        way("plain operations"),
        trace({name: lambda x: x}),
    ):
        model(**batch)
    with way("gradients"), trace({name: lambda x: x * 2}):
        model(**batch)
    tokens = pair(BY_NAME["ErnieMForTokenClassification"])[1]
    with (
        pytest.raises(ValueError, match="replace: classifier: expected a value inside the model"),
        way("plain operations"),
        trace({"classifier": lambda x: x * 2}),
    ):
        tokens(**batch)
    with (
        pytest.raises(ValueError, match=r"replace: encoder\.layers\.0\.norm1: expected Tensor"),
        way("plain operations"),
        trace({"encoder.layers.0.norm1": lambda x: x[:1]}),
    ):
        model(**batch)
