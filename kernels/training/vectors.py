"""Vectors of texts for retrieval: the mean over a text's tokens, after every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ernie_m.reference.array import Array
from ernie_m.reference.groups import batches
from ernie_m.reference.objectives import Vocabulary
from ernie_m.reference.objectives.examples import sequence
from ernie_m.reference.padding import pad_ids


def mean_vectors(model: Any, texts: Sequence[Array], vocabulary: Vocabulary) -> Array:  # N texts -> (N, L + 1, E)
    """The mean of the hidden states of [CLS] text [SEP], embeddings first; `model` is an encoder in `eval()` mode."""
    found: dict[int, Array] = {}
    for rows in batches([len(text) + 2 for text in texts], None):
        ids = [sequence(vocabulary, texts[i])[0] for i in rows]
        given = (torch.from_numpy(x).to(model.device) for x in pad_ids(ids, vocabulary.pad))
        with torch.no_grad():
            states = model(*given, output_hidden_states=True).hidden_states
        # Padded positions are 0.
        sums = np.stack([state.float().sum(dim=1).cpu().numpy() for state in states], axis=1)
        found |= {i: total / len(x) for i, x, total in zip(rows, ids, sums, strict=True)}
    return np.stack([found[i] for i in range(len(texts))])
