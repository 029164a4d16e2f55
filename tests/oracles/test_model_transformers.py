"""The reference against transformers 4.40.2: same weights, same inputs, every class, every output.

All weights are random: with LayerNorm weight 1 and bias 0, a forward pass that never reads them would pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.checkpoint.names import from_huggingface
from ernie_m.reference.parameters import unflatten

torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare the reference with")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)

NAMES = (
    "ErnieMModel",
    "ErnieMForSequenceClassification",
    "ErnieMForMultipleChoice",
    "ErnieMForTokenClassification",
    "ErnieMForQuestionAnswering",
    "ErnieMForInformationExtraction",
)
U32 = 2.0**-24


def pair(name: str, fields: dict[str, Any], seed: int, dtype: Any = np.float64) -> tuple[Any, Any]:
    """The class `name` in transformers and here, with the same weights, all of them random."""
    hf = getattr(transformers, name)(transformers.ErnieMConfig(**fields))
    hf = hf.to(torch.float64 if dtype == np.float64 else torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in hf.named_parameters():
            centre = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            width = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            # Rounded to float32, so that both precisions hold the same weights.
            drawn = centre + width * torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(drawn)
    config = ernie.ErnieMConfig.from_dict(hf.config.to_dict())
    arrays = from_huggingface({key: value.numpy().copy() for key, value in hf.state_dict().items()})
    return hf, getattr(ernie, name)(config, unflatten(arrays))


ACTIVATIONS = tuple(transformers.activations.ACT2FN)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    return {
        "vocab_size": draw(st.integers(8, 60)),
        "hidden_size": heads * draw(st.sampled_from([1, 4, 8, 16])),
        "num_hidden_layers": draw(st.integers(0, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.sampled_from([1, 7, 32, 65])),
        "hidden_act": draw(st.sampled_from(("gelu", *ACTIVATIONS))),
        "max_position_embeddings": draw(st.integers(40, 50)),
        "pad_token_id": draw(st.sampled_from([0, 1, 5])),
        "layer_norm_eps": draw(st.sampled_from([1e-5, 1e-12, 1e-2])),
    }


@st.composite
def batches(draw: st.DrawFn, fields: dict[str, Any], rows: int | None = None) -> dict[str, np.ndarray]:
    """Ids, and no mask, a full one, or one with right padding, left padding or holes; sometimes position ids."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B = rows or draw(st.integers(1, 4))
    S = draw(st.sampled_from([1, 2, 7, 16, 33]))
    ids = rng.integers(0, fields["vocab_size"], (B, S))
    lengths = rng.integers(1, S + 1, (B, 1))
    columns = np.arange(S)
    kind = draw(st.sampled_from(["none", "full", "right", "left", "holes"]))
    if kind == "none":
        ids[ids == fields["pad_token_id"]] = 7
        batch = {"input_ids": ids}
    else:
        mask = {
            "full": np.ones((B, S), bool),
            "right": columns < lengths,
            "left": columns >= S - lengths,
            "holes": rng.random((B, S)) < 0.7,
        }[kind]
        mask[np.arange(B), rng.integers(0, lengths[:, 0])] |= not mask.any(axis=1).all()
        mask[:, -1] |= ~mask.any(axis=1)
        batch = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    if draw(st.booleans()):
        batch["position_ids"] = rng.integers(0, 38, (B, S))
    if draw(st.booleans()):
        batch["head_mask"] = rng.random((fields["num_hidden_layers"], fields["num_attention_heads"]))
    return batch


