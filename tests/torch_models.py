"""Torch models paired with reference models, and helpers for their tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

import numpy as np
import torch
from helpers import random_model
from rounding import MODEL_BOUND

import ernie_m.reference as ernie
from ernie_m.kernels import (
    attention,
    dropout,
    dropped_layer_norm,
    embedding,
    first_token,
    gelu,
    heads,
    layer_norm,
    model,
    words,
)
from ernie_m.kernels.runtime import dispatch

CLASSES = (
    model.ErnieMModel,
    heads.ErnieMForSequenceClassification,
    heads.ErnieMForMultipleChoice,
    heads.ErnieMForTokenClassification,
    heads.ErnieMForQuestionAnswering,
    heads.ErnieMForInformationExtraction,
    words.ErnieMForMaskedLM,
)
# Those that transformers and Paddle have too.
PUBLISHED = CLASSES[:6]
BY_NAME = {cls.__name__: cls for cls in CLASSES}
# One head of size 16: there is a kernel for it, and it takes the fewest programs in the interpreter.
SMALL = {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 24, "num_hidden_layers": 2}
# Parameters that add the same number to all scores of a softmax, which ignores it: over choices, and over positions.
IGNORED = {
    "ErnieMForMultipleChoice": ("classifier.bias",),
    "ErnieMForQuestionAnswering": ("qa_outputs.bias", "ernie_m.encoder.layers.1.norm2.bias"),
}
# How a call is computed: with the kernels, as on a CPU without them, or with autograd. Another way, "plain operations",
# takes the path of the kernels, with plain torch in their place.
WAYS = ("kernels", "without kernels", "gradients")


def pair(cls: Any = model.ErnieMModel, seed: int = 0, dtype: Any = np.float64, **config: Any) -> tuple[Any, Any]:
    """A small reference model with random weights, and a torch model with the same weights."""
    twin = random_model(cls.twin, seed=seed, dtype=dtype, **{**SMALL, **config})
    return twin, cls.from_reference(twin)


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Convert arrays and lists to tensors; leave everything else as it is."""
    return {key: torch.tensor(x) if isinstance(x, (np.ndarray, list)) else x for key, x in batch.items()}


@contextmanager
def way(name: str) -> Iterator[None]:
    """In this context, models compute in the named way."""
    operations = (attention, dropout, dropped_layer_norm, embedding, first_token, gelu, layer_norm)
    modules = {"plain operations": operations, "without kernels": (*operations, dispatch, model)}.get(name, ())
    patches = [mock.patch.object(module, "runs_triton", lambda x: False) for module in modules]
    with torch.set_grad_enabled(name == "gradients"):
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def arrays_of(output: Any) -> dict[str, np.ndarray]:
    """All arrays of an output, NumPy or torch, by field; those of a tuple as `hidden_states.0`."""
    found: dict[str, np.ndarray] = {}
    for field in fields(output):
        value = getattr(output, field.name)
        for i, x in enumerate(value if isinstance(value, tuple) else (value,)):
            if x is not None:
                name = f"{field.name}.{i}" if isinstance(value, tuple) else field.name
                found[name] = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return found


def assert_same(ours: Any, theirs: Any, tolerance: float = MODEL_BOUND) -> None:
    """Assert that two outputs have the same fields, shapes, dtypes and, up to rounding errors, values."""
    a, b = arrays_of(ours), arrays_of(theirs)
    assert list(a) == list(b)
    for name, x in a.items():
        assert (x.shape, x.dtype) == (b[name].shape, b[name].dtype), name
        np.testing.assert_allclose(x, b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def three_errors(cls: Any, batch: dict[str, Any], seed: int, how: str, **config: Any) -> dict[str, tuple[Any, ...]]:
    """By field: the errors of the torch model and of the reference, both float32, and the float64 truth."""
    twin32, model32 = pair(cls, seed, np.float32, **config)
    exact = arrays_of(twin32.astype(np.float64)(**batch))
    reference = arrays_of(twin32(**batch))
    with way(how):
        found = arrays_of(model32(**tensors(batch)))
    assert list(found) == list(exact)
    return {
        name: (np.abs(found[name] - truth), np.abs(reference[name] - truth), truth) for name, truth in exact.items()
    }


def config_of(**fields: Any) -> ernie.ErnieMConfig:
    """A small configuration."""
    return ernie.ErnieMConfig(**{"vocab_size": 50, "max_position_embeddings": 42, **SMALL, **fields})
