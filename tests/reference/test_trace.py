from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, ids_like, masks, random_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND

from ernie_m.reference import compare, trace
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.trace import Trace

MODEL = random_model()
LAYER = (
    "self_attn.self_attn.q_proj",
    "self_attn.self_attn.k_proj",
    "self_attn.self_attn.v_proj",
    "self_attn.self_attn.scores",
    "self_attn.self_attn.probs",
    "self_attn.self_attn.context",
    "self_attn.out_proj",
    "norm1",
    "linear1",
    "activation",
    "linear2",
    "norm2",
)


def test_trace_names_are_checkpoint_names_in_order() -> None:
    with trace() as t:
        MODEL(np.array([[0, 5, 2]]))
    expected = ["embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.layer_norm"]
    expected += [f"encoder.layers.{i}.{name}" for i in range(2) for name in LAYER]
    assert list(t) == [*expected, "pooler.dense", "pooler.activation"]


@pytest.mark.parametrize("cls", CLASSES[1:])
def test_trace_of_heads_has_their_prefix(cls: Any) -> None:
    ids = np.full((1, 2, 3), 5) if "Choice" in cls.__name__ else np.full((2, 3), 5)
    with trace() as t:
        random_model(cls)(ids)
    words = [f"prediction.{name}" for name in ("dense", "activation", "layer_norm", "decoder")]
    head = words if cls.predicts_words else tuple(random_model(cls).parameters.head)
    assert list(t)[-len(head) :] == list(head)
    assert all(name.startswith("ernie_m.") for name in t if name not in head)


@settings(max_examples=30)
@given(masks())
def test_trace_of_packed_and_padded_passes_agree(mask: np.ndarray) -> None:
    assume(mask.any())  # without tokens, attention has nothing to record
    ids = ids_like(mask)
    with trace() as packed:
        out = MODEL(ids, attention_mask=mask)
    with trace() as padded:
        MODEL(ids, attention_mask=mask, output_attentions=True)
    found = compare(packed, padded, mask, tolerance=MODEL_BOUND)
    assert found and len(found.errors) == len(packed) == len(padded) and not found.not_compared
    for name in (f"encoder.layers.{i}.norm{k}" for i in (0, 1) for k in (1, 2)):
        assert not padded[name].padded()[mask == 0].any()
    last = packed["encoder.layers.1.norm2"]
    np.testing.assert_array_equal(last.padded(), out.last_hidden_state)
    if not mask.all():
        np.testing.assert_array_equal(last.indices, np.flatnonzero(mask))
        assert last.value.shape == (mask.sum(), 24)


@pytest.mark.parametrize(
    "path", [p for p in flatten(MODEL.parameters) if p.startswith("layers.1") and "k_proj.b" not in p]
)
def test_compare_names_the_first_layer_that_differs(path: str) -> None:
    """One weight of layer 1 is changed: everything before it agrees, and the entry computed with it is named.

    The key bias is left out: it adds the same number to all scores of a row, which the softmax cancels.
    """
    arrays = flatten(MODEL.parameters)
    arrays[path] = arrays[path] + 0.25
    other = dataclasses.replace(MODEL.parameters, layers=unflatten(arrays).layers)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    with trace() as a:
        MODEL(ids_like(mask), attention_mask=mask)
    with trace() as b:
        type(MODEL)(MODEL.config, other)(ids_like(mask), attention_mask=mask)
    found = compare(a, b, tolerance=1e-9)
    module = path.split(".")[2]
    inside = {"q_proj": "self_attn.self_attn.", "k_proj": "self_attn.self_attn.", "v_proj": "self_attn.self_attn."}
    expected = {**inside, "out_proj": "self_attn."}.get(module, "") + module
    assert not found and found.name == f"encoder.layers.1.{expected}"
    assert found.error > 1e-3 and str(found.name) in str(found)
    x, y = a[found.name].padded()[found.index], b[found.name].padded()[found.index]
    assert found.values == (x, y) and abs(x - y) > 1e-3


def test_compare_ignores_padding_and_counts_nan() -> None:
    ids, mask = np.array([[5, 6, 7]]), np.array([[1, 1, 0]])
    with trace() as a:
        MODEL(ids, attention_mask=np.ones((1, 3, 3), bool))
    with trace() as b:
        MODEL(np.array([[5, 6, 8]]), attention_mask=np.ones((1, 3, 3), bool))
    assert compare(a, b).name == "embeddings.word_embeddings"
    # At valid positions the two agree until attention reads the third token.
    assert compare(a, b, mask).name == "encoder.layers.0.self_attn.self_attn.probs"
    name = "embeddings.layer_norm"
    broken = {**b, name: dataclasses.replace(b[name], value=b[name].value * np.nan)}
    assert compare(broken, b).name == name and compare(broken, b).error == np.inf
    with pytest.raises(ValueError, match="expected names in common"):
        compare(a, {})


