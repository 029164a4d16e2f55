from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, SMALL, ids_like, masks, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import LIBM, MODEL_BOUND, U64

from ernie_m.reference import ErnieMConfig, ErnieMModel, trace
from ernie_m.reference.parameters import flatten

MODEL = random_model()


def call(model: Any, mask: Any = None, ids: Any = None, **options: Any) -> Any:
    return model(ids_like(mask) if ids is None else ids, attention_mask=mask, **options)


@settings(max_examples=40)
@given(masks(), st.booleans())
def test_model_packed_equals_padded(mask: np.ndarray, head_mask: bool) -> None:
    """`output_attentions` requires the rectangle; without it a batch with padding is packed, as the trace shows."""
    factors = np.random.default_rng(1).random((2, 3)) if head_mask else None
    with trace() as t:
        packed = call(MODEL, mask, output_hidden_states=True, head_mask=factors)
    with trace() as u:
        padded = call(MODEL, mask, output_hidden_states=True, output_attentions=True, head_mask=factors)
    assert (t["embeddings.layer_norm"].indices is None) == bool(mask.all())
    assert u["embeddings.layer_norm"].indices is None
    for a, b in zip(
        (*packed.hidden_states, packed.pooler_output), (*padded.hidden_states, padded.pooler_output), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=MODEL_BOUND)


@settings(max_examples=40)
@given(masks(), st.booleans())
def test_model_outputs_are_zero_at_padding(mask: np.ndarray, attentions: bool) -> None:
    out = call(MODEL, mask, output_hidden_states=True, output_attentions=attentions)
    for state in (*out.hidden_states, out.last_hidden_state):
        assert not state[mask == 0].any()
    for probs in out.attentions or ():
        pairs = np.broadcast_to(mask[:, None, :, None] * mask[:, None, None, :], probs.shape)
        assert not probs[pairs == 0].any()
        # Two sums of S numbers, and a division.
        bound = (2 * mask.shape[1] + 2) * U64
        np.testing.assert_allclose(probs.sum(axis=-1), np.broadcast_to(mask[:, None], probs.shape[:3]), rtol=bound)


@settings(max_examples=40)
@given(masks(), st.booleans(), st.integers(0, 2**32 - 1))
def test_model_does_not_depend_on_what_padding_holds(mask: np.ndarray, attentions: bool, seed: int) -> None:
    """Other ids, or nan vectors, at padded positions: bitwise equal outputs."""
    rng = np.random.default_rng(seed)
    ids = ids_like(mask)
    other = np.where(mask == 1, ids, rng.integers(0, 50, mask.shape))
    vectors = MODEL.parameters.word_embeddings[ids]
    poisoned = np.where(mask[..., None] == 1, vectors, np.nan)
    outs = [
        call(MODEL, mask, ids, output_attentions=attentions),
        call(MODEL, mask, other, output_attentions=attentions),
        MODEL(inputs_embeds=poisoned, attention_mask=mask, output_attentions=attentions),
    ]
    for out in outs[1:]:
        for a, b in zip((out.last_hidden_state, out.pooler_output), outs[0].to_tuple(), strict=False):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=40)
@given(masks(), st.sampled_from([1, 5, 40]), st.booleans())
def test_model_does_not_depend_on_the_amount_of_padding(mask: np.ndarray, more: int, attentions: bool) -> None:
    """More columns of padding, even far beyond the 40 of the position table."""
    wider = np.pad(mask, ((0, 0), (0, more)))
    ids = np.pad(ids_like(mask), ((0, 0), (0, more)), constant_values=1)
    a = call(MODEL, mask, output_hidden_states=True, output_attentions=attentions)
    b = call(MODEL, wider, ids, output_hidden_states=True, output_attentions=attentions)
    S = mask.shape[1]
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        np.testing.assert_allclose(x, y[:, :S], rtol=0, atol=MODEL_BOUND)
        assert not y[:, S:].any()
    np.testing.assert_allclose(a.pooler_output, b.pooler_output, rtol=0, atol=MODEL_BOUND)


@settings(max_examples=20)
@given(masks(), st.integers(0, 2**32 - 1))
def test_model_is_equivariant_to_a_permutation_of_the_batch(mask: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(mask))
    ids = ids_like(mask)
    out, permuted = call(MODEL, mask, ids), call(MODEL, mask[order], ids[order])
    np.testing.assert_allclose(permuted.last_hidden_state, out.last_hidden_state[order], rtol=0, atol=MODEL_BOUND)
    np.testing.assert_allclose(permuted.pooler_output, out.pooler_output[order], rtol=0, atol=MODEL_BOUND)


