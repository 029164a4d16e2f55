"""`value_and_gradients`: every head, layout, mask and dropout against central differences, and against itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derivatives import check_gradients
from helpers import CLASSES, SMALL, ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference import trace, value_and_gradients, value_and_vjp
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.trace import GRADIENT

HEADS = CLASSES[1:]
SEEDS = st.integers(0, 2**32 - 1)
RATES = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "act_dropout": 0.1, "classifier_dropout": 0.4}
# Twice MODEL_BOUND's count of roundings, for the way back, relative to the largest gradient.
GRADIENT_BOUND = 1e-10


def call_of(cls: Any, mask: np.ndarray, seed: int) -> dict[str, Any]:
    """Ids, a mask and targets for a head."""
    rng = np.random.default_rng(seed)
    (B, S), ids = mask.shape, ids_like(mask, seed)
    if cls is ernie.ErnieMForMultipleChoice:
        ids, mask = np.stack([ids, ids[::-1]], axis=1), np.stack([mask, mask[::-1]], axis=1)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if cls is ernie.ErnieMForQuestionAnswering:
        return {**call, "start_positions": rng.integers(-1, S + 1, B), "end_positions": rng.integers(0, S, B)}
    if cls is ernie.ErnieMForInformationExtraction:
        return {**call, "start_positions": rng.random((B, S)), "end_positions": rng.random((B, S))}
    if cls is ernie.ErnieMForMaskedLM:
        return {**call, "labels": np.where(rng.random((B, S)) < 0.5, ids, -100), "label_weights": rng.random((B, S))}
    shape = (B, S) if cls is ernie.ErnieMForTokenClassification else (B,)
    return {**call, "labels": rng.integers(0, 2, shape)}


def gradients_of(model: Any, call: dict[str, Any]) -> dict[str, np.ndarray]:
    return flatten(value_and_gradients(model, **call)[1])


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], bound: float = GRADIENT_BOUND) -> None:
    assert a.keys() == b.keys()
    largest = max([1.0, *(float(np.abs(x).max(initial=0.0)) for x in a.values())])
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=bound * largest, err_msg=path)


@pytest.mark.parametrize("cls", HEADS)
@settings(max_examples=6, deadline=None)
@given(mask=masks(max_rows=3, lengths=(2, 7)), seed=SEEDS, data=st.data())
def test_gradients_are_derivatives(cls: Any, mask: np.ndarray, seed: int, data: st.DataObject) -> None:
    """Every parameter of drawn models: pruned heads, head masks, (B, S, S) masks, dropout on and off, activations."""
    mask[0, 0] = 1
    dropout = data.draw(st.booleans())
    fields: dict[str, Any] = {
        "hidden_act": data.draw(st.sampled_from(["gelu", "silu", "tanh", "gelu_new"])),
        "default_mask": "pad_token",
        **(RATES if dropout else {}),
    }
    model = random_model(cls, seed=seed, **fields)
    if data.draw(st.booleans()):
        model = model.prune_heads({1: [1]})
    call = call_of(cls, mask, seed)
    if data.draw(st.booleans()):
        call["head_mask"] = np.random.default_rng(seed).random(3)
    if cls is not ernie.ErnieMForMultipleChoice and data.draw(st.booleans()):
        call["attention_mask"] = np.random.default_rng(seed).random((*mask.shape, mask.shape[1])) < 0.6
    rng = {"rng": np.random.default_rng(seed)} if dropout else {}
    output, gradients = value_and_gradients(model, **call, **rng)
    if np.isnan(output.loss):
        # Of a span's two targets, one may count.
        assert cls is ernie.ErnieMForQuestionAnswering or not any(g.any() for g in flatten(gradients).values())
        return
    arrays, found = flatten(model.parameters), flatten(gradients)

    def loss(values: list[np.ndarray]) -> float:
        again = {"rng": np.random.default_rng(seed)} if dropout else {}
        parameters = unflatten(dict(zip(arrays, values, strict=True)))
        return float(cls(model.config, parameters)(**call, **again).loss)

    free = {}
    for path in ("word_embeddings", "position_embeddings"):
        # The padding token's rows are not trained, as in torch; what a head reads of the words' table is.
        if path == "word_embeddings" and cls.predicts_words:
            continue
        free[path] = np.ones_like(arrays[path])
        free[path][model.config.pad_token_id] = 0
        assert not found[path][model.config.pad_token_id].any()
    check_gradients(loss, list(arrays.values()), [found[path] for path in arrays], seed, list(arrays), free=free)


@settings(max_examples=10, deadline=None)
@given(mask=masks(max_rows=3, lengths=(2, 7)), seed=SEEDS, dropout=st.booleans())
def test_gradients_of_the_bare_model_are_derivatives(mask: np.ndarray, seed: int, dropout: bool) -> None:
    """Σ cotangent · output; also with inputs_embeds, and with the mask of UIE-M."""
    model = random_model(seed=seed, **(RATES if dropout else {}), default_mask="cls_token" if seed % 2 else "pad_token")
    rng = np.random.default_rng(seed)
    B, S = mask.shape
    call: dict[str, Any] = {"input_ids": ids_like(mask, seed), "attention_mask": None if seed % 2 else mask}
    if seed % 3 == 0:
        call["inputs_embeds"] = rng.standard_normal((B, S, SMALL["hidden_size"]))
        del call["input_ids"]
    cotangents = {
        "last_hidden_state": rng.standard_normal((B, S, SMALL["hidden_size"])),
        "pooler_output": rng.standard_normal((B, SMALL["hidden_size"])),
    }
    again = {"rng": np.random.default_rng(seed)} if dropout else {}
    _, gradients = value_and_vjp(model, cotangents, **call, **again)
    arrays, found = flatten(model.parameters), flatten(gradients)

    def value(values: list[np.ndarray]) -> float:
        again = {"rng": np.random.default_rng(seed)} if dropout else {}
        out = ernie.ErnieMModel(model.config, unflatten(dict(zip(arrays, values, strict=True))))(**call, **again)
        return float(sum((cotangents[name] * out[name]).sum() for name in cotangents))

    free = {}
    for path in ("word_embeddings", "position_embeddings"):
        free[path] = np.ones_like(arrays[path])
        free[path][model.config.pad_token_id] = 0
    check_gradients(value, list(arrays.values()), [found[path] for path in arrays], seed, list(arrays), free=free)


@pytest.mark.parametrize("cls", HEADS)
@settings(max_examples=15, deadline=None)
@given(mask=masks(), seed=SEEDS, dropout=st.booleans(), more=st.sampled_from([0, 3]))
def test_packed_and_padded_gradients_agree(cls: Any, mask: np.ndarray, seed: int, dropout: bool, more: int) -> None:
    """Attention maps need the rectangle; so do more columns of padding, whatever ids and positions they hold."""
    model = random_model(cls, seed=1, **(RATES if dropout else {}))
    call = call_of(cls, mask, seed)
    wide = dict(call)
    for name, value in call.items():
        if np.ndim(value) > 1 and more:
            fill = 0 if name == "attention_mask" else 1
            wide[name] = np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, more)], constant_values=fill)
    rngs = [{"rng": np.random.default_rng(seed)} if dropout else {} for _ in range(3)]
    packed = gradients_of(model, {**call, **rngs[0]})
    assert_same(packed, gradients_of(model, {**call, **rngs[1], "output_attentions": True}))
    if not (cls is ernie.ErnieMForQuestionAnswering and more):
        # A span's target past the end of the narrow row is at padding in the wide one: ignored in both.
        assert_same(packed, gradients_of(model, {**wide, **rngs[2]}))


def test_gradients_do_not_depend_on_groups_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped and not, to rounding; on any number of threads, bit for bit."""
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed: there are no threads")
    model = random_model(ernie.ErnieMForTokenClassification, **RATES)
    mask = (np.arange(33) < np.array([33, 5, 20, 33, 1, 30])[:, None]).astype(int)
    call = call_of(type(model), mask, 0)
    found = []
    for least, threads in ((1000, 1), (10, 1), (10, 2), (10, 4)):
        monkeypatch.setattr("ernie_m.reference.groups.LEAST_TOKENS", least)
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            found.append(gradients_of(model, {**call, "rng": np.random.default_rng(5)}))
    assert_same(found[0], found[1])
    for other in found[2:]:
        assert all(np.array_equal(found[1][path], other[path]) for path in other)


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradients_have_the_parameters_shapes_and_dtype_and_change_nothing(cls: Any, dtype: type) -> None:
    model = random_model(cls, dtype=dtype, **RATES)
    call = call_of(cls, np.array([[1, 1, 1], [1, 0, 0]]), 0)
    before = {path: array.copy() for path, array in flatten(model.parameters).items()}
    kept = {name: np.copy(value) for name, value in call.items()}
    output, gradients = value_and_gradients(model, **call, rng=np.random.default_rng(0))
    found = flatten(gradients)
    assert output.loss.dtype == dtype
    for path, array in flatten(model.parameters).items():
        assert (found[path].shape, found[path].dtype) == (array.shape, array.dtype), path
        assert np.isfinite(found[path]).all(), path
        np.testing.assert_array_equal(array, before[path])
    for name, value in call.items():
        np.testing.assert_array_equal(value, kept[name])
    np.testing.assert_array_equal(output.loss, model(**call, rng=np.random.default_rng(0)).loss)


