"""`compare` without a tolerance: right models agree at every depth; each fault is found in its own entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, ids_like, masks, random_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ernie_m.reference import compare, trace
from ernie_m.reference.encoder import encoder_layer
from ernie_m.reference.layouts import Padded
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.trace import Entry, scope

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SIZES = [(24, 3, 40), (16, 1, 24), (32, 2, 64), (96, 4, 200)]


def traced(model: Any, mask: np.ndarray, **asked: Any) -> Any:
    ids = ids_like(mask)
    if "Choice" in type(model).__name__:
        ids, mask = ids[None], mask[None]
    with trace() as found:
        model(ids, attention_mask=mask, **asked)
    return found


def drawn(layers: int, size: tuple[int, int, int], seed: int, cls: Any = CLASSES[0]) -> Any:
    """A float32 model."""
    E, H, F = size
    sizes = {"hidden_size": E, "num_attention_heads": H, "intermediate_size": F, "num_hidden_layers": layers}
    return random_model(cls, seed, np.float32, **sizes)


def changed(model: Any, change: Callable[[dict[str, np.ndarray]], None]) -> Any:
    """The model with changed weights."""
    arrays = {path: array.copy() for path, array in flatten(model.parameters).items()}
    change(arrays)
    return type(model)(model.config, unflatten(arrays))


@settings(max_examples=25)
@given(masks(), st.sampled_from([0, 1, 2, 5, 12]), st.sampled_from(SIZES), st.integers(0, 99), st.sampled_from(CLASSES))
def test_compare_finds_nothing_in_right_models(
    mask: np.ndarray, layers: int, size: tuple[int, int, int], seed: int, cls: Any
) -> None:
    """Float32 against float64, the rectangle against packed tokens, and weights that were rounded in between."""
    assume(mask.any())
    model = drawn(layers, size, seed, cls)
    exact = model.astype(np.float64)
    truth = traced(exact, mask)
    for other in (traced(model, mask), traced(model, mask, output_attentions=True)):
        found = compare(truth, other, mask)
        assert found and found.ratio < 1 and found.ratios.keys() == found.errors.keys() == truth.keys(), found
        assert compare(other, truth, mask)
    assert compare(truth, traced(exact, mask, output_attentions=True), mask)
    finer = changed(exact, lambda arrays: arrays.update({k: x * (1 + 1e-9) for k, x in arrays.items()}))
    assert compare(traced(finer, mask), traced(model, mask), mask)


@settings(max_examples=15)
@given(st.integers(0, 99), st.floats(-6, 3), st.sampled_from([0.02, 1.0]))
def test_compare_finds_nothing_at_any_magnitude(seed: int, exponent: float, width: float) -> None:
    """Weights of the sizes that new and trained models have; word vectors from 1e-6 to 1e3."""
    model = drawn(3, (24, 3, 40), seed)

    def scale(arrays: dict[str, np.ndarray]) -> None:
        arrays["word_embeddings"] *= np.float32(10.0**exponent)
        arrays["position_embeddings"] *= np.float32(10.0**exponent)
        for path, array in arrays.items():
            if array.ndim == 2 and "embeddings" not in path:
                array *= np.float32(width * array.shape[1] ** 0.5)

    model = changed(model, scale)
    found = compare(traced(model.astype(np.float64), MASK), traced(model, MASK))
    assert found, found


def swap_heads(arrays: dict[str, np.ndarray], layer: str) -> None:
    weight = arrays[f"{layer}.out_proj.weight"]
    weight[:, :16] = np.roll(weight[:, :16], 8, axis=1)


# The change to a layer's weights, and the entry that shows it.
FAULTS: dict[str, tuple[Callable[[dict[str, np.ndarray], str], Any], str]] = {
    "norm2 0.3 % too large": (lambda w, i: w[f"{i}.norm2.weight"].__imul__(np.float32(1.003)), "norm2"),
    "linear1 0.3 % too large": (lambda w, i: w[f"{i}.linear1.weight"].__imul__(np.float32(1.003)), "linear1"),
    "q 0.3 % too large": (
        lambda w, i: w[f"{i}.q_proj.weight"].__imul__(np.float32(1.003)),
        "self_attn.self_attn.q_proj",
    ),
    "heads swapped": (swap_heads, "self_attn.out_proj"),
    "no bias in linear2": (lambda w, i: w[f"{i}.linear2.bias"].fill(0), "linear2"),
    "no bias in v": (lambda w, i: w[f"{i}.v_proj.bias"].fill(0), "self_attn.self_attn.v_proj"),
    "one weight off by 1 %": (
        lambda w, i: w[f"{i}.out_proj.weight"][3].__imul__(np.float32(1.01)),
        "self_attn.out_proj",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=4)
@given(st.data())
def test_compare_finds_a_fault_in_its_own_entry(fault: str, data: st.DataObject) -> None:
    layers = data.draw(st.sampled_from([1, 3, 12]))
    i, seed = data.draw(st.integers(0, layers - 1)), data.draw(st.integers(0, 99))
    model, (change, name) = drawn(layers, (24, 3, 40), seed), FAULTS[fault]
    truth = traced(model.astype(np.float64), MASK)
    found = compare(truth, traced(changed(model, lambda arrays: change(arrays, f"layers.{i}")), MASK))
    assert found.name == f"encoder.layers.{i}.{name}" and found.ratio > 10, found
    assert f"{found.name} differs by {found.ratio:.0f} times what rounding explains" in str(found)


def test_compare_finds_another_eps_and_another_gelu() -> None:
    """Both are differences of a whole model, so the first entry is where they can first be seen."""
    model = drawn(12, (24, 3, 40), 0)
    truth = traced(model.astype(np.float64), MASK)
    for fields, name in (({"layer_norm_eps": 1e-12}, "embeddings.layer_norm"),
                         ({"hidden_act": "gelu_new"}, "encoder.layers.0.activation")):  # fmt: skip
        other = type(model)(dataclasses.replace(model.config, **fields), model.parameters)
        assert compare(truth, traced(other, MASK)).name == name


def test_compare_says_how_much_of_what_rounding_explains() -> None:
    model = drawn(2, (24, 3, 40), 0)
    truth = traced(model.astype(np.float64), MASK)
    found = compare(truth, traced(model, MASK))
    worst = next(name for name, ratio in found.ratios.items() if ratio == found.ratio)
    assert str(found).endswith(f"; {worst} differs by {found.ratio:.1g} of what rounding explains")
    assert 0 < found.ratio < 1
    same = compare(truth, truth)
    assert same and same.ratio == 0 and same.error == 0


@pytest.mark.parametrize("kind", ["whole", "one token", "shape"])
def test_compare_finds_nan_and_shapes(kind: str) -> None:
    model, name = drawn(2, (24, 3, 40), 0), "encoder.layers.1.linear1"
    truth = traced(model, MASK)
    value = truth[name].value.copy()
    value[slice(None) if kind == "whole" else 2] = np.nan
    entry = (
        Entry(name, value[:, :-1], truth[name].tokens) if kind == "shape" else Entry(name, value, truth[name].tokens)
    )
    for pair in ((truth, {**truth, name: entry}), ({**truth, name: entry}, truth)):
        found = compare(*pair)
        assert found.name == name and found.error == found.ratio == np.inf
        assert compare(*pair, tolerance=1e9).name == name
        shapes = [trace[name].padded().shape for trace in pair]
        told = f"first differ at {name}: shape {shapes[0]} against {shapes[1]}; "
        assert list(found.shapes) == (shapes if kind == "shape" else []) and (told in str(found)) == (kind == "shape")
        assert ("nan" in str(found)) == (kind != "shape")


@pytest.mark.parametrize("lead", [(), (1,)])
def test_compare_takes_positions_that_were_embedded_once_for_all_rows(lead: tuple[int, ...]) -> None:
    truth, name = traced(drawn(1, (24, 3, 40), 0), MASK), "embeddings.position_embeddings"
    once = truth[name].padded()[0].reshape(*lead, *MASK.shape[1:], 24)
    assert compare(truth, {**truth, name: Entry(name, once)}, MASK)
    found = compare(truth, {**truth, name: Entry(name, once + 0.01)}, MASK)
    assert found.name == name and not found.shapes and found.error == pytest.approx(0.01, rel=0.1)


def test_compare_with_a_tolerance_uses_only_that() -> None:
    model = drawn(2, (24, 3, 40), 0)
    pair = traced(model.astype(np.float64), MASK), traced(model, MASK)
    assert not compare(*pair, tolerance=1e-12) and compare(*pair, None, 1e-3)
    assert compare(*pair, tolerance=0.0).name == "embeddings.layer_norm"
    assert "rounding" not in str(compare(*pair, tolerance=1e-3)) and "tolerance 1.00e-03" in str(
        compare(*pair, tolerance=1e-3)
    )


def runs_layer(model: Any, mask: np.ndarray, whole: bool) -> Callable[[str, np.ndarray], Any]:
    """`call(name, inputs)` for `forced`, which returns the output or a trace, packed or padded."""
    layout = Padded(mask == 1, (mask == 1)[:, None, None, :])

    def call(name: str, inputs: np.ndarray) -> Any:
        layer = model.parameters.layers[int(name.rsplit(".", 1)[1])]
        with trace() as found, scope(name):
            output, _ = encoder_layer(inputs.astype(model.dtype), layer, layout, model.config)
        return found if whole else output

    return call


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("fault", [None, "norm2 0.3 % too large", "no bias in v"])
def test_compare_forced_tells_a_local_fault_from_an_inherited_error(fault: str | None, whole: bool) -> None:
    model = drawn(5, (24, 3, 40), 1)
    other = changed(model, lambda arrays: FAULTS[fault][0](arrays, "layers.2")) if fault else model
    truth = traced(model.astype(np.float64), MASK)
    free = traced(other, MASK)
    found = compare(truth, free, MASK, forced=runs_layer(other, MASK, whole))
    if fault is None:
        assert found and not found.inherited, found
        return
    assert found.name == f"encoder.layers.2.{FAULTS[fault][1] if whole else 'norm2'}"
    assert found.inherited == ("encoder.layers.3", "encoder.layers.4")
    assert "only inherited: the errors of encoder.layers.3, encoder.layers.4" in str(found)


def test_compare_forced_finds_a_fault_before_the_layers() -> None:
    """Every layer is right on its own input, and wrong in the whole pass."""
    model = drawn(3, (24, 3, 40), 1)
    other = changed(model, lambda arrays: arrays["word_embeddings"].__imul__(np.float32(1.1)))
    truth = traced(model.astype(np.float64), MASK)
    found = compare(truth, traced(other, MASK), MASK, forced=runs_layer(other, MASK, True))
    assert found.name == "embeddings.word_embeddings"
    assert found.inherited == ("encoder.layers.0", "encoder.layers.1", "encoder.layers.2")


def test_compare_forced_finds_a_second_fault() -> None:
    """It is not inherited, so it is not in the list."""
    model = drawn(5, (24, 3, 40), 1)

    def twice(arrays: dict[str, np.ndarray]) -> None:
        for i in (1, 3):
            arrays[f"layers.{i}.linear1.bias"] += 0.1

    other = changed(model, twice)
    truth = traced(model.astype(np.float64), MASK)
    found = compare(truth, traced(other, MASK), MASK, forced=runs_layer(other, MASK, True))
    assert found.name == "encoder.layers.1.linear1"
    assert found.inherited == ("encoder.layers.2", "encoder.layers.4")


def test_compare_forced_names_what_is_wrong_with_a_call() -> None:
    truth = traced(drawn(2, (24, 3, 40), 0), MASK)
    for result, message in (
        (np.zeros((1, 2)), r"forced: encoder.layers.0: expected an output of shape \(2, 5, 24\), got \(1, 2\)"),
        ({}, "forced: expected a trace with names of encoder.layers.0"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(truth, truth, forced=lambda name, inputs, result=result: result)
    with pytest.raises(ValueError, match=r"forced: expected names such as encoder\.layers\.0"):
        compare({"a": Entry("a", np.ones(2))}, {"a": Entry("a", np.ones(2))}, forced=lambda name, inputs: inputs)


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_compare_judges_other_models_by_the_worst_entry_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, traces = rng.standard_normal((2, 7, 30)), [{}, {}]
    weights = [rng.standard_normal((30, 30)) / 30**0.5 for _ in range(4)]
    for found, dtype in zip(traces, (np.float64, np.float32), strict=True):
        y = x.astype(np.float32).astype(dtype)
        for i, weight in enumerate(weights):
            y = np.maximum(y @ weight.astype(np.float32).astype(dtype), 0)
            found[f"blocks.{i}"] = Entry(f"blocks.{i}", y)
    assert compare(*traces)
    traces[1]["blocks.2"] = Entry("blocks.2", traces[1]["blocks.2"].value * np.float32(1.003))
    assert compare(*traces).name == "blocks.2"


def test_compare_explains_what_only_one_trace_has() -> None:
    """The output of two layers, and nothing in between: what rounding explains is computed through both."""
    model = drawn(2, (24, 3, 40), 0)
    truth, name = traced(model.astype(np.float64), MASK), "encoder.layers.1.norm2"
    found = compare(truth, {name: traced(model, MASK)[name]}, MASK)
    assert found and list(found.ratios) == [name] and found.ratio > 0
    off = Entry(name, truth[name].value * 1.01, truth[name].tokens, "float32")
    assert compare(truth, {name: off}, MASK).name == name