@settings(max_examples=20)
@given(masks())
def test_model_structured_mask_is_equivalent_to_its_padding_mask(mask: np.ndarray) -> None:
    pairs = (mask[:, :, None] * mask[:, None, :]).astype(bool)
    a = call(MODEL, mask, output_attentions=True, output_hidden_states=True)
    b = call(MODEL, pairs, ids_like(mask), output_attentions=True, output_hidden_states=True)
    for x, y in zip((*a.hidden_states, *a.attentions), (*b.hidden_states, *b.attentions), strict=True):
        np.testing.assert_array_equal(x, y)


def test_model_respects_a_structured_mask() -> None:
    """Token 0 attends to 0 and 1, 1 to itself, 2 only to 3, and 3 to nothing: 3 is padding, and therefore so is 2."""
    allowed = np.array([[[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]], bool)
    ids = np.array([[5, 6, 7, 8]])
    out = MODEL(ids, attention_mask=allowed, output_attentions=True)
    for probs in out.attentions:
        np.testing.assert_array_equal(probs > 0, np.broadcast_to(allowed * [[1], [1], [0], [0]], probs.shape) > 0)
    assert not out.last_hidden_state[:, 2:].any()
    alone = MODEL(ids[:, 1:2], position_ids=[[1]]).last_hidden_state[0, 0]
    np.testing.assert_allclose(out.last_hidden_state[0, 1], alone, rtol=0, atol=MODEL_BOUND)


def test_model_takes_boolean_masks_with_an_axis_for_heads() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    ids, square = ids_like(mask), mask[:, None, :] & mask[:, :, None] & np.tri(4, dtype=bool)
    for flat, wide in ((mask, mask[:, None, None, :]), (square, square[:, None])):
        expected = MODEL(ids, attention_mask=flat).last_hidden_state
        np.testing.assert_allclose(
            MODEL(ids, attention_mask=wide).last_hidden_state, expected, rtol=0, atol=MODEL_BOUND
        )
        with pytest.raises(TypeError, match="attention_mask: expected a 4-D mask to be boolean"):
            MODEL(ids, attention_mask=wide.astype(np.int64))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (2, 1, 1, 4)])
def test_model_refuses_masks_for_pairs_that_may_be_added_to_the_scores(dtype: Any, shape: tuple[int, ...]) -> None:
    """Of zeros, such a mask means "all may attend" where it is added. Seen red: read as "nothing may attend", it made
    every output 0."""
    ids = np.full((2, 4), 9)
    for mask in (np.zeros(shape, dtype), np.ones(shape, dtype), np.full(shape, -np.inf, dtype)):
        expected = f"attention_mask: expected a {len(shape)}-D mask to be boolean, True = may attend, got {mask.dtype}"
        with pytest.raises(TypeError, match=expected):
            MODEL(ids, attention_mask=mask)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32])
def test_model_takes_one_mask_for_tokens_in_any_dtype(dtype: Any) -> None:
    """As transformers: 1 is a token, 0 is padding, also in a mask of floats."""
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    expected = call(MODEL, mask).last_hidden_state
    np.testing.assert_array_equal(call(MODEL, mask.astype(dtype), ids_like(mask)).last_hidden_state, expected)
    if dtype != np.float32:
        pairs = mask[:, :, None] * mask[:, None, :]
        wide = call(MODEL, pairs.astype(dtype), ids_like(mask)).last_hidden_state
        np.testing.assert_allclose(wide, expected, rtol=0, atol=MODEL_BOUND)


def test_model_default_mask_excludes_the_padding_token() -> None:
    ids = np.array([[0, 9, 2, 1, 1], [0, 9, 8, 7, 2]])
    np.testing.assert_array_equal(MODEL(ids).last_hidden_state, call(MODEL, ids != 1, ids).last_hidden_state)


def test_model_pooler_reads_the_first_valid_token() -> None:
    mask = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0]])
    for attentions in (False, True):
        out = call(MODEL, mask, output_attentions=attentions)
        dense = MODEL.parameters.pooler
        for row, column in ((0, 0), (1, 2)):
            expected = np.tanh(dense.weight @ out.last_hidden_state[row, column] + dense.bias)
            np.testing.assert_allclose(out.pooler_output[row], expected, rtol=0, atol=MODEL_BOUND)
        # 0 @ W + bias is exact.
        np.testing.assert_allclose(out.pooler_output[2], np.tanh(dense.bias), rtol=2 * LIBM * U64)


