"""Models and batches shared by several test files."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.parameters import flatten, unflatten

CLASSES = (
    ernie.ErnieMModel,
    ernie.ErnieMForSequenceClassification,
    ernie.ErnieMForMultipleChoice,
    ernie.ErnieMForTokenClassification,
    ernie.ErnieMForQuestionAnswering,
    ernie.ErnieMForInformationExtraction,
    ernie.ErnieMForMaskedLM,
)
# Those that transformers and Paddle have too.
PUBLISHED = CLASSES[:6]
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 42,
}


def random_model(cls: Any = ernie.ErnieMModel, seed: int = 0, dtype: Any = np.float64, **fields: Any) -> Any:
    """A small model with all weights random: LayerNorm is not the identity, biases are not 0."""
    model = cls.from_config(ernie.ErnieMConfig(**{**SMALL, **fields}), seed=seed)
    rng = np.random.default_rng(seed)
    arrays = {}
    for path, array in flatten(model.parameters).items():
        centre = 1.0 if "norm" in path and path.endswith("weight") else 0.0
        width = 0.3 if array.ndim == 1 else array.shape[1] ** -0.5
        arrays[path] = (centre + width * rng.standard_normal(array.shape, np.float32)).astype(dtype)
    return cls(model.config, unflatten(arrays))


@st.composite
def masks(draw: st.DrawFn, max_rows: int = 4, lengths: tuple[int, ...] = (1, 2, 7, 17, 33)) -> np.ndarray:
    """(B, S) masks of 0 and 1: full, right-padded, left-padded or with holes; some rows have no tokens."""
    B, S = draw(st.integers(1, max_rows)), draw(st.sampled_from(lengths))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(0, S + 1, (B, 1))
    kinds = {
        "full": np.ones((B, S), bool),
        "right": np.arange(S) < counts,
        "left": np.arange(S) >= S - counts,
        "holes": rng.random((B, S)) < 0.7,
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))].astype(np.int64)


def ids_like(mask: np.ndarray, seed: int = 0, vocab_size: int = 50) -> np.ndarray:
    """Random ids in the mask's shape, never the padding token's."""
    return np.random.default_rng(seed).integers(2, vocab_size, mask.shape)
