"""A reference model and a torch model to train alike: the same weights, batches whose targets count, and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from helpers import ids_like, random_model
from torch_models import CLASSES

from ernie_m.kernels.dropout import seed_tensor
from ernie_m.reference.checkpoint.names import HUGGINGFACE, PREFIX, file_name
from ernie_m.reference.dropout import draw_seeds
from ernie_m.reference.parameters import flatten

RATES: dict[str, Any] = {
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "act_dropout": 0.1,
    "classifier_dropout": 0.4,
}
RIGHT = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
MASKS = {
    "none": np.ones_like(RIGHT),
    "right": RIGHT,
    "left": RIGHT[:, ::-1].copy(),
    "holes": np.array([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 0, 0, 1], [0, 0, 1, 0, 0]]),
    "an empty row": RIGHT * np.array([[1], [0], [1], [1]]),
}


def models(cls: Any, seed: int = 0, **config: Any) -> tuple[Any, Any]:
    """A reference model of three heads, and a torch model with the same weights, in `train()` mode."""
    twin = random_model(cls.twin, seed=seed, **{**RATES, "num_labels": 2, **config})
    return twin, cls.from_reference(twin).train()


def batch_of(cls: Any, mask: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Ids, the mask, and targets that count: at the first token of a row, or at all of them."""
    rng, (B, S) = np.random.default_rng(seed), mask.shape
    batch: dict[str, Any] = {"input_ids": ids_like(mask, seed), "attention_mask": mask}
    name = cls.__name__
    if "MultipleChoice" in name:
        batch = {key: x[None] for key, x in batch.items()} | {"labels": np.array([int(mask.any(axis=1).argmax())])}
    elif "SequenceClassification" in name:
        batch["labels"] = rng.integers(0, 2, B)
    elif "TokenClassification" in name:
        batch["labels"] = rng.integers(0, 2, (B, S))
    elif "MaskedLM" in name:
        batch["labels"] = np.where(rng.random((B, S)) < 0.5, batch["input_ids"], -100)
        batch["labels"][np.arange(B), mask.argmax(axis=1)] = 7
        batch["label_weights"] = rng.random((B, S)) + 0.1
    elif "QuestionAnswering" in name:
        batch |= {key: mask.argmax(axis=1) for key in ("start_positions", "end_positions")}
    elif "Extraction" in name:
        batch |= {key: rng.random((B, S)) for key in ("start_positions", "end_positions")}
    return batch


def seeds_of(twin: Any, seed: int) -> torch.Tensor:
    """The seeds that the reference draws from a generator with this seed."""
    return seed_tensor(draw_seeds(np.random.default_rng(seed), twin.config.num_hidden_layers))


def by_name(gradients: Any, cls: Any) -> dict[str, np.ndarray]:
    """The reference's gradients by the torch model's names."""
    prefix = "" if cls is CLASSES[0] else PREFIX
    return {file_name(path, HUGGINGFACE, prefix): x for path, x in flatten(gradients).items()}