def test_model_positions_count_columns_with_left_padding() -> None:
    mask = np.array([[0, 0, 1, 1]])
    ids = np.array([[1, 1, 5, 6]])
    alone = MODEL(ids[:, 2:], position_ids=[[2, 3]])
    np.testing.assert_allclose(
        call(MODEL, mask, ids).last_hidden_state[:, 2:], alone.last_hidden_state, rtol=0, atol=MODEL_BOUND
    )


def test_model_one_row_of_positions_serves_all_rows() -> None:
    ids, positions = ids_like(np.ones((3, 4))), np.array([[4, 0, 7, 2]])
    one, all_rows = (
        MODEL(ids, position_ids=given).last_hidden_state for given in (positions, np.tile(positions, (3, 1)))
    )
    np.testing.assert_array_equal(one, all_rows)
    with pytest.raises(ValueError, match=r"position_ids: expected shape \(B, S\) = \(3, 4\), got \(2, 4\)"):
        MODEL(ids, position_ids=np.tile(positions, (2, 1)))


def test_model_head_mask_of_ones_is_no_mask() -> None:
    ids = ids_like(np.ones((2, 9)))
    plain = MODEL(ids)
    for ones in (np.ones(3), np.ones((2, 3)), np.ones(3, int)):
        np.testing.assert_array_equal(MODEL(ids, head_mask=ones).last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize("heads", [{0: [1]}, {1: [0, 2]}, {0: [0], 1: [1, 2]}])
def test_model_pruned_equals_head_masked(heads: dict[int, list[int]]) -> None:
    mask = np.ones((2, 3))
    for layer, pruned in heads.items():
        mask[layer, pruned] = 0
    ids, padding = ids_like(np.ones((2, 9))), np.array([[1] * 9, [1] * 4 + [0] * 5])
    pruned_model = MODEL.prune_heads(heads)
    assert pruned_model.num_parameters() < MODEL.num_parameters()
    expected = MODEL(ids, attention_mask=padding, head_mask=mask)
    found = pruned_model(ids, attention_mask=padding)
    np.testing.assert_allclose(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=MODEL_BOUND)
    # A head mask is indexed by the unpruned model's heads.
    scaled = np.array([[0.5, 1, 2], [3, 1, 0.5]])
    np.testing.assert_allclose(
        pruned_model(ids, head_mask=scaled).last_hidden_state,
        MODEL(ids, head_mask=scaled * mask).last_hidden_state,
        rtol=0,
        atol=MODEL_BOUND,
    )
    again = MODEL.prune_heads({0: [1]}).prune_heads({0: [1, 2], 1: [0]}) if heads == {0: [1]} else None
    if again is not None:
        together = MODEL.prune_heads({0: [1, 2], 1: [0]})
        weights = flatten(together.parameters)
        for path, array in flatten(again.parameters).items():
            np.testing.assert_array_equal(array, weights[path])
        np.testing.assert_allclose(
            again(ids).last_hidden_state, together(ids).last_hidden_state, rtol=0, atol=MODEL_BOUND
        )


def test_model_prune_heads_rejects_missing_layers_missing_heads_and_all_heads() -> None:
    for heads in ({2: [0]}, {0: [3]}, {0: [0, 1, 2]}):
        with pytest.raises(ValueError, match="pruned_heads"):
            MODEL.prune_heads(heads)


@pytest.mark.parametrize("size", [10, 50, 60])
def test_model_resize_token_embeddings(size: int) -> None:
    resized = MODEL.resize_token_embeddings(size)
    assert resized.config.vocab_size == size and MODEL.config.vocab_size == 50
    table, old = resized.parameters.word_embeddings, MODEL.parameters.word_embeddings
    assert table.shape == (size, 24) and table.dtype == old.dtype
    np.testing.assert_array_equal(table[:50], old[:size])
    if size > 50:
        assert table[50:].any(axis=1).all() and abs(table[50:].std() / 0.02 - 1) < 0.5
    ids = np.array([[0, 9, 2]])
    np.testing.assert_array_equal(resized(ids).last_hidden_state, MODEL(ids).last_hidden_state)


@pytest.mark.parametrize("cls", CLASSES)
def test_model_dtype_in_is_dtype_out(cls: type) -> None:
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = ids_like(mask)
    if "Choice" in cls.__name__:
        mask, ids = mask[None], ids[None]
    for dtype in (np.float16, np.float32, np.float64):
        model = random_model(cls, dtype=dtype)
        for attentions in (False, True):
            for rng in (None, np.random.default_rng(0)):
                out = model(ids, attention_mask=mask, output_attentions=attentions, output_hidden_states=True, rng=rng)
                for value in out.to_tuple():
                    for array in value if isinstance(value, tuple) else (value,):
                        assert array.dtype == dtype
                        assert np.isfinite(array).all()
        assert model.astype(np.float64).dtype == np.float64


def test_model_does_not_change_its_arguments_or_weights() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    given = {
        "input_ids": ids_like(mask),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(4), (2, 1)),
        "head_mask": np.array([0.5, 1, 2]),
    }
    copies = {key: value.copy() for key, value in given.items()}
    weights = {path: array.copy() for path, array in flatten(MODEL.parameters).items()}
    for attentions in (False, True):
        MODEL(**given, output_attentions=attentions, rng=np.random.default_rng(0))
    for key, value in given.items():
        np.testing.assert_array_equal(value, copies[key])
    for path, array in flatten(MODEL.parameters).items():
        np.testing.assert_array_equal(array, weights[path])