def test_exactly_zero_gradients_are_rounding() -> None:
    """A key bias shifts all scores of a query; a span's bias all logits of a row; a classifier's bias all choices."""
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    for cls, extra in (
        (ernie.ErnieMForQuestionAnswering, ["head.qa_outputs.bias", "layers.1.norm2.bias"]),
        (ernie.ErnieMForMultipleChoice, ["head.classifier.bias"]),
    ):
        found = gradients_of(random_model(cls), call_of(cls, mask, 0))
        largest = max(float(np.abs(g).max()) for g in found.values())
        for path in ("layers.0.k_proj.bias", "layers.1.k_proj.bias", *extra):
            assert np.abs(found[path]).max() <= GRADIENT_BOUND * largest, path


@pytest.mark.parametrize("cls", HEADS)
def test_trace_has_a_cotangent_of_every_value(cls: Any) -> None:
    """Of the same shape; the values are those of a call."""
    model, call = random_model(cls), call_of(cls, np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), 0)
    with trace() as t:
        value_and_gradients(model, **call)
    with trace() as forward:
        model(**call)
    values = {name: entry.padded().shape for name, entry in t.items() if not name.startswith(GRADIENT)}
    assert list(values) == list(forward)
    assert values == {name: t[GRADIENT + name].padded().shape for name in forward}
    assert len(t) == 2 * len(values)