def run_torch(hf: Any, batch: dict[str, Any], **options: Any) -> Any:
    """The peer's outputs, from copies of the inputs, because it modifies `position_ids` in place."""
    dtype = next(hf.parameters()).dtype
    tensors = {}
    for key, value in batch.items():
        tensor = torch.tensor(np.asarray(value))
        tensors[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    with torch.no_grad():
        return hf(**tensors, **options)


def relative_error(ours: np.ndarray, theirs: Any, where: np.ndarray | None = None) -> float:
    """The largest difference, divided by the largest magnitude of the output if that exceeds 1."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    difference, scale = np.abs(ours - theirs), np.abs(theirs)
    if where is not None:
        difference, scale = difference[where], scale[where]
    return float(difference.max(initial=0.0) / max(1.0, scale.max(initial=0.0)))


def valid_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    mask = batch.get("attention_mask")
    return np.ones(batch["input_ids"].shape, bool) if mask is None else mask.astype(bool)


def labels_for(name: str, fields: dict[str, Any], shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    B, S = shape[0], shape[-1]
    C = fields.get("num_labels", 2)
    if name == "ErnieMForSequenceClassification":
        kind = fields.get("problem_type") or ("regression" if C == 1 else "single_label_classification")
        if kind == "single_label_classification":
            return {"labels": rng.integers(0, C, B)}
        return {"labels": rng.random((B, C)) if C > 1 else rng.random(B)}
    if name == "ErnieMForMultipleChoice":
        return {"labels": rng.integers(0, shape[1], B)}
    if name == "ErnieMForTokenClassification":
        labels = rng.integers(0, C, (B, S))
        labels[rng.random((B, S)) < 0.2] = -100
        labels[0, 0] = 0
        return {"labels": labels}
    if name == "ErnieMForQuestionAnswering":
        # Some beyond the row and some negative, but never all out of range: then both losses are nan.
        positions = rng.integers(-3, S + 3, (2, B))
        positions[:, 0] = np.clip(positions[:, 0], 0, S - 1)
        return {"start_positions": positions[0], "end_positions": positions[1]}
    if name == "ErnieMForInformationExtraction":
        both = (rng.random((2, B, S)) < 0.3).astype(np.float64)
        return {"start_positions": both[0], "end_positions": both[1]}
    return {}


@settings(max_examples=100)
@given(st.data())
def test_model_float64_parity(data: st.DataObject) -> None:
    """Hidden states, pooled output and attentions at real tokens. Red without: position offset, head mask, eps."""
    fields = data.draw(configurations())
    batch = data.draw(batches(fields))
    hf, model = pair("ErnieMModel", fields, data.draw(st.integers(0, 1000)))
    theirs = run_torch(hf, batch, output_hidden_states=True, output_attentions=True)
    ours = model(**batch, output_hidden_states=True, output_attentions=True)
    lean = model(**batch)
    valid = valid_of(batch)
    pairs = valid[:, None, :, None] & valid[:, None, None, :]
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state, valid) <= 1e-10
    assert relative_error(lean.last_hidden_state, theirs.last_hidden_state, valid) <= 1e-10
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert relative_error(a, b, valid) <= 1e-10
        assert not a[~valid].any()
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        everywhere = np.broadcast_to(pairs, a.shape)
        assert relative_error(a, b, everywhere) <= 1e-10
        assert not a[~everywhere].any()
    for pooled in (ours.pooler_output, lean.pooler_output):
        assert relative_error(pooled, theirs.pooler_output, valid[:, 0]) <= 1e-10


@settings(max_examples=100)
@given(st.data())
def test_heads_float64_parity(data: st.DataObject) -> None:
    """Logits and losses of all heads; span losses only without padding, because it leaks into the peer's."""
    name = data.draw(st.sampled_from(NAMES[1:]))
    fields = data.draw(configurations())
    seed = data.draw(st.integers(0, 1000))
    if name in ("ErnieMForSequenceClassification", "ErnieMForTokenClassification"):
        fields["num_labels"] = data.draw(st.integers(1 if "Sequence" in name else 2, 5))
    if name == "ErnieMForSequenceClassification" and fields["num_labels"] > 1:
        kinds = [None, "regression", "single_label_classification", "multi_label_classification"]
        fields["problem_type"] = data.draw(st.sampled_from(kinds))
    choices = 3
    batch = data.draw(batches(fields, rows=choices * 2 if "Choice" in name else None))
    valid = valid_of(batch)
    padded = not valid.all()
    targets_seed = data.draw(st.integers(0, 1000))
    if "Choice" in name:
        for key in ("input_ids", "attention_mask", "position_ids"):
            if key in batch:
                batch[key] = batch[key].reshape(2, choices, -1)
    if "Token" in name and padded:
        targets = labels_for(name, fields, valid.shape, targets_seed)
        targets["labels"] = np.where(valid, targets["labels"], -100)
        targets["labels"][0, valid[0].argmax()] = 0
    else:
        targets = labels_for(name, fields, batch["input_ids"].shape, targets_seed)
    if "Extraction" in name and valid.shape[-1] == 1:
        targets = {}  # the peer squeezes away a single column and raises
    hf, model = pair(name, fields, seed)
    asked = {"output_hidden_states": True, "output_attentions": True} if data.draw(st.booleans()) else {}
    theirs, ours = run_torch(hf, {**batch, **targets}, **asked), model(**batch, **targets, **asked)
    rows_valid = valid.reshape(-1, valid.shape[-1])
    pairs = rows_valid[:, None, :, None] & rows_valid[:, None, None, :]
    for a, b in zip(ours.hidden_states or (), theirs.hidden_states or (), strict=True):
        assert relative_error(a, b, rows_valid) <= 1e-10
    for a, b in zip(ours.attentions or (), theirs.attentions or (), strict=True):
        assert relative_error(a, b, np.broadcast_to(pairs, a.shape)) <= 1e-10
    with_pooler = "Sequence" in name or "Choice" in name
    if with_pooler:
        rows = valid[:, 0].reshape(ours.logits.shape[0], -1).all(axis=1)
        assert relative_error(ours.logits, theirs.logits, rows) <= 1e-10
        if rows.all():
            assert relative_error(ours.loss, theirs.loss) <= 1e-10
    elif "Token" in name:
        assert relative_error(ours.logits, theirs.logits, valid) <= 1e-10
        assert relative_error(ours.loss, theirs.loss) <= 1e-10
    else:
        assert relative_error(ours.start_logits, theirs.start_logits, valid) <= 1e-10
        assert relative_error(ours.end_logits, theirs.end_logits, valid) <= 1e-10
        if targets and not padded:
            assert relative_error(ours.loss, theirs.loss) <= 1e-10


@settings(max_examples=25)
@given(st.data())
def test_model_structured_mask_parity(data: st.DataObject) -> None:
    """(B, S, S) masks, against the peer's encoder with the equivalent additive mask."""
    fields = data.draw(configurations())
    batch = data.draw(batches(fields))
    batch.pop("attention_mask", None)
    batch.pop("head_mask", None)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    B, S = batch["input_ids"].shape
    allowed = (rng.random((B, S, S)) < 0.5) | np.eye(S, dtype=bool)
    hf, model = pair("ErnieMModel", fields, 3)
    with torch.no_grad():
        additive = torch.where(torch.tensor(allowed)[:, None], 0.0, float("-inf")).double()
        positions = torch.tensor(batch["position_ids"]) if "position_ids" in batch else None
        theirs = hf.encoder(hf.embeddings(torch.tensor(batch["input_ids"]), positions), additive).last_hidden_state
    assert relative_error(model(**batch, attention_mask=allowed).last_hidden_state, theirs) <= 1e-10


def float32_errors(name: str, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Float32 errors against float64, ours and the peer's, and the exact outputs, all at real tokens."""
    fields = {
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 70,
    }
    # Heads with few outputs per text need many short texts to reach as many outputs.
    B, S = {"ErnieMForMultipleChoice": (600, 6), "ErnieMForSequenceClassification": (200, 12)}.get(name, (6, 48))
    if "Sequence" in name:
        fields["num_labels"] = 20
    rng = np.random.default_rng(seed)
    mask = (np.arange(S) < rng.integers(1, S + 1, (B, 1))).astype(np.int64)
    batch = {"input_ids": rng.integers(2, 100, (B, S)), "attention_mask": mask}
    if "Choice" in name:
        batch = {key: value.reshape(B // 3, 3, S) for key, value in batch.items()}
    exact = pair(name, fields, seed)[1](**batch)
    hf, model = pair(name, fields, seed, np.float32)
    theirs, ours = run_torch(hf, batch), model(**batch)
    valid = mask.astype(bool)
    errors, peer_errors, outputs = [], [], []
    for field in ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        if getattr(exact, field, None) is None:
            continue
        truth, mine, peer = (np.asarray(getattr(o, field), np.float64) for o in (exact, ours, theirs))
        assert getattr(ours, field).dtype == np.float32
        if truth.shape[:2] == valid.shape:
            truth, mine, peer = truth[valid], mine[valid], peer[valid]
        errors.append(np.abs(mine - truth).ravel())
        peer_errors.append(np.abs(peer - truth).ravel())
        outputs.append(truth.ravel())
    return errors, peer_errors, outputs


@pytest.mark.parametrize("name", NAMES)
def test_model_float32_rms_error_is_at_most_1_25_times_that_of_transformers(name: str) -> None:
    """RMS error at most 1.25 times the peer's over at least 10,000 outputs; largest error at most twice, + 16 u."""
    mine: list[np.ndarray] = []
    peer: list[np.ndarray] = []
    seed = 0
    while not mine or sum(map(len, mine)) < 10_000:
        for error, peer_error, output in zip(*float32_errors(name, seed), strict=True):
            assert error.max() <= 2 * peer_error.max() + 16 * U32 * np.abs(output).max()
            mine.append(error)
            peer.append(peer_error)
        seed += 1
    rms = [float(np.sqrt(np.mean(np.square(np.concatenate(errors))))) for errors in (mine, peer)]
    assert rms[0] <= 1.25 * rms[1]