def test_model_returns_hidden_states_and_attentions_only_on_request() -> None:
    out = MODEL(np.array([[0, 5, 2]]))
    assert out.hidden_states is None and out.attentions is None and len(out.to_tuple()) == 2
    assert isinstance(MODEL(np.array([[0, 5, 2]]), return_dict=np.False_, output_attentions=None), tuple)
    out = MODEL(np.array([[0, 5, 2]]), output_hidden_states=np.True_, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)


def test_model_cls_token_mask_hides_cls_and_packs_nothing() -> None:
    """Paddle's default: a key mask of -1e4 on every id 0. Padding is attended to, and nothing is zeroed."""
    model = random_model(default_mask="cls_token")
    ids = np.array([[0, 9, 2, 1], [0, 9, 0, 2]])
    out = model(ids, output_attentions=True)
    for probs in out.attentions:
        np.testing.assert_array_equal(probs > 0, np.broadcast_to((ids != 0)[:, None, None, :], probs.shape))
    assert out.last_hidden_state.any(axis=-1).all()
    np.testing.assert_array_equal(model(ids).last_hidden_state, out.last_hidden_state)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(call(model, mask, ids).last_hidden_state, call(MODEL, mask, ids).last_hidden_state)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_model_cls_token_mask_of_a_row_of_only_id_0(dtype: Any) -> None:
    """Every key has the same penalty, which cancels but for what it rounds off the scores: at most half a spacing each.

    Seen red with a penalty that overflows float16, whose probabilities are all 0, and with -1e9, which rounds every
    score to the same number.
    """
    ids = np.zeros((2, 5), int)
    ids[1, 2] = 9  # in another row
    found = random_model(default_mask="cls_token", dtype=dtype)(ids, output_attentions=True)
    plain = random_model(dtype=dtype)(ids, attention_mask=np.ones_like(ids), output_attentions=True)
    assert np.isfinite(found.last_hidden_state).all()
    for probs in found.attentions:
        assert (probs[0] > 0).all() and (probs[1, :, :, 2] == 1).all()
    # The first layer's scores are the same; the second half of the bound is for everything else that rounds.
    change = np.log(found.attentions[0][0].astype(float)) - np.log(plain.attentions[0][0].astype(float))
    assert np.abs(change).max() <= 2 * np.spacing(dtype(1e4))


def test_model_from_config_is_seeded() -> None:
    config = ErnieMConfig(**SMALL)
    a, b, c = (flatten(ErnieMModel.from_config(config, seed=seed).parameters) for seed in (1, 1, 2))
    for path, array in a.items():
        np.testing.assert_array_equal(array, b[path])
        centre = 1.0 if "norm" in path and path.endswith("weight") else 0.0
        if (path.endswith("weight") and "norm" not in path) or path.endswith("embeddings"):
            assert abs(array.std() / 0.02 - 1) < 0.2 and not np.array_equal(array, c[path])
        else:
            np.testing.assert_array_equal(array, centre)
    assert not a["word_embeddings"][1].any() and not a["position_embeddings"][1].any()