@pytest.mark.parametrize("attentions", [False, True])
def test_cotangents_of_a_trace_are_derivatives(attentions: bool) -> None:
    """Of the loss with respect to each value. Seen red with values recorded a second time by the recomputation, which
    doubled attention maps.
    """
    model = random_model(ernie.ErnieMForSequenceClassification, **RATES)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    call = {**call_of(type(model), mask, 0), "output_attentions": attentions}
    with trace() as t:
        value_and_gradients(model, **call, rng=np.random.default_rng(1))
    with trace() as forward:
        model(**call, rng=np.random.default_rng(1))
    rng = np.random.default_rng(2)
    for name in forward:
        value, cotangent = t[name], t[GRADIENT + name]
        np.testing.assert_array_equal(value.padded(), forward[name].padded(), err_msg=name)
        assert value.padded().shape == cotangent.padded().shape, name
        # Packed scores and probabilities are recorded, and replaced, once for each sequence.
        parts = cotangent.value if isinstance(cotangent.value, tuple) else (cotangent.value,)
        directions = [rng.standard_normal(part.shape) for part in parts]
        products = np.concatenate([(g * v).ravel() for g, v in zip(parts, directions, strict=True)])
        exact, scale = products.sum(), np.sqrt(np.square(products).sum())
        found = []
        for h in (1e-4, 1e-5):
            losses = []
            for sign in (1, -1):
                left = iter(directions)
                moved = {name: lambda x, s=sign * h, left=left: x + s * next(left)}
                with trace(replace=moved):
                    losses.append(float(model(**call, rng=np.random.default_rng(1)).loss))
            found.append((losses[0] - losses[1]) / (2 * h))
        assert min(abs(x - exact) for x in found) <= 1e-6 * max(abs(exact), scale) + 1e-9, name


def test_a_replaced_cotangent_goes_on() -> None:
    """`trace(replace=)` works on the way back too: with norm2's cotangent set to 0, everything below it gets 0."""
    model = random_model(ernie.ErnieMForTokenClassification)
    call = call_of(type(model), np.ones((2, 5), int), 0)
    with trace(replace={"grad:ernie_m.encoder.layers.0.norm2": np.zeros_like}):
        found = gradients_of(model, call)
    assert not found["layers.0.linear1.weight"].any()
    assert not found["word_embeddings"].any()
    assert found["layers.1.linear1.weight"].any()


def test_if_no_target_counts_the_gradients_are_zero() -> None:
    for cls in HEADS:
        call = call_of(cls, np.zeros((2, 3), int), 0)
        output, gradients = value_and_gradients(random_model(cls), **call)
        assert np.isnan(output.loss)
        assert not any(g.any() for g in flatten(gradients).values())


def test_bad_calls_are_refused() -> None:
    model, ids = random_model(ernie.ErnieMForTokenClassification), np.array([[0, 5, 2]])
    with pytest.raises(TypeError, match=r"model: expected one with a head.*got ErnieMModel"):
        value_and_gradients(random_model(), ids)
    with pytest.raises(ValueError, match="targets: expected labels or start_positions"):
        value_and_gradients(model, ids)
    with pytest.raises(TypeError, match="unexpected argument 'label'"):
        value_and_gradients(model, ids, label=ids)
    with pytest.raises(TypeError, match="at most once"):
        value_and_gradients(model, ids, input_ids=ids, labels=ids)
    with pytest.raises(TypeError, match="start_positions"):
        value_and_gradients(model, ids, start_positions=[0], end_positions=[0])
    with pytest.raises(ValueError, match="labels: expected"):
        value_and_gradients(model, ids, labels=np.array([[0, 7, 1]]))
    with pytest.raises(ValueError, match=r"cotangents: expected some of last_hidden_state \(1, 3, 24\)"):
        value_and_vjp(random_model(), {"pooled": np.zeros(3)}, ids)