def test_trace_is_off_outside_and_keeps_the_last_call() -> None:
    with trace() as t:
        MODEL(np.array([[0, 5, 2]]))
        MODEL(np.array([[0, 5, 2], [5, 6, 1]]))
    MODEL(np.array([[7]]))
    assert t["embeddings.layer_norm"].padded().shape == (2, 3, 24)
    probs = t["encoder.layers.0.self_attn.self_attn.probs"]
    assert [m.shape for m in probs.value] == [(3, 3, 3), (3, 2, 2)] and probs.padded().shape == (2, 3, 3, 3)
    for ids in ([[5, 6, 1]], [[5, 1, 1], [6, 7, 1]]):  # both packed
        with trace() as t:
            MODEL(np.array([[5, 6, 7, 1], [7, 1, 1, 1]]))
            MODEL(np.array(ids))
        assert len(t["encoder.layers.0.self_attn.self_attn.scores"].value) == len(ids)
    with trace() as t, pytest.raises(ValueError):
        MODEL(np.array([[99]]))
    with trace() as u:
        MODEL(np.array([[0, 5, 2]]))
    assert not t and u


NAMES = ("embeddings.layer_norm", *(f"encoder.layers.1.{name}" for name in LAYER), "pooler.activation")


@settings(max_examples=30)
@given(masks(), st.sampled_from(NAMES), st.booleans())
def test_trace_continues_with_what_replaces_a_value(mask: np.ndarray, name: str, attentions: bool) -> None:
    """Everything before is as without; the entry is what the function returned; a later one follows from it."""
    assume(mask.any())
    ids = ids_like(mask)
    with trace() as plain:
        MODEL(ids, attention_mask=mask, output_attentions=attentions)
    with trace({name: lambda x: x * 0.5}) as halved:
        out = MODEL(ids, attention_mask=mask, output_attentions=attentions)
    with trace(replace={name: np.copy}):
        same = MODEL(ids, attention_mask=mask, output_attentions=attentions)
    np.testing.assert_array_equal(halved[name].padded(), plain[name].padded() * 0.5)
    names = list(plain)
    for before in names[: names.index(name)]:
        np.testing.assert_array_equal(halved[before].padded(), plain[before].padded())
    np.testing.assert_array_equal(plain["pooler.activation"].value, same.pooler_output)
    np.testing.assert_array_equal(halved["pooler.activation"].value, out.pooler_output)
    # A single key has the probability 1, whatever its score.
    if not name.endswith("scores") and not name.endswith(("q_proj", "k_proj")):
        assert not np.array_equal(out.pooler_output, same.pooler_output)


def test_trace_patches_one_run_with_a_value_of_another() -> None:
    """Patching a whole layer's output makes everything after it that of the other run."""
    a, b = np.array([[0, 5, 2]]), np.array([[0, 9, 2]])
    with trace() as other:
        expected = MODEL(b)
    name = "encoder.layers.0.norm2"
    with trace(replace={name: lambda x: other[name].value}):
        np.testing.assert_array_equal(MODEL(a).last_hidden_state, expected.last_hidden_state)


def test_trace_replacements_get_a_copy() -> None:
    with trace() as plain:
        MODEL(np.array([[0, 5, 2]]))

    def spoils(x: np.ndarray) -> np.ndarray:
        kept = x.copy()
        x[:] = np.nan
        return kept

    with trace(replace=dict.fromkeys(plain, spoils)) as same:
        MODEL(np.array([[0, 5, 2]]))
    assert compare(plain, same, tolerance=0.0)
    value = np.ones(3)
    Trace({"x": spoils}).replaced("x", value)
    np.testing.assert_array_equal(value, 1)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda x: x[..., :-1], r"expected ndarray \(1, 3, 24\) float64 .*, got \(1, 3, 23\) float64"),
        (lambda x: x.astype(np.float32), r"got \(1, 3, 24\) float32"),
        (lambda x: None, r"got None"),
        (lambda x: x.tolist(), r"got \[\[\["),
    ],
)
def test_trace_rejects_a_replacement_that_is_not_like_the_value(new: Any, message: str) -> None:
    name = "encoder.layers.0.norm1"
    with pytest.raises(ValueError, match=f"replace: {name}: .*{message}"), trace(replace={name: new}):
        MODEL(np.array([[0, 5, 2]]))
    with trace() as t:  # nothing is left behind
        MODEL(np.array([[0, 5, 2]]))
    assert name in t


def test_trace_names_what_could_have_been_replaced() -> None:
    """The names of its own layer, if it is in one."""
    layer = ", ".join(f"encoder.layers.1.{name}" for name in LAYER)
    with (
        pytest.raises(ValueError, match=rf"replace: 'encoder.layers.1.norm3' was not computed.*computed: {layer}$"),
        trace(replace={"encoder.layers.1.norm3": lambda x: x}),
    ):
        MODEL(np.array([[0, 5, 2]]))
    with (
        pytest.raises(ValueError, match=r"'norm' was not computed.*embeddings.layer_norm.*pooler.activation"),
        trace(replace={"norm": lambda x: x}),
    ):
        MODEL(np.array([[0, 5, 2]]))
    with pytest.raises(ValueError, match="what was computed: nothing"), trace(replace={"norm": lambda x: x}):
        pass
    with pytest.raises(ZeroDivisionError), trace(replace={"norm": lambda x: x}):  # not hidden by the name
        _ = 1 / 0