@pytest.mark.parametrize(("pad", "tables"), [(0, 2), (30, 2), (41, 2), (42, 1), (49, 1)])
def test_model_from_config_starts_the_padding_row_at_0_where_a_table_has_it(pad: int, tables: int) -> None:
    """Of 50 words and 42 positions; rows are of 24 numbers."""
    p = ErnieMModel.from_config(ErnieMConfig(**SMALL, pad_token_id=pad), seed=0).parameters
    zeros = [np.flatnonzero(~table.any(axis=1)).tolist() for table in (p.word_embeddings, p.position_embeddings)]
    assert zeros == [[pad]] * tables + [[]] * (2 - tables)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input_ids, inputs_embeds: expected exactly one of the two, got neither"),
        ({"input_ids": [[5]], "inputs_embeds": np.zeros((1, 1, 24))}, "expected exactly one of the two, got both"),
        (
            {"input_ids": [[5, 50]]},
            r"input_ids: expected values in \[0, 50\) for a vocabulary of 50 rows, got 50 at \[0, 1\]",
        ),
        ({"input_ids": [[5], [-1]]}, r"input_ids: expected values in .* got -1 at \[1, 0\]"),
        ({"input_ids": [5, 6]}, r"input_ids: expected shape \(B, S\) with at least one row and column, got \(2,\)"),
        ({"input_ids": np.zeros((0, 4), int)}, r"input_ids: expected shape .* got \(0, 4\)"),
        ({"input_ids": np.zeros((4, 0), int)}, r"input_ids: expected shape .* got \(4, 0\)"),
        ({"input_ids": [[5.0]]}, "input_ids: expected integers, got float64"),
        ({"input_ids": [[True]]}, "input_ids: expected integers, got bool"),
        ({"input_ids": [["5"]]}, "input_ids: expected integers, got <U1"),
        ({"input_ids": [[5], [5, 6]]}, "input_ids: expected rows of equal length, got a ragged list"),
        ({"inputs_embeds": np.zeros((1, 2, 23))}, r"inputs_embeds: expected shape \(B, S, 24\), got \(1, 2, 23\)"),
        ({"inputs_embeds": np.zeros((1, 2, 24), int)}, "inputs_embeds: expected floating-point numbers, got int64"),
        ({"input_ids": np.full((1, 41), 5)}, "input_ids: expected sequences of at most 40 tokens.* got 41"),
        (
            {"input_ids": [[5, 6]], "position_ids": [[0, 40]]},
            r"position_ids: expected values in \[0, 40\).*got 40 at \[0, 1\]",
        ),
        ({"input_ids": [[5, 6]], "position_ids": [[0, -1]]}, r"position_ids: expected values .*got -1"),
        (
            {"input_ids": [[5, 6]], "position_ids": [[0, 1, 2]]},
            r"position_ids: expected shape \(B, S\) = \(1, 2\), got \(1, 3\)",
        ),
        ({"input_ids": [[5, 6]], "position_ids": [[0, 1.0]]}, "position_ids: expected integers, got float64"),
        (
            {"input_ids": [[5, 6]], "attention_mask": [[1, 1, 1]]},
            r"attention_mask: expected shape \(B, S\) = \(1, 2\) or \(B, S, S\) = \(1, 2, 2\), got \(1, 3\)",
        ),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 2]]}, "attention_mask: expected booleans or .* got 2"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, np.nan]]}, "attention_mask: expected booleans or .* got nan"),
        ({"input_ids": [[5, 6]], "attention_mask": [["a", "b"]]}, "attention_mask: expected booleans or .* got <U1"),
        (
            {"input_ids": [[5, 6]], "head_mask": [1, 1]},
            r"head_mask: expected shape \(H,\) = \(3,\) or \(L, H\) = \(2, 3\), got \(2,\)",
        ),
        ({"input_ids": [[5, 6]], "head_mask": ["a", "b", "c"]}, "head_mask: expected numbers, got <U1"),
        ({"input_ids": [[5, 6]], "output_attentions": "no"}, "^output_attentions: expected True or False, got 'no'"),
        ({"input_ids": [[5, 6]], "return_dict": "false"}, "^return_dict: expected True or False, got 'false'"),
        ({"input_ids": [[5, 6]], "output_hidden_states": 1}, "^output_hidden_states: expected True or False, got 1"),
    ],
)
def test_model_rejects_bad_input(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MODEL(**given)


def test_model_rows_without_tokens_are_all_padding() -> None:
    mask = np.array([[0, 0, 0], [1, 1, 0]])
    ids = ids_like(mask)
    for attentions in (False, True):
        out = call(MODEL, mask, ids, output_attentions=attentions)
        assert not out.last_hidden_state[0].any()
        alone = call(MODEL, mask[1:], ids[1:], output_attentions=attentions)
        np.testing.assert_allclose(out.last_hidden_state[1:], alone.last_hidden_state, rtol=0, atol=MODEL_BOUND)
    assert not call(MODEL, np.zeros((2, 3), int), ids).last_hidden_state.any()


def test_ids_and_positions_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_m.reference import array, embedding, inputs

    checked: list[str] = []

    def counting(name: str, *rest: Any) -> None:
        checked.append(name)
        array.check_range(name, *rest)

    for module in (inputs, embedding):
        monkeypatch.setattr(module, "check_range", counting)
    random_model()(np.array([[3, 4, 5], [6, 7, 1]]))
    assert sorted(checked) == ["input_ids", "position_ids"]
